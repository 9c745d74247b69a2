"""The house: who knows what, in one place each."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest

from exercises.frame.question import Question
from helpers import internals, settings
from helpers.paths import COURSE
from tests.quick.test_lessons import questions
from tools.lessons import LESSONS

ROOMS = ["helpers", "exercises", "classroom", "course", "tools", "benchmarks"]
SOURCES = {
    path.relative_to(COURSE).as_posix(): path.read_text()
    for room in ROOMS
    for path in sorted((COURSE / room).rglob("*.py"))
}


def test_questions_bring_neither_class_nor_commands():
    code = (
        "import sys, exercises.lesson_01; print([m for m in sys.modules if m.split('.')[0] in ('classroom', 'course')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=COURSE)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_each_question_is_held_by_a_test(path):
    """By syntax: a call `hold(q1, …)` in the test file of the lesson, with wrong answers."""
    tree = ast.parse((COURSE / "tests" / "exercises" / f"test_lesson_{path.name[:2]}.py").read_text())
    held = {
        call.args[0].id
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "hold" and isinstance(call.args[0], ast.Name)
    }
    asked = {question.name for question in questions(path)}
    assert asked and asked <= held


def test_a_question_without_a_test_would_be_found():
    assert not {"q9"} <= {"q1"} and issubclass(Question, object)


@pytest.mark.parametrize("source", SOURCES)
def test_one_place_reads_the_courses_variables(source):
    if source == "helpers/settings.py":
        return
    read = re.findall(r"(?:environ(?:\.get)?|getenv)\W{1,2}f?[\"'](COURSE_\w+)", SOURCES[source])
    assert not read, "ask helpers.settings"


def test_variables_that_are_named_exist():
    known = {name for names, _ in settings.VARIABLES for name in names}
    named = {name for text in SOURCES.values() for name in re.findall(r"\bCOURSE_[A-Z]+(?:_[A-Z]+)+\b", text)}
    assert named <= known | {"COURSE_BOOTSTRAP"}, named - known


def test_one_file_reaches_below_kafka_pythons_api():
    below = re.compile(
        r"\b(?!self\b)\w+\._(?:manager|net|sender|client|coordinator|subscription"
        r"|transaction_manager|find_coordinator_ids|fetcher)\b|^from kafka\.(?:protocol|record|consumer\.|coordinator)",
        re.M,
    )
    # The diagnosis of an external cluster speaks the protocol itself, before there is a client.
    allowed = {"helpers/internals.py", "helpers/kafka/diagnosis.py"}
    assert not [name for name, text in SOURCES.items() if below.search(text) and name not in allowed]


def test_the_internals_were_looked_at_with_the_version_that_is_pinned():
    assert f"kafka-python=={internals.CHECKED_WITH}\n" in (COURSE / "requirements.txt").read_text()


def test_one_place_knows_where_the_course_lies():
    found = [name for name, text in SOURCES.items() if "__file__" in text and ".parents[" in text]
    assert set(found) <= {"helpers/paths.py", "benchmarks/classroom.py", "benchmarks/startup.py"}


def test_what_users_install_has_nothing_that_only_tests_need():
    project = tomllib.loads((COURSE / "pyproject.toml").read_text())["project"]
    dev = {re.match(r"[\w-]+", one)[0].lower() for one in project["optional-dependencies"]["dev"]}
    users = set(re.findall(r"^([\w.-]+)==", (COURSE / "requirements.txt").read_text(), re.M))
    assert dev and not dev & users


def test_pins_are_made_from_the_ranges():
    done = subprocess.run([sys.executable, "-m", "tools.lock", "--help"], capture_output=True, text=True, cwd=COURSE)
    assert "--check" in done.stdout


def test_every_checkout_has_the_same_line_ends(tmp_path):
    for name, text in {"a.txt": "one\r\n", ".gitattributes": (COURSE / ".gitattributes").read_text()}.items():
        (tmp_path / name).write_text(text, newline="")
    git = ["git", "-c", "core.autocrlf=true"]  # as Windows' git has it
    for words in (["init", "-q"], ["add", "."], ["checkout-index", "--force", "--prefix=out/", "a.txt"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out" / "a.txt").read_bytes() == b"one\n"
