"""`python -m helpers run`: what becomes of lessons that pass, fail, hang, die or are interrupted."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import bs4
import nbformat
import psutil
import pytest
from junitparser import Error, Failure, JUnitXml

from course.run import executor, headless
from helpers.errors import LabError
from helpers.waiting import wait_until

BROKER = "from helpers import Cluster\ncluster = Cluster(brokers=1)"
GOOD = ["orders = 3", "import os; os.getcwd()", "orders * 2"]
FAILS = [
    "names = ['ann']",
    BROKER,
    "assert False, 'orders 2 and 3 are lost \\x1b[31m<really>\\x00\\nthe rest'",
    "'never'",
]
DIES = ["1", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "'never'"]
KILLS_ITS_PROCESS = [BROKER, "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nwhile True: pass"]
HANGS = [BROKER, "print('here', flush=True)\nwhile True: pass", "'never'"]
STOPS_ITS_PROCESS = ["1", "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nwhile True: pass", "'never'"]
OUT_OF_TIME = r"time limit of 15 s reached (in In \[\d\]|before its first cell)"
HANGS_WITH_MARK = [BROKER, "import pathlib, time\npathlib.Path(MARK).touch()\nwhile True: time.sleep(1)"]


def write_lesson(path: Path, cells: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    notebook.cells = [nbformat.v4.new_markdown_cell(f"# {path.stem}")]
    for cell in cells:
        tags = ["parameters"] if cell.startswith(("orders =", "names =")) else []
        notebook.cells.append(nbformat.v4.new_code_cell(cell, metadata={"tags": tags}))
    nbformat.write(notebook, path)
    return path


def start_run(folder: Path, *arguments, before=()) -> subprocess.Popen:
    """The command, with a temp folder and a working directory of its own; `before` stands before it, e.g. nohup."""
    temp = folder / "tmp"
    temp.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*before, sys.executable, "-m", "helpers", "run", "--notebooks", folder / "notebooks", *map(str, arguments)],
        cwd=folder,
        env=dict(os.environ, TMPDIR=str(temp)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may be run under nohup
    )


def left_over(folder: Path) -> list[str]:
    """What a run has left: in its temp folder, and of processes that name this folder."""
    left = [str(path) for path in folder.glob("tmp/*/*")] + [str(path) for path in folder.glob("tmp/course-run-*")]
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if str(folder) in command:
            left.append(command)
    return left


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs side by side, of lessons of all kinds: by name their folders, exit statuses, outputs, messages."""
    mixed, slow = tmp_path_factory.mktemp("mixed"), tmp_path_factory.mktemp("slow")
    write_lesson(mixed / "notebooks" / "01_good.ipynb", GOOD)
    write_lesson(mixed / "notebooks" / "02_fails.ipynb", FAILS)
    write_lesson(mixed / "notebooks" / "03_dies.ipynb", DIES)
    write_lesson(mixed / "notebooks" / "06_kills.ipynb", KILLS_ITS_PROCESS)
    write_lesson(slow / "notebooks" / "04_hangs.ipynb", HANGS)
    write_lesson(slow / "notebooks" / "05_stops.ipynb", STOPS_ITS_PROCESS)
    (mixed / "notebooks" / "07_broken.ipynb").write_text('{"cells": "none"}')
    (mixed / "executed" / "logs" / "01_good").mkdir(parents=True)
    (mixed / "executed" / "logs" / "01_good" / "old.log").write_text("of the last run")
    before = {path: path.stat().st_mtime_ns for path in [mixed / "notebooks", *mixed.glob("notebooks/*")]}
    started = [
        (mixed, start_run(mixed, "-n", 2, "-p", "orders=50", "-p", "names=[bob, eve]")),
        (slow, start_run(slow, "--out", "there", "--time-limit", 15, "-n", 2)),
    ]
    ended = {}
    for folder, process in started:
        out, messages = process.communicate(timeout=300)
        ended[folder.name[:-1]] = (folder, process.returncode, out, messages)
    assert {path: path.stat().st_mtime_ns for path in [mixed / "notebooks", *mixed.glob("notebooks/*")]} == before
    return ended


