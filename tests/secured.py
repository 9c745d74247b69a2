"""Brokers as a learner may meet them outside: one with TLS, users and rights; a cluster with Kafka's stock settings.

Both are plain processes of this machine, listen on its loopback address only, and are gone when their `with` block
ends.
"""

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from classroom import certificates, learners, server
from classroom.folder import Folder, Room
from helpers.kafka import cache
from helpers.kafka.broker import Broker, Node, choose_nodes, new_id, properties
from helpers.kafka.embedded import prepare_cache
from helpers.processes.run_folder import Processes
from helpers.waiting import wait_until

HOST = "localhost"  # the name in the certificate; 127.0.0.1 is the same host by a name that is not in it


@dataclass
class SecuredBroker:
    """The class's cluster of `python -m helpers serve`: TLS, passwords, and for each user rights under a prefix only.

    Attributes:
        address: what users connect to (SASL_SSL, SCRAM-SHA-512).
        ca_file: the certificate of the authority that signed the broker's.
        admin: a client that may do everything.
        folder: the class's folder.
        brokers: the running brokers.
    """

    address: str
    ca_file: Path
    admin: KafkaAdminClient
    folder: Folder
    brokers: server.Brokers

    def add_user(self, name: str, password: str, kinds: tuple = learners.KINDS) -> None:
        """Make a user with a given password; it may do everything under its name and a dot, and nothing else."""
        learners.enrol(self.admin, {name: password}, kinds)
        with self.folder.change() as kept:
            kept.learners[name] = password

    def environment(self, name: str) -> dict[str, str]:
        """The course's variables for a user, as on the card, but for the board."""
        values = learners.environment(self.folder.room(), name, str(self.ca_file))
        return {key: value for key, value in values.items() if key != "COURSE_BOARD_TOPIC"}


@contextlib.contextmanager
def secured_broker(brokers: int = 1) -> Iterator[SecuredBroker]:
    """The class's cluster in a folder of its own, on the loopback address, without learners."""
    with tempfile.TemporaryDirectory(prefix="class-") as path:
        folder = Folder(Path(path) / "class")
        port = free_ports(brokers)
        folder.make(Room(new_id(), brokers, HOST, port, megabytes=300))
        with server.running(folder) as served, server.connect(folder, folder.room(), served.ports) as admin:
            learners.set_quotas(admin)
            yield SecuredBroker(folder.room().servers, folder.ca_file, admin, folder, served)


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free at this moment."""
    while True:
        first = choose_nodes(1)[0].port
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for port in range(first, first + count):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def make_certificates(folder: Path, *names: str) -> tuple[Path, Path]:
    """Make an authority and a certificate of it for a host's names.

    Returns:
        The authority's certificate, and a PEM file with the host's key and chain, both in `folder`.
    """
    authority = certificates.make_authority()
    ca_file, pem = folder / "ca.pem", folder / "broker.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    certificates.write_certificate(authority, pem, *names)
    return ca_file, pem


@contextlib.contextmanager
def stock_cluster(brokers: int = 3) -> Iterator[str]:
    """A plaintext cluster whose settings say nothing but ids and addresses; yields its bootstrap servers.

    All else is Kafka's default, e.g. slow accidents, one replica a topic, topics that are made when they are asked for.
    """
    prepare_cache()
    processes = Processes()
    try:
        nodes = choose_nodes(brokers)
        cluster_id = new_id()
        started = [Broker(processes, node, nodes, cluster_id, _addresses) for node in nodes]
        for broker in started:
            broker.format(cache.storage_template())
            # the log cleaner's stock buffer of 128 MB does not fit in the lab's small heap
            options = "-XX:+VerifySharedSpaces", "-Xlog:aot=off", "-Xlog:cds=off"
            broker.start("-Xmx512m", f"-XX:AOTCache={cache.aot_cache()}", *options)
        for broker in started:
            with _connect(broker) as admin:
                wait_until(
                    lambda admin=admin: len(admin.describe_cluster()["brokers"]) == brokers,
                    "all brokers to be registered",
                    timeout=60,
                )
        yield ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    finally:
        processes.close()


def _addresses(node: Node, nodes: list[Node], data: Path) -> dict[str, str]:
    """Of the lab's settings those that no broker can do without."""
    keys = {
        "process.roles",
        "node.id",
        "controller.quorum.voters",
        "listeners",
        "controller.listener.names",
        "log.dirs",
    }
    return {key: value for key, value in properties(node, nodes, data).items() if key in keys}


def _connect(broker: Broker) -> KafkaAdminClient:
    """An admin client, as soon as the broker can be talked to."""
    port = broker.node.port

    def listens():
        broker.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True

    wait_until(listens, f"broker {broker.node.id} to listen", timeout=60)

    def answers():
        broker.check()
        return KafkaAdminClient(bootstrap_servers=f"{HOST}:{port}", bootstrap_timeout_ms=5000)

    return wait_until(
        answers, f"broker {broker.node.id} to answer", timeout=60, retry=(kafka_errors.KafkaTimeoutError,)
    )
