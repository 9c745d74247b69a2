"""The questions of lesson 09: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_09 import q1, q2, q3, q4
from tools.lessons import IMPORTS

SETUP = (
    IMPORTS
    + """
import random
import zlib
from kafka.partitioner import DefaultPartitioner, Partitioner, StickyPartitioner, murmur2
"""
)


def test_q1(cluster):
    key = 'order["customer"].encode()'
    hold(
        q1,
        {
            q1.changed(f", key={key}", ""): "random partition",
            q1.changed(key, "str(order).encode()"): "a key of its own",
            q1.changed(key, 'order["item"].encode()'): "do not stand for customers",
            q1.changed(key, 'b"order"'): "only one packer",
        },
        cluster,
        SETUP,
    )


def test_q2(cluster):
    hold(
        q2,
        {
            q2.changed("murmur2(customer.encode()) & 0x7FFFFFFF", "hash(customer)"): "`hash()` is another one",
            q2.changed(" & 0x7FFFFFFF", ""): "sign",
            q2.changed("!=", "=="): "that stay",
            q2.changed(".encode()", ""): "TypeError",
            q2.changed("moved.append(customer)", "pass"): "Compare",
        },
        cluster,
        SETUP,
    )


def test_q3(cluster):
    textbook = """
class LargeCustomersPartitioner(Partitioner):
    def __init__(self, large):
        self.large = large

    def partition(self, key, all_partitions, available_partitions):
        if key is None:
            return self.random(available_partitions)
        return hash(key) % len(available_partitions)
"""
    hashed = "(murmur2(serialized_key) & 0x7FFFFFFF)"
    choice = f"shared[{hashed} % len(shared)]"
    unkeyed = "        if serialized_key is None:\n            return random.choice(shared)\n"
    hold(
        q3,
        {
            textbook: "kafka-python 3 calls",
            q3.changed("[name.encode() for name in large]", "large"): "is bytes",
            q3.changed(hashed, "hash(serialized_key)"): "differs from process to process",
            q3.changed(choice, f"partitions[{hashed} % len(partitions)]"): "shared partitions",
            q3.changed("random.choice(shared)", "random.choice(partitions)"): "without a key",
            q3.changed(unkeyed, ""): "TypeError",
            q3.changed("cluster.partitions_for", "cluster.available_partitions_for"): "*available*",
            q3.changed(choice, "random.choice(shared)"): "on the key alone",
            q3.changed(choice, "shared[0]"): "hash of the key",
            q3.changed("partitions[-1 - self.large.index(serialized_key)]", "4 - self.large.index(serialized_key)"): (
                "partitions that the topic has"
            ),
        },
        cluster,
        SETUP,
    )


def test_q3_may_leave_the_rest_to_the_default_partitioner(cluster):
    delegating = """
class Without:
    def __init__(self, cluster, count):
        self.cluster, self.count = cluster, count

    def topics(self):
        return self.cluster.topics()

    def partitions_for_topic(self, topic):
        return set(sorted(self.cluster.partitions_for_topic(topic))[:-self.count])

    def available_partitions_for_topic(self, topic):
        return self.cluster.available_partitions_for_topic(topic) & self.partitions_for_topic(topic)


class LargeCustomersPartitioner(DefaultPartitioner):
    def __init__(self, large):
        self.large = large

    def partition(self, topic, key, serialized_key, value, serialized_value, cluster):
        if key and key.decode() in self.large:
            return len(cluster.partitions_for_topic(topic)) - 1 - self.large.index(key.decode())
        shared = Without(cluster, len(self.large))
        return super().partition(topic, key, serialized_key, value, serialized_value, shared)
"""
    outcome = q3.try_answer(delegating, cluster, SETUP)
    assert outcome.state == "right", outcome


def test_q4(cluster):
    drain_first = """
def move(connection, old, new, switch, pack, count):
    for record in read_topic(connection, old, value_deserializer=JsonSerializer()):
        pack(record.value)
    switch(new)
    for record in read_topic(connection, new, value_deserializer=JsonSerializer()):
        pack(record.value)
"""
    new_first = """
def move(connection, old, new, switch, pack, count):
    switch(new)
    for topic in (new, old):
        for record in read_topic(connection, topic, value_deserializer=JsonSerializer()):
            pack(record.value)
"""
    too_few = """
def move(connection, old, new, switch, pack, count):
    switch(new)
    rest = read_topic(connection, old, value_deserializer=JsonSerializer())
    after = read_topic(connection, new, value_deserializer=JsonSerializer())
    for record in rest + after:
        pack(record.value)
"""
    twice = """
def move(connection, old, new, switch, pack, count):
    for record in read_topic(connection, old, value_deserializer=JsonSerializer()):
        pack(record.value)
    switch(new)
    for topic in (old, new):
        for record in read_topic(connection, topic, value_deserializer=JsonSerializer()):
            pack(record.value)
"""
    hold(
        q4,
        {
            drain_first: "only after the switch",
            new_first: "before the old one was drained",
            too_few: "go on with the new one",
            twice: "packed twice",
            q4.changed("    switch(new)\n", "").replace("new, **", "old, **"): "never called",
            q4.changed('auto_offset_reset="earliest"', 'auto_offset_reset="latest"'): "go on with the new one",
        },
        cluster,
        SETUP,
    )