@pytest.fixture(scope="module")
def mixed(runs):
    return runs["mixed"]


@pytest.fixture(scope="module")
def slow(runs):
    return runs["slow"]


def test_table_and_exit_status(mixed):
    _, status, out, messages = mixed
    rows = [line.split(maxsplit=3) for line in out.splitlines() if line[:2].isdecimal()]
    assert status == 1, out + messages
    outcomes = [" ".join(row[:2]) for row in rows]
    assert outcomes == [
        "01_good ok",
        "02_fails failed",
        "03_dies failed",
        "06_kills failed",
        "07_broken failed",
    ]
    assert len(rows[0]) == 3 and float(rows[0][2]) > 0
    assert rows[1][3].startswith("In [4], AssertionError: orders 2 and 3 are lost")
    assert "In [2], DeadKernelError: the kernel died (exit status -9: SIGKILL, as the system sends when" in rows[2][3]
    assert "the process that ran the lesson ended by itself (exit status -9)" in rows[3][3]
    assert "Traceback" not in out + messages  # 07 is no notebook at all
    assert "5 lessons: 1 ok, 4 failed" in out
    assert "02_fails: failed" in messages  # told when it happens, where there is no terminal for a bar


def test_executed_notebooks_and_html_of_all(mixed):
    out = mixed[0] / "executed"
    outputs = {}
    for name in ("01_good", "02_fails", "03_dies"):
        cells = nbformat.read(out / f"{name}.ipynb", as_version=4).cells
        outputs[name] = [output.get("data", {}).get("text/plain") for c in cells for output in c.get("outputs", [])]
        assert name in (out / f"{name}.html").read_text()
    assert outputs["01_good"][-1] == "100"  # orders=50 is a number, and reached this lesson
    assert str(mixed[0] / "notebooks") not in outputs["01_good"][0]
    assert "'never'" not in outputs["02_fails"] + outputs["03_dies"]
    assert "The kernel died in In [2]" in (out / "03_dies.html").read_text()


def test_pages_need_nothing_from_elsewhere_and_say_what_pictures_show(tmp_path):
    lesson = write_lesson(tmp_path / "01_page.ipynb", GOOD)
    notebook = nbformat.read(lesson, as_version=4)
    picture = nbformat.v4.new_output("display_data", {"image/png": "", "text/plain": "x"})
    picture.metadata["image/png"] = {"alt": 'topic "orders"\n0: <ann>', "width": 9}
    notebook.cells[1].outputs = [picture]
    notebook.cells.append(nbformat.v4.new_markdown_cell("[next](02_other.ipynb#here)"))
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(notebook, lesson)
    executor.write_html(lesson)
    page = lesson.with_suffix(".html").read_text()
    assert not re.findall("""(?:src|import|url)\\W{1,3}https?://[^"')]*""", page)
    assert bs4.BeautifulSoup(page, "html.parser").img["alt"] == 'topic "orders"\n0: <ann>'
    assert 'href="02_other.html#here"' in page
    dark = re.search(r"<style media=.\(prefers-color-scheme: dark\).[^>]*>(.*?)</style>", page, re.S)
    assert "--jp-layout-color0:" in dark[1]


def test_junit_file_tells_what_failed_and_how(mixed, slow):
    (suite,) = JUnitXml.fromfile(str(mixed[0] / "executed" / "junit.xml"))
    good, fails, dies, kills, broken = suite
    assert (suite.tests, suite.failures, suite.errors) == (5, 4, 0)
    assert good.is_passed and good.time > 0
    (failure,) = fails.result
    assert isinstance(failure, Failure) and failure.type == "AssertionError"
    assert "orders 2 and 3 are lost" in failure.message
    assert "\x1b" not in failure.text and "assert False" in failure.text and "the rest" in failure.text
    assert dies.result[0].type == "DeadKernelError"
    assert kills.result[0].type == "ProcessDied"
    assert isinstance(broken.result[0], Failure) and broken.result[0].message
    (late,) = JUnitXml.fromfile(str(slow[0] / "there" / "junit.xml"))
    for (error,) in (case.result for case in late):
        assert isinstance(error, Error) and error.type == "timeout"
        assert re.fullmatch(OUT_OF_TIME, error.message), "on a busy machine they do not come to a cell"


