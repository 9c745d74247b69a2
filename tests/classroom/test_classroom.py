"""A class's cluster: what a learner may do, and what they may not, by trying it; what `serve` and its commands do."""

import contextlib
import ipaddress
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import (
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ConfigResource,
    ConfigResourceType,
    ResourcePatternFilter,
    ResourceType,
)
from kafka.protocol.admin import DescribeClusterRequest
from kafka.protocol.broker_version_data import BrokerVersionData
from kafka.protocol.metadata import ApiVersionsRequest
from kafka.structs import OffsetAndMetadata

from classroom import learners, limits, network, server
from classroom.folder import Folder
from course import doctor
from helpers import Cluster, LabError, paths
from helpers.errors import NoMemory
from helpers.kafka import diagnosis
from helpers.processes.run_folder import _is_over, base_folder
from helpers.streams.jvm import java_config, start_java
from helpers.waiting import wait_until
from tests.lab.test_cli import call
from tests.secured import free_ports, secured_broker

REFUSED = kafka_errors.AuthorizationError
SMALL = 5  # MB of disk, where a test fills it


@pytest.fixture(scope="module")
def broker():
    """The class's cluster with ann, bob and carl."""
    with secured_broker() as broker:
        learners.add(broker.folder, broker.admin, ["ann", "bob", "carl"])
        yield broker


def security(broker, name: str, **changes) -> dict:
    """What kafka-python's clients take for a learner."""
    card = broker.environment(name)
    return {
        "bootstrap_servers": card["COURSE_BOOTSTRAP_SERVERS"],
        "security_protocol": "SASL_SSL",
        "ssl_cafile": card["COURSE_SSL_CA_FILE"],
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": name,
        "sasl_plain_password": card["COURSE_SASL_PASSWORD"],
    } | changes


@pytest.fixture(scope="module")
def ann(broker):
    with KafkaAdminClient(**security(broker, "ann")) as admin:
        admin.create_topics({"ann.orders": {"num_partitions": 1}})
        yield admin


@pytest.fixture(scope="module")
def bobs(broker, ann):
    """Bob's topics with a record each, his group with an offset, his transaction that is open."""
    with (
        KafkaAdminClient(**security(broker, "bob")) as admin,
        KafkaProducer(
            **security(broker, "bob"), transactional_id="bob.payer", transaction_timeout_ms=900_000
        ) as producer,
    ):
        admin.create_topics({"bob.orders": {"num_partitions": 1}})
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("bob.orders", b"secret").get(30)
        write(broker, "bob", "bob.progress", b"secret", b"lesson_01/q1")
        offsets = {TopicPartition("bob.orders", 0): OffsetAndMetadata(0, "", -1)}
        wait_until(
            lambda: set(admin.alter_group_offsets("bob.billing", offsets).values()) == {kafka_errors.NoError},
            "bob's group",
            timeout=30,
            retry=(kafka_errors.RetriableError,),
        )
        yield admin
        producer.commit_transaction()  # what the others tried has not harmed it


def write(broker, name: str, topic: str, value: bytes = b"x", key: bytes | None = None, **settings):
    with KafkaProducer(**security(broker, name), **settings) as producer:
        return producer.send(topic, value, key=key).get(30)


def read(broker, name: str, topic: str, group: str | None = None, seconds: float = 30, partition: int = 0):
    settings = {"group_id": group, "auto_offset_reset": "earliest"}
    with (
        server.connect(broker.folder, broker.folder.room(), broker.brokers.ports, KafkaConsumer, **settings)
        if name == server.ADMIN
        else KafkaConsumer(**security(broker, name), **settings)
    ) as consumer:
        if group:
            consumer.subscribe([topic])
        else:
            consumer.assign([TopicPartition(topic, partition)])
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if records := consumer.poll(timeout_ms=300):
                return [record.value for part in records.values() for record in part]
    raise TimeoutError(f"{name} got no record of {topic}")


ELSEWHERE = ("bob.orders", "bob.new", "shared.new", "new", "__consumer_offsets", "annette.new")


@pytest.mark.parametrize("topic", ELSEWHERE)
def test_no_writing_and_no_making_of_topics_elsewhere(broker, ann, bobs, topic):
    with pytest.raises(REFUSED):
        ann.create_topics({topic: {"num_partitions": 1}})
    if topic.startswith("shared."):
        return  # what is not there cannot be written to; what is there: see below
    with KafkaProducer(**security(broker, "ann"), max_block_ms=3000) as producer, pytest.raises(REFUSED):
        producer.send(topic, b"forged").get(10)


def test_no_reading_of_others_records(broker, ann, bobs):
    assert read(broker, "bob", "bob.orders") == [b"secret"]
    for topic in ("bob.orders", "__consumer_offsets", "bob.progress"):
        partition = filled(broker, topic)
        assert read(broker, server.ADMIN, topic, partition=partition), "there is something to read"
        with pytest.raises((REFUSED, TimeoutError)):  # kafka-python 3.0.12 goes on asking, in silence
            read(broker, "ann", topic, seconds=3, partition=partition)
    with pytest.raises((REFUSED, TimeoutError)):
        read(broker, "ann", "bob.orders", group="ann.spy", seconds=3)
    with pytest.raises(REFUSED):
        read(broker, "ann", "ann.orders", group="bob.billing")


def filled(broker, topic: str) -> int:
    """A partition that has records."""
    with server.connect(broker.folder, broker.folder.room(), broker.brokers.ports, KafkaConsumer) as consumer:
        ends = consumer.end_offsets([TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)])
    return max(ends, key=ends.get).partition


def _topic_config(name):
    return ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": "1"})


#: What ann tries on what is bob's, or the whole cluster's.
TRIES = {
    "delete a topic": lambda ann: ann.delete_topics(["bob.orders"]),
    "add partitions": lambda ann: ann.create_partitions({"bob.orders": 5}),
    "alter a topic": lambda ann: ann.alter_configs([_topic_config("bob.orders")], raise_on_unknown=False),
    "delete records": lambda ann: ann.delete_records({TopicPartition("bob.orders", 0): 1}),
    "delete a group": lambda ann: ann.delete_groups(["bob.billing"]),
    "move a group": lambda ann: ann.alter_group_offsets(
        "bob.billing", {TopicPartition("bob.orders", 0): OffsetAndMetadata(1, "", -1)}
    ),
    "read a group": lambda ann: ann.list_group_offsets(["bob.billing"]),
    "look at a group": lambda ann: ann.describe_groups(["bob.billing"]),
    "read who may do what": lambda ann: ann.describe_acls(_any_acl()),
    "take rights away": lambda ann: ann.delete_acls([_any_acl()]),
    "give herself rights": lambda ann: ann.create_acls(
        [learners._acl("ann", ACLOperation.ALL, ResourceType.TOPIC, "bob.")]
    ),
    "read the users": lambda ann: ann.describe_user_scram_credentials(["bob"]),
    "change a password": lambda ann: ann.alter_user_scram_credentials(
        [learners.UserScramCredentialUpsertion("bob", "SCRAM-SHA-512", "mine now")]
    ),
    "lift her quota": learners.set_quotas,
    "alter a broker": lambda ann: ann.alter_configs(
        [ConfigResource(ConfigResourceType.BROKER, "1", {"log.retention.ms": "1"})], raise_on_unknown=False
    ),
    "look at disks": lambda ann: ann.describe_log_dirs(),
}  # fmt: skip


def _any_acl() -> ACLFilter:
    pattern = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
    return ACLFilter(None, "*", ACLOperation.ANY, ACLPermissionType.ANY, pattern)


