"""The class's brokers: their settings, their start and their end.

Three kinds of listeners, all with TLS. LEARNERS is the only one that is not on the loopback address; its users log in
by SCRAM, which keeps their passwords as salted hashes in the cluster's metadata. INTERNAL, for brokers and the
administrator, and CONTROLLER take one user by PLAIN whose password is in the settings file: so the first user is there
before the first start, without the formatter's argument that any other user of the machine could read.
"""

import contextlib
import errno
import ipaddress
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from classroom.certificates import write_certificate
from classroom.folder import Folder, Room
from helpers import internals
from helpers.errors import BrokerDied, LabError, NoMemory, PortTaken
from helpers.kafka import cache
from helpers.kafka.broker import Broker, Node, choose_nodes, properties, with_aot_cache
from helpers.kafka.embedded import prepare_cache
from helpers.processes.run_folder import Processes
from helpers.waiting import wait_until

ADMIN = "admin"
LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
INSIDE = "localhost"  # the name of the internal listeners in the certificate
GUARD = Path(__file__).with_name("guard") / "guard.jar"  # made by tools/make_guard.py from the source beside it
CONNECTIONS = 600  # to a broker by all learners; the heap holds a request of each
LARGEST_REQUEST = 1_310_720  # bytes; the clients' own limit is 1 MiB
LARGEST_ANSWER = 4 * 1024 * 1024  # bytes, of a fetch
MEMBERS = 30  # of a group
LARGEST_NOTE = 256  # bytes that a consumer may add to an offset; Kafka Streams adds some twenty
LOG_IN_AGAIN = 60  # seconds after which a connection has to; the clients do it by themselves, with what they know


class Brokers:
    """The brokers of a class while they run; see `running`.

    Attributes:
        bound: the address of this machine that learners come in by; 0.0.0.0 stands for all of them.
        ports: where the administrator logs in, a broker each.
        homes: where each broker keeps its records.
    """

    def __init__(self, folder: Folder, room: Room, processes: Processes):
        self.folder, self.room, self._processes = folder, room, processes
        pem = processes.folder / "broker.pem"
        write_certificate(folder.authority(), pem, *dict.fromkeys([room.address, INSIDE]))
        chosen = choose_nodes(2 * room.brokers)
        spare = [node.port for node in chosen[room.brokers :]]
        self.nodes = [Node(n.id, room.port + n.id - 1, n.controller_port) for n in chosen[: room.brokers]]
        self.ports = spare
        self.bound = bind = address_to_bind(room.address)

        def settings(node: Node, nodes: list[Node], data: Path) -> dict[str, str]:
            return properties(node, nodes, data) | secured(node, nodes, spare[node.id - 1], bind, folder, room, pem)

        self._brokers = [
            Broker(processes, node, self.nodes, room.cluster_id, settings, folder.path, GUARD) for node in self.nodes
        ]
        self._heap = 1  # times the usual
        self.homes = [broker.data for broker in self._brokers]
        self.logs = [broker.log for broker in self._brokers]
        self.refused = [broker.log.with_suffix(".refused") for broker in self._brokers]

    def start(self) -> None:
        """Start all; returns when all are registered.

        Raises:
            LabError: a port is taken, a broker died, or took more than a minute.
        """
        self._check_ports()
        for broker in self._brokers:
            if not broker.formatted:
                shutil.rmtree(broker.data, ignore_errors=True)
                broker.format(cache.storage_template())
            broker.log.touch(mode=0o600)
            self._launch(broker)
        try:
            try:
                self._await()
            except NoMemory:  # what was kept is more than usual: it has to be read to be cleaned
                self.stop()
                self._heap = 4
                for broker in self._brokers:
                    self._launch(broker)
                self._await()
        except PortTaken as error:
            raise _taken(f"{self.room.port} (or one of the next)") from error
        except (NoMemory, BrokerDied) as error:
            raise LabError(
                f"{error}\nIf it goes on: what is kept of the class in {self.folder.path} cannot be used any more. "
                "Begin another one with --dir, and give out its cards; answers are in the learners' notebooks."
            ) from error
        except TimeoutError as error:
            raise LabError(f"The brokers did not become ready: {error} See {self.logs[0]}.") from error

    def _await(self) -> None:
        for port in self.ports:
            self._until("all brokers to know each other", lambda port=port: self._knows_all(port))

    def _check_ports(self) -> None:
        """A broker whose port for learners is taken may answer at its internal one before it dies of that."""
        for node in self.nodes:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does
                try:
                    probe.bind((self.bound, node.port))
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        raise _taken(str(node.port)) from error

    def _launch(self, broker: Broker) -> None:
        heap = f"-Xmx{self._heap * (1536 if len(self._brokers) == 1 else 768)}m"
        report = broker.log.with_suffix(".refused")
        report.unlink(missing_ok=True)
        broker.start(heap, f"-Dclassroom.refused={report}", *with_aot_cache())

    def _until(self, what: str, probe: Callable):
        """Wait, and say at once when a broker dies meanwhile."""

        def checked():
            for broker in self._brokers:
                broker.check()
            return probe()

        return wait_until(checked, what, timeout=60, pause=0.05, retry=(OSError, kafka_errors.KafkaTimeoutError))

    def _knows_all(self, port: int) -> bool:
        """Whether the broker that listens there tells its clients of all brokers."""
        socket.create_connection((LOOPBACK, port), timeout=1).close()
        with connect(self.folder, self.room, [port]) as client:
            return internals.known_brokers(client) == len(self._brokers)

    def mend(self) -> list[int]:
        """Start brokers that died by themselves again; returns their ids.

        Raises:
            LabError: the disk is full, which a new start would not mend.
        """
        mended = []
        for broker in self._brokers:
            try:
                broker.check()
            except (BrokerDied, NoMemory):
                self._launch(broker)
                mended.append(broker.node.id)
        return mended

    def stop(self) -> None:
        """An orderly end of all brokers; returns when they are gone."""
        for broker in self._brokers:
            if broker.pid is not None:  # all at once: each needs the others for an orderly end
                with contextlib.suppress(psutil.Error):
                    psutil.Process(broker.pid).terminate()
        for broker in self._brokers:
            if broker.pid is not None:
                broker.terminate(timeout=15)


