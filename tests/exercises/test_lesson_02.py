"""The questions of lesson 02: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_02 import q1, q2, q3
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
            with_consumer.replace("found[place].offset,", "found[place].offset if found[place] else 0,"): "its end",
        },
        cluster,
        SETUP,
    )


def test_q2_may_use_a_consumer(cluster):
    as_in_the_lesson = """
def replay_since(connection, topic, group, moment):
    with KafkaConsumer(**connection, group_id=group, enable_auto_commit=False) as consumer:
        places = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
        found, ends = consumer.offsets_for_times(dict.fromkeys(places, moment)), consumer.end_offsets(places)
        offsets = {place: found[place].offset if found[place] else ends[place] for place in places}
        consumer.commit({place: OffsetAndMetadata(offset, "", -1) for place, offset in offsets.items()})
"""
    assert q2.try_answer(as_in_the_lesson, cluster, SETUP).state == "right"


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