def everything(broker) -> str:
    """What the cluster holds, as the administrator sees it; volatile members of groups aside."""
    admin = broker.admin
    acls, _ = admin.describe_acls(_any_acl())
    topics = sorted(admin.list_topics())
    configs = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, "bob.orders")])
    offsets = admin.list_group_offsets(["bob.billing"])
    users = admin.describe_user_scram_credentials()
    parts = [len(topic["partitions"]) for topic in admin.describe_topics(["bob.orders"])]
    return repr((sorted(map(repr, acls)), topics, configs, offsets, users, parts))


@pytest.mark.parametrize("what", TRIES)
def test_no_meddling(broker, ann, bobs, what):
    before = everything(broker)
    try:
        said = repr(TRIES[what](ann))
    except (kafka_errors.KafkaError, LabError) as error:
        said = repr(error)
    else:
        if what == "look at disks":  # answered without an error, and without anything in it
            assert "bob" not in said and "topic" not in said.replace("'topics': []", "")
            return
    assert re.search("[Aa]uthoriz|needs ALTER|partitions are not known", said), said
    assert everything(broker) == before


@pytest.mark.parametrize("what", ["delete a topic", "add partitions", "alter a topic", "delete records"])
def test_the_boards_topic_is_written_to_and_nothing_else(broker, ann, what):
    """Of her own: without it the board fails, and what is in it is not counted for the limit of partitions."""
    topic = "ann.progress"
    write(broker, "ann", topic, key=b"lesson_01/q1")
    seen = lambda: (  # noqa: E731
        broker.admin.describe_topics([topic]),
        broker.admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)]),
    )
    before = repr(seen())
    tries = {
        "delete a topic": lambda: ann.delete_topics([topic]),
        "add partitions": lambda: ann.create_partitions({topic: 5}),
        "alter a topic": lambda: ann.alter_configs([_topic_config(topic)], raise_on_unknown=False),
        "delete records": lambda: ann.delete_records({TopicPartition(topic, 0): 1}),
    }
    try:
        said = repr(tries[what]())
    except kafka_errors.KafkaError as error:
        said = repr(error)
    assert re.search("[Aa]uthoriz", said), said
    assert repr(seen()) == before
    assert read(broker, "ann", topic)


def test_one_who_leaves_takes_the_boards_topic_along(broker):
    learners.add(broker.folder, broker.admin, ["gina"])
    assert "gina.progress" in broker.admin.list_topics()
    learners.hold(broker.admin, "gina")
    learners.remove(broker.folder, broker.admin, "gina")
    assert not [topic for topic in broker.admin.list_topics() if topic.startswith("gina.")]
    assert "gina" not in repr(broker.admin.describe_acls(_any_acl()))


def test_lists_show_ones_own_only(broker, ann, bobs):
    assert all(topic.startswith("ann.") for topic in ann.list_topics())
    assert not [group for group in ann.list_groups() if not group["group_id"].startswith("ann.")]
    assert "bob" not in repr(ann.list_transactions())


def test_no_transactional_id_of_others(broker, ann, bobs):
    with (
        KafkaProducer(**security(broker, "ann"), transactional_id="bob.payer", max_block_ms=5000) as producer,
        pytest.raises(REFUSED),
    ):
        producer.init_transactions()  # would fence bob's


def test_the_teachers_records_can_be_read(broker, ann):
    broker.admin.create_topics({"shared.prices": {"num_partitions": 1}})
    with server.connect(broker.folder, broker.folder.room(), broker.brokers.ports, KafkaProducer) as teacher:
        teacher.send("shared.prices", b"12").get(30)
    assert read(broker, "ann", "shared.prices") == [b"12"]
    assert read(broker, "ann", "shared.prices", group="ann.prices") == [b"12"]
    with pytest.raises(REFUSED):
        write(broker, "ann", "shared.prices", max_block_ms=3000)
    with pytest.raises(REFUSED):
        ann.delete_topics(["shared.prices"])


@contextlib.contextmanager
def line_to(port: int, settings: dict):
    """A connection with TLS to whatever listens at a port of this machine; nobody has logged in on it."""
    address, deadline = diagnosis.Address("localhost", port), time.monotonic() + 10
    with diagnosis._encrypt(diagnosis._connect(address, deadline), address, settings, deadline) as connected:
        line = diagnosis._Line(connected, address, deadline)
        keys = line.ask(ApiVersionsRequest(version=0)).api_keys
        line.versions = BrokerVersionData(
            api_versions={key.api_key: (key.min_version, key.max_version) for key in keys}
        )
        yield line, address


@pytest.mark.parametrize("listener", ["internal", "controller"])
def test_the_doors_of_the_brokers_themselves_are_shut(broker, listener):
    """Talked to in single requests, as `remote.greet` does not get as far as a controller's log-in."""
    node = broker.brokers.nodes[0]
    port = broker.brokers.ports[0] if listener == "internal" else node.controller_port
    word = broker.folder.room().learners["ann"]

    def question():
        return DescribeClusterRequest(endpoint_type=1 if listener == "internal" else 2)  # as who asks takes it for

    tries = [
        ("SCRAM-SHA-512", "ann", word, "does not take SCRAM-SHA-512, but PLAIN"),
        ("PLAIN", "ann", word, "refuses the log-in of user ann .*Invalid username or password"),
        ("PLAIN", server.ADMIN, "admin", "refuses the log-in of user admin .*Invalid username or password"),
        ("PLAIN", server.ADMIN, broker.folder.room().admin_password, None),  # the teacher's gets in by the same steps
    ]
    for mechanism, user, password, said in tries:
        settings = security(broker, "ann") | {
            "sasl_mechanism": mechanism,
            "sasl_plain_username": user,
            "sasl_plain_password": diagnosis.Secret(password),
        }
        settings.pop("bootstrap_servers")
        with line_to(port, settings) as (line, address):
            with pytest.raises(diagnosis.Unreachable, match=said) if said else contextlib.nullcontext():
                diagnosis._log_in(line, address, settings)
            if said is None:
                assert line.ask(question()).cluster_id == broker.folder.room().cluster_id
    with line_to(port, settings) as (line, _), pytest.raises(ConnectionError):  # hung up on: no log-in, no answer
        line.ask(question())


def test_a_failed_log_in_says_why_and_harms_nobody(broker, ann):
    settings = security(broker, "ann", sasl_plain_password=diagnosis.Secret("wrong"))
    settings.pop("bootstrap_servers")
    host, port = broker.address.split(":")
    for _ in range(20):
        with pytest.raises(diagnosis.Unreachable, match="refuses the log-in of user ann"):
            diagnosis.greet(diagnosis.Address(host, int(port)), settings, "ann.x", 5)
    assert write(broker, "ann", "ann.orders")


# -- harm that rights do not prevent -----------------------------------------------------------------------------------


@contextlib.contextmanager
def somebody_else_works(broker):
    """Carl writes all the time, meanwhile too; prints his longest wait. An error of his is the test's.

    How long he may wait is not judged: that is the machine's matter, and docs/teaching.md has what was measured.
    """
    waits, stop, wrong = [], threading.Event(), []
    with contextlib.suppress(kafka_errors.TopicAlreadyExistsError):
        broker.admin.create_topics({"carl.orders": {"num_partitions": 1}})

    def work():
        try:
            with KafkaProducer(**security(broker, "carl")) as producer:
                while not stop.wait(0.05):
                    began = time.monotonic()
                    producer.send("carl.orders", b"x").get(60)
                    waits.append(time.monotonic() - began)
        except Exception as error:
            wrong.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: waits or wrong, "carl's first record", timeout=60)
        before = len(waits)
        yield
        during = len(waits) - before
    finally:
        stop.set()
        thread.join()
    assert not wrong
    print(f"longest wait of somebody else: {max(waits):.2f} s of {len(waits)}")
    assert during > 0


