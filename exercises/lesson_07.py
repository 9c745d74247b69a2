"""Questions of lesson 07, the dead letter queue."""

import contextlib
import json

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from sqlalchemy.exc import OperationalError

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import Worker, point
from helpers.pictures import capture_log, log_view

PREFIX = "__dlq.errors."
FAX = "order 3, by fax: 1 thé".encode("latin-1")
LONG_FAX = FAX + b", in many words" * 30


def _order(number, goods="tea") -> bytes:
    return json.dumps({"order": number, "goods": goods}).encode()


def _place(lab, topic, values, key=b"ann", headers=()):
    producer = lab.producer()
    for value in values:
        producer.send(topic, value, key=key, headers=list(headers))
    producer.flush()
    return lab.records(topic)


def _committed(lab, topic, group) -> int:
    with KafkaConsumer(**lab.cluster.connection, group_id=group, enable_auto_commit=False) as reader:
        return reader.committed(TopicPartition(topic, 0)) or 0


def _told(record) -> str:
    try:
        return f"order {json.loads(record.value)['order']}"
    except ValueError:
        return "a fax"


def _comes_from_kafka(error) -> bool:
    return error is not None and (
        isinstance(error, KafkaError) or _comes_from_kafka(error.__cause__ or error.__context__)
    )


# -- q1: closing does not commit


def _judge_pack_all(lab, pack_all):
    topic, group = lab.topic(), lab.group()
    refusing = lab.topic("dead-letters", config={"max.message.bytes": 300})
    _place(lab, topic, [_order(1), _order(2), LONG_FAX, _order(4)])
    packed = []
    try:
        lab.call(
            pack_all, lab.cluster.connection, topic, refusing, group, 4, lambda order: packed.append(order["order"])
        )
    except Exception as error:
        if not _comes_from_kafka(error):
            raise
    else:
        raise Wrong(
            "the queue refused the dead letter, and your function returned as if it were there",
            "the exception of the refusal",
            "`send` alone tells nothing; `.get(timeout=10)` on its future raises.",
        )
    committed = _committed(lab, topic, group)
    log = capture_log(lab.cluster, topic, groups=[group], label=_told)
    picture = log_view(log, "Where the group goes on after the refusal")
    if committed > 2:
        raise Wrong(
            f"after the refusal the group's committed offset is {committed}: the fax, at offset 2, is passed over",
            "the committed offset 2, at the fax",
            "`close()` commits the consumer's position, behind the fax, as long as `enable_auto_commit` is on; "
            "an interval says only how often else.",
            picture,
        )
    if committed < 2:
        raise Wrong(
            f"the group's committed offset is {committed}, though orders {packed} are packed",
            "the committed offset 2: orders 1 and 2 are done",
            "`consumer.commit()` after each record is part of it.",
            picture,
        )
    return "the refusal raises, and the fax is the next record that the group reads"


