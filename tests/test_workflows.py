"""The weekly run on a GPU: its scripts run here as on GitHub, with stand-ins for docker, nvidia-smi and gh."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from tools.run_chapters import ROOT

GPU = yaml.safe_load((ROOT / ".github" / "workflows" / "gpu.yml").read_text(encoding="utf-8"))
STEPS = GPU["jobs"]["full"]["steps"]
SCRIPTS = {step["name"]: step["run"] for job in GPU["jobs"].values() for step in job["steps"] if "run" in step}
# docker exec BOX COMMAND… runs COMMAND here, with the Python of the tests; anything else is written down
DOCKER = f"""#!/bin/bash
if [ "$1" = exec ]; then shift 2; [ "$1" = python3 ] && {{ shift; exec "{sys.executable}" "$@"; }}; exec "$@"; fi
echo "$@" >> docker.log
"""
GH = """#!/bin/bash
if [ "$2" = list ]; then cat open.json; else printf '%s\\n' "$@" >> gh.log; fi
"""
NVIDIA = "#!/bin/bash\necho a GPU\n"
needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
needs_jq = pytest.mark.skipif(not shutil.which("jq"), reason="needs jq, which GitHub's runners have")


def run(name, folder, programs, system=f"{os.pathsep}/usr/bin{os.pathsep}/bin", **variables):
    """Run a step's script as `shell: bash` does, in a folder, with stand-ins for programs before the system's."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    for program, text in programs.items():
        (bin_folder / program).write_text(text)
        (bin_folder / program).chmod(0o755)
    (folder / "script").write_text(SCRIPTS[name])
    command = [shutil.which("bash"), "--noprofile", "--norc", "-eo", "pipefail", str(folder / "script")]
    given = {
        "PATH": f"{bin_folder}{system}",
        "BOX": "box",
        "IMAGE": "image",
        "GITHUB_WORKSPACE": str(folder),
        **variables,
    }
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False)


def fake_torch(folder, available):
    """A folder with a torch that says whether there is CUDA."""
    text = f"class cuda:\n    is_available = lambda: {available}\nclass version:\n    cuda = '12'\n__version__ = '2'\n"
    (folder / "torch.py").write_text(text)
    return str(folder)


def test_scripts_keep_pipefail_and_nothing_runs_for_a_pull_request():
    assert GPU["defaults"]["run"]["shell"] == "bash"  # GitHub adds -eo pipefail; without the word it does not
    assert not [step for step in STEPS if "shell" in step]
    assert set(GPU[True]) == {"workflow_dispatch", "schedule"}  # YAML reads the key `on` as true
    assert len(GPU[True]["schedule"]) == 1
    assert "bash -euo pipefail -c" in SCRIPTS["Install the package beside what Colab has"]


@needs_bash
def test_the_first_step_fails_where_there_is_no_driver(tmp_path):
    first = STEPS[0]["name"]
    assert run(first, tmp_path, {}, system="").returncode != 0
    done = run(first, tmp_path, {"nvidia-smi": NVIDIA})
    assert (done.returncode, done.stdout) == (0, "a GPU\n")


@needs_bash
@pytest.mark.parametrize("available", [True, False])
def test_the_first_command_in_the_image_fails_without_cuda_and_shows_nvidia_smi(tmp_path, available):
    names = [step.get("name") for step in STEPS]
    inside = [name for name in names if name and "docker exec" in SCRIPTS[name]]
    assert inside[0] == "PyTorch sees the GPU" and names.index("Start Colab's image") < names.index(inside[0])
    programs = {"docker": DOCKER, "nvidia-smi": NVIDIA}
    done = run(inside[0], tmp_path, programs, PYTHONPATH=fake_torch(tmp_path, available))
    assert done.stdout.startswith("a GPU\n")
    assert (done.returncode == 0) == available
    assert available or "torch.cuda.is_available() is false" in done.stderr


