"""Questions of lesson 06, saga."""

from contextlib import contextmanager

from kafka.serializer import JsonSerializer
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import Worker, wait_until
from helpers.pictures import capture_log, log_view

STOCK = """
CREATE TABLE stock (item text PRIMARY KEY, free int, reserved int);
INSERT INTO stock VALUES ('cup', 5, 0)
"""


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


# -- q1: a key, so that a saga's records stay in order


def _judge_send_step(lab, send_step):
    topic = lab.topic(partitions=3)
    producer = lab.producer(value_serializer=JsonSerializer())
    sagas = [f"saga-{number}" for number in range(1, 9)]
    steps = ["CREATE_ORDER", "RESERVE_INVENTORY", "PROCESS_PAYMENT", "CONFIRM_ORDER"]
    for step in steps:
        for saga in sagas:
            lab.call(send_step, producer, topic, _message(saga, step))
    lab.close_clients()
    records = lab.records(topic, value_deserializer=JsonSerializer())
    found = [(record.value["saga_id"], record.value["step"]) for record in records]
    if sorted(found) != sorted((saga, step) for saga in sagas for step in steps):
        raise Wrong(f"{len(found)} records on the topic", f"{len(sagas) * len(steps)}", "Send each message once.")
    log = capture_log(
        lab.cluster, topic, label=lambda record: JsonSerializer().deserialize(topic, None, record.value)["step"]
    )
    places = {saga: {r.partition for r in records if r.value["saga_id"] == saga} for saga in sagas}
    split = [saga for saga, partitions in places.items() if len(partitions) > 1]
    if split:
        keys = {record.key for record in records}
        cause = "Records with the same key go to the same partition. What is it that has to stay together?"
        if keys == {None}:
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
    deadline=15,
)


# -- q2: idempotent, and in one transaction


@contextmanager
def _held(engine, statement: str):
    """Hold what a statement locks; gives a function that tells whether somebody waits for it."""
    with engine.connect() as holder:
        holder.execute(text(statement))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        yield lambda: holder.execute(text(waiting)).scalar()


def _deliver(url: str, function, message: dict) -> None:
    function(create_engine(url, poolclass=NullPool), message)


def _kill_while_it_waits(lab, engine, lock: str, function, message: dict) -> None:
    """Deliver the message in a process that is killed when it waits for the lock."""
    url = engine.url.render_as_string(hide_password=False)
    with _held(engine, lock) as somebody_waits:
        worker = Worker(_deliver, url, function, message)
        lab.afterwards.callback(worker.kill)
        wait_until(lambda: somebody_waits() or worker.state != "running", "the statement", timeout=20)
        if worker.state.startswith("failed"):
            last = worker.output.strip().splitlines()[-1]
            raise Wrong(f"in a process of its own your function ended with {last}", "a function that works there too")
        worker.kill()


def _judge_reserve_once(lab, reserve_once):
    tables = STOCK + "; CREATE TABLE reservations (saga_id text PRIMARY KEY, item text)"
    engine = _engine(lab, tables)

    def deliver(number):
        lab.call(reserve_once, engine, _message(f"saga-{number}", "RESERVE_INVENTORY"))

    def expect(sagas, when, cause):
        ((free, reserved),) = _ask(engine, "SELECT free, reserved FROM stock")
        if (free, reserved) != (5 - sagas, sagas):
            wanted = f"{5 - sagas} free, {sagas} reserved"
            raise Wrong(f"{when}: {free} free, {reserved} reserved", wanted, cause)

    deliver(1)
    expect(1, "after one message", "One cup goes from `free` to `reserved`.")
    deliver(1)
    expect(1, "after the same message again", "`reservations` can tell: is this saga in it already?")
    deliver(2)
    expect(2, "after a message of another saga", "What came before is told by the saga's id, not by the item.")
    for number, (lock, when, cause) in enumerate(
        [
            (
                "SELECT * FROM stock FOR UPDATE",
                "killed before the stock was changed, and delivered again",
                "The note was committed on its own, before the work: whoever comes again believes it.",
            ),
            (
                "LOCK TABLE reservations IN EXCLUSIVE MODE",
                "killed before the note was written, and delivered again",
                "The work was committed on its own, before the note: nobody knows that it was done.",
            ),
        ],
        3,
    ):
        message = _message(f"saga-{number}", "RESERVE_INVENTORY")
        _kill_while_it_waits(lab, engine, lock, reserve_once, message)
        deliver(number)
        expect(number, when, cause)
    return "delivered twice, killed twice: one cup for each of four sagas"


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
    with engine.begin() as transaction:
        new = transaction.execute(text(note), {"saga_id": message["saga_id"], **message["data"]}).first()
        if new:
            transaction.execute(text(reserve), message["data"])
