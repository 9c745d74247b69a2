"""Maintainer's command: where the seconds go, lesson by lesson and cell by cell.

python -m helpers run --out executed            # on an otherwise idle machine
python -m tools.times executed                  # what each lesson took, and its slowest cells
python -m tools.times executed --over 3         # cells that took longer than three seconds

The times are those that papermill has noted in the executed notebooks.
"""

import os
from pathlib import Path

import click
import nbformat

from tools.lessons import code_cells


def cells(notebook) -> list[tuple[float, int, str]]:
    """Seconds, number and first telling line of each cell that was executed."""
    found = []
    for number, cell in enumerate(code_cells(notebook), 1):
        seconds = cell.metadata.get("papermill", {}).get("duration") or 0
        lines = [line for line in cell.source.splitlines() if line and not line.startswith(("#", "from ", "import "))]
        found.append((seconds, cell.execution_count or number, (lines or [cell.source])[0]))
    return found


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default="executed")
@click.option("--over", default=2.0, show_default=True, help="Show cells that took longer than this many seconds.")
def main(folder: Path, over: float) -> None:
    """Print a table of the lessons in FOLDER, as `python -m helpers run` has left them."""
    total, slow = 0.0, []
    click.echo(f"{os.cpu_count()} cores\n\nlesson                    cells  seconds  slowest")
    for path in sorted(folder.glob("*.ipynb")):
        executed = cells(nbformat.read(path, as_version=4))
        spent = sum(seconds for seconds, *_ in executed)
        total += spent
        slow += [(seconds, path.stem, number, line) for seconds, number, line in executed if seconds > over]
        click.echo(f"{path.stem:25} {len(executed):5}  {spent:7.1f}  {max(executed)[0]:7.1f}")
    click.echo(f"{'all':25}        {total:7.1f}\n\ncells over {over:g} s, the longest first")
    for seconds, lesson, number, line in sorted(slow, reverse=True):
        click.echo(f"{seconds:6.1f}  {lesson[:2]} [{number}]  {line[:90]}")


if __name__ == "__main__":
    main()
