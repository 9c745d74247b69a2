"""The questions of lesson 08: starter, solution, plausible wrong answers, each told apart, and unusual right ones."""

import pytest

from exercises.frame.testing import hold
from exercises.lesson_08 import q1, q2, q3, q4
from tests.answers import refused, right
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
            q1.changed(".where(Order.c.id == number)", ""): "An `UPDATE` without its `WHERE`",
        },
        cluster,
        SETUP,
        database=database,
    )


BOTH = """
def cancel_order(shop, number):
    with shop.begin() as connection:
        connection.execute(update(Order).where(Order.c.id == number).values(state="cancelled"))
        add_event(connection, number, "OrderCancelled", {"order": number})
"""
TELL = '        add_event(connection, number, "OrderCancelled", {"order": number})\n'


@pytest.mark.full
def test_q1_more(cluster, database):
    tries = (
        "        try:\n            with connection.begin_nested():\n        "
        + TELL
        + "        except Exception:\n            pass\n"
    )
    wrong = {
        BOTH.replace(TELL, TELL + TELL): "more than once",
        BOTH.replace(TELL, tries): "lets the other one through",
        BOTH.replace("    with shop", "    try:\n     with shop") + "    except Exception:\n        pass\n": "swallows",
        BOTH.replace("(connection, number,", "(connection, 2,"): "`add_event` as it was",
        BOTH.replace('{"order": number}', "{}"): "",
        BOTH.replace("Order.c.id == number", "Order.c.id >= number"): "too wide",
        BOTH.replace(
            'update(Order).where(Order.c.id == number).values(state="cancelled")',
            "delete(Order).where(Order.c.id == number)",
        ): "",
        BOTH.replace("with shop.begin()", "with create_engine(shop.url).connect()"): "`with shop.connect()` does not",
        BOTH.replace(TELL, "")
        + "    with create_engine(shop.url).begin() as connection:\n"
        + TELL: "There are two transactions",
        BOTH.replace(TELL, "        connection.commit()\n" + TELL): "",
        BOTH.replace("shop.begin()", "shop.connect()").replace(
            TELL, "        connection.commit()\n" + TELL + "        connection.commit()\n"
        ): "There are two transactions",
    }
    refused(q1, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q1_unusual(cluster, database):
    update_line = BOTH.splitlines(keepends=True)[3]
    answers = [
        BOTH.replace("shop.begin()", "shop.connect()") + "        connection.commit()\n",
        BOTH.replace(update_line, "") + update_line,  # the event first
        BOTH.replace("with shop.begin() as connection:", "with shop.connect() as connection, connection.begin():"),
        """
def cancel_order(shop, number):
    with sa.orm.Session(shop) as session, session.begin():
        session.execute(update(Order).where(Order.c.id == number).values(state="cancelled"))
        add_event(session, number, "OrderCancelled", {"order": number})
""",
        """
def cancel_order(shop, number):
    with shop.begin() as connection:
        found = connection.execute(
            update(Order).where(Order.c.id == number, Order.c.state != "cancelled").values(state="cancelled")
            .returning(Order.c.id)
        )
        for order, in found:
            add_event(connection, order, "OrderCancelled", {"order": order})
""",
    ]
    right(q1, answers, cluster, SETUP + "\nimport sqlalchemy.orm\n", database=database)


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


SENDS = """
def publish_and_delete(shop, producer, topic):
    with shop.begin() as connection:
        events = connection.execute(select(Outbox).order_by(Outbox.c.id)).all()
        futures = [send_event(producer, topic, event) for event in events]
        producer.flush()
        for future in futures:
            future.get(timeout=10)
        connection.execute(delete(Outbox).where(Outbox.c.id.in_([event.id for event in events])))
"""
IDS = "where(Outbox.c.id.in_([event.id for event in events]))"


@pytest.mark.full
def test_q2_more(cluster, database):
    deleted_first = """
def publish_and_delete(shop, producer, topic):
    with shop.begin() as connection:
        events = connection.execute(delete(Outbox).returning(Outbox)).all()
    for event in sorted(events, key=lambda event: event.id):
        send_event(producer, topic, event).get(timeout=10)
"""
    no_headers = "producer.send(topic, event.payload.encode(), key=str(event.aggregate_id).encode())"
    wrong = {
        SENDS.replace("." + IDS, ""): "Delete the rows that you have sent",
        SENDS.replace(IDS, "where(Outbox.c.id <= events[-1].id)"): "Delete the rows that you have sent",
        SENDS.replace(".order_by(Outbox.c.id)", ""): "the oldest first",
        SENDS.replace("Outbox.c.id)", "Outbox.c.id.desc())"): "the oldest first",
        SENDS.replace("            future.get(timeout=10)\n", "            pass\n"): "`flush` does not raise",
        SENDS.replace(
            "        for future in futures:\n            future.get(timeout=10)\n",
            "        futures[-1].get(timeout=10)\n",
        ): "",
        SENDS.replace("send_event(producer, topic, event)", no_headers): "headers",
        deleted_first: "committed before",
        SENDS.replace("select(Outbox).order_by(Outbox.c.id)", "select(Outbox).order_by(Outbox.c.id).limit(1)"): "",
        SENDS.replace(IDS, "where(Outbox.c.id == events[-1].id)"): "",
    }
    refused(q2, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q2_unusual(cluster, database):
    one_by_one = """
def publish_and_delete(shop, producer, topic):
    with shop.connect() as connection:
        events = connection.execute(select(Outbox).order_by(Outbox.c.id)).all()
    for event in events:
        send_event(producer, topic, event).get(timeout=10)
        with shop.begin() as connection:
            connection.execute(delete(Outbox).where(Outbox.c.id == event.id))
"""
    until_empty = """
def publish_and_delete(shop, producer, topic):
    while True:
        with shop.begin() as connection:
            event = connection.execute(select(Outbox).order_by(Outbox.c.id).limit(1).with_for_update()).first()
            if not event:
                return
            future = send_event(producer, topic, event)
            producer.flush()
            if future.failed():
                raise future.exception
            connection.execute(delete(Outbox).where(Outbox.c.id == event.id))
"""
    locks = SENDS.replace(
        "        events =", '        connection.execute(text("LOCK TABLE outbox IN EXCLUSIVE MODE"))\n        events ='
    )
    answers = [SENDS, one_by_one, until_empty, locks, locks.replace("." + IDS, "")]
    right(q2, answers, cluster, SETUP, database=database)


TABLES = tables = q3.answer[: q3.answer.index("def handle_event")]
LOOKS = (
    TABLES
    + """
def handle_event(mail, event_id, customer):
    with mail.begin() as connection:
        if not connection.execute(select(Handled).where(Handled.c.event_id == event_id)).first():
            connection.execute(insert(Handled).values(event_id=event_id))
            connection.execute(insert(Mail).values(customer=customer))
"""
)
LAST_ONE = LOOKS.replace(
    "            connection.execute(insert(Handled)",
    "            connection.execute(delete(Handled))\n            connection.execute(insert(Handled)",
)
BOOKMARK = LOOKS.replace(
    "if not connection.execute(select(Handled).where(Handled.c.event_id == event_id)).first():",
    'if event_id > (connection.scalar(select(func.max(Handled.c.event_id))) or ""):',
)


def test_q3(cluster, database):
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
            LAST_ONE: "Only the last event is remembered",
            BOOKMARK: "Ids do not ascend",
        },
        cluster,
        SETUP,
        database=database,
    )


