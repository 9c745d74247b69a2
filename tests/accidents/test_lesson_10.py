"""Lesson 10 attacked: each order once, whatever is made to happen to the loop, its bank, its transaction, its judges.

The forms are the lesson's own cells. `violations` is the one set of invariants; each of them catches a broken form.
"""

import contextlib
import random
import sqlite3
import sys
from collections import Counter

import cloudpickle
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove
from kafka.errors import KafkaError
from kafka.serializer import Serializer

from exercises import lesson_10
from exercises.frame.outcome import RIGHT
from helpers import Worker, point, read_topic, wait_until
from helpers.pictures import capture_log
from tests.accidents.lesson import load
from tests.accidents.matrix import accident, weak
from tools.lessons import IMPORTS, NOTEBOOKS, read, tagged

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import this module, and pytest with it
pytestmark = pytest.mark.full

SEED = 10
ORDERS = 6
CALLS = {
    KafkaProducer: ["init_transactions", "begin_transaction", "send", "flush", "send_offsets_to_transaction",
                    "commit_transaction"],
    KafkaConsumer: ["poll", "group_metadata"],
}  # fmt: skip
POINTS = [f"{when} {call}" for calls in CALLS.values() for call in calls for when in ("before", "after")]

LOOP = "10 exactly_once"
BANK = "10 service_with_a_bank, the order's own key"
STOPS = "A record that cannot be written stops the loop again after each restart."
RETENTION = "An order that retention deletes before the loop has read it is never paid, and no error says so."
TWICE = "An order that stands on the topic twice is paid twice."
PARTITIONS = "A loop with a static name that was down while its topic got more partitions does not read the new ones."
KEPT = "the bank keeps a charge whose record cannot be written"


@pytest.fixture(scope="module")
def lesson():
    names = load("10", orders=ORDERS)
    yield names
    names["admin"].close()
    names["lab"].stop()
    names["cluster"].stop()


RUNNING: list[Worker] = []


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    while RUNNING:
        RUNNING.pop().kill()


# -- what runs in a worker


def attacked(form, arguments, producer_settings=None, expire=None):
    """Run a form with a point before and after each call of its clients; its `expire`th record never leaves it."""
    KafkaProducer.DEFAULT_CONFIG = KafkaProducer.DEFAULT_CONFIG | (producer_settings or {})
    for kind, calls in CALLS.items():
        for call in calls:
            setattr(kind, call, with_points(call, getattr(kind, call)))
    if expire:
        KafkaProducer.send = losing(KafkaProducer.send, expire)
    form(*arguments)


def with_points(name, original):
    def call(self, *arguments, **settings):
        point(f"before {name}")
        result = original(self, *arguments, **settings)
        point(f"after {name}")
        return result

    return call


def losing(original, number):
    """`send` whose record of this number stays in the client until it expires, as while a leader is away."""
    sent = 0

    def send(self, topic, *arguments, **settings):
        nonlocal sent
        sent += 1
        if sent == number:
            self.flush()
            self._accumulator.muted.add(TopicPartition(topic, 0))
        return original(self, topic, *arguments, **settings)

    return send


EXPIRES_SOON = {"delivery_timeout_ms": 800, "request_timeout_ms": 500}


# -- a run of a form


