"""Lesson 05's projector, killed between any two of its effects, leaves read models that are the fold of the log.

The projector is the lesson's own, taken from the notebook. Each run of it is a process, forked from a server process
without threads; it dies by SIGKILL, so its connections are cut and nothing is tidied up. The negative control: the
lesson's naive projectors do not survive the same kills.

So do the lesson's ways to apply records, when two have the same ones in their hands, cut into different batches, and
transactions break. The negative control: a batch that is refused as a whole loses events.
"""

import ast
import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from types import SimpleNamespace

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, OffsetOutOfRangeError
from kafka.serializer import JsonSerializer
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from helpers import Cluster, Database, read_topic, wait_until
from tests.accidents.matrix import accident, weak
from tools.lessons import NOTEBOOKS, code_cells, read

PROJECTOR = "05 projector"
WRITE_SIDE = "05 execute_command"
SWITCH = "05 make_live"
GONE = (
    "If events are deleted from the log before they are applied, the projector stops with `OffsetOutOfRangeError`, "
    "and no code brings them back."
)
ANEW = (
    "A topic made anew is another log: the projector stops with `AnotherLog`, or with `OffsetOutOfRangeError` "
    "if it is shorter, and you build the read models again."
)
POISON = "An event that the projector cannot read or apply stops it there, again at each start"
TWICE = "The offset tells records apart, not events: an event that is written twice counts twice."
LATE = "an event whose `send` timed out may still reach the log after that"

FEW = 25  # examples
TAKEN = ["change", "PUT", "DELETE", "COUNT", "update_query_model", "new_read_models", "naive_projector",
         "WHERE_IT_IS", "MOVE_TO", "Leap", "apply_once", "patiently", "CLAIM", "AnotherLog", "claim", "next_offsets",
         "SeekToProjected", "consumer_for", "projector", "apply_patiently",
         "update_by_batch", "all_or_nothing", "apply_batch", "switch", "make_live",
         "Shop", "Refused", "create_event_from_command", "execute_command"]  # fmt: skip
NAIVE = {"auto-commit": (), "commit first": (True,)}
forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload([__name__])


