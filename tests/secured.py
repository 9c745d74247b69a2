"""Brokers as a learner may meet them outside: one with TLS, users and rights; a cluster with Kafka's stock settings.

Both are plain processes of this machine, listen on its loopback address only, and are gone when their `with` block
ends.
"""

import base64
import contextlib
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from classroom import certificates, learners, server
from classroom.folder import Folder, Room
from helpers.errors import LabError
from helpers.kafka import cache
from helpers.kafka.broker import Broker, Node, choose_nodes, new_id, properties, with_aot_cache
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
    with contextlib.ExitStack() as stack:
        for attempt in range(5):
            folder = Folder(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="class-"))) / "class")
            folder.make(Room(new_id(), brokers, HOST, free_ports(brokers), megabytes=300))
            try:
                served = stack.enter_context(server.running(folder))
                break
            except LabError as error:  # a test that runs beside this one may have taken the port since
                if "is taken" not in str(error) or attempt == 4:
                    raise
        admin = stack.enter_context(server.connect(folder, folder.room(), served.ports))
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
def company_broker(folder: Path) -> Iterator[dict[str, dict[str, str]]]:
    """A broker with a listener for OAUTHBEARER and one for mTLS; yields the course's variables for each."""
    prepare_cache()
    authority = certificates.make_authority()
    files = {name: folder / f"{name}.pem" for name in ("ca", "broker", "ann")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    certificates.write_certificate(authority, files["broker"], HOST)
    certificates.write_certificate(authority, files["ann"], "ann")
    keys = folder / "keys.json"
    ports = {"OAUTH": free_ports(2)}
    ports["MTLS"] = ports["OAUTH"] + 1
    module = "org.apache.kafka.common.security.oauthbearer.OAuthBearer"

    def settings(node, nodes, data):
        values = properties(node, nodes, data)
        listeners = "".join(f",{name}://{HOST}:{port}" for name, port in ports.items())
        own = values["listeners"].split(",")[0]
        return values | {
            "listeners": values["listeners"] + listeners,
            "advertised.listeners": own + listeners,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,OAUTH:SASL_SSL,MTLS:SSL",
            "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.oauth.oauthbearer.sasl.jaas.config": f"{module}LoginModule required;",
            "listener.name.oauth.oauthbearer.sasl.server.callback.handler.class": f"{module}ValidatorCallbackHandler",
            "listener.name.oauth.sasl.oauthbearer.jwks.endpoint.url": keys.as_uri(),
            "listener.name.oauth.sasl.oauthbearer.expected.audience": "kafka",
            "listener.name.oauth.sasl.oauthbearer.expected.issuer": "http://issuer",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(files["broker"]),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(files["ca"]),
            "listener.name.mtls.ssl.client.auth": "required",
        }

    processes, provider = Processes(), contextlib.ExitStack()
    try:
        token_url = provider.enter_context(_token_provider(keys))
        nodes = choose_nodes(1)
        broker = Broker(processes, *nodes, nodes, new_id(), settings)
        broker.format(cache.storage_template())
        broker.start(f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={keys.as_uri()}", *with_aot_cache())
        with _connect(broker):
            trusted = {"COURSE_SSL_CA_FILE": str(files["ca"])}
            yield {
                "OAUTHBEARER": trusted
                | {
                    "COURSE_BOOTSTRAP_SERVERS": f"{HOST}:{ports['OAUTH']}",
                    "COURSE_SECURITY_PROTOCOL": "SASL_SSL",
                    "COURSE_SASL_MECHANISM": "OAUTHBEARER",
                    "COURSE_SASL_TOKEN_URL": token_url,
                    "COURSE_SASL_USERNAME": "ann",
                    "COURSE_SASL_PASSWORD": "ann's secret",
                },
                "mTLS": trusted
                | {
                    "COURSE_BOOTSTRAP_SERVERS": f"{HOST}:{ports['MTLS']}",
                    "COURSE_SECURITY_PROTOCOL": "SSL",
                    "COURSE_SSL_CERT_FILE": str(files["ann"]),
                },
            }
    finally:
        processes.close()
        provider.close()


@contextlib.contextmanager
def _token_provider(keys: Path) -> Iterator[str]:
    """An identity provider with one client, ann; writes its public key to a file and yields its token endpoint."""
    key = rsa.generate_private_key(65537, 2048)
    public = key.public_key().public_numbers()
    known = {"kty": "RSA", "kid": "1", "alg": "RS256", "n": _base64(public.n.to_bytes(256)), "e": "AQAB"}
    keys.write_text(json.dumps({"keys": [known]}))

    class Provider(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            user = base64.b64decode(self.headers["Authorization"].split()[1]).decode()
            self.send_response(200 if user == "ann:ann's secret" and "client_credentials" in asked else 401)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            now = int(time.time())
            claims = {
                "sub": "ann",
                "iat": now,
                "exp": now + 600,
                "aud": "kafka",
                "iss": "http://issuer",
                "scope": "kafka",
            }
            parts = [_base64(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "1"}, claims)]
            signature = key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())
            token = ".".join([*parts, _base64(signature)])
            self.wfile.write(json.dumps({"access_token": token, "expires_in": 600, "token_type": "bearer"}).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as provider:
        threading.Thread(target=provider.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{provider.server_port}/token"
        provider.shutdown()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


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
