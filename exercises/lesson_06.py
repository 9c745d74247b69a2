"""Questions of lesson 06, saga."""

import threading
from contextlib import suppress

from kafka import KafkaProducer
from kafka.serializer import JsonSerializer
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from exercises.frame.attack import Attack, Died, struck
from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from exercises.frame.refusal import lets_errors_out
from exercises.frame.sandbox import as_it_is
from helpers import Worker, point, wait_until
from helpers.pictures import capture_log, log_view

STOCK = """
CREATE TABLE stock (item text PRIMARY KEY, free int, reserved int);
INSERT INTO stock VALUES ('cup', 9, 0), ('lamp', 9, 0)
"""
OTHER_SEED = {"PYTHONHASHSEED": "17"}  # another process: nothing is in its memory, and `hash` gives other numbers


def _message(saga_id: str, step: str, item: str = "cup") -> dict:
    return {"saga_id": saga_id, "step": step, "data": {"item": item}}


def _engine(lab, tables: str):
    """The engine of a fresh schema with these tables."""
    engine = create_engine(lab.need("database").schema(lab._question.name), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(tables))
    return engine


def _ask(engine, question: str) -> list:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(question))]


def _url(engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def _worker(lab, *job, **options) -> Worker:
    """A worker that ends with the check."""
    worker = Worker(*job, **options)
    lab.afterwards.callback(worker.kill)
    return worker


def _last_line(worker: Worker) -> str:
    return (worker.output.strip().splitlines() or ["no word"])[-1]


def _has_ended(worker: Worker, wanted: str = "ended") -> None:
    """Wait until the worker has ended, or was killed; `Wrong` if an exception ended it."""
    if not worker.wait(timeout=60).startswith(wanted):
        ended = f"in a process of its own your function ended with {_last_line(worker)}"
        raise Wrong(ended, "a function that works there too")


def _taken_from(item: str, reserved: int) -> dict:
    """The whole stock, when so many of one item are reserved."""
    return {name: (9 - reserved, reserved) if name == item else (9, 0) for name in ["cup", "lamp"]}


def _stock(engine) -> dict:
    return {item: (free, reserved) for item, free, reserved in _ask(engine, "SELECT item, free, reserved FROM stock")}


# -- q1: a key, so that a saga's records stay in order


def _send_and_die(connection: dict, topic: str, send_step, messages: list) -> None:
    """Send with a producer that waits a moment before it sends, and die when the last call has come back."""
    producer = KafkaProducer(**connection, value_serializer=JsonSerializer(), linger_ms=100)
    for message in messages:
        send_step(producer, topic, message)
    point("sent")


def _judge_send_step(lab, send_step):
    elsewhere = as_it_is(send_step)
    topic = lab.topic(partitions=3, config={"max.message.bytes": "2000"})
    producer = lab.producer(value_serializer=JsonSerializer())
    sagas = [f"saga-{number}" for number in range(1, 9)]
    steps = ["CREATE_ORDER", "RESERVE_INVENTORY", "PROCESS_PAYMENT", "CONFIRM_ORDER"]
    for step in steps[:3]:
        for saga in sagas:
            lab.call(send_step, producer, topic, _message(saga, step))
    refused = _message("saga-1", "CONFIRM_ORDER") | {"note": "x" * 5000}
    try:
        lab.call(send_step, producer, topic, refused)
    except Wrong:
        raise
    except Exception:
        pass
    else:
        raise Wrong(
            "the broker refused a message that is too large, and `send_step` came back as if it was written",
            "an exception, so that the service does not go on",
            "`send` only puts a record into a buffer. Its future, by `.get()`, tells whether the broker has taken it.",
        )
    worker = _worker(
        lab, _send_and_die, lab.cluster.connection, topic, elsewhere,
        [_message(saga, steps[3]) for saga in reversed(sagas)], die_at="sent", environment=OTHER_SEED,
    )  # fmt: skip
    _has_ended(worker, "killed")
    lab.close_clients()
    records = lab.records(topic, value_deserializer=JsonSerializer())
    found = [(record.value["saga_id"], record.value["step"]) for record in records]
    if steps[3] not in [step for _, step in found]:
        raise Wrong(
            "the process was killed right after your function had come back: none of its messages is on the topic",
            "what `send_step` has sent stays",
            "`send` only puts a record into a buffer; it is written when its future says so.",
        )
    if sorted(found) != sorted((saga, step) for saga in sagas for step in steps):
        raise Wrong(f"{len(found)} records on the topic", f"{len(sagas) * len(steps)}", "Send each message once.")
    log = capture_log(
        lab.cluster, topic, label=lambda record: JsonSerializer().deserialize(topic, None, record.value)["step"]
    )
    places = {saga: {r.partition for r in records if r.value["saga_id"] == saga} for saga in sagas}
    split = [saga for saga, partitions in places.items() if len(partitions) > 1]
    if split:
        keys = {record.key for record in records}
        first = {(r.value["saga_id"], r.partition) for r in records if r.value["step"] != steps[3]}
        cause = "Records with the same key go to the same partition. What is it that has to stay together?"
        if len(first) == len(sagas):
            cause = "Another process takes another partition: `hash()` of a string changes from process to process."
        elif keys == {None}:
            cause = "The records have no key, so each goes to any partition."
        raise Wrong(
            f"the steps of {split[0]} are on partitions {sorted(places[split[0]])}",
            "all steps of a saga on one partition: only there does Kafka keep an order",
            cause,
            log_view(log, "A saga's steps on several partitions", keys=sagas),
        )
    if len({partition for partitions in places.values() for partition in partitions}) == 1:
        raise Wrong(
            "all sagas are on the same partition",
            "each saga on one partition, and the sagas on all of them",
            "The key, or the partition, is the same for all; then one process of each service has to do all the work.",
        )


_SEND_STEP = '''
def send_step(producer, topic, message):
    """Send a saga's message, on a topic with three partitions; a saga's records have to stay in order."""
    return producer.send(topic, message).get(timeout=10)
'''

q1 = Question(
    "q1",
    wants=("send_step",),
    starter=_SEND_STEP,
    solution=_SEND_STEP.replace("(topic, message)", '(topic, message, key=message["saga_id"].encode())'),
    judge=_judge_send_step,
    hints=[
        "Kafka keeps the order of records within a partition. What decides to which partition a record goes?",
        "Records with the same key go to the same partition: `producer.send(topic, value, key=b'…')`.",
    ],
    why="Without the saga's id as key, a release may overtake the reservation, and no code of yours is to blame.",
    deadline=60,
)


# -- q2: idempotent, and in one transaction


class _Held:
    """Holds what a statement locks; called, it gives the sessions that wait for a lock."""

    def __init__(self, engine, statement: str):
        self._engine, self._holder = engine, engine.connect()
        self._releasing = threading.Lock()
        self._holder.execute(text(statement))

    def __call__(self) -> list:
        return _waiting(self._engine)

    def release(self) -> None:
        with self._releasing:  # two threads may want it: a connection that both close breaks the check
            self._holder.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release()


def _waiting(engine) -> list:
    """The sessions of this schema that wait for a lock."""
    waiting = "SELECT DISTINCT pid FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted "
    return _ask(engine, waiting + "AND application_name = current_setting('application_name')")


def _deliver(url: str, function, messages: list) -> None:
    for message in messages:
        function(create_engine(url, poolclass=NullPool), message)
        point("delivered")


def _cut(engine, waiting: list) -> None:
    """End these sessions, and wait until they are gone."""
    for (pid,) in waiting:
        _ask(engine, f"SELECT pg_terminate_backend({pid}, 5000)")


def _judge_reserve_once(lab, reserve_once):
    engine = _engine(lab, STOCK + "; CREATE TABLE reservations (saga_id text PRIMARY KEY, item text)")
    elsewhere = as_it_is(reserve_once)

    def message(number):
        return _message(f"saga-{number}", "RESERVE_INVENTORY")

    def expect(sagas, when, cause):
        stock, wanted = _stock(engine), _taken_from("cup", sagas)
        if stock["lamp"] != wanted["lamp"]:
            cause = "The UPDATE changes each row of `stock`: its `WHERE` is missing, or does not name the item."
            raise Wrong(f"{when}: a lamp has been reserved as well", "only the item of the message", cause)
        if stock != wanted:
            told = "{} free, {} reserved"
            raise Wrong(f"{when}: {told.format(*stock['cup'])}", told.format(*wanted["cup"]), cause)

    lab.call(reserve_once, engine, message(1))
    expect(1, "after one message", "One cup goes from `free` to `reserved`.")
    lab.call(reserve_once, engine, message(1))
    expect(1, "after the same message again", "`reservations` can tell: is this saga in it already?")
    _in_another_process(lab, engine, reserve_once, elsewhere, [message(1), message(2), message(3)], expect)
    lab.call(reserve_once, engine, message(3))
    expect(3, "its connection was cut before the stock was changed, and the message came again", _APART[""])

    with _Held(engine, "LOCK TABLE reservations IN EXCLUSIVE MODE") as waiting:
        worker = _worker(lab, _deliver, _url(engine), reserve_once, [message(4)])
        wait_until(lambda: waiting() or worker.state != "running", "the statement", timeout=60)
        worker.kill()
        _cut(engine, waiting())
    cause = _apart(engine, 4)
    lab.call(reserve_once, engine, message(4))
    expect(4, "killed before the note was written, and delivered again", cause)

    with _Held(engine, "SELECT * FROM stock FOR UPDATE") as waiting:
        twin = _worker(lab, _deliver, _url(engine), reserve_once, [message(5)])
        with suppress(DBAPIError):  # one of the two may be refused: then its message comes again
            _call_beside(lab, twin, waiting, lambda: lab.call(reserve_once, engine, message(5)))
    twin.wait(timeout=60)
    lab.call(reserve_once, engine, message(5))
    cause = "Between looking and writing, another process can do the same. Let the INSERT itself tell who was first."
    expect(5, "two processes had the same message at the same moment", cause)
    _first_one_dies(lab, engine, reserve_once, elsewhere, message(6))
    expect(6, "two had the same message, and the first died before its commit; the second came back", _SKIPPED)
    with _Held(engine, "SELECT * FROM stock FOR UPDATE") as waiting:
        both = [_worker(lab, _deliver, _url(engine), elsewhere, [message(number)]) for number in (7, 8)]
        wait_until(
            lambda: len(waiting()) > 1 or any(worker.state != "running" for worker in both),
            "two statements",
            timeout=60,
        )
    for number, worker in zip((7, 8), both, strict=True):
        if worker.wait(timeout=60) != "ended":  # it raised: then the message comes again
            lab.call(reserve_once, engine, message(number))
    cause = "Let the UPDATE itself count: a number that Python has read may be old when it is written."
    expect(8, "two sagas took a cup at the same moment", cause)

    reserved: list = []
    refused: list = []

    def reserve(number):
        reserved[:] = [_stock(engine)["cup"][1]]
        saga = 200 if number in refused else 100 + number
        refused.append(number)
        return lambda: lab.call(reserve_once, engine, message(saga))

    lets_errors_out(engine, reserve, lambda _: _stock(engine)["cup"][1] == reserved[0] + 1)
    return "delivered twice, cut off, killed, two at once: one cup for each of five sagas"


_SKIPPED = "Whoever does not get a lock must not come back as if the work were done: wait for it, or raise."


def _first_one_dies(lab, engine, reserve_once, elsewhere, message) -> None:
    """Two processes have the same message; the first is killed in its transaction while the second one waits."""
    with _Held(engine, "SELECT * FROM stock FOR UPDATE") as waiting:
        first = _worker(lab, _deliver, _url(engine), elsewhere, [message])
        wait_until(lambda: waiting() or first.state != "running", "the first statement", timeout=60)
        its_sessions = waiting()
        second = _worker(lab, _deliver, _url(engine), elsewhere, [message])
        wait_until(lambda: len(waiting()) > 1 or second.state != "running", "the second statement", timeout=60)
        first.kill()
        _cut(engine, its_sessions)
    if second.wait(timeout=60) != "ended":  # it raised: then the message comes again
        lab.call(reserve_once, engine, message)


def _call_beside(lab, twin: Worker, waiting, call) -> None:
    """Make a call that waits for a lock, as a worker does; the lock is opened when both wait for it."""

    def open_the_lock():
        wait_until(lambda: len(waiting()) > 1 or twin.state != "running", "two statements", timeout=60)
        waiting.release()

    opener = threading.Thread(target=open_the_lock, daemon=True)
    opener.start()
    lab.afterwards.callback(opener.join)
    call()


def _in_another_process(lab, engine, reserve_once, elsewhere, messages, expect):
    """The second saga's message; then both again, here; then the connection is cut while the third one waits."""
    worker = _worker(lab, _deliver, _url(engine), elsewhere, messages[1:], hold_at="delivered", environment=OTHER_SEED)
    wait_until(lambda: "delivered" in worker.points or worker.state != "running", "the call", timeout=60)
    if worker.state != "running":
        _has_ended(worker)
    expect(2, "after a message of another saga", "What came before is told by the saga's id, not by the item.")
    for number in [1, 2]:
        noted = _ask(engine, f"SELECT 1 FROM reservations WHERE saga_id = 'saga-{number}'")
        lab.call(reserve_once, engine, messages[number - 1])
        cause = "`reservations` can tell: is this saga in it already?"
        if not noted:
            cause = "The note is not in `reservations`. Python's memory is no place for it: each process has its own."
        expect(2, f"the message of saga-{number} came again, to another process", cause)
    with _Held(engine, "SELECT * FROM stock FOR UPDATE") as waiting:
        worker.release()
        wait_until(lambda: waiting() or worker.state != "running", "the statement", timeout=60)
        _cut(engine, waiting())
    came_back = worker.wait(timeout=60) == "ended"
    if _apart(engine, 3) == _APART["note"]:
        raise Wrong("its connection was cut before the stock was changed: the note is there", "neither", _APART["note"])
    if came_back and _stock(engine) == _taken_from("cup", 2):
        raise Wrong(
            "its connection to the database was cut, and your function came back as if it had done its work",
            "an exception, so that the service does not commit its place and gets the message again",
            "An `except` hides the error: let out what you cannot repair.",
        )


def _begin_attack(lab, reserve_once):
    """A service under accidents: a message comes again until the function has come back."""
    engine = _engine(lab, STOCK + "; CREATE TABLE reservations (saga_id text PRIMARY KEY, item text)")

    def run(history):
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE reservations"))
            connection.execute(text("UPDATE stock SET free = 9, reserved = 0"))
        for what, saga, item, number in history:
            message = _message(f"saga-{saga}", "RESERVE_INVENTORY", item)
            try:
                with struck(engine, what, number):
                    lab.call(reserve_once, engine, message)
            except (Died, DBAPIError):
                lab.call(reserve_once, engine, message)
        first = {}
        for _, saga, item, _ in history:
            first.setdefault(saga, item)
        wanted = {name: sum(item == name for item in first.values()) for name in ("cup", "lamp")}
        found = {name: reserved for name, (_, reserved) in _stock(engine).items()}
        if found != wanted:
            raise Wrong(f"reserved: {found}", f"{wanted}: one piece for each saga", _APART[""])

    return run


def _draw_attack(draw):
    kinds = ["comes", "comes", "refused", "dies", "dies committed"]
    item = {saga: draw.choice(["cup", "lamp"]) for saga in range(1, 5)}
    sagas = [draw.randint(1, 4) for _ in range(draw.randint(2, 9))]
    return [(draw.choice(kinds), saga, item[saga], draw.randint(1, 3)) for saga in sagas]


def _tell_attack(step):
    what, saga, item, number = step
    message = f"saga {saga}, a {item}"
    return {
        "comes": ("topic", "inventory", message),
        "refused": ("database", "inventory", f"{message}: statement {number} is refused"),
        "dies": ("inventory", "inventory", f"{message}: it dies after statement {number}"),
        "dies committed": ("inventory", "inventory", f"{message}: it dies after commit {number}"),
    }[what]


_APART = {
    "note": "The note was committed on its own, before the work: in a transaction of its own, or with AUTOCOMMIT. "
    "When the message comes again, the note says that all is done.",
    "work": "The work was committed on its own, before the note: in a transaction of its own, or with AUTOCOMMIT. "
    "When the message comes again, no note says that it is done.",
    "": "Note and work belong in one transaction.",
}


def _apart(engine, number: int) -> str:
    """The cause, if of a saga's note and work only one has been committed; before it, each saga has one cup."""
    noted = _ask(engine, f"SELECT 1 FROM reservations WHERE saga_id = 'saga-{number}'")
    worked = _stock(engine)["cup"][1] >= number
    return _APART["note" if noted and not worked else "work" if worked and not noted else ""]


q2 = Question(
    "q2",
    wants=("reserve_once",),
    starter='''
def reserve_once(engine, message):
    """Put one piece of the item aside for this saga; the process may die, and the message may come again."""
    reserve = "UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = :item"
    with engine.begin() as transaction:
        transaction.execute(text(reserve), message["data"])
''',
    solution='''
def reserve_once(engine, message):
    """Put one piece of the item aside for this saga; the process may die, and the message may come again."""
    note = "INSERT INTO reservations VALUES (:saga_id, :item) ON CONFLICT DO NOTHING RETURNING saga_id"
    reserve = "UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = :item"
    with engine.begin() as transaction:  # both or neither; an error comes out, so the message comes again
        # no row if the note is there; a second process with the same message waits here for the first
        new = transaction.execute(text(note), {"saga_id": message["saga_id"], **message["data"]}).first()
        if new:
            transaction.execute(text(reserve), message["data"])
''',
    judge=_judge_reserve_once,
    hints=[
        "The table `reservations (saga_id, item)` is there for a note that this saga has its piece already.",
        "`INSERT … ON CONFLICT DO NOTHING RETURNING saga_id` gives a row only if it wrote one.",
        "Note and work belong in the same `with engine.begin()`: then either both are there, or neither is. "
        "An exception has to come out of it, so that the message comes again.",
    ],
    why="Kafka may deliver any record twice; the database is where 'once' is decided.",
    deadline=120,
    attack=Attack(_begin_attack, _draw_attack, _tell_attack, ("topic", "inventory", "database")),
)


# -- q3: a compensation that comes first

_CUPS = {"R": "a reservation", "L": "a release"}


def _call_locked(connection, function, message: dict):
    """Call a step as `handle_once` does: in a transaction that holds the saga's lock."""
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:saga_id))"), message)
    return function(connection, message)


