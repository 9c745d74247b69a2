"""The questions of lesson 08: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_08 import q1, q2, q3, q4
from tools.lessons import NOTEBOOKS, code_cells, read, tagged

LESSON = read(NOTEBOOKS / "08_outbox.ipynb")
#: the two cells of imports, the tables and the functions of shop and relay
SETUP = "\n\n".join(cell.source for cell in [*code_cells(LESSON)[:2], *tagged(LESSON, "relay")])


def test_q1(cluster, database):
    two_transactions = """
def cancel_order(shop, number):
    with shop.begin() as connection:
        add_event(connection, number, "OrderCancelled", {"order": number})
    with shop.begin() as connection:
        connection.execute(update(Order).where(Order.c.id == number).values(state="cancelled"))
"""
    each_by_itself = q1.changed(
        "with shop.begin() as connection:",
        'with shop.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:',
    )
    hold(
        q1,
        {
            two_transactions: "the other way round",
            each_by_itself: "There are two transactions",
            q1.changed("shop.begin()", "shop.connect()"): "`with shop.connect()` does not",
            q1.changed('        add_event(connection, number, "OrderCancelled", {"order": number})', ""): "0 events",
        },
        cluster,
        SETUP,
        database=database,
    )


def test_q1_takes_a_commit_of_its_own(cluster, database):
    explicit = """
def cancel_order(shop, number):
    with shop.connect() as connection:
        connection.execute(update(Order).where(Order.c.id == number).values(state="cancelled"))
        add_event(connection, number, "OrderCancelled", {"order": number})
        connection.commit()
"""
    assert q1.try_answer(explicit, cluster, SETUP, database=database).state == "right"


def test_q2(cluster, database):
    textbook = """
def publish_and_delete(shop, producer, topic):
    for_each = select(Outbox)
    with shop.connect() as connection:
        events = connection.execute(for_each).all()
    for event in events:
        producer.send(topic, event.payload.encode())
        with shop.begin() as connection:
            connection.execute(delete(Outbox).where(Outbox.c.id == event.id))
"""
    flush_only = """
def publish_and_delete(shop, producer, topic):
    with shop.begin() as connection:
        for event in connection.execute(select(Outbox).order_by(Outbox.c.id)).all():
            send_event(producer, topic, event)
            producer.flush()
            connection.execute(delete(Outbox).where(Outbox.c.id == event.id))
"""
    swallowed = """
def publish_and_delete(shop, producer, topic):
    with shop.begin() as connection:
        for event in connection.execute(select(Outbox).order_by(Outbox.c.id)).all():
            try:
                future = send_event(producer, topic, event)
                producer.flush()
                future.get(timeout=10)
                connection.execute(delete(Outbox).where(Outbox.c.id == event.id))
            except Exception:
                pass
"""
    keyless = q2.changed("send_event(producer, topic, event)", "producer.send(topic, event.payload.encode())")
    hold(
        q2,
        {
            textbook: "buffer only",
            flush_only: "`flush` does not raise",
            swallowed: "swallows",
            keyless: "keys",
            q2.changed("with shop.begin()", "with shop.connect()"): "Is the deletion committed?",
        },
        cluster,
        SETUP,
        database=database,
    )


def test_q2_takes_one_event_after_the_other(cluster, database):
    one_by_one = """
def publish_and_delete(shop, producer, topic):
    with shop.connect() as connection:
        events = connection.execute(select(Outbox).order_by(Outbox.c.id)).all()
    for event in events:
        send_event(producer, topic, event).get(timeout=10)
        with shop.begin() as connection:
            connection.execute(delete(Outbox).where(Outbox.c.id == event.id))
"""
    assert q2.try_answer(one_by_one, cluster, SETUP, database=database).state == "right"


def test_q3(cluster, database):
    tables = q3.answer[: q3.answer.index("def handle_event")]
    in_memory = (
        tables
        + """
seen = set()


def handle_event(mail, event_id, customer):
    if event_id in seen:
        return
    seen.add(event_id)
    with mail.begin() as connection:
        connection.execute(insert_or_not(Handled).values(event_id=event_id).on_conflict_do_nothing())
        connection.execute(insert(Mail).values(customer=customer))
"""
    )
    by_customer = (
        tables
        + """
def handle_event(mail, event_id, customer):
    with mail.begin() as connection:
        if not connection.execute(select(Mail).where(Mail.c.customer == customer)).first():
            connection.execute(insert(Mail).values(customer=customer))
            connection.execute(insert(Handled).values(event_id=event_id))
"""
    )
    noted_first = (
        tables
        + """
def handle_event(mail, event_id, customer):
    with mail.begin() as connection:
        note = insert_or_not(Handled).values(event_id=event_id).on_conflict_do_nothing()
        new = connection.execute(note.returning(Handled.c.event_id)).first()
    if new:
        with mail.begin() as connection:
            connection.execute(insert(Mail).values(customer=customer))
"""
    )
    letter_first = (
        tables
        + """
def handle_event(mail, event_id, customer):
    with mail.begin() as connection:
        if connection.execute(select(Handled).where(Handled.c.event_id == event_id)).first():
            return
        connection.execute(insert(Mail).values(customer=customer))
    with mail.begin() as connection:
        connection.execute(insert(Handled).values(event_id=event_id))
"""
    )
    row_count = q3.changed(
        "connection.execute(note.returning(Handled.c.event_id)).first()", "connection.execute(note).rowcount"
    )
    hold(
        q3,
        {
            in_memory: "Only the process that was killed knew",
            by_customer: "not by the customer",
            noted_first: "the event is lost",
            letter_first: "the letter is written again",
            row_count: "`rowcount`",
            q3.changed("note.returning(Handled.c.event_id)", 'select(text("1"))'): "handled a second time",
        },
        cluster,
        SETUP,
        database=database,
    )


def test_q3_takes_a_look_before_the_insert(cluster, database):
    looks_first = (
        q3.answer[: q3.answer.index("def handle_event")]
        + """
def handle_event(mail, event_id, customer):
    with mail.begin() as connection:
        if not connection.execute(select(Handled).where(Handled.c.event_id == event_id)).first():
            connection.execute(insert(Handled).values(event_id=event_id))
            connection.execute(insert(Mail).values(customer=customer))
"""
    )
    assert q3.try_answer(looks_first, cluster, SETUP, database=database).state == "right"


def test_q4(cluster, database):
    hold(
        q4,
        {
            q4.changed(
                "            if event.aggregate_id in stuck:\n                continue\n", ""
            ): "has to wait as well",
            q4.changed(
                "                stuck.append(event.aggregate_id)\n",
                "                stuck.append(event.aggregate_id)\n                break\n",
            ): "keeps the others back",
            q4.changed("                producer = new_producer()\n", ""): "make a new one",
            q4.changed("            else:\n    ", "            finally:\n    "): "is lost",
            q4.changed("return stuck", "return []"): "the number of the order that is stuck",
            q4.changed("with shop.begin()", "with shop.connect()"): "are to be marked",
        },
        cluster,
        SETUP,
        database=database,
    )


def test_q4_the_lessons_relay_stops_at_the_refused_event(cluster, database):
    as_in_the_lesson = """
def publish_what_goes(shop, new_producer, topic):
    try:
        process_outbox(shop, new_producer(), topic)
    except KafkaError:
        return [2]
    return []
"""
    outcome = q4.try_answer(as_in_the_lesson, cluster, SETUP, database=database)
    assert outcome.state == "not right" and outcome.judged, outcome
