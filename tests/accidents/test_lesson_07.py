"""Lesson 07's warehouse, readers of retry topics and redriver, under the catalogue of accidents: nothing lost, nothing
twice, each letter as it came.

Tested are the functions of the lesson's set-up cells, not a copy. A crash is the SIGKILL of a process in the middle of
them: each run that is to die gets a process of its own, forked from a clean one without threads or clients. The
textbook's versions go through the same tests, and fail.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import types
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import jpype
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import MemberToRemove
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from sqlalchemy import create_engine, event, text

from exercises import lesson_07
from exercises.frame.outcome import RIGHT
from helpers import Worker, read_topic, wait_until
from helpers.processes import workers
from helpers.streams import java_config, start_java
from tests.accidents.matrix import accident, weak
from tools import lessons
from tools.lessons import IMPORTS

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import this module, and pytest with it
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.accidents.test_lesson_07"])

WAREHOUSE = "07 warehouse, pack_once"
RETRIES = "07 retry topics"
REDRIVE = "07 redrive"
REFUSED_LETTER = "A record whose dead letter is refused stops its partition at each start."
RETENTION = (
    "An order that retention deletes before the warehouse has read it is neither packed nor put aside, "
    "and no error says so."
)
PARTITIONS = (
    "A warehouse with a static name that was down while its topic got more partitions does not read the new ones, "
    "until its session has ended"
)
SOURCE_ANEW = "A warehouse that runs while its topic is made anew may pass over orders of the new one: stop it first."
OLDER = "When the database comes back without its last commits, from a backup for example, their orders are lost"
TWO_IDS = "Two redrivers with two transactional ids bring each letter back twice."
TARGET_REFUSES = "A letter that the target refuses stops the redriver at each start, and nothing comes back."
BROKERS_TIME = "In a queue with `LogAppendTime` two letters of one record have two timestamps, and both come back."
NO_ORDER = "The queue keeps no order: a letter that stays goes behind all others."
QUEUE_ANEW = "A redriver that reads while its queue is made anew waits for letters that never come."

KINDS = ["tea", "matcha", "fax", "no goods"]
CAUSES = {"matcha": "UnknownGoods", "fax": "UnicodeDecodeError", "no goods": "KeyError"}


# -- processes that die


class Death:
    """Counts the points that a process comes to, as a worker of `helpers` does, and dies at one of them.

    Args:
        where: a point's name and the how manieth time; None for the name counts all points.
    """

    def __init__(self, where):
        self.where, self.counts = where, Counter()

    def reached(self, name: str) -> None:
        self.counts.update([name, None])
        if self.where in [(name, self.counts[name]), (None, self.counts[None])]:
            os.kill(os.getpid(), signal.SIGKILL)


def child(job: bytes, die_at) -> None:
    workers._inside = Death(die_at)
    function, arguments = cloudpickle.loads(job)
    function(*arguments)
    os._exit(0)  # no clean-up here either


def run_in_child(die_at, function, *arguments) -> bool:
    """Run it in a process of its own; whether it died at `die_at`."""
    process = FORKS.Process(target=child, args=(cloudpickle.dumps((function, arguments)), die_at))
    process.start()
    process.join(30)
    status = process.exitcode
    if status is None:
        process.kill()
    assert status in (0, -signal.SIGKILL), f"the process ended with {status}"
    return status != 0


# -- the shop


class Shop:
    """The lesson's topics and warehouse, its functions, and an account of where each order is."""

    def __init__(self, lesson: dict):
        self.lesson, self.cluster, self.connection = lesson, lesson["cluster"], lesson["cluster"].connection
        self.url, self.engine = lesson["url"], lesson["engine"]
        self.topic, self.queue, self.group = lesson["begin_anew"](partitions=1)
        self.retry, self.redrivers = self.cluster.topic("my-topic-retry"), self.cluster.group("redrive")
        self.later = [self.cluster.topic(f"my-topic-retry-{n}") for n in (1, 2)]
        self.id = self.cluster.transactional_id("redriver")
        self.sender = KafkaProducer(**self.connection)
        # No member of the group: it takes the partitions itself, and need not wait for one that was killed.
        self.packer, self.redriver, self.reader = (self._consumer(name) for name in (self.group, self.redrivers, None))
        self.next = 1
        self.begin()

    def _consumer(self, group):
        return KafkaConsumer(
            **self.connection, group_id=group, enable_auto_commit=False, isolation_level="read_committed",
            auto_offset_reset="earliest", fetch_max_wait_ms=20,
        )  # fmt: skip

    def begin(self, work="pack_once", process="mended", redrive="redrive"):
        """A new history: what earlier ones have left is passed over."""
        self.work, self.process, self.redrive_name, self.orders = work, process, redrive, {}
        *read, queue = [TopicPartition(name, 0) for name in (self.topic, self.retry, *self.later, self.queue)]
        ends = self.reader.end_offsets([*read, queue])
        behind = {place: OffsetAndMetadata(end, "", -1) for place, end in ends.items()}
        self.begin_of_retries = ends[read[1]]
        self.packer.assign(read[:2])  # (the retry topics with a delay have readers of their own)
        self.packer.commit({place: behind[place] for place in read})
        self.redriver.assign([queue])
        self.redriver.commit({queue: behind[queue]})
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM stock WHERE goods = 'matcha'"))
            connection.execute(text("TRUNCATE parcels, packed"))

    def close(self):
        for client in (self.packer, self.redriver, self.reader, self.sender):
            client.close()

    # -- what happens in it

    def place(self, kind: str) -> None:
        number, self.next = self.next, self.next + 1
        self.orders[number] = kind
        value = {
            "fax": f"order {number}, by fax: 1 thé".encode("latin-1"),
            "no goods": json.dumps({"order": number}).encode(),
        }.get(kind, json.dumps({"order": number, "goods": kind}).encode())
        self.sender.send(self.topic, value, key=b"ann", headers=[("sent-by", b"test")]).get(timeout=10)

    def build_shelf(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("INSERT INTO stock VALUES ('matcha', 10000) ON CONFLICT DO NOTHING"))

    @contextlib.contextmanager
    def being_counted(self, goods: str):
        """Somebody has locked a shelf: its orders fail with an error that may pass."""
        with self.engine.connect() as counting:
            counting.execute(text("SELECT * FROM stock WHERE goods = :goods FOR UPDATE"), {"goods": goods})
            yield

    def pack_orders(self, die_at=None, breaker=False) -> bool:
        """The processor works off all that waits, or dies; whether it died."""
        run = mended if self.process == "mended" else textbook
        needed = ["work_safely", "attempt", self.work, *["CircuitBreaker"] * breaker]
        names = {name: self.lesson[name] for name in needed}
        names["process_message"] = self._process_message()
        topics = self.topic, self.retry
        if die_at:
            job = names, self.work, self.connection, self.url, topics, self.queue, self.group
            return run_in_child(die_at, in_its_own_process, run, *job)
        for place in self.packer.assignment():  # the clients that are there; a process takes its time to make some
            self.packer.seek(place, self.packer.committed(place) or 0)
        run(names, self.work, self.engine, self.packer, self.sender, self.queue, topics)
        return False

    def work_in_stages(self, die_at=None, **other) -> bool:
        """The readers of the topic and of its retry topics work off all that waits, or die; whether they died."""
        given = {name: self.lesson[name] for name in ("try_when_due", "bury", "point", "time")} | other
        read_stage = types.FunctionType(self.lesson["read_stage"].__code__, given)
        work, topics = self.lesson[self.work], [self.topic, *self.later]
        job = read_stage, self.lesson["behind"], work, self.connection, self.url, topics, self.queue, self.group
        job += (10_000 if other else 0,)  # the textbook's producer lingers; a death finds in its buffer what it sent
        if die_at:
            return run_in_child(die_at, stage_after_stage, *job)
        stage_after_stage(*job)
        return False

    def _process_message(self):
        """The textbook's function without the notebook's clients, which it finds among its globals."""
        given = {"pack": self.lesson[self.work], "datetime": self.lesson["datetime"]}
        return types.FunctionType(self.lesson["process_message"].__code__, given)

    def redrive(self, exceptions, die_at=None) -> bool:
        """A redriver brings back what failed for these reasons, or dies; whether it died."""
        arguments = [
            self.connection,
            self.queue,
            self.retry,
            self.redrivers,
            lambda story: story.get("exception") in exceptions,
        ]
        if self.redrive_name == "redrive":
            arguments.append(self.id)
        died = False
        if die_at:
            died = run_in_child(die_at, self.lesson[self.redrive_name], *arguments)
        else:
            self.lesson[self.redrive_name](*arguments)
        self._end_transaction()
        return died

    def _end_transaction(self) -> None:
        """What a killed redriver has left open is aborted; of a committed one, all markers are written: the commit
        returns before that, and who reads in between sees the offset without the records, or the other way round."""
        with KafkaProducer(**self.connection, transactional_id=self.id) as producer:
            producer.init_transactions()

    # -- where the orders are

    def _read(self, place, begin: int, end: int | None = None) -> list:
        self.reader.assign([place])
        end = self.reader.end_offsets([place])[place] if end is None else end
        self.reader.seek(place, begin)
        records, deadline = [], time.monotonic() + 20
        while self.reader.position(place) < end and time.monotonic() < deadline:
            records += self.reader.poll(timeout_ms=500).get(place, [])
        return [record for record in records if record.offset < end]

    def numbers(self, records) -> list[int]:
        return [self.lesson["number"](record) for record in records]

    def letters(self) -> list:
        """What is in the queue."""
        place = TopicPartition(self.queue, 0)
        return self._read(place, self.redriver.committed(place) or 0)

    def waiting(self) -> list[int]:
        """The orders in the queue."""
        return self.numbers(self.letters())

    def on_retry_topic(self) -> list[int]:
        """The orders that have come back in this history, read or not."""
        return self.numbers(self._read(TopicPartition(self.retry, 0), self.begin_of_retries))

    def ahead(self) -> list[int]:
        """The orders that the group has still to read."""
        places = [TopicPartition(name, 0) for name in (self.topic, self.retry, *self.later)]
        return [n for p in places for n in self.numbers(self._read(p, self.packer.committed(p) or 0))]

    def check(self) -> None:
        """Nothing lost, nothing packed twice, nothing packed that cannot be."""
        sent, known = self.lesson["parcels"](), {*self.waiting(), *self.ahead()}
        assert sorted(set(sent)) == sorted(sent), f"packed twice: {sorted({n for n in sent if sent.count(n) > 1})}"
        lost = set(self.orders) - known - set(sent)
        assert not lost, f"lost: {[(n, self.orders[n]) for n in sorted(lost)]}"
        assert {self.orders[n] for n in sent} <= {"tea", "matcha", "honey"}

    def finish(self) -> None:
        """Matcha gets its shelf, and all that can be packed is packed: once, and with nothing ahead."""
        self.build_shelf()
        self.pack_orders()
        if self.process == "mended" and "matcha" in self.orders.values():
            # (the textbook's dead letters do not tell why they are there)
            self.redrive([CAUSES["matcha"]])
            self.pack_orders()
        self.check()
        assert not self.ahead()
        wanted = ("tea", "matcha") if self.process == "mended" else ("tea",)
        assert {n for n, kind in self.orders.items() if kind in wanted} <= set(self.lesson["parcels"]())