@contextlib.contextmanager
def watched(broker, megabytes: int = 300):
    """A watchdog looks, as `serve` makes it; yields what it told."""
    told, stop = [], threading.Event()
    with server.connect(broker.folder, broker.folder.room(), broker.brokers.ports) as admin:
        dog = limits.Watchdog(
            admin, broker.brokers.homes, broker.brokers.logs, megabytes, told.append, broker.brokers.refused
        )

        def look():
            while not stop.wait(limits.SECONDS):
                dog.look()

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield told
        finally:
            stop.set()
            thread.join()


def test_oversized_records_are_refused(broker, ann):
    with somebody_else_works(broker):
        with pytest.raises(kafka_errors.MessageSizeTooLargeError):
            write(broker, "ann", "ann.orders", bytes(2_000_000))  # by the client itself
        with pytest.raises(kafka_errors.MessageSizeTooLargeError):
            write(broker, "ann", "ann.orders", bytes(1_100_000), max_request_size=10_000_000)
        # Her own topic may allow larger ones, but no request is larger than the broker's limit.
        ann.create_topics({"ann.large": {"num_partitions": 1, "configs": {"max.message.bytes": "90000000"}}})
        large = {"max_request_size": 90_000_000, "retries": 0}
        write(broker, "ann", "ann.large", bytes(server.LARGEST_REQUEST - 10_000), **large)
        with pytest.raises(kafka_errors.KafkaConnectionError) as refused:  # the broker hangs up at the size's sight
            write(broker, "ann", "ann.large", bytes(server.LARGEST_REQUEST), **large)
        print(repr(refused.value))
    assert read_end(broker, "ann.large") == 1
    said = broker.brokers.logs[0].read_text(errors="replace")
    assert re.search(rf"InvalidReceiveException.* larger than {server.LARGEST_REQUEST}", said), "by the limit"


def read_end(broker, topic: str) -> int:
    with server.connect(broker.folder, broker.folder.room(), broker.brokers.ports, KafkaConsumer) as consumer:
        return consumer.end_offsets([TopicPartition(topic, 0)])[TopicPartition(topic, 0)]


def test_a_full_corner_is_held_until_it_is_emptied(broker, bobs):
    bobs.create_topics({"bob.heap": {"num_partitions": 1}})
    with watched(broker, SMALL) as told, KafkaProducer(**security(broker, "bob"), max_block_ms=5000) as producer:
        began = time.monotonic()
        with pytest.raises(REFUSED):
            while time.monotonic() < began + 30:
                producer.send("bob.heap", os.urandom(500_000)).get(20)
        assert learners.held(broker.admin) == {"bob"}, "a `serve` that starts anew has to know"
        wait_until(lambda: told, "the word of it", timeout=20)  # told after it is done, so the refusal comes first
        assert "bob is held" in told[0] and "5 are allowed" in told[0]
        taken = limits.measure(broker.brokers.homes)["bob"].bytes / 1e6
        with pytest.raises(REFUSED):
            bobs.create_topics({"bob.more": {"num_partitions": 1}})
        with pytest.raises(REFUSED):
            bobs.create_partitions({"bob.orders": 2})
        bobs.delete_topics(["bob.heap"])  # he still may
        wait_until(lambda: told[-1] == "bob may write again.", "the release", timeout=60)
    assert SMALL <= taken < SMALL + 30, f"{taken} MB"
    write(broker, "bob", "bob.orders")


def commit(admin, group: str, note: str = "", count: int = 1) -> set:
    """Commit offsets of a group in the partitions of hugo.orders; what the broker says of each."""
    offsets = {TopicPartition("hugo.orders", number): OffsetAndMetadata(0, note, -1) for number in range(count)}
    waiting = (
        kafka_errors.CoordinatorNotAvailableError,
        kafka_errors.CoordinatorLoadInProgressError,
        kafka_errors.NotCoordinatorError,
    )

    def once():
        said = set(admin.alter_group_offsets(group, offsets).values())
        return not said & set(waiting) and said

    return wait_until(once, "the group's coordinator", timeout=30, pause=0.02, retry=waiting)


def test_commits_cannot_fill_memory_and_disk(broker, monkeypatch):
    """Offsets are kept in the broker's memory, and no quota of Kafka's counts them."""
    monkeypatch.setattr(limits, "GROUPS", 10)
    learners.add(broker.folder, broker.admin, ["hugo"])
    with watched(broker) as told, KafkaAdminClient(**security(broker, "hugo")) as hugo:
        hugo.create_topics({"hugo.orders": {"num_partitions": 20}})
        assert commit(hugo, "hugo.note", "x" * 4000) == {kafka_errors.OffsetMetadataTooLargeError}
        assert commit(hugo, "hugo.note", "x" * server.LARGEST_NOTE, 20) == {kafka_errors.NoError}
        for number in range(1000):
            said = commit(hugo, f"hugo.group-{number}")
            if said != {kafka_errors.NoError}:
                break
        assert said == {kafka_errors.GroupAuthorizationFailedError}
        wait_until(lambda: told, "the word of it", timeout=20)
        assert "hugo is held" in told[0] and "groups, 10 are allowed" in told[0]
        assert hugo.list_groups(), "he sees what to delete"
        learners.reset(broker.admin, "hugo")
        wait_until(lambda: told[-1] == "hugo may write again.", "the release", timeout=60)
        again = lambda: made(hugo, "hugo.orders") or True  # noqa: E731
        wait_until(again, "the right to make topics", timeout=30, retry=(REFUSED,))  # brokers hear of it in a moment
        wait_until(lambda: commit(hugo, "hugo.again") == {kafka_errors.NoError}, "the right to commit", timeout=30)


def test_a_long_name_of_a_group_counts_as_several():
    groups = [{"group_id": "ann." + "x" * 1000}, {"group_id": "ann.b"}, {"group_id": "connect"}]
    usage = limits.measure([])
    limits.count_groups(types.SimpleNamespace(list_groups=lambda: groups), usage)
    assert {name: taken.groups for name, taken in usage.items()} == {"ann": 6}


def test_who_goes_on_asking_is_suspended_until_the_teacher_lets_them_in(monkeypatch, tmp_path):
    held, told, report = set(), [], tmp_path / "broker-1.refused"
    report.write_text("ann 5000 LARGE\n")  # of an earlier look
    monkeypatch.setattr(learners, "held", lambda _admin: set())
    monkeypatch.setattr(learners, "suspend", lambda _admin, name: held.add(name))
    monkeypatch.setattr(learners, "suspended", lambda _admin, names: set(names) & held)
    monkeypatch.setattr(learners, "release", lambda _admin, _name: None)
    monkeypatch.setattr(limits, "count_groups", lambda _admin, _usage: None)
    monkeypatch.setattr(limits, "topics", lambda _admin: {"ann.orders": 1})
    dog = limits.Watchdog(None, [tmp_path / "data"], [], 300, told.append, [report])
    for lines, expected in [
        ("", set()), ("ann 100 GROUP\nbob 2 LARGE\n", set()), ("ann 1 GROUP\nbob 1 LAR", {"ann"}),
        ("GE\n", {"ann", "bob"}), ("ann 500 GROUP\n", {"ann", "bob"}),
    ]:  # fmt: skip
        with open(report, "a") as file:
            file.write(lines)
        dog.look()
        assert held == expected, lines
    assert "ann was refused what no lesson asks for (GROUP)" in told[0] and "serve reset ann" in told[2]
    held.discard("ann")  # by that command
    dog.look()
    assert told[-1] == "ann may write again." and held == {"bob"}


