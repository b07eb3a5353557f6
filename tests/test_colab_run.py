"""The Colab edition runs where only Colab's libraries and the installed package are, in profile smoke."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]


def pip(python, *arguments):
    """Run pip in another environment; its errors are the test's."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def environment(**more):
    """The environment's variables without what would lead Python to this repository or its packages."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))}
    return {**kept, "OMP_NUM_THREADS": "2", **more}


def versions(python):
    """Version of every installed distribution."""
    return {entry["name"]: entry["version"] for entry in json.loads(pip(python, "list", "--format=json"))}


def python_of_colab() -> tuple[str, str]:
    """Colab's version of Python where this machine has it, else the one of the tests: its path, and its version."""
    for name in ("python3.13", sys.executable):
        if shutil.which(name):  # it may still be a stand-in for a version that is not there
            command = [name, "-c", "import sys; print(sys.version)"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return name, done.stdout
    raise AssertionError("the Python of the tests does not run")


@pytest.fixture(scope="module")
def colab_python():
    """A virtual environment with what Colab has and no smlmtut; kept between runs as long as it may be."""
    requirements, (name, version) = ROOT / "tests" / "data" / "colab.txt", python_of_colab()
    key = hashlib.sha256(requirements.read_bytes() + (ROOT / "pyproject.toml").read_bytes() + version.encode())
    folder = ROOT / "_build" / "colab-venv"
    home = folder / key.hexdigest()[:12]
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (home / "ready").exists():
            for old in folder.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            subprocess.run([name, "-m", "venv", str(home)], check=True, env=environment())
            pip(python, "install", "--quiet", "--no-compile", "--requirement", str(requirements))
            (home / "ready").touch()
        if "smlmtut" in versions(python):
            pip(python, "uninstall", "--yes", "smlmtut")
        yield python


def test_editions_run_where_only_colab_and_the_package_are(colab_python, tmp_path):
    before = versions(colab_python)
    pip(colab_python, "install", "--quiet", "--no-compile", str(ROOT))  # with its dependencies, as a reader installs it
    after = versions(colab_python)
    assert {name: after[name] for name in before} == before, "the install replaced what Colab has"
    assert after["ipywidgets"].startswith("7.7.")

    empty = tmp_path / "content"  # Colab starts in an empty folder of this name
    kernel = tmp_path / "jupyter" / "kernels" / "colab"
    empty.mkdir()
    kernel.mkdir(parents=True)
    argv = [str(colab_python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "colab", "language": "python"}))
    variables = environment(JUPYTER_PATH=str(tmp_path / "jupyter"))

    where = subprocess.run(
        [str(colab_python), "-c", "import smlmtut, sys; print(smlmtut.__file__); print(*sys.path, sep='\\n')"],
        cwd=empty,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert "site-packages" in where[0] and where[0].startswith(str(colab_python.parents[1]))
    assert str(ROOT) not in where[1:]

    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    assert notebooks, "there is no Colab edition: run `make colab`"
    failed = {}
    for notebook in notebooks:
        done = tmp_path / notebook.name
        command = ["papermill", str(notebook), str(done), "--kernel", "colab", "--cwd", str(empty)]
        command += ["--parameters", "profile", "smoke", "--parameters", "device", "cpu", "--no-progress-bar"]
        run = subprocess.run(
            [sys.executable, "-m", *command], env=variables, capture_output=True, text=True, check=False
        )
        if run.returncode:
            failed[notebook.name] = run.stderr[-3000:]
            continue
        cells = nbformat.read(done, as_version=4).cells
        install = next(cell for cell in cells if cell.cell_type == "code")
        assert install.outputs == [], "the install cell did something although the package is there"
        assert "%pip" in install.source
    assert not failed, "\n\n".join(f"{name}: {error}" for name, error in failed.items())
