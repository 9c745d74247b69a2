"""Questions of lesson 08, outbox."""

import contextlib
import json
import sys
import threading

import cloudpickle
from sqlalchemy import Engine, Integer, create_engine, event, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import Worker, point

# What a judge runs in another process goes there by value: loading this module, and matplotlib with it, takes seconds.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

CUSTOMERS = ["ann", "bob", "eve"]


@contextlib.contextmanager
def _watching(look):
    """Call `look` before each statement and each commit, whichever engine makes it; not for what `look` asks itself."""
    looking = False

    def guarded(*_):
        nonlocal looking
        if not looking:
            looking = True
            try:
                look()
            finally:
                looking = False

    event.listen(Engine, "before_cursor_execute", guarded)
    event.listen(Engine, "commit", guarded)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", guarded)
        event.remove(Engine, "commit", guarded)


class _Meanwhile:
    """What others do while the learner's relay works: at its first `send` an order of theirs is committed.

    Two transactions: one began before, so that its event has a smaller id than the newest one in the table; the other
    one begins only now. A relay that has locked the table keeps the second one out, and is left alone after a moment.
    """

    def __init__(self, lab, shop, number, change=None):
        self._change, self._done, self.changed = change, threading.Event(), False
        options = {"options": shop.url.query.get("options", "") + " -c lock_timeout=500ms"}
        self._engine = create_engine(shop.url, connect_args=options)
        lab.afterwards.callback(self._engine.dispose)
        self._early = self._engine.connect()
        lab.afterwards.callback(self._early.close)
        lab.need("add_event")(self._early, number, "OrderCreated", {"order": number})
        self._timer, self._lock = threading.Timer(3, self.happen), threading.Lock()
        self._timer.daemon = True
        lab.afterwards.callback(self._timer.cancel)

    def at_send_of(self, producer):
        """Happen when this producer sends for the first time."""
        send = producer.send
        if not self._timer.ident:
            self._timer.start()

        def watched(*arguments, **keywords):
            future = send(*arguments, **keywords)
            self.happen()
            return future

        producer.send = watched
        return producer

    def happen(self):
        with self._lock:
            if self._done.is_set():
                return
            self._done.set()
            self._early.commit()
            with contextlib.suppress(DBAPIError):
                self._change(self._engine)
                self.changed = True


def _open_shop(lab, schema):
    """An engine on empty tables, those of the notebook, in a schema of the question's own."""
    tables, database = lab.need("tables"), lab.need("database")
    engine = create_engine(database.schema(schema))
    lab.afterwards.callback(engine.dispose)
    tables.create_all(engine)
    return engine


def _place_orders(lab, shop, count=3):
    for number in range(1, count + 1):
        lab.need("create_order")(shop, {"customer": CUSTOMERS[(number - 1) % 3], "item": "cup"})


# -- q1: one transaction


def _judge_cancel_order(lab, cancel_order):
    shop = _open_shop(lab, "q1")
    _place_orders(lab, shop, 6)
    for number in (2, 5):
        _cancel_one(lab, shop, cancel_order, number)
    outbox = lab.need("Outbox").name
    with shop.begin() as connection:  # from here on, the database refuses the event
        connection.execute(text(f"ALTER TABLE {outbox} ADD CHECK (event_type <> 'OrderCancelled') NOT VALID"))
    try:
        cancel_order(shop, 3)
    except Exception:
        said = True
    else:
        said = False
    if 3 in _cancelled(lab, shop)[0]:
        raise Wrong(
            "the database refused the event, and the order is cancelled all the same",
            "neither of the two",
            "An `except` or a savepoint around one of the two writes lets the other one through.",
        )
    if not said:
        raise Wrong(
            "the database refused the event, and your function came back as if the order were cancelled",
            "the database's error",
            "An `except` that swallows it: the caller tells the customer what has not happened.",
        )
    return "whoever looks, at whatever moment, sees both or neither"


def _cancelled(lab, connectable) -> tuple[list, list]:
    """The orders that are cancelled, and those of which an event says so."""
    order, outbox = lab.need("Order"), lab.need("Outbox")
    cancelled = select(order.c.id).where(order.c.state == "cancelled").order_by(order.c.id)
    told = select(outbox.c.payload).where(outbox.c.event_type == "OrderCancelled").order_by(outbox.c.id)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(connectable.connect()) if isinstance(connectable, Engine) else connectable
        return list(connection.scalars(cancelled)), [json.loads(each)["order"] for each in connection.scalars(told)]


