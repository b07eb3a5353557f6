"""The aims of `protocol.md`, one column a method: measured on the frames that ship.

    python benchmarks/final_table.py --part test --json final.json              # what a checkout has the weights of
    python benchmarks/final_table.py --part test --runs runs --json final.json  # and the runs that ended in a folder
    python benchmarks/final_table.py --read final.json                          # the table again, without a run

What the file has already is not asked again.

Rows are in the order of the protocol; ± is a bootstrap error over the frames, and a star marks an aim that is met. Runs
of one form or rival that differ in their seed alone share a column: the mean of their scores, the smallest and the
largest.
"""

import argparse
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import ablation, bakeoff, rivals

# what two methods are compared by on the same frames, and what chapter 10 draws
FRAME_BY_FRAME = ("energy excess", "energy scale", "ln error bar", "p(K = 2)", "exact p(K = 2)")
Rows = dict[str, dict[str, dict[str, dict[str, float]]]]  # class → method → "scores" → name → value


class Aim(NamedTuple):
    """A row of the table: class of frames and score, as `bakeoff.score` names it; what is aimed at; when it is met."""

    what: str
    kind: str
    score: str
    wanted: str
    met: Callable[[float], bool]


def at_most(limit: float) -> Callable[[float], bool]:
    """Whether a value lies in ±limit."""
    return lambda value: abs(value) <= limit


AIMS = [
    *(
        Aim(f"energy regret, {kind}", kind, "energy regret", f"≤ {limit:.0%}", lambda x, most=limit: x <= most)
        for kind, limit in (("lone", 0.02), ("pair", 0.04), ("sparse", 0.04), ("crowded", 0.06))
    ),
    Aim("error bar, lone: scatter", "lone", "error bar scatter", "≤ .10", at_most(0.10)),
    Aim("error bar, lone: bias", "lone", "error bar bias", "≤ 3 %", at_most(0.03)),
    Aim("ambiguous pairs: p(K = 2) off", "pair", "p(K = 2) off", "≤ .05", at_most(0.05)),
    Aim("the same, rms without noise", "pair", "p(K = 2) off, rms without noise", "≤ .063", at_most(0.063)),
    Aim("ambiguous pairs: log loss of K, nat", "pair", "log loss of K, ambiguous", "≤ .03", lambda x: x <= 0.03),
    Aim("crowded: spread–skill of the mass", "crowded", "mass spread–skill", ".9–1.1", lambda x: 0.9 <= x <= 1.1),
    Aim("halo, 50 % intervals (prior)", "prior", "halo 50%", "48–52 %", lambda x: 0.48 <= x <= 0.52),
    *(
        Aim(f"two-sample accuracy, {kind}", kind, "two-sample accuracy", "≤ .60", lambda x: x <= 0.60)
        for kind in ("lone", "pair", "sparse", "crowded")
    ),
    *(
        Aim(f"s a frame, {kind}", kind, "s a frame", "", lambda _: False)
        for kind in ("lone", "pair", "sparse", "crowded")
    ),
]


def method_of(run: str) -> str:
    """The name of a run without its seed: runs that differ in nothing else share a column."""
    return re.sub(r"-seed\d+", "", run)


def cell(scores: list[dict[str, float]], aim: Aim) -> str:
    """Value and error of a method that ran once, mean and range of one that ran several times; "" where it has none."""
    values = [row[aim.score] for row in scores if aim.score in row]
    if not values:
        return ""
    value, star = sum(values) / len(values), ""
    if math.isfinite(value) and aim.met(value):
        star = " *"
    if len(values) > 1:
        return f"{value:.3f} ({min(values):.3f}–{max(values):.3f}){star}"
    error = scores[0].get(f"{aim.score} ±")
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}") + star


def table(found: Rows) -> str:
    """The table in Markdown."""
    columns: dict[str, dict[str, list[dict[str, float]]]] = {}
    for kind, methods in found.items():
        for run, entry in methods.items():
            columns.setdefault(method_of(run), {}).setdefault(kind, []).append(entry["scores"])
    frames = {kind: max(int(entry["scores"].get("frames", 0)) for entry in found[kind].values()) for kind in found}
    lines = ["Frames: " + ", ".join(f"{number} {kind}" for kind, number in frames.items()) + ".", ""]
    lines += ["| | aim | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for aim in AIMS:
        cells = [cell(column.get(aim.kind, []), aim) for column in columns.values()]
        if any(cells):
            lines.append(f"| {aim.what} | {aim.wanted} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def methods_in(runs: Path) -> dict[str, bakeoff.Method]:
    """The forms of the diffusion model and the rivals whose training ended in a folder."""
    found = {name: bakeoff.diffusion(network) for name, network in ablation.networks(runs / "ablation").items()}
    return found | {name: bakeoff.rival(network) for name, network in rivals.networks(runs / "rivals").items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", choices=["dev", "test"], default="test")
    parser.add_argument("--folder", type=Path, help="of the reference; none: the file that ships")
    parser.add_argument("--runs", type=Path, help="folder with the runs of ablation.py and rivals.py")
    parser.add_argument("--only", nargs="*", help=f"names of methods; none: all but {', '.join(bakeoff.SLOW)}")
    parser.add_argument("--read", type=Path, help="scores of an earlier run, of which the table is printed")
    bakeoff.add_arguments(parser)
    given = parser.parse_args()
    if given.read:
        print(table(json.loads(given.read.read_text(encoding="utf-8"))))
        return
    if given.json is None:
        parser.error("--json must name a file, which keeps the scores")
    torch.set_num_threads(given.threads)
    methods = bakeoff.shipped() | ({} if given.runs is None else methods_in(given.runs))
    asked = bakeoff.frames_of(given.folder, given.part, given.most, tuple(given.kinds))
    if not given.json.exists():
        bakeoff.kept(bakeoff.table({}, asked), given.json, FRAME_BY_FRAME)
    for name, method in bakeoff.chosen(methods, given.only).items():
        for kind, frames in asked.items():  # one by one, so that a run that is stopped goes on where it was
            if name in json.loads(given.json.read_text(encoding="utf-8")).get(kind, {}):
                continue
            bakeoff.kept({kind: bakeoff.scored(name, method, frames, kind)}, given.json, FRAME_BY_FRAME)
        print(f"{name} is scored", flush=True)
    print(table(json.loads(given.json.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
