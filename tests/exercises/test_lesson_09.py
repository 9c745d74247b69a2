"""The questions of lesson 09: starter, solution, and plausible wrong answers, each told apart."""

# ruff: noqa: E501 (answers, as learners type them)

import pytest

from exercises.frame.testing import hold
from exercises.lesson_09 import q1, q2, q3, q4
from tests.answers import refused, right
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
        return set(sorted(self.cluster.partitions_for_topic(topic))[:-self.count or None])

    def available_partitions_for_topic(self, topic):
        return self.cluster.available_partitions_for_topic(topic) & self.partitions_for_topic(topic)


class LargeCustomersPartitioner(DefaultPartitioner):
    def __init__(self, large):
        self.large = [name.encode() for name in large]

    def partition(self, topic, key, serialized_key, value, serialized_value, cluster):
        if serialized_key in self.large:
            return len(cluster.partitions_for_topic(topic)) - 1 - self.large.index(serialized_key)
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
            q4.changed("    switch(new)", "    pass").replace("new, **", "old, **"): "never called",
            q4.changed('auto_offset_reset="earliest"', 'auto_offset_reset="latest"'): "go on with the new one",
        },
        cluster,
        SETUP,
    )


# -- more of both kinds -----------------------------------------------------------------------------------------------

K = 'key=order["customer"].encode()'
HH = "(murmur2(serialized_key) & 0x7FFFFFFF)"
CH = f"shared[{HH} % len(shared)]"
M = "def move(connection, old, new, switch, pack, count):\n"


@pytest.mark.full
def test_q1_more(cluster):
    wrong = {
        # hash partition
        q1.changed(K, 'partition=hash(order["customer"]) % len(producer.partitions_for(topic))'): "`hash()`",
        # hash partition 4
        q1.changed(K, 'partition=hash(order["customer"]) % 4'): "",
        # hash key
        q1.changed(K, 'key=str(hash(order["customer"])).encode()'): "`hash()`",
        # memory
        "where = {}\n"
        + q1.changed(
            K, 'partition=where.setdefault(order["customer"], len(where) % len(producer.partitions_for(topic)))'
        ): "the topic's matter",
        # crc 4
        "import zlib\n" + q1.changed(K, 'partition=zlib.crc32(order["customer"].encode()) % 4'): "number of partitions",
        # finer
        q1.changed('order["customer"].encode()', "f\"{order['customer']}/{order['item']}\".encode()"): "",
        # len
        q1.changed('order["customer"].encode()', 'bytes([len(order["customer"])])'): "only one packer",
        # str
        q1.changed(".encode()", ""): ".encode()",
        # partition 0
        q1.changed(K, "partition=0"): "only one packer",
        # twice
        q1.changed(
            "    return producer",
            "    producer.send(topic, order, key=order['customer'].encode())\n    return producer",
        ): "once",
        # value
        q1.changed("send(topic, order,", "send(topic, order['item'],"): "as it is",
        # id
        q1.changed(K, 'key=str(id(order["customer"])).encode()'): "",
        # random
        q1.changed(K, "partition=random.choice(list(producer.partitions_for(topic)))"): "own choice",
    }
    refused(q1, wrong, cluster, SETUP)


@pytest.mark.full
def test_q1_unusual(cluster):
    answers = [
        # crc
        "import zlib\n"
        + q1.changed(K, 'partition=zlib.crc32(order["customer"].encode()) % len(producer.partitions_for(topic))'),
        # json key
        q1.changed(K, 'key=json.dumps({"customer": order["customer"]}).encode()'),
        # get
        q1.changed("return producer", "producer").rstrip() + ".get(timeout=10)",
        # default partitioner
        "from kafka.partitioner import murmur2\n"
        + q1.changed(
            K, 'partition=(murmur2(order["customer"].encode()) & 0x7FFFFFFF) % len(producer.partitions_for(topic))'
        ),
    ]
    right(q1, answers, cluster, SETUP)


