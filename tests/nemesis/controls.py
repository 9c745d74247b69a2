"""Programs that are wrong on purpose, and the accident that shows it. Each returns the history of what happened.

A bench that finds nothing proves nothing until it has found these. Each one lacks exactly one thing, named by its
function; the program that has it is run beside it, by the same accident, and must pass.
"""

import time
from collections.abc import Callable
from pathlib import Path

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition

from helpers import Cluster, Worker, point
from tests.nemesis import programs
from tests.nemesis.history import Notebook, merged
from tests.nemesis.proxy import LossyProxy


def lost_write(cluster: Cluster, folder: Path, wrong: bool) -> list[dict]:
    """acks=1 with paused followers: the leader acknowledges, dies, and the followers know nothing of it."""
    topic = cluster.topic("lost", replication=3, config={"min.insync.replicas": 2})
    notes = Notebook(folder, "sender")
    settings = {"acks": 1, "enable_idempotence": False} if wrong else {"acks": "all"}
    producer = KafkaProducer(**cluster.connection, request_timeout_ms=3000, **settings)
    producer.send(topic, b"v0").get(timeout=10)
    leader, followers = cluster.leader(topic), cluster.followers(topic)
    for follower in followers:
        cluster.pause(follower)
    time.sleep(0.8)  # longer than replica.fetch.wait.max.ms (500): no fetch is open any more
    place = {"topic": topic, "partition": 0, "value": "v1"}
    notes.note("sending", **place)
    future = producer.send(topic, b"v1")
    if wrong:
        notes.note("acknowledged", **place, offset=future.get(timeout=10).offset)
    else:
        time.sleep(0.5)  # no acknowledgement can come: min.insync.replicas is 2
    cluster.kill(leader)
    for follower in followers:
        cluster.resume(follower)
    cluster.wait_for_new_leader(topic, old=leader)
    if not wrong:
        notes.note("acknowledged", **place, offset=future.get(timeout=30).offset)
    producer.close()
    cluster.heal()
    programs.read(cluster.connection, folder, {topic: 1}, True, who="final reader")
    return merged(folder)


def lost_answer(cluster: Cluster, folder: Path, wrong: bool) -> list[dict]:
    """No idempotence behind a proxy that loses an answer: the retry is a second record."""
    topic = cluster.topic("answers")
    notes = Notebook(folder, "sender")
    with (
        LossyProxy() as proxy,
        KafkaProducer(
            **cluster.connection, proxy_url=proxy.url, enable_idempotence=not wrong, retry_backoff_ms=50
        ) as producer,
    ):
        for number in range(6):
            place = {"topic": topic, "partition": 0, "value": f"v{number}"}
            if number in (2, 4):
                proxy.lose_next_answer()
            notes.note("sending", **place)
            notes.note("acknowledged", **place, offset=producer.send(topic, place["value"].encode()).get(20).offset)
        assert proxy.lost == 2, "the proxy has lost two answers"
    programs.read(cluster.connection, folder, {topic: 1}, True, who="final reader")
    return merged(folder)


def _mover(connection, folder, source, target, group, transactional_id, incarnation, order):
    """A step that moves records two at a time; `order` says when it commits the consumed offsets."""
    notes = Notebook(folder, f"mover.{incarnation}")
    producer = KafkaProducer(**connection, transactional_id=transactional_id)
    producer.init_transactions()
    notes.note("started", role="mover", incarnation=incarnation)
    consumer = KafkaConsumer(
        source, **connection, group_id=group, group_instance_id="mover", auto_offset_reset="earliest",
        enable_auto_commit=False, isolation_level="read_committed",
    )  # fmt: skip
    number = 0
    while True:
        records = [r for batch in consumer.poll(timeout_ms=60_000, max_records=2).values() for r in batch]
        membership = consumer.group_metadata()
        offsets = {TopicPartition(r.topic, r.partition): OffsetAndMetadata(r.offset + 1, "", -1) for r in records}
        if order == "offsets first":
            consumer.commit(offsets)
        point("about to process")
        number += 1
        txn = f"mover.{incarnation}.{number}"
        headers = [("txn", txn.encode()), ("role", b"mover"), ("incarnation", str(incarnation).encode())]
        notes.note("begins", txn=txn, role="mover", incarnation=incarnation, values=len(records))
        producer.begin_transaction()
        for record in records:
            producer.send(target, record.value, partition=0, headers=headers)
        producer.flush()
        if order == "offsets inside":
            producer.send_offsets_to_transaction(offsets, membership)
        notes.note("committing", txn=txn)
        producer.commit_transaction()
        notes.note("committed", txn=txn)
        point("transaction committed")
        if order == "offsets after":
            consumer.commit(offsets)
        point(f"moved {records[-1].value.decode()}")


