"""Questions of lesson 05, CQRS."""

import contextlib
import threading
import time
from collections import Counter

from kafka import KafkaConsumer, TopicPartition
from kafka.serializer import JsonSerializer
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import Worker, point


def _engine(lab, name: str, tables: str):
    """Tables in a fresh schema of the notebook's database; returns an engine and its URL."""
    url = lab.need("database").schema(name)
    engine = create_engine(url)
    lab.afterwards.callback(engine.dispose)
    with engine.begin() as connection:
        connection.execute(text(tables))
    return engine, url


def _ask(engine, sql: str, **values) -> list:
    with engine.connect() as connection:
        return connection.execute(text(sql), values).all()


# -- q1: an event that comes twice

PLACED = [
    {"type": "ORDER_PLACED", "order": number, "customer": customer, "goods": "tea", "quantity": number}
    for number, customer in enumerate(["ann", "bob", "ann"], 1)
]


def _judge_note_order(lab, note_order):
    engine, _ = _engine(
        lab,
        "q1",
        "CREATE TABLE orders_by_customer (number int PRIMARY KEY, customer text, goods text, quantity int)",
    )
    wanted = [(each["order"], each["customer"], each["goods"], each["quantity"]) for each in PLACED]
    try:
        for events in (PLACED[:2], PLACED):  # a restarted projector begins with what it has done before
            with engine.begin() as connection:
                for each in events:
                    lab.call(note_order, connection, each)
    except DBAPIError as error:
        if "current transaction is aborted" not in str(error):
            raise
        raise Wrong(
            "after an event that came twice, the database refused all that followed: 'current transaction is aborted'",
            "a transaction that goes on",
            "An error ends PostgreSQL's transaction, also one that Python catches: "
            "let the statement itself do nothing instead of failing.",
        ) from None
    rows = [tuple(row) for row in _ask(engine, "SELECT * FROM orders_by_customer ORDER BY number")]
    missing = [row[0] for row in wanted if row[0] not in {number for number, *_ in rows}]
    if missing:
        raise Wrong(
            f"orders {missing} are not in the table",
            "orders [1, 2, 3]",
            "What was there already is the same *order*: a customer may have several.",
        )
    if rows != wanted:
        raise Wrong(
            f"rows {[row for row in rows if row not in wanted]}",
            f"{[row for row in wanted if row not in rows]}",
            "The second time, the row was changed: adding up is not idempotent.",
        )
    return "orders 1 and 2 came twice, and each order is in the table once"


_NOTE_ORDER = '''
def note_order(connection, event):
    """Put a placed order into the table, whose primary key is `number`; if the event comes again, nothing happens."""
    connection.execute(
        text("INSERT INTO orders_by_customer VALUES (:order, :customer, :goods, :quantity)"), event
    )
'''

q1 = Question(
    "q1",
    wants=("note_order",),
    starter=_NOTE_ORDER,
    solution=_NOTE_ORDER.replace(
        'text("INSERT INTO orders_by_customer VALUES (:order, :customer, :goods, :quantity)"), event',
        'text("""INSERT INTO orders_by_customer VALUES (:order, :customer, :goods, :quantity)\n'
        '                ON CONFLICT (number) DO NOTHING"""), event',
    ),
    judge=_judge_note_order,
    hints=[
        "The second time, the database refuses the row: its key is there. Can the statement do nothing instead?",
        "PostgreSQL's `INSERT … ON CONFLICT (column) DO NOTHING`.",
    ],
    why="A write that may be repeated without harm needs no offset; for a sum there is no such write.",
)


# -- q2: the offset and the result, in one transaction

QUANTITIES = [1, 10, 100, 1000]  # each digit of the sum says how often an order was counted


def _run_projector(connection, url, topic, apply_event):
    """Apply what is on the topic, from the offset that the database says; a point after each effect."""
    engine = create_engine(url)
    event.listen(engine, "after_cursor_execute", lambda *_: point("effect"))
    commit = engine.dialect.do_commit

    def do_commit(dbapi_connection):
        commit(dbapi_connection)
        point("effect")

    engine.dialect.do_commit = do_commit
    offsets = [row[0] for row in _ask_silently(url, "SELECT next_offset FROM projected WHERE partition = 0")]
    place = TopicPartition(topic, 0)
    with KafkaConsumer(**connection, value_deserializer=JsonSerializer(), enable_auto_commit=False) as consumer:
        consumer.assign([place])
        consumer.seek(place, offsets[0] if offsets else 0)
        while consumer.position(place) < len(QUANTITIES):
            for records in consumer.poll(timeout_ms=200).values():
                for record in records:
                    apply_event(engine, record)
    engine.dispose()


