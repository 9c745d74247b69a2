"""What is attacked: mended forms by the accidents of the catalogue, recorded by the tests that make them.

    @accident(form="10 exactly_once", kinds=[1, 2])
    def test_killed_at_each_point(...): ...

    @weak(form="10 exactly_once", kind=8, sentence="An order that retention deletes …")
    def test_retention(...): ...

`accident`: the form survives. `weak`: it does not; the test shows what happens, and the sentence says so, word for
word, in the form's lesson and in docs/guarantees.md.

    python -m tests.accidents.matrix   # writes docs/accidents.md: forms down, accidents across
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers.paths import COURSE
from tools.lessons import NOTEBOOKS, read

HERE = Path(__file__).parent
PAGE = COURSE / "docs" / "accidents.md"
GUARANTEES = COURSE / "docs" / "guarantees.md"

#: The catalogue, by number.
ACCIDENTS = {
    1: "death between any two effects",
    2: "death twice: the recovery dies too",
    3: "standstill, then going on: the zombie",
    4: "unknown outcome",
    5: "records expire",
    6: "a refused record, and the client used again",
    7: "poison of each kind",
    8: "the log's beginning moves",
    9: "the topic is made anew, restored, or gets more partitions",
    10: "the database comes back older, or says 'not now'",
    11: "twice, late, in another order",
    12: "a rebalance at any point",
    13: "attempts run out",
    14: "more than a page",
    15: "two of everything, the older one finishing last",
    16: "aborted records in every topic that is read",
    17: "a second time",
    18: "another process",
    19: "something comes between two questions",
}


@dataclass(frozen=True)
class Entry:
    """One cell of the matrix: a form under an accident, the test that makes it, and for a weak one the sentence."""

    form: str
    kind: int
    test: str
    sentence: str = ""


#: What the tests that are imported so far have recorded.
ENTRIES: list[Entry] = []


def accident(form: str, kinds: list[int]) -> Callable:
    """Record that a form survives these accidents, as the decorated test shows."""
    return _recording(form, kinds, "")


def weak(form: str, kind: int, sentence: str) -> Callable:
    """Record that a form does not survive an accident: the decorated test shows what happens, the sentence says it."""
    return _recording(form, [kind], sentence)


def _recording(form: str, kinds: list[int], sentence: str) -> Callable:
    assert set(kinds) <= set(ACCIDENTS), kinds

    def record(test: Callable) -> Callable:
        where = f"{test.__module__}.{test.__name__}"
        ENTRIES.extend(Entry(form, kind, where, sentence) for kind in kinds)
        return test

    return record


def entries() -> list[Entry]:
    """What all tests of this folder record."""
    for path in sorted(HERE.glob("test_lesson_*.py")):
        importlib.import_module(f"tests.accidents.{path.stem}")
    return ENTRIES


def words(text: str) -> str:
    """The text with its white space in one form, so that line ends do not count."""
    return " ".join(text.split())


def place(entry: Entry) -> str:
    """Where the lesson says a weakness: a link to the next code cell at or before it, which JupyterLab can open."""
    (lesson,) = NOTEBOOKS.glob(f"{entry.form[:2]}_*.ipynb")
    code = ""
    for cell in read(lesson).cells:
        if cell.cell_type == "code":
            code = cell.id
        elif words(entry.sentence) in words(cell.source):
            return f"../notebooks/{lesson.name}#cell-id={code}"
    return ""


def page() -> str:
    """The matrix as a page of Markdown."""
    found = entries()
    forms = sorted({entry.form for entry in found})
    lines = [
        "# The matrix of accidents",
        "",
        "<!-- written by `python -m tests.accidents.matrix` -->",
        "",
        "Each mended form of the lessons (a row) under each kind of accident (a column). The tests take the forms from",
        "the lessons' own cells, and make the accidents on a real broker and a real PostgreSQL where those matter.",
        "",
        "- **✓**: the form survives: nothing lost, nothing counted twice, and a second run does no harm. The number",
        "  says how many tests make the accident; many of them sweep over all points of a run.",
        "- **[said]**: it does not survive. A test shows what happens, and the link leads to the cell before the",
        "  sentence that says so. A **✓** beside it means that other accidents of this kind are survived.",
        "- Blank: no test makes this accident with this form. Most of these accidents cannot happen to it; take a",
        "  blank as *not tried*.",
        "",
        "| Form | " + " | ".join(str(kind) for kind in ACCIDENTS) + " |",
        "| --- |" + " --- |" * len(ACCIDENTS),
    ]
    for form in forms:
        cells = []
        for kind in ACCIDENTS:
            here = [entry for entry in found if (entry.form, entry.kind) == (form, kind)]
            held = len({entry.test for entry in here if not entry.sentence})
            weak_ones = list(dict.fromkeys(place(entry) for entry in here if entry.sentence))
            cells.append(" ".join([f"✓ {held}"] * bool(held) + [f"[said]({link})" for link in weak_ones]))
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    lines += ["", "The accidents:", "", *(f"{number}. {kind}" for number, kind in ACCIDENTS.items()), ""]
    lines += [
        "What is said, in the lessons and among the [guarantees](guarantees.md), of what a form does not survive:",
        "",
        *(
            f"- *{form}*, {kind}: {sentence}"
            for form, kind, sentence in sorted(
                {(entry.form, entry.kind, words(entry.sentence)) for entry in found if entry.sentence}
            )
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    from tests.accidents import matrix  # the module that the tests record in, which is not this `__main__`

    PAGE.write_text(matrix.page())
