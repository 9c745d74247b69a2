"""The questions of lesson 02: starter, solution, and plausible wrong answers, each told apart."""

# ruff: noqa: E501 (answers, as learners type them)

import pytest

from exercises.frame.testing import hold
from exercises.lesson_02 import q1, q2, q3
from tests.answers import refused, right
from tools.lessons import IMPORTS

SETUP = (
    IMPORTS
    + """
from kafka import ConsumerRebalanceListener
from kafka.admin import OffsetSpec, OffsetTimestamp
"""
)


def test_q1(cluster):
    hold(
        q1,
        {
            q1.changed("groups[service]", 'groups["mailer"]'): "a group of its own",
            q1.changed("group_id=groups[service], ", ""): "as members of one group",
            q1.changed(', auto_offset_reset="earliest"', ""): "`auto_offset_reset`",
        },
        cluster,
        SETUP,
    )


def test_q2(cluster):
    with_consumer = """
def replay_since(connection, topic, group, moment):
    with KafkaConsumer(**connection, group_id=group, enable_auto_commit=False) as consumer:
        places = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
        found = consumer.offsets_for_times(dict.fromkeys(places, moment))
        consumer.commit({place: OffsetAndMetadata(found[place].offset, "", -1) for place in places})
"""
    hold(
        q2,
        {
            q2.changed("OffsetTimestamp(moment)", "OffsetSpec.EARLIEST"): "That is the beginning",
            q2.changed("dict.fromkeys(places, ", "dict.fromkeys(places[:1], "): "all partitions",
            q2.changed('        if answer["error"].errno:\n            raise', "        str").replace(
                '        str answer["error"](f"partition {place.partition}")', "        pass"
            ): "errors back as values",
            with_consumer: "'NoneType' object has no attribute 'offset'",
            with_consumer.replace("found[place].offset,", "found[place].offset if found[place] else 0,"): "at the end",
        },
        cluster,
        SETUP,
    )


def test_q3(cluster):
    hold(
        q3,
        {
            q3.changed("commit_async(offsets)", "commit(offsets)"): "`commit` waits for the broker",
            q3.changed("commit_async(offsets)", "commit_async()"): "the consumer's position",
            q3.changed("record.offset + 1", "record.offset"): "to read *next*",
            q3.changed("        self.consumer.commit_async(offsets)\n", ""): "Nothing was committed",
        },
        cluster,
        SETUP,
    )


# -- more of both kinds -----------------------------------------------------------------------------------------------

C = """
def replay_since(connection, topic, group, moment):
    with KafkaConsumer(**connection, group_id=group, enable_auto_commit=False) as consumer:
        places = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
        found, ends = consumer.offsets_for_times(dict.fromkeys(places, moment)), consumer.end_offsets(places)
        offsets = {place: found[place].offset if found[place] else ends[place] for place in places}
        consumer.commit({place: OffsetAndMetadata(offset, "", -1) for place, offset in offsets.items()})
"""
A = "found, ends = consumer.offsets_for_times(dict.fromkeys(places, moment)), consumer.end_offsets(places)"
B = "ends, found = consumer.end_offsets(places), consumer.offsets_for_times(dict.fromkeys(places, moment))"


@pytest.mark.full
def test_q1_more(cluster):
    wrong = {
        # service
        q1.changed("groups[service]", "service"): "no other one",
        # uuid
        q1.changed("groups[service]", "groups[service] + str(time.time_ns())"): "one group",
        # hash
        q1.changed("groups[service]", "str(hash(service))"): "no other one",
        # assign
        """
def open_consumer(connection, topic, groups, service):
    consumer = KafkaConsumer(**connection, group_id=groups[service], auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)])
    return consumer
""": "`assign` takes",
        # seek
        """
def open_consumer(connection, topic, groups, service):
    class L(ConsumerRebalanceListener):
        def __init__(self, c): self.c = c
        def on_partitions_revoked(self, revoked): pass
        def on_partitions_assigned(self, assigned):
            if assigned: self.c.seek_to_beginning(*assigned)
    consumer = KafkaConsumer(**connection, group_id=groups[service], auto_offset_reset="earliest")
    consumer.subscribe([topic], listener=L(consumer))
    return consumer
""": "",
        # one consumer
        """
made = {}
def open_consumer(connection, topic, groups, service):
    if service not in made:
        made[service] = KafkaConsumer(topic, **connection, group_id=groups[service], auto_offset_reset="earliest")
    return made[service]
""": "",
    }
    refused(q1, wrong, cluster, SETUP)


