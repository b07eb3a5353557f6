"""What the first cell of a chapter needs: profile, device, seeds, and claims that a run checks."""

import html
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, SupportsFloat, TypeVar

import torch
from IPython.display import display

from ._random import step_generator

PROFILES = ("smoke", "book", "full")
DEVICES = ("auto", "cpu", "cuda", "mps")
METADATA_KEY = "smlmtut"  # output metadata {"smlmtut": {"claim": {...}}}, or {"claims": [...]} of a box

Size = TypeVar("Size")


class ClaimError(AssertionError):
    """A value that a chapter claims lies outside the range that the chapter allows."""


@dataclass(frozen=True)
class Claim:
    """One checked number: its value, the closed range that is allowed, and whether the run enforced it."""

    name: str
    value: float
    low: float
    high: float
    unit: str
    profile: str
    enforced: bool

    @property
    def holds(self) -> bool:
        """True where low <= value <= high; False for NaN."""
        return self.low <= self.value <= self.high

    @property
    def allowed(self) -> str:
        """The range in words, for example '0.97 … 1.03 px' or 'at most 1e-08'."""
        unit = f" {self.unit}" if self.unit else ""
        if self.low == self.high:
            return f"exactly {number(self.low)}{unit}"
        if math.isinf(self.low):
            return f"at most {number(self.high)}{unit}"
        if math.isinf(self.high):
            return f"at least {number(self.low)}{unit}"
        if self.digits > 4:
            middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
            return f"{number(middle, self.digits)} ± {half:.2g}{unit}"
        return f"{number(self.low)} … {number(self.high)}{unit}"

    @property
    def shown(self) -> str:
        """The value with its unit, in as many digits as the range needs."""
        return f"{number(self.value, self.digits)}{' ' + self.unit if self.unit else ''}"

    @property
    def digits(self) -> int:
        """Significant digits that tell the ends of the range apart, at least 4."""
        width, size = self.high - self.low, max(abs(self.low), abs(self.high))
        if not 0 < width < math.inf:
            return 4
        return min(max(4, math.ceil(math.log10(size / width)) + 2), 16)

    @property
    def mark(self) -> str:
        """✓ holds, ✗ does not hold, – not checked in this profile."""
        return ("✓" if self.holds else "✗") if self.enforced else "–"

    def as_json(self) -> dict[str, Any]:
        """The claim as JSON values; an infinite bound is None, a value that is not finite a string."""
        return {
            "name": self.name,
            "value": self.value if math.isfinite(self.value) else str(self.value),
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "unit": self.unit,
            "profile": self.profile,
            "enforced": self.enforced,
            "holds": self.holds,
            "shown": self.shown,
            "allowed": self.allowed,
        }

    def __str__(self) -> str:
        """The row that a chapter shows, as plain text."""
        return f"{self.mark} {self.name}: {self.shown} ({self._note})"

    @property
    def _note(self) -> str:
        return f"allowed {self.allowed}" if self.enforced else f"not checked in profile {self.profile}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        return {"text/plain": str(self), "text/html": self.row}, {METADATA_KEY: {"claim": self.as_json()}}

    @property
    def row(self) -> str:
        """The row that a chapter shows, as HTML."""
        state = ("holds" if self.holds else "fails") if self.enforced else "unchecked"
        cells = {"mark": self.mark, "name": self.name, "value": self.shown, "range": self._note}
        parts = [f'<span class="claim-{key}">{html.escape(text)}</span>' for key, text in cells.items()]
        parts[2] = f"<b>{parts[2]}</b>"
        return f'<div class="claim claim-{state}">{" ".join(parts)}</div>'


@dataclass(frozen=True)
class Box:
    """Claims in one line that opens on a click; open from the start where one of them fails."""

    claims: tuple[Claim, ...]

    @property
    def title(self) -> str:
        """ "Checked here: 5 of 5", and how many were not checked in this profile."""
        checked = [claim.holds for claim in self.claims if claim.enforced]
        left = len(self.claims) - len(checked)
        return f"Checked here: {sum(checked)} of {len(checked)}" + (f", {left} not in this profile" if left else "")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        fails = any(claim.enforced and not claim.holds for claim in self.claims)
        rows = "".join(claim.row for claim in self.claims)
        box = f'<details class="claims"{" open" * fails}><summary>{self.title}</summary>{rows}</details>'
        text = "\n".join([self.title, *(f"    {claim}" for claim in self.claims)])
        return {"text/plain": text, "text/html": box}, {METADATA_KEY: {"claims": [c.as_json() for c in self.claims]}}


