"""A check's deadline: the learner's code is ended, whatever it does or waits for."""

import _thread
import ctypes
import functools
import linecache
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable


class TookTooLong(BaseException):
    """The deadline has passed. A BaseException, so that the learner's `except Exception` does not swallow it."""

    place = ""  #: the learner's line that was running
    ended = True  #: False: it still runs, in a thread that could not be stopped


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
