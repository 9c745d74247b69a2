"""Who reads what: the owner of each partition over time, recorded from listeners or from the group itself."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, Any

from kafka import ConsumerRebalanceListener

from .capture import admin_of
from .picture import Film, Picture, View
from .style import (
    BODY,
    LABEL_GAP,
    LABEL_ROW,
    LANE,
    MAX_WIDTH,
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
    """The recording up to `end`. A partition can have two owners at once: a zombie believes it is one."""

    topic: str
    partitions: tuple[int, ...]
    spans: tuple[Span, ...]
    moments: tuple[Moment, ...]
    end: float

    def owners(self, at: float) -> dict[int, tuple[str, ...]]:
        """The owners of each partition at a time."""
        owning = [span for span in self.spans if span.start <= at and (at < span.end or span.end == self.end)]
        return {
            partition: tuple(sorted({span.owner for span in owning if span.partition == partition}))
            for partition in self.partitions
        }


class OwnershipRecorder:
    """Records who owns the partitions of a topic; all methods may be called from any thread.

    `topic` is the real name; with a `cluster` the picture shows the name as in the lesson. `partitions` is
    their number or their list.
    """

    def __init__(self, topic: str, partitions: int | Iterable[int], cluster: Cluster | None = None) -> None:
        self.topic = topic
        self.partitions = tuple(range(partitions) if isinstance(partitions, int) else partitions)
        self._cluster = cluster
        self._changed = threading.Condition()
        self._start = time.monotonic()
        self._owned: dict[tuple[int, str], float] = {}  # since when
        self._spans: list[Span] = []
        self._moments: list[Moment] = []

    def listener(self, member: str) -> ConsumerRebalanceListener:
        """A listener for `consumer.subscribe(..., listener=...)`, to record what this member owns."""
        return _Listener(self, member)

    def assigned(self, member: str, partitions: Iterable[Any]) -> None:
        """A member owns these partitions (numbers or TopicPartitions) from now on, beside those it has."""
        self._change([(number, member) for number in self._numbers(partitions)], [])

    def revoked(self, member: str, partitions: Iterable[Any]) -> None:
        """A member owns these partitions no longer."""
        self._change([], [(number, member) for number in self._numbers(partitions)])

    def gone(self, member: str) -> None:
        """A member owns nothing any more: it left, or it was killed and could not say so."""
        self.revoked(member, self.partitions)

    def moment(self, name: str) -> None:
        """Give this point of the recording a name: the text tells who owns what now."""
        with self._changed:
            self._moments.append(Moment(name, self._now()))

    def wait_for(
        self, owners: Mapping[str, Iterable[int]], timeout: float = 15, meanwhile: Callable[[], Any] | None = None
    ) -> None:
        """Wait until the partitions are owned exactly so, e.g. `{"ann": [0, 1], "bob": [2]}`.

        `meanwhile` is called over and over, for example to poll consumers that live in this thread. After
        `timeout` seconds a TimeoutError says who owned what instead.
        """
        wanted = {(number, member) for member, numbers in owners.items() for number in numbers}
        deadline = time.monotonic() + timeout
        while (owned := self._pairs()) != wanted:
            if time.monotonic() > deadline:
                told = [
                    _told(
                        {number: sorted(member for at, member in pairs if at == number) for number in self.partitions}
                    )
                    for pairs in (wanted, owned)
                ]
                raise TimeoutError(
                    f"After {timeout:g} s the owners were not as expected: wanted {told[0]}; saw {told[1]}."
                )
            if meanwhile:
                meanwhile()
            else:
                with self._changed:
                    self._changed.wait(0.05)

    @contextmanager
    def watch(self, cluster: Cluster, group: str, names: Callable[[str], str] = str) -> Iterator[None]:
        """Record what the group's coordinator says, for members in other processes or other languages.

        Members are named by their `client_id`, or by what `names` makes of it. While the group rebalances nobody
        owns anything; a rebalance that takes less than 50 ms may not be seen. Groups of the new protocol
        (`group.protocol=consumer`, KIP-848) cannot be described by kafka-python: have their members' listeners call
        `assigned` and `revoked` instead.
        """
        self._cluster = cluster
        stop, seen = threading.Event(), threading.Event()

        def look() -> None:
            admin = None
            while not stop.is_set():
                try:
                    admin = admin or admin_of(cluster)
                    self._change(_owners_in(admin.describe_groups([group])[group], self.topic, names), None)
                    seen.set()
                except Exception:  # a broker is away: look again; a thread's traceback would be a cell's output
                    pass
                stop.wait(0.05)
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
            spans = [
                *self._spans,
                *(Span(partition, member, since, now) for (partition, member), since in self._owned.items()),
            ]
            moments = tuple(self._moments)
        topic = self._cluster.plain(self.topic) if self._cluster else self.topic
        spans.sort(key=lambda span: (span.start, span.partition))
        return Ownership(topic, self.partitions, tuple(spans), moments, now)

    def view(self, title: str) -> Picture:
        """Picture the recording so far."""
        return Picture(title, self.model(), VIEW)

    def film(self, title: str) -> Film:
        """The recording moment by moment, up to each of the named ones."""
        whole = self.model()
        return Film(title, [(moment.name, Picture(title, _until(whole, moment), FRAME)) for moment in whole.moments])

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _numbers(self, partitions: Iterable[Any]) -> list[int]:
        """The numbers of those partitions that belong to the topic."""
        return [
            getattr(partition, "partition", partition)
            for partition in partitions
            if getattr(partition, "topic", self.topic) == self.topic
        ]

    def _pairs(self) -> set[tuple[int, str]]:
        with self._changed:
            return set(self._owned)

    def _change(self, gained: Iterable[tuple[int, str]], lost: Iterable[tuple[int, str]] | None) -> None:
        """Record at one time what (partition, member) is new and what has ended; None: all that is not gained."""
        with self._changed:
            now = self._now()
            gained = set(gained)
            for pair in set(self._owned) - gained if lost is None else lost:
                since = self._owned.pop(pair, None)
                if since is not None:
                    self._spans.append(Span(*pair, since, now))
            for pair in gained:
                self._owned.setdefault(pair, now)
            self._changed.notify_all()


class _Listener(ConsumerRebalanceListener):
    """Tells the recorder what Kafka tells the member; lost partitions come as revoked too (KIP-429)."""

    def __init__(self, recorder: OwnershipRecorder, member: str) -> None:
        self._recorder, self._member = recorder, member

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._recorder.assigned(self._member, assigned)

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self._recorder.revoked(self._member, revoked)


def _owners_in(description: Mapping[str, Any], topic: str, shown: Callable[[str], str] = str) -> list[tuple[int, str]]:
    """Each (partition of the topic, member) in what the admin client says of a group."""
    if description["group_state"] != "Stable":
        return []
    members = sorted(description["members"], key=lambda member: member["member_id"])
    names = [shown(member["client_id"]) for member in members]
    owners = []
    for place, member in enumerate(members):
        name = names[place]
        if names.count(name) > 1:  # clients that were given no name of their own
            name = f"{name} {names[: place + 1].count(name)}"
        assignment = member["member_assignment"]
        for assigned in assignment["assigned_partitions"] if isinstance(assignment, Mapping) else ():
            if assigned["topic"] == topic:
                owners += [(number, name) for number in assigned["partitions"]]
    return owners


def _until(whole: Ownership, moment: Moment) -> Ownership:
    """The recording as it was at a moment."""
    at = moment.time
    spans = [replace(span, end=min(span.end, at)) for span in whole.spans if span.start <= at]
    moments = whole.moments[: whole.moments.index(moment) + 1]
    return replace(whole, spans=tuple(spans), moments=moments, end=at)


# The text


def _told(owners: Mapping[int, Sequence[str]]) -> str:
    return " · ".join(f"partition {number} {' and '.join(names) or 'nobody'}" for number, names in owners.items())


def _twin(model: Ownership) -> list[str]:
    moments = model.moments or (Moment("at the end", model.end),)
    return [f"topic {model.topic}", *(f"{each.name}: {_told(model.owners(each.time))}" for each in moments)]


def _twin_of_last(model: Ownership) -> list[str]:
    return [_told(model.owners(model.end))]


# The drawing

if TYPE_CHECKING:
    from helpers.kafka.cluster import Cluster

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

    def widest(self, stretches: Iterable[tuple[float, float]]) -> tuple[float, float]:
        """From which x to which the widest of the stretches goes."""
        return max(((self.x(start), self.x(end)) for start, end in stretches), key=lambda pair: pair[1] - pair[0])


def _plan(models: Sequence[Ownership], least: float) -> _Plan:
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
        widen(*_stretches(whole, span.start, span.end)[0], text_width(span.owner, bold=True) + 20)
    for moment in whole.moments:
        widen(moment.time, whole.end, label_width(moment.name))
    gutter = PAD + max((text_width(f"partition {number}") for number in whole.partitions), default=0) + 14
    # A film ends with its last moment, whose label then stands right of the lanes.
    tail = max((label_width(moment.name) - 12 for moment in whole.moments if moment.time == whole.end), default=0)
    tail = min(tail, 240.0)
    wide = min(max(sum(widths), least - gutter - tail - PAD), MAX_WIDTH - gutter - tail - PAD)
    edges = [0.0] if widths else [wide]
    for width in widths:
        edges.append(edges[-1] + width * wide / sum(widths))
    places = [edges[bisect_left(times, moment.time)] for moment in whole.moments]
    names = [
        fit(moment.name, max(20.0, wide + tail - x - LABEL_GAP), bold=True)
        for moment, x in zip(whole.moments, places, strict=True)
    ]
    levels = stack_labels([(x, label_width(name)) for x, name in zip(places, names, strict=True)])
    return _Plan(
        width=gutter + wide + tail + PAD,
        gutter=gutter,
        times=times,
        edges=edges,
        labels=list(zip(places, names, levels, strict=True)),
        colours=Colours(span.owner for span in whole.spans),
        rows={number: max([0, *_rows(whole, number).values()]) + 1 for number in whole.partitions},
    )


def _stretches(model: Ownership, start: float, end: float) -> list[tuple[float, float]]:
    """The stretches of a time between the moments' lines, which would run through what is written."""
    cuts = [moment.time for moment in model.moments if start < moment.time < end]
    return list(zip([start, *cuts], [*cuts, end], strict=True))


