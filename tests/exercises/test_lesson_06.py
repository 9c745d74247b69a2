"""The questions of lesson 06: starter, solution, right answers of another kind, and wrong ones, each with its cause."""

import pytest

from exercises.frame.testing import hold
from exercises.lesson_06 import q1, q2, q3, q4
from tools.lessons import NOTEBOOKS, code_cells, read

SETUP = "\n".join(cell.source for cell in code_cells(read(NOTEBOOKS / "06_saga.ipynb"))[:2])  # both cells of imports


def tell(question, source, cluster, **names) -> str:
    """The state of an answer, and all that the learner is told."""
    outcome = question.try_answer(source, cluster, SETUP, **names)
    assert outcome.judged, outcome
    return f"{outcome.state}: {outcome}\n{outcome.trace}"


# -- q1

HASH = q1.changed('key=message["saga_id"].encode()', 'partition=hash(message["saga_id"]) % 3')
STABLE = """
import zlib
def send_step(producer, topic, message):
    partition = zlib.crc32(message["saga_id"].encode()) % len(producer.partitions_for(topic))
    return producer.send(topic, message, partition=partition).get(timeout=10)
"""
FLUSHED = """
def send_step(producer, topic, message):
    future = producer.send(topic, key=b"saga/" + message["saga_id"].encode(), value=message)
    producer.flush(timeout=10)
    return future.get()
"""
BY_CALLBACK = """
import threading
def send_step(producer, topic, message):
    done, errors = threading.Event(), []
    future = producer.send(topic, message, key=json.dumps(message["saga_id"]).encode())
    future.add_callback(lambda place: done.set())
    future.add_errback(lambda error: (errors.append(error), done.set()))
    producer.flush()
    assert done.wait(10) and not errors, errors
"""


def test_q1(cluster):
    hold(
        q1,
        {
            q1.changed('message["saga_id"]', 'message["step"]'): "stay together",
            q1.changed('key=message["saga_id"].encode()', "partition=0"): "same for all",
            q1.changed('topic, message, key=message["saga_id"].encode()', "topic, value=message"): "no key",
            q1.changed(".get(timeout=10)", ""): "tells whether the broker has taken it",
            HASH: "changes from process to process",
            q1.answer.replace(
                "    return producer", "    producer.send(topic, message, key=b'x')\n    return producer"
            ): ("Send each message once"),
        },
        cluster,
        SETUP,
    )


@pytest.mark.full
@pytest.mark.parametrize(
    "swallowed",
    [
        q1.answer.replace("    return producer", "    try:\n        producer").replace(
            "timeout=10)", "timeout=10)\n    except Exception:\n        pass"
        ),
        q1.answer.replace("    return producer", "    producer").replace(".get(timeout=10)", "; producer.flush()"),
    ],
)
def test_q1_a_refused_record_that_nobody_notices(cluster, swallowed):
    assert "tells whether the broker has taken it" in tell(q1, swallowed, cluster)


@pytest.mark.full
@pytest.mark.parametrize("answer", [STABLE, FLUSHED, BY_CALLBACK])
def test_q1_takes_other_ways(cluster, answer):
    assert tell(q1, answer, cluster).startswith("right")


# -- q2

