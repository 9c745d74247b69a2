"""How many learners a machine carries: on one shared cluster, and with embedded brokers of their own.

    python benchmarks/classroom.py [--learners 40] [--minutes 3] [--embedded 4]

Simulated learners, a process each, log in to a class's cluster (as `python -m helpers serve` makes it, on the loopback
address) and check right answers to the questions of the lessons given, with pauses for thought, so that all code of a
check, its topics, clients and groups are real. The learners' own processor time is measured apart: in a class it is
spent on their machines. The second part starts notebooks' kernels with embedded brokers, leaves them idle, and measures
what each takes.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

THOUGHT = (10, 30)  # seconds between two checks
GIB = 1024**3


def main() -> None:
    """Run both parts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learners", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=3)
    known = sorted(path.stem.removeprefix("lesson_") for path in (ROOT / "exercises").glob("lesson_??.py"))
    parser.add_argument("--lessons", nargs="+", default=["02", "04"], choices=known)
    parser.add_argument("--embedded", type=int, default=4, help="learners with embedded brokers that are started")
    parser.add_argument("--memory", type=float, default=24, help="GiB for the question how many learners fit")
    parser.add_argument("--learner", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.learner:
        learn(options)
        return
    lessons = options.lessons
    cores, load = os.cpu_count(), " ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"{cores} cores, {psutil.virtual_memory().total / GIB:.0f} GiB, load before {load}; lessons {' '.join(lessons)}"
    )
    if options.learners:
        shared(options, lessons)
    if options.embedded:
        embedded(options)


# -- one shared cluster ------------------------------------------------------------------------------------------------


def shared(options, lessons: list[str]) -> None:
    """All learners at once on one broker."""
    from classroom import learners, limits, server
    from tests.secured import secured_broker

    # Left from its end to its beginning: first the learners, who write into the folder and use the broker.
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(secured_broker())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="classroom-")))
        names = [f"learner{n:02}" for n in range(1, options.learners + 1)]
        learners.add(broker.folder, broker.admin, names)
        (java,) = (p for p in psutil.Process().children(recursive=True) if "kafka.Kafka" in p.cmdline())
        running = []
        command = [sys.executable, __file__, "--minutes", str(options.minutes), "--lessons", *lessons]
        for name in names:
            env = os.environ | broker.environment(name)
            with open(folder / name, "w") as out:
                process = subprocess.Popen([*command, "--learner", name], env=env, stdout=out, stderr=out)
            stack.callback(process.wait)
            stack.callback(process.kill)  # nothing to do when it has ended; else an error or Ctrl-C is under way
            running.append(process)
        told, memory = [], []
        with server.connect(broker.folder, broker.folder.room(), broker.brokers.ports) as admin:
            dog = limits.Watchdog(admin, broker.brokers.homes, broker.brokers.logs, 300, told.append)
            cpu, began = java.cpu_times(), time.monotonic()
            while any(process.poll() is None for process in running):
                dog.look()
                memory.append(java.memory_info().rss)
                time.sleep(limits.SECONDS)
            seconds = time.monotonic() - began
            used = sum(java.cpu_times()[:2]) - sum(cpu[:2])
        said = {name: (folder / name).read_text() for name in names}
    results = [json.loads(line) for text in said.values() for line in text.splitlines() if line.startswith("{")]
    checks = [result for result in results if "took" in result]
    took = sorted(result["took"] for result in checks)
    wrong = [result for result in checks if result["state"] != "right"]
    client = sum(result["cpu"] for result in results if "cpu" in result)
    failed = [name for name, process in zip(names, running, strict=True) if process.returncode]
    print(f"\n{options.learners} learners on one shared broker, {seconds:.0f} s")
    rows = {"checks": f"{len(checks)}, {len(wrong)} not right; {len(failed)} learners failed"}
    if took:
        late = took[int(len(took) * 0.95)]
        rows["seconds of a check"] = f"median {statistics.median(took):.1f}, 95 % {late:.1f}, longest {took[-1]:.1f}"
    rows["broker: memory (RSS)"] = f"{max(memory) / 1e6:.0f} MB"
    rows["broker: processor"] = f"{100 * used / seconds:.0f} % of a core"
    rows["learners: processor"] = f"{100 * client / seconds:.0f} % of a core in all; in a class on their own machines"
    rows["held by the watchdog"] = told or "nobody"
    show(rows)
    for result in wrong[:5]:
        print(f"  {result['question']}: {result['said'][:300]}")
    for name in failed[:3]:
        print(said[name][-500:])


