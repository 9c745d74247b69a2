"""How long until Kafka takes a record: this course's clusters beside what people use instead, in one run.

Four recipes, from 'nothing formatted' to the first acknowledged record:

* `script`: the flags of Kafka's start script (bin/kafka-storage.sh, then bin/kafka-server-start.sh);
* `image`: the flags of the official Docker image with its two AppCDS archives, formatted by the image's own program;
* `one`: `Cluster()`, which returns when the cluster is ready, then a topic and a record;
* `three`: `Cluster(brokers=3)`, likewise.

The recipes take turns, each time in a fresh Python process that has done its imports, as a notebook's kernel has when
a lesson starts its cluster. `script` and `image` run on a stock JDK with its own CDS archive. README.md says what
is left out in their favour.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.cluster import ClusterMetadata

from helpers import Cluster, LabError, wait_until
from helpers.kafka import cache
from helpers.kafka.broker import Node, choose_nodes, new_id
from helpers.kafka.embedded import prepare_cache
from helpers.processes.run_folder import Processes, tail

RECIPES = {
    "script": "flags of Kafka's start script",
    "image": "flags of the official image, AppCDS",
    "one": "Cluster()",
    "three": "Cluster(brokers=3)",
}
BROKERS = {"one": None, "three": 3}  # the argument of `Cluster`
LIMIT = 180  # seconds for one start of one recipe, a broken one included
OLDEST_JAVA = 17  # what Kafka 4 asks of a broker's Java

# Both recipes, by kafka-run-class.sh: local JMX for every tool, 256 MiB for tools, a fixed 1 GiB for the broker.
JMX = [f"-Dcom.sun.management.jmxremote{option}" for option in ("=true", ".authenticate=false", ".ssl=false")]
TOOL_HEAP = ["-Xmx256M"]
BROKER_HEAP = ["-Xmx1G", "-Xms1G"]
# The start script's own choice; the image replaces all of it by its archive's flag.
PERFORMANCE = [
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-XX:MaxInlineLevel=15",
]
# In place of Kafka's own files, which are in no jar. SLF4J's lines go through slf4j-simple here, see README.md.
LOG4J = """Configuration:
  status: "WARN"
  Appenders: {{Console: {{name: STDOUT, target: {target}, PatternLayout: {{pattern: "[%d] %p %m (%c)%n"}}}}}}
  Loggers: {{Root: {{level: {level}, AppenderRef: [{{ref: STDOUT}}]}}}}