def _ask_silently(url, sql):
    """A question of the judge's own, which reaches no point."""
    engine = create_engine(url)
    rows = _ask(engine, sql)
    engine.dispose()
    return rows


def _judge_apply_event(lab, apply_event):
    engine, url = _engine(
        lab,
        "q2",
        "CREATE TABLE best_sellers (goods text PRIMARY KEY, sold int);"
        "CREATE TABLE projected (partition int PRIMARY KEY, next_offset bigint)",
    )
    topic = lab.topic("domain-events")
    producer = lab.producer(value_serializer=JsonSerializer())
    for number, quantity in enumerate(QUANTITIES, 1):
        producer.send(topic, {"type": "ORDER_PLACED", "order": number, "goods": "tea", "quantity": quantity})
    producer.flush()
    for die_at in [("effect", 3), ("effect", 2)]:
        worker = Worker(_run_projector, lab.cluster.connection, url, topic, apply_event, die_at=die_at)
        lab.afterwards.callback(worker.kill)
        state = worker.wait()
        if state.startswith("failed"):
            raise Wrong(f"the projector's process {state}", "a projector that goes on", _last_line(worker.output))
    _run_projector(lab.cluster.connection, url, topic, apply_event)  # started for the last time, up to the end
    (sold,) = _ask(engine, "SELECT sum(sold) FROM best_sellers").pop()
    offsets = [tuple(row) for row in _ask(engine, "SELECT partition, next_offset FROM projected")]
    counted = [int(digit) for digit in f"{sold or 0:04d}"[::-1]]
    _explain_sum(counted, offsets)
    return f"killed twice; the sum of orders of 1, 10, 100 and 1000 is {sold}"


def _explain_sum(counted: list[int], offsets: list) -> None:
    wanted = "each order counted once, though the projector is killed twice and started again"
    twice = [number for number, times in enumerate(counted, 1) if times > 1]
    never = [number for number, times in enumerate(counted, 1) if not times]
    if len(never) == len(counted):
        raise Wrong(
            "the table is empty",
            wanted,
            "Nothing was committed: `engine.connect()` rolls back at its end, `engine.begin()` commits.",
        )
    if twice and not offsets:
        raise Wrong(
            f"orders {twice} are counted more than once",
            wanted,
            "The offset is not kept: each start begins at zero.",
        )
    if twice and offsets == [(0, len(counted) - 1)]:
        raise Wrong(
            f"orders {twice} are counted more than once",
            wanted,
            "`next_offset` is the offset to read *next*: `record.offset + 1`.",
        )
    if twice:
        raise Wrong(
            f"orders {twice} are counted more than once",
            wanted,
            "The sum was committed, and then the process died before the offset was: "
            "both belong in the same `with engine.begin()`.",
        )
    if never:
        raise Wrong(
            f"orders {never} are not counted",
            wanted,
            "The offset was committed, and then the process died before the sum was: "
            "both belong in the same `with engine.begin()`.",
        )


def _last_line(output: str) -> str:
    return output.strip().splitlines()[-1] if output.strip() else ""


q2 = Question(
    "q2",
    wants=("apply_event",),
    starter='''
ADD_UP = """INSERT INTO best_sellers VALUES (:goods, :quantity)
         ON CONFLICT (goods) DO UPDATE SET sold = best_sellers.sold + :quantity"""
MOVE_ON = """INSERT INTO projected VALUES (:partition, :next_offset)
          ON CONFLICT (partition) DO UPDATE SET next_offset = :next_offset"""


def apply_event(engine, record):
    """Count what was ordered, and note how far we are; killed at any moment, each order is counted exactly once."""
    with engine.begin() as transaction:
        transaction.execute(text(ADD_UP), record.value)
    with engine.begin() as transaction:
        transaction.execute(text(MOVE_ON), {"partition": record.partition, "next_offset": record.offset + 1})
''',
    solution='''
ADD_UP = """INSERT INTO best_sellers VALUES (:goods, :quantity)
         ON CONFLICT (goods) DO UPDATE SET sold = best_sellers.sold + :quantity"""
MOVE_ON = """INSERT INTO projected VALUES (:partition, :next_offset)
          ON CONFLICT (partition) DO UPDATE SET next_offset = :next_offset"""


def apply_event(engine, record):
    """Count what was ordered, and note how far we are; killed at any moment, each order is counted exactly once."""
    with engine.begin() as transaction:
        transaction.execute(text(ADD_UP), record.value)
        transaction.execute(text(MOVE_ON), {"partition": record.partition, "next_offset": record.offset + 1})
''',
    judge=_judge_apply_event,
    hints=[
        "The process can die between any two lines. Between which two is the table wrong?",
        "What is in one transaction happens whole or not at all.",
        "One `with engine.begin() as transaction:` around both statements.",
    ],
    why="The result and the place in the log change together, or not at all: that is 'exactly once', in a database.",
    deadline=30,
)


