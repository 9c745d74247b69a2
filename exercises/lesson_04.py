"""Questions of lesson 04, event sourcing."""

import json
import sys
from collections import defaultdict

import cloudpickle
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.serializer import JsonSerializer

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from exercises.frame.sandbox import as_it_is
from helpers import Worker, wait_until
from helpers.pictures import capture_log, log_view

# What a judge runs in another process goes there by value: loading this module, and matplotlib with it, takes seconds.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

OTHER_SEED = {"PYTHONHASHSEED": "17"}  # another process: nothing is in its memory, and `hash` gives other numbers
JAN_1 = 1_767_225_600_000  # in milliseconds since 1970
DAY = 86_400_000
NOT_COMMITTED = (
    'An event counts that was aborted. Read with `isolation_level="read_committed"`, as `read_topic` does; '
    "Kafka's consumers don't by default."
)


def _abort(lab, topic: str, events: list[dict], **settings) -> None:
    """Events on the log that never happened: a transaction that is aborted."""
    producer = lab.producer(value_serializer=JsonSerializer(), transactional_id=lab.transactional_id())
    producer.init_transactions()
    producer.begin_transaction()
    for event in events:
        producer.send(topic, event, key=event["user_id"].encode(), **settings).get(timeout=10)
    producer.abort_transaction()
    producer.init_transactions()  # comes back when the marker is on the log


def _last_line(worker) -> str:
    lines = worker.output.strip().splitlines()
    return lines[-1] if lines else ""


def _call_in_a_process(connection, function, calls):
    """Call a function with a producer of this process and with what each call says; print what came back."""
    with KafkaProducer(**connection, value_serializer=JsonSerializer()) as producer:
        for arguments in calls:
            print(f"\nSAID {bool(function(producer, *arguments))}", flush=True)


# -- q1: the key

USERS = ["ann", "bob", "eve", "adam", "user 7", "user 8", "Zoë", "bo"]


def _judge_send_user_updated(lab, send_user_updated):
    topic, at_first = lab.topic(partitions=3), as_it_is(send_user_updated)
    producer = lab.producer(value_serializer=JsonSerializer())
    orders = [USERS, USERS[::-1], USERS[3:] + USERS[:3]]
    sent = [(user, {"home": f"house {house}"}) for house, users in enumerate(orders, 1) for user in users]
    for user, data in sent:
        try:
            lab.call(send_user_updated, producer, topic, user, data)
        except TypeError as error:
            if "serialized key" not in str(error):
                raise
            cause = "`send` takes bytes as a key: `.encode()` makes them of a str."
            raise Wrong(f"your code stopped with TypeError: {error}", "a key of bytes", cause) from None
    producer.flush()
    here = _check_events(lab, topic, sent)
    # The program is started again: in another process, which hears of the users in another order.
    elsewhere = [(topic, user, {"home": "house 9"}) for user in sorted(USERS)]
    worker = Worker(_call_in_a_process, lab.cluster.connection, at_first, elsewhere, environment=OTHER_SEED)
    lab.afterwards.callback(worker.kill)
    if (state := worker.wait(60)) != "ended":
        raise Wrong(f"in another process, your function {state}", "one that runs there, too", _last_line(worker))
    both = _check_events(lab, topic, sent + [call[1:] for call in elsewhere])
    picture = log_view(capture_log(lab.cluster, topic, label=_told), "What your function has sent, in two processes")
    _judge_places(here, both, picture)
    return picture


def _check_events(lab, topic, wanted: list) -> list:
    """The records of the topic, if they are these events."""
    records = lab.records(topic)
    picture = log_view(capture_log(lab.cluster, topic, label=_told), "What your function has sent")
    if len(records) != len(wanted):
        told = f"{len(records)} records for {len(wanted)} calls"
        raise Wrong(told, "one event for each call", "Send each event once.", picture)
    found = [json.loads(record.value) for record in records]
    for user, data in wanted:
        if not any(
            isinstance(event, dict) and (event.get("type"), event.get("user_id"), event.get("data"))
            == ("USER_UPDATED", user, data) for event in found
        ):  # fmt: skip
            told = f"there is no event that {user} has moved to {data['home']}; the first one is {found[0]}"
            raise Wrong(told, "events as in the starter", "Only the place was to change.", picture)
    keys = {record.key for record in records}
    if len(keys) == 1 and keys != {None}:
        raise Wrong(
            f"all records have the key {keys.pop()!r}",
            "a key for each user",
            "With one key for all, everything goes to one partition, whatever their number.",
            picture,
        )
    return records


