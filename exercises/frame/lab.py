"""`Lab`: what a judge works with."""

import contextlib
import inspect
from collections.abc import Callable

from kafka import KafkaConsumer, KafkaProducer

from exercises.frame.outcome import NoJudgement, Wrong
from exercises.frame.words import describe, explain_type, name_type
from helpers.kafka.cluster import Cluster
from helpers.kafka.reading import read_topic


class Lab:
    """What a judge works with. All that it makes is named after the question, and closed after the check.

    Clients that the learner's code leaves open stay open until the judge is done: a record that still waits in the
    buffer of a producer is not on the log yet. `close_clients` closes, and by that flushes, them earlier.
    """

    def __init__(self, question, namespace: dict, clients, afterwards: contextlib.ExitStack, own_cluster):
        self._question, self._namespace, self._clients, self._own_cluster = question, namespace, clients, own_cluster
        #: what is to be done after the check, e.g. `lab.afterwards.callback(worker.kill)`
        self.afterwards = afterwards

    @property
    def cluster(self) -> Cluster:
        """The notebook's running cluster, or the question's own one."""
        if self._own_cluster:
            cluster, what, remedy = self._own_cluster, "the cluster of this check", "Check again."
        else:
            cluster, what = self.need(self._question.cluster), f"`{self._question.cluster}`"
            remedy = "Run the cell that starts the cluster, then check again."
        if not _alive(cluster):
            raise NoJudgement(f"{what} is stopped, or its brokers are dead", "a running cluster", remedy)
        return cluster

    def need(self, name: str):
        """Something that the notebook has made before the question, by its name, e.g. `lab.need("database")`."""
        if self._namespace.get(name) is None:
            raise NoJudgement(
                f"there is no `{name}` in this notebook yet",
                f"`{name}`, as the lesson makes it",
                f"Run the cells above, the one that makes `{name}` among them, then check again.",
            )
        return self._namespace[name]

    def topic(self, name: str = "log", **settings) -> str:
        """A fresh topic: `lab.topic("orders", partitions=3)` of q1 is `q1-orders`. Settings as of `cluster.topic`."""
        return self.cluster.topic(f"{self._question.name}-{name}", **settings)

    def group(self, name: str = "group") -> str:
        """A consumer group without members or offsets."""
        return self.cluster.group(f"{self._question.name}-{name}")

    def transactional_id(self, name: str = "producer") -> str:
        """A transactional id."""
        return self.cluster.transactional_id(f"{self._question.name}-{name}")

    def producer(self, **settings) -> KafkaProducer:
        """A producer to hand to the learner's code."""
        return self._clients.add(KafkaProducer(**self.cluster.connection, **settings))

    def consumer(self, *topics: str, **settings) -> KafkaConsumer:
        """A consumer to hand to the learner's code."""
        return self._clients.add(KafkaConsumer(*topics, **self.cluster.connection, **settings))

    def records(self, topic: str, **options) -> list:
        """What is on the log now, by partition and offset; options as of `read_topic`."""
        return read_topic(self.cluster, topic, **options)

    def close_clients(self) -> None:
        """Close what is open now, as a program does that ends normally."""
        self._clients.close()

    def call(self, function: Callable, *arguments, gives: type | tuple | None = None, **keywords):
        """Run the learner's function; `Wrong` if it does not take the arguments, or gives another type than `gives`."""
        name = getattr(function, "__name__", "your function")
        try:
            inspect.signature(function).bind(*arguments, **keywords)
        except TypeError as error:
            raise Wrong(
                f"`{name}{inspect.signature(function)}` cannot be called as the check calls it: {error}",
                "the parameters of the starter cell",
                "A parameter was added, removed or moved.",
            ) from None
        except ValueError:  # a callable without a signature, e.g. of C
            pass
        result = function(*arguments, **keywords)
        lazy = inspect.isgenerator(result) or inspect.iscoroutine(result)
        if (gives is None and lazy) or (gives is not None and not isinstance(result, gives)):
            kinds = gives if isinstance(gives, tuple) else (gives,)
            raise Wrong(
                f"`{name}` gave {describe(result)}",
                "a plain call that does its work" if gives is None else " or ".join(name_type(kind) for kind in kinds),
                explain_type(result),
            )
        return result


def _alive(cluster) -> bool:
    try:
        return bool(cluster.alive())
    except Exception:
        return False
