"""Questions of lesson 10, exactly-once."""

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass

import cloudpickle
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from exercises.frame.attack import Attack
from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import Worker, point, read_topic, wait_until
from helpers.pictures import capture_log, log_view

# What a judge runs in another process goes there by value: loading this module, and matplotlib with it, takes seconds.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _begin(producer) -> None:
    producer.init_transactions()
    producer.begin_transaction()


def _settle(lab, topic) -> None:
    """Wait until no transaction is open on a topic: a marker may come a moment after `commit_transaction` returns."""

    def without_open_ones():
        lanes = capture_log(lab.cluster, topic).lanes
        return not any(mark.kind == "stable" for lane in lanes for mark in lane.marks)

    wait_until(without_open_ones, f"the markers on {topic}", timeout=20, pause=0.05)


# -- q1: who reads what was taken back


def _judge_sum_of_payments(lab, sum_of_payments):
    topic = lab.topic("payments")
    producer = lab.producer(transactional_id=lab.transactional_id())
    producer.init_transactions()

    def pay(amount, end=None):
        producer.begin_transaction()
        producer.send(topic, str(amount).encode()).get(timeout=10)
        if end:
            end()
            _settle(lab, topic)

    for amount, end in [(10, producer.commit_transaction), (200, producer.abort_transaction)]:
        pay(amount, end)
    pay(5, producer.commit_transaction)
    pay(3000)
    total = lab.call(sum_of_payments, lab.cluster.connection, topic)
    log = log_view(capture_log(lab.cluster, topic), "The payments on the log")
    if total in (215, 3015, 3215):
        raise Wrong(
            f"{total}",
            "15: 10 and 5 were committed",
            "The payment of 200 was aborted, and that of 3000 is still open: only readers of committed records pass "
            "over both.",
            log,
        )
    if total != 15:
        raise Wrong(f"{total!r}", "15: 10 and 5 were committed", "Add up every value that is committed, as a number.")
    producer.commit_transaction()
    _settle(lab, topic)
    again = lab.call(sum_of_payments, lab.cluster.connection, topic)
    if again != 3015:
        raise Wrong(
            f"15, and {again!r} in a second report, when the payment of 3000 was committed",
            "3015",
            "Each report begins at the beginning: with a `group_id`, or with a sum that is kept, the second does not.",
        )
    return log


_SUM = '''
def sum_of_payments(connection, topic):
    """What has been paid in all, by the records on the topic."""
    consumer = KafkaConsumer(**connection, auto_offset_reset="earliest", isolation_level="read_uncommitted")
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning()
        end, total = consumer.end_offsets([partition])[partition], 0
        while consumer.position(partition) < end:
            for record in consumer.poll(timeout_ms=200).get(partition, []):
                total += int(record.value)
        return total
    finally:
        consumer.close()
'''

q1 = Question(
    "q1",
    wants=("sum_of_payments",),
    starter=_SUM,
    solution=_SUM.replace("read_uncommitted", "read_committed"),
    judge=_judge_sum_of_payments,
    hints=[
        "Some payments were aborted. Are they still on the log? Who gets them?",
        "`isolation_level` decides whether a consumer is given records of aborted and of open transactions.",
    ],
    why="A transaction protects only those who ask for committed records; the default does not.",
    deadline=20,
)


# -- q2: all or nothing, and what to do after which error


class _Losing(KafkaProducer):
    """A producer whose records for one topic stay in its buffer until they expire, as while a leader is away.

    Another one with its name may come right before its commit.
    """

    away, rival = "", None

    def send(self, topic, *args, **kwargs):
        if topic == self.away:
            self._accumulator.muted.add(TopicPartition(topic, 0))
        return super().send(topic, *args, **kwargs)

    def commit_transaction(self):
        if self.rival:
            self.rival()
        super().commit_transaction()


