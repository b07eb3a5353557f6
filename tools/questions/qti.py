"""Questions as QTI 1.2 in a zip with a manifest, as Canvas imports and exports them."""

import io
import zipfile
from xml.etree import ElementTree as ET

from tools.questions.bank import Bank, Question, Variant, significant
from tools.questions.markup import canvas, to_html

QTI = "http://www.imsglobal.org/xsd/ims_qtiasiv1p2"
PACKAGE = "http://www.imsglobal.org/xsd/imsccv1p1/imscp_v1p1"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of all files, so that the same questions make the same zip


def write(bank: Bank, title: str, reread: dict[str, str]) -> bytes:
    """The zip with all questions of a chapter. reread: HTML that points to a section of it, by question."""
    name = f"smlmtut_{bank.chapter}"
    files = {"imsmanifest.xml": manifest(name), f"{name}/{name}.xml": assessment(bank, name, title, reread)}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as package:
        for path, root in files.items():
            ET.indent(root)
            text = ET.tostring(root, encoding="utf-8", xml_declaration=True)
            package.writestr(zipfile.ZipInfo(path, EPOCH), text, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def manifest(name: str) -> ET.Element:
    """What the zip holds: one assessment."""
    root = ET.Element("manifest", identifier=f"{name}_manifest", xmlns=PACKAGE)
    metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, "schema").text = "IMS Content"
    ET.SubElement(metadata, "schemaversion").text = "1.1.3"
    ET.SubElement(root, "organizations")
    resource = ET.SubElement(ET.SubElement(root, "resources"), "resource", identifier=name, type="imsqti_xmlv1p2")
    ET.SubElement(resource, "file", href=f"{name}/{name}.xml")
    return root


def assessment(bank: Bank, name: str, title: str, reread: dict[str, str]) -> ET.Element:
    """One assessment; the variants of a calculation make a group of which one is drawn."""
    root = ET.Element("questestinterop", xmlns=QTI)
    part = ET.SubElement(root, "assessment", ident=name, title=title)
    section = ET.SubElement(part, "section", ident="root_section")
    for question in bank.questions:
        if question.kind != "calculation":
            section.append(choice(question, reread[question.id]))
            continue
        group = ET.SubElement(section, "section", ident=f"{question.id}_group", title=question.fields["title"])
        selection = ET.SubElement(ET.SubElement(group, "selection_ordering"), "selection")
        ET.SubElement(selection, "selection_number").text = "1"
        extension = ET.SubElement(selection, "selection_extension")
        ET.SubElement(extension, "points_per_item").text = "1"
        group.extend(number(question, variant, reread[question.id]) for variant in question.variants)
    return root


def material(parent: ET.Element, html: str) -> None:
    """HTML as the text of an element."""
    ET.SubElement(ET.SubElement(parent, "material"), "mattext", texttype="text/html").text = html


def item(question: Question, name: str, kind: str, choices: list[str]) -> ET.Element:
    """An item with its metadata; choices: idents."""
    made = ET.Element("item", ident=name, title=question.fields["title"])
    fields = ET.SubElement(ET.SubElement(made, "itemmetadata"), "qtimetadata")
    rows = {"question_type": kind, "points_possible": "1", "original_answer_ids": ",".join(choices)}
    for label, entry in (rows | {"assessment_question_identifierref": f"{name}_ref"}).items():
        field = ET.SubElement(fields, "qtimetadatafield")
        ET.SubElement(field, "fieldlabel").text = label
        ET.SubElement(field, "fieldentry").text = entry
    return made


def processing(made: ET.Element) -> ET.Element:
    """Where an item tells how it is scored, begun with what is shown after any answer."""
    part = ET.SubElement(made, "resprocessing")
    limits = {"maxvalue": "100", "minvalue": "0", "varname": "SCORE", "vartype": "Decimal"}
    ET.SubElement(ET.SubElement(part, "outcomes"), "decvar", limits)
    ET.SubElement(condition(part, "Yes"), "other")
    shows(part, "general_fb")
    return part


