"""Questions of lesson 05, CQRS."""

import itertools
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import cloudpickle
from kafka import KafkaConsumer, TopicPartition
from kafka.serializer import JsonSerializer
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError

from exercises.frame.attack import Attack, Died, struck
from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from exercises.frame.refusal import lets_errors_out, refusing
from exercises.frame.sandbox import as_it_is
from helpers import Worker, point, wait_until

# What a judge runs in another process goes there by value: loading this module, and matplotlib with it, takes seconds.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


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
    for number, customer in enumerate(["ann", "bob", "ann", "ann"], 1)
]
LATE_ORDERS = [  # of one customer and alike but for their numbers; the smaller number comes later
    {"type": "ORDER_PLACED", "order": number, "customer": "eve", "goods": "cup", "quantity": 1} for number in (9, 7)
]


_CALLER = "The caller commits: the event's offset belongs in the same transaction."


def _judge_note_order(lab, note_order):
    engine, _ = _engine(
        lab,
        "q1",
        "CREATE TABLE orders_by_customer (number int PRIMARY KEY, customer text, goods text, quantity int)",
    )
    wanted = [(each["order"], each["customer"], each["goods"], each["quantity"]) for each in PLACED]

    def note(events, commit=True):
        with engine.connect() as connection:
            transaction = connection.begin()
            for each in events:
                lab.call(note_order, connection, each)
                if not transaction.is_active:
                    raise Wrong(
                        "your function ended the caller's transaction", "a transaction that the caller ends", _CALLER
                    )
            if commit:
                transaction.commit()

    def rows():
        return [tuple(row) for row in _ask(engine, "SELECT * FROM orders_by_customer ORDER BY number")]

    try:
        note(PLACED[:2])
        note(PLACED[:3])  # a restarted projector begins with what it has done before
    except DBAPIError as error:
        if "current transaction is aborted" not in str(error):
            raise
        raise Wrong(
            "after an event that came twice, the database refused all that followed: 'current transaction is aborted'",
            "a transaction that goes on",
            "An error ends PostgreSQL's transaction, also one that Python catches: "
            "let the statement itself do nothing instead of failing.",
        ) from None
    _explain_rows(rows(), wanted[:3])
    note(PLACED[3:], commit=False)
    if len(rows()) > 3:
        raise Wrong("the caller rolled its transaction back, and order 4 is in the table", "orders [1, 2, 3]", _CALLER)
    note(PLACED)
    if len(rows()) == 3:
        raise Wrong(
            "the process died before the transaction was committed; the event came again, and order 4 is not there",
            "orders [1, 2, 3, 4]",
            "Let the table tell what has come. Python's memory does not forget what was rolled back.",
        )
    _explain_rows(rows(), wanted)
    note(LATE_ORDERS)
    late = [order for order, *_ in rows() if order in (7, 9)]
    if late != [7, 9]:
        raise Wrong(
            f"orders 9 and 7 of eve came, in this order, each for one cup; of them in the table: {late}",
            "both",
            "An order is known by its number alone: others may be alike, and a smaller number may come later.",
        )
    lets_errors_out(
        engine,
        lambda number: lambda: note([PLACED[0] | {"order": 100 + number}]),
        lambda number: 100 + number in [order for order, *_ in rows()],
    )
    return "events came twice, once after a death: each order is in the table once"


def _explain_rows(rows: list, wanted: list) -> None:
    missing = [row[0] for row in wanted if row[0] not in {number for number, *_ in rows}]
    if missing:
        cause = "What was there already is the same *order*: a customer may have several."
        if rows == wanted[-1:]:
            cause = "Only the last order is left: a `DELETE` without its `WHERE` empties the table."
        raise Wrong(f"orders {missing} are not in the table", f"orders {[row[0] for row in wanted]}", cause)
    if rows != wanted:
        raise Wrong(
            f"rows {[row for row in rows if row not in wanted]}",
            f"{[row for row in wanted if row not in rows]}",
            "The second time, the row was changed: adding up is not idempotent.",
        )


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
GOODS = ["tea", "cup"]  # those of partition 0 and of partition 1


def _place(order: int, partition: int) -> dict:
    event = {"type": "ORDER_PLACED", "order": order, "goods": GOODS[partition]}
    return event | {"quantity": QUANTITIES[(order - 1) % len(QUANTITIES)]}


