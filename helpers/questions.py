"""The exercise frame: `q1.check()`, `q1.hint()`, `q1.solution()`, judged by running the answer and looking at the log.

A lesson's questions are `Question` objects in `exercises/lesson_NN.py`. Their author writes a judge: a function that
gets a `Lab` (fresh topics, what is on the log) and the learner's objects, runs them, and raises `Wrong` or returns.
What the learner's code does on the way (endless loops, exceptions, open clients, prints) is the frame's matter. `hold`
is for the tests of questions.
"""

import _thread
import contextlib
import ctypes
import functools
import html
import inspect
import io
import linecache
import logging
import re
import signal
import sys
import textwrap
import threading
import time
import traceback
import types
from collections.abc import Callable

from IPython import get_ipython
from IPython.utils.capture import capture_output
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

from helpers.errors import LabError

NOT_STARTED, NOT_RIGHT, RIGHT = "not started", "not right", "right"

#: Called as observer(lesson, question, state), e.g. ("lesson_01", "q1", "right"), after each check that could judge.
observers: list[Callable[[str, str, str], object]] = []


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


class TookTooLong(BaseException):
    """The deadline has passed. A BaseException, so that the learner's `except Exception` does not swallow it."""

    place = ""  #: the learner's line that was running
    ended = True  #: False: it still runs, in a thread that could not be stopped


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
            rows.append(_picture_as_html(self.picture))
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

    def judge(self, namespace: dict) -> Outcome:
        """Judge what a namespace holds. It raises nothing but the KeyboardInterrupt of a learner who won't wait."""
        with _quiet() as printed:
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
        starter = _run(self.starter, {name: value for name, value in namespace.items() if name not in self.wants})
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
            with contextlib.ExitStack() as afterwards, _Clients(keep=namespace) as clients:
                own = afterwards.enter_context(_own_cluster(self.brokers)) if self.brokers else None
                lab = Lab(self, namespace, clients, afterwards, own)
                objects = [namespace[name] for name in self.wants]
                return _limited(lambda: self._judge(lab, *objects), self.deadline, namespace)
        except (Wrong, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._explain(error, namespace, lab)

    def _explain(self, error: BaseException, namespace: dict, lab: Lab | None) -> None:
        """Raise the `Wrong` for an exception (a deadline too) that came out of the learner's code or of the judge."""
        if lab and (lab._own_cluster or namespace.get(self.cluster) is not None):
            _ = lab.cluster  # raises if the brokers are dead, which then is the reason
        place = _place(reversed([*traceback.walk_tb(error.__traceback__)]), namespace)
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


# -- the deadline ----------------------------------------------------------------------------------------------------


def _limited(work: Callable, seconds: float, namespace: dict):
    """Run `work`; TookTooLong after so many seconds. What stays inside C (a Java call, a long computation of numpy) is
    ended when it returns, not before."""
    if hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread():
        return _limited_by_signal(work, seconds, namespace)
    return _limited_by_thread(work, seconds, namespace)


def _limited_by_signal(work: Callable, seconds: float, namespace: dict):
    """A timer signal raises in the main thread, whatever it does or waits for there.

    A loop with a bare `except:` in it would live on. So (1) the timer rings again and again; (2) a raised object that
    is dropped, as a swallowed exception is, rings at once; (3) from the second ring on, the learner's next line, which
    is that of `except:`, raises once more, where the same `try` cannot catch it.
    """
    armed, late = True, None  # late: the exception of the deadline, once it has passed

    class Ring(TookTooLong):
        # A C function, because one of Python would be interrupted by the very signal that it makes.
        __del__ = staticmethod(functools.partial(_thread.interrupt_main, signal.SIGALRM))

    def ring(_signal, frame):
        nonlocal late
        if not armed:
            return
        if late:
            while frame:
                frame.f_trace = trace
                frame = frame.f_back
            sys.settrace(trace)
        else:
            late = TookTooLong()
            late.place = _place(traceback.walk_stack(frame), namespace)
        raise Ring

    def trace(frame, event, _argument):
        if armed and event == "line" and frame.f_globals is namespace:
            raise Ring
        return trace

    began = time.monotonic()
    earlier_trace = sys.gettrace()
    earlier_timer = signal.getitimer(signal.ITIMER_REAL)
    earlier_handler = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.25)
        return work()
    except BaseException as error:
        armed = False  # before anything else: from here on a ring does nothing
        if late and not isinstance(error, KeyboardInterrupt):
            raise late.with_traceback(error.__traceback__) from None
        raise
    finally:
        armed = False
        sys.settrace(earlier_trace)
        del Ring.__del__
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier_handler or signal.SIG_DFL)
        if earlier_timer[0]:
            rest = earlier_timer[0] - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(rest, 0.001), earlier_timer[1])