_PACK_ALL = '''
def pack_all(connection, topic, dead_letters, group, count, pack):
    """Pack `count` orders; what cannot be packed goes to the dead letters. Raises when these refuse it."""
    producer = KafkaProducer(**connection)
    consumer = KafkaConsumer(topic, **connection, group_id=group, auto_offset_reset="earliest")
    try:
        for _ in range(count):
            (record,) = take(consumer, 1)
            try:
                pack(json.loads(record.value))
            except ValueError:
                producer.send(dead_letters, record.value, key=record.key).get(timeout=10)
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
        'auto_offset_reset="earliest")',
        'auto_offset_reset="earliest",\n                             enable_auto_commit=False)',
    ),
    judge=_judge_pack_all,
    hints=[
        "The exception leaves the loop before `consumer.commit()`. What else runs on the way out?",
        "`consumer.close()` commits the position where the consumer commits by itself.",
        "Who commits on purpose switches the other way off: `enable_auto_commit=False`.",
    ],
    why="A commit says 'done'; it must not happen on the way out of an accident.",
    deadline=15,
)


# -- q2: a dead letter with everything on it


def _judge_dead_letter(lab, dead_letter):
    topic, queue = lab.topic("orders"), lab.topic("dead-letters", config={"max.message.bytes": 500})
    sent_by = [("sent-by", b"checkout 1.0")]
    _place(lab, topic, [_order(1), _order(2)], headers=sent_by)
    *_, failed = _place(lab, topic, [FAX], headers=sent_by)
    *_, long = _place(lab, topic, [LONG_FAX], headers=sent_by)
    producer = lab.producer(linger_ms=2000)
    dead_letter(producer, queue, failed, ValueError("no JSON"), "my-group")
    letters = lab.records(queue)
    if not letters:
        raise Wrong(
            "your function has returned, and there is no dead letter on the topic",
            "a dead letter that is on the log when the function returns",
            "`send` puts it into a buffer only (this producer lingers for two seconds): wait for the future.",
        )
    _compare(letters[-1], failed)
    try:
        dead_letter(lab.producer(), queue, long, ValueError("no JSON"), "my-group")
    except Exception as error:
        if _comes_from_kafka(error):
            return "everything is on the dead letter, and a refused one raises"
        raise
    raise Wrong(
        "the topic refused a dead letter that is too large, and your function returned as if it were there",
        "the exception of the refusal",
        "`flush` does not raise for a record that failed; its future does.",
    )


def _compare(letter, failed):
    facts = {name.removeprefix(PREFIX): value for name, value in letter.headers if name.startswith(PREFIX)}
    if letter.value != failed.value:
        raise Wrong(
            f"the dead letter's value is {str(letter.value)[:80]}",
            f"{failed.value}, to the byte",
            "Send `record.value` as it is: packed into JSON or decoded, it is not the record any more.",
        )
    if letter.key != failed.key:
        raise Wrong(
            f"its key is {letter.key}", f"{failed.key}", "Without its key it cannot go back to its partition: `key=`."
        )
    lost = [name for name, _ in failed.headers if name not in dict(letter.headers)]
    if lost:
        raise Wrong(
            f"the record's own header {lost} is gone",
            "the record's own headers, and yours after them",
            "`record.headers` is a list of pairs: add yours to it.",
        )
    wanted = {
        "topic": failed.topic.encode(),
        "partition": b"0",
        "offset": b"%d" % failed.offset,
        "group": b"my-group",
        "message": b"no JSON",
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
    headers = [*record.headers, *(("__dlq.errors." + name, str(fact).encode()) for name, fact in facts.items())]
    future = producer.send(dead_letters, record.value, key=record.key, headers=headers)
    producer.flush()
    future.get(timeout=10)
''',
    judge=_judge_dead_letter,
    hints=[
        "What of the record does `send` take besides the value?",
        "Headers are a list of pairs of a str and bytes: `[*record.headers, ('__dlq.errors.group', group.encode())]`.",
        "`producer.flush()` sends at once, and `future.get(timeout=10)` raises when the record is not there.",
    ],
    why="What is not on the dead letter is nowhere: the source topic deletes its records after a while.",
    deadline=15,
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
            raise _NoShelf(goods)
        if self.attempts[number] > 50:
            raise RuntimeError("tried more than 50 times")  # so that a loop without a limit comes to an end
        if goods == "jam" or (goods == "honey" and self.attempts[number] < 3):
            raise OperationalError("SELECT", {}, Exception("the shelf is locked"))
        self.packed.append(number)


