"""The questions of lesson 04: starter, solution, plausible wrong answers, each told apart, and unusual right ones."""

import pytest

from exercises.frame.testing import hold
from exercises.lesson_04 import q1, q2, q3, q4
from tests.answers import refused, right
from tools.lessons import IMPORTS as SETUP

SEND = 'producer.send(topic, {"type": "USER_UPDATED", "user_id": user_id, "data": data}'
KEY = "key=user_id.encode()"


def sending(arguments: str, before: str = "", first: str = "") -> str:
    """An answer to question 1: `before` the function, `first` in it."""
    return f"{before}\ndef send_user_updated(producer, topic, user_id, data):\n{first}    {SEND}, {arguments})\n"


def test_q1(cluster):
    wrong = {
        q1.changed(f", {KEY}", ", partition=0"): "fixed `partition`",
        q1.changed(KEY, 'key=b"USER_UPDATED"'): "one key for all",
        q1.changed(KEY, 'key=(user_id + data["home"]).encode()'): "changes from event to event",
        q1.changed(f", {KEY}", ").get(timeout=10"): "There is no key",
        q1.changed(KEY, "key=user_id"): "`.encode()`",
        q1.changed(KEY, "key=str(hash(user_id)).encode()"): "`hash()` of a str",
    }
    hold(q1, wrong, cluster, SETUP)


@pytest.mark.full
def test_q1_more(cluster):
    wrong = {
        sending("partition=hash(user_id) % 3"): "`hash()` of a str",
        sending("partition=places.setdefault(user_id, len(places) % 3)", "places = {}"): "begins anew",
        sending("key=str(numbers.setdefault(user_id, len(numbers))).encode()", "numbers = {}"): "in memory",
        sending("partition=next(turn) % 3", "import itertools\nturn = itertools.count()"): "from event to event",
        sending("key=user_id[:1].encode()"): "one key for",
        sending("key=uuid.uuid4().bytes", "import uuid"): "from event to event",
        sending("key=str(time.time()).encode()"): "from event to event",
        sending("key=topic.encode()"): "one key for all",
        sending("key=str(os.getpid()).encode() + user_id.encode()"): "`hash()` of a str",
        q1.answer + f"\n    {SEND}, {KEY})\n": "Send each event once",
        q1.changed('"data": data}', '"data": {"home": "house 1"}}'): "Only the place was to change",
    }
    refused(q1, wrong, cluster, SETUP)


@pytest.mark.full
def test_q1_unusual(cluster):
    count = "    count = len(producer.partitions_for(topic))\n"
    answers = [
        sending("partition=zlib.crc32(user_id.encode()) % count", "import zlib", count),  # stable, given explicitly
        sending("partition=int.from_bytes(hashlib.md5(user_id.encode()).digest()) % 3", "import hashlib"),
        sending("key=json.dumps(user_id).encode()"),
        sending("key=hashlib.sha256(user_id.encode()).digest()", "import hashlib"),
        sending('key=bytes(f"user/{user_id}", "utf-8")'),
    ]
    right(q1, answers, cluster, SETUP)


FOLD = 'users.setdefault(event["user_id"], {}).update(event["data"])'
READ = "read_topic(connection, topic, value_deserializer=JsonSerializer())"
BREAK = f"""
def users_at(connection, topic, moment):
    users = {{}}
    for record in {READ}:
        if record.timestamp > moment:
            break
        users.setdefault(record.value["user_id"], {{}}).update(record.value["data"])
    return users
"""
TAKES = f"""
def users_at(connection, topic, moment):
    users = {{}}
    for record in {READ}:
        if record.timestamp <= moment:
            users.setdefault(record.value["user_id"], {{}}).update(record.value["data"])
    return users
"""


def kept(answer: str, name: str) -> str:
    """The same with what was read kept in memory."""
    reads = f"{name}.extend([] if {name} else {READ})"
    first = answer.index("    for record in")
    return f"{name} = []\n" + answer[:first] + f"    {reads}\n" + answer[first:].replace(READ, name, 1)


def test_q2(cluster):
    wrong = {
        q2.changed("<=", "<"): "`<=`, not `<`",
        q2.changed("record.timestamp <= moment", "record.offset <= moment"): "look at each record's `timestamp`",
        q2.changed(FOLD, 'users[event["user_id"]] = event["data"]'): "instead of replacing",
        BREAK: "ends at the first record that is later",
    }
    hold(q2, wrong, cluster, SETUP)


