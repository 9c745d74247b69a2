"""The questions of lesson 10: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_10 import q1, q2, q3, q4
from tools.lessons import IMPORTS as SETUP


def test_q1(cluster):
    last_only = q1.changed("total += int(record.value)", "total = int(record.value)")
    hold(
        q1,
        {
            q1.starter.replace(', isolation_level="read_uncommitted"', ""): "aborted",
            last_only: "Add up",
        },
        cluster,
        SETUP,
    )


def test_q2(cluster):
    textbook = """
def place(producer, topic1, topic2, order, mail):
    try:
        producer.begin_transaction()
        producer.send(topic1, order)
        producer.send(topic2, mail)
        producer.commit_transaction()
    except Exception:
        producer.abort_transaction()
"""
    hold(
        q2,
        {
            textbook: "Return it after the commit",
            textbook.replace("commit_transaction()\n", "commit_transaction()\n        return True\n"): "cannot tell",
            q2.changed("producer.abort_transaction()  # raises when the error was fatal", "pass"): ("is still open"),
            q2.changed(
                "producer.abort_transaction()  # raises when the error was fatal",
                "try:\n            producer.abort_transaction()\n        except KafkaError:\n            pass",
            ): "fatal: let it out",
            q2.starter.rstrip() + "\n    return True\n": "an error after which one aborts",
        },
        cluster,
        SETUP,
    )


def test_q3(cluster):
    after = q3.changed(
        "        producer.send_offsets_to_transaction(next_one, membership)\n        producer.commit_transaction()",
        "        producer.commit_transaction()\n        consumer.commit(next_one)",
    )
    before = q3.changed(
        "        producer.send_offsets_to_transaction(next_one, membership)\n",
        "        consumer.commit(next_one)\n",
    )
    hold(
        q3,
        {
            after: "not committed in the same transaction",
            before: "had not been written",
            q3.changed("record.offset + 1", "record.offset"): "not of the next ones",
        },
        cluster,
        SETUP,
    )


def test_q4(cluster):
    hold(
        q4,
        {
            q4.changed("f\"thank-you/{order['order']}\"", 'order["customer"]'): "several orders",
            q4.changed(
                "f\"thank-you/{order['order']}\"", 'f"{record.partition}/{record.offset}"'
            ): "stands on the log twice",
            q4.changed("f\"thank-you/{order['order']}\"", "os.urandom(8)"): "a new key",
        },
        cluster,
        SETUP,
    )
