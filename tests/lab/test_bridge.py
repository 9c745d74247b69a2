"""The Java bridge: values, functions, errors and topologies from Python, and an end without a crash.

Java starts once a process, so all tests of this file share it; what must not happen to it (a kernel's end, a signal) is
tried in processes of their own.
"""

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import jpype
import pytest
from jupyter_client.manager import KernelManager
from kafka import KafkaConsumer, KafkaProducer
from kafka.partitioner.default import murmur2

from helpers import Cluster, LabError, Worker, point, read_topic, take, wait_until
from helpers.pictures.topology import topology_view
from helpers.streams import topology
from helpers.streams.topology import TOMBSTONE, Streams, application_id, java_config, json_serde, start_java
from tests.secured import secured_broker

HANDLER = "org.apache.kafka.streams.errors."
STRING = "org.apache.kafka.common.serialization.StringDeserializer"


@pytest.fixture(scope="module", autouse=True)
def java():
    start_java(streams=True)


@pytest.fixture(scope="module")
def cluster():
    with Cluster(brokers=1) as cluster:  # not `Cluster()`: one of the tests calls that, which would stop this one
        yield cluster


@pytest.fixture
def topics(cluster):
    """An input topic that holds five words, and an empty output topic."""
    source, target = cluster.topic("input-topic", partitions=2), cluster.topic("output-topic")
    send(cluster, source, *(f"order {number}" for number in range(5)))
    return source, target


def send(cluster, topic: str, *values: str) -> None:
    with KafkaProducer(**cluster.connection) as producer:
        for value in values:
            producer.send(topic, value.encode(), key=value.encode())


def mapped(source: str, function, target: str):
    """The smallest topology around a function."""
    from org.apache.kafka.streams import StreamsBuilder

    builder = StreamsBuilder()
    builder.stream(source).mapValues(function).to(target)
    return builder.build()


def counted(source: str, target: str):
    from org.apache.kafka.common.serialization import Serdes
    from org.apache.kafka.streams import StreamsBuilder
    from org.apache.kafka.streams.kstream import Materialized, Produced

    builder = StreamsBuilder()
    counts = builder.stream(source).groupBy(lambda key, value: value[:5]).count(Materialized.as_("counts"))
    counts.toStream().to(target, Produced.with_(Serdes.String(), Serdes.Long()))
    return builder.build()


def table(source: str):
    """A table whose store Kafka Streams names as its topic (which it does for joins)."""
    from org.apache.kafka.streams import StreamsBuilder
    from org.apache.kafka.streams.kstream import Materialized

    builder = StreamsBuilder()
    builder.table(source, Materialized.as_(source))
    return builder.build()


def values(cluster, topic: str) -> list[str]:
    return sorted(record.value.decode() for record in read_topic(cluster, topic))


@pytest.fixture
def drive():
    """Pipe JSON values through a topology by the test driver; returns what comes out as (key, value) pairs.

    With `text_in` or `text_out` what is piped, or comes out, is the JSON text itself.
    """
    from org.apache.kafka.common.serialization import Serdes
    from org.apache.kafka.streams import StreamsBuilder, TopologyTestDriver
    from org.apache.kafka.streams.kstream import Consumed, Produced

    def call(steps, *piped, text_in=False, text_out=False) -> list:
        text, values = Serdes.String(), json_serde()
        builder = StreamsBuilder()
        steps(builder.stream("in", Consumed.with_(text, values))).to("out", Produced.with_(text, values))
        driver = TopologyTestDriver(builder.build())
        try:
            serializer = (text if text_in else values).serializer()
            source = driver.createInputTopic("in", text.serializer(), serializer)
            for value in piped:
                source.pipeInput("key", value)
            deserializer = (text if text_out else values).deserializer()
            target = driver.createOutputTopic("out", text.deserializer(), deserializer)
            return [(record.key, record.value) for record in target.readKeyValuesToList()]
        finally:
            driver.close()

    return call