def _judge_places(here: list, both: list, picture) -> None:
    """Each user on one partition, with one key or none, in both processes; not all users on the same partition."""
    if len({record.partition for record in both}) == 1:
        raise Wrong(
            "all users on one partition",
            "users on several partitions",
            "A fixed `partition` keeps the order, and gives up all that the other partitions were for.",
            picture,
        )
    changing = "The key has something in it that changes from event to event."
    if {record.key for record in both} == {None}:
        changing = "There is no key, and the partition changes from event to event."
    elsewhere = (
        "`hash()` of a str gives another number in each process, and a number that is given in memory begins anew. "
        "The bytes of the id stay."
    )
    for records, said, cause in ((here, "", changing), (both, " when another process sends, too", elsewhere)):
        for name in ("partition", "key"):
            if users := _several(records, name):
                told = f"more than one {name} for {', '.join(users)}{said}"
                raise Wrong(told, "each user's events on one partition, and one key at most", cause, picture)
    owners = defaultdict(set)
    for record in both:
        owners[record.key].add(json.loads(record.value)["user_id"])
    shared = [sorted(users) for key, users in owners.items() if key is not None and len(users) > 1]
    if shared:
        raise Wrong(
            f"one key for {' and '.join(shared[0])}",
            "a key for each user",
            "A key says whose event it is: compaction keeps the last record of each key, and a tombstone deletes it.",
            picture,
        )


def _several(records: list, name: str) -> list[str]:
    """The users whose records have more than one partition, or key."""
    found = defaultdict(set)
    for record in records:
        found[json.loads(record.value)["user_id"]].add(getattr(record, name))
    return sorted(user for user, places in found.items() if len(places) > 1)


def _told(record) -> str:
    event = json.loads(record.value)
    try:
        return f"{event['user_id']} → {event['data']['home']}"
    except (KeyError, TypeError):
        return "?"


_SEND_USER_UPDATED = '''
def send_user_updated(producer, topic, user_id, data):
    """Send the event that a user was updated; a user's events stay in order."""
    producer.send(topic, {"type": "USER_UPDATED", "user_id": user_id, "data": data})
'''

q1 = Question(
    "q1",
    wants=("send_user_updated",),
    starter=_SEND_USER_UPDATED,
    solution=_SEND_USER_UPDATED.replace('"data": data})', '"data": data}, key=user_id.encode())'),
    judge=_judge_send_user_updated,
    hints=[
        "Kafka keeps the order within a partition. What decides to which partition a record goes?",
        "`send` takes a `key`, as bytes: `user_id.encode()`. They are the same in every process, as `hash()` is not.",
    ],
    why="The key decides the partition, and by that what stays in order; without it a fold may give any state.",
    deadline=30,
)


# -- q2: time travel


def _fold(events) -> dict:
    users: dict = {}
    for event in events:
        users.setdefault(event["user_id"], {}).update(event["data"])
    return users


def _until(records, moment) -> dict:
    return _fold(record.value for record in records if record.timestamp <= moment)


def _up_to_the_first_later_one(records, moment) -> list:
    return records[: next((n for n, record in enumerate(records) if record.timestamp > moment), len(records))]