def _judge_place(lab, place):
    topic1, topic2 = lab.topic("topic1"), lab.topic("topic2", config={"max.message.bytes": 300})

    def producer(**settings):
        settings |= {"transactional_id": lab.transactional_id(), "retry_backoff_ms": 10}
        made = _Losing(**lab.cluster.connection, **settings)
        lab.afterwards.callback(made.close, timeout=0)
        made.init_transactions()
        return made

    def committed():
        for topic in (topic1, topic2):
            _settle(lab, topic)
        return [[record.value for record in lab.records(topic)] for topic in (topic1, topic2)]

    def fails(number, made, order, mail, what, cause):
        """`place` with a record that is not written: False, nothing to be read, and no transaction left open."""
        try:
            answer = place(made, topic1, topic2, order, mail)
        except Exception as error:
            raise Wrong(
                f"{what}, and `place` raised {type(error).__name__}",
                "False, and none of the two to be read",
                "This is an error after which one aborts; `abort_transaction` works then.",
            ) from error
        try:
            found = committed()
        except TimeoutError:
            raise Wrong(
                f"`place` has returned {answer!r}, and its transaction is still open",
                "an aborted transaction: until its end, readers of committed records wait behind it",
                "`abort_transaction` is missing.",
            ) from None
        if found != [[b"order 1", b"order 2"], [b"mail 1", b"mail 2"]]:
            raise Wrong(f"{what}; committed: {found}", f"nothing of order {number}", cause)
        if answer is not False:
            raise Wrong(
                f"{what}, and `place` returned {answer!r}",
                "False: neither is committed",
                "The caller cannot tell a refused order from one that was placed.",
            )
        made.close(timeout=1)

    first = producer()
    for number, wanted in ((1, "order 1 and mail 1"), (2, "orders 1 and 2, mails 1 and 2")):
        order, mail = f"order {number}".encode(), f"mail {number}".encode()
        answer = lab.call(place, first, topic1, topic2, order, mail)
        if answer is not True:
            raise Wrong(f"`place` returned {answer!r}", "True: both are committed", "Return it after the commit.")
        found = committed()
        if [values[-1:] for values in found] != [[order], [mail]] or {*map(len, found)} != {number}:
            raise Wrong(f"committed: {found}", wanted, "Both are sent, then the transaction ends.")

    large = b"mail 3" * 100
    fails(3, first, b"order 3", large, "the broker refused mail 3", "Order 3 has no mail: it must not be read.")
    for number, away, lost in ((4, topic2, "mail"), (5, topic1, "order")):
        made = producer(delivery_timeout_ms=500, request_timeout_ms=400)
        made.away = away
        cause = (
            "`commit_transaction` does not look whether each record was written: look at the future of each one "
            "before the commit."
        )
        fails(number, made, b"order %d" % number, b"mail %d" % number, f"{lost} {number} expired", cause)

    wanted = "an exception: this producer will never write again, so the process has to end"
    fatal = "When `abort_transaction` raises as well, the error is fatal: let it out."
    old, new = producer(), producer()
    try:
        answer = place(old, topic1, topic2, b"order 6", b"mail 6")
    except Exception:
        if lab.call(place, new, topic1, topic2, b"order 7", b"mail 7") is not True:
            raise Wrong("the new producer could not place order 7", "True", "") from None
        found = committed()
        if [values[2:] for values in found] != [[b"order 7"], [b"mail 7"]]:
            raise Wrong(f"committed: {found}", "of the last two orders, order 7 alone", "") from None
    else:
        raise Wrong(f"the producer was fenced, and `place` returned {answer!r}", wanted, fatal)
    last = producer()
    last.rival = producer
    try:
        answer = place(last, topic1, topic2, b"order 8", b"mail 8")
    except Exception:
        if (found := committed())[0][3:]:
            raise Wrong(f"the producer was fenced, and committed: {found}", "no order 8", "") from None
        return "three orders placed, one refused, two expired, and the fenced producers raised"
    raise Wrong(f"the producer was fenced right before its commit, and `place` returned {answer!r}", wanted, fatal)


