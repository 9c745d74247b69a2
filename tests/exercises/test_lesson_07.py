"""The questions of lesson 07: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_07 import q1, q2, q3, q4
from tools.lessons import NOTEBOOKS, code_cells, read

LESSON = read(NOTEBOOKS / "07_dead_letter_queue.ipynb")
SETUP = "\n\n".join(cell.source for cell in code_cells(LESSON)[:2])  # the two cells of imports


def test_q1(cluster):
    wrong = {
        q1.starter.replace(
            'auto_offset_reset="earliest")', 'auto_offset_reset="earliest", auto_commit_interval_ms=600_000)'
        ): "how often else",
        q1.starter.replace(".get(timeout=10)", ""): "`send` alone tells nothing",
        q1.changed("            consumer.commit()\n", ""): "after each record",
    }
    hold(q1, wrong, cluster, SETUP)


def test_q2(cluster):
    textbook = """
def dead_letter(producer, dead_letters, record, error, group):
    letter = {"original_message": record.value.decode(errors="replace"), "error": str(error)}
    producer.send(dead_letters, json.dumps(letter).encode()).get(timeout=10)
"""
    not_waited_for = q2.changed("\n    producer.flush()\n    future.get(timeout=10)", "")
    wrong = {
        textbook: "packed into JSON",
        not_waited_for: "a buffer only",
        q2.changed("\n    future.get(timeout=10)", ""): "`flush` does not raise",
        q2.changed("key=record.key, ", ""): "its key is None",
        q2.changed("[*record.headers, *(", "[*("): "own header",
        q2.changed('"offset": record.offset,', ""): "__dlq.errors.offset",
    }
    hold(q2, wrong, cluster, SETUP)


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
    nothing_put_aside = q3.changed("    producer.send(dead_letters, record.value, key=record.key).get(timeout=10)", "")
    wrong = {
        q3.changed("        except Exception:\n            break\n", "        except Exception:\n            pass\n"): (
            "does not build a shelf"
        ),
        q3.changed("range(1, tries + 1)", "range(tries + 1)"): "was tried 5 times",
        q3.changed("            break\n", "            raise\n"): "raised UnicodeDecodeError",
        nothing_put_aside: "the dead letters are []",
        once_more: "Only an `OperationalError` may pass",
    }
    hold(q3, wrong, cluster, SETUP)


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
    producer.send(dead_letters, record.value, key=record.key).get(timeout=10)
"""
    outcome = q3.try_answer(for_ever, cluster, SETUP)
    assert outcome.state == "not right" and "more than 50 times" in str(outcome), outcome


def test_q4(cluster):
    own_commit = q4.changed(
        '    producer.send_offsets_to_transaction({place: OffsetAndMetadata(end, "", -1)}, group)\n'
        "    producer.commit_transaction()",
        '    producer.commit_transaction()\n    consumer.commit({place: OffsetAndMetadata(end, "", -1)})',
    )
    wrong = {
        q4.starter.replace("    producer.flush()", "    producer.flush()\n    print('done')"): "no taking it back",
        own_commit: "belongs into the transaction",
        q4.changed("        to = target if chosen(letter) else dead_letters\n", "        to = target\n"): "Ask `chosen",
        q4.changed(
            "        to = target if chosen(letter) else dead_letters\n"
            "        producer.send(to, letter.value, key=letter.key, headers=letter.headers)\n",
            "        if chosen(letter):\n"
            "            producer.send(target, letter.value, key=letter.key, headers=letter.headers)\n",
        ): "has to be written to the queue again",
    }
    hold(q4, wrong, cluster, SETUP)