def _step_in_a_process(url: str, function, message: dict) -> None:
    with create_engine(url, poolclass=NullPool).begin() as transaction:
        _call_locked(transaction, function, message)


def _judge_reserve_and_release(lab, reserve_inventory, release_inventory):
    engine = _engine(lab, STOCK + "; CREATE TABLE notes (saga_id text, step text, PRIMARY KEY (saga_id, step))")
    reserved = 0
    elsewhere = dict(zip("RL", as_it_is((reserve_inventory, release_inventory)), strict=True))

    def step(saga, letter):
        name = "RESERVE_INVENTORY" if letter == "R" else "RELEASE_INVENTORY"
        return reserve_inventory if letter == "R" else release_inventory, _message(saga, name)

    def take(saga, letter, commit=True):
        function, message = step(saga, letter)
        with engine.connect() as connection:
            transaction = connection.begin()
            _call_locked(connection, lambda *given: lab.call(function, *given), message)
            if commit:
                transaction.commit()

    def expect(case, place, when=""):
        wanted = reserved + ("R" in case[:place] and "L" not in case[:place])
        stock = _stock(engine)
        if stock["lamp"] != (9, 0):
            cause = "The UPDATE changes each row of `stock`: its `WHERE` is missing, or does not name the item."
            raise Wrong("the stock of lamps has changed as well", "only the item of the message", cause)
        if stock["cup"] != (9 - wanted, wanted):
            came = ", then ".join(_CUPS[letter] for letter in case[:place]) or "no message yet"
            raise Wrong(
                f"a saga got {came}{when}: {stock['cup'][1] - reserved} reserved for it",
                f"{wanted - reserved} reserved for it",
                _MEMORY if when else _why_not(engine, case, case[:place]),
            )

    for case in ["R", "RR", "RL", "RLL", "RLR", "LR", "LRL", "LLRR"]:
        for place, letter in enumerate(case, 1):
            take(f"saga-{case}", letter)
            expect(case, place)
        reserved += "L" not in case
    for case in ["RL", "LR"]:  # each step dies before its transaction is committed, and comes again
        for place, letter in enumerate(case):
            take(f"saga-{case}-dies", letter, commit=False)
            expect(case, place, "; the next step died before its transaction was committed")
            take(f"saga-{case}-dies", letter)
            expect(case, place + 1, "; the last step had died before its transaction was committed, and came again")
    for first, second in ("RL", "LR"):
        saga = f"saga-moves-{first}"
        take(saga, first)
        _, message = step(saga, second)
        worker = _worker(lab, _step_in_a_process, _url(engine), elsewhere[second], message, environment=OTHER_SEED)
        _has_ended(worker)
        expect(first + second, 2, f", {_CUPS[second]} in another process")
    _refused_steps(engine, take)
    return "in each of eight orders, through deaths and a restart: reserved once, and never after the release"


