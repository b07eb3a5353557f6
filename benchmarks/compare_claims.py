"""Do the chapters still compute what they computed? Every claim's printed value, against those of an earlier commit.

    make book && python benchmarks/compare_claims.py            # the last line says how many of how many are equal
    python benchmarks/compare_claims.py --write --commit abc123  # what later runs are compared with

claims.json holds the values as printed, with the commit and the kind of machine: another kind may round otherwise.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORED, TIMINGS = ROOT / "benchmarks" / "claims.json", ROOT / "_build" / "timings.json"

Claims = dict[str, dict[str, str]]  # chapter: name of the claim: value as printed


def differences(before: Claims, now: Claims) -> list[str]:
    """A line for each claim that has another value, is missing or is new."""
    found = []
    for chapter in sorted(before.keys() | now.keys()):
        old, new = before.get(chapter, {}), now.get(chapter, {})
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in new:
                found.append(f"{chapter}: {name} was {old[name]}, is missing")
            elif name not in old:
                found.append(f"{chapter}: {name} is new, {new[name]}")
            elif old[name] != new[name]:
                found.append(f"{chapter}: {name} was {old[name]}, is {new[name]}")
    return found


def of_last_run() -> Claims:
    """The claims of the last run of all chapters."""
    reports = json.loads(TIMINGS.read_text(encoding="utf-8"))["chapters"]
    return {report["chapter"]: {claim["name"]: claim["shown"] for claim in report["claims"]} for report in reports}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="store the last run's claims")
    parser.add_argument("--commit", default="", help="with --write: of the last run")
    given = parser.parse_args()
    now = of_last_run()
    if given.write:
        machine = json.loads(TIMINGS.read_text(encoding="utf-8"))["machine"]
        content = {"commit": given.commit, "machine": machine, "claims": now}
        STORED.write_text(json.dumps(content, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
        return 0
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    lines = differences(stored["claims"], now)
    print(*lines, sep="\n")
    count = sum(len(claims) for claims in stored["claims"].values())
    changed = sum(" is new, " not in line for line in lines)
    print(f"{count - changed} of the {count} claims of {stored['commit']} ({stored['machine']}) are as they were")
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
