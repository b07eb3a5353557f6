"""Versions: every file that states one states the same, and a chapter's version is that of its text."""

import json
import re
from datetime import date

import pytest
import yaml

import smlmtut
from tools import release
from tools.colab.book import Book
from tools.colab.edition import Edition

ROOT = release.ROOT
# What Zenodo asks of the metadata of software: developers.zenodo.org, "Deposit metadata".
ZENODO = {"upload_type": "software", "access_right": "open"}


def test_every_file_states_the_same_version():
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    name, made = list(release.releases(ROOT).items())[-1]
    assert name == smlmtut.__version__ == citation["version"] == zenodo["version"]
    assert f"## {name} ({made['date']})" in log and str(citation["date-released"]) == made["date"]
    assert set(made["chapters"]) <= set(release.chapters(ROOT))


def test_zenodo_gets_what_it_asks_for_and_what_the_citation_says():
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {key: zenodo[key] for key in ZENODO} == ZENODO
    assert zenodo["title"] == citation["title"] and zenodo["license"] == citation["license"]
    assert [person["name"] for person in zenodo["creators"]] == [person["name"] for person in citation["authors"]]
    assert zenodo["keywords"] == citation["keywords"]
    assert re.sub("<[^>]*>", "", zenodo["description"]) == " ".join(citation["abstract"].split())
    told = {found["identifier"]: found["relation"] for found in zenodo["related_identifiers"]}
    assert set(told) == {citation["url"], citation["repository-code"]}


@pytest.fixture
def small(tmp_path):
    """A repository of two chapters, without a release."""
    files = {
        "smlmtut/__init__.py": '__version__ = "0.1.0"\n',
        "CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n### Added\n\n- Chapter 2.\n",
        "CITATION.cff": "cff-version: 1.2.0\nversion: 0.1.0\nlicense: MIT\n",
        ".zenodo.json": '{\n  "version": "0.1.0",\n  "title": "x"\n}\n',
        "notebooks/01_a.md": "one\n",
        "notebooks/02_b.md": "two\n",
        "book/x.md": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_a_chapter_has_the_version_of_the_first_release_with_its_text(small):
    assert release.version_of(small, "01_a") == ""
    release.release(small, "0.1.0", date(2026, 1, 2))
    assert release.version_of(small, "01_a") == release.version_of(small, "02_b") == "0.1.0"
    (small / "notebooks" / "02_b.md").write_text("two, better\n", encoding="utf-8")
    (small / "notebooks" / "03_c.md").write_text("three\n", encoding="utf-8")
    assert [release.version_of(small, name) for name in ("01_a", "02_b", "03_c")] == ["0.1.0", "0.1.0+", ""]
    log = (small / "CHANGELOG.md").read_text(encoding="utf-8")
    (small / "CHANGELOG.md").write_text(
        log.replace("## Unreleased\n", "## Unreleased\n\n- Better.\n"), encoding="utf-8"
    )
    release.release(small, "0.10.0", date(2026, 3, 4))
    assert [release.version_of(small, name) for name in ("01_a", "02_b", "03_c")] == ["0.1.0", "0.10.0", "0.10.0"]
    (small / "notebooks" / "01_a.md").write_bytes(b"one\r\n")  # as git may write it on Windows
    assert release.version_of(small, "01_a") == "0.1.0"


def test_a_release_writes_every_file_or_none(small):
    release.release(small, "0.2.0", date(2026, 1, 2))
    assert (small / "smlmtut" / "__init__.py").read_text() == '__version__ = "0.2.0"\n'
    assert (small / "CITATION.cff").read_text() == (
        "cff-version: 1.2.0\nversion: 0.2.0\ndate-released: 2026-01-02\nlicense: MIT\n"
    )
    assert json.loads((small / ".zenodo.json").read_text())["version"] == "0.2.0"
    log = (small / "CHANGELOG.md").read_text()
    assert log.startswith("# Changelog\n\n## Unreleased\n\n## 0.2.0 (2026-01-02)\n\n### Added")
    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    for version, why in {
        "0.3": "three numbers such as 0.2.0, got '0.3'",
        "0.2.0": "above the last release, 0.2.0, got 0.2.0",
        "0.1.9": "above the last release",
        "0.3.0": "CHANGELOG.md must tell what is new",
    }.items():
        with pytest.raises(ValueError, match=why):
            release.release(small, version, date(2026, 1, 3))
    assert before == {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}


def test_a_course_names_the_version_that_it_is_pinned_to():
    """Links and installation point to the tag; without one, to the main branch."""
    book = Book(ROOT, "v0.2.0")
    edition = Edition(book, book.pages["notebooks/01_image_formation"])
    assert "smlmtut/smlmtut@v0.2.0" in edition.install() and "/blob/v0.2.0/" in edition.header()
    assert "smlmtut/smlmtut@main" in Edition(Book(ROOT), book.pages["notebooks/01_image_formation"]).install()
    assert f"chapter version {release.version_of(ROOT, '01_image_formation')}" in edition.header().lower()
    with pytest.raises(ValueError, match="pin must be a tag such as v0.2.0, got 'main; rm'"):
        Book(ROOT, "main; rm")