def _refused_steps(engine, take) -> None:
    """Each statement of either step is refused once."""
    reserved = []
    for number in range(1, 11):
        take(f"saga-refused-{number}-L", "R")

    def call(letter):
        def one(number):
            reserved[:] = [_stock(engine)["cup"][1]]
            return lambda: take(f"saga-refused-{number}-{letter}", letter)

        return one

    lets_errors_out(engine, call("R"), lambda _: _stock(engine)["cup"][1] == reserved[0] + 1)
    lets_errors_out(engine, call("L"), lambda _: _stock(engine)["cup"][1] == reserved[0] - 1, most=10)


_MEMORY = (
    "What has come is to be noted in the table, in the transaction that is handed in. "
    "Python's memory does not forget when a transaction is rolled back, and is gone with its process."
)


def _why_not(engine, case: str, came: str) -> str:
    """The likely cause, from what has come so far, and from the notes."""
    if came == "R":
        return "One piece goes from `free` to `reserved`."
    if came == "L":
        return "Only what was reserved can be released: look for the note of RESERVE_INVENTORY."
    if came == "RL":
        return "The piece goes back from `reserved` to `free`."
    if came.startswith("L") and came.endswith("R"):
        noted = f"SELECT 1 FROM notes WHERE saga_id = 'saga-{case}' AND step = 'RELEASE_INVENTORY'"
        if _ask(engine, noted):
            return "The release was here first and has left its note, but the reservation does not look for it."
        return "The release was here first and has left no note: it has to, even if there is nothing to release."
    return "The same message came twice: `note` gives False then."


