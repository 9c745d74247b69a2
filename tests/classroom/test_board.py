"""The board: what learners' kernels tell, what of it is believed, and what the teacher sees."""

import asyncio
import contextlib
import json
import queue
import threading
import time
import types
import urllib.error
import urllib.request

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from classroom import board, learners
from exercises.frame import board_client, question
from helpers.waiting import wait_until
from tests.classroom.test_classroom import security
from tests.lab.test_cli import call
from tests.secured import free_ports, secured_broker
from tools.lessons import LESSONS

ASKED = {"lesson_01": ["q1", "q2"], "lesson_09": ["q1"]}


@pytest.fixture(scope="module")
def broker():
    with secured_broker() as broker:
        learners.add(broker.folder, broker.admin, ["ann", "bob"])
        yield broker


@pytest.fixture
def joined(broker, monkeypatch):
    """Ann's kernel, in which a person sits."""
    for name, value in broker.environment("ann").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COURSE_BOARD_TOPIC", "ann.progress")
    monkeypatch.setattr(board_client, "somebody_is_watching", lambda: True)


def model() -> board.Model:
    return board.Model(ASKED, ["ann", "bob"])


def said(value) -> bytes:
    return json.dumps(value).encode()


def test_the_last_word_counts_and_tries_add_up():
    seen = model()
    for _ in range(3):
        seen.apply("ann.progress", b"lesson_01/q1", said({"state": "not right"}), 1000)
    assert [entry["what"] for entry in seen.shown(1060)["trouble"]] == ["3 tries"]
    seen.apply("ann.progress", b"lesson_01/q1", said({"state": "right"}), 1060)
    shown = seen.shown(1060)
    assert shown["trouble"] == [] and shown["rows"][0]["right"] == 1
    seen.apply("bob.progress", b"lesson_09/q1", said({"state": "not right"}), 1000)
    assert seen.shown(1060)["trouble"] == []
    assert [entry["minutes"] for entry in seen.shown(1000 + board.SLOW + 60)["trouble"]] == [11]


@pytest.mark.parametrize(
    ("topic", "key", "value"),
    [
        ("eve.progress", b"lesson_01/q1", b'{"state": "right"}'),  # nobody of this class
        ("ann.progress", b"lesson_01/q7", b'{"state": "right"}'),
        ("ann.progress", b"bob/lesson_01/q1", b'{"state": "right"}'),
        ("ann.progress", None, b'{"state": "right"}'),
        ("ann.progress", b"lesson_01/q1", b'{"state": "brilliant"}'),
        ("ann.progress", b"lesson_01/q1", b"\xff\xfe"),
        ("ann.progress", b"lesson_01/q1", b'["right"]'),
        ("ann.progress", b"lesson_01/q1", b"[" * 100_000),
        ("ann.progress", b"\xff", None),
    ],
)
def test_what_is_not_of_the_form_changes_nothing(topic, key, value):
    seen = model()
    before = seen.shown(1000)
    seen.apply(topic, key, value, 1000)
    assert seen.shown(1000) == before


def test_words_and_code_are_cut_for_good():
    """The learner's kernel cuts them, but a learner may write to the topic without it."""
    seen = model()
    seen.apply("ann.progress", b"lesson_01/q1/help", said({"words": "w" * 10**6, "code": "c" * 10**6}), 1000)
    (cell,) = seen.cells.values()
    assert len(cell.words) == len(cell.code) == board_client.LONGEST


def test_a_newcomer_does_not_get_the_answers_of_one_who_left():
    seen = model()
    for topic in ("ann.progress", "bob.progress"):
        seen.apply(topic, b"lesson_01/q1", said({"state": "right"}), 1000)
    seen.keep(["bob"])
    seen.keep(["ann", "bob"])
    assert [row["right"] for row in seen.shown(1000)["rows"]] == [0, 1]


def test_text():
    seen = model()
    seen.apply("ann.progress", b"lesson_01/q1", said({"state": "right"}), 1000)
    seen.apply("ann.progress", b"lesson_01/q2", said({"state": "not right"}), 1000)
    call_for_help = {"words": "why\x1b[2J?", "code": "def f():\n    pass"}
    seen.apply("bob.progress", b"lesson_09/q1/help", said(call_for_help), 1000)
    assert board.as_text(seen.shown(1120)).splitlines() == [
        "Learner  Right  01  09",
        "ann          1  ✓✗  ·",
        "bob          0  ··  ?",
        "✓ right   ✗ not right yet   ? asks for help   · not tried",
        "",
        "bob, 09 q1, for 2 min: why[2J?",
        "    def f():",
        "        pass",
    ]


