"""Lesson 06's saga, the code of the notebook itself: every crash at every point, and the accidents of Hypothesis.

After each run the books are checked: every saga is confirmed or wholly undone, stock and reserved together are what
there was, and what is paid belongs to confirmed orders. The textbook's handler fails the same checks, where it can be
put to them: it knows neither alarm clocks nor an orchestrator.
"""

from collections import Counter
from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from sqlalchemy import create_engine, text

from helpers import Worker, read_topic, wait_until
from tools.lessons import NOTEBOOKS, read, tagged

NOTEBOOK = read(NOTEBOOKS / "06_saga.ipynb")
POINTS = ["taken", "worked", "written", "committed", "sent"]  # where a service can die, in the order of its turn
REFUSALS = {
    None: "nobody refuses",
    "RESERVE_INVENTORY": "inventory refuses",
    "PROCESS_PAYMENT": "payment refuses",
    "CONFIRM_ORDER": "orders refuses",
}


@pytest.fixture(scope="module")
def lesson():
    """What the set-up cells of the notebook define, with a broker and a database that run."""
    names = {"__name__": "lesson_06_as_executed"}  # not importable, so cloudpickle sends workers the code itself
    for cell in tagged(NOTEBOOK, "setup"):
        exec(compile(cell.source, f"<cell {cell.id}>", "exec"), names)
    found = SimpleNamespace(names=names, **{name: thing for name, thing in names.items() if not name.startswith("__")})
    yield found
    found.producer.close()
    found.database.stop()
    found.cluster.stop()


# -- every crash -----------------------------------------------------------------------------------------------------


def route(saga, refused) -> list[str]:
    """The steps that a saga takes if one of them is refused."""
    steps = ["CREATE_ORDER"]
    while following := saga[steps[-1]].otherwise if steps[-1] == refused else saga[steps[-1]].then:
        steps.append(following)
    return steps


def orchestrated_route(saga, refused) -> list[str]:
    """The same with the replies between them."""
    ends = {True: "REFUSED", False: "DONE"}
    return [name for step in route(saga, refused) for name in (step, f"{step}_{ends[step == refused]}")]


def plain(step) -> str:
    """The step that a reply belongs to, or the step itself."""
    return step.removesuffix("_DONE").removesuffix("_REFUSED")


def combinations(steps_of, points, copies) -> dict[int, tuple]:
    """A number for each combination of (refused step, step, point, copies of each record)."""
    found = []
    for refused, times in product(REFUSALS, copies):
        steps = steps_of(refused)
        found += [
            (refused, step, point, times)
            for step, point in product(steps, points)
            if (step, point) != (steps[-1], "sent")  # nothing follows the last step
        ]
    return dict(enumerate(found, 1))


def echo(connection, topic, sagas):
    """Send each record of these sagas once more, to the letter."""
    producer = KafkaProducer(**connection)
    consumer = KafkaConsumer(**connection, auto_offset_reset="earliest", enable_auto_commit=False)
    consumer.assign([TopicPartition(topic, 0)])
    for record in consumer:
        if record.key.decode() in sagas and not record.headers:
            producer.send(topic, record.value, key=record.key, headers=[("copy", b"")]).get(timeout=10)


def copies_missing(shop, sagas) -> bool:
    """Has the echo records before it that it has not sent again yet?"""
    records = [record for record in read_topic(shop.connection, shop.topic) if record.key.decode() in sagas]
    return len(records) != 2 * sum(bool(record.headers) for record in records)


def all_points(workers) -> set[str]:
    return {name for worker in workers for name in worker.points}


