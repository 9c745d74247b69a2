"""Real Kafka: `Cluster` and its two kinds, brokers, the cache that they start from, reading with an end."""

from helpers.kafka import embedded, external  # noqa: F401 (each kind of cluster makes itself known)
