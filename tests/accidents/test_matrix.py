"""What a mended form does not survive is said, word for word, in its lesson and in docs/guarantees.md."""

import importlib
from pathlib import Path

from tests.accidents.matrix import ENTRIES
from tests.lessons import NOTEBOOKS, read

HERE = Path(__file__).parent
GUARANTEES = (HERE.parents[1] / "docs" / "guarantees.md").read_text()


def words(text: str) -> str:
    return " ".join(text.split())


def test_each_weakness_is_said_in_its_lesson_and_among_the_guarantees():
    for path in HERE.glob("test_lesson_*.py"):
        importlib.import_module(f"tests.accidents.{path.stem}")
    lacking = []
    for entry in ENTRIES:
        (lesson,) = NOTEBOOKS.glob(f"{entry.form[:2]}_*.ipynb")
        said = words("\n".join(cell.source for cell in read(lesson).cells if cell.cell_type == "markdown"))
        if entry.sentence and not (words(entry.sentence) in said and words(entry.sentence) in words(GUARANTEES)):
            lacking.append((entry.form, entry.kind, entry.sentence))
    assert ENTRIES and not lacking, lacking
