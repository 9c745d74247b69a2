"""The proof bench: its checker sees what is wrong, its controls are caught, and the right programs hold under harm."""

import threading

import matplotlib.pyplot as plt
import pytest
from click.testing import CliRunner
from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition

from helpers import Cluster, wait_until
from tests.nemesis.__main__ import LEAST, main, one_run, too_little
from tests.nemesis.checker import INVARIANTS, check, tried
from tests.nemesis.controls import CONTROLS
from tests.nemesis.history import merged
from tests.nemesis.programs import where_it_waits

SEEDS = [1, 2, 3, 4, 5]
RECORDS = 4000  # a seed; 20,000 in all


def sent(number, offset=None, at=0.0):
    place = {"topic": "source", "partition": 0, "value": f"v{number}"}
    events = [{"t": at, "who": "sender", "what": "sending", **place}]
    if offset is not None:
        events.append({"t": at + 0.1, "who": "sender", "what": "acknowledged", **place, "offset": offset})
    return events


def read(value, offset, topic="source", txn=None, incarnation=1, final=True, at=9.0):
    facts = {"topic": topic, "partition": 0, "offset": offset, "value": value, "final": final}
    if txn:
        facts |= {"txn": txn, "role": "mover", "incarnation": incarnation}
    return [{"t": at, "who": "final reader", "what": "read", **facts}]


def mover(what, txn, incarnation=1, at=1.0):
    return [{"t": at, "who": "mover", "what": what, "txn": txn, "role": "mover", "incarnation": incarnation}]


def started(incarnation, at):
    return [{"t": at, "who": "mover", "what": "started", "role": "mover", "incarnation": incarnation}]


def offsets(*values):
    return [
        {"t": n, "who": "watcher", "what": "committed offset", "group": "g", "partition": 0, "offset": value}
        for n, value in enumerate(values)
    ]


PIPELINE = [{"t": 0.0, "who": "nemesis", "what": "pipeline", "source": "source", "target": "target"}]
GOOD = [*PIPELINE, *sent(1, 0), *sent(2, 1), *read("v1", 0), *read("v2", 1), *offsets(1, 2)]
GOOD += read("v1", 0, "target", "m.1") + read("v2", 1, "target", "m.1") + mover("begins", "m.1")
GOOD += mover("committing", "m.1", at=1.1) + mover("committed", "m.1", at=1.2)


@pytest.mark.parametrize(
    ("extra", "broken"),
    [
        ([], []),
        (sent(3), []),  # unknown: it may be there or not
        (sent(3, 2), ["acknowledged is read"]),
        ([*sent(3, 2), *read("v4", 2)], ["acknowledged is read", "one value an offset", "output has all input"]),
        (mover("aborted", "m.2") + read("v9", 2, "target", "m.2"), ["failed is not read"]),
        (mover("aborted", "m.2") + read("v9", 2, "target", "m.2", final=False), ["failed is not read"]),
        (mover("begins", "m.2") + read("v9", 2, "target", "m.2"), ["failed is not read"]),  # killed before it asked
        (read("v3", 2) + mover("begins", "m.2") + mover("committing", "m.2") + read("v3", 2, "target", "m.2"), []),
        (read("v5", 1, final=False), ["one value an offset"]),
        (read("v1", 2) + read("v1", 2, "target", "m.1"), ["idempotent: once, in order"]),
        (read("v3", 2), ["output has all input"]),
        (read("v2", 2, "target", "m.1"), ["output has nothing twice"]),
        (read("v7", 2, "target", "m.1"), ["output has nothing twice"]),
        (offsets(1, 2, 1), ["committed offsets grow"]),
        (
            read("v3", 2) + read("v4", 3) + read("v3", 2, "target", "n.1", 2) + read("v4", 3, "target", "m.1"),
            ["fenced writes nothing"],
        ),
        (
            started(2, at=5.0)
            + mover("begins", "m.3", at=6.0)
            + mover("committing", "m.3", at=6.1)
            + read("v3", 2)
            + read("v3", 2, "target", "m.3"),
            ["fenced writes nothing"],
        ),
    ],
)
def test_the_checker_names_what_is_broken_and_nothing_else(extra, broken):
    assert list(check(GOOD + extra)) == broken


def test_order_within_a_partition():
    history = [*sent(1, 1), *sent(2, 0), *read("v2", 0), *read("v1", 1)]
    assert list(check(history)) == ["idempotent: once, in order"]


def test_a_run_in_which_little_was_tried_does_not_count():
    facts = tried(GOOD)
    assert facts["records sent"] == 2 and facts["acknowledged"] == 2 and facts["faults"] == 0
    assert len(too_little(facts)) == len(LEAST)


def fault(target, at, leads=()):
    return {"t": at, "who": "nemesis", "what": "fault", "target": target, "how": "killed", "leads": leads}