def run_all(lesson, combined, open_shop, turn, **options):
    """Run a saga for each combination, all at once; returns the shop and the errors by combination."""
    shop = open_shop(
        {f"cup {n}": 0 if refused == "RESERVE_INVENTORY" else 5 for n, (refused, *_) in combined.items()},
        {f"customer {n}": 0 if refused == "PROCESS_PAYMENT" else 100 for n, (refused, *_) in combined.items()},
        **options,
    )
    deaths = {f"saga-{n} {step}: {point}" for n, (_, step, point, _) in combined.items()}
    twice = {f"saga-{n}" for n, (*_, copies) in combined.items() if copies == 2}
    workers = [Worker(lesson.serve, name, shop, turn, die_at=sorted(deaths), restarts=True) for name in shop.services]
    echoing = Worker(echo, shop.connection, shop.topic, twice)
    try:
        stages = list(lesson.SAFE_SAGA)  # who dies late goes first, so that the services die side by side
        for n in sorted(combined, key=lambda n: -stages.index(plain(combined[n][1]))):
            address = "the moon" if combined[n][0] == "CONFIRM_ORDER" else "Oslo"
            lesson.start_saga(shop, lesson.an_order(n, f"customer {n}", f"cup {n}", address=address, deadline=3600))
        wait_until(lambda: deaths <= all_points(workers), "a death at every point", timeout=300, pause=0.5)
        wait_until(lambda: not any(lesson.lag(shop).values()), "everything to be read", timeout=100, pause=0.5)
        wait_until(lambda: not copies_missing(shop, twice), "everything to be sent again", timeout=100, pause=0.5)
    finally:
        for worker in [*workers, echoing]:
            worker.kill()
    lesson.run(shop, turn)
    errors = {}
    for error in lesson.errors_in(shop):
        number = int(error.split()[1].strip(":"))  # "order 7 has no end", "cup 7: …", "customer 7: …"
        errors.setdefault(combined[number], []).append(error)
    return shop, errors


def wrong_ends(lesson, shop, combined) -> dict[int, str]:
    """The sagas that ended in another way than they would have without the deaths."""
    ends = lesson.ask(shop, "orders", "SELECT number, status FROM orders").set_index("number").status
    wanted = {n: "CANCELLED" if refused else "CONFIRMED" for n, (refused, *_) in combined.items()}
    return {n: ends.get(n) for n in wanted if ends.get(n) != wanted[n]}


def test_some_of_all_combinations(lesson):
    """Each step on each route dies once, at one point after the other; every record comes twice."""
    everything = combinations(lambda refused: route(lesson.SAFE_SAGA, refused), POINTS, copies=[2])
    pairs = list(dict.fromkeys((refused, step) for refused, step, *_ in everything.values()))
    chosen = [(pair, POINTS[-1 - place % len(POINTS)]) for place, pair in enumerate(pairs)]
    some = {n: found for n, found in everything.items() if (found[:2], found[2]) in chosen}
    assert {point for _, _, point, _ in some.values()} == set(POINTS) and len(some) >= len(pairs) - len(REFUSALS)
    shop, errors = run_all(lesson, some, lesson.open_safe_shop, lesson.safe_turn)
    assert errors == {} and wrong_ends(lesson, shop, some) == {}


@pytest.mark.full
def test_every_step_with_every_death_every_refusal_and_every_record_once_or_twice(lesson):
    combined = combinations(lambda refused: route(lesson.SAFE_SAGA, refused), POINTS, copies=[1, 2])
    assert len(combined) == 2 * (5 * (4 + 3 + 5 + 7) - 4) == 182
    shop, errors = run_all(lesson, combined, lesson.open_safe_shop, lesson.safe_turn)
    assert errors == {} and wrong_ends(lesson, shop, combined) == {}


def test_the_lessons_table_has_all_of_them(lesson):
    """The table that the lesson shows says what the test above has run."""
    (source,) = [cell.source for cell in NOTEBOOK.cells if "| killed in |" in cell.source]
    (_, *columns), _, *rows = [line.strip("| ").split(" | ") for line in source.splitlines() if line[:1] == "|"]
    combined = combinations(lambda refused: route(lesson.SAFE_SAGA, refused), POINTS, copies=[1, 2])
    run = Counter((f"`{step}`", REFUSALS[refused]) for refused, step, *_ in combined.values())
    told = {(step, who): count for step, *counts in rows for who, count in zip(columns, counts, strict=True)}
    assert {pair: f"{number} of {number}" for pair, number in run.items()} == {
        pair: count for pair, count in told.items() if count != "–"
    }
    assert f"{len(combined)} sagas" in source


