"""Read what is on a real topic into a Log: its records, and what a consumer is not shown.

A consumer steps over transaction markers, and does not tell which producer wrote a record. Both are in the
record batches that a broker sends (Kafka's documentation, "Record Batch" and "Control Batches"). So batches are
read here, with the protocol classes of kafka-python: which records were aborted, and what stood at an offset
that no consumer gets, is then known and not guessed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError, LeaderNotAvailableError, UnknownTopicOrPartitionError, for_code

from helpers import internals
from helpers.internals import ConsumerRecord, MemoryRecords

from .log import Cell, Lane, Log, Mark

if TYPE_CHECKING:
    from helpers.kafka.cluster import Cluster

LONGEST = 60  # letters of a label

Teller = Callable[[ConsumerRecord], Any] | None


class _Batch(NamedTuple):
    """A batch as the broker keeps it: who wrote it, whether it is a marker, and its records."""

    producer: int
    transactional: bool
    control: bool
    records: list[Any]


class _Partition(NamedTuple):
    start: int
    stable: int  # the last stable offset: what read_committed readers see ends before it
    end: int
    batches: list[_Batch]


def capture_log(
    cluster: Cluster,
    topic: str,
    groups: str | Iterable[str] = (),
    positions: Mapping[str, Any] | None = None,
    label: Teller = None,
    key: Teller = None,
    timeout: float = 15,
) -> Log:
    """Read a topic as it is now, with the committed offsets of `groups`.

    Args:
        cluster: the cluster that has the topic.
        topic: the topic's real name, as `cluster.topic` gave it; the picture shows the name as in the lesson.
        groups: real names of groups whose committed offsets are to be marked.
        positions: consumers whose positions are to be marked, by the name to show, or
            `{name: {partition: offset}}`.
        label: gives the short text of a record (a ConsumerRecord with its bytes); without it, and where it
            fails, the value: JSON in short, text, or bytes. It is not asked about tombstones.
        key: gives what the record is coloured by; without it the record's key.
        timeout: seconds to go on trying while brokers are away.

    Raises:
        ValueError: there is no such topic.
        TimeoutError: the log could not be read in time; the message says why.
    """
    groups = [groups] if isinstance(groups, str) else list(groups)
    partitions, marks = _ask_patiently(
        cluster,
        topic,
        lambda admin: (_read(admin, topic), _committed(admin, topic, groups, cluster.plain)),
        timeout,
    )
    for name, position in (positions or {}).items():
        for partition, offset in _offsets(position, topic).items():
            marks.setdefault(partition, []).append(Mark(name, offset, "position"))
    lanes = []
    for number, partition in sorted(partitions.items()):
        known = marks.get(number, [])
        if partition.stable < partition.end:
            known.append(Mark("last stable offset", partition.stable, "stable"))
        cells = _cells(TopicPartition(topic, number), partition, label, key)
        lanes.append(Lane(number, tuple(cells), tuple(known), partition.start, partition.end))
    return Log(cluster.plain(topic), tuple(lanes))


def batch_sizes(cluster: Cluster, topic: str, timeout: float = 15) -> dict[int, list[int]]:
    """How many records each batch on a topic's log holds, in order, by partition; transaction markers left out.

    Args:
        cluster: the cluster that has the topic.
        topic: the topic's real name.
        timeout: seconds to go on trying while brokers are away.

    Raises:
        ValueError, TimeoutError: as of `capture_log`.
    """
    partitions = _ask_patiently(cluster, topic, lambda admin: _read(admin, topic), timeout)
    return {
        number: [len(batch.records) for batch in partition.batches if batch.records and not batch.control]
        for number, partition in sorted(partitions.items())
    }


# What the brokers have


def _ask_patiently(cluster: Cluster, topic: str, ask: Callable[[KafkaAdminClient], Any], timeout: float) -> Any:
    """What `ask` gets from the brokers, in as many tries as it takes until the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with admin_of(cluster) as admin:
                return ask(admin)
        except UnknownTopicOrPartitionError:
            raise ValueError(f"There is no topic {topic!r} on this cluster.") from None
        except KafkaError as error:  # a leader moves, or is away
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"The log of {cluster.plain(topic)} could not be read for {timeout:g} s ({error}): "
                    "is a broker dead or paused that has it?"
                ) from error
            time.sleep(0.1)


def admin_of(cluster: Cluster) -> KafkaAdminClient:
    """An admin client for a try. It asks any broker, so where brokers may be paused it waits for none long."""
    if not cluster.embedded:
        return KafkaAdminClient(**cluster.connection)
    admin = KafkaAdminClient(**{**cluster.connection, "request_timeout_ms": 1000, "bootstrap_timeout_ms": 1000})
    internals.connect_within(admin, 1000)
    return admin


