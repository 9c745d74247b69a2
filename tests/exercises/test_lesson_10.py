"""The questions of lesson 10: starter, solution, plausible wrong answers, each told apart, and unusual right ones."""

import pytest

from exercises.frame.testing import hold
from exercises.lesson_10 import q1, q2, q3, q4
from tests.answers import refused, right
from tools.lessons import IMPORTS as SETUP


def test_q1(cluster):
    kept = q1.changed("        end, total = ", "        global total\n        end = ").replace(
        "[partition], 0", "[partition]"
    )
    hold(
        q1,
        {
            q1.starter.replace(', isolation_level="read_uncommitted"', ""): "aborted",
            q1.changed("total += int(record.value)", "total = int(record.value)"): "Add up",
            "total = 0\n" + kept: "in a second report",
        },
        cluster,
        SETUP,
    )


@pytest.mark.full
def test_q1_unusual(cluster):
    answers = [
        """
def sum_of_payments(connection, topic):
    return sum(int(record.value) for record in read_topic(connection, topic))
""",
        """
def sum_of_payments(connection, topic):
    with KafkaConsumer(
        topic, **connection, isolation_level="read_committed", auto_offset_reset="earliest", consumer_timeout_ms=2000
    ) as consumer:
        return sum(int(record.value) for record in consumer)
""",
        """
def sum_of_payments(connection, topic):
    return int(frame(read_topic(connection, topic))["value"].astype(int).sum())
""",
    ]
    right(q1, answers, cluster, SETUP)


TEXTBOOK = """
def place(producer, topic1, topic2, order, mail):
    try:
        producer.begin_transaction()
        producer.send(topic1, order)
        producer.send(topic2, mail)
        producer.commit_transaction()
    except Exception:
        producer.abort_transaction()
"""
ABORTS = "producer.abort_transaction()  # raises when the error was fatal"
NOT_NOTICED = "does not look whether each record was written"


def test_q2(cluster):
    swallowed = "try:\n            producer.abort_transaction()\n        except KafkaError:\n            pass"
    hold(
        q2,
        {
            TEXTBOOK: "Return it after the commit",
            TEXTBOOK.replace("commit_transaction()\n", "commit_transaction()\n        return True\n"): "cannot tell",
            q2.changed(ABORTS, "pass"): "is still open",
            q2.changed(ABORTS, swallowed): "fatal: let it out",
            q2.starter.rstrip() + "\n    return True\n": "an error after which one aborts",
            q2.changed("            future.get(timeout=10)  #", "            pass  #"): NOT_NOTICED,
        },
        cluster,
        SETUP,
    )


@pytest.mark.full
def test_q2_futures_and_the_transaction(cluster):
    look = "        for future in futures:\n            future.get(timeout=10)"
    refused(
        q2,
        {
            q2.changed("for future in futures:", "for future in futures[1:]:"): "order 5 expired",
            q2.changed("for future in futures:", "for future in futures[:1]:"): "mail 4 expired",
            # looked at, and passed over
            q2.changed(
                "            future.get(timeout=10)",
                "            try:\n                future.get(timeout=10)\n            except KafkaTimeoutError:\n"
                "                pass",
            ): NOT_NOTICED,
            # looked at behind the commit
            q2.changed("        producer.commit_transaction()\n        return", "        return").replace(
                look, "        producer.commit_transaction()\n" + look
            ): "`place` raised",
            # a transaction for each
            q2.changed("producer.send(topic2, mail)]", "]").replace(
                "        return True",
                "        producer.begin_transaction()\n        producer.send(topic2, mail).get(timeout=10)\n"
                "        producer.commit_transaction()\n        return True",
            ): "Order 3 has no mail",
            q2.changed(
                "        producer.commit_transaction()\n", "        producer.abort_transaction()\n"
            ): "Both are sent",
        },
        cluster,
        SETUP,
    )


