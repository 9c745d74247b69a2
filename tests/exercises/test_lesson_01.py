"""The questions of lesson 01: starter, solution, and plausible wrong answers, each told apart."""

# ruff: noqa: E501 (answers, as learners type them)

import pytest

from exercises.frame.testing import hold
from exercises.lesson_01 import q1, q2, q3, q4
from tests.answers import refused, right
from tools.lessons import IMPORTS as SETUP


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
            q2.changed("return future.get(timeout=10).offset", "return 0"): "returned 0",
            """
def place_order(producer, topic, order):
    producer.send(topic, order)
    producer.flush()
    place_order.count = getattr(place_order, "count", 4) + 1
    return place_order.count
""": "counting does",
            q2.changed("return future.get", "future.get"): "returned None",
            """
def place_order(producer, topic, order):
    future = producer.send(topic, order)
    producer.flush()
    return future.value.offset if future.value else None
""": "`flush` does not raise",
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
    this_not_next = """
def pack_orders(consumer, count, pack):
    for record in take(consumer, count):
        pack(record.value)
        consumer.commit({TopicPartition(record.topic, record.partition): OffsetAndMetadata(record.offset, "", -1)})
"""
    wrong[this_not_next] = "to read *next*"
    hold(q3, wrong, cluster, SETUP)


def test_q3_counts_what_one_crash_repeats(cluster):
    every_two = """
def pack_orders(consumer, count, pack):
    for number in range(1, count + 1):
        (record,) = take(consumer, 1)
        pack(record.value)
        if number % 2 == 0 or number == count:
            consumer.commit()
"""
    assert "are packed twice" in str(q3.try_answer(every_two, cluster, SETUP))


def test_q4(cluster):
    send = "future = producer.send(unreadable, record.value, key=record.key, headers=record.headers)"
    keyless = send.replace("record.key", "b'bob'")
    only_json = """
def sort_out(connection, topic, unreadable):
    orders = []
    with KafkaProducer(**connection) as producer:
        for record in read_topic(connection, topic):
            try:
                orders.append(json.loads(record.value or b""))
            except ValueError:
                producer.send(unreadable, record.value, key=record.key, headers=record.headers).get(timeout=10)
    return orders
"""
    hold(
        q4,
        {
            q4.changed(send, "continue"): "dropped",
            q4.changed(send, keyless): "key",
            q4.changed(", headers=record.headers", ""): "headers",
            q4.changed("record.value, key", "repr(record.value).encode(), key"): "as it came",
            q4.changed("future.get(timeout=10)", "pass"): "Look at the future",
            only_json: "`17` is JSON, and no order",
        },
        cluster,
        SETUP,
    )


# -- more of both kinds -----------------------------------------------------------------------------------------------

H = "def place_order(producer, topic, order):\n"
P = "def pack_orders(consumer, count, pack):\n"
READ = """                order = json.loads(record.value)
                if type(order["order"]) is not int:
                    raise ValueError("an order has a number")
"""
SEND = "future = producer.send(unreadable, record.value, key=record.key, headers=record.headers)"
GET = "                future.get(timeout=10)  # raises if it is not there\n"
EXC = "except Exception:  # nothing but reading stands in this `try`: whatever it raises, this is no order"
OLD = """
def sort_out(connection, topic, unreadable):
    orders = []
    with KafkaProducer(**connection) as producer:
        for record in read_topic(connection, topic):
            try:
                orders.append(json.loads(record.value))
            except %s:
                producer.send(unreadable, record.value, key=record.key, headers=record.headers).get(timeout=10)
    return orders
"""