@pytest.mark.full
def test_q3_more(cluster, database):
    swallows = (
        q3.answer.replace("    with mail", "    try:\n     with mail") + "\n    except Exception:\n        pass\n"
    )
    savepoint = (
        TABLES
        + """
def handle_event(mail, event_id, customer):
    with mail.begin() as connection:
        note = insert_or_not(Handled).values(event_id=event_id).on_conflict_do_nothing()
        if connection.execute(note.returning(Handled.c.event_id)).first():
            try:
                with connection.begin_nested():
                    connection.execute(insert(Mail).values(customer=customer))
            except Exception:
                pass
"""
    )
    wrong = {
        q3.changed("note.returning(Handled.c.event_id)", 'select(text("1"))'): "handled a second time",
        LOOKS.replace("== event_id)", "== str(hash(event_id)))").replace(
            "event_id=event_id", "event_id=str(hash(event_id))"
        ): "What was noted is not the event's id",
        LOOKS.replace("== event_id)", "== customer)").replace(
            "event_id=event_id", "event_id=customer"
        ): "not by the customer",
        LOOKS.replace(
            "            connection.execute(insert(Mail)",
            "            connection.execute(delete(Mail))\n            connection.execute(insert(Mail)",
        ): "`DELETE` without its `WHERE`",
        swallows: "swallows",
        savepoint: "The note stays",
    }
    refused(q3, wrong, cluster, SETUP, database=database)


