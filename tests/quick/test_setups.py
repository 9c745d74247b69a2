"""The devcontainer and the Binder set-up: both install requirements.txt, on a Python that the course supports."""

import os
import re

import json5

from course.cli import commands
from course.doctor import TESTED
from helpers.paths import COURSE

CONTAINER = json5.loads((COURSE / ".devcontainer" / "devcontainer.json").read_text())
BINDER = COURSE / ".binder"


def supported(version: str) -> bool:
    return TESTED[0] <= tuple(map(int, version.split("."))) <= TESTED[1]


def lab_options(command: str) -> list[str]:
    """The options of `python -m helpers lab` in a command."""
    (options,) = re.findall(r"python -m helpers lab((?: --[a-z-]+)*)", command)
    return options.split()


def known_options() -> set[str]:
    return {option for parameter in commands.commands["lab"].params for option in parameter.opts}


def test_the_devcontainer_installs_what_is_pinned_and_prepares_the_lessons():
    assert supported(CONTAINER["image"].removeprefix("python:"))
    assert "-r requirements.txt && " in CONTAINER["postCreateCommand"]
    assert lab_options(CONTAINER["postCreateCommand"]) == ["--prepare"] and "--prepare" in known_options()


def test_binder_installs_what_is_pinned_and_prepares_the_lessons():
    lines = [line for line in (BINDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["-r ../requirements.txt"] and (BINDER / ".." / "requirements.txt").exists()
    assert supported((BINDER / "runtime.txt").read_text().strip().removeprefix("python-"))
    assert os.access(BINDER / "postBuild", os.X_OK)
    assert lab_options((BINDER / "postBuild").read_text()) == ["--prepare"]


def test_both_have_the_same_python_as_docker():
    compose = (COURSE / "docker-compose.yml").read_text()
    assert CONTAINER["image"] in compose
    assert (BINDER / "runtime.txt").read_text().strip().replace("-", ":") in compose
