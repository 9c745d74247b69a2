"""The exercise frame: `q1.check()`, `q1.hint()`, `q1.solution()`, judged by running the answer and looking at the log.

A lesson's questions are `Question` objects in `exercises/lesson_NN.py`. Their author writes a judge: a function that
gets a `Lab` (fresh topics, what is on the log) and the learner's objects, runs them, and raises `Wrong` or returns.
What the learner's code does on the way (endless loops, exceptions, open clients, prints) is the frame's matter. `hold`
is for the tests of questions.
"""

import contextlib
import linecache
import re
import sys
import textwrap
import traceback
from collections.abc import Callable

from IPython import get_ipython
from kafka.errors import KafkaConnectionError, KafkaTimeoutError

from exercises.frame import board_client, progress
from exercises.frame.attack import SHRINKING, Attack, attack
from exercises.frame.clients import Clients
from exercises.frame.deadline import TookTooLong, learners_line, limited
from exercises.frame.lab import Lab
from exercises.frame.outcome import (
    NOT_JUDGED,
    NOT_RIGHT,
    NOT_STARTED,
    RIGHT,
    Card,
    Interrupted,
    NoJudgement,
    Outcome,
    Source,
    Wrong,
)
from exercises.frame.pace import BUSY
from exercises.frame.sandbox import quiet, run_starter, same
from exercises.frame.words import CAUSES, describe, first_lines, say_error
from helpers.errors import LabError
from helpers.kafka.embedded import own_cluster

ARRIVAL = 5  # seconds that a call for help may take to the teacher's board

#: Called as observer(lesson, question, state), e.g. ("lesson_01", "q1", "right"), after each check that could judge,
#: in headless runs too; what they raise or print goes nowhere. The first one keeps the learner's progress.
observers: list[Callable[[str, str, str], object]] = [progress.observe, board_client.observe]


