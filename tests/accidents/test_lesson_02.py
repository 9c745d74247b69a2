"""Lesson 02's mended forms under the accidents of the catalogue that can meet them: `begin_at`, and a static name.

The forms are the lesson's own, taken from its cells.
"""

import itertools

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import CommitFailedError, FencedInstanceIdError
from kafka.serializer import JsonSerializer

from helpers import take, wait_until
from tests.accidents.harm import Died
from tests.accidents.matrix import accident, weak
from tools.lessons import NOTEBOOKS, code_cells, read

BEGIN_AT = "02 begin_at"
STATIC = "02 static member"
TWO = "takes the first one's partitions, and the first stops with `FencedInstanceIdError`."
CELLS = ["c02-001", "c02-002", "c02-003", "c02-005", "c02-061"]  # imports, sizes, the cluster, the form
NOON, HOUR = 1_767_268_800_000, 3_600_000
QUESTIONS = ["partitions_for_topic", "end_offsets", "offsets_for_times", "commit"]


@pytest.fixture(scope="module")
def lesson():
    names = {"__name__": "__main__"}
    cells = {cell.id: cell.source for cell in code_cells(read(NOTEBOOKS / "02_publish_subscribe.ipynb"))}
    for name in CELLS:
        exec(compile(cells[name], f"<lesson 02, cell {name}>", "exec"), names)
    names["begin_at_source"] = cells["c02-061"]
    yield names
    names["cluster"].stop()


class Board:
    """A topic with orders of each hour from nine o'clock on, in partition 0; partition 1 has one of nine o'clock."""

    def __init__(self, lesson):
        self.lesson, self.cluster = lesson, lesson["cluster"]
        self.topic = self.cluster.topic("board", partitions=2, config={"retention.ms": -1})
        self.group = self.cluster.group("statistics")
        self.since = set()
        self.numbers = itertools.count(1)
        for hours in (-3, -2, -1, 0, -1, 1):  # the times need not ascend
            self.place(0, NOON + hours * HOUR)
        self.place(1, NOON - 3 * HOUR)

    def place(self, partition, timestamp) -> None:
        number = next(self.numbers)
        with KafkaProducer(**self.cluster.connection, value_serializer=JsonSerializer()) as producer:
            producer.send(self.topic, {"order": number}, partition=partition, timestamp_ms=timestamp).get(timeout=10)
        if timestamp >= NOON:
            self.since.add(number)

    def begin(self) -> None:
        self.lesson["begin_at"](self.topic, self.group, NOON)

    def read(self) -> list:
        """What the group reads, as far as the end."""
        with KafkaConsumer(
            self.topic, **self.cluster.connection, group_id=self.group, auto_offset_reset="earliest",
            enable_auto_commit=False, value_deserializer=JsonSerializer(), isolation_level="read_committed",
        ) as consumer:  # fmt: skip
            wait_until(lambda: consumer.poll(timeout_ms=10) or consumer.assignment(), "its partitions", 20)
            for place in consumer.assignment():
                found = consumer.committed(place)
                if found is None:
                    consumer.seek_to_beginning(place)
                else:
                    consumer.seek(place, found)
            ends = consumer.end_offsets(sorted(consumer.assignment()))
            values = []
            while any(consumer.position(place) < end for place, end in ends.items()):
                for records in consumer.poll(timeout_ms=200).values():
                    values += [record.value["order"] for record in records]
        return values

    def compare(self) -> list:
        """None of that time or later is left out; what else comes stands behind the first of them."""
        read = self.read()
        assert self.since <= set(read), f"left out: {self.since - set(read)}"
        assert len(set(read)) == len(read) and set(read) - self.since <= {5}, f"too much: {read}"
        return read


def before_call(monkeypatch, name, n, what) -> None:
    method, calls = getattr(KafkaConsumer, name), itertools.count(1)

    def call(client, *arguments, **keywords):
        if next(calls) == n:
            what()
        return method(client, *arguments, **keywords)

    monkeypatch.setattr(KafkaConsumer, name, call)


