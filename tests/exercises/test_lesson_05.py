"""The questions of lesson 05: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_05 import q1, q2, q3, q4
from tools.lessons import IMPORTS

SETUP = IMPORTS + "\nfrom sqlalchemy import create_engine, text\n"


def test_q1(cluster, database):
    adds = q1.changed(
        "DO NOTHING", "DO UPDATE SET quantity = orders_by_customer.quantity + excluded.quantity"
    )  # the lesson's statement for a sum
    catches = """
from sqlalchemy.exc import IntegrityError

def note_order(connection, event):
    try:
        connection.execute(
            text("INSERT INTO orders_by_customer VALUES (:order, :customer, :goods, :quantity)"), event
        )
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


def test_q1_takes_a_savepoint_as_well(cluster, database):
    savepoint = """
from sqlalchemy.exc import IntegrityError

def note_order(connection, event):
    try:
        with connection.begin_nested():
            connection.execute(
                text("INSERT INTO orders_by_customer VALUES (:order, :customer, :goods, :quantity)"), event
            )
    except IntegrityError:
        pass
"""
    assert q1.try_answer(savepoint, cluster, SETUP, database=database).state == "right"


def test_q2(cluster, database):
    lines = q2.answer.splitlines()
    add, move = lines[-2].strip(), lines[-1].strip()
    both = f"{add}\n        {move}"
    next_transaction = "\n    with engine.begin() as transaction:\n        "
    hold(
        q2,
        {
            q2.changed(both, f"{move}{next_transaction}{add}"): "died before the sum was",
            q2.changed(both, f"{add}\n        transaction.commit()\n    with engine.begin() as transaction:\n"
                       f"        {move}"): "died before the offset was",
            q2.changed(f"\n        {move}", ""): "not kept",
            q2.changed("record.offset + 1", "record.offset"): "to read *next*",
            q2.changed("engine.begin()", "engine.connect()"): "rolls back",
        },
        cluster,
        SETUP,
        database=database,
    )  # fmt: skip


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


def test_q4(cluster, database):
    in_one_transaction = """
def rebuild(engine, events):
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE best_sellers_v1"))
        for event in events:
            connection.execute(text(ADD_TO.format(table="best_sellers_v1")), event)
"""
    count = q4.answer.split("\n\n\n")[0]
    create = "CREATE OR REPLACE VIEW best_sellers AS SELECT goods, sold FROM best_sellers_v2"
    drop_first = (
        'DROP VIEW best_sellers"))\n    with engine.begin() as connection:\n        connection.execute(text("'
        + create.replace("OR REPLACE ", "")
    )
    columns = "CREATE TABLE best_sellers_v2 (goods text PRIMARY KEY, sold int)"
    copy = f"{columns}; INSERT INTO best_sellers_v2 SELECT * FROM best_sellers_v1"
    hold(
        q4,
        {
            q4.starter.replace("TRUNCATE", "DELETE FROM"): "before their eyes",
            count + in_one_transaction: "TRUNCATE",
            q4.changed(create, drop_first): "replaces it in one step",
            q4.changed(create, "SELECT 1"): "still shows the old one",
            q4.changed(columns, copy): "begin with an empty",
        },
        cluster,
        SETUP,
        database=database,
    )


def test_q4_takes_one_transaction_that_deletes_and_fills(cluster, database):
    """Readers see the old rows until it commits."""
    answer = (
        q4.answer.split("\n\n\n")[0]
        + """
def rebuild(engine, events):
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM best_sellers_v1"))
        for event in events:
            connection.execute(text(ADD_TO.format(table="best_sellers_v1")), event)
"""
    )
    assert q4.try_answer(answer, cluster, SETUP, database=database).state == "right"


def test_without_a_database_nothing_is_judged(cluster):
    assert not q1.try_answer(q1.answer, cluster, SETUP).judged
