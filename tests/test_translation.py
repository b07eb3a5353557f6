"""The catalogues of translated pages: complete, of this text, with the page's references, formulas and pictures."""

import gettext
import re
from functools import cache
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from tools import translate

ROOT = translate.ROOT
LANGUAGES = sorted(path.name for path in (ROOT / translate.LOCALE).iterdir() if path.is_dir())
CATALOGUES = [(language, page) for language in LANGUAGES for page in translate.pages(ROOT, language)]
catalogues = pytest.mark.parametrize(("language", "page"), CATALOGUES)
# what a translation keeps as it is: roles with their targets, code, formulas, addresses of links and pictures, numbers
KEPT = re.compile(r"\{[\w-]+\}`[^`]+`|`[^`]+`|\$[^$]+\$|\]\([^)]+\)|\d+")


def plain(text: str) -> str:
    """Text with single spaces, without what a list or a definition puts before it."""
    return re.sub(r"\s+", " ", re.sub(r"^\s*(?:[-*>]|\d+\.|:) +", "", text, flags=re.M))


@cache
def source(page: str) -> str:
    return plain((ROOT / f"{page}.md").read_text(encoding="utf-8"))


def messages(language: str, page: str) -> list[tuple[str, str]]:
    """The texts of a page and their translations."""
    return [(str(m.id), str(m.string)) for m in translate.read(path(ROOT, language, page), language) if m.id]


@catalogues
def test_every_text_is_translated_and_none_changed_since(language, page):
    assert translate.state(translate.read(path(ROOT, language, page), language))[1:] == (0, 0)


@catalogues
def test_the_texts_are_those_of_the_page(language, page):
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    for text, _ in messages(language, page):
        assert plain(text) in source(page) or text in toc, text


@catalogues
def test_every_paragraph_of_the_page_is_in_the_catalogue(language, page):
    """A paragraph that was added to the page and not to the catalogue would stay English without a word."""
    known = {plain(text) for text, _ in messages(language, page)}
    text = re.sub(r"^:::.*$|^:\w+:.*$", "", (ROOT / f"{page}.md").read_text(encoding="utf-8"), flags=re.M)
    missing = []
    for block in re.split(r"\n\s*\n|\n(?=[-*] |\d+\. |: )", text):
        words = plain(block.strip().lstrip("# "))
        if words and words not in known:
            missing.append(words)
    assert not missing


@catalogues
def test_references_formulas_and_pictures_stay(language, page):
    for text, translated in messages(language, page):
        assert sorted(KEPT.findall(translated)) == sorted(KEPT.findall(text)), text


def path(root: Path, language: str, page: str) -> Path:
    return root / translate.LOCALE / language / "LC_MESSAGES" / f"{page}.po"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A repository whose page has two texts, of which one changes after it was translated."""
    texts = {"page": ["A spot has a centre.", "Collect them all, one by one."]}

    def build(root, language, locale, place, *options):
        for name, found in texts.items():
            template = Catalog()
            for text in found:
                template.add(text)
            out = root / "_build" / place / "_build" / "gettext" / f"{name}.pot"
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("wb") as file:
                write_po(file, template)

    monkeypatch.setattr(translate, "build", build)
    return tmp_path, texts


def test_an_update_keeps_what_is_translated_and_marks_what_changed(small):
    root, texts = small
    translate.update(root, "de", ["page"])
    found = path(root, "de", "page")
    assert translate.state(translate.read(found, "de")) == (0, 0, 2)
    catalog = read_po(found.read_text(encoding="utf-8").splitlines(), locale="de")
    for message, string in zip(
        [m for m in catalog if m.id], ["Ein Fleck hat eine Mitte.", "Man sammelt."], strict=True
    ):
        message.string = string
    with found.open("wb") as file:
        write_po(file, catalog, omit_header=True)
    first = found.read_text(encoding="utf-8")
    texts["page"][1] = "Collect them all, two by two."
    translate.update(root, "de", [])
    assert translate.state(translate.read(found, "de")) == (1, 1, 0)
    compiled = translate.compiled(root, "de") / "de" / "LC_MESSAGES" / "page.mo"
    with compiled.open("rb") as file:
        spoken = gettext.GNUTranslations(file)
    assert spoken.gettext("A spot has a centre.") == "Ein Fleck hat eine Mitte."
    assert spoken.gettext(texts["page"][1]) == texts["page"][1]  # until somebody looked at it
    texts["page"][1] = "Collect them all, one by one."
    translate.update(root, "de", [])
    assert "Ein Fleck hat eine Mitte." in first and found.read_text(encoding="utf-8").count("msgid") == 2


def test_a_page_that_is_none_and_a_language_without_catalogues(small, capsys):
    root, _ = small
    with pytest.raises(ValueError, match="the book has no page book/nothing"):
        translate.update(root, "de", ["book/nothing"])
    assert translate.main(["xx"]) == 1
    assert "book/locale/xx has no catalogue: begin with --update book/intro" in capsys.readouterr().err
