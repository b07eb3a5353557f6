"""Sphinx extension: formulas without a network, by MathJax from the book's own _static folder.

`fetch` gets MathJax from npm into _build/mathjax, once, and for the slides reveal.js into _build/reveal.js. Where
MathJax lies there, the pages load it from _static/mathjax; else they load it from the CDN, as Sphinx does by itself.
"""

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

MATHJAX, REVEAL = "mathjax@3.2.2", "reveal.js@5.1.0"
SCRIPT = "tex-mml-chtml.js"  # what Sphinx takes from the CDN, too
PARTS = (SCRIPT, "output/chtml/fonts/woff-v2", "a11y", "input/tex/extensions", "ui")  # without speech: 4 MB less


def package(root: Path, name: str = MATHJAX) -> Path:
    """Where MathJax, or another package, lies or would lie."""
    return root / "_build" / name.partition("@")[0] / "package"


def fetch(root: Path, name: str = MATHJAX) -> str:
    """Get MathJax, or another package, from npm, unless it is there; "" if it is, else why it is not."""
    home = package(root, name).parent
    if package(root, name).exists():
        return ""
    if shutil.which("npm") is None:
        return "there is no npm on this machine"
    home.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["npm", "pack", name, "--silent"], cwd=home, check=True, capture_output=True, timeout=120)
    except (subprocess.SubprocessError, OSError) as error:
        return f"npm did not fetch {name}: {error}"
    with tarfile.open(next(home.glob("*.tgz"))) as archive:
        archive.extractall(home / "new", filter="data")
    (home / "new" / "package").rename(home / "package")  # whole or not at all
    return ""


def take_own(app: Sphinx, config: Any) -> None:
    """Point the pages to their own copy, if there is one."""
    if (package(Path(app.srcdir)) / "es5" / SCRIPT).exists():
        config.mathjax_path = f"mathjax/{SCRIPT}"  # relative to _static
    else:
        logging.getLogger(__name__).info("no MathJax in _build/mathjax: formulas need the network")


def copy_own(app: Sphinx, error: Exception | None) -> None:
    """Copy the parts that pages need into _static/mathjax."""
    if error or app.builder.format != "html" or app.config.mathjax_path != f"mathjax/{SCRIPT}":
        return
    copy_parts(Path(app.srcdir), Path(app.outdir) / "_static" / "mathjax")


def copy_parts(root: Path, target: Path) -> None:
    """Copy the parts of MathJax that pages need into a folder."""
    source = package(root) / "es5"
    for part in PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / part, target / part)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both steps."""
    app.connect("config-inited", take_own)
    app.connect("build-finished", copy_own)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
