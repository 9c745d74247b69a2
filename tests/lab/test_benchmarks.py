"""The benchmarks run and are honest; their targets are not judged here, on a machine that may be busy."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from helpers.paths import COURSE
from helpers.processes.run_folder import base_folder

SCRIPT = COURSE / "benchmarks" / "startup.py"
CLASSROOM = SCRIPT.with_name("classroom.py")


def run(*arguments, script: Path = SCRIPT, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, **options)


@pytest.mark.full
def test_one_round(tmp_path):
    before = set(base_folder().glob("run-*"))
    done = run("--rounds", 1, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    figures = json.loads((tmp_path / "figures.json").read_text())
    starts = figures["starts"]
    assert {recipe: len(each) for recipe, each in starts.items()} == dict.fromkeys(
        ["script", "image", "one", "three"], 1
    )
    assert all(start["seconds"] > 0.1 and start["cpu"] > 0.1 for (start,) in starts.values())
    # The ratios are of the medians in the same file, and each verdict is the comparison that it claims to be.
    assert figures["verdicts"][0]["value"] == pytest.approx(starts["one"][0]["seconds"] / starts["image"][0]["seconds"])
    assert figures["verdicts"][1]["value"] == pytest.approx(
        starts["three"][0]["seconds"] / starts["image"][0]["seconds"]
    )
    assert 50 < starts["one"][0]["rss"] < 1000  # a broker was measured, not the watchdog or Python
    for verdict in figures["verdicts"]:
        assert verdict["met"] == (verdict["value"] <= verdict["at_most"])
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(verdict["what"] + " "))
        assert line.endswith("PASS" if verdict["met"] else "MISS")
    # Whatever is new in the folder of the runs belongs to tests that run beside this one, not to the benchmark.
    left = [str(folder) for folder in set(base_folder().glob("run-*")) - before]
    owners = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert all(any(folder in owner for owner in owners) for folder in left), left
    assert not any(str(SCRIPT) in owner for owner in owners)


@pytest.mark.full
def test_java_without_an_archive_of_its_own_is_refused():
    from helpers.kafka import cache

    for java in (cache.java(), Path("no-such-java")):
        done = run("--java", java)
        assert done.returncode == 1
        assert (
            len(done.stderr.splitlines()) == 1 and "CDS archive of its own" in done.stderr and str(java) in done.stderr
        )


@pytest.mark.full
def test_a_class_of_two():
    done = run("--learners", 2, "--minutes", 0.5, "--embedded", 1, script=CLASSROOM)
    assert done.returncode == 0, done.stdout + done.stderr
    checks, wrong, failed = re.search(r"checks +(\d+), (\d+) not right; (\d+) learners failed", done.stdout).groups()
    assert int(checks) >= 2 and (wrong, failed) == ("0", "0"), done.stdout
    assert re.search("held by the watchdog +nobody", done.stdout)
    one, three = (int(size) for size in re.findall(r"memory \(PSS\) +(\d+) MB", done.stdout))
    assert 100 < one < three < 3000


@pytest.mark.full
def test_what_is_measured_idle_is_a_notebooks_kernel():
    """With all that a lesson imports, which a bare Python would not have."""
    spec = importlib.util.spec_from_file_location("classroom", CLASSROOM)
    classroom = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(classroom)
    with classroom.idle_kernel(1) as kernel:
        assert "ipykernel_launcher" in kernel.cmdline()
        loaded = {part for line in kernel.memory_maps() for part in Path(line.path).parts}
        assert {"pandas", "matplotlib"} <= loaded
        (broker,) = (child for child in kernel.children(recursive=True) if "kafka.Kafka" in child.cmdline())
    assert not broker.is_running() and not kernel.is_running()


def test_a_lesson_that_is_not_there():
    done = run("--lessons", "02", "11", script=CLASSROOM)
    assert done.returncode == 2 and "invalid choice: '11'" in done.stderr
