"""Lesson 08's mended forms under the catalogue's accidents. Deaths at every step are made in `test_relay`.

The forms come from the lesson's own cells. The controls are the same cells with one passage changed.
"""

import contextlib
import json
import random
from types import SimpleNamespace

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError
from sqlalchemy import create_engine, delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from helpers import read_topic, wait_until
from tests.accidents import test_relay  # noqa: F401 (it records accidents of these forms)
from tests.accidents.harm import MORE, SEED
from tests.accidents.lesson import load
from tests.accidents.matrix import accident, weak
from tools.lessons import NOTEBOOKS, code_cells, read

RELAY, SEVERAL, FENCED, CONSUMER = "08 relay", "08 several relays", "08 fenced relay", "08 consumer that notes ids"
ZOMBIE = "A relay that loses its database session and not its life may send old events after newer ones."
OVERTAKEN = (
    "When an event is refused or expires, a later event of its order in the same batch may reach the log before it."
)
OLDER = "An order that the log tells of and the database does not know stays on the log."
NAMELESS = "a record without an event id stops the warehouse, again at each start."
GONE = "An event that retention deletes before the warehouse has read it is lost for it, and no error says so."


@pytest.fixture(scope="module")
def lesson():
    names = load("08")
    yield SimpleNamespace(**names, namespace=names)
    names["lab"].stop()
    names["shop"].dispose()
    names["database"].stop()
    names["cluster"].stop()


def without(names: dict, cell_begins: str, old: str, new: str) -> SimpleNamespace:
    """The lesson with one passage of a cell changed: a control."""
    (path,) = NOTEBOOKS.glob("08_*.ipynb")
    (source,) = [cell.source for cell in code_cells(read(path)) if cell.source.startswith(cell_begins)]
    assert source.count(old) == 1, old
    changed = dict(names)
    exec(source.replace(old, new), changed)
    return SimpleNamespace(**changed, namespace=changed)


def open_shop(lesson, **config) -> str:
    lesson.open_shop()
    return lesson.cluster.topic("orders", config=config)


def producer_of(lesson, **settings):
    return KafkaProducer(**lesson.cluster.connection, **settings)


def told(lesson, topic) -> list[str]:
    """What the log says, in its order: 'created 1', …"""
    return [f"{lesson.label(record)} {record.key.decode()}" for record in read_topic(lesson.cluster, topic)]


class Failing:
    """A producer that says of one order's first event that it failed; it is written all the same, or never was."""

    def __init__(self, producer, order, written):
        self.producer, self.order, self.written = producer, str(order).encode(), written

    def send(self, topic, value, key, headers):
        if key == self.order and dict(headers)["event-type"] == b"OrderCreated":
            self.order = None
            if self.written:
                self.producer.send(topic, value, key=key, headers=headers).get(timeout=10)
            return SimpleNamespace(get=self.expired)
        return self.producer.send(topic, value, key=key, headers=headers)

    def flush(self):
        self.producer.flush()

    @staticmethod
    def expired(timeout):
        raise KafkaTimeoutError("it has expired")


# -- one relay


def start_again_and_again(lesson, refused: int) -> list[str]:
    """One event of five is too large; the relay ends with the error, and is started anew, four times."""
    topic = open_shop(lesson, **{"max.message.bytes": 1000})
    for number in range(1, 6):
        lesson.create_order(lesson.shop, {"customer": "ann", "item": "x" * 2000 if number == refused else "cup"})
    for _ in range(4):
        with pytest.raises(KafkaError), producer_of(lesson) as producer:
            lesson.process_outbox(lesson.shop, producer, topic)
    return told(lesson, topic)


@accident(RELAY, [6, 17])
@pytest.mark.parametrize("refused", [1, 3, 5])
def test_a_refused_event_makes_no_start_repeat_the_others(lesson, refused):
    records = start_again_and_again(lesson, refused)
    assert records == [f"created {n}" for n in range(1, refused)]
    assert lesson.waiting_events() == list(range(refused, 6))


