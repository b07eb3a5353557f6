"""Read the questions of a chapter, check them, and compute the numbers of calculations."""

import math
import random
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import torch
import yaml
from scipy import special, stats

from smlmtut import diffusion, estimation, imaging, posterior
from smlmtut.estimation import closed_forms

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "book" / "teaching" / "questions"
SCHEMA = yaml.safe_load((Path(__file__).with_name("schema.yml")).read_text(encoding="utf-8"))
KINDS = ("concept", "calculation", "misconception", "code")
VARIANTS = 5  # of a calculation, each with other numbers
SLOT = re.compile(r"\{\{\s*(\w+)\s*\}\}")
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
# what expressions and checks may use
TOOLS = {
    "math": math, "np": np, "torch": torch, "special": special, "stats": stats, "closed_forms": closed_forms,
    "imaging": imaging, "estimation": estimation, "posterior": posterior, "diffusion": diffusion,
    **{name: getattr(math, name) for name in ("sqrt", "exp", "log", "pi", "erf", "ceil")},
    "round": round, "float": float,
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One choice: its text, whether it is right, and for a wrong one which misconception leads to it."""

    text: str
    right: bool
    feedback: str = ""


@dataclass(frozen=True)
class Mistake:
    """A wrong result of a calculation that a known misconception leads to."""

    value: float
    feedback: str


@dataclass(frozen=True)
class Variant:
    """A calculation with its numbers: what is asked, the key, how far off an answer may be, and known mistakes."""

    number: int
    values: dict[str, float]  # of the parameters and the parts that `let` names
    text: str
    because: str
    value: float
    tolerance: float
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Question:
    """A question of a chapter; fields holds what its file says."""

    chapter: str  # the chapter's file name without suffix
    fields: dict[str, Any]

    @property
    def id(self) -> str:
        """Its name, one in the whole bank."""
        return self.fields["id"]

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.fields["kind"]

    @property
    def several(self) -> bool:
        """Whether more than one answer is right."""
        return self.fields.get("several", False)

    @property
    def unit(self) -> str:
        """The unit of a calculation's result; "" for a pure number."""
        return self.fields.get("unit", "")

    @cached_property
    def answers(self) -> list[Answer]:
        """The choices, in an order that the id fixes, so that no place in it is the right one more often."""
        rows = self.fields.get("answers", [])
        made = [
            Answer((a.get("right") or a["wrong"]).strip(), "right" in a, a.get("feedback", "").strip()) for a in rows
        ]
        random.Random(self.id).shuffle(made)
        return made

    @cached_property
    def variants(self) -> list[Variant]:
        """A calculation with other numbers each time, the same for the same question."""
        chance, seen = random.Random(self.id), {}
        while len(seen) < VARIANTS and chance.random() < 0.999:
            steps = {name: round((r["to"] - r["from"]) / r["step"]) for name, r in self.fields["parameters"].items()}
            seen[tuple(chance.randint(0, most) for most in steps.values())] = True
        return [self._variant(k, places) for k, places in enumerate(seen)]

    def _variant(self, number: int, places: tuple[int, ...]) -> Variant:
        ranges = self.fields["parameters"]
        values = {
            name: round(r["from"] + place * r["step"], 10)
            for (name, r), place in zip(ranges.items(), places, strict=True)
        }
        for name, expression in self.fields.get("let", {}).items():
            values[name] = self._evaluate(expression, values)
        result, allowed = self._evaluate(self.fields["answer"], values), self.fields["tolerance"]
        tolerance = allowed.get("absolute", abs(result) * allowed.get("relative", 0))
        digits = self.fields["digits"]
        shown = {name: f"{value:.10g}" if name in ranges else f"{value:.4g}" for name, value in values.items()}
        shown["answer"] = significant(result, digits)
        mistakes = tuple(
            Mistake(self._evaluate(m["result"], values), self._fill(m["feedback"], shown).strip())
            for m in self.fields["mistakes"]
        )
        text, because = (self._fill(self.fields[name], shown).strip() for name in ("text", "because"))
        return Variant(number, values, text, because, result, tolerance, mistakes)

    def _evaluate(self, expression: str, values: dict[str, float]) -> float:
        try:
            return float(eval(expression, {"__builtins__": {}} | TOOLS, values))
        except Exception as error:
            raise ValueError(f"{self.chapter}, {self.id}: {expression!r} with {values}: {error}") from error

    def _fill(self, text: str, shown: dict[str, str]) -> str:
        """Text with each {{ name }} replaced by the number of that name."""
        if unknown := {name for name in SLOT.findall(text)} - shown.keys():
            raise ValueError(f"{self.chapter}, {self.id}: no parameter is called {sorted(unknown)}")
        return SLOT.sub(lambda found: shown[found[1]], text)

    def run_check(self) -> None:
        """Run the code that the question shows, then its check. Raises AssertionError where the key is wrong."""
        names = dict(TOOLS)
        for code in FENCE.findall(self.fields["text"]):
            exec(code, names)
        exec(self.fields.get("check", ""), names)


@dataclass(frozen=True)
class Bank:
    """The questions of one chapter, and the ids of those that stand in the chapter."""

    chapter: str
    questions: list[Question]
    self_test: list[str]


def significant(value: float, digits: int) -> str:
    """A number rounded to so many significant digits, without an exponent; a whole number as it is."""
    if value == int(value):
        return str(int(value))
    value = float(f"{value:.{digits - 1}e}")
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, places)}f}"