def in_its_own_process(run, names, work, connection, url, topics, queue, group):
    """Make the clients, and run the loop as `warehouse` does.

    The producer lingers a little, as one does for throughput; for the textbook long enough that it is certain what a
    crash finds in its buffer (the mended version waits for each acknowledgement, so it makes no difference there).
    """
    consumer = KafkaConsumer(
        **connection, group_id=group, enable_auto_commit=False, isolation_level="read_committed",
        auto_offset_reset="earliest",
    )  # fmt: skip
    consumer.assign([TopicPartition(topic, 0) for topic in topics])
    run(
        names,
        work,
        create_engine(url),
        consumer,
        KafkaProducer(**connection, linger_ms=2000 if run is textbook else 20),
        queue,
        topics,
    )


def mended(names, work, engine, consumer, producer, queue, topics):
    """The lesson's loop."""
    do_it = names[work]

    def try_it(record):
        return names["attempt"](record, lambda order: do_it(engine, order))

    if "CircuitBreaker" in names:
        try_it = names["CircuitBreaker"](try_it, consumer)
    names["work_safely"](consumer, producer, queue, try_it, topics)


def stage_after_stage(read_stage, behind, work, connection, url, topics, queue, group, linger):
    """The lesson's reader of a stage, for each topic until all of it is read; there they are threads, side by side."""
    engine, clients = create_engine(url), []
    read_stage.__globals__.update(connect=lambda *_: clients, dead_letters=queue)
    for topic, later in zip(topics, [*topics[1:], queue], strict=True):
        consumer = KafkaConsumer(
            **connection, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=20
        )
        consumer.assign([TopicPartition(topic, 0)])
        ends = consumer.end_offsets(consumer.assignment())
        clients[:] = consumer, KafkaProducer(**connection, linger_ms=linger)
        done = types.SimpleNamespace(is_set=lambda consumer=consumer, ends=ends: not behind(consumer, ends))
        read_stage(topic, group, later, 0.05, lambda order: work(engine, order), lambda record: None, done)
    engine.dispose()


def bury_unacknowledged(producer, to, record, failure, group, **news):
    """A `send` as the textbook's, which nobody waits for."""
    producer.send(to, record.value, key=record.key)


class Json:
    """A producer as the textbook's function has it, with JSON as its serializer."""

    def __init__(self, producer):
        self.producer = producer

    def send(self, topic, value):
        return self.producer.send(topic, json.dumps(value).encode())


def textbook(names, work, engine, consumer, producer, queue, topics):
    """The lesson's first version, in the same loop, which commits after each record."""
    process_message = names["process_message"]
    process_message.__globals__.update(engine=engine, dead_letters=queue)

    def try_it(message):
        try:
            value = json.loads(message.value)
        except ValueError:
            value = message.value.decode(errors="replace")
        process_message(message._replace(value=value), Json(producer))

    names["work_safely"](consumer, producer, queue, try_it, topics)
    producer.flush()


@pytest.fixture(scope="module")
def shop():
    names = {"__name__": "lesson_07"}
    for cell in lessons.code_cells(lessons.read(lessons.NOTEBOOKS / "07_dead_letter_queue.ipynb")):
        tags = lessons.tags(cell)
        if "setup" in tags and "harms-brokers" not in tags:  # its second Kafka is not needed here
            exec(compile(cell.source, "<lesson 07>", "exec"), names)
    shop = Shop(names)
    yield shop
    shop.close()
    names["engine"].dispose()
    names["producer"].close()
    names["admin"].close()
    names["database"].stop()
    names["cluster"].stop()


# -- killed at each point, one after the other

ORDERS = ["tea", "fax", "matcha", "tea"]
DEATHS_OF_THE_PROCESSOR = [
    *(("tried", n) for n in range(1, 5)),
    *(("dead letter acknowledged", n) for n in range(1, 3)),
    *(("committed", n) for n in range(1, 5)),
]
DEATHS_OF_THE_REDRIVER = [*(("passed on", n) for n in range(1, 4)), ("offsets sent", 1), ("committed", 1)]


