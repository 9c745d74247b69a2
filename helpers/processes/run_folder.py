"""Servers and workers of a lesson: started, harmed and ended through a watchdog that outlives a killed kernel.

A `Processes` is a private folder below the user's temp folder and the processes that run in it. Its watchdog
(`helpers.processes.supervisor`) kills them and deletes the folder as soon as the owner closes it, exits, or is killed.
"""

import atexit
import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from helpers import settings
from helpers.errors import LabError, cure, refused

log_calls = logging.getLogger(__name__)

YOUNG = 60  # seconds in which a folder without a lock belongs to a watchdog that is just starting


def base_folder() -> Path:
    """The folder that holds all run folders of this user; made on first use, readable by nobody else.

    Raises:
        LabError: the temp folder cannot be used, or somebody else owns the name.
    """
    try:
        base = Path(tempfile.gettempdir()) / f"kafka-course-{os.getuid()}"
    except OSError as error:
        raise LabError("No temp folder can be written to: set TMPDIR to a folder that you can write to.") from error
    with refused(f"No folder for the brokers' data could be made in {base.parent}", variable="TMPDIR"):
        base.mkdir(mode=0o700, exist_ok=True)
        found = base.lstat()
    if base.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise LabError(f"{base} belongs to somebody else: set TMPDIR to a folder of your own and start again.")
    return base


def check_exec() -> None:
    """Raise a LabError where nothing can be executed that is unpacked in the temp folder, native libraries included."""
    temp = base_folder().parent
    if os.statvfs(temp).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise LabError(
            f"{temp} is mounted noexec, and native libraries are unpacked there (Kafka Streams' in lesson 03): set "
            "TMPDIR to a folder of yours on another file system, e.g. in your home."
        )


class Processes:
    """A run folder and the processes in it, which end together with this object or with this process.

    Attributes:
        folder: the private folder (Path); logs and data go there.
    """

    def __init__(self):
        sweep()
        self._lock = threading.Lock()
        self._requests = 0
        self._received = b""
        self._owner = os.getpid()
        base = base_folder()
        program = Path(__file__).with_name("supervisor.py")
        keep_logs = settings.value("COURSE_KEEP_LOGS")
        try:
            with _no_interrupt():  # no folder without a watchdog, no watchdog that nobody can close
                self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=base))
                self._watchdog = subprocess.Popen(
                    [sys.executable, "-I", "-S", program, self.folder, str(os.getpid()), keep_logs],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    bufsize=0,
                )
                atexit.register(self.close)
        except OSError as error:
            if getattr(self, "folder", None):
                shutil.rmtree(self.folder, ignore_errors=True)
            raise LabError(
                f"No process could be started for the lab in {base} ({error}): {cure(error, 'TMPDIR')}"
            ) from error

    def start(self, argv, log: Path, env: dict | None = None, user=None, group=None, ending: int | None = None) -> int:
        """Start a program in the run folder; returns the process id.

        Args:
            argv: the program and its arguments.
            log: the file that its output is appended to.
            env: its environment; without it this process's own.
            user, group: ids to run it as.
            ending: a signal upon which it tidies up and ends; the watchdog sends it before it kills.
        """
        argv = [str(word) for word in argv]
        log_calls.debug("starting %s in %s", argv[0], self.folder)
        return self._ask(
            "start", argv=argv, log=str(log), env=env, cwd=str(self.folder), user=user, group=group, ending=ending
        )

    def exit_status(self, pid: int) -> int | None:
        """None while the process lives, else its exit status (negative: the signal that ended it)."""
        return self._ask("poll", pid=pid)

    def kill(self, pid: int) -> int:
        """SIGKILL; returns the exit status when the process is dead."""
        return self._ask("kill", pid=pid)

    def terminate(self, pid: int, timeout: float) -> int:
        """SIGTERM, then SIGKILL after `timeout` seconds; returns the exit status when the process is dead."""
        return self._ask("terminate", pid=pid, timeout=timeout)

    def pause(self, pid: int) -> None:
        """SIGSTOP; returns when the process has stopped."""
        self._ask("send_signal", pid=pid, number=int(signal.SIGSTOP))

    def resume(self, pid: int) -> None:
        """SIGCONT; returns when the process runs again."""
        self._ask("send_signal", pid=pid, number=int(signal.SIGCONT))

    def remove(self, path: Path) -> None:
        """Delete a folder below the run folder."""
        self._ask("remove", path=str(path))

    def check(self) -> None:
        """Raise a LabError when somebody has deleted the folder."""
        if not self.folder.exists():
            raise LabError(
                f"The lab's folder {self.folder} was deleted while it was in use: keep cleaners off it, and run the "
                "cell again that started the cluster, database or worker."
            )

    def close(self) -> None:
        """Kill every process and delete the folder; returns when both are gone. Safe to call again."""
        atexit.unregister(self.close)
        if os.getpid() != self._owner:  # a fork of the owner must not end the owner's brokers
            return
        with _no_interrupt(), self._lock:
            self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog.stdout.close()

    def _ask(self, command: str, **args):
        """One request and its answer; an interrupt waits until the answer is here."""
        self.check()
        with _no_interrupt(), self._lock:
            self._requests += 1
            request = {"id": self._requests, "do": command, "args": args}
            try:
                os.write(self._watchdog.stdin.fileno(), json.dumps(request).encode() + b"\n")
                answer = self._answer()
                while answer["id"] != self._requests:  # left unread by a request that was broken off
                    answer = self._answer()
            except (OSError, ValueError) as error:
                raise LabError(
                    "The lab's watchdog process is gone: run the cell that starts the cluster again."
                ) from error
        if "error" in answer:
            raise LabError(f"The lab could not {command} a process ({answer['error']}).")
        return answer["value"]

    def _answer(self):
        while b"\n" not in self._received:
            received = os.read(self._watchdog.stdout.fileno(), 65536)
            if not received:
                raise OSError("end of file")
            self._received += received
        line, self._received = self._received.split(b"\n", 1)
        return json.loads(line)


