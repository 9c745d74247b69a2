"""`Cluster`: a real Apache Kafka to talk to, and to break.

`Cluster()` is one embedded broker, or the external cluster of the environment (see `helpers.external`);
`Cluster(brokers=3)` is
always embedded. Lessons take `cluster.connection` and use kafka-python itself.
"""

import contextlib
import os
import re
import socket
import time

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove, OffsetSpec
from kafka.protocol.broker_version_data import BROKER_API_VERSIONS
from kafka.protocol.consumer import ListOffsetsRequest
from kafka.protocol.metadata import MetadataRequest

from helpers import store
from helpers.broker import Broker, choose_nodes, make_template, new_id
from helpers.errors import BrokerDied, LabError, PortTaken
from helpers.processes import Processes, tail
from helpers.waiting import wait_until

# What a client may meet while brokers come and go; the next try may work. An admin client that picks a dead node
# raises one of these.
PASSING = (
    kafka_errors.RetriableError,
    kafka_errors.KafkaConnectionError,
    kafka_errors.KafkaTimeoutError,
    kafka_errors.NodeNotReadyError,
    kafka_errors.UnknownTopicOrPartitionError,
    kafka_errors.UnknownBrokerIdError,
)

# Of a version it does not know, kafka-python warns; then it takes the newest that it knows, and so do we.
KAFKA = tuple(map(int, store.KAFKA_VERSION.split(".")[:2]))

_running: dict[int | None, "Cluster"] = {}  # by the argument of the call: calling `Cluster` again stops the earlier one