def name_of(node: ast.stmt) -> str | None:
    """What a definition or an assignment gives a name to."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return getattr(node, "name", None)


def taken() -> ast.Module:
    """The functions of the notebook that are tried here."""
    sources = [cell.source for cell in code_cells(read(NOTEBOOKS / "05_cqrs.ipynb"))]
    found = [node for source in sources for node in ast.parse(source).body if name_of(node) in TAKEN]
    assert sorted(map(name_of, found)) == sorted(TAKEN)
    return ast.Module(found, [])


CODE = compile(taken(), "05_cqrs", "exec")  # by the server process, once


def lesson() -> dict:
    """A namespace with these functions."""
    names = {
        "ConsumerRebalanceListener": ConsumerRebalanceListener,
        "Counter": Counter,
        "JsonSerializer": JsonSerializer,
        "KafkaAdminClient": KafkaAdminClient,
        "KafkaConsumer": KafkaConsumer,
        "KafkaError": KafkaError,
        "OperationalError": OperationalError,
        "TopicPartition": TopicPartition,
        "create_engine": create_engine,
        "orders": 12,
        "producer": None,
        "read_topic": read_topic,
        "point": lambda name: None,
        "read_side": None,
        "text": text,
        "time": time,
    }
    exec(CODE, names)
    return names


# -- the projector's process -------------------------------------------------------------------------------------------


def run_patiently(job: tuple, last: int, waits) -> None:
    """The whole process: run the projector that waits for its database; say so when it does."""
    names = lesson()
    names["point"] = lambda name: name == "waits for the database" and waits.set()
    names["projector"](*job, last, names["apply_patiently"])


class AllApplied(Exception):
    """The projector has done all that there is, on whichever partitions."""


def run(kind: str, job: tuple, count: int, dies_at: int | None) -> None:
    """The whole process: run a projector until `count` events are applied; die at its n-th effect."""
    effects = itertools.count(1)

    def step(*_):
        if next(effects) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(kind, name):
        method = getattr(kind, name)

        def call(*arguments, **keywords):
            step()
            result = method(*arguments, **keywords)
            step()
            return result

        setattr(kind, name, call)

    names = lesson()

    def apply(engine, record, since):
        names["apply_once"](engine, record, since)
        if sum(names["next_offsets"](engine).values()) == count:
            raise AllApplied

    around(psycopg.Cursor, "execute")
    around(psycopg.Connection, "commit")
    for method in ("seek", "commit", "close", "__next__"):
        around(KafkaConsumer, method)
    if kind in NAIVE:
        names["naive_projector"](*job, count - 1, *NAIVE[kind])  # of one partition: up to the last offset
    else:
        with contextlib.suppress(AllApplied):
            names["projector"](*job, apply=apply)


# -- the property ------------------------------------------------------------------------------------------------------


def fold(events: list[dict]) -> tuple[list, dict]:
    """What the read models have to be, said once more and in another way than by the lesson."""
    cancelled = {event["order"] for event in events if event["type"] == "ORDER_CANCELLED"}
    held = [event for event in events if event["order"] not in cancelled]
    sold = Counter({event["goods"]: 0 for event in events})
    for each in held:
        sold[each["goods"]] += each["quantity"]
    return sorted((each["order"], each["customer"], each["goods"], each["quantity"]) for each in held), dict(sold)


def history(lot: random.Random, most: int = 4) -> list[dict]:
    """Events as the write side lets them through: numbers are taken once, and what is cancelled was placed before."""
    events, held = [], []
    for number in range(1, lot.randint(1, most) + 1):
        held.append({"order": number, "customer": lot.choice(["ann", "dan"]),  # of two partitions, one each
                     "goods": lot.choice(["tea", "cup"]), "quantity": lot.randint(1, 3)})  # fmt: skip
        events.append(held[-1] | {"type": "ORDER_PLACED"})
        if lot.random() < 0.5:
            events.append(held.pop(lot.randrange(len(held))) | {"type": "ORDER_CANCELLED"})
    return events


def crashes(lot: random.Random) -> list[int]:
    """At which effect the first run dies, the second …"""
    return [lot.randint(1, 50) for _ in range(lot.randint(1, 3))]


def steps(lot: random.Random) -> list[tuple]:
    """Who comes next, with how many records, and at which statement the connection breaks; one goes on to the end."""
    who = ["first", "second"]
    taken = [(lot.choice(who), lot.randint(1, 5), lot.choice([None, None, *range(1, 7)])) for _ in range(6)]
    return [*taken[: lot.randint(0, 6)], (lot.choice(who), None, None)]


WAYS = {
    "event by event": lambda names, engine, records: [names["apply_once"](engine, record) for record in records],
    "in batches": lambda names, engine, records: names["apply_batch"](engine, records),
    "all or nothing": lambda names, engine, records: names["all_or_nothing"](engine, records),
}


class Broken(Exception):
    """The connection to the database is no more, and with it the transaction."""


@contextlib.contextmanager
def breaking(engine, breaks_at: int | None):
    """The n-th statement from here on fails."""
    statements = itertools.count(1)

    def step(*_):
        if next(statements) == breaks_at:
            raise Broken

    event.listen(engine, "before_cursor_execute", step)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", step)


class Shop:
    """A real broker and a real database, and the projector in processes of its own."""

    def __init__(self, cluster: Cluster, database: Database):
        self.cluster, self.url = cluster, database.schema("shop")
        self.engine = create_engine(self.url)
        self.producer = KafkaProducer(**cluster.connection, value_serializer=JsonSerializer())
        self.admin = KafkaAdminClient(**cluster.connection)
        self.lesson = lesson()
        self.lesson["cluster"] = cluster
        self.numbers = itertools.count(1)
        self.deaths = self.spread = 0  # kills that came in time; logs with events on two partitions

    def close(self) -> None:
        for each in (self.producer, self.admin):
            each.close()
        self.engine.dispose()

    def begin(self, events: list[dict], partitions: int = 1) -> tuple:
        """Empty read models, and a log with these events; returns the job of a projector."""
        # A name for each number: a producer would go on with the number that it knows.
        topic = self.cluster.topic(f"domain-events-{partitions}", partitions=partitions)
        group = f"query-model-updater-{next(self.numbers)}"
        for each in events:
            self.producer.send(topic, each, key=each["customer"].encode())
        self.producer.flush()
        self.lesson["new_read_models"](self.engine)
        return self.cluster.connection, self.url, topic, group

    def check(self, kind: str, events: list[dict], partitions: int, dies_at: list[int]) -> None:
        """Project the events, with a crash at each of these effects; compare with the fold of the log."""
        job = self.begin(events, partitions)
        for effect in [*dies_at, None]:
            if self.done(kind, group=job[-1]) < len(events):
                self.deaths += self.run(kind, job, len(events), effect) == -signal.SIGKILL
        self.spread += all(self.lesson["next_offsets"](self.engine).get(n) for n in (0, 1))
        self.compare(events)

    def interleave(self, way: str, events: list[dict], steps: list[tuple]) -> None:
        """Two who think that the partition is theirs apply its records, each from its own place on; see `steps`."""
        log = [SimpleNamespace(partition=0, offset=offset, value=each) for offset, each in enumerate(events)]
        self.lesson["new_read_models"](self.engine)
        places = {"first": 0, "second": 0}
        for who, count, breaks_at in steps:
            records = log[places[who] :][:count]
            try:
                with breaking(self.engine, breaks_at):
                    if records:
                        WAYS[way](self.lesson, self.engine, records)
                places[who] += len(records)
            except Broken:  # it starts anew, where the database says
                places[who] = self.lesson["next_offsets"](self.engine).get(0, 0)
        self.compare(events)

    def compare(self, events: list[dict]) -> None:
        """The read models are the fold of the events."""
        with self.engine.connect() as connection:
            orders = connection.execute(text("SELECT * FROM orders_by_customer ORDER BY number")).all()
            sold = connection.execute(text("SELECT * FROM best_sellers")).all()
        assert (list(map(tuple, orders)), dict(map(tuple, sold))) == fold(events)

    def run(self, kind: str, job: tuple, count: int, effect: int | None) -> int:
        process = forked.Process(target=run, args=(kind, job, count, effect), daemon=True)
        process.start()
        process.join(30)
        assert process.exitcode in (0, -signal.SIGKILL), f"the projector ended with {process.exitcode}"
        return process.exitcode

    def done(self, kind: str, group: str) -> int:
        """How many events a projector that is started now would not read again."""
        if kind == "projector":
            return sum(self.lesson["next_offsets"](self.engine).values())
        committed = self.admin.list_group_offsets(group)[group].values()
        return max([each.offset for each in committed], default=0)


@pytest.fixture(scope="module")
def database():
    with Database() as database:
        yield database


@pytest.fixture(scope="module")
def shop(database):
    with Cluster() as cluster:
        shop = Shop(cluster, database)
        yield shop
        shop.close()


def try_examples(examples: int, holds) -> None:
    """Call `holds` with a lot for each example. They are the same in every run; a failure names its lot.

    Hypothesis draws the lot, and the lot what happens: drawn one by one, a few examples would be small, and alike.
    """

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.randoms(use_true_random=True))
    def example(lot):
        holds(lot)

    example()


def search(shop: Shop, kind: str, examples: int) -> None:
    """Try the property of a projector that is killed."""
    partitions = 1 if kind in NAIVE else 2
    try_examples(examples, lambda lot: shop.check(kind, history(lot), lot.randint(1, partitions), crashes(lot)))


def overlap(shop: Shop, way: str) -> None:
    """Try the property of two that have the same records in their hands."""
    try_examples(2 * FEW, lambda lot: shop.interleave(way, history(lot, most=8), steps(lot)))


@accident(PROJECTOR, [1, 2, 17, 18])
def test_killed_anywhere_the_read_models_are_the_fold_of_the_log(shop):
    deaths, spread = shop.deaths, shop.spread
    search(shop, "projector", FEW)
    assert shop.deaths - deaths > FEW / 2, "the kills came too late to kill anything"
    assert shop.spread > spread, "no log had events on both of its partitions"


@pytest.mark.parametrize("kind", NAIVE)
def test_the_naive_projectors_fail_the_same_search(shop, kind):
    with pytest.raises(AssertionError, match="=="):
        search(shop, kind, FEW)


@accident(PROJECTOR, [3, 15])
@pytest.mark.parametrize("way", ["event by event", "in batches"])
def test_two_with_the_same_records_apply_each_once(shop, way):
    overlap(shop, way)


def test_a_batch_that_is_refused_as_a_whole_fails_the_same_search(shop):
    with pytest.raises(AssertionError, match="=="):
        overlap(shop, "all or nothing")


def test_a_batch_waits_for_one_of_the_same_partition(shop):
    """The row is locked, whether it was there before or not."""
    log = [SimpleNamespace(partition=0, offset=0, value=history(random.Random(0))[0])]
    shop.lesson["new_read_models"](shop.engine)
    impatient = create_engine(shop.url)
    event.listen(impatient, "begin", lambda connection: connection.exec_driver_sql("SET lock_timeout = '50ms'"))
    for _ in ("made", "found"):
        with shop.engine.begin() as transaction:
            transaction.execute(text(shop.lesson["WHERE_IT_IS"]), {"partition": 0})
            with pytest.raises(OperationalError, match="lock timeout"):
                shop.lesson["apply_batch"](impatient, log)
    assert shop.lesson["apply_batch"](impatient, log) == 1
    impatient.dispose()


@accident(PROJECTOR, [10])
def test_a_dead_database_is_waited_for_from_the_start(shop):
    """It is away when the projector is given its partitions, where the lesson takes it away later."""
    order = {"customer": "ann", "goods": "tea", "quantity": 1, "type": "ORDER_PLACED"}
    events = [order | {"order": number} for number in (1, 2, 3)]
    with Database(embedded=True) as database, contextlib.closing(Shop(shop.cluster, database)) as own:
        job = own.begin(events)
        database.kill()
        waits = forked.Event()
        process = forked.Process(target=run_patiently, args=(job, len(events) - 1, waits), daemon=True)
        process.start()
        assert waits.wait(30)
        database.restart()
        process.join(30)
        assert process.exitcode == 0
        own.engine.dispose()  # its connections died with the database
        own.compare(events)


# -- one projector, in this process ------------------------------------------------------------------------------------

TABLES = ["orders_by_customer", "best_sellers", "projected"]


def some_events(count: int = 6) -> list[dict]:
    order = {"customer": "ann", "type": "ORDER_PLACED"}
    goods = ["tea", "cup"]
    return [order | {"order": n, "goods": goods[n % 2], "quantity": 1 + n % 3} for n in range(1, count + 1)]


class Done(Exception):
    """Enough was applied."""


def project(shop, job, until, before=lambda engine, record, since: None, apply=None, **settings):
    """The lesson's projector until the database is at an offset; `before` comes before each record is applied."""
    names = shop.lesson

    def one(engine, record, since):
        before(engine, record, since)
        (apply or names["apply_once"])(engine, record, since)
        if names["next_offsets"](shop.engine).get(0) == until:
            raise Done

    with contextlib.suppress(Done):
        names["projector"](*job, apply=one, **settings)