q2 = Question(
    "q2",
    wants=("place",),
    starter='''
def place(producer, topic1, topic2, order, mail):
    """Order and mail in one transaction: True if committed, False if refused; raises when the producer is done for."""
    producer.begin_transaction()
    producer.send(topic1, order)
    producer.send(topic2, mail)
    producer.commit_transaction()
''',
    solution='''
def place(producer, topic1, topic2, order, mail):
    """Order and mail in one transaction: True if committed, False if refused; raises when the producer is done for."""
    producer.begin_transaction()
    try:
        futures = [producer.send(topic1, order), producer.send(topic2, mail)]
        producer.flush()
        for future in futures:
            future.get(timeout=10)  # raises for an expired record, too; the commit would not notice it
        producer.commit_transaction()
        return True
    except KafkaError:
        producer.abort_transaction()  # raises when the error was fatal
        return False  # the caller makes a new producer: this one has counted a record that is not on the log
''',
    judge=_judge_place,
    hints=[
        "There are three outcomes; the textbook's `except` clause knows one of them only, and tells nobody.",
        "Look at the future of each record before the commit. After an error, try `abort_transaction`. When does that "
        "raise?",
        "It raises when the error was fatal, for example for a fenced producer. So do not catch that one.",
    ],
    why="An abort that works means 'not done, try again'; an abort that raises means 'not by me, never again'.",
    deadline=45,
)


# -- q3: the loop

CUSTOMERS = [b"ann", b"bob", b"eve"]
ORDERS = [b"order %d" % number for number in range(1, 7)]
EXPIRING = 5  # partitions of the target where an order expires: each of the customers has its own
LARGE = b"order 3, and a long wish with it " * 30


@dataclass
class _Scene:
    """A mover under one accident: what it reads and writes, and its processes."""

    accident: str
    source: str
    targets: list[str]  # of its first process, and of the one that goes on behind it
    group: str
    transactional_id: str
    orders: list[bytes]
    worker: Worker | None = None


class _Member(KafkaConsumer):
    """A consumer that the group expels between its records and the question for its membership."""

    accident, expelled = "", False

    def group_metadata(self):
        if self.accident == "expelled-early" and not self.expelled:
            self.expelled = True
            membership = super().group_metadata
            wait_until(lambda: membership().generation_id < 0, "the group to expel this mover", 60)
            point("expelled")
        return super().group_metadata()

    def poll(self, *args, **kwargs):
        if self.expelled:
            point("goes on")
        return super().poll(*args, **kwargs)


class _Watched(KafkaProducer):
    """A producer at whose calls the judge can kill the process, or make another accident."""

    accident, consumer, sent, first = "", None, 0, None

    def send(self, topic, *args, **kwargs):
        point("before send")
        self.sent += 1
        if self.accident == "expelled":
            membership = self.consumer.group_metadata
            wait_until(lambda: membership().generation_id < 0, "the group to expel this mover", 60)
        if self.accident == "expired":
            # The first order stays in the buffer until it expires, as while the leader of its partition is away; then
            # the leader is back. Others come behind it, or are written meanwhile: who commits theirs has skipped it.
            places = {TopicPartition(topic, partition) for partition in range(EXPIRING)}
            muted = self._accumulator.muted
            muted.difference_update(places)
            if self.first is None or not self.first.is_done:
                muted.update(places if self.first is None else {self.first._produce_future.topic_partition})
        future = super().send(topic, *args, **kwargs)
        if self.accident == "expired" and self.first is None:
            self.first = future
            self._accumulator.muted.difference_update(places - {future._produce_future.topic_partition})
        point("after send")
        return future

    def send_offsets_to_transaction(self, *args, **kwargs):
        point("before offsets")
        super().send_offsets_to_transaction(*args, **kwargs)
        point("after offsets")

    def commit_transaction(self):
        point("before commit")
        if self.accident == "expired":
            super().flush()  # a commit that waits for the record itself sleeps for minutes (kafka-python 3.0.12)
        super().commit_transaction()
        point("after commit")