def test_one_who_leaves_leaves_nothing_in_kafkas_own_topics(broker):
    """Each key's last word there is none."""
    learners.add(broker.folder, broker.admin, ["lea"])
    topic, setting = "lea.orders", {"share.auto.offset.reset": "earliest"}
    with contextlib.ExitStack() as stack:
        lea = stack.enter_context(KafkaAdminClient(**security(broker, "lea")))
        lea.create_topics({topic: {"num_partitions": 1}})
        lea.alter_configs([ConfigResource(ConfigResourceType.GROUP, "lea.nobody", setting)])
        commits = {TopicPartition(topic, 0): OffsetAndMetadata(0, "", -1)}
        for number in range(3):
            settings = security(broker, "lea", transactional_id=f"lea.payer-{number}")
            producer = stack.enter_context(KafkaProducer(**settings))
            producer.init_transactions()
            producer.begin_transaction()
            producer.send(topic, b"x").get(30)
            if number:  # the first one's stays open
                producer.commit_transaction()
        read(broker, "lea", topic, group="lea.readers")
        wait_until(
            lambda: set(lea.alter_group_offsets("lea.left", commits).values()) == {kafka_errors.NoError},
            "an offset",
            timeout=30,
            retry=(kafka_errors.RetriableError,),
        )
        learners.remove(broker.folder, broker.admin, "lea")
    assert "lea." not in repr(broker.admin.list_config_resources(["GROUP"]))
    assert last_words(broker, "__transaction_state", b"lea.") == {None}
    assert last_words(broker, "__consumer_offsets", b"lea.") == {None}


def last_words(broker, topic: str, name: bytes) -> set:
    """The last values of the keys with a name in one of Kafka's own topics."""
    with server.connect(broker.folder, broker.folder.room(), broker.brokers.ports, KafkaConsumer) as consumer:
        parts = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        ends, found = consumer.end_offsets(parts), {}
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)

        def is_read():
            for records in consumer.poll(timeout_ms=200).values():
                found.update({record.key: record.value for record in records if name in (record.key or b"")})
            return all(consumer.position(part) >= ends[part] for part in parts)

        wait_until(is_read, "the topic to be read", timeout=60)
    return set(found.values())


@pytest.mark.full
def test_learners_programs_go_on_when_a_broker_was_started_again():
    """But for a transactional producer of kafka-python 3.0.12, for which `serve` and the guide name the cure."""
    with secured_broker() as broker:
        learners.add(broker.folder, broker.admin, ["ann"])
        broker.admin.create_topics({"ann.orders": {"num_partitions": 1}})
        settings = {"group_id": "ann.g", "auto_offset_reset": "earliest"}
        with (
            KafkaProducer(**security(broker, "ann")) as producer,
            KafkaConsumer("ann.orders", **settings, **security(broker, "ann")) as consumer,
        ):
            producer.send("ann.orders", b"x").get(30)
            wait_until(lambda: consumer.poll(timeout_ms=200), "the first record", timeout=30)
            psutil.Process(broker.brokers._brokers[0].pid).kill()
            wait_until(lambda: broker.brokers.mend() == [1], "the death to be seen", timeout=10)
            producer.send("ann.orders", b"y").get(100)
            wait_until(lambda: consumer.poll(timeout_ms=200), "the next record", timeout=90)


def test_a_class_that_needs_more_memory_gets_it_once(monkeypatch):
    """What is kept has to be read before it can be cleaned; one that fails again is told with advice."""
    brokers, heaps = object.__new__(server.Brokers), []
    node = types.SimpleNamespace(id=1)
    log = types.SimpleNamespace(
        touch=lambda **_: None, with_suffix=lambda _: types.SimpleNamespace(unlink=lambda **_: None)
    )
    one = types.SimpleNamespace(formatted=True, log=log, pid=None, start=lambda heap, *_: heaps.append(heap), node=node)
    brokers._brokers, brokers._heap, brokers.folder = [one], 1, types.SimpleNamespace(path="here")
    brokers._check_ports = lambda: None
    fails = iter([True, False, True, True])

    def wait():
        if next(fails):
            raise NoMemory("Broker 1 had too little memory.")

    brokers._await = wait
    brokers.start()
    assert heaps == ["-Xmx1536m", "-Xmx6144m"]
    with pytest.raises(LabError, match="too little memory.\nIf it goes on: .* Begin another one with --dir"):
        brokers.start()


@pytest.mark.parametrize("settings", [{}, {"compression_type": "gzip"}])
def test_the_boards_topic_takes_no_large_records(broker, settings):
    with pytest.raises(kafka_errors.MessageSizeTooLargeError):
        write(broker, "carl", "carl.progress", bytes(900_000), b"lesson_01/q1", **settings)


def test_the_boards_topic_cannot_be_filled(broker):
    """Or its learner, who may not delete it, would be held for good, and the board read it all at each start."""
    part = TopicPartition("carl.progress", 0)
    with KafkaProducer(**security(broker, "carl")) as producer:
        for number in range(80):
            producer.send(part.topic, os.urandom(100_000), key=b"%d" % number)
        producer.flush(timeout=60)
    with server.connect(broker.folder, broker.folder.room(), broker.brokers.ports, KafkaConsumer) as consumer:
        wait_until(lambda: consumer.beginning_offsets([part])[part], "the oldest to be deleted", timeout=60)
    usage = lambda: limits.measure(broker.brokers.homes)["carl"].bytes  # noqa: E731
    wait_until(lambda: usage() < 7_500_000, "the disk to be given back", timeout=60)


def test_what_counts_as_taken(tmp_path):
    """Of each learner on each broker: bytes and files of all replicas, partitions once, what is deleted not as one."""
    gone = "ann.old-0." + "0123456789abcdef" * 2 + "-delete"
    for place in (
        "1/ann.a-0",
        "1/ann.a-1",
        "2/ann.a-0",
        f"1/{gone}",
        "1/bob.with-dash-3.x-0",
        "1/__consumer_offsets-5",
    ):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0.log").write_bytes(bytes(8192))
    (tmp_path / "1" / "meta.properties").touch()
    usage = limits.measure([tmp_path / "1", tmp_path / "2", tmp_path / "none"])
    assert sorted(usage) == ["ann", "bob"]
    assert usage["ann"].partitions == {"ann.a-0", "ann.a-1"} and usage["ann"].files == 4
    assert usage["ann"].bytes == 4 * 8192
    assert usage["bob"].partitions == {"bob.with-dash-3.x-0"}


def test_the_teachers_topics_have_no_limit(monkeypatch, tmp_path):
    taken = limits.Usage(10**12, 10**6)
    monkeypatch.setattr(learners, "held", lambda _admin: set())
    monkeypatch.setattr(limits, "measure", lambda _homes: {"shared": taken})
    monkeypatch.setattr(limits, "count_groups", lambda _admin, _usage: None)
    monkeypatch.setattr(limits, "topics", lambda _admin: {"shared.history": 2000})
    told, nobody = [], None  # without a client, anything that it would do is an error
    limits.Watchdog(nobody, [tmp_path / "data"], [], 300, told.append).look()
    assert "shared" not in repr(told)


