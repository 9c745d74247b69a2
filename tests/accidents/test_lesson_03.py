"""Lesson 03's topologies under the accidents of the catalogue: the lesson's own cells, on the real broker.

The negative control of each invariant is the lesson's own broken form: the loop by hand, windows without grace, the
join of topics that do not fit, and the handlers that fail.
"""

import time
from types import SimpleNamespace

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from helpers import LabError, Worker, read_topic
from helpers.streams import Streams, application_id
from tests.accidents.lesson import load
from tests.accidents.matrix import accident, weak

EXACTLY_ONCE = "03 exactly_once_v2"
HANDLERS = "03 handlers that go on"
WINDOWS = "03 final windows"
ORDERS = 12
UNWRITTEN = "A result that cannot be written, for example one that is too large for its topic, stops the topology"
DELETED = "orders that retention deletes before the topology has read them are in no result, and no error says so"
ANEW = "A topic that is made anew is read from the old position on"
TASK = "what comes in other partitions closes no window here."


@pytest.fixture(scope="module")
def lesson():
    names = load("03", orders=ORDERS)
    yield SimpleNamespace(**names)
    names["producer"].close()
    names["cluster"].stop()


@pytest.fixture
def topics(lesson):
    source, target = lesson.cluster.topic("input-topic"), lesson.cluster.topic("output-topic")
    lesson.place_orders(source)
    return source, target


def results(lesson, target, level="read_committed"):
    return [record.value.decode().split(":")[0] for record in read_topic(lesson.cluster, target, level)]


def wanted(numbers=range(1, ORDERS + 1)):
    return [f"ORDER {number}" for number in numbers]


def job(lesson, source, target, application):
    return lesson.cluster.connection, source, target, application


def test_control_the_loop_by_hand_doubles(lesson, topics):
    source, target = topics
    loop = (lesson.cluster.connection, source, target, lesson.cluster.group("loop"))
    Worker(lesson.uppercase_loop, *loop, die_at=("a result is written", 6)).wait()
    lesson.uppercase_loop(*loop)
    assert sorted(results(lesson, target)) != sorted(wanted())


@accident(form=EXACTLY_ONCE, kinds=[1, 2, 17, 18])
@pytest.mark.parametrize(
    "deaths",
    [
        (1, 1, 1),
        pytest.param((6, 12), marks=pytest.mark.weekly),
        pytest.param((12, 3), marks=pytest.mark.weekly),
        pytest.param((4, 5, 6), marks=pytest.mark.weekly),
    ],
)
def test_killed_at_points_and_again_while_it_recovers(lesson, topics, deaths):
    source, target = topics
    application = application_id(lesson.cluster, "uppercase")
    for death in deaths:
        worker = Worker(
            lesson.uppercase_streams,
            *job(lesson, source, target, application),
            1000,
            die_at=("a result is made", death),
        )
        worker.wait(60)
    for _ in range(2):  # what goes on; and once more, when nothing is left
        lesson.uppercase_streams(*job(lesson, source, target, application))
        assert results(lesson, target) == wanted()


@accident(form=EXACTLY_ONCE, kinds=[3])
@pytest.mark.weekly
def test_a_zombie_that_wakes_after_another_took_over(lesson, topics):
    source, target = topics
    application = application_id(lesson.cluster, "uppercase")
    zombie = Worker(
        lesson.uppercase_streams, *job(lesson, source, target, application), 1000, hold_at=("a result is made", 7)
    )
    zombie.wait_for("a result is made", 60)
    zombie.pause()
    lesson.uppercase_streams(*job(lesson, source, target, application))
    zombie.resume()
    zombie.release()
    zombie.wait(60)
    assert results(lesson, target) == wanted()


@accident(form=EXACTLY_ONCE, kinds=[16])
def test_aborted_orders_are_not_processed(lesson):
    source, target = lesson.cluster.topic("input-topic"), lesson.cluster.topic("output-topic")
    name = lesson.cluster.transactional_id("shop")
    with KafkaProducer(**lesson.cluster.connection, transactional_id=name) as shop:
        shop.init_transactions()
        shop.begin_transaction()
        shop.send(source, b"order 99: taken back", key=b"ann").get(10)
        shop.abort_transaction()
    lesson.place_orders(source)
    lesson.uppercase_streams(*job(lesson, source, target, application_id(lesson.cluster, "uppercase")))
    assert results(lesson, target) == wanted()


@weak(form=EXACTLY_ONCE, kind=8, sentence=DELETED)
def test_orders_that_retention_deletes_first_are_lost_in_silence(lesson, topics):
    source, target = topics
    with KafkaAdminClient(**lesson.cluster.connection) as admin:
        admin.delete_records({TopicPartition(source, 0): 6})
    lesson.uppercase_streams(*job(lesson, source, target, application_id(lesson.cluster, "uppercase")))
    assert results(lesson, target) == wanted(range(7, ORDERS + 1))


