"""The archive for a class without a network: whole, the same twice, and its instructions name what is in it."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from smlmtut import data
from tools import offline

ROOT = offline.ROOT


def item(name: str, sha256: str | None = "ab" * 32, version: str = "1.0") -> dict:
    hashes = {"sha256": sha256} if sha256 else {}
    return {"metadata": {"name": name, "version": version}, "download_info": {"archive_info": {"hashes": hashes}}}


def test_the_list_of_packages_is_what_pip_takes(tmp_path):
    text = offline.requirements({"install": [item("torch"), item("Attrs"), item("smlmtut", None)]})
    assert text.splitlines() == [f"{name}==1.0 --hash=sha256:{'ab' * 32}" for name in ("Attrs", "torch")]
    with pytest.raises(ValueError, match="no SHA-256 for torch 1.0"):
        offline.requirements({"install": [item("torch", None)]})


def test_pip_refuses_another_file_than_the_listed_one(tmp_path):
    """The list is for `--require-hashes`: a wheel that was changed on the way does not install."""
    name = "nothing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        wheel.writestr("nothing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n")
        wheel.writestr("nothing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("nothing-1.0.dist-info/RECORD", "")
    (tmp_path / "wheels.txt").write_text(offline.requirements({"install": [item("nothing")]}), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--find-links", str(tmp_path)]
    command += ["--target", str(tmp_path / "new"), "--require-hashes", "-r", str(tmp_path / "wheels.txt")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode and "DO NOT MATCH THE HASHES" in found.stderr


def test_the_sources_are_those_of_the_repository():
    found = {path.as_posix() for path in offline.sources(ROOT)}
    assert {"Makefile", "README.md", "smlmtut/data.py", "constraints.txt", "notebooks/01_image_formation.md"} <= found
    assert any(name.endswith(".safetensors") for name in found)
    assert not [name for name in found if re.match(r"_build/|runs/|\.venv|.*__pycache__", name)]


def test_a_copy_without_git_gives_the_same_sources(tmp_path):
    kept = ["Makefile", ".ci/run", "smlmtut/a.py", "tests/data/x.txt"]
    for name in [*kept, "_build/html/index.html", ".venv/bin/python", "smlmtut/__pycache__/a.pyc", "runs/x/y.pt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert [path.as_posix() for path in offline.sources(tmp_path)] == sorted(kept)
    (tmp_path / ".gitignore").write_text("_build/\n.venv/\nruns/\n__pycache__/\n", encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert [path.as_posix() for path in offline.sources(tmp_path)] == sorted([*kept, ".gitignore"])


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A small repository that has everything built, and data files that are short."""
    names = ["_build/html/index.html", "_build/course/01_student.ipynb", "_build/slides/01.html"]
    for name in [*names, "_build/questions/01.gift", "Makefile", "pyproject.toml"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    monkeypatch.setattr(data, "fetch", lambda name: tmp_path / "Makefile")
    return tmp_path


@pytest.mark.parametrize("wheels", [False, True])
def test_the_instructions_name_what_is_there(built, wheels):
    folder = built / "_build" / "wheels" if wheels else None
    if folder:
        folder.mkdir()
        (folder / "torch-1.0.whl").write_bytes(b"x")
    target = built / "_build" / "offline" / "all.zip"
    count = offline.write(target, offline.contents(built, "torch==1.0\n", folder))
    first = target.read_bytes()
    assert count == offline.write(target, offline.contents(built, "torch==1.0\n", folder))
    assert target.read_bytes() == first
    with zipfile.ZipFile(target) as archive:
        names = [name.removeprefix(f"{offline.NAME}/") for name in archive.namelist()]
        text = archive.read(f"{offline.NAME}/README.txt").decode()
        assert archive.read(f"{offline.NAME}/book/index.html").decode() == "_build/html/index.html"
    assert set(data.SOURCES) <= {Path(name).name for name in names if name.startswith("data/")}
    for place in re.findall(r"^([\w./]+?)/?  +\S", text, re.M):
        assert any(name == place or name.startswith(f"{place}/") for name in names), place
    assert ("wheels/" in re.findall(r"^(wheels/)", text, re.M)) is wheels
    assert all(
        source.licence in text_of for source, text_of in ((s, offline.licences()) for s in data.SOURCES.values())
    )


def test_what_is_not_built_is_named(built):
    assert offline.missing(built) == []
    (built / "_build" / "slides" / "01.html").unlink()
    (built / "_build" / "html" / "index.html").unlink()
    assert offline.missing(built) == ["make book", "make slides"]


def test_an_archive_that_breaks_off_leaves_the_old_one(built):
    target = built / "all.zip"
    target.write_bytes(b"old")

    def entries():
        yield "a", "text"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        offline.write(target, entries())
    assert target.read_bytes() == b"old"
