"""Lesson 09's mended forms under the accidents of the catalogue that can meet them.

The forms are the lesson's own, taken from its cells: the partitioner, the move to more partitions, the copy for a join.
The move and the copy are cells, which end in their own checks; an accident is put into what they call.
"""

import json

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.serializer import JsonSerializer

from helpers import Worker, read_topic, take
from tests.accidents.matrix import accident, weak
from tools.lessons import NOTEBOOKS, code_cells, read, tags

PARTITIONER = "09 LargeCustomerPartitioner"
MOVE = "09 move to more partitions"
COPY = "09 repartition"
SMALL = "The topic needs two partitions at least"
LATE = "An order whose `send` to the old topic timed out may still arrive there after the packers have left"
CELLS = {cell.id: cell for cell in code_cells(read(NOTEBOOKS / "09_partitioning.ipynb"))}


def run(name, names) -> None:
    exec(compile(CELLS[name].source, f"<lesson 09, cell {name}>", "exec"), names)


@pytest.fixture(scope="module")
def module():
    """The lesson's names after its cells of set-up, without those for Java and for three brokers."""
    names = {"__name__": "__main__"}
    run("c09-001", names)
    exec("import random, zlib; from collections import Counter; from math import lcm", names)
    exec("from kafka.partitioner import DefaultPartitioner, Partitioner, StickyPartitioner, murmur2", names)
    for name, cell in CELLS.items():
        if "setup" in tags(cell) and "harms-brokers" not in tags(cell) and "ava" not in cell.source:
            run(name, names)
    yield names
    names["producer"].close()
    names["cluster"].stop()


@pytest.fixture
def lesson(module):
    return dict(module)


# -- the partitioner ---------------------------------------------------------------------------------------------------


def send(connection, topic, partitioner, keys):
    """Print where the keys go, in a process of its own."""
    with KafkaProducer(**connection, partitioner=partitioner) as producer:
        futures = [producer.send(topic, b"", key=key) for key in keys]
        print(json.dumps([future.get(timeout=10).topic_partition.partition for future in futures]))


KEYS = [b"canteen", *[f"customer {number}".encode() for number in range(40)], b"", b"\xff", "zoë".encode()]


@accident(PARTITIONER, [18])
def test_each_process_puts_a_key_into_the_same_partition(lesson):
    topic, places = lesson["cluster"].topic("orders", partitions=4), []
    job = send, lesson["cluster"].connection, topic, lesson["LargeCustomerPartitioner"](b"canteen"), KEYS
    workers = [Worker(*job, environment={"PYTHONHASHSEED": seed}) for seed in ("1", "2")]
    for worker in workers:
        assert worker.wait() == "ended", worker.output
        places.append(json.loads(worker.output))
    assert places[0] == places[1] and places[0][0] == 3 and set(places[0][1:]) == {0, 1, 2}


@accident(PARTITIONER, [7])
def test_records_without_a_key_and_keys_that_are_no_text(lesson):
    topic = lesson["cluster"].topic("orders", partitions=4)
    partitioner = lesson["LargeCustomerPartitioner"](b"canteen")
    with KafkaProducer(**lesson["cluster"].connection, partitioner=partitioner) as producer:
        futures = [producer.send(topic, b"", key=key) for key in [None] * 60 + [b"", b"\xff"] * 5]
        places = [future.get(timeout=10).topic_partition.partition for future in futures]
    assert set(places[:60]) == {0, 1, 2}
    assert len(set(places[60::2])) == len(set(places[61::2])) == 1 and 3 not in places


def test_control_without_its_branch_a_record_without_a_key_is_an_error(lesson):
    source = CELLS["c09-084"].source
    branch = "        if serialized_key is None:\n            return random.choice(shared)\n"
    assert branch in source
    exec(source.replace(branch, ""), lesson)
    topic = lesson["cluster"].topic("orders", partitions=4)
    partitioner = lesson["LargeCustomerPartitioner"](b"canteen")
    with KafkaProducer(**lesson["cluster"].connection, partitioner=partitioner) as producer, pytest.raises(TypeError):
        producer.send(topic, b"")


@weak(PARTITIONER, 9, SMALL)
def test_a_topic_with_one_partition(lesson):
    topic = lesson["cluster"].topic("orders")
    partitioner = lesson["LargeCustomerPartitioner"](b"canteen")
    with KafkaProducer(**lesson["cluster"].connection, partitioner=partitioner) as producer:
        for key in (b"ann", None):
            with pytest.raises((ZeroDivisionError, IndexError)):
                producer.send(topic, b"", key=key)