def test_on_a_low_disk_the_largest_is_held(monkeypatch, tmp_path):
    """And another one only if that does not help; those with little go on."""
    held, told, megabytes, free = set(), [], {"ann": 200, "bob": 250, "carl": 29, "shared": 900}, 5_000
    monkeypatch.setattr(learners, "held", lambda _admin: set())
    monkeypatch.setattr(learners, "hold", lambda _admin, name: held.add(name))
    monkeypatch.setattr(learners, "release", lambda _admin, name: held.discard(name))
    monkeypatch.setattr(limits, "count_groups", lambda _admin, _usage: None)
    monkeypatch.setattr(limits, "topics", lambda _admin: {})
    usage = lambda _homes: {name: limits.Usage(bytes=taken * 10**6) for name, taken in megabytes.items()}  # noqa: E731
    monkeypatch.setattr(limits, "measure", usage)
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda _path: types.SimpleNamespace(free=free * 10**6))
    dog = limits.Watchdog(None, [tmp_path / "data"], [], 300, told.append)
    for free, expected in [
        (1_001, set()), (999, {"bob"}), (950, {"bob"}), (890, {"bob", "ann"}), (10, {"bob", "ann"}),
        (1_050, {"bob", "ann"}), (1_101, set()), (999, {"bob"}),
    ]:  # fmt: skip
        dog.look()
        assert held == expected, free
    assert "The disk has 999 MB left" in told[0] and "bob is held" in told[1] and "250 MB theirs" in told[1]
    megabytes["bob"] = 1  # he deletes, and it does not help enough
    dog.look()
    assert held == {"ann"}


def test_a_disk_that_is_too_small_for_all(tmp_path, monkeypatch, capsys):
    from classroom.commands import _say_if_too_small

    folder = Folder(tmp_path / "class")
    folder.make(room_of("localhost"))
    for free, warned in [(1_301, False), (1_299, True)]:
        monkeypatch.setattr(
            limits.shutil, "disk_usage", lambda _path, free=free: types.SimpleNamespace(free=free * 10**6)
        )
        _say_if_too_small(folder, [])
        assert ("may take 300 MB more, and the disk has 299 to spare" in capsys.readouterr().out) == warned


def test_a_broker_without_memory_is_started_again():
    """One learner may have brought it there: that must not end the class."""
    brokers, started = object.__new__(server.Brokers), []

    def check():
        raise NoMemory("Broker 1 had too little memory")

    brokers._brokers = [types.SimpleNamespace(check=check, node=types.SimpleNamespace(id=1))]
    brokers._launch = started.append
    assert brokers.mend() == [1] and started == brokers._brokers


def test_rights_that_the_cluster_does_not_take_are_an_error(tmp_path):
    refused = kafka_errors.ClusterAuthorizationFailedError
    infos = [{"iterations": 4096}]
    admin = types.SimpleNamespace(
        create_acls=lambda _acls: {"succeeded": [], "failed": [refused]},
        delete_acls=lambda filters: [(each, [], refused) for each in filters],
        alter_user_scram_credentials=lambda _deletions: {"ann": "not now"},
        describe_user_scram_credentials=lambda _names: {"ann": {"error": None, "credential_infos": infos}},
        list_groups=list,
        list_topics=list,
        list_config_resources=dict.fromkeys,
        list_transactions=dict,
    )
    folder = Folder(tmp_path / "class")
    folder.make(room_of("localhost"))
    for change in (
        lambda: learners.hold(admin, "ann"),
        lambda: learners.release(admin, "ann"),
        lambda: learners.remove(folder, admin, "ann"),
    ):
        with pytest.raises(refused):
            change()
    admin.create_acls = lambda _acls: {"failed": []}
    admin.delete_acls = lambda filters: [(each, [], kafka_errors.NoError) for each in filters]
    with pytest.raises(LabError, match="log-in of ann .not now."):
        learners.remove(folder, admin, "ann")
    assert "ann" in folder.room().learners, "it can be tried again"
    infos.clear()  # an earlier try got as far as that
    learners.remove(folder, admin, "ann")
    assert "ann" not in folder.room().learners


def test_a_writer_is_slowed_down(broker, ann):
    """Client quotas: after a burst of some ten seconds' worth the broker makes the client wait."""
    with KafkaProducer(**security(broker, "ann")) as producer:
        sent = 0.0
        began = time.monotonic()
        throttled = 0
        while not throttled and time.monotonic() < began + 60:
            producer.send("ann.orders", bytes(900_000)).get(60)
            sent += 0.9
            throttled = max(
                value for group in producer.metrics().values() for name, value in group.items()
                if name == "throttle-time-max"
            )  # fmt: skip
    assert throttled > 0, f"{sent} MB in {time.monotonic() - began} s without a wait"


def test_ten_thousand_topics_one_by_one(broker, monkeypatch):
    monkeypatch.setattr(limits, "PARTITIONS", 60)
    learners.add(broker.folder, broker.admin, ["eve"])
    with (
        somebody_else_works(broker),
        watched(broker) as told,
        KafkaAdminClient(**security(broker, "eve")) as eve,
    ):
        for number in range(10_000):
            try:
                made(eve, f"eve.topic-{number}")
            except REFUSED:
                break
        taken = len(limits.measure(broker.brokers.homes)["eve"].partitions)
        wait_until(lambda: told, "the word of it", timeout=20)  # told after it is done, so the refusal comes first
        assert "eve is held" in told[0] and 60 < taken < 200, (told, taken)
        learners.reset(broker.admin, "eve")
        wait_until(lambda: told[-1] == "eve may write again.", "the release", timeout=60)
    print(f"held at {taken} topics")


def _grown(admin, **topics: int) -> None:
    admin.create_topics({name.replace("_", "."): {"num_partitions": 1} for name in topics})
    admin.create_partitions({name.replace("_", "."): count for name, count in topics.items()})


FLOODS = {
    "ten thousand topics": lambda ivy: ivy.create_topics(
        {f"ivy.topic-{n}": {"num_partitions": 1} for n in range(9999)}
    ),
    "nine thousand partitions": lambda ivy: ivy.create_topics({"ivy.topic-0": {"num_partitions": 9000}}),
    "nine thousand partitions more": lambda ivy: _grown(ivy, ivy_orders=9000),
}


@pytest.mark.parametrize("what", FLOODS)
def test_one_request_makes_a_hundred_partitions_at_most(broker, what):
    """Kafka's quota lets one request of any size pass, and refuses the next ones."""
    learners.add(broker.folder, broker.admin, ["ivy"])
    with somebody_else_works(broker), KafkaAdminClient(**security(broker, "ivy")) as ivy:
        with pytest.raises(REFUSED):
            FLOODS[what](ivy)
        assert made_of(broker, "ivy") == 0
        made(ivy, "ivy.topic-0")
    learners.remove(broker.folder, broker.admin, "ivy")


def made_of(broker, name: str) -> int:
    return sum(topic.startswith(f"{name}.topic-") for topic in broker.admin.list_topics())


def made(admin, topic: str) -> None:
    """Make a topic, as soon as the quota lets it."""

    def once():
        admin.create_topics({topic: {"num_partitions": 1}})
        return True

    # of a client that has to wait, kafka-python 3.0.12 says that the node is not ready
    waiting = (kafka_errors.NodeNotReadyError, kafka_errors.ThrottlingQuotaExceededError)
    wait_until(once, f"topic {topic}", timeout=60, pause=0.02, retry=waiting)


# -- what a teacher does, by command -----------------------------------------------------------------------------------