# -- values and functions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["größer", "", 7, -(2**62), 2.5, True, False, {}, {"a": {"b": [1, None, "ü"]}}, [], [1, "two", {"three": 3}]],
)
def test_json_values_reach_a_function_and_come_back_as_they_are(drive, value):
    seen = []

    def note(got):
        seen.append(got)
        return got

    ((_, result),) = drive(lambda stream: stream.mapValues(note), value, text_out=True)
    assert json.loads(result) == value
    assert result == json.dumps(value)
    assert seen == [value]
    assert isinstance(seen[0], type(value))


def test_a_carried_dict_is_a_map_to_java():
    """Java code that gets a dict inside of a dict, as the admin client's configurations do, can read both."""
    nested = jpype.JObject({"names": ["a", "b"], "sizes": {"a": 1}}, jpype.JObject)
    copied = jpype.java.util.TreeMap(jpype.java.util.HashMap({"outer": nested}))
    assert copied.get("outer") == {"names": ["a", "b"], "sizes": {"a": 1}}
    assert [str(name) for name in jpype.java.util.ArrayList([["b", "a"]]).get(0)] == ["b", "a"]


@pytest.mark.parametrize(
    "steps, wanted",
    [
        (lambda s: s.mapValues(lambda v: {**v, "seen": True}), [("key", {"n": 2, "seen": True})]),
        (lambda s: s.mapValues(lambda k, v: k + str(v["n"])), [("key", "key2")]),
        (lambda s: s.map(lambda k, v: (k.upper(), v["n"])), [("KEY", 2)]),
        (lambda s: s.flatMapValues(lambda v: list(range(v["n"]))), [("key", 0), ("key", 1)]),
        (lambda s: s.flatMap(lambda k, v: [(k + "1", v), (k + "2", None)]), [("key1", {"n": 2}), ("key2", None)]),
        (lambda s: s.filter(lambda k, v: v["n"] > 2), []),
        (lambda s: s.filterNot(lambda k, v: v["n"] > 2), [("key", {"n": 2})]),
        (lambda s: s.selectKey(lambda k, v: v["n"] * "x"), [("xx", {"n": 2})]),
        (lambda s: s.peek(lambda k, v: None), [("key", {"n": 2})]),
        (lambda s: s.mapValues(lambda v: TOMBSTONE), [("key", None)]),
        (lambda s: s.map(lambda k, v: (k, TOMBSTONE)), [("key", None)]),
    ],
)
def test_python_functions_are_taken_for_java_lambdas(drive, steps, wanted):
    assert drive(steps, {"n": 2}) == wanted


class Louder:
    def __call__(self, value):
        return value.upper()


def joined(mark, value):
    return value + mark


@pytest.mark.parametrize(
    "function, wanted",
    [
        (str.upper, "TEA"),  # a method descriptor
        (str, "tea"),
        (json.dumps, '"tea"'),
        ("a ".__add__, "a tea"),
        (Louder(), "TEA"),
        (functools.partial(joined, "!"), "tea!"),
        (lambda value, mark="!": value + mark, "tea!"),
        (lambda *args: f"{len(args)}", "1"),
        (lambda key, value: f"{key}: {value}", "key: tea"),
    ],
)
def test_callables_of_any_kind_are_mappers(drive, function, wanted):
    """Also those of which JPype cannot tell whether they take a value, or a key and a value."""
    assert drive(lambda stream: stream.mapValues(function), "tea") == [("key", wanted)]


def test_a_lambda_with_a_default_as_a_joiner():
    from org.apache.kafka.common.serialization import Serdes
    from org.apache.kafka.streams import StreamsBuilder, TopologyTestDriver
    from org.apache.kafka.streams.kstream import Consumed, Joined, Produced

    text, builder = Serdes.String(), StreamsBuilder()
    consumed, produced, texts = Consumed.with_(text, text), Produced.with_(text, text), Joined.with_(text, text, text)
    orders, users = builder.stream("orders", consumed), builder.table("users", consumed)
    orders.join(users, lambda order, city, to=" to ": order + to + city, texts).to("cities", produced)
    orders.join(users, lambda name, order, city: f"{name}: {order}, {city}", texts).to("names", produced)
    with contextlib.closing(TopologyTestDriver(builder.build())) as driver:
        for topic, value in (("users", "Aachen"), ("orders", "order 1")):
            driver.createInputTopic(topic, text.serializer(), text.serializer()).pipeInput("ann", value)
        results = {
            topic: list(driver.createOutputTopic(topic, text.deserializer(), text.deserializer()).readValuesToList())
            for topic in ("cities", "names")
        }
    assert results == {"cities": ["order 1 to Aachen"], "names": ["ann: order 1, Aachen"]}


