"""The watchdog of one run folder: starts the servers of a lesson, and ends them when their owner is gone.

Run as a program of its own (`python -I -S supervisor.py FOLDER OWNER_PID KEEP_LOGS`) by `helpers.processes.run_folder`;
uses the standard library only, so that it starts in some 20 ms. It is the parent of every broker, database and worker,
in a session of its own:
an interrupt of the kernel does not reach them, and a kernel that is killed, together with its process group, cannot
take the watchdog with it. When the owner's pipe closes, or the owner is no longer our parent, every child is killed and
the folder deleted.

Commands come as lines of JSON on stdin, each with an `id`; each gets one line of JSON with the same `id`. See
`COMMANDS`.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time

FOLDER = ""
OWNER = 0
KEEP = ""  # a folder that gets the logs at the end
children: dict[int, subprocess.Popen] = {}
endings: dict[int, int] = {}  # children that tidy up by themselves when they get this signal, in well under a second
stopped: set[int] = set()  # children that are paused


def start(argv, log, env=None, cwd=None, user=None, group=None, ending=None):
    """Start a program with its output appended to the file `log`; the answer is its process id."""
    with open(log, "ab") as output:
        identity = {} if user is None else {"user": user, "group": group, "extra_groups": []}
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd or FOLDER,
            env=env,
            start_new_session=True,
            **identity,
        )
    children[child.pid] = child
    if ending:
        endings[child.pid] = ending
    return child.pid


def poll(pid):
    """None while the process lives (stopped counts as living), else its exit status, negative for a signal."""
    return children[pid].poll()


def kill(pid):
    """SIGKILL; answers when the process is dead."""
    children[pid].kill()
    return children[pid].wait()


def terminate(pid, timeout):
    """SIGTERM, and SIGKILL after `timeout` seconds, or when the owner is gone; answers when the process is dead."""
    children[pid].terminate()
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and os.getppid() == OWNER:
        try:
            return children[pid].wait(0.2)
        except subprocess.TimeoutExpired:
            pass
    return kill(pid)


def send_signal(pid, number):
    """SIGSTOP or SIGCONT; answers when the process has stopped, or runs again."""
    child = children[pid]
    if child.poll() is not None or (pid in stopped) == (number == signal.SIGSTOP):
        return child.returncode  # nothing would change, and there would be no change to wait for
    os.kill(pid, number)
    _, status = os.waitpid(pid, os.WUNTRACED if number == signal.SIGSTOP else os.WCONTINUED)
    if not (os.WIFSTOPPED(status) or os.WIFCONTINUED(status)):
        child.returncode = os.waitstatus_to_exitcode(status)
    stopped.discard(pid)
    if os.WIFSTOPPED(status):
        stopped.add(pid)
    return child.returncode


def remove(path):
    """Delete a file or folder inside the run folder; what is not there is no error."""
    if os.path.commonpath([FOLDER, os.path.abspath(path)]) != FOLDER:
        raise ValueError(f"{path} is outside of {FOLDER}")
    shutil.rmtree(path, ignore_errors=True)


COMMANDS = {f.__name__: f for f in (start, poll, kill, terminate, send_signal, remove)}


def serve():
    """Answer commands until stdin closes or the owner is gone."""
    buffered = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.5)
        if os.getppid() != OWNER:  # a fork of the owner may hold the pipe open for longer than the owner lives
            return
        if not readable:
            continue
        received = os.read(0, 65536)
        if not received:
            return
        *lines, buffered = (buffered + received).split(b"\n")
        for line in lines:
            request = json.loads(line)
            answer = {"id": request["id"]}
            try:
                answer["value"] = COMMANDS[request["do"]](**request["args"])
            except Exception as error:
                answer["error"] = f"{type(error).__name__}: {error}"
            try:
                os.write(1, json.dumps(answer).encode() + b"\n")
            except BrokenPipeError:
                return


def clean_up():
    """Kill all children, process groups included (PostgreSQL has children of its own), and delete the folder."""
    tidy = [children[pid] for pid in endings if children[pid].poll() is None]
    for child in tidy:
        child.send_signal(endings[child.pid])
    deadline = time.monotonic() + 1
    while any(child.poll() is None for child in tidy) and time.monotonic() < deadline:
        time.sleep(0.01)
    for child in children.values():
        if child.poll() is None:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                child.kill()
    for child in children.values():
        child.wait()
    if KEEP:  # `python -m helpers run` asks for them, for lessons that fail
        keep_logs(KEEP)
    for _ in range(100):  # a grandchild that is just dying may still write into the folder
        shutil.rmtree(FOLDER, ignore_errors=True)
        if not os.path.exists(FOLDER):
            return
        time.sleep(0.05)


def keep_logs(target):
    """Copy the logs to the folder `target`, under the run folder's name; what cannot be copied is lost in silence."""
    for name in os.listdir(FOLDER) if os.path.exists(FOLDER) else ():
        if name.endswith(".log"):
            try:
                os.makedirs(target, exist_ok=True)
                shutil.copy(os.path.join(FOLDER, name), os.path.join(target, f"{os.path.basename(FOLDER)}-{name}"))
            except OSError:
                return


def main():
    """Mark the folder as alive by a locked file, serve, and clean up whatever happens."""
    global FOLDER, OWNER, KEEP
    FOLDER, OWNER, KEEP = os.path.abspath(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    for survived in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A handler that does nothing, not SIG_IGN: that would be inherited, and Java would not hear a SIGTERM.
        signal.signal(survived, lambda *_: None)
    try:
        # Locked before it gets its final name: who finds a `lock` that nobody holds knows that this watchdog was
        # killed. The folder itself is locked too: cleaners of temp folders pass it over (systemd-tmpfiles does), and
        # one that does not may remove the file.
        lock = open(os.path.join(FOLDER, "lock.new"), "w")  # noqa: SIM115 (held until the process ends)
        for held in (lock.fileno(), os.open(FOLDER, os.O_RDONLY)):
            fcntl.flock(held, fcntl.LOCK_EX)
        os.rename(lock.name, os.path.join(FOLDER, "lock"))
        serve()
    finally:
        clean_up()


if __name__ == "__main__":
    main()