''',
    judge=_judge_reserve_once,
    hints=[
        "The table `reservations (saga_id, item)` is there for a note that this saga has its piece already.",
        "`INSERT … ON CONFLICT DO NOTHING RETURNING saga_id` gives a row only if it wrote one.",
        "Note and work belong into the same `with engine.begin()`: then either both are there, or neither is.",
    ],
    why="Kafka may deliver any record twice; the database is where 'once' is decided.",
    deadline=60,
)


# -- q3: a compensation that comes first

_CUPS = {"R": "a reservation", "L": "a release"}


def _judge_reserve_and_release(lab, reserve_inventory, release_inventory):
    engine = _engine(lab, STOCK + "; CREATE TABLE notes (saga_id text, step text, PRIMARY KEY (saga_id, step))")
    before = 0
    for case in ["R", "RR", "RL", "RLL", "RLR", "LR", "LRL", "LLRR"]:
        for place, letter in enumerate(case, 1):
            function = reserve_inventory if letter == "R" else release_inventory
            step = "RESERVE_INVENTORY" if letter == "R" else "RELEASE_INVENTORY"
            with engine.begin() as transaction:
                lab.call(function, transaction, _message(f"saga-{case}", step))
            ((free, reserved),) = _ask(engine, "SELECT free, reserved FROM stock")
            wanted = before + ("L" not in case[:place])
            if (free, reserved) != (5 - wanted, wanted):
                came = ", then ".join(_CUPS[letter] for letter in case[:place])
                raise Wrong(
                    f"a saga got {came}: {reserved - before} reserved for it",
                    f"{wanted - before} reserved for it",
                    _why_not(engine, case, case[:place]),
                )
        before += "L" not in case
    return "in each of eight orders of arrival: the same cup is reserved at most once, and never after its release"


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
    deadline=20,
)


# -- q4: the orchestrator


def _judge_on_reply(lab, on_reply):
    engine = _engine(lab, "CREATE TABLE sagas (saga_id text PRIMARY KEY, waits_for text)")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO sagas SELECT 'saga-' || n, 'CREATE_ORDER' FROM generate_series(1, 2) n"))

    def reply(number, step, outcome, wanted, cause, waits_for=...):
        message = _message(f"saga-{number}", step) | {"outcome": outcome}
        with engine.begin() as transaction:
            command = lab.call(on_reply, transaction, message, gives=(str, type(None)))
        told = f"to '{step} {outcome}' of saga-{number}"
        if command != wanted:
            raise Wrong(f"{told} your function gave {command!r}", repr(wanted), cause)
        ((state,),) = _ask(engine, f"SELECT waits_for FROM sagas WHERE saga_id = 'saga-{number}'")
        expected = wanted if waits_for is ... else waits_for
        if state != expected:
            cause = "The row says what the saga waits for; it has to move on with each command that goes out."
            raise Wrong(f"after '{step} {outcome}', saga-{number} waits for {state!r}", repr(expected), cause)

    twice = "This reply came twice, and the command goes out twice: what is the saga waiting for by now?"
    plan = "The plan has the step after 'done' first, and the one after 'refused' second."
    reply(1, "CREATE_ORDER", "done", "RESERVE_INVENTORY", plan)
    reply(1, "CREATE_ORDER", "done", None, twice, waits_for="RESERVE_INVENTORY")
    other = "Every saga has its own row: mind the `saga_id`."
    reply(2, "CREATE_ORDER", "done", "RESERVE_INVENTORY", other)
    reply(2, "RESERVE_INVENTORY", "refused", "CANCEL_ORDER", plan)
    reply(1, "RESERVE_INVENTORY", "done", "PROCESS_PAYMENT", other)
    reply(1, "PROCESS_PAYMENT", "refused", "RELEASE_INVENTORY", plan)
    late = "The saga is further on already: a late reply must change nothing."
    reply(1, "RESERVE_INVENTORY", "done", None, late, waits_for="RELEASE_INVENTORY")
    reply(2, "CANCEL_ORDER", "done", None, "There is no step after this one.")
    reply(2, "CANCEL_ORDER", "done", None, twice)
    return "two sagas at once, with late and repeated replies: each command goes out once"


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
    + """    move = "UPDATE sagas SET waits_for = :next WHERE saga_id = :saga_id AND waits_for = :step"
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
    deadline=20,
)
