"""How to reach an external cluster: the settings of the environment, and a conversation with a broker that tries them.

kafka-python retries in silence whatever fails on the way to a broker, ends in 'Unable to bootstrap', and often loses
what the broker said last (it drops an answer that arrives together with the end of the connection, which is how a
broker refuses a password). So here each step is taken once, in order, and the one that fails is named: the address, the
host's name, the connection, TLS, the protocol, the log-in, the version.
"""

import contextlib
import logging
import queue
import re
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from kafka import errors as kafka_errors
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.broker_version_data import BrokerVersionData
from kafka.protocol.metadata import ApiVersionsRequest, MetadataRequest
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from helpers import settings
from helpers.errors import LabError, refused
from helpers.kafka.cache import KAFKA_VERSION

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
OLDEST = (4, 2)  # share groups
OWN_BROKER = "or unset COURSE_BOOTSTRAP_SERVERS to work with a broker on this machine"


class Secret(str):
    """A password that is there for code to use, and not shown by a `repr`, e.g. of a dict in a notebook's output."""

    def __repr__(self):
        return "'…'"


class Unreachable(LabError):
    """A broker cannot be used from here: `what` is wrong, its `cure`, and at which `step` of the way to it."""

    def __init__(self, step: int, what: str, cure: str):
        super().__init__(f"{what[0].upper()}{what[1:]}: {cure}.")
        self.step, self.what, self.cure = step, what, cure


class Address(NamedTuple):
    """Where a broker listens; the standard library takes it for an address, too."""

    host: str
    port: int

    def __str__(self):
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Greeting(NamedTuple):
    """What a broker told of its cluster: each broker's address, by id, and whether the user has rights on a topic."""

    brokers: dict[int, Address]
    may_see: bool  # the topic that was asked for, whether it exists or not


# -- the environment -------------------------------------------------------------------------------------------------


def addresses() -> list[Address]:
    """The addresses of COURSE_BOOTSTRAP_SERVERS.

    Raises:
        LabError: it is not a list of addresses.
    """
    text = settings.bootstrap_servers()
    found = [re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([\w.-]+)):(\d{1,5})", part.strip()) for part in text.split(",")]
    if not all(match and 1 <= int(match[3]) <= 65535 for match in found):
        raise LabError(
            f"COURSE_BOOTSTRAP_SERVERS is {text!r}: set it to host and port of one or more brokers, "
            f"like kafka.example.org:9092 or one.example.org:9092,two.example.org:9092, {OWN_BROKER}."
        )
    return [Address(match[1] or match[2], int(match[3])) for match in found]


