"""Questions of lesson 08, outbox."""

import json

from sqlalchemy import create_engine, event, func, select

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import Worker, point

CUSTOMERS = ["ann", "bob", "eve"]


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
    order, outbox = lab.need("Order"), lab.need("Outbox")
    _place_orders(lab, shop)
    with create_engine(shop.url).connect().execution_options(isolation_level="AUTOCOMMIT") as observer:
        cancelled = select(func.count()).select_from(order).where(order.c.state == "cancelled")
        told = select(func.count()).select_from(outbox).where(outbox.c.event_type == "OrderCancelled")
        seen = []

        def look(*_):
            seen.append((observer.scalar(cancelled), observer.scalar(told)))

        event.listen(shop, "before_cursor_execute", look)
        event.listen(shop, "commit", look)
        lab.call(cancel_order, shop, 2)
        look()
        row = observer.execute(select(order.c.state).where(order.c.id == 2)).scalar()
        events = observer.execute(
            select(outbox.c.aggregate_id, outbox.c.payload).where(outbox.c.event_type == "OrderCancelled")
        ).all()
    wanted = "order 2 cancelled, and one event OrderCancelled for it, both or neither at any moment"
    if (1, 0) in seen[:-1] and seen[-1] == (1, 1):
        raise Wrong(
            "between two statements the order was cancelled for all to see, and its event was not in the outbox",
            wanted,
            "There are two transactions. A process that dies between them leaves a cancelled order that the "
            "warehouse packs.",
        )
    if (0, 1) in seen[:-1] and seen[-1] == (1, 1):
        raise Wrong(
            "between two statements the event was in the outbox, and the order was not cancelled",
            wanted,
            "There are two transactions still, now the other way round: a process that dies between them announces "
            "what did not happen.",
        )
    if seen[-1] != (1, 1) or row != "cancelled":
        raise Wrong(
            f"in the end {seen[-1][0]} orders are cancelled, and {seen[-1][1]} events say so",
            wanted,
            "Was one of the two writes lost, or is it never committed? `with shop.begin()` commits at its end, "
            "`with shop.connect()` does not.",
        )
    if events[0].aggregate_id != 2:
        raise Wrong(f"the event is about order {events[0].aggregate_id}", wanted, "Leave `add_event` as it was.")
    return "whoever looks, at whatever moment, sees both or neither"


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
    deadline=10,
)


# -- q2: acknowledged, then deleted


def _told(lab, topic) -> list[int]:
    return [json.loads(record.value)["order"] for record in lab.records(topic)]


def _rows(outbox, shop) -> list[int]:
    with shop.connect() as connection:
        return list(connection.scalars(select(outbox.c.aggregate_id).order_by(outbox.c.id)))


def _judge_publish_and_delete(lab, publish_and_delete):
    outbox = lab.need("Outbox")
    shop, topic = _open_shop(lab, "q2"), lab.topic("orders", config={"max.message.bytes": 1000})
    _place_orders(lab, shop)
    producer = lab.producer(linger_ms=2000)
    lab.call(publish_and_delete, shop, producer, topic)
    told, rows = _told(lab, topic), _rows(outbox, shop)
    wanted = "an event is on the log, or in the table, at any moment; in the end on the log"
    if lost := sorted({1, 2, 3} - {*told} - {*rows}):
        raise Wrong(
            f"the events of orders {lost} are neither in the table nor on the log when your function has returned",
            wanted,
            "`send` puts the record into the producer's buffer only; here, the producer lingers for two seconds. "
            "Delete when it is acknowledged.",
        )
    if rows:
        raise Wrong(
            f"the events of orders {rows} are on the log, and still in the table",
            "an empty table when all events are acknowledged",
            "Is the deletion committed? Without that, the next round sends everything again.",
        )
    if told != [1, 2, 3]:
        raise Wrong(f"on the log: orders {told}", "[1, 2, 3]", "Each event is sent once, the oldest first.")
    keys = [record.key for record in lab.records(topic)]
    if keys != [b"1", b"2", b"3"]:
        raise Wrong(f"the records' keys are {keys}", "[b'1', b'2', b'3']", "`send_event` gives each one its key.")
    lab.need("create_order")(shop, {"customer": "ann", "item": "x" * 2000})
    try:
        publish_and_delete(shop, producer, topic)
    except Exception as error:
        said = type(error).__name__
    else:
        said = ""
    if 4 not in _rows(outbox, shop):
        raise Wrong(
            "Kafka refused an event of 2,000 characters, and it is not in the table any more",
            "a refused event stays in the table",
            "`flush` does not raise for a record that failed; its future does: `future.get(timeout=10)`.",
        )
    if not said:
        raise Wrong(
            "Kafka refused an event, and your function returned as if all were well",
            "the error that `future.get` raises",
            "An `except` that swallows it: nobody will know that an event is stuck.",
        )
    return f"three events are on the log and out of the table; a refused one is kept, and {said} raised"


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
            future.get(timeout=10)
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


