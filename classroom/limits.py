"""What Kafka has no quota for: how many partitions and groups a learner has, and how much disk.

The brokers' own guard (`guard/Guard.java`) refuses what would make a state grow without a limit, before it is there.
One who goes on asking for that loses the log-in until the teacher resets their corner.

The watchdog looks at the brokers' own folders, each second, and asks for groups and topics. A learner above a limit can
make no topics, write no records and commit no offsets until they are below it again: they delete some, or the teacher
resets their corner. All within their limits may still take more than the disk has: when it runs low, the largest is
held, and another one whenever it gets lower.
"""

import contextlib
import os
import re
import shutil
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from classroom import learners
from helpers import internals

SECONDS = 1.0  # between two looks
TOPICS = 3.0  # between two questions for all topics, of which the answer is long
PARTITIONS = 500  # a learner may have; all lessons together make some 300, if none is ever stopped
GROUPS = 300  # a learner may have; all lessons together make some 80
FILES = 10_000  # a learner may have: a topic whose segments are tiny has many
LOW = 1_000_000_000  # bytes of free disk below which the teacher is told, and the largest is held
LOWER = 100_000_000  # bytes less, after which the next one is
REFUSALS = 100  # requests within a minute that the guard may refuse a learner
LARGE_REFUSALS = 2  # of requests that are far too large, of which each takes the broker a second
LARGEST_LOG = 50_000_000  # bytes of a broker's own log, which is then begun anew

_FOLDER = re.compile(r"(?P<topic>.+)-(?P<partition>\d+)(?P<deleted>\.[0-9a-f]{32}-delete)?")


@dataclass
class Usage:
    """What one learner takes."""

    bytes: int = 0
    files: int = 0
    partitions: set[str] = field(default_factory=set)
    groups: int = 0

    def excess(self, megabytes: int) -> str:
        """Which limit is passed, in a few words; empty if none."""
        if len(self.partitions) > PARTITIONS:
            return f"{len(self.partitions)} partitions, {PARTITIONS} are allowed"
        if self.bytes > megabytes * 1_000_000:
            return f"{self.bytes / 1e6:.0f} MB on disk, {megabytes} are allowed"
        if self.files > FILES:
            return f"{self.files} files, {FILES} are allowed"
        if self.groups > GROUPS:
            return f"{self.groups} groups, {GROUPS} are allowed"
        return ""


def measure(homes: list[Path]) -> dict[str, Usage]:
    """What each learner takes, by name. What is deleted counts until it is gone from disk, but not as a partition."""
    found: dict[str, Usage] = defaultdict(Usage)
    for home in homes:
        for name, size, files in _folders(home):
            match = _FOLDER.fullmatch(name)
            if not match or "." not in match["topic"]:
                continue  # Kafka's own
            usage = found[match["topic"].partition(".")[0]]
            usage.bytes += size
            usage.files += files
            if not match["deleted"]:
                usage.partitions.add(name)
    return found


def count_groups(admin: KafkaAdminClient, usage: dict[str, Usage]) -> None:
    """Count the groups in. Their offsets are in the brokers' memory and in a topic of Kafka's own; with each goes the
    group's name, so that one longer than a topic's may be counts as several.

    Raises:
        KafkaError: the brokers do not say.
    """
    for group in admin.list_groups():
        owner, dot, _ = group["group_id"].partition(".")
        if dot:
            usage[owner].groups += 1 + len(group["group_id"]) // 250


def topics(admin: KafkaAdminClient) -> dict[str, int]:
    """How many partitions each topic has, as the cluster's metadata say: folders come and go later.

    Raises:
        KafkaError: the brokers do not say.
    """
    return {topic.name: len(topic.partitions) for topic in internals.topic_metadata(admin, None).topics}


def count_partitions(found: dict[str, int], usage: dict[str, Usage]) -> None:
    """Have the partitions be those of the metadata, and not those on disk."""
    for taken in usage.values():
        taken.partitions.clear()
    for topic, count in found.items():
        owner, dot, _ = topic.partition(".")
        if dot:
            usage[owner].partitions.update(f"{topic}-{number}" for number in range(count))


def _folders(home: Path):
    """Name, bytes on disk and number of files of each folder; what vanishes meanwhile is left out."""
    with contextlib.suppress(OSError), os.scandir(home) as folders:
        for folder in folders:
            size = files = 0
            with contextlib.suppress(OSError), os.scandir(folder.path) as content:
                for file in content:
                    with contextlib.suppress(OSError):
                        size += file.stat().st_blocks * 512
                        files += 1
                yield folder.name, size, files


