"""`python -m helpers lab`: JupyterLab on the learner's own copies of the lessons."""

import importlib.util
import os
import sys
from pathlib import Path

import click

from course.lab.copies import copy_lessons
from helpers import paths, settings
from helpers.errors import LabError
from helpers.kafka import cache


def copy(notebooks: Path, folder: Path) -> list[Path]:
    """Make the copies ready, and say what became of them; returns those that were made now."""
    made, carried = copy_lessons(notebooks, folder)
    click.echo(f"Your lessons are in {folder}" + (f" ({len(made)} copied there now)." if made else "."))
    for each in carried:
        click.secho(str(each), fg="yellow" if each.broken else None)
    return made


def fill_cache() -> None:
    """Fill the cache, so that the first cell starts in a second; an external cluster needs none."""
    from helpers.kafka.download import prepare
    from helpers.kafka.embedded import train

    if not settings.bootstrap_servers():  # a lesson that wants brokers all the same fills it itself
        prepare(train)


def open_lab(notebooks: Path, folder: Path, options: list[str]) -> None:
    """Make the copies and the cache ready, then become JupyterLab: this process is replaced and does not return.

    Args:
        notebooks: folder of the lessons.
        folder: the learner's folder; all that JupyterLab shows.
        options: more options for JupyterLab; they win over ours.
    """
    from classroom.learners import OUT_OF_CLASS, is_out_of_class

    if importlib.util.find_spec("jupyterlab") is None:
        raise LabError("JupyterLab is not installed in this Python: pip install -r requirements.txt.")
    folder = folder.absolute()
    made = copy(notebooks, folder)
    try:
        fill_cache()
    except LabError as error:  # the lessons can be read at least
        click.secho(str(error), fg="yellow", err=True)
        later = "JupyterLab opens all the same; the first cell that starts a cluster will try again."
        click.secho(later, fg="yellow", err=True)
    if is_out_of_class():
        click.secho(OUT_OF_CLASS, fg="yellow", err=True)
    click.echo("Opening JupyterLab. Ctrl-C here ends it.")
    sys.stdout.flush()
    # One process: a signal, or a container's stop, goes to JupyterLab itself, and nothing of ours can be left over.
    os.execve(sys.executable, command(folder, made, options), environment(folder))


def command(folder: Path, made: list[Path], options: list[str]) -> list[str]:
    """The command line of JupyterLab; on the first visit it opens the first lesson."""
    first_visit = made and len(made) == len(list(folder.glob("*.ipynb")))
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={folder}",
        *([f"--LabApp.default_url=/lab/tree/{made[0].name}"] if first_visit else []),
        # Open tabs are remembered with the lessons, not mixed with those of other projects.
        f"--LabApp.workspaces_dir={folder / '.jupyterlab-workspaces'}",
        # Warnings and the address only. One Ctrl-C ends it, without asking back. No news, no calls home.
        "--Application.log_level=WARN",
        "--JupyterApp.answer_yes=True",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        # Without it each kernel warns in the terminal that others on this machine might listen.
        "--KernelManager.transport_encryption=auto",
        *options,
    ]


def environment(folder: Path) -> dict[str, str]:
    """The environment of JupyterLab and its kernels.

    A kernel named python3 that somebody has installed in their home would come before the one of this Python, and not
    find `helpers`. Kernels find this copy of the course first, whichever one is installed, or if it was moved since.
    The folder is where progress is kept.
    """
    places = os.pathsep.join([str(paths.COURSE), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"JUPYTER_PREFER_ENV_PATH": "1", "COURSE_WORK_DIR": str(folder), "PYTHONPATH": places}
    return os.environ | ours | cache.with_home(folder)
