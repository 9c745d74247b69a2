"""`python -m helpers run`: lessons executed without a screen, judged, and kept as notebooks, HTML and JUnit XML.

Each lesson is executed in a process of its own (`course.run.executor`), so that it can be stopped, several run at
once, and one that takes its process down fails alone. Everything is written in a temp folder first, so that the folder
of the lessons may be read-only.
"""

import ast
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil
import yaml
from tqdm import tqdm

from course import leftovers
from course.run import executor
from helpers import settings
from helpers.errors import LabError, refused
from helpers.kafka import cache
from helpers.processes.run_folder import tail

GRACE = 15  # seconds that a stopped lesson has for saving its notebook
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COLOURS = {"ok": "green", "failed": "red", "timeout": "red", "interrupted": "yellow", "not run": "yellow"}


@dataclass
class Result:
    """What became of a lesson: `outcome` is ok, failed, timeout, interrupted or not run."""

    lesson: Path
    outcome: str = "not run"
    seconds: float = 0
    error: str = ""  # in one line
    kind: str = ""  # the exception's type
    details: str = ""  # its traceback
    cell: int = 0  # the code cell that it came to, as In [n] counts them
    index: int = 0  # the same, among all cells
    left: list[str] = field(default_factory=list)  # what it made elsewhere that could not be deleted


# -- what to run ---------------------------------------------------------------------------------------------


def choose(names: tuple[str, ...], folder: Path) -> list[Path]:
    """The lessons that are meant by numbers, names or paths; all lessons of the folder without any.

    Raises:
        LabError: there is no such lesson, or two of one name.
    """
    there = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not there and not all(name.endswith(".ipynb") for name in names or ["all"]):
        raise LabError(f"There are no lessons in {folder}.")
    chosen: dict[str, Path] = {}
    for path in [_find(name, there) for name in names] if names else there:
        path = path.resolve()
        if chosen.setdefault(path.stem, path) != path:
            raise LabError(
                f"Two of the notebooks are named {path.stem}: run them one after the other, with an --out each."
            )
    return list(chosen.values())


def _find(name: str, there: list[Path]) -> Path:
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    for path in there:
        if name in (path.stem, path.name) or (name.isdecimal() and int(name) == int(path.stem[:2])):
            return path
    raise LabError(f"There is no lesson {name!r}: choose from {', '.join(path.stem for path in there)}.")


def parse(pairs: tuple[str, ...]) -> dict[str, object]:
    """Parameters from `name=value` with values in YAML: 12 is a number, true a truth value, [1, 2] a list.

    Raises:
        LabError: not of this form.
    """
    parameters = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise LabError(f"-p takes NAME=VALUE, e.g. -p orders=100, not {pair!r}.")
        try:
            parameters[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise LabError(f"-p {pair}: the value is no YAML; put it in quotes, e.g. -p '{name}=\"...\"'.") from error
    return parameters


def assign(parameters: dict[str, object], lessons: list[Path]) -> dict[Path, dict]:
    """Each lesson with those of the parameters that it has.

    Raises:
        LabError: a parameter that none of the lessons has, which would have no effect; or a value of another type than
            the lesson's own, or below what the lesson says is the least.
    """
    if not parameters:
        return {lesson: {} for lesson in lessons}
    known = {lesson: _parameters_of(lesson) for lesson in lessons}
    if unknown := sorted(set(parameters).difference(*known.values())):
        has = "; ".join(f"{lesson.stem}: {', '.join(sorted(names)) or 'none'}" for lesson, names in known.items())
        raise LabError(f"No lesson that was chosen has a parameter {unknown[0]!r} ({has}).")
    for lesson, its in known.items():
        for name in its.keys() & parameters:
            _check(lesson, its[name], parameters[name])
    return {lesson: {n: v for n, v in parameters.items() if n in known[lesson]} for lesson in lessons}


def _parameters_of(lesson: Path) -> dict[str, dict]:
    import papermill

    try:
        return papermill.inspect_notebook(lesson)
    except Exception:  # a notebook that cannot be read: its execution will say so, with its name
        return {}


def _check(lesson: Path, parameter: dict, value: object) -> None:
    name, own = parameter["name"], ast.literal_eval(parameter["default"])
    if type(value) is not type(own) and (type(own), type(value)) != (float, int):
        kind = {int: "a whole number", float: "a number", str: "text"}.get(type(own), f"a {type(own).__name__}")
        raise LabError(f"{lesson.stem}: parameter {name} takes {kind}, like {own!r}, not {value!r}.")
    least = re.search(r"at least ([\d_]+)", parameter["help"])
    if least and value < int(least[1]):
        raise LabError(f"{lesson.stem}: parameter {name} has to be at least {int(least[1])}, not {value}.")


def _code_cells(lesson: Path) -> int:
    import nbformat

    try:
        cells = nbformat.read(lesson, as_version=4).cells
    except Exception:  # as above
        return 1
    return sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells)