# -- the move, and the copy --------------------------------------------------------------------------------------------


def delete_the_beginning(cluster, topic) -> None:
    """A record at the beginning of each partition, which retention deletes: offsets do not begin with 0."""
    with KafkaAdminClient(**cluster.connection) as admin, KafkaProducer(**cluster.connection) as producer:
        partitions = sorted(producer.partitions_for(topic))
        for partition in partitions:
            producer.send(topic, b"{}", partition=partition).get(timeout=10)
        admin.delete_records({TopicPartition(topic, partition): 1 for partition in partitions})


def take_back(cluster, topic) -> None:
    """An order of an aborted transaction, at the end of each partition; its marker is an offset without a record."""
    settings = {"value_serializer": JsonSerializer(), "transactional_id": cluster.transactional_id("taken-back")}
    with KafkaProducer(**cluster.connection, **settings) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        for partition in producer.partitions_for(topic):
            value = {"order": 90, "customer": "ann", "city": "Nowhere"}
            producer.send(topic, value, partition=partition).get(timeout=10)
        producer.abort_transaction()
        producer.init_transactions()  # returns when the markers are written


def around_topics(lesson, monkeypatch, harm) -> None:
    """Each topic that the cell makes is harmed as soon as it is there."""
    cluster = lesson["cluster"]
    make = cluster.topic

    def topic(*arguments, **keywords):
        name = make(*arguments, **keywords)
        harm(cluster, name)
        return name

    monkeypatch.setattr(cluster, "topic", topic)


ACCIDENTS = {"the beginning moves": delete_the_beginning, "taken back": take_back}


@accident(MOVE, [8, 16, 17])
@pytest.mark.parametrize("harm", ACCIDENTS.values(), ids=ACCIDENTS)
def test_the_move_over_logs_with_gaps(lesson, monkeypatch, harm):
    around_topics(lesson, monkeypatch, harm)
    for _ in range(2):
        run("c09-081", lesson)  # its own checks: each order is packed, none late


@accident(COPY, [8, 16])
@pytest.mark.parametrize("harm", ACCIDENTS.values(), ids=ACCIDENTS)
def test_the_copy_of_logs_with_gaps(lesson, monkeypatch, harm):
    around_topics(lesson, monkeypatch, harm)
    run("c09-092", lesson)


@pytest.mark.parametrize("harm", ACCIDENTS.values(), ids=ACCIDENTS)
def test_control_a_reader_that_counts_offsets_waits_for_ever(lesson, monkeypatch, harm):
    def counts(cluster, topic, partitions):
        values = []
        with KafkaConsumer(
            **cluster.connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest"
        ) as consumer:
            for partition in partitions:
                place = TopicPartition(topic, partition)
                consumer.assign([place])
                end = consumer.end_offsets([place])[place]
                values += [record.value for record in take(consumer, end, timeout=2)]
        return values

    lesson["read_in_turn"] = counts
    around_topics(lesson, monkeypatch, harm)
    with pytest.raises(TimeoutError):
        run("c09-081", lesson)


@accident(COPY, [6])
def test_an_address_that_the_copy_refuses_is_not_lost_in_silence(lesson, monkeypatch):
    cluster = lesson["cluster"]
    make = cluster.topic

    def topic(name, **keywords):
        return make(name, **keywords, **({"config": {"max.message.bytes": 90}} if "repartition" in name else {}))

    monkeypatch.setattr(cluster, "topic", topic)
    with (
        KafkaProducer(**cluster.connection, value_serializer=JsonSerializer()) as lesson["producer"],
        pytest.raises(KafkaError),
    ):
        run("c09-092", lesson)


@weak(MOVE, 4, LATE)
def test_an_order_that_arrives_on_the_old_topic_after_it_was_drained(lesson):
    cluster = lesson["cluster"]
    old = cluster.topic("orders", partitions=3)
    lesson["place_orders"](lesson["producer"], old, lesson["first_half"])
    packed = lesson["read_in_turn"](cluster, old, [0, 1, 2])
    lesson["producer"].send(old, {"order": 99, "customer": "ann"}, key=b"ann").get(timeout=10)  # it had timed out
    assert {order["order"] for order in packed} == set(lesson["first_half"])
    assert len(read_topic(cluster, old)) == len(packed) + 1