@accident(WAREHOUSE, [1, 17, 18])
@pytest.mark.parametrize("die_at", DEATHS_OF_THE_PROCESSOR, ids=str)
def test_a_killed_processor_loses_nothing_and_packs_nothing_twice(shop, die_at):
    shop.begin()
    for kind in ORDERS:
        shop.place(kind)
    assert shop.pack_orders(die_at)
    shop.check()
    shop.finish()


@accident(REDRIVE, [1, 18])
@pytest.mark.parametrize("die_at", DEATHS_OF_THE_REDRIVER, ids=str)
def test_a_killed_redriver_brings_each_record_back_once(shop, die_at):
    shop.begin()
    for kind in ["matcha", "fax", "matcha"]:
        shop.place(kind)
    shop.pack_orders()
    waiting = shop.waiting()
    assert shop.redrive([CAUSES["matcha"]], die_at)
    done = die_at[0] == "committed"
    assert (shop.on_retry_topic(), shop.waiting()) == ((waiting[::2], waiting[1:2]) if done else ([], waiting))
    shop.finish()
    assert shop.on_retry_topic() == waiting[::2]


def test_the_textbooks_processor_loses_what_a_crash_finds_in_its_buffer(shop):
    shop.begin(process="textbook")
    for kind in ORDERS:
        shop.place(kind)
    assert shop.pack_orders(("committed", 2))
    with pytest.raises(AssertionError, match=r"lost: \[\(\d+, 'fax'\)\]"):
        shop.check()


@pytest.mark.parametrize("die_at", [("passed on", n) for n in range(1, 4)], ids=str)
def test_the_plain_redriver_brings_back_twice_what_a_crash_finds_passed_on(shop, die_at):
    shop.begin(redrive="redrive_plainly")
    for kind in ["matcha", "fax", "matcha"]:
        shop.place(kind)
    shop.pack_orders()
    waiting = shop.waiting()
    assert shop.redrive([CAUSES["matcha"]], die_at)
    assert shop.waiting() != [] and shop.on_retry_topic() == waiting[: die_at[1]][::2], "half a redrive"
    shop.redrive([CAUSES["matcha"]])
    assert sorted(shop.on_retry_topic()) == sorted([*waiting[: die_at[1]][::2], *waiting[::2]])


@accident(WAREHOUSE, [1])
@accident(REDRIVE, [11])
@pytest.mark.parametrize(
    "redrive, count", [("redrive", 1), ("redrive_plainly", 2)], ids=["the lesson's", "the plain one"]
)
def test_of_two_letters_of_one_record_the_redriver_brings_back_one(shop, redrive, count):
    shop.begin(redrive=redrive)
    for kind in ["matcha", "fax", "matcha"]:
        shop.place(kind)
    first, fax, second = shop.orders
    assert shop.pack_orders(("dead letter acknowledged", 1)) and shop.waiting() == [first]
    assert shop.pack_orders(("dead letter acknowledged", 2)) and shop.waiting() == [first, first, fax]
    shop.pack_orders()
    assert shop.waiting() == [first, first, fax, fax, second]
    shop.redrive([CAUSES["matcha"]])
    assert (shop.on_retry_topic(), shop.waiting()) == ([first] * count + [second], [fax] * count)
    shop.build_shelf()
    shop.pack_orders()
    shop.check()
    assert shop.lesson["parcels"]() == [first, second]


# -- retry topics

RETRIED = ["tea", "honey", "fax", "tea"]
# Honey is tried as the second of the first topic, and as the only one of the two topics after it.
DEATHS_ON_RETRY_TOPICS = [
    *(("tried", n) for n in (2, 5, 6)),
    *(("passed on", n) for n in range(1, 5)),
    *(("committed", n) for n in (2, 5, 6)),
]
OTHER_DEATHS = [(name, n) for name in ("tried", "committed") for n in (1, 3, 4)]


@accident(RETRIES, [1, 13, 17, 18])
@pytest.mark.parametrize(
    "die_at", DEATHS_ON_RETRY_TOPICS + [pytest.param(where, marks=pytest.mark.full) for where in OTHER_DEATHS], ids=str
)
def test_a_killed_reader_of_retry_topics_loses_nothing_and_counts_each_attempt(shop, die_at):
    shop.begin()
    for kind in RETRIED:
        shop.place(kind)
    tea, honey, fax, more_tea = shop.orders
    with shop.being_counted("honey"):
        assert shop.work_in_stages(die_at)
        shop.check()
        shop.work_in_stages()
        shop.check()
    assert shop.lesson["parcels"]() == [tea, more_tea] and not shop.ahead()
    twice = {("passed on", 1): [honey], ("passed on", 2): [fax], ("passed on", 3): [honey], ("passed on", 4): [honey]}
    letters = shop.letters()
    assert sorted(shop.numbers(letters)) == sorted([honey, fax, *twice.get(die_at, [])])
    stories = [shop.lesson["story"](letter) for letter in letters]
    counts = {(story["exception"], story["delivery.count"], story["topic"]) for story in stories}
    assert counts == {("OperationalError", "3", shop.topic), ("UnicodeDecodeError", "1", shop.topic)}
    shop.redrive(["OperationalError"])
    shop.pack_orders()
    shop.check()
    assert shop.on_retry_topic() == [honey] and shop.lesson["parcels"]() == [tea, honey, more_tea]


def test_control_a_reader_that_waits_for_no_acknowledgement_loses_what_it_passes_on(shop):
    shop.begin()
    for kind in RETRIED:
        shop.place(kind)
    with shop.being_counted("honey"):
        assert shop.work_in_stages(("committed", 2), bury=bury_unacknowledged)
        with pytest.raises(AssertionError, match=r"lost: \[\(\d+, 'honey'\)\]"):
            shop.check()


@pytest.mark.parametrize("work, damage", [("pack_once", None), ("pack", "packed twice")], ids=["repeatable", "not so"])
def test_what_a_killed_reader_has_passed_on_twice_is_packed_once_by_work_that_is_repeatable(shop, work, damage):
    shop.begin(work=work)
    for kind in RETRIED:
        shop.place(kind)
    with shop.being_counted("honey"):
        assert shop.work_in_stages(("passed on", 1))
    shop.work_in_stages()
    assert [shop.orders[n] for n in shop.lesson["parcels"]()] == ["tea", *["honey"] * (2 if damage else 1), "tea"]
    with pytest.raises(AssertionError, match=damage) if damage else contextlib.nullcontext():
        shop.check()


# -- the circuit breaker


@accident(WAREHOUSE, [10, 13])
def test_a_circuit_breaker_holds_an_outage_back_and_a_killed_one_begins_anew(shop):
    shop.begin()
    for _ in range(6):
        shop.place("tea")
    orders = list(shop.orders)
    with shop.being_counted("tea"):
        for die_at, put_aside in ((("open", 2), 2), (("open", 1), 4)):
            assert shop.pack_orders(die_at, breaker=True)
            assert (shop.waiting(), shop.ahead()) == (orders[:put_aside], orders[put_aside:])
    shop.pack_orders(breaker=True)
    assert shop.lesson["parcels"]() == orders[4:]
    shop.redrive(["OperationalError"])
    shop.pack_orders(breaker=True)
    shop.check()
    assert shop.lesson["parcels"]() == orders and not shop.waiting() and not shop.ahead()


def test_control_without_a_circuit_breaker_an_outage_puts_all_aside(shop):
    shop.begin()
    for _ in range(6):
        shop.place("tea")
    with shop.being_counted("tea"):
        shop.pack_orders()
    assert (shop.waiting(), shop.ahead()) == (list(shop.orders), [])


# -- resting


