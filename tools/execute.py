"""Maintainer's command: execute lessons whole and in order, and store their outputs.

    python tests/execute.py            # all lessons
    python tests/execute.py 01 04      # some

Nothing that belongs to this machine or this run is stored: no times, no Python version, no widget state.
"""

from pathlib import Path

import click
import nbformat
from nbclient import NotebookClient

from helpers.paths import NOTEBOOKS


def execute(path: Path) -> None:
    """Execute one notebook in place; it is written only when no cell fails."""
    notebook = nbformat.read(path, as_version=4)
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
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


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
