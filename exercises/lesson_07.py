"""Questions of lesson 07, the dead letter queue."""

import contextlib
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest import mock

import cloudpickle
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from sqlalchemy.exc import OperationalError

from exercises.frame.attack import Attack
from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import Worker, point, wait_until
from helpers.pictures import capture_log, log_view

# What a judge runs in another process goes there by value: loading this module, and matplotlib with it, takes seconds.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PREFIX = "__dlq.errors."
FAX = "order 3, by fax: 1 thé".encode("latin-1")
LONG_FAX = FAX + b", in many words" * 30
SENT_BY = ("sent-by", b"checkout 1.0")


def _order(number, goods="tea") -> bytes:
    return json.dumps({"order": number, "goods": goods}).encode()


def _place(lab, topic, values, key=b"ann", headers=(SENT_BY,), partition=None):
    producer = lab.producer()
    for value in values:
        producer.send(topic, value, key=key, headers=list(headers), partition=partition).get(timeout=10)
    return lab.records(topic)


def _place_as_java(lab, topic, partition, value, key, headers) -> None:
    """A record as Java's producer can write it: neither key nor value, headers without a value."""
    producer = lab.producer()
    wait_until(lambda: producer.partitions_for(topic), "the topic", 30)
    place, now = TopicPartition(topic, partition), lab.records(topic)[-1].timestamp
    with mock.patch("kafka.producer.producer_batch.sum", lambda _: 0, create=True):  # it adds up headers' lengths
        future, *_ = producer._accumulator.append(place, now, key, value, headers)  # `send` refuses these
    producer.flush()
    future.get(timeout=10)


def _committed(lab, topic, group) -> int:
    with KafkaConsumer(**lab.cluster.connection, group_id=group, enable_auto_commit=False) as reader:
        return reader.committed(TopicPartition(topic, 0)) or 0


def _take_back(lab, topic, value) -> None:
    """A record whose transaction is aborted."""
    producer = lab.producer(transactional_id=lab.transactional_id(f"{topic}-taken-back"))
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, value, key=b"ann").get(timeout=10)
    producer.abort_transaction()
    _settle(lab, topic)


def _settle(lab, topic) -> None:
    """Wait until no transaction is open on a topic: a marker may come a moment after `commit_transaction` returns."""

    def without_open_ones():
        lanes = capture_log(lab.cluster, topic).lanes
        return not any(mark.kind == "stable" for lane in lanes for mark in lane.marks)

    wait_until(without_open_ones, f"the markers on {topic}", timeout=20, pause=0.05)


def _told(record) -> str:
    if record.value is None:
        return "no value"
    try:
        return f"order {json.loads(record.value)['order']}"
    except ValueError:
        return "a fax"
    except (KeyError, TypeError):
        return record.value.decode()


def _comes_from_kafka(error) -> bool:
    return error is not None and (
        isinstance(error, KafkaError) or _comes_from_kafka(error.__cause__ or error.__context__)
    )


def _same_record(letter, failed, what="the dead letter") -> None:
    """A letter has value, key and own headers as they came; what kafka-python cannot write is empty."""
    value = b"" if failed.value is None and failed.key is None else failed.value
    if letter.value != value:
        raise Wrong(
            f"{what} has the value {str(letter.value)[:80]}",
            f"{value}, to the byte",
            "Send `record.value` as it is: packed into JSON or decoded, it is not the record any more.",
        )
    if letter.key != failed.key:
        raise Wrong(
            f"{what} has the key {letter.key}; its key is lost",
            f"{failed.key}",
            "Without its key it cannot go back to its partition: `key=`.",
        )
    own = [(name, header or b"") for name, header in failed.headers]
    has = [(name, header) for name, header in letter.headers if not name.startswith(PREFIX)]
    lost = [name for name, _ in own if name not in dict(has)]
    if lost:
        raise Wrong(
            f"{what} lacks the record's own header {lost}",
            "the record's own headers, and yours after them",
            "`record.headers` is a list of pairs: add yours to it.",
        )
    if has != own:
        raise Wrong(
            f"{what} has of the record's own headers {has}",
            f"{own}",
            "A name may be there twice: a list keeps both, a dict one of them.",
        )


def _same_records(letters, failed) -> None:
    """The same for letters and records one by one, as far as both go."""
    for letter, record in zip(letters, failed, strict=False):
        if letter.value == record.value:
            _same_record(letter, record)


# -- q1: closing does not commit


