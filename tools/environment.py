"""Write environment.yml from pyproject.toml, or check that it is up to date with --check."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}  # where conda-forge names it otherwise

HEAD = """\
# Written by tools/environment.py from pyproject.toml; do not edit.
#   conda env create --file environment.yml && conda activate smlmtut
name: smlmtut
channels:
  - conda-forge
dependencies:
"""


def conda_requirement(requirement: str) -> str:
    """'torch>=2.6' -> 'pytorch>=2.6'."""
    name, bound, low = requirement.partition(">=")
    return f"{CONDA_NAMES.get(name, name)}{bound}{low}"


def environment(pyproject: dict) -> str:
    """The text of environment.yml: the runtime libraries from conda-forge, the book's tools from pip."""
    project = pyproject["project"]
    lines = [f"python{project['requires-python']}", "pip", "make"]
    lines += [conda_requirement(requirement) for requirement in project["dependencies"]]
    tools = "  - pip:\n      - --editable .[test]\n"
    return HEAD + "".join(f"  - {line}\n" for line in lines) + tools


def main() -> int:
    """Write, or with --check compare; 1 if the file is out of date."""
    path = ROOT / "environment.yml"
    text = environment(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    if "--check" in sys.argv:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            print("environment.yml is out of step with pyproject.toml: run tools/environment.py")
            return 1
        return 0
    path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
