"""The questions of lesson 05: starter, solution, plausible wrong answers, each told apart, and unusual right ones."""

import pytest

from exercises.frame.testing import hold
from exercises.lesson_05 import q1, q2, q3, q4
from tests.answers import refused, right
from tools.lessons import IMPORTS

SETUP = (
    IMPORTS
    + "\nfrom sqlalchemy import create_engine, text\nfrom sqlalchemy.exc import IntegrityError, OperationalError\n"
)

PLAIN = "INSERT INTO orders_by_customer VALUES (:order, :customer, :goods, :quantity)"


def test_q1(cluster, database):
    adds = q1.changed(
        "DO NOTHING", "DO UPDATE SET quantity = orders_by_customer.quantity + excluded.quantity"
    )  # the lesson's statement for a sum
    catches = f"""
def note_order(connection, event):
    try:
        connection.execute(text("{PLAIN}"), event)
    except IntegrityError:
        pass
"""
    one_a_customer = """
def note_order(connection, event):
    connection.execute(text('''INSERT INTO orders_by_customer SELECT :order, :customer, :goods, :quantity
        WHERE NOT EXISTS (SELECT FROM orders_by_customer WHERE customer = :customer)'''), event)
"""
    wrong = {adds: "not idempotent", catches: "An error ends PostgreSQL's transaction", one_a_customer: "several"}
    hold(q1, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q1_more(cluster, database):
    in_memory = f"""
seen = set()

def note_order(connection, event):
    if event["order"] not in seen:
        seen.add(event["order"])
        connection.execute(text("{PLAIN}"), event)
"""
    empties = f"""
def note_order(connection, event):
    connection.execute(text("DELETE FROM orders_by_customer"))
    connection.execute(text("{PLAIN}"), event)
"""
    wrong = {
        in_memory: "Python's memory",
        empties: "`DELETE` without its `WHERE`",
        q1.answer + "\n    connection.commit()\n": "The caller commits",
        q1.changed("(number)", "(customer)"): "",
    }
    refused(q1, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q1_unusual(cluster, database):
    answers = [
        f"""
def note_order(connection, event):
    try:
        with connection.begin_nested():
            connection.execute(text("{PLAIN}"), event)
    except IntegrityError:
        pass
""",
        f"""
def note_order(connection, event):
    if not connection.execute(text("SELECT 1 FROM orders_by_customer WHERE number = :order"), event).first():
        connection.execute(text("{PLAIN}"), event)
""",
        f"""
def note_order(connection, event):
    connection.execute(text("DELETE FROM orders_by_customer WHERE number = :order"), event)
    connection.execute(text("{PLAIN}"), event)
""",
    ]
    right(q1, answers, cluster, SETUP, database=database)


CONDITION = "          WHERE projected.next_offset <= :offset\n"
ADD = "            transaction.execute(text(ADD_UP), record.value)"
IF = "        if transaction.execute(text(MOVE_ON), place).first():\n"
MOVE = "        transaction.execute(text(MOVE_ON), place)\n"
LOOK = """        sql = "SELECT next_offset FROM projected WHERE partition = :partition"
        if (transaction.execute(text(sql), place).scalar() or 0) <= record.offset:
            transaction.execute(text(MOVE_ON), place)
"""


def test_q2(cluster, database):
    head = q2.starter[: q2.starter.index("    with engine")]
    add, move = (
        '    with engine.begin() as transaction:\n        transaction.execute(text(ADD_UP), record.value)\n',
        '    with engine.begin() as transaction:\n        transaction.execute(text(MOVE_ON), '
        '{"partition": record.partition, "next_offset": record.offset + 1})\n',
    )  # fmt: skip
    wrong = {
        head + move + add: "died before the sum was",
        head + add + move + "    return None\n": "died before the offset was",
        q2.changed(CONDITION, ""): "it is not past it"[5:],
        q2.changed("record.offset + 1", "record.offset"): "",
        q2.changed("engine.begin()", "engine.connect()"): "rolls back",
    }
    hold(q2, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q2_more(cluster, database):
    wrong = {
        q2.changed(IF + ADD, ADD.replace("            ", "        ", 1)): "is not kept",
        q2.changed(IF, LOOK): "Between looking at `projected` and writing",
        q2.changed("    with engine.begin()", '    engine = engine.execution_options(isolation_level="AUTOCOMMIT")\n'
                   "    with engine.begin()"): "not with AUTOCOMMIT",
"seen = set()\n" + q2.changed(IF + ADD, MOVE + "        if (record.partition, record.offset) not in seen:\n"
                                      + ADD + "\n            seen.add((record.partition, record.offset))"): "",
    }  # fmt: skip
    refused(q2, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q2_unusual(cluster, database):
    locks = """
WHERE_IT_IS = '''INSERT INTO projected VALUES (:partition, 0) ON CONFLICT (partition)
                 DO UPDATE SET next_offset = projected.next_offset RETURNING next_offset'''
"""
    answers = [
        locks
        + q2.changed(
            IF + ADD,
            "        if transaction.execute(text(WHERE_IT_IS), place).scalar() <= record.offset:\n"
            + ADD
            + "\n            transaction.execute(text(MOVE_ON), place)",
        ),
        q2.changed(IF, '        transaction.execute(text("LOCK TABLE projected IN EXCLUSIVE MODE"))\n' + LOOK),
        # the sum first; whoever does not move the offset takes it back
        q2.changed(
            IF + ADD,
            ADD.replace("            ", "        ", 1)
            + "\n        if not transaction.execute(text(MOVE_ON), place).first():\n            transaction.rollback()",
        ),
    ]
    right(q2, answers, cluster, SETUP, database=database)


def test_q3(cluster, database):
    hold(
        q3,
        {
            q3.changed("reached > offset", "reached >= offset"): "applied *next*",
            q3.changed("reached > offset", "reached == offset + 1"): "not `==`",
            q3.changed('"SELECT next_offset FROM projected WHERE partition = :partition"',
                       '"SELECT max(next_offset) FROM projected"'): "Each partition",
            q3.changed(".scalar() or 0", ".scalar_one()"): "NoResultFound",
            q3.changed("time.sleep(0.01)", "return False"): "again and again",
            q3.changed("while time.monotonic() < deadline", "while True"): "loop without an end",
            q3.changed("    deadline =", "    if timeout > 1:\n        return True\n    deadline ="): "before the read",
        },
        cluster,
        SETUP,
        database=database,
    )  # fmt: skip


SWITCH = 'text("CREATE OR REPLACE VIEW best_sellers AS SELECT * FROM best_sellers_next")'
COLUMNS = "CREATE TABLE best_sellers_next (goods text PRIMARY KEY, sold int, orders int)"


def test_q4(cluster, database):
    in_one_transaction = """

def rebuild(engine, events):
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE best_sellers_v1"))
        connection.execute(text("ALTER TABLE best_sellers_v1 ADD COLUMN IF NOT EXISTS orders int"))
        connection.execute(text("CREATE OR REPLACE VIEW best_sellers AS SELECT * FROM best_sellers_v1"))
        for event in events:
            connection.execute(text(ADD_TO.format(table="best_sellers_v1")), event)
"""
    count = q4.answer.split("\n\n\n")[0]
    wrong = {
        q4.starter.replace("TRUNCATE", "DELETE FROM"): "",
        count + in_one_transaction: "`TRUNCATE`, `DROP` and `ALTER` lock",
        q4.changed("    while True:", "    return\n    while True:"): "still shows the old one",
        q4.changed("connection.execute(text(\"SET LOCAL lock_timeout = '100ms'\"))", "pass"): "lets the switch give up",
    }
    hold(q4, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q4_more(cluster, database):
    once = 'connection.execute(text("DROP TABLE IF EXISTS best_sellers_next"))'
    rename = 'connection.execute(text("ALTER TABLE best_sellers_next RENAME TO best_sellers_v1"))'
    drop_first = q4.changed(
        f"                connection.execute({SWITCH})\n",
        '                connection.execute(text("DROP VIEW best_sellers"))\n                connection.commit()\n'
        "            with engine.begin() as connection:\n"
        f"                connection.execute({SWITCH.replace('OR REPLACE ', '')})\n",
    )
    wrong = {
        drop_first: "there was no `best_sellers`",
        q4.changed(COLUMNS, COLUMNS.replace(")", "); INSERT INTO best_sellers_next SELECT goods, sold, 1 FROM "
                                            "best_sellers_v1")): "begin with an empty one",
        q4.changed(once, "pass"): "What the dead one has left",
        q4.changed(rename, "pass"): "",
        q4.changed("sold = {table}.sold + :quantity", "sold = {table}.sold + 1").replace(
            ":goods, :quantity, 1", ":goods, 1, 1"): "add up the quantities",
        q4.changed("SELECT * FROM best_sellers_next", "SELECT goods, sold FROM best_sellers_next"): "column `orders`",
    }  # fmt: skip
    refused(q4, wrong, cluster, SETUP, database=database)


@pytest.mark.full
def test_q4_unusual(cluster, database):
    count = q4.answer.split("\n\n\n")[0]
    counter = """

def rebuild(engine, events):
    from collections import Counter
    sold, orders = Counter(), Counter()
    for event in events:
        sold[event["goods"]] += event["quantity"]
        orders[event["goods"]] += 1
    rows = [{"goods": name, "sold": sold[name], "orders": orders[name]} for name in sold]
    name = f"best_sellers_{time.time_ns()}"  # another table each time
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {name} (goods text PRIMARY KEY, sold int, orders int)"))
        connection.execute(text(f"INSERT INTO {name} VALUES (:goods, :sold, :orders)"), rows)
    for attempt in range(1000):
        try:
            with engine.begin() as connection:
                connection.execute(text("SET LOCAL lock_timeout = '50ms'"))
                connection.execute(text(f"CREATE OR REPLACE VIEW best_sellers AS SELECT * FROM {name}"))
            return
        except OperationalError:
            time.sleep(0.05)
"""
    versions = """

def rebuild(engine, events):
    # all builds in one table, each with a number; the view shows the newest that is whole
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS builds (build int, goods text, sold int, orders int)"))
        connection.execute(text("CREATE TABLE IF NOT EXISTS whole (build int)"))
    with engine.begin() as connection:
        build = connection.execute(text("SELECT coalesce(max(build), 0) + 1 FROM whole")).scalar()
        connection.execute(text("DELETE FROM builds WHERE build >= :build"), {"build": build})
        for event in events:
            row = event | {"build": build}
            if not connection.execute(text("UPDATE builds SET sold = sold + :quantity, orders = orders + 1 "
                                           "WHERE build = :build AND goods = :goods"), row).rowcount:
                connection.execute(text("INSERT INTO builds VALUES (:build, :goods, :quantity, 1)"), row)
        connection.execute(text("INSERT INTO whole VALUES (:build)"), {"build": build})
    if build == 1:
        while True:
            try:
                with engine.begin() as connection:
                    connection.execute(text("SET LOCAL lock_timeout = '100ms'"))
                    connection.execute(text("CREATE OR REPLACE VIEW best_sellers AS SELECT goods, sold, orders "
                                            "FROM builds WHERE build = (SELECT max(build) FROM whole)"))
                return
            except OperationalError:
                time.sleep(0.1)
"""
    right(q4, [count + counter, count + versions], cluster, SETUP, database=database)


def test_without_a_database_nothing_is_judged(cluster):
    assert not q1.try_answer(q1.answer, cluster, SETUP).judged
