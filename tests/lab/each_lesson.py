"""Long tests of each lesson: for some lessons in CI, for all of them with `pytest -m "full or weekly" tests/lab`."""

import pytest

from tools.lessons import LESSONS


def each_lesson(in_ci: str):
    """Parametrize a test with the lessons' paths.

    Args:
        in_ci: the numbers of the lessons that CI runs it for, as "01 03"; the others are marked `weekly`. Each kind of
            test takes other lessons, so that CI meets each lesson in some of them and ends within its time.
    """
    marks = [() if path.name[:2] in in_ci.split() else pytest.mark.weekly for path in LESSONS]
    return pytest.mark.parametrize(
        "path", [pytest.param(path, id=path.stem, marks=mark) for path, mark in zip(LESSONS, marks, strict=True)]
    )