class Question:
    """One question of a lesson.

    Args:
        name: as the notebook calls it, "q1"; what the lab makes is named after it.
        wants: the names that the learner writes, handed to the judge in this order.
        starter: text of the question's cell. It only defines names: each check runs it, to see whether it was changed.
        solution: text that replaces it.
        judge: `judge(lab, *objects)`, runs the answer and raises `Wrong`; None, a sentence or a picture when it is
            right.
        hints: from a nudge to nearly the answer.
        why: one sentence on why it matters, shown when it is right.
        deadline: seconds that the judge, with the learner's code in it, may take on a quiet machine of two cores; at
            least four times what it takes there with the solution.
        cluster: the notebook's name for its cluster.
        brokers: a number gives the check an embedded cluster of its own, which the judge may harm; started before the
            deadline begins.
        attack: how `attack` attacks an answer; None where it cannot be attacked.
    """

    def __init__(
        self, name: str, *, wants: tuple[str, ...], starter: str, solution: str, judge: Callable, hints: list[str],
        why: str, deadline: float = 10, cluster: str = "cluster", brokers: int | None = None,
        attack: Attack | None = None,
    ):  # fmt: skip
        self.name, self.wants, self.why, self.deadline = name, wants, why, deadline
        self.starter, self.answer = _tidy(starter), _tidy(solution)
        self.hints, self.cluster, self.brokers = hints, cluster, brokers
        self.lesson = judge.__module__.rpartition(".")[2]
        self._judge, self._hints_shown, self._attack = judge, 0, attack

    def __repr__(self):
        return f"{self.name}: {self.name}.check(), {self.name}.hint(), {self.name}.solution()"

    def check(self) -> Outcome:
        """Judge what the notebook holds now.

        Raises:
            Interrupted: the learner did not wait; a KeyboardInterrupt that a notebook shows in one line.
        """
        shell = get_ipython()
        try:
            return self.judge(shell.user_ns if shell else sys._getframe(1).f_globals)
        except KeyboardInterrupt:
            raise Interrupted(self.name) from None

    def hint(self) -> Card:
        """The next hint; after the last one the last one again."""
        self._hints_shown = shown = min(self._hints_shown + 1, len(self.hints))
        return Card(f"{self.name} (hint {shown} of {len(self.hints)})", [("", self.hints[shown - 1])])

    def solution(self) -> Source:
        """An answer that is right, to read or to copy into the question's cell."""
        return Source(f"{self.name}, one solution:", self.answer)

    def progress(self) -> Card:
        """How many of this lesson's questions are right so far."""
        module = sys.modules[self._judge.__module__]
        names = [thing.name for thing in vars(module).values() if isinstance(thing, Question)]
        said, trouble = progress.of_lesson(self.lesson, names)
        return Card(said, [("All lessons", "`python -m helpers progress`"), ("Not kept", trouble)])

    def attack(self, seconds: float = 60, seed: int = 1) -> Outcome:
        """Attack your answer with accidents that are drawn, and find the shortest history that breaks it.

        Args:
            seconds: how long it is attacked, at least with one history.
            seed: draws the histories; the same seed draws the same ones.

        Raises:
            Interrupted: the learner did not wait.
        """
        shell = get_ipython()
        try:
            return self.attacked(shell.user_ns if shell else sys._getframe(1).f_globals, seconds, seed)
        except KeyboardInterrupt:
            raise Interrupted(self.name) from None

    def attacked(self, namespace: dict, seconds: float, seed: int) -> Outcome:
        """Attack what a namespace holds; see `attack`. It counts as no try."""
        if self._attack is None:
            told = f"`{self.name}.check()` judges your answer."
            return Outcome(NOT_JUDGED, f"{self.name} has no attack", [("To do", told)])
        plan = self._attack

        def attacking(lab: Lab, *objects) -> Outcome:
            return attack(self.name, plan, plan.begin(lab, *objects), seconds, seed)

        with quiet():
            return self._outcome(namespace, attacking, seconds + SHRINKING + self.deadline)

    def ask(self, words: str = "") -> Card:
        """In class: ask the teacher for help. The code of your answer goes to the teacher's board, with your words."""
        if not board_client.topic():
            return Card(f"{self.name}: you have not joined a class", [("To do", f"`{self.name}.hint()` helps.")])
        arrived = board_client.ask(self.lesson, self.name, words, self._code(get_ipython()))
        if not arrived.wait(ARRIVAL):
            return Card(f"{self.name}: your call has not arrived (yet)", [("To do", "raise your hand.")])
        return Card(
            f"{self.name}: the teacher sees that you ask for help", [("Sent", "your words and your answer's code")]
        )

    def _code(self, shell) -> str:
        """The last cell that was run and gives one of the wanted names a value."""
        names = "|".join(map(re.escape, self.wants))
        gives = re.compile(rf"^(?:(?:async )?def|class) (?:{names})\b|^(?:{names})\s*=", re.M)
        cells = shell.user_ns.get("In", []) if shell else []
        return next((cell for cell in reversed(cells) if gives.search(cell)), "")

    def judge(self, namespace: dict) -> Outcome:
        """Judge what a namespace holds. It raises nothing but the KeyboardInterrupt of a learner who won't wait."""
        with quiet() as printed:
            outcome = self._outcome(namespace)
            if outcome.state == NOT_RIGHT and printed.getvalue().strip():
                outcome.facts.append(("Your code printed", first_lines(printed.getvalue(), dropped=printed.dropped)))
            for observer in observers if outcome.judged else ():
                with contextlib.suppress(Exception):
                    observer(self.lesson, self.name, outcome.state)
        return outcome

    def changed(self, old: str, new: str) -> str:
        """The solution with one passage exchanged: a plausible wrong answer, for tests."""
        assert self.answer.count(old) == 1, f"{old!r} has to be in the solution of {self.name} once"
        return self.answer.replace(old, new)

    def try_answer(self, source: str, cluster=None, setup: str = "", **names) -> Outcome:
        """Run `source` as the question's cell of a fresh notebook and judge it, for tests.

        Args:
            source: the cell's text.
            cluster: the notebook's cluster.
            setup: text that runs before, such as the import cell.
            **names: what else the notebook holds.
        """
        namespace = {"__name__": "__main__", self.cluster: cluster, **names}
        for title, text in (("setup", setup), ("answer", source)):
            file = f"<{title} of {self.name}>"
            linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
            exec(compile(text, file, "exec", dont_inherit=True), namespace)
        return self.judge(namespace)

    def _outcome(self, namespace: dict, judge: Callable | None = None, deadline: float = 0) -> Outcome:
        """Not started, or the judge's word, or what kept the judge from it."""
        others = {name: value for name, value in namespace.items() if name not in self.wants}
        starter = run_starter(self.starter, others)
        blank = [name for name in self.wants if namespace.get(name) is None or namespace[name] is ...]
        names = ", ".join(f"`{name}`" for name in self.wants)
        if all(name in blank or (name in starter and same(namespace[name], starter[name])) for name in self.wants):
            todo = f"Write {names} in the cell above, run it, then run this one again. `{self.name}.hint()` helps."
            return Outcome(NOT_STARTED, f"{self.name}: not started yet", [("To do", todo)])
        try:
            if blank:
                raise Wrong(f"there is no `{blank[0]}` yet", names, "Its cell was not run, or its name differs.")
            for name in self.wants:
                _check_kind(name, namespace[name], starter.get(name))
            found = self._run_judge(namespace, judge or self._judge, deadline or self.deadline)
            if isinstance(found, Outcome):
                return found
            facts = [("Observed", found)] if isinstance(found, str) else []
            picture = found if hasattr(found, "_repr_mimebundle_") else None
            return Outcome(RIGHT, f"{self.name}: right", [*facts, ("Why it matters", self.why)], picture)
        except Wrong as wrong:
            state, title = NOT_RIGHT, "not yet right"
            if isinstance(wrong, NoJudgement):
                state, title = NOT_JUDGED, "not judged"
            return Outcome(state, f"{self.name}: {title}", wrong.facts, wrong.picture, wrong.trace)

    def _run_judge(self, namespace: dict, judge: Callable, deadline: float):
        """The judge's result; whatever goes wrong on the way comes out as `Wrong`."""
        lab = None
        try:
            with contextlib.ExitStack() as afterwards, Clients(keep=namespace) as clients:
                own = afterwards.enter_context(own_cluster(self.brokers)) if self.brokers else None
                lab = Lab(self, namespace, clients, afterwards, own)
                objects = [namespace[name] for name in self.wants]
                return limited(lambda: judge(lab, *objects), deadline, namespace, self.wants)
        except (Wrong, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._explain(error, namespace, lab)

    def _explain(self, error: BaseException, namespace: dict, lab: Lab | None) -> None:
        """Raise the `Wrong` for an exception (a deadline too) that came out of the learner's code or of the judge."""
        if lab and (lab._own_cluster or namespace.get(self.cluster) is not None):
            _ = lab.cluster  # raises if the brokers are dead, which then is the reason
        place = learners_line(reversed([*traceback.walk_tb(error.__traceback__)]), namespace, self.wants)
        said = say_error(error)
        if isinstance(error, TookTooLong):
            stuck = "" if error.ended else " It could not be stopped and still runs: restart the kernel."
            after, slow = f"after {error.seconds:g} s", f"{error.slowness:.1f} times slower than usual"
            if error.place and error.slowness < BUSY:
                wrong = Wrong(
                    f"{after} your code was still running, in {error.place}",
                    "an answer that comes to its end",
                    "A loop without an end, or a call that waits for something that never comes." + stuck,
                )
            elif error.place:
                wrong = NoJudgement(
                    f"{after} your code was still running, in {error.place}; this machine was {slow}",
                    "a quieter machine: end what keeps it busy, then check again",
                    "The machine, or else a loop without an end. This counts as no try." + stuck,
                )
            else:
                wrong = NoJudgement(
                    f"the check itself had not ended {after}; this machine was {slow}",
                    "a quieter machine, and brokers that answer",
                    "End what keeps the machine busy, then check again. If a broker is dead or paused, start the "
                    "cluster again. This counts as no try." + stuck,
                )
        elif place:
            causes = (cause for kind, cause in CAUSES.items() if isinstance(error, kind))
            wrong = Wrong(f"your code stopped with {said} in {place}", "code that runs to its end", next(causes, ""))
        elif isinstance(error, LabError):
            wrong = NoJudgement(str(error))
        elif isinstance(error, (TimeoutError, KafkaTimeoutError, KafkaConnectionError)):
            wrong = NoJudgement(
                f"the check itself waited in vain: {said}",
                "a quieter machine, and brokers that answer",
                "Check again. If it happens again, run the cell that starts the cluster. This counts as no try.",
            )
        else:
            wrong = Wrong(
                f"the check could not work with your answer: {said}",
                "names, parameters and results as the starter cell describes them",
                "Your code gave something of another kind than the check expects.",
            )
        wrong.trace = "".join(traceback.format_exception(error))
        raise wrong from None


def _tidy(source: str) -> str:
    return textwrap.dedent(source).strip("\n")


def _check_kind(name: str, mine, starters) -> None:
    """A name that the starter gives to a function or class must not hold something else."""
    kind = "a class" if isinstance(starters, type) else "a function"
    if callable(starters) and not (isinstance(mine, type) if kind == "a class" else callable(mine)):
        raise Wrong(f"`{name}` is {describe(mine)}", kind, "The name was used for something else: run its cell again.")