class Run:
    """A source with orders, a target, and the processes of a form between them."""

    def __init__(self, lesson, form="exactly_once", cluster="cluster", extra=(), target_config=None, fill=True):
        self.lesson, self.form, self.cluster = lesson, lesson[form] if isinstance(form, str) else form, lesson[cluster]
        self.source, self.target = self.cluster.topic("orders"), self.cluster.topic("payments", config=target_config)
        self.group, self.id = self.cluster.group("payment"), self.cluster.transactional_id("payment")
        self.extra, self.workers, self.offsets = extra, [], None
        if fill:
            self.order(range(1, ORDERS + 1))

    def order(self, numbers, value="order {}", **settings) -> None:
        with KafkaProducer(**self.cluster.connection, **settings) as producer:
            for number in numbers:
                text = value.format(number).encode() if isinstance(value, str) else value
                producer.send(self.source, text, key=b"customer %d" % (number % 3)).get(timeout=30)
        self.offsets = None

    def start(self, id=None, producer_settings=None, expire=None, **lives) -> Worker:
        arguments = (self.cluster.connection, self.source, self.target, self.group, id or self.id, *self.extra)
        worker = Worker(attacked, self.form, arguments, producer_settings, expire, **lives)
        self.workers.append(worker)
        RUNNING.append(worker)
        return worker

    def finish(self, timeout=60) -> list[str]:
        """Wait until all orders are done, end the processes, and say what is wrong then."""
        wait_until(lambda: self.left() == 0, "all orders to be done", timeout, pause=0.1)
        return self.verdict()

    def left(self) -> int:
        """How many records of the source stand behind the group's committed offset."""
        with contextlib.ExitStack() as stack:
            ours = self.cluster is self.lesson["cluster"]
            admin = self.lesson["admin"] if ours else stack.enter_context(KafkaAdminClient(**self.cluster.connection))
            found = wait_until(  # a coordinator that has just come back refuses for a moment
                lambda: [admin.list_group_offsets([self.group])[self.group].get(TopicPartition(self.source, 0))],
                "the group's coordinator", 30, 0.1, retry=(KafkaError,),
            )[0]  # fmt: skip
        if self.offsets is None:
            self.offsets = [r.offset for r in read_topic(self.cluster, self.source) if r.partition == 0]
        return sum(offset >= (found.offset if found else 0) for offset in self.offsets)

    def paid(self) -> list[bytes]:
        return [record.value for record in read_topic(self.cluster, self.target)]

    def verdict(self) -> list[str]:
        """What is wrong on the target, when its processes are dead and what they left open is ended."""
        for worker in self.workers:
            worker.kill()
        for id in (self.id, f"{self.id}-2"):
            self.lesson["open_producer"](self.cluster.connection, id).close()
        wait_until(
            lambda: not any(m.kind == "stable" for m in capture_log(self.cluster, self.target).lanes[0].marks),
            "the last markers", 20,
        )  # fmt: skip
        return violations(read_topic(self.cluster, self.source), read_topic(self.cluster, self.target))


def violations(source, target) -> list[str]:
    """The invariants: each committed record of the source is on the target, once, in order within its key."""
    wanted, got = [Counter((r.key, r.value) for r in records) for records in (source, target)]
    wrong = [f"foreign: {value}" for _, value in got - wanted if (_, value) not in wanted]
    wrong += [f"lost: {value}" for _, value in wanted - got]
    wrong += [f"twice: {place[1]}" for place in got if 0 < wanted[place] < got[place]]
    for key in {key for key, _ in got}:
        order = list(dict.fromkeys(r.value for r in source if r.key == key))
        first = list(dict.fromkeys(r.value for r in target if r.key == key and r.value in order))
        if first != [value for value in order if value in first]:
            wrong.append(f"order: {key}")
    return wrong


def pick(points, count, seed=SEED):
    return random.Random(seed).sample(points, count)


# -- the loop


@accident(LOOP, [1, 2, 14, 17, 18])
def test_the_loop_killed_at_each_point_and_again_while_it_recovers(lesson):
    run = Run(lesson)
    again = [(place, n) for place in pick(POINTS, 8) for n in (2, 3)]  # right behind a start, too: a recovery dies
    worker = run.start(die_at=[*POINTS, *again], restarts=True)
    wait_until(lambda: run.left() == 0, "all orders to be done", 90, pause=0.1)
    assert {*POINTS} <= {*worker.points}
    second = run.start()  # all over again, with nothing left to do
    second.wait_for(("before poll", 1), 30)
    assert run.finish() == []


@accident(LOOP, [3, 15])
@pytest.mark.parametrize("place", pick(POINTS[2:], 3))
def test_the_loop_paused_while_another_process_takes_over_under_its_names(lesson, place):
    run = Run(lesson)
    zombie = run.start(hold_at=place)
    zombie.wait_for(place, 40)
    zombie.pause()
    run.start()
    wait_until(lambda: run.left() == 0, "the other one to do all orders", 40, pause=0.1)
    zombie.resume()
    zombie.release()
    run.order([ORDERS + 1])  # something for it to take
    wait_until(lambda: zombie.state != "running" or run.left() == 0, "the zombie to end, or the order to be done", 40)
    for worker in run.workers:
        worker.kill()
    if run.left():  # both may have ended: they have one static name
        run.start()
    assert run.finish() == []


@contextlib.contextmanager
def changed(lesson, **others):
    """The lesson with other functions under some of its names; a worker is given what the names hold at its start."""
    before = {name: lesson[name] for name in others}
    lesson.update(others)
    try:
        yield
    finally:
        lesson.update(before)


