"""Fill the cache before the first notebook runs: a progress bar in a cell would be an output that nobody expects."""

import os


def pytest_sessionstart(session):
    """Fetch Kafka and make its AOT cache, once, before any test; with xdist in the main process only."""
    if not hasattr(session.config, "workerinput") and not os.environ.get("COURSE_BOOTSTRAP_SERVERS"):
        from helpers.cluster import prepare_cache

        prepare_cache()
        import helpers.pictures  # noqa: F401 (matplotlib makes its cache of fonts at the first import, and says so)