@accident(BEGIN_AT, [11, 19])
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("partition", [0, 1])
def test_an_order_comes_between_two_questions(lesson, monkeypatch, question, partition):
    board = Board(lesson)
    before_call(monkeypatch, question, 1, lambda: board.place(partition, NOON + 2 * HOUR))
    board.begin()
    assert len(board.compare()) == len(board.since) + 1  # and order 5, which stands behind order 4


def test_control_the_ends_asked_for_last_leave_it_out(lesson, monkeypatch):
    board = Board(lesson)
    lines = lesson["begin_at_source"].splitlines(keepends=True)
    (ends,) = [number for number, line in enumerate(lines) if "end_offsets" in line]
    lines[ends], lines[ends + 1] = lines[ends + 1], lines[ends]
    names = dict(lesson)
    exec("".join(lines), names)
    before_call(monkeypatch, "end_offsets", 1, lambda: board.place(1, NOON + 2 * HOUR))
    names["begin_at"](board.topic, board.group, NOON)
    with pytest.raises(AssertionError, match="left out"):
        board.compare()


@accident(BEGIN_AT, [17])
def test_a_second_time_it_is_the_same(lesson):
    board = Board(lesson)
    for _ in range(2):
        board.begin()
    board.compare()


@accident(BEGIN_AT, [1, 2])
@pytest.mark.parametrize("question", QUESTIONS)
def test_killed_and_run_again(lesson, monkeypatch, question):
    board = Board(lesson)

    def die():
        raise Died

    with monkeypatch.context() as patch:
        before_call(patch, question, 1, die)
        with pytest.raises(Died):
            board.begin()
    board.begin()
    board.compare()


@accident(BEGIN_AT, [8])
@pytest.mark.parametrize("question", QUESTIONS[1:])
def test_the_logs_beginning_moves_past_the_moment(lesson, monkeypatch, question):
    """The order of noon is deleted meanwhile; what comes after it is read."""
    board = Board(lesson)

    def delete():
        with KafkaAdminClient(**board.cluster.connection) as admin:
            admin.delete_records({TopicPartition(board.topic, 0): 5})
        board.since.discard(4)

    before_call(monkeypatch, question, 1, delete)
    board.begin()
    board.compare()


@accident(BEGIN_AT, [9])
def test_a_partition_is_added_meanwhile(lesson, monkeypatch):
    """The group has no offset in it, so `auto_offset_reset` decides: "earliest" reads all of it."""
    board = Board(lesson)

    def add():
        with KafkaAdminClient(**board.cluster.connection) as admin:
            admin.create_partitions({board.topic: 3})
        board.cluster.wait_for_in_sync(board.topic)
        board.place(2, NOON + HOUR)

    before_call(monkeypatch, "commit", 1, add)
    board.begin()
    board.compare()


@accident(BEGIN_AT, [12])
def test_with_a_living_member_it_raises_and_moves_nothing(lesson):
    board = Board(lesson)
    with KafkaConsumer(
        board.topic, **board.cluster.connection, group_id=board.group, auto_offset_reset="earliest",
        enable_auto_commit=False,
    ) as member:  # fmt: skip
        take(member, 1)
        with pytest.raises(CommitFailedError):
            board.begin()
        assert all(member.committed(place) is None for place in member.assignment())


@weak(STATIC, 12, TWO)
def test_two_processes_with_one_static_name(lesson):
    board = Board(lesson)
    settings = {"group_id": board.group, "group_instance_id": "uma", "heartbeat_interval_ms": 100}

    def join():
        consumer = KafkaConsumer(**board.cluster.connection, auto_offset_reset="earliest", **settings)
        consumer.subscribe([board.topic])
        consumer.end_offsets([TopicPartition(board.topic, 0)])
        wait_until(lambda: consumer.poll(timeout_ms=100) or consumer.assignment(), "its partitions", 20)
        return consumer

    first, second = join(), join()
    try:
        with pytest.raises(FencedInstanceIdError):
            wait_until(lambda: first.poll(timeout_ms=100) and False, "the first one to be told", 20)
        assert len(second.assignment()) == 2
    finally:
        for consumer in (first, second):
            consumer.close(autocommit=False)