#: What plausible wrong answers give from the committed records, from all and from those of before; and why.
_ASTRAY = [
    (
        "The fold ends at the first record that is later than the moment. Timestamps need not ascend: after it come "
        "earlier ones, of senders whose clocks differ. Look at each record.",
        lambda good, every, old, moment: _fold(record.value for record in _up_to_the_first_later_one(good, moment)),
    ),
    (
        "What happened *at* the moment has happened: `<=`, not `<`.",
        lambda good, every, old, moment: _until(good, moment - 1),
    ),
    (
        "The records were sorted by their timestamps. Fold them in the order of their offsets: senders' clocks differ.",
        lambda good, every, old, moment: _until(sorted(good, key=lambda record: record.timestamp), moment),
    ),
    (NOT_COMMITTED, lambda good, every, old, moment: _until(every, moment)),
    (
        "An event says what changed: `update` the user with it, instead of replacing the user.",
        lambda good, every, old, moment: {
            record.value["user_id"]: record.value["data"] for record in good if record.timestamp <= moment
        },
    ),
    (
        "All events were folded, later ones too: look at each record's `timestamp`.",
        lambda good, every, old, moment: _fold(record.value for record in good),
    ),
    (
        "An event is missing that came after an earlier call. Read the topic in each call.",
        lambda good, every, old, moment: _until(old, moment),
    ),
]


def _judge_users_at(lab, users_at):
    topic = lab.topic(config={"retention.ms": -1})
    producer = lab.producer(value_serializer=JsonSerializer())

    def tell(user, day, data):
        event = {"user_id": user, "data": data}
        producer.send(topic, event, key=user.encode(), timestamp_ms=JAN_1 + day * DAY).get(timeout=10)

    for day in range(4):
        for user in ("ann", "bob"):
            tell(user, day, {"home": f"house {day + 1}"} | ({} if day else {"name": user}))
    _abort(lab, topic, [{"user_id": "ann", "data": {"home": "house 0"}}], timestamp_ms=JAN_1)
    tell("eve", 1, {"name": "eve"})  # the clock of this sender is behind
    tell("bob", 0, {"mail": "bob@shop"})
    tell("ann", 2, {"home": "house 5"})  # her last event, and not the one with the latest timestamp
    moments = {
        "a moment after the third day's events": JAN_1 + 2 * DAY + 1000,
        "exactly the moment of the second day's events": JAN_1 + DAY,
        "a moment after all events": JAN_1 + 9 * DAY,
        "a moment before all events": JAN_1 - DAY,
        "exactly the moment of the first day's events": JAN_1,
        "a moment after all events, when one more has come": JAN_1 + 9 * DAY,
    }
    old, piled = [], {}
    for said, moment in moments.items():
        if said.endswith("has come"):
            tell("eve", 3, {"home": "house 9"})
        users = lab.call(users_at, lab.cluster.connection, topic, moment, gives=dict)
        good, every = (
            lab.records(topic, isolation_level=level, value_deserializer=JsonSerializer())
            for level in ("read_committed", "read_uncommitted")
        )
        wanted = _until(good, moment)
        for record in good:  # as a function does that never begins anew
            if record.timestamp <= moment:
                piled.setdefault(record.value["user_id"], {}).update(record.value["data"])
        if users != wanted:
            causes = (cause for cause, gives in _ASTRAY if users and users == gives(good, every, old, moment))
            cause = next(causes, "Fold only the records whose `timestamp` is not later than the moment.")
            if users == piled:
                cause = "Users of an earlier call are still there. Begin each call with an empty dict."
            raise Wrong(f"for {said}: {users}", f"{wanted}", cause)
        old = good
    return f"{len(moments)} moments, and the right state at each"


q2 = Question(
    "q2",
    wants=("users_at",),
    starter='''
def users_at(connection, topic, moment):
    """The users as they were at a moment: {user_id: {...}}, from events {"user_id": ..., "data": {...}}."""
    users = {}
    for record in read_topic(connection, topic, value_deserializer=JsonSerializer()):
        event = record.value
        users.setdefault(event["user_id"], {}).update(event["data"])
    return users
''',
    solution='''
def users_at(connection, topic, moment):
    """The users as they were at a moment: {user_id: {...}}, from events {"user_id": ..., "data": {...}}."""
    users = {}
    for record in read_topic(connection, topic, value_deserializer=JsonSerializer()):
        if record.timestamp <= moment:  # of each record: clocks differ, and behind a later one stand earlier ones
            event = record.value
            users.setdefault(event["user_id"], {}).update(event["data"])
    return users
''',
    judge=_judge_users_at,
    hints=[
        "The starter folds everything. Which records did not exist yet at that moment?",
        "Each record has a `timestamp`, in milliseconds since 1970, as `moment` is. They need not ascend: "
        "look at each.",
    ],
    why="A table knows today only; a log can answer for any day that it has kept.",
    deadline=20,
)


