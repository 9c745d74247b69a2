"""The outbox of lesson 08, under every accident: no event lost, no effect doubled; the textbook's fails the same tests.

What is tested is the lesson's own code, from the cells tagged `relay`. A crash is a SIGKILL in a process of its own,
forked from a process that has the modules loaded and made nothing yet; nothing is tidied. It may fall on any *step*:
after each SQL statement, before and after each commit, after each record that is handed to the producer, and at each
`point` of the lesson.
"""

import contextlib
import multiprocessing
import os
import signal
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from kafka import KafkaConsumer, KafkaProducer
from sqlalchemy import Engine, create_engine, event, insert, select

from helpers import read_topic, wait_until
from helpers.processes import workers
from tests.accidents.matrix import accident
from tools.lessons import NOTEBOOKS, code_cells, read, tagged

LESSON: dict = {"__name__": "lesson_08"}
notebook = read(NOTEBOOKS / "08_outbox.ipynb")
for cell in [*code_cells(notebook)[:2], *tagged(notebook, "relay")]:
    exec(cell.source, LESSON)

Order, Outbox, Stock = LESSON["Order"], LESSON["Outbox"], LESSON["Stock"]
STATES = ["Paid", "Packed", "Sent"]
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tests.accidents.test_relay"])


# -- lives that may be cut short ---------------------------------------------------------------------------------------


class Steps:
    """Stands in a child for what `point` calls in a worker: counts the steps, and dies at the one it was told."""

    def __init__(self, last: int | None):
        self.left = last

    def reached(self, name: str) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def step_after(kind, name: str) -> None:
    """Make each call of a method a step."""
    original = getattr(kind, name)

    def call(*arguments, **keywords):
        result = original(*arguments, **keywords)
        workers.point(name)
        return result

    setattr(kind, name, call)


def child(function, arguments: tuple, last_step: int | None) -> None:
    workers._inside = Steps(last_step)
    event.listen(Engine, "after_cursor_execute", lambda *_: workers.point("a statement"))
    event.listen(Engine, "commit", lambda *_: workers.point("about to commit"))
    step_after(KafkaProducer, "send")
    step_after(KafkaConsumer, "commit")
    function(*arguments)
    os._exit(0)  # nothing is closed


def start(function, *arguments, last_step: int | None = None):
    process = forks.Process(target=child, args=(function, arguments, last_step), daemon=True)
    process.start()
    return process


def died(process) -> bool:
    """Wait for its end; True if it was killed at its last step, False if it came to its end before that."""
    process.join(30)
    assert process.exitcode in (0, -signal.SIGKILL), f"exit status {process.exitcode}"
    return process.exitcode != 0


def live(function, *arguments, last_step: int | None = None) -> bool:
    return died(start(function, *arguments, last_step=last_step))


# -- what they do; `relay` is a name of the lesson's, so that the textbook's can stand in its place --------------------


def take_order(address) -> None:
    LESSON["create_order"](create_engine(address), {"customer": "ann", "item": "cup"})


def dual_write(address, connection, topic) -> None:
    """What people write without an outbox."""
    with create_engine(address).begin() as transaction:
        number = transaction.execute(insert(Order).values(customer="ann").returning(Order.c.id)).scalar_one()
    workers.point("the order is there")
    with KafkaProducer(**connection) as producer:
        producer.send(topic, b"{}", key=str(number).encode()).get(timeout=10)


def run_relay(relay, address, connection, topic, linger, limit) -> None:
    shop, producer = create_engine(address), KafkaProducer(**connection, linger_ms=linger)
    if relay == "textbook_process_outbox":
        LESSON[relay](shop, producer, topic)
        workers.point("all sent and deleted")
        producer.flush()
    else:
        while LESSON[relay](shop, producer, topic, limit):
            pass


def query_of_several(way: str, limit: int):
    """What a relay beside others asks for: the lesson's three queries."""
    query = LESSON["waiting"](limit)
    if way == "no lock":
        return query
    if way == "SKIP LOCKED, first of its order":
        query = query.where(LESSON["first_of_its_order"])
    return query.with_for_update(skip_locked=True)


def run_one_of_several(way, address, connection, topic, limit, meeting, times=1) -> None:
    """A relay beside others. It holds its first events, and publishes them when all have met so many times."""
    shop, producer, query = create_engine(address), KafkaProducer(**connection), query_of_several(way, limit)
    with shop.begin() as transaction:
        events = transaction.execute(query).all()
        assert events, "the other relays have taken everything"
        for _ in range(times):
            meeting.wait(20)
        LESSON["publish"](transaction, producer, topic, events)
    while waiting(shop):
        with shop.begin() as transaction:
            LESSON["publish"](transaction, producer, topic, transaction.execute(query).all())


