"""Every use that the course makes of kafka-python's internals, in this one file.

kafka-python's admin client has no public way to ask one particular broker, to read record batches as a broker keeps
them, or to set quotas; and a client that an interrupt has left half-way cannot be closed from outside. So this file
reaches below the public API. Checked against kafka-python 3.0.12: whoever takes over another version runs `tests/lab`
and looks at each function here.
"""

import contextlib
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka import errors as kafka_errors
from kafka.admin import OffsetSpec
from kafka.consumer.fetcher import ConsumerRecord
from kafka.protocol.admin import AlterClientQuotasRequest
from kafka.protocol.broker_version_data import BROKER_API_VERSIONS
from kafka.protocol.consumer import FetchRequest, ListOffsetsRequest
from kafka.protocol.metadata import MetadataRequest
from kafka.record import MemoryRecords

__all__ = [
    "CHECKED_WITH", "GROUP", "TRANSACTION", "AlterClientQuotasRequest", "ConsumerRecord", "MemoryRecords", "abandon",
    "connect_within", "fetch", "find_coordinators", "has_open_transaction", "known_brokers", "newest_known",
    "partitions_led_by", "partitions_of_internal", "send", "topic_metadata",
]  # fmt: skip

CHECKED_WITH = "3.0.12"  # the version of kafka-python that these uses were tried with
GROUP, TRANSACTION = 0, 1  # the kinds of coordinators (FindCoordinatorRequest)


def newest_known(version: str) -> tuple[int, ...]:
    """Return what to name as `api_version` for a broker of this version ("4.4.0").

    Of a version that it does not know kafka-python warns; then it takes the newest that it knows, and so do we.
    """
    return min(tuple(map(int, version.split(".")[:2])), max(BROKER_API_VERSIONS))


def send(admin: KafkaAdminClient, request, node: int | None = None, timeout_ms: int | None = None):
    """Send one request of Kafka's protocol to one broker, and return the answer.

    The admin client's own calls go to whichever broker it likes; 'all brokers know' has to be asked of each.

    Args:
        admin: the client whose connections are used.
        request: a request of `kafka.protocol`.
        node: the broker's id; any broker without it.
        timeout_ms: milliseconds until the answer; the client's `request_timeout_ms` without it.

    Raises:
        KafkaError: the broker cannot be reached, or did not answer in time.
    """
    options = {} if timeout_ms is None else {"request_timeout_ms": timeout_ms}

    async def sent():
        return await admin._manager.send(request, node_id=node, **options)

    return admin._manager.run(sent)


def partitions_of_internal(producer: KafkaProducer, topic: str) -> int:
    """Return how many partitions one of Kafka's own topics has, and have the producer take records for it, which it
    otherwise takes for unknown."""
    count = len(producer.partitions_for(topic))
    producer._metadata.internal_topics = set()
    return count


def topic_metadata(admin: KafkaAdminClient, topics: list[str] | None, node: int | None = None):
    """Return the metadata of topics (None: all, []: none) as one broker has it; no topic is made by asking."""
    wanted = None if topics is None else [MetadataRequest.MetadataRequestTopic(name=name) for name in topics]
    request = MetadataRequest(topics=wanted, allow_auto_topic_creation=False)
    return send(admin, request, node, timeout_ms=2000)


def partitions_led_by(admin: KafkaAdminClient, topic: str, leader: int, partitions: list[int]) -> None:
    """Ask a broker for the end offsets of partitions that it leads; returns when it told them.

    Raises:
        KafkaError: the broker does not lead one of them (yet).
    """
    wanted = ListOffsetsRequest.ListOffsetsTopic
    latest = [wanted.ListOffsetsPartition(number, timestamp=OffsetSpec.LATEST) for number in partitions]
    request = ListOffsetsRequest(topics=[wanted(name=topic, partitions=latest)], isolation_level=0)
    (found,) = send(admin, request, leader, timeout_ms=2000).topics
    for answer in found.partitions:
        if answer.error_code:
            raise kafka_errors.for_code(answer.error_code)(f"{topic}-{answer.partition_index}")


def find_coordinators(admin: KafkaAdminClient, keys: list[str], kind: int) -> None:
    """Ask for the coordinators of groups (GROUP) or transactional ids (TRANSACTION).

    The first question of its kind makes the internal topic.

    Raises:
        KafkaError: there is no coordinator (yet), or the user lacks rights.
    """
    admin._manager.run(admin._find_coordinator_ids, keys, kind)


def known_brokers(admin: KafkaAdminClient) -> int:
    """Return how many brokers the client was told of."""
    return len(admin._manager.cluster.brokers())


def connect_within(admin: KafkaAdminClient, milliseconds: int) -> None:
    """Let the client give up on a broker that does not take its connection in time (stock 10 s, and no setting)."""
    admin._manager.config["socket_connection_setup_timeout_ms"] = milliseconds


def fetch(admin: KafkaAdminClient, topic: str, partition: int, leader: int, offset: int) -> Any:
    """Return one fetch answer of a partition's leader, uncommitted records and transaction markers with it.

    Protocol version 12 at most: it still names the topic. In the answer, `records` are the bytes of record batches for
    `MemoryRecords`.

    Raises:
        KafkaError: the broker does not lead the partition, or does not answer.
    """
    wanted = FetchRequest.FetchTopic.FetchPartition(
        partition=partition, current_leader_epoch=-1, fetch_offset=offset, last_fetched_epoch=-1, log_start_offset=-1,
        partition_max_bytes=2**24,
    )  # fmt: skip
    request = FetchRequest(
        max_wait_ms=500, min_bytes=0, max_bytes=2**26, isolation_level=0, session_id=0, session_epoch=-1,
        topics=[FetchRequest.FetchTopic(topic=topic, partitions=[wanted])], forgotten_topics_data=[], rack_id="",
        min_version=4, max_version=12,
    )  # fmt: skip
    answer = send(admin, request, leader).responses[0].partitions[0]
    if answer.error_code:
        raise kafka_errors.for_code(answer.error_code)(f"partition {partition}")
    return answer


def has_open_transaction(producer: KafkaProducer) -> bool:
    """Return whether a transactional producer's transaction is neither committed nor aborted."""
    state = producer._transaction_manager
    return state.is_completing() or state.has_error()


def abandon(client) -> None:
    """End the threads that a client of kafka-python keeps where records cannot be delivered, or no broker is found."""
    with contextlib.suppress(Exception):
        client._sender.force_close()
    with contextlib.suppress(Exception):
        client._net.stop(timeout_ms=1000)
