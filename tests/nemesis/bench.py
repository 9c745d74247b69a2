"""A run: clients at work on three brokers, and the nemesis, which harms both by the dice of a seed."""

import contextlib
import json
import random
import threading
import time
from pathlib import Path

from kafka import KafkaAdminClient, TopicPartition

from helpers import Cluster, Worker, read_topic, wait_until
from tests.nemesis import programs
from tests.nemesis.history import Notebook, merged

PARTITIONS = 4
ROLES = ("mover-0", "mover-1")
STUCK = 15  # seconds in one transaction after which a supervisor kills a mover: see `programs.tell_where_it_waits`
SAFE = {"min.insync.replicas": 2}


class Run:
    """One seed's run. `go` returns its history."""

    def __init__(self, cluster: Cluster, folder: Path, seed: int, records: int, rate: float):
        self.cluster, self.folder, self.records, self.rate = cluster, folder, records, rate
        self.dice = random.Random(seed)
        self.source = cluster.topic("source", partitions=PARTITIONS, replication=3, config=SAFE)
        self.target = cluster.topic("target", partitions=PARTITIONS, replication=3, config=SAFE)
        self.group = cluster.group("movers")
        self.notes = Notebook(folder, "nemesis")
        self.movers: dict[str, tuple[Worker, int]] = {}
        self.zombies: list[tuple[float, Worker, str]] = []  # when to wake them up
        self.awake: list[Worker] = []
        self.healer: threading.Thread | None = None
        self.harmed = False  # has anybody been, yet?
        self.ill: tuple[float, int, str] | None = None  # the one broker that is harmed: until when, which, how

    def go(self) -> list[dict]:
        """Run until all is sent and moved, harm done meanwhile; read everything in the end."""
        self.notes.note("pipeline", source=self.source, target=self.target)
        connection = self.cluster.connection
        sender = Worker(programs.send, connection, self.folder, self.source, PARTITIONS, self.records, self.rate)
        reader = Worker(programs.read, connection, self.folder, {self.target: PARTITIONS}, False)
        for role in ROLES:
            self._start(role)
        with self._watch_offsets():
            self._wait_for_work()
            due = time.monotonic()
            while sender.state == "running":
                self._supervise()
                self._heal_when_due()
                if time.monotonic() > due:
                    self._harm()
                    due = time.monotonic() + self.dice.uniform(0.3, 3)
                time.sleep(0.05)
            self._heal_when_due(now=True)
            self._drain()
        for worker in (reader, *(mover for mover, _ in self.movers.values()), *self.awake):
            worker.kill()
        if sender.state != "ended":
            raise RuntimeError(f"The sender {sender.state}: {sender.output[-2000:]}")
        both = {self.source: PARTITIONS, self.target: PARTITIONS}
        programs.read(connection, self.folder, both, True, who="final reader")
        return merged(self.folder)

    def _wait_for_work(self) -> None:
        """Harm before anybody works proves little."""

        def committed():
            return all(any("committed" in p.read_text() for p in self.folder.glob(f"{role}.*.jsonl")) for role in ROLES)

        wait_until(committed, "each mover's first transaction", 60, pause=0.1)

    def _start(self, role: str) -> None:
        number = self.movers[role][1] + 1 if role in self.movers else 1
        worker = Worker(
            programs.move, self.cluster.connection, self.folder, self.source, self.target, self.group,
            self.cluster.transactional_id(role), role, number,
        )  # fmt: skip
        self.movers[role] = worker, number

    def _supervise(self) -> None:
        """As a supervisor does: start what has ended, and kill what does not move any more."""
        for role, (worker, number) in list(self.movers.items()):
            if self._is_stuck(f"{role}.{number}"):
                worker.kill()
                self.notes.note("stuck", target=role, waits_in=programs.where_it_waits(worker.output))
            if worker.state != "running":
                self._start(role)

    def _is_stuck(self, who: str) -> bool:
        """Has it been in one transaction for long? kafka-python 3.0.12 can wait for ever when a broker has died.

        Its `Sender._maybe_send_pending_request` (producer/sender.py) expects `await_ready` to return False where the
        coordinator cannot be reached; it raises instead (net/compat.py), and the request is neither sent nor put back
        into the queue. Whoever waits for its answer waits for ever (`test_kafka_python_forgets_a_request…`).
        """
        event = self._last_event(who)
        return event["what"] in ("begins", "committing", "error") and time.monotonic() - event["t"] > STUCK

    def _last_event(self, who: str) -> dict:
        path = self.folder / f"{who}.jsonl"
        last = path.read_text().splitlines()[-1:] if path.exists() else []
        return json.loads(last[0]) if last and last[0].endswith("}") else {"what": "", "t": 0}

    def _harm(self) -> None:
        """One fault, by the dice; at most one broker at a time, or the cluster has no majority."""
        of_movers = [self._kill_mover, self._make_a_zombie]
        of_brokers = [] if self.ill else 2 * [self._kill_broker, self._pause_broker]
        # The first one is a broker's: a run that harms none, or none to which the sender is talking, proves little.
        self.dice.choice(of_movers + of_brokers if self.harmed else of_brokers)()
        self.harmed = True

    def _aim(self) -> str:
        """A role to harm: at any moment, or (two times of three) when it has a transaction open, if that is soon."""
        role, patience = self.dice.choice(ROLES), self.dice.choice([0, 2, 2])
        who = f"{role}.{self.movers[role][1]}"
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self._last_event(who)["what"] == "begins", "a transaction", patience, pause=0.01)
        return role

    def _kill_mover(self) -> None:
        role = self._aim()
        self.notes.note("fault", target=role, how="killed")
        self.movers[role][0].kill()
        self._start(role)

    def _make_a_zombie(self) -> None:
        """Paused, replaced as if it were dead, and back a while later."""
        role = self._aim()
        worker, number = self.movers[role]
        if worker.state != "running":
            return
        self.notes.note("fault", target=role, how="paused and replaced")
        worker.pause()
        self.zombies.append((time.monotonic() + self.dice.uniform(1, 4), worker, f"{role}.{number}"))
        self._start(role)

    def _kill_broker(self) -> None:
        self._harm_broker("killed", self.cluster.kill)

    def _pause_broker(self) -> None:
        self._harm_broker("paused", self.cluster.pause)

    def _harm_broker(self, how: str, harm) -> None:
        leaders = [self.cluster.leader(self.source, number) for number in range(PARTITIONS)]
        broker = self.dice.choice([1, 2, 3, *leaders] if self.harmed else leaders)
        leads = [number for number, leader in enumerate(leaders) if leader == broker]
        self.notes.note("fault", target=f"broker {broker}", how=how, leads=leads)
        harm(broker)
        self.ill = time.monotonic() + self.dice.uniform(0.5, 4), broker, how

    def _heal_when_due(self, now: bool = False) -> None:
        for zombie in list(self.zombies):
            due, worker, name = zombie
            if now or time.monotonic() > due:
                self.zombies.remove(zombie)
                if worker.state == "running":
                    self.notes.note("healed", target=name)
                    worker.resume()
                    self.awake.append(worker)
        if self.ill and not self.healer and (now or time.monotonic() > self.ill[0]):
            self.healer = threading.Thread(target=self._heal_broker, args=self.ill[1:])
            self.healer.start()  # a restart takes seconds, in which the others are harmed as well
        if self.healer and (now or not self.healer.is_alive()):
            self.healer.join(60)
            self.healer = self.ill = None

    def _heal_broker(self, broker: int, how: str) -> None:
        self.cluster.restart(broker) if how == "killed" else self.cluster.resume(broker)
        self.notes.note("healed", target=f"broker {broker}")

    def _drain(self, timeout: float = 90) -> None:
        """Wait until everything is moved, or nothing more will be; what is missing is the checker's matter."""

        def moved():
            self._supervise()
            with contextlib.suppress(Exception):  # a broker is just coming back
                sizes = [len(read_topic(self.cluster, topic)) for topic in (self.source, self.target)]
                return sizes[0] <= sizes[1]

        with contextlib.suppress(TimeoutError):
            wait_until(moved, "all records to be moved", timeout, pause=0.5)

    @contextlib.contextmanager
    def _watch_offsets(self):
        """Note the group's committed offsets, five times a second."""
        stop, notes = threading.Event(), Notebook(self.folder, "watcher")
        wanted = {self.group: [TopicPartition(self.source, number) for number in range(PARTITIONS)]}

        def watch():
            while not stop.wait(0.2):
                with contextlib.suppress(Exception), KafkaAdminClient(**self.cluster.connection) as admin:
                    while not stop.wait(0.2):
                        for tp, found in admin.list_group_offsets(wanted)[self.group].items():
                            if found.offset >= 0:
                                notes.note(
                                    "committed offset", group=self.group, partition=tp.partition, offset=found.offset
                                )

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join(10)