_NOTES = '''
def noted(transaction, message, step):
    """Is there a note that this saga has been through this step?"""
    found = text("SELECT 1 FROM notes WHERE saga_id = :saga_id AND step = :step")
    return transaction.execute(found, {"saga_id": message["saga_id"], "step": step}).first() is not None


def note(transaction, message):
    """Note this message's step; False if the note was there already."""
    written = text("INSERT INTO notes VALUES (:saga_id, :step) ON CONFLICT DO NOTHING RETURNING step")
    return transaction.execute(written, message).first() is not None


reserve_one = text("UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = :item")
release_one = text("UPDATE stock SET free = free + 1, reserved = reserved - 1 WHERE item = :item")

'''

q3 = Question(
    "q3",
    wants=("reserve_inventory", "release_inventory"),
    starter=_NOTES
    + """
def reserve_inventory(transaction, message):
    if note(transaction, message):
        transaction.execute(reserve_one, message["data"])


def release_inventory(transaction, message):
    transaction.execute(release_one, message["data"])
""",
    solution=_NOTES
    + """
def reserve_inventory(transaction, message):
    if note(transaction, message) and not noted(transaction, message, "RELEASE_INVENTORY"):
        transaction.execute(reserve_one, message["data"])


def release_inventory(transaction, message):
    if note(transaction, message) and noted(transaction, message, "RESERVE_INVENTORY"):
        transaction.execute(release_one, message["data"])
""",
    judge=_judge_reserve_and_release,
    hints=[
        "Write down what may arrive: reservation, release, each of them twice, and the release first.",
        "A release that finds nothing to release still has to be remembered. By what?",
        "Both begin with `note(…)`. The reservation then looks for the release's note, the release for the "
        "reservation's.",
    ],
    why="A deadline fires without knowing where the action is; the note makes 'never' out of 'not yet'.",
    deadline=60,
)