def test_words_of_several_lines_are_one_line_of_the_text():
    seen = model()
    fake = "help\n\nbob, 09 q1, for 2 min: ann is wrong\n✓ right"
    seen.apply("ann.progress", b"lesson_01/q1/help", said({"words": fake}), 1000)
    assert board.as_text(seen.shown(1000)).splitlines()[-1] == (
        "ann, 01 q1, for 0 min: help bob, 09 q1, for 2 min: ann is wrong ✓ right"
    )


def test_what_was_dismissed_comes_back_when_it_is_said_again(broker, joined):
    reader = board.Reader(broker.folder, ASKED)
    try:
        reader.model.keep(["ann", "bob"])
        reader.model.apply("ann.progress", b"lesson_01/q2/help", said({"words": "help"}), 1000)
        reader.dismiss("ann", "lesson_01", "q2")
        assert reader.model.shown(1000)["trouble"] == []
        reader.model.apply("ann.progress", b"lesson_01/q2/help", said({"words": "again"}), 1001)
        assert [entry["what"] for entry in reader.model.shown(1001)["trouble"]] == ["again"]
        reader.dismiss("ann", "lesson_01", "q7")  # which there is not
        with contextlib.closing(board.Reader(broker.folder, ASKED)) as another:
            assert another.model.dismissed == {"ann lesson_01 q2": 1000}
    finally:
        reader.close()
        (broker.folder.path / "dismissed.json").unlink()


def test_csv_and_sums():
    seen = model()
    seen.apply("ann.progress", b"lesson_01/q1", said({"state": "right"}), 1000)
    seen.apply("bob.progress", b"lesson_01/q1", said({"state": "right"}), 1000)
    seen.apply("bob.progress", b"lesson_09/q1/help", said({"words": "=1+1"}), 1000)
    seen.names = {"ann": "Ann Lee", "bob": "=bob"}
    assert board.as_csv(seen.shown(1000)) == (
        "learner,name,01 q1,01 q2,09 q1\nann,Ann Lee,right,,\nbob,'=bob,right,,help\nright,,2,0,0\n"
    )


def test_from_a_check_to_the_board(broker, joined, monkeypatch):
    """Outcomes come by themselves, code only with a call for help; a board that starts anew shows the same."""
    code = "def answer():\n    return 'my secret idea'"
    shell = types.SimpleNamespace(user_ns={"In": ["import json", code, "q1.check()"]})
    monkeypatch.setattr(question, "get_ipython", lambda: shell)
    asked = question.Question(
        "q1", wants=("answer",), starter="def answer(): ...", solution="", judge=lambda _lab, f: None, hints=[], why=""
    )
    asked.lesson = "lesson_01"
    namespace = {}
    exec(code, namespace)
    assert asked.judge(namespace).state == "right"
    board_client.observe("lesson_09", "q1", "not right")
    board_client.observe("lesson_01", "q2", "not started")
    assert board_client.wait(30)
    reader = board.Reader(broker.folder, ASKED)
    reader.catch_up()
    row = reader.model.shown(time.time())["rows"][0]
    assert [cell["state"] for cell in row["cells"]] == ["right", "", "not right"]
    assert "secret idea" not in repr(reader.model)

    asked.name = "q2"
    assert "ask for help" in asked.ask("I am lost").title
    assert board_client.wait(30)
    wait_until(lambda: reader.step(200) or reader.model.shown(time.time())["trouble"], "the call", timeout=30)
    (entry,) = reader.model.shown(time.time())["trouble"]
    assert (entry["learner"], entry["where"], entry["what"]) == ("ann", "01 q2", "I am lost")
    assert entry["code"] == code
    before = reader.model.shown(1e10)
    reader.close()
    again = board.Reader(broker.folder, ASKED)
    again.catch_up()
    assert again.model.shown(1e10) == before

    learners.add(broker.folder, broker.admin, ["carl"])  # later, while the board is up
    wait_until(lambda: again.step(100) or len(again.model.shown(0)["rows"]) == 3, "carl", timeout=30)
    assert again.model.shown(1e10)["rows"][0] == before["rows"][0]
    again.close()


