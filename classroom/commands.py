"""`python -m helpers serve`: a shared cluster for a class, and what a teacher does with its learners."""

import contextlib
import secrets
import signal
import threading
import time
from pathlib import Path

import click

from helpers import paths
from helpers.errors import LabError, refused

PORT = 9093

in_folder = click.option(
    "--dir",
    "path",
    type=click.Path(file_okay=False, path_type=Path),
    default=paths.CLASS,
    help="Where the class is kept: records, passwords, cards; `class` in the course's own folder if not given.",
)


def _other_folder(context: click.Context, _option, path: Path | None) -> None:
    from classroom.folder import Folder

    if path:
        context.obj = Folder(path)


#: The same for the commands of `serve`: `serve stop --dir X` is as good as `serve --dir X stop`.
in_other_folder = click.option(
    "--dir",
    type=click.Path(file_okay=False, path_type=Path),
    expose_value=False,
    callback=_other_folder,
    help="Where the class is kept, if it is another folder than usual.",
)


@click.group("serve", invoke_without_command=True)
@in_folder
@click.option(
    "--learners",
    type=click.IntRange(0, 200),
    default=0,
    help="Make learner01 and so on, up to this number, and a card for each.",
)
@click.option(
    "--address",
    help="Host name or IPv4 address of this machine that learners connect to; it stands in the brokers' certificate.",
)
@click.option("--brokers", type=click.Choice(["1", "3"]), help="One broker, or three; fixed by the first start.")
@click.option("--port", type=click.IntRange(1024, 65000), help=f"Port of the first broker.  [default: {PORT}]")
@click.option("--disk", type=click.IntRange(10), help="MB of disk that each learner may take.  [default: 300]")
@click.option(
    "--connections",
    type=click.IntRange(10, 600),
    help="Connections to a broker from one address; more for a class behind one router.  [default: 80]",
)
@click.pass_context
def serve(context: click.Context, path: Path, learners: int, address, brokers, port, disk, connections) -> None:
    """Serve a shared Kafka for a class, with a corner for each learner.

    Without a command: starts the brokers, and a watchdog over partitions and disk, in this terminal. Ctrl-C (or `serve
    stop` in another one) ends them; records, learners and cards are kept in --dir for the next time. All traffic is
    encrypted, and learners log in; their environment lines are in DIR/cards.
    """
    from classroom.folder import Folder

    context.obj = Folder(path)
    if context.invoked_subcommand is None:
        _serve(context.obj, learners, address, int(brokers) if brokers else None, port, disk, connections)
    elif any((learners, address, brokers, port, disk, connections)):
        raise click.UsageError("These options belong to `serve` without a command.")


def _serve(folder, count: int, address, brokers, port, disk, connections) -> None:
    from classroom import learners, limits, server

    _settle(folder, address, brokers, port, disk, connections)
    with _ended_by_signals() as ended, brokers_asked():
        began = time.monotonic()
        click.echo("Starting the class's Kafka …")
        with server.running(folder) as served, server.connect(folder, folder.room(), served.ports) as admin:
            learners.set_quotas(admin)
            kept = folder.room()
            if names := learners.numbered(count, kept):
                learners.add(folder, admin, names)
            learners.write_cards(folder, kept, sorted(kept.learners))  # the address may be another one today
            ended.awaited = True
            dog = limits.Watchdog(admin, served.homes, served.logs, kept.megabytes, _tell, served.refused)
            _say(folder, served.bound, time.monotonic() - began)
            _say_if_too_small(folder, served.homes)
            _watch(folder, served, dog, ended)
            click.echo("Stopping the brokers …")
        click.echo(f"Stopped. Records, learners and cards are kept in {folder.path}.")


def _settle(folder, address, brokers, port, disk, connections=None) -> None:
    """Begin the class, or take over what is different today."""
    from classroom import folder as kept
    from classroom import server
    from helpers.kafka.broker import new_id

    if address is not None:
        server.address_to_bind(address)  # says in one sentence if that is impossible
    if not folder.exists():
        address = address or server.likely_address()
        room = kept.Room(new_id(), brokers or 1, address, port or PORT, disk or 300, secrets.token_urlsafe(24))
        room.connections = connections or room.connections
        folder.make(room)
        return
    if folder.is_served():
        with folder.hold():  # says that it is
            pass
    with folder.change() as old:
        if brokers and brokers != old.brokers:
            raise LabError(
                f"The class in {folder.path} has {old.brokers} broker{'s' * (old.brokers > 1)}, and its records are on "
                "them: begin another one with --dir."
            )
        if address is None and server.is_gone(old.address):
            address = server.likely_address()
            click.secho(f"This machine is no longer {old.address} but {address}: learners need new cards.", fg="yellow")
        old.address, old.port, old.megabytes = address or old.address, port or old.port, disk or old.megabytes
        old.connections = connections or old.connections


