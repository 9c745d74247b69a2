"""The course's small package: a real Kafka to break, pictures of what is on its log, and questions that the log judges."""

from helpers.cluster import Cluster
from helpers.errors import LabError

__all__ = ["Cluster", "LabError"]
