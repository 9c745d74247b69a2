"""Workers: functions of a lesson in processes of their own, which can be killed for real, at a named point if need be.

    def sender(connection, topic):
        ...
        point("sent")          # a named place in the worker's code
        ...

    worker = Worker(sender, cluster.connection, topic, die_at="sent")
    worker.wait()              # 'killed at "sent"'

A worker is a fresh Python interpreter, not a fork: the notebook's threads, connections and JVM are not in it. The
function travels by cloudpickle, with what it refers to in the notebook; hand it names and `cluster.connection`, not
live clients.
"""

import contextlib
import gc
import json
import os
import signal
import sys
import weakref
from collections import Counter
from importlib import import_module
from pathlib import Path

from helpers.errors import LabError
from helpers.processes.run_folder import Processes, tail
from helpers.waiting import wait_until

_inside: "_Inside | None" = None  # set in the worker's own process


def point(name: str) -> None:
    """Mark a place in a worker's code: reported to `Worker.wait_for`; a worker told to `die_at` it dies here, by
    SIGKILL.

    Outside of a worker it does nothing.
    """
    if _inside:
        _inside.reached(name)


class Worker:
    """A function that runs in a process of its own from now on.

    Args:
        function: what to run; its prints go to `output`.
        *args: its arguments.
        die_at: name of a `point` at which the worker kills itself (SIGKILL), or (name, n): when it gets there the
        n-th time; or a list of such places, which makes sense with `restarts`.
        hold_at: name of a `point` at which the worker waits for `release()`, likewise; for two minutes at most.
        restarts: True starts the function anew whenever its process was killed, as the restart policy of a container
            does; by a fork of a process that has loaded the modules and made nothing yet, so within milliseconds. The
            n of `die_at` and `hold_at` counts over all of its lives.
        environment: environment variables of the process, beside those of the notebook, e.g. {"PYTHONHASHSEED": "1"}.
    """

    def __init__(
        self, function, *args, die_at=None, hold_at=None, restarts=False, environment: dict[str, str] | None = None
    ):
        import cloudpickle

        places = die_at if isinstance(die_at, list) else [die_at]
        self._restarts = restarts
        try:
            job = cloudpickle.dumps((function, args, [*map(_times, places)], _times(hold_at), restarts))
        except Exception as error:
            raise LabError(
                f"The worker cannot be given what its function refers to ({error}): "
                "hand it names and `cluster.connection`, and make clients inside of it."
            ) from error
        self._processes = Processes()
        weakref.finalize(self, self._processes.close)  # a worker that nobody knows any more does not run on
        folder = self._processes.folder
        self._log, self._points, self._go = folder / "output", folder / "points", folder / "go"
        self._points.touch()
        (folder / "job").write_bytes(job)
        # A worker finds modules where the notebook finds them.
        variables = {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
        }
        self.pid = self._processes.start(
            [sys.executable, "-c", "from helpers.processes.workers import main; main()", folder],
            self._log,
            env=os.environ | variables | (environment or {}),
        )
        self._status: int | None = None

    def __repr__(self):
        return f"Worker({self.state})"

    @property
    def state(self) -> str:
        """'running', 'ended', 'killed', 'killed at "point"' or 'failed (exit status n)'."""
        status = self._exit_status()
        if status is None:
            return "running"
        if status == -signal.SIGKILL:
            deaths = [p["name"] for p in self._reached() if p.get("dies")]
            return f'killed at "{deaths[0]}"' if deaths else "killed"
        return "ended" if status == 0 else f"failed (exit status {status})"

    @property
    def output(self) -> str:
        """What the worker has printed so far."""
        if self._status is not None:
            return self._output
        self._processes.check()
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def points(self) -> list[str]:
        """The points that the worker has reached so far, in order."""
        return [p["name"] for p in self._reached()]

    def wait(self, timeout: float = 20) -> str:
        """Wait until the worker has ended or died; returns its `state`.

        Raises:
            TimeoutError: it still runs at the deadline.
        """
        wait_until(lambda: self._exit_status() is not None, "the worker to end", timeout)
        return self.state

    def wait_for(self, where, timeout: float = 20) -> None:
        """Wait until the worker has reached a `point`, given as for `die_at`: its name, or (name, n).

        Raises:
            TimeoutError: not reached at the deadline.
            RuntimeError: the worker ended before; the message carries the end of its output.
        """

        name, times = _times(where)

        def reached():
            if self.points.count(name) >= times:
                return True
            if self._exit_status() is not None:
                if self.points.count(name) >= times:
                    return True
                raise RuntimeError(
                    f'The worker {self.state} before it reached "{name}"; its output ended with:\n{self._tail}'
                )

        wait_until(reached, f'the worker to reach "{name}"', timeout)

    def kill(self) -> str:
        """SIGKILL; returns the `state` when the process is dead. One that has ended by itself stays as it was.

        One that `restarts` is ended for good.
        """
        if self._exit_status() is None:
            self._signal_all(signal.SIGKILL)
            self._processes.kill(self.pid)
        return self.wait()

    def stop(self, timeout: float = 10) -> str:
        """SIGTERM, which ends Python without clean-up; SIGKILL after `timeout` seconds. Returns the `state`."""
        if self._exit_status() is None:
            self._signal_all(signal.SIGTERM)
            self._processes.terminate(self.pid, timeout)
        return self.wait()

    def pause(self) -> None:
        """SIGSTOP: the worker neither works nor notices that time passes, as in a long garbage collection."""
        self._check_alive()
        self._signal_all(signal.SIGSTOP)
        self._processes.pause(self.pid)

    def resume(self) -> None:
        """SIGCONT: the paused worker goes on."""
        self._check_alive()
        self._processes.resume(self.pid)
        self._signal_all(signal.SIGCONT)

    def release(self) -> None:
        """Let a worker go on that waits at its `hold_at` point."""
        if self._exit_status() is None:
            self._go.touch()

    def _signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the process that restarts and to the one that works, which are a group of their own."""
        if self._restarts:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _check_alive(self) -> None:
        if self._exit_status() is not None:
            raise LabError(f"The worker is not there any more: {self.state}.")

    def _exit_status(self) -> int | None:
        if self._status is None and (status := self._processes.exit_status(self.pid)) is not None:
            self._output, self._tail, self._last_points = self.output, tail(self._log), self._reached()
            self._status = status
            self._processes.close()
        return self._status

    def _reached(self) -> list[dict]:
        if self._status is not None:
            return self._last_points
        self._processes.check()
        # A line without its end is still being written.
        return [json.loads(line) for line in self._points.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _times(where) -> tuple | None:
    return (where, 1) if isinstance(where, str) else where


class _Inside:
    """The worker's own side: counts points, reports them, dies or waits where it was told to."""

    def __init__(self, folder: Path, die_at: list, hold_at):
        self._points = open(folder / "points", "a", buffering=1)  # noqa: SIM115 (open while the worker lives)
        self._go = folder / "go"
        self._die_at, self._hold_at = die_at, hold_at
        earlier = (folder / "points").read_text().splitlines()  # of lives before this one
        self._counts = Counter(json.loads(line)["name"] for line in earlier)

    def reached(self, name: str) -> None:
        self._counts[name] += 1
        here = (name, self._counts[name])
        dies = here in self._die_at
        self._points.write(json.dumps({"name": name, "dies": dies}) + "\n")
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if here == self._hold_at:
            wait_until(self._go.exists, f'release from "{name}"', timeout=120)


def main() -> None:
    """The worker's process: take the job from the folder on the command line, run it."""
    import cloudpickle

    global _inside
    folder = Path(sys.argv[1])
    with open(folder / "job", "rb") as job:
        function, args, die_at, hold_at, restarts = cloudpickle.load(job)
    if restarts:
        _fork_until_it_ends()
    _inside = _Inside(folder, die_at, hold_at)
    function(*args)


def _fork_until_it_ends() -> None:
    """Return in a child, and in a new one whenever a child was killed; the parent ends as its last child did."""
    if "sqlalchemy" in sys.modules:
        import_module("sqlalchemy.dialects.postgresql.psycopg").dialect.import_dbapi()  # or each life would load it
    gc.freeze()  # what is here already is not looked at again, so a child need not copy it
    while child := os.fork():
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        if ended != -signal.SIGKILL:
            os._exit(ended % 256)