def test_a_lambda_with_a_default_is_named_in_errors(drive):
    with pytest.raises(TypeError, match="The function in .*mark.* returned None"):
        drive(lambda stream: stream.mapValues(lambda value, mark="!": None), "tea")


def test_state_holds_python_values(drive):
    from org.apache.kafka.common.serialization import Serdes
    from org.apache.kafka.streams.kstream import Grouped, Materialized

    store = Materialized.with_(Serdes.String(), json_serde())

    def top_two(stream):
        grouped = stream.groupByKey(Grouped.with_(Serdes.String(), json_serde()))
        return grouped.aggregate(list, lambda key, value, best: sorted([*best, value])[-2:], store).toStream()

    assert drive(top_two, 5, 1, 9)[-1] == ("key", [5, 9])

    def total(stream):
        grouped = stream.groupByKey(Grouped.with_(Serdes.String(), json_serde()))
        return grouped.reduce(lambda total, value: total + value, store).toStream()

    assert drive(total, 5, 1, 9)[-1] == ("key", 15)


def divide(value):
    return 1 // value


@pytest.mark.parametrize(
    "steps, kind, words",
    [
        (lambda s: s.mapValues(divide), ZeroDivisionError, "integer division"),
        (lambda s: s.mapValues(lambda v: None), TypeError, "The function in .* returned None: is a `return` missing"),
        (lambda s: s.filter(lambda k, v: v), TypeError, "returned int 0; a predicate returns True or False"),
        (lambda s: s.mapValues(lambda v: {v}), TypeError, r"set \{0\}, which Java cannot take"),
        (lambda s: s.mapValues(lambda v: 2**70), TypeError, "which Java cannot take .*too big"),
        (lambda s: s.map(lambda k, v: (k, v, v)), TypeError, r"\('key', 0, 0\), which Java cannot take"),
        (lambda s: s.map(lambda k, v: v), LabError, "MAP.* after the function in `.*` returned int 0"),
        (lambda s: s.flatMapValues(lambda v: "text"), LabError, "FLATMAPVALUES.* returned str 'text'"),
        (lambda s: s.map(lambda k, v: (v, v)), LabError, r"topic out, after the function .* returned tuple \(0, 0\)"),
        (lambda s: s.mapValues(lambda v: {"a": {1}}), TypeError, r"set is not JSON serializable, for topic out, after"),
        (lambda s: s.selectKey(lambda k, v: None), TypeError, "returned None"),
    ],
)
def test_a_wrong_function_ends_in_an_error_that_names_it(drive, steps, kind, words):
    with pytest.raises(kind, match=words) as caught:
        drive(steps, 0)
    assert "\n" not in str(caught.value)


def test_the_traceback_leads_to_the_line_of_the_function(drive):
    with pytest.raises(ZeroDivisionError) as caught:
        drive(lambda stream: stream.mapValues(divide), 0)
    assert caught.traceback[-1].name == "divide"


def test_what_is_no_json_is_named(drive):
    with pytest.raises(json.JSONDecodeError) as caught:
        drive(lambda stream: stream, "{oops", text_in=True)
    assert caught.value.__notes__ == ["The record of topic in holds '{oops'."]


def test_an_exception_of_a_python_object_that_jpype_takes_itself(drive):
    """A Processor by JPype's own means is not wrapped by the bridge, and its exception is found all the same."""

    @jpype.JImplements("org.apache.kafka.streams.processor.api.Processor")
    class Picky:
        @jpype.JOverride
        def init(self, context):
            pass

        @jpype.JOverride
        def process(self, record):
            raise LookupError(f"no {record.value()}")

        @jpype.JOverride
        def close(self):
            pass

    with pytest.raises(LookupError, match="no milk"):
        drive(lambda stream: stream.process(lambda: Picky()), "milk")


