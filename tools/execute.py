"""Maintainer's command: execute lessons whole and in order, and store their outputs.

    python -m tools.execute            # all lessons
    python -m tools.execute 01 04      # some

Nothing that belongs to this machine or this run is stored: no times, no Python version, no widget state.
"""

import base64
import io
from pathlib import Path

import click
import nbformat
from nbclient import NotebookClient
from PIL import Image

from helpers.paths import NOTEBOOKS
from helpers.pictures.picture import DRAWN_FROM


def execute(path: Path) -> None:
    """Execute one notebook in place; it is written only when no cell fails.

    A picture whose facts are the same as before stays as it is stored, so that a change is as small as what changed.
    """
    notebook = nbformat.read(path, as_version=4)
    before = {cell.id: cell.get("outputs", []) for cell in notebook.cells}
    NotebookClient(notebook, timeout=120, kernel_name="python3", record_timing=False).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            # the picture's size is kept, what else a front end may add is not
            output.metadata = {k: v for k, v in output.get("metadata", {}).items() if k == "image/png"}
            if output.output_type == "stream":
                del output["metadata"]
        if "outputs" in cell:
            cell.outputs = keep_pictures(before[cell.id], cell.outputs)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def keep_pictures(before: list, now: list) -> list:
    """Return a cell's outputs of now, with the stored pictures of before where they show the same facts.

    A PNG of the same facts may differ in its bytes: by measured times, by fonts, by the version of what draws it.
    """
    stored = {drawn_from(output): output for output in before}
    kept = []
    for output in now:
        same = stored.get(drawn_from(output)) if drawn_from(output) else None
        if same is not None and same.data["text/plain"] == output.data["text/plain"]:
            output = nbformat.from_dict({**output, "data": same.data, "metadata": same.metadata})
        kept.append(output)
    return kept


def drawn_from(output) -> str:
    """Return the hash of the facts that an output's picture was drawn from; empty where there is no picture."""
    data = output.get("data", {})
    if "image/png" not in data:
        return ""
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        return picture.text.get(DRAWN_FROM, "")


@click.command()
@click.argument("lessons", nargs=-1)
def main(lessons: tuple[str, ...]) -> None:
    """Execute LESSONS (by number, e.g. 01; all without any), and store their outputs."""
    paths = {path.name[:2]: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    if unknown := [number for number in lessons if number not in paths]:
        raise click.UsageError(f"There is no lesson {unknown[0]}: choose from {', '.join(paths)}.")
    for number in lessons or paths:
        execute(paths[number])
        click.echo(paths[number].name)


if __name__ == "__main__":
    main()
