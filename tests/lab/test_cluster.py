"""What `Cluster`, `take`, `read_topic` and `Worker` promise, each on real brokers."""

import json
import os
import re
import time

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import OutOfOrderSequenceNumberError
from kafka.structs import OffsetAndMetadata

from helpers import Cluster, LabError, Worker, frame, point, read_topic, take
from helpers.waiting import wait_until


@pytest.fixture(scope="module")
def one():
    with Cluster(brokers=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def _three():
    with Cluster(brokers=3) as cluster:
        yield cluster


@pytest.fixture
def three(_three):
    """Three brokers, all of them alive again after each test."""
    yield _three
    for broker in _three.brokers:
        if not _three._nodes[broker].alive or broker in _three._paused:
            _three.restart(broker)


@pytest.fixture(scope="module")
def stopped():
    with Cluster() as cluster:
        return cluster


@pytest.fixture
def started():
    """Workers that a test starts, dead at its end."""
    workers = []

    def start(*args, **options):
        workers.append(Worker(*args, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def write(cluster, topic, *values, partition=0, **options):
    with KafkaProducer(**cluster.connection, **options) as producer:
        for value in values:
            producer.send(topic, value, partition=partition).get(20)


def values(cluster, topic, isolation="read_committed"):
    return [record.value for record in read_topic(cluster, topic, isolation)]


def reader(cluster, topic, **options):
    return KafkaConsumer(topic, **cluster.connection, auto_offset_reset="earliest", **options)


def process(cluster, broker):
    return psutil.Process(cluster._nodes[broker].pid)


def committed(cluster, group):
    with KafkaAdminClient(**cluster.connection) as admin:
        return {tp: found.offset for tp, found in admin.list_group_offsets([group])[group].items() if found.offset >= 0}


# -- starting and stopping --


def test_it_is_ready_when_the_call_returns_and_gone_soon_after_stop():
    cluster = Cluster()
    assert cluster.embedded and cluster.alive() and cluster.brokers == [1]
    with KafkaProducer(**cluster.connection, delivery_timeout_ms=2000, request_timeout_ms=1000) as producer:
        topic = cluster.topic("orders")
        producer.send(topic, b"first").get(2)
    broker, folder = process(cluster, 1), cluster._processes.folder
    begin = time.monotonic()
    cluster.stop()
    assert time.monotonic() - begin < 1
    assert not broker.is_running() and not folder.exists() and not cluster.alive()
    cluster.stop()


def test_the_same_call_stops_the_earlier_one_and_another_leaves_it_alone(one):
    first = Cluster()
    second = Cluster()
    assert not first.alive() and second.alive() and one.alive()
    second.stop()


@pytest.mark.parametrize("use", ["connection", "topic", "group", "transactional_id", "kill", "leader"])
def test_a_stopped_cluster_says_so(stopped, use):
    with pytest.raises(LabError, match="stopped: run the cell that starts it again"):
        getattr(stopped, use)(1 if use == "kill" else "orders")


@pytest.mark.parametrize("brokers", [0, 10, -1, 1.5, "3", True])
def test_a_number_of_brokers_that_makes_no_sense_is_refused(brokers):
    with pytest.raises(LabError, match="takes a whole number from 1 to 9"):
        Cluster(brokers=brokers)


def test_all_clients_take_the_connection(one):
    topic = one.topic("orders")
    write(one, topic, b"a")
    with reader(one, topic) as consumer:
        assert [record.value for record in take(consumer, 1)] == [b"a"]
    with KafkaAdminClient(**one.connection) as admin:
        assert topic in admin.list_topics()


# -- topics, groups, transactional ids --


def test_a_topic_is_made_anew(one):
    write(one, one.topic("orders"), b"old")
    topic = one.topic("orders", partitions=2, config={"retention.ms": 1000, "cleanup.policy": "delete"})
    assert topic == one.plain(topic) == "orders"
    assert values(one, topic) == []
    with KafkaProducer(**one.connection) as producer:
        assert producer.partitions_for(topic) == {0, 1}
    with KafkaAdminClient(**one.connection) as admin:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        assert re.search(r"'retention.ms'[^}]*'1000'", str(found))


def test_a_topic_is_known_to_every_broker(three):
    topic = three.topic("orders", partitions=6)
    for broker in three.brokers:
        found = three._partitions(topic, broker)
        assert sorted(p.partition_index for p in found) == list(range(6))
        assert all(p.leader_id in three.brokers and len(p.replica_nodes) == 3 for p in found)
    lonely = three.topic("lonely", replication=1)
    assert len(three._partitions(lonely)[0].replica_nodes) == 1


@pytest.mark.parametrize("fixture", ["one", "three"])
def test_a_topic_takes_records_at_once(fixture, request):
    """Or a producer's second batch comes in and its first does not, for two minutes: see `Cluster._led`."""
    cluster = request.getfixturevalue(fixture)
    with KafkaProducer(**cluster.connection, retries=0, enable_idempotence=False) as producer:
        for number in range(20 if fixture == "one" else 8):
            topic = cluster.topic(f"at-once-{number}", partitions=6)
            for future in [producer.send(topic, b"order", partition=p) for p in range(6)]:
                future.get(timeout=10)


def test_a_topic_that_a_client_has_brought_back_meanwhile_is_made_anew(one, monkeypatch):
    """As it happens with `auto.create.topics.enable`, on by default, and a producer that knew the deleted topic."""
    delete, others = one._delete_topics, [1, 1]

    def and_somebody_asks_for_it(names):
        delete(names)
        if others:
            one._admin.create_topics({names[0]: {"num_partitions": others.pop(), "replication_factor": 1}})

    monkeypatch.setattr(one, "_delete_topics", and_somebody_asks_for_it)
    topic = one.topic("orders", partitions=3, config={"retention.ms": 1000})
    with KafkaAdminClient(**one.connection) as admin:
        assert len(one._partitions(topic)) == 3 and not others
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        assert re.search(r"'retention.ms'[^}]*'1000'", str(found))


def test_a_broker_that_has_died_meanwhile_is_no_riddle(one, monkeypatch):
    monkeypatch.setattr(one, "_reachable", lambda: [])
    with pytest.raises(LabError, match="No broker of this cluster runs"):
        one._known_everywhere("orders", 1)


def test_a_broker_takes_any_sequence_number_from_a_producer_that_it_has_not_met(one):
    """Why a topic must take records before one sends: lesson 10 says so of Kafka 4.4.0 and kafka-python 3.0.12."""
    place = TopicPartition(one.topic("orders"), 0)
    with KafkaProducer(**one.connection) as producer:
        state = producer._transaction_manager
        wait_until(state.has_producer_id, "the producer's id")
        state.set_sequence_number(place, 1)
        assert producer.send(place.topic, b"second", partition=0).get(timeout=10).offset == 0
        state.set_sequence_number(place, 0)
        with pytest.raises(OutOfOrderSequenceNumberError):
            producer.send(place.topic, b"first", partition=0).get(timeout=10)
    assert values(one, place.topic) == [b"second"]


@pytest.mark.parametrize("name", ["", "my orders", "käse", "a/b", "x" * 250, ".", "..", "__consumer_offsets"])
def test_a_name_that_kafka_does_not_allow_is_refused(one, name):
    with pytest.raises(LabError, match="topic name|Kafka's own topics"):
        one.topic(name)


def test_what_the_cluster_refuses_is_said_in_its_words(one):
    with pytest.raises(LabError, match=r"refused to make topic 'orders': .*retention\.ms"):
        one.topic("orders", config={"retention.ms": "soon"})
    with pytest.raises(LabError, match="refused to make topic 'orders': .*no.such.config"):
        one.topic("orders", config={"no.such.config": 1})
    with pytest.raises(LabError, match=r"3 replicas needs as many brokers; this cluster has 1: Cluster\(brokers=3\)"):
        one.topic("orders", replication=3)
    with pytest.raises(LabError, match="whole number of partitions"):
        one.topic("orders", partitions=0)
    assert values(one, one.topic("orders")) == []  # and the next try works


def test_a_group_begins_anew_though_an_unclosed_consumer_is_in_it(one):
    topic = one.topic("orders")
    write(one, topic, b"a", b"b")
    for static in ({}, {"group_instance_id": "till-1"}):
        group = one.group("billing")
        unclosed = reader(one, topic, group_id=group, **static)
        take(unclosed, 2)
        unclosed.commit()
        assert one.group("billing") == group
        assert committed(one, group) == {}
        with reader(one, topic, group_id=group) as consumer:
            assert [record.value for record in take(consumer, 2)] == [b"a", b"b"]
        unclosed.close(autocommit=False)


def test_a_topic_made_anew_takes_the_groups_offsets_along(one):
    topic, group, other = one.topic("orders"), one.group("billing"), one.group("shipping")
    elsewhere = one.topic("elsewhere")
    with KafkaAdminClient(**one.connection) as admin:
        admin.alter_group_offsets(group, {TopicPartition(topic, 0): OffsetAndMetadata(5, "", -1)})
        admin.alter_group_offsets(other, {TopicPartition(elsewhere, 0): OffsetAndMetadata(7, "", -1)})
    one.topic("orders")
    assert committed(one, group) == {}
    assert committed(one, other) == {TopicPartition(elsewhere, 0): 7}


def test_a_transactional_id_is_one_for_a_producer(one):
    topic = one.topic("orders")
    with KafkaProducer(**one.connection, transactional_id=one.transactional_id("payer")) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, b"paid")
        producer.commit_transaction()
    # The coordinator answers once it has noted the commit, and then writes its marker into the partition.
    assert wait_until(lambda: values(one, topic), "the transaction's end on the partition") == [b"paid"]


# -- harm --


def test_kill_ends_the_process_and_restart_brings_it_back_on_its_port(three):
    topic = three.topic("orders")
    victim, port = process(three, 2), three._nodes[2].node.port
    three.kill(2)
    assert not psutil.pid_exists(victim.pid) or victim.status() == psutil.STATUS_ZOMBIE
    three.kill(2)  # already dead: no error
    with pytest.raises(LabError, match=r"Broker 2 is dead: `cluster.restart\(2\)` starts it again"):
        three.pause(2)
    assert three.alive() and three.brokers == [1, 2, 3]
    three.restart(2)
    assert process(three, 2).is_running() and three._nodes[2].node.port == port
    three.wait_for_in_sync(topic)
    write(three, topic, b"a", acks="all")


def test_pause_stops_the_process_and_resume_lets_it_run(three):
    topic = three.topic("orders")
    for _ in range(2):  # twice is once
        three.pause(3)
        assert process(three, 3).status() == psutil.STATUS_STOPPED
    for _ in range(2):
        three.resume(3)
        assert process(three, 3).status() != psutil.STATUS_STOPPED
    three.wait_for_in_sync(topic)
    three.pause(3)
    three.restart(3)
    assert process(three, 3).status() != psutil.STATUS_STOPPED
    three.wait_for_in_sync(topic)


def test_restart_of_one_that_runs_shuts_it_down_first(three):
    before = process(three, 1).pid
    three.restart(1)
    assert process(three, 1).pid != before
    assert "shut down completed" in three.log_text(1)


def test_a_broker_that_is_not_there_cannot_be_harmed(three):
    for harm in (three.kill, three.pause, three.resume, three.restart):
        with pytest.raises(LabError, match="There is no broker 4: this cluster has 1, 2, 3"):
            harm(4)


def test_acknowledged_records_survive_the_death_of_their_leader(three):
    topic = three.topic("orders", config={"min.insync.replicas": 2})
    old = three.leader(topic)
    options = {"acks": "all", "delivery_timeout_ms": 30_000}
    written = [b"%d" % number for number in range(300)]
    with KafkaProducer(**three.connection, **options) as producer:
        futures = [producer.send(topic, value) for value in written[:150]]
        three.kill(old)
        futures += [producer.send(topic, value) for value in written[150:]]
        for future in futures:
            future.get(30)
    new = three.wait_for_new_leader(topic, old=old)
    assert new != old and new == three.leader(topic, 0)
    assert values(three, topic) == written  # none lost, none twice, in order
    with pytest.raises(TimeoutError, match=r"all replicas of orders to be in sync.*partition 0: .* of \[1, 2, 3\]"):
        three.wait_for_in_sync(topic, timeout=0.5)
    three.restart(old)
    three.wait_for_in_sync(topic)
    assert values(three, topic) == written


def test_waiting_for_a_new_leader_ends_with_what_was_seen(three):
    topic = three.topic("orders")
    leader = three.leader(topic)
    with pytest.raises(TimeoutError, match=f"a new leader of orders-0; last seen: leader {leader}"):
        three.wait_for_new_leader(topic, old=leader, timeout=0.3)
    with pytest.raises(LabError, match="orders has no partition 7, only 0 to 0"):
        three.leader(topic, 7)


def test_with_two_of_three_paused_a_leader_is_still_told(three):
    topic = three.topic("orders")
    for broker in (2, 3):
        three.pause(broker)
    assert three.leader(topic) in three.brokers
    for broker in (2, 3):
        three.resume(broker)
    three.wait_for_in_sync(topic)


def test_groups_begin_anew_after_the_death_of_their_coordinator(three):
    topic, group = three.topic("orders"), three.group("billing")
    with KafkaAdminClient(**three.connection) as admin:
        admin.alter_group_offsets(group, {TopicPartition(topic, 0): OffsetAndMetadata(5, "", -1)})
    coordinator = three.leader("__consumer_offsets")
    three.kill(coordinator)
    three.wait_for_new_leader("__consumer_offsets", old=coordinator)
    assert three.topic("orders", replication=2) == topic
    assert committed(three, group) == {}
    three.group("billing")


def test_with_no_broker_left_one_is_told_to_restart_it(one):
    topic = one.topic("orders")
    write(one, topic, b"a")
    one.kill(1)
    assert not one.alive()
    with pytest.raises(LabError, match=r"No broker of this cluster runs: `cluster.restart\(1\)` starts"):
        one.leader(topic)
    one.restart(1)
    assert one.alive() and values(one, topic) == [b"a"]


def test_a_topic_that_goes_away_while_its_configs_are_taken_back_is_no_error(one, monkeypatch):
    topic = one.topic("fleeting", config={"retention.ms": 1000})
    describe_configs = one._admin.describe_configs

    def describe_and_lose(resources):
        found = describe_configs(resources)
        one._admin.delete_topics([topic])
        wait_until(lambda: topic not in one._admin.list_topics(), "the topic to be gone")
        return found

    monkeypatch.setattr(one._admin, "describe_configs", describe_and_lose)
    one._delete_topics([topic])
    assert topic not in one._admin.list_topics()


def test_the_config_of_an_earlier_topic_does_not_come_back_with_a_restart(one):
    """As Kafka 4.4.0 would do, if `topic` did not take it back."""
    one.topic("orders", config={"retention.ms": 1})
    topic = one.topic("orders")
    write(one, topic, b"a")
    one.kill(1)
    one.restart(1)
    write(one, topic, b"b")
    assert values(one, topic) == [b"a", b"b"]
    with KafkaAdminClient(**one.connection) as admin:
        assert "retention.ms" not in str(admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)]))


