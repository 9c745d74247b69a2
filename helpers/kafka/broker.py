"""One embedded broker: its settings, its storage, its process.

A node is broker and controller in one (KRaft, combined mode), listens on 127.0.0.1 only, and keeps its ports and its
data over `kill` and `start`. Everything that a lesson calls is in `helpers.kafka.cluster`.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import BrokerDied, LabError, NoMemory, PortTaken, refused
from helpers.kafka import cache
from helpers.processes.run_folder import Processes, tail

# Outside of the range that the system gives to outgoing connections (32768 and up on Linux, 49152 on macOS): a client's
# own connection must not sit on the port of a broker that is just being restarted.
PORTS = range(20000, 32000)

# Where the formatter puts the feature levels since Kafka 4.4 (KIP-1170), as the metadata's first snapshot.
METADATA = "__cluster_metadata-0"

# What Java and the system say when a broker has too little memory.
NO_MEMORY = re.compile(
    "insufficient memory|(?<!ExitOn)OutOfMemoryError|[Cc]annot allocate memory"
    "|[Cc]ould not (reserve|allocate).*(heap|memory|space|stack|table|bitmap)"
)


@dataclass(frozen=True)
class Node:
    """A node's id and its two ports on 127.0.0.1."""

    id: int
    port: int
    controller_port: int


def choose_nodes(count: int) -> list[Node]:
    """Ids 1..count with ports that are free at this moment."""
    ports: list[int] = []
    dice = random.SystemRandom()  # not the generator that a lesson may have seeded
    for port in dice.sample(PORTS, min(1000, len(PORTS))):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == 2 * count:
            return [Node(i + 1, ports[2 * i], ports[2 * i + 1]) for i in range(count)]
    raise LabError("No free port was found on 127.0.0.1 between 20000 and 32000: end some programs and try again.")


def new_id() -> str:
    """A cluster or directory id: 16 random bytes in URL-safe base64 without padding.

    None that begins with '-', which Kafka's tools would take for an option.
    """
    while True:
        text = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def properties(node: Node, nodes: list[Node], data: Path) -> dict[str, str]:
    """The settings of one node of a cluster (see the broker configs in Kafka's documentation).

    Beyond addresses they do two things: they keep a broker small (a 256 MiB heap, few threads, few internal
    partitions), and they make the accidents of the lessons quick (stock values in the comments).
    """
    replicas = len(nodes)
    single = replicas == 1
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.id),
        "controller.quorum.voters": ",".join(f"{n.id}@127.0.0.1:{n.controller_port}" for n in nodes),
        "listeners": f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",  # stock true: a misspelt topic would come into being instead of failing
        # few partitions and replicas for the internal topics (stock 50 partitions, 3 replicas)
        "offsets.topic.num.partitions": "1",
        "offsets.topic.replication.factor": str(replicas),
        "transaction.state.log.num.partitions": "1",
        "transaction.state.log.replication.factor": str(replicas),
        "transaction.state.log.min.isr": str(min(2, replicas)),
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": str(replicas),
        "share.coordinator.state.topic.min.isr": str(min(2, replicas)),
        # below 400 MB of heap the log cleaner's stock buffer of 128 MB is too much
        "log.cleaner.dedupe.buffer.size": "4194304",
        "num.network.threads": "2",
        "num.io.threads": "3",
        # a dead broker is noticed soon (stock 9000 and 2000), and so is a dead active controller (stock 2000, 1000,
        # 1000); an only broker has nobody to notice it, and must not be shut out when it gets no processor for a moment
        "broker.session.timeout.ms": "6000" if single else "1500",
        "broker.heartbeat.interval.ms": "300" if single else "500",
        "controller.quorum.fetch.timeout.ms": "1000",
        "controller.quorum.election.timeout.ms": "500",
        "controller.quorum.election.backoff.max.ms": "300",
        # an idle controller writes nothing (stock: a record every 500 ms, which every node then fetches and applies)
        "metadata.max.idle.interval.ms": "0",
        # groups: a dead member is noticed as soon as a lesson asks (stock 6000), the first rebalance does not wait
        # (stock 3000)
        "group.min.session.timeout.ms": "100",
        "group.initial.rebalance.delay.ms": "0",
        # retention and compaction look at the log twice a second (stock 5 min, 30 s, 15 s); more often, an idle broker
        # would work twice as much (benchmarks/idle.py)
        "log.retention.check.interval.ms": "500",
        "log.initial.task.delay.ms": "100",
        "log.cleaner.backoff.ms": "500",
        # a transaction that ran into its timeout is aborted soon (stock 10 s)
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
        # consumer groups of the new protocol (KIP-848): a member hears of a change with its next heartbeat (stock 5 s),
        # and each change is worked out at once (stock 1 s)
        "group.consumer.min.heartbeat.interval.ms": "100",
        "group.consumer.heartbeat.interval.ms": "200",
        "group.consumer.assignment.interval.ms": "0",
        # share groups (KIP-932): heartbeats, sessions and record locks of about a second (stock 5 s, 45 s, 30 s)
        "group.share.min.heartbeat.interval.ms": "100",
        "group.share.heartbeat.interval.ms": "200",
        "group.share.min.session.timeout.ms": "1000",
        "group.share.session.timeout.ms": "2000",
        "group.share.assignment.interval.ms": "0",
        "group.share.min.record.lock.duration.ms": "1000",
        "group.share.record.lock.duration.ms": "1500",
        # streams groups (KIP-1071): likewise (stock 5 s, 5 s, 3 s)
        "group.streams.min.heartbeat.interval.ms": "100",
        "group.streams.heartbeat.interval.ms": "200",
        "group.streams.initial.rebalance.delay.ms": "0",
    }


