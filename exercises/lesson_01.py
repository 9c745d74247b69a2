"""Questions of lesson 01, producer–consumer."""

import json

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.serializer import JsonSerializer

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import Worker, point
from helpers.pictures import capture_log, log_view

ORDERS = [{"order": number, "customer": customer} for number, customer in enumerate(["ann", "bob", "eve"] * 2, 1)]


def _numbers(orders) -> list:
    return [order["order"] for order in orders]


# -- q1: a consumer that begins at the beginning


def _judge_read_orders(lab, read_orders):
    topic = lab.topic()
    producer = lab.producer(value_serializer=JsonSerializer())
    for order in ORDERS:
        producer.send(topic, order)
    producer.flush()
    try:
        orders = lab.call(read_orders, lab.cluster.connection, topic, len(ORDERS), gives=list)
    except TimeoutError as error:
        raise Wrong(
            f"no end: {error}",
            f"orders {_numbers(ORDERS)}, which were on the topic before your consumer came",
            "The consumer starts at the end of the log: `auto_offset_reset` decides that.",
        ) from None
    if any(not isinstance(order, dict) for order in orders):
        raise Wrong(
            f"a list of {type(orders[0]).__name__}",
            "a list of dicts, the values of the records",
            "Take `.value` of each.",
        )
    if _numbers(orders) != _numbers(ORDERS):
        raise Wrong(f"orders {_numbers(orders)}", f"orders {_numbers(ORDERS)}", "Return what `take` gave, all of it.")


_READ_ORDERS = '''
def read_orders(connection, topic, count):
    """The values of the first `count` records of the topic."""
    consumer = KafkaConsumer(topic, **connection, value_deserializer=JsonSerializer())
    try:
        return [record.value for record in take(consumer, count, timeout=3)]
    finally:
        consumer.close()
'''

q1 = Question(
    "q1",
    wants=("read_orders",),
    starter=_READ_ORDERS,
    solution=_READ_ORDERS.replace("**connection,", '**connection, auto_offset_reset="earliest",'),
    judge=_judge_read_orders,
    hints=[
        "`take` says how many records came. Where does a consumer start that has no place of its own?",
        "A consumer without a committed offset starts where `auto_offset_reset` says; the default is `latest`.",
    ],
    why="A consumer that starts at the end misses what was there before it, and no error tells so.",
    deadline=6,
)


# -- q2: acknowledged, or an error


def _comes_from_kafka(error: BaseException | None) -> bool:
    return error is not None and (
        isinstance(error, KafkaError) or _comes_from_kafka(error.__cause__ or error.__context__)
    )


def _judge_place_order(lab, place_order):
    topic = lab.topic(config={"max.message.bytes": 300})
    producer = lab.producer(value_serializer=JsonSerializer(), linger_ms=2000)
    places = []
    for order in ORDERS[:2]:
        places.append(lab.call(place_order, producer, topic, order))
        if len(lab.records(topic)) < len(places):
            raise Wrong(
                "your function has returned, and the order is not on the log",
                "an order that is on the log when the function returns",
                "`send` puts the record into the producer's buffer only; here, the producer lingers for two seconds.",
            )
    if places != [0, 1]:
        raise Wrong(
            f"for two orders your function returned {str(places[0])[:60]} and {str(places[1])[:60]}",
            "the records' offsets, here 0 and 1",
            "The offset is in what `future.get` gives: `.offset`.",
        )
    try:
        place_order(producer, topic, {"order": 3, "customer": "eve", "note": "x" * 1000})
    except Exception as error:
        if _comes_from_kafka(error):
            return "two orders are acknowledged; for one that the broker refuses, your function raises"
        raise
    raise Wrong(
        "the broker refused an order of 1,000 characters, and your function returned as if it were there",
        "an exception for an order that is not on the log",
        "`flush` does not raise for a record that failed; its future does.",
    )


