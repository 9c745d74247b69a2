"""The learner's progress: kept for a person and for nobody else, whatever happens to the file or to the kernel."""

import json
import multiprocessing
import os
import signal

import pytest
from click.testing import CliRunner
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from course import cli
from exercises.frame import progress
from helpers.paths import COURSE
from helpers.waiting import wait_until
from tests.exercises.test_questions import question
from tests.owners import run_cell
from tools.lessons import LESSONS

RIGHT = {"lesson": "lesson_01", "question": "q1", "state": "right"}
WRONG = RIGHT | {"state": "not right"}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_WORK_DIR", str(tmp_path / "work"))
    return tmp_path / "work" / progress.FILE


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(progress, "somebody_is_watching", lambda: True)
    monkeypatch.setattr(progress, "failure", "")


def shown(*arguments):
    result = CliRunner().invoke(cli.commands, ["progress", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


# -- what is kept, and for whom --


def test_what_a_person_checks_is_kept(path, watched):
    asked = question()
    for source in (asked.starter, asked.changed("2 *", "3 *"), asked.answer, asked.changed("2 *", "4 *")):
        asked.try_answer(source)
    assert progress.read(path) == ({("test_questions", "q1"): progress.Tally(tries=3, right=True)}, 0)
    assert oct(path.stat().st_mode & 0o777) == "0o644"


def test_what_a_program_checks_is_not(path):
    question().try_answer(question().answer)
    assert not path.exists()


CHECK = """
import sys; sys.path.insert(0, {!r})
from exercises.lesson_01 import q1
from tests.exercises.test_questions import question
asked = question()
def double(number):
    return 2 * number
asked.check()
"""


def test_in_a_kernel_the_front_end_makes_the_difference(path):
    """As JupyterLab asks, naming the cell, and as executors ask."""
    manager, client = start_new_kernel(cwd=str(path.parents[1]))

    def run(code, **metadata):
        return "".join(output["data"].get("text/plain", "") for output in run_cell(client, code, **metadata))

    try:
        code = CHECK.format(str(COURSE))
        assert "q1: right" in run(code) and not path.exists()
        assert run("asked.progress()").startswith("Lesson test_questions: 0 of ")
        assert "q1: right" in run(code, cellId="abc")
        assert progress.read(path)[0] == {("test_questions", "q1"): progress.Tally(1, True)}
        progress.append(path, RIGHT)
        assert run("q1.progress()", cellId="abc").startswith("Lesson 01: 1 of 4 questions right (q1)\n")
        assert run("q1.progress()").startswith("Lesson 01: 0 of 4 questions right\n")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_headless_run_keeps_nothing_and_says_the_same_whatever_was_kept(path):
    cells = CHECK.format(str(COURSE)), "q1.progress()"
    told = []
    for _ in range(2):
        notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
        NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
        told.append([cell.outputs for cell in notebook.cells])
        assert path.exists() == (len(told) == 2), "the run has kept something"
        progress.append(path, RIGHT)
    assert told[0] == told[1]
    assert "0 of 4 questions right" in told[0][1][0]["data"]["text/plain"]
    assert len(path.read_text().splitlines()) == 2


# -- whatever happens to the file --


def test_half_lines_and_rubbish_count_for_nothing_and_harm_no_other_line(path):
    progress.append(path, WRONG)
    with open(path, "ab") as file:
        file.write(b'\xff\x00\n\n[1, 2]\n"text"\n{"lesson": "lesson_01"}\n{"lesson": "lesson_01", "quest')  # killed
    progress.append(path, RIGHT)
    tallies, damaged = progress.read(path)
    assert tallies == {("lesson_01", "q1"): progress.Tally(2, True)} and damaged == 5
    assert "5 lines of" in shown("--dir", path.parent)


def test_an_emptied_file_begins_anew(path):
    progress.append(path, RIGHT)
    os.truncate(path, 0)
    progress.append(path, WRONG)
    assert progress.read(path) == ({("lesson_01", "q1"): progress.Tally(1, False)}, 0)


def _append_many(path, number, count):
    for _ in range(count):
        progress.append(path, WRONG | {"question": f"q{number}"})


def test_two_kernels_at_once_lose_nothing(path):
    context = multiprocessing.get_context("spawn")
    kernels = [context.Process(target=_append_many, args=(path, number, 500)) for number in (1, 2, 3)]
    for kernel in kernels:
        kernel.start()
    for kernel in kernels:
        kernel.join(60)
        assert kernel.exitcode == 0
    tallies, damaged = progress.read(path)
    assert damaged == 0 and {place: tally.tries for place, tally in tallies.items()} == {
        ("lesson_01", f"q{number}"): 500 for number in (1, 2, 3)
    }


@pytest.mark.parametrize("times", range(3))
def test_a_killed_kernel_costs_nothing_that_was_kept(path, times):
    kernel = multiprocessing.get_context("spawn").Process(target=_append_many, args=(path, 1, 10**9))
    kernel.start()
    wait_until(lambda: path.exists() and path.stat().st_size > 5_000, "some lines", timeout=60)
    before, _ = progress.read(path)
    os.kill(kernel.pid, signal.SIGKILL)
    kernel.join(30)
    progress.append(path, RIGHT | {"question": "q2"})
    after, damaged = progress.read(path)
    assert damaged <= 1 and after["lesson_01", "q1"].tries >= before["lesson_01", "q1"].tries
    assert after["lesson_01", "q2"].right


def test_where_it_cannot_be_kept_the_check_goes_on_and_the_learner_hears_of_it(path, watched):
    path.mkdir(parents=True)  # a folder in its place; as root, which CI may be, rights would keep nobody out
    outcome = question().try_answer(question().answer)
    assert outcome.state == "right"
    assert "Not kept: " in str(question().progress()) and "Is a directory" in str(question().progress())
    result = CliRunner().invoke(cli.commands, ["progress"])
    assert result.exit_code == 1 and "could not be read (Is a directory)" in result.output
    path.rmdir()
    question().try_answer(question().answer)
    assert "Not kept" not in str(question().progress())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a system without /dev/full")
def test_a_full_disk_is_told(tmp_path, monkeypatch, watched):
    monkeypatch.setattr(progress, "FILE", "/dev/full")
    assert question().try_answer(question().answer).state == "right"
    assert "No space left" in progress.failure


# -- what is shown --


def test_the_sentence_of_a_lesson(path, watched):
    from exercises.lesson_01 import q1

    assert str(q1.progress()).splitlines()[0] == "Lesson 01: 0 of 4 questions right"
    for event in (WRONG, RIGHT, WRONG, WRONG | {"question": "q3"}, RIGHT | {"lesson": "lesson_03"}):
        progress.append(path, event)
    assert str(q1.progress()) == (
        "Lesson 01: 1 of 4 questions right (q1), q3 tried\n  All lessons: `python -m helpers progress`"
    )


def test_the_table_of_all_lessons(path):
    assert "Nothing is kept in" in shown("--dir", path.parent)
    for event in (WRONG, RIGHT, WRONG | {"question": "q3"}, WRONG | {"question": "q3"}, RIGHT | {"question": "gone"}):
        progress.append(path, event)
    header, *rows, total = shown().splitlines()  # the folder of COURSE_WORK_DIR
    assert header.split() == ["Lesson", "Asked", "Tried", "Right"]
    assert [row.split()[0] for row in rows] == [lesson.stem for lesson in LESSONS]
    assert rows[0].split(maxsplit=4)[1:] == ["4", "2", "1", "q1 right  q2 -  q3 tried 2x  q4 -"]
    assert all(row.split()[2:4] == ["0", "0"] for row in rows[1:])
    assert total.split()[:2] == ["all", "lessons"] and total.split()[3:] == ["2", "1"]


def test_its_lines_are_plain_json(path):
    progress.append(path, RIGHT)
    assert json.loads(path.read_text()) == RIGHT
