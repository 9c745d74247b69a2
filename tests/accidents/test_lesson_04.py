"""Lesson 04's mended forms under the catalogue's accidents: the upcasting fold, snapshots, the single writer.

The forms come from the lesson's own cells. The controls are the same cells with one passage taken out.
"""

import contextlib
import random
from types import SimpleNamespace

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, OffsetOutOfRangeError
from kafka.serializer import JsonSerializer

from helpers import read_topic, wait_until
from tests.accidents.harm import MORE, SEED
from tests.accidents.lesson import load
from tests.accidents.matrix import accident, weak
from tools.lessons import NOTEBOOKS, code_cells, read

FOLD, SNAPSHOTS, WRITER, FENCED = "04 upcasting fold", "04 snapshots", "04 single writer", "04 fenced writer"
UNREADABLE = "An event that a reader cannot decode stops the fold there, again at each start."
GONE = "If events are deleted that no snapshot holds, the restore stops with `OffsetOutOfRangeError`."
ANEW = "A topic made anew is another history: delete its old snapshots with it, or a restore goes on from them."
ZOMBIE = (
    "A writer that was taken for dead may still write while another one has its partition: then a command counts twice."
)
LATE = "An event whose `send` timed out may arrive after its command was handled again."
POISON = "a command that the writer cannot read stops it, again at each start"


@pytest.fixture(scope="module")
def lesson():
    names = load("04")
    yield SimpleNamespace(**names, namespace=names)
    names["lab"].stop()
    names["cluster"].stop()


def without(names: dict, cell_begins: str, old: str, new: str) -> SimpleNamespace:
    """The lesson with one passage of a cell changed: a control."""
    (path,) = NOTEBOOKS.glob("04_*.ipynb")
    (source,) = [cell.source for cell in code_cells(read(path)) if cell.source.startswith(cell_begins)]
    assert source.count(old) == 1, old
    changed = dict(names)
    exec(source.replace(old, new), changed)
    return SimpleNamespace(**changed, namespace=changed)


def topic_of(lesson, *events) -> str:
    topic = lesson.cluster.topic("user-events", config=lesson.forever)
    for event in events:
        lesson.producer.send(topic, event, key=lesson.owner(event).encode())
    lesson.producer.flush()
    return topic


def aborted(lesson, topic, *values) -> None:
    with KafkaProducer(
        **lesson.cluster.connection, value_serializer=JsonSerializer(),
        transactional_id=lesson.cluster.transactional_id("aborting"),
    ) as producer:  # fmt: skip
        producer.init_transactions()
        producer.begin_transaction()
        for value in values:
            producer.send(topic, value, key=b"ann").get(timeout=10)
        producer.abort_transaction()
        producer.init_transactions()  # comes back when the markers are on the log


# -- the fold that upcasts

KNOWN = {"USER_CREATED": "USER_CREATED", "USER_UPDATED": "USER_UPDATED"}
FIELDS = {"home": "house 1", "mail": "a@shop", "first": "Ann", "last": "Lee", "name": "Ann Lee Ray"}


def history_of_all_forms(lot) -> list[dict]:
    """Users are created and changed, by programs that write no version, 1, or 2, with any of the fields."""
    events = []
    for _ in range(12):
        version, user = lot.choice([None, 1, 2]), lot.choice(["ann", "bob"])
        names = ["home", "mail", *(["first", "last"] if version == 2 else ["name"])]
        data = {name: f"{FIELDS[name]} {lot.randint(1, 9)}" for name in lot.sample(names, lot.randint(1, len(names)))}
        event = {"type": "USER_UPDATED", "user_id": user, "data": data}
        if lot.random() < 0.3:
            event = {"type": "USER_CREATED", "data": {"id": user} | data}
        events.append(event | ({} if version is None else {"schema": version}))
    return events


def check_fold(lesson, lot) -> None:
    """Every field that was written is in the state, names in their new form."""
    events, wanted = history_of_all_forms(lot), {}
    topic = topic_of(lesson, *events[:6])
    aborted(lesson, topic, {"type": "USER_UPDATED", "user_id": "ann", "data": {"home": "nowhere"}})
    for event in events[6:]:
        lesson.producer.send(topic, event, key=lesson.owner(event).encode())
    lesson.producer.flush()
    for event in events:
        data = dict(event["data"])
        if "name" in data:
            name = data.pop("name").split(" ", 1)
            data |= {"first": name[0], "last": name[1]}
        user = lesson.owner(event)
        wanted[user] = ({} if event["type"] == "USER_CREATED" else wanted.get(user, {})) | data
    for _ in range(2):
        assert lesson.fold_known(topic, KNOWN) == (wanted, "read all")