def _cancel_one(lab, shop, cancel_order, number) -> None:
    outbox = lab.need("Outbox")
    observing = create_engine(shop.url).execution_options(isolation_level="AUTOCOMMIT")
    lab.afterwards.callback(observing.dispose)
    with observing.connect() as observer:
        before, seen = _cancelled(lab, observer), []
        with _watching(lambda: seen.append(_cancelled(lab, observer))):
            lab.call(cancel_order, shop, number)
        orders, events = _cancelled(lab, observer)
        about = observer.scalar(
            select(outbox.c.aggregate_id).where(outbox.c.event_type == "OrderCancelled").order_by(outbox.c.id.desc())
        )
        exists = observer.scalar(select(func.count()).select_from(lab.need("Order")))
    wanted = f"order {number} cancelled, and one event OrderCancelled for it, both or neither at any moment"
    others = sorted(set(orders) - set(before[0]) - {number})
    if others:
        raise Wrong(
            f"orders {others} are cancelled as well, which nobody has asked for",
            wanted,
            "An `UPDATE` without its `WHERE`, or with one that is too wide, changes other rows too.",
        )
    if exists < 6:
        raise Wrong(f"{6 - exists} orders are not in the table any more", wanted, "Was a row deleted?")
    both = (sorted([*before[0], number]), [*before[1], number])
    if (orders, events) != both:
        cause = (
            "Was one of the two writes lost, or is it never committed? `with shop.begin()` commits at its end, "
            "`with shop.connect()` does not."
        )
        if events.count(number) > 1:
            cause = "The event is written more than once."
        elif number in orders and len(events) > len(before[1]):
            cause = "The event is about another order, or none: leave `add_event` as it was."
        new = len(events) - len(before[1])
        told = f"in the end order {number} is {'' if number in orders else 'not '}cancelled, and {new} events say so"
        raise Wrong(told, wanted, cause)
    if about != number:
        raise Wrong(f"the event is about order {about}", wanted, "Leave `add_event` as it was.")
    if any(number in now and number not in told for now, told in seen):
        raise Wrong(
            "between two statements the order was cancelled for all to see, and its event was not in the outbox",
            wanted,
            "There are two transactions. A process that dies between them leaves a cancelled order that the "
            "warehouse packs.",
        )
    if any(number in told and number not in now for now, told in seen):
        raise Wrong(
            "between two statements the event was in the outbox, and the order was not cancelled",
            wanted,
            "There are two transactions still, now the other way round: a process that dies between them announces "
            "what did not happen.",
        )


q1 = Question(
    "q1",
    wants=("cancel_order",),
    starter='''
def cancel_order(shop, number):
    """The order becomes 'cancelled', and an event says so."""
    with shop.begin() as connection:
        connection.execute(update(Order).where(Order.c.id == number).values(state="cancelled"))
    with shop.begin() as connection:
        add_event(connection, number, "OrderCancelled", {"order": number})
''',
    solution='''
def cancel_order(shop, number):
    """The order becomes 'cancelled', and an event says so."""
    with shop.begin() as connection:
        connection.execute(update(Order).where(Order.c.id == number).values(state="cancelled"))
        add_event(connection, number, "OrderCancelled", {"order": number})
''',
    judge=_judge_cancel_order,
    hints=[
        "How many transactions are there? Where may the process die?",
        "Each `with shop.begin()` is a transaction of its own, committed at its end: one line is enough to remove.",
    ],
    why="An outbox is worth exactly as much as the transaction that it shares with the change it tells of.",
    deadline=15,
)


# -- q2: acknowledged, then deleted


def _told(lab, topic) -> list[int]:
    return [json.loads(record.value)["order"] for record in lab.records(topic)]


def _rows(outbox, shop) -> list[int]:
    with shop.connect() as connection:
        return list(connection.scalars(select(outbox.c.aggregate_id).order_by(outbox.c.id)))


