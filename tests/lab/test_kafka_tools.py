"""Kafka's own command line, `python -m helpers kafka …`, from a terminal beside a lab that runs."""

import os
import subprocess
import sys
import tempfile
import zipfile

import pytest
from kafka import KafkaConsumer, KafkaProducer

from course.kafka_tools import TOOLS
from helpers import Cluster
from helpers.kafka import download


@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    """Run a tool as a user does, in a temp folder where no other lab runs."""
    folder = tmp_path_factory.mktemp("tools")
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COURSE_BOOTSTRAP")}

    def run(*words, **more):
        command = [sys.executable, "-m", "helpers", "kafka", *words]
        environment = ours | {"TMPDIR": str(folder)} | more
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        yield run


@pytest.fixture(scope="module")
def lab(kafka):
    nothing = kafka("topics", "--list")
    assert nothing.returncode == 1 and "No lab runs: run a lesson's cell" in nothing.stderr
    with Cluster() as cluster:
        topic, group = cluster.topic("orders", partitions=2), cluster.group("billing")
        with KafkaProducer(**cluster.connection) as producer:
            producer.send(topic, b"tea", key=b"ann").get(10)
        settings = {"group_id": group, "auto_offset_reset": "earliest", "enable_auto_commit": False}
        with KafkaConsumer(topic, **cluster.connection, **settings) as consumer:
            while not consumer.poll(timeout_ms=500):
                pass
            consumer.commit()
        yield cluster


@pytest.mark.parametrize(
    "words, said",
    [
        ("topics --list", "orders"),
        ("topics --describe --topic orders", "PartitionCount: 2"),
        ("configs --describe --all --entity-type topics --entity-name orders", "cleanup.policy=delete"),
        ("console-consumer --topic orders --from-beginning --max-messages 1", "tea"),
        ("consumer-groups --describe --group billing", "CURRENT-OFFSET"),
        ("groups --list", "billing"),
        ("transactions list", "TransactionalId"),
        ("get-offsets --topic orders", "orders:"),
    ],
)
def test_a_tool_finds_the_lab(lab, kafka, words, said):
    done = kafka(*words.split())
    assert done.returncode == 0 and said in done.stdout, done


def test_each_tool_is_in_the_jar(lab):
    (path,) = (path for path in download.prepare_jars("tools_jars.txt") if path.name.startswith("kafka-tools-4"))
    classes = {name.removesuffix(".class").replace("/", ".") for name in zipfile.ZipFile(path).namelist()}
    assert {f"org.apache.kafka.tools.{tool}" for tool in TOOLS.values()} <= classes


def test_what_cannot_be_is_one_sentence(lab, kafka):
    assert "There is no tool topic: choose from topics, " in kafka("topic", "--list").stderr
    company = {"COURSE_BOOTSTRAP_SERVERS": "broker:9092", "COURSE_SECURITY_PROTOCOL": "SASL_SSL"}
    assert "wants a login" in kafka("topics", "--list", **company).stderr
    assert "Tools: topics, configs, " in kafka().stdout


def test_with_two_labs_it_takes_the_newest_and_says_so(lab, kafka):
    notebook = "from helpers import Cluster; c = Cluster(); c.topic('new-ones'); print('ready', flush=True); input()"
    environment = os.environ | {"TMPDIR": tempfile.tempdir}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", notebook], **pipes, text=True, env=environment) as other:
        assert other.stdout.readline() == "ready\n"
        done = kafka("topics", "--list")
        assert "new-ones" in done.stdout and "orders" not in done.stdout
        assert "2 labs run; this is the newest" in done.stderr
        (older,) = lab.connection["bootstrap_servers"]
        assert "orders" in kafka("topics", "--list", "--bootstrap-server", older).stdout
        other.communicate("\n")