# -- topologies on a broker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guarantee, protocol",
    [("at_least_once", "classic"), ("exactly_once_v2", "classic"), ("exactly_once_v2", "streams")],
)
def test_the_first_topology(cluster, topics, guarantee, protocol):
    source, target = topics
    steps = mapped(source, lambda value: value.upper(), target)
    config = {"processing.guarantee": guarantee, "group.protocol": protocol}
    with Streams(cluster, steps, application_id(cluster, "uppercase"), config) as streams:
        streams.wait_until_caught_up()
        assert values(cluster, target) == [f"ORDER {number}" for number in range(5)]
    assert streams.state().name() == "NOT_RUNNING"


def test_a_count_its_store_and_a_new_beginning(cluster, topics):
    from org.apache.kafka.streams import StoreQueryParameters
    from org.apache.kafka.streams.state import QueryableStoreTypes

    source, target = topics
    query = StoreQueryParameters.fromNameAndType("counts", QueryableStoreTypes.keyValueStore())
    counts = []
    for application in (application_id(cluster, "count"), "count", application_id(cluster, "count")):
        with Streams(cluster, counted(source, target), application) as streams:
            send(cluster, source, "order 9")
            streams.wait_until_caught_up()
            with streams.store(query).all() as entries:
                counts.append({entry.key: entry.value for entry in entries})
            folder = streams._state
            assert os.listdir(folder)
        assert not os.path.exists(folder)
    # the second goes on from the changelog, the third begins anew and reads all eight
    assert counts == [{"order": 6}, {"order": 7}, {"order": 8}]


def test_a_new_beginning_leaves_other_applications_alone(cluster, topics):
    source, target = topics
    for name in ("shop", "shop-copy"):
        with Streams(cluster, counted(source, target), application_id(cluster, name)) as streams:
            streams.wait_until_caught_up()
    application_id(cluster, "shop")
    names = {topic.name for topic in cluster._metadata(None).topics}
    assert {name for name in names if name.startswith("shop-")} == {
        "shop-copy-counts-changelog",
        "shop-copy-counts-repartition",
    }


def test_running_the_cell_again_closes_the_earlier_topology(cluster, topics):
    source, target = topics
    first = Streams(cluster, counted(source, target), application_id(cluster, "again"))
    again = Streams(cluster, counted(source, target), application_id(cluster, "again"))
    third = Streams(cluster, counted(source, target), "again")
    assert [streams.state().name() for streams in (first, again, third)] == ["NOT_RUNNING", "NOT_RUNNING", "RUNNING"]
    assert third.close()
    assert third.close()


def test_records_of_aborted_transactions_do_not_keep_it_waiting(cluster):
    source, target = cluster.topic("payments"), cluster.topic("output-topic")
    with KafkaProducer(**cluster.connection, transactional_id=cluster.transactional_id("payer")) as producer:
        producer.init_transactions()
        for end in (producer.commit_transaction, producer.abort_transaction):
            producer.begin_transaction()
            producer.send(source, end.__name__.encode())
            producer.flush()
            end()
    config = {"processing.guarantee": "exactly_once_v2"}
    steps = mapped(source, lambda value: value, target)
    with Streams(cluster, steps, application_id(cluster, "payments"), config) as streams:
        streams.wait_until_caught_up()
        assert values(cluster, target) == ["commit_transaction"]


def stumble(value):
    if value.endswith("3"):
        raise ValueError(f"no such order: {value}")
    return value


