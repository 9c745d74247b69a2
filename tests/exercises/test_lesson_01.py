"""The questions of lesson 01: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_01 import q1, q2, q3, q4
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
            q2.changed("return future.get(timeout=10).offset", "return 0"): "0 and 0",
            """
def place_order(producer, topic, order):
    producer.send(topic, order)
    producer.flush()
    place_order.count = getattr(place_order, "count", -1) + 1
    return place_order.count
""": "`flush` does not raise",
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
    this_not_next = """
def pack_orders(consumer, count, pack):
    for record in take(consumer, count):
        pack(record.value)
        consumer.commit({TopicPartition(record.topic, record.partition): OffsetAndMetadata(record.offset, "", -1)})
"""
    wrong[this_not_next] = "to read *next*"
    hold(q3, wrong, cluster, SETUP)


def test_q2_may_wrap_the_error(cluster):
    wrapped = """
def place_order(producer, topic, order):
    future = producer.send(topic, order)
    producer.flush()
    try:
        return future.get(timeout=10).offset
    except KafkaError as error:
        raise RuntimeError("order not placed") from error
"""
    assert q2.try_answer(wrapped, cluster, SETUP).state == "right"


def test_q3_counts_what_one_crash_repeats(cluster):
    every_two = """
def pack_orders(consumer, count, pack):
    for number in range(1, count + 1):
        (record,) = take(consumer, 1)
        pack(record.value)
        if number % 2 == 0 or number == count:
            consumer.commit()
"""
    assert "[1, 2] are packed twice" in str(q3.try_answer(every_two, cluster, SETUP))


def test_q3_takes_an_explicit_offset_as_well(cluster):
    explicit = """
def pack_orders(consumer, count, pack):
    for record in take(consumer, count):
        pack(record.value)
        place = TopicPartition(record.topic, record.partition)
        consumer.commit({place: OffsetAndMetadata(record.offset + 1, "", -1)})
"""
    assert q3.try_answer(explicit, cluster, SETUP).state == "right"


def test_q4(cluster):
    hold(
        q4,
        {
            q4.changed("producer.send(unreadable, record.value, key=record.key).get(timeout=10)", "pass"): "dropped",
            q4.changed(", key=record.key", ""): "key",
            q4.changed("record.value, key", "repr(record.value).encode(), key"): "as it came",
            q4.changed("except ValueError", "except json.JSONDecodeError"): "UnicodeDecodeError",
            """
def sort_out(connection, topic, unreadable):
    with KafkaProducer(**connection) as producer:
        bad = [r for r in read_topic(connection, topic) if not r.value.startswith(b"{")]
        for record in bad:
            producer.send(unreadable, record.value, key=record.key)
        return [json.loads(r.value) for r in read_topic(connection, topic) if r not in bad]
""": "JSONDecodeError",
        },
        cluster,
        SETUP,
    )
