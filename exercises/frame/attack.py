"""`q2.attack()`: an answer under accidents that are drawn; the shortest history that breaks it."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import Engine, event

from exercises.frame.outcome import NOT_RIGHT, RIGHT, NoJudgement, Outcome, Wrong
from exercises.frame.refusal import refusing
from helpers.pictures import Message, swimlanes

ORDINARY = {"comes", "again"}  # steps that are no accident
SHRINKING = 60  # seconds at most, to make a history that breaks an answer shorter


@dataclass(frozen=True)
class Attack:
    """How one question is attacked.

    Args:
        begin: `begin(lab, *objects)` gets the learner's objects and gives `run`; `run(history)` makes one history, from
            a fresh state, and raises `Wrong` when the answer does not survive it.
        draw: `draw(random)` gives a history: a list of steps, of which any part is a history, too.
        tell: `tell(step)` says a step: who acts, on whom, and what happens.
        lanes: who takes part, from left to right.
    """

    begin: Callable
    draw: Callable[[random.Random], list]
    tell: Callable[[tuple], tuple[str, str, str]]
    lanes: tuple[str, ...]


class Died(BaseException):
    """The process is gone at this place: no `except Exception` sees it, and nothing after it runs."""


@contextlib.contextmanager
def struck(engine: Engine, what: str, number: int) -> Iterator[None]:
    """Have an accident happen to whatever uses this engine.

    Args:
        engine: what the answer works with.
        what: "refused" (the n-th statement, by a lock timeout), "dies" (after the n-th statement), "dies committed"
            (right after its n-th commit), or "" for none.
        number: counts from 1.
    """
    if what == "refused":
        with refusing(engine, number):
            yield
        return
    count, dialect = 0, engine.dialect
    commit = dialect.do_commit

    def reached() -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Died

    def after_statement(*_) -> None:
        reached()

    def do_commit(connection) -> None:
        commit(connection)
        reached()

    if what == "dies":
        event.listen(engine, "after_cursor_execute", after_statement)
    elif what == "dies committed":
        setattr(dialect, "do_commit", do_commit)  # noqa: B010 (of this one engine; mypy takes it for the method)
    try:
        yield
    finally:
        if what == "dies":
            event.remove(engine, "after_cursor_execute", after_statement)
        elif what == "dies committed":
            del dialect.do_commit


def attack(question_name: str, plan: Attack, run: Callable[[list], object], seconds: float, seed: int) -> Outcome:
    """Run histories until the time is over, or one breaks the answer.

    Args:
        question_name: as the notebook calls it.
        plan: how it is attacked.
        run: what `plan.begin` gave.
        seconds: how long.
        seed: of the first history; each next one has the next number.
    """
    end, survived, steps = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end or not survived:
        history = plan.draw(random.Random(seed + survived))
        try:
            run(history)
        except NoJudgement:
            raise
        except Wrong as wrong:
            history, wrong = _shortest(run, history, wrong)
            return _broken(question_name, plan, history, wrong, seed, survived)
        survived += 1
        steps += len(history)
    said = f"{survived} histories, {steps} steps in all, seeds {seed} to {seed + survived - 1}"
    return Outcome(RIGHT, f"{question_name}: survived {survived} histories (seed {seed})", [("Attacked with", said)])


def _shortest(run: Callable, history: list, wrong: Wrong) -> tuple[list, Wrong]:
    """Leave out what is not needed to break the answer, step by step."""
    end, place = time.monotonic() + SHRINKING, 0
    while place < len(history) and time.monotonic() < end:
        shorter = history[:place] + history[place + 1 :]
        try:
            run(shorter)
            place += 1
        except NoJudgement:
            place += 1
        except Wrong as again:
            history, wrong, place = shorter, again, 0
    return history, wrong


def _broken(name: str, plan: Attack, history: list, wrong: Wrong, seed: int, survived: int) -> Outcome:
    told = [plan.tell(step) for step in history]
    messages = [
        Message(who, whom, label, "forward" if step[0] in ORDINARY else "failure")
        for step, (who, whom, label) in zip(history, told, strict=True)
    ]
    facts = [
        *wrong.facts,
        ("History", "\n".join(f"{n}. {label}" for n, (*_, label) in enumerate(told, 1)) or "no accident is needed"),
        ("On the log", repr(wrong.picture) if wrong.picture is not None else ""),
        ("Again", f"`{name}.attack(seed={seed + survived})`; {survived} histories were survived before"),
    ]
    picture = swimlanes(messages, list(plan.lanes), "The shortest history that breaks it") if messages else None
    return Outcome(
        NOT_RIGHT,
        f"{name}: broken by a history of {len(history)} step{'s' * (len(history) != 1)}",
        facts,
        picture,
        wrong.trace,
    )
