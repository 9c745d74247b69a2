"""What a test run prepares, and how many processes it takes."""

import os
import sys
from pathlib import Path

import pytest

QUICK = Path(__file__).parent / "tests" / "quick"  # needs neither broker nor database
MOST_PROCESSES = 4  # each may run three brokers


def pytest_configure() -> None:
    """Refuse to run where asserts mean nothing: every test would pass."""
    if sys.flags.optimize:
        raise pytest.UsageError("The tests need Python's asserts: unset PYTHONOPTIMIZE, and start Python without -O.")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes `-n auto` means: none for one file, which would be the work of one process anyway."""
    files = {argument.split("::")[0] for argument in config.args}
    if len(files) == 1 and Path(files.pop()).is_file():
        return 0
    return min((os.cpu_count() or 1) + 1, MOST_PROCESSES)  # one more than cores: lessons often wait for a broker


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fill the cache before a test that needs a broker: a progress bar in a cell is an output that nobody expects."""
    if session.config.option.collectonly or all(QUICK in item.path.parents for item in session.items):
        return
    import helpers.pictures  # noqa: F401 (matplotlib makes its cache of fonts at the first import, and says so)
    from helpers import settings
    from helpers.kafka import download, embedded

    download.prepare_jars("streams_jars.txt")  # Kafka's own clients run in the notebook, whosever the cluster is
    if not settings.bootstrap_servers():
        embedded.prepare_cache()