@pytest.mark.full
def test_q1_more(cluster):
    wrong = {
        # group
        q1.changed(
            'auto_offset_reset="earliest",', 'auto_offset_reset="earliest", group_id="reports",'
        ): "committed offset",
        # assign partition 0 seek 0
        """
def read_orders(connection, topic, count):
    consumer = KafkaConsumer(**connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, 0)])
    return [r.value for r in take(consumer, count, timeout=3)]
""": "several partitions",
        # seek 0, latest
        """
def read_orders(connection, topic, count):
    consumer = KafkaConsumer(**connection, value_deserializer=JsonSerializer())
    ps = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
    consumer.assign(ps)
    for p in ps: consumer.seek(p, 0)
    return [r.value for r in take(consumer, count, timeout=3)]
""": "auto_offset_reset",
        # one poll
        """
def read_orders(connection, topic, count):
    consumer = KafkaConsumer(topic, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest")
    return [r.value for records in consumer.poll(timeout_ms=3000).values() for r in records]
""": "poll",
        # all
        """
def read_orders(connection, topic, count):
    return [r.value for r in read_topic(connection, topic, value_deserializer=JsonSerializer())]
""": "no more",
        # remembers
        """
consumers = {}
def read_orders(connection, topic, count):
    if topic not in consumers:
        consumers[topic] = KafkaConsumer(topic, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest")
    return [r.value for r in take(consumers[topic], count, timeout=3)]
""": "Called again",
        # no deserializer
        q1.changed(", value_deserializer=JsonSerializer()", ""): ".value",
        # generator
        q1.changed(
            "return [record.value for record in take(consumer, count, timeout=3)]",
            "yield from (record.value for record in take(consumer, count, timeout=3))",
        ): "",
    }
    refused(q1, wrong, cluster, SETUP)


@pytest.mark.full
def test_q1_unusual(cluster):
    answers = [
        # read_topic
        """
def read_orders(connection, topic, count):
    return [r.value for r in read_topic(connection, topic, value_deserializer=JsonSerializer())][:count]
""",
        # uuid group
        q1.changed(
            'auto_offset_reset="earliest",', 'auto_offset_reset="earliest", group_id=__import__("uuid").uuid4().hex,'
        ),
        # assign
        """
def read_orders(connection, topic, count):
    with KafkaConsumer(**connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)])
        consumer.seek_to_beginning()
        values = []
        while len(values) < count:
            for records in consumer.poll(timeout_ms=500, max_records=count - len(values)).values():
                values += [r.value for r in records]
        return values
""",
    ]
    right(q1, answers, cluster, SETUP)


@pytest.mark.full
def test_q2_more(cluster):
    wrong = {
        # flush and count
        H
        + """
    producer.send(topic, order); producer.flush()
    place_order.count = getattr(place_order, "count", -1) + 1
    return place_order.count""": "counting",
        # len of topic
        H
        + """
    producer.send(topic, order); producer.flush()
    return len(read_topic(connection := {"bootstrap_servers": producer.config["bootstrap_servers"]}, topic)) - 1""": "counting",
        # catches
        H
        + """
    try:
        future = producer.send(topic, order); producer.flush()
        return future.get(timeout=10).offset
    except KafkaError:
        return None""": "catch",
        # no flush short timeout
        q2.changed(
            "    producer.flush()  # it sends what is buffered, and raises nothing for a record that failed\n", ""
        ).replace("timeout=10", "timeout=1"): "lingers",
        # future not looked at
        H
        + """
    future = producer.send(topic, order); producer.flush()
    return future.value.offset if future.value else -1""": "flush",
        # twice
        H
        + """
    producer.send(topic, order)
    producer.flush()
    return producer.send(topic, order).get(timeout=10).offset""": "2 times",
        # all futures
        "futures = []\n"
        + H
        + """
    futures.append(producer.send(topic, order)); producer.flush()
    for f in futures: m = f.get(timeout=10)
    return m.offset""": "own future",
        # first future
        "futures = []\n"
        + H
        + """
    futures.append(producer.send(topic, order)); producer.flush()
    return futures[0].get(timeout=10).offset""": "",
        # metadata
        q2.changed(".offset  # its future does", ""): ".offset",
        # sleeps
        H
        + """
    future = producer.send(topic, order)
    time.sleep(3)
    return future.value.offset""": "",
        # partition
        q2.changed(
            "return future.get(timeout=10).offset", "return future.get(timeout=10).topic_partition.partition"
        ): ".offset",
    }
    refused(q2, wrong, cluster, SETUP)


