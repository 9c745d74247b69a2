"""`python -m helpers progress`: how far the learner is with all lessons."""

from pathlib import Path

import click

from exercises.frame import progress
from exercises.frame.catalogue import questions
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
