"""The questions of lesson 07: starter, solution, plausible wrong answers, each told apart, and unusual right ones."""

import pytest

from exercises.frame.testing import hold
from exercises.lesson_07 import q1, q2, q3, q4
from tests.answers import refused, right
from tools.lessons import NOTEBOOKS, code_cells, read

LESSON = read(NOTEBOOKS / "07_dead_letter_queue.ipynb")
SETUP = "\n\n".join(cell.source for cell in code_cells(LESSON)[:2])  # the two cells of imports

SETTING = '        auto_offset_reset="earliest", '
OFF = "        enable_auto_commit=False,  # or `close` commits behind a record that has just failed\n"


def test_q1(cluster):
    early = q1.changed("            consumer.commit()\n", "").replace(
        "            (record,) = take(consumer, 1)\n",
        "            (record,) = take(consumer, 1)\n            consumer.commit()\n",
    )
    wrong = {
        q1.starter.replace(
            'auto_offset_reset="earliest"', 'auto_offset_reset="earliest", auto_commit_interval_ms=600_000'
        ): "how often else",
        q1.changed("                letter.get(timeout=10)\n", ""): "`send` alone tells nothing",
        q1.changed("            consumer.commit()\n", ""): "after each record",
        early: "The commit stands before the work",
    }
    hold(q1, wrong, cluster, SETUP)


@pytest.mark.full
def test_q1_more(cluster):
    finally_commits = q1.changed("            consumer.commit()\n", "").replace(
        "    finally:\n", "    finally:\n        consumer.commit()\n"
    )
    at_the_end = q1.changed("            consumer.commit()\n", "").replace(
        "    finally:\n", "        consumer.commit()\n    finally:\n"
    )
    wrong = {
        finally_commits: "A commit runs on the way out",
        at_the_end: "after each record",
        q1.changed("key=record.key, ", ""): "its key is lost",
        q1.changed(", headers=record.headers", ""): "lacks the record's own header",
        q1.changed("except Exception:", "except UnicodeDecodeError:"): "TypeError",
        q1.changed("                letter.get(timeout=10)\n", "                producer.flush()\n"): (
            "`send` alone tells nothing"
        ),
        q1.changed("group_id=group", 'group_id=group + "-2"'): "",
    }
    refused(q1, wrong, cluster, SETUP)


@pytest.mark.full
def test_q1_unusual(cluster):
    answers = [
        # closes without a commit, though the consumer commits by itself: nothing has polled for five seconds
        q1.starter.replace("consumer.close()", "consumer.close(autocommit=False)"),
        # commits the offset itself, and lets `with` close
        """
def pack_all(connection, topic, dead_letters, group, count, pack):
    settings = {"group_id": group, "auto_offset_reset": "earliest", "enable_auto_commit": False}
    settings["isolation_level"] = "read_committed"
    with KafkaProducer(**connection) as producer, KafkaConsumer(topic, **connection, **settings) as consumer:
        for _ in range(count):
            (record,) = take(consumer, 1)
            try:
                pack(json.loads(record.value))
            except Exception:
                producer.send(dead_letters, record.value, record.key, record.headers).get()
            place = TopicPartition(record.topic, record.partition)
            consumer.commit({place: OffsetAndMetadata(record.offset + 1, "", -1)})
""",
        # assigns, and needs no group but for its offsets
        """
def pack_all(connection, topic, dead_letters, group, count, pack):
    producer = KafkaProducer(**connection)
    settings = {"group_id": group, "enable_auto_commit": False, "auto_offset_reset": "earliest"}
    consumer = KafkaConsumer(**connection, **settings, isolation_level="read_committed")
    consumer.assign([TopicPartition(topic, 0)])
    for record in take(consumer, count):
        try:
            pack(json.loads(record.value))
        except Exception:
            future = producer.send(dead_letters, key=record.key, value=record.value, headers=record.headers)
            producer.flush()
            if future.failed():
                raise future.exception
        consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(record.offset + 1, "", -1)})
""",
    ]
    right(q1, answers, cluster, SETUP)


GET = "\n    future.get(timeout=10)  # raises when the dead letter is not there"