def _shuffle(outbox, shop, number: int) -> None:
    """Move an order's first row to the end of the table's file, as an UPDATE does: without ORDER BY it comes last."""
    first = select(func.min(outbox.c.id)).where(outbox.c.aggregate_id == number).scalar_subquery()
    with shop.begin() as connection:
        connection.execute(update(outbox).where(outbox.c.id == first).values(payload=outbox.c.payload))


def _check_records(records) -> None:
    """Each record has its key, and the headers by which a consumer knows a repetition."""
    keys = [record.key for record in records]
    wanted = [str(json.loads(record.value)["order"]).encode() for record in records]
    if keys != wanted:
        raise Wrong(f"the records' keys are {keys}", f"{wanted}", "`send_event` gives each one its key.")
    for record in records:
        if not {"event-id", "event-type"} <= {name for name, _ in record.headers}:
            told = f"the headers of order {json.loads(record.value)['order']}: {record.headers}"
            raise Wrong(told, "`event-id` and `event-type`", "`send_event` gives each one its headers, too.")


def _judge_publish_and_delete(lab, publish_and_delete):
    outbox, create_order = lab.need("Outbox"), lab.need("create_order")
    shop, topic = _open_shop(lab, "q2"), lab.topic("orders", config={"max.message.bytes": 1000})
    _place_orders(lab, shop, 1)
    meanwhile = _Meanwhile(lab, shop, 77, lambda shop: create_order(shop, {"customer": "eve", "item": "pot"}))
    _place_orders(lab, shop, 2)
    _shuffle(outbox, shop, 1)
    producer = lab.producer(linger_ms=2000)
    lab.call(publish_and_delete, shop, meanwhile.at_send_of(producer), topic)
    meanwhile.happen()
    told, rows = _told(lab, topic), _rows(outbox, shop)
    wanted = "an event is on the log, or in the table, at any moment; in the end on the log"
    if lost := sorted({1, 2, 3} - {*told} - {*rows}):
        raise Wrong(
            f"the events of orders {lost} are neither in the table nor on the log when your function has returned",
            wanted,
            "`send` puts the record into the producer's buffer only; here, the producer lingers for two seconds. "
            "Delete when it is acknowledged.",
        )
    if lost := sorted({77, 4} & {*_created(lab, shop), 77} - {*told} - {*rows}):
        raise Wrong(
            f"while your function worked, orders {lost} were committed, and their events are neither in the table nor "
            "on the log",
            wanted,
            "Delete the rows that you have sent, each by its id. A `DELETE` without a `WHERE`, or up to the last id, "
            "takes others too.",
        )
    if rows := sorted({1, 2, 3} & {*rows}):
        raise Wrong(
            f"the events of orders {rows} are on the log, and still in the table",
            "an empty table when all events are acknowledged",
            "Is the deletion committed? Without that, the next round sends everything again.",
        )
    if (found := [number for number in told if number < 4]) != [1, 2, 3]:
        raise Wrong(f"on the log: orders {found}", "[1, 2, 3]", "Each event is sent once, the oldest first.")
    _check_records(lab.records(topic))
    lab.call(publish_and_delete, shop, producer, topic)
    wanted = sorted({1, 2, 3, 77, 4} & {77, *_created(lab, shop)})
    if sorted(told := _told(lab, topic)) != wanted or _rows(outbox, shop):
        told = f"after a second round, on the log are orders {told}, and in the table {_rows(outbox, shop)}"
        raise Wrong(told, f"{wanted} on the log, and an empty table", "Each round begins with what is in the table.")
    return _refuse_one(lab, shop, topic, producer, publish_and_delete)


def _created(lab, shop) -> list[int]:
    with shop.connect() as connection:
        return list(connection.scalars(select(lab.need("Order").c.id)))


