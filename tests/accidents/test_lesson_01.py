"""Lesson 01's mended forms under the accidents of the catalogue that can meet them.

The forms are the lesson's own, taken from its cells. A death is an exception that no form catches, at a named effect:
what was sent and committed before it stays, as after SIGKILL. The lesson kills real processes.
"""

import contextlib
import itertools

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError
from kafka.serializer import JsonSerializer

from helpers import Cluster, read_topic
from tests.accidents.harm import Died
from tests.accidents.matrix import accident, weak
from tools.lessons import NOTEBOOKS, code_cells, read, tags

READ_ALL = "01 read_all"
READABLE = "01 pack_what_is_readable"
CHECKOUT = "01 place_orders, flush and futures"
ADDED = "What is added after the question, records or partitions, is left to the next call."
REFUSED = "A record that the other topic refuses stops this consumer, again at each start."
DOUBLED = "Killed before the commit, it puts the same record aside again at the next start."
UNUSABLE = "with kafka-python 3.0.12 an idempotent producer answers each later record with the same error"


def forms() -> dict:
    """The lesson's names after its cells of set-up, without those that start three brokers."""
    names = {"__name__": "__main__"}
    for cell in code_cells(read(NOTEBOOKS / "01_producer_consumer.ipynb")):
        if "setup" in tags(cell) and "harms-brokers" not in tags(cell):
            exec(compile(cell.source, f"<lesson 01, cell {cell.id}>", "exec"), names)
    return names


@pytest.fixture(scope="module")
def lesson():
    names = forms()
    yield names
    names["producer"].close()
    names["cluster"].stop()


@pytest.fixture
def cluster(lesson) -> Cluster:
    return lesson["cluster"]


def place(lesson, topic, numbers, partition=None) -> None:
    for number in numbers:
        lesson["producer"].send(topic, {"order": number, "customer": "ann"}, key=b"ann", partition=partition)
    lesson["producer"].flush()


def delete_before(cluster, topic, offset) -> None:
    with KafkaAdminClient(**cluster.connection) as admin:
        admin.delete_records({TopicPartition(topic, 0): offset})


@contextlib.contextmanager
def before_call(kind, name, n, what):
    """Before the n-th call of a client's method, something happens."""
    method, calls = getattr(kind, name), itertools.count(1)

    def call(client, *arguments, **keywords):
        if next(calls) == n:
            what()
        return method(client, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, call)
        yield


# -- read_all ----------------------------------------------------------------------------------------------------------

QUESTIONS = ["seek_to_beginning", "end_offsets", "position", "poll"]


def numbers(values) -> list:
    return [value["order"] for value in values]


@accident(READ_ALL, [8])
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("offset", [1, 4, 6])
def test_read_all_reads_what_is_left_when_the_logs_beginning_moves(lesson, cluster, question, offset):
    topic = cluster.topic("moves")
    place(lesson, topic, range(1, 7))
    with before_call(KafkaConsumer, question, 1, lambda: delete_before(cluster, topic, offset)):
        got = numbers(lesson["read_all"](cluster.connection, topic))
    # What a fetch has brought before the deletion may be read, too; what is on the log has to be.
    assert got[-(6 - offset) :] == list(range(1, 7))[offset:] if offset < 6 else set(got) <= set(range(1, 7))


def test_control_without_its_setting_read_all_jumps_to_the_end(lesson, cluster, monkeypatch):
    topic = cluster.topic("moves")
    place(lesson, topic, range(1, 7))
    monkeypatch.setitem(KafkaConsumer.DEFAULT_CONFIG, "auto_offset_reset", "latest")
    init = KafkaConsumer.__init__

    def at_the_default(consumer, *topics, auto_offset_reset=None, **settings):
        init(consumer, *topics, **settings)

    monkeypatch.setattr(KafkaConsumer, "__init__", at_the_default)
    with before_call(KafkaConsumer, "poll", 1, lambda: delete_before(cluster, topic, 4)):
        assert numbers(lesson["read_all"](cluster.connection, topic)) == []


def take_back(cluster, topic, number) -> None:
    """An order of a transaction that is aborted."""
    settings = {"value_serializer": JsonSerializer(), "transactional_id": cluster.transactional_id("taken-back")}
    with KafkaProducer(**cluster.connection, **settings) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, {"order": number, "customer": "ann"}).get(timeout=10)
        producer.abort_transaction()
        producer.init_transactions()  # returns when the marker is written


