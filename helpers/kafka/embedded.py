"""`EmbeddedCluster`: brokers on this machine, which may be harmed; and the cache that they start from."""

import contextlib
import os
import socket
import time

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from helpers import internals
from helpers.errors import BrokerDied, LabError, PortTaken
from helpers.kafka import cache
from helpers.kafka.broker import Broker, choose_nodes, make_template, new_id
from helpers.kafka.cluster import PASSING, Cluster, _running
from helpers.processes.run_folder import Processes, tail
from helpers.waiting import Seen, wait_until


class EmbeddedCluster(Cluster, kind="embedded"):
    """Brokers on this machine, which may be harmed. Made by `Cluster`."""

    embedded = True
    _bootstrap_timeout_ms = 2000  # whoever waits for it tries again, and looks whether the brokers live

    def __init__(self, brokers: int | None = None, *, beside: str = ""):
        count = 1 if brokers is None else brokers
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 9:
            raise LabError(f"Cluster(brokers=…) takes a whole number from 1 to 9, not {brokers!r}.")
        self._begin((beside, brokers) if beside else brokers)
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
                if mended or not cache.repair():
                    raise
                mended = True
                prepare_cache()
            except (TimeoutError, kafka_errors.KafkaError) as error:
                why = self._not_ready(error)
                self._close()
                raise why from error
            except BaseException:
                self._close()
                raise
        raise LabError(
            "Each port that was chosen for a broker was taken a moment later: end some programs and try again."
        )

    def _not_ready(self, error: Exception) -> LabError:
        """Why no broker could be used in time: one ended, or what was waited for, and what the logs say of it."""
        logs = "\n".join(tail(broker.log) for broker in self._nodes.values())
        return self._death(wait=5) or LabError(
            f"The brokers did not become ready, so they were ended: {error} The last lines of their logs:\n{logs}"
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
            "api_version": internals.newest_known(cache.KAFKA_VERSION),
        }
        for broker in self._nodes.values():
            broker.format(cache.storage_template())
            broker.start(*jvm_options)
        _running[self._key] = self
        if cache.missing(cache.jar_list("kafka_jars.txt")):  # looked at only now, while Java starts
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
                return Seen(f"broker {node} sees brokers {sorted(b.node_id for b in seen.brokers)}")
        return True

    def _find_coordinators(self) -> list[Exception]:
        """Ask for the coordinators of groups and of transactions, which makes the internal topics; what went wrong."""
        wrong = []
        for kind in (internals.GROUP, internals.TRANSACTION):
            try:
                internals.find_coordinators(self._admin, ["ready-check"], kind)
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
        with contextlib.suppress(LabError):  # the watchdog is gone, and the brokers with it
            return _running.get(self._key) is self and any(broker.alive for broker in self._nodes.values())
        return False

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
                        return Seen(f"{topic.name}-{p.partition_index} has leader {p.leader_id}")
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
        self._processes.check()
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


@contextlib.contextmanager
def own_cluster(brokers: int, purpose: str = "check"):
    """Give embedded brokers beside those of the notebook; a plain `Cluster(brokers=…)` would stop the notebook's own.

    Args:
        brokers: how many.
        purpose: a second cluster for the same purpose stops the earlier one.
    """
    with EmbeddedCluster(brokers, beside=purpose) as cluster:
        yield cluster


def prepare_cache() -> None:
    """Fill the cache if it lacks something; on a whole cache none of the libraries that fetch is even imported."""
    if cache.is_ready():
        cache.mark_used()
    else:
        from helpers.kafka.download import prepare

        prepare(train)


def train() -> None:
    """Make what `fetch.prepare` found missing: the storage template, and the AOT cache from a broker that did a round
    of work."""
    if not cache.storage_template().exists():
        make_template(cache.storage_template())
    target = cache.aot_cache()
    if target.exists():
        return
    cache.drop_unused()
    part = target.with_suffix(f".{os.getpid()}.part")
    trainee = EmbeddedCluster.__new__(EmbeddedCluster)
    trainee._begin("training")
    try:
        trainee._train(part)
        if part.exists():
            part.rename(target)
    except (TimeoutError, kafka_errors.KafkaError) as error:
        raise trainee._not_ready(error) from error
    finally:
        trainee._close()
        part.unlink(missing_ok=True)
