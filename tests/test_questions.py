"""The question bank: every key by another way, no answer that its form gives away, and exports that read back."""

import io
import json
import math
import re
import zipfile
from collections import Counter
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
import yaml
from scipy import integrate, optimize, stats

from smlmtut.diffusion import NoiseSchedule, to_x0
from smlmtut.diffusion.gaussian_mixture import GaussianMixture
from smlmtut.estimation import fisher, likelihood
from smlmtut.imaging import PSF, Camera, Emitters, expected_photons
from tools.colab.book import Book
from tools.contract import is_appendix
from tools.questions import __main__ as command
from tools.questions import bank, gift, jupyter, markup, qti, selftest

ROOT = Path(__file__).resolve().parents[1]
TAUGHT = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.md")) if not is_appendix(path)]
BANKS = {made.chapter: made for made in bank.read_all()}
QUESTIONS = [question for made in BANKS.values() for question in made.questions]
CHOICES = [question for question in QUESTIONS if question.kind != "calculation"]
CALCULATIONS = [question for question in QUESTIONS if question.kind == "calculation"]
QTI = f"{{{qti.QTI}}}"


def name(question):
    return question.id


@pytest.fixture(scope="module")
def book():
    return Book(ROOT)


# The questions


def test_every_chapter_has_ten_questions_of_all_kinds_and_three_of_them_in_its_self_test():
    assert list(BANKS) == TAUGHT
    for made in BANKS.values():
        assert len(made.questions) == 10
        assert {question.kind for question in made.questions} == set(bank.KINDS)
        assert len(set(made.self_test)) == 3


def test_every_question_belongs_to_a_section_of_its_chapter(book):
    for made in BANKS.values():
        reread = command.pointers(book, made)
        headings = re.findall(r"^#{2,3} (.+)$", book.pages[f"notebooks/{made.chapter}"].path.read_text("utf-8"), re.M)
        assert reread.keys() == {question.id for question in made.questions}
        assert {question.fields["section"] for question in made.questions} <= set(headings)


@pytest.mark.parametrize("question", CHOICES, ids=name)
def test_choices_differ_and_each_wrong_one_has_feedback(question):
    rights = sum(answer.right for answer in question.answers)
    assert rights > 1 if question.several else rights == 1
    texts = {" ".join(answer.text.lower().split()).rstrip(".") for answer in question.answers}
    assert len(texts) == len(question.answers)
    said = [answer.feedback for answer in question.answers if not answer.right]
    assert all(len(text) > 20 for text in said) and len(set(said)) == len(said)


@pytest.mark.parametrize("question", [q for q in CHOICES if "check" in q.fields], ids=name)
def test_the_check_of_a_key_holds(question, capsys):
    question.run_check()


def test_a_check_fails_where_the_key_is_wrong():
    fields = next(q for q in QUESTIONS if q.id == "image-code-shares").fields
    wrong = fields | {"check": fields["check"].replace('"0.69"', '"1.00"')}
    with pytest.raises(AssertionError):
        bank.Question("01_image_formation", wrong).run_check()


def test_the_right_answer_is_not_known_by_its_length_or_its_place():
    single = [question for question in CHOICES if not question.several]
    longest = shortest = 0
    for question in single:
        sizes = {right: [len(a.text) for a in question.answers if a.right is right] for right in (True, False)}
        longest += sizes[True][0] > max(sizes[False])
        shortest += sizes[True][0] < min(sizes[False])
    places = Counter(next(k for k, a in enumerate(q.answers) if a.right) for q in single)
    # a quarter would be chance; 60 questions scatter by a twentieth, and two of those are allowed
    assert max(longest, shortest) / len(single) < 0.35
    assert all(0.10 < places[k] / len(single) < 0.40 for k in range(4))


# Calculations: each key once more, by a sum, an integral, a fit of the way back, or the package


def poisson_variance(v):
    q = np.arange(500)
    p = stats.poisson.pmf(q, v["omega"])
    return p @ (v["gain"] * q) ** 2 - (p @ (v["gain"] * q)) ** 2 + v["read"] ** 2


def light_outside(v):
    one = Emitters.single(v["place"], 20.0, v["photons"])
    return v["photons"] - float(expected_photons(one, PSF(v["sigma"]), (41, 41)).sum())


