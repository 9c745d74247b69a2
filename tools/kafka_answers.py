"""What one version of Kafka says of itself, asked of its jars in this process; `tools.kafka_changes` starts it.

python -m tools.kafka_answers FOLDER TARGET    # the jars below FOLDER; the answers go to TARGET, as JSON

Java runs once in a process, so each version has a process of its own. For the metrics a broker is started in it, with a
client of each kind: no class lists them, they are there when they are in use.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import jpype
from jpype import JClass

from helpers.kafka.broker import choose_nodes, new_id, properties
from helpers.streams.jvm import kafka_class, library
from helpers.waiting import wait_until

# Where a version keeps its settings: what to call them, the class, and a static method or field with the ConfigDef.
CONFIGS = {
    "broker configs": ("server.config.AbstractKafkaConfig", "CONFIG_DEF"),
    "topic configs": ("storage.internals.log.LogConfig", "configDefCopy"),
    "group configs": ("coordinator.group.GroupConfig", "CONFIG_DEF"),
    "producer configs": ("clients.producer.ProducerConfig", "configDef"),
    "consumer configs": ("clients.consumer.ConsumerConfig", "configDef"),
    "admin client configs": ("clients.admin.AdminClientConfig", "configDef"),
    "Kafka Streams configs": ("streams.StreamsConfig", "configDef"),
    "Connect worker configs": ("connect.runtime.distributed.DistributedConfig", "config"),  # private, see `_definition`
    "Connect source configs": ("connect.runtime.SourceConnectorConfig", "configDef"),
    "Connect sink configs": ("connect.runtime.SinkConnectorConfig", "configDef"),
}
#: What of a metric's name tells of this run, not of the metric.
INSTANCES = ("client-id", "node-id", "process-id", "thread-id", "task-id", "application-id", "topic", "partition",
             "listener", "networkProcessor", "logDirectory", "clientSoftwareVersion")  # fmt: skip
WAIT = 60  # seconds for whatever the broker and its clients have to do


def configs(name: str, member: str) -> dict[str, dict]:
    """The settings of one ConfigDef, by their names."""
    return {str(key.name): _facts(key) for key in _definition(kafka_class(name), member).configKeys().values()}


def _definition(owner, member: str):
    if member == "config":  # Connect's workers: a private method that wants to know what Java can encrypt
        crypto = kafka_class("connect.runtime.distributed.Crypto")
        method = owner.class_.getDeclaredMethod(member, crypto.class_)
        method.setAccessible(True)
        return method.invoke(None, crypto.SYSTEM)
    found = getattr(owner, member)
    return found() if callable(found) else found


def _facts(key) -> dict:
    return {
        "default": _text(key.defaultValue) if key.hasDefault() else "none: it has to be set",
        "type": str(key.type),
        "valid values": _text(key.validator) if key.validator else "any",
        "importance": str(key.importance),
        "internal": bool(key.internalConfig),
        "documentation": " ".join(str(key.documentation or "").split()),
    }


def _text(value) -> str:
    """A Java value as text that is the same each time."""
    text = str(jpype.java.lang.String.valueOf(jpype.java.lang.Object @ value)) if value is not None else "null"
    return text.split("$$Lambda")[0].split("@")[0]  # an address


def features() -> dict[str, dict]:
    """The feature levels: what a new cluster of this version starts with, and the highest."""
    latest = kafka_class("server.common.MetadataVersion").latestProduction()
    levels = {
        "metadata.version": {"of a new cluster": f"{latest.featureLevel()} ({latest})", "highest": _text(latest)},
    }
    for feature in kafka_class("server.common.Feature").PRODUCTION_FEATURES:
        levels[str(feature.featureName())] = {
            "of a new cluster": int(feature.defaultLevel(latest)),
            "highest": int(feature.latestProduction()),
        }
    return levels


def protocol() -> dict[str, dict]:
    """The requests of the protocol, and the versions that a broker takes of each."""
    return {
        str(key.name): {"versions": f"{key.oldestVersion()} to {key.latestVersion()}", "number": int(key.id)}
        for key in kafka_class("common.protocol.ApiKeys").values()
    }


def metrics(folder: Path) -> dict[str, dict]:
    """Names of the metrics of a broker and of its clients, by their MBeans; the values of a run are left out."""
    with _broker(folder) as servers, _clients(servers, folder):
        beans = jpype.java.lang.management.ManagementFactory.getPlatformMBeanServer()
        found: dict[str, dict] = {}
        for bean in beans.queryNames(None, None):
            if not str(bean.getDomain()).startswith("kafka"):
                continue
            labels = {str(k): str(v) for k, v in dict(bean.getKeyPropertyList()).items()}
            fixed = ",".join(f"{k}={v}" for k, v in sorted(labels.items()) if k not in INSTANCES)
            attributes = [str(attribute.getName()) for attribute in beans.getMBeanInfo(bean).getAttributes()]
            if "name" in labels:  # the broker's: its attributes are the same of each kind (Count, Mean, …)
                found[f"{bean.getDomain()}:{fixed}"] = {}
            else:
                found |= {f"{bean.getDomain()}:{fixed} {attribute}": {} for attribute in attributes}
    return found


@contextlib.contextmanager
def _broker(folder: Path):
    """One broker with the course's settings in this Java; gives its address."""
    (node,) = choose_nodes(1)
    settings = folder / "server.properties"
    values = properties(node, [node], folder / "data")
    settings.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
    arguments = ["format", "-t", new_id(), "-c", str(settings)]
    silence = jpype.java.io.PrintStream(jpype.java.io.OutputStream.nullOutputStream())
    JClass("kafka.tools.StorageTool").execute(jpype.JArray(jpype.JString)(arguments), silence)
    config = JClass("kafka.server.KafkaConfig")(kafka_class("common.utils.Utils").loadProps(str(settings)), False)
    server = JClass("kafka.server.KafkaRaftServer")(config, kafka_class("common.utils.Time").SYSTEM)
    server.startup()
    try:
        yield f"127.0.0.1:{node.port}"
    finally:
        server.shutdown()
        server.awaitShutdown()