@accident(READ_ALL, [16, 17])
def test_read_all_leaves_out_what_was_taken_back_and_does_so_again(lesson, cluster):
    topic = cluster.topic("taken-back")
    place(lesson, topic, [1, 2])
    take_back(cluster, topic, 90)
    place(lesson, topic, [3])
    take_back(cluster, topic, 91)
    for _ in range(2):
        assert numbers(lesson["read_all"](cluster.connection, topic)) == [1, 2, 3]
    # the control: the default isolation level gives them
    assert numbers(read_values(cluster, topic)) == [1, 2, 90, 3, 91]


def read_values(cluster, topic) -> list:
    records = read_topic(cluster, topic, isolation_level="read_uncommitted", value_deserializer=JsonSerializer())
    return [record.value for record in records]


@weak(READ_ALL, 19, ADDED)
@weak(READ_ALL, 9, ADDED)
def test_what_comes_after_the_question_is_left_to_the_next_call(lesson, cluster):
    topic = cluster.topic("grows")
    place(lesson, topic, [1, 2], partition=0)

    def grow():
        place(lesson, topic, [3], partition=0)
        with KafkaAdminClient(**cluster.connection) as admin:
            admin.create_partitions({topic: 2})
        cluster.wait_for_in_sync(topic)
        with KafkaProducer(**cluster.connection, value_serializer=JsonSerializer()) as producer:
            producer.send(topic, {"order": 4}, partition=1).get(timeout=10)

    with before_call(KafkaConsumer, "position", 1, grow):
        got = numbers(lesson["read_all"](cluster.connection, topic))
    assert got[:2] == [1, 2] and 4 not in got
    assert sorted(numbers(lesson["read_all"](cluster.connection, topic))) == [1, 2, 3, 4]


# -- pack_what_is_readable ---------------------------------------------------------------------------------------------

POISON = [
    b"order 2, by fax \xff", b'{"order": 2, "custo', b"", b"17", b"null", b'["order"]', b'"order"', b'{"nr": 2}',
    b'{"order": "two"}', b'{"order": null}', b"[" * 100_000, b"1" * 10_000, None,
]  # fmt: skip
HEADERS = [("sent-by", b"fax"), ("page", b"1"), ("page", b"2")]


class Warehouse:
    """A topic with orders, and poison between them; a group, and what it has packed."""

    def __init__(self, lesson, cluster, poison, config=None):
        self.lesson, self.cluster, self.poison, self.packed = lesson, cluster, poison, []
        self.topic, self.aside = cluster.topic("orders"), cluster.topic("aside", config=config)
        self.group = cluster.group("warehouse")
        with KafkaProducer(**cluster.connection) as raw:
            for number, value in enumerate(poison, 1):
                place(lesson, self.topic, [number])
                raw.send(self.topic, value, key=b"bob", headers=HEADERS).get(timeout=10)
        self.count = 2 * len(poison)

    def committed(self) -> int:
        with KafkaAdminClient(**self.cluster.connection) as admin:
            offsets = admin.list_group_offsets([self.group])[self.group]
        return max([found.offset for found in offsets.values()], default=0)

    def run(self, pack=None) -> None:
        self.lesson["pack_what_is_readable"](
            self.cluster.connection, self.topic, self.aside, self.group, self.count - self.committed(),
            pack or self.packed.append,
        )  # fmt: skip

    def compare(self, repeated=0) -> None:
        """Nothing is lost, each thing is where it belongs, and no more is there twice than the deaths explain."""
        aside = read_topic(self.cluster, self.aside)
        orders = list(range(1, len(self.poison) + 1))
        assert list(dict.fromkeys(self.packed)) == orders, f"packed: {self.packed}"
        assert list(dict.fromkeys(record.value for record in aside)) == self.poison
        assert all((record.key, list(record.headers)) == (b"bob", HEADERS) for record in aside)
        assert len(self.packed) + len(aside) <= self.count + repeated, "too much is there twice"


@accident(READABLE, [7])
def test_poison_of_each_kind_is_put_aside_as_it_came(lesson, cluster):
    warehouse = Warehouse(lesson, cluster, POISON)
    warehouse.run()
    warehouse.compare()
    assert warehouse.committed() == warehouse.count