@pytest.mark.full
def test_the_same_with_an_orchestrator(lesson):
    combined = combinations(lambda refused: orchestrated_route(lesson.SAFE_SAGA, refused), POINTS, copies=[2])
    turn, saga = lesson.both_ways["orchestration"]
    _, errors = run_all(lesson, combined, lesson.open_safe_shop, turn, saga=saga)
    assert errors == {}


def test_the_textbook_fails_the_same_check(lesson):
    combined = {
        n: combination for n, combination in enumerate(product([None], route(lesson.SAGA, None), ["written"], [1]), 1)
    }
    _, errors = run_all(lesson, combined, lesson.open_shop, lesson.textbook_turn)
    assert {step for _, step, _, _ in errors} == {
        "CREATE_ORDER",
        "RESERVE_INVENTORY",
        "PROCESS_PAYMENT",
        "CONFIRM_ORDER",
    }
    _, errors = run_all(lesson, combined, lesson.open_shop, lesson.hasty_turn)
    assert all("has no end" in told[0] for told in errors.values()) and len(errors) == 3


@pytest.mark.parametrize("way", ["choreography", pytest.param("orchestration", marks=pytest.mark.full)])
def test_an_alarm_clock_that_goes_off_at_any_moment(lesson, way):
    """At once, early, late, and while the services die: confirmed or cancelled, whichever comes first."""
    turn, saga = lesson.both_ways[way]
    if way == "choreography":
        steps = [*route(saga, "CONFIRM_ORDER"), "EXPIRE_ORDER"]
    else:
        steps = [*orchestrated_route(saga, "CONFIRM_ORDER"), "EXPIRE_ORDER", "EXPIRE_ORDER_DONE"]
    numbered = dict(enumerate(product(steps, POINTS), 1))
    never = len(numbered) + 1  # an order without a death whose alarm does not go off
    numbers = range(1, never + 1)
    shop = lesson.open_safe_shop({f"cup {n}": 5 for n in numbers}, {f"customer {n}": 100 for n in numbers}, saga=saga)
    deaths = [f"saga-{n} {step}: {point}" for n, (step, point) in numbered.items()]
    workers = [Worker(lesson.serve, name, shop, turn, die_at=deaths, restarts=True) for name in shop.services]
    try:
        for n in numbers:
            deadline = 3600 if n == never else 0.02 * (n - 1)
            lesson.start_saga(shop, lesson.an_order(n, f"customer {n}", f"cup {n}", deadline=deadline))
        ended = "SELECT count(*) AS n FROM orders WHERE status IN ('CONFIRMED', 'CANCELLED')"
        wait_until(lambda: lesson.ask(shop, "orders", ended).n[0] == never, "all ends", timeout=120, pause=0.5)
    finally:
        for worker in workers:
            worker.kill()
    lesson.run(shop, turn)
    assert lesson.errors_in(shop) == []
    ends = lesson.ask(shop, "orders", "SELECT number, status FROM orders").set_index("number").status
    assert (ends[1], ends[never]) == ("CANCELLED", "CONFIRMED")  # the first one's alarm follows its RESERVE_INVENTORY


# -- accidents that a machine makes up ---------------------------------------------------------------------------------


WRONG = "the books are wrong"


