"""The exercise frame: `q1.check()`, `q1.hint()`, `q1.solution()`, judged by running the answer and looking at the log.

A lesson's questions are `Question` objects in `exercises/lesson_NN.py`. Their author writes a judge: a function that
gets a `Lab` (fresh topics, what is on the log) and the learner's objects, runs them, and raises `Wrong` or returns.
What the learner's code does on the way (endless loops, exceptions, open clients, prints) is the frame's matter. `hold`
is for the tests of questions.
"""

import contextlib
import html
import inspect
import linecache
import re
import sys
import textwrap
import traceback
from collections.abc import Callable

from IPython import get_ipython
from kafka import KafkaConsumer, KafkaProducer

from helpers import progress
from helpers.classroom import report
from helpers.errors import LabError
from helpers.sandbox import Clients, TookTooLong, learners_line, limited, own_cluster, quiet, run_starter, same

NOT_STARTED, NOT_RIGHT, RIGHT = "not started", "not right", "right"
ARRIVAL = 5  # seconds that a call for help may take to the teacher's board

#: Called as observer(lesson, question, state), e.g. ("lesson_01", "q1", "right"), after each check that could judge,
#: in headless runs too; what they raise or print goes nowhere. The first one keeps the learner's progress.
observers: list[Callable[[str, str, str], object]] = [progress.observe, report.observe]


class Wrong(Exception):
    """What a judge raises: the answer is not right yet.

    Args:
        observed: what was found on the log, in the database, in the returned value.
        wanted: what should have been there.
        cause: the likely cause, as a hint at the learner's code.
        picture: a `Picture` of what was observed.
    """

    def __init__(self, observed: str, wanted: str = "", cause: str = "", picture=None):
        super().__init__(observed)
        self.facts = [("Observed", observed), ("Wanted", wanted), ("Likely cause", cause)]
        self.picture = picture
        self.trace = ""  # for authors: the whole story of an exception, where there was one


class NoJudgement(Wrong):
    """The check could not be done, which says nothing about the answer: no cluster, a dead broker."""


class Card:
    """Facts to show: HTML for the notebook, and the same in plain text.

    Args:
        title: the first line.
        facts: pairs of a label (or "") and a text, in which backticks mark code; those without text are left out.
        picture: a `Picture`, which brings its own text twin.
        kind: what it is about, an outcome's state; gives the colour.
    """

    def __init__(self, title: str, facts: list[tuple[str, str]], picture=None, kind: str = ""):
        self.title, self.facts, self.picture, self.kind = title, [fact for fact in facts if fact[1]], picture, kind

    def __repr__(self):
        lines = ["  " + (_heading(label, fact) + fact).replace("\n", "\n    ") for label, fact in self.facts]
        return "\n".join([self.title, *lines, *([repr(self.picture)] if self.picture is not None else [])])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        mark, colour = _LOOKS.get(self.kind, _LOOKS[""])
        rows = [f"<div><b>{mark} {_to_html(self.title)}</b></div>"]
        for label, fact in self.facts:
            heading = f"<b>{_to_html(_heading(label, fact))}</b>"
            rows.append(f'<div style="white-space: pre-wrap; margin-top: 0.3em">{heading}{_to_html(fact)}</div>')
        if self.picture is not None:
            rows.append(picture_as_html(self.picture))
        style = f"border-left: 6px solid {colour}; background: {colour}22; padding: 0.5em 1em; max-width: 60em"
        return {"text/html": f'<div style="{style}">{"".join(rows)}</div>', "text/plain": repr(self)}


class Outcome(Card):
    """The answer of a check: its `state` is "not started", "not right" or "right".

    `judged` is False where something else than the answer is in the way; `trace` is a whole traceback, for authors.
    """

    def __init__(self, state: str, title: str, facts: list[tuple[str, str]], picture=None, judged=True, trace=""):
        super().__init__(title, facts, picture, kind=state)
        self.state, self.judged, self.trace = state, judged, trace