def tables(shop) -> dict:
    with shop.engine.connect() as connection:
        return {name: list(map(tuple, connection.execute(text(f"SELECT * FROM {name}")))) for name in TABLES}


def restore(shop, backup: dict) -> None:
    with shop.engine.begin() as connection:
        for name, rows in backup.items():
            connection.execute(text(f"TRUNCATE {name}"))
            for row in rows:
                values = {f"v{n}": value for n, value in enumerate(row)}
                connection.execute(text(f"INSERT INTO {name} VALUES ({', '.join(':' + v for v in values)})"), values)


def comes_back_older(shop, job, backup_at, restored_at):
    """Before a record of one offset is applied, the database goes back to where it was at another one; once."""
    backups = []

    def before(engine, record, since):
        if record.offset == backup_at and not backups:
            backups.append(tables(shop))
        if record.offset == restored_at and len(backups) == 1:
            restore(shop, backups[0])
            backups.append(None)

    return before


PAIRS = [(back, at) for at in range(1, 6) for back in range(at)]


@accident(PROJECTOR, [10])
@pytest.mark.parametrize("back, at", random.Random(5).sample(PAIRS, 4))
def test_a_database_that_comes_back_older_gets_all_events_again(shop, back, at):
    events = some_events()
    job = shop.begin(events)
    project(shop, job, len(events), comes_back_older(shop, job, back, at))
    shop.compare(events)


