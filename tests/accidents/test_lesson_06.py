"""Lesson 06's safe saga, by choreography and with an orchestrator, under the catalogue of accidents.

Tested is the code of the notebook's own cells, with a real PostgreSQL. Most accidents happen on a log in memory that
stands in for the broker (`Log`): so a history takes some hundredths of a second, and each point of it can be hit. What
the broker itself does to a saga happens on a real one, further down.

After each history: every saga is at an end (or a person is asked, and what the person does brings it there), the books
are right, no service has stopped, and reading everything a second time changes nothing.
"""

import itertools
import json
import random
from collections import defaultdict
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import KafkaTimeoutError, OffsetOutOfRangeError
from psycopg.errors import LockNotAvailable
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from helpers import Worker, wait_until
from tests.accidents.harm import MORE, SEED, At, Died, nothing
from tests.accidents.lesson import load
from tests.accidents.matrix import accident, weak

pytestmark = pytest.mark.full

FORM = {"choreography": "06 saga", "orchestration": "06 saga, orchestrated"}
WAYS = pytest.mark.parametrize("way", FORM)


def both(kinds: list[int]):
    """Both forms survive these kinds."""
    return lambda test: accident(form=FORM["orchestration"], kinds=kinds)(
        accident(form=FORM["choreography"], kinds=kinds)(WAYS(test))
    )


def both_weak(kind: int, sentence: str):
    """Neither form survives this kind."""
    return lambda test: weak(form=FORM["orchestration"], kind=kind, sentence=sentence)(
        weak(form=FORM["choreography"], kind=kind, sentence=sentence)(test)
    )


@pytest.fixture(scope="module")
def lesson():
    """What the set-up cells of the notebook define, with a broker and a database that run."""
    names = load("06")
    found = SimpleNamespace(names=names, **{name: thing for name, thing in names.items() if not name.startswith("__")})
    yield found
    found.producer.close()
    found.database.stop()
    found.cluster.stop()


# -- a log in memory, and services that read it


class Log:
    """What a topic of one partition does for this lesson. `told` is asked before each message; it may raise."""

    def __init__(self):
        self.records, self.told = [], lambda message: None

    def append(self, value) -> None:
        self.records.append(SimpleNamespace(value=value, offset=len(self.records), partition=0, key=None))

    def send(self, topic, message, key):
        self.told(message)
        self.append(json.dumps(message).encode())
        return SimpleNamespace(get=lambda timeout: None)


class Reader:
    """A consumer of one group on a `Log`; `log.places` keeps the offsets that groups have committed."""

    def __init__(self, log, places, group):
        self.log, self.places, self.group = log, places, group
        self.at = places[group]

    def position(self, place):
        return self.at

    def end_offsets(self, places):
        return {place: len(self.log.records) for place in places}

    def poll(self, timeout_ms, max_records):
        record, self.at = self.log.records[self.at], self.at + 1
        return {"place": [record]}

    def seek(self, place, offset):
        self.at = offset

    def commit(self):
        self.places[self.group] = self.at

    def close(self):
        pass