@pytest.mark.full
def test_q2_more(cluster):
    by_offset = f"""
def users_at(connection, topic, moment):
    partition, users = TopicPartition(topic, 0), {{}}
    with KafkaConsumer(**connection) as consumer:
        found = consumer.offsets_for_times({{partition: moment + 1}})[partition]
    for record in {READ}:
        if found is None or record.offset < found.offset:
            users.setdefault(record.value["user_id"], {{}}).update(record.value["data"])
    return users
"""
    wrong = {
        "users = {}\n" + TAKES.replace("    users = {}\n", ""): "Begin each call with an empty dict",
        kept(TAKES, "records"): "Read the topic in each call",
        q2.changed(READ, f"sorted({READ}, key=lambda record: record.timestamp)"): "in the order of their offsets",
        q2.changed(READ, READ[:-1] + ', isolation_level="read_uncommitted")'): "was aborted",
        q2.changed("record.timestamp <= moment", "record.timestamp <= moment / 1000"): "Fold only the records",
        q2.changed("record.timestamp <= moment", "record.timestamp == moment"): "Fold only the records",
        by_offset: "ends at the first record that is later",
        q2.changed(FOLD, 'users[event["user_id"]] = {"home": event["data"].get("home")}'): "",
        q2.changed("    return users", '    return {user: data for user, data in users.items() if user != "eve"}'): "",
    }
    refused(q2, wrong, cluster, SETUP)


@pytest.mark.full
def test_q2_unusual(cluster):
    comprehension = f"""
def users_at(connection, topic, moment):
    then = [record.value for record in {READ} if not record.timestamp > moment]
    return {{
        user: {{name: value for event in then if event["user_id"] == user for name, value in event["data"].items()}}
        for user in {{event["user_id"] for event in then}}
    }}
"""
    default = f"""
from collections import defaultdict
def users_at(connection, topic, moment):
    users = defaultdict(dict)
    for record in {READ}:
        if record.timestamp > moment:
            continue
        users[record.value["user_id"]] |= record.value["data"]
    return users
"""
    own_consumer = """
def users_at(connection, topic, moment):
    consumer = KafkaConsumer(**connection, isolation_level="read_committed", enable_auto_commit=False)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning()
    (end,) = consumer.end_offsets([partition]).values()
    users = {}
    while consumer.position(partition) < end:
        for record in consumer.poll(timeout_ms=100).get(partition, []):
            event = json.loads(record.value)
            if record.timestamp < moment + 1:
                users[event["user_id"]] = {**users.get(event["user_id"], {}), **event["data"]}
    consumer.close()
    return users
"""
    right(q2, [comprehension, default, own_consumer], cluster, SETUP)


ADDS = f"""
def spent_from(connection, topic, snapshot):
    users = dict(snapshot["users"])
    for record in {READ}:
        if record.offset >= snapshot["next"]:
            users[record.value["user_id"]] = users.get(record.value["user_id"], 0) + record.value["spent"]
    return users
"""
SUM = 'users.get(event["user_id"], 0) + event["spent"]'


def test_q3(cluster):
    wrong = {
        q3.changed(">=", ">"): "was skipped",
        q3.changed('if record.offset >= snapshot["next"]', "if True"): "counted twice",
        q3.changed('dict(snapshot["users"])', "{}"): "sums are missing",
        'def spent_from(connection, topic, snapshot):\n    return snapshot["users"]': "the snapshot itself",
        q3.changed(READ, f"{READ}[1:]"): "The first record of the topic was left out",
        q3.changed('dict(snapshot["users"])', 'snapshot["users"]'): "has changed the snapshot",
    }
    hold(q3, wrong, cluster, SETUP)


@pytest.mark.full
def test_q3_more(cluster):
    counts = ADDS.replace("    for record", "    following = 0\n    for record").replace(
        "        if record.offset >=", "        following += 1\n        if following >"
    )
    wrong = {
        q3.changed('>= snapshot["next"]', '>= snapshot["next"] - 1'): "counted twice",
        q3.changed(READ, READ + '[snapshot["next"]:]'): "",
        q3.changed(READ, READ[:-1] + ', isolation_level="read_uncommitted")'): "was aborted",
        counts: "",
        kept(ADDS, "records"): "Read the topic in each call",
        "users = {}\n" + ADDS.replace("users = dict(", "users.update("): "",
        q3.changed(SUM, 'event["spent"]'): "",
        q3.changed(SUM, 'users[event["user_id"]] + event["spent"]'): "",
        q3.changed("    return users", '    return {u: s for u, s in users.items() if u in snapshot["users"]}'): "",
    }
    refused(q3, wrong, cluster, SETUP)


