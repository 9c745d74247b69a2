"""`ExternalDatabase`: the PostgreSQL of COURSE_DATABASE_URL, with all that a run makes in schemas of its own."""

import atexit
import contextlib
import os
import secrets
import time
import warnings

from helpers import settings
from helpers.database import schemas
from helpers.database.database import Database, _running
from helpers.errors import LabError
from helpers.settings import note

LEFT = "database.made"  # in the folder of COURSE_KEEP_LOGS: the schemas of this run
STOP = 3  # seconds for reaching the server at the end, and again for dropping; Jupyter kills a kernel that takes long


class ExternalDatabase(Database, kind="external"):
    """The server of COURSE_DATABASE_URL, which must not be harmed. Made by `Database`.

    Everything is in schemas named `course_` + 8 hex digits of time + 4 random ones, owned by the role of the URL.
    """

    embedded = False

    def __init__(self, embedded: bool = False):
        self._begin(embedded)
        self._owner = os.getpid()
        try:
            self._server = _parse(settings.value("COURSE_DATABASE_URL"))
            with self._session() as session:
                (now,) = session.execute("select extract(epoch from now())::bigint").fetchone()
                self._default_schema = f"course_{now:08x}{secrets.token_hex(2)}"
                self._prefix = f"{self._default_schema}_"
                note(LEFT, self._default_schema)
                schemas.remove(session, schemas.left(session))
                schemas.make_anew(session, self._default_schema)
        except BaseException:
            self._end()
            raise
        atexit.register(self.stop)

    @classmethod
    @contextlib.contextmanager
    def visit(cls):
        """Give a session on the server, for `schemas`, that makes nothing there itself."""
        visitor = cls.__new__(cls)
        visitor._server = _parse(settings.value("COURSE_DATABASE_URL"))
        with visitor._session() as session:
            yield session

    def _url_of(self, schema: str) -> str:
        options = f"{self._server.query.get('options', '')} {schemas.options(schema)}".strip()
        url = self._server.update_query_dict({"options": options, "application_name": schema})
        return url.render_as_string(hide_password=False)

    def _connect(self, timeout: int = 10):
        import psycopg
        from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

        _, arguments = PGDialect_psycopg().create_connect_args(self._server)
        return psycopg.connect(**{"connect_timeout": timeout} | arguments, autocommit=True)

    def _unreachable(self, reason: str) -> LabError:
        server = self._server
        where = f"{server.host or server.query.get('host')}, database {server.database or server.username}"
        return LabError(
            f"The database of COURSE_DATABASE_URL ({where}) could not be used: {reason}; "
            "check the address, user and password, or unset the variable to use a database of your own."
        )

    def alive(self) -> bool:
        """False once the database is stopped."""
        return _running.get(self._key) is self

    def stop(self) -> None:
        """Drop the schemas that this run made; what cannot be dropped now is named, and dropped by a later run."""
        if os.getpid() != self._owner:  # a fork of the owner must not drop the owner's schemas
            return
        atexit.unregister(self.stop)
        if self.alive():
            self._end()
            try:
                with self._session(timeout=STOP) as session:
                    deadline = time.monotonic() + STOP
                    for schema in schemas.made_by_course(session, self._default_schema):
                        schemas.drop(session, schema, deadline - time.monotonic())
            except LabError as error:
                warnings.warn(
                    f"The schemas that this run made, {self._default_schema} and what begins so, were not all dropped: "
                    f"{error} A `Database()` in {schemas.OLD // 3600} hours or later drops them.",
                    stacklevel=2,
                )

    def kill(self) -> None:  # noqa: D102 (as in Database)
        self._refuse("killed")

    def restart(self) -> None:  # noqa: D102
        self._refuse("restarted")

    def _refuse(self, harm: str) -> None:
        raise LabError(
            f"The external database of COURSE_DATABASE_URL cannot be {harm} from here: use Database(embedded=True), "
            "which starts one on this machine."
        )


def _parse(text: str):
    """COURSE_DATABASE_URL as an SQLAlchemy URL for psycopg; errors never quote it, it may hold a password."""
    from sqlalchemy.engine import make_url

    try:
        url = make_url(text)
    except Exception:
        raise LabError(
            "COURSE_DATABASE_URL is not a URL: write it as postgresql://user:password@host:5432/database, with the "
            "password's special characters percent-encoded."
        ) from None
    if url.drivername.split("+")[0] not in ("postgresql", "postgres"):
        raise LabError(f"COURSE_DATABASE_URL is for {url.drivername}, but the course needs PostgreSQL: postgresql://…")
    return url.set(drivername="postgresql+psycopg")
