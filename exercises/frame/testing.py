"""For the tests of questions: `hold` a question to its promises."""

from exercises.frame.outcome import NOT_RIGHT, NOT_STARTED, RIGHT
from exercises.frame.question import Question


def hold(question: Question, wrong: dict[str, str], cluster=None, setup: str = "", **names) -> None:
    """Assert that a question keeps its promises: starter not started, solution right, wrong answers told apart.

    Args:
        question: the question.
        wrong: plausible wrong answers: source text to a phrase that its message must contain, of the cause.
        cluster, setup, names: as of `Question.try_answer`.
    """
    assert len(question.hints) >= 2, f"{question.name} needs more than one hint"
    assert len(wrong) >= 2, f"{question.name} needs at least two plausible wrong answers"
    messages = set()
    for source, state, phrase in [
        (question.starter, NOT_STARTED, ""),
        (question.answer, RIGHT, question.why),
        *((source, NOT_RIGHT, phrase) for source, phrase in wrong.items()),
    ]:
        outcome = question.try_answer(source, cluster, setup, **names)
        told = f"{outcome}\n{outcome.trace}\nThe answer was:\n{source}"
        assert outcome.state == state, f"Not {state!r}: {told}"
        assert phrase in str(outcome), f"No {phrase!r} in: {told}"
        messages.add(str(outcome))
    assert len(messages) == 2 + len(wrong), f"two answers to {question.name} get the same message"