@pytest.mark.full
def test_q3_unusual(cluster):
    counters = f"""
from collections import Counter
def spent_from(connection, topic, snapshot):
    new = [record.value for record in {READ} if not record.offset < snapshot["next"]]
    return Counter(snapshot["users"]) + sum((Counter({{e["user_id"]: e["spent"]}}) for e in new), Counter())
"""
    seeks = """
def spent_from(connection, topic, snapshot):
    partition, users = TopicPartition(topic, 0), {**snapshot["users"]}
    with KafkaConsumer(
        **connection, isolation_level="read_committed", enable_auto_commit=False, value_deserializer=JsonSerializer()
    ) as consumer:
        consumer.assign([partition])
        (end,) = consumer.end_offsets([partition]).values()
        consumer.seek(partition, snapshot["next"])
        while consumer.position(partition) < end:
            for record in consumer.poll(timeout_ms=100).get(partition, []):
                users[record.value["user_id"]] = users.setdefault(record.value["user_id"], 0) + record.value["spent"]
    return users
"""
    pandas = f"""
def spent_from(connection, topic, snapshot):
    new = pd.DataFrame([(r.offset, r.value["user_id"], r.value["spent"]) for r in {READ}], columns=["o", "u", "s"])
    new = new[new.o >= snapshot["next"]].groupby("u").s.sum().to_dict()
    return {{user: snapshot["users"].get(user, 0) + int(new.get(user, 0)) for user in {{*snapshot["users"], *new}}}}
"""
    right(q3, [counters, seeks, pandas], cluster, SETUP)


COUNT = "sum(record.key == key for record in read_topic(connection, topic))"
WRITE = "producer.send(topic, event, key=key).get(timeout=10)"
IN_MEMORY = """
versions = {}
def append_if(producer, connection, topic, event, expected):
    key = event["user_id"].encode()
    if versions.get(key, 0) != expected:
        return False
    producer.send(topic, event, key=key).get(timeout=10)
    versions[key] = expected + 1
    return True
"""


def test_q4(cluster):
    written_first = """
def append_if(producer, connection, topic, event, expected):
    producer.send(topic, event, key=event["user_id"].encode()).get(timeout=10)
    own = [record for record in read_topic(connection, topic) if record.key == event["user_id"].encode()]
    return len(own) == expected + 1
"""
    wrong = {
        q4.changed("record.key == key for", "1 for"): "this user only",
        q4.changed("version != expected", "version < expected"): "Compare before you write",
        q4.changed("version != expected", "version > expected"): "equal, not just recent",
        q4.changed(".get(timeout=10)", ""): "not acknowledged",
        q4.changed("producer.send(topic, event, key=key)", "producer.send(topic, event)"): "the user's id as the key",
        written_first: "had written before",
        IN_MEMORY: "gone after a restart",
    }
    hold(q4, wrong, cluster, SETUP)


@pytest.mark.full
def test_q4_more(cluster):
    read_once = IN_MEMORY.replace(
        "    key =",
        "    for record in [] if versions else read_topic(connection, topic):\n"
        "        versions[record.key] = versions.get(record.key, 0) + 1\n    key =",
    )
    all_users = """
def append_if(producer, connection, topic, event, expected):
    with KafkaConsumer(**connection) as consumer:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        if sum(consumer.end_offsets(partitions).values()) != expected:
            return False
    producer.send(topic, event, key=event["user_id"].encode()).get(timeout=10)
    return True
"""
    one_partition = """
def append_if(producer, connection, topic, event, expected):
    version = len([r for r in read_topic(connection, topic) if r.partition == 0 and r.key == event["user_id"].encode()])
    if version != expected:
        return False
    producer.send(topic, event, key=event["user_id"].encode()).get(timeout=10)
    return True
"""
    swallows = f"\n    try:\n        {WRITE}\n    except Exception:\n        pass"
    wrong = {
        read_once: "Another process has written",
        q4.changed("topic))", 'topic, isolation_level="read_uncommitted"))'): "was aborted",
        q4.changed("record.key == key", "record.key.startswith(key)"): "Anna is not Ann",
        q4.changed("version != expected", "abs(version - expected) > 1"): "Compare before you write",
        q4.changed(".get(timeout=10)", "; producer.flush()"): "`flush` does not raise",
        q4.changed(WRITE, swallows): "returned True",
        q4.changed("topic, event, key=key", 'topic, event["data"], key=key'): "Send the whole event",
        q4.changed("return True", "return None"): "returned None",
        q4.changed("return False", "raise ValueError(version)"): "",
        all_users: "this user only",
        one_partition: "",
    }
    refused(q4, wrong, cluster, SETUP)


@pytest.mark.full
def test_q4_unusual(cluster):
    by_value = "len([1 for r in read_topic(connection, topic) if json.loads(r.value)['user_id'] == event['user_id']])"
    looks = "future = producer.send(topic, event, key=key)\n    producer.flush()\n    if future.failed():\n"
    counter = """
from collections import Counter
def append_if(producer, connection, topic, event, expected):
    versions = Counter(record.key.decode() for record in read_topic(connection, topic))
    if versions[event["user_id"]] == expected:
        try:
            producer.send(topic, event, key=bytes(event["user_id"], "utf-8")).get(timeout=20)
        except KafkaError:
            return False  # refused
        return True
    return False
"""
    answers = [q4.changed(COUNT, by_value), q4.changed(WRITE, looks + "        raise future.exception"), counter]
    right(q4, answers, cluster, SETUP)
