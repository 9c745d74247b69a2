"""An external cluster: `Cluster()` with the course's variables set, as a user whose rights end at a prefix.

Each error is one sentence that says what to do, and comes in time; nothing but the course's own old topics is swept.
"""

import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from click.testing import CliRunner
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import MemberToRemove, ResourceType
from kafka.structs import OffsetAndMetadata

from course import cli, leftovers
from helpers import Cluster, LabError, read_topic
from helpers.kafka import diagnosis, external
from helpers.paths import COURSE
from helpers.streams import java_config, start_java
from helpers.waiting import wait_until
from tests.secured import company_broker, make_certificates, secured_broker, stock_cluster

OLD = f"{int(time.time()) - 13 * 3600:08x}abcd"  # the run id of a run that began 13 hours ago
YOUNG = f"{int(time.time()) - 11 * 3600:08x}abcd"
OWN_VARIABLES = re.compile("COURSE_(BOOTSTRAP|SECURITY|SASL|SSL|TOPIC)_")


@pytest.fixture(scope="module")
def secured():
    """A secured broker with two users, each with a corner of their own, and carl who has only topics."""
    with secured_broker() as broker:
        broker.add_user("ann", "ann's secret")
        broker.add_user("bob", "bob's secret")
        broker.add_user("carl", "carl's secret", kinds=(ResourceType.TOPIC,))
        yield broker


@pytest.fixture
def ann(secured):
    """The variables of a user whose corner is empty."""
    yield secured.environment("ann")
    for group in groups(secured, "ann."):
        expel_members(secured, group)
        secured.admin.delete_groups([group])
    secured.admin.delete_topics(topics(secured, "ann.") or ["ann."], raise_errors=False)


@pytest.fixture(scope="module")
def stock():
    with stock_cluster(3) as servers:
        yield servers


@pytest.fixture(scope="module")
def lab():
    """Two embedded brokers, met as an external cluster."""
    with Cluster(brokers=2) as cluster:
        yield cluster


@pytest.fixture
def start(monkeypatch):
    """Call `Cluster()` with these of the course's variables, and no others."""
    started = []

    def call(environment: dict[str, str]) -> Cluster:
        for name in list(os.environ):
            if OWN_VARIABLES.match(name):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        started.append(Cluster())
        return started[-1]

    yield call
    for cluster in started:
        cluster.stop()


def refused(start, environment: dict[str, str], within: float = 4) -> str:
    """What `Cluster()` says when it cannot start: one sentence, in time."""
    began = time.monotonic()
    with pytest.raises(LabError) as caught:
        start(environment)
    assert time.monotonic() - began < within
    said = str(caught.value)
    assert "\n" not in said and re.search(r"^[A-Z].*[^.]\.$", said), said
    return said


def topics(secured, prefix: str) -> list[str]:
    return sorted(name for name in secured.admin.list_topics() if name.startswith(prefix))


def groups(secured, prefix: str) -> list[str]:
    found = (group["group_id"] for group in secured.admin.list_groups())
    return sorted(name for name in found if name.startswith(prefix))


def expel_members(secured, group: str) -> None:
    members = secured.admin.describe_groups([group])[group]["members"]
    if members:
        secured.admin.remove_group_members(group, [MemberToRemove(member["member_id"]) for member in members])


def receive(consumer: KafkaConsumer, n: int) -> list:
    """The next records, at least `n` within 20 s."""
    records = []
    deadline = time.monotonic() + 20
    while len(records) < n and (left := deadline - time.monotonic()) > 0:
        records += sum(consumer.poll(timeout_ms=left * 1000).values(), [])
    return records


def committed_are(n: int, cluster: Cluster, topic: str) -> bool:
    return len(read_topic(cluster, topic)) == n


