"""Questions of lesson 01, producer–consumer."""

import json
from collections import Counter
from itertools import zip_longest

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.future import Future
from kafka.serializer import JsonSerializer

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from exercises.frame.words import say_error
from helpers import Worker, point
from helpers.pictures import capture_log, log_view

ORDERS = [{"order": number, "customer": customer} for number, customer in enumerate(["ann", "bob", "eve"] * 2, 1)]


def _numbers(orders) -> list:
    return [order["order"] for order in orders]


# -- q1: a consumer that begins at the beginning


# So long that one `poll` does not give all orders: a fetch brings at most 1 MB of a partition.
NOTE = "x" * 400_000


def _delete_first(lab, topic, partition: int = 0) -> None:
    """Delete the first record of a partition, as retention does: the offsets do not begin with 0 then."""
    with KafkaAdminClient(**lab.cluster.connection) as admin:
        admin.delete_records({TopicPartition(topic, partition): 1})


def _judge_read_orders(lab, read_orders):
    producer = lab.producer(value_serializer=JsonSerializer())
    topic, two = lab.topic(), lab.topic("two", partitions=2)
    producer.send(topic, {"order": 0, "customer": "ann"})
    for order in ORDERS:
        producer.send(topic, order | {"note": NOTE})
        producer.send(two, order, partition=order["order"] % 2)
    producer.flush()
    _delete_first(lab, topic)
    wanted = f"orders {_numbers(ORDERS)}, which were on the topic before your consumer came"
    at_latest = "The consumer starts at the end of the log: `auto_offset_reset` decides that."
    _compare_read(lab, read_orders, topic, _numbers(ORDERS), wanted, at_latest)
    remembered = "Called again, it went on where it had stopped: a group has a committed offset, and that counts first."
    _compare_read(lab, read_orders, topic, [1, 2], "the same from the beginning, when it is called again", remembered)
    everywhere = "A topic may have several partitions: subscribe to the topic, and read them all."
    _compare_read(lab, read_orders, two, _numbers(ORDERS), "all orders of a topic with two partitions", everywhere)


def _compare_read(lab, read_orders, topic, numbers, wanted, cause):
    try:
        orders = lab.call(read_orders, lab.cluster.connection, topic, len(numbers), gives=list)
    except TimeoutError as error:
        raise Wrong(f"no end: {error}", wanted, cause) from None
    if any(not isinstance(order, dict) for order in orders):
        raise Wrong(
            f"a list of {type(orders[0]).__name__}",
            "a list of dicts, the values of the records",
            "Take `.value` of each.",
        )
    if sorted(_numbers(orders)) != numbers:
        if len(orders) != len(numbers):
            few = "One `poll` gives what has come until then. `take` polls until it has them all."
            cause = few if len(orders) < len(numbers) else "Read `count` records and no more, as `take` does."
        raise Wrong(f"orders {sorted(_numbers(orders))}", wanted, cause)


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
    deadline=10,
)


# -- q2: acknowledged, or an error


class _SharedProducer(KafkaProducer):
    """A producer on a topic that others write to as well: one of their orders comes right after each flush."""

    def flush(self, timeout=None):
        super().flush(timeout)
        self.others.send(self.topic, {"order": 0, "customer": "zoe"}).get(timeout=10)


#: What a slip in the code raises, and no decision of its author.
SLIPS = (NameError, AttributeError, TypeError, LookupError)