class Watchdog:
    """Looks, and holds and releases learners.

    Args:
        admin: a client of the administrator's.
        homes: the folders of the brokers' records.
        logs: the brokers' own logs.
        megabytes: disk that a learner may take.
        tell: called with a line for the teacher.
        refused: the files in which the brokers' guards say whom they refused what.
    """

    def __init__(self, admin: KafkaAdminClient, homes, logs, megabytes: int, tell: Callable[[str], object], refused=()):
        self._admin, self._homes, self._logs, self._megabytes, self._tell = admin, homes, logs, megabytes, tell
        self._held = learners.held(admin)
        self._suspended = learners.suspended(admin, self._held) if self._held else set()
        # what was refused before is another one's matter
        self._refused: dict[Path, int] = {path: path.stat().st_size if path.exists() else 0 for path in refused}
        self._refusals: dict[str, deque[tuple[float, int, int]]] = defaultdict(deque)
        self._topics: dict[str, int] = {}
        self._asked = 0.0
        self._low = False
        self._lowest = LOW
        self._largest: set[str] = set()

    def look(self) -> None:
        """One round."""
        self._look_at_refusals()
        usage = measure(self._homes)
        found = self._look_at_disk(usage)  # first: a full disk is told also when the brokers do not answer
        try:
            count_groups(self._admin, usage)
            if not self._topics or time.monotonic() > self._asked + TOPICS:
                self._topics, self._asked = topics(self._admin), time.monotonic()
            count_partitions(self._topics, usage)
        except kafka_errors.CoordinatorLoadInProgressError:
            return  # for a moment, at a broker's start or the first group; who is held must not be released by it
        for name, taken in usage.items():
            excess = taken.excess(self._megabytes) or found.get(name)
            if not excess or name in learners.RESERVED:
                continue  # the teacher's are without limits
            found[name] = excess
            if name not in self._held:
                learners.hold(self._admin, name)
                self._held.add(name)
                self._tell(f"{name} is held, and can only delete, and read without a group: {excess}.")
        if self._suspended:  # until the teacher gives them their log-in back
            self._suspended &= learners.suspended(self._admin, self._suspended)
        for name in self._held - found.keys() - self._suspended:
            learners.release(self._admin, name)
            self._held.discard(name)
            self._tell(f"{name} may write again.")
        self._look_at_logs()

    def _look_at_disk(self, usage: dict[str, Usage]) -> dict[str, str]:
        """Who is held because the disk runs low, and why: the largest, if they take more than a tenth of what they may;
        the next one only if it gets lower still, since the disk may be full of what is not theirs."""
        free = shutil.disk_usage(self._homes[0].parent).free
        if free < LOW and not self._low:
            self._tell(f"The disk has {free / 1e6:.0f} MB left: free some, or the brokers will stop.")
        if free >= LOW * (1.1 if self._low else 1):  # so that it does not flicker
            self._low, self._lowest = False, LOW
            self._largest.clear()
            return {}
        self._low = True
        large = {name for name, taken in usage.items() if taken.bytes > self._megabytes * 100_000} - learners.RESERVED
        self._largest &= large
        if not self._largest:
            self._lowest = LOW
        if free < self._lowest and (others := large - self._largest):
            self._largest.add(max(others, key=lambda name: usage[name].bytes))
            self._lowest = free - LOWER
        return {name: f"the disk is nearly full, and {usage[name].bytes / 1e6:.0f} MB theirs" for name in self._largest}

    def _look_at_refusals(self) -> None:
        """Whom the guards refused what since the last look. Who goes on asking loses the log-in."""
        now = time.monotonic()
        for name, count, what in self._new_refusals():
            if name in self._suspended:
                continue  # what is connected still; it counts no more when the teacher lets them in again
            recent = self._refusals[name]
            if not recent:
                self._tell(f"{name} was refused what no lesson asks for ({what}).")
            recent.append((now, count, count * (what == "LARGE")))
        for name, recent in list(self._refusals.items()):
            while recent and recent[0][0] < now - 60:
                recent.popleft()
            refused, large = (sum(entry[i] for entry in recent) for i in (1, 2))
            if name not in self._suspended and (refused > REFUSALS or large > LARGE_REFUSALS):
                learners.suspend(self._admin, name)
                self._held.add(name)
                self._suspended.add(name)
                recent.clear()
                self._tell(
                    f"{name} is suspended, and cannot log in: {refused} requests were refused within a minute. "
                    f"To let them in again: python -m helpers serve reset {name}"
                )

    def _new_refusals(self) -> Iterator[tuple[str, int, str]]:
        for path, read in self._refused.items():
            with contextlib.suppress(OSError), open(path) as file:
                if path.stat().st_size < read:
                    read = 0  # the broker was started again
                file.seek(read)
                lines = file.read()
                whole = lines[: lines.rfind("\n") + 1]
                self._refused[path] = read + len(whole)
                for line in whole.splitlines():
                    name, count, what = line.split()
                    yield name, int(count), what

    def _look_at_logs(self) -> None:
        for log in self._logs:
            with contextlib.suppress(OSError):
                if log.stat().st_size > LARGEST_LOG:
                    os.truncate(log, 0)