def test_control_an_error_that_undoes_the_marks(lesson):
    inside = "        error = publish(connection, producer, topic, events)\n"
    raises = inside + "        if error:\n            raise error\n"
    control = without(lesson.namespace, "def process_outbox", inside, raises)
    assert start_again_and_again(control, 4) == [f"created {n}" for n in (1, 2, 3)] * 4


@accident(RELAY, [4])
def test_an_event_that_arrives_though_its_future_says_otherwise(lesson):
    topic = open_shop(lesson)
    lesson.take_pay_cancel(3)
    with producer_of(lesson) as producer:
        with pytest.raises(KafkaTimeoutError):
            lesson.process_outbox(lesson.shop, Failing(producer, 2, written=True), topic)
        assert lesson.waiting_events() == [2]
        lesson.process_outbox(lesson.shop, producer, topic)
    assert not lesson.waiting_events()
    assert told(lesson, topic).count("created 2") == 2 and len(told(lesson, topic)) == 10
    assert len({lesson.event_id(record) for record in read_topic(lesson.cluster, topic)}) == 9


@weak(RELAY, 5, OVERTAKEN)
def test_an_event_that_expires_is_sent_after_later_ones_of_its_order(lesson):
    topic = open_shop(lesson)
    lesson.take_pay_cancel(3)
    with producer_of(lesson) as producer:
        with pytest.raises(KafkaTimeoutError):
            lesson.process_outbox(lesson.shop, Failing(producer, 2, written=False), topic)
        lesson.process_outbox(lesson.shop, producer, topic)
    assert lesson.behind_a_later_one(read_topic(lesson.cluster, topic)) == ["created 2"]


@accident(SEVERAL, [4, 5, 17])
@pytest.mark.parametrize("written", [True, False])
def test_only_the_first_of_its_order_is_sent(lesson, written):
    topic = open_shop(lesson)
    lesson.take_pay_cancel(3)
    query = lesson.waiting(100).where(lesson.first_of_its_order).with_for_update(skip_locked=True)
    with producer_of(lesson) as producer:
        failing = Failing(producer, 2, written)
        while lesson.waiting_events():
            with lesson.shop.begin() as connection:
                lesson.publish(connection, failing, topic, connection.execute(query).all())
    records = list(dict.fromkeys(told(lesson, topic)))  # the first time of each
    for order in (1, 2, 3):
        own = [each for each in records if each.endswith(str(order))]
        assert own == [f"{what} {order}" for what in ("created", "paid", "cancelled")]


@accident(RELAY, [14])
def test_more_events_than_a_page(lesson):
    topic = open_shop(lesson)
    for number in range(1, 251):
        lesson.create_order(lesson.shop, lesson.order_of(number))
    with producer_of(lesson) as producer:
        rounds = [lesson.process_outbox(lesson.shop, producer, topic) for _ in range(4)]
    assert rounds == [100, 100, 50, 0] and told(lesson, topic) == [f"created {n}" for n in range(1, 251)]