def _say(folder, bound: str, seconds: float) -> None:
    from classroom import limits, server

    kept = folder.room()
    click.echo(f"Kafka is ready at {kept.servers} after {seconds:.1f} s (TLS, SCRAM-SHA-512).")
    click.echo(f"  It listens on {bound}{' (all addresses of this machine)' * (bound == server.EVERYWHERE)}.")
    if bound == server.LOOPBACK:
        click.echo("  That is this machine only: learners elsewhere need another --address.")
    else:
        others = [a for a in server.own_addresses() if a != server.resolve(kept.address)]
        if others:
            click.echo(f"  Learners in another network of this machine? --address {' or '.join(others)}")
        ports = f"{kept.port}" if kept.brokers == 1 else f"{kept.port} to {kept.port + kept.brokers - 1}"
        click.echo(f"  This machine's firewall must let in TCP port {ports}.")
    click.echo(f"  {len(kept.learners)} learners; their cards are in {folder.path / 'cards'}")
    click.echo(
        f"  Each may have {limits.PARTITIONS} partitions, {limits.GROUPS} groups and {kept.megabytes} MB; looked "
        f"at every {limits.SECONDS:g} s, and held when above."
    )
    where = folder.option
    click.echo(
        f"  In another terminal: python -m helpers board{where}, python -m helpers serve{where} add|reset|remove NAME"
    )
    click.echo("Ctrl-C stops it; everything is kept.")


def _say_if_too_small(folder, homes: list[Path]) -> None:
    """Warn when the disk is full before each learner has what they may take."""
    import shutil

    from classroom import limits

    kept, usage = folder.room(), limits.measure(homes)
    taken = [usage[name].bytes / 1e6 if name in usage else 0 for name in kept.learners]
    wanted = sum(max(0, kept.megabytes - megabytes) for megabytes in taken)
    free = (shutil.disk_usage(folder.path).free - limits.LOW) / 1e6
    if wanted > free:
        click.secho(
            f"  All learners together may take {wanted:.0f} MB more, and the disk has {max(0, free):.0f} to spare: "
            "free some, or give each less by --disk. When it runs low, the largest are held.",
            fg="yellow",
        )


def _watch(folder, served, dog, ended: threading.Event) -> None:
    """Look after the brokers until the end is asked for."""
    from kafka.errors import KafkaError

    from classroom import limits

    address, warned, failed, deaths, away = folder.room().address, False, 0, [], False
    while not ended.wait(limits.SECONDS):
        if died := served.mend():
            deaths = [moment for moment in deaths if moment > time.monotonic() - 60] + [time.monotonic()]
            if len(deaths) > 3:
                raise LabError(f"A broker died four times within a minute: see {served.logs[died[0] - 1]}.")
            _tell(f"Broker {died[0]} had died, and is started again: see {served.logs[died[0] - 1]}.")
            away = True
        try:
            dog.look()
            failed = 0
            if away:
                _tell("The brokers answer again, and programs go on; transactional producers need Kernel, Restart.")
                away = False
        except (KafkaError, TimeoutError, OSError) as error:  # e.g. while a broker is started again
            failed += 1
            if failed == 10:
                _tell(f"The watchdog gets no answer from the brokers ({type(error).__name__}), and goes on trying.")
        gone = _out_of_reach(address, served.bound)
        if gone and not warned:
            _tell(gone)
        warned = bool(gone)


def _out_of_reach(address: str, bound: str) -> str:
    """What to do when the network has changed and nobody gets in any more; empty while it has not.

    A name is not looked up again: that may take seconds, and what it stood for at the start is what is listened on.
    """
    from classroom import server

    if server.is_gone(address):
        return (
            f"This machine no longer has the address {address}, so that nobody gets in: go back to that network, or "
            "stop, start again, and give out the new cards."
        )
    if bound not in (server.LOOPBACK, server.EVERYWHERE, *server.own_addresses()):
        return (
            f"This machine no longer has the address {bound}, which {address} was at the start, so that nobody gets "
            "in: go back to that network, or stop, and start again; the cards stay as they are."
        )
    return ""


