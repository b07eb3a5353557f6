"""ruff's formatting of the chapters' code cells: only the code changes, and a second time nothing does."""

import pytest

from tools.format_chapters import format_chapter

pytest.importorskip("ruff", reason="ruff comes with the extra dev: `make lint` installs it")

CHAPTER = """---
kernelspec:
  name: python3
---

# A chapter

```python
x   =  1
```

```{code-cell} ipython3
---
tags: [hide-input]
---
%matplotlib inline
import  torch
x   =  [1,
  2]

```

Text with x   =  1.

```{code-cell} ipython3
:tags: [a,  b]

plot( x );
```
"""


def test_only_the_code_of_cells_changes(tmp_path):
    path = tmp_path / "01_a.md"
    path.write_text(CHAPTER)
    assert format_chapter(path)
    expected = CHAPTER.replace("import  torch\nx   =  [1,\n  2]\n", "import torch\n\nx = [1, 2]\n").replace(
        "plot( x );", "plot(x);"
    )
    assert path.read_text() == expected
    assert not format_chapter(path)
