"""The database: real, quick to begin anew, killed for real, nothing left behind; own and external."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import psutil
import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from course import cli, leftovers
from helpers import LabError
from helpers.database import embedded, schemas
from helpers.database import external as external_database
from helpers.database.database import Database
from helpers.kafka import cache
from helpers.processes.run_folder import Processes, base_folder
from helpers.waiting import wait_until

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands PostgreSQL to another user")


def engine(url, **options):
    return create_engine(url, poolclass=NullPool, **options)


def ask(url, sql):
    with engine(url).begin() as connection:
        result = connection.execute(text(sql))
        return result.all() if result.returns_rows else None


# -- a server of one's own, and one that serves as the external one ----------------------------------------------------


@pytest.fixture(scope="module")
def server():
    """An embedded server, which also serves as the external one, for users with a password: `ann` may make schemas."""
    with Database(embedded=True) as server:
        ask(server.url, "create role ann login password 'se@cret'; create role bob login password 'se@cret'")
        ask(server.url, "grant create on database course to ann")
        rules = server._folder / "pg_hba.conf"
        rules.write_text("local all ann,bob scram-sha-256\n" + rules.read_text())
        ask(server.url, "select pg_reload_conf()")
        # The reload is done by another process; a login without a password tells when.
        wait_until(lambda: refused(server, user="ann", password=""), "the password to be asked for")
        yield server


def refused(server, **login):
    try:
        psycopg.connect(host=str(server._folder), dbname="course", **login).close()
    except psycopg.OperationalError:
        return True


def address(server, user="ann", password="se%40cret"):
    return f"postgresql://{user}:{password}@/course?host={server._folder}"


@pytest.fixture
def external(server, monkeypatch):
    monkeypatch.setenv("COURSE_DATABASE_URL", address(server))
    with Database() as found:
        yield found


@pytest.fixture(params=["server", "external"])
def db(request):
    return request.getfixturevalue(request.param)


# -- what the lessons use, the same on both ----------------------------------------------------------------------------


def test_is_a_postgresql_of_version_16_or_later(db):
    ((version,),) = ask(db.url, "show server_version_num")
    assert int(version) >= 160000
    assert db.alive() and repr(db) == "PostgreSQL, ready"


def test_answers_alike_on_both(db):
    url = db.schema("shop")
    ask(url, "create table item (id serial primary key, name text, at timestamptz)")
    ask(url, "insert into item (name, at) values ('Tee', '2025-01-01 12:00+02'), ('Öl', '2025-01-01 12:00+00')")
    assert [str(at) for (at,) in ask(url, "select at from item order by id")] == [
        "2025-01-01 10:00:00+00:00",
        "2025-01-01 12:00:00+00:00",
    ]
    assert ask(url, "select name from item order by name") == [("Tee",), ("Öl",)]


def test_two_relays_share_the_work_by_skip_locked(db):
    url = db.schema("outbox")
    ask(url, "create table outbox (id int primary key)")
    ask(url, "insert into outbox select generate_series(1, 6)")
    take = text("select id from outbox order by id limit 3 for update skip locked")
    with engine(url).begin() as first, engine(url).begin() as second:
        assert [*first.execute(take).scalars()] == [1, 2, 3]
        assert [*second.execute(take).scalars()] == [4, 5, 6]


def test_notifies_a_listener_when_the_transaction_commits(db):
    url = db.schema("outbox")
    with engine(url, isolation_level="AUTOCOMMIT").connect() as listener:
        listener.execute(text("listen fresh"))
        ask(url, "notify fresh, 'order-1'")
        (notice,) = listener.connection.driver_connection.notifies(timeout=5, stop_after=1)
    assert (notice.channel, notice.payload) == ("fresh", "order-1")


def test_schemas_are_apart_and_begin_anew(db):
    billing, stock = db.schema("billing"), db.schema("stock")
    for url in (billing, stock):
        ask(url, "create table entry (id int)")
    ask(stock, "insert into entry values (1)")
    assert ask(billing, "select * from entry") == []
    assert db.schema("stock") == stock
    with pytest.raises(DBAPIError, match="does not exist"):
        ask(stock, "select * from entry")


def test_begins_anew_while_earlier_sessions_hold_locks(db):
    url = db.schema("billing")
    ask(url, "create table entry (id int)")
    ask(url, "insert into entry values (1)")
    others = re.sub("application_name=[a-z0-9_]+", "application_name=worker", url)  # not known by its name
    earlier = [engine(url).connect(), engine(others).connect()]
    for connection in earlier:
        connection.execute(text("select * from entry for share"))
    started = time.monotonic()
    db.schema("billing")
    assert time.monotonic() - started < 3
    for connection in earlier:
        with pytest.raises(DBAPIError):
            connection.execute(text("select 1"))
        connection.invalidate()
        connection.close()


def test_a_connection_of_an_earlier_run_says_nothing_when_it_is_forgotten(server, capfd):
    pooled = create_engine(server.schema("billing"))
    with pooled.begin() as connection:
        connection.execute(text("create table entry (id int)"))
    pooled = create_engine(server.schema("billing"))
    with pooled.begin() as connection:
        connection.execute(text("create table entry (id int)"))
    pooled.dispose()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["public", "pg_mine", "Billing", "a b", "", 'x"; drop', "n" * 41])
def test_refuses_names_that_would_not_be_the_same_everywhere(server, name):
    with pytest.raises(LabError, match="no name for a schema"):
        server.schema(name)


def test_the_users_own_variables_change_nothing(server, monkeypatch):
    settings = {"HOST": "nowhere.invalid", "PORT": "1", "USER": "x", "DATABASE": "x", "OPTIONS": "-csearch_path=x"}
    for name, value in (settings | {"SSLMODE": "require"}).items():
        monkeypatch.setenv(f"PG{name}", value)
    assert ask(server.url, "select current_schema(), current_user") == [("public", "course")]
    server.schema("billing")
    server.restart()


# -- harm --------------------------------------------------------------------------------------------------------------


def test_what_was_committed_survives_kill_and_restart(server):
    url = server.schema("ledger")
    ask(url, "create table entry (id int)")
    ask(url, "insert into entry select generate_series(1, 1000)")
    with engine(url).connect() as open_one:
        open_one.execute(text("insert into entry values (-1)"))  # never committed
        processes = [psutil.Process(server._pid), *psutil.Process(server._pid).children()]
        server.kill()
        open_one.invalidate()
    assert all(map(embedded._is_dead, processes)) and not server.alive()
    with pytest.raises(DBAPIError):
        ask(url, "select 1")
    with pytest.raises(LabError, match=r"database\.restart\(\)"):
        server.schema("other")
    server.kill()  # a cell may be run again
    server.restart()
    assert server.alive()
    assert ask(url, "select count(*), min(id) from entry") == [(1000, 1)]
    server.restart()  # one that runs is shut down first
    assert ask(url, "select count(*), min(id) from entry") == [(1000, 1)]


def test_the_external_server_cannot_be_harmed(external, server):
    for harm in (external.kill, external.restart):
        with pytest.raises(LabError, match=r"Database\(embedded=True\)"):
            harm()
    assert server.alive() and external.alive()


# -- nothing left behind -----------------------------------------------------------------------------------------------

OWNER = """
import json, os, sys, threading, time
from helpers.database.database import Database
database = Database()
if "query" in sys.argv:
    hours = "select count(*) from generate_series(1, 1000000000000)"
    threading.Thread(target=database._connect().execute, args=[hours], daemon=True).start()
    while not database._connect().execute("select 1 from pg_stat_activity where query = %s", [hours]).fetchone():
        time.sleep(0.01)