def _taken(port: str) -> LabError:
    return LabError(
        f"Port {port} is taken by another program: end it, or choose another with --port, and give the cards out anew."
    )


@contextlib.contextmanager
def running(folder: Folder) -> Iterator[Brokers]:
    """Serve a class: its brokers run as long as the block, and end with it, whatever happens; their data stays."""
    with folder.hold():
        room = folder.room()
        prepare_cache()
        _allow_many_files()
        processes = Processes()
        try:
            brokers = Brokers(folder, room, processes)
            brokers.start()
            folder.announce(brokers.ports)
            try:
                yield brokers
            finally:
                brokers.stop()
        finally:
            processes.close()


def connect(folder: Folder, room: Room, ports: list[int], client: Callable = KafkaAdminClient, **settings):
    """A client of the administrator's, who may do everything."""
    options = {"bootstrap_timeout_ms": 5000} if client is KafkaAdminClient else {}
    return client(
        bootstrap_servers=[f"{INSIDE}:{port}" for port in ports],
        security_protocol="SASL_SSL",
        ssl_cafile=str(folder.ca_file),
        sasl_mechanism="PLAIN",
        sasl_plain_username=ADMIN,
        sasl_plain_password=room.admin_password,
        reconnect_backoff_max_ms=200,
        **options,
        **settings,
    )


