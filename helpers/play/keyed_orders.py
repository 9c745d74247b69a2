"""Lesson 09: keys and partitions, and partitions added under them."""

from kafka import KafkaAdminClient

from helpers.pictures import log_view
from helpers.play.panel import CUSTOMERS, Play
from helpers.waiting import wait_until


class Keys(Play):
    """The panel of lesson 09."""

    title = "Four customers, and a topic with three partitions"
    ends = "Order for a customer, more than once; then add a partition, and order again: whose orders are torn apart?"
    acts = {
        **{f"{name} orders": f"order_{name}" for name in CUSTOMERS},
        "Add a partition": "add",
    }

    def begin(self) -> None:
        self.topic = self.cluster.topic("orders", partitions=3)
        self.number, self.partitions, self.places = 0, 3, {}
        self.producer = self.new_producer(metadata_max_age_ms=300)

    def __getattr__(self, name: str):
        if name.startswith("order_"):
            return lambda: self.order(name.removeprefix("order_"))
        raise AttributeError(name)

    def order(self, customer: str) -> str:
        """Send a customer's next order."""
        self.number += 1
        sent = self.producer.send(self.topic, {"order": self.number}, key=customer.encode()).get(timeout=10)
        partition = sent.topic_partition.partition
        before = self.places.setdefault(customer, partition)
        self.places[customer] = partition
        torn = f" Until now {customer}'s orders went to partition {before}!" if before != partition else ""
        return f"Order {self.number} of {customer}: partition {partition}, offset {sent.offset}.{torn}"

    def add(self) -> str:
        """Add a partition to the topic, and wait until the producer knows."""
        if self.partitions >= 8:
            return "Eight partitions are enough to see it. (Kafka never takes one away again.)"
        with KafkaAdminClient(**self.cluster.connection) as admin:
            admin.create_partitions({self.topic: self.partitions + 1})
        self.partitions += 1
        wait_until(lambda: len(self.producer.partitions_for(self.topic)) == self.partitions, "the producer to know", 20)
        return f"The topic has {self.partitions} partitions now. What is on the log stays where it is."

    def look(self):
        log = self.read_log()
        return log, lambda: log_view(log, "Which customer's orders are where", keys=CUSTOMERS)
