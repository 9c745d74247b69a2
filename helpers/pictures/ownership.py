"""Who reads what: the owner of each partition over time, recorded from listeners or from the group itself."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaAdminClient
from kafka.errors import KafkaError

from .picture import Film, Picture, View
from .style import (
    LABEL_ROW,
    LANE,
    MAX_WIDTH,
    MIN_WIDTH,
    MUTED,
    PAD,
    SMALL,
    Colours,
    Sheet,
    fit,
    label_width,
    stack_labels,
    text_width,
)


@dataclass(frozen=True)
class Span:
    """A member owned a partition from `start` to `end`, in seconds of the recording."""

    partition: int
    owner: str
    start: float
    end: float


@dataclass(frozen=True)
class Moment:
    """A point in the recording that has a name."""

    name: str
    time: float


@dataclass(frozen=True)
class Ownership:
    """The recording up to `end`. Two owners of a partition at once are possible: a zombie believes it is one."""

    topic: str
    partitions: tuple[int, ...]
    spans: tuple[Span, ...]
    moments: tuple[Moment, ...]
    end: float

    def owners(self, at: float) -> dict[int, tuple[str, ...]]:
        """The owners of each partition at a time."""
        owning = [span for span in self.spans if span.start <= at and (at < span.end or span.end == self.end)]
        return {partition: tuple(sorted({span.owner for span in owning if span.partition == partition}))
                for partition in self.partitions}


class OwnershipRecorder:
    """Records who owns the partitions of a topic; all methods may be called from any thread.

    `topic` is the real name; with a `cluster` the picture shows the name as in the lesson. `partitions` is
    their number or their list.
    """

    def __init__(self, topic: str, partitions: int | Iterable[int], cluster: Any = None) -> None:
        self.topic = topic
        self.partitions = tuple(range(partitions) if isinstance(partitions, int) else partitions)
        self._cluster = cluster
        self._changed = threading.Condition()
        self._start = time.monotonic()
        self._owned: dict[tuple[int, str], float] = {}  # since when
        self._spans: list[Span] = []
        self._moments: list[Moment] = []

    def listener(self, member: str) -> ConsumerRebalanceListener:
        """A listener for `consumer.subscribe(..., listener=...)` that tells what this member is given and loses."""
        return _Listener(self, member)

    def assigned(self, member: str, partitions: Iterable[Any]) -> None:
        """A member owns these partitions (numbers or TopicPartitions) from now on, beside those it has."""
        with self._changed:
            for partition in self._numbers(partitions):
                self._owned.setdefault((partition, member), self._now())
            self._changed.notify_all()

    def revoked(self, member: str, partitions: Iterable[Any]) -> None:
        """A member owns these partitions no longer."""
        with self._changed:
            for partition in self._numbers(partitions):
                since = self._owned.pop((partition, member), None)
                if since is not None:
                    self._spans.append(Span(partition, member, since, self._now()))
            self._changed.notify_all()

    def gone(self, member: str) -> None:
        """A member owns nothing any more: it left, or it was killed and could not say so."""
        self.revoked(member, self.partitions)

    def moment(self, name: str) -> None:
        """Give this point of the recording a name: the text tells who owns what now."""
        with self._changed:
            self._moments.append(Moment(name, self._now()))

    def wait_for(self, owners: Mapping[str, Iterable[int]], timeout: float = 15,
                 meanwhile: Callable[[], Any] | None = None) -> None:
        """Wait until the partitions are owned exactly so, e.g. `{"ann": [0, 1], "bob": [2]}`.

        `meanwhile` is called over and over, for example to poll consumers that live in this thread. After
        `timeout` seconds a TimeoutError says who owned what instead.
        """
        wanted = {(partition, member) for member, partitions in owners.items() for partition in partitions}
        deadline = time.monotonic() + timeout
        while True:
            with self._changed:
                if wanted == set(self._owned):
                    return
                if not meanwhile:
                    self._changed.wait(max(0.0, min(0.2, deadline - time.monotonic())))
            if meanwhile:
                meanwhile()
            if time.monotonic() > deadline and wanted != set(self._owned):
                told = [_told(self.partitions, lambda partition, pairs=pairs: sorted(
                    member for number, member in pairs if number == partition))
                    for pairs in (wanted, set(self._owned))]
                raise TimeoutError(f"After {timeout:g} s the partitions were not owned as expected: "
                                   f"wanted {told[0]}, but saw {told[1]}.")

    @contextmanager
    def watch(self, cluster: Any, group: str, interval: float = 0.1) -> Iterator[None]:
        """Record what the group's coordinator says, for members in other processes or other languages.

        Members are named by their `client_id`. While the group rebalances nobody owns anything. Groups of the
        new protocol (`group.protocol=consumer`, KIP-848) cannot be described by kafka-python: have their
        members' listeners call `assigned` and `revoked` instead.
        """
        self._cluster = cluster
        stop, seen = threading.Event(), threading.Event()

        def look() -> None:
            admin = None
            while not stop.is_set():
                try:
                    admin = admin or KafkaAdminClient(**cluster.connection)
                    self._set(_owners_in(admin.describe_groups([group])[group], self.topic))
                    seen.set()
                except KafkaError:  # a broker is away, or the coordinator moves: look again
                    pass
                stop.wait(interval)
            if admin:
                admin.close()

        watcher = threading.Thread(target=look, name=f"watch {group}", daemon=True)
        watcher.start()
        seen.wait(10)
        try:
            yield
        finally:
            stop.set()
            watcher.join(10)

    def model(self) -> Ownership:
        """What was recorded so far."""
        with self._changed:
            now = self._now()
            spans = [*self._spans, *(Span(partition, member, since, now)
                                     for (partition, member), since in self._owned.items())]
            moments = tuple(self._moments)
        topic = self._cluster.plain(self.topic) if self._cluster else self.topic
        return Ownership(topic, self.partitions, tuple(sorted(spans, key=lambda span: span.start)), moments, now)

    def view(self, title: str, subtitle: str | None = None) -> Picture:
        """Picture the recording so far."""
        return Picture(title, self.model(), VIEW, subtitle)

    def film(self, title: str) -> Film:
        """The recording moment by moment, up to each of the named ones."""
        whole = self.model()
        return Film(title, [(moment.name, Picture(title, _until(whole, moment), FRAME)) for moment in whole.moments])

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _numbers(self, partitions: Iterable[Any]) -> list[int]:
        """The numbers of those partitions that belong to the topic."""
        return [getattr(partition, "partition", partition) for partition in partitions
                if getattr(partition, "topic", self.topic) == self.topic]

    def _set(self, owners: Mapping[int, str]) -> None:
        """Change what is recorded to just these owners."""
        with self._changed:
            for partition, member in list(self._owned):
                if owners.get(partition) != member:
                    self.revoked(member, [partition])
            for partition, member in owners.items():
                self.assigned(member, [partition])


class _Listener(ConsumerRebalanceListener):
    """Tells the recorder what Kafka tells the member; a loss without goodbye comes as 'revoked' too (KIP-429)."""

    def __init__(self, recorder: OwnershipRecorder, member: str) -> None:
        self._recorder, self._member = recorder, member

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._recorder.assigned(self._member, assigned)

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self._recorder.revoked(self._member, revoked)


def _owners_in(description: Mapping[str, Any], topic: str) -> dict[int, str]:
    """The owner of each partition of the topic in what the admin client says of a group."""
    if description["group_state"] != "Stable":
        return {}
    members = sorted(description["members"], key=lambda member: member["member_id"])
    names = [member["client_id"] for member in members]
    owners = {}
    for place, member in enumerate(members):
        name = names[place]
        if names.count(name) > 1:  # clients that were given no name of their own
            name = f"{name} {names[: place + 1].count(name)}"
        for assigned in (member["member_assignment"] or {}).get("assigned_partitions", ()):
            if assigned["topic"] == topic:
                owners.update(dict.fromkeys(assigned["partitions"], name))
    return owners


def _until(whole: Ownership, moment: Moment) -> Ownership:
    """The recording as it was at a moment."""
    spans = [replace(span, end=min(span.end, moment.time)) for span in whole.spans if span.start <= moment.time]
    moments = whole.moments[: whole.moments.index(moment) + 1]
    return replace(whole, spans=tuple(spans), moments=moments, end=moment.time)


# The text


def _told(partitions: Iterable[int], owners: Callable[[int], Sequence[str]]) -> str:
    return " · ".join(f"partition {number} {' and '.join(owners(number)) or 'nobody'}" for number in partitions)


def _told_at(model: Ownership, name: str, at: float) -> str:
    return f"{name}: {_told(model.partitions, model.owners(at).__getitem__)}"


def _twin(model: Ownership) -> list[str]:
    moments = model.moments or (Moment("at the end", model.end),)
    return [f"topic {model.topic}", *(_told_at(model, moment.name, moment.time) for moment in moments)]


def _twin_of_last(model: Ownership) -> list[str]:
    return [_told(model.partitions, model.owners(model.end).__getitem__)]


# The drawing

ROW = 30.0  # pixels of an owner's row in a lane


@dataclass
class _Plan:
    width: float
    gutter: float  # left edge of the lanes
    times: list[float]
    edges: list[float]  # where each of the times is, from the gutter
    labels: list[tuple[float, str, int]]  # of the moments: x, name, level
    colours: Colours
    rows: dict[int, int]  # of each partition: how many owners it had at once

    def x(self, at: float) -> float:
        return self.gutter + self.edges[bisect_left(self.times, at)]


def _plan(models: Sequence[Ownership]) -> _Plan:
    """Scale time so that each owner's name can be read: longer takes more room, though not in proportion."""
    whole = models[-1]
    points = {whole.end, *(moment.time for moment in whole.moments)}
    points.update(at for model in models for span in model.spans for at in (span.start, span.end))
    times = sorted(points)
    widths = [9 + 60 * sqrt(after - before) for before, after in zip(times, times[1:], strict=False)]

    def widen(start: float, end: float, need: float) -> None:
        first, last = bisect_left(times, start), bisect_left(times, end)
        if first < last:
            widths[last - 1] += max(0.0, need - sum(widths[first:last]))

    for span in whole.spans:
        widen(span.start, span.end, text_width(span.owner, bold=True) + 20)
    for moment in whole.moments:
        widen(moment.time, whole.end, label_width(moment.name))
    gutter = PAD + max((text_width(f"partition {number}") for number in whole.partitions), default=0) + 14
    wide = min(max(sum(widths), MIN_WIDTH - gutter - PAD), MAX_WIDTH - gutter - PAD)
    edges = [0.0] if widths else [wide]
    for width in widths:
        edges.append(edges[-1] + width * wide / sum(widths))
    places = [edges[bisect_left(times, moment.time)] for moment in whole.moments]
    names = [fit(moment.name, max(20.0, wide - x - label_width("") + 12), bold=True)
             for moment, x in zip(whole.moments, places, strict=True)]
    levels = stack_labels([(x, label_width(name)) for x, name in zip(places, names, strict=True)])
    return _Plan(
        width=gutter + wide + PAD,
        gutter=gutter,
        times=times,
        edges=edges,
        labels=list(zip(places, names, levels, strict=True)),
        colours=Colours(span.owner for span in whole.spans),
        rows={number: max([0, *_rows(whole, number).values()]) + 1 for number in whole.partitions},
    )


