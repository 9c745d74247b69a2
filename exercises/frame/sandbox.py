"""Where a learner's code runs while it is checked: within a deadline, without a word into the cell, and with the
clients closed that it leaves open. And whether it was changed at all.

`helpers.questions` is what uses it.
"""

import _thread
import contextlib
import ctypes
import functools
import io
import linecache
import logging
import re
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable

from IPython.utils.capture import capture_output
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer


class TookTooLong(BaseException):
    """The deadline has passed. A BaseException, so that the learner's `except Exception` does not swallow it."""

    place = ""  #: the learner's line that was running
    ended = True  #: False: it still runs, in a thread that could not be stopped


# -- the deadline ----------------------------------------------------------------------------------------------------


def limited(work: Callable, seconds: float, namespace: dict):
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
            late.place = learners_line(traceback.walk_stack(frame), namespace)
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
                    late.place = learners_line(traceback.walk_stack(frame), namespace) if frame else ""
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


def learners_line(frames, namespace: dict) -> str:
    """The first line of these frames that is in the notebook: of code whose globals are its names; or ""."""
    for frame, line in frames:
        if frame.f_globals is namespace:
            return f"line {line}, `{linecache.getline(frame.f_code.co_filename, line).strip()}`"
    return ""


# -- what the learner's code leaves ----------------------------------------------------------------------------------


class Clients:
    """Remembers the clients that are made while it is entered, and closes them at the end.

    It holds them, because a KafkaProducer that is garbage-collected flushes itself: the judge would find records on the
    log that a crash would lose. Left alone are clients that the notebook has a name for, and those of `helpers`.
    """

    def __init__(self, keep: dict):
        self._keep, self._made, self._originals = keep, [], {}

    def add(self, client):
        """Remember a client that somebody else has made; gives it back."""
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
def own_cluster(brokers: int, purpose: str = "check"):
    """Embedded brokers beside those of the notebook; a plain `Cluster(brokers=…)` would stop the notebook's own."""
    from helpers.cluster import EmbeddedCluster

    class OwnCluster(EmbeddedCluster):
        def _begin(self, key):
            super()._begin((purpose, key))

    with OwnCluster(brokers) as cluster:
        yield cluster


class _Printed(io.StringIO):
    """Keeps the beginning of what is printed; an endless loop prints more than the memory holds."""

    def write(self, text: str) -> int:
        return super().write(text) if self.tell() < 100_000 else len(text)


@contextlib.contextmanager
def quiet():
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


def run_starter(starter: str, namespace: dict) -> dict:
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
