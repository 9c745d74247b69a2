"""The workflows of `.github/workflows`, as far as they can be held here: schema, and that what they name is there."""

import importlib
import re
import subprocess
import sys
import tomllib

import click
import pytest
import yaml

from course import cli
from helpers.paths import COURSE

FILES = sorted(COURSE.glob(".github/workflows/*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
STEPS = [step for workflow in WORKFLOWS.values() for job in workflow["jobs"].values() for step in job["steps"]]
COMMANDS = [line.strip() for step in STEPS for line in step.get("run", "").splitlines() if line.strip()]


def test_there_are_two():
    assert sorted(WORKFLOWS) == ["lessons", "weekly"]


def test_actions_are_pinned_by_digest_and_checkouts_keep_no_credentials():
    uses = [line for path in FILES for line in path.read_text().splitlines() if "uses:" in line]
    assert uses and all(re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+(\.\d+){2}$", line) for line in uses), uses
    assert len(set(uses)) == len({line.split("@")[0] for line in uses}), "two versions of an action"
    checkouts = [step for step in STEPS if "actions/checkout@" in step.get("uses", "")]
    assert checkouts and all(step["with"] == {"persist-credentials": False} for step in checkouts)


def test_debians_own_python_has_a_job():
    job = WORKFLOWS["lessons"]["jobs"]["debian"]
    assert job["container"] == "debian:12" and "(3, 11, 2)" in job["steps"][2]["run"]


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_schema(schema):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *FILES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_runs_on_linux_and_macos_with_every_python_that_the_course_names():
    matrix = WORKFLOWS["lessons"]["jobs"]["lessons"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest"]
    least = tomllib.loads((COURSE / "pyproject.toml").read_text())["project"]["requires-python"]
    assert least == f">={matrix['python'][0]}"
    assert f"Python {matrix['python'][0]} or newer" in (COURSE / "README.md").read_text()
    assert matrix["python"] == [f"3.{minor}" for minor in range(11, 11 + len(matrix["python"]))]


def test_once_a_week():
    # YAML 1.1 reads the key `on` as true
    ((schedule,),) = (entry.values() for entry in WORKFLOWS["weekly"][True]["schedule"])
    assert re.fullmatch(r"\d+ \d+ \* \* \d", schedule)


def test_caches_pip_and_jars():
    uses = [step for step in STEPS if step.get("uses", "").startswith("actions/cache@")]
    (cache,) = uses
    assert [*COURSE.glob("helpers/kafka/*_jars.txt")] and "helpers/kafka/*_jars.txt" in cache["with"]["key"]
    assert cache["with"]["path"] == "${{ env.COURSE_CACHE_DIR }}/jars"  # as helpers.kafka.cache has it
    assert any(step.get("with", {}).get("cache") == "pip" for step in STEPS)


def test_the_commands_are_there():
    modules = {"helpers": cli.commands}
    for words in (line.split() for line in COMMANDS if line.startswith("python -m")):
        module, *arguments = words[2:]
        if module in modules:
            name, *arguments = arguments
            command = modules[module].commands[name]
            with command.make_context(name, arguments):
                pass
        elif module.startswith("tools."):
            arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
            with importlib.import_module(module).main.make_context(module, arguments):
                pass
    assert "python -m helpers run -n 2 --out executed" in COMMANDS
    assert any(re.match("pytest( |$)", line) for line in COMMANDS)


def test_a_command_that_is_not_there_would_be_found():
    with pytest.raises(click.UsageError):
        cli.run.make_context("run", ["--paralel", "2"])


def test_what_is_left_out_and_kept_exists():
    for line in COMMANDS:
        for path in re.findall(r"--ignore (\S+)", line):
            assert (COURSE / path).exists(), path
    artifacts = [step["with"]["path"].split() for step in STEPS if "upload-artifact" in step.get("uses", "")]
    assert artifacts == [["executed/", "junit.xml"]] * 2 + [["executed/", "junit.xml", "kafka-changes.txt"]]


def test_the_newest_of_everything_means_no_limits():
    (line,) = [line for line in COMMANDS if line.startswith("sed")]
    old, new = re.search(r"'s/(.*)/(.*)/'", line).groups()
    text = re.sub(old, new, (COURSE / "pyproject.toml").read_text(), flags=re.M)
    project = tomllib.loads(text)["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert "kafka-python" in wanted and "psycopg[binary]" in wanted and "pytest" in wanted
    assert not [one for one in wanted if re.search("[<>=]", one)]


def test_what_holds_the_pinned_versions_is_left_out_where_there_are_none():
    (line,) = [line for line in COMMANDS if line.startswith("pytest") and "--ignore tests/quick" in line]
    holding = [path for path in (COURSE / "tests").rglob("test_*.py") if re.search(r"^PINS =", path.read_text(), re.M)]
    assert holding and all(f"--ignore {path.relative_to(COURSE)}" in line for path in holding)


def test_links_are_checked_with_the_configuration_that_is_there():
    (step,) = [step for step in STEPS if "lychee" in step.get("uses", "")]
    words = step["with"]["args"].split()
    settings = tomllib.loads((COURSE / words[words.index("--config") + 1]).read_text())
    assert settings["scheme"] == ["https", "http"]
    (rendered,) = [re.search(r"--output-dir (\S+)", line)[1] for line in COMMANDS if "nbconvert --to" in line]
    for word in words[words.index("--config") + 2 :]:
        assert word == rendered or (COURSE / word).exists(), word
