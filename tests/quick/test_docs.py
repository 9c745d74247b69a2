"""docs/: made from what it describes, and each link goes somewhere."""

import ast
import inspect
import re
from urllib.parse import urlparse

import pytest
import yaml

import helpers
from course import cli
from helpers import pictures
from helpers.streams import topology
from tools import docs
from tools.lessons import LESSONS, NOTEBOOKS, code_cells, read, tagged

ROOT = NOTEBOOKS.parent
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
    assert f"(docs/{path.name})" in (ROOT / "README.md").read_text()


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
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "lessons.yml").read_text())
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


@pytest.mark.parametrize("module", [helpers, topology, pictures], ids=lambda module: module.__name__)
def test_what_nobody_uses_is_not_offered(module):
    sources = [cell.source for path in LESSONS for cell in code_cells(read(path))]
    sources += [path.read_text() for path in ROOT.glob("exercises/*.py")]
    used = "\n".join(map(_without_imports, sources))
    # What they are given back and never name, e.g. a Log with its Lanes of Cells: readers look its fields up.
    used += "\n".join(_results(getattr(module, name)) for name in module.__all__)
    assert not [name for name in module.__all__ if not re.search(rf"\b{name}\b", used)]


def _without_imports(source: str) -> str:
    """Code without its import statements: a name that is imported and no more is not used."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines)


def test_an_import_is_no_use():
    text = "from helpers import (\n    Cluster,\n    frame,\n)\nimport pandas as pd\nframe([])"
    assert _without_imports(text).split() == ["frame([])"]


def _results(thing) -> str:
    """What a function or a class's methods return, and the types of a class's fields."""
    source = inspect.getsource(thing) if inspect.isroutine(thing) or inspect.isclass(thing) else ""
    return "\n".join(re.findall(r" -> .+|^    \w+: .+", source, re.M))


def test_arguments_become_a_list():
    text = docs._markdown(
        "Does it.\n\nArgs:\n    one: the first,\n        on two lines: so.\n    **two: more.\n\nReturns:\n    It."
    )
    assert text == "Does it.\n\nArguments:\n\n- `one`: the first, on two lines: so.\n- `**two`: more.\n\nReturns: It."
