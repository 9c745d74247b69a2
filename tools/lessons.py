"""The lessons' notebooks, as tools and tests see them."""

from pathlib import Path

import nbformat

from helpers.paths import COURSE, NOTEBOOKS, lessons

__all__ = ["COURSE", "IMPORTS", "LESSONS", "NOTEBOOKS", "code_cells", "read", "tagged", "tags"]

LESSONS = lessons()


def read(path: Path):
    """A notebook, as nbformat gives it."""
    return nbformat.read(path, as_version=4)


def code_cells(notebook) -> list:
    """The cells that are executed."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell) -> list[str]:
    """A cell's tags."""
    return cell.metadata.get("tags", [])


def tagged(notebook, tag: str) -> list:
    """The cells with a tag."""
    return [cell for cell in notebook.cells if tag in tags(cell)]


#: The cell of imports, the same in all lessons.
IMPORTS = code_cells(read(LESSONS[0]))[0].source