def test_an_exception_reaches_the_notebook_as_itself(cluster, topics):
    """Also when the cell itself has run into a deadline meanwhile."""
    source, target = topics
    with (
        pytest.raises(ValueError, match="no such order: order 3") as caught,
        Streams(cluster, mapped(source, stumble, target), application_id(cluster, "fails")),
        KafkaConsumer(target, **cluster.connection, auto_offset_reset="earliest") as consumer,
    ):
        take(consumer, 5, timeout=2)
    assert caught.traceback[-1].name == "stumble"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_topology_that_died_has_left_its_group(cluster, topics, threads):
    """Else the next one would wait for the session of the dead one to end, 45 s."""
    source, target = topics
    application = application_id(cluster, "dies")
    began = time.monotonic()
    for _ in range(3):
        with (
            pytest.raises(ValueError, match="order 3"),
            Streams(cluster, mapped(source, stumble, target), application, {"num.stream.threads": threads}) as streams,
        ):
            streams.wait_until_caught_up()
        assert cluster._admin.describe_groups([application])[application]["members"] == []
    assert time.monotonic() - began < 20


def test_kafka_streams_handlers_decide_and_dead_letters_carry_the_reason(cluster, topics):
    source, target = topics
    dead = cluster.topic("dead-letters")
    config = {
        "processing.exception.handler": HANDLER + "LogAndContinueProcessingExceptionHandler",
        "errors.dead.letter.queue.topic.name": dead,
    }
    with Streams(cluster, mapped(source, stumble, target), application_id(cluster, "goes-on"), config) as streams:
        streams.wait_until_caught_up()
    assert values(cluster, target) == [f"order {number}" for number in (0, 1, 2, 4)]
    (letter,) = read_topic(cluster, dead)
    assert (letter.key, letter.value) == (b"order 3", b"order 3")
    headers = dict(letter.headers)
    assert headers["__streams.errors.message"] == b"ValueError: no such order: order 3"
    assert headers["__streams.errors.topic"].decode() == source


def test_topics_that_do_not_exist_are_named(cluster):
    with pytest.raises(LabError, match=r"do not exist \(nowhere, somewhere\): make them with cluster.topic"):
        Streams(cluster, mapped("somewhere", lambda value: value, "nowhere"), "unknown")


def test_wrong_settings_are_one_sentence(cluster, topics):
    steps = mapped(topics[0], lambda value: value, topics[1])
    with pytest.raises(LabError, match="processing.guarantee: String must be one of"):
        Streams(cluster, steps, "wrong", {"processing.guarantee": "exactly_once"})
    with pytest.raises(TypeError, match="mapValues"):
        mapped(topics[0], lambda: None, topics[1])


def test_a_cluster_that_is_gone(topics, monkeypatch):
    monkeypatch.setattr(topology, "ANSWER", 1)
    began = time.monotonic()
    with pytest.raises(LabError, match="does not answer"):
        Streams({"bootstrap_servers": ["127.0.0.1:1"]}, mapped(topics[0], lambda value: value, topics[1]), "gone")
    assert time.monotonic() - began < 5


# -- Java's own clients ------------------------------------------------------------------------------------------------


def test_a_share_consumer_gets_again_what_it_released(cluster):
    from java.time import Duration
    from org.apache.kafka.clients.admin import Admin, AlterConfigOp, ConfigEntry
    from org.apache.kafka.clients.consumer import AcknowledgeType, KafkaShareConsumer
    from org.apache.kafka.common.config import ConfigResource

    source, group = cluster.topic("orders"), cluster.group("packers")
    send(cluster, source, "order 1", "order 2", "order 3")
    with Admin.create(java_config(cluster)) as admin:
        earliest = AlterConfigOp(ConfigEntry("share.auto.offset.reset", "earliest"), AlterConfigOp.OpType.SET)
        admin.incrementalAlterConfigs({ConfigResource(ConfigResource.Type.GROUP, group): [earliest]}).all().get()
    config = {
        "group.id": group,
        "share.acknowledgement.mode": "explicit",
        "key.deserializer": STRING,
        "value.deserializer": STRING,
    }
    deliveries = Counter()
    deadline = time.monotonic() + 20
    with KafkaShareConsumer(java_config(cluster, config)) as consumer:
        consumer.subscribe([source])
        while sum(deliveries.values()) < 6 and time.monotonic() < deadline:
            for record in consumer.poll(Duration.ofMillis(200)):
                deliveries[record.value()] += 1
                again = record.deliveryCount().get() == 1
                consumer.acknowledge(record, AcknowledgeType.RELEASE if again else AcknowledgeType.ACCEPT)
            consumer.commitSync()
    assert deliveries == {"order 1": 2, "order 2": 2, "order 3": 2}


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_the_java_consumer_with_both_group_protocols(cluster, topics, protocol):
    from java.time import Duration
    from org.apache.kafka.clients.consumer import KafkaConsumer
    from org.apache.kafka.common.serialization import StringDeserializer

    config = {"group.id": cluster.group("readers"), "group.protocol": protocol, "auto.offset.reset": "earliest"}
    seen = []
    deadline = time.monotonic() + 20
    with KafkaConsumer(java_config(cluster, config), StringDeserializer(), StringDeserializer()) as consumer:
        consumer.subscribe([topics[0]])
        while len(seen) < 5 and time.monotonic() < deadline:
            seen += [record.value() for record in consumer.poll(Duration.ofMillis(200))]
    assert sorted(seen) == [f"order {number}" for number in range(5)]


