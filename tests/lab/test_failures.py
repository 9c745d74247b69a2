"""What goes wrong gets one clear sentence, and the next try works."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import trustme

from helpers import Cluster, LabError
from helpers.kafka import broker, cache, download, embedded
from helpers.kafka.broker import Broker, choose_nodes
from helpers.kafka.cache import Jar
from helpers.paths import COURSE
from helpers.processes import run_folder

WARM = cache.cache_folder()
NOWHERE = "http://127.0.0.1:9/maven"  # nobody listens on the discard port
MESSAGE = b"not very much of a jar, but it has a hash"
SMALL = Jar("org/example/small/1.0/small-1.0.jar", hashlib.sha256(MESSAGE).hexdigest(), len(MESSAGE))


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """Nothing of this machine's network settings, and no way to the real repository."""
    for name in list(os.environ):
        if name.startswith("COURSE_") or name.lower().endswith("_proxy") or name.endswith("CA_BUNDLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COURSE_CACHE_DIR", str(WARM))
    monkeypatch.setenv("COURSE_MAVEN_MIRROR", NOWHERE)


def lay(source, target):
    """A hard link where that is possible. Whoever damages a file must write a new one, never into this one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture
def cache_copy(tmp_path, monkeypatch):
    """A whole cache of the test's own, made of the warm one."""
    if not cache.is_ready():
        embedded.prepare_cache()
    warm_aot = cache.aot_cache()
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in ("jars", cache.storage_template().parent.name):
        shutil.copytree(WARM / name, folder / name, copy_function=lay)
    monkeypatch.setenv("COURSE_CACHE_DIR", str(folder))
    lay(warm_aot, cache.aot_cache())
    assert cache.is_ready()
    return folder