class Broker:
    """One node's process and files in the run folder of a `Processes`.

    Args:
        processes: where it runs.
        node: this node; `nodes`: all of the cluster.
        cluster_id: one id for all nodes, from `new_id`.
        settings: a function like `properties`, for a broker with other settings than the lab's.
        home: a folder outside of the run folder for data and log, where they are to outlive the run.
        plugin: a jar with classes that `settings` name.
    """

    def __init__(
        self,
        processes: Processes,
        node: Node,
        nodes: list[Node],
        cluster_id: str,
        settings=properties,
        home: Path | None = None,
        plugin: Path | None = None,
    ):
        self.node = node
        self.cluster_id = cluster_id
        self._processes, self._plugin = processes, plugin
        self._only = len(nodes) == 1 and settings is properties
        self._folder = processes.folder / f"broker-{node.id}"
        self.data = (home / f"broker-{node.id}" if home else self._folder) / "data"
        self.log = (home or processes.folder) / f"broker-{node.id}.log"
        self.pid: int | None = None
        with refused(f"A broker's folder {self._folder} could not be written", variable="TMPDIR"):
            self._folder.mkdir()
            self._settings = self._folder / "server.properties"
            self._settings.touch(mode=0o600)  # a secured broker's hold passwords
            values = settings(node, nodes, self.data)
            self._settings.write_text("".join(f"{key}={escape(value)}\n" for key, value in values.items()))

    @property
    def formatted(self) -> bool:
        """Whether the storage is that of a broker that ran; a `format` that was cut off leaves none."""
        return (self.data / "meta.properties").exists() or self._ran

    @property
    def _ran(self) -> bool:
        return any((self.data / METADATA).glob("*.log"))

    def format(self, template: Path) -> None:
        """Write the storage that Kafka's formatter would write, from a template that it once wrote (0.7 s less a
        broker)."""
        data = self.data
        with refused(f"A broker's storage in {data} could not be written", variable="TMPDIR"):
            (data / METADATA).mkdir(parents=True)
            shutil.copyfile(template, data / METADATA / template.name)
            (data / "meta.properties").write_text(
                f"version=1\ncluster.id={self.cluster_id}\nnode.id={self.node.id}\ndirectory.id={new_id()}\n"
            )

    def start(self, *jvm_options: str) -> None:
        """Start the process; returns at once."""
        options = jvm_options or with_aot_cache()
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        # A broker that was killed is let in again when its last session is over, which is counted from this start.
        again = ("--override", "broker.session.timeout.ms=1000") if self._only and self._ran else ()
        command = _java(*options, *self._quiet(), "kafka.Kafka", self._settings, *again, plugin=self._plugin)
        self.pid = self._processes.start(command, self.log, env=java_environment())

    def check(self) -> None:
        """Raise an error, with the log's last lines, when the process has ended by itself.

        Raises:
            PortTaken: another program listens on one of its ports.
            BrokerDied: any other reason.
            NoMemory: too little memory.
            LabError: a full disk.
        """
        status = None if self.pid is None else self._processes.exit_status(self.pid)
        if status is None:
            return
        log = self.log.read_bytes()[self._log_start :].decode(errors="replace")
        last = f"The last lines of its log:\n{tail(self.log)}"
        if "No space left on device" in log or shutil.disk_usage(self.data.parent).free < 1_000_000:
            raise LabError(
                f"Broker {self.node.id} found the disk of {self._folder} full: free some space there and start again. "
                f"{last}"
            )
        killed = status == -signal.SIGKILL
        if killed or NO_MEMORY.search(log):
            what = "was killed from outside, as the system does when it has" if killed else "had"
            raise NoMemory(
                f"Broker {self.node.id} {what} too little memory: each broker takes about 300 MB, so end other "
                f"programs or give the machine or container more, and start again. {last}"
            )
        kind = PortTaken if "Address already in use" in log else BrokerDied
        raise kind(f"Broker {self.node.id} ended by itself (exit status {status}). {last}")

    @property
    def alive(self) -> bool:
        """True while the process lives (a paused one does)."""
        return self.pid is not None and self._processes.exit_status(self.pid) is None

    def kill(self) -> None:
        """SIGKILL; returns when the process is dead."""
        if self.pid is not None:
            self._processes.kill(self.pid)
            self.pid = None

    def terminate(self, timeout: float) -> None:
        """SIGTERM: an orderly shutdown, or SIGKILL after `timeout` seconds."""
        if self.pid is not None:
            self._processes.terminate(self.pid, timeout)
            self.pid = None

    def pause(self) -> None:
        """SIGSTOP; returns when the process has stopped."""
        self._processes.pause(self.pid)

    def resume(self) -> None:
        """SIGCONT; returns when the process runs again."""
        self._processes.resume(self.pid)

    def _quiet(self) -> tuple[str, ...]:
        """Log to the process's own output, and leave crash reports in the run folder."""
        return (
            f"-XX:ErrorFile={self._folder}/hs_err.log",
            f"-Djava.io.tmpdir={self._folder}",  # native libraries are unpacked there; stock /tmp, whatever TMPDIR says
            "-XX:+ExitOnOutOfMemoryError",  # a broker that lives on with some of its threads dead answers nobody
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
            "-Dorg.slf4j.simpleLogger.showThreadName=false",
            "-Dorg.slf4j.simpleLogger.showShortLogName=true",
        )


