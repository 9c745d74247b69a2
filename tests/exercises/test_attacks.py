"""`attack()`: solutions survive it, wrong answers are broken by a short history, the same for the same seed."""

import importlib

import pytest

from exercises.frame.outcome import NOT_JUDGED, NOT_RIGHT, NOT_STARTED, RIGHT
from tests.exercises.mutants import setup_of

OFFSETS = "producer.send_offsets_to_transaction(next_one, membership)"
#: By question: what is changed in its solution, and what is then said.
BROKEN = {
    "05.q2": [
        ("WHERE projected.next_offset <= :offset", "WHERE true", "come again"),
        ("        if transaction.execute(text(MOVE_ON), place).first():\n            transaction.execute(text(ADD_UP)",
         "        first = transaction.execute(text(MOVE_ON), place).first()\n    if first:\n"
         "        with engine.begin() as transaction:\n            transaction.execute(text(ADD_UP)", "dies"),
    ],
    "06.q2": [("        if new:\n            transaction", "        transaction", "reserved")],
    "07.q3": [("tries + 1", "tries", "attempts"), (".get(timeout=10)", "", "")],
    "10.q3": [(OFFSETS, "consumer.commit(next_one)", "killed")],
}  # fmt: skip


@pytest.fixture(params=BROKEN)
def question(request):
    lesson, name = request.param.split(".")
    return request.param, getattr(importlib.import_module(f"exercises.lesson_{lesson}"), name)


def attacked(question, source, cluster, database, seconds, seed=1):
    names = {"__name__": "__main__", "cluster": cluster, "database": database}
    for text in (setup_of(question.lesson), source):
        exec(compile(text, f"<answer to {question.name}>", "exec", dont_inherit=True), names)
    return question.attacked(names, seconds, seed)


def test_the_solution_survives(question, cluster, database):
    outcome = attacked(question[1], question[1].answer, cluster, database, 5)
    assert outcome.state == RIGHT, f"{outcome}\n{outcome.trace}"
    assert "histories (seed 1)" in outcome.title


@pytest.mark.weekly
@pytest.mark.timeout(900)
def test_the_solution_survives_ten_minutes(question, cluster, database):
    outcome = attacked(question[1], question[1].answer, cluster, database, 600, seed=1000)
    assert outcome.state == RIGHT, f"{outcome}\n{outcome.trace}"


def test_a_wrong_answer_is_broken_by_a_short_history(question, cluster, database):
    name, asked = question
    for old, new, said in BROKEN[name]:
        assert asked.answer.count(old) == 1
        wrong = asked.answer.replace(old, new)
        outcome = attacked(asked, wrong, cluster, database, 60)
        assert outcome.state == NOT_RIGHT and said in str(outcome), f"{outcome}\n{outcome.trace}"
        steps = int(outcome.title.split("history of ")[1].split()[0])
        assert 1 <= steps <= 2 and outcome.picture is not None
        seed = int(str(outcome).split("attack(seed=")[1].split(")")[0])
        assert attacked(asked, wrong, cluster, database, 1, seed).title == outcome.title


def test_a_starter_and_a_question_without_an_attack(cluster, database):
    from exercises.lesson_05 import q1, q2  # noqa: PLC0415

    assert attacked(q2, q2.starter, cluster, database, 1).state == NOT_STARTED
    assert attacked(q1, q1.answer, cluster, database, 1).state == NOT_JUDGED