def _refuse_one(lab, shop, topic, producer, publish_and_delete) -> str:
    """Kafka refuses an event. Then it is the only one of two that fails, as when a record expires."""
    outbox, create_order = lab.need("Outbox"), lab.need("create_order")
    failed, send = [], producer.send

    def remembered(*arguments, **keywords):
        failed.append(send(*arguments, **keywords))
        return failed[-1]

    producer.send = remembered
    refused = create_order(shop, {"customer": "ann", "item": "x" * 2000})
    try:
        publish_and_delete(shop, producer, topic)
    except Exception as error:
        said = type(error).__name__
    else:
        said = ""
    if refused not in _rows(outbox, shop):
        cause = "`flush` does not raise for a record that failed; its future does: `future.get(timeout=10)`."
        if said:
            cause = "Its deletion was committed before the future was asked: the error comes too late for it."
        told = "Kafka refused an event of 2,000 characters, and it is not in the table any more"
        raise Wrong(told, "a refused event stays in the table", cause)
    if not said:
        raise Wrong(
            "Kafka refused an event, and your function returned as if all were well",
            "the error that `future.get` raises",
            "An `except` that swallows it: nobody will know that an event is stuck.",
        )
    behind = create_order(shop, {"customer": "ann", "item": "cup"})
    other = lab.producer()
    send_well, too_large = other.send, json.dumps("x" * 2000).encode()

    def send_other(topic, value=None, *arguments, **keywords):
        return failed[-1] if too_large in value else send_well(topic, value, *arguments, **keywords)

    other.send = send_other
    with contextlib.suppress(Exception):
        publish_and_delete(shop, other, topic)
    rows = _rows(outbox, shop)
    if refused not in rows or (behind not in rows and behind not in _told(lab, topic)):
        raise Wrong(
            f"of orders {refused} and {behind}, Kafka refuses the first one; in the table are {rows}",
            "each event on the log or in the table",
            "Look at the future of each record, not only at one of them, and delete what is acknowledged.",
        )
    return f"each event is on the log and out of the table; a refused one is kept, and {said} raised"


q2 = Question(
    "q2",
    wants=("publish_and_delete",),
    starter='''
def publish_and_delete(shop, producer, topic):
    """Publish what is in the outbox, the oldest first, and delete what Kafka has acknowledged."""
    with shop.begin() as connection:
        for event in connection.execute(select(Outbox).order_by(Outbox.c.id)).all():
            send_event(producer, topic, event)
            connection.execute(delete(Outbox).where(Outbox.c.id == event.id))
''',
    solution='''
def publish_and_delete(shop, producer, topic):
    """Publish what is in the outbox, the oldest first, and delete what Kafka has acknowledged."""
    with shop.begin() as connection:
        events = connection.execute(select(Outbox).order_by(Outbox.c.id)).all()
        futures = [send_event(producer, topic, event) for event in events]
        producer.flush()
        for event, future in zip(events, futures):
            future.get(timeout=10)  # an error undoes this round's deletions: sent again, but never lost
            connection.execute(delete(Outbox).where(Outbox.c.id == event.id))
''',
    judge=_judge_publish_and_delete,
    hints=[
        "`send_event` returns the producer's future. What does it know, and when?",
        "`producer.flush()` sends what is buffered; `future.get(timeout=10)` raises for what Kafka has not got.",
        "An exception inside of `with shop.begin()` rolls back: what was deleted in it is there again.",
    ],
    why="A row in the outbox is the only thing that knows of the event: it may go when Kafka knows, not before.",
    deadline=20,
)


# -- q3: the consumer drops what it has seen


_LETTERS = ["ann", "bob", "ann", "eve"]
_IDS = ["c0a8a1f2", "f81d4fae", "1b9d6bcd", "d9428888"]  # of events 1 to 4: they identify, and do not ascend
_FIRST, _SECOND = [2, 3], [2, 3, 4, 4, 1, 2]  # the events that the first and the second process are given

#: What plausible wrong answers write, and why.
_DOUBLED = [
    (
        ["ann", "bob", "ann", "bob", "ann", "eve", "ann"],
        "Only the process that was killed knew what it had handled: ask the database.",
    ),
    (
        ["ann", "bob", "ann", "bob", "ann", "eve", "ann", "bob"],
        "Only the last event is remembered, and what comes again may be older. Keep a note of each event.",
    ),
]


def _event_ids(column) -> list:
    """The ids, as the learner's column takes them: an answer from before they were texts has numbers."""
    ids = [f"{each}-7dec-41d0-a765-00a0c91e6bf6" for each in _IDS]
    return [int(each[:8], 16) for each in ids] if isinstance(column.type, Integer) else ids


