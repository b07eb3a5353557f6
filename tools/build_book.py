"""Build the book's HTML from the executed chapters; fail on a warning, or if the build ran a chapter.

MathJax is fetched first, and the pages are mended after: see `offline_math` and `mend`.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

if not __package__:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import mend, offline_math

ROOT = Path(__file__).resolve().parents[1]
CALL = "from jupyter_book.cli.main import main; main()"  # works where a console script's path has a space
RAN = re.compile(r"^(.*): Execut(?:ing notebook using|ed notebook in)", re.M)


def executed(log: str) -> list[str]:
    """The pages that the build ran itself, by the words of its log."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    return sorted({Path(match[1]).name for match in RAN.finditer(plain)})


def build(builder: str = "html") -> int:
    """Let Jupyter Book build, with its log in _build/BUILDER.log; 0 if there was no warning and nothing ran."""
    command = [sys.executable, "-c", CALL, "build", ".", "--all", "-W", "-n", "--keep-going", "--builder", builder]
    log, lines = ROOT / "_build" / f"{builder}.log", []
    log.parent.mkdir(exist_ok=True)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if re.search(r"WARNING|ERROR|CRITICAL", line):
            print(line.rstrip())
        if ran := executed(line):
            process.kill()
            print(f"{ran[0]} is not in the cache as it stands now: run tools/run_chapters.py --seed-cache")
    code = process.wait()
    log.write_text("".join(lines), encoding="utf-8")
    if code:
        print(f"the build failed; its log is {log.relative_to(ROOT)}", file=sys.stderr)
    return code


def main() -> int:
    """Build; print the path of index.html; 0 if all is well."""
    started = time.perf_counter()
    if why := offline_math.fetch(ROOT):
        print(f"formulas will need the network: {why}")
    if build():
        return 1
    mended = mend.mend_site(ROOT / "_build" / "html")
    print(f"mended {mended} pages")
    print(f"built in {time.perf_counter() - started:.1f} s, no warning, nothing executed:")
    print(ROOT / "_build" / "html" / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
