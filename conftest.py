"""Fill the cache before the first notebook runs: a progress bar in a cell would be an output that nobody expects."""

import os


def pytest_sessionstart(session):
    """Fetch Kafka and Kafka Streams, and make the AOT cache, before any test; with xdist in the main process only."""
    if hasattr(session.config, "workerinput"):
        return
    import helpers.pictures  # noqa: F401 (matplotlib makes its cache of fonts at the first import, and says so)
    from helpers import cluster, fetch

    fetch.prepare_jars("streams_jars.txt")  # Kafka's own clients run in the notebook, whosever the cluster is
    if not os.environ.get("COURSE_BOOTSTRAP_SERVERS"):
        cluster.prepare_cache()