def _rows(model: Ownership, partition: int) -> dict[Span, int]:
    """The row of each span within its lane: the first that is free, so 0 unless there are two owners."""
    rows: dict[Span, int] = {}
    spans = sorted((span for span in model.spans if span.partition == partition), key=lambda span: span.start)
    for span in spans:
        busy = {row for other, row in rows.items() if other.end > span.start}
        rows[span] = next(row for row in range(len(rows) + 1) if row not in busy)
    return rows


def _draw(sheet: Sheet, model: Ownership, plan: _Plan) -> None:
    sheet.topic(model.topic)
    sheet.y += 2
    sheet.y += LABEL_ROW * (1 + max((level for *_, level in plan.labels), default=-1)) + 2
    top, now = sheet.y, plan.x(model.end)
    for partition in model.partitions:
        high = ROW * plan.rows[partition] + 8
        sheet.box(plan.gutter, sheet.y, now - plan.gutter, high, fill=LANE, radius=8, layer=1)
        middle = sheet.y + high / 2
        sheet.text(plan.gutter - 14, middle, f"partition {partition}", colour=MUTED, align="right")
        rows = _rows(model, partition)
        for span, row in rows.items():
            left, wide = plan.x(span.start), plan.x(span.end) - plan.x(span.start)
            y = sheet.y + 4 + ROW * row
            colour = plan.colours(span.owner)
            sheet.box(left + 1, y + 1, max(wide - 2, 1), ROW - 2, fill=colour.fill, edge=colour.line)
            left, right = plan.widest(_stretches(model, span.start, span.end))
            if right - left > 24:
                room = right - left - 6
                # Where many moments share the width, a name in small letters says more than half of one.
                size = BODY if text_width(span.owner, bold=True) <= room else SMALL
                name = fit(span.owner, room, size, bold=True)
                sheet.text((left + right) / 2, y + ROW / 2, name, size=size, bold=True, align="center")
        for start, end in _gaps(model, rows):
            left, right = plan.widest(_stretches(model, start, end))
            told = f"{end - start:.1f} s"
            if end - start >= 0.2 and text_width(told, SMALL) + 6 < right - left:
                sheet.text((left + right) / 2, middle, told, size=SMALL, colour=MUTED, align="center")
        sheet.y += high + 8
    for x, name, level in plan.labels[: len(model.moments)]:
        sheet.label(plan.gutter + x, top - 3 - LABEL_ROW * (level + 0.5), sheet.y - 8, name)
    sheet.y += 6
    sheet.footer(["time runs to the right, not to scale", "grey = nobody reads"])


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