DEATHS = [
    "before send",
    "after send",
    "before offsets",
    "after offsets",
    "before commit",
    "after commit",
    *[("after commit", count) for count in range(2, 6)],  # a process for each order: each begins at an offset
]


def _move_in_a_process(connection, source, target, group, transactional_id, move_orders, accident=""):
    settings = {"delivery_timeout_ms": 800, "request_timeout_ms": 500} if accident == "expired" else {}
    producer = _Watched(**connection, transactional_id=transactional_id, retry_backoff_ms=10, **settings)
    producer.init_transactions()
    membership = {"group_instance_id": "mover"}
    if "expelled" in accident:
        interval = 1000 if accident.startswith("expelled") else 60_000
        membership = {"max_poll_interval_ms": interval, "heartbeat_interval_ms": 200}
    consumer = _Member(
        source, **connection, group_id=group, auto_offset_reset="earliest",
        enable_auto_commit=False, isolation_level="read_committed", retry_backoff_ms=10, **membership,
    )  # fmt: skip
    producer.accident, producer.consumer = accident, consumer
    records = read_topic(connection, source)
    partitions = {TopicPartition(source, record.partition) for record in records}
    done = {partition: consumer.committed(partition) or 0 for partition in partitions}
    left = sum(record.offset >= done[TopicPartition(source, record.partition)] for record in records)
    if left > 0:
        # Join the group before the learner's code runs: `take` waits for ten seconds, a slow machine may need more.
        for place, (record, *_) in consumer.poll(timeout_ms=60_000, max_records=1).items():
            consumer.seek(place, record.offset)
        consumer.accident = accident
        move_orders(consumer, producer, target, left)
    producer.flush()


def _fill_source(lab, topic, orders) -> None:
    """Orders in two transactions, and an aborted one between them: so an offset is not the number of an order."""
    producer = lab.producer(transactional_id=lab.transactional_id("shop"))
    producer.init_transactions()
    for some, end in [
        (orders[:2], producer.commit_transaction),
        ([b"an order taken back"], producer.abort_transaction),
        (orders[2:], producer.commit_transaction),
    ]:
        producer.begin_transaction()
        for order in some:
            number = orders.index(order) if order in orders else 0
            customer = number % 3
            headers = [("number", b"%d" % number)]
            producer.send(topic, order, key=CUSTOMERS[customer], headers=headers, partition=customer % 2)
        producer.flush()
        end()
    _settle(lab, topic)


def _begin_attack(lab, move_orders):
    """A mover that is killed at drawn points, started again each time, and started once more at the end."""
    count = 0

    def run(history):
        nonlocal count
        count += 1
        scene = _scene(lab, "killed", move_orders, f"-{count % 5}", list(history))
        _needs_to_end(scene.worker)
        again = _mover(lab, scene, scene.targets[0], scene.transactional_id, move_orders)
        _needs_to_end(again)
        _look_for_damage(lab, scene)

    return run


def _draw_attack(draw):
    places = ["before send", "after send", "before offsets", "after offsets", "before commit", "after commit"]
    return [(draw.choice(places), draw.randint(1, 3)) for _ in range(draw.randint(1, 5))]


def _tell_attack(step):
    place, number = step
    return ("mover", "mover", f"killed {place}, of order {number} of this life")