def _judge_place_order(lab, place_order):
    topic = lab.topic(config={"max.message.bytes": 300})
    others = lab.producer(value_serializer=JsonSerializer())
    others.send(topic, {"order": 0, "customer": "zoe"}).get(timeout=10)  # so that no offset is 0

    def new_producer():
        producer = _SharedProducer(**lab.cluster.connection, value_serializer=JsonSerializer(), linger_ms=2000)
        producer.others, producer.topic = others, topic
        return producer

    producer = new_producer()
    _check_placed(lab, place_order, producer, topic, ORDERS[0])
    _check_placed(lab, place_order, producer, topic, ORDERS[1])
    refused = {"order": 3, "customer": "eve", "note": "x" * 1000}
    try:
        given = place_order(producer, topic, refused)
    except SLIPS:
        raise
    except Exception:
        # In kafka-python 3.0.12 an idempotent producer answers each later record with that refusal.
        _check_placed(lab, place_order, new_producer(), topic, ORDERS[3])
        return "orders are acknowledged, also after one that the broker refuses; for that one your function raises"
    raise Wrong(
        f"the broker refused an order of 1,000 characters, and your function returned {str(given)[:60]}",
        "an exception for an order that is not on the log",
        "`flush` does not raise for a record that failed; its future does. And an exception that you catch, the "
        "caller never sees.",
    )


