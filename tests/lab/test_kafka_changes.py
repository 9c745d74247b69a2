"""`python -m tools.kafka_changes`: what two versions of Kafka say of themselves, told apart."""

import shutil

import pytest
from click.testing import CliRunner

from helpers.kafka.cache import KAFKA_VERSION
from tools import kafka_changes

OLD = {
    "gone": {"default": "1", "documentation": "."},
    "kept": {"default": "1", "documentation": "."},
    "raised": {"default": "1", "documentation": "Old words."},
    "told": {"default": "1", "documentation": "Old words."},
}
NEW = {
    "kept": {"default": "1", "documentation": "."},
    "come": {"default": "7", "importance": "LOW", "documentation": "."},
    "raised": {"default": "2", "documentation": "New words."},
    "told": {"default": "1", "documentation": "New words."},
}


def call(*arguments):
    return CliRunner().invoke(kafka_changes.main, arguments)


def test_what_went_came_and_changed():
    assert kafka_changes.changes(OLD, NEW) == ["  - gone", "  + come; default: 7", "  * raised; default: 1 -> 2"]


def test_other_words_are_told_when_asked_for():
    lines = kafka_changes.changes(OLD, NEW, documentation=True)
    assert [line.split(";")[0] for line in lines[2:]] == ["  * raised", "  * raised", "  * told"]


def test_nothing_is_no_difference():
    assert kafka_changes.changes(OLD, OLD, documentation=True) == []


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("4.3.1", "trunk"), "'trunk' is not the version of a release, such as 4.4.0."),
        (("../x", "4.4.0"), "'../x' is not the version of a release, such as 4.4.0."),
        (("4.4.0", "4.4.0"), "Give two versions; both are 4.4.0."),
    ],
)
def test_bad_input_is_one_sentence(arguments, said):
    result = call(*arguments)
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output


def test_without_versions_it_is_from_the_courses_to_the_newest(monkeypatch):
    monkeypatch.setattr(kafka_changes, "newest", lambda: KAFKA_VERSION)
    assert call().output == f"Apache Kafka {KAFKA_VERSION} is the newest release.\n"


def test_help_says_what_the_signs_mean():
    said = call("--help").output
    assert "`+` was added, `-` removed, `*` changed" in " ".join(said.split())


def test_without_maven(monkeypatch):
    monkeypatch.setenv("PATH", "")
    result = call("4.3.1", "4.4.0")
    assert result.exit_code == 1 and "Error: Maven (mvn) is not on the PATH" in result.output


@pytest.mark.full
@pytest.mark.skipif(not shutil.which("mvn"), reason="Maven (mvn) is not installed")
def test_a_version_that_was_never_released():
    result = call("0.0.1", KAFKA_VERSION)
    assert result.exit_code == 1 and "could not fetch the jars of Kafka 0.0.1" in result.output


@pytest.mark.full
@pytest.mark.skipif(not shutil.which("mvn"), reason="Maven (mvn) is not installed")
def test_from_4_3_1_to_4_4_0(tmp_path):
    said = call("4.3.1", "4.4.0").stdout
    assert "  + errors.deadletterqueue.copy.record.enable; default: false\n" in said
    assert "  * share.version; of a new cluster: 1 -> 2\n" in said
    assert "  * TxnOffsetCommit; versions: 0 to 5 -> 0 to 6\n" in said
    assert "  + kafka.server:type=group-coordinator-metrics offset-count\n" in said
    assert "Connect sink configs: no differences" in said
    assert str(tmp_path.parents[1]) not in said  # nothing of this run


@pytest.mark.full
@pytest.mark.skipif(not shutil.which("mvn"), reason="Maven (mvn) is not installed")
def test_a_version_answers_the_same_each_time(tmp_path):
    first, second = ((tmp_path / name) for name in ("first", "second"))
    for folder in (first, second):
        folder.mkdir()
    was, now = (kafka_changes.answers(KAFKA_VERSION, folder) for folder in (first, second))
    assert {section: kafka_changes.changes(was[section], now[section]) for section in now} == {s: [] for s in now}