@pytest.mark.full
def test_q2_unusual(cluster):
    answers = [
        # waits linger
        q2.changed(
            "    producer.flush()  # it sends what is buffered, and raises nothing for a record that failed\n", ""
        ),
        # raises own
        H
        + """
    future = producer.send(topic, order)
    producer.flush()
    if not future.succeeded():
        raise RuntimeError("not placed")
    return future.value.offset""",
        # wraps
        H
        + """
    future = producer.send(topic, order)
    producer.flush()
    try:
        return future.get(timeout=10).offset
    except KafkaError as error:
        raise RuntimeError("order not placed") from error""",
        # callback
        H
        + """
    import threading
    done, got = threading.Event(), {}
    future = producer.send(topic, order)
    future.add_callback(lambda m: (got.update(m=m), done.set()))
    future.add_errback(lambda e: (got.update(e=e), done.set()))
    producer.flush()
    done.wait(10)
    if "e" in got: raise got["e"]
    return got["m"].offset""",
    ]
    right(q2, answers, cluster, SETUP)


@pytest.mark.full
def test_q3_more(cluster):
    wrong = {
        # count-1
        q3.changed("range(count)", "range(count - 1)"): "before it had packed",
        # packs twice
        q3.changed(
            "        pack(record.value)\n", "        pack(record.value)\n        pack(record.value)\n"
        ): "once for each",
        # async
        q3.changed("consumer.commit()", "consumer.commit_async()"): "commit_async",
        # swallow
        q3.changed(
            "        pack(record.value)\n",
            "        try:\n            pack(record.value)\n        except Exception:\n            pass\n",
        ): "do not catch",
        # finally
        q3.changed(
            "        pack(record.value)\n        consumer.commit()",
            "        try:\n            pack(record.value)\n        finally:\n            consumer.commit()",
        ): "finally",
        # partition 0
        P
        + """
    for record in take(consumer, count):
        pack(record.value)
        consumer.commit({TopicPartition(record.topic, 0): OffsetAndMetadata(record.offset + 1, "", -1)})""": "partition",
        # counts
        P
        + """
    for n, record in enumerate(take(consumer, count), 1):
        pack(record.value)
        consumer.commit({TopicPartition(record.topic, record.partition): OffsetAndMetadata(n, "", -1)})""": "",
        # endless
        P
        + """
    for record in consumer:
        pack(record.value)
        consumer.commit()""": "",
        # endless explicit
        P
        + """
    for record in consumer:
        pack(record.value)
        consumer.commit({TopicPartition(record.topic, record.partition): OffsetAndMetadata(record.offset + 1, "", -1)})""": "has no end",
        # every two
        P
        + """
    for number in range(1, count + 1):
        (record,) = take(consumer, 1)
        pack(record.value)
        if number % 2 == 0 or number == count:
            consumer.commit()""": "commit after each",
        # no last
        P
        + """
    for n in range(count):
        (record,) = take(consumer, 1)
        pack(record.value)
        if n < count - 1: consumer.commit()""": "After the last",
        # record
        q3.changed("pack(record.value)", "pack(record)"): "record's value",
        # memory
        "seen = set()\n"
        + P
        + """
    for record in take(consumer, count):
        if record.offset not in seen:
            pack(record.value)
            seen.add(record.offset)
    consumer.commit()""": "",
        # close
        P
        + """
    for record in take(consumer, count):
        pack(record.value)
    consumer.close(autocommit=True)""": "",
    }
    refused(q3, wrong, cluster, SETUP)


@pytest.mark.full
def test_q3_unusual(cluster):
    answers = [
        # explicit
        P
        + """
    for record in take(consumer, count):
        pack(record.value)
        consumer.commit({TopicPartition(record.topic, record.partition): OffsetAndMetadata(record.offset + 1, "", -1)})""",
        # poll one
        P
        + """
    while count:
        for records in consumer.poll(timeout_ms=500, max_records=1).values():
            for record in records:
                pack(record.value)
                consumer.commit()
                count -= 1""",
        # for with break
        P
        + """
    for number, record in enumerate(consumer, 1):
        pack(record.value)
        consumer.commit({TopicPartition(record.topic, record.partition): OffsetAndMetadata(record.offset + 1, "", -1)})
        if number == count:
            break""",
        # retries
        q3.changed(
            "        pack(record.value)\n",
            """        while True:
            try:
                pack(record.value)
                break
            except RuntimeError:
                time.sleep(0.1)
""",
        ),
    ]
    right(q3, answers, cluster, SETUP)