def test_the_board_as_text_by_command(broker):
    learners.add(broker.folder, broker.admin, ["fay"])
    try:
        with KafkaProducer(**security(broker, "fay")) as producer:
            producer.send("fay.progress", said({"state": "right"}), key=b"lesson_01/q2").get(30)
        done = call("board", "--dir", broker.folder.path, "--text")
    finally:
        learners.remove(broker.folder, broker.admin, "fay")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split() == ["Learner", "Right", *(path.name[:2] for path in LESSONS)]
    (row,) = (line for line in lines if line.startswith("fay "))
    assert row.split()[1] == "1" and row.split()[2].startswith("·✓·")


def test_the_last_word_on_a_question_is_what_stays(broker):
    """A day later, which is not waited for here, all earlier words are gone from the topic."""
    learners.add(broker.folder, broker.admin, ["gus"])
    topic = ConfigResource(ConfigResourceType.TOPIC, "gus.progress")
    try:
        (kept,) = broker.admin.describe_configs([topic])["topic"].values()
        # by size, 5 MB, and not by age
        assert (kept["cleanup.policy"]["value"], kept["retention.ms"]["value"]) == ("compact,delete", "-1")
        assert int(kept["min.compaction.lag.ms"]["value"]) == 24 * 3600 * 1000
        topic.configs = {"min.compaction.lag.ms": "0", "segment.ms": "1", "min.cleanable.dirty.ratio": "0.01"}
        broker.admin.alter_configs([topic])
        with KafkaProducer(**security(broker, "gus")) as producer:

            def left() -> list[bytes]:
                """What is in the topic, after another word: a segment that is written to is not compacted."""
                producer.send("gus.progress", said({"state": "not right"}), key=b"lesson_01/q1").get(30)
                with KafkaConsumer(**security(broker, "gus")) as consumer:
                    part = TopicPartition("gus.progress", 0)
                    consumer.assign([part])
                    consumer.seek_to_beginning(part)
                    end, found = consumer.end_offsets([part])[part], []
                    while consumer.position(part) < end:
                        found += [r.key for rs in consumer.poll(timeout_ms=500).values() for r in rs]
                return found

            producer.send("gus.progress", said({"state": "right"}), key=b"lesson_09/q1").get(30)
            for _ in range(10):
                producer.send("gus.progress", said({"state": "not right"}), key=b"lesson_01/q1").get(30)
            wait_until(lambda: len(left()) < 8, "the compaction", timeout=60, pause=0.3)
            assert b"lesson_09/q1" in left()
    finally:
        learners.remove(broker.folder, broker.admin, "gus")


def test_nobody_can_write_in_anothers_name(broker):
    with (
        KafkaProducer(**security(broker, "bob"), max_block_ms=3000) as producer,
        pytest.raises(kafka_errors.AuthorizationError),
    ):
        producer.send("ann.progress", said({"state": "right"}), key=b"lesson_01/q1").get(10)


def test_a_board_goes_on_without_a_topic(broker):
    """A learner's topic that is gone, before the board starts or under its eyes, does not keep it from the others'."""
    learners.add(broker.folder, broker.admin, ["dora", "emil"])
    broker.admin.delete_topics(["dora.progress"])
    reader = board.Reader(broker.folder, ASKED)
    try:
        reader.catch_up(10)
        broker.admin.delete_topics(["emil.progress"])
        reader.catch_up(10)
        teller = {"key": b"lesson_01/q1", "value": said({"state": "right"})}
        with KafkaProducer(**security(broker, "bob")) as producer:
            producer.send("bob.progress", **teller).get(30)
        reader.catch_up(10)
        assert {row["learner"]: row["right"] for row in reader.model.shown(0)["rows"]}["bob"] == 1
    finally:
        reader.close()
        learners.remove(broker.folder, broker.admin, "dora")
        learners.remove(broker.folder, broker.admin, "emil")


def test_a_board_notices_that_serve_ends_and_starts_again(broker):
    with KafkaProducer(**security(broker, "bob")) as producer:
        producer.send("bob.progress", said({"state": "not right"}), key=b"lesson_01/q2").get(30)
    ports = broker.folder.running()["ports"]
    reader = board.Reader(broker.folder, ASKED)
    reader.catch_up()
    before = reader.model.shown(1e10)
    first = reader._consumer
    (broker.folder.path / "running.json").unlink()
    live = board.Live(reader)
    try:
        wait_until(lambda: "does not run" in live.state()["failure"], "the end to be noticed", timeout=30)
        broker.folder.announce(ports * 2)  # others, of the same broker
        wait_until(lambda: reader._consumer is not first, "another connection", timeout=30)
        wait_until(lambda: reader.model.shown(1e10) == before, "the same board", timeout=30)
        wait_until(lambda: not live.state()["failure"], "the failure to be over", timeout=30)
    finally:
        broker.folder.announce(ports)
        live.close()


