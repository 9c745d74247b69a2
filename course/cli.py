"""The commands of `python -m helpers`; each one's work is in a module of its own, imported when it is called."""

import sys
from importlib import metadata
from pathlib import Path

import click

from classroom.commands import board, serve
from course.kit.bundle import bundle
from helpers import paths, settings
from helpers.errors import LabError
from helpers.kafka import cache


class _Plain(click.Group):
    """Shows the course's own errors as the one sentence that they are; an interrupt is exit status 130."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except LabError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


class _Refused(click.ClickException):
    """An argument that makes no sense, in one sentence; exit status 2, as for click's own usage errors."""

    exit_code = 2


def _version() -> str:
    try:
        course = metadata.version("kafka-design-patterns")
    except metadata.PackageNotFoundError:
        course = "(not installed: pip install -r requirements.txt)"
    return f"Kafka Design Patterns {course}, Apache Kafka {cache.KAFKA_VERSION}"


_notebooks = click.option(
    "--notebooks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=paths.NOTEBOOKS,
    hidden=True,
    help="The folder of the lessons; for tests.",
)


_folder = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=paths.WORK,
    envvar="COURSE_WORK_DIR",
    help="Where your copies are kept; without it COURSE_WORK_DIR, or `work` in the course's own folder.",
)


@click.group(cls=_Plain, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version(), message="%(version)s")
def commands() -> None:
    """Kafka Design Patterns: notebooks, each on a real Apache Kafka.

    Start with `python -m helpers lab`.
    """


@commands.command(
    context_settings={"ignore_unknown_options": True}, options_metavar="[--dir DIR] [--prepare] [JUPYTER OPTIONS]..."
)
@_folder
@click.option("--prepare", is_flag=True, help="Make the copies and fetch Kafka, and open nothing.")
@_notebooks
@click.argument("jupyter_options", nargs=-1, type=click.UNPROCESSED, metavar="")
def lab(folder: Path, prepare: bool, notebooks: Path, jupyter_options: tuple[str, ...]) -> None:
    """Open JupyterLab on your own copies of the lessons.

    A lesson that is not in your folder yet is copied there. One whose lesson has a new version since is brought to it:
    your answers and your own cells are carried over, and your old copy is kept in the folder `earlier`. The first time,
    Kafka is fetched too. Ctrl-C ends JupyterLab and all that runs in it.

    Every other option goes to JupyterLab: --no-browser, --port 9000, --ip 0.0.0.0, ... (all of them: `jupyter lab
    --help`).
    """
    from course.lab import jupyter

    if prepare:
        jupyter.copy(notebooks, folder.absolute())
        jupyter.fill_cache()
    else:
        jupyter.open_lab(notebooks, folder, list(jupyter_options))


@commands.command()
@_folder
@_notebooks
def progress(folder: Path, notebooks: Path) -> None:
    """Say how far you are with all lessons: the questions asked, tried and right.

    What was judged in JupyterLab or VS Code counts; a question that was right once stays right.
    """
    from course.progress import show

    show(notebooks, folder)


@commands.command()
@click.argument("names", nargs=-1, required=True, metavar="LESSON...")
@click.option("--with-answers", is_flag=True, help="Put your answers into the fresh copy as well.")
@_folder
@_notebooks
def reset(names, with_answers: bool, folder: Path, notebooks: Path) -> None:
    """Begin a lesson anew, and keep your answers.

    A LESSON is a number (4 or 04) or a name (04_event_sourcing). You get a fresh copy; your old one, and a file with
    your answers alone, go to the folder `earlier`. Your progress stays as it is.
    """
    from course.lab import copies
    from course.run import headless

    try:  # of a path the name alone: it may be the copy's own
        lessons = headless.choose(tuple(Path(n).stem if n.endswith(".ipynb") else n for n in names), notebooks)
    except LabError as error:
        raise _Refused(str(error)) from error
    for lesson in lessons:
        kept, answers = copies.reset(lesson, folder, with_answers)
        click.echo(f"{lesson.stem} begins anew in {folder}.")
        for what, path in (("Your old copy", kept), ("Your answers", answers)):
            if path:
                click.echo(f"{what}: {path.relative_to(folder)}")


@commands.command()
@click.option(
    "--card",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Your card of a class: look at its cluster, without pasting it first.",
)
@click.option(
    "--class",
    "room",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder of the class that you teach, if it is not the one where `serve` keeps it by itself.",
)
def doctor(card: Path | None, room: Path | None) -> None:
    """Say whether this machine is ready, and what to do where it is not.

    Looks at Python, memory, disk, the cache and Java; starts a broker, writes and reads a record, and stops it; does
    the same with PostgreSQL, and with the cluster of COURSE_BOOTSTRAP_SERVERS where that is set. Fetches Kafka if it
    is not in the cache yet. Exit status 1 when something does not work.
    """
    from course.doctor import examine

    sys.exit(examine(card, room))


