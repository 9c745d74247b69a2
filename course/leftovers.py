"""What runs of the course left on a cluster and in a database of somebody else's, because their kernels were killed."""

from collections.abc import Callable
from pathlib import Path

from helpers.database import external as database
from helpers.database import schemas
from helpers.kafka import external


def of_run(folder: Path) -> list[str]:
    """Delete what the kernels of a run made, which are dead by now; returns the names of what could not be deleted.

    Args:
        folder: where COURSE_KEEP_LOGS had them note it.
    """
    made = {name: (folder / name).read_text().split() if (folder / name).exists() else [] for name in NOTES}
    left = []
    for name, (remove, where) in NOTES.items():
        if made[name]:
            try:
                left += [f"{each} {where}" for each in remove(tuple(made[name]))]
            except Exception as error:
                left += [f"{each}… {where} ({error})" for each in made[name]]
        (folder / name).unlink(missing_ok=True)
    return left


def _topics(prefixes: tuple[str, ...]) -> list[str]:
    cluster = external.ExternalCluster(visit=True)
    try:
        return cluster.remove(lambda name: name.startswith(prefixes))
    finally:
        cluster._end()


def _schemas(names: tuple[str, ...]) -> list[str]:
    def there():
        return [schema for name in names for schema in schemas.made_by_course(session, name)]

    with database.ExternalDatabase.visit() as session:
        schemas.remove(session, there())
        return there()


NOTES = {external.LEFT: (_topics, "on the cluster"), database.LEFT: (_schemas, "in the database")}


def on_cluster(hours: float) -> tuple[list[str], Callable[[], list[str]]]:
    """Return the topics and groups of runs that began so long ago, and what deletes them (and says what stays)."""
    cluster = external.ExternalCluster(visit=True)

    def wanted(name: str) -> bool:
        return cluster.is_older(name, hours * 3600)

    return cluster.left(wanted), lambda: cluster.remove(wanted)


def in_database(hours: float) -> tuple[list[str], Callable[[], list[str]]]:
    """The same for the schemas in a database that nobody uses now."""

    def remove() -> list[str]:
        with database.ExternalDatabase.visit() as session:
            schemas.remove(session, schemas.left(session, hours * 3600))
            return schemas.left(session, hours * 3600)

    with database.ExternalDatabase.visit() as session:
        return schemas.left(session, hours * 3600), remove


#: By option of `python -m helpers clean`: the variable that names the place, and the function that looks there.
PLACES = {"cluster": ("COURSE_BOOTSTRAP_SERVERS", on_cluster), "database": ("COURSE_DATABASE_URL", in_database)}