def _note_offset(cluster: Cluster, folder: Path, group: str, topic: str) -> None:
    partition = TopicPartition(topic, 0)
    with KafkaAdminClient(**cluster.connection) as admin:
        found = admin.list_group_offsets({group: [partition]})[group][partition]
    Notebook(folder, "watcher").note("committed offset", group=group, partition=0, offset=found.offset)


def _crash_a_mover(cluster: Cluster, folder: Path, order: str, die_at) -> list[dict]:
    source, target, group = cluster.topic("source"), cluster.topic("target"), cluster.group("movers")
    Notebook(folder, "nemesis").note("pipeline", source=source, target=target)
    programs.send(cluster.connection, folder, source, partitions=1, count=8, rate=1000)
    names = cluster.connection, folder, source, target, group, cluster.transactional_id("mover")
    Worker(_mover, *names, 1, order, die_at=die_at).wait(30)
    _note_offset(cluster, folder, group, source)
    second = Worker(_mover, *names, 2, order)
    second.wait_for("moved v7", 30)
    second.kill()
    _note_offset(cluster, folder, group, source)
    programs.read(cluster.connection, folder, {source: 1, target: 1}, True, who="final reader")
    return merged(folder)


def commit_before_processing(cluster: Cluster, folder: Path, wrong: bool) -> list[dict]:
    """Offsets committed, then the process is killed: what it had read is never processed."""
    return _crash_a_mover(cluster, folder, "offsets first" if wrong else "offsets inside", ("about to process", 2))


def offsets_outside_the_transaction(cluster: Cluster, folder: Path, wrong: bool) -> list[dict]:
    """A transaction without the consumed offsets, and the process is killed behind it: processed again."""
    return _crash_a_mover(cluster, folder, "offsets after" if wrong else "offsets inside", ("transaction committed", 2))


def reading_uncommitted(cluster: Cluster, folder: Path, wrong: bool) -> list[dict]:
    """A reader that does not ask for committed records is given aborted ones."""
    topic = cluster.topic("target")
    notes = Notebook(folder, "mover.1")
    with KafkaProducer(**cluster.connection, transactional_id=cluster.transactional_id("mover")) as producer:
        producer.init_transactions()
        notes.note("started", role="mover", incarnation=1)
        for number, end in enumerate(["committed", "aborted", "committed"], 1):
            txn = f"mover.1.{number}"
            headers = [("txn", txn.encode()), ("role", b"mover"), ("incarnation", b"1")]
            notes.note("begins", txn=txn, role="mover", incarnation=1, values=1)
            producer.begin_transaction()
            producer.send(topic, f"v{number}".encode(), headers=headers)
            producer.flush()
            if end == "committed":
                notes.note("committing", txn=txn)
                producer.commit_transaction()
            else:
                producer.abort_transaction()
            notes.note(end, txn=txn)
    level = "read_uncommitted" if wrong else "read_committed"
    programs.read(cluster.connection, folder, {topic: 1}, True, who="final reader", isolation_level=level)
    return merged(folder)


def zombie_without_fencing(cluster: Cluster, folder: Path, wrong: bool) -> list[dict]:
    """A new transactional id at each start: the old incarnation is not fenced, and goes on beside the new one."""
    topic = cluster.topic("target")

    def writer(incarnation):
        notes = Notebook(folder, f"payer.{incarnation}")
        name = f"payer-{incarnation}" if wrong else "payer"
        producer = KafkaProducer(**cluster.connection, transactional_id=cluster.transactional_id(name))
        producer.init_transactions()
        notes.note("started", role="payer", incarnation=incarnation)
        return producer, notes

    def write(producer, notes, incarnation, number, commit=True):
        txn = f"payer.{incarnation}.{number}"
        headers = [("txn", txn.encode()), ("role", b"payer"), ("incarnation", str(incarnation).encode())]
        notes.note("begins", txn=txn, role="payer", incarnation=incarnation, values=1)
        try:
            producer.begin_transaction()
            producer.send(topic, f"v{incarnation}.{number}".encode(), headers=headers)
            producer.flush()
            notes.note("committing", txn=txn)
            producer.commit_transaction()
            notes.note("committed", txn=txn)
        except Exception as error:
            notes.note("error", txn=txn, error=repr(error))

    old, old_notes = writer(1)
    write(old, old_notes, 1, 1)
    new, new_notes = writer(2)  # the old one is thought to be dead
    write(new, new_notes, 2, 1)
    write(old, old_notes, 1, 2)  # and comes back
    old.close()
    new.close()
    programs.read(cluster.connection, folder, {topic: 1}, True, who="final reader")
    return merged(folder)


#: The invariant by which each control is caught.
CONTROLS: dict[Callable, str] = {
    lost_write: "acknowledged is read",
    lost_answer: "idempotent: once, in order",
    commit_before_processing: "output has all input",
    offsets_outside_the_transaction: "output has nothing twice",
    reading_uncommitted: "failed is not read",
    zombie_without_fencing: "fenced writes nothing",
}