def test_control_a_projector_that_does_not_look_loses_events(shop):
    events = some_events()
    job = shop.begin(events)

    def never_leaps(engine, record, since):
        shop.lesson["apply_once"](engine, record, 0)

    project(shop, job, len(events), comes_back_older(shop, job, 2, 4), apply=never_leaps)
    with pytest.raises(AssertionError, match="=="):
        shop.compare(events)


@accident(PROJECTOR, [4, 10])
@pytest.mark.parametrize("statement", range(1, 7))
def test_the_databases_session_is_ended_before_a_statement(shop, statement):
    events, left, engines = some_events(3), itertools.count(1), []
    job = shop.begin(events)

    def cut(connection, *told):
        if next(left) == statement:
            pid = connection.connection.dbapi_connection.info.backend_pid
            with shop.engine.connect() as other:
                other.execute(text(f"SELECT pg_terminate_backend({pid}, 5000)"))

    def before(engine, record, since):
        if not engines:
            engines.append(engine)
            event.listen(engine, "before_cursor_execute", cut)

    project(shop, job, len(events), before, apply=shop.lesson["apply_patiently"])
    assert next(left) > statement
    shop.compare(events)


@accident(PROJECTOR, [4])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_commit_whose_answer_is_lost(shop, n):
    events, commits, engines = some_events(3), itertools.count(1), []
    job = shop.begin(events)

    def lost(connection):
        if next(commits) == n:
            connection.connection.dbapi_connection.commit()
            connection.connection.dbapi_connection.close()

    def before(engine, record, since):
        if not engines:
            engines.append(engine)
            event.listen(engine, "commit", lost)

    project(shop, job, len(events), before, apply=shop.lesson["apply_patiently"])
    shop.compare(events)