class World:
    """A shop of the lesson whose services read a `Log`, and accidents that happen to them.

    `accident` is called at each point and before each SQL statement, with the service's name, a connection (or None)
    and the point or the statement.
    """

    def __init__(self, lesson, way, sagas=100, **shelf):
        self.lesson, (self.turn, saga) = lesson, lesson.both_ways[way]
        saga = saga | lesson.LOCK
        if way == "orchestration":
            ends = [f"SELL_INVENTORY_{end}" for end in ["DONE", "REFUSED", "FAILED"]]
            saga |= {end: lesson.Step("orchestrator", "") for end in ends}
        numbers = range(1, sagas + 1)
        stock = {f"cup {n}": 5 for n in numbers} | shelf.get("stock", {})
        money = {f"customer {n}": 100 for n in numbers} | shelf.get("money", {})
        self.shop = lesson.open_safe_shop(stock, money, saga=saga)
        lesson.change(self.shop, "inventory", lesson.add_sold)
        self.log, self.places, self.number, self.helped = Log(), defaultdict(int), 0, []
        self.engines = {
            name: create_engine(self.shop.databases[name], pool_pre_ping=True) for name in self.shop.services
        }
        self.others = {name: create_engine(self.shop.databases[name]) for name in self.shop.services}
        self.accident = nothing
        for name, engine in self.engines.items():
            event.listen(engine, "before_cursor_execute", self._statement(name))
        self.services = {name: self.service(name) for name in self.shop.services}

    def _statement(self, name):
        def before(connection, cursor, statement, parameters, context, executemany):
            self.accident(name, connection, statement)

        return before

    def service(self, name):
        return SimpleNamespace(
            name=name, shop=self.shop, place="place", end=0, engine=self.engines[name], producer=self.log,
            consumer=Reader(self.log, self.places, name),
        )  # fmt: skip

    def point(self, what):
        self.accident(None, None, what)

    def begin(self, **order):
        """A new order with a cup and a customer of its own; returns its number."""
        self.number = n = self.number + 1
        self.shop.started.append(n)
        data = self.lesson.an_order(n, f"customer {n}", f"cup {n}", **{"deadline": 3600} | order)
        self.say("CREATE_ORDER", saga_id=f"saga-{n}", data=data)
        return n

    def say(self, step, attempt=1, **fields):
        self.log.append(json.dumps({"step": step, "attempt": attempt, **fields}).encode())

    def run(self, turns=400):
        """Let the services work until there is nothing left to do; who dies is started again. No alarm goes off."""
        busy = dict.fromkeys(self.shop.services, True)
        for _ in range(turns):
            written = len(self.log.records)
            for name in self.shop.services:
                busy[name] = (busy[name] or self.has_mail(name)) and self.one_turn(name)
            if len(self.log.records) == written and not any(map(self.has_mail, self.shop.services)):
                passed = {name: self.time_passes(name) for name in self.shop.services}
                if not any([*busy.values(), *passed.values()]):
                    return
                busy = {name: busy[name] or passed[name] for name in busy}
        raise AssertionError("the services do not come to an end: one of them has stopped, or floods the topic")

    def has_mail(self, name) -> bool:
        """Is there a record for this service that it has not read?"""
        read = (
            self.lesson.message_in(self.shop.saga, record)
            for record in self.log.records[self.services[name].consumer.at :]
        )
        return any(self.shop.saga[message["step"]].service == name for message in read)

    def one_turn(self, name) -> bool:
        try:
            return bool(self.turn(self.services[name]))
        except Died:
            self.services[name] = self.service(name)
            return True

    def time_passes(self, name, alarm=False) -> bool:
        """What waits in the outbox for its time is due now; alarm clocks only if they are to go off."""
        step = "" if alarm else "AND message ->> 'step' <> 'EXPIRE_ORDER'"
        with self.others[name].begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '1s'"))
            due = f"UPDATE outbox SET due = now() WHERE due > now() AND due < 'infinity' {step}"
            with suppress(OperationalError):
                return bool(connection.execute(text(due)).rowcount)
        return True

    def alarms_go_off(self):
        for name in self.shop.services:
            self.time_passes(name, alarm=True)
        self.run()

    def rows(self, name, question):
        with self.others[name].connect() as connection:
            return [tuple(row) for row in connection.execute(text(question))]

    def cases(self):
        return [message for (message,) in self.rows("orders", "SELECT message FROM cases")]

    def support_helps(self):
        """Each case that is new: send the step again that failed, as the lesson's support does; returns them."""
        new = [case for case in self.cases() if case not in self.helped]
        for case in new:
            self.say(case["after"][0], case["attempt"] + 1, saga_id=case["saga_id"], data=case["data"])
        self.helped += new
        self.run()
        return new

    def check(self):
        """The invariants, at the end of all histories: the books, no lock left, and a second reading of it all."""
        for reading in ["the first", "the second"]:
            errors = self.lesson.errors_in(self.shop)
            assert errors == [], f"after {reading} reading: {errors}"
            assert self.rows("inventory", "SELECT count(*) FROM stock WHERE reserved <> 0") == [(0,)]
            assert self.rows("orders", "SELECT status FROM orders WHERE status NOT IN ('CONFIRMED', 'CANCELLED')") == []
            known, cases = len(self.log.records), self.cases()
            assert known < 60 * max(self.number, 1), "the topic was flooded"
            self.places.clear()
            self.services = {name: self.service(name) for name in self.shop.services}
            self.run(turns=known + 400)
            more = {json.loads(record.value)["step"] for record in self.log.records[known:]}
            assert more <= {"ASK_SUPPORT"}, f"a second reading sends {more}"
            assert self.cases() == cases, "a second reading calls for help again"

    @contextmanager
    def other_session(self, name, statement):
        """Another session of this service's database, with what a statement locks."""
        with self.others[name].connect() as connection:
            connection.execute(text(statement))
            yield connection