"""

# One record sent to a server that has just come up: ask again soon, where kafka-python's stock waits 50 to 30,000 ms.
EAGER = {"reconnect_backoff_ms": 5, "reconnect_backoff_max_ms": 20, "retry_backoff_ms": 5}


@dataclass
class Start:
    """What one start of one recipe took.

    `seconds` until the first acknowledged record; `cpu`: seconds of processor time, all processes, to the very end;
    `stop`: seconds of `Cluster.stop()`; `rss`, `pss`: MiB of the first broker, once it was ready.
    """

    seconds: float
    cpu: float = 0.0
    stop: float | None = None
    rss: float | None = None
    pss: float | None = None


# -- the recipes of others: one node on a stock JDK


class Stock:
    """One node in a run folder of its own, formatted and started with somebody else's flags.

    Args:
        java: the program of a stock JDK.
        archives: the folder of storage.jsa and kafka.jsa for the image's recipe; None for the start script's.
        traced: let the JVM write each class it loads to a file, to see whether an archive is used.
    """

    def __init__(self, java: Path, archives: Path | None = None, traced: bool = False):
        self.java, self.archives, self.traced = java, archives, traced
        self.processes = Processes()
        self.folder = self.processes.folder
        self.log = self.folder / "stock.log"
        (self.node,) = choose_nodes(1)
        self.defaults, mounted, self.config = (self.folder / name for name in ("defaults", "mounted", "config"))
        for folder in (self.defaults, mounted, self.config):
            folder.mkdir()
        for folder in (self.defaults, self.config):
            (folder / "server.properties").write_text(image_properties(self.node, self.folder / "data"))
            (folder / "log4j2.yaml").write_text(LOG4J.format(target="SYSTEM_OUT", level="INFO"))
            (folder / "tools-log4j2.yaml").write_text(LOG4J.format(target="SYSTEM_ERR", level="WARN"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.processes.close()

    @property
    def connection(self) -> dict:
        """What kafka-python's clients take."""
        return {"bootstrap_servers": f"127.0.0.1:{self.node.port}", **EAGER}

    def format(self) -> None:
        """Format the storage, as the recipe does."""
        if self.archives is None:
            self.run_tool(PERFORMANCE, "kafka.tools.StorageTool", "format", "-t", new_id(), "-c", self.settings)
        else:
            names = {"default": self.defaults, "mounted": self.folder / "mounted", "final": self.config}
            folders = [word for name, path in names.items() for word in (f"--{name}-configs-dir", path)]
            archive = [f"-XX:SharedArchiveFile={self.archives / 'storage.jsa'}"]
            self.run_tool(archive, "kafka.docker.KafkaDockerWrapper", "setup", *folders, env={"CLUSTER_ID": new_id()})

    def start(self) -> int:
        """Start the broker; returns its process id at once."""
        if self.archives is None:
            return self.run_broker(PERFORMANCE)
        return self.run_broker([f"-XX:SharedArchiveFile={self.archives / 'kafka.jsa'}"])

    @property
    def settings(self) -> Path:
        """The broker's server.properties."""
        return self.config / "server.properties"

    def run_tool(self, flags: list[str], *command, env: dict | None = None) -> None:
        """Run a tool to its end, with the heap and the logging of Kafka's tools."""
        argv = self._java(TOOL_HEAP, flags, "tools-log4j2.yaml", "storage", *command)
        # The JVM's environment as in the image: only what is set on purpose becomes a property.
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=LIMIT)
        if done.returncode:
            raise LabError(f"Kafka's formatter failed on {self.java}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def run_broker(self, flags: list[str]) -> int:
        """Start a broker with the heap, the collector's log and the logging of Kafka's start script."""
        gc_log = f"-Xlog:gc*:file={self.folder}/kafkaServer-gc.log:time,tags:filecount=10,filesize=100M"
        command = self._java(BROKER_HEAP, [*flags, gc_log], "log4j2.yaml", "kafka", "kafka.Kafka", self.settings)
        self.pid = self.processes.start(command, self.log)
        return self.pid

    def wait_for_port(self) -> None:
        """Wait until the broker listens: a client that asks earlier would only back off."""

        def connects():
            if self.processes.exit_status(self.pid) is not None:
                raise LabError(f"The broker on {self.java} ended by itself:\n{tail(self.log)}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.node.port), timeout=1):
                return True

        wait_until(connects, "the broker to listen", LIMIT, pause=0.005)

    def count_from_archive(self, name: str) -> int:
        """How many classes the JVM took from the dynamic archive `name`.jsa; needs `traced`."""
        return self._trace(name).read_text().count("source: shared objects file (top)")

    def _trace(self, name: str) -> Path:
        return self.folder / f"{name}-classes.txt"

    def _java(self, heap: list[str], flags: list[str], logging: str, name: str, *command) -> list[str]:
        trace = [f"-Xlog:class+load:file={self._trace(name)}:none:filecount=0"] if self.traced else []
        logs = [f"-Dkafka.logs.dir={self.folder}", f"-Dlog4j2.configurationFile={self.config / logging}"]
        words = [self.java, *heap, *flags, *trace, *JMX, *logs, "-cp", cache.class_path(), *command]
        return [str(word) for word in words]


def image_properties(node: Node, data: Path) -> str:
    """The default server.properties of the official image; addresses, ports and folder are those of this run."""
    return f"""process.roles=broker,controller
node.id={node.id}
controller.quorum.voters={node.id}@127.0.0.1:{node.controller_port}
listeners=PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port}
inter.broker.listener.name=PLAINTEXT
advertised.listeners=PLAINTEXT://127.0.0.1:{node.port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL
num.network.threads=3
num.io.threads=8
socket.send.buffer.bytes=102400
socket.receive.buffer.bytes=102400
socket.request.max.bytes=104857600
log.dirs={data}
num.partitions=1
num.recovery.threads.per.data.dir=2
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
log.retention.hours=168
log.segment.bytes=1073741824
log.retention.check.interval.ms=300000
"""


def make_archives(java: Path, target: Path) -> None:
    """Make storage.jsa and kafka.jsa in the folder `target`, as the build of the official image does.

    One archive of the storage tool, one of a broker that had a topic made, took a record and served it, both written
    when the JVM exits.
    """
    with Stock(java) as build:
        # The build formats a node that is its own quorum, with dynamic voters; --standalone refuses static ones.
        static = f"controller.quorum.voters={build.node.id}@"
        settings = build.settings.read_text().replace(static, "controller.quorum.bootstrap.servers=")
        build.settings.write_text(settings)
        command = ["kafka.tools.StorageTool", "format", "--standalone", "-t", new_id(), "-c", build.settings]
        build.run_tool([f"-XX:ArchiveClassesAtExit={target / 'storage.jsa'}"], *command)
        build.run_broker([f"-XX:ArchiveClassesAtExit={target / 'kafka.jsa'}"])
        build.wait_for_port()
        with contextlib.closing(KafkaAdminClient(**build.connection)) as admin:
            admin.create_topics({"test-topic": {"num_partitions": 1, "replication_factor": 1}})
        first_record(build.connection, "test-topic")
        with KafkaConsumer(**build.connection, auto_offset_reset="earliest") as consumer:
            consumer.assign([TopicPartition("test-topic", 0)])
            wait_until(lambda: consumer.poll(timeout_ms=500), "the record", 30)
        build.processes.terminate(build.pid, timeout=120)
        for name in ("storage.jsa", "kafka.jsa"):
            if not (target / name).exists():
                raise LabError(f"{java} wrote no {name}; the last lines of the broker's log:\n{tail(build.log)}")


def check_archives(java: Path, archives: Path) -> dict[str, int]:
    """Start the image's recipe once with the loading of classes traced; returns the classes taken from each archive.

    Raises:
        LabError: an archive is not used, so that the recipe would be handicapped.
    """
    with Stock(java, archives, traced=True) as image:
        image.format()
        image.start()
        image.wait_for_port()
        first_record(image.connection, "first")
        found = {name: image.count_from_archive(name) for name in ("storage", "kafka")}
    if min(found.values()) < 1000:
        raise LabError(f"The AppCDS archives are not used by {java} (classes taken from them: {found}).")
    return found


# -- one start of one recipe


def first_record(connection: dict, topic: str) -> None:
    """Write one record and wait until it is acknowledged by all replicas in sync; the same client for all recipes.

    kafka-python 3.0.12 waits 100 ms between its first two questions for metadata, whatever `retry_backoff_ms` says.
    That is no time of Kafka's, so it is taken out here, for each recipe.
    """
    with (
        mock.patch.dict(ClusterMetadata.DEFAULT_CONFIG, retry_backoff_ms=EAGER["retry_backoff_ms"]),
        KafkaProducer(**(connection | EAGER), acks="all") as producer,
    ):
        producer.send(topic, b"first").get(60)


def start_stock(java: Path, archives: Path | None) -> Start:
    """Format and start one node of somebody else's recipe; its topic comes into being by the first record."""
    with Stock(java, archives) as stock:
        begin = time.perf_counter()
        stock.format()
        stock.start()
        stock.wait_for_port()
        first_record(stock.connection, "first")
        return Start(time.perf_counter() - begin)


def start_course(brokers: int | None) -> Start:
    """Start a cluster of the course, and stop it."""
    begin = time.perf_counter()
    with Cluster(brokers=brokers) as cluster:
        first_record(cluster.connection, cluster.topic("first"))
        result = Start(time.perf_counter() - begin)
        result.rss, result.pss = memory_of_a_broker()
        begin = time.perf_counter()
        cluster.stop()
        result.stop = time.perf_counter() - begin
    return result


def memory_of_a_broker() -> tuple[float, float | None]:
    """RSS and PSS in MiB of the largest Java process below this one; no PSS where the system does not count it."""
    brokers = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("java")]
    found = max((broker.memory_full_info() for broker in brokers), key=lambda memory: memory.rss)
    pss = getattr(found, "pss", None)
    return found.rss / 2**20, pss and pss / 2**20


def run_here(recipe: str, java: Path, archives: Path) -> Start:
    """One start in this process; `cpu` counts this process and all that it started and has seen the end of."""
    before = sum(os.times()[:4])
    if recipe in BROKERS:
        result = start_course(BROKERS[recipe])
    else:
        result = start_stock(java, archives if recipe == "image" else None)
    result.cpu = sum(os.times()[:4]) - before
    return result


def run_apart(recipe: str, java: Path, archives: Path) -> Start:
    """One start in a fresh Python process; the watchdog ends its brokers, should it be killed at the limit."""
    command = [sys.executable, __file__, "--start", recipe, "--java", str(java), "--archives", str(archives)]
    environment = {name: value for name, value in os.environ.items() if name != "COURSE_BOOTSTRAP_SERVERS"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"No acknowledged record within {LIMIT} s: {RECIPES[recipe]}.") from error
    if done.returncode:
        raise LabError(f"A start failed: {RECIPES[recipe]}.\n{done.stderr[-3000:]}")
    return Start(**json.loads(done.stdout.splitlines()[-1]))


# -- a stock JDK


def java_version(java: Path) -> tuple[int, ...] | None:
    """The version of a Java that has a CDS archive of its own, e.g. (17, 0, 15); None for one without, or no Java."""
    try:
        done = subprocess.run([java, "-Xshare:on", "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "([\d.]+)', done.stderr)
    return tuple(map(int, found[1].split("."))) if found and done.returncode == 0 else None


def find_java(wanted: Path | None) -> tuple[Path, str]:
    """The Java for the recipes of others, and its version: `wanted`, or the newest stock JDK of this machine.

    Raises:
        LabError: there is none with a CDS archive of its own; what to do is said.
    """
    homes = [Path(home) for home in [os.environ.get("JAVA_HOME")] if home]
    homes += Path("/usr/lib/jvm").glob("*")
    homes += Path("/Library/Java/JavaVirtualMachines").glob("*/Contents/Home")
    programs = [home / "bin" / "java" for home in homes]
    programs += [Path(program) for program in [shutil.which("java")] if program]
    if wanted:
        programs = [wanted]
    usable = {java.resolve(): java_version(java) for java in programs}
    usable = {java: version for java, version in usable.items() if version and version[0] >= OLDEST_JAVA}
    if not usable:
        raise LabError(
            f"{wanted or 'No Java of this machine'} is {'not ' if wanted else ''}a JDK {OLDEST_JAVA} or newer with a "
            "CDS archive of its own (`java -Xshare:on -version` must work): install one, or name it with --java."
        )
    java = max(usable, key=usable.get)
    return java, ".".join(map(str, usable[java]))


# -- the run and its table


def measure(rounds: int, java: Path) -> dict[str, list[Start]]:
    """Start every recipe `rounds` times, in turns, after a round that does not count (files come into memory)."""
    results = {recipe: [] for recipe in RECIPES}
    prepare_cache()
    processes = Processes()  # its folder holds the archives, and goes with this process
    try:
        make_archives(java, processes.folder)
        found = check_archives(java, processes.folder)
        print(f"Classes that the image's recipe takes from its archives: {found}", flush=True)
        for number in range(rounds + 1):
            # Every other round backwards, so that no recipe always follows the same one.
            for recipe in list(RECIPES)[:: -1 if number % 2 else 1]:
                start = run_apart(recipe, java, processes.folder)
                if number:
                    results[recipe].append(start)
            took = ", ".join(f"{recipe} {starts[-1].seconds:.2f} s" for recipe, starts in results.items() if starts)
            print(f"round {number}: {took or 'warm-up, not counted'}", flush=True)
    finally:
        processes.close()
    return results


def medians(results: dict[str, list[Start]], what: str = "seconds") -> dict[str, float]:
    """The median of one figure, by recipe."""
    return {recipe: statistics.median(getattr(s, what) for s in starts) for recipe, starts in results.items()}


def verdicts(results: dict[str, list[Start]]) -> list[dict]:
    """The figures that have a target: what, value, at most, unit, met."""
    seconds = medians(results)
    ours = {recipe: results[recipe] for recipe in BROKERS}
    figures = [
        ("Cluster() / official image", seconds["one"] / seconds["image"], 0.5, ""),
        ("Cluster(brokers=3) / official image", seconds["three"] / seconds["image"], 1.6, ""),
        ("memory of the one broker (RSS)", medians({"one": ours["one"]}, "rss")["one"], 200, "MiB"),
        *((f"stop() of {RECIPES[recipe]}", stop, 1.0, "s") for recipe, stop in medians(ours, "stop").items()),
    ]
    return [
        {"what": what, "value": value, "at_most": most, "unit": unit, "met": value <= most}
        for what, value, most, unit in figures
    ]


def table(results: dict[str, list[Start]], judged: list[dict]) -> str:
    """The results as text."""
    cpu = medians(results, "cpu")
    lines = ["", f"{'first acknowledged record after':38}{'median':>8}{'min':>8}{'max':>8}{'CPU':>8}  (seconds)"]
    for recipe, starts in results.items():
        seconds = [start.seconds for start in starts]
        figures = (statistics.median(seconds), min(seconds), max(seconds), cpu[recipe])
        lines.append(f"{RECIPES[recipe]:38}" + "".join(f"{figure:8.2f}" for figure in figures))
    lines.append("")
    for j in judged:
        digits = 0 if j["unit"] == "MiB" else 2
        target = f"at most {j['at_most']:g} {j['unit']}".rstrip()
        lines.append(f"{j['what']:38}{j['value']:8.{digits}f}   {target:16}{'PASS' if j['met'] else 'MISS'}")
    if all(start.pss for start in results["one"]):
        pss = statistics.median(start.pss for start in results["one"])
        lines.append(f"{'memory of the one broker (PSS)':38}{pss:8.0f}   MiB")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time from nothing to the first record: the course and two others.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="counted rounds (default: 5)")
    parser.add_argument("--java", type=Path, metavar="PATH", help="the stock JDK's java (default: the newest found)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a target is missed")
    parser.add_argument("--start", choices=RECIPES, help=argparse.SUPPRESS)  # one start, in this process
    parser.add_argument("--archives", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.rounds < 1:
        parser.error("--rounds takes a whole number from 1 on")
    return chosen


def main() -> int:
    chosen = arguments()
    if chosen.start:
        print(json.dumps(vars(run_here(chosen.start, chosen.java, chosen.archives))))
        return 0
    java, version = find_java(chosen.java)
    load = " ".join(f"{figure:.1f}" for figure in os.getloadavg())
    print(f"Kafka {cache.KAFKA_VERSION}; {os.cpu_count()} CPUs, load {load}; stock JDK {version}", flush=True)
    results = measure(chosen.rounds, java)
    judged = verdicts(results)
    print(table(results, judged))
    if chosen.json:
        starts = {recipe: [vars(start) for start in all] for recipe, all in results.items()}
        facts = {"kafka": cache.KAFKA_VERSION, "java": version, "cpus": os.cpu_count()}
        chosen.json.write_text(json.dumps({**facts, "starts": starts, "verdicts": judged}, indent=2) + "\n")
    return int(chosen.check and not all(j["met"] for j in judged))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(str(error))
