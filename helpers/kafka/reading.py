"""Reading with an end: `take` a number of records, `read_topic` up to where a topic ends now, and `frame` for
pandas."""

import time

from kafka import KafkaConsumer, TopicPartition

from helpers.kafka.cluster import PASSING, Cluster
from helpers.waiting import wait_until


def take(consumer: KafkaConsumer, n: int, timeout: float = 10) -> list:
    """Read exactly `n` records with a consumer, no more, so that its position stands right behind them.

    Args:
        consumer: a subscribed or assigned KafkaConsumer.
        n: how many records.
        timeout: seconds until the deadline.

    Returns:
        `n` ConsumerRecords in the order in which the consumer gave them.

    Raises:
        TimeoutError: fewer came; the message names them, and the error's `records` holds them.
    """
    records = []
    deadline = time.monotonic() + timeout
    while len(records) < n:
        left = deadline - time.monotonic()
        if left <= 0:
            came = ", ".join(f"{r.topic}-{r.partition}@{r.offset}" for r in records) or "none"
            error = TimeoutError(f"Waited {timeout:g} s for {n} records; {len(records)} came: {came}.")
            error.records = records  # type: ignore[attr-defined]
            raise error
        # One long poll, not many short ones: kafka-python 3.0.12 joins a group twice, and a poll that ends in between
        # can lose the assignment for good.
        for batch in consumer.poll(timeout_ms=left * 1000, max_records=n - len(records)).values():
            records += batch
    return records


def read_topic(
    cluster: Cluster | dict, topic: str, isolation_level: str = "read_committed", timeout: float = 30, **deserializers
) -> list:
    """All records of a topic, from its beginning up to the end offsets as they are at the call.

    With no group: it moves nobody's offsets.

    Args:
        cluster: a `Cluster`, or the dict of its `connection`.
        topic: the topic's real name.
        isolation_level: "read_committed" (without records of aborted and open transactions) or "read_uncommitted"
            (all; the default of Kafka's own consumers).
        timeout: seconds until the deadline.
        **deserializers: `key_deserializer`, `value_deserializer` as KafkaConsumer takes them; without them bytes.

    Returns:
        ConsumerRecords sorted by partition and offset.

    Raises:
        TimeoutError: the end was not reached; the message names how far it came.
    """
    connection = cluster if isinstance(cluster, dict) else cluster.connection
    deadline = time.monotonic() + timeout

    def connected():
        return KafkaConsumer(
            # Without a version, kafka-python 3.0.12 connects once to find one, and then waits for `retry_backoff_ms`
            # (100) before it asks about the topic. Either way it agrees on the versions with each broker that it
            # connects to.
            **{"api_version": (4, 0)} | connection,
            isolation_level=isolation_level,
            auto_offset_reset="earliest",  # where retention deletes what was the beginning a moment ago
            enable_auto_commit=False,
            fetch_max_wait_ms=50,
            **deserializers,
        )

    with wait_until(connected, "a broker to answer", timeout, retry=PASSING) as consumer:

        def known():
            return [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]

        try:  # not every broker may have heard of it yet
            partitions = wait_until(known, f"topic {topic}", min(timeout, 3), pause=0.1, retry=PASSING)
        except TimeoutError:
            raise ValueError(f"There is no topic {topic!r} on this cluster.") from None
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        # Under read_committed the end is the last stable offset; a position also moves over markers and aborted
        # records.
        ends = consumer.end_offsets(partitions, timeout_ms=max(1, (deadline - time.monotonic()) * 1000))
        records = []
        while any(consumer.position(tp) < end for tp, end in ends.items()):
            if time.monotonic() > deadline:
                positions = {f"{topic}-{tp.partition}": f"{consumer.position(tp)} of {end}" for tp, end in ends.items()}
                raise TimeoutError(f"Waited {timeout:g} s for the end of {topic}; it came to {positions}.")
            for tp, batch in consumer.poll(timeout_ms=200).items():
                records += [record for record in batch if record.offset < ends[tp]]
    return sorted(records, key=lambda record: (record.partition, record.offset))


def frame(records: list):
    """Records as a pandas DataFrame, a row each: partition, offset, key, value, timestamp (UTC), headers (dict).

    Keys and values that are bytes of UTF-8 become text; other bytes stay as they are.
    """
    import pandas as pd  # here, so that a worker process does not load it

    rows = [
        {
            "partition": record.partition,
            "offset": record.offset,
            "key": _text(record.key),
            "value": _text(record.value),
            "timestamp": pd.Timestamp(record.timestamp, unit="ms", tz="UTC"),
            "headers": {key: _text(value) for key, value in record.headers or ()},
        }
        for record in records
    ]
    return pd.DataFrame(rows, columns=["partition", "offset", "key", "value", "timestamp", "headers"])


def _text(value):
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