def _limited_by_thread(work: Callable, seconds: float, namespace: dict):
    """Without such a signal: in a thread, into which the exception is put; there it waits for a call to return."""
    done, raised = [], []

    def run():
        try:
            done.append(work())
        except BaseException as error:
            raised.append(error)

    def throw(kind: type[BaseException]) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(kind))

    thread = threading.Thread(target=run, name="check", daemon=True)
    thread.start()
    deadline, late = time.monotonic() + seconds, None
    try:
        while thread.is_alive() and time.monotonic() < deadline + 2:
            thread.join(0.02)
            if thread.is_alive() and time.monotonic() > deadline:
                if not late:
                    late = TookTooLong()
                    frame = sys._current_frames().get(thread.ident)
                    late.place = _place(traceback.walk_stack(frame), namespace) if frame else ""
                throw(TookTooLong)
    except KeyboardInterrupt:
        throw(KeyboardInterrupt)
        raise
    if late:
        late.ended = not thread.is_alive()
        raise late
    if raised:
        raise raised[0]
    return done[0]


# -- what the learner's code leaves ----------------------------------------------------------------------------------


class _Clients:
    """Remembers the clients that are made while it is entered, and closes them at the end.

    It holds them, because a KafkaProducer that is garbage-collected flushes itself: the judge would find records on the
    log that a crash would lose. Left alone are clients that the notebook has a name for, and those of `helpers`.
    """

    def __init__(self, keep: dict):
        self._keep, self._made, self._originals = keep, [], {}

    def add(self, client):
        self._made.append(client)
        return client

    def __enter__(self):
        for kind in (KafkaProducer, KafkaConsumer, KafkaAdminClient):
            self._originals[kind] = kind.__init__
            kind.__init__ = self._remembering(kind.__init__)
        return self

    def __exit__(self, *_):
        for kind, original in self._originals.items():
            kind.__init__ = original
        self.close()

    def _remembering(self, original: Callable) -> Callable:
        @functools.wraps(original)
        def init(client, *arguments, **keywords):
            if not sys._getframe(1).f_globals.get("__name__", "").startswith("helpers."):
                self._made.append(client)
            original(client, *arguments, **keywords)

        return init

    def close(self) -> None:
        """Close them, in a thread: one that hangs (an interrupt may leave a lock held) must not hang the check."""
        kept = {id(value) for value in self._keep.values()}
        made, self._made = [client for client in self._made if id(client) not in kept], []
        closer = threading.Thread(target=lambda: [_close(client) for client in reversed(made)], daemon=True)
        closer.start()
        closer.join(5)


def _close(client) -> None:
    """Close a client within about a second; what a producer could not deliver by then is dropped."""
    with contextlib.suppress(Exception):
        if isinstance(client, KafkaProducer):
            client.close(timeout=1)
        elif isinstance(client, KafkaConsumer):
            client.close(autocommit=False, timeout_ms=1000)
        else:
            client.close()
    # kafka-python leaves threads where records cannot be delivered, or where a client has found no broker.
    with contextlib.suppress(Exception):
        client._sender.force_close()
    with contextlib.suppress(Exception):
        client._net.stop(timeout_ms=1000)


@contextlib.contextmanager
def _own_cluster(brokers: int):
    """Embedded brokers beside those of the notebook; a plain `Cluster(brokers=…)` would stop the notebook's own."""
    from helpers.cluster import EmbeddedCluster

    class OwnCluster(EmbeddedCluster):
        def _begin(self, key):
            super()._begin(("check", key))

    with OwnCluster(brokers) as cluster:
        yield cluster


class _Printed(io.StringIO):
    """Keeps the beginning of what is printed; an endless loop prints more than the memory holds."""

    def write(self, text: str) -> int:
        return super().write(text) if self.tell() < 100_000 else len(text)