def _scene(lab, accident: str, move_orders, name: str = "", deaths: list = DEATHS) -> _Scene:
    orders = [*ORDERS[:2], LARGE, *ORDERS[3:]] if accident == "refused" else ORDERS
    source = lab.topic(f"orders-{accident}{name}", partitions=2)
    limit = {"max.message.bytes": 500} if accident == "refused" else None
    count = EXPIRING if accident == "expired" else 1
    targets = [lab.topic(f"target-{accident}{name}", partitions=count, config=limit)]
    targets.append(lab.topic(f"target-{accident}-2") if accident == "refused" else targets[0])
    group, transactional_id = lab.group(f"group-{accident}{name}"), lab.transactional_id(f"mover-{accident}{name}")
    scene = _Scene(accident, source, targets, group, transactional_id, orders)
    _fill_source(lab, source, orders)
    lives = {"die_at": deaths, "restarts": True} if accident == "killed" else {}
    if accident.startswith("expelled"):
        lives = {"hold_at": "before send" if accident == "expelled" else "expelled"}
    scene.worker = _mover(lab, scene, targets[0], scene.transactional_id, move_orders, accident, **lives)
    return scene


def _mover(lab, scene, target, transactional_id, move_orders, accident="", **lives) -> Worker:
    worker = Worker(
        _move_in_a_process, lab.cluster.connection, scene.source, target, scene.group, transactional_id, move_orders,
        accident, **lives,
    )  # fmt: skip
    lab.afterwards.callback(worker.kill)
    return worker


def _needs_to_end(worker) -> None:
    state = worker.wait(60)
    if state.startswith("failed"):
        raise Wrong(f"the mover's process {state}", "a mover that goes on", worker.output.strip().splitlines()[-1])


def _judge_move_orders(lab, move_orders):
    # All at once: each is a process that has to load Python and kafka-python first.
    killed, refused, expired, expelled, early = (
        _scene(lab, accident, move_orders)
        for accident in ("killed", "refused", "expired", "expelled", "expelled-early")
    )
    _needs_to_end(killed.worker)
    _look_for_damage(lab, killed)
    for scene in (refused, expired):
        scene.worker.wait(60)  # it raised, or it went on: the log tells
        said = scene.worker.output.strip().splitlines()[-1:]
        if said and said[0].startswith("TimeoutError: Waited"):  # `take` got nothing in its ten seconds
            raise TimeoutError(f"the mover whose record was {scene.accident} got no records in time")
        there = {record.value for record in lab.records(scene.targets[0])}
        if scene.worker.state == "ended" and not there.issuperset(scene.orders):
            raise Wrong(
                f"an order was {scene.accident}, and your function came back as if all were moved",
                "the error, so that the process ends and the next one begins at the right place",
                _MISSING[scene.accident],
            )
    expelled.worker.wait_for("before send", 60)
    wait_until(lambda: "expelled" in early.worker.points or early.worker.state != "running", "the question", 60)
    ids = {scene.accident: scene.transactional_id for scene in (refused, expired)}  # the others are other processes
    behind = [
        _mover(
            lab, scene, scene.targets[1], ids.get(scene.accident) or lab.transactional_id(f"another-{scene.accident}"),
            move_orders, f"another, {scene.accident}",
        )
        for scene in (refused, expired, expelled, early)
    ]  # fmt: skip
    for worker, scene in zip(behind, (refused, expired), strict=False):
        _needs_to_end(worker)
        _look_for_damage(lab, scene)
    for worker in behind[2:]:
        _needs_to_end(worker)
    expelled.worker.release()
    early.worker.release()
    expelled.worker.wait(60)
    wait_until(lambda: "goes on" in early.worker.points or early.worker.state != "running", "the mover to go on", 60)
    early.worker.kill()
    for scene in (expelled, early):
        lab.producer(transactional_id=scene.transactional_id).init_transactions()  # as its restart would
        _look_for_damage(lab, scene)
    picture = capture_log(lab.cluster, killed.targets[0])
    return log_view(picture, f"Killed {len(DEATHS)} times: each order is there once")