def _judge_process(lab, process):
    topic, queue, warehouse, producer = lab.topic("orders"), lab.topic("dead-letters"), _Warehouse(), lab.producer()
    values = [_order(1), FAX, _order(3, "honey"), _order(4, "jam"), _order(5, "matcha"), _order(6)]
    for record in _place(lab, topic, values):
        try:
            lab.call(process, record, warehouse.pack, producer, queue, 4)
        except (OperationalError, _NoShelf, ValueError) as error:
            raise Wrong(
                f"for {_told(record)} your function raised {type(error).__name__}",
                "the record among the dead letters, and a function that returns",
                "Where the last attempt fails, and where decoding fails, the way leads to the dead letters too.",
            ) from None
        if warehouse.attempts.get(4, 0) > 4:
            break
    tried, dead = warehouse.attempts, [record.value for record in lab.records(queue)]
    if tried.get(5, 0) > 1:
        raise Wrong(
            f"the order for matcha, which has no shelf, was tried {tried[5]} times",
            "one attempt",
            "Only an `OperationalError` may pass; waiting does not build a shelf.",
        )
    if tried.get(4) != 4:
        told = "more than 50" if tried.get(4, 0) > 50 else tried.get(4, 0)
        raise Wrong(
            f"the order for jam was tried {told} times",
            "4 attempts in all, the first one among them",
            "`tries` is the number of attempts in all: count from 1, and the last one is the last.",
        )
    if warehouse.packed != [1, 3, 6]:
        raise Wrong(
            f"orders {warehouse.packed} are packed, after these attempts: {tried}",
            "orders [1, 3, 6]: order 3 works the third time",
            "What was packed is done: leave the loop; and an `OperationalError` is worth another try.",
        )
    if dead != [FAX, _order(4, "jam"), _order(5, "matcha")]:
        names = [value.decode("latin-1")[:30] for value in dead]
        raise Wrong(
            f"the dead letters are {names}",
            "three: the fax, the order for jam, the order for matcha, as they came",
            "One dead letter for each record that is given up, after its last attempt, and none for the others.",
        )
    return f"attempts by order: {tried}; three dead letters"


q3 = Question(
    "q3",
    wants=("process",),
    starter='''
def process(record, pack, producer, dead_letters, tries):
    """Pack the order, or put it aside after at most `tries` attempts."""
    try:
        pack(json.loads(record.value))
    except Exception:
        producer.send(dead_letters, record.value, key=record.key).get(timeout=10)
''',
    solution='''
def process(record, pack, producer, dead_letters, tries):
    """Pack the order, or put it aside after at most `tries` attempts."""
    for attempt in range(1, tries + 1):
        try:
            return pack(json.loads(record.value))
        except OperationalError:
            time.sleep(0.005 * 2**attempt)
        except Exception:
            break
    producer.send(dead_letters, record.value, key=record.key).get(timeout=10)
''',
    judge=_judge_process,
    hints=[
        "Two sorts of errors, two `except` clauses: what does each of them do next?",
        "`for attempt in range(tries)`: `return` when it worked, `break` when it will not pass.",
        "After the loop stands what is done with a record that is given up.",
    ],
    why="A retry helps against what passes; against what does not, it only holds up all others.",
    deadline=15,
)


# -- q4: a redriver that may be killed

LETTERS = [_order(1, "matcha"), FAX, _order(3, "matcha"), _order(4, "jam"), _order(5, "matcha")]


def _redrive_some(connection, queue, target, group, transactional_id, redrive):
    send, commit, futures = KafkaProducer.send, KafkaProducer.commit_transaction, []

    def remembered(producer, *args, **kwargs):
        futures.append(send(producer, *args, **kwargs))
        return futures[-1]

    def chosen(record):
        while futures:  # what was sent before is on the log when the process is killed here
            with contextlib.suppress(KafkaError):
                futures.pop().get(timeout=5)
        point("looked at a dead letter")
        return b"matcha" in record.value

    def commit_transaction(producer):
        commit(producer)
        point("transaction committed")

    KafkaProducer.send, KafkaProducer.commit_transaction = remembered, commit_transaction
    redrive(connection, queue, target, group, transactional_id, chosen)


def _judge_redrive(lab, redrive):
    queue, target, group = lab.topic("dead-letters"), lab.topic("retry"), lab.group()
    _place(lab, queue, LETTERS)
    transactional_id = lab.transactional_id()
    job = _redrive_some, lab.cluster.connection, queue, target, group, transactional_id, redrive
    for die_at in [("looked at a dead letter", 4), "transaction committed", None]:
        worker = Worker(*job, die_at=die_at)
        lab.afterwards.callback(worker.kill)
        state = worker.wait()
        if state.startswith("failed"):
            raise Wrong(
                f"the redriver's process {state}", "a redriver that comes to its end", worker.output.strip()[-300:]
            )
    with KafkaProducer(**lab.cluster.connection, transactional_id=transactional_id) as settle:
        settle.init_transactions()  # returns when the markers of the last transaction are written
    passed = [record.value for record in lab.records(target)]
    begin = _committed(lab, queue, group)
    stay = [record.value for record in lab.records(queue) if record.offset >= begin]
    logs = [capture_log(lab.cluster, queue, groups=[group], label=_told), capture_log(lab.cluster, target, label=_told)]
    picture = log_view(logs, "The queue and the retry topic, after two kills and a last run")
    wanted = [value for value in LETTERS if b"matcha" in value]
    numbers = [json.loads(value)["order"] if value.startswith(b"{") else "fax" for value in passed]
    _explain(passed, stay, wanted, numbers, logs, picture)
    return "killed in the middle and right after its transaction: each chosen order came back once, two letters wait"


