"""`Cluster`: a real Apache Kafka to talk to, and to break.

`Cluster()` is one embedded broker (`helpers.kafka.embedded`), or the external cluster of the environment
(`helpers.kafka.external`); `Cluster(brokers=3)` is always embedded. Lessons take `cluster.connection` and use
kafka-python itself.
"""

import contextlib
import logging
import re

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.admin import MemberToRemove

from helpers import internals, settings
from helpers.errors import LabError
from helpers.waiting import Seen, wait_until

log = logging.getLogger(__name__)

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

_kinds: dict[str, type["Cluster"]] = {}
_running: dict[object, "Cluster"] = {}  # by the argument of the call: calling `Cluster` again stops the earlier one


class Cluster:
    """A real Kafka cluster: embedded brokers of one's own, or an external one.

    Args:
        brokers: how many embedded brokers (ids 1..n). Without it: one embedded broker, or the external cluster that the
            environment names (COURSE_BOOTSTRAP_SERVERS).

    A second call with the same argument stops the earlier cluster and starts anew. It is also a context manager.

    Raises:
        LabError: in one sentence why it could not be started or reached, and what to do.
    """

    embedded: bool
    #: the ids of all brokers, dead ones included
    brokers: list[int]

    def __new__(cls, brokers: int | None = None, **_):  # noqa: D102 (chooses the kind)
        if cls is Cluster:
            external = brokers is None and settings.bootstrap_servers()
            cls = _kinds["external" if external else "embedded"]
        return super().__new__(cls)

    def __init_subclass__(cls, kind: str = "", **options):
        """A kind of cluster names itself ("embedded", "external"), so that this module need not import it."""
        super().__init_subclass__(**options)
        if kind:
            _kinds[kind] = cls

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
        options: dict = {"num_partitions": partitions, "replication_factor": self._replication(replication)}
        options["configs"] = {key: str(value) for key, value in (config or {}).items()}

        def create():
            try:
                self._admin.create_topics({real: options})
            except kafka_errors.TopicAlreadyExistsError as error:
                # A try before this one did it, or (auto.create.topics.enable, on by default) a client that has not
                # heard of the deletion and asked for the topic; that one has the brokers' settings.
                self._delete_topics([real])
                return Seen(error)
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
            return Seen("; ".join(f"partition {p}: {i} of {r} in sync" for p, (i, r) in seen.items()))

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

    def _begin(self, key: object) -> None:
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

    def _metadata(self, topics: list[str] | None, node: int | None = None):
        """Metadata of topics (None: all, []: none) as one broker has it (any, without a number)."""
        log.debug("asking broker %s for metadata of %s", "any" if node is None else node, topics or "all topics")
        try:
            return internals.topic_metadata(self._admin, topics, node)
        except kafka_errors.UnknownBrokerIdError:  # a broker that came after this client
            self._close_admin()
            raise

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
                return Seen(f"broker {node} knows {len(found)} partitions, led by {[p.leader_id for p in found]}")
        return self._led(topic, self._partitions(topic))

    def _led(self, topic: str, partitions: list) -> bool:
        """True when each of these partitions' leaders acts as one: it tells the end offset.

        A broker has its metadata a moment before it leads what they say it leads, and refuses records in between. If it
        refuses a producer's first batch and takes the second one, which was in flight, it goes on to refuse the first
        one as out of order, for the two minutes after which the producer gives up: KAFKA-15591, in Kafka 4.4.0.
        """
        for leader in {p.leader_id for p in partitions}:
            if leader < 0:
                raise kafka_errors.LeaderNotAvailableError(topic)
            led = [p.partition_index for p in partitions if p.leader_id == leader]
            try:
                internals.partitions_led_by(self._admin, topic, leader, led)
            except kafka_errors.UnknownBrokerIdError:
                self._close_admin()
                raise
        return True

    def _wait_for_leader(self, topic, partition, accept, what, timeout) -> int:
        def probe():
            found = {p.partition_index: p for p in self._partitions(topic)}
            if partition not in found:
                raise LabError(f"Topic {self.plain(topic)} has no partition {partition}, only 0 to {len(found) - 1}.")
            leader = found[partition].leader_id
            return [leader] if accept(found[partition]) else Seen(f"leader {leader}")

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
                return Seen(f"still there: {sorted(known)}")
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
            return Seen(result)

        wait_until(gone, f"group {self.plain(group)} to be deleted", timeout=30, retry=PASSING)


def _broker_message(error: Exception) -> str:
    """What the broker itself said, from the text of an error of kafka-python."""
    found = re.search(r"error_message='((?:[^'\\]|\\.)*)'", str(error))
    return (found.group(1) if found else f"{type(error).__name__}: {error}").rstrip(".")
