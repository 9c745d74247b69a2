"""Lesson 10: a transaction by hand, and what both kinds of readers read."""

import contextlib

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.serializer import JsonSerializer

from helpers.kafka.reading import read_topic
from helpers.pictures import log_view, stacked, table_view
from helpers.play.panel import CUSTOMERS, Play


class Transaction(Play):
    """The panel of lesson 10."""

    title = "A producer with transactions, and two readers"
    ends = "Begin, send, and look who sees it; commit or abort; or begin, send, and let the producer die and come back."
    acts = {
        "Begin": "start_transaction",
        "Send": "send",
        "Commit": "commit",
        "Abort": "abort",
        "Die and come back": "come_back",
    }

    def begin(self) -> None:
        self.topic, self.id = self.cluster.topic("orders"), self.cluster.transactional_id("payer")
        self.number = 0
        self.producer: KafkaProducer | None = None
        self._new_producer()

    def _new_producer(self) -> None:
        earlier, self.open = self.producer, False
        self.producer = self.new_producer(transactional_id=self.id)
        self.producer.init_transactions()
        if earlier:  # fenced now: whatever it still does has no effect
            with contextlib.suppress(Exception):
                earlier.close(timeout=0)

    def start_transaction(self) -> str:
        self.producer.begin_transaction()
        self.open = True
        return "begin_transaction(): the broker does not hear of it before the first record."

    def send(self) -> str:
        if not self.open:
            return "A transactional producer sends within a transaction only: begin one."
        self.number += 1
        customer = CUSTOMERS[self.number % len(CUSTOMERS)]
        future = self.producer.send(self.topic, {"order": self.number}, key=customer.encode())
        self.producer.flush(10)
        return (
            f"Order {self.number}: acknowledged, offset {future.get(timeout=10).offset}; nobody knows yet if it counts."
        )

    def commit(self) -> str:
        return self._finish("commit_transaction", "its orders count")

    def abort(self) -> str:
        return self._finish("abort_transaction", "its orders are on the log, and do not count")

    def _finish(self, how: str, so: str) -> str:
        if not self.open:
            return "There is no transaction to end: begin one."
        try:
            getattr(self.producer, how)()
        except KafkaError as error:  # e.g. open for longer than the coordinator waits
            self._new_producer()
            return f"{how}(): {type(error).__name__}. The transaction was aborted; here is a new producer with its id."
        self.open = False
        return f"{how}(): {so}."

    def come_back(self) -> str:
        left = "The transaction that it left open was aborted." if self.open else "It had left no transaction open."
        self._new_producer()
        return f"A new producer with the same transactional id: init_transactions() fences the old one. {left}"

    def look(self):
        log = self.read_log()

        def draw():
            rows = {}
            for level in ("read_committed", "read_uncommitted"):
                records = read_topic(self.cluster, self.topic, level, value_deserializer=JsonSerializer(), timeout=5)
                rows[level] = {"reads the orders": ", ".join(str(r.value["order"]) for r in records) or "none"}
            parts = [log_view(log, "", keys=CUSTOMERS), table_view(rows, "readers", "", keys=[*CUSTOMERS, *rows])]
            return stacked(parts, "What is on the log, and who reads what of it")

        return log, draw