def leave_group(secured, group: str, topic: str) -> None:
    """Make a group without members, with one committed offset."""

    def committed():
        result = secured.admin.alter_group_offsets(group, {TopicPartition(topic, 0): OffsetAndMetadata(0, "", -1)})
        return set(result.values()) == {kafka_errors.NoError}

    passing = (kafka_errors.RetriableError, kafka_errors.UnknownTopicOrPartitionError)
    wait_until(committed, f"group {group}", timeout=20, retry=passing)


# -- a lesson's work with no more rights than a prefix ---------------------------------------------------------------


def test_names_are_in_a_corner_of_their_own(start, ann):
    cluster = start(ann)
    real = cluster.topic("orders"), cluster.group("billing"), cluster.transactional_id("payer")
    for name, lesson in zip(real, ("orders", "billing", "payer"), strict=True):
        assert re.fullmatch(rf"ann\.course-[0-9a-f]{{12}}\.{lesson}", name)
        assert cluster.plain(name) == lesson
    assert (
        cluster.plain("orders") == "orders"
        and cluster.plain("bob.course-0123456789ab.x") == "bob.course-0123456789ab.x"
    )
    assert not cluster.embedded and cluster.brokers == [1] and cluster.leader(real[0]) == 1 and cluster.alive()
    cluster.wait_for_in_sync(real[0])


def test_a_lesson_works(start, ann, capfd):
    cluster = start(ann)
    for _ in range(2):  # a cell that is run again begins anew
        topic, group = cluster.topic("orders", partitions=3, config={"retention.ms": 60000}), cluster.group("billing")
        with KafkaProducer(**cluster.connection) as producer:
            for number in range(9):
                producer.send(topic, b"%d" % number, partition=number % 3).get(10)
        with KafkaConsumer(topic, **cluster.connection, group_id=group, auto_offset_reset="earliest") as consumer:
            assert len(receive(consumer, 9)) == 9
            consumer.commit()
        payer = cluster.transactional_id("payer")
        with KafkaProducer(**cluster.connection, transactional_id=payer) as producer:
            producer.init_transactions()
            for end in (producer.commit_transaction, producer.abort_transaction):
                producer.begin_transaction()
                producer.send(topic, b"paid", partition=0).get(10)
                end()
        wait_until(partial(committed_are, 10, cluster, topic), "the committed record to be all that is read")
        assert len(read_topic(cluster, topic, isolation_level="read_uncommitted")) == 11
        # the group's offsets belong to the topic: making that anew takes them away
        cluster.topic("orders")
        with KafkaConsumer(**cluster.connection, group_id=group) as consumer:
            assert consumer.committed(TopicPartition(topic, 0)) is None
    assert capfd.readouterr().err == "", "a notebook would show it"


def test_stop_deletes_all(start, ann, secured):
    secured.admin.create_topics({"ann.mine": {"num_partitions": 1}})
    cluster = start(ann)
    topic, group = cluster.topic("orders"), cluster.group("billing")
    secured.admin.create_topics({f"{topic}-made-elsewhere": {"num_partitions": 1}})  # e.g. by Kafka Streams
    consumer = KafkaConsumer(topic, **cluster.connection, group_id=group, auto_offset_reset="earliest")
    consumer.poll(timeout_ms=1000)
    assert len(topics(secured, "ann.course-")) == 2 and groups(secured, "ann.course-") == [group]
    began = time.monotonic()
    cluster.stop()
    assert time.monotonic() - began < 3
    assert topics(secured, "ann.") == ["ann.mine"] and groups(secured, "ann.") == []
    cluster.stop()
    assert not cluster.alive() and repr(cluster) == "Apache Kafka, stopped"
    with pytest.raises(LabError, match="is stopped: run the cell that starts it again"):
        cluster.topic("orders")
    consumer.close(autocommit=False)
    secured.admin.delete_topics(["ann.mine"])


def test_calling_again_stops_the_earlier_one(start, ann, secured):
    first = start(ann)
    first.topic("orders")
    second = start(ann)
    assert not first.alive() and second.alive() and topics(secured, "ann.") == []