@pytest.mark.parametrize("reads", ["ValueError", "no look at the number"])
def test_control_a_form_that_catches_less_or_looks_at_less(lesson, cluster, reads, monkeypatch):
    import json

    monkeypatch.setitem(lesson, "number_in", lambda value: json.loads(value)["order"])
    warehouse = Warehouse(lesson, cluster, [b'{"order": "two"}' if reads != "ValueError" else b"17"])
    if reads == "ValueError":
        source = "".join(
            cell.source
            for cell in code_cells(read(NOTEBOOKS / "01_producer_consumer.ipynb"))
            if cell.id == "01-pack-readable"
        ).replace("except Exception:", "except ValueError:")
        names = dict(lesson)
        exec(source, names)
        warehouse.lesson = names
        with pytest.raises(TypeError):
            warehouse.run()
    else:
        warehouse.run()
        with pytest.raises(AssertionError, match="packed"):
            warehouse.compare()


EFFECTS = [(kind, name) for kind, name in [(KafkaProducer, "send"), (KafkaConsumer, "commit"), (KafkaConsumer, "poll")]]


@accident(READABLE, [1, 2, 17])
@weak(READABLE, 11, DOUBLED)
@pytest.mark.parametrize("kind, name", EFFECTS, ids=["send", "commit", "poll"])
@pytest.mark.parametrize("deaths", [(1,), (2, 1)], ids=str)
def test_killed_at_its_effects_it_loses_nothing(lesson, cluster, kind, name, deaths):
    warehouse = Warehouse(lesson, cluster, [b"17", None])

    def die():
        raise Died

    for n in deaths:
        with before_call(kind, name, n, die), contextlib.suppress(Died):
            warehouse.run()
    warehouse.run()
    warehouse.compare(repeated=len(deaths))


def test_control_committed_first_it_loses_an_order(lesson, cluster):
    warehouse = Warehouse(lesson, cluster, [b"17", None])
    run = KafkaConsumer.poll

    def commits_first(consumer, *arguments, **keywords):
        batches = run(consumer, *arguments, **keywords)
        if batches:
            consumer.commit()
        return batches

    def die(number):
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KafkaConsumer, "poll", commits_first)
        with contextlib.suppress(Died):
            warehouse.run(pack=die)
    warehouse.run()
    with pytest.raises(AssertionError, match="packed"):
        warehouse.compare(repeated=1)


@weak(READABLE, 6, REFUSED)
def test_a_record_that_the_other_topic_refuses_stops_it(lesson, cluster):
    warehouse = Warehouse(lesson, cluster, [b"a long fax" * 100, b"17"], config={"max.message.bytes": 300})
    for _ in range(2):
        with pytest.raises(KafkaError):
            warehouse.run()
    assert warehouse.packed == [1] and warehouse.committed() == 1
    assert read_topic(cluster, warehouse.aside) == []


@accident(READABLE, [16])
def test_an_order_that_was_taken_back_is_not_packed(lesson, cluster):
    warehouse = Warehouse(lesson, cluster, [b"17"])
    take_back(cluster, warehouse.topic, 90)
    place(lesson, warehouse.topic, [2])
    warehouse.count += 1
    warehouse.run()
    assert warehouse.packed == [1, 2]


# -- 'sent' means acknowledged -----------------------------------------------------------------------------------------


@weak(CHECKOUT, 6, UNUSABLE)
def test_after_a_refused_record_a_producer_is_of_no_use(lesson, cluster):
    topic = cluster.topic("refuses", config={"max.message.bytes": 300})
    with KafkaProducer(**cluster.connection, value_serializer=JsonSerializer()) as producer:
        producer.send(topic, {"order": 1, "note": "x" * 1000})
        producer.flush()
        for future in lesson["place_orders"](producer, topic, [2, 3]):
            with pytest.raises(MessageSizeTooLargeError):
                future.get(timeout=10)
    assert read_topic(cluster, topic) == []
    with KafkaProducer(**cluster.connection, value_serializer=JsonSerializer()) as producer:
        for future in lesson["place_orders"](producer, topic, [2, 3]):
            future.get(timeout=10)
    assert len(read_topic(cluster, topic)) == 2
