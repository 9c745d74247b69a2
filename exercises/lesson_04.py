"""Questions of lesson 04, event sourcing."""

import json
from collections import defaultdict

from kafka import KafkaAdminClient, TopicPartition
from kafka.serializer import JsonSerializer

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import wait_until
from helpers.pictures import capture_log, log_view

USERS = ["ann", "bob", "eve"]
JAN_1 = 1_767_225_600_000  # in milliseconds since 1970
DAY = 86_400_000


# -- q1: the key


def _judge_send_user_updated(lab, send_user_updated):
    topic = lab.topic(partitions=3)
    producer = lab.producer(value_serializer=JsonSerializer())
    for house in range(1, 5):
        for user in USERS:
            lab.call(send_user_updated, producer, topic, user, {"home": f"house {house}"})
    producer.flush()
    records = lab.records(topic)
    picture = log_view(capture_log(lab.cluster, topic, label=_told), "What your function has sent")
    if len(records) != 12:
        raise Wrong(f"{len(records)} records for 12 calls", "one event for each call", "Send each event once.", picture)
    where = defaultdict(set)
    for record in records:
        event = json.loads(record.value)
        if event.get("type") != "USER_UPDATED" or event.get("user_id") not in USERS or "data" not in event:
            raise Wrong(f"the event {event}", "an event as in the starter", "Only the place was to change.", picture)
        where[event["user_id"]].add(record.partition)
    keys = {record.key for record in records}
    if keys == {None}:
        cause = "There is no key."
        if len({record.partition for record in records}) == 1:
            cause = "A fixed `partition` keeps the order, and gives up all that the other partitions were for."
        raise Wrong("records without a key", "the user's id as the key", cause, picture)
    if len(keys) == 1:
        raise Wrong(
            f"all records have the key {keys.pop()!r}",
            "a key for each user",
            "With one key for all, everything goes to one partition, whatever their number.",
            picture,
        )
    scattered = sorted(user for user, partitions in where.items() if len(partitions) > 1)
    if scattered or len(keys) != len(USERS):
        raise Wrong(
            f"{len(keys)} keys for {len(USERS)} users, and events on several partitions of {scattered or 'nobody'}",
            "one key for each user, the same in all events",
            "The key has something in it that changes from event to event.",
            picture,
        )
    return picture


def _told(record) -> str:
    event = json.loads(record.value)
    return f"{event['user_id']} → {event['data']['home']}"


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
        "`send` takes a `key`, as bytes: `user_id.encode()`.",
    ],
    why="The key decides the partition, and by that what stays in order; without it a fold may give any state.",
)


# -- q2: time travel


def _judge_users_at(lab, users_at):
    topic = lab.topic(config={"retention.ms": -1})
    producer = lab.producer(value_serializer=JsonSerializer())
    for day in range(4):
        for user in USERS[:2]:
            event = {"user_id": user, "data": {"home": f"house {day + 1}"} | ({} if day else {"name": user})}
            producer.send(topic, event, key=user.encode(), timestamp_ms=JAN_1 + day * DAY)
    producer.flush()
    for moment, house, said in [
        (JAN_1 + 2 * DAY + 1000, 3, "a moment after the third day's events"),
        (JAN_1 + DAY, 2, "exactly the moment of the second day's events"),
        (JAN_1 + 9 * DAY, 4, "a moment after all events"),
        (JAN_1 - DAY, 0, "a moment before all events"),
    ]:
        users = lab.call(users_at, lab.cluster.connection, topic, moment, gives=dict)
        wanted = {user: {"name": user, "home": f"house {house}"} for user in USERS[:2]} if house else {}
        if users != wanted:
            cause = "Fold only the records whose `timestamp` is not later than the moment."
            if house == 2 and users == {user: {"name": user, "home": "house 1"} for user in USERS[:2]}:
                cause = "What happened *at* the moment has happened: `<=`, not `<`."
            elif users and all("name" not in user for user in users.values()):
                cause = "An event says what changed: `update` the user with it, instead of replacing the user."
            elif house == 3 and users == {user: {"name": user, "home": "house 4"} for user in USERS[:2]}:
                cause = "All events were folded, later ones too: look at each record's `timestamp`."
            raise Wrong(f"for {said}: {users}", f"{wanted}", cause)
    return "four moments, and the right state at each"


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
        if record.timestamp <= moment:
            event = record.value
            users.setdefault(event["user_id"], {}).update(event["data"])
    return users
