"""What CONTRIBUTING.md promises to who comes next: commands that exist, a template that fits, a question's skeleton."""

import importlib
import re

import nbformat
import pytest
from click.testing import CliRunner

from helpers.paths import COURSE
from tests.quick.test_lessons import SECTIONS
from tools import execute, new_question
from tools.lessons import IMPORTS, LESSONS, read, tagged

GUIDE = (COURSE / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("module", sorted(set(re.findall(r"`(tools\.\w+|tests\.nemesis)\b", GUIDE))))
def test_names_commands_that_are_there(module):
    assert importlib.util.find_spec(module)


def test_names_every_command_of_maintainers():
    commands = {p.stem for p in (COURSE / "tools").glob("*.py") if "@click.command" in p.read_text()}
    assert commands <= set(re.findall(r"`tools\.(\w+)", GUIDE))


def test_the_template_of_a_lesson_has_the_skeleton():
    template = read(COURSE / "tools" / "templates" / "lesson.ipynb")
    headings = re.findall(r"^## (.+)$", "\n".join(c.source for c in template.cells if c.cell_type == "markdown"), re.M)
    assert headings == SECTIONS
    assert IMPORTS in [cell.source for cell in template.cells]
    assert len(tagged(template, "parameters")) == 1


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A copy of lesson 02, its questions and their tests."""
    for folder in ("notebooks", "exercises", "tests/exercises"):
        (tmp_path / folder).mkdir(parents=True)
    for name in (f"notebooks/{LESSONS[1].name}", "exercises/lesson_02.py", "tests/exercises/test_lesson_02.py"):
        (tmp_path / name).write_bytes((COURSE / name).read_bytes())
    (tmp_path / "exercises" / "frame").symlink_to(COURSE / "exercises" / "frame")
    (tmp_path / "exercises" / "__init__.py").touch()
    (tmp_path / "helpers").symlink_to(COURSE / "helpers")
    monkeypatch.setattr(new_question, "COURSE", tmp_path)
    monkeypatch.setattr(new_question, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(new_question, "lessons", lambda: [tmp_path / "notebooks" / LESSONS[1].name])
    return tmp_path


def test_a_new_question_gets_a_skeleton_a_test_and_three_cells(course):
    said = CliRunner().invoke(new_question.main, ["02", "q4"], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    path = course / "notebooks" / LESSONS[1].name
    (answer,) = tagged(read(path), "question-q4")
    assert answer.source.startswith("def answer(connection, topic):")
    assert [cell.source for cell in tagged(read(path), "check-q4")] == ["q4.check()"]
    assert any("import q1, q2, q3, q4" in cell.source for cell in read(path).cells)
    assert "hold(q4, {}, cluster, SETUP)" in (course / "tests" / "exercises" / "test_lesson_02.py").read_text()


def test_the_second_time_the_starter_goes_into_its_cell(course):
    CliRunner().invoke(new_question.main, ["02", "q4"], catch_exceptions=False)
    source = course / "exercises" / "lesson_02.py"
    source.write_text(source.read_text().replace('"""What the learner is to write."""', '"""Count the orders."""'))
    CliRunner().invoke(new_question.main, ["02", "q4"], catch_exceptions=False)
    (answer,) = tagged(read(course / "notebooks" / LESSONS[1].name), "question-q4")
    assert "Count the orders." in answer.source


@pytest.mark.parametrize(("lesson", "name", "why"), [("22", "q1", "no lesson 22"), ("02", "q9", "the next one is q4")])
def test_a_question_that_cannot_be_is_refused(course, lesson, name, why):
    said = CliRunner().invoke(new_question.main, [lesson, name])
    assert said.exit_code == 2 and why in said.output


def test_a_stored_picture_stays_where_the_facts_are_the_same():
    cell = next(c for c in read(LESSONS[0]).cells if any(execute.drawn_from(o) for o in c.get("outputs", [])))
    before = [nbformat.from_dict(output) for output in cell.outputs]
    now = [nbformat.from_dict(output) for output in cell.outputs]
    for output in now:
        if execute.drawn_from(output):
            output.metadata["image/png"]["width"] = 1
    assert execute.keep_pictures(before, now) == before
    for output in now:
        if execute.drawn_from(output):
            output.data["text/plain"] += "!"
    assert execute.keep_pictures(before, now) == now