def read_bank(path: Path) -> Bank:
    """The questions of the file at path. Raises ValueError that names the file, the question and what is wrong."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {error}") from error
    problems = [f"{path.name}: {problem}" for problem in schema_problems(data)]
    if problems:
        raise ValueError("\n".join(problems))
    bank = Bank(path.stem, [Question(path.stem, fields) for fields in data["questions"]], data["self_test"])
    if problems := [f"{path.name}: {problem}" for question in bank.questions for problem in rule_problems(question)]:
        raise ValueError("\n".join(problems))
    if missing := set(bank.self_test) - {question.id for question in bank.questions}:
        raise ValueError(f"{path.name}: self_test names {sorted(missing)}, which no question has as its id")
    return bank


def schema_problems(data: Any) -> list[str]:
    """What the schema does not allow, each with the id of its question."""
    found = []
    for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(data):
        where = list(error.absolute_path)
        if where[:1] == ["questions"] and len(where) > 1:
            fields = data["questions"][where[1]]
            name = fields.get("id", f"question {where[1] + 1}") if isinstance(fields, dict) else where[1] + 1
            where = [name, *where[2:]]
        found.append(f"{' / '.join(map(str, where)) or 'the file'}: {error.message[:200]}")
    return found


def rule_problems(question: Question) -> list[str]:
    """What the schema cannot say: how many answers are right, and that code is shown and checked."""
    rights, found = sum(answer.right for answer in question.answers), []
    if question.kind == "calculation":
        for name, r in question.fields["parameters"].items():
            if not r["from"] < r["to"]:
                found.append(f"{question.id}: the parameter {name} runs from {r['from']} to {r['to']}")
    elif question.several and not 1 < rights < len(question.answers):
        found.append(f"{question.id}: with several: true two answers or more are right, and one is wrong; got {rights}")
    elif not question.several and rights != 1:
        found.append(f"{question.id}: one answer must be right, got {rights}")
    if question.kind == "code" and not (FENCE.search(question.fields["text"]) and question.fields.get("check")):
        found.append(f"{question.id}: a question on code shows a ```python block and has a check")
    return found


def read_all(folder: Path = FOLDER) -> list[Bank]:
    """All banks in the order of their chapters. Raises ValueError where an id stands twice."""
    banks = [read_bank(path) for path in sorted(folder.glob("[0-9][0-9]_*.yml"))]
    ids = [question.id for bank in banks for question in bank.questions]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"these ids stand twice: {twice}")
    return banks