# -- q3: reading one's own write


def _judge_wait_for_read_side(lab, wait_for_read_side):
    engine, _ = _engine(lab, "q3", "CREATE TABLE projected (partition int PRIMARY KEY, next_offset bigint)")

    def is_at(**offsets):
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE projected"))
            for partition, offset in offsets.items():
                row = {"partition": int(partition[1:]), "offset": offset}
                connection.execute(text("INSERT INTO projected VALUES (:partition, :offset)"), row)

    def answer(timeout):
        begin = time.monotonic()
        said = lab.call(wait_for_read_side, engine, 0, 7, timeout, gives=bool)
        return said, time.monotonic() - begin

    def must_be(wanted, situation, cause, timeout=0.3):
        said, took = answer(timeout)
        if said != wanted:
            raise Wrong(f"{situation}, your function returned {said}", f"{wanted}, for the event at offset 7", cause)
        if took > timeout + 2:
            raise Wrong(f"after {took:.0f} seconds your function came back", f"an answer within {timeout} s", "")

    is_at(p0=20)
    must_be(True, "with next_offset 20", "The read side may be further already: not `==`.")
    is_at(p0=7)
    must_be(
        False, "with next_offset 7", "`next_offset` is the offset to be applied *next*: 7 is not in the tables yet."
    )
    is_at(p0=0, p1=100)
    must_be(False, "with next_offset 0, and 100 on partition 1", "Each partition has its own offsets.")
    is_at()
    must_be(False, "with no row for the partition", "A partition of which nothing has been applied has no row yet.")
    is_at(p0=0)
    # Not by the clock: on a busy machine the 0.4 s may begin long before the function does. Set before the row is
    # written, so that nobody can have seen the row while this is not set.
    moving = threading.Event()
    moves = threading.Timer(0.4, lambda: (moving.set(), is_at(p0=8)))
    moves.start()
    lab.afterwards.callback(moves.join)
    said, _ = answer(5)
    too_early = not moving.is_set()
    if not said:
        raise Wrong(
            "the read side reached the event after 0.4 s, and your function returned False",
            "True",
            "Ask the database again and again until the time is over, not once.",
        )
    if too_early:
        raise Wrong(
            "your function returned True before the read side was there", "True when it is", "Ask the database."
        )
    return "it waits for the event at offset 7, and gives up in time"


q3 = Question(
    "q3",
    wants=("wait_for_read_side",),
    starter='''
def wait_for_read_side(engine, partition, offset, timeout):
    """True as soon as the read models have the event at this offset; False if not within `timeout` seconds."""
    time.sleep(timeout)
    return True
''',
    solution='''
def wait_for_read_side(engine, partition, offset, timeout):
    """True as soon as the read models have the event at this offset; False if not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            sql = "SELECT next_offset FROM projected WHERE partition = :partition"
            reached = connection.execute(text(sql), {"partition": partition}).scalar() or 0
        if reached > offset:
            return True
        time.sleep(0.01)
    return False
''',
    judge=_judge_wait_for_read_side,
    hints=[
        "Where does the read side keep how far it is? The table is `projected (partition, next_offset)`.",
        "`next_offset` is the offset to be applied next: the event at `offset` is there when `next_offset > offset`.",
        "Ask in a loop with a deadline; `.scalar()` of a result without rows is `None`.",
    ],
    why="Whoever has just written must see it; all others need not wait.",
    deadline=8,
)


# -- q4: rebuild, and no reader notices

SOLD = ["tea", "cup", "tea", "pot", "tea", "cup", "tea", "cup"]
BEFORE, AFTER = {"tea": 99}, dict(Counter(SOLD))


class _Readers:
    """Queries that come between any two statements of the learner's."""

    def __init__(self, engine):
        self.engine, self.answers, self.waited = engine, [], 0

    def look(self, *_):
        try:
            self.answers.append(dict(map(tuple, _ask(self.engine, "SELECT goods, sold FROM best_sellers"))))
        except DBAPIError as error:
            name = type(error.orig).__name__
            self.waited += name == "LockNotAvailable"
            self.answers += [name] if name != "LockNotAvailable" else []


