"""Maintainer's command: pin every package, from the ranges in pyproject.toml.

python -m tools.lock             # what is pinned stays, where the ranges allow it
python -m tools.lock --upgrade   # the newest of everything
python -m tools.lock --check     # writes nothing; exit status 1 when the pins do not fit the ranges

writes requirements.txt and requirements-dev.txt. The pins hold for every system and for every Python from the one that
pyproject.toml names, its first patch release included: uv resolves for all of them at once.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from helpers.paths import COURSE

USERS = ("requirements.txt", "What the lessons need, exactly", [], "-e .")
DEVELOPERS = ("requirements-dev.txt", "What tests and maintainers need beside it", ["--extra", "dev"], "")


def pins_of(file: Path) -> list[str]:
    """Return the lines of a file of pins that pin something."""
    return [line for line in file.read_text().splitlines() if "==" in line]


def lock(folder: Path, name: str, says: str, options: list[str], last: str, upgrade: bool) -> None:
    """Write one file of pins into a folder that holds the earlier pins.

    Raises:
        click.ClickException: no versions fit the ranges; uv's own words.
    """
    target = folder / name
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        "--universal",
        "--no-header",
        "--no-annotate",
        "--no-emit-index-url",
    ]
    command += ["--python-version", "3.11.0", *options, "-q", "-o", target, *(["--upgrade"] if upgrade else [])]
    if name == DEVELOPERS[0]:
        (folder / "constraints.txt").write_text("\n".join(pins_of(folder / USERS[0])))
        command += ["-c", folder / "constraints.txt"]
    done = subprocess.run(command, cwd=COURSE, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr.strip())
    pins = [pin for pin in pins_of(target) if not pin.endswith("; sys_platform == 'win32'")]  # Windows has WSL 2
    if name == DEVELOPERS[0]:
        users = pins_of(folder / USERS[0])
        pins = ["-r requirements.txt", *(pin for pin in pins if pin not in users)]
    head = f"# {says}; made by `python -m tools.lock` from pyproject.toml, which says what each is for."
    target.write_text("\n".join([head, *pins, *filter(None, [last])]) + "\n")


@click.command()
@click.option("--upgrade", is_flag=True, help="Take the newest version of everything that the ranges allow.")
@click.option("--check", is_flag=True, help="Write nothing; say whether the files are what would be written.")
def main(upgrade: bool, check: bool) -> None:
    """Pin every package for users (requirements.txt) and for tests and maintainers (requirements-dev.txt)."""
    with tempfile.TemporaryDirectory() as folder:
        changed = []
        for file in (USERS, DEVELOPERS):
            made, kept = Path(folder, file[0]), COURSE / file[0]
            if kept.exists():
                made.write_text("\n".join(pins_of(kept)) + "\n")
            lock(Path(folder), *file, upgrade)
            if not kept.exists() or kept.read_text() != made.read_text():
                changed.append(file[0])
                if not check:
                    shutil.copy(made, kept)
    click.echo(f"{' and '.join(changed) or 'Nothing'} {'would change' if check else 'changed'}.")
    sys.exit(bool(check and changed))


if __name__ == "__main__":
    main()
