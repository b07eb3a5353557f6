"""Chapters on the fake device: every tensor and generator where it belongs, from the first cell to the last.

`make test` runs CHAPTERS, which use most of what computes on a device; `make fakegpu` runs all of them.
"""

import os
from pathlib import Path

import fake_device
import pytest

from tools import run_chapters

CHAPTERS = ("04", "06", "09")
STARTUP = Path(__file__).parent / "data" / "fakegpu"
EVERY = run_chapters.chapters()


@pytest.mark.parametrize("source", EVERY, ids=lambda path: path.stem)
def test_a_chapter_runs_on_the_fake_device(source, tmp_path, monkeypatch):
    if source.name[:2] not in CHAPTERS and "FAKEGPU" not in os.environ:
        pytest.skip("`make fakegpu` runs this one")
    if reason := fake_device.unavailable():
        pytest.skip(reason)
    monkeypatch.setenv("IPYTHONDIR", str(STARTUP))
    report = run_chapters.run_chapter(source, "smoke", "auto", tmp_path)
    assert not report.error, report.error
    text = (tmp_path / f"{source.stem}.ipynb").read_text(encoding="utf-8")
    assert f"profile smoke · device {fake_device.NAME}:0" in text and report.claims