def test_q2(cluster):
    textbook = """
def dead_letter(producer, dead_letters, record, error, group):
    letter = {"original_message": record.value.decode(errors="replace"), "error": str(error)}
    producer.send(dead_letters, json.dumps(letter).encode()).get(timeout=10)
"""
    wrong = {
        textbook: "packed into JSON",
        q2.changed("\n    producer.flush()" + GET, ""): "a buffer only",
        q2.changed(GET, ""): "`flush` does not raise",
        q2.changed("key=record.key, ", ""): "its key is lost",
        q2.changed('[(name, value or b"") for name, value in record.headers]', "[]"): "own header",
        q2.changed('"offset": record.offset,', ""): "__dlq.errors.offset",
    }
    hold(q2, wrong, cluster, SETUP)


@pytest.mark.full
def test_q2_more(cluster):
    own = '[(name, value or b"") for name, value in record.headers]'
    wrong = {
        q2.changed(own, "[*record.headers]"): "for a header without a value your function raised TypeError",
        q2.changed('b"" if record.value is None and record.key is None else record.value', "record.value"): (
            "for a record with neither key nor value your function raised"
        ),
        q2.changed(own, 'list({name: value or b"" for name, value in record.headers}.items())'): "a list keeps both",
        q2.changed('"message": error', '"message": str(error).splitlines()[0]'): "for an error without a text",
        q2.changed('"message": error', '"message": type(error).__name__'): "__dlq.errors.message",
        q2.changed("headers=headers)", "headers=headers, partition=record.partition)"): "",
        q2.changed('"partition": record.partition', '"partition": 0'): "__dlq.errors.partition",
        q2.changed('"offset": record.offset', '"offset": record.offset + 1'): "__dlq.errors.offset",
        q2.changed("else record.value", 'else record.value or b""'): "",
        q2.changed('value = b"" if', 'value = record.value.decode().encode() if record.value else b"" if'): "",
        q2.changed(
            "\n    producer.flush()" + GET,
            "\n    try:\n        future.get(timeout=10)\n    except Exception:\n        pass",
        ): ("as if it were there"),
    }
    refused(q2, wrong, cluster, SETUP)


@pytest.mark.full
def test_q2_unusual(cluster):
    answers = [
        """
def dead_letter(producer, dead_letters, record, error, group):
    prefix = "__dlq.errors."
    told = [(prefix + name, str(getattr(record, name)).encode()) for name in ("topic", "partition", "offset")]
    told += [(prefix + "group", group.encode()), (prefix + "message", str(error).encode())]
    own = [(name, b"" if value is None else value) for name, value in record.headers]
    value = record.value
    if value is None and record.key is None:
        value = b""
    producer.send(dead_letters, value, record.key, told + own).get(timeout=20)
""",
        """
def dead_letter(producer, dead_letters, record, error, group):
    raised = []
    facts = dict(topic=record.topic, partition=record.partition, offset=record.offset, group=group, message=error)
    headers = list(record.headers)
    headers = [pair if pair[1] is not None else (pair[0], bytes()) for pair in headers]
    headers.extend(("__dlq.errors." + name, f"{fact}".encode()) for name, fact in facts.items())
    nothing = record.key is None and record.value is None
    sent = producer.send(dead_letters, b"" if nothing else record.value, key=record.key, headers=headers)
    sent.add_errback(raised.append)
    producer.flush()
    if raised:
        raise raised[0]
""",
        # with facts of its own, and the record's timestamp
        q2.changed(
            '"message": error,', '"message": error, "exception": type(error).__name__, "at": time.time(),'
        ).replace("headers=headers)", "headers=headers, timestamp_ms=record.timestamp)"),
    ]
    right(q2, answers, cluster, SETUP)


LETTER = "    producer.send(dead_letters, record.value, key=record.key, headers=record.headers).get(timeout=10)"
SORTS = (
    "        except Exception:  # decoding is part of the attempt: no JSON, no value, another type\n            break\n"
)