def test_javas_clients_with_json(cluster):
    from java.time import Duration
    from org.apache.kafka.clients.consumer import KafkaConsumer
    from org.apache.kafka.clients.producer import KafkaProducer, ProducerRecord
    from org.apache.kafka.common.serialization import Serdes

    target = cluster.topic("orders")
    text, values = Serdes.String(), json_serde()
    with KafkaProducer(java_config(cluster), text.serializer(), values.serializer()) as producer:
        producer.send(ProducerRecord(target, "ann", {"total": 3})).get()
    assert [json.loads(record.value) for record in read_topic(cluster, target)] == [{"total": 3}]
    config = java_config(cluster, {"group.id": cluster.group("readers"), "auto.offset.reset": "earliest"})
    with KafkaConsumer(config, text.deserializer(), values.deserializer()) as consumer:
        consumer.subscribe([target])
        (record,) = wait_until(lambda: list(consumer.poll(Duration.ofMillis(200))), "the order", 20)
    assert (record.key(), record.value()) == ("ann", {"total": 3})


def test_java_and_python_choose_the_same_partition():
    from org.apache.kafka.common.utils import Utils

    keys = [f"kunde-{number}-ключ-鍵"[: 3 + number % 17].encode() for number in range(1000)]
    assert [Utils.murmur2(key) & 0x7FFFFFFF for key in keys] == [murmur2(key) & 0x7FFFFFFF for key in keys]


def test_settings_of_a_secured_cluster():
    config = java_config(
        {
            "bootstrap_servers": ["one:9092", "two:9092"],
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": "ann",
            "sasl_plain_password": 'with "quotes" and \\',
            "ssl_cafile": "ca.pem",
            "reconnect_backoff_max_ms": 200,
        },
        {"enable.auto.commit": False},
    )
    assert dict(config) == {
        "bootstrap.servers": "one:9092,two:9092",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required "
        'username="ann" password="with \\"quotes\\" and \\\\";',
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": "ca.pem",
        "reconnect.backoff.max.ms": "200",
        "enable.auto.commit": "false",
    }


def test_a_topology_in_a_corner_of_a_secured_cluster(monkeypatch):
    """All that it makes begins with the user's prefix, and is gone after `stop()`."""
    with secured_broker() as broker:
        broker.add_user("ann", 'ann\'s "secret"')
        for name, value in broker.environment("ann").items():
            monkeypatch.setenv(name, value)
        with Cluster() as cluster:
            source, target = cluster.topic("input-topic"), cluster.topic("output-topic")
            send(cluster, source, "order 1", "order 2")
            config = {"processing.guarantee": "exactly_once_v2"}
            with Streams(cluster, counted(source, target), application_id(cluster, "count"), config) as streams:
                streams.wait_until_caught_up()
            assert read_topic(cluster, target)
            names = [topic for topic in broker.admin.list_topics() if not topic.startswith("__")]
            assert len(names) == 4
            assert all(name.startswith("ann.") for name in names)
        assert [topic for topic in broker.admin.list_topics() if not topic.startswith("__")] == []