@pytest.mark.full
def test_a_reset_beside_running_programs(broker, monkeypatch):
    """Of one that joins again and again, and of a share group, whose members the administrator cannot remove."""
    learners.add(broker.folder, broker.admin, ["ivan"])
    for name, value in broker.environment("ivan").items():
        monkeypatch.setenv(name, value)
    stop, refused = threading.Event(), []

    def classic():
        while not stop.is_set():
            with (
                contextlib.suppress(kafka_errors.KafkaError),
                KafkaConsumer("ivan.orders", group_id="ivan.classic", **security(broker, "ivan")) as consumer,
            ):
                while not stop.is_set():
                    consumer.poll(timeout_ms=100)

    def share(lab):
        from java.time import Duration
        from org.apache.kafka.clients.consumer import KafkaShareConsumer
        from org.apache.kafka.common.errors import GroupAuthorizationException
        from org.apache.kafka.common.serialization import StringDeserializer

        config = java_config(lab, {"group.id": "ivan.share"})
        with KafkaShareConsumer(config, StringDeserializer(), StringDeserializer()) as consumer:
            consumer.subscribe(["ivan.orders"])
            with contextlib.suppress(GroupAuthorizationException):
                while not stop.is_set():
                    consumer.poll(Duration.ofMillis(100))
            refused.append(not stop.is_set())

    with Cluster() as lab, KafkaAdminClient(**security(broker, "ivan")) as ivan:
        ivan.create_topics({"ivan.orders": {"num_partitions": 1}})
        start_java(streams=True)  # as all tests of one process: Java starts once, with one set of jars
        threads = [threading.Thread(target=classic), threading.Thread(target=share, args=(lab,))]
        for thread in threads:
            thread.start()
        try:
            groups = lambda: {g["group_id"] for g in ivan.list_groups() if g["group_state"] == "Stable"}  # noqa: E731
            passing = (kafka_errors.CoordinatorLoadInProgressError,)
            wait_until(lambda: groups() == {"ivan.classic", "ivan.share"}, "the members", timeout=60, retry=passing)
            assert learners.reset(broker.admin, "ivan") == 1
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert refused == [True]
        made(ivan, "ivan.orders")
        again = lambda: read_by_group(broker, "ivan")  # noqa: E731
        wait_until(
            again, "his groups to work again", timeout=30, retry=(REFUSED,)
        )  # brokers hear of rights in a moment


def read_by_group(broker, name: str) -> list[bytes]:
    write(broker, name, f"{name}.orders")
    return read(broker, name, f"{name}.orders", group=f"{name}.again")


@pytest.mark.full
def test_a_new_password_ends_what_is_connected(monkeypatch):
    """When it has to log in again; the others do so without noticing."""
    monkeypatch.setattr(server, "LOG_IN_AGAIN", 2)
    with secured_broker() as broker:
        learners.add(broker.folder, broker.admin, ["ann", "bob"])
        for name in ("ann", "bob"):
            broker.admin.create_topics({f"{name}.orders": {"num_partitions": 1}})
        old = broker.folder.room().learners["ann"]
        with (
            KafkaProducer(**security(broker, "ann"), reconnect_backoff_max_ms=200) as anns,
            KafkaProducer(**security(broker, "bob")) as bobs,
            KafkaConsumer(
                "bob.orders", **security(broker, "bob"), group_id="bob.g", auto_offset_reset="earliest"
            ) as consumer,
            KafkaAdminClient(**security(broker, "bob")) as admin,
        ):
            anns.send("ann.orders", b"x").get(30)
            learners.renew(broker.folder, broker.admin, "ann")
            sent, got, ended, deadline = 0, 0, False, time.monotonic() + 40
            while not ended or got < sent:
                assert time.monotonic() < deadline, (sent, got, ended)
                if not ended:
                    bobs.send("bob.orders", b"x").get(30)
                    sent += 1
                    try:
                        anns.send("ann.orders", b"x").get(4)
                    except kafka_errors.KafkaError:  # kafka-python 3.0.12 says nothing, and tries again
                        ended = True
                got += sum(map(len, consumer.poll(timeout_ms=100).values()))
                consumer.commit()
                assert admin.list_topics()
            end = read_end(broker, "ann.orders")
            assert write(broker, "ann", "ann.orders").offset == end  # with the new one
            learners.enrol(broker.admin, {"ann": old})  # or it would not end


class Served:
    """`python -m helpers serve` as a process of its own."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.process, self.starts = folder, free_ports(1), None, 0

    def start(self, *options):
        self.output = open(self.folder.with_suffix(".out"), "ab")  # noqa: SIM115
        command = [sys.executable, "-m", "helpers", "serve", "--dir", self.folder, "--port", str(self.port)]
        self.process = subprocess.Popen([*command, *options], stdout=self.output, stderr=self.output)
        self.starts += 1
        up = lambda: self.said.count("Ctrl-C stops it") == self.starts  # noqa: E731
        wait_until(lambda: up() or self.process.poll() is not None, "serve", timeout=90)
        assert self.process.poll() is None, self.said
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        assert any("kafka.Kafka" in child.cmdline() for child in self.children)

    def left_behind(self) -> list:
        """What runs still of all that a `serve` started, and what only a running one has in its folder."""
        return [child for child in self.children if not _is_over(child)] + [*self.folder.glob("running.json")]

    @property
    def said(self) -> str:
        return self.folder.with_suffix(".out").read_text()

    def end(self, number=signal.SIGINT) -> int:
        self.process.send_signal(number)
        status = self.process.wait(60)
        self.output.close()
        return status

    def command(self, *arguments):
        done = call("serve", "--dir", self.folder, *arguments)
        assert not done.exception or done.exit_code == 1, done.exception
        return done


@pytest.fixture
def served(tmp_path):
    served = Served(tmp_path / "class")
    yield served
    if served.process and served.process.poll() is None:
        served.process.kill()
        served.process.wait()


def as_learner(card: Path, code: str, home: Path) -> subprocess.CompletedProcess:
    """Run Python as a learner whose shell has read their card."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("COURSE_B")} | {"HOME": str(home)}
    script = f"source '{card}'\n{sys.executable} -c '{code}'"
    env["COURSE_CACHE_DIR"] = os.environ.get("COURSE_CACHE_DIR") or str(_cache())
    return subprocess.run(["bash"], input=script, env=env, capture_output=True, text=True, timeout=120)


def _cache():
    from helpers.kafka.cache import cache_folder

    return cache_folder()


WRITE = """
from helpers import Cluster
from kafka import KafkaProducer, KafkaAdminClient
import sys
with KafkaAdminClient(**Cluster().connection) as admin, KafkaProducer(**Cluster().connection) as producer:
    admin.create_topics({"PREFIX.kept": {"num_partitions": 1}})
    producer.send("PREFIX.kept", b"hello").get(30)
"""
READ = """
from helpers import Cluster
from kafka import KafkaConsumer, TopicPartition
with KafkaConsumer(**Cluster().connection) as consumer:
    print(consumer.end_offsets([TopicPartition("PREFIX.kept", 0)]))
"""


def command_lines() -> str:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(process.cmdline()) + repr(process.environ()))
    return "\n".join(found)