q2 = Question(
    "q2",
    wants=("place_order",),
    starter='''
def place_order(producer, topic, order):
    """Send the order; return its offset once it is acknowledged, or raise if it is not."""
    producer.send(topic, order)
''',
    solution='''
def place_order(producer, topic, order):
    """Send the order; return its offset once it is acknowledged, or raise if it is not."""
    future = producer.send(topic, order)
    producer.flush()
    return future.get(timeout=10).offset
''',
    judge=_judge_place_order,
    hints=[
        "`send` returns a future. What does it know, and when?",
        "The producer may linger: `producer.flush()` sends what is buffered now.",
        "`future.get(timeout=10)` gives the record's metadata, with its offset, or raises what went wrong.",
    ],
    why="'Sent' means nothing to a customer; 'acknowledged' does.",
    deadline=20,
)


# -- q3: the commit, order by order


def _pack(order):
    if not isinstance(order, dict):
        raise TypeError("`pack` takes an order, which is the record's value")
    point("about to pack")
    print(order["order"], flush=True)
    point("packed")


def _pack_some(connection, topic, group, pack_orders):
    consumer = KafkaConsumer(
        topic, **connection, group_id=group, group_instance_id="packer", auto_offset_reset="earliest",
        enable_auto_commit=False, value_deserializer=JsonSerializer(),
    )  # fmt: skip
    left = len(ORDERS) - (consumer.committed(TopicPartition(topic, 0)) or 0)
    if left:
        pack_orders(consumer, left, _pack)


def _judge_pack_orders(lab, pack_orders):
    topic, group = lab.topic(), lab.group()
    producer = lab.producer(value_serializer=JsonSerializer())
    for order in ORDERS:
        producer.send(topic, order, key=order["customer"].encode())
    producer.flush()
    packed, logs = [], []
    for die_at in [("packed", 2), ("about to pack", 2), None]:
        worker = Worker(_pack_some, lab.cluster.connection, topic, group, pack_orders, die_at=die_at)
        lab.afterwards.callback(worker.kill)
        state = worker.wait()
        packed += [int(line) for line in worker.output.split() if line.isdigit()]
        logs.append(capture_log(lab.cluster, topic, groups=[group], label=_told))
        if state.startswith("failed"):
            raise Wrong(
                f"the packer's process {state}", "a packer that goes on", worker.output.strip().splitlines()[-1]
            )
    never = sorted(set(_numbers(ORDERS)) - set(packed))
    again = sorted({number for number in packed if packed.count(number) > 1})
    wanted = (
        "each order packed, at most one of them twice, though the packer is killed after packing one and before another"
    )
    picture = log_view(logs[0], "Where the commit stood when the packer was killed after packing order 2")
    if len(never) > 1:
        raise Wrong(
            f"orders {never} are never packed",
            wanted,
            "`consumer.commit()` commits the consumer's *position*, behind all that it has polled, packed or not: "
            "take one"
            " order at a time, or commit the offset that you mean.",
            picture,
        )
    if never:
        raise Wrong(f"order {never[0]} is never packed", wanted, "The commit came before the packing.", picture)
    if len(again) > 1:
        marks = [mark.offset for mark in logs[0].lanes[0].marks]
        cause = (
            "Nothing was committed between these: commit after each one, and wait for it (`commit_async` only asks)."
        )
        if marks == [0]:
            cause = "What is committed is the offset of the record to read *next*: `record.offset + 1`."
        raise Wrong(f"orders {again} are packed twice", wanted, cause, picture)
    return f"killed twice; packed again: {again}; never packed: none"