@pytest.mark.full
def test_q2_unusual(cluster):
    answers = [
        # each future at once, everything caught, the outcome kept in a name
        """
def place(producer, topic1, topic2, order, mail):
    producer.begin_transaction()
    try:
        for topic, value in ((topic1, order), (topic2, mail)):
            producer.send(topic, value).get(timeout=30)
        producer.commit_transaction()
    except Exception:
        done = False
        producer.abort_transaction()
    else:
        done = True
    return done
""",
        # by callbacks
        """
def place(producer, topic1, topic2, order, mail):
    producer.begin_transaction()
    failed = []
    for topic, value in ((topic1, order), (topic2, mail)):
        producer.send(topic, value).add_errback(failed.append)
    producer.flush()
    if failed:
        producer.abort_transaction()
        return False
    producer.commit_transaction()
    return True
""",
        # by the futures' state, and the fenced one told by its class
        """
from kafka.errors import InvalidProducerEpochError, ProducerFencedError
def place(producer, topic1, topic2, order, mail):
    try:
        producer.begin_transaction()
        futures = [producer.send(topic2, mail), producer.send(topic1, order)]
        producer.flush()
        if not all(future.succeeded() for future in futures):
            raise next(future.exception for future in futures if future.failed())
        producer.commit_transaction()
        return True
    except (ProducerFencedError, InvalidProducerEpochError):
        raise
    except KafkaError:
        producer.abort_transaction()
        return False
""",
    ]
    right(q2, answers, cluster, SETUP)


LATE = "producer.send_offsets_to_transaction(next_one, consumer.group_metadata())"
SEND_OFFSETS = "producer.send_offsets_to_transaction(next_one, membership)"
FUTURE = "        sent.get(timeout=10)  # raises for an expired record; the commit would not notice it\n"
COMMIT = "producer.commit_transaction()  # an error ends the process: the next one aborts what is open, by its id"


def test_q3(cluster):
    hold(
        q3,
        {
            q3.changed("        " + SEND_OFFSETS + "\n", "").replace(
                COMMIT, "producer.commit_transaction()\n        consumer.commit(next_one)"
            ): "not committed in the same transaction",
            q3.changed(SEND_OFFSETS, "consumer.commit(next_one)"): "had not been written",
            q3.changed("membership)", "membership.group_id)"): "only the group's name",
            q3.changed(FUTURE, ""): "`commit_transaction` does not notice that",
            q3.changed("key=record.key, ", ""): "has the key None",
        },
        cluster,
        SETUP,
    )


@pytest.mark.full
def test_q3_more(cluster):
    skips = """try:
            sent.get(timeout=10)
        except KafkaError:
            producer.abort_transaction()
            moved += 1
            continue
"""
    refused(
        q3,
        {
            q3.changed("record.offset + 1", "record.offset"): "not of the next ones",
            q3.changed("record.offset + 1", "moved + 1"): "",
            q3.changed("record.topic, record.partition", "record.topic, 0"): "committed for the group, by partition",
            q3.changed(SEND_OFFSETS, LATE): "generation -1",
            q3.changed(FUTURE, "        producer.flush()\n"): "`commit_transaction` does not notice that",
            q3.changed(FUTURE.strip("\n")[8:], skips): "the mover went on behind it",
            q3.changed(
                "            continue  #", "            pass  #"
            ): "leave the record to the member that owns it now",
            q3.changed("record.offset + 1", "record.offset + 2"): "never moved",
            q3.changed(", headers=record.headers", ""): "the headers []",
            q3.changed("headers=record.headers", "headers=record.headers, partition=record.partition"): "failed",
        },
        cluster,
        SETUP,
    )