@commands.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []}, options_metavar="TOOL [OPTIONS]..."
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="")
def kafka(words: tuple[str, ...]) -> None:
    """Run one of Kafka's own command line tools on the lab that was started last.

    `python -m helpers kafka topics --list` is `kafka-topics.sh --bootstrap-server ... --list`. Run it in a terminal
    while a lesson runs. The first time, the tools are fetched (12 MB).
    """
    from course.kafka_tools import TOOLS, start

    if not words or words[0] in ("-h", "--help"):
        click.echo(click.get_current_context().get_help())
        click.echo(f"\nTools: {', '.join(TOOLS)}. Each one's options: `python -m helpers kafka topics --help`.")
        return
    start(words[0], list(words[1:]))


@commands.command()
@click.argument("names", nargs=-1, metavar="[LESSON]...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("executed"),
    show_default=True,
    help="Folder for what comes out: notebooks, HTML, junit.xml, logs.",
)
@click.option(
    "-n", "--processes", type=click.IntRange(1), default=1, show_default=True, help="How many lessons run at once."
)
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="A lesson that takes longer is stopped, and counts as timed out.",
)
@click.option(
    "-p",
    "--parameter",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a value of a lesson's `parameters` cell (YAML: 12, 0.5, true, [1, 2], text); may be repeated.",
)
@_notebooks
def run(names, out: Path, processes: int, time_limit: float, pairs, notebooks: Path) -> None:
    """Execute lessons without a screen, as a CI server does.

    A LESSON is a number (1 or 01), a name (01_producer_consumer) or a path; without any, all lessons run.

    In the --out folder afterwards: each lesson executed, as notebook and as HTML, up to where it came; junit.xml,
    where a lesson that failed is a <failure>, and one that was stopped or not run an <error>;
    logs/LESSON with the logs of the brokers of each lesson that failed. Nothing is written elsewhere.

    Exit status: 0 when all went well, 1 when a lesson did not, 2 when there is no such lesson or parameter, 130 when
    interrupted.
    """
    from course.run import headless

    try:
        lessons = headless.choose(names, notebooks)
        parameters = headless.assign(headless.parse(pairs), lessons)
        headless.prepare_out(out, lessons)
    except LabError as error:
        raise _Refused(str(error)) from error
    sys.exit(headless.run(lessons, out, parameters, time_limit, processes))


@commands.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--cluster", is_flag=True, help="What killed runs left on the cluster of COURSE_BOOTSTRAP_SERVERS.")
@click.option("--database", is_flag=True, help="What killed runs left in the database of COURSE_DATABASE_URL.")
@click.option(
    "--older",
    type=click.FloatRange(0),
    default=12,
    show_default=True,
    metavar="HOURS",
    help="Of runs that began so long ago; younger ones may still be at work.",
)
def clean(yes: bool, cluster: bool, database: bool, older: float) -> None:
    """Empty the cache, and remove what killed labs have left behind.

    The cache holds Kafka's jars and what makes Java start fast; the next lab fetches them again. Your work is not
    touched. With --cluster or --database the cache stays; what the course's runs made there under your prefix is
    shown, and deleted when you say so.
    """
    if cluster or database:
        _clean_elsewhere([name for name, asked in (("cluster", cluster), ("database", database)) if asked], older, yes)
        return
    from helpers.processes.run_folder import sweep

    folder = cache.cache_folder()
    if swept := sweep():
        click.echo(f"Removed what {len(swept)} killed lab{'s' if len(swept) > 1 else ''} had left behind.")
    if not folder.exists():
        click.echo(f"The cache is empty already ({folder}).")
        return
    if not yes:
        click.confirm(f"Empty the cache {folder}? End your running lessons first", abort=True)
    freed = cache.clean()
    if folder.exists() and any(path.is_file() for path in folder.rglob("*")):
        raise LabError(f"Not everything in {folder} could be removed: delete what is left as the user that made it.")
    click.echo(f"{freed / 1e6:.0f} MB freed.")


def _clean_elsewhere(places: list[str], older: float, yes: bool) -> None:
    from course import leftovers

    for place in places:
        variable, look = leftovers.PLACES[place]
        if not settings.value(variable):
            raise LabError(f"{variable} is not set, so there is no {place} to look at.")
        found, remove = look(older)
        if not found:
            click.echo(f"Nothing of runs older than {older:g} hours is left on the {place}.")
            continue
        click.echo("\n".join(found))
        if not yes:
            click.confirm(f"Delete these {len(found)} from the {place}?", abort=True)
        if left := remove():
            raise LabError(f"Not deleted: {', '.join(left)}. A client or user may still hold them: try again later.")
        click.echo(f"{len(found)} deleted.")


commands.add_command(serve)
commands.add_command(board)
commands.add_command(bundle)


def main() -> None:
    """Run the command line."""
    commands(prog_name="python -m helpers")