def _judge_rebuild(lab, rebuild):
    engine, url = _engine(
        lab,
        "q4",
        "CREATE TABLE best_sellers_v1 (goods text PRIMARY KEY, sold int);"
        "INSERT INTO best_sellers_v1 VALUES ('tea', 99);"
        "CREATE VIEW best_sellers AS SELECT goods, sold FROM best_sellers_v1",
    )
    impatient = create_engine(url, isolation_level="AUTOCOMMIT")
    lab.afterwards.callback(impatient.dispose)
    with impatient.connect() as connection:
        connection.execute(text("SET lock_timeout = '20ms'"))
        readers = _Readers(_Same(connection))
        event.listen(engine, "after_cursor_execute", readers.look)
        lab.call(rebuild, engine, [{"goods": goods, "quantity": 1} for goods in SOLD])
        readers.look()
    _explain_answers(readers)
    return f"readers asked {len(readers.answers)} times; they saw {BEFORE}, then {AFTER}, and nothing else"


class _Same:
    """An engine that has one connection."""

    def __init__(self, connection):
        self._connection = connection

    def connect(self):
        return contextlib.nullcontext(self._connection)


def _explain_answers(readers: _Readers) -> None:
    wanted = f"{BEFORE} before, {AFTER} after, and nothing else"
    errors = sorted({answer for answer in readers.answers if isinstance(answer, str)})
    if errors:
        raise Wrong(
            f"queries failed: {', '.join(errors)}",
            "no query that fails",
            "For a moment there was no `best_sellers`: `CREATE OR REPLACE VIEW` replaces it in one step.",
        )
    if readers.waited > 4:
        raise Wrong(
            "queries had to wait while the table was filled",
            "queries that go on meanwhile",
            "`TRUNCATE`, `DROP` and `ALTER` lock the table until the transaction ends: "
            "fill a table that nobody looks at.",
        )
    strange = [answer for answer in readers.answers if answer not in (BEFORE, AFTER)]
    if strange == [answer for answer in strange if answer == strange[-1]] and readers.answers[-1:] == strange[-1:]:
        raise Wrong(
            f"in the end the best sellers are {strange[-1]}",
            wanted,
            "The old and the new counts are in one table: begin with an empty one.",
        )
    if strange:
        raise Wrong(
            f"a reader saw {strange[0] or 'an empty table'}",
            wanted,
            "The table that readers look at was emptied and filled before their eyes: fill another one.",
        )
    if readers.answers[-1] != AFTER:
        raise Wrong(
            f"in the end readers still see {readers.answers[-1]}",
            wanted,
            "The new table is there, but the view `best_sellers` still shows the old one.",
        )


q4 = Question(
    "q4",
    wants=("rebuild",),
    starter='''
ADD_TO = """INSERT INTO {table} VALUES (:goods, :quantity)
           ON CONFLICT (goods) DO UPDATE SET sold = {table}.sold + :quantity"""


def rebuild(engine, events):
    """Count again from the first event; who asks the view `best_sellers` sees the old counts, then the new ones."""
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE best_sellers_v1"))
    for event in events:
        with engine.begin() as connection:
            connection.execute(text(ADD_TO.format(table="best_sellers_v1")), event)
''',
    solution='''
ADD_TO = """INSERT INTO {table} VALUES (:goods, :quantity)
           ON CONFLICT (goods) DO UPDATE SET sold = {table}.sold + :quantity"""


def rebuild(engine, events):
    """Count again from the first event; who asks the view `best_sellers` sees the old counts, then the new ones."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE best_sellers_v2 (goods text PRIMARY KEY, sold int)"))
    for event in events:
        with engine.begin() as connection:
            connection.execute(text(ADD_TO.format(table="best_sellers_v2")), event)
    with engine.begin() as connection:
        connection.execute(text("CREATE OR REPLACE VIEW best_sellers AS SELECT goods, sold FROM best_sellers_v2"))
''',
    judge=_judge_rebuild,
    hints=[
        "Readers look at the view all the time. Which table may you empty and fill without their noticing?",
        "A table of its own, `best_sellers_v2 (goods text PRIMARY KEY, sold int)`: nobody looks at it yet.",
        "Then `CREATE OR REPLACE VIEW best_sellers AS SELECT goods, sold FROM best_sellers_v2`.",
    ],
    why="What is made from the log can be made again, next to what is in use, as often as one likes.",
)