@pytest.fixture
def world(lesson, monkeypatch):
    """Makes worlds; locks are waited for 20 ms only, and a service that waits loses no time."""
    made = []

    def make(way, **options):
        found = World(lesson, way, **options)
        monkeypatch.setitem(lesson.names, "point", found.point)
        made.append(found)
        return found

    patience = str(lesson.PATIENCE).replace("100ms", "20ms")
    assert "20ms" in patience
    monkeypatch.setitem(lesson.names, "PATIENCE", text(patience))
    monkeypatch.setitem(lesson.names, "time", SimpleNamespace(sleep=lambda seconds: None))
    yield make
    for found in made:
        for engine in [*found.engines.values(), *found.others.values()]:
            engine.dispose()


# -- accidents at a place in a history


def dies(here):
    """The process is gone."""

    def die(name, connection, what):
        raise Died(what)

    return die


def is_cut(here):
    """The session of the database ends, and the statement notices."""

    def cut(name, connection, what):
        if connection is not None:
            pid = connection.connection.dbapi_connection.info.backend_pid
            here.rows(name, f"SELECT pg_terminate_backend({pid}, 5000)")

    return cut


ADDRESSES = ["Oslo", "the moon"]  # confirmed, and refused at the last step: together they take all steps


def places(here, address):
    """How many places a history of this order has."""
    here.begin(address=address)
    counter = here.accident = At(0, None)
    here.run()
    here.accident = nothing
    return counter.count


def sweep(make, way, kind, histories, deaths=1):
    """Orders with an accident each, at places that are drawn by the seed; returns the world."""
    here, dice = make(way, sagas=1000), random.Random(SEED)
    what = kind(here)
    for address in ADDRESSES:
        count = places(here, address)
        for n in sorted(dice.sample(range(1, count + 1), min(count, histories * MORE))):
            accidents = [At(n, what), *(At(dice.randint(1, 25), what) for _ in range(deaths - 1))]

            def one_after_the_other(*told, accidents=accidents):
                if accidents[0].count >= accidents[0].n and accidents[1:]:  # the recovery has places of its own
                    del accidents[0]
                accidents[0](*told)

            here.accident = one_after_the_other
            here.begin(address=address)
            here.run()
            here.accident = nothing
    return here


@both([1, 17, 18])
def test_death_at_any_place(world, way):
    """Before each statement and at each point of a turn: the process is gone, and a new one takes over."""
    sweep(world, way, dies, histories=6).check()


@both([2])
def test_death_of_the_recovery_as_well(world, way):
    sweep(world, way, dies, histories=4, deaths=2).check()


@both([10])
def test_a_connection_that_is_cut_at_any_place(world, way):
    here = sweep(world, way, is_cut, histories=3)
    here.check()
    assert here.rows("orders", "SELECT * FROM cases") == []


TABLES = ["steps", "outbox", "cases", "sagas", "orders", "stock", "accounts"]