def _write_letters(address, tables, handle_event, deliveries):
    """Handle (event id, customer) one after the other, as a consumer does that is killed before its commit."""
    mail = create_engine(address)
    for number, customer in deliveries:
        handle_event(mail, number, customer)
        point("handled")


def _judge_handle_event(lab, handle_event):
    letters = lab.need("Mail")
    database = lab.need("database")
    mail = create_engine(database.schema("q3"))
    lab.afterwards.callback(mail.dispose)
    letters.metadata.create_all(mail)
    halves = []

    with create_engine(mail.url).connect().execution_options(isolation_level="AUTOCOMMIT") as observer:
        noted = lab.need("Handled")

        def look(*_):
            halves.append(
                (
                    observer.scalar(select(func.count()).select_from(letters)),
                    observer.scalar(select(func.count()).select_from(noted)),
                )
            )

        event.listen(mail, "before_cursor_execute", look)
        event.listen(mail, "commit", look)
        lab.call(handle_event, mail, 1, "ann")
        look()
    event.remove(mail, "before_cursor_execute", look)
    event.remove(mail, "commit", look)
    job = (_write_letters, mail.url, None, handle_event)
    first = Worker(*job, [(2, "bob"), (3, "ann")], die_at=("handled", 2))
    lab.afterwards.callback(first.kill)
    state = first.wait()
    second = Worker(*job, [(2, "bob"), (3, "ann"), (4, "eve"), (4, "eve")])
    lab.afterwards.callback(second.kill)
    for worker, said in ((first, state), (second, second.wait())):
        if said.startswith("failed"):
            errors = [line for line in worker.output.splitlines() if "Error" in line]
            raise Wrong(f"the mail service {said}", "a service that goes on", errors[-1] if errors else "")
    with mail.connect() as connection:
        written = list(connection.scalars(select(letters.c.customer).order_by(letters.c.id)))
        all_noted = connection.scalar(select(func.count()).select_from(noted)) == 4
    found, wanted = f"letters to {written}", "['ann', 'bob', 'ann', 'eve'], a letter for each of the four events"
    if len(written) > 4:
        cause = "Nothing keeps an event from being handled a second time."
        if written == ["ann", "bob", "ann", "bob", "ann", "eve"]:
            cause = "Only the process that was killed knew what it had handled: ask the database."
        elif all_noted:
            cause = (
                "All events are noted, and the letter is written all the same. (SQLAlchemy's `rowcount` is -1 for an "
                "INSERT, so always true: ask for `RETURNING`.)"
            )
        raise Wrong(f"{found}, though there were four events, some of them delivered again", wanted, cause)
    if len(written) < 4:
        raise Wrong(
            found,
            wanted,
            "A repetition is known by the event's id, not by the customer: ann has ordered twice."
            if written.count("ann") == 1
            else "Is the letter written, and is it committed?",
        )
    if any(half in halves for half in [(0, 1), (1, 0)]):
        first_half = "the note that the event is handled" if (0, 1) in halves else "the letter"
        raise Wrong(
            f"{first_half} was committed alone, a moment before the rest",
            "the note and the letter in one transaction",
            "Killed between the two, the event is lost."
            if (0, 1) in halves
            else "Killed between the two, the letter is written again.",
        )
    return "four events, eight deliveries, one killed process: four letters"


q3 = Question(
    "q3",
    wants=("handle_event",),
    starter='''
mail_tables = sa.MetaData()
Mail = sa.Table(
    "mail", mail_tables,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True), sa.Column("customer", sa.Text),
)  # fmt: skip
Handled = sa.Table("handled", mail_tables, sa.Column("event_id", sa.BigInteger, primary_key=True))


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
Handled = sa.Table("handled", mail_tables, sa.Column("event_id", sa.BigInteger, primary_key=True))


def handle_event(mail, event_id, customer):
    """A letter to the customer, one for each event, however often the event comes."""
    with mail.begin() as connection:
        note = insert_or_not(Handled).values(event_id=event_id).on_conflict_do_nothing()
        if connection.execute(note.returning(Handled.c.event_id)).first():
            connection.execute(insert(Mail).values(customer=customer))
''',
    judge=_judge_handle_event,
    hints=[
        "How can the service know, after a crash, that it has handled an event? The table `Handled` is there for it.",
        "`insert_or_not(Handled).values(event_id=event_id).on_conflict_do_nothing().returning(Handled.c.event_id)` "
        "inserts no second row; `.first()` of its result is the row, or None if the event was there already.",
        "Both writes belong into one `with mail.begin()`.",
    ],
    why="The outbox promises 'at least once'; the consumer's own transaction makes 'once' of it.",
    deadline=30,
)


