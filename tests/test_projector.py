"""Lesson 05's projector, killed between any two of its effects, leaves read models that are the fold of the log.

The projector is the lesson's own, taken from the notebook. Each run of it is a process, forked from a server process
without threads; it dies by SIGKILL, so its connections are cut and nothing is tidied up. The negative control: the
lesson's naive projectors do not survive the same kills.
"""

import ast
import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections import Counter

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.serializer import JsonSerializer
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from helpers import Cluster, Database
from tests.lessons import NOTEBOOKS, code_cells, read

FEW, MANY = 25, 150  # examples in every test run, and in the full one
TAKEN = ["change", "PUT", "DELETE", "COUNT", "MOVE", "update_query_model", "new_read_models", "naive_projector",
         "apply_once", "patiently", "next_offsets", "SeekToProjected", "projector",
         "apply_patiently"]  # fmt: skip
PROJECTORS = {"projector": (), "auto-commit": (), "commit first": (True,)}
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
        "JsonSerializer": JsonSerializer,
        "KafkaConsumer": KafkaConsumer,
        "OperationalError": OperationalError,
        "create_engine": create_engine,
        "point": lambda name: None,
        "read_side": None,
        "text": text,
        "time": time,
    }
    exec(CODE, names)
    return names


# -- the projector's process -------------------------------------------------------------------------------------------


def run_patiently(job: tuple, waits) -> None:
    """The whole process: run the projector that waits for its database; say so when it does."""
    names = lesson()
    names["point"] = lambda name: name == "waits for the database" and waits.set()
    names["projector"](*job, names["apply_patiently"])


def run(kind: str, job: tuple, dies_at: int | None) -> None:
    """The whole process: run a projector; die at its n-th effect."""
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
    around(psycopg.Cursor, "execute")
    around(psycopg.Connection, "commit")
    for method in ("seek", "commit", "close", "__next__"):
        around(KafkaConsumer, method)
    names["projector" if kind == "projector" else "naive_projector"](*job, *PROJECTORS[kind])


# -- the property ------------------------------------------------------------------------------------------------------


def fold(events: list[dict]) -> tuple[list, dict]:
    """What the read models have to be, said once more and in another way than by the lesson."""
    cancelled = {event["order"] for event in events if event["type"] == "ORDER_CANCELLED"}
    held = [event for event in events if event["order"] not in cancelled]
    sold = Counter({event["goods"]: 0 for event in events})
    for each in held:
        sold[each["goods"]] += each["quantity"]
    return sorted((each["order"], each["customer"], each["goods"], each["quantity"]) for each in held), dict(sold)


@st.composite
def histories(draw) -> list[dict]:
    """Events as the write side lets them through: numbers are taken once, and what is cancelled was placed before."""
    events = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        order = {"order": number, "customer": draw(st.sampled_from(["ann", "bob"])),
                 "goods": draw(st.sampled_from(["tea", "cup"])), "quantity": draw(st.integers(1, 3))}  # fmt: skip
        events.append(order | {"type": "ORDER_PLACED"})
        if draw(st.booleans()):
            events.append(order | {"type": "ORDER_CANCELLED"})
    return events


crashes = st.lists(st.integers(1, 50), min_size=1, max_size=3)


class Shop:
    """A real broker and a real database, and the projector in processes of its own."""

    def __init__(self, cluster: Cluster, database: Database):
        self.cluster, self.url = cluster, database.schema("shop")
        self.engine = create_engine(self.url)
        self.producer = KafkaProducer(**cluster.connection, value_serializer=JsonSerializer())
        self.admin = KafkaAdminClient(**cluster.connection)
        self.lesson = lesson()
        self.numbers = itertools.count(1)
        self.deaths = 0

    def close(self) -> None:
        for each in (self.producer, self.admin):
            each.close()
        self.engine.dispose()

    def begin(self, events: list[dict]) -> tuple:
        """Empty read models, and a log with these events; returns the job of a projector."""
        topic, group = self.cluster.topic("domain-events"), f"query-model-updater-{next(self.numbers)}"
        for each in events:
            self.producer.send(topic, each, key=each["customer"].encode())
        self.producer.flush()
        self.lesson["new_read_models"](self.engine)
        return self.cluster.connection, self.url, topic, group, len(events) - 1

    def check(self, kind: str, events: list[dict], dies_at: list[int]) -> None:
        """Project the events, with a crash at each of these effects; compare with the fold of the log."""
        job = self.begin(events)
        group = job[3]
        for effect in [*dies_at, None]:
            if self.next_offset(kind, group) < len(events):
                self.deaths += self.run(kind, job, effect) == -signal.SIGKILL
        self.compare(events)

    def compare(self, events: list[dict]) -> None:
        """The read models are the fold of the events."""
        with self.engine.connect() as connection:
            orders = connection.execute(text("SELECT * FROM orders_by_customer ORDER BY number")).all()
            sold = connection.execute(text("SELECT * FROM best_sellers")).all()
        assert (list(map(tuple, orders)), dict(map(tuple, sold))) == fold(events)

    def run(self, kind: str, job: tuple, effect: int | None) -> int:
        process = forked.Process(target=run, args=(kind, job, effect), daemon=True)
        process.start()
        process.join(30)
        assert process.exitcode in (0, -signal.SIGKILL), f"the projector ended with {process.exitcode}"
        return process.exitcode

    def next_offset(self, kind: str, group: str) -> int:
        """Where a projector that is started now would begin."""
        if kind == "projector":
            return self.lesson["next_offsets"](self.engine).get(0, 0)
        committed = self.admin.list_group_offsets(group)[group].values()
        return max([each.offset for each in committed], default=0)


@pytest.fixture(scope="module")
def shop():
    with Cluster() as cluster, Database() as database:
        shop = Shop(cluster, database)
        yield shop
        shop.close()


def search(shop: Shop, kind: str, examples: int) -> None:
    """Try the property; without shrinking, which takes long, and with the same examples each time."""

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(histories(), crashes)
    def holds(events, dies_at):
        shop.check(kind, events, dies_at)

    holds()


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.full)])
def test_killed_anywhere_the_read_models_are_the_fold_of_the_log(shop, examples):
    before = shop.deaths
    search(shop, "projector", examples)
    assert shop.deaths - before > examples / 2, "the kills came too late to kill anything"


@pytest.mark.parametrize("kind", ["auto-commit", "commit first"])
def test_the_naive_projectors_fail_the_same_search(shop, kind):
    with pytest.raises(AssertionError, match="=="):
        search(shop, kind, FEW)


def test_a_dead_database_is_waited_for_from_the_start(shop):
    """It is away when the projector is given its partitions, where the lesson takes it away later."""
    order = {"customer": "ann", "goods": "tea", "quantity": 1, "type": "ORDER_PLACED"}
    events = [order | {"order": number} for number in (1, 2, 3)]
    with Database(embedded=True) as database, contextlib.closing(Shop(shop.cluster, database)) as own:
        job = own.begin(events)
        database.kill()
        waits = forked.Event()
        process = forked.Process(target=run_patiently, args=(job, waits), daemon=True)
        process.start()
        assert waits.wait(30)
        database.restart()
        process.join(30)
        assert process.exitcode == 0
        own.engine.dispose()  # its connections died with the database
        own.compare(events)