@accident(PROJECTOR, [16])
@pytest.mark.parametrize("level, exact", [("read_committed", True), ("read_uncommitted", False)])
def test_events_that_were_taken_back(shop, level, exact):
    """With the default isolation level, which is the control, they count."""
    events = some_events(4)
    job = shop.begin(events[:2])
    with KafkaProducer(
        **shop.cluster.connection, value_serializer=JsonSerializer(), transactional_id="taken back"
    ) as other:
        other.init_transactions()
        for end in (other.abort_transaction, other.commit_transaction, other.abort_transaction):
            other.begin_transaction()
            number = 3 if end == other.commit_transaction else 90
            value = (events[2] if number == 3 else events[2] | {"order": number}) | {"customer": "ann"}
            other.send(job[2], value, key=b"ann").get(timeout=10)
            end()
        other.init_transactions()  # returns when the markers are written
    shop.producer.send(job[2], events[3], key=b"ann").get(timeout=10)
    last = read_topic(shop.cluster, job[2])[-1].offset
    project(shop, job, last + 1, isolation_level=level)
    with contextlib.nullcontext() if exact else pytest.raises(AssertionError, match="=="):
        shop.compare(events)


@weak(PROJECTOR, 8, GONE)
def test_events_that_are_deleted_before_they_are_applied(shop):
    events = some_events()
    job = shop.begin(events)
    project(shop, job, 2)
    shop.admin.delete_records({TopicPartition(job[2], 0): 4})
    for _ in range(2):
        with pytest.raises(OffsetOutOfRangeError):
            project(shop, job, len(events))
    shop.compare(events[:2])


