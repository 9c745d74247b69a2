"""What a workplace may have set, and what must not matter: variables, letters in paths, moved folders."""

import itertools
import os
import pwd
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import psycopg
import pytest
from kafka import KafkaConsumer
from kafka import errors as kafka_errors
from sqlalchemy.engine import make_url

from course import doctor
from course.lab import jupyter
from course.run import headless
from helpers import Cluster, Database, LabError, Worker, point, read_topic, settings, waiting
from helpers.database import embedded
from helpers.kafka import broker, cache
from helpers.paths import COURSE
from helpers.processes import run_folder
from helpers.streams import start_java
from helpers.waiting import wait_until

LIBPQ = {
    "PGHOSTADDR": "127.0.0.1", "PGREQUIREAUTH": "scram-sha-256", "PGCHANNELBINDING": "require",
    "PGTARGETSESSIONATTRS": "read-only", "PGGSSENCMODE": "require", "PGREQUIREPEER": "somebody",
    "PGSSLNEGOTIATION": "direct", "PGSSLMODE": "verify-full", "PGOPTIONS": "-csearch_path=x", "PGUSER": "x",
    "PGPASSWORD": "x", "PGPORT": "1", "PGDATABASE": "x", "PGAPPNAME": "x", "PGLOADBALANCEHOSTS": "random",
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with Database(embedded=True) as server:
        yield server


@pytest.mark.parametrize("name", LIBPQ)
def test_libpqs_variables_do_not_reach_the_embedded_database(server, monkeypatch, name):
    monkeypatch.setenv(name, LIBPQ[name])
    with server._connect(5) as session:
        assert session.execute("select 1").fetchone() == (1,)
    if name not in embedded.HIDDEN:  # these a URL cannot override
        url = make_url(server.url)
        with psycopg.connect(**url.query, user=url.username, dbname=url.database) as session:
            assert session.execute("show search_path").fetchone() == ("public",)


def test_what_a_url_cannot_override_is_taken_out_of_the_environment(monkeypatch):
    for name in embedded.HIDDEN:
        monkeypatch.setenv(name, "work")
    with Database() as one, one._connect(5) as session:
        assert session.execute("select 1").fetchone() == (1,)
        assert not set(embedded.HIDDEN) & set(os.environ), "an engine of the lesson's would look for it"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_temp_folder_with_any_letter(tmp_path, locale):
    temp = tmp_path / "tü 日本 \\back"
    temp.mkdir()
    code = "from helpers import Cluster\nwith Cluster(brokers=1) as one:\n    one.topic('t')\nprint('works')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(temp), "LC_ALL": locale},
    )
    assert done.stdout == "works\n", done.stderr


def test_a_properties_file_in_latin_1_holds_every_letter():
    assert broker.escape("/tmp/tü/日/😀") == "/tmp/t\\u00fc/\\u65e5/\\ud83d\\ude00"
    assert broker.escape("a\\b=c:1") == "a\\u005cb=c:1"


def test_the_courses_own_flag_is_no_lack_of_memory():
    assert not broker.NO_MEMORY.search("-XX:+ExitOnOutOfMemoryError")
    assert broker.NO_MEMORY.search("java.lang.OutOfMemoryError: Java heap space")


def test_flags_of_a_workplace_do_not_reach_java(monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-javaagent:/opt/agent/missing.jar")
    assert doctor._Trial().java().mark == "ok"


@pytest.mark.parametrize("way", [["-c", "import helpers"], ["-m", "helpers", "run"], ["-m", "pytest", "--version"]])
def test_python_without_asserts_is_refused(way):
    if way[1] == "pytest":
        way = ["-m", "pytest", str(COURSE / "tests" / "quick" / "test_setups.py"), "-n", "0"]
    done = subprocess.run(
        [sys.executable, *way], capture_output=True, text=True, cwd=COURSE, env=os.environ | {"PYTHONOPTIMIZE": "1"}
    )
    assert done.returncode and "unset PYTHONOPTIMIZE" in done.stdout + done.stderr
    assert way[1] != "helpers" or "Traceback" not in done.stderr


def test_another_environments_aot_cache_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cache, "jar_list", lambda name: [])
    other = tmp_path / "kafka-4.4.0-0123456789abcdef.aot"
    other.touch()
    cache.aot_cache().touch()
    assert cache.repair() and other.exists() and not cache.aot_cache().exists()


def test_aot_caches_that_nobody_uses_go_after_a_month(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    old, young = tmp_path / "old.aot", tmp_path / "young.aot"
    for path, days in ((old, 31), (young, 29)):
        path.touch()
        os.utime(path, (0, time.time() - days * 86400))
    cache.drop_unused()
    assert not old.exists() and young.exists()


def test_a_folder_that_was_moved_is_told(monkeypatch, tmp_path):
    assert doctor.installed_elsewhere() == ""
    monkeypatch.setattr(doctor.paths, "COURSE", tmp_path)
    (tmp_path / "requirements.txt").write_text("click\n")
    finding = doctor.check_packages()
    assert finding.mark == "bad" and "pip install --no-deps -e ." in finding.advice


def test_kernels_of_the_lab_find_this_copy_of_the_course(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert jupyter.environment(tmp_path)["PYTHONPATH"] == f"{COURSE}{os.pathsep}elsewhere"


def test_tests_pass_whatever_a_user_has_set(tmp_path):
    set_by_user = {name: "nonsense" for names, _ in settings.VARIABLES for name in names}
    here = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "COURSE_CACHE_DIR": str(cache.cache_folder())}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"]
    some = [
        *("tests/lab/test_failures.py", "tests/lab/test_surroundings.py"),
        "-k",
        "empty or port_that or users_reaches",
    ]
    done = subprocess.run(
        [*command, *some], capture_output=True, text=True, cwd=COURSE, env=os.environ | set_by_user | here
    )
    assert done.returncode == 0, done.stdout


def test_no_variable_of_the_users_reaches_a_test():
    assert {name for name in os.environ if name.startswith("COURSE_")} <= {"COURSE_CACHE_DIR", "COURSE_MAVEN_MIRROR"}


def test_an_only_broker_that_gets_no_processor_for_a_moment_is_not_shut_out(cluster):
    cluster.pause(1)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 2, "two seconds without a heartbeat")
    cluster.resume(1)
    cluster.topic("orders")
    assert "Fencing broker" not in cluster.log_text(1)
    cluster.kill(1)
    cluster.restart(1)
    assert "broker.session.timeout.ms = 1000" in cluster.log_text(1), "it would be let in six seconds later"