@pytest.mark.full
def test_q2_more(cluster):
    wrong = {
        # crc
        "import zlib\n"
        + q2.changed("murmur2(customer.encode()) & 0x7FFFFFFF", "zlib.crc32(customer.encode())"): "murmur2",
        # new partitions only
        q2.changed("number % before != number % after", "number % after >= before"): "",
        # all
        "def will_move(customers, before, after):\n    return list(customers)": "",
        # abs
        q2.changed("murmur2(customer.encode()) & 0x7FFFFFFF", "abs(murmur2(customer.encode()) - (1 << 32))"): "",
        # latin
        q2.changed("customer.encode()", 'customer.encode("ascii", "replace")'): "",
        # lower
        q2.changed("customer.encode()", "customer.lower().encode()"): "",
        # double
        q2.changed("moved.append(customer)", "moved += [customer, customer]"): "",
    }
    refused(q2, wrong, cluster, SETUP)


@pytest.mark.full
def test_q2_unusual(cluster):
    answers = [
        # set
        "def will_move(customers, before, after):\n    h = {c: murmur2(c.encode()) & 0x7FFFFFFF for c in customers}\n    return {c for c in h if h[c] % before != h[c] % after}",
        # partitioner
        """
def will_move(customers, before, after):
    class C:
        def __init__(self, n): self.n = n
        def partitions_for_topic(self, t): return set(range(self.n))
        def available_partitions_for_topic(self, t): return set(range(self.n))
        def topics(self): return {"t"}
    p = DefaultPartitioner()
    return [c for c in customers if p.partition("t", c, c.encode(), None, None, C(before)) != p.partition("t", c, c.encode(), None, None, C(after))]
""",
        # modulo
        "def will_move(customers, before, after):\n    return tuple(c for c in customers if murmur2(bytes(c, 'utf-8')) % 2**31 % before != murmur2(bytes(c, 'utf-8')) % 2**31 % after)",
    ]
    right(q2, answers, cluster, SETUP)


@pytest.mark.full
def test_q3_more(cluster):
    wrong = {
        # decode
        q3.changed("[name.encode() for name in large]", "large")
        .replace("if serialized_key in self.large", "if serialized_key.decode() in self.large")
        .replace("self.large.index(serialized_key)", "self.large.index(serialized_key.decode())"): "decode nothing",
        # falsy
        q3.changed("if serialized_key is None", "if not serialized_key"): "empty key",
        # minus
        q3.changed(
            "partitions[: len(partitions) - len(self.large)]", "partitions[: -len(self.large)]"
        ): "partitions[:-0]",
        # two
        q3.changed("partitions[: len(partitions) - len(self.large)]", "partitions[:-2]"): "from the list",
        # class
        q3.changed("self.large = [name", "LargeCustomersPartitioner.large = [name"): "second partitioner",
        # memory
        q3.changed(
            CH,
            "shared[self.__dict__.setdefault('seen', {}).setdefault(serialized_key, len(self.__dict__.get('seen', {}))) % len(shared)]",
        ): "differs from process",
        # cached count
        q3.changed(
            "        partitions = sorted(cluster.partitions_for_topic(topic))\n",
            "        self.p = partitions = self.__dict__.get('p') or sorted(cluster.partitions_for_topic(topic))\n",
        ): "",
        # reversed
        q3.changed(
            "partitions[-1 - self.large.index(serialized_key)]",
            "partitions[len(shared) + self.large.index(serialized_key)]",
        ): "",
        # value
        q3.changed("if serialized_key in self.large", "if serialized_value in self.large"): "",
    }
    refused(q3, wrong, cluster, SETUP)


@pytest.mark.full
def test_q3_unusual(cluster):
    answers = [
        # crc
        q3.changed(HH, "zlib.crc32(serialized_key)"),
        # dict
        """
class LargeCustomersPartitioner(Partitioner):
    def __init__(self, large):
        self.place = {name.encode(): -1 - n for n, name in enumerate(large)}
    def partition(self, topic, key, serialized_key, value, serialized_value, cluster):
        count = len(cluster.partitions_for_topic(topic))
        if serialized_key in self.place:
            return count + self.place[serialized_key]
        number = random.randrange(1 << 31) if serialized_key is None else murmur2(serialized_key) & 0x7FFFFFFF
        return number % (count - len(self.place))
""",
        # no mask
        q3.changed(HH, "murmur2(serialized_key)"),
        # first shared
        q3.changed("random.choice(shared)", "shared[0]"),
    ]
    right(q3, answers, cluster, SETUP)