def _engine_with_points(url):
    """An engine with a point after each statement and each commit."""
    engine = create_engine(url)
    event.listen(engine, "after_cursor_execute", lambda *_: point("effect"))
    commit = engine.dialect.do_commit

    def do_commit(dbapi_connection):
        commit(dbapi_connection)
        point("effect")

    engine.dialect.do_commit = do_commit
    return engine


def _run_projector(connection, url, topic, apply_event):
    """Apply what is on the topic, from the offsets that the database says; a point after each effect."""
    offsets = dict(map(tuple, _ask_silently(url, "SELECT partition, next_offset FROM projected")))
    engine = _engine_with_points(url)
    places = [TopicPartition(topic, partition) for partition in range(len(GOODS))]
    with KafkaConsumer(**connection, value_deserializer=JsonSerializer(), enable_auto_commit=False) as consumer:
        consumer.assign(places)
        for place in places:
            consumer.seek(place, offsets.get(place.partition, 0))
        while any(consumer.position(place) < len(QUANTITIES) for place in places):
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


def _apply_one(url, apply_event, partition, offset, value):
    """What a process does with one record."""
    engine = create_engine(url)
    apply_event(engine, SimpleNamespace(partition=partition, offset=offset, value=value))
    engine.dispose()


def _judge_apply_event(lab, apply_event):
    engine, url = _engine(
        lab,
        "q2",
        "CREATE TABLE best_sellers (goods text PRIMARY KEY, sold int);"
        "CREATE TABLE projected (partition int PRIMARY KEY, next_offset bigint)",
    )
    topic = lab.topic("domain-events", partitions=len(GOODS))
    producer = lab.producer(value_serializer=JsonSerializer())
    for order in range(1, len(QUANTITIES) + 1):
        for partition in range(len(GOODS)):
            producer.send(topic, _place(order, partition), partition=partition)
    producer.flush()
    # The first life dies at its first effect, the second at its second …
    deaths = [("effect", n * (n + 1) // 2) for n in range(1, 7)]
    elsewhere = as_it_is(apply_event)
    job = (lab.cluster.connection, url, topic, elsewhere)
    worker = Worker(_run_projector, *job, die_at=deaths, restarts=True)
    lab.afterwards.callback(worker.kill)
    state = worker.wait(timeout=60)
    if state.startswith("failed"):
        raise Wrong(f"the projector's process {state}", "a projector that goes on", _last_line(worker.output))
    _explain_sums(engine)
    records = lab.records(topic, value_deserializer=JsonSerializer())
    offsets = dict(map(tuple, _ask(engine, "SELECT partition, next_offset FROM projected")))
    for record in records:
        lab.call(apply_event, engine, record)
    now = dict(map(tuple, _ask(engine, "SELECT partition, next_offset FROM projected")))
    if now != offsets:
        raise Wrong(f"a record came again, and `projected` went from {offsets} to {now}", "a place that stays", _ONLY)
    _explain_sums(engine, "a record was handed over again, and ", _ONLY)
    _two_at_once(lab, engine, url, elsewhere)
    _two_at_once_in_a_new_partition(lab, engine, url, elsewhere)
    _first_one_dies(lab, engine, url, elsewhere)
    _refused(lab, engine, apply_event)
    return "killed six times, handed over again, to two at once: each order counts once"


_ONLY = (
    "A projector that had been taken for dead may still have the record in its hands. "
    "Count it only if the offset in `projected` is not past it."
)


def _two_at_once(lab, engine, url, apply_event):
    """Two processes have the same new record; both have begun before either can end."""
    last = len(QUANTITIES)
    with engine.connect() as holder:
        holder.execute(text("LOCK TABLE projected IN EXCLUSIVE MODE"))
        holders = holder.execute(text("SELECT pg_backend_pid()")).scalar()
        job = (_apply_one, url, apply_event, 0, last, _place(last + 1, 0) | {"quantity": 10_000})
        two = [Worker(*job) for _ in range(2)]
        for worker in two:
            lab.afterwards.callback(worker.kill)
        waiting = """SELECT count(*) FROM pg_stat_activity WHERE :holder = ANY(pg_blocking_pids(pid)) OR EXISTS (
                     SELECT FROM unnest(pg_blocking_pids(pid)) AS first WHERE :holder = ANY(pg_blocking_pids(first)))"""
        wait_until(
            lambda: _ask(engine, waiting, holder=holders)[0][0] > 1 or any(worker.state != "running" for worker in two),
            "both to begin",
            timeout=60,
        )
    states = {worker.wait(timeout=60) for worker in two}
    (sold,) = _ask(engine, "SELECT sold FROM best_sellers WHERE goods = 'tea'").pop()
    if sold > 11_111:
        raise Wrong(
            "two projectors had the same record at the same moment, and its order is counted twice",
            "counted once",
            "Between looking at `projected` and writing, another process can do the same. "
            "Begin with the statement that moves or locks the row.",
        )
    if sold < 11_111 and "ended" in states:
        raise Wrong("two projectors had the same record at the same moment, and its order is not counted", "once", "")


def _sold(engine, goods) -> int:
    return sum(row[0] for row in _ask(engine, "SELECT sold FROM best_sellers WHERE goods = :goods", goods=goods))


def _two_with(lab, engine, url, apply_event, table: str, goods: str, partition: int, between=None) -> list:
    """Two processes get the same new record; the table is held until both wait, or have ended. Returns how they ended.

    `between(first, pids)` is called before the table is let go, with the sessions that the first one waited with.
    """
    waiting = "SELECT DISTINCT pid FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted"
    waiting += " AND application_name = current_setting('application_name')"
    job = (_apply_one, url, apply_event, partition, 0, {"type": "ORDER_PLACED", "goods": goods, "quantity": 1})
    with engine.connect() as holder:
        holder.execute(text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
        two, firsts = [], []
        for number in (1, 2):
            two.append(Worker(*job))
            lab.afterwards.callback(two[-1].kill)
            wait_until(
                lambda number=number: len(_ask(engine, waiting)) >= number or two[-1].state != "running", "the call", 60
            )
            firsts = firsts or _ask(engine, waiting)
        if between:
            between(two[0], firsts)
    return [worker.wait(timeout=60) for worker in two]


def _two_at_once_in_a_new_partition(lab, engine, url, apply_event):
    states = _two_with(lab, engine, url, apply_event, "best_sellers", "pot", 8)
    if (sold := _sold(engine, "pot")) > 1:
        raise Wrong(
            "two projectors had the first record of a partition at the same moment; its order is counted twice",
            "counted once",
            "There is no row in `projected` yet that could be locked: write it first, `ON CONFLICT` waits.",
        )
    if not sold and "ended" in states:
        raise Wrong("two projectors had the same record at the same moment, and its order is not counted", "once", "")


def _first_one_dies(lab, engine, url, apply_event):
    """Who waits for the other, and finds that it has died, has the work to do."""

    def dies(worker, sessions):
        worker.kill()
        for (pid,) in sessions:
            _ask(engine, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid)

    *_, second = _two_with(lab, engine, url, apply_event, "best_sellers", "lid", 9, dies)
    if second != "ended":  # it raised: then the record comes again
        lab.call(apply_event, engine, SimpleNamespace(partition=9, offset=0, value={"goods": "lid", "quantity": 1}))
    if (sold := _sold(engine, "lid")) != 1:
        raise Wrong(
            f"two had the same record, the first died before its commit, the second came back; counted {sold} times",
            "counted once",
            "Whoever does not get a lock must not come back as if the work were done: wait for it, or raise.",
        )


def _refused(lab, engine, apply_event):
    """Each of its statements is refused once; then the event comes again, as it does when the error comes out."""
    jugs = [0]

    def apply(number):
        jugs[0] += 1  # of the goods, and as the offset of a partition of their own
        lab.call(
            apply_event, engine, SimpleNamespace(partition=7, offset=jugs[0], value={"goods": "jug", "quantity": 1})
        )

    def done(number):
        return bool(_ask(engine, "SELECT FROM best_sellers WHERE goods = 'jug' AND sold = :jugs", jugs=jugs[0]))

    def again(number):
        try:
            apply(number)
        except DBAPIError:
            jugs[0] -= 1
            apply(number)
            if not done(number):
                raise Wrong(
                    "PostgreSQL refused a statement; the event came again, and is not counted once",
                    "counted once",
                    _TOGETHER,
                ) from None
            raise

    lets_errors_out(engine, lambda number: lambda: again(number), done)


def _explain_sums(engine, when="", cause="") -> None:
    sums = dict(map(tuple, _ask(engine, "SELECT goods, sold FROM best_sellers")))
    offsets = dict(map(tuple, _ask(engine, "SELECT partition, next_offset FROM projected")))
    if not any(sums.values()):
        raise Wrong(
            "the table is empty",
            "each order counted once",
            "Nothing was committed: `engine.connect()` rolls back at its end, `engine.begin()` commits.",
        )
    for partition, goods in enumerate(GOODS):
        counted = [int(digit) for digit in f"{sums.get(goods) or 0:04d}"[::-1][: len(QUANTITIES)]]
        wanted = f"each order of {goods} counted once, though the projector is killed and started again"
        twice = [order for order, times in enumerate(counted, 1) if times > 1]
        never = [order for order, times in enumerate(counted, 1) if not times]
        if twice and not offsets:
            cause = "The offset is not kept: each start begins at zero."
        elif twice and offsets.get(partition) == len(counted) - 1:
            cause = "`next_offset` is the offset to read *next*: `record.offset + 1`."
        elif twice and not cause:
            cause = f"The sum was committed, and then the process died before the offset was. {_TOGETHER}"
        elif never:
            cause = f"The offset was committed, and then the process died before the sum was. {_TOGETHER}"
        if never and offsets.get(partition, 0) > len(QUANTITIES):
            cause = "The offset went past the last record: `next_offset` is `record.offset + 1`."
        if twice or never or sums.get(goods) != sum(QUANTITIES):
            told = (
                f"orders {twice} of {goods} are counted more than once"
                if twice
                else f"orders {never} of {goods} are not counted"
            )
            if not twice and not never:
                told, cause = f"{goods}: {sums.get(goods)} sold", f"All quantities together are {sum(QUANTITIES)}."
            raise Wrong(f"{when}{told}", wanted, cause)


_TOGETHER = "Both belong in the same `with engine.begin()`, and not with AUTOCOMMIT."


def _last_line(output: str) -> str:
    return output.strip().splitlines()[-1] if output.strip() else ""


def _begin_attack(lab, apply_event):
    """A projector under accidents: it goes on where `projected` says, as after a restart."""
    engine, _ = _engine(
        lab,
        "q2",
        "CREATE TABLE best_sellers (goods text PRIMARY KEY, sold int);"
        "CREATE TABLE projected (partition int PRIMARY KEY, next_offset bigint)",
    )

    def apply(partition, offset):
        goods = {"goods": f"order {offset} of partition {partition}", "quantity": 1}
        lab.call(apply_event, engine, SimpleNamespace(partition=partition, offset=offset, value=goods))

    def run(history):
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE best_sellers, projected"))
        ends = Counter()
        for what, partition, number in history:
            if what == "again":
                for offset in range(max(0, ends[partition] - number), ends[partition]):
                    apply(partition, offset)
                continue
            try:
                with struck(engine, what, number):
                    apply(partition, ends[partition])
            except (Died, DBAPIError):
                (found,) = _ask(engine, "SELECT max(next_offset) FROM projected WHERE partition = :p", p=partition)
                for offset in range(found[0] or 0, ends[partition] + 1):
                    apply(partition, offset)
            ends[partition] += 1
        sold = Counter(dict(map(tuple, _ask(engine, "SELECT goods, sold FROM best_sellers"))))
        wanted = Counter(f"order {offset} of partition {p}" for p, end in ends.items() for offset in range(end))
        if wrong := {goods: sold[goods] for goods in sorted(wanted | sold) if sold[goods] != wanted[goods]}:
            cause = _ONLY if all(what in ("comes", "again") for what, *_ in history) else _TOGETHER
            raise Wrong(f"counted so often: {wrong}", "each order once", cause)

    return run


def _draw_attack(draw):
    kinds = ["comes", "comes", "again", "refused", "dies", "dies committed"]
    return [(draw.choice(kinds), draw.randrange(2), draw.randint(1, 3)) for _ in range(draw.randint(2, 9))]


def _tell_attack(step):
    what, partition, number = step
    event = f"the next event of partition {partition}"
    return {
        "comes": ("log", "projector", f"{event} comes"),
        "again": ("log", "projector", f"the last {number} of partition {partition} come again"),
        "refused": ("database", "projector", f"{event}: statement {number} is refused"),
        "dies": ("projector", "projector", f"{event}: it dies after statement {number}"),
        "dies committed": ("projector", "projector", f"{event}: it dies after commit {number}"),
    }[what]


q2 = Question(
    "q2",
    wants=("apply_event",),
    starter='''
ADD_UP = """INSERT INTO best_sellers VALUES (:goods, :quantity)
         ON CONFLICT (goods) DO UPDATE SET sold = best_sellers.sold + :quantity"""
MOVE_ON = """INSERT INTO projected VALUES (:partition, :next_offset)
          ON CONFLICT (partition) DO UPDATE SET next_offset = :next_offset"""


def apply_event(engine, record):
    """Count what was ordered, and note how far we are; killed or handed over again, each order counts exactly once."""
    with engine.begin() as transaction:
        transaction.execute(text(ADD_UP), record.value)
    with engine.begin() as transaction:
        transaction.execute(text(MOVE_ON), {"partition": record.partition, "next_offset": record.offset + 1})
''',
    solution='''
ADD_UP = """INSERT INTO best_sellers VALUES (:goods, :quantity)
         ON CONFLICT (goods) DO UPDATE SET sold = best_sellers.sold + :quantity"""
MOVE_ON = """INSERT INTO projected VALUES (:partition, :next_offset)
          ON CONFLICT (partition) DO UPDATE SET next_offset = :next_offset
          WHERE projected.next_offset <= :offset
          RETURNING next_offset"""  # no row: the event was applied before


def apply_event(engine, record):
    """Count what was ordered, and note how far we are; killed or handed over again, each order counts exactly once."""
    place = {"partition": record.partition, "offset": record.offset, "next_offset": record.offset + 1}
    with engine.begin() as transaction:  # both or neither, whenever the process dies
        # first, as it locks the row: another one with the same record waits here, and then gets no row
        if transaction.execute(text(MOVE_ON), place).first():
            transaction.execute(text(ADD_UP), record.value)
''',
    judge=_judge_apply_event,
    hints=[
        "The process can die between any two lines. Between which two is the table wrong?",
        "What is in one transaction happens whole or not at all: one `with engine.begin() as transaction:`.",
        "A record that comes again must not move the offset back. `DO UPDATE … WHERE projected.next_offset <= :offset` "
        "with `RETURNING` gives a row only if the offset has moved.",
    ],
    why="The result and the place in the log change together, or not at all: that is 'exactly once', in a database.",
    deadline=90,
    attack=Attack(_begin_attack, _draw_attack, _tell_attack, ("log", "projector", "database")),
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

    def must_be(wanted, situation, cause, partition=0, offset=7, timeout=0.3):
        begin, late = time.monotonic(), []

        def asked(*_):  # counted, not timed: a slow machine makes a loop that ends no longer
            late.append(time.monotonic() - begin > timeout + 1)
            if sum(late) > 50:
                raise Wrong(
                    f"{situation}, your function asked on and on, long after its {timeout} s",
                    "False when the time is over",
                    "A loop without an end: look at the time in it.",
                )

        event.listen(engine, "before_cursor_execute", asked)
        try:
            said = lab.call(wait_for_read_side, engine, partition, offset, timeout, gives=bool)
        finally:
            event.remove(engine, "before_cursor_execute", asked)
        if said != wanted:
            asked = f"{wanted}, for the event at offset {offset} of partition {partition}"
            raise Wrong(f"{situation}, your function returned {said}", asked, cause)
        if time.monotonic() - begin > timeout + 2:
            took = time.monotonic() - begin
            raise Wrong(f"after {took:.0f} seconds your function came back", f"an answer within {timeout} s", "")

    is_at(p0=20)
    must_be(True, "with next_offset 20", "The read side may be further already: not `==`.", timeout=5)
    is_at(p0=8)
    must_be(True, "with next_offset 8", "`next_offset` 8 says that offset 7 has been applied.", timeout=5)
    is_at(p0=7)
    must_be(
        False, "with next_offset 7", "`next_offset` is the offset to be applied *next*: 7 is not in the tables yet."
    )
    is_at(p0=0, p1=100)
    must_be(False, "with next_offset 0, and 100 on partition 1", "Each partition has its own offsets.")
    is_at(p0=100, p1=0, p2=1)
    must_be(False, "with next_offset 100 on partition 0, and 0 on partition 1", "Ask for the partition given.", 1, 0)
    must_be(True, "with next_offset 1 on partition 2", "The first event of a partition has offset 0.", 2, 0, 5)
    is_at(p0=8)
    must_be(True, "with next_offset 8 and a timeout of 0.9 s", "Look before you look at the time.", timeout=0.9)
    is_at(p0=7)
    with refusing(engine, 1, and_all_others=True):
        try:
            said = lab.call(wait_for_read_side, engine, 0, 7, 0.3, gives=bool)
        except DBAPIError:
            said = False
    if said:
        raise Wrong("the database refused each question, and your function returned True", "False, or the error", "")
    is_at()
    must_be(False, "with no row for the partition", "A partition of which nothing has been applied has no row yet.")
    is_at(p0=0)
    # Not by the clock: on a busy machine the 0.4 s may begin long before the function does. Set before the row is
    # written, so that nobody can have seen the row while this is not set.
    moving = threading.Event()
    moves = threading.Timer(0.4, lambda: (moving.set(), is_at(p0=8)))
    moves.start()
    lab.afterwards.callback(moves.join)
    said = lab.call(wait_for_read_side, engine, 0, 7, 5, gives=bool)
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
    deadline=40,
)


# -- q4: rebuild, and no reader notices

EVENTS = [("tea", 2), ("cup", 1), ("tea", 5), ("pot", 1), ("tea", 1), ("cup", 3)]
MORE = [("pot", 4), ("jug", 7)]  # what has come when it is rebuilt once more
BEFORE = {"tea": (99,)}
WAITS = 4  # so often a query may be refused a lock for 20 ms: a switch takes a moment
LONG = 3  # seconds that a query takes; others must not wait for it


def _counts(events: list) -> dict:
    """What the view has to show: pieces, and orders."""
    return {
        goods: (sum(n for name, n in events if name == goods), sum(name == goods for name, _ in events))
        for goods in dict(events)
    }


def _as_events(pairs: list) -> list:
    return [{"goods": goods, "quantity": quantity} for goods, quantity in pairs]


class _Readers:
    """Queries that come between any two statements of the learner's."""

    def __init__(self, connection):
        self.connection, self.answers, self.waited = connection, [], 0

    def look(self, *_):
        try:
            rows = self.connection.execute(text("SELECT * FROM best_sellers")).all()
            answer = {goods: tuple(counts) for goods, *counts in rows}
            self.answers += [answer] if answer not in self.answers[-1:] else []
        except DBAPIError as error:
            name = type(error.orig).__name__
            self.waited += name == "LockNotAvailable"
            self.answers += [name] if name != "LockNotAvailable" else []


def _rebuild_and_die(url, rebuild, events):
    """A rebuild in a process of its own."""
    engine = _engine_with_points(url)
    rebuild(engine, events)
    engine.dispose()


def _judge_rebuild(lab, rebuild):
    engine, url = _engine(
        lab,
        "q4",
        "CREATE TABLE best_sellers_v1 (goods text PRIMARY KEY, sold int);"
        "INSERT INTO best_sellers_v1 VALUES ('tea', 99);"
        "CREATE VIEW best_sellers AS SELECT goods, sold FROM best_sellers_v1",
    )
    # A prepared `SELECT *` would fail when the view gets a column.
    impatient = create_engine(url, isolation_level="AUTOCOMMIT", connect_args={"prepare_threshold": None})
    lab.afterwards.callback(impatient.dispose)
    shown = [BEFORE]
    with impatient.connect() as connection:
        connection.execute(text("SET lock_timeout = '20ms'"))

        def readers_see(work, events, when):
            """Readers ask between any two statements of the work; in the end they see these events' counts."""
            readers = _Readers(connection)
            event.listen(engine, "after_cursor_execute", readers.look)
            work(readers)
            event.remove(engine, "after_cursor_execute", readers.look)
            readers.look()
            _explain_answers(readers, shown[0], _counts(events), when)
            shown[0] = _counts(events)

        readers_see(lambda _: lab.call(rebuild, engine, _as_events(EVENTS)), EVENTS, "")
        events = EVENTS + MORE
        try:
            readers_see(lambda _: lab.call(rebuild, engine, _as_events(events)), events, "the second time, ")
        except DBAPIError as error:
            raise Wrong(
                f"the second rebuild ended with {type(error.orig).__name__}: {str(error.orig).splitlines()[0]}",
                "a function that may be called again",
                "What the first rebuild made is still there: take its place, or begin by removing what is not shown.",
            ) from None
        built = []

        def build(number):
            built[:] = [*EVENTS, ("jug", number)]
            lab.call(rebuild, engine, _as_events(built))

        def is_shown(number):
            rows = _ask(engine, "SELECT * FROM best_sellers")
            return {goods: tuple(counts) for goods, *counts in rows} == _counts(built)

        lets_errors_out(engine, lambda number: lambda: build(number), is_shown)
        lab.call(rebuild, engine, _as_events(events))
        events = events + MORE
        connection.execute(text("SET lock_timeout = '1500ms'"))  # from here on by the clock, and machines may be slow
        _after_deaths(lab, url, rebuild, readers_see, events)
        events = events + MORE
        _behind_a_long_query(lab, engine, url, rebuild, connection, events, shown[0])
    return (
        f"built four times, killed at many places, behind a long query; readers saw old counts, then {_counts(events)}"
    )


def _after_deaths(lab, url, rebuild, readers_see, events):
    """A rebuild dies at its first effect, the next one at its second …; one of them comes to its end."""
    places = [1, 2, 3, 4, 5, 6, 8, *range(11, 19)]  # of each life; the filling, the switch, and in between
    deaths = [("effect", count) for count in itertools.accumulate(places)]
    worker = Worker(_rebuild_and_die, url, rebuild, _as_events(events), die_at=deaths, restarts=True)
    lab.afterwards.callback(worker.kill)

    def watch(readers):
        while worker.state == "running":
            readers.look()
            time.sleep(0.01)
        if worker.state.startswith("failed"):
            raise Wrong(
                f"a rebuild that began where another one had died ended with {_last_line(worker.output)}",
                "a function that may be called again after a death",
                "What the dead one has left is in the way: remove it first, or make, fill and show the table in one "
                "transaction.",
            )

    readers_see(watch, events, "after rebuilds that died half way, ")


def _behind_a_long_query(lab, engine, url, rebuild, connection, events, before):
    """A query that takes long has looked at the view; another one, that comes later, must not wait for it."""
    with engine.connect() as long_query:
        long_query.execute(text("SELECT * FROM best_sellers"))
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE :holder = ANY(pg_blocking_pids(pid))")
        holder = {"holder": long_query.execute(text("SELECT pg_backend_pid()")).scalar()}
        worker = Worker(_rebuild_and_die, url, rebuild, _as_events(events))
        lab.afterwards.callback(worker.kill)
        end, limit = None, time.monotonic() + 60
        while worker.state == "running" and time.monotonic() < (end or limit):
            if end is None and connection.execute(waiting, holder).scalar():
                end = time.monotonic() + LONG  # since the rebuild waits for it
            readers = _Readers(connection)
            readers.look()
            if readers.waited:
                raise Wrong(
                    "a query took long, your rebuild waited for it, and all other queries waited behind the rebuild",
                    "others that go on meanwhile",
                    "`CREATE OR REPLACE VIEW`, `DROP` and `ALTER` wait for a lock, and later queries wait behind them. "
                    "`SET LOCAL lock_timeout = '100ms'` lets the switch give up; then try again.",
                )
            time.sleep(0.01)
    if worker.wait(timeout=60) != "ended":  # it may give up, and be called again
        lab.call(rebuild, engine, _as_events(events))
    readers = _Readers(connection)
    readers.look()
    _explain_answers(readers, before, _counts(events), "after a query that took long, ")


def _explain_answers(readers: _Readers, before: dict, after: dict, when: str) -> None:
    wanted = f"{before} before, {after} after, and nothing else"
    errors = sorted({answer for answer in readers.answers if isinstance(answer, str)})
    if errors:
        raise Wrong(
            f"{when}queries failed: {', '.join(errors)}",
            "no query that fails",
            "For a moment there was no `best_sellers`: replace the view in one step, or in one transaction.",
        )
    if readers.waited > WAITS:
        raise Wrong(
            f"{when}queries had to wait while the table was filled",
            "queries that go on meanwhile",
            "`TRUNCATE`, `DROP` and `ALTER` lock the table until the transaction ends: "
            "fill a table that nobody looks at.",
        )
    last = readers.answers[-1]
    strange = [answer for answer in readers.answers if answer not in (before, after)]
    if last == before:
        cause = "The new table is there, but the view `best_sellers` still shows the old one."
        raise Wrong(f"{when}in the end readers still see {last}", wanted, cause)
    if strange and strange[0] == last:
        raise Wrong(f"{when}in the end the best sellers are {last}", wanted, _why_these(last, after))
    if strange:
        raise Wrong(
            f"{when}a reader saw {strange[0] or 'an empty table'}",
            wanted,
            "The table that readers look at was emptied and filled before their eyes: fill another one.",
        )


def _why_these(found: dict, wanted: dict) -> str:
    pieces = {goods: counts[0] for goods, counts in found.items()}
    if any(len(counts) < 2 for counts in found.values()):
        return "The view has to show a column `orders` as well: in how many events the goods occur."
    if pieces == {goods: orders for goods, (_, orders) in wanted.items()}:
        return "`sold` counts pieces: add up the quantities, not the events."
    return "The old and the new counts are in one table: begin with an empty one."


q4 = Question(
    "q4",
    wants=("rebuild",),
    starter='''
ADD_TO = """INSERT INTO {table} VALUES (:goods, :quantity, 1) ON CONFLICT (goods)
           DO UPDATE SET sold = {table}.sold + :quantity, orders = {table}.orders + 1"""


def rebuild(engine, events):
    """Count again from the first event; who asks the view `best_sellers` sees the old counts, then the new ones."""
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE best_sellers_v1"))
        connection.execute(text("ALTER TABLE best_sellers_v1 ADD COLUMN IF NOT EXISTS orders int"))
    for event in events:
        with engine.begin() as connection:
            connection.execute(text(ADD_TO.format(table="best_sellers_v1")), event)
''',
    solution='''
ADD_TO = """INSERT INTO {table} VALUES (:goods, :quantity, 1) ON CONFLICT (goods)
           DO UPDATE SET sold = {table}.sold + :quantity, orders = {table}.orders + 1"""


def rebuild(engine, events):
    """Count again from the first event; who asks the view `best_sellers` sees the old counts, then the new ones."""
    with engine.begin() as connection:  # nobody looks at this table; one that a dead rebuild has left goes first
        connection.execute(text("DROP TABLE IF EXISTS best_sellers_next"))
        connection.execute(text("CREATE TABLE best_sellers_next (goods text PRIMARY KEY, sold int, orders int)"))
        for event in events:
            connection.execute(text(ADD_TO.format(table="best_sellers_next")), event)
    while True:
        try:
            with engine.begin() as connection:  # the switch, and the name for the next time
                # behind a query that takes long: give up and try again, or all others wait behind us
                connection.execute(text("SET LOCAL lock_timeout = '100ms'"))
                connection.execute(text("CREATE OR REPLACE VIEW best_sellers AS SELECT * FROM best_sellers_next"))
                connection.execute(text("DROP TABLE best_sellers_v1"))
                connection.execute(text("ALTER TABLE best_sellers_next RENAME TO best_sellers_v1"))
            return
        except OperationalError:
            time.sleep(0.1)
''',
    judge=_judge_rebuild,
    hints=[
        "Readers look at the view all the time. Which table may you empty and fill without their noticing?",
        "A table of its own: nobody looks at it yet. Then `CREATE OR REPLACE VIEW best_sellers AS SELECT * FROM …`.",
        "What is left of the rebuild before, or of one that died? `DROP TABLE IF EXISTS` what is not shown. After the "
        "switch, `ALTER TABLE … RENAME TO` frees the name; the view follows the table, not its name.",
        "`SET LOCAL lock_timeout = '100ms'` before the switch, and try again after an `OperationalError`: "
        "otherwise all queries wait behind the switch, and the switch for a query that takes long.",
    ],
    why="What is made from the log can be made again, next to what is in use, as often as you like.",
    deadline=90,
)
