"""The run of a chapter: profile, device, seeds, and claims that a run checks."""

import json
import math

import numpy as np
import pytest
import torch

from smlmtut import notebook
from smlmtut.notebook import ClaimError


@pytest.fixture
def run():
    return notebook.start("book", "cpu", seed=3)


@pytest.fixture
def shown(monkeypatch):
    """What the chapter displays, as (mime bundle, metadata)."""
    outputs = []
    monkeypatch.setattr(notebook, "display", lambda row: outputs.append(row._repr_mimebundle_()))
    return outputs


def recorded(shown):
    """The one claim that the output holds."""
    ((_, metadata),) = shown
    return metadata["smlmtut"]["claim"]


def test_start_says_where_it_runs(capsys):
    run = notebook.start("smoke", "cpu", seed=5)
    assert (run.profile, run.device, run.seed) == ("smoke", torch.device("cpu"), 5)
    assert capsys.readouterr().out == f"profile smoke · device cpu · seed 5 · torch {torch.__version__}\n"


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu"), (1, 0, "cuda")])
def test_auto_takes_the_best_device_there_is(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert notebook.start("book").device == torch.device(expected)
    assert notebook.start("book", "cpu").device == torch.device("cpu")


def test_a_device_that_is_missing_is_an_error_not_a_fallback(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda' is not on this machine; present: .*cpu"):
        notebook.start("book", "cuda")


def test_same_seed_same_numbers_and_the_global_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    run = notebook.start("book", "cpu", seed=3)
    first, again = (torch.rand(4, generator=run.generator()) for _ in range(2))
    other = torch.rand(4, generator=run.generator(seed=4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert run.generator(seed=0).initial_seed() == 0  # 0 is a seed, not "none given"
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("profile", notebook.PROFILES)
def test_pick_takes_the_size_of_the_profile(profile):
    assert notebook.start(profile, "cpu").pick(smoke="smoke", book="book", full="full") == profile


def test_pick_needs_all_three_sizes(run):
    with pytest.raises(TypeError, match="full"):
        run.pick(smoke=1, book=2)


def test_a_claim_shows_a_row_and_is_recorded(run, shown):
    run.check("sd over <bound>", 1.01, 0.97, 1.03, unit="px")
    data, claim = shown[0][0], recorded(shown)
    assert data["text/plain"] == "✓ sd over <bound>: 1.01 px (allowed 0.97 … 1.03 px)"
    assert "sd over &lt;bound&gt;" in data["text/html"] and 'class="claim claim-holds"' in data["text/html"]
    assert claim == {
        "name": "sd over <bound>",
        "value": 1.01,
        "low": 0.97,
        "high": 1.03,
        "unit": "px",
        "profile": "book",
        "enforced": True,
        "holds": True,
        "shown": "1.01 px",
        "allowed": "0.97 … 1.03 px",
    }
    assert run.claims["sd over <bound>"].holds


@pytest.mark.parametrize("value", [0.5, 1.5, 0.99999999, math.nan, math.inf, -math.inf])
def test_outside_the_range_the_run_stops_after_showing_the_row(run, shown, value):
    with pytest.raises(ClaimError, match="ratio: .* outside .*1 … 1.1"):
        run.check("ratio", value, 1.0, 1.1)
    claim = recorded(shown)
    assert claim["enforced"] and not claim["holds"]
    json.dumps(claim, allow_nan=False)  # a notebook is JSON, and JSON has no NaN


@pytest.mark.parametrize("value", [1.0, 1.1, np.float32(1.05), np.array([[1.05]]), torch.tensor([1.05])])
def test_the_ends_belong_to_the_range_and_any_single_number_will_do(run, shown, value):
    run.check("ratio", value, 1.0, 1.1)
    assert recorded(shown)["holds"]


def test_a_claim_of_other_profiles_is_shown_but_not_checked(shown):
    notebook.start("smoke", "cpu").check("ratio", 7.0, 1.0, 1.1, profiles=("book", "full"))
    claim = recorded(shown)
    assert shown[0][0]["text/plain"] == "– ratio: 7 (not checked in profile smoke)"
    assert not claim["enforced"] and not claim["holds"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-math.inf, 1e-8, "at most 1e-08"),
        (0.5, math.inf, "at least 0.5"),
        (2, 2, "exactly 2"),
        (1, 2, "1 … 2"),
    ],
)
def test_ranges_in_words(run, shown, low, high, words):
    inside = low if math.isfinite(low) else high
    run.check("x", inside, low, high)
    claim = recorded(shown)
    assert claim["allowed"] == words
    json.dumps(claim, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "low", "high", "shown_value", "words"),
    [
        (1 + 2e-10, 1 - 1e-9, 1 + 1e-9, "1.0000000002", "1 ± 1e-09"),
        (1000.2, 1000.1, 1000.3, "1000.2", "1000.2 ± 0.1"),
        (0.0123456, 0.012, 0.013, "0.01235", "0.012 … 0.013"),
        (0.0, -1e-12, 1e-12, "0", "-1e-12 … 1e-12"),
    ],
)
def test_a_narrow_range_is_told_with_the_digits_it_needs(run, shown, value, low, high, shown_value, words):
    run.check("x", value, low, high)
    assert (recorded(shown)["shown"], recorded(shown)["allowed"]) == (shown_value, words)


def test_outside_a_notebook_the_row_is_plain_text(run, capsys):
    run.check("ratio", 1.0, 0.5, 1.5)
    assert capsys.readouterr().out.endswith("✓ ratio: 1 (allowed 0.5 … 1.5)\n")


BAD = {
    "profile": (lambda run: notebook.start("fast"), "profile must be one of .*'fast'"),
    "device": (lambda run: notebook.start("book", "gpu"), "device must be one of .*'gpu'"),
    "name": (lambda run: run.check(" ", 1, 0, 2), "name must not be empty"),
    "order": (lambda run: run.check("x", 1, 2, 0), "low must not exceed high, got low=2.0, high=0.0"),
    "nan bound": (lambda run: run.check("x", 1, math.nan, 2), "low must not exceed high, got low=nan"),
    "many values": (lambda run: run.check("x", torch.ones(2), 0, 2), "value must be a single number"),
    "text": (lambda run: run.check("x", "one", 0, 2), "value must be a single number, got 'one'"),
    "none": (lambda run: run.check("x", 1, None, 2), "low must be a single number, got None"),
    "no profiles": (lambda run: run.check("x", 1, 0, 2, profiles=()), "profiles must be a non-empty tuple"),
    "one word": (lambda run: run.check("x", 1, 0, 2, profiles="book"), "profiles must be .* got 'book'"),
    "unknown": (lambda run: run.check("x", 1, 0, 2, profiles=("b",)), r"profiles must be .* got \('b',\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(run, case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(run)
    assert not run.claims


def test_folded_claims_are_one_closed_line(run, shown):
    with run.folded():
        run.check("a <b>", 1, 0, 2)
        run.check("c", 3, 0, 2, profiles=("full",))
        assert not shown
    ((bundle, metadata),) = shown
    assert bundle["text/html"].startswith(
        '<details class="claims"><summary>Checked here: 1 of 1, 1 not in this profile'
    )
    assert bundle["text/html"].count('class="claim claim-') == 2 and "a &lt;b&gt;" in bundle["text/html"]
    assert bundle["text/plain"].splitlines()[1] == "    ✓ a <b>: 1 (allowed 0 … 2)"
    assert [claim["name"] for claim in metadata["smlmtut"]["claims"]] == ["a <b>", "c"] == list(run.claims)
    run.check("d", 1, 0, 2)
    assert recorded(shown[1:])["name"] == "d"


def test_a_folded_claim_that_fails_stops_the_run_in_an_open_box(run, shown):
    with pytest.raises(ClaimError, match="b: 3 is outside"), run.folded():
        run.check("a", 1, 0, 2)
        run.check("b", 3, 0, 2)
    ((bundle, _),) = shown
    assert '<details class="claims" open><summary>Checked here: 1 of 2' in bundle["text/html"]
    with run.folded():  # the next box begins anew
        run.check("c", 1, 0, 2)
    assert "1 of 1" in shown[1][0]["text/html"]


def test_a_box_is_not_empty_and_not_within_another(run, shown):
    with pytest.raises(ValueError, match="at least one check, got none"), run.folded():
        pass
    with pytest.raises(ValueError, match="must not stand within another"), run.folded(), run.folded():
        pass
    with pytest.raises(ZeroDivisionError), run.folded():
        raise ZeroDivisionError
    assert not shown
