"""Installing the package replaces nothing, and the files that repeat pyproject.toml agree with it."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, version

import pytest
from packaging.requirements import Requirement

import smlmtut
from tools import environment
from tools.run_chapters import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-").split()
    if "==" in line
)
# What Colab had installed in 2025, the oldest that the package must be content with; tests/data/colab.txt is newer.
COLAB = {
    "torch": "2.6.0",
    "numpy": "2.0.2",
    "scipy": "1.15.3",
    "pandas": "2.2.2",
    "matplotlib": "3.10.0",
    "h5py": "3.13.0",
    "tifffile": "2025.6.1",
    "scikit-image": "0.25.2",
    "pooch": "1.8.2",
    "pyyaml": "6.0.2",
    "tqdm": "4.67.1",
    "ipywidgets": "7.7.1",
    "accelerate": "1.6.0",
    "safetensors": "0.5.3",
    "typer": "0.15.3",
    "filelock": "3.18.0",
    "scoringrules": "0.9.0",  # not there: pip installs it, and numpy and scipy suffice for it
}


@pytest.mark.parametrize("requirement", RUNTIME, ids=str)
def test_runtime_requirements_are_lower_bounds_that_colab_meets(requirement):
    assert [bound.operator for bound in requirement.specifier] == [">="]
    assert not requirement.marker and not requirement.extras
    assert requirement.specifier.contains(COLAB[requirement.name])


def test_installing_beside_torch_and_numpy_changes_neither(tmp_path):
    """pip, without an index to fetch from, plans to install this package and nothing else."""
    assert version("torch").partition("+")[0] == PINS["torch"] and version("numpy").startswith("2.")
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-build-isolation"]
    command += ["--quiet", "--report", str(report), str(ROOT)]
    subprocess.run(command, check=True, cwd=tmp_path)
    planned = json.loads(report.read_text(encoding="utf-8"))["install"]
    assert [item["metadata"]["name"] for item in planned] == ["smlmtut"]


def imports(source: str) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    absolute = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in plain | absolute}


def test_every_import_of_the_package_is_a_declared_requirement():
    names = {"scikit-image": "skimage", "pyyaml": "yaml", "ipywidgets": "ipywidgets"}
    declared = {names.get(requirement.name, requirement.name) for requirement in RUNTIME}
    comes_with = {"IPython": "ipywidgets", "PIL": "matplotlib", "cycler": "matplotlib", "requests": "pooch"}
    # an extra; the latter two import it for types alone, which tests/test_rooms.py holds
    of_workers = ("smlmtut/localize/cluster.py", "smlmtut/localize/files.py", "smlmtut/cli/options.py")
    for path in (ROOT / "smlmtut").rglob("*.py"):
        for name in imports(path.read_text(encoding="utf-8")):
            known = name in sys.stdlib_module_names or name == "smlmtut"
            known |= name in ("dask", "distributed") and path.relative_to(ROOT).as_posix() in of_workers
            assert known or comes_with.get(name, name) in declared, f"{path.relative_to(ROOT)} imports {name}"


def test_every_requirement_has_a_pin_that_meets_it():
    for requirement in [*RUNTIME, *EXTRAS["book"], *EXTRAS["cluster"], *EXTRAS["test"], *EXTRAS["dev"]]:
        if requirement.name != "smlmtut":
            pin = PINS[requirement.name.lower().replace("_", "-")]
            assert requirement.specifier.contains(pin), f"{requirement} against {pin}"


def test_the_tests_run_with_the_pinned_versions():
    installed = {d.name.lower().replace("_", "-"): d.version.partition("+")[0] for d in distributions()}
    assert {"torch", "numpy", "jupyter-book", "sphinx-book-theme"} <= installed.keys()
    assert not {name: (installed[name], pin) for name, pin in PINS.items() if installed.get(name, pin) != pin}


def test_environment_yml_follows_pyproject():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert text == environment.environment(PYPROJECT)
    names = re.findall(r"^  - ([\w-]+)", text, re.M)
    conda = [environment.CONDA_NAMES.get(requirement.name, requirement.name) for requirement in RUNTIME]
    assert names == ["conda-forge", "python", "pip", "make", *conda, "pip"]


def test_a_requirement_more_changes_environment_yml():
    more = {**PYPROJECT, "project": {**PROJECT, "dependencies": [*PROJECT["dependencies"], "attrs>=25"]}}
    assert "  - attrs>=25\n" in environment.environment(more)


def test_version_and_licences():
    assert version("smlmtut") == smlmtut.__version__
    assert f"version: {smlmtut.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert "CC-BY-4.0" in (ROOT / "LICENSE-text").read_text(encoding="utf-8")
