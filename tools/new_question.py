"""Maintainer's command: begin a question, or bring its cells up to date.

    python -m tools.new_question 02 q4

The first time it writes a skeleton of the question into exercises/lesson_02.py and a test that fails into
tests/exercises/test_lesson_02.py. Each time it writes the question's three cells into the lesson (text, starter, check)
where they are missing, and puts the starter of the `Question` into its cell. The text of the first cell is yours.
"""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import click
import nbformat

from helpers.paths import COURSE, NOTEBOOKS, lessons

TEMPLATES = Path(__file__).with_name("templates")


def template(kind: str, name: str) -> str:
    """Return the skeleton of a question ("question") or of its test ("test")."""
    return (TEMPLATES / f"{kind}.txt").read_text().format(name=name)


def add_import(text: str, module: str, name: str) -> str:
    """Return a source in which `from MODULE import …` brings `name` too."""

    def widened(found: re.Match) -> str:
        names = sorted({*re.findall(r"\w+", found[2]), name})
        return f"{found[1]}{', '.join(names)}"

    return re.sub(rf"(from {re.escape(module)} import )(.+)", widened, text, count=1)


def write_code(lesson: str, name: str) -> list[Path]:
    """Write the skeletons of a question and of its test where they are missing; returns the files that changed."""
    changed = []
    source = COURSE / "exercises" / f"lesson_{lesson}.py"
    test = COURSE / "tests" / "exercises" / f"test_lesson_{lesson}.py"
    if not re.search(rf"^{name} = Question\(", source.read_text(), re.M):
        source.write_text(source.read_text().rstrip() + "\n" + template("question", name))
        changed.append(source)
    if not re.search(rf"\b{name}\b", test.read_text()):
        text = add_import(test.read_text(), f"exercises.lesson_{lesson}", name)
        test.write_text(text.rstrip() + "\n" + template("test", name))
        changed.append(test)
    return changed


def write_cells(path: Path, name: str, starter: str) -> None:
    """Write a question's cells into a lesson, behind those of the question before it."""
    notebook = nbformat.read(path, as_version=4)
    cells = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    if f"question-{name}" in cells:
        cells[f"question-{name}"].source = starter
    else:
        number = int(name[1:])
        text = nbformat.v4.new_markdown_cell(
            f"**Question {number}.** Say here what is to be done, and what counts as done."
        )
        answer, check = nbformat.v4.new_code_cell(starter), nbformat.v4.new_code_cell(f"{name}.check()")
        for cell, part, kind in (
            (text, "text", "subslide"),
            (answer, "answer", "fragment"),
            (check, "check", "fragment"),
        ):
            cell.id = f"c{path.name[:2]}-{name}-{part}"
            cell.metadata = {"slideshow": {"slide_type": kind}}
        answer.metadata["tags"], check.metadata["tags"] = [f"question-{name}"], [f"check-{name}"]
        place = notebook.cells.index(cells[f"check-q{number - 1}"]) + 1
        notebook.cells[place:place] = [text, answer, check]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = add_import(cell.source, f"exercises.lesson_{path.name[:2]}", name)
    nbformat.write(notebook, path)


@click.command()
@click.argument("lesson")
@click.argument("name")
def main(lesson: str, name: str) -> None:
    """Begin question NAME (q4) of LESSON (02), or put its starter into its cell again."""
    paths = {path.name[:2]: path for path in lessons()}
    if lesson not in paths:
        raise click.UsageError(f"There is no lesson {lesson}: choose from {', '.join(paths)}.")
    if not re.fullmatch(r"q[1-9]", name):
        raise click.UsageError(f"{name} is not a question's name: take q1 to q9.")
    module = f"exercises.lesson_{lesson}"
    before = [other for other in vars(importlib.import_module(module)) if re.fullmatch(r"q[1-9]", other)]
    if name not in before and name != f"q{len(before) + 1}":
        raise click.UsageError(f"Lesson {lesson} has {', '.join(before)}: the next one is q{len(before) + 1}.")
    for path in write_code(lesson, name):
        click.echo(f"{path.relative_to(COURSE)}: write the question, its judge and its test where the skeleton is.")
    ask = f"from {module} import {name}; print({name}.starter, end='')"
    starter = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, cwd=COURSE)
    if starter.returncode:
        raise click.ClickException(f"{module} cannot be imported: {starter.stderr.strip().splitlines()[-1]}")
    write_cells(paths[lesson], name, starter.stdout)
    click.echo(
        f"{paths[lesson].relative_to(NOTEBOOKS.parent)}: the cells are there; now `python -m tools.execute {lesson}`."
    )


if __name__ == "__main__":
    main()
