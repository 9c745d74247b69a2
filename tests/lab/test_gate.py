"""The gate bites: nbval fails on each lesson when an output, a text twin or a check is not what it was."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tools.lessons import LESSONS, code_cells, read


def plain_output(cell) -> bool:
    return any(set(o.get("data", {})) >= {"text/plain"} and "image/png" not in o.data for o in cell.outputs)


def picture(cell) -> bool:
    return any("image/png" in o.get("data", {}) for o in cell.outputs)


def break_output(cell) -> None:
    """One character of a stored result, plain or a text twin, is another one."""
    data = next(o.data for o in cell.outputs if "text/plain" in o.get("data", {}))
    data["text/plain"] = data["text/plain"][:-1] + "¿"


def break_check(cell) -> None:
    """The claim of the cell's first assert does not hold any more."""
    tree = ast.parse(cell.source)
    check = next(node for node in ast.walk(tree) if isinstance(node, ast.Assert))
    check.test = ast.UnaryOp(ast.Not(), check.test)
    cell.source = ast.unparse(tree)


def has_check(cell) -> bool:
    # the last cells with one: what comes after a failed cell may fail as well
    return any(isinstance(node, ast.Assert) for node in ast.parse(cell.source).body)


def damaged(path: Path, target: Path) -> list[int]:
    """Copy a lesson with three damages; returns the numbers of the damaged cells, as nbval counts them."""
    notebook = read(path)
    cells = code_cells(notebook)
    output = next(i for i, cell in enumerate(cells) if plain_output(cell))
    twin = next(i for i, cell in enumerate(cells) if picture(cell) and i != output)
    check = [i for i, cell in enumerate(cells) if has_check(cell) and i not in (output, twin)][-1]
    break_output(cells[output])
    break_output(cells[twin])
    break_check(cells[check])
    nbformat.write(notebook, target)
    return sorted([output, twin, check])


@pytest.mark.parametrize(
    "path", [LESSONS[0], *(pytest.param(p, marks=pytest.mark.full) for p in LESSONS[1:])], ids=lambda path: path.stem
)
def test_three_damages_are_three_failures(path, tmp_path):
    copy = tmp_path / path.name
    cells = damaged(path, copy)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "--nbval-cell-timeout=60",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "-rf", "-o", "addopts=", copy], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    failed = [int(number) for number in re.findall(r"^FAILED .*::Cell (\d+)", done.stdout, re.M)]
    assert failed == cells, done.stdout[-3000:]
