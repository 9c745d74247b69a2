"""What several test files share: a cluster, and a database, for a file; none of the user's own settings; and an end
without processes left behind."""

import contextlib
import os

import psutil
import pytest


def pytest_sessionfinish(session):
    """End what tests that failed or were interrupted have started; a kernel left alone may spin on a core for ever."""
    if getattr(session.config.option, "dist", "no") != "no" and not hasattr(session.config, "workerinput"):
        return  # the children of this process are the ones that run the tests
    for process in psutil.Process().children(recursive=True):
        if "supervisor.py" not in _line(process):  # these end by themselves, after what they have to end
            with contextlib.suppress(psutil.Error):
                process.kill()


def _line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture(scope="package", autouse=True)
def no_settings_of_the_users():
    """Only where Kafka's jars lie and come from; the lessons, which are tests too, go by all of them."""
    kept = ("COURSE_CACHE_DIR", "COURSE_MAVEN_MIRROR")
    with pytest.MonkeyPatch.context() as changed:
        for name in list(os.environ):
            if name.startswith("COURSE_") and name not in kept:
                changed.delenv(name)
        yield


@pytest.fixture(scope="module")
def cluster():
    """The cluster as a lesson has it."""
    from helpers import Cluster

    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def database():
    """The database as a lesson has it."""
    from helpers import Database

    with Database() as database:
        yield database