def test_q3(cluster):
    once_more = """
def process(record, pack, producer, dead_letters, tries):
    try:
        return pack(json.loads(record.value))
    except Exception:
        try:
            return pack(json.loads(record.value))
        except Exception:
            producer.send(dead_letters, record.value, key=record.key).get(timeout=10)
"""
    wrong = {
        q3.changed(SORTS, "        except Exception:\n            pass\n"): "does not build a shelf",
        q3.changed("range(1, tries + 1)", "range(tries + 1)"): "was tried 5 times",
        q3.changed("            break\n", "            raise\n"): "raised UnicodeDecodeError",
        q3.changed(LETTER, ""): "the dead letters are []",
        once_more: "Only an `OperationalError` may pass",
    }
    hold(q3, wrong, cluster, SETUP)


@pytest.mark.full
def test_q3_more(cluster):
    indented = LETTER.replace("    producer", "        producer")
    wrong = {
        q3.changed(".get(timeout=10)", ""): "this producer lingers",
        q3.changed("key=record.key, ", ""): "its key is lost",
        q3.changed(", headers=record.headers", ""): "lacks the record's own header",
        q3.changed(SORTS, SORTS.replace("except Exception:", "except (ValueError, LookupError):")): "raised ",
        q3.changed("range(1, tries + 1)", "range(1, 5)"): "with tries=2",
        q3.changed("range(1, tries + 1)", "range(1, tries)"): "was tried 3 times",
        q3.changed("            return pack(", "            pack("): "",
        q3.changed(
            LETTER, "    try:\n" + indented + "\n    except Exception:\n        pass"
        ): "no `except` clause may swallow",
        q3.changed("record.value, key", "json.dumps(str(record.value)).encode(), key"): "as they came",
        q3.changed(LETTER, LETTER.removesuffix(".get(timeout=10)") + "\n    producer.flush()"): "may swallow",
    }
    refused(q3, wrong, cluster, SETUP)


@pytest.mark.full
def test_q3_unusual(cluster):
    answers = [
        # by recursion
        """
def process(record, pack, producer, dead_letters, tries):
    try:
        return pack(json.loads(record.value))
    except OperationalError:
        if tries > 1:
            time.sleep(0.001)
            return process(record, pack, producer, dead_letters, tries - 1)
    except Exception:
        pass
    producer.send(dead_letters, record.value, key=record.key, headers=record.headers).get()
""",
        # decoded once, before the loop
        """
def process(record, pack, producer, dead_letters, tries):
    done = False
    with contextlib.suppress(Exception):
        order, left = json.loads(record.value.decode("utf-8")), tries
        while left and not done:
            left -= 1
            try:
                pack(order)
                done = True
            except OperationalError:
                pass
    if not done:
        future = producer.send(dead_letters, record.value, record.key, record.headers)
        producer.flush()
        future.get(timeout=10)
""",
        # asks the error what it is
        """
def process(record, pack, producer, dead_letters, tries):
    attempts = 0
    while True:
        attempts += 1
        try:
            pack(json.loads(record.value))
            return
        except Exception as error:
            if isinstance(error, OperationalError) and attempts < tries:
                continue
        break
    producer.send(topic=dead_letters, value=record.value, key=record.key, headers=record.headers).get(timeout=5)
""",
    ]
    right(q3, answers, cluster, SETUP)


def test_q3_without_a_limit(cluster):
    for_ever = """
def process(record, pack, producer, dead_letters, tries):
    while True:
        try:
            return pack(json.loads(record.value))
        except OperationalError:
            time.sleep(0.01)
        except Exception:
            break
    producer.send(dead_letters, record.value, key=record.key, headers=record.headers).get(timeout=10)
"""
    outcome = q3.try_answer(for_ever, cluster, SETUP)
    assert outcome.state == "not right" and "more than 50 times" in str(outcome), outcome


OFFSETS = '    producer.send_offsets_to_transaction({place: OffsetAndMetadata(end, "", -1)}, group)\n'
COMMIT = "    producer.commit_transaction()\n"
CHOICE = "        to = target if chosen(letter) else dead_letters\n"
COMMENT = "        # `get` raises for a letter that has expired; the commit would not notice it\n"
SEND = "        producer.send(to, letter.value, key=letter.key, headers=letter.headers).get(timeout=10)\n"


