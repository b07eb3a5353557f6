"""Write a figure of an executed chapter to a PNG file: tools/picture.py FIGURE_NAME FILE [PROFILE]."""

import base64
import sys
from pathlib import Path

import nbformat

if __package__ is None:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.run_chapters import BUILD


def figure(name: str, profile: str = "book") -> bytes:
    """The PNG of the figure with that name in the last run; LookupError if there is none."""
    for path in sorted((BUILD / "executed" / profile).glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
                for output in cell.get("outputs", []):
                    if "image/png" in output.get("data", {}):
                        return base64.b64decode(output.data["image/png"])
    raise LookupError(f"no executed chapter has a figure named {name!r}: run make notebooks PROFILE={profile}")


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(figure(sys.argv[1], *sys.argv[3:]))
