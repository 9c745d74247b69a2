"""Questions of lesson 02, publish–subscribe."""

import contextlib
import threading
import time
from unittest import mock

from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError
from kafka.serializer import JsonSerializer

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers import take, wait_until

CUSTOMERS = ["eve", "dan", "ann", "gus"]  # of partitions 0 to 3, where there are four
NUMBERS = list(range(1, 13))


def _place_orders(lab, topic, timestamp=lambda number: None, partition=lambda number: (number - 1) % 4) -> None:
    producer = lab.producer(value_serializer=JsonSerializer())
    for number in NUMBERS:
        order = {"order": number, "customer": CUSTOMERS[(number - 1) % 4]}
        producer.send(topic, order, partition=partition(number), timestamp_ms=timestamp(number))
    producer.flush()


class _Reader(threading.Thread):
    """Reads with a subscribed consumer until it is told to stop; keeps the records."""

    def __init__(self, consumer, topic):
        super().__init__(daemon=True)
        # Known before it joins: otherwise kafka-python 3.0.12 joins twice, and a poll that ends in between can lose its
        # share for good.
        consumer.partitions_for_topic(topic)
        self.consumer, self.records, self.stopped, self.error = consumer, [], False, None
        self.start()

    def run(self):
        try:
            while not self.stopped:
                if loads := self.consumer.poll(timeout_ms=500):
                    self.records += [record for records in loads.values() for record in records]
                    # Not left to auto-commit, which kafka-python gives up when a poll ends at the wrong moment of a
                    # rebalance: whoever takes over would read them again.
                    if self.consumer.config["group_id"]:
                        self.consumer.commit()
        except Exception as error:  # the judge raises it: a thread's traceback would be a cell's output
            self.error = error

    def stop(self):
        self.stopped = True
        self.join(10)


def _wait_for_silence(count, complete) -> None:
    """Wait until `count()` has not grown for 6 seconds, or for 1.5 once `complete()` is true.

    On a busy machine a right answer may pause before its last reader begins; after all was read, what is to be seen
    is only whether somebody reads it once more.
    """
    seen, since = 0, time.monotonic()
    while time.monotonic() - since < (1.5 if complete() else 6):
        if (now := count()) > seen:
            seen, since = now, time.monotonic()
        time.sleep(0.02)


# -- q1: a group for each service


def _offset_of(record) -> tuple:
    return record.partition, record.offset


def _judge_open_consumer(lab, open_consumer):
    topic = lab.topic(partitions=4)
    groups = {service: lab.group(service) for service in ("warehouse", "mailer")}
    _place_orders(lab, topic)
    readers = []
    for service in ("warehouse", "warehouse", "mailer"):
        consumer = lab.call(open_consumer, lab.cluster.connection, topic, groups, service, gives=KafkaConsumer)
        readers.append(_Reader(consumer, topic))
        lab.afterwards.callback(readers[-1].stop)

    def read():
        return [[_offset_of(record) for record in reader.records] for reader in readers]

    def complete():
        pia, tim, mailer = read()
        return len(set(pia + tim)) == len(set(mailer)) == len(NUMBERS)

    _wait_for_silence(lambda: sum(len(reader.records) for reader in readers), complete)
    for reader in readers:
        if reader.error:
            raise reader.error
    pia, tim, mailer = read()
    wanted = "each of the 12 orders once in the warehouse, by one of its two processes, and once at the mailer"
    if not pia + tim + mailer:
        raise Wrong(
            "nobody read anything",
            wanted,
            "The orders were there before the consumers came: `auto_offset_reset` decides where a new group begins.",
        )
    if len({*pia, *tim}) == len({*mailer}) == len(NUMBERS):
        pia, tim, mailer = _read_more(lab, topic, read)
    if both := set(pia) & set(tim):
        cause = "They share the orders only as members of one group: the same `group_id` for each process of a service."
        if not readers[0].consumer.subscription():
            cause = "`assign` takes partitions without asking the group: subscribe to the topic."
        raise Wrong(f"{len(both)} orders were packed twice, by both processes of the warehouse", wanted, cause)
    if len(set(pia + tim)) < len(NUMBERS) or len(set(mailer)) < len(NUMBERS):
        raise Wrong(
            "between them the warehouse and the mailer read each order once: neither of them got all",
            wanted,
            "Warehouse and mailer are members of one group, and share the orders; each needs a group of its own.",
        )
    for reader in readers:
        reader.stop()
        reader.consumer.close()
    _judge_restart(lab, open_consumer, topic, groups)
    return "12 orders in the warehouse, shared by two processes, and the same 12 at the mailer"


