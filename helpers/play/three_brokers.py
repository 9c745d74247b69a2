"""Lesson 01: three brokers, of which the leader is killed or paused."""

import time

from kafka.errors import KafkaError

from helpers.pictures import capture, log_view, stacked, table_view
from helpers.play.panel import CUSTOMERS, Play


class Brokers(Play):
    """The panel of lesson 01."""

    title = "Three brokers, and a topic with three copies of each order"
    ends = (
        "Send orders, kill or pause the leader, go on sending: which orders are acknowledged, and are they all still "
        "there when you bring it back?"
    )
    count = 3
    acts = {
        "Send an order": "send",
        "Kill the leader": "kill",
        "Pause the leader": "pause",
        "Bring it back": "bring_back",
    }

    def begin(self) -> None:
        self.topic = self.cluster.topic("orders", config={"min.insync.replicas": 2})
        self.number, self.producer = 0, self._new_producer()
        self.away: tuple[int, str] | None = None  # the broker that is away, and how

    def _new_producer(self):
        return self.new_producer(delivery_timeout_ms=5000, request_timeout_ms=1000, max_block_ms=5000)

    def send(self) -> str:
        self.number += 1
        customer = CUSTOMERS[self.number % len(CUSTOMERS)]
        try:
            sent = self.producer.send(self.topic, {"order": self.number}, key=customer.encode()).get(timeout=7)
            return f"Order {self.number}: acknowledged, offset {sent.offset}."
        except KafkaError as error:
            self.producer.close(timeout=0)
            self.producer = self._new_producer()
            return f"Order {self.number}: not acknowledged ({type(error).__name__}); it may be there, now or later."

    def kill(self) -> str:
        return self._take_away("killed", self.cluster.kill)

    def pause(self) -> str:
        return self._take_away("paused", self.cluster.pause)

    def _take_away(self, word, harm) -> str:
        if self.away:
            return (
                f"Broker {self.away[0]} is {self.away[1]}: bring it back first. Two of three are the majority needed."
            )
        leader, since = self.cluster.leader(self.topic), time.monotonic()
        harm(leader)
        self.away = leader, word
        new = self.cluster.wait_for_new_leader(self.topic, old=leader)
        return f"Broker {leader}, the leader, was {word}; broker {new} leads after {time.monotonic() - since:.1f} s."

    def bring_back(self) -> str:
        if not self.away:
            return "All three brokers are there."
        since, (broker, _) = time.monotonic(), self.away
        self.cluster.heal()
        self.away = None
        return f"Broker {broker} is back, and all copies are in sync after {time.monotonic() - since:.1f} s."

    def look(self):
        with capture.admin_of(self.cluster) as admin:
            (partition,) = admin.describe_topics([self.topic])[0]["partitions"]
        leader, in_sync = partition["leader_id"], partition["isr_nodes"]
        rows = {}
        for broker in self.cluster.brokers:
            process = self.away[1] if self.away and self.away[0] == broker else "runs"
            part = "leader" if broker == leader else "in sync" if broker in in_sync else "behind"
            rows[f"broker {broker}"] = {"process": process, "its copy": part}
        log = self.read_log()

        def draw():
            parts = [table_view(rows, "brokers", "", keys=[*CUSTOMERS, *rows]), log_view(log, "", keys=CUSTOMERS)]
            return stacked(parts, "What the brokers are doing, and what is on the log")

        return (rows, log), draw