def shrunk(v):
    errors = np.random.default_rng(0).normal(0, v["sd"], 2_000_000)
    return math.sqrt((((v["keep"] * (v["aside"] + errors)) - v["aside"]) ** 2).mean())


def mortensen(v):
    width = 1e4 + 1e4 / 12
    xi = 2 * math.pi * width * v["background"] / (v["photons"] * 1e4)
    lost = integrate.quad(lambda t: math.log(t) / (1 + t / xi), 0, 1)[0]
    return math.sqrt(width / v["photons"] / (1 + lost))


def left_after_a_fit(v):
    size, unknowns = int(v["side"]) ** 2, 3 * int(v["emitters"]) + 1
    design = np.random.default_rng(0).normal(size=(size, unknowns))
    return np.trace(np.eye(size) - design @ np.linalg.pinv(design))


def round_width(v):
    x = np.linspace(-9, 9, 1801)
    left, right = (stats.norm.pdf(x, side * v["distance"] / 2, v["sigma"]) for side in (-1, 1))
    pair = left + right
    return math.sqrt((pair @ x**2 / pair.sum() + v["sigma"] ** 2) / 2)


def reach(v):
    x = torch.zeros(1, 1, 81, 81, dtype=torch.float64)
    x[..., 40, 40] = 1
    for dilation in (1, 1, int(v["first"]), int(v["second"]), int(v["third"])):
        x = torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3).double(), padding=dilation, dilation=dilation)
    return float((x[0, 0, 40] > 0).nonzero().max() - 40)


def jaccard(v):
    true, found = (
        set(range(int(v["true"]))),
        range(int(v["true"] - v["pairs"]), int(v["true"] - v["pairs"] + v["found"])),
    )
    return len(true & set(found)) / len(true | set(found))


def occam(v):
    return integrate.quad(lambda u: math.exp(-0.5 * (u / v["sd"]) ** 2) / v["width"], -10 * v["sd"], 10 * v["sd"])[0]


def number_of_two(v):
    weights = torch.tensor([0.5, 0.3, 0.2]).double().log() + torch.tensor([0.0, v["one"], v["two"]])
    return float(torch.softmax(weights, 0)[2])


def noise_to_image(v):
    def image(error):
        return float(to_x0("noise", torch.tensor([[error]]), torch.zeros(1, 1), torch.tensor([v["gamma"]])))

    return abs(image(v["error"]) - image(0.0))


def count_variance(v):
    weights = np.array([v["share"], 1 - v["share"]])
    means, variances = np.array([v["first"], 1.0]), np.array([v["open_first"], v["open_second"]])
    return weights @ (variances + means**2) - (weights @ means) ** 2


def left_open(v):
    pixel = GaussianMixture(torch.zeros(1).double(), variance=v["sd"] ** 2)
    return float(pixel.posterior_variance(torch.zeros(1).double(), torch.tensor([v["gamma"]]).double())) ** 0.5


def samples_for(v):
    """Of normal values the sd is a χ variable; its degrees of freedom, plus one, for the error that is asked for."""

    def error(freedom):
        return stats.chi.std(freedom) / stats.chi.mean(freedom)

    return 1 + optimize.root_scalar(lambda f: error(f) - v["percent"] / 100, bracket=(5, 10_000)).root


def area_between(v):
    """The regret in one dimension is the squared distance of two distribution functions (Székely & Rizzo 2013)."""
    gap = integrate.quad(lambda x: (stats.norm.cdf(x) - stats.norm.cdf(x / v["s"])) ** 2, -30, 30)[0]
    return 100 * gap * math.sqrt(math.pi)


def least_rank(v):
    """The smallest rank whose share of the equally likely ranks of a new score is the level."""
    return next(k for k in range(1, int(v["n"]) + 1) if round(100 * k / (v["n"] + 1), 9) >= v["level"])


def guided(v):
    """Two paths of the probability flow at a distance δ: d ln δ/dξ is the slope of the guided estimate."""
    slope = lambda xi, sd: xi * sd**2 / (1 + xi**2 * sd**2)  # noqa: E731
    end = 300.0
    growth = lambda xi: (1 + v["w"]) * slope(xi, v["sd"]) - v["w"] * slope(xi, 1.0)  # noqa: E731
    return math.exp(integrate.quad(growth, 0, end, limit=500)[0]) / end