def test_broker_logs_are_kept_of_a_lesson_that_failed(mixed):
    logs = mixed[0] / "executed" / "logs"
    (log,) = logs.glob("02_fails/*broker-1.log")
    assert "Kafka Server started" in log.read_text()
    assert not (logs / "01_good").exists()  # nor those of an earlier run


def test_a_lesson_out_of_time_is_stopped_and_kept(slow):
    folder, status, out, _ = slow
    assert status == 1
    assert "04_hangs  timeout" in out and "time limit of 15 s reached" in out
    cells = nbformat.read(folder / "there" / "04_hangs.ipynb", as_version=4).cells
    assert cells[-1].source == "'never'" and not cells[-1].outputs
    for name in ("04_hangs", "05_stops"):  # the second one's process could not even write its page
        page = (folder / "there" / f"{name}.html").read_text()
        assert re.search(f"(?i){OUT_OF_TIME}: <a href", page)


def test_nothing_is_left_behind(mixed, slow):
    for folder in (mixed[0], slow[0]):
        wait_until(lambda folder=folder: not left_over(folder), f"nothing of {folder} to be left", timeout=10)


def test_interrupted_or_killed(tmp_path):
    """Each signal comes to a run of two lessons with a broker each, and a third to come; three runs side by side."""
    started = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        folder = tmp_path / number.name
        folder.mkdir()
        for name in ("04_broker", "05_broker"):
            cells = [cell.replace("MARK", repr(str(folder / f"{name} is ready"))) for cell in HANGS_WITH_MARK]
            write_lesson(folder / "notebooks" / f"{name}.ipynb", cells)
        write_lesson(folder / "notebooks" / "06_later.ipynb", GOOD)
        started[number] = (folder, start_run(folder, "-n", 2))
    for number, (folder, process) in started.items():
        wait_until(lambda folder=folder: len([*folder.glob("* is ready")]) == 2, "the lessons' brokers", timeout=300)
        process.send_signal(number)
        out, _ = process.communicate(timeout=40)
        wait_until(lambda folder=folder: not left_over(folder), f"nothing to be left after {number.name}", timeout=20)
        if number == signal.SIGKILL:
            continue
        assert process.returncode == 130
        for name in ("04_broker", "05_broker"):
            assert f"{name}  interrupted" in out and "interrupted in In [2]" in out
            assert "Interrupted in In [2]" in (folder / "executed" / f"{name}.html").read_text()
        assert "06_later   not run" in out
        (suite,) = JUnitXml.fromfile(str(folder / "executed" / "junit.xml"))
        assert [case.result[0].type for case in suite] == ["interrupted", "interrupted", "not run"]
        assert suite.errors == 3, "no server shows this as passed"


@pytest.mark.parametrize("before", [(), ("nohup",)], ids=["as it is", "under nohup"])
def test_its_terminal_goes_away(tmp_path, before):
    ready, go = tmp_path / "is ready", tmp_path / "go"
    wait = f"import pathlib, time\npathlib.Path({str(ready)!r}).touch()\n"
    wait += f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.05)"
    write_lesson(tmp_path / "notebooks" / "04_waits.ipynb", [wait])
    process = start_run(tmp_path, before=before)
    wait_until(ready.exists, "the lesson's cell", timeout=60)
    process.send_signal(signal.SIGHUP)
    if before:
        go.touch()
    out, _ = process.communicate(timeout=40)
    assert (process.returncode, ("04_waits  ok" in out)) == ((0, True) if before else (130, False))


# -- choosing, parameters, the folder --


@pytest.fixture
def lessons(tmp_path):
    for name in ("01_good", "02_other", "10_last"):
        write_lesson(tmp_path / "notebooks" / f"{name}.ipynb", GOOD if name == "01_good" else ["names = 'ann'"])
    write_lesson(tmp_path / "notebooks" / "draft.ipynb", GOOD)
    return tmp_path / "notebooks"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ((), "01_good 02_other 10_last"),
        (("10", "1"), "10_last 01_good"),
        (("02_other", "02", "02_other.ipynb"), "02_other"),
        (("draft.ipynb",), "draft"),
    ],
)
def test_lessons_by_number_name_or_path(lessons, monkeypatch, names, chosen):
    monkeypatch.chdir(lessons)
    assert " ".join(path.stem for path in headless.choose(names, lessons)) == chosen