@pytest.mark.weekly
def test_q3_most(cluster, database):
    in_memory = """
def handle_event(mail, event_id, customer):
    if last == [event_id]:
        return
    last[:] = [event_id]
    with mail.begin() as connection:
        connection.execute(insert(Mail).values(customer=customer))
"""
    wrong = {
        LOOKS.replace("mail.begin()", "mail.connect()"): "",
        LOOKS.replace("customer=customer", 'customer="ann"'): "",
        LOOKS.replace(
            "            connection.execute(insert(Handled).values(event_id=event_id))\n", ""
        ): "handled a second time",
        LOOKS.replace(
            "with mail.begin() as", 'with mail.connect().execution_options(isolation_level="AUTOCOMMIT") as'
        ): "",
        "last = []\n" + TABLES + in_memory: "",
    }
    refused(q3, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q3_unusual(cluster, database):
    catches = (
        TABLES
        + """
def handle_event(mail, event_id, customer):
    with mail.connect() as connection, connection.begin() as transaction:
        try:
            connection.execute(insert(Handled).values(event_id=event_id))
        except sa.exc.IntegrityError:
            transaction.rollback()
        else:
            connection.execute(insert(Mail).values(customer=customer))
"""
    )
    one_statement = (
        TABLES
        + """
def handle_event(mail, event_id, customer):
    with mail.begin() as connection:
        connection.execute(text('''
            WITH new AS (INSERT INTO handled VALUES (:event) ON CONFLICT DO NOTHING RETURNING event_id)
            INSERT INTO mail (customer) SELECT :customer FROM new'''), {"event": event_id, "customer": customer})
"""
    )
    numbers = q3.changed('"event_id", sa.Text', '"event_id", sa.BigInteger')  # as it was before ids were texts
    right(q3, [LOOKS, catches, one_statement, numbers], cluster, SETUP, database=database)


IN_PAGES = """
def publish_what_goes(shop, new_producer, topic):
    stuck, producer, last = [], new_producer(), 0
    while True:
        with shop.begin() as connection:
            page = connection.execute(waiting(100).where(Outbox.c.id > last)).all()
            for event in page:
                if event.aggregate_id in stuck:
                    continue
                try:
                    send_event(producer, topic, event).get(timeout=10)
                except KafkaError:
                    stuck.append(event.aggregate_id)
                    producer.close()
                    producer = new_producer()
                else:
                    connection.execute(update(Outbox).where(Outbox.c.id == event.id).values(published_at=func.now()))
        if not page:
            producer.close()
            return stuck
        last = page[-1].id
"""
ONE_PAGE = """
def publish_what_goes(shop, new_producer, topic):
    stuck, producer = [], new_producer()
    with shop.begin() as connection:
        for event in connection.execute(waiting(100)).all():
            if event.aggregate_id in stuck:
                continue
            try:
                send_event(producer, topic, event).get(timeout=10)
            except KafkaError:
                stuck.append(event.aggregate_id)
                producer.close()
                producer = new_producer()
            else:
                connection.execute(update(Outbox).where(Outbox.c.id == event.id).values(published_at=func.now()))
    producer.close()
    return stuck
"""
ALL = ONE_PAGE.replace("waiting(100)", "waiting(None)")
SEND = "            send_event(producer, topic, event)\n"
SKIP = "            if event.aggregate_id in stuck:\n                continue\n"
STUCK = "                stuck.append(event.aggregate_id)\n"


def test_q4(cluster, database):
    wrong = {
        ALL.replace(SKIP, ""): "has to wait as well",
        ALL.replace(STUCK, STUCK + "                break\n"): "keeps the others back",
        ALL.replace("                producer = new_producer()\n", ""): "make a new one",
        ALL.replace("            else:\n    ", "            finally:\n    "): "is lost",
        ALL.replace("return stuck", "return []"): "the numbers of the orders that are stuck",
        ALL.replace("with shop.begin()", "with shop.connect()"): "and commit it",
        ONE_PAGE: "150 events of it fill the page",
        ALL.replace("    producer.close()\n    return", "    return"): "each producer closed",
    }
    hold(q4, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q4_more(cluster, database):
    as_in_the_lesson = """
def publish_what_goes(shop, new_producer, topic):
    with new_producer() as producer:
        try:
            process_outbox(shop, producer, topic)
        except KafkaError:
            return [2]
    return []
"""
    unseen = """
def publish_what_goes(shop, new_producer, topic):
    with new_producer() as producer, shop.begin() as connection:
        for event in connection.execute(waiting(None)).all():
            send_event(producer, topic, event)
        producer.flush()
        connection.execute(update(Outbox).values(published_at=func.now()))
    return []
"""
    in_memory = "known = []\n" + ALL.replace("stuck, producer = [],", "stuck, producer = known,")
    wrong = {
        as_in_the_lesson: "",
        unseen: "",
        unseen.replace(SEND, SEND + "            producer.flush()\n"): "is lost",
        ONE_PAGE.replace("100", "5"): "the page is full",
        ALL.replace("                producer.close()\n", ""): "each producer closed",
        ALL.replace("where(Outbox.c.id == event.id)", "where(Outbox.c.aggregate_id == event.aggregate_id)"): "is lost",
        ALL.replace("where(Outbox.c.id == event.id)", "where(Outbox.c.id <= event.id)"): "",
        ALL.replace(".where(Outbox.c.id == event.id)", ""): "is lost",
        ALL.replace(
            "update(Outbox).where(Outbox.c.id == event.id).values(published_at=func.now())", "text('SELECT 1')"
        ): "",
        ALL.replace(".get(timeout=10)", ""): "",
        ALL.replace("waiting(None)", "select(Outbox).order_by(Outbox.c.id)"): "",
        ALL.replace("waiting(None)", "select(Outbox).where(Outbox.c.published_at.is_(None))"): "",
        ALL.replace(
            "send_event(producer, topic, event)", "producer.send(topic, event.payload.encode())"
        ): "`send_event` gives both",
        ALL.replace("stuck.append(event.aggregate_id)", "stuck.append(event.id)"): "",
        ALL.replace("return stuck", "return stuck[:1]"): "Return the `aggregate_id`",
        in_memory: "",
    }
    refused(q4, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q4_unusual(cluster, database):
    with_each = """
def publish_what_goes(shop, new_producer, topic):
    stuck = set()
    with shop.connect() as connection:
        events = connection.execute(select(Outbox).where(Outbox.c.published_at.is_(None)).order_by(Outbox.c.id)).all()
    while events:
        with new_producer() as producer:
            while events:
                event = events.pop(0)
                if event.aggregate_id in stuck:
                    continue
                try:
                    send_event(producer, topic, event).get(timeout=10)
                except KafkaError:
                    stuck.add(event.aggregate_id)
                    break
                with shop.begin() as connection:
                    connection.execute(update(Outbox).where(Outbox.c.id == event.id).values(published_at=func.now()))
    return stuck
"""
    by_order = """
def publish_what_goes(shop, new_producer, topic):
    stuck = []
    with shop.connect() as connection:
        waits = select(Outbox.c.aggregate_id).where(Outbox.c.published_at.is_(None))
        orders = connection.scalars(waits.distinct()).all()
    for order in orders:
        try:
            with new_producer() as producer, shop.connect() as connection:
                of_the_order = waiting(None).where(Outbox.c.aggregate_id == order)
                for event in connection.execute(of_the_order).all():
                    send_event(producer, topic, event).get(timeout=10)
                    connection.execute(update(Outbox).where(Outbox.c.id == event.id).values(published_at=func.now()))
                    connection.commit()
        except KafkaError:
            stuck.append(order)
    return tuple(stuck)
"""
    right(q4, [ALL, IN_PAGES, with_each, by_order], cluster, SETUP, database=database)