def scatter_of_an_sd(v):
    sds = np.random.default_rng(0).normal(size=(40_000, int(v["S"]))).std(1, ddof=1)
    return 100 * sds.std() / sds.mean()


def transport(v):
    """Mean squared distance of quantiles that belong to each other."""
    levels = (np.arange(200_000) + 0.5) / 200_000
    first, second = stats.norm.ppf(levels), stats.norm.ppf(levels, v["m"], v["s"])
    return ((first - second) ** 2).mean()


def nobody_drawn(v):
    one = (1 - v["q"]) / 2
    joint = np.array([[0.0, one], [one, v["q"]]])  # empty or not, at either place
    return 100 * joint.sum(0)[0] * joint.sum(1)[0]


def weighted_mean(v):
    """The least variance of any mean of two, over its weight."""
    variance = lambda w: (w * v["one"]) ** 2 + ((1 - w) * v["two"]) ** 2  # noqa: E731
    return math.sqrt(optimize.minimize_scalar(variance, bounds=(0, 1), method="bounded", options={"xatol": 1e-9}).fun)


def crossing_at_a_third(v):
    def curve(length):
        f = math.exp(-((2 * math.pi * v["sd"] / length) ** 2))
        return v["times"] * f / (1 + (v["times"] - 1) * f) - 1 / 3

    return optimize.brentq(curve, v["sd"], 20 * v["sd"])


def camera(v):
    return Camera(v["gain"], 100.0, v["variance"])


OTHER_WAY = {
    "image-raw-variance": poisson_variance,
    "image-escape": light_outside,
    "image-read-noise": lambda v: float(camera(v).read_variance_electrons) ** 0.5,
    "likelihood-shifted-count": lambda v: float(likelihood.surrogate_counts(v["raw"], camera(v))),
    "likelihood-frames": lambda v: next(n for n in range(2, 10**6) if math.sqrt(2 / (n - 1)) <= v["percent"] / 100),
    "likelihood-contour": lambda v: stats.chi2.ppf(v["percent"] / 100, 2) / 2,
    "fisher-pixel-information": lambda v: (
        v["slope"] ** 2 * float(fisher.surrogate_pixel_information(torch.tensor(v["rate"]).double(), camera(v)))
    ),
    "fisher-shrinker": shrunk,
    "fisher-mortensen": mortensen,
    "fit-freedom": left_after_a_fit,
    "fit-pair-width": round_width,
    "kde-height": lambda v: stats.norm.expect(lambda x: np.exp(-(x**2) / 2), scale=4 * v["sd"]) ** 2,
    "kde-vertex": lambda v: v["delta"],
    "kde-there": lambda v: stats.logistic.cdf(v["gain"] - math.log(v["rarity"] - 1)),
    "deepstorm-reach": reach,
    "deepstorm-jaccard": jaccard,
    "posterior-occam": occam,
    "posterior-number": number_of_two,
    "posterior-effective": lambda v: v["draws"] / (1 + 2 * sum(v["corr"] ** k for k in range(1, 1000))),
    "diffusion-gamma": lambda v: float(NoiseSchedule.from_betas(torch.full((int(v["steps"]),), v["beta"])).gammas[-1]),
    "diffusion-tilde": lambda v: 1 / (v["after"] / (v["before"] - v["after"]) + 1 / (1 - v["before"])),
    "diffusion-left": left_open,
    "cddpm-gain": noise_to_image,
    "cddpm-split": count_variance,
    "cddpm-samples": samples_for,
    "bakeoff-width": area_between,
    "bakeoff-rank": least_rank,
    "bakeoff-none": nobody_drawn,
    "fast-guided-sd": guided,
    "fast-sd-scatter": scatter_of_an_sd,
    "fast-frechet-line": transport,
    "experiment-weighted": weighted_mean,
    "experiment-chance": lambda v: 100 * stats.poisson.sf(0, math.pi * v["density"] * (v["radius"] / 1000) ** 2),
    "experiment-repeats": crossing_at_a_third,
}
WAY_BACK = {  # from the key to a number that the question gives
    "fit-difference-noise": lambda v, key: (2 * v["gain"] ** 2 * (v["background"] / v["gain"] + key), v["difference"]),
    "deepstorm-width": lambda v, key: (math.sqrt(1 + (4 * key / v["pixel"]) ** 2), v["width"]),
}