@contextlib.contextmanager
def _noting_auto_commit():
    """Whether the consumers that are made meanwhile commit by themselves."""
    original, noted = KafkaConsumer.__init__, []

    def init(consumer, *topics, **settings):
        noted.append(settings.get("enable_auto_commit", True))
        original(consumer, *topics, **settings)

    KafkaConsumer.__init__ = init
    try:
        yield noted
    finally:
        KafkaConsumer.__init__ = original


def _judge_pack_all(lab, pack_all):
    topic, group, roomy = lab.topic(), lab.group(), lab.topic("dead-letters-2")
    refusing = lab.topic("dead-letters", config={"max.message.bytes": 300})
    _place(lab, topic, [_order(1), _order(2), LONG_FAX, _order(4)])
    _take_back(lab, topic, _order(9))
    _place(lab, topic, [None, _order(6)])
    packed, early = [], []

    def pack(order):
        if order["order"] == 2:
            early.append(_committed(lab, topic, group))
        packed.append(order["order"])

    with _noting_auto_commit() as auto_commit:
        try:
            lab.call(pack_all, lab.cluster.connection, topic, refusing, group, 6, pack)
        except Exception as error:
            if not _comes_from_kafka(error):
                raise
        else:
            raise Wrong(
                "the queue refused the dead letter, and your function returned as if it were there",
                "the exception of the refusal",
                "`send` alone tells nothing; `.get(timeout=10)` on its future raises.",
            )
        by_itself = any(auto_commit[: len(auto_commit) - len(early)] or auto_commit)
    committed = _committed(lab, topic, group)
    log = capture_log(lab.cluster, topic, groups=[group], label=_told)
    picture = log_view(log, "Where the group goes on after the refusal")
    if early and early[0] > 1:
        raise Wrong(
            f"while order 2 was being packed, the committed offset was {early[0]} already",
            "the committed offset 1: order 1 is done, order 2 is not",
            "The commit stands before the work: an accident in between loses the order.",
            picture,
        )
    if committed > 2:
        raise Wrong(
            f"after the refusal the group's committed offset is {committed}: the fax, at offset 2, is passed over",
            "the committed offset 2, at the fax",
            "`close()` commits the consumer's position, behind the fax, as long as `enable_auto_commit` is on; "
            "an interval says only how often else."
            if by_itself
            else "A commit runs on the way out, or before the dead letter is acknowledged.",
            picture,
        )
    if committed < 2:
        raise Wrong(
            f"the group's committed offset is {committed}, though orders {packed} are packed",
            "the committed offset 2: orders 1 and 2 are done",
            "`consumer.commit()` after each record is part of it.",
            picture,
        )
    failed = [record for record in lab.records(topic) if record.value in (LONG_FAX, None)]
    try:
        lab.call(pack_all, lab.cluster.connection, topic, roomy, group, 4, pack)
    finally:
        letters = lab.records(roomy)
        _same_records(letters, failed)  # without its key, kafka-python refuses the record without a value
    if 9 in packed:
        raise Wrong(
            "order 9 is packed, and its transaction was aborted: nobody has ordered it",
            "orders 1, 2, 4 and 6",
            'A consumer gets aborted records, too, unless it asks for others: `isolation_level="read_committed"`.',
        )
    if packed != [1, 2, 4, 6] or [letter.value for letter in letters] != [LONG_FAX, None]:
        raise Wrong(
            f"called again with a larger queue: orders {packed} packed in all, {len(letters)} dead letters",
            "orders 1, 2, 4 and 6, and two dead letters: the fax, and the record without a value",
            "It goes on at the committed offset; whatever cannot be packed goes to the dead letters.",
        )
    return "the refusal raises, the fax is the next record that the group reads, and a larger queue takes it"


_PACK_ALL = '''
def pack_all(connection, topic, dead_letters, group, count, pack):
    """Pack `count` orders; what cannot be packed goes to the dead letters. Raises when these refuse it."""
    producer = KafkaProducer(**connection)
    consumer = KafkaConsumer(
        topic, **connection, group_id=group, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    try:
        for _ in range(count):
            (record,) = take(consumer, 1)
            try:
                pack(json.loads(record.value))
            except Exception:
                letter = producer.send(dead_letters, record.value, key=record.key, headers=record.headers)
                letter.get(timeout=10)
            consumer.commit()
    finally:
        consumer.close()
        producer.close()
'''

q1 = Question(
    "q1",
    wants=("pack_all",),
    starter=_PACK_ALL,
    solution=_PACK_ALL.replace(
        'auto_offset_reset="earliest", isolation_level="read_committed"\n',
        'auto_offset_reset="earliest", isolation_level="read_committed",\n'
        "        enable_auto_commit=False,  # or `close` commits behind a record that has just failed\n",
    ),
    judge=_judge_pack_all,
    hints=[
        "The exception leaves the loop before `consumer.commit()`. What else runs on the way out?",
        "`consumer.close()` commits the position where the consumer commits by itself.",
        "Who commits on purpose switches the other way off: `enable_auto_commit=False`.",
    ],
    why="A commit says 'done'; it must not happen on the way out of an accident.",
    deadline=40,
)


