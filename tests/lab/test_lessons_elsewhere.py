"""Lessons in other ways: any section alone, and strictly on clusters that are not the lab's own. All of it is long."""

import os
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from classroom import learners
from tests.lab.each_lesson import each_lesson
from tests.secured import secured_broker, stock_cluster
from tools.lessons import read, tags

pytestmark = pytest.mark.full

NBVAL = ["-m", "pytest", "-o", "addopts=", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=60", "-q"]


@each_lesson(in_ci="02 04 06 08 10")
def test_any_section_runs_alone_after_the_set_up_cells(path, tmp_path):
    lesson = read(path)
    sections = [i for i, cell in enumerate(lesson.cells) if re.match(r"#{2,3} ", cell.source)]
    cells = [cell for cell in lesson.cells if "setup" in tags(cell)]
    # In one kernel, from the last section to the first: none can rely on one that comes before it in the lesson.
    for start, end in reversed(list(zip(sections, [*sections[1:], len(lesson.cells)], strict=True))):
        cells += [
            cell for cell in lesson.cells[start:end] if "setup" not in tags(cell) and ".stop()" not in cell.source
        ]
    alone = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(alone, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()


def strictly(path, tmp_path, environment: dict) -> str:
    """What nbval says of a lesson with these environment variables."""
    done = subprocess.run(
        [sys.executable, *NBVAL, path], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True
    )
    return done.stdout[-3000:]


@each_lesson(in_ci="01 03 05 07 09")
def test_lesson_passes_strictly_on_a_cluster_with_stock_settings(path, tmp_path):
    with stock_cluster(brokers=3) as servers:
        said = strictly(path, tmp_path, {"COURSE_BOOTSTRAP_SERVERS": servers})
    assert re.search(r"^\d+ passed", said, re.M), said


@each_lesson(in_ci="02 04 06 08 10")
def test_lesson_passes_strictly_for_a_learner_of_a_class(path, tmp_path):
    with secured_broker() as broker:
        learners.add(broker.folder, broker.admin, ["ann"])
        said = strictly(path, tmp_path, broker.environment("ann"))
    assert re.search(r"^\d+ passed", said, re.M), said