@pytest.mark.parametrize("question", CALCULATIONS, ids=name)
def test_each_key_comes_out_by_another_way(question):
    for variant in question.variants:
        if question.id in WAY_BACK:
            found, given = WAY_BACK[question.id](variant.values, variant.value)
            assert found == pytest.approx(given, rel=1e-9)
        else:  # well inside what an answer may be off, so that rounding of the student has all the room
            other = OTHER_WAY[question.id](variant.values)
            assert abs(other - variant.value) < 0.3 * variant.tolerance, (variant.values, other, variant.value)


@pytest.mark.parametrize("question", CALCULATIONS, ids=name)
def test_variants_differ_and_no_mistake_passes_for_the_key_or_for_another(question):
    assert len(question.variants) == bank.VARIANTS == len({variant.text for variant in question.variants})
    assert len({round(variant.value, 9) for variant in question.variants}) > 1
    for variant in question.variants:
        assert variant.tolerance > 0 and "{{" not in variant.text + variant.because
        values = [variant.value, *(mistake.value for mistake in variant.mistakes)]
        for one, other in combinations(values, 2):
            assert abs(one - other) > 2 * variant.tolerance, (variant.values, values)
        shown = float(bank.significant(variant.value, question.fields["digits"]))
        assert abs(shown - variant.value) <= variant.tolerance


def test_variants_are_the_same_every_time():
    again = {
        q.id: [v.text for v in q.variants] for made in bank.read_all() for q in made.questions if q in CALCULATIONS
    }
    assert all(again[q.id] == [v.text for v in q.variants] for q in CALCULATIONS)


def test_formulas_need_no_commands_of_the_book(book):
    own = re.compile(rf"\\(?:{'|'.join(book.macros)})(?![A-Za-z])")
    for path in sorted(bank.FOLDER.glob("*.yml")):
        assert not own.search(path.read_text(encoding="utf-8")), path.name


# What is refused


def refused(tmp_path, change):
    fields = yaml.safe_load((bank.FOLDER / "01_image_formation.yml").read_text(encoding="utf-8"))
    change(fields["questions"], fields)
    path = tmp_path / "01_image_formation.yml"
    path.write_text(yaml.safe_dump(fields, allow_unicode=True), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        [question.variants for question in bank.read_bank(path).questions if question.kind == "calculation"]
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, f: q[0]["answers"][1].pop("feedback"), ("image-centre-density", "answers")),
        (lambda q, f: q[0].pop("because"), ("image-centre-density", "'because' is a required property")),
        (lambda q, f: q[0].update(kind="riddle"), ("image-centre-density", "'riddle' is not one of")),
        (lambda q, f: q[0]["answers"].append({"right": "both"}), ("image-centre-density", "got 2")),
        (lambda q, f: q[1].pop("several"), ("image-chance", "one answer must be right, got 2")),
        (lambda q, f: q[3].update(text="A gain of {{ gian }}"), ("image-raw-variance", "['gian']")),
        (lambda q, f: q[3].update(answer="gain * omega +"), ("image-raw-variance", "gain * omega +")),
        (lambda q, f: q[3]["tolerance"].pop("reason"), ("image-raw-variance", "'reason' is a required property")),
        (lambda q, f: q[3]["parameters"]["gain"].update({"to": 1}), ("image-raw-variance", "gain runs from 1.6 to 1")),
        (lambda q, f: q[8].pop("check"), ("image-code-shares", "has a check")),
        (lambda q, f: f.update(self_test=["a", "b", "image-chance"]), ("self_test names ['a', 'b']",)),
    ],
)
def test_a_faulty_file_is_refused_by_question_and_reason(tmp_path, change, words):
    message = refused(tmp_path, change)
    assert all(word in message for word in words), message