@weak(form=EXACTLY_ONCE, kind=9, sentence=ANEW)
def test_a_topic_made_anew_is_read_from_the_old_position(lesson, topics):
    source, target = topics
    application = application_id(lesson.cluster, "uppercase")
    lesson.place_orders(source)  # twice as many as the old position says
    with KafkaAdminClient(**lesson.cluster.connection) as admin:  # as its first run, on the old topic, has left it
        admin.alter_group_offsets(application, {TopicPartition(source, 0): OffsetAndMetadata(ORDERS, "", -1)})
    lesson.uppercase_streams(*job(lesson, source, target, application))
    assert results(lesson, target) == wanted()  # of the second half alone


POISON = {
    "bytes that are no JSON": b"\xff\xfe",
    "text": b"milk, by fax",
    "a number": b"17",
    "null": b"null",
    "a list": b'["order"]',
    "a field of another type": b'{"milk": "two"}',
    "a field of another type, too": b'{"milk": null}',
    "no value": None,
}


@accident(form=HANDLERS, kinds=[7])
def test_poison_of_each_kind_is_kept_and_the_others_are_priced(lesson):
    source, prices, dead = (lesson.cluster.topic(name) for name in ["to-price", "prices", "dead-letters"])
    headers = [("way", b"fax"), ("way", b"mail")]
    for number, value in enumerate(POISON.values()):
        lesson.producer.send(source, b'{"tea": 3}', key=b"good").get(10)
        lesson.producer.send(source, value, key=b"%d" % number, headers=headers).get(10)
    config = {**lesson.go_on, "errors.dead.letter.queue.topic.name": dead}
    application = application_id(lesson.cluster, "prices")
    with Streams(lesson.cluster, lesson.pricing(source, prices), application, config) as streams:
        streams.wait_until_caught_up()
    assert [record.value for record in read_topic(lesson.cluster, prices)] == [b'{"tea": 6}'] * len(POISON)
    letters = read_topic(lesson.cluster, dead)
    assert [letter.value for letter in letters] == list(POISON.values())
    assert [letter.key for letter in letters] == [b"%d" % number for number in range(len(POISON))]
    assert all([h for h in letter.headers if h[0] == "way"] == headers for letter in letters)


def test_control_without_them_the_topology_stops(lesson):
    source, prices = (lesson.cluster.topic(name) for name in ["to-price", "prices"])
    lesson.producer.send(source, POISON["a number"]).get(10)
    application = application_id(lesson.cluster, "prices")
    with pytest.raises(AttributeError), Streams(lesson.cluster, lesson.pricing(source, prices), application) as streams:
        streams.wait_until_caught_up()


@weak(form=HANDLERS, kind=6, sentence=UNWRITTEN)
def test_a_result_that_is_refused_stops_the_topology_each_time(lesson):
    source = lesson.cluster.topic("to-price")
    prices = lesson.cluster.topic("prices", config={"max.message.bytes": 500})
    long = '{"%s": 2}' % ("tea" * 400)
    for value in ['{"tea": 3}', long, '{"cups": 1}']:
        lesson.producer.send(source, value.encode()).get(10)
    application = application_id(lesson.cluster, "prices")
    for _ in range(2):
        with (
            pytest.raises(LabError, match="RecordTooLarge"),
            Streams(lesson.cluster, lesson.pricing(source, prices), application, lesson.go_on) as streams,
        ):
            streams.wait_until_caught_up()


@weak(form=WINDOWS, kind=12, sentence=TASK)
def test_a_window_waits_for_its_own_partition(lesson):
    source, target = lesson.cluster.topic("orders", partitions=2), lesson.cluster.topic("counts")
    base = int(time.time()) // 60 * 60

    def place(partition, key, second):
        at = (base + second) * 1000
        lesson.producer.send(source, b"an order", key=key, partition=partition, timestamp_ms=at).get(10)

    def final():
        windows = lesson.TimeWindows.ofSizeAndGrace(lesson.Duration.ofSeconds(10), lesson.Duration.ofSeconds(5))
        topology = lesson.windowed(windows, source, target, base, final=True)
        with Streams(lesson.cluster, topology, application) as streams:
            streams.wait_until_caught_up()
        return [record.key.decode() for record in read_topic(lesson.cluster, target)]

    application = application_id(lesson.cluster, "final")
    for partition, key, second in [(0, b"ann", 0), (1, b"bob", 0), (1, b"bob", 60)]:
        place(partition, key, second)
    assert final() == ["bob 0–10 s"]
    place(0, b"ann", 60)
    assert final() == ["bob 0–10 s", "ann 0–10 s"]  # started again, and nothing twice
