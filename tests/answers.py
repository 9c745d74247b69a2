"""More answers to a question than `hold` takes: wrong ones whose messages may be alike, and unusual right ones."""

from exercises.frame.outcome import NOT_RIGHT, RIGHT
from exercises.frame.question import Question


def refused(question: Question, answers: dict[str, str], cluster, setup: str, **names) -> None:
    """Assert that answers are judged wrong, each with a message that holds its phrase."""
    for source, phrase in answers.items():
        outcome = question.try_answer(source, cluster, setup, **names)
        told = f"{outcome}\n{outcome.trace}\nThe answer was:\n{source}"
        assert outcome.state == NOT_RIGHT and outcome.judged, f"Not refused: {told}"
        assert phrase in str(outcome), f"No {phrase!r} in: {told}"


def right(question: Question, answers: list[str], cluster, setup: str, **names) -> None:
    """Assert that answers are judged right."""
    for source in answers:
        outcome = question.try_answer(source, cluster, setup, **names)
        assert outcome.state == RIGHT, f"{outcome}\n{outcome.trace}\nThe answer was:\n{source}"
