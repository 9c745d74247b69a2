"""The questions of lesson 06: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_06 import q1, q2, q3, q4
from tools.lessons import NOTEBOOKS, code_cells, read

SETUP = "\n".join(cell.source for cell in code_cells(read(NOTEBOOKS / "06_saga.ipynb"))[:2])  # both cells of imports


def test_q1(cluster):
    hold(
        q1,
        {
            q1.changed('message["saga_id"]', 'message["step"]'): "stay together",
            q1.changed('key=message["saga_id"].encode()', "partition=0"): "same for all",
            q1.starter.replace(".get(timeout=10)", ""): "no key",
        },
        cluster,
        SETUP,
    )


def test_q2(cluster, database):
    note_first = """
def reserve_once(engine, message):
    note = "INSERT INTO reservations VALUES (:saga_id, :item) ON CONFLICT DO NOTHING"
    reserve = "UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = :item"
    with engine.begin() as transaction:
        noted = transaction.execute(text(note), {"saga_id": message["saga_id"], **message["data"]}).rowcount
    if noted:
        with engine.begin() as transaction:
            transaction.execute(text(reserve), message["data"])
"""
    work_first = """
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
    hold(
        q2,
        {
            note_first: "note was committed on its own",
            work_first: "work was committed on its own",
            q2.changed('{"saga_id": message["saga_id"], **message["data"]}', '{"saga_id": "cup", "item": "cup"}'): (
                "not by the item"
            ),
            q2.changed("if new:", "if True:"): "in it already",
        },
        cluster,
        SETUP,
        database=database,
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
        },
        cluster,
        SETUP,
        database=database,
    )


def test_q4(cluster, database):
    hold(
        q4,
        {
            q4.changed(" AND waits_for = :step", ""): "goes out twice",
            q4.changed("saga_id = :saga_id AND waits_for = :step", "waits_for = :step"): "its own row",
            q4.changed("SET waits_for = :next WHERE", "SET waits_for = waits_for WHERE"): "move on",
            q4.changed('done if message["outcome"] == "done" else refused', "done"): "second",
        },
        cluster,
        SETUP,
        database=database,
    )
