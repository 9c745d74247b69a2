"""Lesson 07's processor, readers of retry topics and redriver, killed at every point, and in random histories: nothing
lost, nothing twice.

Tested are the functions of the lesson's set-up cells, not a copy. A crash is the SIGKILL of a process in the middle of
them: each run that is to die gets a process of its own, forked from a clean one without threads or clients. The
textbook's versions go through the same tests, and fail.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import time
import types
from collections import Counter

import cloudpickle
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from sqlalchemy import create_engine, text

from helpers.processes import workers
from tools import lessons

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.accidents.test_dead_letters"])

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


@pytest.mark.parametrize("die_at", DEATHS_OF_THE_PROCESSOR, ids=str)
def test_a_killed_processor_loses_nothing_and_packs_nothing_twice(shop, die_at):
    shop.begin()
    for kind in ORDERS:
        shop.place(kind)
    assert shop.pack_orders(die_at)
    shop.check()
    shop.finish()


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


@pytest.mark.parametrize("examples", [15, pytest.param(60, marks=pytest.mark.full)])
def test_random_histories_lose_nothing_and_double_nothing(shop, examples):
    run_histories(shop, examples)


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
