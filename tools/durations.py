"""How long a chapter takes, from durations.json: to run, to read, to do its exercises, to lecture on.

`python tools/durations.py` prints the sentences that stand in the chapters, and the table of the page for teachers.
`python tools/durations.py --write` puts both where they belong. Tests compare them with the chapters and the page.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALL = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
MEASURED, STUDY = ALL["chapters"], ALL["study"]
TEACHING = ROOT / "book" / "teaching" / "index.md"
HEAD = "| Chapter | Lecture | Reading | Its cells run | Exercises | Time for exercises |"
TIME = re.compile(r"^- \*\*Time:\*\* .*$|\*\*Time\*\*: [^.]*\.", re.M)
RUNS = re.compile(r"The cells run in about [^.]*\.")
HALVES = {60: "an hour", 90: "an hour and a half", 120: "two hours", 150: "two and a half hours", 180: "three hours"}


def sentence(seconds: dict[str, float | None]) -> str:
    """What a chapter says, from its seconds on each kind of machine; the second may be None: not measured."""
    fast, slow = seconds["AVX-512"], seconds["AVX2 only"]
    assert fast is not None, "a chapter needs at least its time on the first kind of machine"
    without = f", in about {in_words(slow)} without" if slow else ""
    return f"The cells run in about {in_words(fast)} on one CPU core with AVX-512{without}."


def in_words(seconds: float) -> str:
    """Seconds to the nearest five below a minute and a half, then minutes."""
    return f"{5 * max(1, round(seconds / 5))} seconds" if seconds < 90 else f"{round(seconds / 60)} minutes"


def study(chapter: str) -> str:
    """How long a chapter takes to read and to work through, as it says it."""
    read, exercises = (HALVES[STUDY[chapter][what]] for what in ("read", "exercises"))
    return f"about {read} to read, {exercises} for the exercises."


def row(chapter: str, exercises: int) -> str:
    """The chapter's line in the table for teachers."""
    times = STUDY[chapter]
    cells = [f"{{doc}}`../../notebooks/{chapter}`", f"{times['lecture']} min", HALVES[times["read"]]]
    cells += [in_words(MEASURED[chapter]["AVX-512"]), str(exercises), HALVES[times["exercises"]]]
    return f"| {' | '.join(cells)} |"


def exercises(text: str) -> int:
    """How many exercises a chapter has."""
    return len(re.findall(r"^(?:`{3,}|:{3,})\{exercise(?:-start)?\}", text, re.M))


def table() -> str:
    """The table of the page for teachers."""
    texts = {chapter: (ROOT / "notebooks" / f"{chapter}.md").read_text(encoding="utf-8") for chapter in STUDY}
    return "\n".join([HEAD, "|---" * 6 + "|", *(row(chapter, exercises(text)) for chapter, text in texts.items())])


def written(chapter: str, text: str) -> str:
    """A chapter with its times as they are known."""
    start, mark, rest = text.partition("## Before you start")
    head, code, rest = rest.partition("```{code-cell}")
    one_line = not re.search(r"^- \*\*Time:\*\*", head, re.M)
    time = f"**Time**: {study(chapter)}" if one_line else f"- **Time:** {study(chapter)}"
    head = RUNS.sub(sentence(MEASURED[chapter]), TIME.sub(time, head, count=1))
    return start + mark + head + code + rest


def main() -> None:
    """Print, or write."""
    if sys.argv[1:] != ["--write"]:
        for chapter, seconds in MEASURED.items():
            print(f"{chapter:<28} {study(chapter) if chapter in STUDY else ''} {sentence(seconds)}")
        print(table())
        return
    for chapter in STUDY:
        path = ROOT / "notebooks" / f"{chapter}.md"
        path.write_text(written(chapter, path.read_text(encoding="utf-8")), encoding="utf-8")
    page = TEACHING.read_text(encoding="utf-8")
    TEACHING.write_text(re.sub(r"^\| Chapter .*\n(?:\|.*\n)+", table() + "\n", page, flags=re.M), encoding="utf-8")


if __name__ == "__main__":
    main()
