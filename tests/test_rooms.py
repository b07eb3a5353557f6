"""The rooms of the package: their faces, what they load, who may import whom, and how much there is to read."""

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import smlmtut
from tools.run_chapters import ROOT

HEAVY = {"pandas", "scipy", "skimage", "scoringrules", "accelerate", "typer", "matplotlib"}
LIGHT = ("imaging", "estimation", "posterior", "diffusion", "evaluation")
# book/package.md sends a reader through these
READING = [
    "imaging/psf", "imaging/camera", "estimation/likelihood", "estimation/fisher", "estimation/fit", "imaging/kde",
    "networks/deepstorm", "diffusion/schedule", "diffusion/process", "diffusion/samplers", "diffusion/elbo",
    "diffusion/gaussian_mixture", "networks/unet", "networks/cddpm",
]  # fmt: skip


@pytest.mark.parametrize("room", smlmtut.ROOMS)
def test_a_face_names_at_most_twelve_things_and_no_module(room):
    face = import_module(f"smlmtut.{room}")
    modules = {path.stem for path in Path(face.__path__[0]).glob("*.py")}
    names = getattr(face, "__all__", [])
    assert len(names) <= 12 and not (modules | {room}) & set(names)
    assert all(hasattr(face, name) for name in names)
    told = set(re.findall(r"`(\w+)`", face.__doc__ or "")) - {"smlmtut"}
    assert told <= modules | set(names), "its docstring names what is not there"


def loaded(code: str) -> set[str]:
    """The modules that a new process has loaded after some code."""
    command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("room", LIGHT)
def test_a_face_loads_nothing_heavy(room):
    assert not HEAVY & loaded(f"import smlmtut.{room}")


@pytest.mark.parametrize("room", smlmtut.ROOMS)
def test_no_face_loads_the_training_loop_the_command_line_or_dask(room):
    assert not {"accelerate", "typer", "smlmtut.networks.training", "dask", "distributed"} & loaded(
        f"import smlmtut.{room}"
    )


def test_the_package_shows_its_rooms_and_loads_them_when_they_are_asked_for():
    assert not {"torch", "numpy"} & loaded("import smlmtut; dir(smlmtut)")
    assert "torch" in loaded("import smlmtut; smlmtut.imaging")
    assert set(smlmtut.ROOMS) < set(dir(smlmtut))
    assert {path.parent.name for path in Path(smlmtut.__file__).parent.glob("*/__init__.py")} == set(smlmtut.ROOMS)
    with pytest.raises(AttributeError, match="has no attribute 'kde'; it has imaging, estimation"):
        _ = smlmtut.kde


@pytest.mark.parametrize("arguments", [["-c", "import smlmtut"], ["-m", "smlmtut", "--help"]], ids=["import", "help"])
def test_a_start_takes_less_than_a_third_of_a_second(arguments):
    """0.3 s beyond Python's own start, below which a command feels immediate; torch alone takes a second or more.

    Processor time, so that waiting for a core of a busy machine does not count; best of three.
    """

    def seconds(more: list[str]) -> float:
        before = os.times()
        subprocess.run([sys.executable, *more], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds(arguments) for _ in range(3)) - min(seconds(["-c", "pass"]) for _ in range(3)) < 0.3


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    code = "from importlinter.cli import lint_imports_command as lint; lint()"
    paths = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code, "--no-cache", "pyproject.toml"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=paths)


def test_imports_go_one_way():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("imaging/psf", "from ..estimation import fit", "Rooms import one way"),
        ("diffusion/samplers", "from ..imaging import scenes", "Rooms import one way"),
        ("posterior/one", "from ..networks import load", "Rooms import one way"),
        ("networks/unet", "from ..estimation import fit", "Networks learn from images"),
        ("networks/recipes", "from ..io import movies", "Networks read no files"),
        ("evaluation/calibration", "from .. import data", "read no files and know no diffusion"),
        ("localize/samples", "from ..diffusion import ddim", "networks alone use diffusion"),
        ("io/movies", "from ..diffusion import ddim", "networks alone use diffusion"),
        ("networks/unet", "from .. import figures", "serves no room"),
        ("estimation/fit", "def late():\n    from .. import notebook", "serves no room"),
        ("imaging/psf", "from .. import figures", "Rooms import one way"),
        ("new", "", "Rooms import one way"),  # a module that has no place in the layers
        ("networks/precision", "import accelerate", "loads neither the training loop nor accelerate"),
        ("networks/training", "from .unet import UNet", "does not know what it trains"),
        ("imaging/psf", "from . import scenes", "No two modules import each other"),
    ],
)
def test_an_import_the_wrong_way_is_found(tmp_path, module, line, contract):
    shutil.copytree(ROOT / "smlmtut", tmp_path / "smlmtut", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / "smlmtut" / f"{module}.py", "a") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    broken = re.findall(r"^.* BROKEN(?: \(.*\))?$", result.stdout, re.M)
    assert result.returncode == 1 and any(contract in text for text in broken), result.stdout


def test_the_page_of_the_package_lists_what_a_reader_may_want_to_read():
    """Some 2,700 lines at most, and no module of more than 300: one idea each."""
    page = (ROOT / "book" / "package.md").read_text(encoding="utf-8")
    lines = {name: len((ROOT / "smlmtut" / f"{name}.py").read_text().splitlines()) for name in READING}
    assert sum(lines.values()) <= 2700 and max(lines.values()) <= 300, lines
    for name in READING:
        folder, _, module = name.partition("/")
        assert f"`{name}.py`" in page or (f"`{folder}/" in page and f"`{module}.py`" in page), name
    for room in smlmtut.ROOMS:
        assert f"| `{room}` |" in page