@pytest.fixture
def two_partitions(shop):
    """A consumer of two partitions, three records in the first and none in the second, and how to write there."""
    topic = shop.cluster.topic("rested", partitions=2)
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    for n in range(3):
        shop.sender.send(topic, b"%d" % n, partition=0).get(timeout=10)
    with KafkaConsumer(**shop.connection, auto_offset_reset="earliest", fetch_max_wait_ms=20) as consumer:
        consumer.assign([first, second])
        yield consumer, first, second, lambda: shop.sender.send(topic, b"x", partition=1).get(timeout=10)


def read(consumer, count, seconds):
    """Up to so many records, one at a time, as (partition, offset)."""
    seen, deadline = [], time.monotonic() + seconds
    while len(seen) < count and time.monotonic() < deadline:
        for place, (record,) in consumer.poll(timeout_ms=100, max_records=1).items():
            seen.append((place.partition, record.offset))
    return seen


def test_who_rests_reads_on_afterwards(shop, two_partitions):
    consumer, _, _, write_to_second = two_partitions
    assert read(consumer, 1, seconds=10) == [(0, 0)]
    shop.lesson["rest"](consumer, 0.1)
    write_to_second()
    shop.lesson["rest"](consumer, 0.1)
    assert sorted(read(consumer, 3, seconds=10)) == [(0, 1), (0, 2), (1, 0)]


def test_a_partition_that_was_paused_alone_is_forgotten(two_partitions):
    """What lesson 07 warns of, in kafka-python 3.0.12. When this fails after an update: it need not warn any more."""
    consumer, first, _, write_to_second = two_partitions
    assert read(consumer, 1, seconds=10) == [(0, 0)]
    consumer.pause(first)
    assert not consumer.poll(timeout_ms=100)
    write_to_second()
    assert read(consumer, 1, seconds=10) == [(1, 0)]
    consumer.resume(first)
    assert read(consumer, 2, seconds=2) == []


# -- random histories

# Where to die: at the first point, or the second …, whatever its name is; None: not at all.
PROCESSOR_DEATHS = st.sampled_from([None, *((None, n) for n in range(1, 9))])
REDRIVER_DEATHS = st.sampled_from([None, *((None, n) for n in range(1, 6))])


def history(shop, **versions):
    """A state machine of random histories of a shop with these versions of its functions."""

    class History(RuleBasedStateMachine):
        @initialize(kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4), die_at=PROCESSOR_DEATHS)
        def begin(self, kinds, die_at):
            shop.begin(**versions)
            self.place_and_pack(kinds, die_at)

        @rule(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), die_at=PROCESSOR_DEATHS)
        def place_and_pack(self, kinds, die_at):
            for kind in kinds:
                shop.place(kind)
            shop.pack_orders(die_at)
            shop.check()

        @precondition(lambda self: {*shop.orders.values()} & {*CAUSES})
        @rule(causes=st.sets(st.sampled_from(sorted(CAUSES)), min_size=1), die_at=REDRIVER_DEATHS)
        def redrive(self, causes, die_at):
            back, waiting = shop.on_retry_topic(), shop.waiting()
            letters = dict.fromkeys(waiting) if shop.redrive_name == "redrive" else waiting  # of each record one
            chosen = [n for n in letters if shop.orders[n] in causes]
            shop.redrive([CAUSES[kind] for kind in causes], die_at)
            after = shop.on_retry_topic(), sorted(shop.waiting())
            rest = sorted(n for n in letters if n not in chosen)
            assert after in [(back, sorted(waiting)), (back + chosen, rest)], "half a redrive"
            shop.check()

        @rule(die_at=PROCESSOR_DEATHS, with_shelf=st.booleans())
        def pack_what_came_back(self, die_at, with_shelf):
            if with_shelf:
                shop.build_shelf()
            shop.pack_orders(die_at)
            shop.check()

        def teardown(self):
            if shop.orders:
                shop.finish()

    return History


def run_histories(shop, examples, **versions):
    run_state_machine_as_test(
        history(shop, **versions),
        settings=settings(
            max_examples=examples,
            stateful_step_count=5,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            phases=[Phase.generate],  # no shrinking: each try is a run on a real broker
            suppress_health_check=list(HealthCheck),
        ),
    )


@accident(WAREHOUSE, [1, 2, 17])
@accident(REDRIVE, [1, 2, 17])
def test_random_histories_lose_nothing_and_double_nothing(shop):
    run_histories(shop, 15)


@pytest.mark.parametrize(
    "versions, damage",
    [
        ({"process": "textbook"}, "lost"),
        ({"work": "pack"}, "packed twice"),
        ({"redrive": "redrive_plainly"}, "half a redrive"),
    ],
    ids=["the textbook's processor", "work that is not repeatable", "the plain redriver"],
)
def test_the_same_histories_find_the_fault_of(shop, versions, damage):
    with pytest.raises(AssertionError, match=damage):
        run_histories(shop, 100, **versions)  # it ends with the first that shows the fault


# -- poison of each kind, written by Java's producer

JSON_POISON = [
    b"17", b"null", b'["order"]', b"[" * 100_000, b'{"goods": "tea"}', b'{"order": 9999}', b'{"number": 9999}',
    b'{"order": "one", "goods": "tea"}', b'{"order": 1e30, "goods": "tea"}', b'{"order": NaN, "goods": "tea"}',
    b'{"order": null, "goods": "tea"}', b'{"order": 9999, "goods": ["tea"]}', b'{"order": 9999, "goods": "\\u0000"}',
    b'{"order": 9999, "goods": "\\ud800"}', b'[{"order": 9999, "goods": "tea"}]',
    b'{"original_message": {"order": 9999}, "error": "matcha"}',  # the textbook's dead letter
]  # fmt: skip
POISON = [  # key, value, headers
    *((b"ann", value, []) for value in JSON_POISON),
    (b"ann", None, []),
    (None, None, [("trace", None)]),
    (b"", b"", [("", b"")]),
    (b"ann", b"a header twice", [("step", b"1"), ("step", None), ("step", b"2"), ("trace", b"\xff")]),
    (b"ann", b"of Connect", [("__connect.errors.topic", b"elsewhere"), ("__connect.errors.exception.message", None)]),
    (b"ann", b"of a broker", [("__dlq.errors.topic", b"elsewhere"), ("__dlq.errors.delivery.count", b"\xff many")]),
    (None, b"of nobody", [("__dlq.errors.offset", None), ("__dlq.errors.redriven", b"-"), ("__dlq.errors.due", b"x")]),
]


def as_java(connection, topic, partition, records):
    """Write records by Java's producer, in a process of its own: this one may need Java with other jars later."""
    start_java()
    from java.lang import Integer, Long  # noqa: PLC0415
    from java.util import ArrayList  # noqa: PLC0415
    from org.apache.kafka.clients.producer import KafkaProducer, ProducerRecord  # noqa: PLC0415
    from org.apache.kafka.common.serialization import ByteArraySerializer  # noqa: PLC0415

    producer = KafkaProducer(java_config(connection), ByteArraySerializer(), ByteArraySerializer())
    for key, value, headers in records:
        place = topic, Integer(partition), Long(int(time.time() * 1000))
        record = ProducerRecord(*place, java_bytes(key), java_bytes(value), ArrayList())
        for name, header in headers:
            record.headers().add(name, java_bytes(header))
        producer.send(record).get()
    producer.close()


def java_bytes(value):
    return None if value is None else jpype.JArray(jpype.JByte)(value)


def identity(record) -> tuple:
    """Key, value and own headers, with what kafka-python cannot write in its place."""
    value = b"" if record.value is None and record.key is None else record.value
    own = [(name, header or b"") for name, header in record.headers if not name.startswith("__dlq.errors.")]
    return record.key, value, tuple(own)