def test_text_that_is_no_yaml_and_ids_that_stand_twice_are_refused(tmp_path):
    text = (bank.FOLDER / "01_image_formation.yml").read_text(encoding="utf-8")
    for stem in ("01_a", "02_b"):
        (tmp_path / f"{stem}.yml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="stand twice.*image-chance"):
        bank.read_all(tmp_path)
    (tmp_path / "01_a.yml").write_text("questions: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"01_a\.yml is not YAML"):
        bank.read_all(tmp_path)


def test_an_unknown_section_is_refused(book):
    made = BANKS["01_image_formation"]
    lost = bank.Question(made.chapter, made.questions[0].fields | {"section": "Nowhere"})
    with pytest.raises(ValueError, match="image-centre-density: the chapter has no section 'Nowhere'"):
        command.pointers(book, bank.Bank(made.chapter, [lost], []))


# The exports


def as_moodle(text):
    """GIFT by the rules of Moodle's reader: category, name, HTML, (mark, weight, answer, feedback) rows, general."""
    found, category = [], ""
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith("$CATEGORY:"):
            category = block.partition(":")[2].strip()
            continue
        kept = block.replace("\\\\", "\0BACK\0")  # Moodle, too, takes double backslashes away first
        for mark in "~=#{}:":
            kept = kept.replace(f"\\{mark}", f"\0{ord(mark)}\0")
        kept = kept.replace("\\n", "\0NEW\0")
        match = re.fullmatch(
            r"::(?P<name>[^:]*)::\[html\](?P<text>[^{}]*)\{(?P<number>#?)(?P<rows>[^{}]*)\}", kept, re.S
        )
        assert match, block[:200]
        rows, _, general = match["rows"].partition("####")
        pattern = r"([=~])(?:%(-?[\d.]+)%)?([^=~#]*)(?:#([^=~#]*))?"
        answers = [tuple(map(plain, row)) for row in re.findall(pattern, rows)]
        assert re.sub(pattern, "", rows).strip() == ""
        found.append((category, plain(match["name"]), plain(match["text"]), answers, plain(general), match["number"]))
    return found


def plain(text):
    text = re.sub("\0(\\d+)\0", lambda mark: chr(int(mark[1])), text.strip())
    return text.replace("\0NEW\0", "\n").replace("\0BACK\0", "\\")


def html(text):
    return markup.to_html(text, markup.mathjax)


@pytest.mark.parametrize("made", BANKS.values(), ids=list(BANKS))
def test_gift_reads_back_as_it_was_meant(made, book):
    rows = iter(as_moodle(gift.write(made, command.pointers(book, made))))
    for question in (q for q in made.questions if q.kind != "calculation"):
        category, title, text, answers, general, number = next(rows)
        assert category.endswith(f"/{made.chapter}") and title.startswith(question.id) and not number
        assert text == html(question.fields["text"]) and general.startswith(html(question.fields["because"]))
        assert [(a, f) for _, _, a, f in answers] == [(html(a.text), html(a.feedback)) for a in question.answers]
        if question.several:
            assert all(
                (float(weight) > 0) is a.right for (_, weight, *_), a in zip(answers, question.answers, strict=True)
            )
            assert sum(float(weight) for _, weight, *_ in answers if float(weight) > 0) == pytest.approx(100, abs=0.01)
        else:
            assert [mark == "=" for mark, *_ in answers] == [a.right for a in question.answers]
    for question in (q for q in made.questions if q.kind == "calculation"):
        for variant in question.variants:
            category, title, text, answers, general, number = next(rows)
            assert category.endswith(question.id) and number and text.startswith(html(variant.text)[:40])
            values = [tuple(map(float, answer.split(":"))) for _, _, answer, _ in answers]
            assert values[0][0] == pytest.approx(variant.value, rel=1e-5)
            assert values[0][1] == pytest.approx(variant.tolerance, rel=0.06)
            assert [weight for _, weight, *_ in answers] == ["", *["0"] * len(variant.mistakes)]
            assert [f for *_, f in answers[1:]] == [html(m.feedback) for m in variant.mistakes]
    assert next(rows, None) is None


@pytest.mark.parametrize("made", BANKS.values(), ids=list(BANKS))
def test_qti_scores_the_right_answer_and_shows_only_feedback_that_is_there(made, book):
    data = qti.write(made, "A chapter", command.pointers(book, made))
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        manifest = ET.fromstring(package.read("imsmanifest.xml"))
        (file,) = manifest.iter(f"{{{qti.PACKAGE}}}file")
        root = ET.fromstring(package.read(file.attrib["href"]))
        assert {"imsmanifest.xml", file.attrib["href"]} == set(package.namelist())
    items = {item.attrib["ident"]: item for item in root.iter(f"{QTI}item")}
    for item in items.values():
        feedback = [part.attrib["ident"] for part in item.iter(f"{QTI}itemfeedback")]
        assert len(set(feedback)) == len(feedback)
        assert {shown.attrib["linkrefid"] for shown in item.iter(f"{QTI}displayfeedback")} == set(feedback)
    for question in made.questions:
        if question.kind == "calculation":
            for variant in question.variants:
                item = items.pop(f"{question.id}_v{variant.number + 1}")
                low, high = (float(next(item.iter(QTI + tag)).text or "") for tag in ("vargte", "varlte"))
                assert low < variant.value < high and high - low == pytest.approx(2 * variant.tolerance, rel=0.01)
            continue
        item = items.pop(question.id)
        labels = {x.attrib["ident"]: x.findtext(f".//{QTI}mattext") for x in item.iter(f"{QTI}response_label")}
        (scored,) = (c for c in item.iter(f"{QTI}respcondition") if c.find(f"{QTI}setvar") is not None)
        refused = {x.text for no in scored.iter(f"{QTI}not") for x in no.iter(f"{QTI}varequal")}
        wanted = {x.text for x in scored.iter(f"{QTI}varequal")} - refused
        rights = {markup.to_html(a.text, markup.canvas) for a in question.answers if a.right}
        assert {labels[ident or ""] for ident in wanted} == rights and len(labels) == len(question.answers)
        assert refused == (labels.keys() - wanted if question.several else set())
    assert not items


@pytest.mark.parametrize("made", BANKS.values(), ids=list(BANKS))
def test_jupyterquiz_has_what_its_schema_asks_for(made, book):
    rows = json.loads(jupyter.write(made, command.pointers(book, made)))
    for row, question in zip(rows, made.questions, strict=True):
        kind = {"calculation": "numeric"}.get(question.kind, "many_choice" if question.several else "multiple_choice")
        assert row["type"] == kind and row["question"] and ("code" in row) is (question.kind == "code")
        if kind == "numeric":
            key, *mistakes, default = row["answers"]
            assert key["correct"] and key["range"][0] < question.variants[0].value < key["range"][1]
            assert not any(a["correct"] for a in mistakes) and default["type"] == "default"
        else:
            assert [a["correct"] for a in row["answers"]] == [a.right for a in question.answers]
        assert all(a["feedback"] for a in row["answers"])


def test_the_command_writes_three_files_a_chapter_and_the_same_again(tmp_path, capsys):
    assert command.main(["-o", str(tmp_path / "one")]) == command.main(["-o", str(tmp_path / "two")]) == 0
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {f"{chapter}{end}" for chapter in TAUGHT for end in (".gift", ".qti.zip", ".json")}
    for one in names:
        assert (tmp_path / "one" / one).read_bytes() == (tmp_path / "two" / one).read_bytes()
    with pytest.raises(SystemExit):
        command.main([])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12345.6, "12300"), (0.0012345, "0.00123"), (0.0, "0"), (-99.96, "-100"), (212.0, "212"), (0.0997, "0.0997")],
)
def test_numbers_have_no_exponent(value, shown):
    assert bank.significant(value, 3) == shown


# The self-tests


@pytest.mark.parametrize("chapter", TAUGHT)
def test_the_self_test_of_a_chapter_is_what_the_bank_says(chapter):
    text = (ROOT / "notebooks" / f"{chapter}.md").read_text(encoding="utf-8")
    assert selftest.updated(text, BANKS[chapter]) == text, "run `make questions`, then `make colab`"
    part = selftest.PLACE.search(text)
    assert part and len(re.findall(r"^:{5}\{dropdown\} \d\. ", part[0], re.M)) == 3
    assert len(re.findall(r"^:{4}\{dropdown\} Answer$", part[0], re.M)) == 3
    assert ":open:" not in part[0]


def test_a_self_test_needs_its_place():
    made = BANKS["01_image_formation"]
    once = selftest.updated("# A\n\n## Summary\n\n## Exercises\n\n", made)
    assert selftest.updated(once, made) == once and once.index("## Self-test") < once.index("## Exercises")
    with pytest.raises(ValueError, match="heading Exercises"):
        selftest.updated("# A\n\n## Summary\n", made)
