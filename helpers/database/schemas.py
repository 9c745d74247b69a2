"""Schemas: how the course makes them anew, knows them as its own, and drops them."""

import contextlib
import re
import time

from helpers.errors import LabError

OLD = 12 * 3600  # seconds after which the schemas of a killed run are dropped
MARK = "made by the Kafka course, dropped when it is old"  # the comment by which they are known as the course's own


def options(schema: str) -> str:
    """Session settings that make embedded and external servers answer alike (libpq's `options`)."""
    return f"-csearch_path={schema} -ctimezone=UTC"


def make_anew(session, schema: str) -> None:
    """Drop a schema if it exists and make it, empty."""
    drop(session, schema)
    session.execute(f'create schema "{schema}"')
    session.execute(f"comment on schema \"{schema}\" is '{MARK}'")


def drop(session, schema: str, timeout: float = 10) -> None:
    """Drop a schema with all it holds, and end the sessions that are in its way; only those of our own role."""
    import psycopg.errors

    in_the_way = """
        select pg_terminate_backend(a.pid) from pg_stat_activity a
        where a.pid <> pg_backend_pid() and a.usename = current_user and a.datname = current_database() and (
            a.application_name = %(schema)s or a.pid in (
                select l.pid from pg_locks l join pg_class c on c.oid = l.relation
                where c.relnamespace = to_regnamespace(%(schema)s)
            )
        )"""
    deadline = time.monotonic() + timeout
    session.execute("set lock_timeout = '200ms'; set client_min_messages = 'warning'")
    while True:
        session.execute(in_the_way, {"schema": schema})
        try:
            session.execute(f'drop schema if exists "{schema}" cascade')
            return
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if time.monotonic() > deadline:
                raise LabError(
                    f"Schema {schema} could not be made anew: a session of another user holds locks in it: end it."
                ) from None


def made_by_course(session, prefix: str) -> list[str]:
    """The schemas that begin with `prefix`, carry the course's mark, and belong to our own role."""
    found = session.execute(
        """select nspname from pg_namespace where starts_with(nspname, %s)
           and obj_description(oid, 'pg_namespace') = %s and pg_get_userbyid(nspowner) = current_user""",
        [prefix, MARK],
    )
    return [name for (name,) in found]


def left(session, seconds: float = OLD) -> list[str]:
    """The schemas of killed runs: made so long ago, and used by nobody."""
    used, now = session.execute(
        "select coalesce(array_agg(application_name), '{}'), extract(epoch from now()) from pg_stat_activity"
    ).fetchone()
    found = []
    for schema in made_by_course(session, "course_"):
        made = re.match(r"course_([0-9a-f]{8})[0-9a-f]{4}(_|$)", schema)
        if made and now - int(made[1], 16) >= seconds and not any(name.startswith(made[0]) for name in used):
            found.append(schema)
    return found


def remove(session, names: list[str]) -> None:
    """Drop schemas; one that another session holds stays."""
    import psycopg

    for schema in names:
        with contextlib.suppress(psycopg.Error, LabError):  # another kernel is sweeping too
            drop(session, schema, timeout=0)