class Sagas(RuleBasedStateMachine):
    """Messages are delivered in any order, again, too early, or to a process that dies, on a real PostgreSQL.

    Instead of a broker there is a heap of messages: it keeps no order at all, so what holds here holds on any topic.
    """

    lesson = shop = engines = ends = None  # set by the test

    def __init__(self):
        super().__init__()
        self.pending, self.delivered, self.begun, self.locks = [], [], [], 0

    @initialize()
    def empty_the_books(self):
        self.shop.started.clear()
        tables = {"orders": "orders", "inventory": "stock", "payment": "accounts", "orchestrator": "sagas"}
        for name, engine in self.engines.items():
            with engine.begin() as transaction:
                transaction.execute(text(f"TRUNCATE {tables[name]}, steps, outbox, cases"))
        with self.engines["inventory"].begin() as transaction:
            transaction.execute(text("INSERT INTO stock VALUES ('cup', 2), ('lamp', 1)"))
        with self.engines["payment"].begin() as transaction:
            transaction.execute(text("INSERT INTO accounts VALUES ('ann', 100), ('bob', 7)"))

    @precondition(lambda self: len(self.begun) < 5)
    @rule(
        customer=st.sampled_from(["ann", "bob"]),
        item=st.sampled_from(["cup", "lamp"]),
        address=st.sampled_from(["Oslo", "Oslo", "the moon"]),
    )
    def an_order_comes(self, customer, item, address):
        number = len(self.begun) + 1
        self.shop.started.append(number)
        data = self.lesson.an_order(number, customer, item, address=address, deadline=0)
        message = {"saga_id": f"saga-{number}", "step": "CREATE_ORDER", "attempt": 1, "data": data}
        self.begun.append(message)
        self.pending.append(message)

    @precondition(lambda self: self.pending)
    @rule(place=st.integers(0, 99), dies=st.sampled_from(["never", "never", "before", "after"]))
    def any_message_is_delivered(self, place, dies):
        """The process may die before its transaction is committed, or after it, before it has committed its place."""
        message = self.pending[place % len(self.pending)]
        self.handle(message, commit=dies != "before")
        if dies == "never":
            self.pending.remove(message)
            self.delivered.append(message)

    @precondition(lambda self: self.delivered)
    @rule(place=st.integers(0, 99))
    def an_old_message_comes_again(self, place):
        self.handle(self.delivered[place % len(self.delivered)])

    @rule(place=st.integers(0, 3), dies=st.booleans(), overdue=st.booleans())
    def a_relay_sends(self, place, dies, overdue):
        """It may die between sending and deleting. Time has passed as well: attempts are due, and maybe the alarm."""
        self.relay(list(self.engines)[place % len(self.engines)], delete=not dies, overdue=overdue)

    @precondition(lambda self: self.pending and self.locks < 2)  # fewer than attempts, or support would be needed
    @rule(place=st.integers(0, 99))
    def something_is_in_the_way(self, place):
        self.locks += 1
        message = self.pending.pop(place % len(self.pending))
        engine = self.engine_for(message)
        with engine.connect() as other:
            for table in ["orders", "stock", "accounts"]:
                if other.execute(text("SELECT to_regclass(:table)"), {"table": table}).scalar():
                    other.execute(text(f"LOCK TABLE {table}"))
            self.handle(message)
        self.delivered.append(message)

    @invariant()
    def nothing_appears_or_vanishes(self):
        if not self.begun:
            return
        stock = self.rows("inventory", "SELECT item, free, reserved, sold FROM stock ORDER BY item")
        assert [(item, sum(counts)) for item, *counts in stock] == [("cup", 2), ("lamp", 1)], WRONG
        assert all(count >= 0 for _, *counts in stock for count in counts), WRONG
        accounts = self.rows("payment", "SELECT customer, balance, paid FROM accounts ORDER BY customer")
        assert [(name, balance + paid) for name, balance, paid in accounts] == [("ann", 100), ("bob", 7)], WRONG
        assert all(balance >= 0 and paid >= 0 for _, balance, paid in accounts), WRONG

    def teardown(self):
        """All that is under way comes to its end, then the last alarms go off; after that the books must be right."""
        for overdue in [False, True]:
            self.deliver_all(overdue)
        assert self.lesson.errors_in(self.shop) == [], WRONG
        stock = self.rows("inventory", "SELECT sum(reserved) FROM stock")
        assert stock in ([(0,)], [(None,)]), WRONG  # every lock is open again
        if self.begun:
            self.ends.update(status for (status,) in self.rows("orders", "SELECT status FROM orders"))

    def deliver_all(self, overdue):
        for _ in range(200):
            for name in self.engines:
                self.relay(name, overdue=overdue)
            if not self.pending:
                return
            for message in [self.pending.pop(0) for _ in range(len(self.pending))]:
                self.handle(message)
        raise AssertionError("the sagas do not come to an end")

    def rows(self, name, question):
        with self.engines[name].connect() as connection:
            return [tuple(row) for row in connection.execute(text(question))]

    # -- the code under test

    def engine_for(self, message):
        return self.engines[self.shop.saga[message["step"]].service]

    def handle(self, message, commit=True):
        service = SimpleNamespace(shop=self.shop, engine=self.engine_for(message))
        if commit:
            return self.lesson.do_step(service, message, self.handler(message))
        with service.engine.connect() as connection:
            connection.begin()
            self.handler(message)(self.shop.saga, connection, message)
            # and no commit: what the database does when a process is gone

    def handler(self, message):
        return self.lesson.handle_once

    def relay(self, name, delete=True, overdue=True):
        with self.engines[name].begin() as transaction:
            rows = transaction.execute(text("SELECT id, message FROM outbox ORDER BY id")).all()
            for row in rows:
                if overdue or row.message["step"] != "EXPIRE_ORDER":
                    self.pending.append(row.message)
                    if delete:
                        transaction.execute(text("DELETE FROM outbox WHERE id = :id"), {"id": row.id})