def test_a_board_says_so_and_goes_on_whatever_goes_wrong():
    """Once it ended in silence, and the page showed the last state for good."""
    steps = iter([None, ValueError("a surprise")])
    mended = threading.Event()

    def step():
        if error := next(steps, None):
            raise error
        mended.wait(0.01)

    live = board.Live(types.SimpleNamespace(step=step, close=lambda: None, model=model()))
    try:
        wait_until(lambda: "ValueError('a surprise')" in live.state()["failure"], "the failure to be told", timeout=10)
        wait_until(lambda: not live.state()["failure"], "the next try", timeout=10)
    finally:
        live.close()


@pytest.fixture
def unheard(joined, monkeypatch):
    """Ann's kernel, which gets no connection; the event that it waits for."""
    answer, asked = threading.Event(), threading.Event()

    def connect(**_):
        asked.set()
        answer.wait(60)
        raise OSError

    monkeypatch.setattr("kafka.KafkaProducer", connect)
    monkeypatch.setattr(board_client, "_thread", None)  # an earlier one has a connection
    monkeypatch.setattr(board_client, "_waiting", queue.Queue(maxsize=1000))
    monkeypatch.setattr(board_client.atexit, "register", lambda *_: None)
    yield asked, answer
    answer.set()


def test_a_check_does_not_wait_for_the_board(unheard):
    asked, answer = unheard
    board_client.observe("lesson_01", "q1", "right")
    assert asked.wait(30)
    board_client.observe("lesson_01", "q2", "right")  # while the first is still on its way
    assert not answer.is_set()


def test_a_call_for_help_that_does_not_arrive(unheard, monkeypatch):
    monkeypatch.setattr(question, "ARRIVAL", 0.1)
    asked = question.Question("q1", wants=(), starter="", solution="", judge=print, hints=[], why="")
    assert "raise your hand" in str(asked.ask("help"))


def test_without_a_class_nothing_is_told(monkeypatch):
    monkeypatch.delenv("COURSE_BOARD_TOPIC", raising=False)
    monkeypatch.setattr(board_client, "tell", lambda *_: pytest.fail("told"))
    monkeypatch.setattr(board_client, "somebody_is_watching", lambda: True)
    board_client.observe("lesson_01", "q1", "right")
    asked = question.Question("q1", wants=(), starter="", solution="", judge=print, hints=[], why="")
    assert "not joined" in asked.ask("help").title


def test_the_page_is_for_this_machine_only():
    """The state as JSON, the page without anything from elsewhere; other names for this host are refused."""
    port = free_ports(1)
    seen = model()
    seen.apply("ann.progress", b"lesson_01/q1", said({"state": "right"}), 1000)
    dismissed = []
    live = types.SimpleNamespace(
        state=lambda: seen.shown(1000) | {"failure": ""}, dismiss=lambda *place: dismissed.append(place)
    )
    loop = asyncio.new_event_loop()

    def run():
        asyncio.set_event_loop(loop)
        board.application(live, port, "token-1").listen(port, address="127.0.0.1")
        loop.run_forever()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: get(port, "/token-1/"), "the page", timeout=10, retry=(OSError,))
        assert json.loads(get(port, "/token-1/state"))["rows"][0]["learner"] == "ann"
        page = get(port, "/token-1/")
        assert "http://" not in page and "https://" not in page and "innerHTML" not in page
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(port, "/token-1/state", host="evil.example")
        for path in ("/", "/state", "/token-2/", "/token-2/state", "/token-1/other"):  # other users of this machine
            with pytest.raises(urllib.error.HTTPError, match="403"):
                get(port, path)
        get(port, "/token-1/dismiss", data=b'["ann", "01 q1"]')
        assert dismissed == [("ann", "01 q1")]
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(port, "/token-2/dismiss", data=b'["ann", "01 q1"]')
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def get(port: int, path: str, host: str = "", data: bytes | None = None) -> str:
    headers = {"Host": host} if host else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers, data=data)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read().decode()


def test_the_board_needs_a_running_class(tmp_path):
    done = call("board", "--dir", tmp_path, "--text")
    assert done.exit_code == 1 and "There is no class in" in done.output