@contextlib.contextmanager
def _quiet():
    """Nothing gets into the cell: no print, no display, no log line of kafka-python. Gives what went to stdout."""
    printed, log = _Printed(), logging.getLogger("kafka")
    earlier = log.handlers, log.propagate, sys.unraisablehook
    log.handlers, log.propagate = [logging.NullHandler()], False
    sys.unraisablehook = sys.__unraisablehook__  # a deadline may fall into a `__del__`; this hook just writes to stderr
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(_Printed()),
            capture_output(stdout=False, stderr=False, display=True),
        ):
            yield printed
    finally:
        log.handlers, log.propagate, sys.unraisablehook = earlier


# -- was it changed? -------------------------------------------------------------------------------------------------


def _tidy(source: str) -> str:
    return textwrap.dedent(source).strip("\n")


def _run(starter: str, namespace: dict) -> dict:
    """A namespace after the starter's cell. The notebook's imports may be missing: then as far as it came."""
    with contextlib.suppress(Exception):
        exec(compile(starter, "<starter>", "exec", dont_inherit=True), namespace)
    return namespace


def same(mine, theirs) -> bool:
    """Do two objects of two runs come from the same code? Comments, white space and line numbers do not count."""
    try:
        return _form(mine) == _form(theirs)
    except Exception:  # a `__repr__` of the learner's that fails
        return False


def _form(thing, seen: tuple = ()):
    """A value that is equal for objects made by the same code."""
    if id(thing) in seen:
        return "again"
    seen = (*seen, id(thing))
    if isinstance(thing, types.CodeType):
        constants = [_form(const, seen) for const in thing.co_consts]
        return thing.co_code, constants, thing.co_names, thing.co_varnames, thing.co_freevars, thing.co_cellvars
    if isinstance(thing, types.FunctionType):
        cells = [_form(cell.cell_contents, seen) for cell in thing.__closure__ or ()]
        return [_form(part, seen) for part in (thing.__code__, thing.__defaults__, thing.__kwdefaults__)], cells
    if isinstance(thing, type) and thing.__module__ != "builtins":
        dull = ("__module__", "__dict__", "__weakref__", "__doc__", "__firstlineno__", "__static_attributes__")
        members = {name: _form(value, seen) for name, value in vars(thing).items() if name not in dull}
        return [base.__qualname__ for base in thing.__bases__], members
    if isinstance(thing, staticmethod | classmethod):
        return type(thing), _form(thing.__func__, seen)
    if isinstance(thing, property):
        return [_form(part, seen) for part in (thing.fget, thing.fset)]
    if isinstance(thing, dict):
        return [(_form(key, seen), _form(value, seen)) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return type(thing), [_form(part, seen) for part in thing]
    return type(thing).__qualname__, re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def _check_kind(name: str, mine, starters) -> None:
    """A name that the starter gives to a function or class must not hold something else."""
    kind = "a class" if isinstance(starters, type) else "a function"
    if callable(starters) and not (isinstance(mine, type) if kind == "a class" else callable(mine)):
        raise Wrong(f"`{name}` is {_describe(mine)}", kind, "The name was used for something else: run its cell again.")


# -- words -----------------------------------------------------------------------------------------------------------

_LOOKS = {RIGHT: ("✔", "#009E73"), NOT_RIGHT: ("✘", "#D55E00"), NOT_STARTED: ("○", "#56B4E9"), "": ("➜", "#E69F00")}

_CAUSES = {
    NameError: "A name that has no value: a typing mistake, or a cell above that was not run.",
    NotImplementedError: "The starter's placeholder is still there.",
    RecursionError: "A function that calls itself, without an end.",
    SystemExit: "`exit` and `sys.exit` end a whole program; a function comes back with `return`.",
}


def _alive(cluster) -> bool:
    try:
        return bool(cluster.alive())
    except Exception:
        return False


def _place(frames, namespace: dict) -> str:
    """The first line of these frames that is in the notebook: of code whose globals are its names; or ""."""
    for frame, line in frames:
        if frame.f_globals is namespace:
            return f"line {line}, `{linecache.getline(frame.f_code.co_filename, line).strip()}`"
    return ""


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


def _picture_as_html(picture) -> str:
    """The picture itself with its text as the alternative, or the text alone where pictures are switched off."""
    data, metadata = picture._repr_mimebundle_()
    text = html.escape(data["text/plain"])
    if "image/png" not in data:
        return f"<pre>{text}</pre>"
    source, width = f"data:image/png;base64,{data['image/png']}", metadata["image/png"]["width"]
    return f'<img style="max-width: 100%; margin-top: 0.5em" width="{width}" alt="{text}" src="{source}">'
