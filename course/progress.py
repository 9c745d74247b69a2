"""`python -m helpers progress`: how far the learner is with all lessons."""

import importlib
import importlib.util
import re
from pathlib import Path

import click

from helpers import progress
from helpers.errors import LabError


def show(notebooks: Path, folder: Path) -> None:
    """Print a table of all lessons, their questions, and what of them is right."""
    path = folder / progress.FILE
    try:
        tallies, damaged = progress.read(path)
    except OSError as error:
        raise LabError(f"Your progress in {path} could not be read ({error.strerror}).") from error
    click.echo(progress.table(questions(notebooks), tallies))
    if damaged:
        lines = "1 line" if damaged == 1 else f"{damaged} lines"
        click.echo(f"\n{lines} of {path} could not be read, and counted for nothing; all others did.")
    if not tallies:
        click.echo(f"\nNothing is kept in {path} yet: `q1.check()` in a lesson is the beginning.")


def questions(notebooks: Path) -> dict[str, list[str]]:
    """The names of each lesson's questions, by the name of the lesson's notebook."""
    from helpers.questions import Question

    found = {}
    for lesson in sorted(notebooks.glob("*.ipynb")):
        module = f"exercises.lesson_{lesson.name[:2]}"
        if re.match(r"\d\d_", lesson.name) and importlib.util.find_spec(module):
            asked = [thing for thing in vars(importlib.import_module(module)).values() if isinstance(thing, Question)]
            found[lesson.stem] = [question.name for question in asked]
    return found