try:
    print(json.dumps([database._pid, str(database._folder.parent)]), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    database._connect().execute("select 1")
    print("unharmed", flush=True)
"""


def start_owner(*args, **variables):
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, *args],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {key: str(value) for key, value in variables.items()},
    )


class Traces:
    """What a server has on this machine: processes, folder, shared memory."""

    def __init__(self, pid, folder):
        server = psutil.Process(pid)
        self.processes = [server, *server.children(recursive=True)]
        self.folder = Path(folder)
        self.pid = pid
        assert self.folder.is_dir() and len(self.processes) > 3
        maps = Path(f"/proc/{pid}/maps")
        assert not maps.exists() or "/dev/shm" not in maps.read_text()

    def left(self):
        segments = Path("/proc/sysvipc/shm")
        makers = [line.split()[4] for line in segments.read_text().splitlines()] if segments.exists() else []
        return [
            *(process for process in self.processes if not embedded._is_dead(process)),
            *([self.folder] if self.folder.exists() else []),
            *(["System V segment"] if str(self.pid) in makers else []),
        ]

    def vanish(self):
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.left(), "nothing to be left", timeout=5)
        assert self.left() == []


def test_leaves_nothing_after_stop():
    with Database() as one:
        traces = Traces(one._pid, one._folder.parent)
        started = time.monotonic()
    assert time.monotonic() - started < 1
    assert traces.left() == []
    one.stop()  # a cell may be run again
    for use in (lambda: one.url, lambda: one.schema("x"), one.kill, one.restart):
        with pytest.raises(LabError, match="stopped"):
            use()
    assert repr(one) == "PostgreSQL, stopped"


def test_leaves_nothing_after_stop_of_a_killed_one():
    with Database() as one:
        traces = Traces(one._pid, one._folder.parent)
        one.kill()
    assert traces.left() == []


def test_calling_again_stops_the_earlier_one():
    first = Database()
    traces = Traces(first._pid, first._folder.parent)
    with Database() as second:
        assert traces.left() == []
        assert second.alive() and not first.alive()
        first.stop()
        assert second.alive()


def test_an_interrupt_harms_nothing_and_a_normal_exit_leaves_nothing():
    with start_owner() as owner:
        traces = Traces(*json.loads(owner.stdout.readline()))
        os.killpg(owner.pid, signal.SIGINT)
        assert owner.stdout.readline() == "unharmed\n"
        assert owner.wait(5) == 0
    traces.vanish()


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_leaves_nothing_when_the_owner_is_killed(kill):
    """Also not a query that would run for hours."""
    with start_owner("query") as owner:
        traces = Traces(*json.loads(owner.stdout.readline()))
        kill(owner.pid, signal.SIGKILL)
        traces.vanish()


def test_two_at_once_on_an_empty_cache(tmp_path):
    with start_owner(COURSE_CACHE_DIR=tmp_path) as one, start_owner(COURSE_CACHE_DIR=tmp_path) as two:
        both = [Traces(*json.loads(owner.stdout.readline())) for owner in (one, two)]
        os.killpg(one.pid, signal.SIGKILL)
        os.killpg(two.pid, signal.SIGKILL)
        for traces in both:
            traces.vanish()
    assert [p.name for p in tmp_path.iterdir()] == [embedded._template().name]


# -- what goes wrong, in one sentence, and the next try works ----------------------------------------------------------


@pytest.fixture
def cache_copy(monkeypatch, tmp_path):
    """A cache of one's own, filled from the usual one."""
    embedded.prepare()
    filled = tmp_path / "cache"
    shutil.copytree(embedded._template(), filled / embedded._template().name)
    monkeypatch.setenv("COURSE_CACHE_DIR", str(filled))
    return filled


def test_a_damaged_template_is_made_anew(cache_copy):
    control = embedded._template() / "global" / "pg_control"
    control.write_bytes(control.read_bytes()[:100])
    with Database() as one:
        assert ask(one.url, "select 1") == [(1,)]
    assert control.stat().st_size > 1000


def test_a_server_that_does_not_start_shows_its_log(cache_copy, monkeypatch):
    runs = []
    monkeypatch.setattr(embedded, "Processes", lambda: runs.append(Processes()) or runs[-1])
    monkeypatch.setattr(embedded, "PORT", "nonsense")
    with pytest.raises(LabError, match=r"ended by itself(.|\n)*invalid value for parameter \"port\""):
        Database()
    assert runs and not any(run.folder.exists() for run in runs)
    monkeypatch.undo()
    with Database() as one:
        assert one.alive()


@root_only
def test_a_full_disk(monkeypatch, tmp_path):
    full = Path(tempfile.mkdtemp(prefix="full-", dir="/tmp"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=1777", "none", full]).returncode:
        full.rmdir()
        pytest.skip("no small file system can be mounted here")
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(full))
        with pytest.raises(LabError, match="less than 100 MB are free.*set TMPDIR"):
            Database()
    finally:
        subprocess.run(["umount", full], check=True)
        full.rmdir()


def test_a_temp_folder_with_a_long_name(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="x" * 80, dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with pytest.raises(LabError, match="set TMPDIR to a folder with a shorter one"):
            Database()


@root_only
def test_a_temp_folder_that_only_root_can_enter(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with pytest.raises(LabError, match=f"others cannot enter {folder}"):
            Database()


@root_only
def test_a_wheel_that_only_root_can_read_stays_closed(monkeypatch):
    """With a cache that cannot be written, so that initdb runs from the copy as well."""
    wheel = embedded._installation().parent
    with tempfile.TemporaryDirectory(dir="/tmp") as closed:
        for folder in (wheel, wheel.with_name(f"{wheel.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, Path(closed) / folder.name, ignore=shutil.ignore_patterns("include", "*18"))
        hidden = Path(closed) / wheel.name / "pginstall"
        (hidden / "share" / "postgresql" / "timezonesets" / "Default").chmod(0o600)  # as with a umask of 077
        monkeypatch.setattr(embedded, "_installation", lambda: hidden)
        monkeypatch.setenv("COURSE_CACHE_DIR", "/dev/null/nothing")
        modes = {path: path.stat().st_mode for path in Path(closed).rglob("*")}
        with Database() as one:
            assert psutil.Process(one._pid).username() == "nobody"
            assert ask(one.url, "select now() at time zone 'Europe/Berlin' is null") == [(False,)]
        assert modes.items() <= {path: path.stat().st_mode for path in Path(closed).rglob("*")}.items()
        assert Path(closed).stat().st_mode & 0o777 == 0o700


@root_only
def test_as_root_nobody_else_gets_in(server):
    run = server._folder.parent
    assert run.stat().st_mode & 0o777 == base_folder().stat().st_mode & 0o777 == 0o710
    assert server._folder.stat().st_mode & 0o777 == 0o700
    login = f"import psycopg; psycopg.connect({server._connect().info.dsn!r})"
    nobody = {"user": server._account.pw_uid, "group": server._account.pw_gid, "extra_groups": []}
    # The login itself, by a process forked from this one: `nobody` may not be able to read Python's files.
    ready = os.fork()
    if ready == 0:
        os.setgroups([])
        os.setgid(nobody["group"])
        os.setuid(nobody["user"])
        try:
            exec(login)
        except psycopg.OperationalError as error:
            os._exit(7 if "peer authentication failed" in str(error).lower() else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(ready, 0)[1]) == 7


# -- the external server -----------------------------------------------------------------------------------------------


def schemas_on(server):
    return {
        name for (name,) in ask(server.url, "select nspname from pg_namespace where nspname !~ '^(pg_|information)'")
    }


def test_leaves_nothing_on_the_external_server(server, monkeypatch):
    before = schemas_on(server)
    monkeypatch.setenv("COURSE_DATABASE_URL", address(server))
    with Database() as one:
        assert not one.embedded
        ask(one.url, "create table note (id int)")
        ask(one.schema("billing"), "create table note (id int)")
        made = schemas_on(server) - before
        assert len(made) == 2 and all(re.fullmatch(r"course_[0-9a-f]{12}(_billing)?", name) for name in made)
        with Database() as again:  # a cell run again
            assert len(schemas_on(server) - before) == 1 and again.alive() and not one.alive()
    assert schemas_on(server) == before


def test_sweeps_what_killed_runs_left_and_nothing_else(server, external, monkeypatch):
    mine = address(server).replace("postgresql:", "postgresql+psycopg:")
    old, young = f"{int(time.time()) - schemas.OLD - 60:08x}", f"{int(time.time()) - 60:08x}"
    marked = {f"course_{old}aaaa", f"course_{old}aaaa_billing", f"course_{old}bbbb_used", f"course_{young}cccc"}
    unmarked = {f"course_{old}dddd", "course_materials", "finance"}
    for name in marked | unmarked:
        ask(mine, f"create schema {name}")
    for name in marked | {"course_materials"}:
        ask(mine, f"comment on schema {name} is '{schemas.MARK}'")
    with engine(f"{mine}&application_name=course_{old}bbbb_used").connect() as used:
        used.execute(text("select 1"))
        Database().stop()
        left = schemas_on(server)
    assert not {f"course_{old}aaaa", f"course_{old}aaaa_billing"} & left
    assert (marked | unmarked) - left == {f"course_{old}aaaa", f"course_{old}aaaa_billing"}
    for name in (marked | unmarked) & left:
        ask(mine, f"drop schema {name}")


def test_clean_and_a_stopped_run_drop_what_is_theirs(server, monkeypatch, tmp_path):
    mine = address(server).replace("postgresql:", "postgresql+psycopg:")
    old, other = f"course_{int(time.time()) - schemas.OLD - 60:08x}aaaa", f"course_{int(time.time()):08x}bbbb"
    before = schemas_on(server)
    for name in (old, f"{other}_billing"):
        ask(mine, f"create schema {name}")
        ask(mine, f"comment on schema {name} is '{schemas.MARK}'")
    monkeypatch.setenv("COURSE_DATABASE_URL", address(server))
    (tmp_path / external_database.LEFT).write_text(f"{other}\n")
    assert leftovers.of_run(tmp_path) == [] and schemas_on(server) == before | {old}
    for answer, left in (("n\n", before | {old}), ("y\n", before)):
        said = CliRunner().invoke(cli.commands, ["clean", "--database"], input=answer).output
        assert f"{old}\nDelete these 1 from the database?" in said and schemas_on(server) == left


@pytest.mark.parametrize(
    "change, message",
    [
        (("se%40cret", "wrong"), r'\(.*database course\).* password authentication failed for user "ann"; check'),
        (("host=", "host=/nowhere"), "No such file or directory; check the address"),
        (("@/", "@127.0.0.1:1/"), "Connection refused"),
        (("@/", "@nowhere.invalid/"), "nowhere.invalid"),
        (("/course", "/other"), 'database "other" does not exist'),
        (("ann", "bob"), r"permission denied for database course.*GRANT CREATE"),
        (("postgresql:", "mysql:"), "is for mysql, but the course needs PostgreSQL"),
        (("postgresql://ann:se%40cret@", "ann:se@cret"), "is not a URL"),
        (("@/", "@127.0.0.1:port/"), "is not a URL"),
    ],
)
def test_an_external_address_that_does_not_work(server, monkeypatch, change, message):
    url = address(server).replace(*change)
    if "@/" not in url:  # by TCP
        url = url.split("?")[0]
    monkeypatch.setenv("COURSE_DATABASE_URL", url)
    with pytest.raises(LabError, match=message) as caught:
        Database()
    assert "\n" not in str(caught.value)
    assert "cret" not in "".join(traceback.format_exception(caught.value))


def test_the_external_server_dies_during_the_lesson(server, external):
    server.kill()
    with pytest.raises(LabError, match="COURSE_DATABASE_URL .* could not be used"):
        external.schema("billing")
    with pytest.warns(UserWarning, match="course_[0-9a-f]{12} and what begins so, were not all dropped"):
        external.stop()
    server.restart()


def test_an_empty_variable_means_none(monkeypatch):
    monkeypatch.setenv("COURSE_DATABASE_URL", "")
    with Database() as one:
        assert one.embedded


def test_the_template_is_in_the_cache():
    embedded.prepare()
    assert embedded._template().parent == cache.cache_folder()
