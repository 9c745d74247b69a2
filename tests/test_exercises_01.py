"""The questions of lesson 01: starter, solution, and plausible wrong answers, each told apart."""

import pytest

from exercises.lesson_01 import q1, q2, q3, q4
from helpers.questions import hold

SETUP = """
import json
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.serializer import JsonSerializer
from helpers import read_topic, take
"""


def test_q1(cluster):
    hold(
        q1,
        {
            q1.changed('auto_offset_reset="earliest"', 'auto_offset_reset="latest"'): "auto_offset_reset",
            q1.changed(
                "[record.value for record in take(consumer, count, timeout=3)]", "take(consumer, count)"
            ): ".value",
            """
def read_orders(connection, topic, count):
    consumer = KafkaConsumer(topic, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest")
    return [message.value for message in consumer]
""": "loop without an end",
        },
        cluster,
        SETUP,
    )


def test_q2(cluster):
    send_only = "def place_order(producer, topic, order):\n    return producer.send(topic, order)"
    hold(
        q2,
        {
            send_only: "buffer only",
            q2.changed("return future.get(timeout=10).offset", "return 0"): "`flush` does not raise",
            q2.changed("return future.get(timeout=10).offset", "future.get(timeout=10)"): "offset",
        },
        cluster,
        SETUP,
    )


def test_q3(cluster):
    commit_in_batch = """
def pack_orders(consumer, count, pack):
    for record in take(consumer, count):
        pack(record.value)
        consumer.commit()
"""
    commit_first = q3.changed(
        "        pack(record.value)\n        consumer.commit()", "        consumer.commit()\n        pack(record.value)"
    )
    commit_at_end = """
def pack_orders(consumer, count, pack):
    for record in take(consumer, count):
        pack(record.value)
    consumer.commit()
"""
    wrong = {commit_in_batch: "position", commit_at_end: "commit after each", commit_first: "commit came before"}
    hold(q3, wrong, cluster, SETUP)


def test_q4(cluster):
    hold(
        q4,
        {
            q4.changed("producer.send(unreadable, record.value, key=record.key).get(timeout=10)", "pass"): "dropped",
            q4.changed(", key=record.key", ""): "key",
            q4.changed("record.value, key", "repr(record.value).encode(), key"): "as it came",
            q4.changed("except ValueError", "except json.JSONDecodeError"): "UnicodeDecodeError",
        },
        cluster,
        SETUP,
    )


@pytest.fixture(scope="module")
def cluster():
    from helpers import Cluster

    with Cluster() as cluster:
        yield cluster