def test_reading_and_groups_wait_for_a_slow_cluster(cluster, monkeypatch):
    topic = cluster.topic("orders")
    ask = KafkaConsumer.partitions_for_topic
    answers = [set(), kafka_errors.KafkaTimeoutError("slow")]

    def slow(consumer, topic):
        answer = answers.pop() if answers else ask(consumer, topic)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(KafkaConsumer, "partitions_for_topic", slow)
    assert read_topic(cluster, topic) == [] and not answers
    results = ["OK", "CoordinatorNotAvailableError"]
    monkeypatch.setattr(cluster._admin, "delete_groups", lambda groups: {groups[0]: results.pop()})
    monkeypatch.setattr(cluster, "_close_admin", lambda: None)
    clock = itertools.count(step=12)  # each answer takes twelve seconds
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    assert cluster.group("billing") == "billing" and not results


def test_a_locale_without_most_letters_does_not_matter_to_a_worker(monkeypatch):
    monkeypatch.setenv("LC_ALL", "en_US.ISO-8859-1")
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")
    monkeypatch.setenv("PYTHONUTF8", "0")

    def works():
        point("größer 日")
        print("日本 😀")

    worker = Worker(works)
    assert (worker.wait(), worker.output, worker.points) == ("ended", "日本 😀\n", ["größer 日"])


def test_a_folder_that_a_cleaner_emptied_of_its_old_files_is_not_swept(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    running = run_folder.Processes()
    wait_until((running.folder / "lock").exists, "the watchdog")
    (running.folder / "lock").unlink()
    os.utime(running.folder, (0, 0))
    assert run_folder.sweep() == [] and running.folder.exists()
    running.close()


def test_a_folder_that_was_deleted_in_use_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    started = Cluster(brokers=2)
    worker = Worker(lambda: point("never") or __import__("time").sleep(60))
    for folder in tmp_path.glob("*/run-*"):
        shutil.rmtree(folder, ignore_errors=True)
    calls = [lambda: started.log_text(1), lambda: started.kill(1), lambda: started.restart(1), lambda: worker.output]
    for call in [*calls, lambda: worker.points, worker.kill, lambda: started.topic("orders"), lambda: worker.state]:
        with pytest.raises(LabError, match="was deleted while it was in use: keep cleaners off it, and run the cell"):
            call()
    assert not started.alive()
    started.stop()


def test_alive_is_false_when_the_watchdog_was_killed(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Cluster(brokers=2) as started:
        psutil.Process(started._processes._watchdog.pid).kill()
        wait_until(lambda: not started.alive(), "the watchdog's death to be seen")
        assert repr(started) == "Apache Kafka, stopped"
    run_folder.sweep()


@pytest.fixture
def noexec(tmp_path, monkeypatch):
    """A temp folder in which nothing can be executed."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", tmp_path]).returncode:
        pytest.skip("only root can mount a file system")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_a_temp_folder_mounted_noexec(noexec, monkeypatch):
    monkeypatch.setattr("jpype.isJVMStarted", lambda: False)  # another test of this process may have started it
    with pytest.raises(LabError, match="is mounted noexec, .*lesson 03.*: set TMPDIR to a folder of yours"):
        start_java(streams=True)
    assert "noexec" in doctor._careful(doctor.check_disk).text
    with Cluster(brokers=2) as started:  # all the others work
        assert started.topic("orders", config={"compression.type": "lz4"}) == "orders"


def test_a_home_that_is_not_known_or_cannot_be_written(monkeypatch, tmp_path):
    assert cache.with_home(tmp_path) == {}
    monkeypatch.setenv("HOME", "/proc")
    here = {"HOME": str(tmp_path / ".home"), "COURSE_CACHE_DIR": str(cache.cache_folder())}
    for environment in (jupyter.environment(tmp_path), headless._environment(tmp_path)):
        assert here.items() <= environment.items() and (tmp_path / ".home").is_dir()
    monkeypatch.delenv("COURSE_CACHE_DIR", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a container's user with a number alone
    with pytest.raises(LabError, match="No home folder is known: set HOME, or COURSE_CACHE_DIR"):
        cache.cache_folder()


def test_a_users_number_is_enough_where_another_user_has_made_the_databases_template(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    embedded.prepare()
    closed = [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o444 != 0o444]
    assert not closed, "who runs a container is not always who made its image"
    subprocess.run(["chmod", "-R", "a-w", tmp_path], check=True)
    monkeypatch.setattr(embedded, "_initdb", None)
    with Database(embedded=True) as one, one._connect(5) as session:
        assert session.execute("select 1").fetchone() == (1,)