# -- q2: a dead letter with everything on it


def _judge_dead_letter(lab, dead_letter):
    topic = lab.topic("orders", partitions=3)
    queue, small = lab.topic("dead-letters"), lab.topic("dead-letters-2", config={"max.message.bytes": 500})
    _place(lab, topic, [_order(1), _order(2)], partition=2)
    *_, failed = _place(lab, topic, [FAX], partition=2, headers=[SENT_BY, ("step", b"1"), ("step", b"2")])
    *_, long = _place(lab, topic, [LONG_FAX], partition=2)
    producer = lab.producer(linger_ms=2000)
    dead_letter(producer, queue, failed, ValueError("no JSON"), "my-group")
    letters = lab.records(queue)
    if not letters:
        raise Wrong(
            "your function has returned, and there is no dead letter on the topic",
            "a dead letter that is on the log when the function returns",
            "`send` puts it into a buffer only (this producer lingers for two seconds): wait for the future.",
        )
    _compare(letters[-1], failed, "no JSON")
    try:
        dead_letter(lab.producer(), small, long, ValueError("no JSON"), "my-group")
    except Exception as error:
        if not _comes_from_kafka(error):
            raise
    else:
        raise Wrong(
            "the topic refused a dead letter that is too large, and your function returned as if it were there",
            "the exception of the refusal",
            "`flush` does not raise for a record that failed; its future does.",
        )
    _judge_poison(lab, dead_letter, topic, queue)
    return "everything is on the dead letter, whatever the record lacks, and a refused one raises"


def _judge_poison(lab, dead_letter, topic, queue) -> None:
    """Records that lack something, and an error without a text: each becomes a dead letter."""
    connect = ("__connect.errors.topic", b"elsewhere")
    poison = [
        ("a record without a value", None, b"ann", [SENT_BY], "no value"),
        ("a header without a value", FAX, b"ann", [SENT_BY, ("trace", None)], "no JSON"),
        ("a record with neither key nor value", None, None, [connect], "no value"),
        ("a record without a key", FAX, None, [SENT_BY], "no JSON"),
        ("an error without a text", b"[]", b"", [], ""),
    ]
    for what, value, key, headers, text in poison:
        _place_as_java(lab, topic, 2, value, key, headers)
        failed = lab.records(topic)[-1]
        try:
            dead_letter(lab.producer(), queue, failed, AssertionError(text) if text else AssertionError(), "my-group")
        except Exception as error:
            raise Wrong(
                f"for {what} your function raised {type(error).__name__}: {str(error)[:100]}",
                "a dead letter for each record: without one, its partition stands still",
                'kafka-python does not write what Java can: put `b""` in place of what is None.'
                if isinstance(error, TypeError | ValueError) and None in (value, key, *dict(headers).values())
                else "The handler has to work for every record and every error.",
            ) from error
        _compare(lab.records(queue)[-1], failed, text)


def _compare(letter, failed, message: str) -> None:
    facts = {name.removeprefix(PREFIX): value for name, value in letter.headers if name.startswith(PREFIX)}
    _same_record(letter, failed)
    wanted = {
        "topic": failed.topic.encode(),
        "partition": b"%d" % failed.partition,
        "offset": b"%d" % failed.offset,
        "group": b"my-group",
        "message": message.encode(),
    }
    wrong = {name: facts.get(name) for name in wanted if facts.get(name) != wanted[name]}
    if wrong:
        names = [PREFIX + name for name in wrong]
        raise Wrong(
            f"headers {names} have the values {list(wrong.values())}",
            f"{[wanted[name] for name in wrong]}",
            "The facts are those of the record that failed, as text in bytes: `str(record.offset).encode()`.",
        )


