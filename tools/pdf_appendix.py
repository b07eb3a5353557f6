"""The appendix of the print: solutions and answers to the self-tests, with links that lead both ways."""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx_exercise.nodes import is_exercise_node, solution_node

from tools.pdf_tree import drop, every, files, is_dropdown, latex, page_of


def link(text: str, page: str, name: str) -> nodes.reference:
    """A link to a place in a page of the book."""
    return nodes.reference("", text, refuri=f"%{page}#{name}", internal=True)


def place(page: str, name: str) -> nodes.raw:
    """A place in a page that a link can lead to."""
    return latex(f"\\phantomsection\\label{{\\detokenize{{{page}:{name}}}}}")


def on_page(page: str, name: str) -> nodes.raw:
    """The words that tell on which page of the print a place is."""
    return latex(f", page \\pageref{{\\detokenize{{{page}:{name}}}}}")


def bold(*children: nodes.Node) -> nodes.paragraph:
    """A line in bold type."""
    return nodes.paragraph("", "", nodes.strong("", "", *children))


def take_answers(chapter: nodes.Element, page: str) -> list[nodes.Node]:
    """Take the answers out of a chapter's self-test; links lead there and back."""
    found: list[nodes.Node] = []
    for box in [box for box in every(chapter, is_dropdown) if any(is_dropdown(child) for child in box.children)]:
        (answer,) = [child for child in box.children if is_dropdown(child)]
        number = len(found) + 1
        question, name = f"pdf-question-{number}", f"pdf-answer-{number}"
        title, text = box[0], [child for child in box.children[1:] if child is not answer]
        there = nodes.paragraph("", "", link("Answer", page, name), on_page(page, name))
        asked = nodes.container("", bold(*title.children), *text, there, classes=["question"])
        box.replace_self([place(page, question), asked])
        head = bold(link(title.astext(), page, question))
        found.append(nodes.container("", place(page, name), head, *answer.children[1:], classes=["answer"]))
    return found


def take_solutions(chapter: nodes.Element, page: str) -> list[nodes.Node]:
    """Take the solutions out of a chapter; each exercise ends with a link to its solution."""
    exercises = {node["label"]: node for node in every(chapter, is_exercise_node)}
    found = every(chapter, solution_node)
    for label, exercise in exercises.items():
        exercise.parent.insert(exercise.parent.index(exercise), place(page, label))
    for solution in found:
        drop(solution)
        exercise = exercises[solution["target_label"]]
        there = link("Solution", page, solution["label"])
        exercise += [latex("\\nopagebreak"), nodes.paragraph("", "", there, on_page(page, solution["label"]))]
    return found


def unbox_solutions(app: Sphinx, tree: nodes.Element) -> None:
    """Set solutions without a frame: LaTeX cannot break one well; the title leads back to the exercise."""
    for solution in every(tree, solution_node):
        title, *text = solution.children
        label = place(page_of(solution, app.config.root_doc), solution["label"])
        solution.replace_self(nodes.container("", label, bold(*title.children), *text, classes=["answer"]))


def appendix(title: str, name: str, parts: list[tuple[str, str, list[nodes.Node]]]) -> nodes.section:
    """A chapter with a section for the nodes of each page: (page, its title, nodes)."""
    made = nodes.section("", nodes.title("", title), ids=[name])
    for page, heading, found in parts:
        file = addnodes.start_of_file("", *found, docname=page)  # so that labels stay those of the page
        made += nodes.section("", nodes.title("", heading), file, ids=[f"{name}-{Path(page).name}"])
    return made


def add_appendix(app: Sphinx, tree: nodes.Element) -> None:
    """Move solutions and answers behind the last chapter that runs."""
    solutions, answers, last = [], [], None
    for chapter in files(tree):
        page = chapter["docname"]
        if page.startswith("notebooks/"):
            last, title = chapter, app.env.titles[page].astext()
            for parts, found in ((solutions, take_solutions(chapter, page)), (answers, take_answers(chapter, page))):
                if found:
                    parts.append((page, title, found))
    if last is not None:
        made = [("Solutions to the exercises", "pdf-solutions", solutions)]
        made.append(("Answers to the self-tests", "pdf-answers", answers))
        for title, name, parts in reversed(made):
            last.parent.insert(last.parent.index(last) + 1, appendix(title, name, parts))
