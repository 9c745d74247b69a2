"""The lessons that use a database, on a PostgreSQL server from Debian's packages instead of the wheel's. It is long."""

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from helpers.processes.run_folder import Processes
from helpers.waiting import wait_until
from tests.lab.test_lessons_elsewhere import strictly
from tools.lessons import LESSONS, code_cells, read

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not PROGRAMS, reason="Debian's package `postgresql` is not installed"),
]


def uses_a_database(path) -> bool:
    return any("Database(" in cell.source for cell in code_cells(read(path)))


@pytest.fixture(scope="module")
def url():
    """The address of a server from Debian, as it is after `initdb` but for where it listens; gone at the end."""
    account = None if os.geteuid() else pwd.getpwnam("postgres")
    folder = Path(tempfile.mkdtemp(prefix="debian-postgres-", dir="/tmp"))
    processes = Processes()
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        password = secrets.token_urlsafe(12)
        (folder / "password").write_text(password)
        if account:
            for each in (folder, folder / "password"):
                os.chown(each, account.pw_uid, account.pw_gid)
        data = folder / "data"
        login = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        initdb = [PROGRAMS / "initdb", "-D", data, "-U", "course", "-A", "scram-sha-256", "--pwfile"]
        subprocess.run([*initdb, folder / "password"], check=True, capture_output=True, cwd=folder, **login)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n")
        server = processes.start(
            [PROGRAMS / "postgres", "-D", data],
            folder / "log",
            env=dict(os.environ),
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            ending=signal.SIGINT,  # disconnects all, writes everything, and ends
        )
        where = f"postgresql://course:{password}@127.0.0.1:{port}/postgres"

        def answers():
            assert processes.exit_status(server) is None, (folder / "log").read_text()
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(where):
                return True

        wait_until(answers, "Debian's PostgreSQL to answer", timeout=60)
        yield where
    finally:
        processes.close()
        shutil.rmtree(folder)


@pytest.mark.parametrize("path", [*filter(uses_a_database, LESSONS)], ids=lambda path: path.stem)
def test_lesson_passes_strictly_on_debians_postgresql(path, url, tmp_path):
    said = strictly(path, tmp_path, {"COURSE_DATABASE_URL": url})
    assert re.search(r"^\d+ passed", said, re.M), said
    with psycopg.connect(url) as connection:
        left = connection.execute("select nspname from pg_namespace where nspname like 'course%'").fetchall()
    assert not left