def run_while_another_holds(way, address, connection, topic, limit, meeting) -> None:
    """The relay beside a slow one: between their two meetings it publishes whatever its query gives."""
    shop, producer, query = create_engine(address), KafkaProducer(**connection), query_of_several(way, limit)
    meeting.wait(20)
    events = True
    while events:
        with shop.begin() as transaction:
            events = transaction.execute(query).all()
            LESSON["publish"](transaction, producer, topic, events)
    meeting.wait(20)


def run_warehouse(pack, address, connection, topic, group) -> None:
    LESSON["warehouse"](address, connection, topic, group, LESSON[pack])


# -- the shop, and what is true of it ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab():
    from helpers import Cluster, Database

    with Cluster() as cluster, Database() as database:
        yield Lab(cluster, database)


def anew(engine, tables) -> None:
    tables.drop_all(engine)
    tables.create_all(engine)


class Lab:
    """A shop and a warehouse with empty tables, a topic without records, a group without offsets."""

    CUPS = 100

    def __init__(self, cluster, database):
        self.cluster, self.connection, self.number = cluster, cluster.connection, 0
        self.shop, self.store = create_engine(database.schema("shop")), create_engine(database.schema("warehouse"))

    def open(self):
        anew(self.shop, LESSON["tables"])
        self.number += 1
        self.topic = self.cluster.topic(f"orders-{self.number}")
        self.open_warehouse()
        return self

    def open_warehouse(self):
        anew(self.store, LESSON["warehouse_tables"])
        with self.store.begin() as transaction:
            transaction.execute(insert(Stock).values(item="cup", amount=self.CUPS))
        self.number += 1
        self.group = self.cluster.group(f"warehouse-{self.number}")

    @property
    def address(self) -> str:
        return self.shop.url

    def relay(self, last_step=None, linger=0, limit=2, relay="process_outbox") -> bool:
        return live(run_relay, relay, self.address, self.connection, self.topic, linger, limit, last_step=last_step)

    def warehouse(self, last_step=None, pack="pack_once") -> bool:
        job = (pack, self.store.url, self.connection, self.topic, self.group)
        return live(run_warehouse, *job, last_step=last_step)

    def cups_taken(self) -> int:
        with self.store.connect() as connection:
            return self.CUPS - connection.scalar(select(Stock.c.amount))

    def halves(self) -> tuple[list, list]:
        """The orders in the table, and those of which an event OrderCreated tells, here or on the log."""
        created = select(Outbox.c.aggregate_id).where(Outbox.c.event_type == "OrderCreated")
        with self.shop.connect() as connection:
            orders = sorted(connection.scalars(select(Order.c.id)))
            told = {*connection.scalars(created), *(int(record.key) for record in read_topic(self.cluster, self.topic))}
        return orders, sorted(told)

    def events(self) -> dict[int, tuple[int, bytes]]:
        """What the outbox holds: event id to order and payload."""
        rows = select(Outbox.c.id, Outbox.c.aggregate_id, Outbox.c.payload)
        with self.shop.connect() as connection:
            return {number: (order, payload.encode()) for number, order, payload in connection.execute(rows)}

    def check_log(self, events: dict[int, tuple[int, bytes]]) -> None:
        """Every event is on the log, and nothing else; those of an order, for the first time, in their order."""
        records = read_topic(self.cluster, self.topic)
        lost = Counter(payload for _, payload in events.values()) - Counter(record.value for record in records)
        assert not lost, f"lost: {[*lost]}"
        if not any(record.headers for record in records):
            return  # the textbook's, of which one cannot tell more
        told = [(int(dict(record.headers)["event-number"]), (int(record.key), record.value)) for record in records]
        assert dict(told) == events, "an event is lost, is another order's, or was never written"
        for order in {order for order, _ in events.values()}:
            first_time = list(dict.fromkeys(number for number, (other, _) in told if other == order))
            assert first_time == sorted(first_time), f"the events of order {order} come as {first_time}"


def waiting(shop) -> list[int]:
    with shop.connect() as connection:
        return list(connection.scalars(select(Outbox.c.id).where(Outbox.c.published_at.is_(None))))