def written_by_java(shop, topic) -> list:
    place = TopicPartition(topic, 0)
    before = shop.reader.end_offsets([place])[place]
    worker = Worker(as_java, shop.connection, topic, 0, POISON)
    assert worker.wait(60) == "ended", worker.output
    return [identity(record) for record in shop._read(place, before)]


@accident(WAREHOUSE, [7])
@accident(REDRIVE, [7, 17])
def test_poison_of_each_kind_becomes_a_letter_as_it_came_and_stays_one(shop):
    shop.begin()
    shop.place("tea")
    poison = written_by_java(shop, shop.topic)
    assert len(poison) == len(POISON)
    shop.place("tea")
    shop.pack_orders()
    assert [identity(letter) for letter in shop.letters()] == poison
    for _ in range(2):
        shop.redrive(["OperationalError"])
        assert [identity(letter) for letter in shop.letters()] == poison
    empty = [shop.lesson["story"](letter).get("empty") for letter in shop.letters()]
    assert [told for told in empty if told] == ["trace, value", "step", "__connect.errors.exception.message"]
    assert shop.lesson["parcels"]() == [*shop.orders] and not shop.ahead()
    shop.redrive(["JSONDecodeError", "TypeError"])
    shop.pack_orders()
    assert shop.on_retry_topic() and sorted(map(str, map(identity, shop.letters()))) == sorted(map(str, poison))


@accident(REDRIVE, [7])
def test_letters_of_other_conventions_stay_in_the_queue(shop):
    """What comes from Connect, from a broker, from the textbook, and straight from Java, among letters of ours."""
    here = Queue(shop)
    here.put(range(3))
    here.foreign = written_by_java(shop, here.name)
    here.put(range(3, 5))
    for _ in range(2):
        here.redrive()
        assert here.wrong() == []


@accident(RETRIES, [7])
def test_a_time_at_which_no_program_of_ours_would_try_again_is_not_waited_for(shop):
    with KafkaConsumer(**shop.connection) as consumer:
        for due in (b"9999999999", b"soon", b"\xff", None, b"1e9", b"-5"):
            record = types.SimpleNamespace(
                topic="t", partition=0, offset=0, value=b"1", headers=[("__dlq.errors.due", due)]
            )
            assert shop.lesson["try_when_due"](consumer, record, lambda order: None) is None


@accident(WAREHOUSE, [7])
def test_an_error_without_a_text_and_one_that_cannot_be_written(shop):
    shop.begin()
    for _ in range(2):
        shop.place("tea")
    errors = iter([AssertionError(), ValueError("\ud800\nand more")])

    def fails(engine, order):
        raise next(errors)

    names = {name: shop.lesson[name] for name in ("work_safely", "attempt")} | {"fails": fails}
    run_here(shop, names, "fails")
    told = [shop.lesson["story"](letter) for letter in shop.letters()]
    assert [(one["exception"], one["message"]) for one in told] == [("AssertionError", ""), ("ValueError", r"\ud800")]
    shop.check()


# -- the warehouse: its database, its broker, its group


def run_here(shop, names=None, work="pack_once", sender=None, queue=None):
    """The lesson's loop in this process, with clients of ours."""
    names = names or {name: shop.lesson[name] for name in ("work_safely", "attempt", "pack_once")}
    for place in shop.packer.assignment():
        shop.packer.seek(place, shop.packer.committed(place) or 0)
    queue = queue or shop.queue
    mended(names, work, shop.engine, shop.packer, sender or shop.sender, queue, (shop.topic, shop.retry))


@accident(WAREHOUSE, [10])
@pytest.mark.parametrize("statement", range(1, 5))
def test_the_databases_session_is_ended_before_a_statement(shop, statement):
    shop.begin()
    shop.place("tea")
    left = [statement]

    def before(connection, *told):
        left[0] -= 1
        if left[0] == 0:
            pid = connection.connection.dbapi_connection.info.backend_pid
            other.execute(text(f"SELECT pg_terminate_backend({pid}, 5000)"))

    with create_engine(shop.url).connect() as other:
        event.listen(shop.engine, "before_cursor_execute", before)
        try:
            run_here(shop)
        finally:
            event.remove(shop.engine, "before_cursor_execute", before)
    assert left[0] <= 0 and shop.lesson["parcels"]() == [*shop.orders] and not shop.waiting()


@weak(WAREHOUSE, 10, OLDER)
def test_a_database_that_comes_back_older(shop):
    shop.begin()
    for _ in range(2):
        shop.place("tea")
    shop.pack_orders()
    with shop.engine.begin() as connection:
        for table in ("parcels", "packed"):
            connection.execute(text(f"DELETE FROM {table} WHERE number = :last"), {"last": shop.next - 1})
    shop.pack_orders()
    with pytest.raises(AssertionError, match="lost"):
        shop.check()


def expires(monkeypatch, number):
    """The `number`th record that is sent from now on stays in its producer until it expires."""
    original, sent = KafkaProducer.send, []

    def send(self, topic, *arguments, **settings):
        sent.append(topic)
        if len(sent) == number:
            for partition in self.partitions_for(topic):
                self._accumulator.muted.add(TopicPartition(topic, partition))
        return original(self, topic, *arguments, **settings)

    soon = {"delivery_timeout_ms": 800, "request_timeout_ms": 500}
    monkeypatch.setattr(KafkaProducer, "DEFAULT_CONFIG", KafkaProducer.DEFAULT_CONFIG | soon)
    monkeypatch.setattr(KafkaProducer, "send", send)


@accident(WAREHOUSE, [5])
@pytest.mark.parametrize("number", [1, 2])
def test_a_dead_letter_that_expires(shop, monkeypatch, number):
    shop.begin()
    for kind in ["matcha", "tea", "fax"]:
        shop.place(kind)
    with monkeypatch.context() as patch:
        expires(patch, number)
        with KafkaProducer(**shop.connection) as sender, pytest.raises(KafkaTimeoutError):
            run_here(shop, sender=sender)
    shop.check()
    assert len(shop.waiting()) == number - 1
    shop.finish()


@accident(WAREHOUSE, [4])
@pytest.mark.parametrize("happens", [True, False], ids=["and it happened", "and it did not"])
def test_a_commit_whose_answer_does_not_come(shop, monkeypatch, happens):
    shop.begin()
    commit = shop.packer.commit

    def fails():
        if happens:
            commit()
        raise KafkaTimeoutError("no answer")

    for kind in ["tea", "matcha", "fax"]:
        shop.place(kind)
        monkeypatch.setattr(shop.packer, "commit", fails)
        with pytest.raises(KafkaTimeoutError):
            run_here(shop)
        monkeypatch.undo()
        shop.check()
        run_here(shop)
    shop.finish()


@weak(WAREHOUSE, 6, REFUSED_LETTER)
def test_a_dead_letter_that_is_refused(shop):
    shop.begin()
    small = shop.cluster.topic("small-queue", config={"max.message.bytes": 100})
    for kind in ["tea", "matcha", "tea"]:
        shop.place(kind)
    for _ in range(2):
        with KafkaProducer(**shop.connection) as sender, pytest.raises(MessageSizeTooLargeError):
            run_here(shop, sender=sender, queue=small)
        shop.check()
        assert shop.ahead() == [*shop.orders][1:]
    shop.finish()


@weak(WAREHOUSE, 8, RETENTION)
def test_orders_that_retention_deletes_unread(shop):
    shop.begin()
    for _ in range(3):
        shop.place("tea")
    place = TopicPartition(shop.topic, 0)
    begin = shop.packer.committed(place)
    shop.lesson["admin"].delete_records({place: begin + 2})
    shop.pack_orders()
    assert shop.lesson["parcels"]() == [*shop.orders][2:]
    with pytest.raises(AssertionError, match="lost"):
        shop.check()


