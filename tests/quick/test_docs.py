"""docs/: made from what it describes, and each link goes somewhere."""

import ast
import importlib
import re
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml

import helpers
from course import cli
from exercises.frame.question import Question
from helpers import pictures, streams
from helpers.paths import COURSE
from tools import docs
from tools.lessons import LESSONS, NOTEBOOKS, code_cells, read, tagged

PAGES = sorted(docs.DOCS.glob("*.md"))
HEADLESS = (docs.DOCS / "headless.md").read_text()
GUARANTEES = (docs.DOCS / "guarantees.md").read_text()


@pytest.mark.parametrize(("path", "text"), docs.pages().items(), ids=lambda thing: getattr(thing, "name", ""))
def test_pages_are_up_to_date(path, text):
    assert path.read_text() == text, "run `python -m tools.docs`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_go_somewhere(path):
    text = re.sub(r"```.*?```|^    .*$", "", path.read_text(), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urlparse(link)
        assert parts.scheme == "https" or (path.parent / parts.path).exists(), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_readme_leads_to_each_page(path):
    assert f"(docs/{path.name})" in (COURSE / "README.md").read_text()


# -- headless.md --


def test_the_table_has_every_parameter_with_its_meaning():
    for path in LESSONS:
        (cell,) = tagged(read(path), "parameters")
        for line in cell.source.splitlines():
            name, value, meaning = re.fullmatch(r"(\w+) = (.+?) *# *(.+)", line).groups()
            assert f"[{path.stem}](../notebooks/{path.name}) | `{name}` | `{value}` | {meaning} |" in HEADLESS


def test_the_commands_of_the_page_are_understood():
    lines = re.findall(r"^    python -m helpers run(.*?)(?:#.*)?$", HEADLESS, re.M)
    assert len(lines) >= 5
    for line in lines:
        with cli.run.make_context("run", line.split()) as context:
            assert context.params["out"] and context.params["time_limit"] > 0


def test_the_page_tells_of_every_option():
    for parameter in cli.run.params:
        if not getattr(parameter, "hidden", False) and parameter.opts[0].startswith("-"):
            assert any(f" {option} " in HEADLESS for option in parameter.opts), parameter.name


def test_the_page_tells_of_every_python_and_runner_of_the_workflow():
    workflow = yaml.safe_load((COURSE / ".github" / "workflows" / "lessons.yml").read_text())
    matrix = workflow["jobs"]["lessons"]["strategy"]["matrix"]
    rows = re.findall(r"^\| (Linux|macOS)[^|]*\| ([\d., ]+) \|", HEADLESS, re.M)
    told = {(system, version) for system, versions in rows for version in versions.split(", ")}
    systems = {"ubuntu-latest": "Linux", "macos-latest": "macOS"}
    assert {(systems[runner], version) for runner in matrix["os"] for version in matrix["python"]} <= told


# -- guarantees.md --


def rows() -> list[list[str]]:
    lines = [line for line in GUARANTEES.splitlines() if line.startswith("| ") and not line.startswith("| What holds")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_each_guarantee_is_linked_to_a_cell_that_shows_it(row):
    claim, settings, shown = row
    assert claim and settings
    links = docs.CELL_LINK.findall(shown)
    assert links and docs.CELL_LINK.sub("", shown).strip(" ·") == ""
    for _, lesson, cell_id in links:
        (cell,) = [cell for cell in code_cells(read(NOTEBOOKS / lesson)) if cell.id == cell_id]
        assert "assert " in cell.source or cell.outputs, f"{lesson} {cell_id} shows nothing"


def test_a_link_to_a_cell_that_is_gone_is_found():
    with pytest.raises(KeyError, match="no code cell nowhere"):
        docs.with_places("[x](../notebooks/01_producer_consumer.ipynb#cell-id=nowhere)")


# -- reference.md --


def test_the_reference_has_what_lessons_import():
    reference = (docs.DOCS / "reference.md").read_text()
    for path in LESSONS:
        for cell in code_cells(read(path)):
            for names in re.findall(r"^from helpers[\w.]* import (.+)$", cell.source, re.M):
                for name in names.split(", "):
                    heading = rf"^(### `{name}[(`]|## From `helpers\.{name}`)"
                    assert re.search(heading, reference, re.M) or name == "LabError", name


def used_names(source: str) -> set[str]:
    """The names that code reads: what stands in a text, a comment or an import is no use."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("module", [helpers, streams, pictures], ids=lambda module: module.__name__)
def test_what_nobody_uses_is_not_offered(module):
    sources = [cell.source for path in LESSONS for cell in code_cells(read(path))]
    # Exercises hand code to learners as text, in which helpers are used too.
    sources += [path.read_text() for path in COURSE.glob("exercises/*.py")]
    sources += [text for path in COURSE.glob("exercises/lesson_*.py") for text in code_in_texts(path)]
    used = set().union(*map(used_names, sources))
    assert not set(module.__all__) - used


def code_in_texts(path: Path) -> list[str]:
    """The starters and solutions of a module of questions."""
    module = importlib.import_module(f"exercises.{path.stem}")
    asked = [thing for thing in vars(module).values() if isinstance(thing, Question)]
    return [text for question in asked for text in (question.starter, question.answer)]


def test_an_import_or_a_word_is_no_use():
    text = "from helpers import (\n    Cluster,\n    frame,\n)\n'Cluster'  # take\nframe([])"
    assert used_names(text) == {"frame"}


def test_arguments_become_a_list():
    text = docs._markdown(
        "Does it.\n\nArgs:\n    one: the first,\n        on two lines: so.\n    **two: more.\n\nReturns:\n    It."
    )
    assert text == "Does it.\n\nArguments:\n\n- `one`: the first, on two lines: so.\n- `**two`: more.\n\nReturns: It."
