"""What all lessons keep to: skeleton, executed in order, short cells, clean outputs, tags."""

import ast
import hashlib
import importlib
import re
from urllib.parse import urlparse

import pytest

from exercises.frame.question import Question
from helpers.pictures.picture import DRAWN_FROM
from tools.execute import drawn_from
from tools.lessons import IMPORTS, LESSONS, NOTEBOOKS, code_cells, read, tagged, tags

SECTIONS = [
    "The situation",
    "The pattern in its smallest form",
    "Look inside",
    "Break it",
    "Mend it",
    "In production",
    "Your turn",
    "In short",
]
MACHINE = re.compile(r"(/root|/home|/work|/tmp|/Users|/var|site-packages|127\.0\.0\.1:\d)")


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem, scope="module")
def path(request):
    return request.param


@pytest.fixture(scope="module")
def lesson(path):
    return read(path)


def questions(path) -> list[Question]:
    module = importlib.import_module(f"exercises.lesson_{path.name[:2]}")
    return [thing for thing in vars(module).values() if isinstance(thing, Question)]


def outputs(lesson) -> list:
    return [output for cell in code_cells(lesson) for output in cell.outputs]


def test_begins_with_a_title_a_question_and_what_to_expect(lesson):
    first = lesson.cells[0].source
    assert first.startswith("# ") and re.search(r"\*\*.+\?\*\*", first)
    assert all(f"What you'll {word}" in first for word in ("do", "learn", "need")) and "minutes" in first


def test_has_the_skeleton(lesson):
    headings = [
        h for cell in lesson.cells if cell.cell_type == "markdown" for h in re.findall(r"^## (.+)$", cell.source, re.M)
    ]
    assert headings == SECTIONS


def test_was_executed_whole_and_in_order(lesson):
    counts = [cell.execution_count for cell in code_cells(lesson)]
    assert counts == list(range(1, len(counts) + 1))


def test_opens_with_the_same_imports_as_all(lesson):
    assert code_cells(lesson)[0].source == IMPORTS


def test_has_one_cell_of_parameters_that_are_plain_values(lesson):
    (cell,) = tagged(lesson, "parameters")
    assert all(re.match(r"[a-z_]+ = [\w.\"']+( *#.*)?$", line) for line in cell.source.splitlines())


def test_ends_by_stopping_the_cluster_and_saying_how_many_questions_are_right(path, lesson):
    last = code_cells(lesson)[-1]
    assert lesson.cells[-1] is last and last.source.endswith("cluster.stop()\nq1.progress()")
    said = f"Lesson {path.name[:2]}: 0 of {len(questions(path))} questions right\n"
    assert last.outputs[-1].data["text/plain"].startswith(said)


def test_cells_are_short_and_explained(lesson):
    long = [
        c.source.splitlines()[0]
        for c in code_cells(lesson)
        if sum(map(bool, map(str.strip, c.source.splitlines()))) > 18
    ]
    assert not long
    runs = re.findall("C+", "".join("M" if c.cell_type == "markdown" else "C" for c in lesson.cells))
    assert max(map(len, runs)) <= 3, "more than three code cells without a word between them"


def test_outputs_are_clean(lesson):
    assert not [o for o in outputs(lesson) if o.output_type == "error" or o.get("name") == "stderr"]
    assert not [o for o in outputs(lesson) if any("widget" in kind for kind in o.get("data", {}))]
    assert "widgets" not in lesson.metadata
    texts = [
        o.get("text", "") + str({k: v for k, v in o.get("data", {}).items() if k != "image/png"})
        for o in outputs(lesson)
    ]
    assert not [text for text in texts if MACHINE.search(text)]


def test_each_cell_that_ends_in_a_picture_has_a_text_twin(lesson):
    pictures = [o.data for o in outputs(lesson) if "image/png" in o.get("data", {})]
    assert pictures and all(len(p["text/plain"].splitlines()) > 1 for p in pictures)


def test_each_picture_is_the_one_that_its_cell_has_drawn(lesson):
    """nbval compares the hash in an output, and never the picture: so the picture is held to the hash here."""
    for output in outputs(lesson):
        data = output.get("data", {})
        if f"application/x.{DRAWN_FROM}" in data or "image/png" in data:
            facts = hashlib.sha256(data["text/plain"].encode()).hexdigest()[:16]
            assert drawn_from(output) == data[f"application/x.{DRAWN_FROM}"] == facts


def test_at_most_two_outputs_are_not_compared(lesson):
    assert not [c for c in code_cells(lesson) if "NBVAL_SKIP" in c.source or "nbval-skip" in tags(c)]
    ignored = [c for c in code_cells(lesson) if "NBVAL_IGNORE" in c.source or "nbval-ignore-output" in tags(c)]
    assert len(ignored) <= 2
    assert not [c for c in code_cells(lesson) if "NBVAL_RAISES" in c.source or "raises-exception" in tags(c)]


def test_links_are_well_formed(lesson):
    text = "\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urlparse(link)
        assert (parts.scheme == "https" and "." in parts.netloc) or (NOTEBOOKS / link).exists(), link


def test_says_nothing_of_this_machine(lesson):
    assert not [cell.source for cell in lesson.cells if MACHINE.search(cell.source)]


def test_every_cell_has_its_place_on_the_slides(lesson):
    kinds = {"slide", "subslide", "fragment", "skip", "notes", "-"}
    assert {cell.metadata.get("slideshow", {}).get("slide_type") for cell in lesson.cells} <= kinds


def test_cells_that_harm_brokers_say_so(lesson):
    def calls(cell):
        return [n.func for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call)]

    def starts_brokers(cell):
        return bool(re.search(r"Cluster\(brokers=", cell.source))

    clusters = {name for cell in code_cells(lesson) for name in re.findall(r"(\w+) = Cluster\(", cell.source)}
    harm = {"kill", "pause", "resume", "restart", "heal"}
    for cell in code_cells(lesson):
        harms = [
            f
            for f in calls(cell)
            if isinstance(f, ast.Attribute) and f.attr in harm and getattr(f.value, "id", "") in clusters
        ]
        assert not (harms or starts_brokers(cell)) or "harms-brokers" in tags(cell), cell.source


def test_has_a_cell_and_a_check_for_each_question(path, lesson):
    asked = questions(path)
    assert len(asked) >= 3
    for question in asked:
        (cell,) = tagged(lesson, f"question-{question.name}")
        assert cell.source.strip() == question.starter.strip()
        (check,) = tagged(lesson, f"check-{question.name}")
        assert check.source == f"{question.name}.check()"
        assert "not started" in str(check.outputs[0].data["text/plain"])