def member(lesson, max_poll_interval_ms, **settings):
    """`consume` as the lesson has it, for a member without a static name."""
    original = lesson["consume"]
    settings |= {"group_instance_id": None, "max_poll_interval_ms": max_poll_interval_ms, "heartbeat_interval_ms": 200}
    return lambda connection, source, group: original(connection, source, group, **settings)


def expelled_at(lesson, place, run, **settings):
    """One member is expelled at a point while another one, with an id of its own, does all of its orders."""
    with changed(lesson, consume=member(lesson, 1000, **settings)):
        slow = run.start(hold_at=place)
        slow.wait_for(place, 40)
    with changed(lesson, consume=member(lesson, 60_000, **settings)):
        run.start(id=f"{run.id}-2")
    return slow


WORKING = ["after poll", "after group_metadata", "before send", "after flush", "before send_offsets_to_transaction"]


@accident(LOOP, [3, 12, 15])
@pytest.mark.parametrize("place", pick(WORKING, 2))
def test_a_member_that_its_group_expels_at_work(lesson, place):
    run = Run(lesson)
    slow = expelled_at(lesson, place, run)
    wait_until(lambda: run.left() == 0, "the other one to do all orders", 40, pause=0.1)
    slow.release()
    wait_until(lambda: slow.state != "running" or slow.points[-1] == "before poll", "the slow one to go on", 40)
    assert run.finish() == []


@accident(LOOP, [3, 12])
def test_a_member_that_is_slow_behind_its_offsets(lesson):
    run = Run(lesson)
    slow = expelled_at(lesson, "before commit_transaction", run)
    run.workers[1].wait_for(("before poll", 1), 40)
    assert run.left() == ORDERS
    slow.release()
    assert run.finish() == []


@accident(LOOP, [4, 5])
@pytest.mark.parametrize("number", [1, 4])
def test_a_record_of_the_loop_expires(lesson, number):
    run = Run(lesson)
    first = run.start(producer_settings=EXPIRES_SOON, expire=number)
    assert first.wait(40).startswith("failed")
    run.start()
    assert run.finish() == []


@accident(LOOP, [4])
@pytest.mark.parametrize("place", ["before send_offsets_to_transaction", "before commit_transaction"])
def test_an_answer_that_does_not_come_in_time(lesson, place):
    run = Run(lesson, cluster="lab")
    first = run.start(producer_settings={"request_timeout_ms": 500, "delivery_timeout_ms": 800}, hold_at=place)
    first.wait_for(place, 40)
    run.cluster.pause(1)
    first.release()
    try:
        with contextlib.suppress(TimeoutError):  # it has asked, given up and asked again, or its process has ended
            wait_until(lambda: first.state != "running", "its end", 1.2)
    finally:
        run.cluster.resume(1)
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: first.state != "running" or run.left() == 0, "it to go on, or to end", 5)
    first.kill()  # lesson 10: have it watched, a client may wait for ever
    run.start()
    assert run.finish() == []


@weak(LOOP, 6, STOPS)
def test_a_refused_record_stops_the_loop_until_it_can_be_written(lesson):
    run = Run(lesson, target_config={"max.message.bytes": 300}, fill=False)
    run.order([1, 2])
    run.order([3], value=b"x" * 1000)
    run.order([4, 5])
    for _ in range(2):
        assert run.start().wait(40).startswith("failed")
    left = run.left()
    assert left >= 3
    resource = ConfigResource(ConfigResourceType.TOPIC, run.target, configs={"max.message.bytes": "5000"})
    lesson["admin"].alter_configs([resource])
    run.start()
    assert run.finish() == []


class Nothing(Serializer):
    """A serializer that writes no value for b"nothing", as Java's producer can."""

    def serialize(self, topic, headers, data):
        return None if data == b"nothing" else data


@weak(LOOP, 7, STOPS)
def test_a_record_with_neither_key_nor_value_stops_the_loop(lesson):
    run = Run(lesson)
    with KafkaProducer(**run.cluster.connection, value_serializer=Nothing()) as producer:
        producer.send(run.source, b"nothing").get(timeout=10)
    run.order([ORDERS + 1])
    for _ in range(2):
        assert run.start().wait(40).startswith("failed")
    assert run.left() == 2
    assert [wrong[:4] for wrong in run.verdict()] == ["lost", "lost"]