def _tell(line: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')}  {line}")


@contextlib.contextmanager
def _ended_by_signals():
    """An event that Ctrl-C, `stop` and a closed terminal set once it is awaited; before that they interrupt."""
    ended = threading.Event()
    ended.awaited = False

    def end(_number, _frame):
        if ended.is_set() or not ended.awaited:
            raise KeyboardInterrupt
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def brokers_asked():
    """What the brokers refuse, or do not do in time, in one sentence."""
    from kafka.errors import KafkaError

    try:
        yield
    except (KafkaError, TimeoutError) as error:
        raise LabError(f"The class's brokers did not do it ({error}): try again.") from error


# -- commands beside a running `serve` ---------------------------------------------------------------------------------


@contextlib.contextmanager
def administrator(folder):
    """A client of the administrator's of the class that is being served."""
    from classroom import server

    ports = folder.running()["ports"]
    with brokers_asked(), server.connect(folder, folder.room(), ports) as admin:
        yield admin


@serve.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--file", type=click.File(), help="A file of real names, one a line; the board shows them.")
@in_other_folder
@click.pass_obj
def add(folder, names: tuple[str, ...], file) -> None:
    """Add learners, and save a card for each."""
    from classroom import learners

    real = learners.named([line.strip() for line in file or () if line.strip()], [*folder.room().learners, *names])
    if not names and not real:
        raise click.UsageError("Give names, or --file with a file of names.")
    names = tuple(dict.fromkeys([*names, *real]))
    learners.check_names(list(names))
    with administrator(folder) as admin:
        learners.add(folder, admin, list(names), real)
    for name in names:
        click.echo(learners.card_file(folder, name))


@serve.command()
@click.argument("name")
@in_other_folder
@click.pass_obj
def reset(folder, name: str) -> None:
    """Empty a learner's corner of topics and groups. Programs of theirs that use groups end with an error.

    No answer is lost: the learner's notebooks are on the learner's machine, and what the board shows is kept. They run
    the lesson's first cells again.
    """
    from classroom import learners

    learners.check_known(folder.room(), name)
    with administrator(folder) as admin:
        count = learners.reset(admin, name)
        learners.forget(folder, admin, name)
        learners.admit(folder, admin, name)
    click.echo(f"{name}'s corner is empty ({count} topics deleted). Now `{name}` runs the lesson's first cells again.")


@serve.command()
@click.argument("name")
@in_other_folder
@click.pass_obj
def remove(folder, name: str) -> None:
    """Take a learner out: log-in, rights, topics, groups and card."""
    from classroom import learners

    with administrator(folder) as admin:
        learners.remove(folder, admin, name)
    click.echo(f"{name} is out; what begins with {name}. is deleted.")


@serve.command()
@click.argument("name")
@in_other_folder
@click.pass_obj
def password(folder, name: str) -> None:
    """Give a learner a new password and a new card, e.g. because the old card was lost."""
    from classroom import learners

    with administrator(folder) as admin:
        learners.renew(folder, admin, name)
    click.echo(learners.card_file(folder, name))


@serve.command()
@in_other_folder
@click.pass_obj
def status(folder) -> None:
    """Say whether the class is being served, and what each learner takes."""
    from classroom import learners, limits

    kept = folder.room()
    click.echo(f"{kept.servers} {'is being served' if folder.is_served() else 'is not being served'}")
    usage = limits.measure([folder.path / f"broker-{id}" / "data" for id in range(1, kept.brokers + 1)])
    held = set()
    with contextlib.suppress(LabError), administrator(folder) as admin:  # it may not run
        limits.count_groups(admin, usage)
        held = learners.held(admin)
    for name in sorted(kept.learners):
        taken = usage.get(name, limits.Usage())
        excess = taken.excess(kept.megabytes)
        note = f"  held: {excess}" if excess else "  held" if name in held else ""
        click.echo(f"  {name:<30} {len(taken.partitions):>5} partitions {taken.bytes / 1e6:>7.1f} MB{note}")


@serve.command()
@in_other_folder
@click.pass_obj
def stop(folder) -> None:
    """Stop a running `serve` in an orderly way."""
    import psutil

    from helpers.waiting import wait_until

    with contextlib.suppress(psutil.Error):
        psutil.Process(folder.running()["pid"]).terminate()
    with brokers_asked():
        wait_until(lambda: not folder.is_served(), "the brokers to end", timeout=90, pause=0.1)
    click.echo(f"Stopped. Records, learners and cards are kept in {folder.path}.")


@click.command()
@in_folder
@click.option("--text", is_flag=True, help="Print the board once as plain text, and end.")
@click.option("--csv", "table", is_flag=True, help="Print the board once as a table for a spreadsheet, and end.")
@click.option("--port", type=click.IntRange(1024, 65535), default=8765, show_default=True, help="Port of the page.")
def board(path: Path, text: bool, table: bool, port: int) -> None:
    """Show who of the class has answered what, who is stuck, and who asks for help.

    A live page on this machine only, at an address that nobody can guess; it needs a running `serve`. Learners'
    outcomes come in by themselves, their code only when they ask for help.
    """
    from classroom import board as live_board
    from classroom.folder import Folder
    from exercises.frame.catalogue import questions

    asked = {f"lesson_{name[:2]}": names for name, names in questions().items()}
    with brokers_asked():
        reader = live_board.Reader(Folder(path), asked)
    if text or table:
        with contextlib.closing(reader), brokers_asked():
            reader.catch_up()
            shown = reader.model.shown(time.time())
            click.echo(live_board.as_csv(shown) if table else live_board.as_text(shown), nl=not table)
        return
    live = live_board.Live(reader)
    with contextlib.closing(live), refused(f"Port {port} cannot be used", "choose another with --port"):
        token = secrets.token_urlsafe(16)
        click.echo(f"The board is at http://localhost:{port}/{token}/ (Ctrl-C ends it).")
        live_board.serve_page(live, port, token)