@dataclass(frozen=True)
class Run:
    """One run of a chapter: where it runs, how large its examples are, and what it has claimed so far."""

    profile: str
    device: torch.device
    seed: int
    claims: dict[str, Claim] = field(default_factory=dict)
    boxes: list[list[Claim]] = field(default_factory=list)  # the one that is open, if any

    def generator(self, seed: int | None = None, device: str | torch.device = "cpu") -> torch.Generator:
        """A fresh random generator on device; same seed, same device, same numbers.

        seed: None takes the seed of the run. Give each draw that must be independent a seed of its own.
        """
        return torch.Generator(device).manual_seed(self.seed if seed is None else int(seed))

    def step_generator(self, seed: int, step: int) -> torch.Generator:
        """The generator of one step of a training run, on the run's device: the same two numbers, the same frames."""
        return step_generator(seed, step, device=self.device)

    def pick(self, *, smoke: Size, book: Size, full: Size) -> Size:
        """The one of three sizes that belongs to the profile of this run."""
        return {"smoke": smoke, "book": book, "full": full}[self.profile]

    def check(
        self,
        name: str,
        value: SupportsFloat,
        low: SupportsFloat,
        high: SupportsFloat,
        profiles: Sequence[str] = PROFILES,
        unit: str = "",
    ) -> None:
        """Show a claim as a row and keep it in the output's metadata; outside [low, high] stop the run.

        value, low, high: numbers or tensors and arrays of one entry; low or high may be infinite.
        profiles: where the range is enforced; elsewhere the row says that it was not checked.
        Raises ClaimError where an enforced value lies outside the range or is NaN,
        and ValueError for an empty name, an impossible range or an unknown profile.
        """
        if not name.strip():
            raise ValueError("name must not be empty: it names the claim in the list of all claims")
        bounds = _scalar("low", low), _scalar("high", high)
        if not bounds[0] <= bounds[1]:
            raise ValueError(f"low must not exceed high, got low={bounds[0]}, high={bounds[1]}")
        if isinstance(profiles, str) or not profiles or set(profiles) - set(PROFILES):
            raise ValueError(f"profiles must be a non-empty tuple from {PROFILES}, got {profiles!r}")
        enforced = self.profile in profiles
        claim = Claim(name, _scalar("value", value), *bounds, unit, self.profile, enforced)
        self.claims[name] = claim
        self.boxes[-1].append(claim) if self.boxes else display(claim)
        if claim.enforced and not claim.holds:
            raise ClaimError(f"{name}: {claim.shown} is outside the allowed range ({claim.allowed})")

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Show the claims of the block in one closed box. They stop the run as others do; then the box is open.

        Raises ValueError within another box, or at the end of a block that claimed nothing.
        """
        if self.boxes:
            raise ValueError("folded must not stand within another folded block")
        self.boxes.append([])
        try:
            yield
        finally:
            box = Box(tuple(self.boxes.pop()))
            if box.claims:
                display(box)
        if not box.claims:
            raise ValueError("folded must hold at least one check, got none")


def start(profile: str = "book", device: str = "auto", seed: int = 0) -> Run:
    """Start a chapter: choose the device, print one line about the run, and return the Run.

    profile: "smoke", "book" or "full". device: "auto" takes cuda, else mps, else cpu.
    Raises ValueError for an unknown profile or device, or a device that this machine does not have.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {PROFILES}, got {profile!r}")
    run = Run(profile, _device(device), int(seed))
    print(f"profile {run.profile} · device {run.device} · seed {run.seed} · torch {torch.__version__}")
    return run


def number(value: float, digits: int = 4) -> str:
    """A number with so many significant digits, as rows and tables show it."""
    return f"{value:.{digits}g}"


def _device(name: str) -> torch.device:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name not in DEVICES:
        raise ValueError(f"device must be one of {DEVICES}, got {name!r}")
    if name == "auto":
        name = next(candidate for candidate, here in present.items() if here)
    if not present[name]:
        here = ", ".join(candidate for candidate, is_here in present.items() if is_here)
        raise ValueError(f"device {name!r} is not on this machine; present: {here}. 'auto' chooses by itself")
    return torch.device(name)


def _scalar(name: str, value: SupportsFloat) -> float:
    try:
        return float(value.item() if hasattr(value, "item") else value)  # type: ignore[union-attr]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a single number, got {value!r}") from error