def secured(
    node: Node, nodes: list[Node], internal: int, bind: str, folder: Folder, room: Room, pem: Path
) -> dict[str, str]:
    """The settings in which a class's broker differs from the lab's.

    The lab's quick noticing of dead brokers is taken back: nobody kills these, and a busy laptop must not lose one.
    """
    login = (
        f'org.apache.kafka.common.security.plain.PlainLoginModule required username="{ADMIN}" '
        f'password="{room.admin_password}" user_{ADMIN}="{room.admin_password}";'
    )
    return {
        "listeners": f"LEARNERS://{bind}:{node.port},INTERNAL://{LOOPBACK}:{internal},"
        f"CONTROLLER://{LOOPBACK}:{node.controller_port}",
        "advertised.listeners": f"LEARNERS://{room.address}:{node.port},INTERNAL://{INSIDE}:{internal}",
        "controller.quorum.voters": ",".join(f"{n.id}@{INSIDE}:{n.controller_port}" for n in nodes),
        "listener.security.protocol.map": "LEARNERS:SASL_SSL,INTERNAL:SASL_SSL,CONTROLLER:SASL_SSL",
        "inter.broker.listener.name": "INTERNAL",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "listener.name.learners.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.learners.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "listener.name.internal.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.internal.plain.sasl.jaas.config": login,
        "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.controller.plain.sasl.jaas.config": login,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(pem),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder.ca_file),
        "authorizer.class.name": "classroom.Guard",  # Kafka's own, and limits for what it has no quota for
        "super.users": f"User:{ADMIN}",
        # a new password, or a learner's removal, ends what is connected; stock 0, which is for ever
        "listener.name.learners.scram-sha-512.connections.max.reauth.ms": str(LOG_IN_AGAIN * 1000),
        # one learner's machine cannot take all connections, nor requests all of the memory (stock: no limit, 100 MB)
        "max.connections.per.ip": str(room.connections),
        "max.connections.per.ip.overrides": f"{LOOPBACK}:100000",
        "listener.name.learners.max.connections": str(CONNECTIONS),
        "socket.request.max.bytes": str(LARGEST_REQUEST),
        "queued.max.requests": "16",  # stock 500; a request takes many times its bytes once it is read
        "max.decompressed.message.bytes": "33554432",  # stock 2 GB
        "fetch.max.bytes": str(LARGEST_ANSWER),  # stock 55 MB
        "connection.failed.authentication.delay.ms": "1000",  # stock 100
        # what a group, a transactional id, a producer leave in memory (stock: no limit, 30 min; 7 days; a day)
        **{f"group.{kind}max.size": str(MEMBERS) for kind in ("", "consumer.", "share.", "streams.")},
        "group.max.session.timeout.ms": "60000",
        "transactional.id.expiration.ms": str(12 * 3600 * 1000),
        "transaction.remove.expired.transaction.cleanup.interval.ms": "60000",
        "producer.id.expiration.ms": str(3600 * 1000),
        "transaction.state.log.segment.bytes": "10485760",
        # what was said of the metadata is forgotten soon (stock: segments of 1 GB, a snapshot each 20 MB)
        "metadata.log.segment.bytes": "8388608",
        "metadata.log.max.record.bytes.between.snapshots": "5000000",
        "metadata.max.retention.bytes": "33554432",
        # Offsets are kept in memory, and in a topic that no quota counts (stock 4096 bytes, segments of 100 MB).
        "offset.metadata.max.bytes": str(LARGEST_NOTE),
        "offsets.topic.segment.bytes": "10485760",
        "num.network.threads": "3",
        "num.io.threads": "8",
        "offsets.topic.num.partitions": "6",
        "transaction.state.log.num.partitions": "6",
        "log.segment.delete.delay.ms": "1000",  # stock 60 s; disk that a learner gave back counts as theirs until then
        "log.retention.check.interval.ms": "5000",
        "log.cleaner.backoff.ms": "1000",
        # stock values again
        "broker.session.timeout.ms": "9000",
        "broker.heartbeat.interval.ms": "2000",
        "controller.quorum.fetch.timeout.ms": "2000",
        "controller.quorum.election.timeout.ms": "1000",
        "controller.quorum.election.backoff.max.ms": "1000",
    }


# -- addresses ---------------------------------------------------------------------------------------------------------


def own_addresses() -> list[str]:
    """The IPv4 addresses of this machine that others may reach, without those of the loopback device."""
    found = [a.address for list_ in psutil.net_if_addrs().values() for a in list_ if a.family == socket.AF_INET]
    return [address for address in found if not address.startswith(("127.", "169.254."))]


def likely_address() -> str:
    """The address by which this machine goes out, as the system's routes say (nothing is sent).

    Raises:
        LabError: it is on no network.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address of documentation, which nobody has
        return probe.getsockname()[0]
    found = own_addresses()
    if not found:
        raise LabError(
            "This machine is on no network: connect it to the class's, or use --address localhost to try `serve` alone."
        )
    return found[0]


def resolve(address: str) -> str | None:
    """The IPv4 address of a host name, as this machine knows it; None for one that it does not know."""
    with contextlib.suppress(OSError, UnicodeError):
        return socket.getaddrinfo(address, None, socket.AF_INET)[0][4][0]
    return None


def address_to_bind(address: str) -> str:
    """What to listen on so that learners come in by `address`, and by no other way if that can be helped.

    Raises:
        LabError: the name is not known.
    """
    number = resolve(address)
    if number is None:
        raise LabError(f"The address {address} is not known here: set --address to one of {_choice()}.")
    if number.startswith("127."):
        return LOOPBACK
    # An address that others translate to this machine (a cloud server's public one) is on no device of it.
    return number if number in own_addresses() else EVERYWHERE


def is_gone(address: str) -> bool:
    """True when this machine does not have a numeric private address any more, e.g. in another Wi-Fi.

    Of names and public addresses that cannot be told from here.
    """
    with contextlib.suppress(ValueError):
        number = ipaddress.IPv4Address(address)
        return number.is_private and not number.is_loopback and address not in own_addresses()
    return False


def _choice() -> str:
    return ", ".join([*own_addresses(), "localhost"])


def _allow_many_files() -> None:
    """A broker holds some three files a partition open: take what the system gives, e.g. on macOS, where 256 is
    usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        wanted = 100_000 if hard == resource.RLIM_INFINITY else min(hard, 1_000_000)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
