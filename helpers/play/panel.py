"""`Play`: the panel itself, its buttons, its two threads, its picture; the modules beside it say what is played."""

import contextlib
import html
import json
import queue
import threading
from collections import deque

from kafka import KafkaProducer
from kafka.serializer import JsonSerializer

from helpers.kafka.embedded import own_cluster
from helpers.notebook import somebody_is_watching
from helpers.pictures import capture_log
from helpers.pictures.log import Log
from helpers.pictures.picture import picture_as_html

IDLE = 900  # seconds without a click after which a panel stops its brokers
CUSTOMERS = ["ann", "bob", "eve", "mia"]


class Play:
    """A panel; see `helpers.play`. One of a kind runs at a time: a new one stops the earlier one."""

    title: str  #: what one plays with
    ends: str  #: what to try, a sentence
    count = 1  #: how many brokers
    acts: dict[str, str]  #: the labels of the buttons, with the names of their methods
    topic: str  #: what `begin` makes
    producer: KafkaProducer  #: likewise

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
        self.producer.close(timeout=1)

    # -- what all kinds have --

    def new_producer(self, **settings) -> KafkaProducer:
        """A producer of orders."""
        return KafkaProducer(**self.cluster.connection, value_serializer=JsonSerializer(), **settings)

    def read_log(self, *groups: str) -> Log:
        """What is on the topic, to be seen."""
        return capture_log(self.cluster, self.topic, groups, label=order_label, timeout=3)

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
            why = f"Stopped: {short(error)}"
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
                said = f"{label}: {short(error)}"
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


def short(error: Exception) -> str:
    """Return an error's first line, for the panel's news."""
    text = str(error).split("\n")[0] or type(error).__name__
    return text if len(text) < 200 else text[:200] + " …"


def order_label(record) -> str:
    """Return what a picture writes on an order's record."""
    return f"order {json.loads(record.value)['order']}"
