"""Questions of lesson 10, exactly-once."""

import json
from collections import Counter

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import Worker, internals, point, read_topic
from helpers.pictures import capture_log, log_view

ORDERS = [b"order %d" % number for number in range(1, 7)]
CUSTOMERS = [b"ann", b"bob", b"eve"]


def _place_orders(lab, topic, orders=ORDERS) -> None:
    producer = lab.producer()
    for number, order in enumerate(orders):
        producer.send(topic, order, key=CUSTOMERS[number % 3])
    producer.flush()


def _begin(producer) -> None:
    producer.init_transactions()
    producer.begin_transaction()


# -- q1: who reads what was taken back


def _judge_sum_of_payments(lab, sum_of_payments):
    topic = lab.topic("payments")
    producer = lab.producer(transactional_id=lab.transactional_id())
    _begin(producer)
    for amount, end in [(10, producer.commit_transaction), (200, producer.abort_transaction), (5, None)]:
        if amount != 10:
            producer.begin_transaction()
        producer.send(topic, str(amount).encode())
        producer.flush()
        if end:
            end()
    producer.commit_transaction()
    total = lab.call(sum_of_payments, lab.cluster.connection, topic)
    log = log_view(capture_log(lab.cluster, topic), "The payments on the log")
    if total == 215:
        raise Wrong(
            "215",
            "15: 10 and 5 were committed",
            "The payment of 200 was aborted: only readers of committed records pass over it.",
            log,
        )
    if total != 15:
        raise Wrong(f"{total!r}", "15: 10 and 5 were committed", "Add up every value that is committed, as a number.")
    return log


_SUM = '''
def sum_of_payments(connection, topic):
    """What has been paid in all, by the records on the topic."""
    consumer = KafkaConsumer(**connection, isolation_level="read_uncommitted")
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
)


# -- q2: all or nothing, and what to do after which error


def _judge_place(lab, place):
    topic1, topic2 = lab.topic("topic1"), lab.topic("topic2", config={"max.message.bytes": 300})

    def values():
        return [[record.value for record in lab.records(topic)] for topic in (topic1, topic2)]

    def producer():
        made = lab.producer(transactional_id=lab.transactional_id())
        made.init_transactions()
        return made

    first = producer()
    answer = lab.call(place, first, topic1, topic2, b"order 1", b"mail 1")
    if values() != [[b"order 1"], [b"mail 1"]]:
        raise Wrong(
            f"committed after `place`: {values()}", "order 1 and mail 1", "Both are sent, then the transaction ends."
        )
    if answer is not True:
        raise Wrong(f"`place` returned {answer!r}", "True: both are committed", "Return it after the commit.")
    try:
        answer = place(first, topic1, topic2, b"order 2", b"mail 2" * 100)
    except Exception as error:
        raise Wrong(
            f"the broker refused mail 2, and `place` raised {type(error).__name__}",
            "False, and none of the two to be read",
            "This is an error after which one aborts; `abort_transaction` works then.",
        ) from error
    if values() != [[b"order 1"], [b"mail 1"]]:
        raise Wrong(f"committed: {values()}", "order 1 and mail 1 alone", "Order 2 has no mail: it must not be read.")
    if answer is not False:
        raise Wrong(
            f"the broker refused mail 2, and `place` returned {answer!r}",
            "False: neither is committed",
            "The caller cannot tell a refused order from one that was placed.",
        )
    state = internals.has_open_transaction(first)
    if state:
        raise Wrong(
            "`place` has returned False, and its transaction is still open",
            "an aborted transaction: until its end, readers of committed records wait behind it",
            "`abort_transaction` is missing.",
        )
    first.close()
    old, new = producer(), producer()
    try:
        answer = place(old, topic1, topic2, b"order 3", b"mail 3")
    except Exception:
        if lab.call(place, new, topic1, topic2, b"order 4", b"mail 4") is not True:
            raise Wrong("the new producer could not place order 4", "True", "") from None
        return "two orders placed, one refused, and the fenced producer raised"
    raise Wrong(
        f"the producer was fenced, and `place` returned {answer!r}",
        "an exception: this producer will never write again, so the process has to end",
        "When `abort_transaction` raises as well, the error is fatal: let it out.",
    )


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
    try:
        producer.begin_transaction()
        producer.send(topic1, order)
        producer.send(topic2, mail)
        producer.commit_transaction()
        return True
    except KafkaError:
        producer.abort_transaction()  # raises when the error was fatal
        return False
''',
    judge=_judge_place,
    hints=[
        "There are three outcomes; the textbook's `except` clause knows one of them only, and tells nobody.",
        "After an error, try `abort_transaction`. When does that raise?",
        "It raises when the error was fatal, for example for a fenced producer. So do not catch that one.",
    ],
    why="An abort that works means 'not done, try again'; an abort that raises means 'not by me, never again'.",
    deadline=25,
)


# -- q3: the loop


class _Watched(KafkaProducer):
    """A producer at whose calls the judge can kill the process."""

    def send(self, *args, **kwargs):
        point("before send")
        return super().send(*args, **kwargs)

    def commit_transaction(self):
        point("before commit")
        super().commit_transaction()
        point("after commit")