@accident(WAREHOUSE, [11])
def test_an_order_that_stands_on_the_topic_twice_is_packed_once(shop):
    shop.begin()
    for kind in ["tea", "matcha"]:
        shop.place(kind)
        shop.next -= 1
        shop.place(kind)
    shop.finish()
    assert shop.lesson["parcels"]() == [*shop.orders]


def at_the_warehouse(shop) -> tuple:
    """What the lesson's `warehouse` is called with."""
    topics = [shop.topic, shop.retry]
    return shop.lesson["warehouse"], shop.connection, shop.url, topics, shop.queue, shop.group, shop.lesson["pack_once"]


@pytest.fixture
def members(shop):
    """After the test the group has no members, so that the others' consumers may commit without being one."""
    started = []
    yield started
    for worker in started:
        worker.kill()
    forget_member(shop, shop.group)


def forget_member(shop, group):
    shop.lesson["admin"].remove_group_members(group, [MemberToRemove(group_instance_id="packer")])
    wait_until(lambda: not shop.lesson["admin"].describe_groups([group])[group]["members"], "the member to be gone")


@accident(WAREHOUSE, [3, 12, 15])
@pytest.mark.parametrize("place", ["tried", "dead letter acknowledged"])
def test_a_warehouse_that_stands_still_while_another_takes_over(shop, members, place):
    shop.begin()
    for kind in ["matcha", "tea", "fax"]:
        shop.place(kind)
    members.append(zombie := Worker(*at_the_warehouse(shop), hold_at=place))
    zombie.wait_for(place, 60)
    members.append(other := Worker(*at_the_warehouse(shop)))
    assert other.wait(60) == "ended", other.output
    zombie.release()
    assert zombie.wait(60).startswith("failed"), "it was fenced"
    forget_member(shop, shop.group)
    shop.check()
    shop.finish()


@accident(WAREHOUSE, [16])
@accident(RETRIES, [16])
@accident(REDRIVE, [16])
def test_what_was_taken_back_is_neither_packed_nor_put_aside_nor_brought_back(shop, members):
    shop.begin()
    shop.place("matcha")
    shop.pack_orders()
    (letter,) = shop.letters()
    with KafkaProducer(**shop.connection, transactional_id=shop.id + "-other") as other:
        other.init_transactions()
        other.begin_transaction()
        for topic in (shop.topic, shop.retry):
            for order in (b'{"order": 1000000, "goods": "tea"}', b"order 1000001, by fax"):
                other.send(topic, order, key=b"ann").get(timeout=10)
        other.send(shop.queue, b"order 1000002", key=b"ann", headers=letter.headers).get(timeout=10)
        other.abort_transaction()
        other.init_transactions()  # returns when the markers are written
    shop._end_transaction()
    shop.place("tea")
    warehouse, *job = at_the_warehouse(shop)
    warehouse(*job)
    assert shop.lesson["parcels"]() == [*shop.orders][1:] and shop.waiting() == [*shop.orders][:1]
    shop.redrive([CAUSES["matcha"]])
    assert shop.on_retry_topic() == [*shop.orders][:1]
    (consumer, sender), seen = shop.lesson["connect"](shop.topic, shop.cluster.group("stage")), []
    with consumer, sender:
        shop.lesson["work_safely"](consumer, sender, shop.queue, seen.append, [shop.topic])
    assert seen and not {b"order 1000001, by fax"} & {record.value for record in seen}


@accident(WAREHOUSE, [9])
@accident(REDRIVE, [9])
def test_the_source_is_made_anew(shop):
    """Its offsets begin at 0 again: two records have one place, and both come back."""
    here = life_and_rebirth(shop, restarts=True)
    stories = [shop.lesson["story"](letter) for letter in here.ahead()]
    assert [(told["partition"], told["offset"]) for told in stories] == [("0", "0"), ("0", "0"), ("0", "1")]
    here.redrive()
    assert [shop.lesson["number"](record) for record in here.passed()] == [0, 10, 11] and here.ahead() == []


@weak(WAREHOUSE, 9, SOURCE_ANEW)
def test_the_source_is_made_anew_while_the_warehouse_runs(shop):
    here = life_and_rebirth(shop, restarts=False)
    assert [shop.lesson["number"](letter) for letter in here.ahead()] == [0, 11]


def life_and_rebirth(shop, restarts):
    """Order 0 is put aside, its topic is made anew, then come orders 10 and 11; returns the queue."""
    lesson, topic, group = shop.lesson, shop.cluster.topic("reborn"), shop.cluster.group("reborn")
    shop.begin()
    here = Queue(shop)
    with contextlib.ExitStack() as clients:
        consumer, sender = map(clients.enter_context, lesson["connect"](topic, group))
        put_in_order(shop, topic, [0])
        lesson["work_safely"](consumer, sender, here.name, lesson["try_it"], [topic])
        if restarts:
            clients.close()
        make_anew(shop, topic)
        put_in_order(shop, topic, [10, 11])
        if restarts:
            consumer, sender = map(clients.enter_context, lesson["connect"](topic, group))
        lesson["work_safely"](consumer, sender, here.name, lesson["try_it"], [topic])
    return here


def put_in_order(shop, topic, numbers):
    with KafkaProducer(**shop.connection) as producer:
        for n in numbers:
            value = json.dumps({"order": n, "goods": "matcha"}).encode()
            producer.send(topic, value, key=b"ann").get(timeout=20)


def make_anew(shop, topic, partitions=1):
    """Delete a topic and make it again, as an operator does; groups and clients live on."""
    admin = shop.lesson["admin"]
    admin.delete_topics([topic])
    wait_until(lambda: topic not in admin.list_topics(), "the topic to be gone")
    admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1}})
    with KafkaConsumer(**shop.connection) as consumer:
        wait_until(lambda: consumer.partitions_for_topic(topic), "the new topic", 20)


@weak(WAREHOUSE, 9, PARTITIONS)
def test_the_source_gets_more_partitions_while_the_warehouse_is_down(shop):
    topic, group = shop.cluster.topic("growing"), shop.cluster.group("growing")
    lesson = shop.lesson
    job = lesson["warehouse"], shop.connection, shop.url, [topic], shop.queue, group, lesson["pack_once"]
    shop.begin()
    shop.sender.send(topic, b'{"order": 1, "goods": "tea"}').get(timeout=10)
    lesson["warehouse"](*job[1:])
    lesson["admin"].create_partitions({topic: 2})
    with KafkaProducer(**shop.connection) as producer:
        wait_until(lambda: producer.partitions_for(topic) == {0, 1}, "the new partition", 20)
        for number in (2, 3):
            order = b'{"order": %d, "goods": "tea"}' % number
            producer.send(topic, order, partition=number - 2).get(timeout=10)
    worker = Worker(*job)
    try:
        wait_until(lambda: lesson["parcels"]() == [1, 2], "what is on the old partition", 60)
        with pytest.raises(TimeoutError):
            wait_until(lambda: 3 in lesson["parcels"](), "what is on the new one", 2)
        worker.kill()
        forget_member(shop, group)  # as when its session has ended
        worker = Worker(*job)
        assert worker.wait(60) == "ended" and lesson["parcels"]() == [1, 2, 3]
    finally:
        worker.kill()


# -- the redriver, on queues of their own