_WANTED = {
    "killed": "each order once, though the mover is killed before and after each of its calls",
    "refused": "each order once: the first process ends with the refused record, the second one may write it",
    "expired": "each order once: the first process ends with the expired record, the second one goes on",
    "expelled": "each order once, though the group expels a mover at work, and another one takes over",
}
_WANTED["expelled-early"] = _WANTED["expelled"]
_TWICE = {
    "expelled": "The group had given the orders to another mover, and took offsets from the expelled one all the same. "
    "It takes them from anybody who has only the group's name, or generation -1. Ask for the membership together with "
    "the records, and send that one.",
}
_TWICE["expelled-early"] = (
    "The group had expelled the mover between `take` and `group_metadata`, which then says generation -1. The broker "
    "takes offsets with generation -1 from anybody: look at it, and leave the record to the member that owns it now."
)
_MISSING = {
    "killed": "Offsets were committed for records that had not been written: in a call of their own, or ahead of the "
    "records.",
    "refused": "The mover went on behind the refused record. Let the error out: an abort takes back records and "
    "offsets, not the consumer's position.",
    "expired": "A record expired, and the mover went on behind it. `commit_transaction` does not notice that: look at "
    "the future of each record before `send_offsets_to_transaction`. And let its error out: an abort does not take the "
    "consumer back.",
}


def _look_for_damage(lab, scene: _Scene) -> None:
    topics = list(dict.fromkeys(scene.targets))
    for topic in topics:
        _settle(lab, topic)
    records = [record for topic in topics for record in lab.records(topic)]
    got = Counter(record.value for record in records)
    twice = [_name(order) for order in scene.orders if got[order] > 1]
    missing = [_name(order) for order in scene.orders if not got[order]]
    picture = log_view(capture_log(lab.cluster, topics[-1]), f"The target when the mover had been {scene.accident}")
    wanted = _WANTED[scene.accident]
    with KafkaAdminClient(**lab.cluster.connection) as admin:
        offsets = admin.list_group_offsets([scene.group]).get(scene.group, {})
    stands = {place.partition: found.offset for place, found in offsets.items()}
    if twice:
        raise Wrong(
            f"{', '.join(twice)} twice; committed for the group, by partition: {stands or 'nothing'}",
            wanted,
            _TWICE.get(scene.accident)
            or "The consumed offsets are not committed in the same transaction as the orders, or they are those of "
            "the records themselves and not of the next ones.",
            picture,
        )
    if missing:
        cause = _MISSING.get(scene.accident, _MISSING["killed"])
        raise Wrong(f"never moved: {', '.join(missing)}", wanted, cause, picture)
    again = [record for record in lab.records(scene.source) if record.offset >= stands.get(record.partition, 0)]
    if again:  # whatever its deaths have shown: the next start would begin there
        raise Wrong(
            f"all orders moved; committed for the group, by partition: {stands or 'nothing'}, and "
            f"{_name(again[0].value)} is on partition {again[0].partition}, offset {again[0].offset}",
            "offsets behind all that was moved, in each partition: else the next start moves it again",
            "The offset of each record belongs to the record's own partition, and is that of the next one.",
            picture,
        )
    source = {record.value: record for record in lab.records(scene.source)}
    for record in records:
        if (record.key, record.headers) != (source[record.value].key, source[record.value].headers):
            raise Wrong(
                f"{_name(record.value)} has the key {record.key!r} and the headers {record.headers!r}",
                f"{source[record.value].key!r} and {source[record.value].headers!r}, as in the source",
                "`send` takes `key` and `headers`.",
                picture,
            )


def _name(order: bytes) -> str:
    return order[:7].decode()


