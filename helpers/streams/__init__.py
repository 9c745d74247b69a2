"""Kafka Streams, and Kafka's own Java clients, from Python."""

from helpers.streams.conversions import TOMBSTONE, json_serde
from helpers.streams.jvm import java_config, start_java
from helpers.streams.topology import Streams, application_id

__all__ = ["TOMBSTONE", "Streams", "application_id", "java_config", "json_serde", "start_java"]