def _read_more(lab, topic, read) -> list:
    """Four orders more, while all are there; returns what each has read of all sixteen."""
    producer = lab.producer(value_serializer=JsonSerializer())
    for partition in range(4):
        producer.send(topic, {"order": 13 + partition}, partition=partition).get(timeout=10)

    def complete():
        pia, tim, mailer = read()
        return len({*pia, *tim}) == len({*mailer}) == len(NUMBERS) + 4

    wait_until(complete, "both services to read four orders more", timeout=10)
    time.sleep(0.2)  # for one who should not read them, and does
    return read()


def _judge_restart(lab, open_consumer, topic, groups) -> None:
    """Both services are started again, one process each: they go on where their group has stopped."""
    for service, group in groups.items():
        if sum(_committed(lab, topic, group).values()) != len(NUMBERS) + 4:
            raise Wrong(
                f"the group {lab.cluster.plain(group)!r} has not read the orders of the {service}",
                "the group's name as it stands in `groups`",
                "The name of the group is `groups[service]`, and no other one.",
            )
    lab.producer(value_serializer=JsonSerializer()).send(topic, {"order": 17}, partition=0).get(timeout=10)
    for service in groups:
        consumer = lab.call(open_consumer, lab.cluster.connection, topic, groups, service, gives=KafkaConsumer)
        (record,) = take(consumer, 1)
        consumer.close()
        if _offset_of(record) != (0, 4):
            raise Wrong(
                f"started again, the {service} reads the order at {_offset_of(record)} (partition, offset) once more",
                "order 17 at (0, 4), the only one that it has not read",
                "The group's committed offset says where to go on: leave it to Kafka, and do not `seek`.",
            )


_OPEN_CONSUMER = '''
def open_consumer(connection, topic, groups, service):
    """A consumer for one process of a service, "warehouse" or "mailer"."""
    return KafkaConsumer(topic, **connection, group_id=groups["warehouse"], auto_offset_reset="earliest")
'''

q1 = Question(
    "q1",
    wants=("open_consumer",),
    starter=_OPEN_CONSUMER,
    solution=_OPEN_CONSUMER.replace('groups["warehouse"]', "groups[service]"),
    judge=_judge_open_consumer,
    hints=[
        "Who shares the orders with whom? All consumers with the same `group_id`.",
        "`service` says for whom the consumer is, and `groups[service]` is the name of that service's group.",
    ],
    why="The group's name is all that tells 'we share the work' from 'we both need to know'.",
    deadline=20,
)


# -- q2: again, since a moment

TEN = 1_767_261_600_000  # ten o'clock on the first day of 2026, in milliseconds since 1970
HOUR = 3_600_000


def _committed(lab, topic, group) -> dict[int, int]:
    with KafkaAdminClient(**lab.cluster.connection) as admin:
        offsets = admin.list_group_offsets([group])[group]
    return {place.partition: found.offset for place, found in sorted(offsets.items()) if place.topic == topic}


@contextlib.contextmanager
def _orders_between(lab, topic):
    """An order comes in partition 2 after each question to the broker, from then on until the end."""
    producer = lab.producer(value_serializer=JsonSerializer())

    def then_an_order(question):
        def asked(client, *arguments, **keywords):
            answer = question(client, *arguments, **keywords)
            producer.send(topic, {"order": 13}, partition=2, timestamp_ms=TEN + 9 * HOUR).get(timeout=10)
            return answer

        return asked

    with contextlib.ExitStack() as patches:
        for kind, names in {
            KafkaConsumer: ["offsets_for_times", "end_offsets", "beginning_offsets", "position", "committed"],
            KafkaAdminClient: ["list_partition_offsets", "list_group_offsets", "describe_topics"],
        }.items():
            for name in names:
                patches.enter_context(mock.patch.object(kind, name, then_an_order(getattr(kind, name))))
        yield


