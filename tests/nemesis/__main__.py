"""`python -m tests.nemesis`: the proof bench, for as long as one likes."""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from helpers import Cluster
from tests.nemesis.bench import Run
from tests.nemesis.checker import INVARIANTS, check, tried
from tests.nemesis.controls import CONTROLS

#: A run counts only if so much was tried, for each 1,000 records that were sent; else it fails.
LEAST = {"faults in an open transaction": 0.5, "faults with a send unacknowledged": 0.25, "surely failed": 0.25}
RECORDS, RATE, OUT = 4000, 200.0, "build/nemesis"


def one_run(cluster: Cluster, seed: int, records: int = RECORDS, rate: float = RATE, out: Path | None = None):
    """Run one seed: (history, violations, what was tried). With `out`, leave history and timeline there."""
    with tempfile.TemporaryDirectory() as folder:
        history = Run(cluster, Path(folder), seed, records, rate).go()
        if out:
            shutil.copytree(folder, out / f"seed-{seed}", dirs_exist_ok=True)
    violations, facts = check(history), tried(history)
    if out:
        from tests.nemesis.timeline import draw

        word = "no violation" if not violations else f"violated: {', '.join(violations)}"
        draw(history, out / f"seed-{seed}.png", f"Seed {seed}: {facts['faults']} faults, {word}")
    return history, violations, facts


def too_little(facts: dict[str, int]) -> list[str]:
    """What was not tried enough, in words."""
    return [
        f"only {facts[name]} {name}, of at least {share * facts['records sent'] / 1000:g}"
        for name, share in LEAST.items()
        if facts[name] < share * facts["records sent"] / 1000
    ]


@click.command()
@click.option("--seed", default=1, show_default=True, help="The first seed; each run takes the next one.")
@click.option("--minutes", type=float, default=0, help="Go on with further seeds for so long.  [default: one run]")
@click.option("--records", default=RECORDS, show_default=True, help="Records a run.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=OUT, show_default=True, help="Where histories and timelines go."
)
@click.option("--controls", is_flag=True, help="Run the programs that are wrong on purpose instead.")
def main(seed: int, minutes: float, records: int, out: Path, controls: bool) -> None:
    """Harm brokers and clients by the dice of a seed, and look for a broken promise. Exit status 1 if there is one."""
    begin, failed, totals = time.monotonic(), False, {}
    with Cluster(brokers=3) as cluster:
        if controls:
            sys.exit(not all([_control(cluster, control) for control in CONTROLS]))
        out.mkdir(parents=True, exist_ok=True)
        while True:
            history, violations, facts = one_run(cluster, seed, records, out=out)
            lacking = too_little(facts)
            failed |= bool(violations or lacking)
            totals = {name: totals.get(name, 0) + count for name, count in facts.items()}
            word = "VIOLATED" if violations else "too little tried" if lacking else "held"
            click.echo(f"seed {seed}: {word}; {json.dumps(facts)}; {out / f'seed-{seed}.png'}")
            stuck = [
                f"{e['target']} waited in {e['waits_in']}, and was killed" for e in history if e["what"] == "stuck"
            ]
            for text in [*lacking, *stuck, *(f"{name}: {one}" for name, all_ in violations.items() for one in all_)]:
                click.echo(f"    {text}")
            seed += 1
            if time.monotonic() - begin > minutes * 60:
                break
    click.echo(f"\nin all ({(time.monotonic() - begin) / 60:.1f} minutes, {len(INVARIANTS)} invariants):")
    for name, count in totals.items():
        click.echo(f"  {name:36}{count:8}")
    sys.exit(failed)


def _control(cluster: Cluster, control) -> bool:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        caught, clean = check(control(cluster, Path(folder), True)), check(control(cluster, Path(other), False))
    good = list(caught) == [CONTROLS[control]] and not clean
    click.echo(
        f"{control.__name__:34} {'caught' if good else 'NOT AS IT SHOULD BE'}: {caught}; with it mended: {clean}"
    )
    return good


if __name__ == "__main__":
    main()
