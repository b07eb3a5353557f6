"""The report of a run on a GPU, with the CPU in its place and with numbers that were made up."""

import pytest
import torch
from fake_device import NAME, apart

from tools import gpu_report
from tools.gpu_report import BENCHMARKS, Size, speeds, text
from tools.run_chapters import Report

SMALL = Size(spots=128, frames=2, side=32, samples=2, steps=2)


def test_without_a_gpu_it_ends_at_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_report.run_chapters, "main", lambda *_: pytest.fail("a chapter ran"))
    assert gpu_report.main([]) == 1
    assert "torch.cuda.is_available() is false" in capsys.readouterr().err


def test_the_benchmarks_run_on_a_device():
    """That they run is the point: on the first GPU nothing but the device should be new. The clock is tested below."""
    found = speeds(torch.device("cpu"), SMALL)
    assert found.keys() == BENCHMARKS.keys() and all(min(both) > 0 for both in found.values())


def test_a_speed_is_the_count_over_the_seconds_of_the_second_run(monkeypatch):
    """The first run of ten seconds warms up, the second takes four: 128 spots in 4 s."""
    times = iter([0.0, 10.0, 100.0, 104.0])
    monkeypatch.setattr(gpu_report.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(gpu_report, "fit_spots", lambda spots, **_: None)
    assert gpu_report.fits(torch.device("cpu"), SMALL) == 128 / 4


@apart
def test_the_benchmarks_put_everything_on_the_device():
    for name, run in BENCHMARKS.items():
        assert run(torch.device(NAME, 0), SMALL) > 0, name


def test_the_report_tells_what_failed_and_what_takes_too_much():
    claims = [{"holds": k > 0, "enforced": True} for k in range(3)]
    reports = [
        Report("01_one", "full", 12.3, [], claims, "", memory={"reserved": 2_500_000_000, "allocated": 1}),
        Report("02_two", "full", 1.0, [], [], "cell 3 of 4: it broke", memory={"reserved": 15_000_000_000}),
        Report("03_three", "full", 1.0, memory={"host": 5}),
    ]
    told = text(reports, {"fits a second": (4000.0, 500.0)}, "full", "Some GPU", "580.1")
    assert told.startswith("# Some GPU\n\nDriver 580.1, ") and "profile full" in told
    assert "| 01_one | ran | 12 | 2.50 | 2 of 3 |" in told
    assert "| 02_two | FAILED | 1 | 15.00 **too much** | 0 of 0 |" in told and "it broke" in told
    assert "| 03_three | ran | 1 | – | 0 of 0 |" in told
    assert "| fits a second | 4000 | 500 | 8 |" in told