q2 = Question(
    "q2",
    wants=("dead_letter",),
    starter='''
def dead_letter(producer, dead_letters, record, error, group):
    """Put a record aside; `producer` sends bytes as they are."""
    producer.send(dead_letters, json.dumps({"original_message": str(record.value), "error": str(error)}).encode())
''',
    solution='''
def dead_letter(producer, dead_letters, record, error, group):
    """Put a record aside; `producer` sends bytes as they are."""
    facts = {
        "topic": record.topic, "partition": record.partition, "offset": record.offset,
        "group": group, "message": error,
    }
    # Java writes headers without a value, and records with neither key nor value; kafka-python refuses to
    headers = [(name, value or b"") for name, value in record.headers]
    headers += [("__dlq.errors." + name, str(fact).encode(errors="backslashreplace")) for name, fact in facts.items()]
    value = b"" if record.value is None and record.key is None else record.value
    future = producer.send(dead_letters, value, key=record.key, headers=headers)
    producer.flush()
    future.get(timeout=10)  # raises when the dead letter is not there
''',
    judge=_judge_dead_letter,
    hints=[
        "What of the record does `send` take besides the value?",
        "Headers are a list of pairs of a str and bytes: `[*record.headers, ('__dlq.errors.group', group.encode())]`. "
        "Of a record from Java, a header's value may be None.",
        "`producer.flush()` sends at once, and `future.get(timeout=10)` raises when the record is not there.",
    ],
    why="What is not on the dead letter is nowhere: the source topic deletes its records after a while.",
    deadline=40,
)


# -- q3: what may pass is tried again, with a limit


class _NoShelf(Exception):
    """The warehouse does not know these goods."""


class _Warehouse:
    """Packs tea at once, honey at the third attempt, jam never; it does not know matcha."""

    def __init__(self):
        self.attempts, self.packed = {}, []

    def pack(self, order):
        number, goods = order["order"], order["goods"]
        self.attempts[number] = self.attempts.get(number, 0) + 1
        if goods == "matcha":
            raise _NoShelf
        if self.attempts[number] > 50:
            raise RuntimeError("tried more than 50 times")  # so that a loop without a limit comes to an end
        if goods == "jam" or (goods == "honey" and self.attempts[number] < 3):
            raise OperationalError("SELECT", {}, Exception("the shelf is locked"))
        self.packed.append(number)


TRIED = [  # a record's value, the tries that it may have, and whether it becomes a dead letter
    (_order(1), 4, False),
    (FAX, 4, True),
    (_order(3, "honey"), 4, False),
    (_order(5, "matcha"), 4, True),
    (_order(4, "jam"), 4, True),
    (None, 4, True),
    (b"17", 4, True),
    (b'{"goods": "tea"}', 4, True),
    (_order(6), 4, False),
    (_order(7, "honey"), 3, False),
    (_order(8, "jam"), 2, True),
    (_order(9), 1, False),
    (_order(10, "jam"), 1, True),
]


def _judge_process(lab, process):
    topic, queue, warehouse = lab.topic("orders", partitions=2), lab.topic("dead-letters"), _Warehouse()
    lingering, prompt = lab.producer(linger_ms=1500), lab.producer()
    records = _place(lab, topic, [value for value, _, _ in TRIED], partition=1)
    for number, (record, (_, tries, dead)) in enumerate(zip(records, TRIED, strict=True), 1):
        producer = lingering if number < 3 else prompt
        try:
            lab.call(process, record, warehouse.pack, producer, queue, tries)
        except (OperationalError, _NoShelf, ValueError, TypeError, KeyError) as error:
            _same_records(lab.records(queue), _dead(records))
            raise Wrong(
                f"for {_told(record)} your function raised {type(error).__name__}",
                "the record among the dead letters, and a function that returns",
                "Where the last attempt fails, and where decoding fails, the way leads to the dead letters too.",
            ) from None
        _judge_attempts(warehouse, record, tries)
        if dead and number < 3 and not lab.records(queue):
            raise Wrong(
                f"your function has returned for {_told(record)}, and the dead letters are []",
                "a dead letter that is on the log when the function returns: the commit comes next",
                "`send` puts it into a buffer only (this producer lingers): `.get(timeout=10)` waits for it.",
            )
    _judge_letters(lab, queue, warehouse, records)
    _judge_refusal(lab, process, topic)
    return f"attempts by order: {warehouse.attempts}; {sum(dead for *_, dead in TRIED)} dead letters"


def _judge_attempts(warehouse, record, tries) -> None:
    tried = warehouse.attempts
    if tried.get(5, 0) > 1:
        raise Wrong(
            f"the order for matcha, which has no shelf, was tried {tried[5]} times",
            "one attempt",
            "Only an `OperationalError` may pass; waiting does not build a shelf.",
        )
    number = json.loads(record.value)["order"] if record.value and b'"jam"' in record.value else 0
    if number and tried.get(number) != tries:
        told = "more than 50" if tried.get(number, 0) > 50 else tried.get(number, 0)
        raise Wrong(
            f"with tries={tries} the order for jam was tried {told} times",
            f"{tries} attempts in all, the first one among them",
            "`tries` is the number of attempts in all: count from 1, and the last one is the last.",
        )