@pytest.mark.full
def test_q1_unusual(cluster):
    answers = [
        # subscribe
        """
def open_consumer(connection, topic, groups, service):
    consumer = KafkaConsumer(**connection, group_id=groups[service], auto_offset_reset="earliest", enable_auto_commit=False)
    consumer.subscribe([topic])
    return consumer
""",
        # if
        """
def open_consumer(connection, topic, groups, service):
    group = groups["mailer"] if service == "mailer" else groups["warehouse"]
    return KafkaConsumer(topic, **connection, group_id=group, auto_offset_reset="earliest")
""",
        # pattern
        """
def open_consumer(connection, topic, groups, service):
    consumer = KafkaConsumer(**connection, group_id=groups[service], auto_offset_reset="earliest")
    consumer.subscribe(pattern="^" + topic + "$")
    return consumer
""",
    ]
    right(q1, answers, cluster, SETUP)


@pytest.mark.full
def test_q2_more(cluster):
    wrong = {
        # lesson's old
        C: "between two questions",
        # seek, position
        C.replace("ends = ", "ends = {}; _ = ").replace(
            "found, ends = {}; _ = consumer.offsets_for_times(dict.fromkeys(places, moment)), consumer.end_offsets(places)",
            """found = consumer.offsets_for_times(dict.fromkeys(places, moment))
        consumer.assign(places)
        consumer.seek_to_end(*places)
        ends = {p: consumer.position(p) for p in places}""",
        ): "between two questions",
        # latest
        q2.changed("OffsetTimestamp(moment)", "OffsetSpec.LATEST"): "",
        # seconds
        q2.changed("OffsetTimestamp(moment)", "OffsetTimestamp(moment // 1000)"): "",
        # leaves
        C.replace(
            " for place in places}\n        consumer.commit",
            " for place in places if found[place]}\n        consumer.commit",
        ): "at the end",
        # seek only
        C[: C.index("        consumer.commit(")]
        + "        consumer.assign(places)\n        for place, offset in offsets.items(): consumer.seek(place, offset)\n": "nothing was committed",
        # plus one
        C.replace(A, B).replace("found[place].offset if", "found[place].offset + 1 if"): "",
        # swallows
        C.replace(A, B).replace("        consumer.commit(", "        try: consumer.commit(").rstrip()
        + "\n        except KafkaError: pass\n": "",
        # async
        C.replace(A, B).replace("consumer.commit(", "consumer.commit_async("): "",
        # min
        """
def replay_since(connection, topic, group, moment):
    with KafkaConsumer(topic, **connection, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest") as consumer:
        places = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
        start = {}
        for r in read_topic(connection, topic):
            if r.timestamp >= moment:
                start.setdefault(TopicPartition(topic, r.partition), OffsetAndMetadata(r.offset, "", -1))
        consumer.commit(start)
""": "",
    }
    refused(q2, wrong, cluster, SETUP)