@pytest.fixture
def one_jar(tmp_path, monkeypatch):
    """An empty cache, which lacks one small jar and nothing that takes long to make."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("COURSE_CACHE_DIR", str(folder))
    monkeypatch.setattr(download, "jar_list", lambda name: [SMALL])
    return folder


def fetched() -> bool:
    return [path.read_bytes() for path in download.prepare_jars("kafka_jars.txt")] == [MESSAGE]


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def works(started: Cluster) -> bool:
    with started:
        return started.topic("orders") == "orders"


class Mirror(BaseHTTPRequestHandler):
    """Gives out the small jar, or whatever a test wants; also as a proxy, which is asked for whole addresses."""

    content = MESSAGE
    status = 200
    missing = 0  # bytes that are announced and do not come
    asked: list = []

    def do_GET(self):
        type(self).asked = [*self.asked, self.path]
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.content) + self.missing))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def mirror(context: ssl.SSLContext | None = None, **behaviour):
    handler = type("Handler", (Mirror,), behaviour)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        handler.address = f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
        try:
            yield handler
        finally:
            server.shutdown()


# -- fetching the jars --


def test_no_network(one_jar, monkeypatch):
    with pytest.raises(LabError, match=rf"could not be fetched from {NOWHERE}/ .*refused.*: check the network"):
        fetched()
    with mirror() as running:
        monkeypatch.setenv("COURSE_MAVEN_MIRROR", running.address)
        assert fetched()


def test_a_first_start_without_network_is_said_by_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(LabError, match="could not be fetched.*COURSE_MAVEN_MIRROR to a mirror; then try again"):
        Cluster()
    assert not list(tmp_path.rglob("*.jar"))


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ({"content": MESSAGE.upper()}, r"small-1.0.jar is not the file .* \(its sha256 differs\)"),
        ({"content": MESSAGE[:9], "missing": len(MESSAGE) - 9}, "could not be fetched"),
        ({"status": 404}, "could not be fetched from .*404"),
        ({"status": 503}, "could not be fetched from .*503"),
    ],
    ids=["wrong bytes", "cut off", "not there", "out of order"],
)
def test_a_mirror_that_gives_something_else(one_jar, monkeypatch, behaviour, sentence):
    with mirror(**behaviour) as broken, pytest.raises(LabError, match=sentence):
        monkeypatch.setenv("COURSE_MAVEN_MIRROR", broken.address)
        fetched()
    assert not [path for path in one_jar.rglob("*") if path.is_file() and path.name != "lock"]
    with mirror() as mended:
        monkeypatch.setenv("COURSE_MAVEN_MIRROR", mended.address)
        assert fetched()


def test_jars_come_through_a_proxy(one_jar, monkeypatch):
    with mirror() as proxy:
        monkeypatch.setenv("COURSE_MAVEN_MIRROR", "http://repository.invalid/maven")
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        assert fetched()
    assert proxy.asked == [f"http://repository.invalid/maven/{SMALL.path}"]


def test_jars_of_an_https_mirror_are_asked_for_through_https_proxy(one_jar, monkeypatch):
    connects = []
    with mirror(do_CONNECT=lambda handler: (connects.append(handler.path), handler.send_error(403))) as proxy:
        monkeypatch.setenv("COURSE_MAVEN_MIRROR", "https://repository.invalid/maven")
        monkeypatch.setenv("HTTPS_PROXY", proxy.address)
        with pytest.raises(LabError, match="could not be fetched.*set HTTPS_PROXY"):
            fetched()
    assert connects[0] == "repository.invalid:443"


def test_jars_come_from_a_mirror_with_a_ca_of_its_own(one_jar, monkeypatch, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with mirror(context) as secure:
        monkeypatch.setenv("COURSE_MAVEN_MIRROR", secure.address)
        with pytest.raises(LabError, match="CERTIFICATE_VERIFY_FAILED.*set .*REQUESTS_CA_BUNDLE"):
            fetched()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        assert fetched()


# -- the cache folder --


@pytest.mark.parametrize("damage", [lambda jar: jar[:-1] + b"?", lambda jar: jar[:1000], lambda jar: b""])
def test_a_damaged_jar_is_fetched_again(cache_copy, monkeypatch, damage):
    jar = min(cache.jar_list("kafka_jars.txt"), key=lambda jar: jar.size)
    path = cache.jars_folder() / jar.path
    whole = path.read_bytes()
    replace(path, damage(whole))
    with pytest.raises(LabError, match="could not be fetched"):
        Cluster()
    trained = []
    monkeypatch.setattr(embedded, "train", lambda: trained.append(True))
    with mirror(content=whole) as running:
        monkeypatch.setenv("COURSE_MAVEN_MIRROR", running.address)
        embedded.prepare_cache()
        assert running.asked == [f"/{jar.path}"] and trained == [True]  # Java minds the time of a jar
    assert path.read_bytes() == whole


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_for_the_cache(one_jar, small_disk, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE_DIR", str(small_disk / "cache"))
    filler = small_disk / "filler"
    with contextlib.suppress(OSError):
        filler.write_bytes(bytes(1 << 20))
    with mirror() as running:
        monkeypatch.setenv("COURSE_MAVEN_MIRROR", running.address)
        with pytest.raises(LabError, match="cannot be filled .No space left on device.: free 200 MB there"):
            fetched()
        filler.unlink()
        assert fetched()


def test_a_full_disk_for_the_brokers(small_disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(LabError, match="No space left on device|found the disk of .* full: free some space there"):
        Cluster()
    assert not list(small_disk.glob("*/run-*"))


@contextlib.contextmanager
def unwritable(folder: Path):
    """A folder that even root cannot write to."""
    if os.geteuid():
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
        return
    if subprocess.run(["chattr", "+i", folder], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this file system has no immutable folders, and root may write to all others")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


def test_a_cache_that_cannot_be_written_is_enough_when_it_is_whole(cache_copy):
    with unwritable(cache_copy):
        assert works(Cluster())


def test_an_empty_cache_folder_that_cannot_be_written(one_jar):
    one_jar.mkdir()
    with unwritable(one_jar), pytest.raises(LabError, match="cannot be filled .*: set COURSE_CACHE_DIR to anot"):
        fetched()


def test_a_file_in_place_of_the_cache_folder(one_jar):
    one_jar.touch()
    with pytest.raises(LabError, match="cannot be filled .*: set COURSE_CACHE_DIR to another folder"):
        fetched()


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[: len(good) // 2],
        lambda good: good[: len(good) // 2] + os.urandom(300_000) + good[len(good) // 2 + 300_000 :],
        lambda good: b"",
        lambda good: b"made by another Java",
    ],
    ids=["cut off", "overwritten", "empty", "another's"],
)
def test_a_bad_aot_cache_is_passed_over(cache_copy, damage):
    replace(cache.aot_cache(), damage(cache.aot_cache().read_bytes()))
    assert works(Cluster())


def test_another_java_makes_an_aot_cache_of_its_own(monkeypatch):
    before = cache.aot_cache()
    monkeypatch.setattr(cache, "JVM_FLAGS", (*cache.JVM_FLAGS, "-Xss1m"))
    assert cache.aot_cache() != before


# -- starting a broker --


def test_a_port_that_is_taken_meanwhile(monkeypatch):
    tries = []

    def first_taken(count):
        tries.append(choose_nodes(count))
        if len(tries) == 1:
            taken.bind(("127.0.0.1", tries[0][0].port))
            taken.listen()
        return tries[-1]

    monkeypatch.setattr(embedded, "choose_nodes", first_taken)
    with socket.socket() as taken:
        assert works(Cluster())
    assert len(tries) == 2


def test_no_port_is_free(monkeypatch):
    monkeypatch.setattr(broker, "PORTS", range(0))
    with pytest.raises(LabError, match="No free port was found"):
        Cluster()


def test_a_broker_that_dies_while_starting_shows_its_last_words(monkeypatch):
    good = broker.properties
    monkeypatch.setattr(
        embedded, "Broker", lambda *args: Broker(*args, lambda *a: good(*a) | {"num.io.threads": "as many as you like"})
    )
    monkeypatch.setattr(cache, "repair", lambda: False)
    with pytest.raises(LabError, match="(?s)Broker 1 ended by itself .*last lines.*ConfigException.*as many as"):
        Cluster()
    monkeypatch.undo()
    assert works(Cluster())


@pytest.mark.parametrize("start", [Cluster, embedded.train], ids=["a lesson's broker", "the training broker"])
def test_a_broker_that_is_not_ready_in_time_says_what_was_waited_for_and_what_its_log_says(
    cache_copy, monkeypatch, start
):
    cache.aot_cache().unlink()
    embedded_death = embedded.EmbeddedCluster._death

    def never_ready(cluster, *_, **__):
        log = cluster._nodes[1].log
        log.write_text("01:02 ERROR Log - the disk is read-only\n\tat java\n" + "01:03 INFO a line\n" * 20)
        raise TimeoutError("Waited 90 s for the first record; last seen: {}.")

    monkeypatch.setattr(embedded.EmbeddedCluster, "_wait_until_ready", never_ready)
    monkeypatch.setattr(embedded.EmbeddedCluster, "_death", lambda self, wait: embedded_death(self, 0))
    monkeypatch.setattr(embedded, "prepare_cache", lambda: None)
    said = "(?s)were ended: Waited 90 s for the first record.*ERROR Log - the disk is read-only.*a line"
    with pytest.raises(LabError, match=said), download._filling():
        start()


def wrapped_java(folder: Path, command: str) -> Path:
    script = folder / "java"
    script.write_text(f'#!/bin/sh\n{command}\nexec "{cache.java()}" "$@"\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("command", ["ulimit -v 300000", "ulimit -v 900000", "kill -9 $$"])
def test_too_little_memory(tmp_path, monkeypatch, command):
    java = wrapped_java(tmp_path, command)
    monkeypatch.setattr(cache, "java", lambda: java)
    with pytest.raises(LabError, match="Broker 1 (had|was killed from outside.*) too little memory: each broker takes"):
        Cluster()
    monkeypatch.undo()
    assert works(Cluster())


def test_a_heap_that_runs_full_ends_the_broker(tmp_path, monkeypatch):
    java = wrapped_java(tmp_path, "export _JAVA_OPTIONS=-Xmx12m")
    monkeypatch.setattr(cache, "java", lambda: java)
    with pytest.raises(LabError, match="had too little memory"):
        Cluster()


def test_a_workplaces_java_flags_do_not_reach_the_broker(monkeypatch):
    for name in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"):
        monkeypatch.setenv(name, "-Xmx1m -XX:+UseG1GC")
    assert works(Cluster())


def test_a_killed_watchdog(tmp_path):
    with Cluster() as running:
        psutil.Process(running._processes._watchdog.pid).kill()
        with pytest.raises(LabError, match="watchdog process is gone: run the cell that starts the cluster again"):
            running.kill(1)
    assert works(Cluster())


# -- the temp folder --


@pytest.fixture
def temp(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"kafka-course-{os.getuid()}"


def test_the_base_folder_is_the_users_own(temp):
    before = os.umask(0)
    try:
        assert run_folder.base_folder() == temp
    finally:
        os.umask(before)
    assert temp.stat().st_mode & 0o777 == 0o700


def test_a_base_folder_of_somebody_else(temp):
    temp.mkdir()
    if os.geteuid() == 0:
        os.chown(temp, 65534, -1)
    else:
        temp.chmod(0o777)
    with pytest.raises(LabError, match="belongs to somebody else: set TMPDIR to a folder of your own"):
        Cluster()


def test_a_base_folder_that_is_a_link(temp, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    temp.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LabError, match="belongs to somebody else"):
        Cluster()


def test_a_temp_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(LabError, match="No folder for the brokers' data.*set TMPDIR to another folder, which you"):
        Cluster()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "file")])
    with pytest.raises(LabError, match="No temp folder can be written to: set TMPDIR"):
        Cluster()


# -- the system --


def test_windows_is_told_where_to_go():
    code = "import sys; sys.platform = 'win32'; import helpers"
    done = subprocess.run([sys.executable, "-c", code], cwd=COURSE, capture_output=True, text=True)
    assert re.search("ImportError: The lab needs Linux or macOS: on Windows .*WSL 2 or in Docker", done.stderr)