def _judge_letters(lab, queue, warehouse, records) -> None:
    if warehouse.packed != [1, 3, 6, 7, 9]:
        raise Wrong(
            f"orders {warehouse.packed} are packed, after these attempts: {warehouse.attempts}",
            "orders [1, 3, 6, 7, 9]: orders 3 and 7 work the third time",
            "What was packed is done: leave the loop; and an `OperationalError` is worth another try.",
        )
    letters = lab.records(queue)
    failed = _dead(records)
    if [letter.value for letter in letters] != [record.value for record in failed]:
        raise Wrong(
            f"the dead letters are {[_told(letter) for letter in letters]}",
            f"{[_told(record) for record in failed]}, as they came",
            "One dead letter for each record that is given up, after its last attempt, and none for the others.",
        )
    _same_records(letters, failed)


def _dead(records) -> list:
    return [record for record, (*_, dead) in zip(records, TRIED, strict=True) if dead]


def _judge_refusal(lab, process, topic) -> None:
    small = lab.topic("dead-letters-2", config={"max.message.bytes": 300})
    *_, long = _place(lab, topic, [LONG_FAX], partition=1)
    try:
        process(long, _Warehouse().pack, lab.producer(), small, 2)
    except Exception as error:
        if not _comes_from_kafka(error):
            raise
    else:
        raise Wrong(
            "the queue refused a dead letter, and your function returned as if it were there",
            "the exception of the refusal: the caller must not commit",
            "`.get(timeout=10)` on the future raises; no `except` clause may swallow that.",
        )


def _begin_attack(lab, process):
    """Records of each kind, a shelf that is locked for some attempts, a queue that refuses."""
    source, producer = lab.topic("orders"), lab.producer()
    queue, small = lab.topic("dead-letters"), lab.topic("dead-letters-2", config={"max.message.bytes": 300})

    def run(history):
        wanted, before = [], len(lab.records(queue))
        for number, (what, tries, locked) in enumerate(history, 1):
            value = {
                "tea": _order(number),
                "no shelf": _order(number, "matcha"),
                "fax": FAX,
                "no value": None,
                "a number": b"17",
                "refused": LONG_FAX,
            }[what]
            record = SimpleNamespace(
                topic=source, partition=0, offset=number, value=value, key=b"ann", headers=[SENT_BY]
            )
            attempts, done = 0, []

            def pack(order, locked=locked, done=done):
                nonlocal attempts
                attempts += 1
                if order["goods"] == "matcha":
                    raise _NoShelf
                if attempts > 50:
                    raise RuntimeError("tried more than 50 times")
                if attempts <= locked:
                    raise OperationalError("SELECT", {}, Exception("the shelf is locked"))
                done.append(order["order"])

            told = _tell_attack((what, tries, locked))[2]
            try:
                if what == "refused":  # by a producer of its own: after a refusal, one does not go on with it
                    lab.call(process, record, pack, lab.producer(), small, tries)
                else:
                    lab.call(process, record, pack, producer, queue, tries)
            except Wrong:
                raise
            except Exception as error:
                if what == "refused" and _comes_from_kafka(error):
                    continue
                raise Wrong(f"{told}: your function raised {type(error).__name__}", "a function that returns") from None
            if what == "refused":
                raise Wrong(f"{told}: your function returned", "the exception of the refusal")
            packs = what == "tea" and locked < tries
            most = {"tea": min(locked + 1, tries), "no shelf": 1}.get(what, attempts)
            if (len(done), attempts) != (int(packs), most):
                observed = f"{told}: {attempts} attempts, packed {len(done)} times"
                raise Wrong(observed, f"{most} attempts, packed {int(packs)} times")
            wanted += [] if packs else [value]
        letters = lab.records(queue)[before:]
        if [letter.value for letter in letters] != wanted:
            raise Wrong(
                f"the dead letters are {[_told(letter) for letter in letters]}",
                f"{len(wanted)}: what could not be packed, as it came",
                "One dead letter for each record that is given up, on the log when the function returns.",
            )

    return run


def _draw_attack(draw):
    kinds = ["tea", "tea", "tea", "no shelf", "fax", "no value", "a number", "refused"]
    return [(draw.choice(kinds), draw.randint(1, 4), draw.randint(0, 4)) for _ in range(draw.randint(1, 8))]


def _tell_attack(step):
    what, tries, locked = step
    told = {
        "tea": f"tea, tries={tries}, locked for {locked} attempts",
        "no shelf": f"matcha, which has no shelf, tries={tries}",
        "refused": f"a fax that the queue refuses, tries={tries}",
    }.get(what, f"{what}, tries={tries}")
    return ("topic", "warehouse", told)