def _judge_replay_since(lab, replay_since):
    topic, group = lab.topic(partitions=3, config={"retention.ms": -1}), lab.group()
    # Partition 2 has the four orders from before ten; 0 and 1 share the others, from nine o'clock on.
    when = {number: TEN + (number - 7) * HOUR for number in NUMBERS} | dict.fromkeys((1, 2, 3, 4), TEN - 3 * HOUR)
    _place_orders(lab, topic, when.get, lambda number: 2 if number < 5 else number % 2)
    first = lab.consumer(topic, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False)
    take(first, len(NUMBERS))
    first.commit()
    first.commit({TopicPartition(topic, 2): OffsetAndMetadata(2, "", -1)})  # it has not done all of partition 2 yet
    first.close()
    before = _committed(lab, topic, group)
    connection = lab.cluster.connection
    for moment, wanted in [
        (TEN, {0: 1, 1: 1, 2: 4}),
        (TEN - 2 * HOUR, {0: 0, 1: 0, 2: 4}),
        (TEN + 8 * HOUR, {0: 4, 1: 4, 2: 4}),
    ]:
        lab.call(replay_since, connection, topic, group, moment)
        _compare(_committed(lab, topic, group), wanted, before)
        before = _committed(lab, topic, group)
    with _orders_between(lab, topic):
        lab.call(replay_since, connection, topic, group, TEN)
    if (begins := _committed(lab, topic, group).get(2)) != 4:
        raise Wrong(
            f"an order came at offset 4 of partition 2 while your function ran, and the group begins at {begins}",
            "4: it came after `moment`",
            "It came between two questions. Ask for the ends first: what comes after that is found by its time, or "
            "stands at the end that you know.",
        )

    member = lab.consumer(topic, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False)
    take(member, 1)
    before = _committed(lab, topic, group)
    try:
        replay_since(connection, topic, group, TEN - 3 * HOUR)
    except Exception as error:
        return f"moved to {before}; with a living member your function raises {type(error).__name__}"
    if _committed(lab, topic, group) == before:
        raise Wrong(
            "while a member of the group was running Kafka refused to move its offsets, and your function returned as "
            "if it had",
            "an exception",
            "`reset_group_offsets` and `alter_group_offsets` give errors back as values: look at each of the answers.",
        )


def _compare(committed: dict, wanted: dict, before: dict) -> None:
    if committed == wanted:
        return
    cause = "`moment` is in milliseconds since 1970; the first record of that time or later is where to begin."
    if committed == before:
        cause = "The offsets are where they were: nothing was moved, or nothing was committed."
    elif committed == dict.fromkeys(wanted, 0):
        cause = "That is the beginning: everything comes again, also what was done before the fault."
    elif {p: o for p, o in committed.items() if p != 2} == {p: o for p, o in wanted.items() if p != 2}:
        cause = "In partition 2 nothing has come since: there the group has to begin at the end, wherever it stood."
    elif any(committed.get(partition) == before[partition] for partition in (0, 1)):
        cause = "Some partitions were not moved: ask for all partitions of the topic."
    raise Wrong(f"the group begins at {committed} (partition: offset)", f"{wanted}", cause)