def write_events(lab, orders: int, states: list[str]) -> dict:
    for _ in range(orders):
        LESSON["create_order"](lab.shop, {"customer": "ann", "item": "cup"})
    for state in states:
        for number in range(1, orders + 1):
            LESSON["change_order"](lab.shop, number, state)
    return lab.events()


# -- killed at every step ----------------------------------------------------------------------------------------------


def steps_until_it_lives(kill_at, least: int):
    """1, 2, 3 …: `kill_at(step)` is True when something was killed there; ends when it came to its end before."""
    step = 1
    while kill_at(step):
        step += 1
        assert step < 200
    assert step > least, f"only {step - 1} steps: the crashes do not reach into the code"


def test_an_order_and_its_event_are_there_together_wherever_create_order_is_killed(lab):
    def kill_at(step):
        lab.open()
        killed = live(take_order, lab.address, last_step=step)
        orders, told = lab.halves()
        assert orders == told
        return killed

    steps_until_it_lives(kill_at, 3)


def test_control_a_dual_write_leaves_halves(lab):
    halves = []

    def kill_at(step):
        lab.open()
        killed = live(dual_write, lab.address, lab.connection, lab.topic, last_step=step)
        orders, told = lab.halves()
        halves.append(orders != told)
        return killed

    steps_until_it_lives(kill_at, 3)
    assert any(halves)


@accident("08 relay", [1])
@pytest.mark.parametrize("linger", [5000, pytest.param(0, marks=pytest.mark.full)])
def test_no_event_is_lost_wherever_the_relay_is_killed(lab, linger):
    twice = []

    def kill_at(step):
        events = write_events(lab.open(), 1, STATES[:2])
        killed = lab.relay(step, linger)
        published = set(events) - set(waiting(lab.shop))
        on_the_log = {int(dict(record.headers)["event-number"]) for record in read_topic(lab.cluster, lab.topic)}
        assert published <= on_the_log, "marked, and not on the log"
        assert lab.relay() is False and not waiting(lab.shop)
        lab.check_log(events)
        twice.append(len(read_topic(lab.cluster, lab.topic)) > len(events))
        return killed

    steps_until_it_lives(kill_at, 20)
    assert any(twice), "no crash between acknowledgement and mark: the test looks in the wrong places"


def test_control_the_textbooks_relay_loses_events(lab):
    def kill_at(step):
        events = write_events(lab.open(), 1, STATES)
        killed = lab.relay(step, 5000, relay="textbook_process_outbox")
        lab.relay(relay="textbook_process_outbox")
        lab.check_log(events)
        return killed

    with pytest.raises(AssertionError, match="lost"):
        steps_until_it_lives(kill_at, 25)


def repeated_events(lab) -> dict:
    """Two events that are on the log twice, because a relay was killed before its mark."""
    events = write_events(lab.open(), 1, STATES[:1])
    assert lab.relay(last_step=6)  # the statement, two sends, 'sent', 'acknowledged', the statement that marks
    assert lab.relay() is False
    lab.check_log(events)
    assert len(read_topic(lab.cluster, lab.topic)) == 4
    return events


def kill_the_warehouse_at_every_step(lab, pack: str) -> None:
    events = repeated_events(lab)

    def kill_at(step):
        lab.open_warehouse()
        killed = lab.warehouse(step, pack)
        assert lab.warehouse(pack=pack) is False
        assert lab.cups_taken() == len(events), f"{lab.cups_taken()} cups for {len(events)} events"
        return killed

    steps_until_it_lives(kill_at, 12)


@accident("08 consumer that notes ids", [1])
def test_each_event_takes_one_cup_wherever_the_warehouse_is_killed(lab):
    kill_the_warehouse_at_every_step(lab, "pack_once")


def test_control_a_warehouse_without_notes_takes_too_many(lab):
    with pytest.raises(AssertionError, match="4 cups for 2 events"):
        kill_the_warehouse_at_every_step(lab, "pack_naively")


# -- several at once ---------------------------------------------------------------------------------------------------


BEST_WAY = "SKIP LOCKED, first of its order"


def check_each_event_once(lab, events) -> None:
    lab.check_log(events)
    assert len(read_topic(lab.cluster, lab.topic)) == len(events), "the work was done twice"


