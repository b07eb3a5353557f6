"""The decks of slides: the rule, case by case, on a small chapter; and in Chromium, that no slide is too full."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import jupytext
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat import v4

from tests import browser
from tools import offline_math, slides
from tools.colab.book import Book

SINK = Path(__file__).resolve().parent / "data" / "sink"
HEADER = SINK.joinpath("notebooks/02_second.md").read_text(encoding="utf-8").split("# Second")[0]
FIGURE = """```{code-cell} ipython3
---
mystnb:
  figure:
    name: fig-x
    caption: It rises.
  image:
    alt: A line that goes up.
---
draw()
```
"""
CELL = "```{code-cell} ipython3\n%s```\n"
PREDICT = """::::{admonition} Predict first
:class: predict
Does it rise?

:::{dropdown} Answer
It does.
:::
::::
"""
SOLUTION = """```{solution-start} ex-a
:class: dropdown
```

Never tell.

$$ s $$ (eq-secret)

```{code-cell} ipython3
draw()
```

```{solution-end}
```

See {eq}`eq-secret`.
"""
EXERCISES = "```{exercise} One\n:label: ex-a\nDo *it*.\n```\n\n```{exercise} Two\n:label: ex-b\nDo it.\n```\n"
PNG = v4.new_output("display_data", data={"image/png": "AAAA", "text/plain": "<Figure>"})
TABLE = v4.new_output("execute_result", data={"text/html": "<table><tr><td>7</td></tr></table>", "text/plain": "7"})
SLIDER = v4.new_output("display_data", data={"text/html": '<figure><input type="range"></figure>', "image/png": "AA"})
PRINTED = v4.new_output("stream", name="stdout", text="a < b\n")


def claim(holds=True, key="claim"):
    value = {"name": "a < b", "shown": "0.9", "allowed": "0 … 1", "holds": holds}
    kept = {"claim": value} if key == "claim" else {"claims": [value]}
    return v4.new_output("display_data", data={"text/html": "row"}, metadata={"smlmtut": kept})


def sections(tmp_path, body, *outputs) -> list[Any]:
    """The slides of a chapter with this text, whose code cells gave these outputs, without its title."""
    root = Path(shutil.copytree(SINK, tmp_path / "book", ignore=shutil.ignore_patterns("_build")))
    path = root / "notebooks" / "03_third.md"
    path.write_text(f"{HEADER}# Third\n\nWhy? So. Yes. No.\n\n## A question\n\n{body}", encoding="utf-8")
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    toc["parts"][1]["chapters"].append({"file": "notebooks/03_third"})
    (root / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    executed = jupytext.read(path)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    for cell, given in zip(code, outputs, strict=True):
        cell.outputs = given
    text, count = slides.deck(Book(root), "notebooks/03_third", executed)
    found = BeautifulSoup(text, "html.parser").select("section")
    assert len(found) == count and found[0].select("h2")[0].text == "3. Third"
    assert found[0].select("p")[1].text == "Why? So. Yes."
    return found[1:]


def shown(slide):
    """What the audience reads on a slide, without its heading."""
    parts = [part.get_text(" ") for part in slide.find_all(True, recursive=False) if part.name not in ("aside", "h2")]
    return " ".join(" ".join(parts).split())


def test_a_figure_is_a_slide_with_its_caption_and_the_prose_goes_to_the_notes(tmp_path):
    (slide,) = sections(tmp_path, f"Look at this.\n\n{FIGURE}\nIt rose.\n", [PNG])
    assert slide.h2.text == "A question" and shown(slide) == "Fig. 3.1. It rises."
    assert slide.img["alt"] == "A line that goes up." and slide.img["src"] == "data:image/png;base64,AAAA"
    assert slide.aside.get_text().split("\n") == ["Look at this.", "It rose.", ""]


FORMULAS = {
    "referred to": ("It is so. Now\n\n$$ a $$ (eq-x)\n\nSee {eq}`eq-x`.", ["It is so. Now \\[a \\tag{3.1}\\]"]),
    "end of its sentence": (
        "Now\n\n$$ a $$ (eq-x)\n\nwhere a is. See {eq}`eq-x`.",
        ["Now \\[a \\tag{3.1}\\] where a is."],
    ),
    "statement in bold": (
        "Now\n\n$$ a $$ (eq-x)\n\n**This is what the section says.** See {eq}`eq-x`.",
        ["Now \\[a \\tag{3.1}\\] This is what the section says."],
    ),
    "heading in the line": ("Now\n\n$$ a $$ (eq-x)\n\n**One.** See {eq}`eq-x`.", ["Now \\[a \\tag{3.1}\\]"]),
    "a long sentence comes alone": (
        f"First. It is {'very ' * 20}so:\n\n$$ a < b $$ (eq-x)\n\nSee {{eq}}`eq-x`.",
        [f"It is {'very ' * 20}so: \\[a < b \\tag{{3.1}}\\]"],
    ),
    "not referred to": ("Now\n\n$$ a $$ (eq-x)\n\nDone.", ["Now Done."]),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_a_formula_is_a_slide_if_the_book_refers_to_it(tmp_path, case):
    body, expected = FORMULAS[case]
    assert [shown(slide) for slide in sections(tmp_path, body)] == expected


def test_a_prediction_asks_first(tmp_path):
    (slide,) = sections(tmp_path, PREDICT)
    assert shown(slide) == "Predict first Does it rise? It does."
    assert slide.select_one(".fragment").text.strip() == "It does."


def test_open_claims_close_a_section_and_folded_ones_stay_in_the_chapter(tmp_path):
    body = "\n".join(["Is it so? Yes.", CELL % "check(1)\n", CELL % "check(2)\n"])
    (slide,) = sections(tmp_path, body, [claim()], [claim(key="claims")])
    assert shown(slide) == "Is it so? Checked value allowed a < b 0.9 0 … 1"


TAGS = {
    "a table": ("", [TABLE], []),
    "a tagged table": (":tags: [slide]\n", [TABLE], ["7"]),
    "tagged print": (":tags: [hide-input, slide]\n", [PRINTED], ["a < b"]),
    "a slider": ("", [SLIDER], [""]),
    "a slider left out": (":tags: [no-slide]\n", [SLIDER], []),
}


@pytest.mark.parametrize("case", TAGS)
def test_tags_overrule(tmp_path, case):
    tags, outputs, expected = TAGS[case]
    assert [shown(slide) for slide in sections(tmp_path, CELL % f"{tags}show()\n", outputs)] == expected


def test_exercises_are_one_list_and_solutions_are_nowhere(tmp_path):
    (slide,) = sections(tmp_path, f"{EXERCISES}\n{SOLUTION}", [PNG])
    assert shown(slide) == "One Two"
    assert "Do it." in slide.aside.get_text() and "Never tell" not in str(slide)


def test_a_section_of_text_shows_where_its_paragraphs_start(tmp_path):
    (slide,) = sections(tmp_path, "One. More.\n\nTwo.\n\n1. three\n\n```{dropdown} More\nSecret.\n```\n")
    assert [item.text for item in slide.select("li")][:2] == ["One.", "Two."]
    assert "More." in slide.aside.get_text() and "Secret" not in str(slide)


def test_summary_is_a_whole_and_further_reading_no_slide(tmp_path):
    body = "Text.\n\n## Summary\n\n- one.\n- two.\n\n- three.\n\n## Further reading\n\nA. B.\n\nC. D.\n"
    (slide,) = sections(tmp_path, body)
    assert slide.h2.text == "Summary" and shown(slide) == "one. two. three."
    assert "A. B." in slide.aside.get_text()


def test_outputs_of_another_source_are_refused(tmp_path):
    book = Book(SINK)
    page = next(page for page in book.pages.values() if any(block.name == "code-cell" for block in page.blocks))
    with pytest.raises(ValueError, match=f"{page.shown} is not the source of the executed notebook: run it again"):
        slides.outputs_of(page, v4.new_notebook(cells=[v4.new_code_cell("other")]))


def test_decks_load_nothing_from_elsewhere():
    text = slides.TEMPLATE.read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="([^"]+)"', text)
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text) and "url(" not in text


def test_without_npm_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(offline_math.shutil, "which", lambda name: None)
    assert slides.assets(tmp_path, tmp_path / "out") == "there is no npm on this machine"


MEASURE = """
const slide = (Reveal.slide(arguments[0], 0, 99), Reveal.getCurrentSlide());
const right = Math.max(...[...slide.querySelectorAll(':scope > :not(aside)')].map(e => e.offsetLeft + e.scrollWidth));
const missing = [...slide.querySelectorAll('img')].filter(i => !i.naturalWidth).length;
const room = [slide.clientWidth, slide.clientHeight];
const width = Math.max(right, slide.scrollWidth), size = parseFloat(slide.style.fontSize || 100);
const wrong = slide.querySelectorAll('mjx-merror').length + missing;
return {room, height: slide.scrollHeight, width, size, wrong};
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    lacking = "" if browser.chromium() else "there is no Chromium on this machine"
    for name in ("03_fisher_information", "05_kernel_density_estimates"):
        if not (slides.run_chapters.BUILD / "executed" / "book" / f"{name}.ipynb").exists():
            lacking = lacking or f"{name} has not run: `make book`"
    if lacking := lacking or slides.assets(slides.run_chapters.ROOT, slides.run_chapters.BUILD / "slides"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)
    driver = browser.start(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.mark.browser
@pytest.mark.parametrize("name", ["03_fisher_information", "05_kernel_density_estimates"])
def test_every_slide_fits_and_shows_its_formulas_from_a_file_without_a_network(driver, name):
    assert slides.main([name[:2]]) == 0
    metrics = {"width": 1280, "height": 720, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get((slides.run_chapters.BUILD / "slides" / f"{name}.html").as_uri())
    browser.until(lambda: driver.execute_script("return document.body.dataset.ready"), "the deck is ready", 60)
    assert driver.execute_script("return document.querySelectorAll('section mjx-container').length") > 50
    count = driver.execute_script("return Reveal.getTotalSlides()")
    assert 25 <= count <= 35
    for k in range(count):
        found = driver.execute_script(MEASURE, k)
        assert found["room"] == [1280, 720]
        assert (found["width"] <= 1280, found["height"] <= 720, found["wrong"]) == (True, True, 0), (k, found)
        assert found["size"] >= 80, (k, found)  # text that shrinks by more than a fifth is too much for a slide
    too_full = "Reveal.getCurrentSlide().innerHTML += '<div style=\"height: 900px; width: 1300px\"></div>'"
    found = driver.execute_script(f"{too_full};{MEASURE}", count - 1)
    assert found["height"] > 720 and found["width"] > 1280  # it would have been seen
    assert [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
