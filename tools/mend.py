"""Three faults of the pages as Sphinx and the theme write them, and their mending: for readers without mouse or sight.

The search form cannot be sent by a button; the index has a heading without text; exercises and solutions all have the
same id. `problems` names them, `mend` takes them away.
"""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

SUBMIT = '<button type="submit" class="search-submit">Search</button>'
FORM = re.compile(r"(<form\b.*?)(</form>)", re.S)
SENDS = re.compile(r"""<(?:button(?![^>]*type=["']button)|input[^>]*type=["'](?:submit|image))""")
EMPTY = re.compile(r"<h([1-6])\b[^>]*>(?:\s|&nbsp;|&#160;)*</h\1>")
ID = re.compile(r"""(<[a-zA-Z][^<>]*?\sid=")([^"]*)(")""")
UNREAD = re.compile(r"<(script|style|svg|textarea)\b.*?</\1>|<!--.*?-->", re.S)


class _Page(HTMLParser):
    """The ids, the headings and the forms of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.sends: list[bool] = []  # of each form
        self.within, self.in_form = "", False

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if name := values.get("id"):
            self.ids.append(name)
        if re.fullmatch("h[1-6]", tag):
            self.within = tag
            self.headings.append("")
        elif tag == "img" and self.within:
            self.headings[-1] += values.get("alt") or ""
        elif tag == "form":
            self.in_form = True
            self.sends.append(False)
        elif self.in_form:
            kind = values.get("type")
            sends = (tag == "button" and kind in (None, "submit")) or (tag == "input" and kind in ("submit", "image"))
            self.sends[-1] |= sends

    def handle_endtag(self, tag):
        self.in_form = self.in_form and tag != "form"
        if tag == self.within:
            self.within = ""

    def handle_data(self, data):
        if self.within:
            self.headings[-1] += data


def problems(html: str) -> list[str]:
    """What is wrong with a page; empty if nothing."""
    page = _Page()
    page.feed(html)
    found = [f"{count} elements have the id {name!r}" for name, count in Counter(page.ids).items() if count > 1]
    found += ["a heading has no text"] * sum(not text.strip() for text in page.headings)
    return found + ["a form has no button that sends it"] * page.sends.count(False)


def mend(html: str) -> str:
    """The page without these faults."""
    html = FORM.sub(lambda form: form[0] if SENDS.search(form[1]) else form[1] + SUBMIT + form[2], html)
    html = EMPTY.sub("", html)
    seen: Counter[str] = Counter()
    taken = {match[2] for match in ID.finditer(html)}

    def numbered(match: re.Match[str]) -> str:
        name = match[2]
        seen[name] += 1
        if seen[name] == 1:
            return match[0]
        number = seen[name]
        while f"{name}-{number}" in taken:
            number += 1
        taken.add(f"{name}-{number}")
        return f"{match[1]}{name}-{number}{match[3]}"

    parts, last = [], 0
    for unread in UNREAD.finditer(html):  # a script may hold what looks like a tag
        parts += [ID.sub(numbered, html[last : unread.start()]), unread[0]]
        last = unread.end()
    return "".join([*parts, ID.sub(numbered, html[last:])])


def mend_site(folder: Path) -> int:
    """Mend every page under a folder; how many changed."""
    changed = 0
    for path in sorted(folder.rglob("*.html")):
        if "_static" not in path.relative_to(folder).parts:
            before = path.read_text(encoding="utf-8")
            if (after := mend(before)) != before:
                path.write_text(after, encoding="utf-8")
                changed += 1
    return changed