# -- reading with an end --


def test_take_reads_exactly_as_many_and_loses_none(one):
    topic = one.topic("orders")
    written = [b"%d" % number for number in range(10)]
    write(one, topic, *written)
    with reader(one, topic) as consumer:
        assert [record.value for record in take(consumer, 3)] == written[:3]
        assert consumer.position(TopicPartition(topic, 0)) == 3
        assert [record.value for record in take(consumer, 7)] == written[3:]
        assert take(consumer, 0) == []


def test_take_names_what_came(one):
    topic = one.topic("orders")
    write(one, topic, b"a", b"b")
    with reader(one, topic) as consumer:
        with pytest.raises(TimeoutError, match="Waited 1 s for 3 records; 2 came: orders-0@0, orders-0@1"):
            take(consumer, 3, timeout=1)
        with pytest.raises(TimeoutError, match="0 came: none"):
            take(consumer, 1, timeout=0.1)


def test_read_topic_shows_aborted_and_open_transactions_only_uncommitted(one):
    topic = one.topic("orders", partitions=2)
    write(one, topic, b"plain")
    options = one.connection | {"transactional_id": one.transactional_id("payer")}
    with KafkaProducer(**options) as producer:
        producer.init_transactions()
        for value, end in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
            producer.begin_transaction()
            producer.send(topic, value, partition=0)
            producer.flush()
            end()
        write(one, topic, b"other", partition=1)
        # the aborting marker may come after the call returns
        wait_until(lambda: values(one, topic) == [b"plain", b"committed", b"other"], "the markers")
        producer.begin_transaction()
        producer.send(topic, b"open", partition=0).get(10)
        assert values(one, topic) == [b"plain", b"committed", b"other"]
        everything = [b"plain", b"aborted", b"committed", b"open", b"other"]
        assert values(one, topic, "read_uncommitted") == everything
        producer.abort_transaction()