def learn(options) -> None:
    """One learner: check, think, check."""
    from exercises.frame.question import Question
    from helpers import Cluster

    dice = random.Random(options.learner)
    asked = [
        thing
        for lesson in options.lessons
        for thing in vars(importlib.import_module(f"exercises.lesson_{lesson}")).values()
        if isinstance(thing, Question) and not thing.brokers
    ]
    imports = {f"lesson_{lesson}": imports_of(lesson) for lesson in options.lessons}
    seconds = options.minutes * 60
    end = time.monotonic() + seconds
    time.sleep(dice.uniform(0, min(THOUGHT[1], seconds / 2)))  # each has time for a check
    with Cluster() as cluster:
        while time.monotonic() < end:
            question = dice.choice(asked)
            began = time.monotonic()
            outcome = question.try_answer(question.answer, cluster, imports[question.lesson])
            took = time.monotonic() - began
            name, right = f"{question.lesson} {question.name}", outcome.state == "right"
            said = {"question": name, "took": took, "state": outcome.state, "said": "" if right else repr(outcome)}
            print(json.dumps(said), flush=True)
            time.sleep(min(dice.uniform(*THOUGHT), max(0, end - time.monotonic())))
    times = os.times()
    print(json.dumps({"cpu": times.user + times.system + times.children_user + times.children_system}), flush=True)


def imports_of(lesson: str) -> str:
    """What a learner of a lesson has run before its questions: the first cells, as far as they import."""
    notebook = nbformat.read(next((ROOT / "notebooks").glob(f"{lesson}_*.ipynb")), as_version=4)
    first = [cell.source for cell in notebook.cells if cell.cell_type == "code"][:2]
    return "\n".join(source for source in first if source.startswith(("import ", "from ")))


# -- embedded brokers --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def idle_kernel(brokers: int):
    """The process of a notebook's kernel that has run a lesson's imports and started brokers of its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("COURSE_B")}
    # its warnings are of no use here
    manager, client = start_new_kernel(kernel_name="python3", env=env, cwd=str(ROOT), stderr=subprocess.DEVNULL)
    try:
        for code in (imports_of("01"), f"cluster = Cluster(brokers={brokers})"):
            answer = client.execute_interactive(code, timeout=120, output_hook=lambda _message: None)
            assert answer["content"]["status"] == "ok", answer["content"]
        yield psutil.Process(manager.provisioner.pid)
        client.execute_interactive("cluster.stop()", timeout=60, output_hook=lambda _message: None)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def embedded(options) -> None:
    """What a learner's kernel with embedded brokers takes while it is idle."""
    for brokers in (1, 3):
        count = max(1, options.embedded // brokers)
        with contextlib.ExitStack() as stack:
            kernels = [stack.enter_context(idle_kernel(brokers)) for _ in range(count)]
            processes = [p for kernel in kernels for p in (kernel, *kernel.children(recursive=True))]
            time.sleep(5)
            before = sum(sum(p.cpu_times()[:2]) for p in processes)
            time.sleep(20)
            cpu = (sum(sum(p.cpu_times()[:2]) for p in processes) - before) / 20 / count
            memory = sum(p.memory_full_info().pss for p in processes) / count
        fit = int(options.memory * GIB * 0.9 / memory)
        print(f"\nA learner with {brokers} embedded broker(s), idle, kernel included, JupyterLab not ({count} started)")
        fits = f"{memory / 1e6:.0f} MB; {fit} learners in nine tenths of {options.memory:.0f} GiB"
        show({"memory (PSS)": fits, "processor": f"{100 * cpu:.1f} % of a core"})


def show(rows: dict) -> None:
    """Print names and values in two columns."""
    for name, value in rows.items():
        print(f"  {name:<28}{value}")


if __name__ == "__main__":
    main()