# -- q3: from a snapshot


def _sums(spent, users=()) -> dict:
    sums: dict = dict(users)
    for user, amount in spent:
        sums[user] = sums.get(user, 0) + amount
    return sums


def _judge_spent_from(lab, spent_from):
    topic = lab.topic()
    producer = lab.producer(value_serializer=JsonSerializer())

    def spend(user, amount):
        producer.send(topic, {"user_id": user, "spent": amount}, key=user.encode()).get(timeout=10)

    for user, amount in [("ann", 1), ("bob", 2), ("ann", 4)]:
        spend(user, amount)
    _abort(lab, topic, [{"user_id": "ann", "spent": 1000}])
    for user, amount in [("bob", 8), ("ann", 16), ("eve", 32), ("bob", 64), ("ann", 128)]:
        spend(user, amount)
    events = _spent(lab.records(topic, value_deserializer=JsonSerializer()))  # committed ones: offset to (user, amount)
    offsets, old = sorted(events), {}
    # What is in each snapshot, and how many of these events have not been deleted yet.
    for taken, left in ((2, 2), (0, 0), (3, 0), (4, 1), (6, 2), (len(events), 1), (4, 0)):
        snapshot = {"users": _sums(events[offset] for offset in offsets[:taken])}
        snapshot["next"] = offsets[taken - 1] + 1 if taken else 0
        if (taken, left) == (4, 0):  # an older snapshot, of which the topic has what it needs; and one more event
            snapshot = {"users": _sums(events[offset] for offset in offsets[: len(events) - 1]), "next": offsets[-1]}
            spend("eve", 256)
            events = events | _spent(lab.records(topic, value_deserializer=JsonSerializer()))
        elif taken - left > 0:
            _archive(lab, topic, offsets[taken - left] if left else snapshot["next"])
        _judge_sums(lab, spent_from, topic, snapshot, events, old)
        old = events
    return "seven snapshots, and the right sums from each"


def _spent(records) -> dict:
    return {record.offset: (record.value["user_id"], record.value["spent"]) for record in records}


def _archive(lab, topic, offset) -> None:
    with KafkaAdminClient(**lab.cluster.connection) as admin:
        admin.delete_records({TopicPartition(topic, 0): offset})
    wait_until(lambda: capture_log(lab.cluster, topic).lanes[0].start == offset, "the archived events to be gone")


def _judge_sums(lab, spent_from, topic, snapshot, events, old) -> None:
    following, users = snapshot["next"], dict(snapshot["users"])
    handed = {"users": dict(users), "next": following}
    found = dict(lab.call(spent_from, lab.cluster.connection, topic, handed, gives=dict))
    every = lab.records(topic, isolation_level="read_uncommitted", value_deserializer=JsonSerializer())
    start = capture_log(lab.cluster, topic).lanes[0].start
    on_topic = [offset for offset in sorted(events) if offset >= start]
    after = [events[offset] for offset in on_topic if offset >= following]
    wanted = _sums(after, users)
    picture = log_view(capture_log(lab.cluster, topic), f"On the topic; the snapshot's next: {following}")
    if found == wanted:
        if handed != {"users": users, "next": following}:
            raise Wrong(
                "your function has changed the snapshot that it was given",
                "a snapshot that is the same afterwards: the next call begins with it",
                'Begin with a copy: `dict(snapshot["users"])`.',
                picture,
            )
        return
    in_it = [events[offset] for offset in on_topic if offset < following]
    last = [events[offset] for offset in on_topic if offset == following - 1]
    read_before = [old[offset] for offset in sorted(old) if offset >= following]
    said = "The events before `next` were counted twice: they are in the snapshot already."
    skipped = f"`next` is the first offset that is *not* in the snapshot: {following} was skipped."
    causes = [
        (users, "This is the snapshot itself: the events after it are missing."),
        (_sums(last + after, users), f"The event at offset {following - 1} was counted twice: it is in the snapshot."),
        (_sums(in_it + after, users), said),
        (_sums(after[1:], users), skipped if in_it else "The first record of the topic was left out, whatever it was."),
        (_sums(in_it + after), "The snapshot's sums are missing: what came before is no longer on the topic."),
        (_sums(after), "The snapshot's sums are missing: what came before is no longer on the topic."),
        (_sums(_spent(r for r in every if r.offset >= following).values(), users), NOT_COMMITTED),
        (
            _sums(read_before, users),
            "An event is missing that came after an earlier call. Read the topic in each call.",
        ),
    ]
    otherwise = "Begin with the snapshot's users, and add what stands from `next` on. Offsets have gaps: don't count."
    raise Wrong(f"{found}", f"{wanted}", next((c for sums, c in causes if sums == found), otherwise), picture)


