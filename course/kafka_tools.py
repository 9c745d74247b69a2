"""Kafka's own command line, from the course's jars: `python -m helpers kafka topics --list`."""

import fcntl
import os
import re
import sys
from pathlib import Path

import click

from helpers import settings
from helpers.errors import LabError
from helpers.kafka import cache
from helpers.kafka.download import prepare_jars
from helpers.processes.run_folder import base_folder

_PACKAGE = "org.apache.kafka.tools."
#: The tools by the name of their script (`kafka-topics.sh`) without `kafka-`, and the class that the script starts.
TOOLS = {
    "topics": "TopicCommand",
    "configs": "ConfigCommand",
    "console-producer": "ConsoleProducer",
    "console-consumer": "consumer.ConsoleConsumer",
    "console-share-consumer": "consumer.ConsoleShareConsumer",
    "consumer-groups": "consumer.group.ConsumerGroupCommand",
    "share-groups": "consumer.group.ShareGroupCommand",
    "streams-groups": "streams.StreamsGroupCommand",
    "groups": "GroupsCommand",
    "transactions": "TransactionsCommand",
    "get-offsets": "GetOffsetShell",
    "delete-records": "DeleteRecordsCommand",
    "leader-election": "LeaderElectionCommand",
    "metadata-quorum": "MetadataQuorumCommand",
}


def labs() -> list[str]:
    """The addresses of this user's embedded clusters that run now, the newest first."""
    found = []
    for folder in base_folder().glob("run-*"):
        listeners = []
        for properties in sorted(folder.glob("broker-*/server.properties")):
            listeners += re.findall(r"^listeners=\w+://(127\.0\.0\.1:\d+)", properties.read_text(), re.M)
        if listeners and _is_in_use(folder / "lock"):
            found.append((folder.stat().st_mtime, ",".join(listeners)))
    return [address for _, address in sorted(found, reverse=True)]


def _is_in_use(lock: Path) -> bool:
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def address() -> str:
    """Where the tools go: COURSE_BOOTSTRAP_SERVERS, or else the lab that was started last.

    Raises:
        LabError: nothing runs, or the cluster asks for more than an address.
    """
    if servers := settings.bootstrap_servers():
        if settings.value("COURSE_SECURITY_PROTOCOL") not in ("", "PLAINTEXT"):
            raise LabError(
                "The cluster of COURSE_BOOTSTRAP_SERVERS wants a login: give the tool its address and its own file of "
                "settings, by --bootstrap-server and --command-config."
            )
        return servers
    running = labs()
    if not running:
        raise LabError("No lab runs: run a lesson's cell `cluster = Cluster()`, then try again.")
    if len(running) > 1:
        click.echo(
            f"{len(running)} labs run; this is the newest, {running[0]}. The others: {'; '.join(running[1:])}. "
            "`--bootstrap-server` takes another one.",
            err=True,
        )
    return running[0]


def start(tool: str, arguments: list[str]) -> None:
    """Become one of Kafka's tools; never returns.

    Args:
        tool: its name, as in `TOOLS`.
        arguments: what goes to it; the lab's address is added where none is given.

    Raises:
        LabError: there is no such tool, no lab runs, or the jars cannot be had.
    """
    if tool not in TOOLS:
        raise LabError(f"There is no tool {tool}: choose from {', '.join(TOOLS)}.")
    known = any(argument.partition("=")[0] in ("--bootstrap-server", "--help", "--version") for argument in arguments)
    if not known:
        arguments = ["--bootstrap-server", address(), *arguments]
    prepare_jars("tools_jars.txt")
    java = str(cache.java())
    flags = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    sys.stdout.flush()
    os.execv(java, [java, *flags, "-cp", cache.class_path("tools_jars.txt"), _PACKAGE + TOOLS[tool], *arguments])