def with_aot_cache() -> tuple[str, ...]:
    """The options of a quick start.

    Java checks the AOT cache's checksums, and goes on without one that is damaged; unchecked it would crash.
    """
    return f"-XX:AOTCache={cache.aot_cache()}", "-XX:+VerifySharedSpaces", "-Xlog:aot*=off", "-Xlog:cds*=off"


def _java(*arguments, plugin: Path | None = None) -> list[str]:
    """A Java command line with the broker's flags and class path; the AOT cache allows more at the path's end."""
    main = next(i for i, a in enumerate(arguments) if not str(a).startswith("-"))
    return [
        str(cache.java()),
        *cache.JVM_FLAGS,
        *arguments[:main],
        "-cp",
        cache.class_path() + (f"{os.pathsep}{plugin}" if plugin else ""),
        *map(str, arguments[main:]),
    ]


def escape(value: str) -> str:
    """Return a value as a properties file holds it: Java reads the file as Latin-1, and knows \\u escapes."""
    units = value.encode("utf-16-be", "surrogatepass")
    letters = [int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2)]
    return "".join(f"\\u{unit:04x}" if unit > 126 or unit == 92 else chr(unit) for unit in letters)


def java_environment() -> dict[str, str]:
    """Return an environment for Java: without a workplace's flags, and with a locale that has every letter.

    Java opens files by the locale's encoding; with `LC_ALL=C` it finds no folder whose name has a letter beyond ASCII.
    """
    hidden = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"}
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"LC_ALL": "C.UTF-8"}


def make_template(target: Path) -> None:
    """Run Kafka's own formatter once, and keep the snapshot it writes: the feature levels of this version."""
    processes = Processes()
    try:
        (node,) = choose_nodes(1)
        folder = processes.folder / "template"
        folder.mkdir()
        settings = folder / "server.properties"
        values = properties(node, [node], folder / "data")
        settings.write_text("".join(f"{key}={escape(value)}\n" for key, value in values.items()))
        formatter = _java("kafka.tools.StorageTool", "format", "-t", new_id(), "-c", settings)
        done = subprocess.run(formatter, capture_output=True, text=True, timeout=120, env=java_environment())
        if done.returncode:
            raise LabError(f"Kafka's formatter failed:\n{done.stdout}{done.stderr}")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        shutil.copyfile(folder / "data" / METADATA / target.name, part)  # not its rights: the cache may be shared
        part.rename(target)
    finally:
        processes.close()