def zombie(lesson, transactional_id=None) -> list:
    """A relay with full buffers loses its session; another one does its work and newer one; then the first goes on."""
    topic = open_shop(lesson)
    number = lesson.create_order(lesson.shop, lesson.order_of(1))
    lesson.change_order(lesson.shop, number, "Paid")
    my_turn = select(func.pg_try_advisory_xact_lock(text("'outbox'::regclass::bigint")))
    settings = {"transactional_id": lesson.cluster.transactional_id("outbox")} if transactional_id else {}

    def relay(**more):
        producer = producer_of(lesson, **settings, **more)
        if settings:
            producer.init_transactions()
            producer.begin_transaction()
        return producer

    slow = relay(linger_ms=60_000, batch_size=1_000_000)
    one = lesson.shop.connect()
    assert one.scalar(my_turn)
    pid = one.scalar(text("select pg_backend_pid()"))
    for event in one.execute(lesson.waiting(100)).all():
        lesson.send_event(slow, topic, event)
    with lesson.shop.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        assert admin.scalar(text("select pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    lesson.change_order(lesson.shop, number, "Cancelled")
    with lesson.shop.begin() as two:
        assert two.scalar(my_turn)
        producer = relay()
        assert lesson.publish(two, producer, topic, two.execute(lesson.waiting(100)).all()) is None
        if settings:
            producer.commit_transaction()
    producer.close()
    with contextlib.suppress(KafkaError):
        slow.flush()
        if settings:
            slow.commit_transaction()
    with contextlib.suppress(KafkaError):
        slow.close()
    with pytest.raises(DBAPIError):
        one.execute(text("select 1"))
    one.invalidate()
    one.close()
    assert not lesson.waiting_events()
    return read_topic(lesson.cluster, topic)


@weak(RELAY, 3, ZOMBIE)
def test_a_relay_that_lost_its_session_and_not_its_life(lesson):
    assert lesson.behind_a_later_one(zombie(lesson)) == ["created 1", "paid 1"]


@accident(FENCED, [3, 15])
def test_a_relay_that_was_fenced(lesson):
    records = zombie(lesson, transactional_id="outbox")
    assert [lesson.label(record) for record in records] == ["created", "paid", "cancelled"]


def test_vacuum_waits_for_a_relay_that_waits_for_kafka(lesson):
    """What the lesson says of FOR UPDATE: rows of any table that die meanwhile stay."""
    open_shop(lesson)
    lesson.create_order(lesson.shop, lesson.order_of(1))
    notices = []

    def dead_rows_kept() -> bool:
        notices.clear()
        with lesson.shop.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            driver = connection.connection.driver_connection
            driver.add_notice_handler(lambda notice: notices.append(notice.message_primary))
            connection.exec_driver_sql("VACUUM (VERBOSE) orders")
        return " 1 are dead but not yet removable" in "\n".join(notices)

    with lesson.shop.connect() as relay:
        relay.execute(lesson.waiting(100).with_for_update(skip_locked=True)).all()
        with lesson.shop.begin() as other:
            other.execute(update(lesson.Order).values(state="paid"))
        assert dead_rows_kept(), notices
    assert not dead_rows_kept(), notices


# -- the consumer


def stock(lesson, cups=100):
    store = create_engine(lesson.database.schema("store"))
    lesson.warehouse_tables.drop_all(store)
    lesson.warehouse_tables.create_all(store)
    with store.begin() as connection:
        connection.execute(insert(lesson.Stock).values(item="cup", amount=cups))
    return store


def taken(lesson, store, cups=100) -> int:
    with store.connect() as connection:
        return cups - connection.scalar(select(lesson.Stock.c.amount))


def two_shops(lesson) -> list[str]:
    """The topics of two shops, each with orders 1 to 3."""
    topics = []
    for name in ("berlin", "paris"):
        shop = create_engine(lesson.database.schema(name))
        lesson.tables.create_all(shop)
        topics.append(lesson.cluster.topic(f"orders-{name}"))
        for number in range(1, 4):
            lesson.create_order(shop, lesson.order_of(number))
        with producer_of(lesson) as producer:
            lesson.process_outbox(shop, producer, topics[-1])
        shop.dispose()
    return topics


def pack_all(lesson, pack, topics, lot=None, name="event_id") -> int:
    """Hand the events to the consumer's transaction, each twice and in any order if there is a lot."""
    store, records = stock(lesson), [record for topic in topics for record in read_topic(lesson.cluster, topic)]
    if lot:
        records = lot.sample(records * 2, 2 * len(records))
    for record in records:
        with store.begin() as transaction:
            pack(transaction, str(getattr(lesson, name)(record)))
    count = taken(lesson, store)
    store.dispose()
    return count


@accident(CONSUMER, [9, 11])
@pytest.mark.parametrize("n", range(3 * MORE))
def test_events_of_two_shops_each_twice_and_in_any_order(lesson, n):
    assert pack_all(lesson, lesson.pack_once, two_shops(lesson), random.Random(f"{SEED} {n}")) == 6


@pytest.mark.parametrize("pack, name, wrong", [("pack_naively", "event_id", 12), ("pack_once", "event_number", 3)])
def test_control_consumers(lesson, pack, name, wrong):
    topics = two_shops(lesson)
    assert pack_all(lesson, getattr(lesson, pack), topics, random.Random(SEED), name) == wrong


@accident(CONSUMER, [10])
def test_the_shops_database_comes_back_without_its_last_marks(lesson):
    topic = open_shop(lesson)
    for number in range(1, 6):
        lesson.create_order(lesson.shop, lesson.order_of(number))
    with producer_of(lesson) as producer:
        lesson.process_outbox(lesson.shop, producer, topic)
        with lesson.shop.begin() as connection:
            connection.execute(update(lesson.Outbox).where(lesson.Outbox.c.id > 2).values(published_at=None))
        lesson.process_outbox(lesson.shop, producer, topic)
    assert len(read_topic(lesson.cluster, topic)) == 8
    assert pack_all(lesson, lesson.pack_once, [topic]) == 5


@weak(CONSUMER, 10, OLDER)
def test_the_shops_database_comes_back_without_its_last_orders(lesson):
    """Its identities go back, too: another order gets the number, and its event another id."""
    topic = open_shop(lesson)
    with producer_of(lesson) as producer:
        for _ in range(2):
            lesson.create_order(lesson.shop, lesson.order_of(1))
            lesson.process_outbox(lesson.shop, producer, topic)
            with lesson.shop.begin() as connection:
                for table in (lesson.Order, lesson.Outbox):
                    connection.execute(delete(table))
                    connection.execute(text(f"ALTER TABLE {table.name} ALTER id RESTART WITH 1"))
    assert told(lesson, topic) == ["created 1"] * 2
    assert pack_all(lesson, lesson.pack_once, [topic]) == 2


def run_warehouse(lesson, topic, group=None) -> int:
    store = stock(lesson)
    job = (store.url, lesson.cluster.connection, topic, group or lesson.cluster.group("warehouse"))
    try:
        lesson.warehouse(*job, lesson.pack_once)
        return taken(lesson, store)
    finally:
        store.dispose()


@accident(CONSUMER, [16, 17])
def test_aborted_events_are_not_packed(lesson):
    topic = open_shop(lesson)
    lesson.create_order(lesson.shop, lesson.order_of(1))
    producer = producer_of(lesson, transactional_id=lesson.cluster.transactional_id("outbox"))
    producer.init_transactions()
    for end in (producer.abort_transaction, producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        headers = [("event-id", b"never"), ("event-type", b"OrderCreated")]
        if end == producer.commit_transaction:
            with lesson.shop.begin() as connection:
                lesson.publish(connection, producer, topic, connection.execute(lesson.waiting(100)).all())
        else:
            producer.send(topic, json.dumps({"order": 9}).encode(), key=b"9", headers=headers).get(timeout=10)
        end()
    producer.init_transactions()
    producer.close()
    group = lesson.cluster.group("warehouse")
    assert run_warehouse(lesson, topic, group) == 1
    assert run_warehouse(lesson, topic, group) == 0  # a second run finds nothing to do


@weak(CONSUMER, 7, NAMELESS)
@pytest.mark.parametrize("headers", [[], [("event-type", b"OrderCreated")], [("event-id", b"\xff")]])
def test_a_record_without_an_event_id_stops_the_warehouse(lesson, headers):
    topic = open_shop(lesson)
    with producer_of(lesson) as producer:
        producer.send(topic, b"{}", key=b"1", headers=headers).get(timeout=10)
    group = lesson.cluster.group("warehouse")
    for _ in range(2):
        with pytest.raises((KeyError, UnicodeDecodeError)):
            run_warehouse(lesson, topic, group)


@weak(CONSUMER, 8, GONE)
def test_events_that_are_deleted_unread(lesson):
    topic = open_shop(lesson)
    for number in range(1, 5):
        lesson.create_order(lesson.shop, lesson.order_of(number))
    with producer_of(lesson) as producer:
        lesson.process_outbox(lesson.shop, producer, topic)
    with lesson.KafkaAdminClient(**lesson.cluster.connection) as admin:
        admin.delete_records({TopicPartition(topic, 0): 2})
    wait_until(lambda: len(read_topic(lesson.cluster, topic)) == 2, "the events to be gone")
    assert run_warehouse(lesson, topic) == 2