class Source:
    """A solution to show: as Markdown, which JupyterLab colours in its theme, and in plain text."""

    def __init__(self, title: str, text: str):
        self.title, self.text = title, text

    def __repr__(self):
        return f"{self.title}\n\n{self.text}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/markdown": f"{self.title}\n\n```python\n{self.text}\n```", "text/plain": repr(self)}


class Lab:
    """What a judge works with. All that it makes is named after the question, and closed after the check.

    Clients that the learner's code leaves open stay open until the judge is done: a record that still waits in the
    buffer of a producer is not on the log yet. `close_clients` closes, and by that flushes, them earlier.
    """

    def __init__(self, question, namespace: dict, clients, afterwards: contextlib.ExitStack, own_cluster):
        self._question, self._namespace, self._clients, self._own_cluster = question, namespace, clients, own_cluster
        #: what is to be done after the check, e.g. `lab.afterwards.callback(worker.kill)`
        self.afterwards = afterwards

    @property
    def cluster(self):
        """The notebook's running cluster, or the question's own one."""
        if self._own_cluster:
            cluster, what, remedy = self._own_cluster, "the cluster of this check", "Check again."
        else:
            cluster, what = self.need(self._question.cluster), f"`{self._question.cluster}`"
            remedy = "Run the cell that starts the cluster, then check again."
        if not _alive(cluster):
            raise NoJudgement(f"{what} is stopped, or its brokers are dead", "a running cluster", remedy)
        return cluster

    def need(self, name: str):
        """Something that the notebook has made before the question, by its name, e.g. `lab.need("database")`."""
        if self._namespace.get(name) is None:
            raise NoJudgement(
                f"there is no `{name}` in this notebook yet",
                f"`{name}`, as the lesson makes it",
                f"Run the cells above, the one that makes `{name}` among them, then check again.",
            )
        return self._namespace[name]

    def topic(self, name: str = "log", **settings) -> str:
        """A fresh topic: `lab.topic("orders", partitions=3)` of q1 is `q1-orders`. Settings as of `cluster.topic`."""
        return self.cluster.topic(f"{self._question.name}-{name}", **settings)

    def group(self, name: str = "group") -> str:
        """A consumer group without members or offsets."""
        return self.cluster.group(f"{self._question.name}-{name}")

    def transactional_id(self, name: str = "producer") -> str:
        """A transactional id."""
        return self.cluster.transactional_id(f"{self._question.name}-{name}")

    def producer(self, **settings) -> KafkaProducer:
        """A producer to hand to the learner's code."""
        return self._clients.add(KafkaProducer(**self.cluster.connection, **settings))

    def consumer(self, *topics: str, **settings) -> KafkaConsumer:
        """A consumer to hand to the learner's code."""
        return self._clients.add(KafkaConsumer(*topics, **self.cluster.connection, **settings))

    def records(self, topic: str, **options) -> list:
        """What is on the log now, by partition and offset; options as of `read_topic`."""
        from helpers.reading import read_topic

        return read_topic(self.cluster, topic, **options)

    def close_clients(self) -> None:
        """Close what is open now, as a program does that ends normally."""
        self._clients.close()

    def call(self, function: Callable, *arguments, gives: type | tuple | None = None, **keywords):
        """Run the learner's function; `Wrong` if it does not take the arguments, or gives another type than `gives`."""
        name = getattr(function, "__name__", "your function")
        try:
            inspect.signature(function).bind(*arguments, **keywords)
        except TypeError as error:
            raise Wrong(
                f"`{name}{inspect.signature(function)}` cannot be called as the check calls it: {error}",
                "the parameters of the starter cell",
                "A parameter was added, removed or moved.",
            ) from None
        except ValueError:  # a callable without a signature, e.g. of C
            pass
        result = function(*arguments, **keywords)
        lazy = inspect.isgenerator(result) or inspect.iscoroutine(result)
        if (gives is None and lazy) or (gives is not None and not isinstance(result, gives)):
            kinds = gives if isinstance(gives, tuple) else (gives,)
            raise Wrong(
                f"`{name}` gave {_describe(result)}",
                "a plain call that does its work" if gives is None else " or ".join(_kind(kind) for kind in kinds),
                _why_this_type(result),
            )
        return result


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
        deadline: seconds that the judge, with the learner's code in it, may take.
        cluster: the notebook's name for its cluster.
        brokers: a number gives the check an embedded cluster of its own, which the judge may harm; started before the
            deadline begins.
    """

    def __init__(
        self, name: str, *, wants: tuple[str, ...], starter: str, solution: str, judge: Callable, hints: list[str],
        why: str, deadline: float = 10, cluster: str = "cluster", brokers: int | None = None,
    ):  # fmt: skip
        self.name, self.wants, self.why, self.deadline = name, wants, why, deadline
        self.starter, self.answer = _tidy(starter), _tidy(solution)
        self.hints, self.cluster, self.brokers = hints, cluster, brokers
        self.lesson = judge.__module__.rpartition(".")[2]
        self._judge, self._hints_shown = judge, 0

    def __repr__(self):
        return f"{self.name}: {self.name}.check(), {self.name}.hint(), {self.name}.solution()"

    def check(self) -> Outcome:
        """Judge what the notebook holds now."""
        shell = get_ipython()
        return self.judge(shell.user_ns if shell else sys._getframe(1).f_globals)

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

    def ask(self, words: str = "") -> Card:
        """In class: ask the teacher for help. The code of your answer goes to the teacher's board, with your words."""
        if not report.topic():
            return Card(f"{self.name}: you have not joined a class", [("To do", f"`{self.name}.hint()` helps.")])
        arrived = report.ask(self.lesson, self.name, words, self._code(get_ipython()))
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
                outcome.facts.append(("Your code printed", _first_lines(printed.getvalue())))
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

    def _outcome(self, namespace: dict) -> Outcome:
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
            found = self._run_judge(namespace)
            facts = [("Observed", found)] if isinstance(found, str) else []
            picture = found if hasattr(found, "_repr_mimebundle_") else None
            return Outcome(RIGHT, f"{self.name}: right", [*facts, ("Why it matters", self.why)], picture)
        except Wrong as wrong:
            title = "could not be checked" if isinstance(wrong, NoJudgement) else "not yet right"
            judged = not isinstance(wrong, NoJudgement)
            return Outcome(NOT_RIGHT, f"{self.name}: {title}", wrong.facts, wrong.picture, judged, wrong.trace)

    def _run_judge(self, namespace: dict):
        """The judge's result; whatever goes wrong on the way comes out as `Wrong`."""
        lab = None
        try:
            with contextlib.ExitStack() as afterwards, Clients(keep=namespace) as clients:
                own = afterwards.enter_context(own_cluster(self.brokers)) if self.brokers else None
                lab = Lab(self, namespace, clients, afterwards, own)
                objects = [namespace[name] for name in self.wants]
                return limited(lambda: self._judge(lab, *objects), self.deadline, namespace)
        except (Wrong, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._explain(error, namespace, lab)

    def _explain(self, error: BaseException, namespace: dict, lab: Lab | None) -> None:
        """Raise the `Wrong` for an exception (a deadline too) that came out of the learner's code or of the judge."""
        if lab and (lab._own_cluster or namespace.get(self.cluster) is not None):
            _ = lab.cluster  # raises if the brokers are dead, which then is the reason
        place = learners_line(reversed([*traceback.walk_tb(error.__traceback__)]), namespace)
        said = _said(error)
        if isinstance(error, TookTooLong):
            stuck = "" if error.ended else " It could not be stopped and still runs: restart the kernel."
            if error.place:
                wrong = Wrong(
                    f"after {self.deadline:g} s your code was still running, in {error.place}",
                    "an answer that comes to its end",
                    "A loop without an end, or a call that waits for something that never comes." + stuck,
                )
            else:
                wrong = NoJudgement(
                    f"the check had no answer from Kafka after {self.deadline:g} s",
                    "brokers that answer",
                    "A broker is paused, dead or very busy: start the cluster again, then check again." + stuck,
                )
        elif place:
            causes = (cause for kind, cause in _CAUSES.items() if isinstance(error, kind))
            wrong = Wrong(f"your code stopped with {said} in {place}", "code that runs to its end", next(causes, ""))
        elif isinstance(error, LabError):
            wrong = NoJudgement(str(error))
        else:
            wrong = Wrong(
                f"the check could not work with your answer: {said}",
                "names, parameters and results as the starter cell describes them",
                "Your code gave something of another kind than the check expects.",
            )
        wrong.trace = "".join(traceback.format_exception(error))
        raise wrong from None


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
        assert outcome.state == state and outcome.judged, f"Not {state!r}: {told}"
        assert phrase in str(outcome), f"No {phrase!r} in: {told}"
        messages.add(str(outcome))
    assert len(messages) == 2 + len(wrong), f"two answers to {question.name} get the same message"


# -- words -----------------------------------------------------------------------------------------------------------

_LOOKS = {RIGHT: ("✔", "#009E73"), NOT_RIGHT: ("✘", "#D55E00"), NOT_STARTED: ("○", "#56B4E9"), "": ("➜", "#E69F00")}

_CAUSES = {
    NameError: "A name that has no value: a typing mistake, or a cell above that was not run.",
    NotImplementedError: "The starter's placeholder is still there.",
    RecursionError: "A function that calls itself, without an end.",
    SystemExit: "`exit` and `sys.exit` end a whole program; a function comes back with `return`.",
}


def _tidy(source: str) -> str:
    return textwrap.dedent(source).strip("\n")


def _check_kind(name: str, mine, starters) -> None:
    """A name that the starter gives to a function or class must not hold something else."""
    kind = "a class" if isinstance(starters, type) else "a function"
    if callable(starters) and not (isinstance(mine, type) if kind == "a class" else callable(mine)):
        raise Wrong(f"`{name}` is {_describe(mine)}", kind, "The name was used for something else: run its cell again.")


def _alive(cluster) -> bool:
    try:
        return bool(cluster.alive())
    except Exception:
        return False


def _said(error: BaseException) -> str:
    try:
        message = _short(str(error))
    except Exception:
        message = ""
    message = message.removeprefix(f"{type(error).__name__}: ")  # kafka-python's errors say their names themselves
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _short(text: str, length: int = 200) -> str:
    first = text.strip().split("\n")[0]
    return first if len(first) <= length else first[:length] + " …"


def _first_lines(text: str, most: int = 5) -> str:
    lines = text.strip("\n").split("\n")
    rest = [f"… and {len(lines) - most} more lines"] if len(lines) > most else []
    return "\n".join([_short(line, 100) for line in lines[:most]] + rest)


def _kind(kind: type) -> str:
    return ("an " if kind.__name__[0] in "aeiouAEIOU" else "a ") + kind.__name__


def _describe(value) -> str:
    if value is None:
        return "None"
    if isinstance(value, bool | int | float | str | bytes):
        return f"{_kind(type(value))}, {_short(repr(value), 60)}"
    return _kind(type(value))


def _why_this_type(value) -> str:
    if value is None:
        return "The `return` is missing; printing a value does not give it back."
    if inspect.isgenerator(value):
        return "With `yield` in it a function is a generator: calling it runs nothing yet."
    if inspect.iscoroutine(value):
        return "`async def` makes a coroutine: calling it runs nothing, and nobody awaits it here."
    return "The function gives back another thing than it should."


def _heading(label: str, fact: str) -> str:
    """What stands before a fact; one of several lines begins on a line of its own."""
    return label and label + (":\n" if "\n" in fact else ": ")


def _to_html(text: str) -> str:
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html.escape(text))


def picture_as_html(picture) -> str:
    """The picture itself with its text as the alternative, or the text alone where pictures are switched off."""
    data, metadata = picture._repr_mimebundle_()
    text = html.escape(data["text/plain"])
    if "image/png" not in data:
        return f"<pre>{text}</pre>"
    source, width = f"data:image/png;base64,{data['image/png']}", metadata["image/png"]["width"]
    return f'<img style="max-width: 100%; margin-top: 0.5em" width="{width}" alt="{text}" src="{source}">'
