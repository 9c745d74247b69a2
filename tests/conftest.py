"""What several test files share: a cluster, and a database, for a file."""

import pytest


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