def test_a_class_from_first_to_last(served, tmp_path):
    served.start("--learners", "2", "--address", "localhost")
    assert "listens on 127.0.0.1." in served.said and f"helpers board --dir {served.folder}," in served.said
    assert re.search("500 partitions, 300 groups and 300 MB; looked at every 1 s, and held when above", served.said)
    cards = served.folder / "cards"
    assert sorted(card.name for card in cards.iterdir()) == ["learner01.txt", "learner02.txt", "list.html"]
    assert served.command("add", "ann").output.strip() == str(cards / "ann.txt")
    kept = Folder(served.folder).room()
    secrets = [kept.admin_password, *kept.learners.values()]
    assert len(set(secrets)) == 4

    # Secrets: on no command line, in no environment, in no log; files that hold them are the teacher's only.
    lines = command_lines()
    assert str(served.folder) in lines and not any(secret in lines for secret in secrets)
    runs = [path for path in base_folder().rglob("*") if path.is_file()]
    holding = [path for path in [*runs, *served.folder.rglob("*")] if path.is_file() and holds(path, secrets)]
    names = {path.name for path in holding}
    assert names == {"room.json", "server.properties", "ann.txt", "learner01.txt", "learner02.txt"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in holding)
    assert stat.S_IMODE(served.folder.stat().st_mode) == 0o700
    assert not any(secret in served.said for secret in secrets)

    done = as_learner(cards / "ann.txt", WRITE.replace("PREFIX", "ann"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "already" in served.command("add", "ann").output
    assert "cannot be a learner's name" in served.command("add", "Ann Lee").output
    assert re.search(r"ann +2 partitions", served.command("status").output)

    # Another `serve` of the same class is refused; a stop keeps everything.
    assert "served already" in served.command().output
    assert "kept in" in served.command("stop").output
    assert served.process.wait(60) == 0 and "Stopped." in served.said
    assert served.left_behind() == []
    assert "does not run" in served.command("reset", "ann").output

    served.start()
    assert Folder(served.folder).room().learners == kept.learners
    done = as_learner(cards / "ann.txt", READ.replace("PREFIX", "ann"), tmp_path)
    assert "1}" in done.stdout, done.stderr

    # A reset empties the corner, a new password makes the old card useless, a learner who is out stays out.
    assert "is empty (1 topics" in served.command("reset", "ann").output
    assert re.search(r"ann +1 partitions", served.command("status").output), "what the board knows is kept"
    assert "There is no learner bob" in served.command("reset", "bob").output
    old = tmp_path / "old.txt"
    old.write_text((cards / "ann.txt").read_text())
    served.command("password", "ann")
    assert "refuses the log-in of user ann" in as_learner(old, WRITE.replace("PREFIX", "ann"), tmp_path).stderr
    again = as_learner(cards / "ann.txt", WRITE.replace("PREFIX", "ann"), tmp_path)
    assert again.returncode == 0, again.stderr
    old.write_text((cards / "ann.txt").read_text())
    assert "ann is out" in served.command("remove", "ann").output
    assert not (cards / "ann.txt").exists()
    assert "refuses the log-in of user ann" in as_learner(old, WRITE.replace("PREFIX", "ann"), tmp_path).stderr
    assert served.end(signal.SIGINT) == 0
    assert served.left_behind() == []


def holds(path: Path, secrets: list[str]) -> bool:
    content = path.read_bytes()
    return any(secret.encode() in content for secret in secrets)


@pytest.mark.full
def test_a_killed_serve_takes_its_brokers_along(served):
    served.start("--address", "localhost")
    next(
        child for child in served.children if "kafka.Kafka" in child.cmdline()
    ).kill()  # as a full memory makes Linux do
    wait_until(lambda: "is started again" in served.said, "the broker to be mended", timeout=30)
    served.children = psutil.Process(served.process.pid).children(recursive=True)
    served.process.kill()
    served.process.wait()
    wait_until(lambda: all(map(_is_over, served.children)), "the brokers to be gone", timeout=10)
    served.start()
    assert served.end(signal.SIGTERM) == 0


def test_an_interrupt_during_the_start(served):
    command = [sys.executable, "-m", "helpers", "serve", "--dir", served.folder, "--port", str(served.port)]
    process = subprocess.Popen([*command, "--address", "localhost"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(lambda: (served.folder / "broker-1.log").exists(), "the brokers to start", timeout=60)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in said
    assert all(map(_is_over, children))


def test_a_port_that_is_taken(served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", served.port))
        taken.listen()
        said = served.command("--port", served.port, "--address", "localhost")
    assert said.exit_code == 1 and f"Port {served.port}" in said.output and "is taken" in said.output


def test_an_address_that_nobody_knows(served):
    said = call("serve", "--dir", served.folder, "--address", "laptop.invalid").output
    assert "The address laptop.invalid is not known here: set --address to one of" in said
    assert not served.folder.exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    """Its rights would be taken from all others, and passwords lie among files that somebody may pass on."""
    folder = Folder(tmp_path / "mine")
    folder.path.mkdir(mode=0o755)
    (folder.path / "marks.txt").touch()
    with pytest.raises(LabError, match="holds other files and no class"):
        folder.make(room_of("localhost"))
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o755 and os.listdir(folder.path) == ["marks.txt"]
    (folder.path / "marks.txt").rename(folder.path / ".ca.pem.123")  # of a begin that was interrupted
    folder.make(room_of("localhost"))
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_another_address_makes_other_cards(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "class")
    folder.make(room_of("10.1.2.3"))
    from classroom.commands import _settle

    monkeypatch.setattr(server, "own_addresses", lambda: ["10.9.9.9"])
    monkeypatch.setattr(server, "likely_address", lambda: "10.9.9.9")
    _settle(folder, None, None, None, None)
    assert folder.room().address == "10.9.9.9"
    _settle(folder, "localhost", None, 9999, None)  # what is asked for wins, and stays
    assert folder.room().servers == "localhost:9999"
    assert not server.is_gone("localhost") and server.is_gone("10.1.2.3") and not server.is_gone("203.0.114.7")
    with pytest.raises(LabError, match="has 1 broker"):
        _settle(folder, None, 3, None, None)


@pytest.mark.parametrize(
    ("address", "bound", "cure"),
    [
        ("10.1.2.3", "10.1.2.3", "give out the new cards"),
        ("laptop.local", "10.1.2.3", "the cards stay as they are"),
        ("laptop.local", "10.9.9.9", ""),
        ("kafka.example.org", "0.0.0.0", ""),
        ("localhost", "127.0.0.1", ""),
    ],
)
def test_a_change_of_network_is_told(monkeypatch, tmp_path, capsys, address, bound, cure):
    """Once, by whatever `serve` was started with: what is listened on has to be an address of this machine still."""
    from classroom.commands import _watch

    monkeypatch.setattr(server, "own_addresses", lambda: ["10.9.9.9"])
    folder = Folder(tmp_path / "class")
    folder.make(room_of(address))
    rounds = iter([False, False, True])
    ended = types.SimpleNamespace(wait=lambda _seconds: next(rounds))
    served = types.SimpleNamespace(bound=bound, mend=list, logs=[])
    _watch(folder, served, types.SimpleNamespace(look=lambda: None), ended)
    said = capsys.readouterr().out
    assert said.count("nobody gets in") == bool(cure) and cure in said


def test_a_class_in_another_folder_is_named_in_hints_and_found_after_a_command(tmp_path):
    folder = Folder(tmp_path / "my class")
    option = f"--dir '{folder.path}'"
    said = call("board", "--dir", folder.path).output
    assert f"begin one with python -m helpers serve {option} --learners 30" in said
    folder.make(room_of("localhost"))
    for arguments in (["--dir", folder.path, "status"], ["status", "--dir", folder.path]):
        assert "localhost:9093 is not being served" in call("serve", *arguments).output
    said = call("serve", "reset", "ann", "--dir", folder.path).output
    assert said.strip().endswith(f"python -m helpers serve {option}")
    assert Folder(paths.CLASS).option == ""
    with folder.hold(), pytest.raises(LabError, match=f"stop {option}"), folder.hold():
        pass


def test_what_a_killed_serve_announced_is_not_believed(tmp_path):
    """Or `stop` would end whoever has its process id now, and the board would ask at ports of the past."""
    folder = Folder(tmp_path / "class")
    folder.make(room_of("localhost"))
    folder.announce([1])
    with folder.hold():
        assert folder.is_served()
        with pytest.raises(LabError, match="does not run .yet."):
            folder.running()
        folder.announce([2])
        assert folder.running()["ports"] == [2]


def test_two_commands_at_once(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "class")
    folder.make(room_of("localhost"))
    monkeypatch.setattr("classroom.folder.PATIENCE", 0.1)
    with folder.change(), pytest.raises(LabError, match="Another command changes this class"), folder.change():
        pass


@pytest.mark.parametrize("error", [kafka_errors.NodeNotReadyError("no"), TimeoutError("waited")])
def test_what_the_brokers_do_not_do_is_said_in_one_sentence(served, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Folder, "running", fail)
    monkeypatch.setattr(server, "running", fail)
    for arguments in (["serve", "--address", "localhost"], ["board", "--text"]):
        said = call(arguments[0], "--dir", served.folder, *arguments[1:])
        assert said.exit_code == 1 and "did not do it" in said.output and "Traceback" not in said.output


def room_of(address: str):
    from classroom.folder import Room
    from helpers.kafka.broker import new_id

    return Room(new_id(), 1, address, 9093, 300, learners={"ann": "word"})


@pytest.mark.parametrize(
    ("address", "bound"),
    [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("10.9.9.9", "10.9.9.9"), ("198.51.100.7", "0.0.0.0")],
)
def test_what_is_listened_on(monkeypatch, address, bound):
    monkeypatch.setattr(server, "own_addresses", lambda: ["10.9.9.9"])
    assert server.address_to_bind(address) == bound


@pytest.mark.full
def test_three_brokers():
    with secured_broker(brokers=3) as three:
        learners.add(three.folder, three.admin, ["ann"])
        assert len(three.admin.describe_cluster()["brokers"]) == 3
        assert network.of_class(three.folder)[0] in ("ok", "warning")
        with KafkaAdminClient(**security(three, "ann")) as ann:
            ann.create_topics({"ann.orders": {"num_partitions": 3, "replication_factor": 3}})
        assert write(three, "ann", "ann.orders", acks="all")


# -- a learner's card, and doctor --------------------------------------------------------------------------------------


@pytest.fixture
def card(broker, monkeypatch):
    """The variables of ann's card are set."""
    values, certificate = learners.read_card(learners.card_file(broker.folder, "ann").read_text())
    assert certificate == broker.folder.ca_file.read_text()
    assert values == learners.environment(broker.folder.room(), "ann", "$HOME/.kafka-class.pem")
    for name, value in broker.environment("ann").items():
        monkeypatch.setenv(name, value)
    return values


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_takes_a_card_as_it_is(broker, tmp_path, shell):
    """The whole file, so that no password goes through the shell's history."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    script = f"set -e; source '{learners.card_file(broker.folder, 'ann')}'; env; cat $COURSE_SSL_CA_FILE"
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([shell, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith("This terminal is in class, as ann.")
    there = dict(re.findall(r"^(COURSE_\w+)=(.*)$", done.stdout, re.M))
    ca_file = str(tmp_path / learners.CA_FILE)
    assert there == learners.environment(broker.folder.room(), "ann", ca_file)
    assert done.stdout.endswith(broker.folder.ca_file.read_text())


def test_a_terminal_that_lost_the_variables_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = lambda: dict(doctor._checks(types.SimpleNamespace(**dict.fromkeys(TRIAL)), tmp_path))  # noqa: E731
    assert "Class" not in names()
    (tmp_path / learners.CA_FILE).touch()
    assert "not in class" in names()["Class"]().text
    monkeypatch.setenv("COURSE_BOOTSTRAP_SERVERS", "localhost:1")
    assert "Class" not in names()


def test_learners_of_a_file_of_names(broker, tmp_path):
    found = learners.named(["Zoë Lee", "Zoe Lee", "李雷", "7 of 9", "Admin"], ["ann"])
    assert found == {
        "zoe-lee": "Zoë Lee",
        "zoe-lee-2": "Zoe Lee",
        "learner": "李雷",
        "of": "7 of 9",
        "admin-2": "Admin",
    }
    (tmp_path / "names.txt").write_text("Zoë <Lee>\n\n")
    said = call("serve", "--dir", broker.folder.path, "add", "--file", tmp_path / "names.txt").output
    assert said.strip().endswith("cards/zoe-lee.txt"), said
    assert broker.folder.room().names == {"zoe-lee": "Zoë <Lee>"}
    listed = (broker.folder.path / "cards" / "list.html").read_text()
    assert "<td>Zoë &lt;Lee&gt;<td>zoe-lee<td>zoe-lee.txt" in listed
    assert not any(word in listed for word in broker.folder.room().learners.values())
    learners.remove(broker.folder, broker.admin, "zoe-lee")
    assert broker.folder.room().names == {}


def test_doctor_on_a_card(broker, card, ann):
    found = doctor.check_external_cluster()
    assert found.mark == "ok" and card["COURSE_BOOTSTRAP_SERVERS"] in found.text


def test_doctor_takes_a_file_for_the_environment(broker, monkeypatch):
    monkeypatch.setattr(doctor, "_checks", lambda *_: [("Your Kafka", doctor.check_external_cluster)])
    before = dict(os.environ)
    done = call("doctor", "--card", learners.card_file(broker.folder, "ann"))
    assert done.exit_code == 0 and "written and" in done.output, done.output
    assert dict(os.environ) == before
    refused = call("doctor", "--card", __file__)
    assert refused.exit_code == 1 and "not a card of a class" in refused.output


def test_doctor_says_what_is_the_matter_in_the_room(broker, card, monkeypatch):
    monkeypatch.setenv("COURSE_BOOTSTRAP_SERVERS", f"localhost:{free_ports(1)}")
    found = doctor.check_external_cluster()
    assert found.mark == "bad" and "`serve` does not run" in found.advice
    by_number = broker.address.replace("localhost", "127.0.0.1")
    monkeypatch.setenv("COURSE_BOOTSTRAP_SERVERS", by_number)
    found = doctor.check_external_cluster()
    assert "another host" in found.text and "ask for a new card" in found.advice


def test_doctor_tells_networks_and_firewalls_apart(monkeypatch):
    monkeypatch.setattr(network, "own_networks", lambda: [ipaddress.IPv4Network("10.1.0.0/16")])
    silent = diagnosis.Unreachable(2, "nobody answers", "wait")
    monkeypatch.setenv("COURSE_BOOTSTRAP_SERVERS", "192.168.7.5:9093")
    assert "is in 10.1.0.0/16, and 192.168.7.5 is in another network" in network.advice(silent)
    monkeypatch.setenv("COURSE_BOOTSTRAP_SERVERS", "10.1.2.3:9093")
    assert "firewall" in network.advice(silent) and "another network" not in network.advice(silent)


TRIAL = ("java", "cache", "broker", "record", "stop")  # what doctor starts, and is not asked about here


def test_doctor_on_the_teachers_machine(broker, monkeypatch, tmp_path):
    mark, text, advice = network.of_class(broker.folder)
    assert mark == "ok" and "answers" in text and "doctor --card" in advice
    folder = Folder(tmp_path / "class")
    folder.make(room_of("localhost"))
    assert network.of_class(folder)[0] == "skipped"
    looked = dict(doctor._checks(types.SimpleNamespace(**dict.fromkeys(TRIAL)), folder.path))["Your class"]()
    assert looked.mark == "skipped" and "localhost:9093" in looked.text
    with folder.change() as kept:
        kept.address = "10.77.1.2"
    mark, text, cure = network.of_class(folder)
    assert mark == "bad" and "10.77.1.2 is not this machine's any more" in text and "new cards" in cure
    assert "sudo ufw allow 9093/tcp, or sudo firewall-cmd --add-port=9093/tcp" in network.firewall(9093)
    assert "sudo ufw allow 9093:9095/tcp, or sudo firewall-cmd --add-port=9093-9095/tcp" in network.firewall(9093, 3)