@accident("08 several relays", [1])
@pytest.mark.parametrize("last_steps", [[None] * 4, [None, 5, 11, 23]], ids=["all live", "three die"])
def test_relays_side_by_side_keep_each_orders_events_in_order(lab, last_steps):
    """Each of them has taken events before the first one publishes: they do work at the same time."""
    events = write_events(lab.open(), 10, STATES)
    job = (run_one_of_several, BEST_WAY, lab.address, lab.connection, lab.topic, 3, forks.Barrier(4))
    relays = [start(*job, last_step=step) for step in last_steps]
    killed = [died(each) for each in relays]
    assert not killed[0] and not waiting(lab.shop)
    lab.check_log(events)
    if any(last_steps):
        assert killed[1], "at its fifth step a relay is in the middle of its first events"
    else:
        check_each_event_once(lab, events)


@accident("08 several relays", [15])
@pytest.mark.parametrize(
    "way, damage",
    [(BEST_WAY, None), ("SKIP LOCKED", "the events of order 1 come as"), ("no lock", "the work was done twice")],
    ids=["the lesson's", "control: SKIP LOCKED alone", "control: no lock"],
)
def test_a_relay_that_is_slow_with_the_first_events(lab, way, damage):
    """While one relay holds the oldest events, the other publishes all that it is given."""
    events, meeting = write_events(lab.open(), 10, STATES), forks.Barrier(2)
    job = (way, lab.address, lab.connection, lab.topic, 3, meeting)
    slow = start(run_one_of_several, *job, 2)
    wait_until(lambda: meeting.n_waiting, "the slow relay to hold events", 20)
    other = start(run_while_another_holds, *job)
    assert [died(other), died(slow)] == [False, False] and not waiting(lab.shop)
    with pytest.raises(AssertionError, match=damage) if damage else contextlib.nullcontext():
        check_each_event_once(lab, events)


# -- any accidents in any order ----------------------------------------------------------------------------------------


class Accidents(RuleBasedStateMachine):
    """Orders are taken and changed, relays and warehouses run or are killed; in the end everybody runs once more."""

    lab: Lab
    relay = "process_outbox"
    pack = "pack_once"

    @initialize()
    def open(self):
        self.lab.open()
        self.events, self.states = {}, {}

    def note(self):
        self.events |= self.lab.events()
        for order, _ in self.events.values():
            self.states.setdefault(order, list(STATES))

    @rule()
    def an_order_is_taken(self):
        LESSON["create_order"](self.lab.shop, {"customer": "bob", "item": "cup"})
        self.note()

    @rule(step=st.integers(1, 4))
    def the_checkout_dies(self, step):
        live(take_order, self.lab.address, last_step=step)
        self.note()

    @precondition(lambda self: any(self.states.values()))
    @rule(data=st.data())
    def an_order_is_changed(self, data):
        order = data.draw(st.sampled_from([order for order, states in self.states.items() if states]))
        LESSON["change_order"](self.lab.shop, order, self.states[order].pop(0))
        self.note()

    @rule(step=st.integers(1, 20), linger=st.sampled_from([0, 5000]), limit=st.integers(1, 3))
    def a_relay_runs_and_may_die(self, step, linger, limit):
        self.lab.relay(step, linger, limit, self.relay)

    @precondition(lambda self: self.relay == "process_outbox")  # the textbook's records have no event id
    @rule(step=st.integers(1, 20))
    def a_warehouse_runs_and_may_die(self, step):
        self.lab.warehouse(step, self.pack)

    def teardown(self):
        if not hasattr(self, "events"):
            return
        assert self.lab.relay(relay=self.relay) is False
        self.lab.check_log(self.events)
        if self.relay == "textbook_process_outbox":
            return
        assert not waiting(self.lab.shop)
        assert self.lab.warehouse(pack=self.pack) is False
        taken = self.lab.cups_taken()
        assert taken == len(self.events), f"{taken} cups for {len(self.events)} events"


PACE = settings(
    max_examples=12,
    stateful_step_count=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@accident("08 relay", [2, 18])
@accident("08 consumer that notes ids", [2, 18])
def test_no_order_of_accidents_loses_or_doubles_an_effect(lab):
    machine = type("Mended", (Accidents,), {"lab": lab})
    run_state_machine_as_test(machine, settings=PACE)


@pytest.mark.parametrize(
    "changed, damage",
    [({"relay": "textbook_process_outbox"}, "lost"), ({"pack": "pack_naively"}, "cups for")],
    ids=["textbook relay", "no notes"],
)
def test_control_accidents_find_the_damage(lab, changed, damage):
    machine = type("Control", (Accidents,), {"lab": lab} | changed)
    with pytest.raises(AssertionError, match=damage):
        run_state_machine_as_test(machine, settings=settings(PACE, phases=[Phase.generate]))