q3 = Question(
    "q3",
    wants=("process",),
    starter='''
def process(record, pack, producer, dead_letters, tries):
    """Pack the order, or put it aside after at most `tries` attempts."""
    try:
        pack(json.loads(record.value))
    except Exception:
        producer.send(dead_letters, record.value, key=record.key, headers=record.headers).get(timeout=10)
''',
    solution='''
def process(record, pack, producer, dead_letters, tries):
    """Pack the order, or put it aside after at most `tries` attempts."""
    for attempt in range(1, tries + 1):
        try:
            return pack(json.loads(record.value))
        except OperationalError:
            time.sleep(0.005 * 2**attempt)
        except Exception:  # decoding is part of the attempt: no JSON, no value, another type
            break
    # outside of the `try`: when the queue refuses the dead letter, the caller has to hear of it
    producer.send(dead_letters, record.value, key=record.key, headers=record.headers).get(timeout=10)
''',
    judge=_judge_process,
    hints=[
        "Two sorts of errors, two `except` clauses: what does each of them do next?",
        "`for attempt in range(tries)`: `return` when it worked, `break` when it will not pass.",
        "After the loop stands what is done with a record that is given up.",
    ],
    why="A retry helps against what passes; against what does not, it only holds up all others.",
    deadline=60,
    attack=Attack(_begin_attack, _draw_attack, _tell_attack, ("topic", "warehouse")),
)


# -- q4: a redriver that may be killed

LETTERS = [_order(1, "matcha"), FAX, _order(3, "matcha"), _order(4, "jam"), None, _order(5, "matcha")]
LATE, NEXT_DAY = _order(7, "matcha"), _order(8, "matcha")
DELETED, TAKEN_BACK = _order(0, "matcha"), _order(9, "matcha")


def _is_chosen(value) -> bool:
    return b"matcha" in (value or b"")


def _redrive_some(connection, queue, target, group, transactional_id, redrive, accident=""):
    """Run the redriver in this process, with points; the ids of its producers become lines of the output."""
    init, send, commit = KafkaProducer.__init__, KafkaProducer.send, KafkaProducer.commit_transaction
    end_offsets, futures, sent = KafkaConsumer.end_offsets, [], 0

    def noted(producer, **settings):
        if accident == "a letter expires":
            settings |= {"delivery_timeout_ms": 800, "request_timeout_ms": 500}
        print(f"\nTRANSACTIONAL ID {settings.get('transactional_id')}", flush=True)
        init(producer, **settings)

    def remembered(producer, topic, *args, **kwargs):
        nonlocal sent
        sent += 1
        if accident == "a letter expires" and sent == 3:
            producer.flush()
            producer._accumulator.muted.add(TopicPartition(topic, 0))  # it stays in the buffer until it expires
        futures.append(send(producer, topic, *args, **kwargs))
        return futures[-1]

    def chosen(record):
        while futures:  # what was sent before is on the log when the process is killed here
            with contextlib.suppress(KafkaError):
                futures.pop().get(timeout=5)
        point("looked at a dead letter")
        return _is_chosen(record.value)

    def commit_transaction(producer):
        if accident:
            producer.flush()  # a commit that waits for an expired record sleeps for minutes (kafka-python 3.0.12)
        point("about to commit")
        commit(producer)
        point("transaction committed")

    def ends(consumer, places, **settings):
        nonlocal accident
        found = end_offsets(consumer, places, **settings)
        if accident == "a letter comes":
            accident = ""
            with KafkaProducer(**connection) as warehouse:
                send(warehouse, queue, LATE, key=b"ann", headers=[SENT_BY]).get(timeout=10)
        return found

    KafkaProducer.__init__, KafkaProducer.send, KafkaConsumer.end_offsets = noted, remembered, ends
    KafkaProducer.commit_transaction = commit_transaction
    redrive(connection, queue, target, group, transactional_id, chosen)


def _fill_queue(lab, name: str) -> str:
    """A queue whose head is gone by retention, with an aborted letter in it."""
    queue = lab.topic(name)
    _place(lab, queue, [DELETED, *LETTERS[:2]])
    with KafkaAdminClient(**lab.cluster.connection) as admin:
        admin.delete_records({TopicPartition(queue, 0): 1})
    _take_back(lab, queue, TAKEN_BACK)
    _place(lab, queue, LETTERS[2:])
    return queue


@dataclass
class _Scene:
    """A queue, what is made of it, and the transactional ids that the redriver has used for it."""

    queue: str
    target: str
    group: str
    transactional_id: str
    ids: set = field(default_factory=set)