q2 = Question(
    "q2",
    wants=("replay_since",),
    starter='''
def replay_since(connection, topic, group, moment):
    """The group is to begin with what came at `moment` or later; raises if Kafka refuses."""
    with KafkaAdminClient(**connection) as admin:
        admin.reset_group_offsets(group, {TopicPartition(topic, 0): OffsetSpec.EARLIEST})
''',
    solution='''
def replay_since(connection, topic, group, moment):
    """The group is to begin with what came at `moment` or later; raises if Kafka refuses."""
    with KafkaAdminClient(**connection) as admin:
        (found,) = admin.describe_topics([topic])
        places = [TopicPartition(topic, partition["partition_index"]) for partition in found["partitions"]]
        # It asks for the ends before it asks for the time: an order that comes in between is not skipped.
        answers = admin.reset_group_offsets(group, dict.fromkeys(places, OffsetTimestamp(moment)))
    for place, answer in answers.items():
        if answer["error"].errno:
            raise answer["error"](f"partition {place.partition}")
''',
    judge=_judge_replay_since,
    hints=[
        "Two ways: as `begin_at` above, with a consumer of that group that commits; or the admin client's "
        "`reset_group_offsets`, which takes an `OffsetTimestamp(moment)` for each partition.",
        "`consumer.partitions_for_topic(topic)` or `admin.describe_topics([topic])` tell which partitions there are.",
        "`reset_group_offsets` gives `{partition: {'error': …, 'offset': …}}`; the error's `errno` is 0 where all is "
        "well.",
    ],
    why="A mended program can do its work again, because the log still has it; but only if nobody reads meanwhile.",
    deadline=25,
)


# -- q3: committed when it is given up


FIRST = {0: 1, 1: 2, 2: 1, 3: 2}  # how many orders of each partition pia packs before tim comes
SETTINGS = {
    "auto_offset_reset": "earliest",
    "enable_auto_commit": False,
    "heartbeat_interval_ms": 100,
    "value_deserializer": JsonSerializer(),
}


def _judge_hand_over(lab, hand_over):
    topic, group = lab.topic(partitions=4), lab.group()
    deleted = lab.producer()
    for partition in FIRST:
        deleted.send(topic, b"{}", partition=partition)
    deleted.flush()
    with KafkaAdminClient(**lab.cluster.connection) as admin:  # so that an offset is no count
        admin.delete_records({TopicPartition(topic, partition): 1 for partition in FIRST})
    _place_orders(lab, topic)
    pia = lab.consumer(client_id="pia", group_id=group, **SETTINGS)
    listener = lab.call(hand_over, pia)
    try:
        pia.subscribe([topic], listener=listener)
        pia.partitions_for_topic(topic)
    except TypeError as error:
        raise Wrong(str(error), "a ConsumerRebalanceListener", "Keep the base class of the starter.") from None
    packed, held = [], []

    def pack(record):
        packed.append(record.value["order"])
        listener.packed(record)

    with _told_by_listener():
        taken = take(pia, len(NUMBERS))
    for record in taken:
        if record.offset <= FIRST[record.partition]:
            pack(record)
        else:
            held.append(record)  # she has taken these, and not packed them yet
    tim = _Reader(lab.consumer(topic, client_id="tim", group_id=group, **SETTINGS), topic)
    lab.afterwards.callback(tim.stop)

    def all_packed() -> bool:
        for records in pia.poll(timeout_ms=500, max_records=1).values():
            if records[0].value["order"] not in packed:
                pack(records[0])
        hers = {place.partition for place in pia.assignment()}
        if len(hers) == 2:  # tim has the others; of these two she packs what she holds
            for record in held:
                if record.partition in hers and record.value["order"] not in packed:
                    pack(record)
        return set(packed + [record.value["order"] for record in tim.records]) >= set(NUMBERS)

    def all_hers() -> bool:
        for records in pia.poll(timeout_ms=500, max_records=1).values():
            pack(records[0])
        return len(pia.assignment()) == 4

    with _told_by_listener():
        with contextlib.suppress(TimeoutError):
            wait_until(all_packed, "all orders to be packed", timeout=10)
        tim.stop()
        tim.consumer.close()  # his partitions come back to her, who packs nothing more in them
        with contextlib.suppress(TimeoutError):
            wait_until(all_hers, "pia to have all partitions", timeout=10)
        for records in pia.poll(timeout_ms=500).values():
            packed += [record.value["order"] for record in records]
        pia.close()
    _judge_packed(packed, [record.value["order"] for record in tim.records])
    left = _committed(lab, topic, group)
    if back := [partition for partition in (2, 3) if left.get(partition) != 4]:
        raise Wrong(
            f"when both have left, the group's offsets are {left}: in partitions {back} they went back",
            "4 in each partition: the second packer had packed all of these",
            "A partition that was given up is another's to commit: forget what you have noted of it.",
        )
    if [left.get(partition) for partition in (0, 1)] != [4, 4]:
        raise Wrong(
            f"when pia has left by `close()`, the group's offsets are {left}",
            "4 in each partition, behind all that is packed",
            "Closing gives partitions up, too; what was packed since the last rebalance has to be committed then.",
        )
    return "a second packer came and left, then the first one left: no order was packed twice, none was left out"