class Queue:
    """A queue with letters of the lesson's own, a topic for what comes back, and the account of both."""

    def __init__(self, shop, partitions=1, **config):
        self.shop, self.lesson, self.cluster = shop, shop.lesson, shop.cluster
        self.name = self.cluster.topic("queue", partitions=partitions, config=config)
        self.target = self.cluster.topic("target", partitions=2)
        self.group, self.id = self.cluster.group("redriver"), self.cluster.transactional_id("redriver of queues")
        self.letters, self.foreign = {}, []  # orders, and whether each is to come back
        self.now = int(time.time() * 1000)

    def put(self, numbers, error="UnknownGoods", **other):
        """Letters as `bury` writes them: each third one is to stay."""
        with KafkaProducer(**self.shop.connection) as sender:
            for n in numbers:
                stays = n % 3 == 2
                failure = self.lesson["Failure"](ValueError() if stays else self.lesson["UnknownGoods"]("matcha"), 1)
                order = {"topic": "orders", "partition": 0, "offset": n, "timestamp": self.now + n}
                order |= {"key": b"customer %d" % (n % 2), "value": b'{"order": %d}' % n, "headers": [("from", b"x")]}
                record = types.SimpleNamespace(**order | other)
                self.lesson["bury"](sender, self.name, record, failure, "group")
                self.letters[n] = not stays

    def job(self, id=None, most=500) -> tuple:
        places = self.shop.connection, self.name, self.target, self.group
        return *places, self.lesson["can_be_packed_now"], id or self.id, most

    def redrive(self, die_at=None, **settings) -> bool:
        try:
            if die_at:
                return run_in_child(die_at, self.lesson["redrive"], *self.job(**settings))
            self.lesson["redrive"](*self.job(**settings))
            return False
        finally:
            self.settle()

    def settle(self, id=None):
        with KafkaProducer(**self.shop.connection, transactional_id=id or self.id) as producer:
            producer.init_transactions()  # ends what is open, and waits for the markers of what was committed

    def passed(self) -> list:
        return read_topic(self.cluster, self.target)

    def committed(self) -> dict:
        found = self.lesson["admin"].list_group_offsets([self.group])[self.group]
        return {place.partition: offset.offset for place, offset in found.items() if place.topic == self.name}

    def ahead(self) -> list:
        committed = self.committed()
        return [r for r in read_topic(self.cluster, self.name) if r.offset >= committed.get(r.partition, 0)]

    def wrong(self) -> list[str]:
        return violations(self.letters, self.foreign, self.passed(), self.ahead(), self.lesson["number"])


def violations(letters, foreign, passed, ahead, number) -> list[str]:
    """The invariants of a finished redrive: each letter once, in its place, as it came, in order within its key."""
    ours = [record for record in ahead if identity(record) not in foreign]
    there = Counter(identity(record) for record in ahead) & Counter(foreign)
    wrong = [f"lost, of another convention: {one}" for one in (Counter(foreign) - there).elements()]
    for what, records in (("passed on", passed), ("kept", ours)):
        numbers = [number(record) for record in records]
        wrong += [f"{what} twice: {n}" for n in sorted({*numbers}) if numbers.count(n) > 1]
        wrong += [f"{what}: {n}" for n in numbers if letters.get(n) is not (what == "passed on")]
        wrong += [f"changed: {n}" for n, record in zip(numbers, records, strict=True) if n in letters
                  and identity(record)[::2] != (b"customer %d" % (n % 2), (("from", b"x"),))]  # fmt: skip
    for key in (b"customer 0", b"customer 1"):
        order = [number(record) for record in passed if record.key == key]
        wrong += [f"order: {order}"] * (order != sorted(order))
    seen = {number(record) for record in [*passed, *ours]}
    return wrong + [f"lost: {n}" for n in letters if n not in seen]


def gone(shop, queue, partition, offset):
    shop.lesson["admin"].delete_records({TopicPartition(queue, partition): offset})


@accident(REDRIVE, [8])
@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("before", ["nothing was read", "something was read"])
def test_a_queue_whose_head_is_gone(shop, partitions, before):
    here = Queue(shop, partitions)
    if before == "something was read":
        here.put(range(3))
        here.redrive()
    begin = {r.partition: r.offset for r in reversed(read_topic(here.cluster, here.name))}
    here.put(range(3, 12))
    for record in here.ahead():
        if record.offset == here.committed().get(record.partition, begin.get(record.partition, 0)):
            gone(shop, here.name, record.partition, record.offset + 1)  # the next letter of each partition
            del here.letters[here.lesson["number"](record)]
    assert len(here.letters) >= 7
    here.redrive()
    assert here.wrong() == [] and here.passed()


@accident(REDRIVE, [8, 19])
def test_retention_deletes_while_the_redriver_looks_for_its_place(shop, monkeypatch):
    here = Queue(shop)
    here.put(range(9))
    original = here.lesson["open_queue"]

    def open_queue(*arguments):
        found = original(*arguments)
        gone(shop, here.name, 0, 4)
        return found

    monkeypatch.setitem(here.lesson, "open_queue", open_queue)
    here.redrive()
    for n in range(4):
        del here.letters[n]
    assert here.wrong() == []
    gone(shop, here.name, 0, here.ahead()[-1].offset + 1)  # all of it
    here.letters = {n: back for n, back in here.letters.items() if back}
    monkeypatch.undo()
    here.redrive()
    assert here.wrong() == []


@accident(REDRIVE, [19])
@pytest.mark.parametrize("question", ["beginning_offsets", "end_offsets", "committed"])
def test_a_letter_comes_between_two_questions(shop, monkeypatch, question):
    here, original = Queue(shop), getattr(KafkaConsumer, question)
    here.put(range(4))

    def asked(self, places, **settings):
        found = original(self, places, **settings)
        if 4 not in here.letters:
            here.put([4])
        return found

    monkeypatch.setattr(KafkaConsumer, question, asked)
    here.redrive()
    monkeypatch.undo()
    here.redrive()
    assert here.wrong() == []


@accident(REDRIVE, [9])
@pytest.mark.parametrize("change", ["made anew", "restored with fewer letters", "more partitions"])
def test_a_queue_that_is_not_what_it_was(shop, change):
    here = Queue(shop)
    here.put(range(6))
    here.redrive()
    if change == "made anew":
        make_anew(shop, here.name)
        here.letters = {n: back for n, back in here.letters.items() if back}
    elif change == "more partitions":
        here.lesson["admin"].create_partitions({here.name: 3})
        with KafkaProducer(**shop.connection) as producer:
            wait_until(lambda: len(producer.partitions_for(here.name)) == 3, "the partitions", 20)
    else:
        here.name = here.cluster.topic("restored")
        with KafkaConsumer(**shop.connection, group_id=here.group) as consumer:
            consumer.assign([TopicPartition(here.name, 0)])
            consumer.commit({TopicPartition(here.name, 0): OffsetAndMetadata(100, "", -1)})
        here.letters = {n: back for n, back in here.letters.items() if back}
    here.put(range(6, 10))
    here.redrive()
    if change == "restored with fewer letters":
        assert here.committed() == {0: 4}
    assert here.wrong() == []


@weak(REDRIVE, 9, QUEUE_ANEW)
def test_a_queue_that_is_made_anew_while_the_redriver_reads(shop):
    here = Queue(shop)
    here.put(range(3))
    with ThreadPoolExecutor() as pool:
        consumer, ends = here.lesson["open_queue"](shop.connection, here.name, here.group)
        make_anew(shop, here.name)
        waiting = pool.submit(here.lesson["next_letters"], consumer, ends)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=3)
        here.put(range(3, 6))
        waiting.result(timeout=60)
        consumer.close()


@accident(REDRIVE, [5])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_letter_that_expires_on_its_way_back(shop, monkeypatch, number):
    here = Queue(shop)
    here.put(range(5))
    with monkeypatch.context() as patch:
        expires(patch, number)
        with pytest.raises(KafkaTimeoutError):
            here.redrive()
    assert here.passed() == [] and len(here.ahead()) == 5
    here.redrive()
    assert here.wrong() == []


