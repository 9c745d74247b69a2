"""The course's small package: a real Kafka to break, pictures of what is on its log, and questions that the log judges."""

from helpers.cluster import Cluster
from helpers.database import Database
from helpers.errors import LabError
from helpers.reading import frame, read_topic, take
from helpers.waiting import wait_until
from helpers.workers import Worker, point

__all__ = ["Cluster", "Database", "LabError", "Worker", "frame", "point", "read_topic", "take", "wait_until"]