@accident(FOLD, [16, 17])
@pytest.mark.parametrize("n", range(6 * MORE))
def test_no_field_is_lost_whatever_the_forms(lesson, n):
    check_fold(lesson, random.Random(f"{SEED} {n}"))


@pytest.mark.parametrize(
    "old, new, damage",
    [
        ('dict(event["data"])', "{k: v for k, v in event['data'].items() if k in ('id', 'name')}", "=="),
        ('event.get("schema", 1)', 'event["schema"]', "schema"),
    ],
    ids=["drops fields", "wants a version"],
)  # fmt: skip
def test_control_upcasters(lesson, old, new, damage):
    control = without(lesson.namespace, "newest = 2", old, new)
    with pytest.raises((AssertionError, KeyError), match=damage):
        for n in range(6):
            check_fold(control, random.Random(f"{SEED} {n}"))


@pytest.mark.parametrize("event", [{"type": "USER_DELETED", "schema": 1}, {"type": "USER_UPDATED", "schema": 3}])
def test_an_unknown_type_or_form_stops_the_fold_where_it_is(lesson, event):
    known = {"type": "USER_UPDATED", "user_id": "ann", "data": {"home": "house 1"}}
    topic = topic_of(lesson, known, event | {"user_id": "ann", "data": {"home": "house 2"}}, known)
    users, said = lesson.fold_known(topic, KNOWN)
    assert users == {"ann": {"home": "house 1"}} and said.startswith("stopped at offset 1")


@weak(FOLD, 7, UNREADABLE)
@pytest.mark.parametrize("value", [None, b"\xff{", b"17", b"null", b'["order"]', b'{"type": "USER_UPDATED"}'])
def test_an_event_that_cannot_be_decoded_stops_the_fold(lesson, value):
    topic = topic_of(lesson, {"type": "USER_CREATED", "data": {"id": "ann"}})
    with KafkaProducer(**lesson.cluster.connection) as producer:
        producer.send(topic, value, key=b"ann").get(timeout=10)
    for _ in range(2):
        with pytest.raises(Exception) as stopped:
            lesson.fold_known(topic, KNOWN)
        assert not isinstance(stopped.value, KafkaError)


# -- snapshots


class Recording:
    """A producer that only remembers what a snapshotter sends."""

    def __init__(self):
        self.sent = []

    def send(self, topic, value, key):
        self.sent.append((key, value))
        return SimpleNamespace(get=lambda timeout: None)


def records_of_a_snapshot(lesson, users, next_offset) -> list:
    own = without(lesson.namespace, "def take_snapshot", "def take_snapshot", "def take_snapshot")
    own.namespace["producer"] = recording = Recording()
    own.take_snapshot("", users, next_offset)
    return recording.sent


def interleaved(lot, older: list, newer: list) -> list:
    """Both at once, each perhaps dying before its end, in any order; the older one may finish last."""
    left = [older[: lot.randint(1, len(older))], newer[: lot.randint(1, len(newer))]]
    merged = []
    while any(left):
        merged.append(lot.choice([each for each in left if each]).pop(0))
    return merged


def restored(lesson, topic, snapshots) -> tuple[dict, dict]:
    with lesson.reader_of(topic) as reader, lesson.reader_of(snapshots) as snapshot_reader:
        return lesson.restore(reader, snapshot_reader)[0], lesson.fold_from_zero(reader)