def test_lessons_that_are_not_there(lessons, tmp_path):
    with pytest.raises(LabError, match="no lesson '3': choose from 01_good, 02_other, 10_last"):
        headless.choose(("3",), lessons)
    with pytest.raises(LabError, match="no lesson 'draft'"):
        headless.choose(("draft",), lessons)
    with pytest.raises(LabError, match="There are no lessons in"):
        headless.choose((), tmp_path / "empty")
    other = write_lesson(tmp_path / "mine" / "01_good.ipynb", GOOD)
    with pytest.raises(LabError, match="Two of the notebooks are named 01_good"):
        headless.choose(("1", str(other)), lessons)


def test_parameters_are_yaml():
    pairs = ("a=12", "b=0.5", "c=true", "d=[1, x]", "e=some text", "f='12'", "g=", "h=a=b")
    expected = {"a": 12, "b": 0.5, "c": True, "d": [1, "x"], "e": "some text", "f": "12", "g": None, "h": "a=b"}
    assert headless.parse(pairs) == expected
    for wrong in ("orders", "two words=1", "=3", "x=[1"):
        with pytest.raises(LabError, match="-p"):
            headless.parse((wrong,))


def test_parameters_go_to_the_lessons_that_have_them(lessons):
    first, second, last = headless.choose((), lessons)
    given = headless.assign({"orders": 5, "names": "eve"}, [first, second, last])
    assert given == {first: {"orders": 5}, second: {"names": "eve"}, last: {"names": "eve"}}
    with pytest.raises(LabError, match="'order'.*01_good: orders"):
        headless.assign({"order": 5}, [first, second])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "04_least: parameter orders has to be at least 6, not 5"),
        ("many", "04_least: parameter orders takes a whole number, like 12, not 'many'"),
        (True, "a whole number"),
        (7.5, "a whole number"),
    ],
)
def test_parameters_that_a_lesson_cannot_take(tmp_path, value, said):
    lesson = write_lesson(tmp_path / "04_least.ipynb", ["orders = 12  # how many orders the shop takes; at least 6"])
    with pytest.raises(LabError, match=said):
        headless.assign({"orders": value}, [lesson])
    assert headless.assign({"orders": 6}, [lesson]) == {lesson: {"orders": 6}}


def test_out_folder_that_cannot_be(lessons, tmp_path, monkeypatch):
    chosen = headless.choose(("1",), lessons)
    monkeypatch.setenv("COURSE_WORK_DIR", str(tmp_path / "desk"))
    (tmp_path / "other" / ".course").mkdir(parents=True)
    for own in ("desk", "other"):
        with pytest.raises(LabError, match="is for a learner's own copies of the lessons: choose another folder"):
            headless.prepare_out(tmp_path / own, chosen)
    with pytest.raises(LabError, match="holds the lessons themselves"):
        headless.prepare_out(lessons / ".." / "notebooks", chosen)
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match="cannot be written"):
        headless.prepare_out(tmp_path / "file" / "out", chosen)


@pytest.mark.parametrize("made", [GOOD, None], ids=["a learner's copy", "no notebook"])
def test_out_folder_with_files_of_a_learners(lessons, tmp_path, made):
    work, chosen = tmp_path / "work", headless.choose((), lessons)
    if made:
        write_lesson(work / "02_other.ipynb", made)
    else:
        work.mkdir()
        (work / "02_other.ipynb").write_text("[1]")
    (work / "01_good.html").touch()
    before = (work / "02_other.ipynb").read_bytes()
    with pytest.raises(LabError, match=r"02_other.ipynb was not made by a run, and would be lost: .* --out"):
        headless.prepare_out(work, chosen)
    assert (work / "02_other.ipynb").read_bytes() == before and (work / "01_good.html").exists()
    assert lessons.joinpath("01_good.ipynb").exists()