def _write_letters(address, pickled, deliveries):
    """Handle (event id, customer) one after the other, as a consumer does that is killed before its commit.

    The function was pickled before its first call, so that what it remembers since stays behind.
    """
    handle_event, mail = cloudpickle.loads(pickled), create_engine(address)
    for number, customer in deliveries:
        handle_event(mail, number, customer)
        point("handled")


def _judge_handle_event(lab, handle_event):
    letters, noted = lab.need("Mail"), lab.need("Handled")
    at_first, mail = cloudpickle.dumps(handle_event), create_engine(lab.need("database").schema("q3"))
    lab.afterwards.callback(mail.dispose)
    letters.metadata.create_all(mail)
    ids = _event_ids(noted.c.event_id)
    given = dict(zip(range(1, 5), zip(ids, _LETTERS, strict=True), strict=True))
    halves = []
    with create_engine(mail.url).connect().execution_options(isolation_level="AUTOCOMMIT") as observer:

        def look():
            halves.append(tuple(observer.scalar(select(func.count()).select_from(each)) for each in (letters, noted)))

        with _watching(look):
            lab.call(handle_event, mail, *given[1])
        look()
    first = Worker(
        _write_letters, mail.url, at_first, [given[n] for n in _FIRST], die_at=("handled", 2),
        environment={"PYTHONHASHSEED": "1"},
    )  # fmt: skip
    lab.afterwards.callback(first.kill)
    state = first.wait(60)
    second = Worker(
        _write_letters, mail.url, at_first, [given[n] for n in _SECOND], environment={"PYTHONHASHSEED": "2"}
    )
    lab.afterwards.callback(second.kill)
    for worker, said in ((first, state), (second, second.wait(60))):
        if said.startswith("failed"):
            errors = [line for line in worker.output.splitlines() if "Error" in line]
            raise Wrong(f"the mail service {said}", "a service that goes on", errors[-1] if errors else "")
    with mail.connect() as connection:
        written = list(connection.scalars(select(letters.c.customer).order_by(letters.c.id)))
        notes = list(connection.scalars(select(noted.c.event_id)))
    _judge_letters(written, notes, ids)
    if any(half in halves for half in [(0, 1), (1, 0)]):
        first_half = "the note that the event is handled" if (0, 1) in halves else "the letter"
        raise Wrong(
            f"{first_half} was committed alone, a moment before the rest",
            "the note and the letter in one transaction",
            "Killed between the two, the event is lost."
            if (0, 1) in halves
            else "Killed between the two, the letter is written again.",
        )
    _refuse_a_letter(
        letters, mail, handle_event, 77 if isinstance(ids[0], int) else "0e37df36-f698-11e6-8dd4-cb9ced3df976"
    )
    return "four events, nine deliveries, one killed process: four letters"


def _judge_letters(written, notes, ids) -> None:
    found, wanted = f"letters to {written}", f"{_LETTERS}, a letter for each of the four events"
    if len(written) > 4:
        cause = "Nothing keeps an event from being handled a second time."
        if notes and not {*map(str, notes)} <= {*map(str, ids)}:
            cause = "What was noted is not the event's id. `hash()` for one gives another number in each process."
        elif any(written == letters for letters, _ in _DOUBLED):
            cause = next(why for letters, why in _DOUBLED if written == letters)
        elif len(notes) == 4:
            cause = (
                "All events are noted, and the letter is written all the same. (SQLAlchemy's `rowcount` is -1 for an "
                "INSERT, so always true: ask for `RETURNING`.)"
            )
        raise Wrong(f"{found}, though there were four events, some of them delivered again", wanted, cause)
    if written != _LETTERS:
        cause = "Is the letter written, to the customer of its event, and is it committed?"
        if written == ["ann", "bob"]:
            cause = (
                "Ids do not ascend on their way: an event with a smaller one may come later, and is new all the same. "
                "Keep a note of each event, not of the greatest."
            )
        elif written == ["ann", "bob", "eve"]:
            cause = "A repetition is known by the event's id, not by the customer: ann has ordered twice."
        elif len(written) == 1 and len(notes) > 1:
            cause = "A `DELETE` without its `WHERE` empties the table."
        raise Wrong(found, wanted, cause)


