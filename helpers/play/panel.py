"""Panels to play with at the end of a lesson: buttons over a living cluster, and pictures of it that follow.

`play.brokers()`, `play.group()`, `play.keys()` and `play.transaction()` are the last value of a cell. With a person
before the notebook a panel appears; its brokers start with its button Start, are its own, and end with Stop, with the
kernel, or when nobody has clicked for a quarter of an hour. Without one (nbval, papermill) the cell shows a text that
says what the panel is, starts nothing, and goes on.
"""

import contextlib
import html
import queue
import threading
import time
from collections import deque

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError
from kafka.serializer import JsonSerializer

from helpers.reading import read_topic
from helpers.sandbox import own_cluster
from helpers.waiting import wait_until
from helpers.watching import somebody_is_watching

IDLE = 900  # seconds without a click after which a panel stops its brokers
CUSTOMERS = ["ann", "bob", "eve", "mia"]


def brokers() -> "Play":
    """Lesson 01: send orders to three brokers, kill or pause the leader, bring it back."""
    return _Brokers()


def group() -> "Play":
    """Lesson 02: send orders to a group of consumers; let members join and leave."""
    return _Group()


def keys() -> "Play":
    """Lesson 09: send orders by customer, and add partitions under them."""
    return _Keys()


def transaction() -> "Play":
    """Lesson 10: begin, send, commit and abort by hand, and see what both kinds of readers read."""
    return _Transaction()


class Play:
    """A panel; see the functions of this module. One of a kind runs at a time: a new one stops the earlier one."""

    title: str  #: what one plays with
    ends: str  #: what to try, a sentence
    count = 1  #: how many brokers
    acts: dict[str, str]  #: the labels of the buttons, with the names of their methods

    def __init__(self):
        self._clicks = queue.SimpleQueue()
        self._said = deque(maxlen=5)
        self._changed, self._running = threading.Event(), False
        self._buttons, self._widgets = {}, None

    @property
    def text(self) -> str:
        """What the panel is, for runs and readers without it."""
        buttons = " · ".join(["Start", *self.acts, "Stop"])
        return f"{self.title}\n{self.ends}\nA panel in JupyterLab and VS Code, where this cell is run: [ {buttons} ]"

    def __repr__(self):
        return self.text

    def _ipython_display_(self):
        from IPython.display import display

        shown = {"text/plain": self.text}
        if somebody_is_watching():
            with contextlib.suppress(ImportError):  # no widgets, no panel
                shown = self._panel()._repr_mimebundle_() | shown
        display(shown, raw=True)

    # -- what a kind of panel defines --

    def begin(self) -> None:
        """Make topics and clients on `self.cluster`."""
        raise NotImplementedError

    def look(self):
        """What is to be seen now: something that is equal while nothing changes, and a function that draws it."""
        raise NotImplementedError

    def end(self) -> None:
        """Close clients, also those of a `begin` that failed half-way."""

    # -- the panel --

    def _panel(self):
        from ipywidgets import HTML, Button, HBox, Layout, VBox

        wide = Layout(width="auto")
        self._buttons = {
            label: Button(description=label, layout=wide, disabled=label != "Start")
            for label in ("Start", *self.acts, "Stop")
        }
        for label, button in self._buttons.items():
            button.on_click(lambda _, label=label: self.click(label))
        self._buttons["Start"].button_style = "primary"
        self._news, self._picture = HTML(), HTML()
        row = HBox(list(self._buttons.values()), layout=Layout(flex_flow="row wrap"))
        about = HTML(f"<b>{html.escape(self.title)}</b><br>{html.escape(self.ends)}")
        self._widgets = VBox([about, row, self._news, self._picture])
        return self._widgets

    def click(self, label: str) -> None:
        """What a click on a button does; it comes back at once."""
        if label == "Start" and not self._running:
            self._running, self._clicks = True, queue.SimpleQueue()
            threading.Thread(target=self._run, name=f"play {type(self).__name__}", daemon=True).start()
        elif self._running:
            self._clicks.put(label)

    def _run(self) -> None:
        """The thread of the clicks: one after the other, from Start to Stop."""
        why = "Stopped; its brokers are gone."
        try:
            self._enable()
            self._say("Starting: " + ("one broker" if self.count == 1 else f"{self.count} brokers") + " …")
            with own_cluster(self.count, f"play {type(self).__name__}") as self.cluster:
                follower = threading.Thread(target=self._follow, name="play follows", daemon=True)
                try:
                    self.begin()
                    follower.start()
                    self._say("Ready.")
                    self._serve()
                except queue.Empty:
                    why = "Stopped, since nobody has clicked for a quarter of an hour."
                finally:
                    self._running = False
                    self._changed.set()
                    if follower.is_alive():
                        follower.join(20)
                    with contextlib.suppress(Exception):
                        self.end()
        except Exception as error:
            why = f"Stopped: {_short(error)}"
        finally:
            self._running = False
            self._say(why)
            self._enable("Start")

    def _serve(self) -> None:
        while True:
            self._enable(*self.acts, "Stop")
            label = self._clicks.get(timeout=IDLE)
            if label == "Stop":
                return
            self._enable("Stop")
            self._say(f"{label} …", passing=True)
            try:
                said = getattr(self, self.acts[label])()
            except Exception as error:
                if not self.cluster.alive():
                    raise
                said = f"{label}: {_short(error)}"
            self._say(said)
            self._changed.set()

    def _follow(self) -> None:
        """The thread of the pictures: looks each second, and after each click."""
        shown = None
        while self._running:
            try:
                seen, draw = self.look()
                if seen != shown:
                    self._show(draw())
                    shown = seen
            except Exception:  # brokers are away: the last picture stays until they answer again
                pass
            self._changed.wait(1)
            self._changed.clear()

    def _show(self, picture) -> None:
        from helpers.questions import picture_as_html

        self.shown = picture
        if self._widgets:
            self._picture.value = picture_as_html(picture)

    def _say(self, text: str, passing: bool = False) -> None:
        """Tell what has happened, the latest last; a `passing` line is replaced by the next."""
        if self._said and self._said[-1][1]:
            self._said.pop()
        self._said.append((text, passing))
        if self._widgets:
            self._news.value = "<br>".join(html.escape(said) for said, _ in self._said)

    def _enable(self, *labels: str) -> None:
        self.enabled = labels
        for label, button in self._buttons.items():
            button.disabled = label not in labels