def test_q4(cluster):
    own_commit = q4.changed(OFFSETS + COMMIT, COMMIT + '    consumer.commit({place: OffsetAndMetadata(end, "", -1)})\n')
    chosen_only = q4.changed(
        CHOICE + COMMENT + SEND, "        if chosen(letter):\n            to = target\n    " + SEND
    )
    wrong = {
        q4.starter.replace("    consumer.commit(", "    print('done')\n    consumer.commit("): "no taking it back",
        own_commit: "belongs into the transaction",
        q4.changed(".get(timeout=10)\n", "\n"): "`commit_transaction` does not notice",
        chosen_only: "has to be written to the queue again",
    }
    hold(q4, wrong, cluster, SETUP)


@pytest.mark.full
def test_q4_more(cluster):
    wrong = {
        q4.changed(CHOICE, "        to = target\n"): "Ask `chosen",
        q4.changed("letter.offset < end", "True"): "Order 7 came while the queue was being read",
        q4.changed("transactional_id=transactional_id)", 'transactional_id=f"mine-{time.time()}")'): (
            "A transactional id of its own for each run"
        ),
        q4.changed(', isolation_level="read_committed"', ""): "Order 9 was aborted",
        q4.changed('auto_offset_reset="earliest",  # retention', "# retention"): "was deleted by retention",
        q4.changed("letter.value, key=letter.key, headers=letter.headers", "letter.value"): "",
        q4.changed(", headers=letter.headers", ""): "own header",
        q4.changed(SEND, "        try:\n    " + SEND + "        except KafkaError:\n            pass\n"): (
            "`commit_transaction` does not notice"
        ),
        # two transactions: the records, then the offsets
        q4.changed(OFFSETS, COMMIT + "    producer.begin_transaction()\n" + OFFSETS): "belongs into the transaction",
        q4.changed("OffsetAndMetadata(end,", "OffsetAndMetadata(end - 1,"): "",
        q4.changed(
            OFFSETS, '    consumer.commit({place: OffsetAndMetadata(end, "", -1)})\n'
        ): "killed before its transaction was",
    }
    refused(q4, wrong, cluster, SETUP)


@pytest.mark.full
def test_q4_unusual(cluster):
    answers = [
        # reads the queue with the course's tool, waits for each letter at once
        """
def redrive_chosen(connection, dead_letters, target, group, transactional_id, chosen):
    with KafkaProducer(**connection, transactional_id=transactional_id) as producer:
        producer.init_transactions()
        place = TopicPartition(dead_letters, 0)
        with KafkaConsumer(**connection, group_id=group, isolation_level="read_committed") as consumer:
            begin = consumer.committed(place) or 0
        letters = [letter for letter in read_topic(connection, dead_letters) if letter.offset >= begin]
        if letters:
            producer.begin_transaction()
            for letter in letters:
                to = [dead_letters, target][chosen(letter)]
                producer.send(to, letter.value, letter.key, letter.headers).get(timeout=20)
            behind = {place: OffsetAndMetadata(letters[-1].offset + 1, "", -1)}
            producer.send_offsets_to_transaction(behind, group)
            producer.commit_transaction()
""",
        # a transaction for each letter
        q4.answer[: q4.answer.index("    producer.begin_transaction()")]
        + """
    for letter in letters:
        to = target if chosen(letter) else dead_letters
        producer.begin_transaction()
        producer.send(to, letter.value, key=letter.key, headers=letter.headers).get(timeout=10)
        behind = {place: OffsetAndMetadata(letter.offset + 1, "", -1)}
        producer.send_offsets_to_transaction(behind, group)
        producer.commit_transaction()
""",
        # the membership of a consumer that has joined no group, and an abort before the error comes out
        q4.changed(OFFSETS + COMMIT, "").replace("    consumer.close()\n    producer.close()", "").rstrip()
        + """
    try:
        offsets = {place: OffsetAndMetadata(end, "", -1)}
        producer.send_offsets_to_transaction(offsets, consumer.group_metadata())
        producer.commit_transaction()
    except KafkaError:
        producer.abort_transaction()
        raise
""",
    ]
    right(q4, answers, cluster, SETUP)