def _refuse_a_letter(letters, mail, handle_event, number) -> None:
    """The database does not take the letter at first; the event comes again."""
    with mail.begin() as connection:
        refuse = f"ALTER TABLE {letters.name} ADD CONSTRAINT not_now CHECK (customer <> 'mia') NOT VALID"
        connection.execute(text(refuse))
    try:
        handle_event(mail, number, "mia")
    except Exception:
        said = True
    else:
        said = False
    with mail.begin() as connection:
        connection.execute(text(f"ALTER TABLE {letters.name} DROP CONSTRAINT not_now"))
    handle_event(mail, number, "mia")
    with mail.connect() as connection:
        count = connection.scalar(select(func.count()).select_from(letters).where(letters.c.customer == "mia"))
    told = "the database refused the letter; "
    if count != 1:
        raise Wrong(
            f"{told}the event came again, and there are {count} letters to mia",
            "one letter",
            "The note stays although the letter was refused: let the error end the transaction of both.",
        )
    if not said:
        raise Wrong(
            f"{told}your function came back as if it were written",
            "the database's error",
            "An `except` that swallows it: the consumer commits the event's offset, and it never comes again.",
        )


q3 = Question(
    "q3",
    wants=("handle_event",),
    starter='''
mail_tables = sa.MetaData()
Mail = sa.Table(
    "mail", mail_tables,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True), sa.Column("customer", sa.Text),
)  # fmt: skip
Handled = sa.Table("handled", mail_tables, sa.Column("event_id", sa.Text, primary_key=True))


def handle_event(mail, event_id, customer):
    """A letter to the customer, one for each event, however often the event comes."""
    with mail.begin() as connection:
        connection.execute(insert(Mail).values(customer=customer))
''',
    solution='''
mail_tables = sa.MetaData()
Mail = sa.Table(
    "mail", mail_tables,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True), sa.Column("customer", sa.Text),
)  # fmt: skip
Handled = sa.Table("handled", mail_tables, sa.Column("event_id", sa.Text, primary_key=True))


def handle_event(mail, event_id, customer):
    """A letter to the customer, one for each event, however often the event comes."""
    with mail.begin() as connection:  # both or neither, whenever the process dies
        note = insert_or_not(Handled).values(event_id=event_id).on_conflict_do_nothing()
        if connection.execute(note.returning(Handled.c.event_id)).first():
            connection.execute(insert(Mail).values(customer=customer))
''',
    judge=_judge_handle_event,
    hints=[
        "How can the service know, after a crash, that it has handled an event? The table `Handled` is there for it.",
        "`insert_or_not(Handled).values(event_id=event_id).on_conflict_do_nothing().returning(Handled.c.event_id)` "
        "inserts no second row; `.first()` of its result is the row, or None if the event was there already.",
        "Both writes belong in one `with mail.begin()`. Keep a note of each event: what comes again may be an old one.",
    ],
    why="The outbox promises 'at least once'; the consumer's own transaction makes 'once' of it.",
    deadline=45,
)


# -- q4: one refused event must not stop the others


_MANY = 150  # more than a page