def _short(error: Exception) -> str:
    text = str(error).split("\n")[0] or type(error).__name__
    return text if len(text) < 200 else text[:200] + " …"


class _Brokers(Play):
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
        self.number, self.away, self.producer = 0, None, self._new_producer()

    def _new_producer(self):
        return KafkaProducer(
            **self.cluster.connection, value_serializer=JsonSerializer(), delivery_timeout_ms=5000,
            request_timeout_ms=1000, max_block_ms=5000,
        )  # fmt: skip

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
        from helpers.pictures import capture_log, log_view, stacked, table_view
        from helpers.pictures.capture import admin_of

        with admin_of(self.cluster) as admin:
            (partition,) = admin.describe_topics([self.topic])[0]["partitions"]
        leader, in_sync = partition["leader_id"], partition["isr_nodes"]
        rows = {}
        for broker in self.cluster.brokers:
            process = self.away[1] if self.away and self.away[0] == broker else "runs"
            part = "leader" if broker == leader else "in sync" if broker in in_sync else "behind"
            rows[f"broker {broker}"] = {"process": process, "its copy": part}
        log = capture_log(self.cluster, self.topic, label=_order, timeout=3)

        def draw():
            parts = [table_view(rows, "brokers", "", keys=[*CUSTOMERS, *rows]), log_view(log, "", keys=CUSTOMERS)]
            return stacked(parts, "What the brokers are doing, and what is on the log")

        return (rows, log), draw

    def end(self) -> None:
        self.producer.close(timeout=1)


class _Group(Play):
    title = "A group of consumers that share a topic with four partitions"
    ends = "Add and remove consumers: who reads which partition, and what happens to the fifth one?"
    acts = {"Send eight orders": "send", "Add a consumer": "add", "Remove a consumer": "remove"}
    names = ("pia", "tim", "uma", "vic", "zoe")

    def begin(self) -> None:
        from helpers.pictures import OwnershipRecorder

        self.topic, self.group = self.cluster.topic("orders", partitions=4), self.cluster.group("packers")
        self.recorder = OwnershipRecorder(self.topic, 4, self.cluster)
        self.number, self.members = 0, {}
        self.producer = KafkaProducer(**self.cluster.connection, value_serializer=JsonSerializer())

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
        self.members[free[0]] = _Member(self, free[0])
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
        from dataclasses import replace

        from helpers.pictures import capture_log, log_view, stacked
        from helpers.pictures.ownership import VIEW
        from helpers.pictures.picture import Picture

        model = self.recorder.model()
        log = capture_log(self.cluster, self.topic, [self.group], label=_order, timeout=3)
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
        self.producer.close(timeout=1)


class _Member(threading.Thread):
    """A consumer of the group in a thread of its own."""

    def __init__(self, play: _Group, name: str):
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


class _Keys(Play):
    title = "Four customers, and a topic with three partitions"
    ends = "Order for a customer, more than once; then add a partition, and order again: whose orders are torn apart?"
    acts = {
        **{f"{name} orders": f"order_{name}" for name in CUSTOMERS},
        "Add a partition": "add",
    }

    def begin(self) -> None:
        self.topic = self.cluster.topic("orders", partitions=3)
        self.number, self.partitions, self.places = 0, 3, {}
        self.producer = KafkaProducer(
            **self.cluster.connection, value_serializer=JsonSerializer(), metadata_max_age_ms=300
        )

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
        from helpers.pictures import capture_log, log_view

        log = capture_log(self.cluster, self.topic, label=_order, timeout=3)
        return log, lambda: log_view(log, "Which customer's orders are where", keys=CUSTOMERS)

    def end(self) -> None:
        self.producer.close(timeout=1)


class _Transaction(Play):
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
        self.number, self.producer = 0, None
        self._new_producer()

    def _new_producer(self) -> None:
        earlier, self.open = self.producer, False
        self.producer = KafkaProducer(
            **self.cluster.connection, transactional_id=self.id, value_serializer=JsonSerializer()
        )
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
        from helpers.pictures import capture_log, log_view, stacked, table_view

        log = capture_log(self.cluster, self.topic, label=_order, timeout=3)

        def draw():
            rows = {}
            for level in ("read_committed", "read_uncommitted"):
                records = read_topic(self.cluster, self.topic, level, value_deserializer=JsonSerializer(), timeout=5)
                rows[level] = {"reads the orders": ", ".join(str(r.value["order"]) for r in records) or "none"}
            parts = [log_view(log, "", keys=CUSTOMERS), table_view(rows, "readers", "", keys=[*CUSTOMERS, *rows])]
            return stacked(parts, "What is on the log, and who reads what of it")

        return log, draw

    def end(self) -> None:
        self.producer.close(timeout=1)


def _order(record) -> str:
    import json

    return f"order {json.loads(record.value)['order']}"