# -- q4: one refused event must not stop the others


def _judge_publish_what_goes(lab, publish_what_goes):
    outbox, change_order = lab.need("Outbox"), lab.need("change_order")
    shop, topic = _open_shop(lab, "q4"), lab.topic("orders", config={"max.message.bytes": 1000})
    create_order = lab.need("create_order")
    for number in range(1, 5):
        item = "x" * 2000 if number == 2 else "cup"
        create_order(shop, {"customer": CUSTOMERS[(number - 1) % 3], "item": item})
    for number in range(1, 5):
        change_order(shop, number, "Paid")
    stuck = [lab.call(publish_what_goes, shop, lab.producer, topic, gives=(list, set, tuple))]
    change_order(shop, 3, "Cancelled")
    stuck.append(lab.call(publish_what_goes, shop, lab.producer, topic, gives=(list, set, tuple)))
    lab.close_clients()
    records = lab.records(topic)
    told = [(int(record.key or 0), dict(record.headers).get("event-type", b"").decode()) for record in records]
    wanted = {
        1: ["OrderCreated", "OrderPaid"],
        3: ["OrderCreated", "OrderPaid", "OrderCancelled"],
        4: ["OrderCreated", "OrderPaid"],
    }
    with shop.connect() as connection:
        waits = select(outbox.c.aggregate_id, outbox.c.event_type).where(outbox.c.published_at.is_(None))
        left = [tuple(row) for row in connection.execute(waits.order_by(outbox.c.id))]
    if (2, "OrderCreated") not in left:
        raise Wrong(
            "the event that Kafka refused does not wait any more",
            "it goes on waiting",
            "Mark what is acknowledged, and nothing else: the refused event was marked (or deleted), and is lost.",
        )
    by_order = {number: [kind for other, kind in told if other == number] for number in range(1, 5)}
    if by_order[2]:
        raise Wrong(
            f"of order 2, which was never announced, the log has {by_order[2]}",
            "nothing of order 2: its first event is refused",
            "What comes after a refused event of the same order has to wait as well: remember which orders are stuck.",
        )
    for number, kinds in wanted.items():
        if len(by_order[number]) > len(kinds):
            raise Wrong(
                f"of order {number} the log has {by_order[number]}, after two rounds",
                f"{kinds}",
                "Events that Kafka has acknowledged are to be marked, also when another one was refused: an exception "
                "that leaves `with shop.begin()` takes all marks back.",
            )
        if len(by_order[number]) < len(kinds):
            raise Wrong(
                f"of order {number} the log has {by_order[number]}",
                f"{kinds}",
                "After a refusal the producer fails with the same error at every send: make a new one."
                if number in stuck[0]
                else "The refused event of order 2 keeps the others back, too.",
            )
        if by_order[number] != kinds:
            raise Wrong(f"of order {number} the log has {by_order[number]}", f"{kinds}", "Oldest first: order by id.")
    if len(left) > 2:
        raise Wrong(
            f"waiting are {left}",
            "the two events of order 2",
            "Mark what is acknowledged: `published_at=func.now()`, and commit it.",
        )
    if any(sorted(each) != [2] for each in stuck):
        raise Wrong(
            f"your function returned {stuck[0]}, then {stuck[1]}",
            "[2] each time, the number of the order that is stuck",
            "Return the `aggregate_id` of each refused event.",
        )
    return "orders 1, 3 and 4 are told in full and in order; order 2 waits, and somebody knows"


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
    with shop.begin() as connection:
        for event in connection.execute(waiting(100)).all():
            if event.aggregate_id in stuck:
                continue
            try:
                send_event(producer, topic, event).get(timeout=10)
            except KafkaError:
                stuck.append(event.aggregate_id)
                producer = new_producer()
            else:
                connection.execute(update(Outbox).where(Outbox.c.id == event.id).values(published_at=func.now()))
    return stuck
''',
    judge=_judge_publish_what_goes,
    hints=[
        "One event after the other: `send_event(producer, topic, event).get(timeout=10)` raises a `KafkaError` for one "
        "that is refused.",
        "Remember the `aggregate_id` of a refused event, skip what belongs to it, and go on with a new producer.",
        "Mark each acknowledged event with `update(Outbox).where(Outbox.c.id == event.id)"
        ".values(published_at=func.now())`, in the same transaction.",
    ],
    why="One event that cannot be delivered should cost one order its news, not the whole shop.",
    deadline=25,
)
