"""Nothing is left behind, however the owner of a cluster ends; and an interrupt leaves the brokers alone."""

import contextlib
import os
import shutil
import signal
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from jupyter_client import KernelManager

from helpers.kafka import cache
from helpers.processes.run_folder import Processes, sweep
from helpers.waiting import wait_until
from tests.owners import START, environment, left_over, owner, processes_of, run_folders, watchdogs

WORKER = """
from helpers import Worker, point
def works():
    import time
    point("works")
    while True: time.sleep(1)
worker = Worker(works)
worker.wait_for("works")
"""


class Gone(str):
    """What is left over: true when it is nothing, and shown at the deadline otherwise."""

    def __bool__(self):
        return not len(self)


def wait_until_gone(temp):
    """The promise: five seconds after the end of the owner, no process and no folder of its runs is there."""
    wait_until(lambda: Gone("; ".join(left_over(temp))), "everything of the owner to be gone", timeout=5)


@pytest.fixture
def temp(tmp_path):
    """A temp folder for the owners of one test, with a space in its name."""
    folder = tmp_path / "temp folder"
    folder.mkdir()
    yield folder
    for process in processes_of(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


def start(temp, code=START, then="input()", **options):
    """An owner whose code has run, and which then waits for a line."""
    process = owner(temp, f"{code}\nprint('ready')\n{then}", **options)
    assert process.stdout.readline() == "ready\n"
    assert run_folders(temp) and watchdogs(temp)
    return process


def end(process, signal_number=None):
    if signal_number is None:
        process.communicate("\n", timeout=20)
    else:
        os.kill(process.pid, signal_number)
        process.wait(20)


# -- the end of a program --


@pytest.mark.parametrize(
    "then",
    ["input()", "raise SystemExit(1)", "1 / 0", "import os; os._exit(0)"],
    ids=["normal exit", "sys.exit", "exception", "os._exit"],
)
def test_nothing_is_left_after_an_end_of_its_own(temp, then):
    owner(temp, START + then, stderr=-3).communicate("\n", timeout=60)
    wait_until_gone(temp)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_after_a_deadly_signal(temp, number):
    deadly = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # below `nohup` nobody dies of it
    end(start(temp, deadly + START), number)
    wait_until_gone(temp)


def test_nothing_is_left_when_a_paused_broker_and_a_paused_worker_lose_their_owner(temp):
    end(start(temp, START + WORKER + "cluster.pause(1); worker.pause()"), signal.SIGKILL)
    wait_until_gone(temp)


def test_nothing_is_left_when_the_owner_dies_while_a_broker_shuts_down(temp):
    slow = "cluster.pause(1)\ncluster._nodes[1].terminate(60)"  # a stopped process does not hear the SIGTERM
    end(start(temp, then=slow), signal.SIGKILL)
    wait_until_gone(temp)


def test_a_fork_that_lives_on_keeps_nothing_alive(temp):
    forks = "import os, time\npid = os.fork()\nif not pid: time.sleep(60)\nprint(pid)\ninput()"
    process = start(temp, then=forks)
    fork = psutil.Process(int(process.stdout.readline()))
    end(process, signal.SIGKILL)
    wait_until_gone(temp)
    assert fork.is_running()
    fork.kill()


def test_a_fork_that_ends_leaves_the_brokers_alone(temp):
    forks = "import os, sys\nif not os.fork(): sys.exit()\nos.wait()\nprint(cluster.alive())\ninput()"
    process = start(temp, then=forks)
    assert process.stdout.readline() == "True\n"
    end(process)
    wait_until_gone(temp)


def test_what_a_killed_watchdog_left_is_swept_by_the_next_start(temp, monkeypatch):
    process = start(temp)
    for victim in [*watchdogs(temp), process]:
        victim.kill()
    process.wait()
    assert processes_of(temp) and run_folders(temp)  # nobody is there to end them
    end(start(temp, "from helpers.processes.run_folder import Processes\nprocesses = Processes()"))
    wait_until_gone(temp)


def test_a_sweep_leaves_alone_what_is_in_use(temp, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(temp))
    running = Processes()
    assert running.folder.stat().st_mode & 0o777 == 0o700
    wait_until((running.folder / "lock").exists, "the watchdog")
    starting = running.folder.with_name("run-starting")  # no lock yet
    starting.mkdir()
    abandoned = running.folder.with_name("run-abandoned")
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    assert sweep() == [abandoned]
    assert running.folder.exists() and starting.exists() and not abandoned.exists()
    running.close()
    assert not running.folder.exists()


# -- the end of a kernel --


@pytest.fixture
def kernel(temp):
    manager = KernelManager()
    manager.start_kernel(env=environment(temp))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(60)
    manager.run = partial(run, client)
    manager.begin = client.execute
    yield manager
    client.stop_channels()
    if manager.is_alive():
        manager.shutdown_kernel(now=True)


def run(client, code):
    """Run a cell; its error, or what it printed."""
    printed = []

    def output(message):
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            printed.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=output, timeout=90)["content"]
    return reply.get("ename") or "".join(printed)