def condition(part: ET.Element, goes_on: str) -> ET.Element:
    """The test of a new condition."""
    return ET.SubElement(ET.SubElement(part, "respcondition", {"continue": goes_on}), "conditionvar")


def shows(part: ET.Element, name: str) -> None:
    """Let the last condition show the feedback of that name."""
    ET.SubElement(part[-1], "displayfeedback", feedbacktype="Response", linkrefid=name)


def scores(part: ET.Element) -> None:
    """Let the last condition give all points."""
    ET.SubElement(part[-1], "setvar", action="Set", varname="SCORE").text = "100"


def feedback(made: ET.Element, name: str, html: str) -> None:
    """A feedback, by the name that conditions show."""
    material(ET.SubElement(ET.SubElement(made, "itemfeedback", ident=name), "flow_mat"), html)


def choice(question: Question, reread: str) -> ET.Element:
    """A question with choices, one or several of them right."""
    names = [f"{question.id}_{k}" for k in range(len(question.answers))]
    kind = "multiple_answers_question" if question.several else "multiple_choice_question"
    made = item(question, question.id, kind, names)
    shown = ET.SubElement(made, "presentation")
    material(shown, to_html(question.fields["text"], canvas))
    cardinality = "Multiple" if question.several else "Single"
    render = ET.SubElement(
        ET.SubElement(shown, "response_lid", ident="response1", rcardinality=cardinality), "render_choice"
    )
    for name, answer in zip(names, question.answers, strict=True):
        material(ET.SubElement(render, "response_label", ident=name), to_html(answer.text, canvas))
    part = processing(made)
    for name, answer in zip(names, question.answers, strict=True):
        if answer.feedback:
            chosen(condition(part, "Yes"), name)
            shows(part, f"{name}_fb")
    right = condition(part, "No")
    if question.several:
        right = ET.SubElement(right, "and")
    for name, answer in zip(names, question.answers, strict=True):
        if answer.right or question.several:
            chosen(right if answer.right else ET.SubElement(right, "not"), name)
    scores(part)
    feedback(made, "general_fb", f"{to_html(question.fields['because'], canvas)} {reread}")
    for name, answer in zip(names, question.answers, strict=True):
        if answer.feedback:
            feedback(made, f"{name}_fb", to_html(answer.feedback, canvas))
    return made


def chosen(test: ET.Element, name: str) -> None:
    """Test whether a choice was taken."""
    ET.SubElement(test, "varequal", respident="response1").text = name


def number(question: Question, variant: Variant, reread: str) -> ET.Element:
    """A calculation with one set of numbers. Known mistakes stand in the general feedback, as text2qti has no other."""
    made = item(question, f"{question.id}_v{variant.number + 1}", "numerical_question", [])
    unit = f" (Answer in {question.unit}.)" if question.unit else ""
    shown = ET.SubElement(made, "presentation")
    material(shown, to_html(variant.text + unit, canvas))
    field = ET.SubElement(ET.SubElement(shown, "response_str", ident="response1", rcardinality="Single"), "render_fib")
    field.set("fibtype", "Decimal")
    ET.SubElement(field, "response_label", ident="answer1")
    part, low, high = processing(made), variant.value - variant.tolerance, variant.value + variant.tolerance
    either = ET.SubElement(condition(part, "No"), "or")
    ET.SubElement(either, "varequal", respident="response1").text = significant(variant.value, 6)
    both = ET.SubElement(either, "and")
    ET.SubElement(both, "vargte", respident="response1").text = significant(low, 6)
    ET.SubElement(both, "varlte", respident="response1").text = significant(high, 6)
    scores(part)
    rows = [f"<li>{significant(m.value, 4)}: {to_html(m.feedback, canvas)}</li>" for m in variant.mistakes]
    known = f"<p>If you got</p><ul>{''.join(rows)}</ul>"
    feedback(made, "general_fb", f"<p>{to_html(variant.because, canvas)} {reread}</p>{known}")
    return made