@needs_bash
def test_the_image_is_colabs_and_gets_the_gpu_after_the_disk_is_free(tmp_path):
    names = [step.get("name") for step in STEPS]
    assert names.index("Free disk space for the image") < names.index("Start Colab's image")
    assert "container" not in GPU["jobs"]["full"]  # its image would be pulled before the disk is free
    assert GPU["jobs"]["full"]["env"]["IMAGE"].startswith("us-docker.pkg.dev/colab-images/public/runtime:")
    assert run("Start Colab's image", tmp_path, {"docker": DOCKER}).returncode == 0
    words = (tmp_path / "docker.log").read_text().split()
    assert words[0] == "run" and words[words.index("--gpus") + 1] == "all" and words[-2:] == ["image", "infinity"]


@needs_bash
@pytest.mark.parametrize(
    ("after", "fine"), [(["numpy==2.1.3", "smlmtut==1"], True), (["numpy==2.4.0", "smlmtut==1"], False)]
)
def test_an_install_that_replaces_what_colab_has_fails(tmp_path, after, fine):
    """pip's stand-in lists numpy 2.1.3 first, and other packages once it has installed something."""
    pip = tmp_path / "pip.py"
    later = "\\n".join(after)
    pip.write_text(
        "import pathlib, sys\nmark = pathlib.Path('installed')\n"
        "if sys.argv[1] == 'install': mark.touch()\n"
        f"else: print('{later}' if mark.exists() else 'numpy==2.1.3')\n"
    )
    programs = {"docker": DOCKER, "python3": f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'}
    done = run("Install the package beside what Colab has", tmp_path, programs, PYTHONPATH=str(tmp_path))
    assert (done.returncode == 0) == fine, done.stderr
    assert fine or "replaced what Colab has: numpy==2.1.3" in done.stdout


def test_results_are_uploaded_whatever_happened_and_long_runs_count_as_failed():
    upload = STEPS[-1]
    assert upload["if"] == "always()" and upload["uses"].startswith("actions/upload-artifact@")
    assert upload["with"]["path"].split() == ["gpu-report.md", "_build/timings.json", "_build/executed/full"]
    chapters = next(step for step in STEPS if step.get("name") == "Run the chapters and the benchmarks")
    assert chapters["run"].endswith("python3 -m tools.gpu_report --profile full")
    slow = sum(step.get("timeout-minutes", 0) for step in STEPS)
    assert 0 < slow < GPU["jobs"]["full"]["timeout-minutes"]  # so that a step ends first, which is a failure


@needs_bash
@needs_jq
@pytest.mark.parametrize(
    ("errors", "known", "done"),
    [
        (["", "ValueError"], ["Something else", "The GPU run fails: 02_two"], ("comment", "2")),
        (["", "ValueError"], ["The GPU run fails: 01_one"], ("create", "The GPU run fails: 02_two")),
        (["ValueError", "ValueError"], [], ("create", "The GPU run fails: 01_one, 02_two")),
        (["", ""], ["The GPU run fails: before or after the chapters"], ("comment", "1")),
        (None, [], ("create", "The GPU run fails: before or after the chapters")),
    ],
)
def test_a_failure_has_one_issue(tmp_path, errors, known, done):
    """errors: of the two chapters, None where none ran; known: titles of the open issues, numbered from 1."""
    issue = GPU["jobs"]["issue"]
    assert issue["if"] == "failure()" and issue["needs"] == "full"
    assert issue["permissions"]["issues"] == "write" and GPU["permissions"] == {"contents": "read"}
    if errors is not None:
        chapters = [{"chapter": c, "error": e} for c, e in zip(("01_one", "02_two"), errors, strict=True)]
        (tmp_path / "_build").mkdir()
        (tmp_path / "_build" / "timings.json").write_text(json.dumps({"chapters": chapters}))
    listed = [{"number": number, "title": title} for number, title in enumerate(known, start=1)]
    (tmp_path / "open.json").write_text(json.dumps(listed))
    result = run(issue["steps"][-1]["name"], tmp_path, {"gh": GH}, RUN="https://example.org/run")
    assert result.returncode == 0, result.stderr
    said = (tmp_path / "gh.log").read_text().splitlines()
    assert said[:2] == ["issue", done[0]] and said.count("issue") == 1
    assert done[1] in said and any(line.startswith(("https://example.org/run", "Again: ")) for line in said)
