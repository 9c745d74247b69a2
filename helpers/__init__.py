"""The course's small package: a real Kafka to break, pictures of its log, and questions that the log judges."""

import sys

if sys.platform == "win32":
    raise ImportError("The lab needs Linux or macOS: on Windows use it in WSL 2 or in Docker, as the README says.")

if sys.flags.optimize:
    # kafka-python's asserts do work, and the lessons' asserts are their checks.
    WITHOUT = "The course needs Python's asserts: unset PYTHONOPTIMIZE, and start Python without -O."
    raise SystemExit(WITHOUT) if sys.argv[:1] == ["-m"] else ImportError(WITHOUT)

from helpers.database.database import Database  # noqa: E402
from helpers.errors import LabError  # noqa: E402
from helpers.kafka.cluster import Cluster  # noqa: E402 (the modules themselves do not load on Windows)
from helpers.kafka.reading import frame, read_topic, take  # noqa: E402
from helpers.processes.workers import Worker, point  # noqa: E402
from helpers.waiting import wait_until  # noqa: E402

__all__ = ["Cluster", "Database", "LabError", "Worker", "frame", "point", "read_topic", "take", "wait_until"]