def test_read_topic_of_an_empty_and_of_an_unknown_topic(one):
    assert read_topic(one, one.topic("orders", partitions=3)) == []
    with pytest.raises(ValueError, match="no topic 'order' on this cluster"):
        read_topic(one, "order")


def test_a_frame_has_a_row_a_record(one):
    topic = one.topic("orders", config={"retention.ms": -1})  # records of 1970 are kept
    with KafkaProducer(**one.connection) as producer:
        headers = [("source", b"till"), ("raw", b"\xff")]
        producer.send(topic, b"1", key=b"ann", headers=headers, timestamp_ms=0).get(10)
        producer.send(topic, b"\xff", timestamp_ms=1).get(10)
    table = frame(read_topic(one, topic))
    assert list(table.columns) == ["partition", "offset", "key", "value", "timestamp", "headers"]
    assert table.value.tolist() == ["1", b"\xff"] and table.key.isna().tolist() == [False, True]
    assert table.headers[0] == {"source": "till", "raw": b"\xff"}
    assert str(table.timestamp[0]) == "1970-01-01 00:00:00+00:00"
    assert frame([]).empty and list(frame([]).columns) == list(table.columns)


# -- workers --


def counts(limit):
    for number in range(limit):
        print("number", number)
        point("counted")


def test_a_worker_runs_with_its_arguments(started):
    def greet(name, words, *, suffix="!"):
        print(json.dumps([name, words]) + suffix)

    worker = started(greet, "ann", {"hello": [1, b"2".decode()]})
    assert worker.wait() == worker.state == "ended"
    assert worker.output == '["ann", {"hello": [1, "2"]}]!\n'