_NEW_ID = (
    "each letter once, although the redriver was killed while it passed them on",
    "A transactional id of its own for each run: then nobody ends the transaction of a killed one. Its offsets are "
    "undecided, and readers with `read_committed` wait behind it. Use the `transactional_id` that is given.",
)


def _judge_redrive(lab, redrive):
    killed, expired = (
        _Scene(
            _fill_queue(lab, f"dead-letters-{name}"),
            lab.topic(f"retry-{name}", partitions=partitions),
            lab.group(f"group-{name}"),
            lab.transactional_id(f"redriver-{name}"),
        )
        for name, partitions in (("killed", 1), ("expired", 2))
    )

    def start(scene, accident="", **lives):
        names = scene.queue, scene.target, scene.group, scene.transactional_id
        worker = Worker(_redrive_some, lab.cluster.connection, *names, redrive, accident, **lives)
        lab.afterwards.callback(worker.kill)
        return worker

    def ended(scene, worker, may_fail=False):
        begin = time.monotonic()

        def is_over():
            scene.ids |= {*re.findall(r"^TRANSACTIONAL ID (?!None$)(.+)$", worker.output, re.M)}
            return worker.state != "running" or (len(scene.ids) > 1 and time.monotonic() - begin > 20)

        wait_until(is_over, "the redriver's process to end", 60, pause=0.05)
        if (state := worker.state) == "running":
            raise Wrong("the redriver that was started again waits, and passes nothing on", *_NEW_ID)
        if state.startswith("failed") and not may_fail:
            raise Wrong(
                f"the redriver's process {state}", "a redriver that comes to its end", worker.output.strip()[-300:]
            )

    deaths = [("looked at a dead letter", 4), "about to commit", "transaction committed"]
    first, second = start(killed, die_at=deaths, restarts=True), start(expired, "a letter expires")
    ended(killed, first)
    ended(expired, second, may_fail=True)  # it raised, or it went on: the log tells
    first, second = start(killed, "a letter comes"), start(expired)
    ended(killed, first)
    ended(expired, second)
    _place(lab, killed.queue, [NEXT_DAY])
    ended(killed, start(killed, die_at="transaction committed", restarts=True))
    picture = _look(lab, killed, [*LETTERS, LATE, NEXT_DAY])
    _look(lab, expired, LETTERS, expired=True)
    return picture


def _look(lab, scene, letters, expired=False):
    """What is on the target, and what is left in the queue; `Wrong` if it is not each letter once."""
    with KafkaProducer(**lab.cluster.connection, transactional_id=scene.transactional_id) as settle:
        settle.init_transactions()  # returns when the markers of the last transaction are written
    wanted = [value for value in letters if _is_chosen(value)]
    queued, passed = lab.records(scene.queue, isolation_level="read_uncommitted"), lab.records(scene.target)
    begin = _committed(lab, scene.queue, scene.group)
    stay = [record for record in lab.records(scene.queue) if record.offset >= begin]
    logs = [
        capture_log(lab.cluster, scene.queue, groups=[scene.group], label=_told),
        capture_log(lab.cluster, scene.target, label=_told),
    ]
    picture = log_view(logs, "The queue and the retry topic, after the last run")
    in_transactions = any(cell.kind in ("aborted", "commit") for cell in logs[1].lanes[0].cells)
    found = f"on the retry topic: {[_told(record) for record in passed]}"
    numbers = "orders 1, 3, 5" + (", 7 and 8" if LATE in wanted else "")
    got = Counter(record.value for record in passed)
    twice, missing = [value for value in got if got[value] > 1], [value for value in wanted if not got[value]]
    lost = [value for value in LETTERS if not _is_chosen(value) and value not in {record.value for record in stay}]
    if len(scene.ids) > 1 and (twice or missing or lost):
        raise Wrong(found, *_NEW_ID, picture)
    if got[TAKEN_BACK]:
        raise Wrong(found, numbers, "Order 9 was aborted: the queue's reader needs `read_committed`.", picture)
    if [value for value in got if value not in wanted]:
        raise Wrong(found, f"{numbers} only", "Ask `chosen(record)`.", picture)
    if twice == [LATE]:
        raise Wrong(
            found,
            f"{numbers}, each once",
            "Order 7 came while the queue was being read, behind the end that was asked for. It was passed on, and "
            "the committed offset stands before it: take letters with `letter.offset < end` only.",
            picture,
        )
    if twice:
        raise Wrong(
            found,
            f"{numbers}, each once, although the redriver was killed",
            "The transaction is committed and the offset is not: it belongs into the transaction, "
            "`producer.send_offsets_to_transaction`."
            if in_transactions
            else "What a killed redriver has sent stays: without a transaction there is no taking it back.",
            picture,
        )
    if (missing or lost) and expired:
        raise Wrong(
            f"a letter expired, and is gone: {[_told_value(value) for value in [*missing, *lost]]}",
            "each letter on the retry topic or in the queue",
            "`commit_transaction` does not notice a record that has expired: look at the future of each one before it.",
            picture,
        )
    if missing and any(cell.kind == "aborted" for cell in logs[1].lanes[0].cells):
        raise Wrong(
            f"lost: {[_told_value(value) for value in [*missing, *lost]]}",
            f"{numbers}, each once, although the redriver was killed; and the others in the queue",
            "The offset was committed, and then the process was killed before its transaction was: it belongs into the "
            "transaction, `producer.send_offsets_to_transaction`.",
            picture,
        )
    if {*missing, *lost} >= {*LETTERS}:
        raise Wrong(
            found,
            numbers,
            "The queue's first letter was deleted by retention. From an offset that is gone a consumer jumps to the "
            'end, unless `auto_offset_reset="earliest"`.',
            picture,
        )
    if missing:
        raise Wrong(found, numbers, "Pass on what is chosen.", picture)
    if lost:
        raise Wrong(
            f"{len(lost)} of the three dead letters that were not chosen are no longer ahead of the committed offset",
            "the fax, the order for jam, and the one without a value, still in the queue",
            "The offset goes past all that was looked at: what is to stay has to be written to the queue again.",
            picture,
        )
    if len(stay) > 3:
        raise Wrong(
            f"{len(stay)} dead letters are ahead of the committed offset",
            "three: the fax, the order for jam, and the one without a value",
            "The committed offset has to stand behind all that the redriver has looked at.",
            picture,
        )
    first = {record.value: record for record in reversed(queued)}
    for record in [*passed, *stay]:
        _same_record(record, first[record.value], f"the letter of {_told(record)}")
    return picture


