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
import time
from collections import Counter
from types import SimpleNamespace

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.serializer import JsonSerializer
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from helpers import Cluster, Database
from tools.lessons import NOTEBOOKS, code_cells, read

FEW, MANY = 25, 150  # examples in every test run, and in the full one
TAKEN = ["change", "PUT", "DELETE", "COUNT", "update_query_model", "new_read_models", "naive_projector",
         "WHERE_IT_IS", "MOVE_TO", "Leap", "apply_once", "patiently", "CLAIM", "AnotherLog", "claim", "next_offsets",
         "SeekToProjected", "consumer_for", "projector", "apply_patiently",
         "update_by_batch", "all_or_nothing", "apply_batch"]  # fmt: skip
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
        "OperationalError": OperationalError,
        "TopicPartition": TopicPartition,
        "create_engine": create_engine,
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
def shop():
    with Cluster() as cluster, Database() as database:
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


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.full)])
def test_killed_anywhere_the_read_models_are_the_fold_of_the_log(shop, examples):
    deaths, spread = shop.deaths, shop.spread
    search(shop, "projector", examples)
    assert shop.deaths - deaths > examples / 2, "the kills came too late to kill anything"
    assert shop.spread > spread, "no log had events on both of its partitions"


@pytest.mark.parametrize("kind", NAIVE)
def test_the_naive_projectors_fail_the_same_search(shop, kind):
    with pytest.raises(AssertionError, match="=="):
        search(shop, kind, FEW)


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