def test_a_worker_gets_environment_variables_of_its_own(started):
    def tell():
        print(os.environ["GREETING"], hash(b"ann"))

    workers = [started(tell, environment={"GREETING": "hello", "PYTHONHASHSEED": seed}) for seed in "121"]
    assert [worker.wait() for worker in workers] == ["ended"] * 3
    one, two, again = (worker.output for worker in workers)
    assert one.startswith("hello ") and one == again != two and "GREETING" not in os.environ


def test_a_worker_dies_at_its_point(started):
    first, third = started(counts, 5, die_at="counted"), started(counts, 5, die_at=("counted", 3))
    assert (first.wait(), first.points) == ('killed at "counted"', ["counted"])
    assert (third.wait(), third.points) == ('killed at "counted"', ["counted"] * 3)
    assert third.output.splitlines() == ["number 0", "number 1", "number 2"]


def test_a_worker_waits_at_its_point_until_it_is_released(started):
    worker = started(counts, 3, hold_at=("counted", 2))
    worker.wait_for(("counted", 2))
    with pytest.raises(TimeoutError, match="the worker to end"):
        worker.wait(timeout=0.3)
    assert worker.points == ["counted"] * 2 and worker.state == "running"
    worker.release()
    assert worker.wait() == "ended" and worker.points == ["counted"] * 3
    worker.release()


