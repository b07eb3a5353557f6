"""The claims of the latest run of all chapters against the stored ones, digit by digit as the chapters print them.

    python benchmarks/compare_claims.py [--stored benchmarks/claims.json] [--run _build/timings.json] [--write]

Run all chapters before, in profile book. Prints the claims that differ, are missing or are new, and exits with 1 if one
differs or is missing. A claim that measures a time or a speed need only be there. Rounding depends on the machine and
the number of threads: elsewhere claims at the level of rounding (2e-15) differ, and the last digits of some others.
--write stores the claims of the run instead: commit them together with the change that explains the differences.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Claims = dict[str, dict[str, str]]  # chapter: {name: value with unit, as the chapter prints it}

TIME_UNIT = re.compile(r"\s(?:[nµμm]?s|min|h|\S+/s|(?:\S+ )*(?:per|a) second)$")  # at the end of a printed value
TIME_NAME = re.compile(r"\b(?:seconds|minutes|(?:per|a) second|speed|speedup|faster|slower|as fast|running time)\b")


def measures_time(name: str, shown: str) -> bool:
    """Whether a claim is a time or a speed, by its unit or its name: two runs never agree in its digits."""
    return bool(TIME_UNIT.search(shown) or TIME_NAME.search(name))


def compare(stored: Claims, run: Claims) -> tuple[list[str], list[str], list[str]]:
    """Lines about the claims that differ, that are missing from the run, and that are new in it."""
    differing, missing, new = [], [], []
    for chapter, claims in stored.items():
        for name, shown in claims.items():
            now = run.get(chapter, {}).get(name)
            if now is None:
                missing.append(f"{chapter}: {name}: {shown}")
            elif now != shown and not measures_time(name, shown):
                differing.append(f"{chapter}: {name}: {shown} → {now}")
    for chapter, claims in run.items():
        new += [f"{chapter}: {n}: {shown}" for n, shown in claims.items() if n not in stored.get(chapter, {})]
    return differing, missing, new


def claims_of(timings: dict[str, Any]) -> Claims:
    """The claims of a run of run_chapters.py. SystemExit if it had another profile, or if a chapter failed."""
    if timings["profile"] != "book":
        raise SystemExit(f"the run must be one in profile book, got {timings['profile']}")
    if failed := [report["chapter"] for report in timings["chapters"] if report["error"]]:
        raise SystemExit(f"the run must have no error, but these chapters failed: {', '.join(failed)}")
    return {r["chapter"]: {claim["name"]: claim["shown"] for claim in r["claims"]} for r in timings["chapters"]}


def machine_of(timings: dict[str, Any]) -> dict[str, Any]:
    """What rounding depends on: the machine, and the numbers of threads that chapters computed with."""
    return {**timings["machine"], "threads": sorted({report["threads"] for report in timings["chapters"]})}


def main(arguments: list[str] | None = None) -> int:
    """Compare, or store; 1 if a claim differs or is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stored", type=Path, default=ROOT / "benchmarks" / "claims.json")
    parser.add_argument("--run", type=Path, default=ROOT / "_build" / "timings.json")
    parser.add_argument("--write", action="store_true", help="store the claims of the run")
    args = parser.parse_args(arguments)
    timings = json.loads(args.run.read_text(encoding="utf-8"))
    claims, machine = claims_of(timings), machine_of(timings)
    stored = json.loads(args.stored.read_text(encoding="utf-8")) if args.stored.exists() else {"claims": {}}
    if args.write:
        if gone := [chapter for chapter in stored["claims"] if chapter not in claims]:
            raise SystemExit(f"the run lacks {', '.join(gone)}: run all chapters, then write")
        git = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        text = json.dumps({"commit": commit, "machine": machine, "claims": claims}, indent=0, ensure_ascii=False)
        args.stored.write_text(text + "\n", encoding="utf-8")
        print(f"{sum(map(len, claims.values()))} claims stored")
        return 0
    if machine != stored["machine"]:
        print(f"The stored claims come from: {stored['machine']}\nThis run comes from:          {machine}")
    differing, missing, new = compare(stored["claims"], claims)
    for title, lines in (("differ", differing), ("are missing", missing), ("are new", new)):
        print(f"{len(lines)} claims {title}", *lines, sep="\n  ")
    count = sum(map(len, stored["claims"].values()))
    print(f"{count - len(differing) - len(missing)} of {count} claims of {stored['commit']} agree")
    return bool(differing or missing)


if __name__ == "__main__":
    sys.exit(main())