@accident(LOOP, [7, 16])
def test_a_tombstone_an_empty_value_a_header_twice_and_what_was_taken_back(lesson):
    run = Run(lesson)
    producer = lesson["open_producer"](run.cluster.connection, run.cluster.transactional_id("shop"))
    for end in (producer.abort_transaction, producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        name = b"committed" if end == producer.commit_transaction else b"taken back"
        producer.send(run.source, name, headers=[("a", b"1"), ("a", b""), ("", b"2")]).get(timeout=10)
        producer.send(run.source, None, key=name).get(timeout=10)
        producer.send(run.source, b"", key=name).get(timeout=10)
        end()
    producer.close()
    run.start()
    assert run.finish() == []


@weak(LOOP, 8, RETENTION)
def test_orders_that_retention_deletes_unread(lesson):
    run = Run(lesson)
    worker = run.start(hold_at="before commit_transaction")  # of orders 1 and 2
    worker.wait_for("before commit_transaction", 40)
    worker.kill()
    lesson["admin"].delete_records({TopicPartition(run.source, 0): 3})
    run.start()
    assert run.finish() == []  # of what is still there
    assert run.paid() == [b"order %d" % number for number in range(4, ORDERS + 1)]


@accident(LOOP, [9])
@pytest.mark.parametrize("meanwhile", ["down", "running"])
@pytest.mark.parametrize("more", [ORDERS - 2, ORDERS + 4])  # below and beyond the old committed offset
def test_the_source_is_made_anew(lesson, meanwhile, more):
    run = Run(lesson)
    worker = run.start()
    wait_until(lambda: run.left() == 0, "all orders to be done", 40, pause=0.1)
    if meanwhile == "down":
        worker.kill()
    lesson["admin"].delete_topics([run.source])
    wait_until(lambda: run.source not in lesson["admin"].list_topics(), "the topic to be gone")
    lesson["admin"].create_topics({run.source: {"num_partitions": 1, "replication_factor": 1}})
    with KafkaConsumer(**run.cluster.connection) as consumer:
        wait_until(lambda: consumer.partitions_for_topic(run.source), "the new topic", 20)
    run.order(range(ORDERS + 1, ORDERS + 1 + more))
    if meanwhile == "down":
        run.start()
    wait_until(lambda: len(run.paid()) == ORDERS + more, "all orders of both topics to be paid", 40, pause=0.2)
    assert [wrong for wrong in run.finish() if not wrong.startswith("foreign")] == []


@accident(LOOP, [12, 15])
def test_two_processes_with_one_static_name(lesson):
    run = Run(lesson)
    older = run.start(hold_at="after send_offsets_to_transaction")
    older.wait_for("after send_offsets_to_transaction", 40)
    newer = run.start(id=f"{run.id}-2")
    newer.wait_for("before poll", 40)
    older.release()
    wait_until(lambda: run.left() == 0 or older.state == newer.state != "running", "orders or ends", 60, pause=0.1)
    for worker in (older, newer):
        worker.kill()
    if run.left():
        run.start()
    assert run.finish() == []


@weak(LOOP, 9, PARTITIONS)
def test_the_source_gets_more_partitions_while_the_loop_is_down(lesson):
    run = Run(lesson)
    run.start().wait_for(("after commit_transaction", ORDERS // 2), 40)
    lesson["admin"].create_partitions({run.source: 2})
    run.workers[0].kill()
    run.start()
    with KafkaProducer(**run.cluster.connection) as producer:
        wait_until(lambda: producer.partitions_for(run.source) == {0, 1}, "the new partition", 20)
        for partition in (1, 0):
            producer.send(run.source, b"on %d" % partition, key=b"eve", partition=partition).get(timeout=10)
    wait_until(lambda: b"on 0" in run.paid(), "what is on the old partition", 40, pause=0.1)
    assert b"on 1" not in run.paid()
    run.workers[1].kill()
    # the coordinator forgets the member, as it does when the session has ended
    lesson["admin"].remove_group_members(run.group, [MemberToRemove(group_instance_id="payment service")])
    run.start()
    wait_until(lambda: b"on 1" in run.paid(), "what is on the new partition", 40, pause=0.1)
    assert [wrong for wrong in run.verdict() if not wrong.startswith("order")] == []


@weak(LOOP, 11, TWICE)
def test_an_order_that_stands_on_the_topic_twice(lesson):
    run = Run(lesson)
    run.order([1])
    run.start()
    assert run.finish() == []  # each record once
    assert run.paid().count(b"order 1") == 2


@accident("10 two steps in a row", [1, 2, 16])
def test_two_steps_each_killed(lesson):
    first = Run(lesson)
    second = Run(lesson, fill=False)
    second.source, second.group = first.target, second.group + "-mail"
    second.target, second.id = second.cluster.topic("mails"), second.id + "-mail"
    first.source, first.target = first.cluster.topic("orders-1"), second.source
    first.order(range(1, ORDERS + 1))
    places = [(place, n) for place in pick(POINTS, 6, seed=3) for n in (1, 2)]
    for run in (first, second):
        run.start(die_at=places, restarts=True)
    wait_until(lambda: first.left() == 0, "the first step", 60, pause=0.1)
    wait_until(lambda: len(read_topic(second.cluster, second.source)) == ORDERS, "its markers", 20)
    wait_until(lambda: second.left() == 0, "the second step", 60, pause=0.1)
    assert first.verdict() == second.verdict() == []


# -- the bank


def charged(bank) -> Counter:
    with contextlib.closing(sqlite3.connect(bank)) as database:
        return Counter(what for (what,) in database.execute("SELECT what FROM charges"))


@pytest.fixture
def bank(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "bank")) as database:
        database.execute("CREATE TABLE charges (key PRIMARY KEY, what)")
    return str(tmp_path / "bank")


def the_orders_own_key(record):
    return f"{record.value.decode()}/"


def charge_with_points(original):
    def charge(bank, key):
        point("before charge")
        original(bank, key)
        point("after charge")

    return charge


@accident(BANK, [1, 2, 17, 18])
def test_the_bank_when_its_service_is_killed_at_each_point(lesson, bank):
    with changed(lesson, charge=charge_with_points(lesson["charge"])):
        run = Run(lesson, "service_with_a_bank", extra=(bank, the_orders_own_key))
        places = ["before charge", "after charge", *POINTS]
        run.start(die_at=[*places, *((place, 2) for place in pick(places, 6))], restarts=True)
    assert run.finish(90) == []
    assert charged(bank) == Counter(f"order {number}" for number in range(1, ORDERS + 1))


@accident(BANK, [3, 15])
def test_the_bank_is_called_by_a_zombie(lesson, bank):
    with changed(lesson, charge=charge_with_points(lesson["charge"])):
        run = Run(lesson, "service_with_a_bank", extra=(bank, the_orders_own_key))
        zombie = run.start(hold_at="before charge")
        zombie.wait_for("before charge", 40)
        run.start()
    wait_until(lambda: run.left() == 0, "the other one to do all orders", 40, pause=0.1)
    zombie.release()
    zombie.wait(40)
    assert run.finish() == []
    assert charged(bank) == Counter(f"order {number}" for number in range(1, ORDERS + 1))


@accident(BANK, [10])
def test_the_bank_says_not_now(lesson, bank):
    with changed(lesson, charge=charge_with_points(lesson["charge"])):
        run = Run(lesson, "service_with_a_bank", extra=(bank, the_orders_own_key))
        worker = run.start(hold_at=("before charge", 2))
        worker.wait_for(("before charge", 2), 40)
        with contextlib.closing(sqlite3.connect(bank)) as other:
            other.execute("BEGIN EXCLUSIVE")
            worker.release()
            assert worker.wait(30).startswith("failed")
        run.start()
    assert run.finish() == []
    assert set(charged(bank).values()) == {1}


@weak(BANK, 6, KEPT)
def test_the_bank_keeps_a_charge_whose_record_is_refused(lesson, bank):
    run = Run(lesson, "service_with_a_bank", extra=(bank, the_orders_own_key), fill=False,
              target_config={"max.message.bytes": 300})  # fmt: skip
    run.order([1], value="order 1" + "!" * 1000)
    assert run.start().wait(40).startswith("failed")
    assert [wrong[:4] for wrong in run.verdict()] == ["lost"]
    assert len(charged(bank)) == 1


# -- the smallest form, and the questions


@accident("10 smallest form", [5, 6])
@pytest.mark.parametrize("away", ["topic1", "topic2", "refused"])
def test_the_smallest_form_writes_both_or_none(lesson, away, capsys):
    (cell,) = tagged(read(next(NOTEBOOKS.glob("10_*.ipynb"))), "form")
    cluster, names = lesson["cluster"], dict(lesson)

    class Losing(lesson_10._Losing):
        pass

    def transactional_producer(name):
        producer = Losing(**cluster.connection, **EXPIRES_SOON, transactional_id=cluster.transactional_id(name))
        producer.away = cluster._real(away)
        producer.init_transactions()
        return producer

    def take(consumer, n):
        return []  # nothing has come; the cell would wait for ten seconds

    if away == "refused":
        source = cell.source.replace(
            'cluster.topic("topic2")', 'cluster.topic("topic2", config={"max.message.bytes": 80})'
        )
    else:
        source = cell.source
    exec(source, names | {"transactional_producer": transactional_producer, "take": take})
    assert [read_topic(cluster, topic) for topic in ("topic1", "topic2")] == [[], []]


@accident("10 place (question 2)", [3, 5, 6])
@accident("10 move_orders (question 3)", [1, 2, 3, 5, 6, 12, 16, 18])
@accident("10 mail (question 4)", [1, 4, 11, 17, 18])
@pytest.mark.parametrize("question", [lesson_10.q2, lesson_10.q3, lesson_10.q4], ids=lambda question: question.name)
def test_the_solutions_under_what_their_judges_make_happen(lesson, question):
    outcome = question.try_answer(question.answer, lesson["cluster"], IMPORTS)
    assert outcome.state == RIGHT, f"{outcome}\n{outcome.trace}"


@accident("10 place (question 2)", [6])
def test_place_never_says_true_of_an_order_that_is_not_read(lesson):
    """The caller that uses the producer again all the same, as lesson 10 tells it not to."""
    names = dict(lesson)
    exec(lesson_10.q2.answer, names)
    cluster = lesson["cluster"]
    topic1, topic2 = cluster.topic("topic1"), cluster.topic("topic2", config={"max.message.bytes": 300})
    producer, said = lesson["transactional_producer"]("reused"), {}
    for number, mail in enumerate([b"mail", b"mail" * 200, b"mail", b"mail", b"mail"], 1):
        order = b"order %d" % number
        try:
            said[order] = names["place"](producer, topic1, topic2, order, mail)
        except Exception:
            said[order] = None
    producer.close(timeout=1)
    lesson["transactional_producer"]("reused").close()
    lesson["settled_log"](topic1)
    read_orders = [record.value for record in read_topic(cluster, topic1)]
    assert [order for order, answer in said.items() if answer] == read_orders
    assert said[b"order 2"] is False


# -- controls: each invariant catches a form that breaks it


def test_control_lost_and_twice(lesson):
    for form, place, wrong in [
        ("write_then_commit", ("after flush", 2), "twice"),
        ("commit_then_write", ("before send", 3), "lost"),
        ("write_in_a_transaction_then_commit", ("after commit_transaction", 2), "twice"),
    ]:
        run = Run(lesson, form)
        run.start(die_at=place, restarts=True)
        assert {found[: len(wrong)] for found in run.finish()} == {wrong}


def test_control_lost_when_nobody_looks_at_the_futures(lesson):
    with changed(lesson, all_written=lambda producer, futures: producer.flush()):
        run = Run(lesson)
        run.start(producer_settings=EXPIRES_SOON, expire=3)
    assert {found[:4] for found in run.finish()} == {"lost"}


def test_control_twice_with_the_groups_name(lesson):
    with changed(lesson, next_two=by_name(lesson["next_two"])):
        run = Run(lesson)
        slow = expelled_at(lesson, "before send_offsets_to_transaction", run)
        wait_until(lambda: run.left() == 0, "the other one to do all orders", 40, pause=0.1)
        slow.release()
        slow.wait_for("after commit_transaction", 20)
    assert {found[:5] for found in run.verdict()} == {"twice"}


def by_name(original):
    def next_two(consumer):
        records, membership = original(consumer)
        return records, membership.group_id

    return next_two


def test_control_twice_with_the_default_isolation_level_on_the_input(lesson):
    run = Run(lesson)
    slow = expelled_at(lesson, "before commit_transaction", run, isolation_level="read_uncommitted")
    wait_until(lambda: run.left() == 0, "the other one to do all orders", 40, pause=0.1)
    slow.release()
    slow.wait_for("after commit_transaction", 20)
    assert {found[:5] for found in run.verdict()} == {"twice"}


def test_control_foreign_and_order():
    class Record:
        def __init__(self, value, key=b"ann"):
            self.key, self.value = key, value

    source = [Record(b"1"), Record(b"2")]
    assert violations(source, source) == []
    assert violations(source, source[::-1]) == ["order: b'ann'"]
    assert violations(source, [*source, Record(b"3")]) == ["foreign: b'3'"]
    assert violations(source, [Record(b"1", b"bob"), source[1]]) == ["foreign: b'1'", "lost: b'1'"]