def test_a_worker_is_paused_resumed_and_killed(started):
    worker = started(counts, 3, hold_at="counted")
    worker.wait_for("counted")
    for _ in range(2):
        worker.pause()
        assert psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED
    worker.resume()
    assert psutil.Process(worker.pid).status() != psutil.STATUS_STOPPED
    worker.pause()
    assert worker.kill() == worker.kill() == "killed"
    assert not psutil.pid_exists(worker.pid)
    with pytest.raises(LabError, match="The worker is not there any more: killed"):
        worker.pause()


def test_a_worker_that_restarts_lives_on_behind_each_death(started):
    def works():
        point("begun")
        print("alive", os.getppid())
        point("done")

    worker = started(works, die_at=["begun", ("begun", 3), "done"], restarts=True)
    assert worker.wait() == "ended"
    assert worker.points == ["begun", "begun", "done", "begun", "begun", "done"]
    assert worker.output == f"alive {worker.pid}\n" * 2


def test_a_worker_that_restarts_is_paused_and_killed_for_good(started):
    def works():
        print(os.getpid(), flush=True)
        while True:
            point("at work")
            time.sleep(0.01)

    worker = started(works, restarts=True)
    worker.wait_for(("at work", 3))
    child = psutil.Process(int(worker.output))
    worker.pause()
    wait_until(lambda: child.status() == psutil.STATUS_STOPPED, "the child to stop")  # a signal takes a moment
    worker.resume()
    assert worker.kill() == "killed"
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child to be dead")


def test_a_worker_that_fails_shows_why(started):
    def fails():
        raise ValueError("no such order")

    worker = started(fails)
    with pytest.raises(RuntimeError, match='(?s)failed .exit status 1. before it reached "paid".*no such order'):
        worker.wait_for("paid")
    assert worker.state == "failed (exit status 1)"
    assert "Traceback" in worker.output and "ValueError: no such order" in worker.output


def test_a_worker_cannot_be_given_a_live_client(one, started):
    with (
        KafkaProducer(**one.connection) as producer,
        pytest.raises(LabError, match="hand it names and `cluster.connection`"),
    ):
        started(lambda: producer.send("orders", b"a"))


def test_a_point_outside_of_a_worker_does_nothing():
    assert point("counted") is None
