"""Filling the cache folder: jars fetched once and checked, and the AOT cache that makes Java start fast with them.

`prepare()` is called before the first broker of a process starts; on a warm cache it only checks.
"""

import contextlib
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pooch
import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from helpers import settings
from helpers.errors import LabError, refused
from helpers.kafka.cache import Jar, aot_cache, cache_folder, is_ready, jar_list, jars_folder, missing, storage_template

log = logging.getLogger(__name__)


def prepare(train) -> None:
    """Make the cache ready for brokers: jars, formatted storage, AOT cache; with a progress bar.

    Args:
        train: called without arguments when the AOT cache or the storage template is missing; makes both (see
        `embedded.train`).

    Raises:
        LabError: no network, a wrong hash, a full disk, a folder that cannot be written.
    """
    if is_ready():
        return
    with _filling():
        if is_ready():  # another process filled it meanwhile
            return
        lacking = missing(jar_list("kafka_jars.txt"))
        with _bar("Getting Apache Kafka ready (once)", lacking) as bar:
            _fetch(lacking, bar)
            if not (aot_cache().exists() and storage_template().exists()):
                log.debug("making the storage template and Java's AOT cache")
                with _counting_seconds(bar, "Making Java's AOT cache (once, some 15 s)"):
                    train()


def prepare_jars(name: str) -> list[Path]:
    """Fetch the jars of a list that the cache lacks, with a progress bar; returns the paths of all of them.

    Raises:
        LabError: as for `prepare`.
    """
    wanted = jar_list(name)
    if missing(wanted):
        with _filling():
            lacking = missing(wanted)
            with _bar("Fetching jars (once)", lacking) as bar:
                _fetch(lacking, bar)
    return [jars_folder() / jar.path for jar in wanted]


def mirror() -> str:
    """The Maven repository that jars come from: COURSE_MAVEN_MIRROR, or Maven Central as jgo, a Maven client, knows
    it."""
    from jgo.constants import MAVEN_CENTRAL_URL

    return (settings.value("COURSE_MAVEN_MIRROR") or MAVEN_CENTRAL_URL).rstrip("/") + "/"


def _fetch(jars: list[Jar], bar: tqdm) -> None:
    """Fetch jars, four at a time; pooch checks each hash before the file gets its name."""
    pooch.get_logger().setLevel("ERROR")
    fetcher = pooch.create(
        path=jars_folder(),
        base_url=mirror(),
        registry={jar.path: f"sha256:{jar.sha256}" for jar in jars},
        retry_if_failed=1,
    )

    def download(url: str, target: str, _pooch) -> None:
        """As pooch's own would, with one bar for all files."""
        with requests.get(url, stream=True, timeout=30) as answer, open(target, "wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_content(65536):
                bar.update(file.write(chunk))

    def fetch_one(jar: Jar) -> None:
        log.debug("fetching %s, %d bytes", jar.path, jar.size)
        # What is there under this name is damaged, else it would not be fetched.
        (jars_folder() / jar.path).unlink(missing_ok=True)
        fetcher.fetch(jar.path, downloader=download)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(fetch_one, jar) for jar in jars]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _bar(description: str, jars: list[Jar]):
    """Give a progress bar for the bytes of these jars; where there is no terminal, say what is done in one line.

    In a notebook it goes away at the end, so that the cell stores the same output as without it.
    """
    in_notebook = "ipykernel" in sys.modules
    shown = in_notebook or sys.stderr.isatty()
    total = sum(jar.size for jar in jars)
    if not shown:
        what = f": {total / 1e6:.0f} MB to fetch" if total else ""
        print(f"{description}{what} …", file=sys.stderr)
    bar = tqdm(
        total=total,
        desc=description,
        unit="B",
        unit_scale=True,
        leave=False,
        file=sys.stdout if in_notebook else sys.stderr,  # JupyterLab shows stderr in red
        mininterval=0.2,
        disable=not shown,
    )
    try:
        with bar:
            yield bar
    finally:
        if in_notebook:
            from IPython.display import clear_output

            clear_output()


@contextlib.contextmanager
def _counting_seconds(bar: tqdm, description: str):
    """Let the bar say what is being done and for how long, where nothing tells how much of it is done."""
    bar.set_description_str(description, refresh=False)
    bar.bar_format, bar.start_t = "{desc} … {elapsed}", time.time()
    done = threading.Event()

    def tick():
        while not done.wait(1):
            bar.refresh()

    bar.refresh()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(tick)
        try:
            yield
        finally:
            done.set()


@contextlib.contextmanager
def _filling():
    """One process at a time fills the cache; the others wait and find it full.

    What can go wrong meanwhile becomes one sentence each; a file that is half there never gets its name.
    """
    with refused(f"The cache folder {cache_folder()} cannot be filled", variable="COURSE_CACHE_DIR", room="200 MB"):
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            with FileLock(cache_folder() / "lock", timeout=300):
                yield
        except requests.RequestException as error:
            raise LabError(
                f"Kafka's jars could not be fetched from {mirror()} ({_reason(error)}): check the network, set "
                "HTTPS_PROXY and REQUESTS_CA_BUNDLE where your network needs them, or COURSE_MAVEN_MIRROR to a mirror; "
                "then try again."
            ) from error
        except ValueError as error:
            if "hash" not in str(error):
                raise
            name = str(error).split("(")[1].split(")")[0] if "(" in str(error) else "a jar"
            raise LabError(
                f"What came from {mirror()} as {name} is not the file that this course was tested with (its sha256 "
                "differs), so it was not kept: try again, or check the mirror."
            ) from error
        except Timeout as error:
            raise LabError(
                f"Another process has been filling {cache_folder()} for five minutes: let it end or stop it, then try "
                "again."
            ) from error


def _reason(error: BaseException) -> str:
    """The innermost reason of an error of requests, in a few words."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return f"{type(error).__name__}: {str(error)[:120]}"
