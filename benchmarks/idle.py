"""How much of a core brokers take while nothing happens: that is what a laptop's battery and a full classroom pay for.

python benchmarks/idle.py                    # one broker and three, thirty seconds each
python benchmarks/idle.py --seconds 10 --threads 8

Processor time is counted, so that other work on the machine changes little. `--threads` names the busiest threads.
"""

import contextlib
import time
from collections import Counter
from pathlib import Path

import click
import psutil

from helpers import Cluster

MOST = {1: 3.0, 3: 10.0}  # percent of a core that one and three idle brokers may take


def threads_of(process: psutil.Process) -> dict[int, tuple[str, float]]:
    """Return name and seconds of processor time of each thread, by its id (names on Linux only)."""
    found = {}
    for thread in process.threads():
        name = str(thread.id)
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{process.pid}/task/{thread.id}/comm").read_text().strip()
        found[thread.id] = name, thread.user_time + thread.system_time
    return found


def measure(brokers: int, seconds: float, settle: float) -> tuple[float, Counter]:
    """Return the percent of a core that an idle cluster of so many brokers takes, and that of each thread's name.

    Args:
        brokers: how many.
        seconds: how long to measure.
        settle: how long to wait before, until what a start brings along is compiled and done.
    """
    with Cluster(brokers=brokers):
        processes = [child for child in psutil.Process().children(recursive=True) if child.name() == "java"]
        time.sleep(settle)
        before = [threads_of(process) for process in processes]
        used = sum(sum(process.cpu_times()[:2]) for process in processes)
        began = time.monotonic()
        time.sleep(seconds)
        spent = time.monotonic() - began
        used = sum(sum(process.cpu_times()[:2]) for process in processes) - used
        by_name = Counter()
        for process, earlier in zip(processes, before, strict=True):
            for thread, (name, total) in threads_of(process).items():
                by_name[name] += 100 * (total - earlier.get(thread, ("", 0.0))[1]) / spent
        return 100 * used / spent, by_name


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="How long each cluster is measured.")
@click.option("--settle", default=15.0, show_default=True, help="How long each cluster is left alone before.")
@click.option("--threads", default=0, help="Name so many of the busiest threads.")
def main(seconds: float, settle: float, threads: int) -> None:
    """Print what idle brokers take of a core; exit with 1 where it is more than the course wants."""
    too_much = False
    for brokers, most in MOST.items():
        percent, by_name = measure(brokers, seconds, settle)
        too_much |= percent > most
        click.echo(f"{brokers} idle broker{'s' * (brokers > 1)}: {percent:4.1f} % of a core (at most {most:g})")
        for name, share in by_name.most_common(threads):
            click.echo(f"    {share:4.1f} %  {name}")
    raise SystemExit(too_much)


if __name__ == "__main__":
    main()