def prepare_out(out: Path, lessons: list[Path]) -> None:
    """Make the folder for the results, without those of an earlier run of these lessons.

    Raises:
        LabError: it cannot be written, or holds the lessons themselves or somebody's copies, which would be lost.
    """
    if out.resolve() in {lesson.parent for lesson in lessons}:
        raise LabError(f"{out} holds the lessons themselves: choose another folder with --out.")
    if out.resolve() == settings.work_folder().resolve() or (out / ".course").exists():
        raise LabError(f"{out} is for a learner's own copies of the lessons: choose another folder with --out.")
    for path in [out / lesson.name for lesson in lessons]:
        if path.is_file() and not _comes_from_a_run(path):
            raise LabError(f"{path} was not made by a run, and would be lost: choose another folder with --out.")
    with refused(f"The folder {out} cannot be written", "choose another one with --out"):
        out.mkdir(parents=True, exist_ok=True)
        for lesson in lessons:
            for suffix in (".ipynb", ".html"):
                (out / (lesson.stem + suffix)).unlink(missing_ok=True)
            shutil.rmtree(out / "logs" / lesson.stem, ignore_errors=True)
        (out / "junit.xml").unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass


def _comes_from_a_run(path: Path) -> bool:
    """Has papermill executed this notebook? A learner's copy, or what is no notebook, it has not."""
    try:
        return "papermill" in json.loads(path.read_bytes())["metadata"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


# -- the run -------------------------------------------------------------------------------------------------


def run(lessons: list[Path], out: Path, parameters: dict[Path, dict], time_limit: float, processes: int = 1) -> int:
    """Execute lessons, show how it goes, write the results to `out`.

    Args:
        lessons: paths of notebooks.
        out: folder of the results (see `prepare_out`).
        parameters: for each lesson the values of its parameters.
        time_limit: seconds that each lesson may take.
        processes: how many run at once.

    Returns:
        The exit status: 0, 1 when a lesson did not end well, 130 when interrupted by SIGINT, SIGTERM or SIGHUP.

    Raises:
        LabError: the cache could not be filled, so that no lesson was run; or the results could not be written.
    """
    from helpers.kafka.download import prepare
    from helpers.kafka.embedded import train

    prepare(train)  # before the clocks of the lessons run
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="course-run-", ignore_cleanup_errors=True) as temp:
            a_run = _Run(lessons, out, Path(temp), parameters, time_limit, processes)
            asyncio.run(a_run.all())
        results = list(a_run.results.values())
        write_junit(results, out / "junit.xml")
    except OSError as error:
        raise LabError(f"The results could not be kept ({error}): free some space there, and run again.") from error
    click.echo("\n" + table(results))
    click.echo("\n" + _in_short(results, time.monotonic() - began, out))
    if left := [name for result in results for name in result.left]:
        click.echo("Left behind, see `python -m helpers clean --help`: " + ", ".join(left))
    if a_run.interrupted:
        return 130
    return 0 if all(result.outcome == "ok" for result in results) else 1