# -- the picture of a topology -----------------------------------------------------------------------------------------


def test_a_topology_is_pictured_and_told_from_its_description():
    small = topology_view(mapped("ann.orders", lambda value: value, "ann.loud"), "One step", plain=lambda n: n[4:])
    assert small.text == ("One step\nsub-topology 0\n  topic orders → mapValues 1\n  mapValues 1 → topic loud")
    large = topology_view(counted("orders", "counts"), "Two sub-topologies")
    assert large.body == [
        "sub-topology 0",
        "  topic orders → selectKey 1",
        "  selectKey 1 → counts-repartition-filter",
        "  counts-repartition-filter → topic counts-repartition",
        "sub-topology 1",
        "  topic counts-repartition → aggregate 2",
        "  aggregate 2 (store counts) → toStream 6",
        "  toStream 6 → topic counts",
    ]
    tables = topology_view(table("ann.users"), "A table", plain=lambda name: name.removeprefix("ann."))
    assert tables.body == ["sub-topology 0", "  topic users → table 1", "  table 1 (store users)"]
    other = topology_view(counted("orders", "sums"), "Two sub-topologies")
    assert large.png != other.png
    assert large.text != other.text


def test_no_boxes_of_a_large_topology_overlap():
    from org.apache.kafka.streams import StreamsBuilder

    builder = StreamsBuilder()
    orders, users = builder.stream("orders"), builder.table("users")
    cities = builder.globalTable("cities")
    paid = orders.filter(lambda key, value: True)
    named = paid.join(users, lambda order, user: order)
    named.to("a-topic-with-a-name-that-is-rather-long-to-be-drawn-in-full")
    for number, branch in enumerate(
        paid.split().branch(lambda k, v: True).branch(lambda k, v: True).defaultBranch().values()
    ):
        branch.mapValues(lambda value: value).merge(named).to(f"branch-{number}")
    named.groupBy(lambda key, value: value).count().toStream().to("counts")
    named.join(cities, lambda key, value: key, lambda order, city: order).to("world")
    orders.to("copies")
    picture = topology_view(builder.build(), "All at once")
    boxes = [patch.get_window_extent() for patch in picture.sheet.figure.axes[0].patches if patch.get_zorder() == 2]
    assert len(boxes) > 20
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


# -- processes: crashes, signals, ends ---------------------------------------------------------------------------------


def shout(connection, application, source, target):
    """The worker of the next test: SIGKILLed in the middle, or run to the end."""
    start_java(streams=True)

    def upper(value):
        time.sleep(0.01)  # time for the records before it to leave
        point("record")
        return value.upper()

    config = {
        "processing.guarantee": "exactly_once_v2",
        "producer.transaction.timeout.ms": 1000,
        "consumer.session.timeout.ms": 1000,
        "consumer.heartbeat.interval.ms": 300,
    }
    with Streams(connection, mapped(source, upper, target), application, config) as streams:
        streams.wait_until_caught_up()


def test_exactly_once_over_a_kill(cluster, topics):
    source, target = topics
    send(cluster, source, *(f"order {number}" for number in range(5, 60)))
    application = application_id(cluster, "shout")
    killed = Worker(shout, cluster.connection, application, source, target, die_at=("record", 30))
    assert killed.wait(30) == 'killed at "record"'
    assert len(values(cluster, target)) < 60
    second = Worker(shout, cluster.connection, application, source, target)
    assert second.wait(60) == "ended", second.output
    assert Counter(values(cluster, target)) == Counter(f"ORDER {number}" for number in range(60))


SETUP = """
import time
from helpers.streams.topology import Streams, start_java
start_java(streams=True)
from org.apache.kafka.streams import StreamsBuilder
builder = StreamsBuilder()
builder.stream("input-topic").mapValues(lambda value: {function}).to("output-topic")
streams = Streams({connection!r}, builder.build(), {application!r})
"""