TAKE = "UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = :item"
NOTE_FIRST = """
def reserve_once(engine, message):
    note = "INSERT INTO reservations VALUES (:saga_id, :item) ON CONFLICT DO NOTHING"
    reserve = "UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = :item"
    with engine.begin() as transaction:
        noted = transaction.execute(text(note), {"saga_id": message["saga_id"], **message["data"]}).rowcount
    if noted:
        with engine.begin() as transaction:
            transaction.execute(text(reserve), message["data"])
"""
WORK_FIRST = """
def reserve_once(engine, message):
    found = "SELECT 1 FROM reservations WHERE saga_id = :saga_id"
    note = "INSERT INTO reservations VALUES (:saga_id, :item)"
    reserve = "UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = :item"
    with engine.begin() as transaction:
        if transaction.execute(text(found), message).first():
            return
        transaction.execute(text(reserve), message["data"])
    with engine.begin() as transaction:
        transaction.execute(text(note), {"saga_id": message["saga_id"], **message["data"]})
"""
LOOKS_FIRST = """
def reserve_once(engine, message):
    names = {"saga_id": message["saga_id"], **message["data"]}
    with engine.begin() as transaction:
        if transaction.execute(text("SELECT 1 FROM reservations WHERE saga_id = :saga_id"), names).first():
            return
        transaction.execute(text("UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = :item"), names)
        transaction.execute(text("INSERT INTO reservations VALUES (:saga_id, :item) ON CONFLICT DO NOTHING"), names)
"""
MEMORY = """
seen = set()
def reserve_once(engine, message):
    with engine.begin() as transaction:
        if message["saga_id"] not in seen:
            transaction.execute(
                text("UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = :item"), message["data"]
            )
    seen.add(message["saga_id"])
"""
LAST_ONLY = """
def reserve_once(engine, message):
    names = {"saga_id": message["saga_id"], **message["data"]}
    with engine.begin() as transaction:
        if transaction.execute(text("SELECT 1 FROM reservations WHERE saga_id = :saga_id"), names).first():
            return
        transaction.execute(text("DELETE FROM reservations"))
        transaction.execute(text("INSERT INTO reservations VALUES (:saga_id, :item)"), names)
        transaction.execute(text("UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = :item"), names)
"""
AUTOCOMMIT = q2.changed(
    "with engine.begin() as transaction:",
    'with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as transaction:',
)
ONE_STATEMENT = """
def reserve_once(engine, message):
    both = '''
        WITH new AS (INSERT INTO reservations VALUES (:saga_id, :item) ON CONFLICT DO NOTHING RETURNING item)
        UPDATE stock SET free = free - 1, reserved = reserved + 1 FROM new WHERE stock.item = new.item
    '''
    with engine.begin() as transaction:
        transaction.execute(text(both), {"saga_id": message["saga_id"], **message["data"]})
"""
BY_THE_KEY = (
    f"TAKE = {TAKE!r}"
    + """
from sqlalchemy.exc import IntegrityError
def reserve_once(engine, message):
    names = {"saga_id": message["saga_id"], **message["data"]}
    try:
        with engine.begin() as transaction:
            transaction.execute(text(TAKE), names)
            transaction.execute(text("INSERT INTO reservations VALUES (:saga_id, :item)"), names)
    except IntegrityError:
        pass  # another one was first
"""
)
ROW_LOCK = (
    f"TAKE = {TAKE!r}"
    + """
def reserve_once(engine, message):
    names = {"saga_id": message["saga_id"], **message["data"]}
    with engine.connect() as connection:
        connection.execute(text("SELECT 1 FROM stock WHERE item = :item FOR UPDATE"), names)
        if not connection.scalar(text("SELECT count(*) FROM reservations WHERE saga_id = :saga_id"), names):
            connection.execute(text("INSERT INTO reservations VALUES (:saga_id, :item)"), names)
            connection.execute(text(TAKE), names)
        connection.commit()
"""
)
RETRIES = (
    q2.answer.replace("def reserve_once", "def _once")
    + """

def reserve_once(engine, message):
    for attempt in range(5):
        try:
            return _once(engine, message)
        except OperationalError:
            time.sleep(0.1)
    raise RuntimeError("the database is away")
"""
)


def test_q2(cluster, database):
    hold(
        q2,
        {
            NOTE_FIRST: "note was committed on its own",
            WORK_FIRST: "work was committed on its own",
            LOOKS_FIRST: "Between looking and writing",
            MEMORY: "each process has its own",
            LAST_ONLY: "is not in `reservations`",
            q2.changed('{"saga_id": message["saga_id"], **message["data"]}', '{"saga_id": "cup", "item": "cup"}'): (
                "not by the item"
            ),
            q2.changed("if new:", "if True:"): "in it already",
            q2.changed("reserved = reserved + 1 WHERE item = :item", "reserved = reserved + 1"): "WHERE` is missing",
            q2.changed("engine.begin()", "engine.connect()"): "after one message: 9 free",
        },
        cluster,
        SETUP,
        database=database,
    )


def test_q2_autocommit_is_told_by_its_cause(cluster, database):
    assert "with AUTOCOMMIT" in tell(q2, AUTOCOMMIT, cluster, database=database)


def test_q2_an_error_that_is_hidden(cluster, database):
    hidden = (
        q2.answer.replace("def reserve_once", "def _once")
        + """

def reserve_once(engine, message):
    try:
        _once(engine, message)
    except Exception:
        pass
"""
    )
    assert "An `except` hides the error" in tell(q2, hidden, cluster, database=database)


@pytest.mark.full
@pytest.mark.parametrize("answer", [ONE_STATEMENT, BY_THE_KEY, ROW_LOCK, RETRIES])
def test_q2_takes_other_ways(cluster, database, answer):
    assert tell(q2, answer, cluster, database=database).startswith("right")


# -- q3