def make_anew(shop, topic, events):
    """Delete the topic and make it again, as an operator does; groups and clients live on."""
    shop.admin.delete_topics([topic])
    wait_until(lambda: topic not in shop.admin.list_topics(), "the topic to be gone")
    shop.admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
    with KafkaProducer(**shop.cluster.connection, value_serializer=JsonSerializer()) as producer:
        wait_until(lambda: producer.partitions_for(topic), "the new topic", 20)
        for each in events:
            producer.send(topic, each, key=each["customer"].encode()).get(timeout=20)


@weak(PROJECTOR, 9, ANEW)
@pytest.mark.parametrize("count", [1, 8])
def test_a_topic_that_is_made_anew_while_the_projector_is_down(shop, count):
    events = some_events()
    job = shop.begin(events)
    project(shop, job, 3)
    make_anew(shop, job[2], some_events(count))
    for _ in range(2):
        with pytest.raises((shop.lesson["AnotherLog"], OffsetOutOfRangeError)) as stopped:
            project(shop, job, len(events))
        assert (stopped.type is OffsetOutOfRangeError) == (count == 1)
    shop.compare(events[:3])


@weak(PROJECTOR, 9, ANEW)
def test_a_topic_that_is_made_anew_while_the_projector_works(shop):
    events, anew = some_events(), []
    job = shop.begin(events)

    def before(engine, record, since):
        if record.offset == 2 and not anew:
            anew.append(make_anew(shop, job[2], some_events(8)))

    with pytest.raises((shop.lesson["AnotherLog"], OffsetOutOfRangeError)):
        project(shop, job, len(events), before, max_poll_records=1)
    shop.compare(events[:3])


def test_control_without_a_look_at_the_topics_id_events_of_two_logs_are_mixed(shop, monkeypatch):
    events = some_events()
    job = shop.begin(events)
    project(shop, job, 3)
    make_anew(shop, job[2], some_events(8))
    monkeypatch.setattr(shop.lesson["SeekToProjected"], "check", lambda self, partition: None)
    project(shop, job, 8)
    with pytest.raises(AssertionError, match="=="):
        shop.compare(some_events(3))


@weak(PROJECTOR, 7, POISON)
@pytest.mark.parametrize(
    "value", [b"\xff{", None, b"17", b"null", b'["order"]', b'{"type": "ORDER_PLACED"}', b'{"type": "DANCE"}',
              b'{"type": "ORDER_PLACED", "order": "x", "customer": "a", "goods": "tea", "quantity": 1}']
)  # fmt: skip
def test_an_event_that_cannot_be_applied_stops_the_projector_and_nothing_is_passed_over(shop, value):
    events = some_events(2)
    job = shop.begin(events)
    with KafkaProducer(**shop.cluster.connection) as producer:
        producer.send(job[2], value, key=b"ann").get(timeout=10)
    shop.producer.send(job[2], events[0] | {"order": 3}, key=b"ann").get(timeout=10)
    for _ in range(2):
        with pytest.raises(Exception) as stopped:
            project(shop, job, 4)
        assert not isinstance(stopped.value, KafkaError), stopped.value
    shop.compare(events)