def _move_in_a_process(connection, source, target, group, transactional_id, move_orders):
    producer = _Watched(**connection, transactional_id=transactional_id)
    producer.init_transactions()
    consumer = KafkaConsumer(
        source, **connection, group_id=group, group_instance_id="mover", auto_offset_reset="earliest",
        enable_auto_commit=False, isolation_level="read_committed",
    )  # fmt: skip
    left = len(ORDERS) - (consumer.committed(TopicPartition(source, 0)) or 0)
    if left > 0:
        move_orders(consumer, producer, target, left)
    producer.flush()


def _judge_move_orders(lab, move_orders):
    source, target, group = lab.topic("orders"), lab.topic("target"), lab.group()
    transactional_id = lab.transactional_id()
    _place_orders(lab, source)
    for die_at in ["before commit", "after commit", ("before send", 2), None]:
        worker = Worker(
            _move_in_a_process, lab.cluster.connection, source, target, group, transactional_id, move_orders,
            die_at=die_at,
        )  # fmt: skip
        lab.afterwards.callback(worker.kill)
        state = worker.wait(30)
        if state.startswith("failed"):
            raise Wrong(f"the mover's process {state}", "a mover that goes on", worker.output.strip().splitlines()[-1])
        _look_for_damage(lab, source, target, group, ended=state == "ended")
    return log_view(capture_log(lab.cluster, target), "Killed three times: each order is there once")


def _look_for_damage(lab, source, target, group, ended: bool) -> None:
    got = Counter(record.value for record in lab.records(target))
    twice = [order.decode() for order in ORDERS if got[order] > 1]
    missing = [order.decode() for order in ORDERS if not got[order]]
    picture = log_view(capture_log(lab.cluster, target), "The target when the mover had been killed")
    wanted = "each order once, though the mover is killed before and after a commit, and between two sends"
    if twice:
        with KafkaAdminClient(**lab.cluster.connection) as admin:
            stands = admin.list_group_offsets([group])[group].get(TopicPartition(source, 0))
        raise Wrong(
            f"{', '.join(twice)} twice; committed for the group: {f'offset {stands.offset}' if stands else 'nothing'}",
            wanted,
            "The consumed offsets are not committed in the same transaction as the orders, or they are those of the "
            "records themselves and not of the next ones.",
            picture,
        )
    if missing and ended:
        raise Wrong(
            f"never moved: {', '.join(missing)}",
            wanted,
            "Offsets were committed for records that had not been written: in a call of their own, or ahead of the "
            "records.",
            picture,
        )


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
    for _ in range(count):
        (record,), membership = take(consumer, 1), consumer.group_metadata()
        producer.begin_transaction()
        producer.send(target, record.value, key=record.key)
        next_one = {TopicPartition(record.topic, record.partition): OffsetAndMetadata(record.offset + 1, "", -1)}
        producer.send_offsets_to_transaction(next_one, membership)
        producer.commit_transaction()
''',
    judge=_judge_move_orders,
    hints=[
        "Writing the order and noting that it is done must become one. `consumer.commit()` is a second step.",
        "`producer.send_offsets_to_transaction(offsets, consumer.group_metadata())`, before the commit.",
        "An offset that is committed is that of the *next* record: `record.offset + 1`.",
    ],
    why="Input position and output are committed together: that is all of exactly-once on Kafka.",
    deadline=40,
)


# -- q4: the key for the world outside


def _judge_mail(lab, mail):
    topic = lab.topic("orders")
    producer = lab.producer()
    for number, customer in [(1, "ann"), (2, "bob"), (3, "ann"), (2, "bob")]:
        value = json.dumps({"order": number, "customer": customer}).encode()
        producer.send(topic, value, key=customer.encode())
    producer.flush()
    calls: list[tuple] = []
    sent: dict = {}

    def send_mail(key, to):
        calls.append((key, to))
        sent.setdefault(key, to)

    for record in read_topic(lab.cluster, topic) * 2:  # the whole topic is read a second time, as after a crash
        lab.call(mail, record, send_mail)
    if not calls:
        raise Wrong("`send_mail` was never called", "a mail for each order", "Call it for every record.")
    mails = Counter(to for to in sent.values())
    if any(not isinstance(to, str) for to in mails):
        raise Wrong(f"mails to {sorted(map(str, mails))}", "the customer's name, a str", "Decode the customer.")
    if len({key for key, _ in calls}) == len(calls):
        raise Wrong(
            f"{len(calls)} mails for 3 orders",
            "3: to ann, bob and ann",
            "Each call has a new key, so the provider cannot know a repetition.",
        )
    if mails == {"ann": 1, "bob": 1}:
        raise Wrong(
            "2 mails for 3 orders: ann's second order got none",
            "3: to ann, bob and ann",
            "The key names the customer, who may have several orders.",
        )
    if mails == {"ann": 2, "bob": 2}:
        raise Wrong(
            "4 mails for 3 orders: bob got two for order 2",
            "3: to ann, bob and ann",
            "The key names the record's place, and one order stands on the log twice.",
        )
    if mails != {"ann": 2, "bob": 1}:
        raise Wrong(f"mails: {dict(mails)}", "two to ann, one to bob", "One key an order, the customer as `to`.")
    return "three orders, one on the log twice, all read twice: three mails"


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
    send_mail(f"thank-you/{order['order']}", order["customer"])
''',
    judge=_judge_mail,
    hints=[
        "The key has to be the same when the same mail is sent again, and another one for another mail.",
        "Partition and offset are the same after a crash; but not when somebody sends the order twice.",
        "The order's own number is the same in both cases.",
    ],
    why="Only the one who knows what the work *means* can name it; Kafka knows places, not orders.",
)
