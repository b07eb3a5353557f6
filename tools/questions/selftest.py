"""Three questions of each chapter as a self-test in it: closed boxes, which need neither kernel nor network."""

import re

from mdit_py_plugins.anchors.index import slugify

from tools.questions.bank import Bank, Question, significant

START = "% The self-test: written by `python -m tools.questions --chapters` from book/teaching/questions/{chapter}.yml"
END = "% The self-test ends here."
PLACE = re.compile(r"^% The self-test: .*?^% The self-test ends here\.\n\n", re.M | re.S)
BEFORE = "## Exercises\n"  # where it goes in a chapter that has none yet


def write(bank: Bank) -> str:
    """The self-test of a chapter as MyST text."""
    chosen = {question.id: question for question in bank.questions}
    boxes = [box(k, chosen[name]) for k, name in enumerate(bank.self_test, 1)]
    intro = "Three questions from the course's question bank. Decide before you open an answer."
    return "\n\n".join([START.format(chapter=bank.chapter), "## Self-test", intro, *boxes, END]) + "\n\n"


def updated(chapter: str, bank: Bank) -> str:
    """The text of a chapter with its self-test as the bank has it. Raises ValueError where it finds no place for it."""
    chapter = PLACE.sub("", chapter)
    if chapter.count(f"\n{BEFORE}") != 1:
        raise ValueError(
            f"{bank.chapter}: a self-test goes before the heading Exercises, which the chapter must have once"
        )
    return chapter.replace(f"\n{BEFORE}", f"\n{write(bank)}{BEFORE}")


def box(number: int, question: Question) -> str:
    """A question that opens, with its answer in a second box."""
    text, answer = calculation(question) if question.kind == "calculation" else choice(question)
    section = question.fields["section"]
    answer += f"\n\nRead again: [{section}](#{slugify(re.sub(r'[$]|[*`]', '', section))})."
    return (
        f":::::{{dropdown}} {number}. {question.fields['title']}\n{text}\n\n"
        f"::::{{dropdown}} Answer\n{answer}\n::::\n:::::"
    )


def choice(question: Question) -> tuple[str, str]:
    """Text with its choices, and what is right, why, and what misleads."""
    letters = dict(zip("ABCDE", question.answers, strict=False))
    rows = "\n".join(f"- **{letter}**: {answer.text}" for letter, answer in letters.items())
    rights = " and ".join(letter for letter, answer in letters.items() if answer.right)
    wrongs = "\n".join(f"- **{letter}**: {answer.feedback}" for letter, answer in letters.items() if not answer.right)
    return (
        f"{question.fields['text'].strip()}\n\n{rows}",
        f"**{rights}.** {question.fields['because'].strip()}\n\n{wrongs}",
    )


def calculation(question: Question) -> tuple[str, str]:
    """Text with its first numbers, and the result, its way, and the results of known mistakes."""
    variant, digits = question.variants[0], question.fields["digits"]
    unit = f" {question.unit}" if question.unit else ""
    rows = "\n".join(f"- {significant(m.value, digits)}{unit}? {m.feedback}" for m in variant.mistakes)
    return variant.text, f"**{significant(variant.value, digits)}{unit}.** {variant.because}\n\n{rows}"
