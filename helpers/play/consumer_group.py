"""Lesson 02: a group of consumers that join and leave."""

import contextlib
import threading
from dataclasses import replace

from kafka import KafkaConsumer

from helpers.pictures import OwnershipRecorder, log_view, stacked
from helpers.pictures.ownership import VIEW
from helpers.pictures.picture import Picture
from helpers.play.panel import CUSTOMERS, Play
from helpers.waiting import wait_until


class Group(Play):
    """The panel of lesson 02."""

    title = "A group of consumers that share a topic with four partitions"
    ends = "Add and remove consumers: who reads which partition, and what happens to the fifth one?"
    acts = {"Send eight orders": "send", "Add a consumer": "add", "Remove a consumer": "remove"}
    names = ("pia", "tim", "uma", "vic", "zoe")

    def begin(self) -> None:
        self.topic, self.group = self.cluster.topic("orders", partitions=4), self.cluster.group("packers")
        self.recorder = OwnershipRecorder(self.topic, 4, self.cluster)
        self.number, self.members = 0, {}
        self.producer = self.new_producer()

    def send(self) -> str:
        before = self.number
        for self.number in range(before + 1, before + 9):  # two orders to each partition
            key = CUSTOMERS[self.number % len(CUSTOMERS)].encode()
            self.producer.send(self.topic, {"order": self.number}, key=key, partition=self.number % 4)
        self.producer.flush(10)
        return f"Orders {before + 1} to {self.number} are on the log."

    def add(self) -> str:
        free = [name for name in self.names if name not in self.members]
        if not free:
            return "Five consumers on four partitions are enough: one of them has nothing to do already."
        self.members[free[0]] = Member(self, free[0])
        self._settle(f"+ {free[0]}")
        return f"{free[0]} has joined. Partitions of {self._owners()}."

    def remove(self) -> str:
        if not self.members:
            return "There is no consumer to remove."
        name, member = next(iter(self.members.items()))
        member.leave()
        del self.members[name]
        self._settle(f"− {name}")
        return f"{name} has left. " + (f"Partitions of {self._owners()}." if self.members else "Nobody reads.")

    def _settle(self, moment: str) -> None:
        """Wait until each partition has an owner, and none more than another by two."""
        at_once = min(len(self.members), 4)

        def settled():
            owners = [name for names in self._now().values() for name in names]
            shares = [owners.count(name) for name in set(owners)]
            return len(owners) == (4 if self.members else 0) and len(shares) == at_once

        wait_until(settled, "the group to settle", timeout=30, pause=0.05)
        self.recorder.moment(moment)

    def _now(self) -> dict:
        model = self.recorder.model()
        return model.owners(model.end)

    def _owners(self) -> str:
        owners = self._now()
        shares = {name: [str(p) for p, names in owners.items() if name in names] for name in self.members}
        return "; ".join(f"{name}: {', '.join(share) or 'none'}" for name, share in shares.items())

    def look(self):
        model = self.recorder.model()
        log = self.read_log(self.group)
        moments = model.moments[-4:]
        start = moments[0].time - 1 if moments else 0
        spans = tuple(replace(s, start=max(s.start, start)) for s in model.spans if s.end > start)
        shown = replace(model, spans=spans, moments=moments)

        def draw():
            parts = [Picture("", shown, VIEW), log_view(log, "", keys=CUSTOMERS)]
            return stacked(parts, "Who reads what, and how far the group has come")

        return (model.moments, model.owners(model.end), log), draw

    def end(self) -> None:
        for member in self.members.values():
            member.leave()
        super().end()


class Member(threading.Thread):
    """A consumer of the group in a thread of its own."""

    def __init__(self, play: Group, name: str):
        super().__init__(name=f"play {name}", daemon=True)
        self._consumer = KafkaConsumer(
            **play.cluster.connection, group_id=play.group, client_id=name, auto_offset_reset="earliest",
            heartbeat_interval_ms=100, enable_auto_commit=False,
        )  # fmt: skip
        self._consumer.subscribe([play.topic], listener=play.recorder.listener(name))
        self._consumer.partitions_for_topic(play.topic)  # before it joins: see lesson 02
        self._play, self._member, self._leaving = play, name, False
        self.start()

    def run(self) -> None:
        """Read until it is told to leave."""
        with contextlib.suppress(Exception):  # brokers that are gone
            while not self._leaving:
                if self._consumer.poll(timeout_ms=250):
                    self._consumer.commit()
        with contextlib.suppress(Exception):
            self._consumer.close(timeout_ms=2000)
        self._play.recorder.gone(self._member)

    def leave(self) -> None:
        """Leave the group; returns when it has left."""
        self._leaving = True
        self.join(10)