@pytest.mark.parametrize(
    ("fault", "in_a_transaction", "unacknowledged"),
    [
        (fault("mover", 1.1), 1, 0),  # its own transaction is open; the sender does not notice
        (fault("mover", 1.5), 0, 0),
        (fault("other mover", 1.1), 0, 0),
        (fault("broker 1", 1.1, leads=[0]), 1, 0),
        (fault("broker 1", 0.05, leads=[0]), 0, 1),
        (fault("broker 1", 0.05, leads=[1]), 0, 0),  # the send that is open does not go to this broker
    ],
)
def test_a_fault_counts_where_it_hits_something_open(fault, in_a_transaction, unacknowledged):
    facts = tried([*GOOD, fault])
    assert facts["faults in an open transaction"] == in_a_transaction
    assert facts["faults with a send unacknowledged"] == unacknowledged


def test_where_a_mover_waits_is_read_from_its_traceback():
    dump = """Thread 0x1 (most recent call first):
  File "/kafka/producer/sender.py", line 108 in run
Thread 0x2 (most recent call first):
  File "/threading.py", line 327 in wait
  File "/kafka/producer/transaction_manager.py", line 788 in wait
  File "/kafka/producer/kafka.py", line 853 in commit_transaction
  File "/tests/nemesis/programs.py", line 80 in move
"""
    assert where_it_waits(dump) == "commit_transaction"
    assert where_it_waits("") == "no call of its producer"


def test_each_invariant_has_a_control_or_a_history_that_breaks_it():
    by_hand = {"one value an offset", "committed offsets grow"}
    assert set(CONTROLS.values()) | by_hand == set(INVARIANTS)


@pytest.fixture(scope="module")
def trio():
    with Cluster(brokers=3) as cluster:
        yield cluster


@pytest.mark.full
@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.__name__)
def test_what_is_wrong_on_purpose_is_caught_by_its_own_invariant(control, trio, tmp_path):
    (tmp_path / "wrong").mkdir()
    (tmp_path / "right").mkdir()
    assert list(check(control(trio, tmp_path / "wrong", True))) == [CONTROLS[control]]
    assert check(control(trio, tmp_path / "right", False)) == {}


@pytest.mark.full
@pytest.mark.parametrize("seed", SEEDS)
def test_the_right_programs_keep_every_promise_under_harm(seed, trio):
    _, violations, facts = one_run(trio, seed, RECORDS)
    assert not violations, (violations, facts)
    assert facts["records sent"] == RECORDS and not too_little(facts), facts


@pytest.mark.full
def test_the_command_tells_what_it_did_and_draws_it(tmp_path):
    done = CliRunner().invoke(main, ["--seed", "7", "--records", "1000", "--out", str(tmp_path)])
    assert "seed 7: " in done.output and "records sent                            1000" in done.output
    assert done.exit_code == ("seed 7: held" not in done.output), done.output
    assert "VIOLATED" not in done.output, done.output
    assert plt.imread(tmp_path / "seed-7.png").shape[1] > 1000
    assert check(merged(tmp_path / "seed-7")) == {}  # a history can be judged again


@pytest.mark.full
def test_kafka_python_forgets_a_request_when_its_coordinator_cannot_be_reached():
    """Why movers need a supervisor; lesson 10 says so. Once this fails, kafka-python has mended it: mend the lesson."""
    calls = {
        "commit": lambda producer, topic: producer.commit_transaction(),
        "offsets": lambda producer, topic: producer.send_offsets_to_transaction(
            {TopicPartition(topic, 0): OffsetAndMetadata(1, "", -1)}, "a group"
        ),
    }
    with Cluster(brokers=1) as lab:
        topic = lab.topic("payments")
        producers = {name: KafkaProducer(**lab.connection, transactional_id=name) for name in calls}
        for producer in producers.values():
            producer.init_transactions()
            producer.begin_transaction()
            producer.send(topic, b"order 1").get(timeout=10)
        lab.kill(1)
        waiting = []
        for name, producer in producers.items():
            client = producer._sender._client
            wait_until(lambda client=client: not client.connected("coordinator-1"), "it to notice the broker's death")
            waiting.append(threading.Thread(target=calls[name], args=(producer, topic), daemon=True))
            waiting[-1].start()
            manager = producer._transaction_manager
            wait_until(lambda manager=manager: manager._transaction_coordinator is None, "it to have tried once")
        lab.restart(1)
        for thread in waiting:
            thread.join(5)
            assert thread.is_alive()
        again = KafkaProducer(**lab.connection, transactional_id="commit")  # what the supervisor's restart does
        again.init_transactions()
        again.begin_transaction()
        again.send(topic, b"order 1")
        again.commit_transaction()
        for producer in (again, *producers.values()):
            producer.close(timeout=1)