''',
    judge=_judge_users_at,
    hints=[
        "The starter folds everything. Which records did not exist yet at that moment?",
        "Each record has a `timestamp`, in milliseconds since 1970, as `moment` is.",
    ],
    why="A table knows today only; a log can answer for any day that it has kept.",
)


# -- q3: from a snapshot


def _judge_spent_from(lab, spent_from):
    topic = lab.topic()
    producer = lab.producer(value_serializer=JsonSerializer())
    spent = [("ann", 1), ("bob", 2), ("ann", 4), ("bob", 8), ("ann", 16), ("eve", 32), ("bob", 64)]
    for user, amount in spent:
        producer.send(topic, {"user_id": user, "spent": amount}, key=user.encode()).get(timeout=10)
    for following in (3, 4, len(spent)):
        first = following - 1  # one event stays that is in the snapshot already
        with KafkaAdminClient(**lab.cluster.connection) as admin:
            admin.delete_records({TopicPartition(topic, 0): first})
        wait_until(
            lambda first=first: capture_log(lab.cluster, topic).lanes[0].start == first,
            "the archived events to be gone",
        )
        users = _sums(spent[:following])
        snapshot = {"users": dict(users), "next": following}
        found = lab.call(spent_from, lab.cluster.connection, topic, snapshot, gives=dict)
        wanted = _sums(spent)
        if dict(found) != wanted:
            twice = _sums([*spent, spent[following - 1]])
            cause = "Begin with the snapshot's users, and add what stands from `next` on."
            if dict(found) == users:
                cause = "This is the snapshot itself: the events after it are missing."
            elif dict(found) == twice:
                cause = f"The event at offset {following - 1} was counted twice: it is in the snapshot already."
            elif following < len(spent) and dict(found) == _sums(spent[:following] + spent[following + 1 :]):
                cause = f"`next` is the first offset that is *not* in the snapshot: {following} was skipped."
            elif dict(found) == _sums(spent[following - 1 :]) or dict(found) == _sums(spent[following:]):
                cause = "The snapshot's sums are missing: what came before is no longer on the topic."
            picture = log_view(capture_log(lab.cluster, topic), f"On the topic; the snapshot's next: {following}")
            raise Wrong(f"{dict(found)}", f"{wanted}", cause, picture)
    return "three snapshots, and the right sums from each"


def _sums(spent) -> dict:
    sums = {}
    for user, amount in spent:
        sums[user] = sums.get(user, 0) + amount
    return sums


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
    users = dict(snapshot["users"])
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
    deadline=20,
)


# -- q4: the expected version


def _judge_append_if(lab, append_if):
    topic = lab.topic()
    producer = lab.producer(value_serializer=JsonSerializer(), linger_ms=300)
    futures, send = [], producer.send

    def watched(*arguments, **keywords):
        futures.append(send(*arguments, **keywords))
        return futures[-1]

    producer.send = watched

    def attempt(user, expected, wanted, said, cause):
        before = len(lab.records(topic))
        event = {"type": "USER_UPDATED", "user_id": user, "data": {"home": f"house {before}"}}
        answer = lab.call(append_if, producer, lab.cluster.connection, topic, event, expected)
        too_early = not all(future.is_done for future in futures)
        producer.flush()
        written = len(lab.records(topic)) - before
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
            picture = log_view(capture_log(lab.cluster, topic, label=_told), "What is on the log")
            raise Wrong(
                f"{said}: your function returned {answer!r}, and {told}",
                "True, and one event written" if wanted else "False, and nothing written",
                cause,
                picture,
            )

    of_others = "Count the events of this user only, those of others do not matter."
    attempt("ann", 0, True, "Ann's first event, expected version 0", "A user without events has version 0.")
    attempt("bob", 0, True, "Bob's first event, expected version 0", of_others)
    attempt("ann", 1, True, "Ann's second event, expected version 1", of_others)
    attempt("ann", 1, False, "another one for Ann's version 1, which has passed", "Compare before you write.")
    attempt("ann", 5, False, "one for a version that Ann has not reached", "Versions must be equal, not just recent.")
    if any(record.key != json.loads(record.value)["user_id"].encode() for record in lab.records(topic)):
        raise Wrong(
            f"keys {[record.key for record in lab.records(topic)]}",
            "the user's id as the key of each event",
            "Without the key the events of a user do not stay together.",
        )
    return "of two writers with the same expected version, one was refused"


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
    producer.send(topic, event, key=key).get(timeout=10)
    return True
''',
    judge=_judge_append_if,
    hints=[
        "How many events has the user had? `read_topic(connection, topic)` gives all records of the topic.",
        "The key of each record is the user's id, as bytes: count those of this user.",
        "Compare first, return `False` if it differs; then send, wait for the future, and return `True`.",
    ],
    why="Kafka appends whatever comes; 'only if nothing has changed' is for the one writer to say.",
    deadline=20,
)