class _told_by_listener:
    """An exception of the learner's listener comes out of the client as the cause of a KafkaError: tell that one."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if not (isinstance(error, KafkaError) and error.__cause__):
            return
        cause = "The exception is raised in your listener."
        if "Cannot block" in str(error.__cause__):
            cause = "`commit` waits for the broker, which a listener must not do in kafka-python: `commit_async`."
        told = str(error.__cause__).split(". ")[0]
        raise Wrong(
            f"your listener stopped with {type(error.__cause__).__name__}: {told}", "a listener that commits", cause
        ) from None


def _judge_packed(by_pia: list, by_tim: list) -> None:
    wanted = "each order packed once, though a second packer took over two of the partitions meanwhile"
    both = by_pia + by_tim
    if never := sorted(set(NUMBERS) - set(both)):
        raise Wrong(
            f"orders {never} are never packed",
            wanted,
            "The first packer had taken them, but not packed them: commit the offsets of what is *packed*, for each "
            "partition its own. `commit_async()` without offsets commits the consumer's position.",
        )
    twice = sorted({number for number in both if both.count(number) > 1})
    if not twice:
        return
    cause = "Nothing was committed for the partitions that were given up, or only after they were gone."
    if {*twice} & {*by_pia[-len(twice) :]} & {*by_tim}:
        cause = (
            "The offset went back: commit only the partitions that are in `revoked`, and forget what you have noted of "
            "them; from then on another one moves them."
        )
    elif len(twice) == 2:
        cause = "What is committed is the offset of the record to read *next*: `record.offset + 1`."
    raise Wrong(f"orders {twice} are packed twice", wanted, cause)


q3 = Question(
    "q3",
    wants=("HandOver",),
    starter='''
class HandOver(ConsumerRebalanceListener):
    """Commits what is packed when partitions are given up: consumer.subscribe([topic], listener=HandOver(consumer))."""

    def __init__(self, consumer):
        self.consumer = consumer

    def packed(self, record):
        """This order is packed. (Others may have been taken, and not be packed yet.)"""

    def on_partitions_revoked(self, revoked):
        """Kafka is about to take these TopicPartitions away."""

    def on_partitions_assigned(self, assigned):
        """These are new; nothing to do."""
''',
    solution='''
class HandOver(ConsumerRebalanceListener):
    """Commits what is packed when partitions are given up: consumer.subscribe([topic], listener=HandOver(consumer))."""

    def __init__(self, consumer):
        self.consumer = consumer
        self.done = {}

    def packed(self, record):
        """This order is packed. (Others may have been taken, and not be packed yet.)"""
        place = TopicPartition(record.topic, record.partition)
        self.done[place] = OffsetAndMetadata(record.offset + 1, "", -1)

    def on_partitions_revoked(self, revoked):
        """Kafka is about to take these TopicPartitions away."""
        offsets = {place: self.done.pop(place) for place in revoked if place in self.done}
        self.consumer.commit_async(offsets)

    def on_partitions_assigned(self, assigned):
        """These are new; nothing to do."""
''',
    judge=_judge_hand_over,
    hints=[
        "`packed` has to remember, for each partition, how far it is; `on_partitions_revoked` commits that.",
        "The offsets to commit are a dict: `{TopicPartition(record.topic, record.partition): "
        "OffsetAndMetadata(record.offset + 1, '', -1)}`.",
        "`self.consumer.commit_async(offsets)`, for the partitions that are in `revoked`; forget them then, because "
        "from now on somebody else moves them.",
    ],
    why="A rebalance is no crash: who is asked to give up a partition can say how far it came.",
    deadline=25,
)