@accident(REDRIVE, [4])
@pytest.mark.parametrize("happens", [True, False], ids=["and it happened", "and it did not"])
def test_a_redrivers_commit_whose_answer_does_not_come(shop, monkeypatch, happens):
    here, commit = Queue(shop), KafkaProducer.commit_transaction
    here.put(range(5))

    def fails(self):
        if happens:
            commit(self)
        raise KafkaTimeoutError("no answer")

    with monkeypatch.context() as patch, pytest.raises(KafkaTimeoutError):
        patch.setattr(KafkaProducer, "commit_transaction", fails)
        here.redrive()
    here.redrive()
    assert here.wrong() == []


@accident(REDRIVE, [2, 14])
@pytest.mark.parametrize(
    "deaths",
    [[("passed on", 3), ("offsets sent", 1)], [("committed", 1), ("passed on", 4)], [("committed", 3)]],
    ids=str,
)
def test_more_letters_than_a_transaction_takes_and_two_deaths(shop, deaths):
    here = Queue(shop, partitions=2)
    here.put(range(9))
    for death in deaths:
        assert here.redrive(death, most=2)
    here.redrive(most=2)
    assert here.wrong() == []


@weak(REDRIVE, 11, NO_ORDER)
def test_letters_that_stay_change_their_order(shop):
    here = Queue(shop)
    here.put(range(6))
    assert here.redrive(("committed", 1), most=3)
    here.redrive()
    assert here.wrong() == []
    assert [here.lesson["number"](letter) for letter in here.ahead()] == [5, 2]


@accident(REDRIVE, [17])
def test_a_redrive_right_after_another_changes_nothing(shop):
    here = Queue(shop, partitions=2)
    for _ in range(2):  # of an empty queue, too
        here.redrive()
    here.put(range(6))
    for _ in range(3):
        here.redrive()
        assert here.wrong() == []


@accident(REDRIVE, [3, 15])
@pytest.mark.parametrize("place", [("passed on", 2), "offsets sent"])
def test_a_redriver_that_stands_still_while_another_takes_over(shop, place):
    here = Queue(shop)
    here.put(range(5))
    zombie = Worker(here.lesson["redrive"], *here.job(), hold_at=place)
    try:
        zombie.wait_for(place, 60)
        here.redrive()
        zombie.release()
        assert zombie.wait(60).startswith("failed"), "it was fenced"
    finally:
        zombie.kill()
    here.settle()
    assert here.wrong() == []


@weak(REDRIVE, 15, TWO_IDS)
def test_two_redrivers_with_two_transactional_ids(shop):
    here = Queue(shop)
    here.put(range(5))
    other = Worker(here.lesson["redrive"], *here.job(id=f"{here.id}-2"), hold_at="passed on")
    try:
        other.wait_for("passed on", 60)
        here.lesson["redrive"](*here.job())
        other.release()
        assert other.wait(60) == "ended", other.output
    finally:
        other.kill()
    for id in (here.id, f"{here.id}-2"):
        here.settle(id)
    assert [wrong for wrong in here.wrong() if wrong.startswith("passed on twice")] == [
        f"passed on twice: {n}" for n in (0, 1, 3, 4)
    ]


@weak(REDRIVE, 6, TARGET_REFUSES)
def test_a_letter_that_the_target_refuses(shop):
    here = Queue(shop)
    here.target = here.cluster.topic("small-target", config={"max.message.bytes": 1000})
    here.put([0, 1])
    here.put([3], value=b'{"order": 3, "note": "' + b"x" * 1000 + b'"}')
    here.put([4])
    for _ in range(2):
        with pytest.raises(MessageSizeTooLargeError):
            here.redrive()
        assert here.passed() == [] and len(here.ahead()) == 4


@weak(REDRIVE, 11, BROKERS_TIME)
@pytest.mark.parametrize("whose, count", [("CreateTime", 1), ("LogAppendTime", 2)])
def test_two_letters_of_one_record_with_the_brokers_time(shop, whose, count):
    here = Queue(shop, **{"message.timestamp.type": whose})
    here.put([1])
    (letter,) = here.ahead()
    wait_until(lambda: time.time() * 1000 > letter.timestamp + 2, "the next millisecond")
    here.put([1])
    here.redrive()
    assert len(here.passed()) == count


# -- the questions


@accident("07 dead_letter (question 2)", [7])
@accident("07 redrive_chosen (question 4)", [1, 5, 7, 8, 16, 17, 19])
@pytest.mark.parametrize("question", [lesson_07.q2, lesson_07.q4], ids=lambda question: question.name)
def test_the_solutions_under_what_their_judges_make_happen(shop, question):
    outcome = question.try_answer(question.answer, shop.cluster, IMPORTS)
    assert outcome.state == RIGHT, f"{outcome}\n{outcome.trace}"


# -- controls: each invariant of the redriver catches a form that breaks it


def jumps_to_the_end(connection, dead_letters, group):
    """`open_queue` without a look at where the queue begins, as it was before."""
    place = TopicPartition(dead_letters, 0)
    consumer = KafkaConsumer(**connection, group_id=group, enable_auto_commit=False, isolation_level="read_committed")
    consumer.assign([place])
    consumer.seek(place, consumer.committed(place) or 0)
    return consumer, consumer.end_offsets([place])


def test_control_lost_behind_the_head_that_is_gone(shop, monkeypatch):
    here = Queue(shop)
    here.put(range(5))
    gone(shop, here.name, 0, 1)
    del here.letters[0]
    monkeypatch.setitem(here.lesson, "open_queue", jumps_to_the_end)
    here.redrive()
    assert here.wrong() == [f"lost: {n}" for n in range(1, 5)]


def test_control_twice_when_the_end_is_not_heeded(shop, monkeypatch):
    here = Queue(shop)
    here.put([0])
    original = here.lesson["next_letters"]

    def next_letters(consumer, ends, most):
        here.put([1])  # it has come since
        letters, behind_them = original(consumer, {place: end + 1 for place, end in ends.items()}, most)
        return letters, {place: OffsetAndMetadata(end, "", -1) for place, end in ends.items()}

    monkeypatch.setitem(here.lesson, "next_letters", next_letters)
    here.redrive()
    monkeypatch.undo()
    here.redrive()
    assert here.wrong() == ["passed on twice: 1"]


def test_control_changed_without_headers(shop, monkeypatch):
    here = Queue(shop)
    here.put([0])
    original = here.lesson["pass_on"]

    def pass_on(producer, to, record, **news):
        original(producer, to, record._replace(headers=record.headers[1:]), **news)

    monkeypatch.setitem(here.lesson, "pass_on", pass_on)
    here.redrive()
    assert here.wrong() == ["changed: 0"]


def test_control_lost_foreign_letters_and_order():
    class Letter(types.SimpleNamespace):
        pass

    def letter(n, key=None):
        return Letter(key=key or b"customer %d" % (n % 2), value=b"%d" % n, headers=[("from", b"x")])

    def number(record):
        return int(record.value)

    letters = {0: True, 2: True, 5: False}
    assert violations(letters, [], [letter(0), letter(2)], [letter(5)], number) == []
    assert violations(letters, [], [letter(2), letter(0)], [letter(5)], number) == ["order: [2, 0]"]
    assert violations(letters, [], [letter(0), letter(2), letter(5)], [], number) == ["passed on: 5"]
    assert violations(letters, [], [letter(0), letter(2)], [letter(5), letter(5)], number) == ["kept twice: 5"]
    assert violations({}, [(b"k", b"v", ())], [], [], number) == ["lost, of another convention: (b'k', b'v', ())"]
