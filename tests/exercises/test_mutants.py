"""Solutions with one thing broken are refused; the whole sweep is a command (`python -m tests.exercises.mutants`)."""

import random

import pytest

from exercises.frame.catalogue import questions
from tests.exercises.mutants import chosen_questions, excuses, mutants, survivors

SOLUTION = """
def place(producer, topic, orders):
    for number, order in enumerate(orders):
        if order and number < 5:
            producer.send(topic, order, key=b"ann", partition=0).get(timeout=10)
    producer.flush()
    connection.execute(text("UPDATE stock SET pieces = 0 WHERE product = 'tea'"))
    return True
"""


def test_what_is_broken():
    made = {mutant.name for mutant in mutants(SOLUTION)}
    assert made >= {
        "left out: producer.flush() -> pass",
        'left out: , key=b"ann"',
        "left out: , partition=0",
        'without `get`: producer.send(topic, order, key=b"ann", partition=0).get(timeout=10) '
        '-> producer.send(topic, order, key=b"ann", partition=0)',
        "its error swallowed: producer.flush() -> try: producer.flush() except Exception: pass",
        "compared otherwise: number < 5 -> number <= 5",
        "one condition only: order and number < 5 -> order",
        "one more: 5 -> 6",
        "the other: True -> False",
        'without a clause: "UPDATE stock SET pieces = 0 WHERE product = \'tea\'" -> "UPDATE stock SET pieces = 0"',
        "left out: return True -> pass",
    }
    assert all(compile(mutant.source, "mutant", "exec") for mutant in mutants(SOLUTION))


def test_each_excuse_is_of_a_mutant_that_there_is():
    for question in chosen_questions((), None):
        made = {mutant.name for mutant in mutants(question.answer)}
        assert not set(excuses(question)) - made, question


@pytest.mark.parametrize("lesson", [notebook[:2] for notebook in questions()])
@pytest.mark.weekly
def test_a_sample_of_each_question_is_refused(lesson, cluster, database, request):
    draw = random.Random(request.config.getoption("randomly_seed", 0) or 0)
    for question in chosen_questions((lesson,), None):
        made = mutants(question.answer)
        assert not survivors(question, draw.sample(made, min(4, len(made))), cluster, database)


def test_all_mutants_of_lesson_03_are_refused(cluster, database):
    for question in chosen_questions(("03",), None):
        assert not survivors(question, mutants(question.answer), cluster, database)