@pytest.mark.full
def test_q4_more(cluster):
    wrong = {
        # one partition
        M
        + """
    switch(new)
    done = 0
    with KafkaConsumer(**connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest") as c:
        place = TopicPartition(old, 0)
        c.assign([place]); c.seek_to_beginning()
        end = c.end_offsets([place])[place]
        while c.position(place) < end:
            for records in c.poll(timeout_ms=200).values():
                for r in records: pack(r.value); done += 1
    with KafkaConsumer(new, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest") as consumer:
        for _ in range(count - done):
            (record,) = take(consumer, 1, timeout=2)
            pack(record.value)""": "",
        # one partition of new
        M
        + """
    switch(new)
    rest = read_topic(connection, old, value_deserializer=JsonSerializer())
    for record in rest: pack(record.value)
    with KafkaConsumer(**connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(new, 2)])
        for _ in range(count - len(rest)):
            (record,) = take(consumer, 1, timeout=2)
            pack(record.value)""": "partitions",
        # too few
        M
        + """
    switch(new)
    for topic in (old, new):
        for record in read_topic(connection, topic, value_deserializer=JsonSerializer()):
            pack(record.value)
            if topic == new and record.offset > 1: break""": "Nothing was read from",
        # switch at the end
        M
        + """
    rest = read_topic(connection, old, value_deserializer=JsonSerializer())
    switch(new)
    for r in rest: pack(r.value)
    with KafkaConsumer(new, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest") as consumer:
        for _ in range(count - len(rest)):
            (record,) = take(consumer, 1, timeout=2)
            pack(record.value)""": "only after the switch",
        # ends before the switch
        M
        + """
    with KafkaConsumer(**connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest") as c:
        places = [TopicPartition(old, p) for p in c.partitions_for_topic(old)]
        c.assign(places); c.seek_to_beginning()
        ends = c.end_offsets(places)
        switch(new)
        done = 0
        while any(c.position(p) < e for p, e in ends.items()):
            for tp, records in c.poll(timeout_ms=200).items():
                for r in records:
                    if r.offset < ends[tp]: pack(r.value); done += 1
    with KafkaConsumer(new, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest") as consumer:
        for _ in range(count - done):
            (record,) = take(consumer, 1, timeout=2)
            pack(record.value)""": "only after the switch",
        # sum of ends
        M
        + """
    switch(new)
    with KafkaConsumer(**connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest") as c:
        places = [TopicPartition(old, p) for p in c.partitions_for_topic(old)]
        c.assign(places); c.seek_to_beginning()
        n = sum(c.end_offsets(places).values())
        for r in take(c, n, timeout=2): pack(r.value)
    with KafkaConsumer(new, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest") as consumer:
        for _ in range(count - n):
            (record,) = take(consumer, 1, timeout=2)
            pack(record.value)""": "",
        # record
        q4.changed(
            "for record in rest:\n        pack(record.value)", "for record in rest:\n        pack(record)"
        ): "record's value",
    }
    refused(q4, wrong, cluster, SETUP)


@pytest.mark.full
def test_q4_unusual(cluster):
    answers = [
        # again and what is new
        M
        + """
    seen = set()
    for r in read_topic(connection, old): 
        seen.add((r.partition, r.offset)); pack(json.loads(r.value))
    switch(new)
    for r in read_topic(connection, old):
        if (r.partition, r.offset) not in seen:
            seen.add((r.partition, r.offset)); pack(json.loads(r.value))
    with KafkaConsumer(new, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest") as consumer:
        for _ in range(count - len(seen)):
            (record,) = take(consumer, 1)
            pack(record.value)""",
        # group
        M
        + """
    switch(new)
    group, done = f"movers-{time.time_ns()}", 0
    with KafkaConsumer(old, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest", group_id=group) as c:
        places = [TopicPartition(old, p) for p in c.partitions_for_topic(old)]
        todo = sum(c.end_offsets(places).values()) - sum(c.beginning_offsets(places).values())
        for record in take(c, todo): pack(record.value)
    with KafkaConsumer(new, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest", group_id=group) as c:
        for _ in range(count - todo):
            for record in take(c, 1): pack(record.value)""",
        # reads new again and again
        M
        + """
    switch(new)
    left, seen = count, set()
    for topic in (old, new):
        while True:
            fresh = [r for r in read_topic(connection, topic, value_deserializer=JsonSerializer()) if (topic, r.partition, r.offset) not in seen]
            for r in fresh:
                seen.add((topic, r.partition, r.offset)); pack(r.value); left -= 1
            if left == 0 or (topic == old and not fresh): break""",
    ]
    right(q4, answers, cluster, SETUP)
