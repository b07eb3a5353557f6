"""Run one chapter if it changed and build it alone, with the book's front and back matter, for a look.

References to other chapters stay unresolved and the chapter's warnings are only shown: `make book` counts.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

if __package__ is None:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import build_book, mend, offline_math, run_chapters


def lay_out(source: Path, site: Path) -> None:
    """A book of one chapter in site: configuration, front and back matter, the chapter, its table of contents."""
    shutil.rmtree(site, ignore_errors=True)
    (site / "notebooks").mkdir(parents=True)
    for folder in ("book", "tools"):
        shutil.copytree(run_chapters.ROOT / folder, site / folder)
    shutil.copy(run_chapters.ROOT / "_config.yml", site)
    for path in run_chapters.SOURCES.glob(f"{source.stem}.*"):
        shutil.copy(path, site / "notebooks")
    if not offline_math.fetch(run_chapters.ROOT):
        offline_math.package(site).parent.mkdir(parents=True)
        offline_math.package(site).symlink_to(offline_math.package(run_chapters.ROOT))
    toc = yaml.safe_load((run_chapters.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    for part in toc["parts"]:
        part["chapters"] = [c for c in part["chapters"] if c["file"].startswith("book/")]
    chapter = {"caption": "Preview", "numbered": True, "chapters": [{"file": f"notebooks/{source.stem}"}]}
    toc["parts"] = [chapter, *(part for part in toc["parts"] if part["chapters"])]
    (site / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")


def main() -> int:
    """Run, lay out, build; print the path of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("chapter", help="the start of its file name, such as 01")
    parser.add_argument("--profile", default="book", choices=["smoke", "book", "full"])
    args = parser.parse_args()
    (source,) = run_chapters.chapters([args.chapter])
    report = run_chapters.unchanged(source, args.profile, "auto")
    report = report or run_chapters.run_and_keep(source, args.profile, "auto", sys.stderr.isatty())
    run_chapters.tell(report)
    if report.error:
        return 1
    site = run_chapters.BUILD / "preview" / source.stem
    lay_out(source, site)
    executed = nbformat.read(run_chapters.BUILD / "executed" / args.profile / f"{source.stem}.ipynb", as_version=4)
    run_chapters.seed_cache(source, executed, site / "_build" / ".jupyter_cache")
    command = [sys.executable, "-c", build_book.CALL, "build", ".", "--all", "-q", "-n"]
    done = subprocess.run(command, cwd=site, check=False, capture_output=True, text=True)
    told = [line for line in (done.stdout + done.stderr).splitlines() if f"{source.name}:" in line or done.returncode]
    print("\n".join(line for line in told if "WARNING" in line or done.returncode))
    mend.mend_site(site / "_build" / "html")
    print(site / "_build" / "html" / "notebooks" / f"{source.stem}.html")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
