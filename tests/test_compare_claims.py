"""The script that compares the claims of two runs."""

import json

import pytest

from benchmarks import compare_claims
from benchmarks.compare_claims import compare, measures_time
from tools.run_chapters import ROOT, chapters

STORED = {"01_one": {"ratio": "1.01", "width": "0.92 px", "time of a fit": "3.1 ms"}, "02_two": {"sum": "0"}}


def test_what_differs_is_missing_or_new_is_told_apart():
    assert compare(STORED, STORED) == ([], [], [])
    run = {"01_one": {"ratio": "1.02", "time of a fit": "2.9 ms", "height": "1"}, "02_two": {"sum": "0"}}
    assert compare(STORED, run) == (
        ["01_one: ratio: 1.01 → 1.02"],
        ["01_one: width: 0.92 px"],
        ["01_one: height: 1"],
    )
    assert compare(STORED, {"01_one": STORED["01_one"]})[1] == ["02_two: sum: 0"]
    without_time = {**STORED, "01_one": {"ratio": "1.01", "width": "0.92 px"}}
    assert compare(STORED, without_time)[1] == ["01_one: time of a fit: 3.1 ms"]


@pytest.mark.parametrize(
    ("name", "shown", "expected"),
    [
        ("one fit", "3.1 ms", True),
        ("one sample", "0.4 s", True),
        ("speed", "1200 frames/s", True),
        ("samples", "13.8 draws per second", True),
        ("frames a second", "1200", True),
        ("DPM-Solver++ against 100 steps, times as fast", "5.1", True),
        ("radius", "0.92 px", False),
        ("bits", "0.0118 bits per dimension", False),
        ("in units of the second moment", "1.5 e⁻", False),
        ("spread, s = 0.02", "0.6084", False),
        ("the network's localizations", "0.9638", False),
    ],
)
def test_times_and_speeds_are_known_by_unit_or_name(name, shown, expected):
    assert measures_time(name, shown) == expected


@pytest.fixture
def files(tmp_path):
    """The arguments for a stored file and a run, and a function that writes the run."""
    stored, run = tmp_path / "claims.json", tmp_path / "timings.json"
    machine = {"cores": 2, "avx512": True, "bf16": False}

    def write(claims, profile="book", **more):
        common = {"error": "", "threads": 1, **more}
        rows = {
            chapter: [{"name": n, "shown": shown} for n, shown in named.items()] for chapter, named in claims.items()
        }
        reports = [{"chapter": chapter, "claims": row, **common} for chapter, row in rows.items()]
        run.write_text(json.dumps({"machine": machine, "profile": profile, "chapters": reports}))

    return ["--stored", str(stored), "--run", str(run)], write


def test_a_stored_run_agrees_with_itself_and_not_with_another(files, capsys):
    arguments, write = files
    write(STORED)
    assert compare_claims.main([*arguments, "--write"]) == 0
    assert compare_claims.main(arguments) == 0
    assert "4 of 4 claims" in capsys.readouterr().out
    write({**STORED, "03_three": {"more": "1"}})
    assert compare_claims.main(arguments) == 0  # new claims alone are no fault
    write({**STORED, "02_two": {"sum": "1e-16"}}, threads=2)
    assert compare_claims.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "02_two: sum: 0 → 1e-16" in printed and "'threads': [2]" in printed
    write({"01_one": STORED["01_one"]})
    assert compare_claims.main(arguments) == 1
    with pytest.raises(SystemExit, match="lacks 02_two"):
        compare_claims.main([*arguments, "--write"])
    write(STORED, profile="smoke")
    with pytest.raises(SystemExit, match="profile book, got smoke"):
        compare_claims.main(arguments)
    write(STORED, error="a cell failed")
    with pytest.raises(SystemExit, match="failed: 01_one, 02_two"):
        compare_claims.main(arguments)


def test_the_stored_file_has_claims_of_every_chapter():
    stored = json.loads((ROOT / "benchmarks" / "claims.json").read_text(encoding="utf-8"))
    assert list(stored["claims"]) == [path.stem for path in chapters()]
    assert all(stored["claims"].values()) and stored["commit"]
    assert stored["machine"].keys() == {"cores", "avx512", "bf16", "threads"}