q3 = Question(
    "q3",
    wants=("move_orders",),
    starter='''
def move_orders(consumer, producer, target, count):
    """Move `count` orders to `target`, each once, although the process may be killed at any moment."""
    for record in take(consumer, count):
        producer.send(target, record.value, key=record.key)
''',
    solution='''
def move_orders(consumer, producer, target, count):
    """Move `count` orders to `target`, each once, although the process may be killed at any moment."""
    moved = 0
    while moved < count:
        (record,), membership = take(consumer, 1), consumer.group_metadata()  # together: later it may be another one
        if membership.generation_id < 0:
            continue  # expelled between the two calls: the record belongs to another member now
        producer.begin_transaction()
        sent = producer.send(target, record.value, key=record.key, headers=record.headers)
        sent.get(timeout=10)  # raises for an expired record; the commit would not notice it
        next_one = {TopicPartition(record.topic, record.partition): OffsetAndMetadata(record.offset + 1, "", -1)}
        producer.send_offsets_to_transaction(next_one, membership)
        producer.commit_transaction()  # an error ends the process: the next one aborts what is open, by its id
        moved += 1
''',
    judge=_judge_move_orders,
    hints=[
        "Writing the order and noting that it is done must become one. `consumer.commit()` is a second step.",
        "`producer.send_offsets_to_transaction(offsets, membership)`, before the commit. Ask for `membership = "
        "consumer.group_metadata()` right behind `take`: later, an expelled consumer says generation -1, and the "
        "broker takes that from anybody.",
        "An offset that is committed is that of the *next* record: `record.offset + 1`. And look at each future "
        "before you send the offsets: `commit_transaction` does not notice an expired record.",
    ],
    why="Input position and output are committed together: that is all of exactly-once on Kafka.",
    deadline=120,
    attack=Attack(_begin_attack, _draw_attack, _tell_attack, ("mover", "broker")),
)


# -- q4: the key for the world outside

_MAILS = [  # customer, partition, milliseconds of its timestamp, the value as its program writes it
    ("ann", 0, 0, '{"order": 1, "customer": "ann"}'),
    ("bob", 1, 5, '{"order": 2, "customer": "bob"}'),
    ("ann", 0, 7, '{"order": 3, "customer": "ann"}'),
    ("eve", 1, 0, '{"order": 4, "customer": "eve"}'),
    ("bob", 0, 9, '{"customer":"bob","order":2}'),  # once more, by another program
]


class _Unreachable(Exception):
    """What the provider's call raises when it cannot be reached."""


def _mail_in_a_process(connection, topic, mail):
    """Mail all orders in another process, which begins in the middle; each call becomes a line of its output."""
    records = read_topic(connection, topic)
    for record in [*records[2:], *records]:
        place = [record.partition, record.offset]
        mail(record, lambda key, to, place=place: print(f"\nCALL {json.dumps([*place, repr(key)])}", flush=True))


def _judge_mail(lab, mail):
    topic = lab.topic("orders", partitions=2)
    producer, now = lab.producer(), round(time.time() * 1000)  # a topic's retention deletes what is older than a week
    for customer, partition, later, value in _MAILS:
        record = {"value": value.encode(), "key": customer.encode(), "timestamp_ms": now + later}
        producer.send(topic, partition=partition, **record).get(timeout=10)
    records = lab.records(topic)
    worker = Worker(
        _mail_in_a_process, lab.cluster.connection, topic, mail, environment={"PYTHONHASHSEED": "12345"}
    )  # another process has another hash seed; it starts while this one judges
    lab.afterwards.callback(worker.kill)
    calls: list[tuple] = []  # the record, the key, to whom
    reachable, tried = False, 0

    def send_mail(key, to):
        nonlocal tried
        tried += 1
        if not reachable:
            raise _Unreachable("the mail provider cannot be reached")
        calls.append((record, repr(key), to))

    record = records[0]
    try:
        lab.call(mail, record, send_mail)
        swallowed = True
    except _Unreachable:
        swallowed = False
    if not tried:
        raise Wrong("`send_mail` was not called", "a mail for each order", "Call it for every record.")
    reachable = True
    for record in [*records, *records]:  # read a second time, as after a crash
        before = len(calls)
        lab.call(mail, record, send_mail)
        if len(calls) == before and not any(_order(called) == _order(record) for called, _, _ in calls):
            if record is records[0]:
                raise Wrong(
                    "the provider could not be reached; the order was read again, and `send_mail` was not called",
                    "a mail for each order",
                    "What is noted before the call has worked is lost with it: leave repetitions to the provider.",
                )
            raise Wrong(f"no mail for order {_order(record)}", "a mail for each order", "Call it for every record.")
    if swallowed:
        raise Wrong(
            "the provider could not be reached, and `mail` came back without an error",
            "the provider's error: the caller reads the order again",
            "An `except` clause hides it: the order counts as done, and its mail is never sent.",
        )
    wrong = [(_order(called), to) for called, _, to in calls if to != _customer(called)]
    if wrong:
        raise Wrong(
            f"order {wrong[0][0]}: a mail to {wrong[0][1]!r}", "the customer's name, a str", "Decode the value."
        )
    return _judge_keys(worker, calls)