def _judge_publish_what_goes(lab, publish_what_goes):
    outbox, change_order = lab.need("Outbox"), lab.need("change_order")
    shop, topic = _open_shop(lab, "q4"), lab.topic("orders", config={"max.message.bytes": 1000})
    create_order, add_event = lab.need("create_order"), lab.need("add_event")
    for number in range(1, 6):
        if number == 4:
            meanwhile = _Meanwhile(lab, shop, 77, lambda shop: change_order(shop, 1, "Packed"))
        item = "x" * 2000 if number == 2 else "cup"
        create_order(shop, {"customer": CUSTOMERS[(number - 1) % 3], "item": item})
    with shop.begin() as connection:
        add_event(connection, 5, "OrderNoted", {"order": 5, "note": "x" * 2000})
    for number in range(1, 6):
        change_order(shop, number, "Paid")
    _shuffle(outbox, shop, 1)
    wanted = {number: ["OrderCreated", "OrderPaid"] for number in (1, 3, 4)} | {2: [], 5: ["OrderCreated"]}
    stuck = [_publish(lab, publish_what_goes, shop, topic, meanwhile)]
    meanwhile.happen()
    wanted[77] = ["OrderCreated"]
    if meanwhile.changed:
        wanted[1] = [*wanted[1], "OrderPacked"]
    late = [(77, "OrderCreated"), (1, "OrderPacked")]  # these may wait for the next round
    ends = "The loop ends there, or the page is full before the others come."
    _judge_round(lab, shop, topic, stuck, wanted, ends, late)
    change_order(shop, 3, "Cancelled")
    stuck.append(_publish(lab, publish_what_goes, shop, topic, meanwhile))
    wanted[3] = [*wanted[3], "OrderCancelled"]
    _judge_round(lab, shop, topic, stuck, wanted, "Each round begins with what waits in the table.")
    row = {"aggregate_type": "Order", "aggregate_id": 2, "event_type": "OrderTouched", "payload": '{"order": 2}'}
    with shop.begin() as connection:
        connection.execute(insert(outbox), [row] * _MANY)
    change_order(shop, 4, "Cancelled")
    stuck.append(_publish(lab, publish_what_goes, shop, topic, meanwhile))
    wanted[4] = [*wanted[4], "OrderCancelled"]
    many = f"{_MANY} events of it fill the page. Leave the stuck orders out of the query, or look behind the page."
    _judge_round(lab, shop, topic, stuck, wanted, many)
    with shop.begin() as connection:  # somebody has been told, and has mended the two events
        big = func.length(outbox.c.payload) > 1000
        connection.execute(update(outbox).where(big).values(payload=json.dumps({"order": 0})))
    stuck.append(_publish(lab, publish_what_goes, shop, topic, meanwhile))
    with shop.connect() as connection:
        left = connection.scalars(select(outbox.c.aggregate_id).where(outbox.c.published_at.is_(None))).all()
    if left or stuck[-1]:
        raise Wrong(
            f"the refused events were made smaller; your function returned {stuck[-1]}, and {len(left)} events wait",
            "nothing waits, and nothing is stuck",
            "What was stuck in an earlier round is remembered. Begin each round with an empty list, and try again.",
        )
    return "orders 1, 3 and 4 are told in full and in order; orders 2 and 5 wait, and somebody knows"


def _publish(lab, publish_what_goes, shop, topic, meanwhile):
    """One round; every producer that is made in it is closed in the end."""
    made, closed = [], set()

    def new_producer():
        producer = meanwhile.at_send_of(lab.producer())
        close = producer.close

        def watched(*arguments, **keywords):
            closed.add(id(producer))
            return close(*arguments, **keywords)

        producer.close = watched
        made.append(producer)
        return producer

    stuck = lab.call(publish_what_goes, shop, new_producer, topic, gives=(list, set, tuple))
    for producer in made:
        producer.flush()
    if left := [producer for producer in made if id(producer) not in closed]:
        raise Wrong(
            f"your function made {len(made)} producers, and {len(left)} of them are still open",
            "each producer closed",
            "A producer keeps a thread and connections until it is closed: `close()`, or `with`, also when an error "
            "ends the function.",
        )
    return stuck