def check_snapshots(lesson, lot) -> None:
    """What is restored is the fold of the log, whatever two snapshotters have left, compacted or not."""
    users = ["ann", "bob", "eve"]
    events = [
        {"type": "USER_UPDATED", "user_id": lot.choice(users[: 2 + n // 6]), "data": {"home": f"house {n}"}}
        for n in range(12)
    ]
    topic = topic_of(lesson, *events)
    first, older, newer = sorted(lot.sample(range(1, 13), 3))
    written = records_of_a_snapshot(lesson, lesson.fold(events[:first]), first)
    written += interleaved(
        lot,
        records_of_a_snapshot(lesson, lesson.fold(events[:older]), older),
        records_of_a_snapshot(lesson, lesson.fold(events[:newer]), newer),
    )
    compacted = [each for n, each in enumerate(written) if each[0] not in {key for key, _ in written[n + 1 :]}]
    for records in (written, compacted):
        snapshots = lesson.cluster.topic("snapshots", config={"cleanup.policy": "compact"})
        for key, value in records:
            lesson.producer.send(snapshots, value, key=key)
        lesson.producer.flush()
        found, truth = restored(lesson, topic, snapshots)
        assert found == truth, f"{found} == {truth}"


@accident(SNAPSHOTS, [1, 2, 15, 17])
@pytest.mark.parametrize("n", range(12 * MORE))
def test_two_snapshotters_at_once_dying_anywhere_the_older_one_last(lesson, n):
    check_snapshots(lesson, random.Random(f"{SEED} {n}"))


def test_control_a_restore_from_the_last_whole_one_on(lesson):
    all_of_them = 'min([whole["next"], *(snapshot["next"] for snapshot in newest.values())])'
    control = without(lesson.namespace, "def take_snapshot", all_of_them, 'whole["next"]')
    with pytest.raises(AssertionError, match="=="):
        for n in range(60):
            check_snapshots(control, random.Random(f"{SEED} {n}"))


def snapshot_with_aborted_events(lesson) -> tuple[dict, dict]:
    created = {"type": "USER_CREATED", "data": {"id": "ann", "home": "house 1"}}
    topic = topic_of(lesson, created)
    aborted(lesson, topic, {"type": "USER_UPDATED", "user_id": "ann", "data": {"home": "nowhere"}})
    snapshots = lesson.cluster.topic("snapshots", config={"cleanup.policy": "compact"})
    with lesson.reader_of(topic) as reader:
        lesson.take_snapshot(snapshots, lesson.fold_from_zero(reader), reader.position(TopicPartition(topic, 0)))
    aborted(lesson, snapshots, {"user": {"home": "nowhere"}, "next": 1})
    aborted(lesson, topic, {"type": "USER_UPDATED", "user_id": "ann", "data": {"home": "nowhere"}})
    found, _ = restored(lesson, topic, snapshots)
    return found, lesson.fold(lesson.events(lesson.cluster, topic))


@accident(SNAPSHOTS, [16])
def test_aborted_events_and_an_aborted_snapshot(lesson):
    found, truth = snapshot_with_aborted_events(lesson)
    assert found == truth == {"ann": {"id": "ann", "home": "house 1"}}


def test_control_a_reader_that_reads_aborted_records(lesson):
    control = without(lesson.namespace, "def reader_of", 'isolation_level="read_committed",', "")
    found, truth = snapshot_with_aborted_events(control)
    assert found != truth


@accident(SNAPSHOTS, [19])
def test_an_event_that_comes_between_the_fold_and_the_snapshot(lesson):
    topic = topic_of(lesson, {"type": "USER_CREATED", "data": {"id": "ann", "home": "house 1"}})
    snapshots = lesson.cluster.topic("snapshots", config={"cleanup.policy": "compact"})
    with lesson.reader_of(topic) as reader:
        users = lesson.fold_from_zero(reader)
        lesson.update_user_keyed(lesson.producer, topic, "ann", {"home": "house 2"}).get(timeout=10)
        lesson.take_snapshot(snapshots, users, reader.position(TopicPartition(topic, 0)))
    found, truth = restored(lesson, topic, snapshots)
    assert found == truth and found["ann"]["home"] == "house 2"


def refused_snapshot(lesson) -> tuple[dict, dict]:
    """A user that does not fit into the snapshots' topic, in a process that ends with the error, if there is one."""
    events = [
        {"type": "USER_CREATED", "data": {"id": name, "home": "x" * n}} for name, n in (("ann", 3), ("bob", 2000))
    ]
    topic = topic_of(lesson, *events)
    snapshots = lesson.cluster.topic("snapshots", config={"cleanup.policy": "compact", "max.message.bytes": 1000})
    with KafkaProducer(**lesson.cluster.connection, value_serializer=JsonSerializer()) as producer:
        lesson.namespace["producer"], usual = producer, lesson.namespace["producer"]
        with contextlib.suppress(KafkaError):
            lesson.take_snapshot(snapshots, lesson.fold(events), 2)
        lesson.namespace["producer"] = usual
    with contextlib.suppress(KafkaError), KafkaProducer(
        **lesson.cluster.connection, value_serializer=JsonSerializer()
    ) as another:  # fmt: skip
        if "del sent" in lesson.namespace:  # the control has not noticed anything
            another.send(snapshots, {"next": 2}, key=b"*").get(timeout=10)
    return restored(lesson, topic, snapshots)


@accident(SNAPSHOTS, [5, 6])
def test_a_snapshot_whose_user_was_refused_is_not_whole(lesson):
    own = without(lesson.namespace, "def take_snapshot", "def take_snapshot", "def take_snapshot")
    found, truth = refused_snapshot(own)
    assert found == truth


def test_control_a_snapshot_that_is_called_whole_without_a_look(lesson):
    own = without(lesson.namespace, "def take_snapshot", "future.get(timeout=10)", "pass")
    own.namespace["del sent"] = True
    found, truth = refused_snapshot(own)
    assert found != truth


def deleted_up_to(lesson, topic, offset) -> None:
    with lesson.KafkaAdminClient(**lesson.cluster.connection) as admin:
        admin.delete_records({TopicPartition(topic, 0): offset})
    wait_until(lambda: lesson.capture_log(lesson.cluster, topic).lanes[0].start == offset, "the events to be gone")


def snapshot_at_two(lesson) -> tuple[str, str, dict]:
    events = [{"type": "USER_UPDATED", "user_id": "ann", "data": {f"n{n}": n}} for n in range(4)]
    topic = topic_of(lesson, *events)
    snapshots = lesson.cluster.topic("snapshots", config={"cleanup.policy": "compact"})
    lesson.take_snapshot(snapshots, lesson.fold(events[:2]), 2)
    return topic, snapshots, lesson.fold(events)


@accident(SNAPSHOTS, [8])
def test_events_that_a_snapshot_holds_may_be_deleted(lesson):
    topic, snapshots, truth = snapshot_at_two(lesson)
    deleted_up_to(lesson, topic, 2)
    with lesson.reader_of(topic) as reader, lesson.reader_of(snapshots) as snapshot_reader:
        assert lesson.restore(reader, snapshot_reader)[0] == truth


@weak(SNAPSHOTS, 8, GONE)
def test_events_that_no_snapshot_holds_are_deleted(lesson):
    topic, snapshots, _ = snapshot_at_two(lesson)
    deleted_up_to(lesson, topic, 3)
    for _ in range(2):
        with pytest.raises(OffsetOutOfRangeError):
            restored(lesson, topic, snapshots)


@weak(SNAPSHOTS, 9, ANEW)
@pytest.mark.parametrize("count, noticed", [(1, True), (5, False)])
def test_snapshots_of_a_topic_that_was_made_anew(lesson, count, noticed):
    _, snapshots, _ = snapshot_at_two(lesson)
    anew = topic_of(lesson, *[{"type": "USER_UPDATED", "user_id": "bob", "data": {"n": n}} for n in range(count)])
    with lesson.reader_of(anew) as reader, lesson.reader_of(snapshots) as snapshot_reader:
        if noticed:
            with pytest.raises(AssertionError, match="another log"):
                lesson.restore(reader, snapshot_reader)
        else:
            assert "ann" in lesson.restore(reader, snapshot_reader)[0]


# -- the single writer


def command(number, expected, sender="phone") -> dict:
    wishes = [f"wish {number}"]
    return {"id": f"c{number}", "from": sender, "user_id": "ann", "wishes": wishes, "expected": expected}


class Dies(BaseException):
    """The writer's process is gone."""


class Dying:
    """A producer whose process dies around its n-th `send`: before it, or when the event is on the log."""

    def __init__(self, producer, n, before):
        self.producer, self.left, self.before = producer, n, before

    def send(self, *arguments, **settings):
        self.left -= 1
        if self.left == 0 and self.before:
            raise Dies
        future = self.producer.send(*arguments, **settings)
        if self.left == 0:
            future.get(timeout=10)
            raise Dies
        return future


def check_writer(lesson, lot) -> None:
    """Commands are handled in order, each again after a death or so; each has one answer, and one event or none."""
    topic = topic_of(lesson, {"type": "USER_CREATED", "data": {"id": "ann", "wishes": []}})
    answers, version = {}, 1
    for number in range(6):
        asked = command(number, expected=version - (lot.random() < 0.4))
        dying = Dying(lesson.producer, lot.randint(1, 2), lot.random() < 0.5)
        for producer in (dying, *[lesson.producer] * lot.randint(1, 2)):
            with contextlib.suppress(Dies):
                answer = lesson.handle(producer, lesson.cluster.connection, topic, asked)
                assert answers.setdefault(asked["id"], answer) == answer, "another answer the second time"
        if answers[asked["id"]] == "accepted":
            version += 1
    wanted = [number for number, said in answers.items() if said == "accepted"]
    written = [event["command"] for event in lesson.events(lesson.cluster, topic)[1:]]
    assert written == wanted, f"{written} == {wanted}"
    late = len(wanted) + 1
    assert lesson.version_of(lesson.cluster.connection, topic, "ann") == late == version
    for number, said in answers.items():  # a sender that has heard nothing asks again, much later
        again = command(int(number[1:]), expected=1)
        assert lesson.handle(lesson.producer, lesson.cluster.connection, topic, again) == said, "another answer"


@accident(WRITER, [1, 2, 11, 17])
@pytest.mark.parametrize("n", range(5 * MORE))
def test_each_command_counts_once_and_keeps_its_answer(lesson, n):
    check_writer(lesson, random.Random(f"{SEED} {n}"))


def test_control_a_writer_that_knows_no_commands(lesson):
    control = without(lesson.namespace, "def events_of", 'event.get("command") == command["id"]', "False")
    with pytest.raises(AssertionError, match="another answer"):
        for n in range(5):
            check_writer(control, random.Random(f"{SEED} {n}"))


def run_writer(lesson, *values) -> list:
    """The lesson's process for some commands, in this one; returns its answers."""
    topic = topic_of(lesson, {"type": "USER_CREATED", "data": {"id": "ann", "wishes": []}})
    commands, answers = lesson.cluster.topic("user-commands"), lesson.cluster.topic("user-answers")
    aborted(lesson, commands, command(99, expected=1))
    for value in values:
        lesson.producer.send(commands, value, key=b"ann").get(timeout=10)
    group = lesson.cluster.group("user-writer")
    lesson.write_events(lesson.cluster.connection, topic, commands, answers, group, len(values))
    return [(answer["id"], answer["answer"]) for answer in lesson.events(lesson.cluster, answers)]


@accident(WRITER, [16])
def test_an_aborted_command_is_not_carried_out(lesson):
    assert run_writer(lesson, command(1, expected=1)) == [("c1", "accepted")]


def test_control_a_writer_that_reads_aborted_commands(lesson):
    control = without(lesson.namespace, "def write_events", 'isolation_level="read_committed", ', "")
    assert run_writer(control, command(1, expected=1)) == [("c99", "accepted")]


@weak(WRITER, 7, POISON)
@pytest.mark.parametrize("value", [17, {"user_id": "ann"}, ["wish"]])
def test_a_command_that_cannot_be_read_stops_the_writer(lesson, value):
    with pytest.raises((TypeError, KeyError)):
        run_writer(lesson, value)


@weak(WRITER, 3, ZOMBIE)
def test_a_writer_that_was_taken_for_dead_writes(lesson):
    topic = topic_of(lesson, {"type": "USER_CREATED", "data": {"id": "ann", "wishes": []}})
    asked = command(1, expected=1)

    class Slow:
        """Stands still between its look at the log and its `send`; another writer handles the command meanwhile."""

        def send(self, *arguments, **settings):
            assert lesson.handle(lesson.producer, lesson.cluster.connection, topic, asked) == "accepted"
            return lesson.producer.send(*arguments, **settings)

    lesson.handle(Slow(), lesson.cluster.connection, topic, asked)
    assert lesson.version_of(lesson.cluster.connection, topic, "ann") == 3


@weak(WRITER, 4, LATE)
def test_an_event_that_arrives_after_its_timeout(lesson):
    topic = topic_of(lesson, {"type": "USER_CREATED", "data": {"id": "ann", "wishes": []}})
    asked, later = command(1, expected=1), []

    def timed_out(timeout):
        raise KafkaTimeoutError("no answer")

    class Unanswered:
        def send(self, *arguments, **settings):
            later.append(lambda: lesson.producer.send(*arguments, **settings).get(timeout=10))
            return SimpleNamespace(get=timed_out)

    with pytest.raises(KafkaTimeoutError):
        lesson.handle(Unanswered(), lesson.cluster.connection, topic, asked)
    assert lesson.handle(lesson.producer, lesson.cluster.connection, topic, asked) == "accepted"
    later[0]()
    assert lesson.version_of(lesson.cluster.connection, topic, "ann") == 3


@accident(FENCED, [3, 4, 15])
@pytest.mark.parametrize("flushed", [True, False])
def test_a_fenced_writer_cannot_write_nor_commit(lesson, flushed):
    topic = topic_of(lesson, {"type": "USER_CREATED", "data": {"id": "ann", "wishes": []}})
    asked, old = command(1, expected=1), lesson.writer_of(0)
    old.begin_transaction()
    if flushed:
        lesson.handle(old, lesson.cluster.connection, topic, asked)
    with lesson.writer_of(0) as new:  # first it fences, then it reads
        new.begin_transaction()
        assert lesson.handle(new, lesson.cluster.connection, topic, asked) == "accepted"
        new.commit_transaction()
    with pytest.raises(KafkaError):
        if not flushed:
            old.send(topic, {"type": "USER_UPDATED", "user_id": "ann", "data": {}}, key=b"ann").get(timeout=10)
        old.commit_transaction()
    old.close()
    assert lesson.version_of(lesson.cluster.connection, topic, "ann") == 2
    assert len(read_topic(lesson.cluster, topic)) == 2
