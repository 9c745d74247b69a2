"""What the tests of the lessons' questions share."""

import pytest

from exercises.frame import question


@pytest.fixture(autouse=True)
def endless_answers_are_told_so_on_a_busy_machine_too(request, monkeypatch):
    """Judge an answer that runs into its deadline, however busy this machine is: here it is known to have no end.

    What a learner is told on a busy machine has its own tests, in `test_questions`.
    """
    if not request.module.__name__.endswith("test_questions"):
        monkeypatch.setattr(question, "BUSY", float("inf"))