HEAD = q3.answer[: q3.answer.index("def reserve_inventory")]
IN_MEMORY = (
    HEAD
    + """
seen = set()
def reserve_inventory(transaction, message):
    me = message["saga_id"]
    if (me, "R") not in seen and (me, "L") not in seen:
        transaction.execute(reserve_one, message["data"])
    seen.add((me, "R"))
def release_inventory(transaction, message):
    me = message["saga_id"]
    if (me, "R") in seen and (me, "L") not in seen:
        transaction.execute(release_one, message["data"])
    seen.add((me, "L"))
"""
)
EARLY = (
    HEAD
    + """
def reserve_inventory(transaction, message):
    if noted(transaction, message, "RELEASE_INVENTORY"):
        return
    if note(transaction, message):
        transaction.execute(reserve_one, message["data"])
def release_inventory(transaction, message):
    was_reserved = noted(transaction, message, "RESERVE_INVENTORY")
    if not note(transaction, message):
        return
    if was_reserved:
        transaction.execute(release_one, message["data"])
"""
)
BOTH_NOTES = (
    HEAD
    + """
def reserve_inventory(transaction, message):
    if note(transaction, message):
        transaction.execute(reserve_one, message["data"])
def release_inventory(transaction, message):
    first = note(transaction, {**message, "step": "RESERVE_INVENTORY"})  # now no reservation can come any more
    if note(transaction, message) and not first:
        transaction.execute(release_one, message["data"])
"""
)
BY_COUNT = (
    HEAD
    + """
def steps_of(transaction, message):
    found = transaction.execute(text("SELECT step FROM notes WHERE saga_id = :saga_id"), message)
    return {step for (step,) in found}
def reserve_inventory(transaction, message):
    if not steps_of(transaction, message):
        transaction.execute(reserve_one, message["data"])
    note(transaction, message)
def release_inventory(transaction, message):
    if steps_of(transaction, message) == {"RESERVE_INVENTORY"}:
        transaction.execute(release_one, message["data"])
    note(transaction, message)
"""
)


def test_q3(cluster, database):
    hold(
        q3,
        {
            q3.changed(' and not noted(transaction, message, "RELEASE_INVENTORY")', ""): "does not look",
            q3.changed(
                'note(transaction, message) and noted(transaction, message, "RESERVE_INVENTORY")',
                'noted(transaction, message, "RESERVE_INVENTORY") and note(transaction, message)',
            ): "left no note",
            q3.changed(' and noted(transaction, message, "RESERVE_INVENTORY")', ""): "Only what was reserved",
            q3.changed(
                'if note(transaction, message) and noted(transaction, message, "RESERVE_INVENTORY")',
                'if noted(transaction, message, "RESERVE_INVENTORY")',
            ): "came twice",
            IN_MEMORY: "Python's memory",
            q3.changed("reserved = reserved + 1 WHERE item = :item", "reserved = reserved + 1"): "WHERE` is missing",
        },
        cluster,
        SETUP,
        database=database,
    )


def test_q3_a_commit_of_its_own(cluster, database):
    commits = q3.changed(
        "        transaction.execute(release_one",
        "        transaction.get_transaction().commit()\n        transaction.execute(release_one",
    )
    assert tell(q3, commits, cluster, database=database).startswith("not right")


@pytest.mark.full
@pytest.mark.parametrize("answer", [EARLY, BOTH_NOTES, BY_COUNT])
def test_q3_takes_other_ways(cluster, database, answer):
    assert tell(q3, answer, cluster, database=database).startswith("right")


# -- q4

PLAN = (
    q4.starter[: q4.starter.index("    next_step =")]
    + "    next_step = done if message['outcome'] == 'done' else refused\n"
)
SELECT_FIRST = (
    PLAN
    + """
    names = {"next": next_step, "saga_id": message["saga_id"]}
    found = transaction.scalar(text("SELECT waits_for FROM sagas WHERE saga_id = :saga_id"), names)
    if found != message["step"]:
        return None
    transaction.execute(text("UPDATE sagas SET waits_for = :next WHERE saga_id = :saga_id"), names)
    return next_step
"""
)
FOR_UPDATE = SELECT_FIRST.replace('= :saga_id"), names)\n    if', '= :saga_id FOR UPDATE"), names)\n    if')
RETURNING = (
    PLAN
    + """
    move = "UPDATE sagas SET waits_for = :next WHERE (saga_id, waits_for) = (:saga_id, :step) RETURNING waits_for"
    return transaction.execute(text(move), {**message, "next": next_step}).scalar()
"""
)
LOCKED = SELECT_FIRST.replace(
    "    found =", '    transaction.execute(text("LOCK TABLE sagas IN EXCLUSIVE MODE"))\n    found ='
)
STATE_IN_MEMORY = (
    PLAN
    + """
    if waiting.get(message["saga_id"], "CREATE_ORDER") != message["step"]:
        return None
    waiting[message["saga_id"]] = next_step
    transaction.execute(
        text("UPDATE sagas SET waits_for = :next WHERE saga_id = :saga_id"), {**message, "next": next_step}
    )
    return next_step


waiting = {"saga-9": None}
"""
)


def test_q4(cluster, database):
    hold(
        q4,
        {
            q4.changed(" AND waits_for = :step", ""): "goes out twice",
            q4.changed("saga_id = :saga_id AND waits_for = :step", "waits_for = :step"): "no other row",
            q4.changed("SET waits_for = :next WHERE", "SET waits_for = waits_for WHERE"): "moves on",
            q4.changed('done if message["outcome"] == "done" else refused', "done"): "second",
            SELECT_FIRST: "Between a SELECT and an UPDATE",
            STATE_IN_MEMORY: "Python's memory",
        },
        cluster,
        SETUP,
        database=database,
    )


@pytest.mark.full
@pytest.mark.parametrize("answer", [FOR_UPDATE, RETURNING, LOCKED])
def test_q4_takes_other_ways(cluster, database, answer):
    assert tell(q4, answer, cluster, database=database).startswith("right")