def _judge_round(lab, shop, topic, stuck, wanted, cause, late=()) -> None:
    outbox, records = lab.need("Outbox"), lab.records(topic)
    told = [(int(record.key or 0), dict(record.headers).get("event-type", b"").decode()) for record in records]
    with shop.connect() as connection:
        waits = select(outbox.c.aggregate_id, outbox.c.event_type).where(outbox.c.published_at.is_(None))
        left = [tuple(row) for row in connection.execute(waits.order_by(outbox.c.id))]
    may_wait = {*late} & {*left}
    wanted = {n: [kind for kind in kinds if (n, kind) not in may_wait] for n, kinds in wanted.items()}
    if not {(2, "OrderCreated"), (5, "OrderNoted")} <= {*left}:
        raise Wrong(
            "an event that Kafka refused does not wait any more",
            "it goes on waiting",
            "Mark what is acknowledged, and nothing else: the refused event was marked (or deleted), and is lost.",
        )
    if records and not all(record.key and record.headers for record in records):
        raise Wrong("records without key or headers", "what `send_event` sends", "`send_event` gives both.")
    by_order = {number: [kind for other, kind in told if other == number] for number in wanted}
    lost = [
        (number, kind)
        for number, kinds in wanted.items()
        for kind in kinds
        if kind not in by_order[number] and (number, kind) not in left
    ]
    if lost:
        raise Wrong(
            f"neither on the log nor waiting: {lost}",
            "each event on the log or waiting",
            "An event was marked that was never sent: it came while your function worked. Mark each event by its id.",
        )
    for number in (2, 5):
        if len(by_order[number]) > len(wanted[number]):
            raise Wrong(
                f"of order {number} the log has {by_order[number]}",
                f"{wanted[number] or 'nothing'}: what comes next of it is refused",
                "What comes after a refused event of the same order has to wait as well: remember which orders are "
                "stuck.",
            )
    for number, kinds in wanted.items():
        if len(by_order[number]) > len(kinds):
            raise Wrong(
                f"of order {number} the log has {by_order[number]}, after {len(stuck)} rounds",
                f"{kinds}",
                "Events that Kafka has acknowledged are to be marked, also when another one was refused: an exception "
                "that leaves `with shop.begin()` takes all marks back.",
            )
        if len(by_order[number]) < len(kinds):
            raise Wrong(
                f"of order {number} the log has {by_order[number]}",
                f"{kinds}",
                "After a refusal the producer fails with the same error at every send: make a new one."
                if number in stuck[-1] and number not in (2, 5)
                else f"A refused event keeps the others back, too. {cause}",
            )
        if by_order[number] != kinds:
            raise Wrong(f"of order {number} the log has {by_order[number]}", f"{kinds}", "Oldest first: order by id.")
    if again := [row for row in left if row in told]:
        raise Wrong(
            f"on the log, and still waiting: {again}",
            "only what is stuck waits",
            "Mark what is acknowledged: `published_at=func.now()`, and commit it.",
        )
    if sorted(stuck[-1]) != [2, 5]:
        raise Wrong(
            f"your function returned {stuck[-1]}",
            "[2, 5], the numbers of the orders that are stuck",
            "Return the `aggregate_id` of each refused event, once.",
        )


q4 = Question(
    "q4",
    wants=("publish_what_goes",),
    starter='''
def publish_what_goes(shop, new_producer, topic):
    """Publish what Kafka takes, each order's events in order; returns the numbers of the orders that are stuck."""
    stuck = []
    with new_producer() as producer, shop.begin() as connection:
        publish(connection, producer, topic, connection.execute(waiting(100)).all())
    return stuck
''',
    solution='''
def publish_what_goes(shop, new_producer, topic):
    """Publish what Kafka takes, each order's events in order; returns the numbers of the orders that are stuck."""
    stuck, producer = [], new_producer()
    try:
        while True:
            with shop.begin() as connection:  # one for each event: its mark stays, whatever comes of the next one
                oldest = waiting(1).where(Outbox.c.aggregate_id.not_in(stuck))  # no page that stuck events could fill
                event = connection.execute(oldest).first()
                if event is None:
                    return stuck
                try:
                    send_event(producer, topic, event).get(timeout=10)
                except KafkaTimeoutError:
                    raise  # not refused but unknown: the event may still arrive, and the next round sends it again
                except KafkaError:
                    stuck.append(event.aggregate_id)
                    producer.close()
                    producer = new_producer()
                else:
                    connection.execute(update(Outbox).where(Outbox.c.id == event.id).values(published_at=func.now()))
    finally:
        producer.close()
''',
    judge=_judge_publish_what_goes,
    hints=[
        "One event after the other: `send_event(producer, topic, event).get(timeout=10)` raises a `KafkaError` for one "
        "that is refused.",
        "Remember the `aggregate_id` of a refused event, leave its order out, close the producer, and go on with a new "
        "one.",
        "`waiting(1).where(Outbox.c.aggregate_id.not_in(stuck))` asks for the oldest event of an order that is not "
        "stuck. A page of 100 may be full of stuck ones.",
        "Mark each acknowledged event with `update(Outbox).where(Outbox.c.id == event.id)"
        ".values(published_at=func.now())`, in the same transaction.",
    ],
    why="One event that cannot be delivered should cost one order its news, not the whole shop.",
    deadline=40,
)