def security() -> dict[str, Any]:
    """The security settings of the environment, as kafka-python's clients take them; nothing for a plaintext cluster.

    Raises:
        LabError: a value is missing or unknown, or the CA file cannot be read.
    """
    value = {
        name: settings.value(f"COURSE_{name}")
        for name in (
            "SECURITY_PROTOCOL",
            "SASL_MECHANISM",
            "SASL_USERNAME",
            "SASL_TOKEN_URL",
            "SSL_CA_FILE",
            "SSL_CERT_FILE",
        )
    }
    password = settings.value("COURSE_SASL_PASSWORD", strip=False)
    protocol = value["SECURITY_PROTOCOL"].upper() or "PLAINTEXT"
    _check_one_of("COURSE_SECURITY_PROTOCOL", protocol, PROTOCOLS)
    options = {} if protocol == "PLAINTEXT" else {"security_protocol": protocol}
    if protocol.endswith("SSL") and value["SSL_CA_FILE"]:
        options["ssl_cafile"] = _ca_file(value["SSL_CA_FILE"])
    if protocol.endswith("SSL") and value["SSL_CERT_FILE"]:
        options |= _own_certificate(value["SSL_CERT_FILE"])
    if not protocol.startswith("SASL"):
        if value["SASL_USERNAME"]:
            raise LabError(
                f"COURSE_SASL_USERNAME is set, but nobody logs in with security protocol {protocol}: "
                "set COURSE_SECURITY_PROTOCOL to SASL_SSL (or SASL_PLAINTEXT), or unset COURSE_SASL_USERNAME."
            )
        return options
    mechanism = value["SASL_MECHANISM"].upper()
    _check_one_of("COURSE_SASL_MECHANISM", mechanism, MECHANISMS)
    for name, given in (("COURSE_SASL_USERNAME", value["SASL_USERNAME"]), ("COURSE_SASL_PASSWORD", password)):
        if not given:
            raise LabError(f"COURSE_SECURITY_PROTOCOL is {protocol}, which asks for a log-in: set {name} as well.")
    if mechanism == "OAUTHBEARER":
        from helpers.kafka.tokens import Tokens

        url, scope = value["SASL_TOKEN_URL"], settings.value("COURSE_SASL_TOKEN_SCOPE")
        if not re.match("https?://", url):
            raise LabError("OAUTHBEARER takes tokens: set COURSE_SASL_TOKEN_URL to the address where they come from.")
        provider = Tokens(url, value["SASL_USERNAME"], Secret(password), scope)
        return options | {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": provider}
    return options | {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": value["SASL_USERNAME"],
        "sasl_plain_password": Secret(password),
    }


def user_of(settings: dict) -> str | None:
    """Return who logs in with these settings of kafka-python's; None where nobody does by a name."""
    provider = settings.get("sasl_oauth_token_provider")
    return provider.client if provider else settings.get("sasl_plain_username")


def prefix() -> str:
    """The learner's own corner of a shared cluster, COURSE_TOPIC_PREFIX; empty without one.

    Raises:
        LabError: no topic may begin like that.
    """
    value = settings.value("COURSE_TOPIC_PREFIX")
    if not re.fullmatch(r"[a-zA-Z0-9._-]*", value):
        raise LabError(
            f"COURSE_TOPIC_PREFIX is {value!r}: use letters, digits, '.', '_' and '-', as in ann. or team-7."
        )
    return value


def _check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        given = f"is {value!r}" if value else "is missing"
        raise LabError(f"{name} {given}: set it to {', '.join(known[:-1])} or {known[-1]}, as the cluster has it.")


def _ca_file(text: str) -> str:
    path = Path(text).expanduser().absolute()
    cure = "set it to the CA file that you were given with the cluster's address"
    with refused(f"COURSE_SSL_CA_FILE, {path}, cannot be read", cure):
        try:
            ssl.create_default_context().load_verify_locations(path)
        except ssl.SSLError as error:
            raise LabError(f"COURSE_SSL_CA_FILE, {path}, holds no certificate in PEM format: {cure}.") from error
    return str(path)


def _own_certificate(text: str) -> dict[str, str]:
    """The client's certificate and key, for mTLS."""
    cert = str(Path(text).expanduser().absolute())
    options = {"ssl_certfile": cert}
    if key := settings.value("COURSE_SSL_KEY_FILE"):
        options["ssl_keyfile"] = str(Path(key).expanduser().absolute())
    if password := settings.value("COURSE_SSL_KEY_PASSWORD", strip=False):
        options["ssl_password"] = Secret(password)
    try:
        _load_own_certificate(ssl.create_default_context(), options)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise LabError(
            f"COURSE_SSL_CERT_FILE, {cert}, cannot be used with COURSE_SSL_KEY_FILE and COURSE_SSL_KEY_PASSWORD "
            f"({_reason(error)}): set them to a certificate and its key, in PEM."
        ) from error
    return options


def _load_own_certificate(context: ssl.SSLContext, options: dict) -> None:
    # with a password, even where there is none: OpenSSL would ask for it at the terminal
    context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password", "-"))


# -- a conversation with a broker ------------------------------------------------------------------------------------


def greet_any(targets: list[Address], settings: dict, topic: str, timeout: float) -> tuple[list[Address], Greeting]:
    """Greet several addresses at once; returns those that answered, and the greeting of one.

    Raises:
        Unreachable: none answered; the reason of the one where the way went farthest.
    """
    results = _greet_at_once(targets, settings, topic, timeout, one_will_do=True)
    answered = [address for address in targets if isinstance(results[address], Greeting)]
    if not answered:
        raise max(results.values(), key=lambda error: error.step)
    return answered, results[answered[0]]


def greet_all(brokers: dict[int, Address], settings: dict, topic: str, timeout: float) -> None:
    """Greet all brokers by the addresses that the cluster gives for them (advertised.listeners).

    Raises:
        Unreachable: one of them cannot be used from here.
    """
    results = _greet_at_once([*brokers.values()], settings, topic, timeout)
    for id, address in brokers.items():
        if isinstance(error := results[address], Unreachable):
            raise Unreachable(
                error.step,
                f"the cluster answers, but sends its clients to {address} for broker {id}, and from here {error.what}",
                "ask whoever runs the cluster for advertised.listeners that can be reached from this machine",
            ) from error


def greet(address: Address, settings: dict, topic: str, timeout: float) -> Greeting:
    """Connect, log in and ask for the cluster's brokers, step by step.

    Args:
        address: where a broker listens.
        settings: security settings as kafka-python's clients take them.
        topic: a name; whether the user has rights on it is asked for as well.
        timeout: seconds for all steps together (a slow name service may take longer).

    Raises:
        Unreachable: at the first step that failed.
    """
    deadline = time.monotonic() + timeout
    with _encrypt(_connect(address, deadline), address, settings, deadline) as connected:
        line = _Line(connected, address, deadline)
        _ask_version(line, address, settings, deadline)
        if "sasl_mechanism" in settings:
            _log_in(line, address, settings)
        try:
            answer = line.ask(
                MetadataRequest(
                    topics=[MetadataRequest.MetadataRequestTopic(name=topic)], allow_auto_topic_creation=False
                )
            )
        except OSError as error:  # a listener with SASL hangs up on who asks without a log-in
            raise Unreachable(
                6,
                f"the broker at {address} hangs up on clients that do not log in",
                "set COURSE_SECURITY_PROTOCOL to SASL_SSL (or SASL_PLAINTEXT), and COURSE_SASL_MECHANISM, "
                "COURSE_SASL_USERNAME and COURSE_SASL_PASSWORD",
            ) from error
    return Greeting(
        {broker.node_id: Address(broker.host, broker.port) for broker in answer.brokers},
        answer.topics[0].error_code != kafka_errors.TopicAuthorizationFailedError.errno,
    )


def _connect(address: Address, deadline: float) -> socket.socket:
    try:
        return socket.create_connection(address, timeout=_left(deadline))
    except (socket.gaierror, UnicodeError) as error:
        raise Unreachable(
            1,
            f"the host name {address.host} is not known on this network ({getattr(error, 'strerror', error)})",
            f"check COURSE_BOOTSTRAP_SERVERS and whether you need another network or a VPN, {OWN_BROKER}",
        ) from error
    except OSError as error:
        raise _nobody(address, error.strerror or str(error)) from error


def _nobody(address: Address, reason: str) -> Unreachable:
    return Unreachable(
        2,
        f"nobody answers at {address} ({reason})",
        "check COURSE_BOOTSTRAP_SERVERS, that the cluster runs, and that no firewall is in between, " + OWN_BROKER,
    )


def _encrypt(plain: socket.socket, address: Address, settings: dict, deadline: float) -> socket.socket:
    """The TLS handshake, if there is to be one, with the checks that kafka-python makes."""
    if not settings.get("security_protocol", "").endswith("SSL"):
        return plain
    ca_file = settings.get("ssl_cafile")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file:
        context.load_verify_locations(ca_file)
    else:
        context.load_default_certs()
    if "ssl_certfile" in settings:
        _load_own_certificate(context, settings)
    plain.settimeout(_left(deadline))
    try:
        return context.wrap_socket(plain, server_hostname=address.host)
    except ssl.SSLCertVerificationError as error:
        said = error.verify_message.rstrip(".")
        if "mismatch" in said:
            raise Unreachable(
                4,
                f"the certificate of {address} is for another host ({said})",
                "set COURSE_BOOTSTRAP_SERVERS to the host name that is in the certificate",
            ) from error
        raise Unreachable(
            4,
            f"the certificate of {address} is not trusted ({said})",
            f"check that COURSE_SSL_CA_FILE, {ca_file}, is the CA file that belongs to this cluster"
            if ca_file
            else "set COURSE_SSL_CA_FILE to the CA file that you were given with the cluster's address",
        ) from error
    except OSError as error:  # ssl.SSLError is one, too
        raise Unreachable(
            3,
            f"the broker at {address} answers, but not with TLS ({_reason(error)})",
            "check the port, or set COURSE_SECURITY_PROTOCOL to PLAINTEXT or SASL_PLAINTEXT",
        ) from error


class _Line:
    """One connection to a broker, on which one request after the other is answered."""

    def __init__(self, connected: socket.socket, address: Address, deadline: float):
        self._socket = connected
        self._address = address
        self._deadline = deadline
        self._protocol = KafkaProtocol(client_id="kafka-design-patterns")
        self.versions: BrokerVersionData | None = None

    def ask(self, request):
        """Send a request and return its answer.

        Raises:
            OSError: the connection ended before it.
            Unreachable: the deadline passed before it.
        """
        if request.API_VERSION is None:
            request.API_VERSION = self.versions.api_version(request)
        self._protocol.send_request(request)
        try:
            self._socket.settimeout(_left(self._deadline))
            self._socket.sendall(self._protocol.send_bytes())
            while True:
                self._socket.settimeout(_left(self._deadline))
                received = self._socket.recv(65536)
                if not received:
                    raise ConnectionResetError("it closed the connection")
                for _, answer in self._protocol.receive_bytes(received):
                    return answer
        except TimeoutError as error:
            raise Unreachable(
                5,
                f"what listens at {self._address} takes connections, but did not answer as a Kafka broker does in time",
                f"check host and port in COURSE_BOOTSTRAP_SERVERS, or try again later, {OWN_BROKER}",
            ) from error


def _ask_version(line: _Line, address: Address, settings: dict, deadline: float) -> None:
    """Ask which requests the broker takes, which shows its version too."""
    try:
        answer = line.ask(ApiVersionsRequest(version=0))
        line.versions = BrokerVersionData(
            api_versions={a.api_key: (a.min_version, a.max_version) for a in answer.api_keys}
        )
    except (OSError, kafka_errors.KafkaError, ValueError) as error:
        protocol = settings.get("security_protocol", "PLAINTEXT")
        if protocol.endswith("SSL") and "CERTIFICATE" in _reason(error).upper():  # TLS 1.3 asks after the handshake
            raise Unreachable(
                4,
                f"the broker at {address} asks for a certificate of yours ({_reason(error)})",
                "set COURSE_SSL_CERT_FILE, and COURSE_SSL_KEY_FILE, to one that the cluster trusts",
            ) from error
        if not protocol.endswith("SSL") and _speaks_tls(address, deadline):
            wanted = "SASL_SSL" if protocol.startswith("SASL") else "SSL (or SASL_SSL)"
            raise Unreachable(
                4, f"the broker at {address} wants TLS", f"set COURSE_SECURITY_PROTOCOL to {wanted}"
            ) from error
        raise Unreachable(
            5,
            f"what listens at {address} does not answer like a Kafka broker ({_reason(error)})",
            "check host and port in COURSE_BOOTSTRAP_SERVERS, and COURSE_SECURITY_PROTOCOL",
        ) from error
    if MetadataRequest.API_KEY not in line.versions.api_versions:
        raise Unreachable(
            6,
            f"what listens at {address} is a controller, not a broker",
            "set COURSE_BOOTSTRAP_SERVERS to the port of a broker",
        )
    if line.versions.broker_version < OLDEST:
        raise Unreachable(
            8,
            f"the cluster at {address} is Apache Kafka {line.versions.broker_version_str} or so, "
            f"and the lessons need {'.'.join(map(str, OLDEST))} or newer, for its share groups",
            f"use a newer cluster (the course is tested with {KAFKA_VERSION}), {OWN_BROKER}",
        )


def _speaks_tls(address: Address, deadline: float) -> bool:
    """Whether a second connection gets a TLS handshake done, whoever signed the certificate."""
    with contextlib.suppress(OSError):
        return bool(ssl.get_server_certificate(address, timeout=_left(deadline)))
    return False


def _log_in(line: _Line, address: Address, settings: dict) -> None:
    """SASL: agree on the mechanism, then the mechanism's own exchange."""
    mechanism, user, tokens = settings["sasl_mechanism"], user_of(settings), settings.get("sasl_oauth_token_provider")
    try:
        if tokens:
            tokens.token()
    except Exception as error:
        raise Unreachable(
            7,
            f"no token for {user} could be had from {tokens.url} ({_reason(error)})",
            "check COURSE_SASL_TOKEN_URL, COURSE_SASL_TOKEN_SCOPE, COURSE_SASL_USERNAME and COURSE_SASL_PASSWORD",
        ) from error
    try:
        answer = line.ask(SaslHandshakeRequest(mechanism=mechanism))
        if answer.error_code == kafka_errors.UnsupportedSaslMechanismError.errno:
            raise Unreachable(
                6,
                f"the broker at {address} does not take {mechanism}, but {' and '.join(sorted(answer.mechanisms))}",
                "set COURSE_SASL_MECHANISM accordingly",
            )
        if answer.error_code:
            raise Unreachable(
                6,
                f"the broker at {address} takes no log-in",
                f"set COURSE_SECURITY_PROTOCOL to {settings['security_protocol'].removeprefix('SASL_')} "
                "and unset COURSE_SASL_USERNAME",
            )
        exchange = get_sasl_mechanism(mechanism)(host=address.host, **settings)
        while not exchange.is_done():
            answer = line.ask(SaslAuthenticateRequest(exchange.auth_bytes()))
            if answer.error_code:
                raise ValueError(answer.error_message)
            exchange.receive(answer.auth_bytes)
    except (OSError, kafka_errors.KafkaError, ValueError, KeyError) as error:
        raise Unreachable(
            7,
            f"the cluster at {address} refuses the log-in of user {user} ({_reason(error)})",
            "check COURSE_SASL_USERNAME and COURSE_SASL_PASSWORD",
        ) from error


def _greet_at_once(targets: list[Address], settings: dict, topic: str, timeout: float, one_will_do=False) -> dict:
    """Greet all addresses at the same time; returns by address its Greeting, or the Unreachable.

    With `one_will_do` the others get one more second after the first answer.
    In threads that nobody waits for: a name service that is silent would hold them for longer than the deadline.
    """
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def run(address: Address) -> None:
        try:
            answers.put((address, greet(address, settings, topic, timeout)))
        except Unreachable as error:
            answers.put((address, error))
        except Exception as error:
            answers.put((address, Unreachable(0, f"{address} could not be tried ({error!r})", "report this as a bug")))

    results = {address: _nobody(address, f"not within {timeout:g} s") for address in targets}
    for address in results:
        threading.Thread(target=run, args=(address,), daemon=True).start()
    deadline = time.monotonic() + timeout + 1  # they keep to `timeout` themselves, but for the name service
    with contextlib.suppress(queue.Empty):
        for _ in range(len(results)):
            address, results[address] = answers.get(timeout=max(0, deadline - time.monotonic()))
            if one_will_do and isinstance(results[address], Greeting):
                deadline = min(deadline, time.monotonic() + 1)
    return results


def _left(deadline: float) -> float:
    """Seconds until the deadline, and never nothing: a socket takes 0 for 'do not wait at all'."""
    return max(0.01, deadline - time.monotonic())


def _reason(error: Exception) -> str:
    text = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).rstrip(".")


# Whoever sets SASL_PLAINTEXT knows that the password goes out in the clear; each client would say so again, on stderr.
for _mechanism in ("plain", "scram"):
    logging.getLogger(f"kafka.net.sasl.{_mechanism}").setLevel(logging.ERROR)
