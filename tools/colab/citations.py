"""Citations by name, as in "Gauss (1809)", and a list of references, in Markdown."""

from __future__ import annotations

import re
from typing import Any

from pybtex.richtext import Text


def plain(latex: str) -> str:
    """BibTeX's text without its braces and TeX accents."""
    return re.sub(r"\s+", " ", str(Text.from_latex(latex))).strip()  # render_as would look up its plugin each time


FORMS = {  # what a role shows: around all works, between two, each work
    "cite": ("({})", "; ", "{names}, {year}"),
    "cite:p": ("({})", "; ", "{names}, {year}"),
    "cite:alp": ("{}", "; ", "{names}, {year}"),
    "cite:t": ("{}", ", ", "{names} ({year})"),
    "cite:author": ("{}", ", ", "{names}"),
    "cite:year": ("{}", ", ", "{year}"),
}


class Citations:
    """Writes citations of a bibliography's entries (pybtex), given by key."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self.entries = entries

    def role(self, role: str, keys: list[str]) -> str:
        """What a {cite} role shows, each work linked to where it is. Raises KeyError for an unknown key or role."""
        if unknown := [key for key in keys if key not in self.entries]:
            raise KeyError(f"the bibliography has no entry {unknown[0]!r}")
        if role not in FORMS:
            raise KeyError(f"no rule for the role {{{role}}}")
        around, between, each = FORMS[role]
        works = []
        for key in keys:
            words, address = each.format(names=self.names(key), year=self.year(key)), self.address(key)
            works.append(f"[{words}]({address})" if address else words)
        return around.format(between.join(works))

    def names(self, key: str) -> str:
        """Family names: one, two, or the first of more."""
        names = [self.family(person) for person in self.persons(key)]
        return " and ".join(names) if len(names) < 3 else f"{names[0]} et al."

    def persons(self, key: str) -> list[Any]:
        """Authors, else editors."""
        entry = self.entries[key]
        if not (persons := entry.persons.get("author") or entry.persons.get("editor")):
            raise KeyError(f"the bibliography's entry {key!r} has no author")
        return persons

    def family(self, person: Any) -> str:
        """The family name with its particles; "et al." for BibTeX's "others"."""
        if str(person) == "others":
            return "et al."
        return plain(" ".join([*person.prelast_names, *person.last_names, *person.lineage_names]))

    def year(self, key: str) -> str:
        """The year, or "undated"."""
        return self.entries[key].fields.get("year", "undated")

    def address(self, key: str) -> str:
        """Where the work is: its DOI, else its URL, else ""."""
        fields = self.entries[key].fields
        where = f"https://doi.org/{plain(fields['doi'])}" if "doi" in fields else fields.get("url", "")
        return where.replace("(", "%28").replace(")", "%29").replace("\\", "")

    def bibliography(self, keys: set[str]) -> str:
        """One line for each reference, sorted by first author and year."""
        order = sorted(keys, key=lambda key: (self.family(self.persons(key)[0]).lower(), self.year(key), key))
        return "\n".join(f"- {self.reference(key)}" for key in order)

    def reference(self, key: str) -> str:
        """Authors, title, source, year, link."""
        fields, people = self.entries[key].fields, []
        for person in self.persons(key):
            initials = " ".join(f"{plain(name)[0]}." for name in [*person.first_names, *person.middle_names])
            people.append(f"{self.family(person)} {initials}".strip())
        names = ", ".join(people).replace(", et al.", " et al.")
        source = next((plain(fields[k]) for k in ("journal", "booktitle", "publisher", "school") if k in fields), "")
        parts = [f"{names}: {plain(fields['title'])}."]
        parts += [f"*{source}*" + (f" {fields['volume']}" if "volume" in fields else "")] if source else []
        parts += [f"({self.year(key)})."]
        parts += [f"<{self.address(key)}>"] if self.address(key) else []
        return " ".join(parts)