def _check_placed(lab, place_order, producer, topic, order) -> None:
    try:
        place = lab.call(place_order, producer, topic, order)
    except KafkaTimeoutError as error:
        raise Wrong(
            f"your function raised {type(error).__name__} for order {order['order']}, which the broker would take",
            "the offset of an order that is on the log",
            "The producer lingers for two seconds: `producer.flush()` sends at once what is buffered.",
        ) from None
    except SLIPS:
        raise
    except Exception as error:
        raise Wrong(
            f"your function raised {type(error).__name__} for order {order['order']}, which the broker would take",
            "an exception only for an order that is not on the log",
            "Look at this order's own future, and at no other one.",
        ) from error
    records = lab.records(topic, value_deserializer=JsonSerializer())
    offsets = [record.offset for record in records if record.value["order"] == order["order"]]
    if not offsets:
        raise Wrong(
            "your function has returned, and the order is not on the log",
            "an order that is on the log when the function returns",
            "`send` puts the record into the producer's buffer only; here, the producer lingers for two seconds.",
        )
    if len(offsets) > 1:
        raise Wrong(
            f"order {order['order']} is on the log {len(offsets)} times, at offsets {offsets}",
            "each order once",
            "Each call of `send` writes a record.",
        )
    if place != offsets[0]:
        raise Wrong(
            f"for order {order['order']} your function returned {str(place)[:60]}",
            f"the record's offset, here {offsets[0]}",
            "The offset is in what `future.get` gives: `.offset`. Others write to the topic, too, so counting does "
            "not tell it.",
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
    producer.flush()  # it sends what is buffered, and raises nothing for a record that failed
    return future.get(timeout=10).offset  # its future does
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


class _SlowToCommit(KafkaConsumer):
    """Its asynchronous commits stay under way until a poll after the next: a process that dies has not sent them."""

    _asked: list = []

    def commit_async(self, offsets=None, callback=None):
        places = {place: OffsetAndMetadata(self.position(place), "", -1) for place in self.assignment()}
        self._asked = [*self._asked, offsets or places]
        return Future()

    def poll(self, *arguments, **keywords):
        sent, self._asked = self._asked[:-1], self._asked[-1:]
        for offsets in sent:
            self.commit(offsets)
        return super().poll(*arguments, **keywords)


def _pack_some(connection, topic, group, pack_orders, breaks):
    left = [breaks]

    def pack(order):
        if not isinstance(order, dict):
            raise TypeError("`pack` takes an order, which is the record's value")
        if left.pop() if left else False:
            print("broke", order["order"], flush=True)
            raise RuntimeError(f"order {order['order']}: the tape is torn")
        print("about", order["order"], flush=True)
        point("about to pack")
        print(order["order"], flush=True)
        point("packed")

    consumer = _SlowToCommit(
        topic, **connection, group_id=group, group_instance_id="packer", auto_offset_reset="earliest",
        enable_auto_commit=False, value_deserializer=JsonSerializer(),
    )  # fmt: skip
    committed = [consumer.committed(TopicPartition(topic, partition)) or 0 for partition in (0, 1)]
    if count := len(ORDERS) - sum(committed):
        pack_orders(consumer, count, pack)


def _judge_pack_orders(lab, pack_orders):
    topic, group = lab.topic(partitions=2), lab.group()
    producer = lab.producer(value_serializer=JsonSerializer())
    for order in ORDERS:
        producer.send(topic, order, key=order["customer"].encode(), partition=order["order"] % 2)
    producer.flush()
    lives, logs, broke, about = [], [], [], []
    for die_at, breaks in [(("packed", 2), False), (("about to pack", 2), False), (None, True), (None, False)]:
        worker = Worker(_pack_some, lab.cluster.connection, topic, group, pack_orders, breaks, die_at=die_at)
        lab.afterwards.callback(worker.kill)
        state = _end_of(worker, lives)
        lives.append(_packed_by(worker))
        broke += [int(line.split()[1]) for line in worker.output.splitlines() if line.startswith("broke ")]
        about += [int(line.split()[1]) for line in worker.output.splitlines() if line.startswith("about ")][-1:]
        logs.append(capture_log(lab.cluster, topic, groups=[group], label=_told))
        if state.startswith("failed") and not breaks:
            raise Wrong(
                f"the packer's process {state}", "a packer that goes on", worker.output.strip().splitlines()[-1]
            )
    _compare_packed(lives, logs, broke, about)
    again = sorted(number for number, times in Counter(sum(lives, [])).items() if times > 1)
    return f"killed twice, and once the packing failed; packed again: {again}; never packed: none"


def _packed_by(worker) -> list:
    return [int(line) for line in worker.output.split("\n") if line.isdigit()]


def _end_of(worker, lives) -> str:
    """Wait for its end. One that has packed all orders and does not come to its end has a loop without one."""
    try:
        return worker.wait(timeout=8)
    except TimeoutError:
        if {*sum(lives, []), *_packed_by(worker)} >= {*_numbers(ORDERS)}:
            raise Wrong(
                "all orders are packed, and your function does not come back",
                "a function that returns when `count` orders are packed",
                "`for record in consumer` has no end: count.",
            ) from None
        return worker.wait()


def _compare_packed(lives, logs, broke, about) -> None:
    packed = Counter(sum(lives, []))
    never = [number for number in _numbers(ORDERS) if not packed[number]]  # of them `broke`: `pack` raised an error
    again = sorted(number for number, times in packed.items() if times > 1)
    done = [{lane.partition: mark.offset for lane in log.lanes for mark in lane.marks} for log in logs]
    picture = log_view(logs[0], "Where the commit stood when the packer was killed after packing its second order")
    wanted = (
        "each order packed, at most one of them twice, though the packer is killed after packing one and before another"
    )
    if within := [number for life in lives for number, times in Counter(life).items() if times > 1]:
        raise Wrong(
            f"within one process, orders {sorted(set(within))} are packed twice",
            wanted,
            "Nobody was killed in between: call `pack` once for each record.",
        )
    # An order's offset: two partitions, and the orders go to them in turn, order 1 to partition 1.
    skipped = [number for number in never if (number - 1) // 2 < done[-1].get(number % 2, 0)]
    if never and not skipped:
        raise Wrong(
            f"orders {never} are never packed, and not committed either",
            wanted,
            "Your function has returned before it had packed `count` orders.",
        )
    if set(never) == set(broke):
        raise Wrong(
            f"`pack` raised an error for order {never[0]}, and the order is never packed",
            "an order whose packing has failed is packed by the next process",
            "It was committed all the same: do not catch the error; and `finally` runs after an error, too.",
        )
    if len({*never} - {*broke}) > 1:
        raise Wrong(
            f"orders {never} are never packed",
            wanted,
            "`consumer.commit()` commits the consumer's *position*, behind all that it has polled, packed or not: "
            "take one order at a time, or commit the offset that you mean, in the record's own partition.",
            picture,
        )
    if never:
        cause = "What was committed was not packed: commit `record.offset + 1`, in the record's own partition."
        if {*never} <= {*about, *broke}:
            cause = "The commit came before the packing."
        raise Wrong(f"orders {never} are never packed", wanted, cause, picture)
    if len(again) > 1:
        cause = (
            "Nothing was committed between these: commit after each one, and wait for it (`commit_async` only asks)."
        )
        if done[0] and not any(done[0].values()):
            cause = "What is committed is the offset of the record to read *next*: `record.offset + 1`."
        elif len(done[-1]) == 1:
            cause = "A topic may have several partitions: commit in that of the record, `record.partition`."
        raise Wrong(f"orders {again} are packed twice", wanted, cause, picture)
    if done[-1] != {0: 3, 1: 3}:
        raise Wrong(
            f"your function has returned, and the group's offsets are {done[-1]} (partition: offset)",
            "{0: 3, 1: 3}: all that is packed is committed when the function returns",
            "After the last order, too, there has to be a commit that is waited for. And an offset is no count: it is "
            "`record.offset + 1`, in the record's own partition.",
        )


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
        (record,) = take(consumer, 1)  # one at a time, because `commit` commits the position behind all that was taken
        pack(record.value)
        consumer.commit()
''',
    judge=_judge_pack_orders,
    hints=[
        "Packing and committing are two steps; between them the packer may die. Which one comes first?",
        "`consumer.commit()` commits the position, behind everything that `take` has given, packed or not.",
        "`take(consumer, 1)` in a loop, and a commit after each; or, after each record of a batch, `consumer.commit("
        "{TopicPartition(record.topic, record.partition): OffsetAndMetadata(record.offset + 1, '', -1)})`.",
    ],
    why="The commit says 'done up to here' to whoever comes next; it has to be true at any moment.",
    deadline=35,
)


# -- q4: what cannot be read is kept

FAX = b"order 2, by fax \xff"
HEADERS = [("sent-by", b"fax"), ("page", b"1"), ("page", b"2")]
#: What is no order, and why: no JSON, JSON of another type, a field missing or of another type, no value at all.
POISON = {
    FAX: "Bytes may be no text: then `json.loads` raises UnicodeDecodeError, which is a ValueError, too.",
    b'{"order": 4, "custo': "A record may begin like JSON and still be none.",
    b"": "An empty value is no JSON.",
    b"17": "`17` is JSON, and no order: what `json.loads` gives need not be a dict.",
    b"null": "`null` is JSON, and no order: what `json.loads` gives need not be a dict.",
    b'["order"]': '`["order"]` is JSON, and no order: what `json.loads` gives need not be a dict.',
    b'{"nr": 2}': "This is a dict without an `order`.",
    b'{"order": "two"}': "This dict's `order` is no number.",
    None: "A record may have no value (a tombstone): `json.loads(None)` raises TypeError, which is no ValueError.",
}


def _judge_sort_out(lab, sort_out):
    topic, unreadable = lab.topic(partitions=2), lab.topic("unreadable")
    producer = lab.producer()
    producer.send(topic, b"deleted", partition=0).get(timeout=10)
    for order, poison in zip_longest(ORDERS, POISON):
        if order:
            producer.send(topic, json.dumps(order).encode(), key=order["customer"].encode())
        key = None if poison == FAX else b"bob"
        producer.send(topic, poison, key=key, headers=HEADERS, partition=len(poison or "") % 2)
    producer.flush()
    _delete_first(lab, topic)
    try:
        orders = lab.call(sort_out, lab.cluster.connection, topic, unreadable, gives=list)
    except (TypeError, LookupError, AttributeError) as error:
        raise Wrong(
            f"your function stopped with {say_error(error)}",
            "a function that gets past each record, whatever is in it",
            "A record may have no value or no key. What `json.loads` gives need not be a dict, nor have an `order`.",
        ) from error
    lab.close_clients()
    if others := [order for order in orders if not isinstance(order, dict)]:
        cause = POISON.get(json.dumps(others[0], default=str).encode(), "")
        field = "Return the decoded records, not a field of them."
        raise Wrong(f"a list with {others[0]!r}", "a list of dicts", cause or field)
    if sorted(map(str, orders)) != sorted(map(str, ORDERS)):
        more = [json.dumps(order).encode() for order in orders if order not in ORDERS]
        cause = next((POISON[value] for value in more if value in POISON), "Go on after what cannot be read.")
        raise Wrong(f"orders {[order.get('order') for order in orders]}", f"orders {_numbers(ORDERS)}", cause)
    _compare_kept(lab.records(unreadable))
    _judge_refusal(lab, sort_out)
    logs = [capture_log(lab.cluster, name, label=_told) for name in (topic, unreadable)]
    return log_view(logs, f"{len(POISON)} records put aside; six orders to pack")


def _compare_kept(kept) -> None:
    if not kept:
        raise Wrong("the topic for unreadable records is empty", f"{len(POISON)} records on it", "They were dropped.")
    values = [record.value for record in kept]
    for value, cause in POISON.items():
        if value not in values:
            raise Wrong(
                f"the record with the value {value!r} is not on the topic `unreadable`",
                "it is there to the byte, as it came",
                f"{cause} Send `record.value` as it came.",
            )
    if len(values) != len(POISON):
        raise Wrong(f"{len(values)} records on `unreadable`", f"{len(POISON)}, each once", "Send each of them once.")
    keys = {record.value: record.key for record in kept}
    if keys != {value: None if value == FAX else b"bob" for value in POISON}:
        raise Wrong(
            f"their keys are {sorted({*map(str, keys.values())})}",
            "b'bob', and None for the one that has no key",
            "Send the record's key along: whoever mends it needs to know whose it is.",
        )
    if lost := [record.headers for record in kept if list(record.headers) != HEADERS]:
        raise Wrong(
            f"the headers of one are {list(lost[0])}",
            f"{HEADERS}",
            "Send the record's headers along, as the list that they are: a name may come twice.",
        )


def _judge_refusal(lab, sort_out) -> None:
    topic, unreadable = lab.topic("long-fax"), lab.topic("refuses", config={"max.message.bytes": 300})
    lab.producer().send(topic, b"a fax of many pages " * 50, key=b"bob").get(timeout=10)
    try:
        orders = lab.call(sort_out, lab.cluster.connection, topic, unreadable)
    except SLIPS:
        raise
    except Exception:
        return
    raise Wrong(
        f"the topic `unreadable` refused a record of 1,000 bytes, and your function returned {str(orders)[:60]}",
        "an exception: the record is on no topic that anybody looks at",
        "Look at the future of each record that you send; and do not catch what it raises.",
    )


def _told(record) -> str:
    try:
        return f"order {json.loads(record.value)['order']}"
    except (ValueError, TypeError, LookupError):
        return repr(record.value).removeprefix("b")


q4 = Question(
    "q4",
    wants=("sort_out",),
    starter='''
def sort_out(connection, topic, unreadable):
    """All orders on the topic, as dicts; records that hold no order go to the topic `unreadable`, as they came."""
    return [json.loads(record.value) for record in read_topic(connection, topic)]
''',
    solution='''
def sort_out(connection, topic, unreadable):
    """All orders on the topic, as dicts; records that hold no order go to the topic `unreadable`, as they came."""
    orders = []
    with KafkaProducer(**connection) as producer:
        for record in read_topic(connection, topic):
            try:
                order = json.loads(record.value)
                if type(order["order"]) is not int:
                    raise ValueError("an order has a number")
            except Exception:  # nothing but reading stands in this `try`: whatever it raises, this is no order
                future = producer.send(unreadable, record.value, key=record.key, headers=record.headers)
                future.get(timeout=10)  # raises if it is not there
            else:
                orders.append(order)
    return orders
''',
    judge=_judge_sort_out,
    hints=[
        "Decode each record on its own, inside of `try`. What can `json.loads` raise, and what can it give back?",
        "`except ValueError` catches both `JSONDecodeError` and `UnicodeDecodeError`. But `json.loads(None)` is a "
        "TypeError; and `17`, `null`, a list are JSON, and no order.",
        "Send `record.value`, `record.key` and `record.headers` to the other topic, and wait for the acknowledgement.",
    ],
    why="What a program cannot read today, a person or a mended program can read tomorrow, if it is still there.",
    deadline=15,
)
