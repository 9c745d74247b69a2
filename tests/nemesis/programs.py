"""The clients of a run. Each is a program as the lessons teach it, and writes down what it does and what it is told."""

import contextlib
import faulthandler
import re
import time
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from helpers import wait_until
from tests.nemesis.history import Notebook

WORK = 0.1  # seconds that a transaction is open at least: work is not for nothing, and a fault has to have its chance


def send(connection: dict, folder: Path, topic: str, partitions: int, count: int, rate: float) -> None:
    """Send `count` records by one producer, with the defaults: acks=all, and idempotent."""
    notes = Notebook(folder, "sender")
    producer = KafkaProducer(**connection, linger_ms=20, request_timeout_ms=2000)
    futures = []
    begin = time.monotonic()
    for number in range(count):
        place = {"topic": topic, "partition": number % partitions, "value": f"v{number}"}
        notes.note("sending", **place)
        future = producer.send(topic, place["value"].encode(), partition=place["partition"])
        future.add_callback(lambda done, place=place: notes.note("acknowledged", **place, offset=done.offset))
        future.add_errback(lambda error, place=place: notes.note("unknown", **place, error=repr(error)))
        futures.append(future)
        time.sleep(max(0, begin + (number + 1) / rate - time.monotonic()))
    for future in futures:
        with contextlib.suppress(KafkaError):
            future.get(timeout=150)
    producer.close()


def move(connection, folder, source, target, group, transactional_id, role, start) -> None:
    """Consume, produce and commit the offsets in transactions, for ever; ends when its producer is done for.

    `role` says whose work it does, `start` is the number of its process.
    """
    notes = Notebook(folder, f"{role}.{start}")
    producer = KafkaProducer(
        **connection, transactional_id=transactional_id, transaction_timeout_ms=10_000, request_timeout_ms=2000
    )
    producer.init_transactions()
    # Which of two came later is decided by who was initialized later: the coordinator's epoch says so, while a process
    # that was started earlier may be initialized later.
    incarnation = producer._transaction_manager.producer_id_and_epoch.epoch
    me = {"role": role, "incarnation": incarnation}
    notes.note("started", **me)
    consumer = KafkaConsumer(
        source, **connection, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False,
        isolation_level="read_committed", session_timeout_ms=1500, heartbeat_interval_ms=300,
        max_poll_interval_ms=15_000, request_timeout_ms=4000,
    )  # fmt: skip
    number = 0
    while True:
        records = [r for batch in consumer.poll(timeout_ms=1000, max_records=100).values() for r in batch]
        # Now, with the records: when the group has expelled this member, kafka-python 3.0.12 forgets its generation,
        # and a broker accepts offsets without a generation from anybody (found by seed 123 of this bench).
        membership = consumer.group_metadata()
        if not records or membership.generation_id < 0:
            continue
        number += 1
        txn = f"{role}.{start}.{number}"
        headers = [("txn", txn.encode()), ("role", role.encode()), ("incarnation", str(incarnation).encode())]
        notes.note("begins", txn=txn, **me, values=len(records))
        tell_where_it_waits()
        try:
            producer.begin_transaction()
            futures = [
                producer.send(target, record.value, partition=record.partition, headers=headers) for record in records
            ]
            producer.flush()
            for future in futures:
                future.get(timeout=30)  # the commit would not notice a record that has expired
            offsets = {TopicPartition(r.topic, r.partition): OffsetAndMetadata(r.offset + 1, "", -1) for r in records}
            time.sleep(WORK)
            producer.send_offsets_to_transaction(offsets, membership)
            notes.note("committing", txn=txn)
            producer.commit_transaction()
            faulthandler.cancel_dump_traceback_later()
            notes.note("committed", txn=txn)
        except (KafkaError, ValueError) as error:
            notes.note("error", txn=txn, error=repr(error))
            producer.abort_transaction()  # raises when the error is fatal: then the process ends, as the lesson says
            notes.note("aborted", txn=txn)
            return  # a new incarnation begins with a new producer and the committed offsets


def tell_where_it_waits() -> None:
    """Should this transaction not end, write to stderr what this process waits for, before its supervisor kills it."""
    faulthandler.dump_traceback_later(10)


def where_it_waits(output: str) -> str:
    """The producer's method that the main thread of a mover was in, by what `tell_where_it_waits` has written."""
    (*_, main) = output.split("(most recent call first):")
    calls = re.findall(r"kafka/producer/kafka\.py\", line \d+ in (\w+)", main)
    return calls[-1] if calls else "no call of its producer"


def read(connection, folder, topics: dict[str, int], final: bool, who="reader", **settings) -> None:
    """Read topics (name: partitions) and note each record: live and for ever, or (`final`) up to where they end now."""
    notes = Notebook(folder, who)
    config = {"isolation_level": "read_committed", "enable_auto_commit": False, "request_timeout_ms": 4000} | settings
    consumer = KafkaConsumer(**connection, **config)
    partitions = [TopicPartition(topic, number) for topic, count in topics.items() for number in range(count)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = _settled_ends(connection, consumer, partitions) if final else {}
    while not final or any(consumer.position(tp) < end for tp, end in ends.items()):
        for tp, batch in consumer.poll(timeout_ms=200).items():
            for record in batch:
                facts = {key: value.decode() for key, value in record.headers or ()}
                if "incarnation" in facts:
                    facts["incarnation"] = int(facts["incarnation"])
                place = {"topic": tp.topic, "partition": tp.partition, "offset": record.offset}
                notes.note("read", **place, value=record.value.decode(), final=final, **facts)
    consumer.close()


def _settled_ends(connection, consumer, partitions) -> dict:
    """The ends for this consumer once no transaction is open: a marker may come after `commit_transaction` returns."""
    with KafkaConsumer(**connection) as plain, contextlib.suppress(TimeoutError):
        wait_until(lambda: plain.end_offsets(partitions) == consumer.end_offsets(partitions), "the last markers", 20)
    return consumer.end_offsets(partitions)