class OrchestratedSagas(Sagas):
    """The same with an orchestrator."""

    def handler(self, message):
        if self.shop.saga[message["step"]].service == "orchestrator":
            return self.lesson.orchestrate
        return lambda *step: self.lesson.handle_once(*step, what_follows=self.lesson.report)


class TextbookSagas(Sagas):
    """The textbook's handler: what it sends goes onto the heap at once."""

    def __init__(self):
        super().__init__()
        self.locks = 2  # no locks: it would wait for ever

    def handle(self, message, commit=True):
        service = SimpleNamespace(shop=self.shop, engine=self.engine_for(message), producer=self)
        if commit:
            self.lesson.handle_saga_step(service, message)

    def send(self, topic, message, key):
        self.pending.append(message)
        return SimpleNamespace(get=lambda timeout: None)


FEW = settings(
    max_examples=15,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,  # the same accidents in each run: a build that fails can be repeated
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def heap(lesson, machine, saga, stock, money):
    """A machine's class for this saga, with a shop of its own."""
    shop = lesson.open_safe_shop(stock, money, saga=saga | lesson.LOCK)
    lesson.change(shop, "inventory", lesson.add_sold)
    engines = {name: create_engine(shop.databases[name]) for name in shop.services}
    shared = {"lesson": lesson, "shop": shop, "engines": engines, "ends": Counter()}
    try:
        yield type(machine.__name__, (machine,), shared)
    finally:
        for engine in engines.values():
            engine.dispose()


def run_machine(lesson, machine, saga, settings=FEW):
    """Let accidents happen; returns how many orders ended confirmed, and how many cancelled."""
    with heap(lesson, machine, saga, {"cup": 2, "lamp": 1}, {"ann": 100, "bob": 7}) as kind:
        run_state_machine_as_test(kind, settings=settings)
    return kind.ends


def orchestrated(lesson):
    """The orchestrator's plan, with the replies to the step that opens the lesson's lock."""
    return lesson.ORCHESTRATED | {
        f"SELL_INVENTORY_{end}": lesson.Step("orchestrator", "") for end in ["DONE", "REFUSED", "FAILED"]
    }


def test_no_order_of_accidents_spoils_the_books(lesson):
    assert set(run_machine(lesson, Sagas, lesson.SAFE_SAGA)) == {"CONFIRMED", "CANCELLED"}


def test_nor_with_an_orchestrator(lesson):
    ends = run_machine(lesson, OrchestratedSagas, orchestrated(lesson), settings(FEW, max_examples=8))
    assert set(ends) == {"CONFIRMED", "CANCELLED"}


@pytest.mark.full
def test_nor_do_many_more_of_them(lesson):
    run_machine(lesson, Sagas, lesson.SAFE_SAGA, settings(FEW, max_examples=80))
    run_machine(lesson, OrchestratedSagas, orchestrated(lesson), settings(FEW, max_examples=40))


FIRST = settings(FEW, max_examples=100, phases=[Phase.generate])  # to the first failure, without a shortest example


def test_the_textbook_does_not_survive_them(lesson):
    with pytest.raises(AssertionError, match=WRONG):
        run_machine(lesson, TextbookSagas, lesson.SAFE_SAGA, FIRST)


def test_nor_does_an_action_that_does_not_look_for_its_compensation(lesson, monkeypatch):
    monkeypatch.setitem(lesson.names, "UNDONE_BY", {})
    with pytest.raises(AssertionError, match=WRONG):
        run_machine(lesson, Sagas, lesson.SAFE_SAGA, FIRST)


# -- an alarm at every moment ------------------------------------------------------------------------------------------


def alarm_at_every_moment(lesson, machine, saga, steps_of, refusals=REFUSALS) -> tuple[list[str], dict]:
    """A saga for each route and each number of messages after which its alarm goes off; oldest or newest message first.

    Newest first, the compensations overtake the way forward. Returns the errors in the books, and the sagas that ended
    in another way than their alarm's moment says.
    """
    steps = {refused: steps_of(saga | lesson.LOCK, refused) for refused in REFUSALS}
    cases = [(who, place, moment) for who in refusals for place in [0, -1] for moment in range(len(steps[who]) + 1)]
    numbered = dict(enumerate(cases, 1))
    stock = {f"cup {n}": 0 if refused == "RESERVE_INVENTORY" else 5 for n, (refused, *_) in numbered.items()}
    money = {f"customer {n}": 0 if refused == "PROCESS_PAYMENT" else 100 for n, (refused, *_) in numbered.items()}
    with heap(lesson, machine, saga, stock, money) as kind:
        for n, (refused, place, moment) in numbered.items():
            address = "the moon" if refused == "CONFIRM_ORDER" else "Oslo"
            data = lesson.an_order(n, f"customer {n}", f"cup {n}", address=address)
            kind.shop.started.append(n)
            deliver_with_an_alarm(kind(), {"saga_id": f"saga-{n}", "step": "CREATE_ORDER", "data": data}, place, moment)
        errors = lesson.errors_in(kind.shop)
        found = lesson.ask(kind.shop, "orders", "SELECT number, status FROM orders").set_index("number").status
    in_time = {n for n, (refused, _, moment) in numbered.items() if moment > steps[None].index("CONFIRM_ORDER")}
    wanted = {
        n: "CONFIRMED" if refused is None and n in in_time else "CANCELLED" for n, (refused, *_) in numbered.items()
    }
    return errors, {numbered[n]: found[n] for n in numbered if found[n] != wanted[n]}


def deliver_with_an_alarm(sagas, message, place, moment):
    sagas.pending.append({**message, "attempt": 1})
    for count in range(100):
        alarms = [message for message in sagas.pending if message["step"] == "EXPIRE_ORDER"]
        others = [message for message in sagas.pending if message not in alarms]
        if not sagas.pending:
            return
        message = (alarms if alarms and (count >= moment or not others) else others)[place]
        sagas.pending.remove(message)
        sagas.handle(message)
        sagas.relay(sagas.shop.saga[message["step"]].service)
    raise AssertionError("the saga does not come to an end")


def test_an_alarm_at_every_moment(lesson):
    assert alarm_at_every_moment(lesson, Sagas, lesson.SAFE_SAGA, route) == ([], {})


def test_an_alarm_at_every_moment_with_an_orchestrator(lesson):
    assert alarm_at_every_moment(lesson, OrchestratedSagas, orchestrated(lesson), orchestrated_route) == ([], {})


def test_an_orchestrator_that_heeds_an_alarm_while_it_is_undoing_fails_the_same_check(lesson, monkeypatch):
    monkeypatch.setitem(lesson.names, "FORWARD", [*lesson.FORWARD, *lesson.UNDOES])
    saga, refusals = orchestrated(lesson), ["PROCESS_PAYMENT"]
    errors, _ = alarm_at_every_moment(lesson, OrchestratedSagas, saga, orchestrated_route, refusals)
    assert errors and all(error.endswith("has no end") for error in errors)