q3 = Question(
    "q3",
    wants=("spent_from",),
    starter='''
def spent_from(connection, topic, snapshot):
    """How much each user has spent: {user_id: sum}, from a snapshot {"users": {...}, "next": offset} and the topic."""
    users = {}
    for record in read_topic(connection, topic, value_deserializer=JsonSerializer()):
        event = record.value
        users[event["user_id"]] = users.get(event["user_id"], 0) + event["spent"]
    return users
''',
    solution='''
def spent_from(connection, topic, snapshot):
    """How much each user has spent: {user_id: sum}, from a snapshot {"users": {...}, "next": offset} and the topic."""
    users = dict(snapshot["users"])  # a copy: the caller's snapshot stays as it is
    for record in read_topic(connection, topic, value_deserializer=JsonSerializer()):
        if record.offset >= snapshot["next"]:
            event = record.value
            users[event["user_id"]] = users.get(event["user_id"], 0) + event["spent"]
    return users
''',
    judge=_judge_spent_from,
    hints=[
        "What does the state begin with, if not with nothing?",
        "A record that is in the snapshot must not be added again: compare `record.offset` with `next`.",
    ],
    why="With a snapshot the start takes as long as what came after it, however old the shop is.",
    deadline=40,
)


# -- q4: the expected version

_OF_OTHERS = "Count the events of this user only, those of others do not matter."
_AGAIN = "Another process has written since. Read the log in each call: Python's memory knows only its own process."


def _judge_append_if(lab, append_if):
    topic, at_first = lab.topic(partitions=3, config={"max.message.bytes": 2000}), as_it_is(append_if)
    producer = lab.producer(value_serializer=JsonSerializer(), linger_ms=300)
    futures, send = [], producer.send

    def watched(*arguments, **keywords):
        futures.append(send(*arguments, **keywords))
        return futures[-1]

    producer.send = watched

    def attempt(user, expected, wanted, said, cause):
        before = lab.records(topic)
        event = _moved(user, len(before))
        answer = lab.call(append_if, producer, lab.cluster.connection, topic, event, expected)
        too_early = not all(future.is_done for future in futures)
        producer.flush()
        written = len(lab.records(topic)) - len(before)
        if too_early:
            raise Wrong(
                f"{said}: your function returned {answer!r} while its event was on the way",
                "True once the event is acknowledged",
                "It was not acknowledged when your function returned: wait for the future.",
            )
        if answer is None or bool(answer) != wanted or written != wanted:
            if not wanted and not answer and written:
                cause = "Your function refused, and had written before: check first."
            told = "nothing was written" if not written else f"{written} written"
            raise Wrong(
                f"{said}: your function returned {answer!r}, and {told}",
                "True, and one event written" if wanted else "False, and nothing written",
                cause,
                log_view(capture_log(lab.cluster, topic, label=_told), "What is on the log"),
            )
        if wanted:
            _check_event(lab, topic, event)

    attempt("ann", 0, True, "Ann's first event, expected version 0", "A user without events has version 0.")
    attempt("bob", 0, True, "Bob's first event, expected version 0", _OF_OTHERS)
    attempt("ann", 1, True, "Ann's second event, expected version 1", _OF_OTHERS)
    attempt("ann", 1, False, "another one for Ann's version 1, which has passed", "Compare before you write.")
    attempt("ann", 5, False, "one for a version that Ann has not reached", "Versions must be equal, not just recent.")
    attempt("anna", 0, True, "Anna's first event, when Ann has two", "Anna is not Ann: compare the whole id.")
    attempt("ann", 2, True, "Ann's third event, when Anna has one", "Anna is not Ann: compare the whole id.")
    _abort(lab, topic, [_moved("bob", 90)])
    attempt("bob", 1, True, "Bob's second event; one of his was aborted before", NOT_COMMITTED)
    _restart(lab, at_first, topic)
    attempt("bob", 2, False, "one for Bob's version 2, when another process has written it", _AGAIN)
    attempt("bob", 3, True, "Bob's fourth event; the third one is of another process", _AGAIN)
    _refuse(lab, append_if, topic)
    return "of two writers with the same expected version, one was refused; in another process, too"


