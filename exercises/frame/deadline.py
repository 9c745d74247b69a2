"""A check's deadline: the learner's code is ended, whatever it does or waits for."""

import _thread
import ctypes
import functools
import linecache
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from exercises.frame.pace import slowness


class TookTooLong(BaseException):
    """The deadline has passed. A BaseException, so that the learner's `except Exception` does not swallow it."""

    place = ""  #: the learner's line that was running
    seconds = 0.0  #: how long it was waited for
    slowness = 1.0  #: how many times slower than usual the machine was, see `pace`
    ended = True  #: False: it still runs, in a thread that could not be stopped


def limited(work: Callable, seconds: float, namespace: dict, wants: Iterable[str] = ()):
    """Run `work`; raise TookTooLong at its deadline.

    What stays inside C (a Java call, a long computation of numpy) is ended when it returns, not before.

    Args:
        work: a function without arguments.
        seconds: its deadline on a quiet machine; a slow or busy one gets as much longer as it is slower (`pace`).
        namespace: the notebook's names; code with these globals is the learner's.
        wants: the names of the answer, so that another function's line is told by its name.
    """
    if hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread():
        return _limited_by_signal(work, seconds, namespace, wants)
    return _limited_by_thread(work, seconds, namespace, wants)


def _limited_by_signal(work: Callable, seconds: float, namespace: dict, wants: Iterable[str]):
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
        if not armed or (late is None and not deadline.passed()):
            return
        if late:
            while frame:
                frame.f_trace = trace
                frame = frame.f_back
            sys.settrace(trace)
        else:
            late = deadline.error(frame, namespace, wants)
        raise Ring

    def trace(frame, event, _argument):
        if armed and event == "line" and frame.f_globals is namespace:
            raise Ring
        return trace

    deadline = _Deadline(seconds)
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
            rest = earlier_timer[0] - deadline.elapsed()
            signal.setitimer(signal.ITIMER_REAL, max(rest, 0.001), earlier_timer[1])


def _limited_by_thread(work: Callable, seconds: float, namespace: dict, wants: Iterable[str]):
    """Without such a signal: in a thread, into which the exception is put; there it waits for a call to return."""
    result: Future = Future()

    def run():
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    def throw(kind: type[BaseException]) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(kind))

    thread = threading.Thread(target=run, name="check", daemon=True)
    thread.start()
    deadline, late = _Deadline(seconds), None
    try:
        while thread.is_alive() and (late is None or deadline.elapsed() < late.seconds + 2):
            thread.join(0.02)
            if thread.is_alive() and (late or deadline.passed()):
                late = late or deadline.error(sys._current_frames().get(thread.ident), namespace, wants)
                throw(TookTooLong)
    except KeyboardInterrupt:
        throw(KeyboardInterrupt)
        raise
    if late:
        late.ended = not thread.is_alive()
        raise late
    return result.result()


class _Deadline:
    """A deadline that moves back as long as the machine is slow.

    The speed is measured at the beginning, and again from when the deadline has come: another program may have begun
    to work meanwhile.
    """

    def __init__(self, seconds: float):
        self._seconds, self._slowness = seconds, slowness()
        self._began = self._measured = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def passed(self) -> bool:
        if self.elapsed() < self._seconds:
            return False
        if time.monotonic() - self._measured > 1:
            self._slowness, self._measured = max(self._slowness, slowness()), time.monotonic()
        return self.elapsed() >= self._seconds * self._slowness

    def error(self, frame, namespace: dict, wants: Iterable[str]) -> TookTooLong:
        late = TookTooLong()
        late.seconds, late.slowness = round(self._seconds * self._slowness, 1), self._slowness
        late.place = learners_line(_within_check(frame), namespace, wants)
        return late


def _within_check(frame) -> Iterator[tuple]:
    """The frames of a check, from the innermost one out; not those of the cell that called `check()`."""
    while frame and frame.f_code is not _limited_by_signal.__code__:
        yield frame, frame.f_lineno
        frame = frame.f_back


def learners_line(frames: Iterable[tuple], namespace: dict, wants: Iterable[str] = ()) -> str:
    """Return the first of these lines that is in the notebook, of code whose globals are its names; or "".

    Args:
        frames: pairs of a frame and a line's number.
        namespace: the notebook's names.
        wants: the names of the answer; a line of another function is told by that function's name.
    """
    for frame, line in frames:
        if frame.f_globals is namespace:
            name = frame.f_code.co_qualname.split(".")[0]
            other = f" of `{name}`" if wants and name not in (*wants, "<module>", "<lambda>") else ""
            return f"line {line}{other}, `{linecache.getline(frame.f_code.co_filename, line).strip()}`"
    return ""