class _Run:
    """The lessons of one run, and what came of them."""

    def __init__(self, lessons, out: Path, temp: Path, parameters, time_limit: float, processes: int):
        self.results = {lesson: Result(lesson) for lesson in lessons}
        self.interrupted = False
        self._out, self._temp, self._parameters, self._time_limit = out, temp, parameters, time_limit
        self._turn = asyncio.Semaphore(processes)
        self._stop = asyncio.Event()
        self._progress = _Progress(lessons)

    async def all(self) -> None:
        """Run every lesson; a signal stops those that run, and begins no other."""
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup it goes on
                asyncio.get_running_loop().add_signal_handler(number, self._interrupt)
        with contextlib.closing(self._progress):
            await asyncio.gather(*map(self._in_turn, self.results.values()))

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop.set()

    async def _in_turn(self, result: Result) -> None:
        async with self._turn:
            if not self._stop.is_set():
                await self._one(result)
                self._progress.ended(result)

    async def _one(self, result: Result) -> None:
        folder = self._temp / result.lesson.stem
        logs = folder / "logs"
        logs.mkdir(parents=True)
        job = {"lesson": str(result.lesson), "folder": str(folder), "parameters": self._parameters[result.lesson]}
        began = time.monotonic()
        with open(folder / "run.log", "wb") as messages:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", executor.__file__, json.dumps(job, default=str)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=messages,
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,  # a Ctrl-C is for us, who let the lesson end in order
                limit=2**26,  # bytes in a line: a traceback may be long
            )
        listening = asyncio.ensure_future(self._listen(child, result))
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({listening, stopping}, timeout=self._time_limit, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            result.outcome = "interrupted" if stopping.done() else "timeout"
            result.error = "interrupted" if stopping.done() else f"time limit of {self._time_limit:g} s reached"
            with contextlib.suppress(OSError):
                child.stdin.write(result.error.encode() + b"\n")
                child.stdin.close()
            await asyncio.wait({listening}, timeout=GRACE)
        if not listening.done():
            _kill_with_kernel(child.pid)
            await listening
        if result.outcome in ("interrupted", "timeout"):
            result.error += f" in In [{result.cell}]" if result.cell else " before its first cell"
        stopping.cancel()
        result.seconds = time.monotonic() - began
        if result.outcome == "not run":  # it has not told how it ended
            last = tail(folder / "run.log", 1).strip()
            result.outcome, result.kind = "failed", "ProcessDied"
            result.error = f"the process that ran the lesson ended by itself (exit status {child.returncode}): {last}"
        await asyncio.to_thread(executor.wait_for_watchdogs, logs)
        result.left = await asyncio.to_thread(leftovers.of_run, logs)
        if result.outcome != "ok":
            await asyncio.to_thread(_finish, folder / "executed" / result.lesson.name, result)
        self._keep(folder, result)

    async def _listen(self, child, result: Result) -> None:
        """Take in what a lesson's process tells, until it has ended."""
        async for line in child.stdout:
            message = json.loads(line)
            if "cell" in message:
                result.cell, result.index = message["cell"], message["index"]
                self._progress.reached(result.lesson, result.cell)
            elif result.outcome == "not run":  # else it is the death of the kernel, which we asked for
                for name, value in message.items():
                    setattr(result, name, value)
        await child.wait()

    def _keep(self, folder: Path, result: Result) -> None:
        """Move what is to be kept from the temp folder."""
        for path in folder.glob(f"executed/{result.lesson.stem}.*"):
            shutil.move(path, self._out / path.name)
        kept = [*folder.glob("logs/*"), folder / "run.log"] if result.outcome in ("failed", "timeout") else []
        for path in kept:
            if path.stat().st_size:
                target = self._out / "logs" / result.lesson.stem
                target.mkdir(parents=True, exist_ok=True)
                shutil.move(path, target / path.name)
        shutil.rmtree(folder, ignore_errors=True)


def _finish(executed: Path, result: Result) -> None:
    """Write the page of a lesson whose process was killed before it could."""
    if not executed.with_suffix(".html").exists():
        with contextlib.suppress(Exception):  # it is no notebook at all, which was said already
            executed.parent.mkdir(exist_ok=True)
            if not executed.exists():
                shutil.copyfile(result.lesson, executed)
            executor.mark(executed, result.index, result.error)
            executor.write_html(executed)


def _environment(folder: Path) -> dict[str, str]:
    """The environment of a lesson: nothing of the user's own IPython or Jupyter, and the wish to have the logs kept."""
    return dict(
        os.environ,
        COURSE_KEEP_LOGS=str(folder / "logs"),  # see helpers.processes.supervisor
        IPYTHONDIR=str(folder / "ipython"),
        JUPYTER_RUNTIME_DIR=str(folder / "runtime"),
        JUPYTER_PREFER_ENV_PATH="1",
        PYDEVD_DISABLE_FILE_VALIDATION="1",  # a warning of the debugger's that nobody asked for
        **cache.with_home(folder),
    )


def _kill_with_kernel(pid: int) -> None:
    """SIGKILL a lesson's process and its kernel; the watchdogs see that, and clean up."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [process, *process.children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


class _Progress:
    """One bar over the cells of all lessons; where stderr is no terminal, a line for each lesson that has ended."""

    def __init__(self, lessons: list[Path]):
        self._cells = {lesson: _code_cells(lesson) for lesson in lessons}
        self._reached: dict[Path, int] = {}  # the lessons that run
        self._done = 0
        form = "{desc} |{bar:24}| {n_fmt} of {total_fmt} cells, {elapsed}{postfix}"
        total = sum(self._cells.values())
        self._bar = tqdm(total=total, bar_format=form, leave=False, disable=None, dynamic_ncols=True, file=sys.stderr)
        self._show()

    def reached(self, lesson: Path, cell: int) -> None:
        """A lesson has come to its n-th code cell."""
        cell = min(cell, self._cells[lesson])  # papermill adds a cell for parameters
        self._bar.update(cell - 1 - self._reached.get(lesson, 0))
        self._reached[lesson] = cell - 1
        self._show()

    def ended(self, result: Result) -> None:
        """A lesson has ended, or was stopped."""
        self._bar.update(self._cells[result.lesson] - self._reached.pop(result.lesson, 0))
        self._done += 1
        self._show()
        if self._bar.disable:
            line = f"{result.lesson.stem}: {result.outcome}, {result.seconds:.1f} s"
            click.echo(line + (f" ({_one_line(result.error)})" if result.error else ""), err=True)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _show(self) -> None:
        self._bar.set_description_str(f"{self._done} of {len(self._cells)} lessons", refresh=False)
        self._bar.set_postfix_str(", ".join(lesson.stem for lesson in self._reached))


# -- what is said about it -----------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    """The lessons with outcome, seconds and first error, a line each; on a terminal no line is wrapped."""
    name = max(len("Lesson"), *(len(result.lesson.stem) for result in results))
    lines = [f"{'Lesson':<{name}}  {'Outcome':<11}  {'Seconds':>7}  First error".rstrip()]
    room = shutil.get_terminal_size().columns - name - 24 if sys.stdout.isatty() else 300
    for result in results:
        outcome = click.style(f"{result.outcome:<11}", fg=COLOURS[result.outcome])
        seconds = f"{result.seconds:>7.1f}" if result.seconds else " " * 7
        lines.append(
            f"{result.lesson.stem:<{name}}  {outcome}  {seconds}  {_one_line(result.error, max(room, 20))}".rstrip()
        )
    return "\n".join(lines)


def _in_short(results: list[Result], seconds: float, out: Path) -> str:
    counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in COLOURS}
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    lessons = "1 lesson" if len(results) == 1 else f"{len(results)} lessons"
    where = f"Notebooks, HTML and junit.xml are in {out}"
    logs = [result for result in results if (out / "logs" / result.lesson.stem).exists()]
    return f"{lessons}: {said}; {seconds:.0f} s in all.\n{where}" + (f", logs in {out / 'logs'}." if logs else ".")


def _one_line(text: str, length: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def write_junit(results: list[Result], path: Path) -> None:
    """Write the results as JUnit XML: a failure is a <failure>, what was stopped or not run an <error> of that type."""
    from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

    suite = TestSuite("Kafka Design Patterns")
    for result in results:
        case = TestCase(result.lesson.stem, "lessons", round(result.seconds, 2))
        if result.outcome == "failed":
            case.result = Failure(_printable(_one_line(result.error)), result.kind)
            case.result[0].text = _printable(result.details or result.error)
        elif result.outcome != "ok":  # an interrupted run is no green one
            case.result = Error(_printable(_one_line(result.error or result.outcome)), result.outcome)
        suite.add_testcase(case)
    xml = JUnitXml()
    xml.add_testsuite(suite)
    xml.write(str(path), pretty=True)


def _printable(text: str) -> str:
    """Text without the colours of a terminal, and without characters that XML cannot hold."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    return re.sub(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