class Cluster:
    """A real Kafka cluster: embedded brokers of one's own, or an external one.

    Args:
        brokers: how many embedded brokers (ids 1..n). Without it: one embedded broker, or the external cluster that
        the environment
            names (COURSE_BOOTSTRAP_SERVERS).

    A second call with the same argument stops the earlier cluster and starts anew. It is also a context manager.

    Raises:
        LabError: in one sentence why it could not be started or reached, and what to do.
    """

    embedded: bool
    #: the ids of all brokers, dead ones included
    brokers: list[int]

    def __new__(cls, brokers: int | None = None):  # noqa: D102 (chooses the kind)
        if cls is Cluster and brokers is None and os.environ.get("COURSE_BOOTSTRAP_SERVERS"):
            from helpers.external import ExternalCluster as cls
        elif cls is Cluster:
            cls = EmbeddedCluster
        return super().__new__(cls)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def __repr__(self):
        return "Apache Kafka, ready" if self.alive() else "Apache Kafka, stopped"

    # -- what kafka-python's clients take

    @property
    def connection(self) -> dict:
        """Servers and security settings: `KafkaProducer(**cluster.connection)`; likewise KafkaConsumer,
        KafkaAdminClient.

        With `reconnect_backoff_max_ms=200` (stock 30,000), or a client would notice a restarted broker seconds late.
        On embedded brokers with `api_version` too, the newest that kafka-python knows of theirs. Without it, each
        consumer of kafka-python 3.0.12 waits for 100 ms more at its start, between asking for the version and asking
        about the topic.
        """
        self._check_running()
        return dict(self._connection)

    # -- names

    def topic(self, name: str, partitions: int = 1, replication: int | None = None, config: dict | None = None) -> str:
        """Make a topic anew and wait until every broker knows it, and each partition's leader takes records.

        A topic of this name that exists is deleted first, with the groups that `group` made.

        Args:
            name: the topic's name in the lesson.
            partitions: number of partitions.
            replication: number of replicas of each partition; without it as many as there are brokers, at most three
            (external:
                the cluster's default).
            config: topic configs by their names in Kafka's documentation, e.g. {"retention.ms": "1000"}.

        Returns:
            The topic's real name (on an external cluster with a prefix and a run id).

        Raises:
            LabError: the cluster refused it (a name or config that is not allowed, missing rights); the message
            quotes the cluster.
        """
        self._check_running()
        real = self._real(name)
        self._check_topic(name, partitions, replication)
        for group in self._groups_with_offsets(real):
            self._delete_group(group)
        self._delete_topics([real])
        options = {"num_partitions": partitions, "replication_factor": self._replication(replication)}
        options["configs"] = {key: str(value) for key, value in (config or {}).items()}

        def create():
            try:
                self._admin.create_topics({real: options})
            except kafka_errors.TopicAlreadyExistsError as error:
                # A try before this one did it, or (auto.create.topics.enable, on by default) a client that has not
                # heard of the deletion and asked for the topic; that one has the brokers' settings.
                self._delete_topics([real])
                return _Seen(error)
            return True

        try:
            wait_until(create, f"topic {name} to be created", timeout=30, retry=PASSING)
        except kafka_errors.KafkaError as error:
            raise LabError(f"The cluster refused to make topic {name!r}: {_broker_message(error)}.") from error
        self._topics.add(real)
        wait_until(
            lambda: self._known_everywhere(real, partitions),
            f"all brokers to know topic {name}",
            timeout=30,
            retry=PASSING,
        )
        return real

    def group(self, name: str) -> str:
        """The name of a consumer group that begins anew: its members are removed and its offsets deleted.

        Returns:
            The group's real name (on an external cluster with a prefix and a run id).
        """
        real = self._real(name)
        self._groups.add(real)
        self._delete_group(real)
        return real

    def transactional_id(self, name: str) -> str:
        """A transactional id for a producer (on an external cluster with a prefix and a run id)."""
        self._check_running()
        return self._real(name)

    def plain(self, real: str) -> str:
        """The name as in the lesson, for a name from `topic`, `group` or `transactional_id`."""
        return real.removeprefix(self._prefix)

    # -- looking and waiting

    def leader(self, topic: str, partition: int = 0) -> int:
        """The id of the broker that leads a partition; waits a moment for one if there is none.

        Raises:
            TimeoutError: no leader within ten seconds.
        """
        return self._wait_for_leader(topic, partition, lambda found: found.leader_id >= 0, "a leader", 10)

    def followers(self, topic: str, partition: int = 0) -> list[int]:
        """The ids of the brokers that have a replica of a partition and do not lead it.

        Raises:
            TimeoutError: the partition has had no leader for ten seconds.
        """
        leader = self.leader(topic, partition)
        (replicas,) = [p.replica_nodes for p in self._partitions(topic) if p.partition_index == partition]
        return [broker for broker in replicas if broker != leader]

    def wait_for_new_leader(self, topic: str, partition: int = 0, *, old: int, timeout: float = 30) -> int:
        """Wait until a partition is led by another broker than `old`, which takes records; returns its id.

        Raises:
            TimeoutError: at the deadline, with the leader seen last (-1: none).
        """

        def is_new(found):
            return found.leader_id not in (-1, old) and self._led(topic, [found])

        return self._wait_for_leader(topic, partition, is_new, "a new leader", timeout)

    def wait_for_in_sync(self, topic: str, timeout: float = 30) -> None:
        """Wait until all replicas of all partitions of a topic are in sync, and the leaders take records.

        Raises:
            TimeoutError: at the deadline, with the replicas that were in sync.
        """

        def all_in_sync():
            found = self._partitions(topic)
            seen = {p.partition_index: (sorted(p.isr_nodes), sorted(p.replica_nodes)) for p in found}
            if seen and all(in_sync == replicas for in_sync, replicas in seen.values()):
                return self._led(topic, found)
            return _Seen("; ".join(f"partition {p}: {i} of {r} in sync" for p, (i, r) in seen.items()))

        wait_until(
            all_in_sync, f"all replicas of {self.plain(topic)} to be in sync", timeout, pause=0.05, retry=PASSING
        )

    def alive(self) -> bool:
        """False once the cluster is stopped, or all its brokers are dead."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the cluster (embedded), or delete what this run made on it (external). Safe to call again."""
        raise NotImplementedError

    # -- harm on purpose

    def kill(self, broker: int) -> None:
        """SIGKILL a broker; returns when the process is dead. The cluster notices later: see `wait_for_new_leader`."""
        raise NotImplementedError

    def pause(self, broker: int) -> None:
        """SIGSTOP a broker; returns when the process has stopped."""
        raise NotImplementedError

    def resume(self, broker: int) -> None:
        """SIGCONT a broker; returns when the process runs again."""
        raise NotImplementedError

    def heal(self) -> None:
        """Resume all paused brokers, restart all dead ones, and wait until all replicas of the topics are in sync."""
        raise NotImplementedError

    def restart(self, broker: int) -> None:
        """Start a broker again on its port and its data; returns when clients can use it. One that runs is shut down
        first."""
        raise NotImplementedError

    # -- shared by both kinds

    _prefix = ""
    _connection: dict
    _admin_client: KafkaAdminClient | None = None
    _bootstrap_timeout_ms = 20_000

    def _begin(self, key: int | None) -> None:
        """Stop an earlier cluster of the same call, and be the one that runs from here on."""
        if earlier := _running.get(key):
            earlier.stop()
        self._key = key
        self._topics: set[str] = set()
        self._groups: set[str] = set()

    def _end(self) -> None:
        """No longer the running one; its clients closed."""
        if _running.get(self._key) is self:
            del _running[self._key]
        self._close_admin()

    def _close_admin(self) -> None:
        """Close the admin client; the next use makes a new one.

        Also the way to make it look for a coordinator that has moved: kafka-python 3.0.12 goes on asking the old one.
        """
        if self._admin_client:
            with contextlib.suppress(Exception):  # a client of brokers that are dead already
                self._admin_client.close()
            self._admin_client = None

    def _check_running(self) -> None:
        if _running.get(self._key) is not self:
            raise LabError("This cluster is stopped: run the cell that starts it again.")

    def _real(self, name: str) -> str:
        return self._prefix + name

    @property
    def _admin(self) -> KafkaAdminClient:
        self._check_running()
        if self._admin_client is None:
            self._admin_client = KafkaAdminClient(
                **self._connection, request_timeout_ms=5000, bootstrap_timeout_ms=self._bootstrap_timeout_ms
            )
        return self._admin_client

    def _ask(self, request, node: int | None = None):
        """Send one request to one node (any, without a number) and return the answer.

        The admin client's own calls go to whichever node it likes; 'all brokers know' has to be asked of each.
        """
        manager = self._admin._manager

        async def send():
            return await manager.send(request, node_id=node, request_timeout_ms=2000)

        try:
            return manager.run(send)
        except kafka_errors.UnknownBrokerIdError:  # a broker that came after this client
            self._close_admin()
            raise

    def _metadata(self, topics: list[str] | None, node: int | None = None):
        """Metadata of topics (None: all, []: none) as one broker has it."""
        wanted = None if topics is None else [MetadataRequest.MetadataRequestTopic(name=name) for name in topics]
        return self._ask(MetadataRequest(topics=wanted, allow_auto_topic_creation=False), node)

    def _partitions(self, topic: str, node: int | None = None) -> list:
        (found,) = self._metadata([topic], node).topics
        if found.error_code:
            raise kafka_errors.for_code(found.error_code)(f"topic {topic}")
        return found.partitions

    def _reachable(self) -> list[int]:
        """The ids of the brokers that can be asked."""
        raise NotImplementedError

    def _known_everywhere(self, topic: str, partitions: int):
        for node in self._reachable():
            found = self._partitions(topic, node)
            if len(found) != partitions or any(p.leader_id < 0 for p in found):
                return _Seen(f"broker {node} knows {len(found)} partitions, led by {[p.leader_id for p in found]}")
        return self._led(topic, self._partitions(topic))

    def _led(self, topic: str, partitions: list) -> bool:
        """True when each of these partitions' leaders acts as one: it tells the end offset.

        A broker has its metadata a moment before it leads what they say it leads, and refuses records in between. If it
        refuses a producer's first batch and takes the second one, which was in flight, it goes on to refuse the first
        one as out of order, for the two minutes after which the producer gives up: KAFKA-15591, in Kafka 4.4.0.
        """
        wanted, of = ListOffsetsRequest.ListOffsetsTopic, ListOffsetsRequest.ListOffsetsTopic.ListOffsetsPartition
        for leader in {p.leader_id for p in partitions}:
            if leader < 0:
                raise kafka_errors.LeaderNotAvailableError(topic)
            latest = [of(p.partition_index, timestamp=OffsetSpec.LATEST) for p in partitions if p.leader_id == leader]
            request = ListOffsetsRequest(topics=[wanted(name=topic, partitions=latest)], isolation_level=0)
            (found,) = self._ask(request, leader).topics
            for answer in found.partitions:
                if answer.error_code:
                    raise kafka_errors.for_code(answer.error_code)(f"{topic}-{answer.partition_index}")
        return True

    def _wait_for_leader(self, topic, partition, accept, what, timeout) -> int:
        def probe():
            found = {p.partition_index: p for p in self._partitions(topic)}
            if partition not in found:
                raise LabError(f"Topic {self.plain(topic)} has no partition {partition}, only 0 to {len(found) - 1}.")
            leader = found[partition].leader_id
            return [leader] if accept(found[partition]) else _Seen(f"leader {leader}")

        return wait_until(probe, f"{what} of {self.plain(topic)}-{partition}", timeout, pause=0.05, retry=PASSING)[0]

    def _check_topic(self, name: str, partitions: int, replication: int | None) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9._-]{1,200}", name) or name in (".", ".."):
            raise LabError(
                f"{name!r} is no topic name: Kafka allows letters, digits, '.', '_' and '-', here up to 200 of them."
            )
        if name.startswith("__"):
            raise LabError(f"{name!r} is a name for Kafka's own topics: choose one that does not begin with '__'.")
        if not isinstance(partitions, int) or partitions < 1:
            raise LabError(f"A topic needs a whole number of partitions from 1 on, not {partitions!r}.")

    def _replication(self, replication: int | None) -> int:
        raise NotImplementedError

    def _delete_topics(self, names: list[str]) -> None:
        """Delete topics and wait until no broker knows them; ones that do not exist are no error."""

        def gone():
            known = {
                t.name for node in self._reachable() for t in self._metadata(names, node).topics if not t.error_code
            }
            if known:
                with contextlib.suppress(kafka_errors.UnknownTopicOrPartitionError):
                    self._before_deleting(sorted(known))
                    self._admin.delete_topics(sorted(known))
                return _Seen(f"still there: {sorted(known)}")
            return True

        wait_until(gone, f"topics {', '.join(map(self.plain, names))} to be deleted", timeout=30, retry=PASSING)
        self._topics -= set(names)

    def _before_deleting(self, topics: list[str]) -> None:
        """What has to be done to topics that are about to be deleted."""

    def _groups_with_offsets(self, topic: str) -> list[str]:
        """The groups made by `group` that have committed offsets in a topic."""
        if not self._groups:
            return []

        def offsets():
            try:
                return [self._admin.list_group_offsets(sorted(self._groups))]
            except PASSING:
                self._close_admin()  # the coordinator may have moved
                raise

        (found,) = wait_until(offsets, "the groups' offsets", timeout=30, retry=PASSING)
        return [group for group, committed in found.items() if any(tp.topic == topic for tp in committed)]

    def _delete_group(self, group: str) -> None:
        """Remove a group's members and delete it; one that does not exist is no error."""

        def gone():
            with contextlib.suppress(kafka_errors.GroupIdNotFoundError):
                members = self._admin.describe_groups([group])[group]["members"]
                if members:
                    self._admin.remove_group_members(group, [MemberToRemove(m["member_id"]) for m in members])
            result = self._admin.delete_groups([group])[group]
            if result in ("OK", "GroupIdNotFoundError"):
                return True
            if "Coordinator" in result:
                self._close_admin()
            return _Seen(result)

        wait_until(gone, f"group {self.plain(group)} to be deleted", timeout=10, retry=PASSING)


