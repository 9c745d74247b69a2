"""One learner tries to bring the class down, in each way that `attacks` knows, while another one works."""

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

import classroom
from classroom import learners, limits, server
from helpers.waiting import wait_until
from tests.classroom import attacks
from tests.classroom.test_classroom import security
from tests.secured import secured_broker

PATIENCE = 5  # seconds that another learner's check may take, on a machine that has nothing else to do
BUSY = 8  # times what one takes before the attack, where this machine is slow or busy with other tests
REACTION = 15  # seconds until one who goes on is suspended
#: Those that did the most harm; the others' programs need more of this machine than their class does.
IN_CI = ("long_transactional_ids", "announced_requests", "partitions_of_old_requests",
         "added_partitions", "settings_again_and_again", "members")  # fmt: skip
#: Who goes on with these loses the log-in; the others are slowed down by quotas, or refused by limits of Kafka's own.
SUSPENDED = {
    "long_transactional_ids", "many_transactional_ids", "answers_that_nobody_reads", "partitions_of_old_requests",
    "partitions", "added_partitions", "settings_of_groups", "settings_again_and_again", "metadata_of_members",
    "members", "members_of_the_new_protocol", "producer_ids",
}  # fmt: skip


def test_the_guard_is_made_from_its_source():
    """Else: python -m tools.make_guard"""
    folder = Path(classroom.__file__).with_name("guard")
    with zipfile.ZipFile(server.GUARD) as jar:
        made_from = jar.read("source.sha256").decode()
    assert made_from == hashlib.sha256((folder / "Guard.java").read_bytes()).hexdigest()


def check(broker) -> float:
    """What a check of bob's does: a topic, a record, a group that reads it and commits; how many seconds it took."""
    began, number = time.monotonic(), time.monotonic_ns()  # another one each time, also after one that failed
    topic, group = f"bob.check-{number}", f"bob.group-{number % 500}"
    with KafkaAdminClient(**security(broker, "bob")) as admin:
        admin.create_topics({topic: {"num_partitions": 1}})
        with KafkaProducer(**security(broker, "bob")) as producer:
            producer.send(topic, b"x").get(60)
        settings = {"group_id": group, "auto_offset_reset": "earliest"}
        with KafkaConsumer(topic, **settings, **security(broker, "bob")) as consumer:
            wait_until(lambda: consumer.poll(timeout_ms=500), "the record", timeout=60)
            consumer.commit()
        admin.delete_topics([topic])
        admin.delete_groups([group])
    return time.monotonic() - began


@contextlib.contextmanager
def bob_works(broker):
    """Check after check; yields the seconds of each. An error of his is the test's."""
    seconds, wrong, stop = [], [], threading.Event()

    def work():
        try:
            while not stop.wait(0.3):
                seconds.append(check(broker))
        except Exception as error:
            wrong.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: seconds or wrong, "bob's first check", timeout=60)
        yield seconds
    finally:
        stop.set()
        thread.join()
    assert not wrong, repr(wrong)


@pytest.fixture(scope="module")
def broker():
    """The class's cluster with bob."""
    with secured_broker() as broker:
        learners.add(broker.folder, broker.admin, ["bob"])
        yield broker


@pytest.fixture
def ann(broker):
    """Who is in the class for one attack."""
    learners.add(broker.folder, broker.admin, ["ann"])
    yield
    learners.remove(broker.folder, broker.admin, "ann")
    assert not [name for name in broker.admin.list_topics() if name.startswith("ann.")]
    assert not [group for group in broker.admin.list_groups() if group["group_id"].startswith("ann.")]
    assert "ann." not in repr(broker.admin.list_config_resources(["GROUP"]))


def attack(broker, kind: str, seconds: float) -> None:
    """Have ann attack, and look at what becomes of her, of bob, and of the broker."""
    told, began, suspended = [], None, None
    with bob_works(broker) as checks, server.connect(
        broker.folder, broker.folder.room(), broker.brokers.ports
    ) as admin:  # fmt: skip
        served = broker.brokers
        dog = limits.Watchdog(admin, served.homes, served.logs, 300, told.append, served.refused)
        command = [sys.executable, "-m", "tests.classroom.attacks", kind, str(seconds)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as attacker:
            attacker.stdin.write(json.dumps(security(broker, "ann")))
            attacker.stdin.close()
            began = time.monotonic()
            while attacker.poll() is None and time.monotonic() < began + seconds + 40:
                dog.look()
                if suspended is None and any("is suspended" in line for line in told):
                    suspended = time.monotonic() - began
                    if seconds <= REACTION:
                        break
                assert broker.brokers.mend() == [], "the broker died"
                time.sleep(limits.SECONDS)
            attacker.kill()
            done = attacker.stdout.read().strip()
    memory = psutil.Process(broker.brokers._brokers[0].pid).memory_info().rss / 1e6
    print(f"{kind}: {done}; suspended after {suspended} s; {len(checks)} checks of another learner, the longest "
          f"{max(checks):.1f} s; the broker has {memory:.0f} MB; told: {told}")  # fmt: skip
    assert max(checks) < max(PATIENCE, BUSY * checks[0])
    if kind in SUSPENDED:
        assert suspended is not None and suspended < REACTION
        assert learners.suspended(broker.admin, ["ann", "bob"]) == {"ann"}
        learners.reset(broker.admin, "ann")
        learners.forget(broker.folder, broker.admin, "ann")
        learners.admit(broker.folder, broker.admin, "ann")
        # brokers hear of it in a moment
        wait_until(lambda: not learners.suspended(broker.admin, ["ann"]), "ann's log-in", timeout=30)


@pytest.mark.parametrize("kind", IN_CI)
def test_an_attack(broker, ann, kind):
    attack(broker, kind, REACTION if kind in SUSPENDED else 5)


@pytest.mark.weekly
@pytest.mark.parametrize("kind", attacks.KINDS)
def test_an_attack_for_a_minute(broker, ann, kind):
    attack(broker, kind, 60)
