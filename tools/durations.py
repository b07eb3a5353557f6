"""The sentence about its running time that stands in each chapter, made from the measurements in durations.json.

`python tools/durations.py` prints all of them. A test compares them with the chapters.
"""

import json
from pathlib import Path

MEASURED = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))["chapters"]


def sentence(seconds: dict[str, float | None]) -> str:
    """What a chapter says, from its seconds on each kind of machine; the second may be None: not measured."""
    fast, slow = seconds["AVX-512"], seconds["AVX2 only"]
    assert fast is not None, "a chapter needs at least its time on the first kind of machine"
    without = f", in about {in_words(slow)} without" if slow else ""
    return f"The cells run in about {in_words(fast)} on one CPU core with AVX-512{without}."


def in_words(seconds: float) -> str:
    """Seconds to the nearest five below a minute and a half, then minutes."""
    return f"{5 * max(1, round(seconds / 5))} seconds" if seconds < 90 else f"{round(seconds / 60)} minutes"


if __name__ == "__main__":
    for chapter, seconds in MEASURED.items():
        print(f"{chapter:<28} {sentence(seconds)}")