class EmbeddedCluster(Cluster):
    """Brokers on this machine, which may be harmed. Made by `Cluster`."""

    embedded = True
    _bootstrap_timeout_ms = 2000  # whoever waits for it tries again, and looks whether the brokers live

    def __init__(self, brokers: int | None = None):
        count = 1 if brokers is None else brokers
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 9:
            raise LabError(f"Cluster(brokers=…) takes a whole number from 1 to 9, not {brokers!r}.")
        self._begin(brokers)
        self._processes: Processes | None = None
        prepare_cache()
        self._launch(count)

    def _launch(self, count: int) -> None:
        """Start brokers until they are ready: again with other ports, or once with a mended cache, where that was
        the reason."""
        mended = False
        for _ in range(4):
            try:
                self._start(count)
                return
            except PortTaken:
                self._close()
            except BrokerDied:
                self._close()
                if mended or not store.repair():
                    raise
                mended = True
                prepare_cache()
            except (TimeoutError, kafka_errors.KafkaError) as error:
                died = self._death(wait=5)
                logs = "\n".join(tail(broker.log) for broker in self._nodes.values())
                self._close()
                raise died or LabError(
                    f"The brokers did not become ready, so they were ended: {error} Give the machine some rest and "
                    f"try again. The last lines of their logs:\n{logs}"
                ) from error
            except BaseException:
                self._close()
                raise
        raise LabError(
            "Each port that was chosen for a broker was taken a moment later: end some programs and try again."
        )

    def _death(self, wait: float) -> LabError | None:
        """Why a broker ended by itself, if one does soon: one that cannot write answers with errors before it ends."""

        def ended():
            for broker in self._nodes.values():
                try:
                    broker.check()
                except LabError as error:
                    return error

        try:
            return wait_until(ended, "a broker to end", wait)
        except TimeoutError:
            return None

    def _start(self, count: int, *jvm_options: str) -> None:
        self._processes = Processes()
        self._paused: set[int] = set()
        nodes = choose_nodes(count)
        cluster_id = new_id()
        self._nodes = {node.id: Broker(self._processes, node, nodes, cluster_id) for node in nodes}
        self.brokers = list(self._nodes)
        self._connection = {
            "bootstrap_servers": [f"127.0.0.1:{node.port}" for node in nodes],
            "reconnect_backoff_max_ms": 200,
            "api_version": min(KAFKA, max(BROKER_API_VERSIONS)),
        }
        for broker in self._nodes.values():
            broker.format(store.storage_template())
            broker.start(*jvm_options)
        _running[self._key] = self
        if store.missing(store.jar_list("kafka_jars.txt")):  # looked at only now, while Java starts
            raise BrokerDied("A jar in the cache is damaged.")
        self._wait_until_ready(cluster_id, timeout=90)

    @property
    def _admin(self) -> KafkaAdminClient:
        self._check_running()
        if not self._reachable():
            for broker in self._nodes.values():
                if broker.pid is not None:  # it was not killed by the lesson: it says itself why it ended
                    broker.check()
            raise LabError("No broker of this cluster runs: `cluster.restart(1)` starts broker 1 again.")
        return super()._admin

    def _wait_until_ready(self, cluster_id: str, timeout: float) -> None:
        """Ready: all brokers registered and unfenced, their metadata agreed, internal topics made, one record written
        and read."""
        for broker in self._nodes.values():
            self._wait_for_port(broker, timeout)
        self._until("all brokers to be registered", lambda: self._agreed(cluster_id), timeout)
        # Clients are made before they are needed: kafka-python 3.0.12 waits 100 ms before a client's first metadata.
        with (
            KafkaProducer(**self._connection) as producer,
            KafkaConsumer(**self._connection, auto_offset_reset="earliest") as consumer,
        ):
            self._find_coordinators()  # so that the internal topics are made meanwhile
            probe = self.topic("ready-check")
            producer.send(probe, b"ready").get(timeout)
            consumer.assign([TopicPartition(probe, 0)])
            self._until("the first record", lambda: consumer.poll(timeout_ms=500), timeout)
            self._until("the internal topics", self._has_coordinators, timeout)
        self._delete_topics([probe])

    def _until(self, what: str, probe, timeout: float):
        """Wait, and say at once when a broker dies meanwhile."""

        def checked():
            for broker in self._nodes.values():
                if broker.pid is not None:
                    broker.check()
            return probe()

        return wait_until(checked, what, timeout, pause=0.01, retry=PASSING)

    def _wait_for_port(self, broker: Broker, timeout: float) -> None:
        def connects():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", broker.node.port), timeout=1):
                return True

        self._until(f"broker {broker.node.id} to listen", connects, timeout)

    def _agreed(self, cluster_id: str):
        """True when each living broker sees each other one; a broker is in the metadata once it is registered and
        unfenced."""
        alive = self._reachable()
        for node in alive:
            seen = self._metadata([], node)
            if seen.cluster_id != cluster_id or not set(alive) <= {b.node_id for b in seen.brokers}:
                return _Seen(f"broker {node} sees brokers {sorted(b.node_id for b in seen.brokers)}")
        return True

    def _find_coordinators(self) -> list[Exception]:
        """Ask for the coordinators of groups and of transactions, which makes the internal topics; what went wrong."""
        wrong = []
        for kind in (0, 1):
            try:
                self._admin._manager.run(self._admin._find_coordinator_ids, ["ready-check"], kind)
            except PASSING as error:
                wrong.append(error)
        return wrong

    def _has_coordinators(self):
        """True when both coordinators answer."""
        if wrong := self._find_coordinators():
            raise wrong[0]
        try:
            self._admin.list_group_offsets(["ready-check"])
        except kafka_errors.NotCoordinatorError:
            self._close_admin()
            raise
        return True

    def alive(self) -> bool:
        """False once the cluster is stopped, or all its brokers are dead."""
        return _running.get(self._key) is self and any(broker.alive for broker in self._nodes.values())

    def stop(self) -> None:
        """Kill the brokers and delete their data; returns when both are gone."""
        self._end()
        self._close()

    def _close(self) -> None:
        self._end()
        if self._processes:
            self._processes.close()

    def kill(self, broker: int) -> None:  # noqa: D102 (as in Cluster)
        self._broker(broker).kill()
        self._paused.discard(broker)

    def pause(self, broker: int) -> None:  # noqa: D102
        self._living(broker).pause()
        self._paused.add(broker)

    def resume(self, broker: int) -> None:  # noqa: D102
        self._living(broker).resume()
        self._paused.discard(broker)

    def heal(self) -> None:  # noqa: D102
        for broker in sorted(self._paused):
            self.resume(broker)
        for broker in self.brokers:
            if not self._broker(broker).alive:
                self.restart(broker)
        for topic in sorted(self._topics):
            self.wait_for_in_sync(topic)

    def restart(self, broker: int) -> None:  # noqa: D102
        target = self._broker(broker)
        if broker in self._paused or not target.alive:
            target.kill()
        else:
            target.terminate(timeout=15)
        self._paused.discard(broker)
        deadline = time.monotonic() + 60
        target.start()
        while True:
            try:
                self._wait_until_usable(target)
                return
            except PortTaken:
                if time.monotonic() > deadline:
                    raise
                target.start()  # clients know the broker by its port: wait until whoever took it lets go

    def _wait_until_usable(self, broker: Broker) -> None:
        self._wait_for_port(broker, 60)
        id = broker.node.id
        self._until(f"broker {id} to be registered", lambda: self._agreed(broker.cluster_id), 60)

        def led():
            alive = set(self._reachable())
            for topic in self._metadata(None, id).topics:
                for p in topic.partitions:
                    if p.leader_id not in alive and alive >= set(p.replica_nodes):
                        return _Seen(f"{topic.name}-{p.partition_index} has leader {p.leader_id}")
                self._led(topic.name, [p for p in topic.partitions if p.leader_id == id])
            return True

        self._until(f"the partitions of broker {id} to have leaders", led, 60)
        self._until("the coordinators", self._has_coordinators, 60)

    def _train(self, aot_cache) -> None:
        """Let one broker become ready and do a round of work while Java watches, and shut it down, which writes the
        AOT cache."""
        self._start(1, f"-XX:AOTCacheOutput={aot_cache}")
        self.group("training")
        producer = KafkaProducer(**self._connection, transactional_id=self.transactional_id("training"))
        topic = self.topic("training", partitions=3)
        with (
            producer,
            KafkaConsumer(topic, **self._connection, group_id="training", auto_offset_reset="earliest") as consumer,
        ):
            producer.init_transactions()
            producer.begin_transaction()
            for number in range(100):
                producer.send(topic, b"%d" % number, key=b"%d" % number)
            producer.commit_transaction()
            wait_until(lambda: consumer.poll(timeout_ms=500), "the training records", 30)
            consumer.commit()
        self._nodes[1].terminate(timeout=120)

    def log_text(self, broker: int) -> str:
        """What a broker has logged so far."""
        return self._broker(broker).log.read_text(errors="replace")

    def _before_deleting(self, topics: list[str]) -> None:
        """Take back the topics' own configs.

        Kafka 4.4.0 forgets them with the topic, but when a broker restarts, it reads making and deleting of the topic
        in one go, and they come back, for a new topic of that name: a retention of a second, say, and records are gone.
        """
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        found = self._admin.describe_configs(resources)["topic"]
        own = {
            topic: [key for key, value in found[topic].items() if value["config_source"] == "DYNAMIC_TOPIC_CONFIG"]
            for topic in topics
        }
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic, keys) for topic, keys in own.items() if keys]
        if resources:
            # these keys were read a moment ago: a broker that does not know them has heard that the topic is gone
            self._admin.reset_configs(resources, raise_on_unknown=False)

    def _broker(self, id: int) -> Broker:
        self._check_running()
        if id not in self._nodes:
            raise LabError(f"There is no broker {id}: this cluster has {', '.join(map(str, self._nodes))}.")
        return self._nodes[id]

    def _living(self, id: int) -> Broker:
        broker = self._broker(id)
        if not broker.alive:
            raise LabError(f"Broker {id} is dead: `cluster.restart({id})` starts it again.")
        return broker

    def _reachable(self) -> list[int]:
        return [id for id, broker in self._nodes.items() if id not in self._paused and broker.alive]

    def _replication(self, replication: int | None) -> int:
        return replication or min(3, len(self._nodes))

    def _check_topic(self, name: str, partitions: int, replication: int | None) -> None:
        super()._check_topic(name, partitions, replication)
        if replication is not None and not 1 <= replication <= len(self._nodes):
            raise LabError(
                f"A topic with {replication} replicas needs as many brokers; this cluster has {len(self._nodes)}: "
                f"Cluster(brokers={max(3, replication)})."
            )


