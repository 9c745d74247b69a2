"""The questions of lesson 04: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_04 import q1, q2, q3, q4
from tools.lessons import IMPORTS as SETUP


def test_q1(cluster):
    hold(
        q1,
        {
            q1.changed(", key=user_id.encode()", ", partition=0"): "fixed `partition`",
            q1.changed("key=user_id.encode()", 'key=b"USER_UPDATED"'): "one key for all",
            q1.changed("key=user_id.encode()", 'key=(user_id + data["home"]).encode()'): "changes from event to event",
            q1.changed(", key=user_id.encode()", ").get(timeout=10"): "There is no key",
        },
        cluster,
        SETUP,
    )


def test_q2(cluster):
    hold(
        q2,
        {
            q2.changed("<=", "<"): "`<=`, not `<`",
            q2.changed("record.timestamp <= moment", "record.offset <= moment"): "look at each record's `timestamp`",
            q2.changed(
                'users.setdefault(event["user_id"], {}).update(event["data"])',
                'users[event["user_id"]] = event["data"]',
            ): "instead of replacing",
        },
        cluster,
        SETUP,
    )


def test_q3(cluster):
    hold(
        q3,
        {
            q3.changed(">=", ">"): "was skipped",
            q3.changed('if record.offset >= snapshot["next"]', "if True"): "counted twice",
            q3.changed('dict(snapshot["users"])', "{}"): "sums are missing",
            'def spent_from(connection, topic, snapshot):\n    return snapshot["users"]': "the snapshot itself",
        },
        cluster,
        SETUP,
    )


def test_q4(cluster):
    hold(
        q4,
        {
            q4.changed("record.key == key for", "1 for"): "this user only",
            q4.changed("version != expected", "version < expected"): "Compare before you write",
            q4.changed("version != expected", "version > expected"): "equal, not just recent",
            q4.changed(".get(timeout=10)", ""): "not acknowledged",
            q4.changed("producer.send(topic, event, key=key)", "producer.send(topic, event)"): "",
            """
def append_if(producer, connection, topic, event, expected):
    producer.send(topic, event, key=event["user_id"].encode()).get(timeout=10)
    own = [record for record in read_topic(connection, topic) if record.key == event["user_id"].encode()]
    return len(own) == expected + 1
""": "had written before",
        },
        cluster,
        SETUP,
    )
