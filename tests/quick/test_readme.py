"""README.md tells the truth about what can be checked; it and the guarantees name the versions that are pinned."""

import re
from pathlib import Path

import pytest

from helpers.kafka.cache import KAFKA_VERSION
from tools.lessons import COURSE, LESSONS

README = (COURSE / "README.md").read_text()
PINS = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (COURSE / "requirements.txt").read_text(), re.M))


def test_names_the_versions_that_are_pinned():
    assert f"Apache Kafka {KAFKA_VERSION}" in README
    assert f"kafka-python {PINS['kafka-python']}" in README


def test_the_guarantees_name_the_versions_that_are_pinned():
    guarantees = (COURSE / "docs" / "guarantees.md").read_text()
    assert f"Apache Kafka {KAFKA_VERSION}" in guarantees
    assert f"kafka-python {PINS['kafka-python']}" in guarantees


def test_links_go_somewhere():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("https://") or (COURSE / link).exists(), link


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lists_each_lesson(path):
    assert f"(notebooks/{path.name})" in README


def test_everything_is_pinned_and_the_course_comes_last():
    lines = [line for line in (COURSE / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert lines[-1] == "-e ." and all("==" in line for line in lines[:-1])


def test_ci_runs_the_command_that_it_gives():
    assert len(re.findall(r"^    python3 -m venv .*pytest$", README, re.M)) == 1
    assert "README.md" in Path(COURSE, ".ci", "run").read_text()