@pytest.mark.parametrize("function, status", [("value.upper()", 0), ("time.sleep(60)", 1)], ids=["running", "stuck"])
def test_a_process_ends_with_its_topology(cluster, topics, function, status):
    code = SETUP.format(function=function, connection=cluster.connection, application=cluster.group("ending"))
    process = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(0.3)\nprint('end', flush=True)\n"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"JAVA_TOOL_OPTIONS": "-Xmx300m"},  # which Java would mention on stderr
    )
    assert process.stdout.readline() == "end\n"
    began = time.monotonic()
    assert process.communicate(timeout=30) == ("", None)
    assert process.returncode == status
    assert time.monotonic() - began < 6


def test_signals_stay_pythons():
    code = (
        "from helpers.streams import start_java\nstart_java()\nprint('ready', flush=True)\nimport time\ntime.sleep(60)"
    )
    for number, wanted in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == wanted
        assert ("KeyboardInterrupt" in errors) is (number == signal.SIGINT)


def test_java_without_streams_says_so():
    code = "from helpers.streams.topology import start_java\nstart_java()\nstart_java()\nstart_java(streams=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stderr.strip().splitlines()[-1] == (
        "helpers.errors.LabError: Java runs without Kafka Streams: restart the kernel and call "
        "start_java(streams=True) first."
    )


class Kernel:
    """A Jupyter kernel with a topology in it."""

    def __init__(self, folder):
        # Jupyter waits half of it before it sends SIGTERM, by default 2.5 s: on a busy machine that hides a tidy end.
        self.manager = KernelManager(shutdown_wait_time=60)
        self.log = open(folder / "kernel.log", "w")  # noqa: SIM115 (closed with the kernel)
        self.manager.start_kernel(stdout=self.log, stderr=self.log, cwd=folder)
        self.connect()

    def connect(self):
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str) -> list:
        """Execute a cell; returns its outputs."""
        outputs = []

        def note(message):
            if message["msg_type"] in ("stream", "error", "execute_result", "display_data"):
                content = message["content"]
                outputs.append(content.get("text") or content.get("ename") or content["data"]["text/plain"])

        self.client.execute_interactive(code, timeout=60, output_hook=note)
        return outputs

    def restart(self) -> int:
        """Restart as the button does; returns the exit status of the process that ended."""
        ended = self.manager.provisioner.process
        self.client.stop_channels()
        self.manager.restart_kernel(stdout=self.log, stderr=self.log)
        self.connect()
        return ended.returncode

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.log.close()


@pytest.fixture
def kernel(tmp_path):
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.full)])
def test_kernels_restart_while_a_topology_works(cluster, topics, kernel, tmp_path, times):
    source, target = topics
    for number in range(times):
        code = SETUP.format(function="value", connection=cluster.connection, application=cluster.group("kernel"))
        assert kernel.run(code + "streams.state().name()") == ["'RUNNING'"]  # nothing on stdout or stderr
        send(cluster, source, *(f"order {number}" for number in range(300)))  # it is busy when the kernel ends
        assert kernel.restart() == 0, f"restart {number}: a crash ends by SIGABRT or SIGSEGV, a hang by SIGTERM"
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.log"]  # nothing is left in its folder


def test_interrupt_while_a_topology_runs(cluster, topics, kernel):
    code = SETUP.format(function="value", connection=cluster.connection, application=cluster.group("kernel"))
    assert kernel.run(code) == []
    threading.Timer(1, kernel.manager.interrupt_kernel).start()
    assert kernel.run("time.sleep(30)") == ["KeyboardInterrupt"]
    assert kernel.run("streams.wait_until_caught_up(); streams.state().name()") == ["'RUNNING'"]


def test_the_log_is_in_a_file(capfd):
    from org.slf4j import LoggerFactory

    LoggerFactory.getLogger("lesson").info("a line for the log")
    jpype.java.lang.System.out.println("printed by Java")
    assert capfd.readouterr() == ("", "")
    log = Path(topology.jvm.folder(), "java.log").read_text(errors="replace")
    assert "a line for the log" in log and "printed by Java" in log