def _told_value(value) -> str:
    return "no value" if value is None else value.decode("latin-1")


_OPEN = """
    place, letters = TopicPartition(dead_letters, 0), []
    consumer = KafkaConsumer(
        **connection, group_id=group, enable_auto_commit=False, isolation_level="read_committed",
        auto_offset_reset="earliest",  # retention may have deleted the next letter
    )
    consumer.assign([place])
    consumer.seek(place, consumer.committed(place) or 0)
    end = consumer.end_offsets([place])[place]
    while consumer.position(place) < end:
        polled = consumer.poll(timeout_ms=1000).get(place, [])
        letters += [letter for letter in polled if letter.offset < end]  # later ones: in the next run
"""

q4 = Question(
    "q4",
    wants=("redrive_chosen",),
    starter=f'''
def redrive_chosen(connection, dead_letters, target, group, transactional_id, chosen):
    """Pass the chosen dead letters on, each once; the others stay in the queue."""
    producer = KafkaProducer(**connection){_OPEN}
    for letter in letters:
        if chosen(letter):
            producer.send(target, letter.value, key=letter.key, headers=letter.headers).get(timeout=10)
    consumer.commit({{place: OffsetAndMetadata(end, "", -1)}})
''',
    solution=f'''
def redrive_chosen(connection, dead_letters, target, group, transactional_id, chosen):
    """Pass the chosen dead letters on, each once; the others stay in the queue."""
    producer = KafkaProducer(**connection, transactional_id=transactional_id)
    producer.init_transactions()  # ends what a killed redriver has left open{_OPEN}
    producer.begin_transaction()
    for letter in letters:
        to = target if chosen(letter) else dead_letters
        # `get` raises for a letter that has expired; the commit would not notice it
        producer.send(to, letter.value, key=letter.key, headers=letter.headers).get(timeout=10)
    producer.send_offsets_to_transaction({{place: OffsetAndMetadata(end, "", -1)}}, group)
    producer.commit_transaction()
    consumer.close()
    producer.close()
''',
    judge=_judge_redrive,
    hints=[
        "Three things have to happen together or not at all: what is passed on, what stays, and the offset.",
        "`KafkaProducer(**connection, transactional_id=transactional_id)`, `init_transactions()` before the queue is "
        "read, then `begin_transaction()` … `commit_transaction()`. Look at each future before the commit.",
        "What is not chosen goes back to `dead_letters`, in the same transaction; and in place of `consumer.commit`: "
        "`producer.send_offsets_to_transaction({place: OffsetAndMetadata(end, '', -1)}, group)`.",
    ],
    why="Bringing a thousand orders back twice is a second accident, made by hand.",
    deadline=120,
)