def test_stop_says_what_it_could_not_delete(start, ann, monkeypatch):
    cluster = start(ann)
    topic = cluster.topic("orders")
    monkeypatch.setattr(external, "STOP", 0.5)
    with monkeypatch.context() as without_rights:
        without_rights.setattr(cluster._admin, "delete_topics", lambda *args, **kwargs: None)
        with pytest.warns(UserWarning, match=re.escape(topic)):
            cluster.stop()
    assert not cluster.alive()


def run_child(environment: dict[str, str], code: str) -> subprocess.CompletedProcess:
    """A Python process of its own that makes a topic, a group with a member, and then ends as `code` says."""
    work = """
import os, signal
from kafka import KafkaConsumer
from helpers import Cluster
cluster = Cluster()
topic = cluster.topic("orders")
consumer = KafkaConsumer(topic, **cluster.connection, group_id=cluster.group("billing"))
consumer.poll(timeout_ms=1000)
"""
    inherited = {name: value for name, value in os.environ.items() if not OWN_VARIABLES.match(name)}
    command = [sys.executable, "-c", work + code]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=60)


def test_exit_deletes_all(ann, secured):
    done = run_child(
        ann, "fork = os.fork()\nif fork: os.waitpid(fork, 0); assert cluster.leader(topic) == 1; print('lives')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "lives\n", "")
    assert topics(secured, "ann.") == [] and groups(secured, "ann.") == []


def test_what_a_killed_kernel_left_is_swept_by_age(start, ann, secured, monkeypatch):
    done = run_child(ann, "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -9
    left = topics(secured, "ann.") + groups(secured, "ann.")
    assert len(left) == 2
    start(ann)
    assert topics(secured, "ann.") + groups(secured, "ann.") == left, "another kernel of this user may be using it"
    monkeypatch.setattr(external, "OLD", -60)
    expel_members(secured, left[1])  # as its session timeout does in time
    start(ann)
    wait_until(lambda: topics(secured, "ann.") + groups(secured, "ann.") == [], "the sweep")


def test_what_a_killed_kernel_left_is_deleted_by_its_run(ann, secured, monkeypatch, tmp_path):
    run_child(ann | {"COURSE_KEEP_LOGS": str(tmp_path)}, "os.kill(os.getpid(), signal.SIGKILL)")
    (note,) = tmp_path.glob("*.made")
    kept = note.read_text()
    for name, value in ann.items():
        monkeypatch.setenv(name, value)
    secured.admin.create_topics({f"ann.course-{YOUNG}.orders": {"num_partitions": 1}})
    assert leftovers.of_run(tmp_path) == [] and not note.exists()
    assert topics(secured, "ann.") == [f"ann.course-{YOUNG}.orders"], "that is another run's"
    assert groups(secured, "ann.") == []
    note.write_text(kept)
    monkeypatch.setenv("COURSE_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    (said,) = leftovers.of_run(tmp_path)
    assert re.match(rf"{kept.strip()}… on the cluster \(Nobody answers at 127.0.0.1:1", said)


def test_clean_shows_what_killed_runs_left_and_deletes_it_when_asked(ann, secured, monkeypatch):
    old, young = f"ann.course-{OLD}.orders", f"ann.course-{YOUNG}.orders"
    secured.admin.create_topics({name: {"num_partitions": 1} for name in (old, young, "ann.mine")})
    leave_group(secured, old, old)
    for name, value in ann.items():
        monkeypatch.setenv(name, value)

    def clean(*options, answer):
        return CliRunner().invoke(cli.commands, ["clean", "--cluster", *options], input=answer)

    refused = clean(answer="n\n")
    assert refused.exit_code == 1 and f"{old}\nDelete these 1 from the cluster?" in refused.output
    assert topics(secured, "ann.") == sorted([old, young, "ann.mine"])
    assert "1 deleted." in clean(answer="y\n").output
    assert (topics(secured, "ann."), groups(secured, "ann.")) == (sorted([young, "ann.mine"]), [])
    assert "Nothing of runs older than 12 hours is left" in clean(answer="").output
    assert "1 deleted." in clean("--older", "1", "--yes", answer="").output
    monkeypatch.delenv("COURSE_BOOTSTRAP_SERVERS")
    assert "COURSE_BOOTSTRAP_SERVERS is not set" in clean(answer="").output


def test_sweep_leaves_everything_else_alone(start, ann, secured):
    own = f"ann.course-{OLD}.orders"
    others = [
        f"ann.course-{YOUNG}.orders",
        f"ann.course-{OLD}",
        f"ann.course-{OLD[:-1]}.orders",
        f"ann.course-{OLD.upper()}.orders",
        f"ann.course-{OLD[:-1]}g.orders",
        f"ann.my-course-{OLD}.orders",
        f"bob.course-{OLD}.orders",
        f"course-{OLD}.orders",
        f"annxcourse-{OLD}.orders",
        "ann.orders",
    ]
    secured.admin.create_topics({name: {"num_partitions": 1} for name in [own, *others]})
    for name in [own, *others]:
        leave_group(secured, name, name)
    start(ann)
    wait_until(lambda: own not in topics(secured, ""), "the old topic to be swept")
    assert set(others) <= set(topics(secured, "")) and groups(secured, "") == sorted(others)
    secured.admin.delete_groups(others)
    secured.admin.delete_topics(others)


def test_others_corners_are_closed(start, ann, secured):
    secured.admin.create_topics({"bob.orders": {"num_partitions": 1}})
    cluster = start(ann)
    with (
        KafkaProducer(**cluster.connection, max_block_ms=2000) as producer,
        pytest.raises(kafka_errors.TopicAuthorizationFailedError),
    ):
        producer.send("bob.orders", b"hello").get(5)
    with pytest.raises(
        LabError, match="User ann lacks rights on topic bob.orders: set COURSE_TOPIC_PREFIX, which is ann"
    ):
        cluster.leader("bob.orders")
    secured.admin.delete_topics(["bob.orders"])


@pytest.mark.parametrize("prefix", ["bob.", ""])
def test_a_prefix_without_rights(start, ann, prefix):
    said = refused(start, ann | {"COURSE_TOPIC_PREFIX": prefix})
    assert f"set COURSE_TOPIC_PREFIX, which is {prefix or 'not set'}, to the prefix that this user may use" in said


def test_rights_on_topics_alone(start, secured):
    cluster = start(secured.environment("carl"))
    cluster.topic("orders")
    with pytest.raises(LabError, match="User carl lacks rights on group carl.course-"):
        cluster.group("billing")
    with pytest.raises(LabError, match="User carl lacks rights on transactional id carl.course-"):
        cluster.transactional_id("payer")


def test_harm_is_refused(start, ann):
    cluster = start(ann)
    for harm in (cluster.kill, cluster.pause, cluster.resume, cluster.restart, lambda _: cluster.heal()):
        with pytest.raises(LabError, match=r"use Cluster\(brokers=3\), which starts brokers on this machine\.$"):
            harm(1)


def test_refused_topics(start, ann):
    cluster = start(ann)
    room = 249 - len(cluster.topic("orders").removesuffix("orders"))
    assert len(cluster.topic("x" * min(room, 200))) <= 249
    with pytest.raises(
        LabError, match=f"has {room + 1} characters, and Kafka leaves room for {room} behind ann.course-"
    ):
        cluster.topic("x" * (room + 1))
    with pytest.raises(LabError, match="The cluster refused to make topic 'orders': .*[Rr]eplication"):
        cluster.topic("orders", replication=3)


def test_password_is_not_shown(start, ann):
    connection = start(ann).connection
    assert "secret" not in repr(connection) and "secret" not in repr(pickle.loads(pickle.dumps(connection)))
    assert connection["sasl_plain_password"] == "ann's secret"


# -- how companies let programs in ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    with company_broker(tmp_path_factory.mktemp("company")) as ways:
        yield ways


@pytest.mark.parametrize("way", ["OAUTHBEARER", "mTLS"])
def test_the_ways_into_a_companys_cluster(start, company, way):
    cluster = start(company[way])
    topic, group = cluster.topic("orders"), cluster.group("billing")
    connection = pickle.loads(pickle.dumps(cluster.connection))  # as a worker gets it
    with KafkaProducer(**connection) as producer:
        producer.send(topic, b"hello").get(10)
    with KafkaConsumer(topic, **connection, group_id=group, auto_offset_reset="earliest") as consumer:
        assert [record.value for record in receive(consumer, 1)] == [b"hello"]
    start_java(streams=True)  # as all tests of one process: Java starts once, with one set of jars
    from org.apache.kafka.clients.admin import Admin

    with Admin.create(java_config(cluster)) as admin:
        assert topic in {str(name) for name in admin.listTopics().names().get()}
    assert "secret" not in repr(connection)


@pytest.mark.parametrize(
    "way, change, said",
    [
        (
            "OAUTHBEARER",
            {"SASL_PASSWORD": "guess"},
            "(?i)no token for ann could be had from .*401.*: check COURSE_SASL_",
        ),
        ("OAUTHBEARER", {"SASL_TOKEN_URL": ""}, "takes tokens: set COURSE_SASL_TOKEN_URL"),
        ("OAUTHBEARER", {"SASL_TOKEN_URL": "http://127.0.0.1:9/"}, "(?i)no token .*refused"),
        ("mTLS", {"SSL_CERT_FILE": ""}, "asks for a certificate of yours .*: set COURSE_SSL_CERT_FILE"),
        ("mTLS", {"SSL_CERT_FILE": "none.pem"}, r"none.pem, cannot be used .*\(No such file"),
        ("mTLS", {"SSL_CERT_FILE": __file__}, "cannot be used with COURSE_SSL_KEY_FILE .*: set them to a certificate"),
    ],
)
def test_the_ways_into_a_companys_cluster_that_are_wrong(start, company, way, change, said):
    changes = {f"COURSE_{name}": value for name, value in change.items()}
    assert re.search(said, refused(start, company[way] | changes))


# -- three brokers with Kafka's stock settings -----------------------------------------------------------------------


def test_stock_cluster(start, stock):
    cluster = start({"COURSE_BOOTSTRAP_SERVERS": stock})
    assert cluster.brokers == [1, 2, 3]
    topic = cluster.topic("orders", partitions=3, replication=3, config={"min.insync.replicas": 2})
    assert re.fullmatch(r"course-[0-9a-f]{12}\.orders", topic) and cluster.plain(topic) == "orders"
    cluster.wait_for_in_sync(topic)
    assert {cluster.leader(topic, 1), *cluster.followers(topic, 1)} == {1, 2, 3}
    with KafkaProducer(**cluster.connection) as producer:
        producer.send(topic, b"hello").get(10)
    group = cluster.group("billing")
    with KafkaConsumer(topic, **cluster.connection, group_id=group, auto_offset_reset="earliest") as consumer:
        assert [record.value for record in receive(consumer, 1)] == [b"hello"]
    with KafkaProducer(**cluster.connection, transactional_id=cluster.transactional_id("payer")) as producer:
        producer.init_transactions()
    (partition,) = cluster._partitions(cluster.topic("default"))
    assert len(partition.replica_nodes) == 1, "the cluster's default.replication.factor"


# -- what goes wrong on the way --------------------------------------------------------------------------------------

WRONG = {
    "wrong password": ({"SASL_PASSWORD": "guess"}, "refuses the log-in of user ann .*: check COURSE_SASL_USERNAME"),
    "unknown user": ({"SASL_USERNAME": "eve"}, "refuses the log-in of user eve .*: check COURSE_SASL_USERNAME"),
    "mechanism not offered": ({"SASL_MECHANISM": "PLAIN"}, "does not take PLAIN, but SCRAM-SHA-512: set COURSE_SASL"),
    "mechanism unknown": ({"SASL_MECHANISM": "GSSAPI"}, "is 'GSSAPI': set it to PLAIN, SCRAM-SHA-256, SCRAM-SHA"),
    "no mechanism": ({"SASL_MECHANISM": ""}, "COURSE_SASL_MECHANISM is missing: set it to"),
    "no user": ({"SASL_USERNAME": ""}, "asks for a log-in: set COURSE_SASL_USERNAME as well"),
    "no password": ({"SASL_PASSWORD": ""}, "asks for a log-in: set COURSE_SASL_PASSWORD as well"),
    "protocol unknown": (
        {"SECURITY_PROTOCOL": "TLS"},
        "is 'TLS': set it to PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
    ),
    "user, but no log-in": ({"SECURITY_PROTOCOL": ""}, "nobody logs in with .* PLAINTEXT: set COURSE_SECURITY_PROT"),
    "no log-in": (
        {"SECURITY_PROTOCOL": "SSL", "SASL_USERNAME": ""},
        "hangs up on clients that do not log in: set COURSE_",
    ),
    "no TLS": ({"SECURITY_PROTOCOL": "", "SASL_USERNAME": ""}, r"wants TLS: set COURSE_SECURITY_PROTOCOL to SSL"),
    "no TLS, but a log-in": ({"SECURITY_PROTOCOL": "SASL_PLAINTEXT"}, "wants TLS: set COURSE_.* to SASL_SSL"),
    "no CA file": ({"SSL_CA_FILE": ""}, "is not trusted .*: set COURSE_SSL_CA_FILE to the CA file that you were given"),
    "missing CA file": ({"SSL_CA_FILE": "none.pem"}, r"none.pem, cannot be read \(No such file or directory\): set it"),
    "CA file of another kind": ({"SSL_CA_FILE": __file__}, "holds no certificate in PEM format: set it"),
    "host unknown": ({"BOOTSTRAP_SERVERS": "kafka.invalid:1"}, "kafka.invalid is not known on this network .*: check"),
    "nobody there": ({"BOOTSTRAP_SERVERS": "127.0.0.1:1"}, "Nobody answers at 127.0.0.1:1 .*refused.*: check .* unset"),
    "no port": ({"BOOTSTRAP_SERVERS": "localhost"}, "is 'localhost': set it to host and port of one or more brokers"),
    "a URL": ({"BOOTSTRAP_SERVERS": "http://localhost:9092"}, "set it to host and port"),
    "port too high": ({"BOOTSTRAP_SERVERS": "localhost:99999"}, "set it to host and port"),
    "a comma too many": ({"BOOTSTRAP_SERVERS": "localhost:9092,"}, "set it to host and port"),
    "an odd prefix": ({"TOPIC_PREFIX": "ann/"}, "COURSE_TOPIC_PREFIX is 'ann/': use letters, digits"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings(start, ann, case, capfd):
    changes, expected = WRONG[case]
    assert re.search(expected, refused(start, ann | {f"COURSE_{name}": value for name, value in changes.items()}))
    assert capfd.readouterr().err == ""


def test_certificate_for_another_host(start, ann, secured):
    by_number = secured.address.replace("localhost", "127.0.0.1")
    said = refused(start, ann | {"COURSE_BOOTSTRAP_SERVERS": by_number})
    assert "is for another host" in said and "set COURSE_BOOTSTRAP_SERVERS to the host name that is in" in said


def test_certificate_of_another_authority(start, ann, tmp_path):
    other, _ = make_certificates(tmp_path, "localhost")
    said = refused(start, ann | {"COURSE_SSL_CA_FILE": str(other)})
    assert "is not trusted" in said and f"check that COURSE_SSL_CA_FILE, {other}, is the CA file" in said


def test_tls_to_a_plaintext_port(start, ann, stock):
    said = refused(start, ann | {"COURSE_BOOTSTRAP_SERVERS": stock.replace("127.0.0.1", "localhost")})
    assert "answers, but not with TLS" in said and "set COURSE_SECURITY_PROTOCOL to PLAINTEXT" in said


def test_log_in_where_there_is_none(start, ann, stock):
    said = refused(start, ann | {"COURSE_BOOTSTRAP_SERVERS": stock, "COURSE_SECURITY_PROTOCOL": "SASL_PLAINTEXT"})
    assert "takes no log-in: set COURSE_SECURITY_PROTOCOL to PLAINTEXT and unset COURSE_SASL_USERNAME" in said


def test_old_cluster(start, ann, monkeypatch):
    monkeypatch.setattr(diagnosis, "OLDEST", (99, 0))
    said = refused(start, ann)
    assert (
        "is Apache Kafka 4." in said and "lessons need 99.0 or newer, for its share groups: use a newer cluster" in said
    )


def test_the_least_version_is_the_one_that_the_lessons_need():
    assert diagnosis.OLDEST == (4, 2) and "Apache Kafka 4.2 or newer" in (COURSE / "README.md").read_text()


def test_one_good_address_is_enough(start, ann, secured):
    cluster = start(ann | {"COURSE_BOOTSTRAP_SERVERS": f"kafka.invalid:9092, localhost:1,{secured.address}"})
    assert cluster.connection["bootstrap_servers"] == [secured.address]


def test_nobody_answers_in_time(start):
    """A host that drops what it gets, as behind a firewall: here a queue of connections that is full."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(silent.getsockname())
        said = refused(start, {"COURSE_BOOTSTRAP_SERVERS": f"127.0.0.1:{silent.getsockname()[1]}"}, within=12)
        for each in waiting:
            each.close()
    assert "Nobody answers at 127.0.0.1" in said and "firewall" in said


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "not Kafka"])
def test_no_broker_there(start, answer, monkeypatch):
    monkeypatch.setattr(external, "REACH", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []
        server.settimeout(5)

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if answer:
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        said = refused(start, {"COURSE_BOOTSTRAP_SERVERS": f"127.0.0.1:{server.getsockname()[1]}"})
    assert "Kafka broker" in said and "check host and port in COURSE_BOOTSTRAP_SERVERS" in said


def test_a_controller_is_no_broker(start, lab):
    port = lab._nodes[1].node.controller_port
    said = refused(start, {"COURSE_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"})
    assert "is a controller, not a broker" in said


def test_a_broker_that_cannot_be_reached(start, lab):
    """The other one still names it for as long as its session lasts."""
    servers = lab.connection["bootstrap_servers"]
    earlier = start({"COURSE_BOOTSTRAP_SERVERS": ",".join(servers)})
    topic = earlier.topic("orders")
    lab.kill(2)
    said = refused(start, {"COURSE_BOOTSTRAP_SERVERS": ",".join(servers)})
    assert (
        f"sends its clients to {servers[1]} for broker 2" in said and "advertised.listeners that can be reached" in said
    )
    assert earlier.alive(), "a call that fails leaves the earlier cluster as it is"
    lab.kill(1)
    assert not earlier.alive()
    with pytest.warns(UserWarning, match=rf"did not delete all .*{topic}.*: none of its brokers takes a connection\."):
        earlier.stop()


def test_variables_of_others_are_ignored(start, monkeypatch):
    for name in ("BOOTSTRAP_SERVERS", "SECURITY_PROTOCOL", "SASL_MECHANISM", "SASL_USERNAME", "SSL_CA_FILE"):
        monkeypatch.setenv(f"KAFKA_{name}", "nonsense")
        monkeypatch.setenv(name, "nonsense")
    cluster = start({})
    assert cluster.embedded and cluster.topic("orders") == "orders"