class _Seen:
    """Something seen that is not yet what is waited for: false, and shown at the deadline."""

    def __init__(self, text):
        self.text = text

    def __bool__(self):
        return False

    def __repr__(self):
        return str(self.text)


def _broker_message(error: Exception) -> str:
    """What the broker itself said, from the text of an error of kafka-python."""
    found = re.search(r"error_message='((?:[^'\\]|\\.)*)'", str(error))
    return (found.group(1) if found else f"{type(error).__name__}: {error}").rstrip(".")


def prepare_cache() -> None:
    """Fill the cache if it lacks something; on a whole cache none of the libraries that fetch is even imported."""
    if not store.is_ready():
        from helpers.fetch import prepare

        prepare(train)


def train() -> None:
    """Make what `fetch.prepare` found missing: the storage template, and the AOT cache from a broker that did a round
    of work."""
    if not store.storage_template().exists():
        make_template(store.storage_template())
    target = store.aot_cache()
    if target.exists():
        return
    part = target.with_suffix(f".{os.getpid()}.part")
    trainee = EmbeddedCluster.__new__(EmbeddedCluster)
    trainee._begin("training")
    try:
        trainee._train(part)
        if part.exists():
            part.rename(target)
    finally:
        trainee._close()
        part.unlink(missing_ok=True)