@pytest.mark.full
def test_q2_unusual(cluster):
    answers = [
        # ends first
        C.replace(A, B),
        # alter
        """
def replay_since(connection, topic, group, moment):
    with KafkaConsumer(**connection) as consumer:
        places = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
        ends = consumer.end_offsets(places)
        found = consumer.offsets_for_times(dict.fromkeys(places, moment))
    target = {p: OffsetAndMetadata(found[p].offset if found[p] else ends[p], "", -1) for p in places}
    with KafkaAdminClient(**connection) as admin:
        for place, error in admin.alter_group_offsets(group, target).items():
            if error.errno:
                raise error(place)
""",
        # list offsets
        """
def replay_since(connection, topic, group, moment):
    with KafkaAdminClient(**connection) as admin:
        (found,) = admin.describe_topics([topic])
        places = [TopicPartition(topic, p["partition_index"]) for p in found["partitions"]]
        ends = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
        since = admin.list_partition_offsets(dict.fromkeys(places, OffsetTimestamp(moment)))
        target = {p: since[p].offset if since[p].offset >= 0 else ends[p].offset for p in places}
        answers = admin.reset_group_offsets(group, target)
        assert all(a["error"].errno == 0 for a in answers.values()), answers
""",
        # reads
        """
def replay_since(connection, topic, group, moment):
    with KafkaConsumer(**connection, group_id=group, enable_auto_commit=False) as consumer:
        places = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
        start = dict(consumer.end_offsets(places))
        for r in reversed(read_topic(connection, topic)):
            if r.timestamp >= moment:
                start[TopicPartition(topic, r.partition)] = r.offset
        consumer.commit({p: OffsetAndMetadata(o, "", -1) for p, o in start.items()})
""",
    ]
    right(q2, answers, cluster, SETUP)


@pytest.mark.full
def test_q3_more(cluster):
    wrong = {
        # dict
        q3.changed(
            "{place: self.done.pop(place) for place in revoked if place in self.done}", "dict(self.done)"
        ): "went back",
        # no forget
        q3.changed("self.done.pop(place)", "self.done[place]"): "",
        # one number
        q3.changed(
            "{place: self.done.pop(place) for place in revoked if place in self.done}",
            "{place: self.done[max(self.done)] for place in revoked if self.done}",
        ): "",
        # counts
        q3.changed(
            "OffsetAndMetadata(record.offset + 1",
            "OffsetAndMetadata((self.done[place].offset if place in self.done else 0) + 1",
        ): "",
        # assigned
        """
class HandOver(ConsumerRebalanceListener):
    def __init__(self, consumer):
        self.consumer = consumer
        self.done = {}
    def packed(self, record):
        self.done[TopicPartition(record.topic, record.partition)] = OffsetAndMetadata(record.offset + 1, "", -1)
    def on_partitions_revoked(self, revoked):
        pass
    def on_partitions_assigned(self, assigned):
        self.consumer.commit_async(dict(self.done))
""": "",
        # partition only first
        q3.changed("for place in revoked if", "for place in list(revoked)[:1] if"): "",
        # only once
        q3.changed(
            "        self.consumer.commit_async(offsets)\n",
            "        if not hasattr(self, 'once'):\n            self.once = True\n            self.consumer.commit_async(offsets)\n",
        ): "",
        # no base
        q3.changed("class HandOver(ConsumerRebalanceListener)", "class HandOver"): "base class",
    }
    refused(q3, wrong, cluster, SETUP)


@pytest.mark.full
def test_q3_unusual(cluster):
    answers = [
        # all then forget
        q3.changed(
            "        offsets = {place: self.done.pop(place) for place in revoked if place in self.done}\n        self.consumer.commit_async(offsets)",
            "        self.consumer.commit_async(self.done)\n        self.done = {}",
        ),
        # each
        """
class HandOver(ConsumerRebalanceListener):
    def __init__(self, consumer):
        self.consumer = consumer
    def packed(self, record):
        place = TopicPartition(record.topic, record.partition)
        self.consumer.commit({place: OffsetAndMetadata(record.offset + 1, "", -1)})
    def on_partitions_revoked(self, revoked):
        pass
    def on_partitions_assigned(self, assigned):
        pass
""",
        # clears at assigned
        """
class HandOver(ConsumerRebalanceListener):
    def __init__(self, consumer):
        self.consumer, self.done = consumer, {}
    def packed(self, record):
        self.done[record.partition] = record
    def on_partitions_revoked(self, revoked):
        for place in revoked:
            if place.partition in self.done:
                record = self.done[place.partition]
                self.consumer.commit_async({place: OffsetAndMetadata(record.offset + 1, "", -1)})
    def on_partitions_assigned(self, assigned):
        for place in assigned:
            self.done.pop(place.partition, None)
""",
    ]
    right(q3, answers, cluster, SETUP)
