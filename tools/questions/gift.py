"""Questions as GIFT, the text format that Moodle imports."""

from tools.questions.bank import Bank, Question, Variant, significant
from tools.questions.markup import mathjax, to_html

SPECIAL = "~=#{}:"


def write(bank: Bank, reread: dict[str, str]) -> str:
    """All questions of a chapter. reread: HTML that points to a section of the chapter, by question."""
    lines = [f"$CATEGORY: $course$/top/smlmtut/{bank.chapter}", ""]
    for question in (q for q in bank.questions if q.kind != "calculation"):
        lines += [choice(question, reread[question.id]), ""]
    for question in (q for q in bank.questions if q.kind == "calculation"):
        lines += [f"$CATEGORY: $course$/top/smlmtut/{bank.chapter}/{question.id}", ""]
        lines += [part for v in question.variants for part in (number(question, v, reread[question.id]), "")]
    return "\n".join(lines)


def protected(html: str) -> str:
    """Text in which Moodle takes nothing for its own marks."""
    html = html.replace("\\", "\\\\")
    for mark in SPECIAL:
        html = html.replace(mark, f"\\{mark}")
    return html.replace("\n", "\\n")


def said(markdown: str) -> str:
    """Markdown as protected HTML."""
    return protected(to_html(markdown, mathjax))


def head(question: Question, number: int | None = None) -> str:
    """Name and format of a question."""
    name = question.id + ("" if number is None else f"-{number + 1}")
    return f"::{protected(name)} {protected(question.fields['title'])}::[html]"


def general(because: str, reread: str) -> str:
    """What is shown after any answer."""
    return f"####{said(because)} {protected(reread)}"


def choice(question: Question, reread: str) -> str:
    """A question with choices. Of several right ones each gives its share, and a wrong one takes all."""
    rights = sum(answer.right for answer in question.answers)
    lines = [f"{head(question)}{said(question.fields['text'])} {{"]
    for answer in question.answers:
        if question.several:
            mark = f"~%{round(100 / rights, 5):g}%" if answer.right else "~%-100%"
        else:
            mark = "=" if answer.right else "~"
        lines.append(f"\t{mark}{said(answer.text)}" + (f"#{said(answer.feedback)}" if answer.feedback else ""))
    return "\n".join([*lines, f"\t{general(question.fields['because'], reread)}", "}"])


def number(question: Question, variant: Variant, reread: str) -> str:
    """A calculation with one set of numbers; known mistakes get no points but an answer of their own."""
    unit = f" (Answer in {question.unit}.)" if question.unit else ""
    allowed = significant(variant.tolerance, 2)
    lines = [f"{head(question, variant.number)}{said(variant.text + unit)} {{#"]
    lines.append(f"\t={significant(variant.value, 6)}:{allowed}")
    lines += [f"\t=%0%{significant(m.value, 6)}:{allowed}#{said(m.feedback)}" for m in variant.mistakes]
    return "\n".join([*lines, f"\t{general(variant.because, reread)}", "}"])