@pytest.mark.full
def test_q3_unusual(cluster):
    answers = [
        # all of a poll in one transaction
        """
def move_orders(consumer, producer, target, count):
    while count > 0:
        batches = consumer.poll(timeout_ms=10_000)
        membership = consumer.group_metadata()
        if not batches or membership.generation_id < 0:
            continue
        records = [record for batch in batches.values() for record in batch]
        producer.begin_transaction()
        futures = [producer.send(target, r.value, r.key, r.headers) for r in records]
        producer.flush()
        for future in futures:
            future.get()
        ends = {partition: OffsetAndMetadata(batch[-1].offset + 1, "", -1) for partition, batch in batches.items()}
        producer.send_offsets_to_transaction(ends, membership)
        producer.commit_transaction()
        count -= len(records)
""",
        # aborts before it lets the error out
        """
def move_orders(consumer, producer, target, count):
    for _ in range(count):
        (record,) = take(consumer, 1)
        member = consumer.group_metadata()
        assert member.generation_id >= 0, "expelled"
        producer.begin_transaction()
        try:
            producer.send(target, key=record.key, value=record.value, headers=record.headers).get(timeout=30)
            place = TopicPartition(record.topic, record.partition)
            producer.send_offsets_to_transaction({place: OffsetAndMetadata(record.offset + 1, "", -1)}, member)
        except KafkaError:
            producer.abort_transaction()
            raise
        producer.commit_transaction()
""",
        # the consumer's position, which stands right behind the only record of this poll
        """
def move_orders(consumer, producer, target, count):
    while count:
        for place, (record,) in consumer.poll(timeout_ms=1000, max_records=1).items():
            membership = consumer.group_metadata()
            if membership.generation_id < 0:
                break
            ends = {place: OffsetAndMetadata(consumer.position(place), "", -1)}
            producer.begin_transaction()
            producer.send(target, record.value, record.key, record.headers).get(timeout=20)
            producer.send_offsets_to_transaction(ends, membership)
            producer.commit_transaction()
            count -= 1
""",
    ]
    right(q3, answers, cluster, SETUP)


KEY = "f\"thank-you/{order['order']}\""


def test_q4(cluster):
    hold(
        q4,
        {
            q4.changed(KEY, 'order["customer"]'): "several orders",
            q4.changed(KEY, 'f"{record.partition}/{record.offset}"'): "stands on the log twice",
            q4.changed(KEY, "os.urandom(8)"): "a new key",
            q4.changed(KEY, "str(record.timestamp)"): "such as a timestamp",
            q4.changed(KEY, "hash(f\"thank-you/{order['order']}\")"): "differs from process to process",
        },
        cluster,
        SETUP,
    )


@pytest.mark.full
def test_q4_more(cluster):
    note = "    # an error of"
    passed_over = "    if order['order'] in seen:\n        return\n    seen.add(order['order'])\n" + note
    refused(
        q4,
        {
            q4.changed(KEY, "record.value"): "stands on the log twice",
            q4.changed(KEY, "record.offset"): "an offset without its partition",
            "sent = {}\n" + q4.changed(KEY, "sent.setdefault(order['order'], len(sent))"): "counted in memory",
            q4.changed("    send_mail(", "    try:\n        send_mail(").rstrip()
            + "\n    except Exception:\n        pass\n": "An `except` clause hides it",
            "seen = set()\n" + q4.changed(note, passed_over): "leave repetitions to the provider",
            q4.changed('order["customer"])', "record.key)"): "the customer's name, a str",
            q4.changed("    send_mail(", "    return (lambda *_: None)("): "Call it for every record",
        },
        cluster,
        SETUP,
    )


@pytest.mark.full
def test_q4_unusual(cluster):
    answers = [
        # an int, and one's own retry
        """
def mail(record, send_mail):
    order = json.loads(record.value.decode())
    for left in reversed(range(3)):
        try:
            return send_mail(order["order"], to=order["customer"])
        except Exception:
            if not left:
                raise
""",
        # a digest of what the mail is about
        """
import hashlib
def mail(record, send_mail):
    order = json.loads(record.value)
    key = hashlib.sha256(json.dumps(["thank-you", order["order"]]).encode()).hexdigest()
    send_mail(key, record.key.decode())
""",
        # what this process has sent it need not send again
        """
sent = set()
def mail(record, send_mail):
    order = json.loads(record.value)
    if order["order"] not in sent:
        send_mail(f"{order['customer']}-{order['order']}", order["customer"])
        sent.add(order["order"])
""",
    ]
    right(q4, answers, cluster, SETUP)
