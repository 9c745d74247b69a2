"""Run lessons under strict nbval many times in a row, every second time with all cores kept busy.

python -m tools.repeat 01 02 --times 20

Prints a line a run, and what failed; exit status 1 if anything did.
"""

import contextlib
import subprocess
import sys
import time

import click

from tools.lessons import LESSONS
from tools.load import load

NBVAL = ["-m", "pytest", "-o", "addopts=", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=60", "-q"]


@click.command()
@click.argument("lessons", nargs=-1)
@click.option("--times", default=20, show_default=True)
def main(lessons: tuple[str, ...], times: int) -> None:
    """Run LESSONS (by number; all without any) so many times."""
    failed = 0
    for path in LESSONS:
        if lessons and path.name[:2] not in lessons:
            continue
        for run in range(1, times + 1):
            busy = run % 2 == 0
            begin = time.monotonic()
            with load() if busy else contextlib.nullcontext():
                done = subprocess.run([sys.executable, *NBVAL, path], capture_output=True, text=True)
            word = "passed" if done.returncode == 0 else "FAILED"
            click.echo(
                f"{path.stem} {run:2} {'under load' if busy else 'quiet':10} {word} {time.monotonic() - begin:5.1f} s"
            )
            if done.returncode:
                failed += 1
                click.echo(done.stdout[-6000:])
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