q3 = Question(
    "q3",
    wants=("pack_orders",),
    starter='''
def pack_orders(consumer, count, pack):
    """Pack `count` orders; killed at any moment, it loses none and repeats one at most."""
    for record in take(consumer, count):
        pack(record.value)
''',
    solution='''
def pack_orders(consumer, count, pack):
    """Pack `count` orders; killed at any moment, it loses none and repeats one at most."""
    for _ in range(count):
        (record,) = take(consumer, 1)
        pack(record.value)
        consumer.commit()
''',
    judge=_judge_pack_orders,
    hints=[
        "Packing and committing are two steps; between them the packer may die. Which one comes first?",
        "`consumer.commit()` commits the position, behind everything that `take` has given, packed or not.",
        "`take(consumer, 1)` in a loop, and a commit after each; or, after each record of a batch, "
        "`consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(record.offset + 1, '', -1)})`.",
    ],
    why="The commit says 'done up to here' to whoever comes next; it has to be true at any moment.",
    deadline=25,
)


# -- q4: what cannot be read is kept

FAX = b"order 2, by fax \xff"
TORN = b'{"order": 4, "custo'


def _judge_sort_out(lab, sort_out):
    topic, unreadable = lab.topic(), lab.topic("unreadable")
    producer = lab.producer()
    for order in ORDERS:
        value = {2: FAX, 4: TORN}.get(order["order"], json.dumps(order).encode())
        producer.send(topic, value, key=order["customer"].encode())
    producer.flush()
    wanted = [number for number in _numbers(ORDERS) if number not in (2, 4)]
    orders = lab.call(sort_out, lab.cluster.connection, topic, unreadable, gives=list)
    lab.close_clients()  # whether a record was acknowledged or still on its way was question 2
    kept = lab.records(unreadable)
    if not all(isinstance(order, dict) for order in orders):
        raise Wrong(f"a list with {orders[0]!r}", "a list of dicts", "Return the decoded records, not a field of them.")
    if _numbers(orders) != wanted:
        raise Wrong(f"orders {_numbers(orders)}", f"orders {wanted}", "Go on after what cannot be read.")
    if not kept:
        raise Wrong("the topic for unreadable records is empty", "two records on it", "The records were dropped.")
    if [record.value for record in kept] != [FAX, TORN]:
        raise Wrong(
            f"on the topic: {[record.value for record in kept]}",
            f"{[FAX, TORN]}, to the byte",
            "Send `record.value` as it came; and a record may begin like JSON and still be none.",
        )
    if [record.key for record in kept] != [b"bob", b"ann"]:
        raise Wrong(
            f"their keys are {[record.key for record in kept]}",
            "[b'bob', b'ann']",
            "Send the record's key along: whoever mends it needs to know whose it is.",
        )
    logs = [capture_log(lab.cluster, name, label=_told) for name in (topic, unreadable)]
    return log_view(logs, "Two records put aside; four orders to pack")


def _told(record) -> str:
    try:
        return f"order {json.loads(record.value)['order']}"
    except ValueError:
        return repr(record.value)[2:-1]


q4 = Question(
    "q4",
    wants=("sort_out",),
    starter='''
def sort_out(connection, topic, unreadable):
    """All orders on the topic, as dicts; records that are no JSON go to the topic `unreadable`, as they came."""
    return [json.loads(record.value) for record in read_topic(connection, topic)]
''',
    solution='''
def sort_out(connection, topic, unreadable):
    """All orders on the topic, as dicts; records that are no JSON go to the topic `unreadable`, as they came."""
    orders = []
    with KafkaProducer(**connection) as producer:
        for record in read_topic(connection, topic):
            try:
                orders.append(json.loads(record.value))
            except ValueError:
                producer.send(unreadable, record.value, key=record.key).get(timeout=10)
    return orders
''',
    judge=_judge_sort_out,
    hints=[
        "Decode each record on its own, inside of `try`. Which exceptions can bytes that are no JSON cause?",
        "`except ValueError` catches both `JSONDecodeError` and `UnicodeDecodeError`.",
        "Send `record.value` and `record.key` to the other topic, and wait for the acknowledgement.",
    ],
    why="What a program cannot read today, a person or a mended program can read tomorrow, if it is still there.",
)
