"""The panels to play with: a text for programs, living brokers for a person, and nothing left of either."""

import contextlib
import html
import threading

import pytest
from jupyter_client.manager import KernelManager

from helpers import play
from helpers.play import panel as play_panel
from helpers.waiting import wait_until
from tests.owners import environment, left_over, processes_of, run_cell
from tools.lessons import LESSONS, read, tagged

KINDS = {"01": play.brokers, "02": play.group, "09": play.keys, "10": play.transaction}
PLAYED = [path for path in LESSONS if path.name[:2] in KINDS]


@pytest.mark.parametrize("path", PLAYED, ids=lambda path: path.stem)
def test_the_lesson_has_its_panel_as_a_text(path):
    (cell,) = tagged(read(path), "play")
    kind = KINDS[path.name[:2]]
    assert cell.source == f"from helpers import play\n\nplay.{kind.__name__}()"
    (output,) = cell.outputs
    assert output.data == {"text/plain": kind().text}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_its_text_names_all_buttons(kind):
    panel = kind()
    assert repr(panel) == panel.text and panel.title in panel.text and panel.ends in panel.text
    assert all(label in panel.text for label in ("Start", *panel.acts, "Stop"))
    assert all(callable(getattr(panel, method)) for method in panel.acts.values())


class Hands:
    """Clicks on a panel, and waits for what it says."""

    def __init__(self, panel):
        self.panel = panel
        self.widgets = panel._panel()

    def click(self, label: str, timeout: float = 60) -> str:
        before = list(self.panel._said)
        self.panel._buttons[label].click()

        def told():
            said = list(self.panel._said)
            return said != before and not said[-1][1] and len(self.panel.enabled) > 1

        if label == "Start":
            wait_until(lambda: len(getattr(self.panel, "enabled", ())) > 1, "Start", timeout, 0.02)
        elif label == "Stop":
            wait_until(lambda: self.panel.enabled == ("Start",), "Stop", timeout, 0.02)
        else:
            wait_until(told, label, timeout, 0.02)
        return self.panel._said[-1][0]

    def sees(self, *lines: str) -> None:
        """Wait until the picture tells these lines; the page then has the same picture."""

        def seen():
            text = str(getattr(self.panel, "shown", ""))
            return all(line in text for line in lines) or text

        wait_until(lambda: seen() is True, f"{lines}", 20, 0.05)
        wait_until(lambda: html.escape(lines[0]) in self.panel._picture.value, "the page to have it", 5, 0.05)


def test_a_beginning_that_fails_leaves_no_clients(monkeypatch):
    class Fails(play.Play):
        title, ends, acts, closed = "", "", {}, False

        def begin(self):
            raise OSError("no second client")

        def end(self):
            self.closed = True

    monkeypatch.setattr(play_panel, "own_cluster", lambda count, name: contextlib.nullcontext())
    panel = Fails()
    panel.click("Start")
    wait_until(lambda: getattr(panel, "enabled", ()) == ("Start",), "its end", 10, 0.02)
    assert panel.closed and panel._said[-1][0] == "Stopped: no second client"


def test_keys():
    hands = Hands(play.keys())
    assert hands.click("Start") == "Ready."
    hands.sees("partition 0: empty", "partition 2: empty")
    assert hands.click("eve orders") == "Order 1 of eve: partition 2, offset 0."
    hands.sees("partition 2: 0 eve: order 1")
    assert "4 partitions now" in hands.click("Add a partition")
    assert "Until now eve's orders went to partition 2!" in hands.click("eve orders")
    hands.sees("partition 0: 0 eve: order 2", "partition 3: empty")
    cluster = hands.panel.cluster
    assert "Stopped" in hands.click("Stop") and not cluster.alive()
    assert hands.click("Start") == "Ready.", "it can be started anew"
    hands.sees("partition 2: empty")
    hands.click("Stop")


@pytest.mark.full
def test_brokers():
    hands = Hands(play.brokers())
    assert hands.click("Start") == "Ready."
    assert hands.click("Send an order") == "Order 1: acknowledged, offset 0."
    said = hands.click("Kill the leader")
    assert "the leader, was killed; broker" in said
    assert "bring it back first" in hands.click("Pause the leader")
    assert "acknowledged, offset 1" in hands.click("Send an order")
    hands.sees("process killed", "order 2")
    assert "is back" in hands.click("Bring it back")
    assert "was paused; broker" in hands.click("Pause the leader")
    assert "Order 3: " in hands.click("Send an order")
    assert "is back" in hands.click("Bring it back")
    assert "All three" in hands.click("Bring it back")
    hands.click("Stop")


@pytest.mark.full
def test_group():
    hands = Hands(play.group())
    assert hands.click("Start") == "Ready."
    assert "no consumer" in hands.click("Remove a consumer")
    hands.click("Send eight orders")
    assert hands.click("Add a consumer") == "pia has joined. Partitions of pia: 0, 1, 2, 3."
    hands.sees("+ pia: partition 0 pia", "▼ packers")
    assert "play pia" in [thread.name for thread in threading.enumerate()]
    assert hands.click("Add a consumer") == "tim has joined. Partitions of pia: 0, 1; tim: 2, 3."
    for _ in range(2):
        hands.click("Add a consumer")
    assert "zoe: none" in hands.click("Add a consumer")
    assert "enough" in hands.click("Add a consumer")
    said = hands.click("Remove a consumer")
    assert said.startswith("pia has left.") and "none" not in said
    hands.sees("− pia: ")
    hands.click("Stop")


@pytest.mark.full
def test_transaction():
    hands = Hands(play.transaction())
    assert hands.click("Start") == "Ready."
    assert "begin one" in hands.click("Send") and "begin one" in hands.click("Commit")
    hands.click("Begin")
    assert "Order 1: acknowledged" in hands.click("Send")
    hands.sees("order 1 (open)", "read_committed")
    hands.click("Commit")
    hands.sees("order 1 | 1 [commit]")
    hands.click("Begin")
    hands.click("Send")
    hands.click("Abort")
    hands.sees("order 2 (aborted)", "[abort]")
    assert "Begin: " in hands.click("Begin") + hands.click("Begin")
    hands.click("Send")
    assert "was aborted" in hands.click("Die and come back")
    hands.sees("order 3 (aborted)")
    hands.click("Stop")


@pytest.mark.full
def test_in_a_kernel_nothing_is_left_of_it(tmp_path):
    """JupyterLab gets widgets, an executor the text; a kernel that is killed takes the panel's brokers with it."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=environment(tmp_path / "temp"))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(60)

    def run(code, **metadata):
        return [output["data"] for output in run_cell(client, code, **metadata)]

    try:
        assert run("from helpers import play; play.keys()") == [{"text/plain": play.keys().text}]
        (shown,) = run("panel = play.keys(); panel", cellId="abc")
        assert "application/vnd.jupyter.widget-view+json" in shown and shown["text/plain"] == play.keys().text
        assert not processes_of(tmp_path / "temp")
        run("panel.click('Start')\nimport time\nwhile 'Stop' not in panel.enabled: time.sleep(0.1)")
        assert processes_of(tmp_path / "temp")
        manager.restart_kernel(now=True)
        wait_until(lambda: not left_over(tmp_path / "temp"), "nothing to be left", 20, 0.1)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_panels_cell_can_be_run_again():
    """A module of the panel's name would take the function's place once it is imported."""
    for kind in KINDS.values():
        assert type(kind()) is type(kind())
    assert {name: getattr(play, function.__name__) for name, function in KINDS.items()} == KINDS