# -- q4: the orchestrator


def _reply_in_a_process(url: str, on_reply, message: dict) -> None:
    with create_engine(url, poolclass=NullPool).begin() as transaction:
        print("gives", repr(on_reply(transaction, message)))


def _judge_on_reply(lab, on_reply):
    engine = _engine(lab, "CREATE TABLE sagas (saga_id text PRIMARY KEY, waits_for text)")
    elsewhere = as_it_is(on_reply)
    waits_for = {f"saga-{number}": "CREATE_ORDER" for number in range(1, 5)}
    with engine.begin() as connection:
        for saga in waits_for:
            connection.execute(text("INSERT INTO sagas VALUES (:saga, 'CREATE_ORDER')"), {"saga": saga})

    def reply(number, step, outcome, wanted, cause, moves=True, commit=True, when=""):
        message = _message(f"saga-{number}", step) | {"outcome": outcome}
        with engine.connect() as connection:
            transaction = connection.begin()
            command = lab.call(on_reply, connection, message, gives=(str, type(None)))
            if commit:
                transaction.commit()
        told = f"'{step} {outcome}' of saga-{number}{when}"
        if command != wanted:
            raise Wrong(f"to {told} your function gave {command!r}", repr(wanted), cause)
        if moves and commit:
            waits_for[f"saga-{number}"] = wanted
            cause = "The row says what the saga waits for. It moves on with each command, and no other row does."
        found = dict(_ask(engine, "SELECT saga_id, waits_for FROM sagas"))
        for saga in waits_for | found:
            state, expected = found.get(saga, "no row"), waits_for.get(saga, "no row")
            if state != expected:
                raise Wrong(f"after {told}, {saga} waits for {state!r}", repr(expected), cause)

    twice = "This reply came twice, and the command goes out twice: what is the saga waiting for by now?"
    plan = "The plan has the step after 'done' first, and the one after 'refused' second."
    reply(1, "CREATE_ORDER", "done", "RESERVE_INVENTORY", plan)
    reply(1, "CREATE_ORDER", "done", None, twice, moves=False)
    other = "Every saga has its own row: mind the `saga_id`."
    reply(2, "CREATE_ORDER", "done", "RESERVE_INVENTORY", other)
    reply(2, "RESERVE_INVENTORY", "refused", "CANCEL_ORDER", plan)
    reply(1, "RESERVE_INVENTORY", "done", "PROCESS_PAYMENT", other)
    reply(1, "PROCESS_PAYMENT", "refused", "RELEASE_INVENTORY", plan)
    late = "The saga is further on already: a late reply must change nothing."
    reply(1, "RESERVE_INVENTORY", "done", None, late, moves=False)
    reply(2, "CANCEL_ORDER", "done", None, "There is no step after this one.")
    reply(2, "CANCEL_ORDER", "done", None, twice, moves=False)
    reply(9, "CREATE_ORDER", "done", None, "`sagas` has no row for this saga: it waits for nothing.", moves=False)

    # the orchestrator dies before its transaction is committed, and the reply comes again
    reply(3, "CREATE_ORDER", "done", "RESERVE_INVENTORY", plan, commit=False, when=", before a death")
    reply(3, "CREATE_ORDER", "done", "RESERVE_INVENTORY", _MEMORY, when=", again after a death before the commit")

    given = []

    def answer(number):  # each statement is refused once
        message = _message(f"saga-{100 + number}", "CREATE_ORDER") | {"outcome": "done"}
        with engine.begin() as connection:
            given[:] = [lab.call(on_reply, connection, message, gives=(str, type(None)))]

    def has_moved(number):
        waits = _ask(engine, f"SELECT waits_for FROM sagas WHERE saga_id = 'saga-{100 + number}'")
        return (waits, given) == ([("RESERVE_INVENTORY",)], ["RESERVE_INVENTORY"])

    with engine.begin() as connection:
        for number in range(1, 11):
            connection.execute(
                text("INSERT INTO sagas VALUES (:saga, 'CREATE_ORDER')"), {"saga": f"saga-{100 + number}"}
            )
    lets_errors_out(engine, lambda number: lambda: answer(number), has_moved, most=10)

    with engine.connect() as connection:  # two orchestrators have the same reply at the same moment
        message = _message("saga-4", "CREATE_ORDER") | {"outcome": "done"}
        lab.call(on_reply, connection, message, gives=(str, type(None)))
        worker = _worker(lab, _reply_in_a_process, _url(engine), elsewhere, message, environment=OTHER_SEED)
        wait_until(lambda: _waiting(engine) or worker.state != "running", "the second reply", timeout=60)
        connection.commit()
    _has_ended(worker)
    if _last_line(worker) != "gives None":
        cause = "Between a SELECT and an UPDATE another process can do the same. Let the UPDATE look at `waits_for`."
        both = "two processes had the same reply at the same moment, and both gave the command"
        raise Wrong(both, "one command", cause)
    _first_orchestrator_dies(lab, engine, on_reply, elsewhere)
    return "replies late, twice, at the same moment, and after a death: each command goes out once"