def _explain(passed, stay, wanted, numbers, logs, picture):
    aborted = any(cell.kind in ("aborted", "commit") for log in logs for cell in log.lanes[0].cells)
    if [value for value in wanted if value not in passed]:
        raise Wrong(f"on the retry topic: orders {numbers}", "orders 1, 3 and 5", "Pass on what is chosen.", picture)
    if set(passed) - set(wanted):
        raise Wrong(f"on the retry topic: {numbers}", "orders 1, 3 and 5 only", "Ask `chosen(record)`.", picture)
    if len(passed) > len(wanted) and not aborted:
        raise Wrong(
            f"on the retry topic: orders {numbers}",
            "orders 1, 3 and 5, each once, although the redriver was killed while it passed them on",
            "What a killed redriver has sent stays: without a transaction there is no taking it back.",
            picture,
        )
    if len(passed) > len(wanted):
        raise Wrong(
            f"on the retry topic: orders {numbers}",
            "orders 1, 3 and 5, each once, although the redriver was killed right after its transaction",
            "The transaction is committed and the offset is not: it belongs into the transaction, "
            "`producer.send_offsets_to_transaction`.",
            picture,
        )
    missing = [value for value in LETTERS if value not in wanted and value not in stay]
    if missing:
        raise Wrong(
            f"{len(missing)} of the two dead letters that were not chosen are no longer ahead of the committed offset",
            "the fax and the order for jam, still in the queue",
            "The offset goes past all that was looked at: what is to stay has to be written to the queue again.",
            picture,
        )
    extra = [value for value in stay if value in wanted]
    if extra or len(stay) > 2:
        raise Wrong(
            f"{len(stay)} dead letters are ahead of the committed offset",
            "two: the fax and the order for jam",
            "The committed offset has to stand behind all that the redriver has looked at.",
            picture,
        )


_OPEN = """
    place, letters = TopicPartition(dead_letters, 0), []
    consumer = KafkaConsumer(**connection, group_id=group, enable_auto_commit=False, isolation_level="read_committed")
    consumer.assign([place])
    consumer.seek(place, consumer.committed(place) or 0)
    end = consumer.end_offsets([place])[place]
    while consumer.position(place) < end:
        letters += consumer.poll(timeout_ms=1000).get(place, [])
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
            producer.send(target, letter.value, key=letter.key, headers=letter.headers)
    producer.flush()
    consumer.commit({{place: OffsetAndMetadata(end, "", -1)}})
''',
    solution=f'''
def redrive_chosen(connection, dead_letters, target, group, transactional_id, chosen):
    """Pass the chosen dead letters on, each once; the others stay in the queue."""
    producer = KafkaProducer(**connection, transactional_id=transactional_id)
    producer.init_transactions(){_OPEN}
    producer.begin_transaction()
    for letter in letters:
        to = target if chosen(letter) else dead_letters
        producer.send(to, letter.value, key=letter.key, headers=letter.headers)
    producer.send_offsets_to_transaction({{place: OffsetAndMetadata(end, "", -1)}}, group)
    producer.commit_transaction()
''',
    judge=_judge_redrive,
    hints=[
        "Three things have to happen together or not at all: what is passed on, what stays, and the offset.",
        "`KafkaProducer(**connection, transactional_id=transactional_id)`, `init_transactions()` before the queue is "
        "read, then `begin_transaction()` … `commit_transaction()`.",
        "What is not chosen goes back to `dead_letters`, in the same transaction; and in place of `consumer.commit`: "
        "`producer.send_offsets_to_transaction({place: OffsetAndMetadata(end, '', -1)}, group)`.",
    ],
    why="Bringing a thousand orders back twice is a second accident, made by hand.",
    deadline=40,
)