@weak(PROJECTOR, 11, TWICE)
def test_an_event_that_is_written_twice(shop):
    events = some_events(2)
    job = shop.begin([*events, events[1]])
    project(shop, job, 3)
    with pytest.raises(AssertionError, match="=="):
        shop.compare(events)


# -- the write side ----------------------------------------------------------------------------------------------------


def command(number, goods="pot"):
    return {"type": "PLACE_ORDER", "order": number, "customer": "ann", "goods": goods, "quantity": 1}


class Unanswered:
    """A producer whose acknowledgement does not come; the record is written at once, later, or never."""

    def __init__(self, producer, when):
        self.producer, self.when, self.later = producer, when, []

    def send(self, *arguments, **settings):
        write = lambda: self.producer.send(*arguments, **settings).get(timeout=10)  # noqa: E731
        if self.when == "at once":
            write()
        self.later.append(write)

        def get(timeout):
            raise KafkaTimeoutError("no answer")

        return SimpleNamespace(get=get)


@accident(WRITE_SIDE, [4, 5])
@pytest.mark.parametrize("when", ["at once", "never"])
def test_after_a_timeout_the_write_side_decides_nothing_until_it_has_read_the_log(shop, when):
    _, _, topic, _ = shop.begin([])
    names = shop.lesson
    side = names["Shop"](topic)
    with pytest.raises(KafkaTimeoutError):
        names["execute_command"](command(1), side, Unanswered(shop.producer, when))
    for number in (1, 2):
        with pytest.raises(names["Refused"], match="anew"):
            names["execute_command"](command(number), side, shop.producer)
    anew = names["Shop"](topic)
    assert anew.stock["pot"] == (0 if when == "at once" else 1)
    with contextlib.suppress(names["Refused"]):
        names["execute_command"](command(2), anew, shop.producer)
    assert names["Shop"](topic).stock["pot"] == 0


@weak(WRITE_SIDE, 4, LATE)
def test_an_event_that_reaches_the_log_after_the_write_side_has_read_it(shop):
    _, _, topic, _ = shop.begin([])
    names, slow = shop.lesson, Unanswered(shop.producer, "later")
    with pytest.raises(KafkaTimeoutError):
        names["execute_command"](command(1), names["Shop"](topic), slow)
    names["execute_command"](command(2), names["Shop"](topic), shop.producer)
    slow.later[0]()
    assert names["Shop"](topic).stock["pot"] == -1


# -- switching over ----------------------------------------------------------------------------------------------------


@accident(SWITCH, [10, 17])
def test_a_switch_to_another_shape_again_and_again_behind_a_long_query_while_others_ask(shop, database):
    old, new, front = (create_engine(database.schema(name)) for name in ("old", "new", "front"))
    for engine, columns in ((old, "goods text, sold int"), (new, "orders int, goods text, sold int")):
        with engine.begin() as connection:
            connection.execute(text(f"CREATE TABLE best_sellers ({columns})"))
    shop.lesson["make_live"](old, front)
    with front.connect() as long_query, front.connect() as others:
        others.execute(text("SET lock_timeout = '5s'"))
        long_query.execute(text("SELECT goods FROM best_sellers"))
        switch = threading.Thread(target=shop.lesson["make_live"], args=(new, front))
        switch.start()
        for _ in range(100):
            others.execute(text("SELECT goods, sold FROM best_sellers")).all()
            others.rollback()
            time.sleep(0.01)
        assert switch.is_alive(), "it has not waited for the long query"
        long_query.rollback()
        switch.join(30)
    for engine, count in ((new, 3), (old, 2), (old, 2), (new, 3)):
        shop.lesson["make_live"](engine, front)
        with front.connect() as connection:
            assert len(connection.execute(text("SELECT * FROM best_sellers")).keys()) == count
    for engine in (old, new, front):
        engine.dispose()