def _order(record) -> int:
    return json.loads(record.value)["order"]


def _customer(record) -> str:
    return json.loads(record.value)["customer"]


def _judge_keys(worker, calls):
    here: dict = {}  # by record, the keys of this process
    names = {(record.partition, record.offset): _order(record) for record, _, _ in calls}
    customers = {_order(record): _customer(record) for record, _, _ in calls}
    for record, key, _ in calls:
        here.setdefault((record.partition, record.offset), set()).add(key)
    wanted = "one key for an order, and another for each other one"
    new = [names[place] for place, keys in here.items() if len(keys) > 1]
    if new:
        raise Wrong(
            f"order {new[0]} was read twice, with two keys",
            wanted,
            "Each call has a new key, so the provider cannot know a repetition.",
        )
    state = worker.wait(60)
    if state != "ended":
        raise Wrong(f"in another process, `mail` {state}", "", worker.output.strip().splitlines()[-1])
    lines = [line[5:] for line in worker.output.splitlines() if line.startswith("CALL ")]
    for partition, offset, key in map(json.loads, lines):
        if key not in here.get((partition, offset), {key}):
            raise Wrong(
                f"order {names[partition, offset]} has another key when another process reads it",
                wanted,
                "`hash()` differs from process to process, and a number that is counted in memory begins anew.",
            )
    orders: dict = {}  # by key, the orders that it stands for
    for place, keys in here.items():
        for key in keys:
            orders.setdefault(key, set()).add(names[place])
    for shared in orders.values():
        if len(shared) > 1:
            one, other = sorted(shared)[:2]
            raise Wrong(
                f"orders {one} and {other} have the same key: the second one gets no mail",
                wanted,
                "The key names the customer, who may have several orders."
                if customers[one] == customers[other]
                else "The key names something that orders of two customers share, such as a timestamp, or an offset "
                "without its partition.",
            )
    if len(orders) > len(customers):
        raise Wrong(
            "order 2 has two keys: bob gets two mails",
            wanted,
            "The key names the record: its place, its time or its bytes. And one order stands on the log twice.",
        )
    return "four orders, one on the log twice, all read again in two processes: four mails"


q4 = Question(
    "q4",
    wants=("mail",),
    starter='''
def mail(record, send_mail):
    """Send the thank-you mail for an order, with a key by which the provider knows a repetition."""
    order = json.loads(record.value)
    send_mail(str(time.time()), order["customer"])
''',
    solution='''
def mail(record, send_mail):
    """Send the thank-you mail for an order, with a key by which the provider knows a repetition."""
    order = json.loads(record.value)
    # an error of the provider goes out: the caller does not commit, and reads the order again
    send_mail(f"thank-you/{order['order']}", order["customer"])
''',
    judge=_judge_mail,
    hints=[
        "The key has to be the same when the same mail is sent again, and another one for another mail.",
        "Partition and offset are the same after a crash; but not when another program writes the order again.",
        "The order's own number is the same in both cases.",
    ],
    why="Only the one who knows what the work *means* can name it; Kafka knows places, not orders.",
    deadline=60,
)