def _moved(user, house) -> dict:
    return {"type": "USER_UPDATED", "user_id": user, "data": {"home": f"house {house}"}}


def _check_event(lab, topic, event) -> None:
    written = [each for each in lab.records(topic) if json.loads(each.value) == event]
    if not written:
        raise Wrong(f"{event} is not on the log", "the event as it was handed over", "Send the whole event.")
    if written[0].key != event["user_id"].encode():
        raise Wrong(
            f"keys {sorted({str(record.key) for record in lab.records(topic)})}",
            "the user's id as the key of each event",
            "Without the key the events of a user do not stay together.",
        )


def _restart(lab, at_first, topic) -> None:
    """The writer is started again, with a memory in which there is nothing."""
    connection = lab.cluster.connection
    calls = [(connection, topic, _moved("bob", 100 + n), n) for n in (0, 2)]
    worker = Worker(_call_in_a_process, connection, at_first, calls, environment=OTHER_SEED)
    lab.afterwards.callback(worker.kill)
    if (state := worker.wait(60)) != "ended":
        raise Wrong(f"in another process, your function {state}", "one that runs there, too", _last_line(worker))
    said = [line == "SAID True" for line in worker.output.splitlines() if line.startswith("SAID ")]
    written = [json.loads(record.value)["data"]["home"] for record in lab.records(topic)]
    if said != [False, True] or "house 100" in written or "house 102" not in written:
        raise Wrong(
            f"started again, your function returned {said[0]} for Bob's version 0, and {said[-1]} for version 2",
            "False, then True: he has two events",
            "What Python's memory knew is gone after a restart: the versions are on the log.",
        )


def _refuse(lab, append_if, topic) -> None:
    """Kafka refuses an event that is too large: it was not appended."""
    producer = lab.producer(value_serializer=JsonSerializer())
    try:
        answer = append_if(producer, lab.cluster.connection, topic, _moved("eve", "x" * 4000), 0)
    except Exception:
        return
    if answer is None or answer:
        raise Wrong(
            f"Kafka refused an event of 4,000 characters, and your function returned {answer!r}",
            "an error, or False",
            "`flush` does not raise for a record that failed; its future does: `future.get(timeout=10)`.",
        )


q4 = Question(
    "q4",
    wants=("append_if",),
    starter='''
def append_if(producer, connection, topic, event, expected):
    """Append the event if its user has had `expected` events so far; return whether it was appended."""
    producer.send(topic, event, key=event["user_id"].encode()).get(timeout=10)
    return True
''',
    solution='''
def append_if(producer, connection, topic, event, expected):
    """Append the event if its user has had `expected` events so far; return whether it was appended."""
    key = event["user_id"].encode()
    version = sum(record.key == key for record in read_topic(connection, topic))
    if version != expected:
        return False
    producer.send(topic, event, key=key).get(timeout=10)  # raises for an event that is not on the log
    return True
''',
    judge=_judge_append_if,
    hints=[
        "How many events has the user had? `read_topic(connection, topic)` gives all records of the topic, "
        "those of other processes too.",
        "The key of each record is the user's id, as bytes: count those of this user.",
        "Compare first, return `False` if it differs; then send, wait for the future, and return `True`.",
    ],
    why="Kafka appends whatever comes; 'only if nothing has changed' is for the one writer to say.",
    deadline=40,
)