def _first_orchestrator_dies(lab, engine, on_reply, elsewhere) -> None:
    """Two orchestrators have the same reply; the first one dies before its commit."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO sagas VALUES ('saga-200', 'CREATE_ORDER')"))
    message = _message("saga-200", "CREATE_ORDER") | {"outcome": "done"}
    with engine.connect() as connection:
        lab.call(on_reply, connection, message, gives=(str, type(None)))
        worker = _worker(lab, _reply_in_a_process, _url(engine), elsewhere, message, environment=OTHER_SEED)
        wait_until(lambda: _waiting(engine) or worker.state != "running", "the second reply", timeout=60)
        connection.rollback()
    if worker.wait(timeout=60) == "ended" and _last_line(worker) != "gives 'RESERVE_INVENTORY'":
        told = "two had the same reply, and the first died before its commit; the second gave no command"
        raise Wrong(told, "'RESERVE_INVENTORY': the reply will not come again", _SKIPPED)


_PLAN = '''
PLAN = {  # step: the next one when it is done, and when it is refused
    "CREATE_ORDER": ("RESERVE_INVENTORY", None),
    "RESERVE_INVENTORY": ("PROCESS_PAYMENT", "CANCEL_ORDER"),
    "PROCESS_PAYMENT": ("CONFIRM_ORDER", "RELEASE_INVENTORY"),
    "CONFIRM_ORDER": (None, "REFUND_PAYMENT"),
    "REFUND_PAYMENT": ("RELEASE_INVENTORY", None),
    "RELEASE_INVENTORY": ("CANCEL_ORDER", None),
    "CANCEL_ORDER": (None, None),
}


def on_reply(transaction, message):
    """Note the reply in the table `sagas`, and return the next command; None for the end, a late or a second reply."""
    done, refused = PLAN[message["step"]]
    next_step = done if message["outcome"] == "done" else refused
'''

q4 = Question(
    "q4",
    wants=("on_reply",),
    starter=_PLAN + "    return next_step\n",
    solution=_PLAN
    + """    # the condition: a late reply changes no row, nor does a second one, even at the same moment
    move = "UPDATE sagas SET waits_for = :next WHERE saga_id = :saga_id AND waits_for = :step"
    names = {"next": next_step, "saga_id": message["saga_id"], "step": message["step"]}
    moved = transaction.execute(text(move), names).rowcount
    return next_step if moved else None
""",
    judge=_judge_on_reply,
    hints=[
        "The table `sagas (saga_id, waits_for)` has a row for each saga: the step whose reply it waits for.",
        "A reply counts only if its saga waits for just this step. One UPDATE can check that and move on.",
        "`UPDATE sagas SET waits_for = :next WHERE saga_id = :saga_id AND waits_for = :step`; its `rowcount` tells.",
    ],
    why="A state machine in the database is the whole of an orchestrator's safety: who comes late changes no row.",
    deadline=60,
)