def _rows(model: Ownership, partition: int) -> dict[Span, int]:
    """The row of each span within its lane: the first that is free, so 0 unless there are two owners at once."""
    rows: dict[Span, int] = {}
    for span in (span for span in model.spans if span.partition == partition):
        busy = {row for other, row in rows.items() if other.end > span.start}
        rows[span] = next(row for row in range(len(rows) + 1) if row not in busy)
    return rows


def _draw(sheet: Sheet, model: Ownership, plan: _Plan) -> None:
    sheet.text(PAD, sheet.y + 8, "topic", colour=MUTED)
    sheet.text(PAD + text_width("topic") + 6, sheet.y + 8, fit(model.topic, 480, bold=True), bold=True)
    sheet.y += 26
    sheet.y += LABEL_ROW * (1 + max((level for *_, level in plan.labels), default=-1)) + 2
    top, right = sheet.y, plan.x(model.end)
    nobody = False
    for partition in model.partitions:
        high = ROW * plan.rows[partition] + 8
        sheet.box(plan.gutter, sheet.y, right - plan.gutter, high, fill=LANE, radius=8, layer=1)
        sheet.text(plan.gutter - 14, sheet.y + high / 2, f"partition {partition}", colour=MUTED, align="right")
        rows = _rows(model, partition)
        for span, row in rows.items():
            left, wide = plan.x(span.start), plan.x(span.end) - plan.x(span.start)
            y = sheet.y + 4 + ROW * row
            colour = plan.colours(span.owner)
            sheet.box(left + 1, y + 1, max(wide - 2, 1), ROW - 2, fill=colour.fill, edge=colour.line)
            if wide > 24:
                name = fit(span.owner, wide - 12, bold=True)
                sheet.text(left + wide / 2, y + ROW / 2, name, bold=True, align="center")
        for start, end in _gaps(model, rows):
            nobody = True
            wide, told = plan.x(end) - plan.x(start), f"{end - start:.1f} s"
            if end - start >= 0.1 and text_width(told, SMALL) + 6 < wide:
                sheet.text(plan.x(start) + wide / 2, sheet.y + high / 2, told, size=SMALL, colour=MUTED, align="center")
        sheet.y += high + 8
    for x, name, level in plan.labels[: len(model.moments)]:
        sheet.label(plan.gutter + x, top - 3 - LABEL_ROW * (level + 0.5), sheet.y - 8, name)
    sheet.y += 6
    sheet.footer(["time runs to the right, not to scale"] + ["grey = nobody reads"] * nobody)


def _gaps(model: Ownership, spans: Iterable[Span]) -> list[tuple[float, float]]:
    """When nobody owned the partition, between its first owner and the end."""
    gaps, covered = [], None
    for span in [*spans, Span(0, "", model.end, model.end)]:
        if covered is not None and span.start > covered:
            gaps.append((covered, span.start))
        covered = max(covered or 0.0, span.end)
    return gaps if spans else []


VIEW = View(_plan, _draw, _twin)
FRAME = View(_plan, _draw, _twin_of_last)