@pytest.mark.full
def test_q4_more(cluster):
    wrong = {
        # old
        OLD % "ValueError": "no value",
        # old both
        OLD % "(ValueError, TypeError)": "no order",
        # json only
        q4.changed(EXC, "except json.JSONDecodeError:"): "",
        # ValueError
        q4.changed(EXC, "except ValueError:"): "no value",
        # no type check
        q4.changed(
            READ, '                order = json.loads(record.value)\n                order["order"]\n'
        ): "no number",
        # dict only
        q4.changed(
            READ,
            "                order = json.loads(record.value)\n                if not isinstance(order, dict): raise ValueError\n",
        ): "`order` is no number",
        # no headers
        q4.changed(", headers=record.headers", ""): "headers",
        # dict headers
        q4.changed("headers=record.headers", "headers=list(dict(record.headers).items())"): "twice",
        # no future
        q4.changed(GET, ""): "future",
        # catches send
        q4.changed(
            GET,
            "                try:\n                    future.get(timeout=10)\n                except KafkaError:\n                    pass\n",
        ): "future",
        # same partition
        q4.changed("headers=record.headers)", "headers=record.headers, partition=record.partition)"): "",
        # tombstone empty
        q4.changed("unreadable, record.value", 'unreadable, record.value or b""'): "as it came",
        # skips tombstones
        q4.changed(
            "            try:\n", "            if record.value is None:\n                continue\n            try:\n"
        ): "no value",
        # numbers
        q4.changed("orders.append(order)", 'orders.append(order["order"])'): "field",
        # stops
        q4.changed(GET, GET + "                break\n"): "Go on",
        # all partitions by offset
        """
def sort_out(connection, topic, unreadable):
    orders = []
    with KafkaProducer(**connection) as producer, KafkaConsumer(**connection, auto_offset_reset="earliest") as consumer:
        place = TopicPartition(topic, 0)
        consumer.assign([place])
        for record in take(consumer, consumer.end_offsets([place])[place], timeout=2):
            try:
                order = json.loads(record.value)
                order["order"] + 1
                orders.append(order)
            except Exception:
                producer.send(unreadable, record.value, key=record.key, headers=record.headers).get(timeout=10)
    return orders
""": "",
    }
    refused(q4, wrong, cluster, SETUP)


@pytest.mark.full
def test_q4_unusual(cluster):
    answers = [
        # flush then look
        """
def sort_out(connection, topic, unreadable):
    orders, futures = [], []
    producer = KafkaProducer(**connection)
    for record in read_topic(connection, topic):
        try:
            order = json.loads(record.value)
            assert isinstance(order["order"], int)
        except (ValueError, TypeError, KeyError, AssertionError):
            futures.append(producer.send(unreadable, record.value, key=record.key, headers=list(record.headers)))
            continue
        orders.append(order)
    producer.flush()
    for future in futures:
        future.get(timeout=10)
    return orders
""",
        # consumer
        """
def sort_out(connection, topic, unreadable):
    def read(value):
        try:
            order = json.loads(value or b"null")
        except ValueError:
            return None
        return order if isinstance(order, dict) and isinstance(order.get("order"), int) else None
    orders = []
    with KafkaConsumer(**connection, auto_offset_reset="earliest") as consumer, KafkaProducer(**connection) as producer:
        places = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
        consumer.assign(places)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(places)
        while any(consumer.position(p) < end for p, end in ends.items()):
            for records in consumer.poll(timeout_ms=200).values():
                for record in records:
                    if (order := read(record.value)) is not None:
                        orders.append(order)
                    else:
                        producer.send(unreadable, record.value, key=record.key, headers=record.headers).get(timeout=10)
    return orders
""",
        # raises own
        q4.changed(
            GET,
            "                producer.flush()\n                if future.failed():\n                    raise RuntimeError('not put aside')\n",
        ),
    ]
    right(q4, answers, cluster, SETUP)
