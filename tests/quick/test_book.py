"""One book: lessons lead to one another, and the maintainer's pages over all of them hold what they should."""

import re

import nbformat
import pytest
from click.testing import CliRunner

from tools import gallery, times
from tools.lessons import LESSONS, NOTEBOOKS, code_cells, read

NAMES = {path.name[:2]: path.name for path in LESSONS}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_that_is_named_is_a_link(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    plain = LINK.sub("", re.sub(r"```.*?```", "", text, flags=re.S))
    named = re.findall(r"\b[Ll]essons? (\d\d)(?: and (\d\d))?", plain)
    assert not [number for pair in named for number in pair if number in NAMES and number != path.name[:2]]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_link_to_a_lesson_goes_to_the_one_that_it_names(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for words, target in LINK.findall(text):
        if target.endswith(".ipynb"):
            assert (NOTEBOOKS / target).exists() and re.search(r"\d\d", words)[0] == target[:2], words


def test_each_lesson_leads_to_the_next():
    for path in LESSONS:
        following = NAMES.get(f"{int(path.name[:2]) + 1:02}")
        (last,) = re.findall(r"^\*\*Next:\*\* (.+)$", "\n".join(cell.source for cell in read(path).cells), re.M)
        assert following is None or f"]({following}) –" in last, last


def test_the_gallery_has_every_picture_once_on_each_ground():
    page = gallery.page()
    count = sum("image/png" in out.get("data", {}) for p in LESSONS for c in code_cells(read(p)) for out in c.outputs)
    assert count > 0 and page.count("<figure>") == count and page.count("<img ") == 2 * count
    assert page.count("class=dark") == count and all(path.stem in page for path in LESSONS)


def test_times_of_an_executed_lesson(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(source, execution_count=n)
        for n, source in enumerate(["import os\nslow()", "quick()"], 1)
    ]
    for cell, seconds in zip(cells, [3.26, 0.5], strict=True):
        cell.metadata["papermill"] = {"duration": seconds}
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_lesson.ipynb")
    result = CliRunner().invoke(times.main, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert re.search(r"^01_lesson +2 +3\.8 +3\.3$", result.output, re.M), result.output
    assert re.findall(r"^ +([\d.]+)  01 \[(\d)\]  (.+)$", result.output, re.M) == [("3.3", "1", "slow()")]
