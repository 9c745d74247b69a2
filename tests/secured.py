"""Brokers as a learner may meet them outside: one with TLS, users and rights; a cluster with Kafka's stock settings.

Both are plain processes of this machine, listen on its loopback address only, and are gone when their `with` block
ends.
"""

import contextlib
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization
from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
    UserScramCredentialUpsertion,
)

from helpers import store
from helpers.broker import Broker, Node, choose_nodes, new_id, properties
from helpers.cluster import prepare_cache
from helpers.processes import Processes
from helpers.waiting import wait_until

HOST = "localhost"  # the name in the certificate; 127.0.0.1 is the same host by a name that is not in it
ADMIN = "admin"
KINDS = (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID)


@dataclass
class SecuredBroker:
    """A running broker that asks for TLS and a password, and gives each user rights under a prefix only.

    Attributes:
        address: what users connect to (SASL_SSL, SCRAM-SHA-512).
        ca_file: the certificate of the authority that signed the broker's.
        admin: a client that may do everything.
    """

    address: str
    ca_file: Path
    admin: KafkaAdminClient

    def add_user(self, name: str, password: str, prefix: str, kinds: tuple = KINDS) -> None:
        """Make a user, or give it a new password; it may do everything under `prefix`, and nothing else.

        The password stays in this process: what goes to the broker is salted and hashed.
        """
        credential = UserScramCredentialUpsertion(name, "SCRAM-SHA-512", password)
        (refused,) = self.admin.alter_user_scram_credentials([credential]).values()
        rights = [
            ACL(
                principal=f"User:{name}",
                host="*",
                operation=ACLOperation.ALL,
                permission_type=ACLPermissionType.ALLOW,
                resource_pattern=ResourcePattern(kind, prefix, ACLResourcePatternType.PREFIXED),
            )
            for kind in kinds
        ]
        failed = self.admin.create_acls(rights)["failed"]
        if refused or failed:
            raise RuntimeError(f"User {name} could not be made: {refused or failed}")

    def environment(self, name: str, password: str, prefix: str) -> dict[str, str]:
        """The course's variables for a user."""
        return {
            "COURSE_BOOTSTRAP_SERVERS": self.address,
            "COURSE_SECURITY_PROTOCOL": "SASL_SSL",
            "COURSE_SASL_MECHANISM": "SCRAM-SHA-512",
            "COURSE_SASL_USERNAME": name,
            "COURSE_SASL_PASSWORD": password,
            "COURSE_SSL_CA_FILE": str(self.ca_file),
            "COURSE_TOPIC_PREFIX": prefix,
        }


@contextlib.contextmanager
def secured_broker() -> Iterator[SecuredBroker]:
    """One broker with SASL_SSL, SCRAM-SHA-512 and StandardAuthorizer, and no user but its own."""
    prepare_cache()
    processes = Processes()
    try:
        ca_file, pem = make_certificates(processes.folder, HOST)
        # The administrator's password is in the broker's settings alone: in a private folder, on no command line.
        password = secrets.token_urlsafe(24)
        node, spare = choose_nodes(2)
        lines = security(node, spare.port, ca_file, pem, password)
        broker = Broker(processes, node, [node], new_id(), lambda *args: properties(*args) | lines)
        broker.format(store.storage_template())
        broker.start()
        admin = _connect(
            broker,
            spare.port,
            security_protocol="SASL_SSL",
            ssl_cafile=str(ca_file),
            sasl_mechanism="PLAIN",
            sasl_plain_username=ADMIN,
            sasl_plain_password=password,
        )
        with admin:
            yield SecuredBroker(f"{HOST}:{node.port}", ca_file, admin)
    finally:
        processes.close()


def security(node: Node, internal_port: int, ca_file: Path, pem: Path, password: str) -> dict[str, str]:
    """The settings that secure a broker.

    Three listeners, all of them with TLS: USERS, by SCRAM, whose passwords are in the cluster's metadata as hashes;
    INTERNAL for brokers and the administrator, and CONTROLLER, by PLAIN, whose one user is in the settings, so that
    nothing but the settings has to be there before the first start.
    """
    plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required username="{ADMIN}" password="{password}"'
    plain += f' user_{ADMIN}="{password}";'
    return {
        "listeners": f"USERS://127.0.0.1:{node.port},INTERNAL://127.0.0.1:{internal_port},"
        f"CONTROLLER://127.0.0.1:{node.controller_port}",
        "advertised.listeners": f"USERS://{HOST}:{node.port},INTERNAL://{HOST}:{internal_port}",
        "controller.quorum.voters": f"{node.id}@{HOST}:{node.controller_port}",
        "listener.security.protocol.map": "USERS:SASL_SSL,INTERNAL:SASL_SSL,CONTROLLER:SASL_SSL",
        "inter.broker.listener.name": "INTERNAL",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "listener.name.users.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.users.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "listener.name.internal.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.internal.plain.sasl.jaas.config": plain,
        "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.controller.plain.sasl.jaas.config": plain,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(pem),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(ca_file),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{ADMIN}",
    }


def make_certificates(folder: Path, *names: str) -> tuple[Path, Path]:
    """Make an authority and a certificate of it for a host's names.

    Returns:
        The authority's certificate, and a PEM file with the host's key and chain, both in `folder`. Kafka reads keys in
        PKCS #8 only.
    """
    authority = trustme.CA()
    host = authority.issue_cert(*names)
    key = serialization.load_pem_private_key(host.private_key_pem.bytes(), password=None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    ca_file, pem = folder / "ca.pem", folder / "broker.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    pem.touch(mode=0o600)
    pem.write_bytes(key + b"".join(blob.bytes() for blob in host.cert_chain_pems))
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
            broker.format(store.storage_template())
            # the log cleaner's stock buffer of 128 MB does not fit in the lab's small heap
            options = "-XX:+VerifySharedSpaces", "-Xlog:aot=off", "-Xlog:cds=off"
            broker.start("-Xmx512m", f"-XX:AOTCache={store.aot_cache()}", *options)
        for broker in started:
            with _connect(broker, broker.node.port) as admin:
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


def _connect(broker: Broker, port: int, **security) -> KafkaAdminClient:
    """An admin client, as soon as the broker can be talked to."""

    def listens():
        broker.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True

    wait_until(listens, f"broker {broker.node.id} to listen", timeout=60)

    def answers():
        broker.check()
        return KafkaAdminClient(bootstrap_servers=f"{HOST}:{port}", bootstrap_timeout_ms=5000, **security)

    return wait_until(
        answers, f"broker {broker.node.id} to answer", timeout=60, retry=(kafka_errors.KafkaTimeoutError,)
    )