@contextlib.contextmanager
def _no_interrupt():
    """Hold SIGINT and the deadline's SIGALRM back for a short exchange with the watchdog.

    By handlers, which Python runs in the main thread alone; a mask would not do, as the system hands the signal to
    another thread of the kernel, and Python passes it on to the main one.
    """
    held, before = [], {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGALRM):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda number, _: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for held_back in held:
            signal.raise_signal(held_back)


def sweep() -> list[Path]:
    """Remove what is left of runs whose watchdog was itself killed: their processes, then their folders.

    A run is over when nobody holds its lock. Its processes are found by the folder in their command line, not by a
    stored process id, which may belong to somebody else by now. Returns the folders removed.
    """
    dead = [folder for folder in base_folder().glob("run-*") if _is_dead(folder)]
    if dead:
        killed = []
        for process in psutil.process_iter(["cmdline"]):
            command = " ".join(process.info["cmdline"] or [])
            if process.pid != os.getpid() and any(str(folder) in command for folder in dead):
                with contextlib.suppress(psutil.Error):
                    process.kill()
                    killed.append(process)
        # Dead is enough: in a container without an init process nobody reaps an orphan.
        deadline = time.monotonic() + 5
        while not all(map(_is_over, killed)) and time.monotonic() < deadline:
            time.sleep(0.01)
    for folder in dead:
        shutil.rmtree(folder, ignore_errors=True)
    return dead


def _is_dead(folder: Path) -> bool:
    try:
        if _is_held(folder) or (folder / "lock").exists() and _is_held(folder / "lock"):
            return False
        return (folder / "lock").exists() or time.time() - folder.stat().st_mtime > YOUNG
    except OSError:
        return False


def _is_held(path: Path) -> bool:
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(file)


def _is_over(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


#: How Kafka, PostgreSQL, Java and Python begin a line that says what went wrong.
WRONG = re.compile(
    r"(\S+ )?(ERROR|FATAL)\b|.*\b(FATAL|PANIC): |Error: |Exception in|(Caused by: )?[\w.$]+(Error|Exception)\b"
)


def tail(log: Path, lines: int = 8) -> str:
    """What a log says of an end, indented: the last errors in it, then its last lines, without Java's stack frames."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "  (no log)"
    said = [line for line in text.splitlines() if not line.startswith(("\tat ", "\t... "))]
    errors = [line for line in said[:-lines] if WRONG.match(line)][-3:]
    return "\n".join("  " + line[:300] for line in errors + said[-lines:]) or "  (its log is empty)"