def is_locked(here):
    """The statement finds its table locked by another session, which goes on when the statement has given up."""
    held = []

    def lock(name, connection, statement):
        table = next((table for table in TABLES if f" {table}" in statement), None)
        if connection is None or not table:
            return
        holder = here.others[name].connect()
        mode = "ACCESS EXCLUSIVE" if statement.startswith("SELECT") else "EXCLUSIVE"
        try:
            holder.execute(text("SET lock_timeout = '5ms'"))
            holder.execute(text(f"LOCK TABLE {table} IN {mode} MODE"))
            held.append(holder)
        except OperationalError:
            holder.close()  # this transaction has written to the table already: nothing can be in its way

    def release(*told):
        while held:
            held.pop().close()

    for engine in here.engines.values():
        event.listen(engine, "handle_error", release)
        event.listen(engine, "after_cursor_execute", release)
    return lock


@both([10])
def test_a_table_that_is_locked_for_a_moment_at_any_statement(world, way):
    here = sweep(world, way, is_locked, histories=4)
    here.check()
    assert here.rows("orders", "SELECT * FROM cases") == []


@both([4])
def test_a_commit_whose_answer_is_lost(world, way):
    """The database has committed, and the connection breaks before it says so."""
    here = world(way)
    for engine in here.engines.values():
        event.listen(engine, "commit", lambda connection: lost(connection))
    counter = itertools.count()
    chosen = set()

    def lost(connection):
        if next(counter) in chosen:
            connection.connection.dbapi_connection.commit()
            connection.connection.dbapi_connection.close()

    for address in ADDRESSES:
        for n in range(0, 40, max(1, 9 // MORE)):
            counter, chosen = itertools.count(), {n, n + 3}
            here.begin(address=address)
            here.run()
    here.check()


@both([4, 5])
def test_a_message_that_is_not_acknowledged(world, way):
    """`send` gives up, and the record is there (now or later), or it has expired."""
    here = world(way)

    def fails(message):
        if next(counter) in chosen:
            if next(written):
                here.log.append(json.dumps(message).encode())
            raise KafkaTimeoutError("not acknowledged")

    here.log.told, written = fails, itertools.cycle([True, False, False, True])
    for n, address in itertools.product(range(0, 14, max(1, 4 // MORE)), ADDRESSES):
        counter, chosen = itertools.count(), {n, n + 1}
        here.begin(address=address)
        here.run()
    here.check()


# -- attempts that run out


def steps_of(lesson):
    """Each step that a saga can come to, with an order that takes it."""
    compensations = list(lesson.UNDOES)
    steps = ["CREATE_ORDER", *lesson.FORWARD, "SELL_INVENTORY", *compensations, "EXPIRE_ORDER"]
    return [(step, "the moon" if step in compensations else "Oslo") for step in steps]


def fails_at(here, statement, failing, times=None):
    """The accident: statements that begin so say 'not now' while `failing[0]`."""

    def fail(name, connection, what):
        if failing[0] and what.startswith(statement.split(":")[0]):
            failing[0] -= 1
            raise OperationalError(what, {}, LockNotAvailable("not now"))

    return fail


FOR_EVER = 10**6


@both([10, 13])
def test_attempts_run_out_at_every_step(lesson, world, way):
    """A step's statement fails until its attempts have run out: compensations, or a person brings it to an end."""
    here, asked = world(way), {}
    for (step, address), no_help in zip(
        steps_of(lesson), itertools.cycle([7, 0]), strict=False
    ):  # also the call for help
        failing, no_cases = [FOR_EVER], [no_help]
        one, other = fails_at(here, here.shop.saga[step].work, failing), fails_at(here, "INSERT INTO cases", no_cases)
        here.accident = lambda *told, one=one, other=other: (one(*told), other(*told))
        here.begin(address=address, deadline=0 if step == "EXPIRE_ORDER" else 3600)
        here.run()
        failing[0] = 0
        asked[step] = [case["after"] for case in here.support_helps()]
    here.check()
    for step in ["CREATE_ORDER", "SELL_INVENTORY", "EXPIRE_ORDER", *lesson.UNDOES]:
        assert asked[step] == [[step, "failed"]], asked
    assert all(asked[step] == [] for step in lesson.FORWARD), "what can be undone needs no person"


@both([13])
def test_a_person_whose_attempts_fail_too(lesson, world, way):
    """The first help comes too early: the step fails again, is a case again, and the second help leads to the end."""
    here = world(way)
    for step in ["CREATE_ORDER", "SELL_INVENTORY", *lesson.UNDOES]:
        failing = [FOR_EVER]
        here.accident = fails_at(here, here.shop.saga[step].work, failing)
        here.begin(address="the moon" if step in lesson.UNDOES else "Oslo")
        here.run()
        assert len(here.support_helps()) == 1
        failing[0] = 0
        assert len(here.support_helps()) == 1
    here.check()


# -- poison


def poison(number, data):
    """Records that are no message of a saga, or one that cannot be carried out; each names what is wrong with it."""
    good = {"saga_id": f"saga-{number}", "step": "RESERVE_INVENTORY", "attempt": 1, "data": data}
    return {
        "no value": None,
        "no JSON": b"\xff{",
        "a number": b"17",
        "null": b"null",
        "a list": b'["order"]',
        "too deep": b"[" * 100_000,
        "another convention": {"type": "ORDER_PLACED", "order": number},
        "no saga": {**good, "saga_id": None},
        "a saga's name with a NUL": {**good, "saga_id": "saga\0"},
        "a saga's name that is too long": {**good, "saga_id": "".join(map(str, range(5000)))},
        "half of a character": {**good, "saga_id": "saga-\ud800"},
        "an unknown step": {**good, "step": "DANCE"},
        "a step that is a list": {**good, "step": ["RESERVE_INVENTORY"]},
        "no data": {name: value for name, value in good.items() if name != "data"},
        "data of another type": {**good, "data": 17},
        "no attempt": {name: value for name, value in good.items() if name != "attempt"},
        "an attempt that is true": {**good, "attempt": True},
        "an attempt without end": {**good, "attempt": 10**30},
        "not a number": b'{"saga_id": "x", "step": "CREATE_ORDER", "attempt": 1, "data": {"price": NaN}}',
        "infinite": b'{"saga_id": "x", "step": "CREATE_ORDER", "attempt": 1, "data": {"price": 1e999}}',
        "a case of another convention": {"saga_id": "y", "step": "ASK_SUPPORT", "attempt": 1, "data": {}, "after": 17},
    }


def bad_orders():
    """Fields of an order that its first step cannot carry out."""
    return {
        "a price that is a word": {"price": "five"},
        "a price without end": {"price": 10**40},
        "no price": {"price": ...},
        "an item with a NUL": {"item": "cup\0"},
        "half of a character": {"customer": "\ud800"},
        "an item that is an object": {"item": {"name": "cup"}},
        "no deadline": {"deadline": ...},
        "a deadline that is null": {"deadline": None},
        "a deadline that is a word": {"deadline": "soon"},
    }


@both([7])
def test_poison_of_each_kind_stops_one_saga_and_not_the_service(world, way):
    here = world(way)
    for value in poison(1, {"item": "cup 1"}).values():
        here.log.append(value if isinstance(value, bytes) or value is None else json.dumps(value).encode())
    for address in ADDRESSES:
        here.begin(address=address)
    here.run()
    listed = here.rows("orders", "SELECT after FROM cases")
    assert len(listed) == len(poison(1, {})), "each of them is on the list for people"
    here.check()


@both([7, 13])
def test_an_order_that_cannot_be_carried_out_is_a_case_and_ends_when_it_is_corrected(world, way):
    here = world(way)
    for fields in bad_orders().values():
        number = here.begin()
        message = json.loads(here.log.records.pop().value)
        good, data = message["data"], message["data"] | fields
        data = {name: value for name, value in data.items() if value is not ...}
        here.say(**{**message, "data": data})
        here.run()
        (case,) = [case for case in here.cases() if case["saga_id"] == f"saga-{number}"]
        step = case["after"][0]
        if case["after"][1] == "done":  # it is the orchestrator that could not go on: its message comes again
            step = f"{step}_DONE"
        here.say(step, case["attempt"] + 1, saga_id=case["saga_id"], data=good)
        here.run()
    here.check()


# -- twice, late, in another order


@both([11, 14, 15])
def test_messages_doubled_and_in_another_order(world, way):
    """Twenty sagas at once; each message is written once or twice, behind up to nine others, and alarms go off."""
    here, dice = world(way), random.Random(SEED)
    limbo = []

    def keep(topic, message, key):
        limbo.extend([message] * dice.choice([1, 1, 2]))
        return SimpleNamespace(get=lambda timeout: None)

    here.log.send = keep
    for _ in range(20 * MORE):
        here.begin(address=dice.choice(ADDRESSES), deadline=dice.choice([0, 3600, 3600]))
    here.run()
    while limbo:
        dice.shuffle(limbo)
        for message in [limbo.pop() for _ in range(min(9, len(limbo)))]:
            here.log.append(json.dumps(message).encode())
        here.run()
    here.log.send = Log.send.__get__(here.log)
    here.run()
    here.check()


# -- what a real broker, real processes and real time do


def real(lesson, way, **options):
    """A shop of the lesson's own, its turn, and the services' names."""
    turn, saga = lesson.both_ways[way]
    return lesson.open_safe_shop({"cup": 50}, {"ann": 1000}, saga=saga), turn


def begin_all(lesson, shop, numbers, **order):
    for number in numbers:
        lesson.start_saga(shop, lesson.an_order(number, **order))


HELD = "saga-1 PROCESS_PAYMENT: worked"


@both([3, 15, 18])
def test_a_service_that_stands_still_inside_a_transaction(lesson, monkeypatch, way):
    """Its twin takes over when the database has ended the session; then the zombie wakes up and goes on."""
    shop, turn = real(lesson, way)
    short = text(str(lesson.PATIENCE).replace("'30s'", "'1s'"))
    assert "'1s'" in str(short)
    monkeypatch.setitem(lesson.names, "PATIENCE", short)
    begin_all(lesson, shop, [1])
    begin_all(lesson, shop, [2], address="the moon")
    others = [name for name in shop.services if name != "payment"]
    ended = "SELECT count(*) AS n FROM orders WHERE status IN ('CONFIRMED', 'CANCELLED')"
    zombie = Worker(lesson.serve, "payment", shop, turn, hold_at=HELD)
    twin = None
    try:
        wait_until(lambda: lesson.run(shop, turn, others) or zombie.points[-1:] == [HELD], "the zombie", timeout=60)
        twin = Worker(lesson.serve, "payment", shop, turn, environment={"PYTHONHASHSEED": "5"})
        goes_on = lambda: lesson.run(shop, turn, others) or lesson.ask(shop, "orders", ended).n[0] == 2  # noqa: E731
        wait_until(goes_on, "the twin to take over", timeout=90)
        zombie.release()
        wait_until(lambda: zombie.points[-1:] != [HELD], "the zombie to go on", timeout=60)
        wait_until(lambda: not any(lesson.lag(shop).values()), "everything to be read", timeout=60, pause=0.2)
        assert zombie.state == "running"
    finally:
        for worker in filter(None, [zombie, twin]):
            worker.kill()
    lesson.run(shop, turn)
    assert lesson.errors_in(shop) == []


@both([16])
def test_a_message_of_an_aborted_transaction_is_not_there(lesson, way):
    shop, turn = real(lesson, way)
    connection, saga = lesson.cluster.connection, {"saga_id": "saga-1", "data": lesson.an_order(1), "attempt": 1}
    with KafkaProducer(**connection, transactional_id=lesson.cluster.transactional_id("foreign")) as foreign:
        foreign.init_transactions()
        foreign.begin_transaction()
        for step in ["PROCESS_PAYMENT", "RESERVE_INVENTORY"]:
            foreign.send(shop.topic, json.dumps(saga | {"step": step}).encode()).get(timeout=10)
        foreign.abort_transaction()
    lesson.start_saga(shop, lesson.an_order(1, deadline=0))
    lesson.run(shop, turn)
    assert lesson.errors_in(shop) == []
    lesson.run(shop, turn)  # from their places; the last thing on the log may be a marker


@both([6])
def test_a_message_that_kafka_refuses_waits_for_a_person(lesson, way):
    shop, turn = real(lesson, way)
    begin_all(lesson, shop, [1], address="Oslo" + "x" * 3000)
    with KafkaAdminClient(**lesson.cluster.connection) as admin:
        limit(admin, shop.topic, 2000)
        begin_all(lesson, shop, [2, 3])
        lesson.run(shop, turn)
        assert lesson.errors_in(shop) == ["order 1 has no end"]
        limit(admin, shop.topic, 1_000_000)
    for name in shop.services:  # what the lesson says a person does
        lesson.change(shop, name, "UPDATE outbox SET due = now() WHERE due = 'infinity'")
    lesson.run(shop, turn)
    assert lesson.errors_in(shop) == []


def limit(admin, topic, size):
    admin.alter_configs([ConfigResource("topic", topic, configs={"max.message.bytes": str(size)})])
    wait_until(
        lambda: next(iter(admin.describe_configs([ConfigResource("topic", topic)]).values()))[topic][
            "max.message.bytes"
        ],
        "the limit",
    )


GONE = (
    "If Kafka deletes messages that a service has not read, the service stops with `OffsetOutOfRangeError`, "
    "and an operator has to decide."
)


@WAYS
@both_weak(8, GONE)
def test_messages_that_are_deleted_before_they_are_read_stop_the_service(lesson, way):
    shop, turn = real(lesson, way)
    begin_all(lesson, shop, [1])
    lesson.run(shop, turn, ["orders"])
    begin_all(lesson, shop, [2, 3])
    with KafkaAdminClient(**lesson.cluster.connection) as admin:
        admin.delete_records({TopicPartition(shop.topic, 0): 3})
    with pytest.raises(OffsetOutOfRangeError):
        lesson.run(shop, turn)


ANEW = (
    "A topic made anew has lost its messages: restart all services, and let the alarm clocks or a person end the sagas "
    "in between."
)


@WAYS
@both_weak(9, ANEW)
def test_a_topic_made_anew_has_lost_its_messages(lesson, way):
    """The alarm clock of an order in between ends it; services that are started again read from the beginning."""
    shop, turn = real(lesson, way)
    begin_all(lesson, shop, [1], deadline=3600)
    lesson.run(shop, turn, [name for name in shop.services if name != "inventory"])
    assert lesson.cluster.topic("order-saga") == shop.topic
    begin_all(lesson, shop, [2])
    lesson.run(shop, turn)
    assert lesson.errors_in(shop) == ["order 1 has no end"]
    for name in shop.services:  # the alarm goes off
        lesson.change(shop, name, "UPDATE outbox SET due = now()")
    lesson.run(shop, turn)
    assert lesson.errors_in(shop) == []


OLDER = (
    "A database that comes back without its last commits has lost steps on which other services build; "
    "no form of this lesson repairs that."
)


@WAYS
@both_weak(10, OLDER)
def test_a_database_that_comes_back_older_leaves_books_that_disagree(world, way):
    here = world(way)
    here.begin()
    with ExitStack() as restored:
        before = {table: here.rows("payment", f"SELECT * FROM {table}") for table in ["accounts", "steps"]}
        here.run()
        session = restored.enter_context(here.others["payment"].begin())
        session.execute(text("TRUNCATE accounts, steps, outbox"))
        for table, rows in before.items():
            for row in rows:
                session.execute(text(f"INSERT INTO {table} VALUES ({', '.join(map(repr, row))})"))
    here.run()
    errors = here.lesson.errors_in(here.shop)
    assert len(errors) == 1 and errors[0].startswith("customer 1: 0 paid for 5 confirmed")


# -- can these tests fail? broken forms, and the invariant that catches each


def test_a_service_that_does_not_note_why_it_failed_stops_for_good(lesson, world, monkeypatch):
    def do_step(service, message, handle=lesson.handle_once):
        with service.engine.begin() as transaction:
            handle(service.shop.saga, transaction, message)

    monkeypatch.setitem(lesson.names, "do_step", do_step)
    here = world("choreography")
    here.begin(price="five")
    with pytest.raises(Exception, match="invalid input syntax|come to an end"):
        here.run()


def test_a_relay_that_sends_before_it_deletes_floods_the_topic(lesson, world, monkeypatch):
    def relay(service):
        with service.engine.begin() as transaction:
            transaction.execute(lesson.PATIENCE)
            rows = transaction.execute(text("SELECT id, message FROM outbox WHERE due <= now() ORDER BY id")).all()
            for row in rows:
                lesson.send(service.producer, service.shop.topic, row.message)
                transaction.execute(text("DELETE FROM outbox WHERE id = :id"), {"id": row.id})
        return rows

    monkeypatch.setitem(lesson.names, "relay", relay)
    here = world("choreography")
    here.begin()
    with here.other_session("orders", "LOCK TABLE outbox IN SHARE MODE"), pytest.raises(AssertionError, match="floods"):
        here.run(turns=40)


def test_a_step_that_is_not_noted_is_done_twice(lesson, world, monkeypatch):
    def forgetful(saga, transaction, message, *more, **options):
        transaction.execute(text("DELETE FROM steps WHERE step = :step"), {"step": message["step"]})
        return lesson.handle_once(saga, transaction, message, *more, **options)

    monkeypatch.setitem(lesson.names, "handle_once", forgetful)
    here = world("choreography")
    here.turn = lambda service: lesson.safe_turn(service, forgetful)
    here.begin()
    here.run()
    with pytest.raises(AssertionError):
        here.check()


def test_attempts_that_end_nowhere_are_seen(lesson, world, monkeypatch):
    """Without `failed` in the plan nobody is asked: the order has no end."""
    monkeypatch.setitem(
        lesson.names,
        "follow",
        lambda saga, step, outcome: saga[step].then if outcome == "done" else saga[step].otherwise,
    )
    here = world("choreography")
    here.accident = fails_at(here, here.shop.saga["CREATE_ORDER"].work, [FOR_EVER])
    here.begin()
    here.run()
    here.accident = nothing
    assert here.support_helps() == []
    with pytest.raises(AssertionError, match="order 1 has no end"):
        here.check()


def test_an_orchestrator_that_waits_for_the_call_for_help_is_seen(lesson, world, monkeypatch):
    """As it was before: the reply to the person's attempt leads nowhere."""

    def orchestrate(saga, transaction, message, trouble=None):
        step, _, end = message["step"].rpartition("_")
        lesson.orchestrate(saga, transaction, message, trouble)
        if end != "DONE" and lesson.follow(saga, step, end.lower()) == "ASK_SUPPORT":
            transaction.execute(text("UPDATE sagas SET waits_for = NULL WHERE saga_id = :saga_id"), message)

    monkeypatch.setitem(lesson.names, "orchestrate", orchestrate)
    here, failing = world("orchestration"), [FOR_EVER]
    here.accident = fails_at(here, here.shop.saga["REFUND_PAYMENT"].work, failing)
    here.begin(address="the moon")
    here.run()
    failing[0] = 0
    assert len(here.support_helps()) == 1
    with pytest.raises(AssertionError, match="order 1 has no end"):
        here.check()


def test_an_action_that_does_not_look_for_its_compensation_is_seen(lesson, world, monkeypatch):
    monkeypatch.setitem(lesson.names, "UNDONE_BY", {})
    with pytest.raises(AssertionError):
        test_messages_doubled_and_in_another_order(world, "choreography")
