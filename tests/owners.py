"""Processes that own a cluster, to be ended in all the ways in which a learner's kernel may end; kernels."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

START = "from helpers import Cluster\ncluster = Cluster(brokers=1)\n"


def environment(temp: Path) -> dict[str, str]:
    """An environment with a temp folder of its own, so that nobody else's runs are seen or swept."""
    temp.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COURSE_BOOTSTRAP")}
    return kept | {"TMPDIR": str(temp)}


def owner(temp: Path, code: str, **options) -> subprocess.Popen:
    """A Python program in a process group of its own that runs `code`; each of its prints is a line on `stdout`."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        env=environment(temp) | options.pop("env", {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
        **options,
    )


def run_cell(client, code: str, **metadata) -> list[dict]:
    """Run code as a front end does that sends this metadata; returns the outputs' contents, but no stream or error."""
    message = client.session.msg("execute_request", {"code": code, "silent": False}, metadata=metadata)
    client.shell_channel.send(message)
    outputs = []
    while True:
        answer = client.get_iopub_msg(timeout=60)
        if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        assert answer["msg_type"] not in ("error", "stream"), answer["content"]
        if answer["msg_type"] in ("display_data", "execute_result"):
            outputs.append(answer["content"])
        if answer["content"].get("execution_state") == "idle":
            return outputs


def run_folders(temp: Path) -> list[Path]:
    return list(temp.glob("kafka-course-*/run-*"))


def processes_of(temp: Path) -> list[psutil.Process]:
    """All processes with this temp folder in their command line: brokers, workers and watchdogs."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(temp) in " ".join(p.info["cmdline"] or [])]


def watchdogs(temp: Path) -> list[psutil.Process]:
    return [p for p in processes_of(temp) if any("supervisor.py" in word for word in p.info["cmdline"])]


def left_over(temp: Path) -> list[str]:
    """What is still there of the runs below a temp folder."""
    return [f"{p.pid} {p.info['cmdline'][0]}" for p in processes_of(temp)] + [str(path) for path in run_folders(temp)]