def _read(admin: KafkaAdminClient, topic: str) -> dict[int, _Partition]:
    (found,) = admin.describe_topics([topic])
    if found["error_code"]:
        raise for_code(found["error_code"])(f"topic {topic}")
    leaders = {each["partition_index"]: each["leader_id"] for each in found["partitions"]}
    for number, leader in leaders.items():
        if leader < 0:
            raise LeaderNotAvailableError(f"partition {number} has no leader")
    tps = [TopicPartition(topic, number) for number in leaders]
    starts = admin.list_partition_offsets(dict.fromkeys(tps, OffsetSpec.EARLIEST))
    # Asked for this way, a new leader does not answer before it knows of all that was acknowledged (KIP-207).
    ends = admin.list_partition_offsets(dict.fromkeys(tps, OffsetSpec.LATEST))
    return {
        tp.partition: _read_partition(admin, tp, leaders[tp.partition], starts[tp].offset, ends[tp].offset)
        for tp in tps
    }


def _read_partition(admin: KafkaAdminClient, tp: TopicPartition, leader: int, start: int, end: int) -> _Partition:
    """All batches from start to end."""
    batches, stable, offset = [], None, start
    while stable is None or offset < end:
        answer = internals.fetch(admin, tp.topic, tp.partition, leader, offset)
        stable = answer.last_stable_offset if stable is None else stable
        records = MemoryRecords(bytes(answer.records or b""))
        before = offset
        while batch := records.next_batch():
            offset = batch.next_offset
            inside = [record for record in batch if start <= record.offset < end]
            batches.append(_Batch(batch.producer_id, batch.is_transactional, batch.is_control_batch, inside))
        if offset == before:  # compaction may leave nothing up to the end
            break
    return _Partition(start, min(stable, end), end, batches)


def _committed(
    admin: KafkaAdminClient, topic: str, groups: Iterable[str], plain: Callable[[str], str]
) -> dict[int, list[Mark]]:
    marks: dict[int, list[Mark]] = {}
    for group in groups:
        for tp, committed in admin.list_group_offsets(group)[group].items():
            if tp.topic == topic and committed.offset >= 0:
                marks.setdefault(tp.partition, []).append(Mark(plain(group), committed.offset))
    return marks


def _offsets(position: Any, topic: str) -> dict[int, int]:
    """The next offsets of a consumer, or of a mapping as it is."""
    if isinstance(position, Mapping):
        return dict(position)
    return {tp.partition: position.position(tp) for tp in position.assignment() if tp.topic == topic}


# What it means


def _cells(tp: TopicPartition, partition: _Partition, label: Teller, key: Teller) -> list[Cell]:
    aborted, undecided = _transactions(partition.batches)
    cells: list[Cell] = []
    for batch in partition.batches:
        for record in batch.records:
            if batch.control:
                cells.append(Cell(record.offset, kind="abort" if record.abort else "commit"))
                continue
            shown = _consumer_record(tp, record)
            kind = "tombstone" if record.value is None else "record"
            if record.offset in aborted:
                kind = "aborted"
            elif record.offset in undecided:
                kind = "open"
            value = "null" if record.value is None else _told(shown, label, record.value)
            cells.append(Cell(record.offset, _told(shown, key, record.key), value or "", kind))
    offsets = [partition.start - 1, *(cell.offset for cell in cells), partition.end]
    gaps = [
        Cell(before + 1, kind="gap", last=after - 1)
        for before, after in zip(offsets, offsets[1:], strict=False)
        if after > before + 1
    ]
    return sorted([*cells, *gaps], key=lambda cell: cell.offset)


def _transactions(batches: Iterable[_Batch]) -> tuple[set[int], set[int]]:
    """The offsets of the records whose producer's next marker is an abort, and of those with no marker yet."""
    aborted: set[int] = set()
    undecided: dict[int, set[int]] = {}
    for batch in batches:
        if batch.control:
            before = undecided.pop(batch.producer, set())
            aborted |= before if any(record.abort for record in batch.records) else set()
        elif batch.transactional:
            undecided.setdefault(batch.producer, set()).update(record.offset for record in batch.records)
    return aborted, set().union(*undecided.values())


def _consumer_record(tp: TopicPartition, record: Any) -> ConsumerRecord:
    """The record as kafka-python's consumer gives it."""
    sizes = [-1 if part is None else len(part) for part in (record.key, record.value)]
    when = (record.timestamp, record.timestamp_type)
    return ConsumerRecord(
        tp.topic, tp.partition, None, record.offset, *when, record.key, record.value, record.headers, None, *sizes, -1
    )


def _told(record: ConsumerRecord, tell: Teller, data: bytes | None) -> str | None:
    """What `tell` says of a record, or its bytes as one reads them where it cannot."""
    if tell is not None:
        try:
            told = tell(record)
            return None if told is None else str(told)[:LONGEST]
        except Exception:  # whatever is on the log must be seen, the malformed records above all
            pass
    if data is None:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"0x{data.hex()}"[:LONGEST]
    try:
        value = json.loads(text)
    except ValueError:
        return text[:LONGEST] or '""'
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_short(part)}" for name, part in value.items())[:LONGEST]
    return _short(value)[:LONGEST]


def _short(value: Any) -> str:
    return value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False)