def test_nothing_is_left_after_the_restart_of_a_kernel(kernel, temp):
    assert kernel.run(START) == ""
    kernel.restart_kernel()
    wait_until_gone(temp)


def test_nothing_is_left_after_the_kernel_or_its_process_group_is_killed(kernel, temp):
    assert kernel.run(START + WORKER) == ""
    os.killpg(os.getpgid(kernel.provisioner.pid), signal.SIGKILL)
    wait_until_gone(temp)


def test_an_interrupt_does_not_harm_the_brokers(kernel, temp):
    assert kernel.run(START) == ""
    write = "from kafka import KafkaProducer\nfrom helpers import read_topic\ntopic = cluster.topic('orders')\n"
    write += "with KafkaProducer(**cluster.connection) as producer: producer.send(topic, b'before').get(10)"
    assert kernel.run(write) == ""
    group = os.getpgid(kernel.provisioner.pid)
    for waits in ("__import__('time').sleep(60)", "cluster.wait_for_new_leader(topic, old=1, timeout=60)"):
        threading.Timer(1, os.killpg, (group, signal.SIGINT)).start()  # as Jupyter's Interrupt does
        assert kernel.run(waits) == "KeyboardInterrupt"
    assert kernel.run("print(cluster.alive(), [record.value for record in read_topic(cluster, topic)])") == (
        "True [b'before']\n"
    )
    assert kernel.run("print(cluster.topic('orders'), read_topic(cluster, topic))") == "orders []\n"


def test_an_interrupted_start_leaves_nothing_and_the_next_one_works(kernel, temp):
    assert kernel.run("from helpers import Cluster") == ""
    for seconds in (0.1, 0.4, 0.8):
        threading.Timer(seconds, kernel.interrupt_kernel).start()
        assert kernel.run("cluster = None\ncluster = Cluster()\n__import__('time').sleep(60)") == "KeyboardInterrupt"
        assert kernel.run("if cluster: cluster.stop()") == ""  # it was faster than the interrupt
        wait_until_gone(temp)
    assert kernel.run("cluster = Cluster()\nprint(cluster.topic('orders'))") == "orders\n"


# -- two at once --


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.full
def test_two_started_at_once_on_an_empty_cache_both_come_up(temp, tmp_path):
    """Through a mirror on this machine, which gives out the jars of the warm cache."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=cache.jars_folder())) as mirror:
        threading.Thread(target=mirror.serve_forever, daemon=True).start()
        env = {
            "COURSE_CACHE_DIR": str(tmp_path / "empty cache"),
            "COURSE_MAVEN_MIRROR": f"http://127.0.0.1:{mirror.server_port}",
            "NO_PROXY": "127.0.0.1",
        }
        code = START + "print(cluster.topic('orders'))\ninput()"
        both = [owner(temp, code, env=env, stderr=-3) for _ in range(2)]
        assert [process.stdout.readline() for process in both] == ["orders\n"] * 2
        mirror.shutdown()
    for process in both:
        end(process)
    wait_until_gone(temp)
    assert len(list((tmp_path / "empty cache").glob("*.aot"))) == 1
    assert not list((tmp_path / "empty cache").rglob("*.part"))
    shutil.rmtree(tmp_path / "empty cache")