@contextlib.contextmanager
def _clients(servers: str, folder: Path):
    """A client of each kind, each of which has done some work."""
    seconds, strings = jpype.java.time.Duration.ofSeconds, "org.apache.kafka.common.serialization.String"

    def client(name: str, **more):
        settings = {"bootstrap.servers": servers, "key.serializer": f"{strings}Serializer",
                    "value.serializer": f"{strings}Serializer", "key.deserializer": f"{strings}Deserializer",
                    "value.deserializer": f"{strings}Deserializer"}  # fmt: skip
        values = jpype.java.util.Properties()
        for key, value in (settings | {key.replace("_", "."): value for key, value in more.items()}).items():
            values.setProperty(key, value)
        made = kafka_class(name)
        return stack.enter_context(contextlib.closing(made.create(values) if "Admin" in name else made(values)))

    with contextlib.ExitStack() as stack:
        admin = client("clients.admin.Admin")
        topics = [kafka_class("clients.admin.NewTopic")(name, 1, 1) for name in ("source", "target")]
        admin.createTopics(topics).all().get()
        _set_for_group(admin, "shared", "share.auto.offset.reset", "earliest")
        producer = client("clients.producer.KafkaProducer", transactional_id="metrics")
        producer.initTransactions()
        producer.beginTransaction()
        producer.send(kafka_class("clients.producer.ProducerRecord")("source", "key", "value")).get()
        producer.commitTransaction()
        for protocol in ("classic", "consumer"):
            consumer = client("clients.consumer.KafkaConsumer", group_id=protocol, group_protocol=protocol,
                              auto_offset_reset="earliest")  # fmt: skip
            consumer.subscribe(["source"])
            wait_until(lambda consumer=consumer: consumer.poll(seconds(1)).count(), "a consumer to read", WAIT)
            consumer.commitSync()
        sharer = client("clients.consumer.KafkaShareConsumer", group_id="shared")
        sharer.subscribe(["source"])
        wait_until(lambda: sharer.poll(seconds(1)).count(), "a share consumer to read", WAIT)
        builder = kafka_class("streams.StreamsBuilder")()
        builder.stream("source").toTable().toStream().to("target")
        streams = _streams(builder.build(), servers, folder, strings.replace("String", "Serdes$String"))
        stack.callback(streams.close, seconds(5))
        streams.start()
        wait_until(lambda: str(streams.state()) == "RUNNING", "Kafka Streams to run", WAIT)
        yield


def _set_for_group(admin, group: str, name: str, value: str) -> None:
    resources, changes = kafka_class("common.config.ConfigResource"), kafka_class("clients.admin.AlterConfigOp")
    change = changes(kafka_class("clients.admin.ConfigEntry")(name, value), changes.OpType.SET)
    singleton = jpype.java.util.Collections
    resource = resources(resources.Type.GROUP, group)
    admin.incrementalAlterConfigs(singleton.singletonMap(resource, singleton.singletonList(change))).all().get()


def _streams(topology, servers: str, folder: Path, strings: str):
    values = jpype.java.util.Properties()
    for key, value in {
        "application.id": "metrics", "client.id": "metrics", "bootstrap.servers": servers,
        "state.dir": str(folder / "state"),
        "default.key.serde": f"{strings}Serde", "default.value.serde": f"{strings}Serde",
        "metrics.recording.level": "DEBUG",
    }.items():  # fmt: skip
        values.setProperty(key, value)
    return kafka_class("streams.KafkaStreams")(topology, values)


def main(jars: str, target: str) -> None:
    """Ask the version whose jars lie below a folder everything, and write the answers."""
    with tempfile.TemporaryDirectory() as folder:
        jpype.startJVM(
            "-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xlog:disable",
            "--sun-misc-unsafe-memory-access=allow",  # Kafka uses it; Java would warn
            "--enable-native-access=ALL-UNNAMED", f"-Djava.io.tmpdir={folder}",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=off",
            jvmpath=library(), classpath=sorted(map(str, Path(jars).rglob("*.jar"))),
        )  # fmt: skip
        answers = {section: configs(*where) for section, where in CONFIGS.items()}
        answers |= {"feature levels": features(), "protocol": protocol(), "metrics": metrics(Path(folder))}
        Path(target).write_text(json.dumps(answers).replace(folder, "(a temporary folder)"))  # a default names it


if __name__ == "__main__":
    main(*sys.argv[1:])
