"""What changed from one version of Apache Kafka to another, as their jars say.

    python -m tools.kafka_changes 4.3.1 4.4.0
    python -m tools.kafka_changes               # from the course's version to the newest release

prints what was added, removed and changed: configs and their defaults, feature levels, the protocol's versions, and
names of metrics. Needs Maven (`mvn`) on the PATH, which fetches the jars of both (127 MB each) and keeps them as it
does, and 20 s for each version. docs/new-kafka.md says what to do with the answer.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import requests

from helpers.kafka.cache import KAFKA_VERSION
from helpers.paths import COURSE
from tools.make_jar_lists import SLF4J_SIMPLE, copy_jars, newest

ARTIFACTS = ("kafka_2.13", "kafka-streams", "connect-runtime")


def changes(old: dict, new: dict, documentation: bool = False) -> list[str]:
    """The lines that tell one section of two versions' answers apart.

    Args:
        old: by names, the facts of each thing, as `tools.kafka_answers` gives them; `new`: likewise.
        documentation: also name what is only described in other words.
    """
    lines = [f"  - {name}" for name in sorted(old.keys() - new.keys())]
    for name in sorted(new.keys() - old.keys()):
        facts = {
            fact: value for fact, value in new[name].items() if fact in ("default", "of a new cluster", "versions")
        }
        lines.append(f"  + {name}" + "".join(f"; {fact}: {value}" for fact, value in facts.items()))
    for name in sorted(old.keys() & new.keys()):
        before, after = old[name], new[name]
        for fact in before.keys() | after.keys():
            if before.get(fact) != after.get(fact) and fact != "documentation":
                lines.append(f"  * {name}; {fact}: {before.get(fact)} -> {after.get(fact)}")
        if documentation and before.get("documentation") != after.get("documentation"):
            lines.append(f"  * {name}; documentation:\n      {before['documentation']}\n   -> {after['documentation']}")
    return lines


def answers(version: str, folder: Path) -> dict:
    """What a version says of itself; its jars are put into `folder`.

    Raises:
        click.ClickException: there is no such version, or Java or its broker failed.
    """
    click.echo(f"Kafka {version}: fetching its jars with Maven …", err=True)
    try:
        roots = [f"org.apache.kafka:{artifact}:{version}" for artifact in ARTIFACTS]
        copy_jars([*roots, SLF4J_SIMPLE], folder)
    except FileNotFoundError:
        raise click.ClickException("Maven (mvn) is not on the PATH: install it, it fetches Kafka's jars.") from None
    except subprocess.CalledProcessError:
        raise click.ClickException(
            f"Maven could not fetch the jars of Kafka {version}: check that this version was released, and the network."
        ) from None
    click.echo(f"Kafka {version}: asking it, with a broker and its clients …", err=True)
    target = folder / "answers.json"
    command = [sys.executable, "-m", "tools.kafka_answers", str(folder), str(target)]
    done = subprocess.run(command, cwd=COURSE, capture_output=True, text=True, timeout=300)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise click.ClickException(f"Kafka {version} could not be asked everything: {''.join(last)}")
    return json.loads(target.read_text())


def _version(context, parameter, value: str | None) -> str | None:
    if value and not re.fullmatch(r"\d+\.\d+\.\d+", value):
        raise click.BadParameter(f"{value!r} is not the version of a release, such as 4.4.0.")
    return value


@click.command()
@click.argument("old", callback=_version, default=KAFKA_VERSION)
@click.argument("new", callback=_version, required=False)
@click.option("--documentation", is_flag=True, help="Also print configs that are described in other words.")
def main(old: str, new: str | None, documentation: bool) -> None:
    """Print what changed from Kafka OLD to Kafka NEW: `+` was added, `-` removed, `*` changed.

    Without NEW it is the newest release, and without OLD the version of this course.
    """
    if not new:
        try:
            new = newest()
        except requests.RequestException as error:
            raise click.ClickException(f"The newest version could not be asked for ({error}): name it.") from None
        if old == new:
            click.echo(f"Apache Kafka {old} is the newest release.")
            return
    if old == new:
        raise click.UsageError(f"Give two versions; both are {old}.")
    with tempfile.TemporaryDirectory() as before, tempfile.TemporaryDirectory() as after:
        was, now = answers(old, Path(before)), answers(new, Path(after))
    click.echo(f"From Apache Kafka {old} to {new}")
    for section in now:
        lines = changes(was[section], now[section], documentation)
        click.echo(f"\n{section}: {len(lines) or 'no'} difference{'' if len(lines) == 1 else 's'}")
        click.echo("\n".join(lines), nl=bool(lines))


if __name__ == "__main__":
    main()
