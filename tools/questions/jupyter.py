"""Questions as JSON for the Python package jupyterquiz, which shows them in a notebook."""

import json
import re
from html import escape
from typing import Any

from tools.questions.bank import FENCE, Bank, Question
from tools.questions.markup import dollars, to_html


def write(bank: Bank, reread: dict[str, str]) -> str:
    """All questions of a chapter as text; a calculation with its first set of numbers."""
    made = [number(q, reread[q.id]) if q.kind == "calculation" else choice(q, reread[q.id]) for q in bank.questions]
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def choice(question: Question, reread: str) -> dict[str, Any]:
    """A question with choices; its code goes into a field of its own."""
    text, code = question.fields["text"], FENCE.findall(question.fields["text"])
    text = re.sub(r"\n{3,}", "\n\n", FENCE.sub("", text))
    made: dict[str, Any] = {"question": to_html(text, dollars)}
    made["type"] = "many_choice" if question.several else "multiple_choice"
    if code:
        made["code"] = escape("\n".join(code).rstrip(), quote=False)
    because = f"{to_html(question.fields['because'], dollars)} {reread}"
    made["answers"] = [
        {
            "answer": to_html(answer.text, dollars),
            "correct": answer.right,
            "feedback": because if answer.right else to_html(answer.feedback, dollars),
        }
        for answer in question.answers
    ]
    return made


def number(question: Question, reread: str) -> dict[str, Any]:
    """A calculation: the range that is right, a range for each known mistake, and a word on anything else."""
    variant = question.variants[0]
    unit = f" (Answer in {question.unit}.)" if question.unit else ""
    rows = [(variant.value, True, f"{to_html(variant.because, dollars)} {reread}")]
    rows += [(mistake.value, False, to_html(mistake.feedback, dollars)) for mistake in variant.mistakes]
    answers: list[dict[str, Any]] = [
        {
            "type": "range",
            "range": [float(f"{value + sign * variant.tolerance:.6g}") for sign in (-1, 1)],
            "correct": right,
            "feedback": said,
        }
        for value, right, said in rows
    ]
    answers.append({"type": "default", "feedback": f"Not yet. {reread}"})
    return {"question": to_html(variant.text + unit, dollars), "type": "numeric", "answers": answers}
