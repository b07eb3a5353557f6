"""The faces of the rooms: few names, none a module's own, and nothing that takes long to load."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import smlmtut

HEAVY = {"pandas", "scipy", "skimage", "scoringrules", "accelerate", "typer", "matplotlib"}
LIGHT = ("imaging", "estimation", "posterior", "diffusion", "evaluation")


@pytest.mark.parametrize("room", smlmtut.ROOMS)
def test_a_face_names_at_most_twelve_things_and_no_module(room):
    face = import_module(f"smlmtut.{room}")
    modules = {path.stem for path in Path(face.__path__[0]).glob("*.py")}
    names = getattr(face, "__all__", [])
    assert len(names) <= 12 and not modules & set(names)
    assert all(hasattr(face, name) for name in names)


@pytest.mark.parametrize("room", LIGHT)
def test_a_face_loads_nothing_heavy(room):
    code = f"import sys, smlmtut.{room}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)
