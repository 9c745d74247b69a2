"""Lessons in JupyterLab, as HTML and as slides, in a real browser: what a learner sees and does there.

One JupyterLab and one browser for the whole file. COURSE_SCREENSHOTS=FOLDER keeps pictures of the browser's window.
"""

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
from pathlib import Path

import pytest
from nbconvert import HTMLExporter
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from exercises.frame import progress
from exercises.lesson_01 import q1, q2, q3, q4
from helpers import wait_until
from helpers.pictures import Film
from tests.lab.each_lesson import each_lesson
from tests.owners import environment, left_over, processes_of
from tools.lessons import LESSONS, NOTEBOOKS, code_cells, read

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Debian's chromium and chromium-driver are not installed"),
]
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,1000",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
PANEL = "window.jupyterapp.shell.currentWidget"
CELLS = f"{PANEL}.content.widgets"
TEACHING = (NOTEBOOKS.parent / "docs" / "teaching.md").read_text()
every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(240)
    yield driver
    driver.quit()


class JupyterLab:
    """`python -m helpers lab` on copies in a temp folder, with a temp folder of its own, so that what it leaves is
    seen; and a browser before it."""

    def __init__(self, browser, folder: Path):
        self.browser, self.work = browser, folder / "work"
        self.temp = Path(tempfile.mkdtemp(prefix="browser-"))
        self.temp.chmod(0o755)  # as root, PostgreSQL runs as somebody else, who has to get there
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        # All cells in the page at once, not as one comes to them: else each scroll takes seconds.
        settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
        settings.mkdir(parents=True)
        (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
        variables = environment(self.temp) | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
        command = [sys.executable, "-m", "helpers", "lab", "--dir", self.work, "--no-browser", "--allow-root"]
        with open(folder / "lab.log", "w") as log:
            # `exposeAppInBrowser` gives scripts of this test the application object
            self.process = subprocess.Popen(
                [*command, f"--port={port}", "--IdentityProvider.token=test", "--LabApp.expose_app_in_browser=True"],
                stdout=log, stderr=log, env=variables,
            )  # fmt: skip
        wait_until(lambda: self.api("GET", "status"), "JupyterLab", timeout=90, pause=0.2, retry=(OSError,))

    def api(self, method: str, path: str):
        request = urllib.request.Request(
            f"{self.address}/api/{path}", method=method, headers={"Authorization": "token test"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or "1")

    def open(self, path: Path) -> None:
        """Open a lesson, and nothing else, with a kernel."""
        self.browser.get(f"{self.address}/lab/tree/{path.name}?token=test&reset")
        kernel = f"{PANEL}?.sessionContext?.session?.kernel"
        ready = f"return {kernel}?.status == 'idle' && {PANEL}.context.isReady && {CELLS}.length > 9"
        wait_until(lambda: self.script(f"try {{ {ready} }} catch (e) {{ return false }}"), "the lesson", 90, 0.3)
        attached = f"return {CELLS}.every(c => c.isAttached)"
        wait_until(lambda: self.script(attached), "all cells to be in the page", 60, 0.1)

    def close(self) -> list:
        """Save, end the kernel, and give what is left over of its brokers."""
        assert self.command("docmanager:save") == "ok"
        for session in self.api("GET", "sessions"):
            self.api("DELETE", f"sessions/{session['id']}")
        self.browser.get("about:blank")
        return self.left_over()

    def left_over(self) -> list:
        """What there is of brokers and their folders, once there is nothing or after 20 seconds."""
        try:
            wait_until(lambda: not left_over(self.temp), "nothing to be left", timeout=20, pause=0.2)
        except TimeoutError:
            return left_over(self.temp)
        return []

    def script(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def command(self, name: str, **arguments) -> str:
        """Run a command of JupyterLab and wait until it is done."""
        return self.browser.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "window.jupyterapp.commands.execute(arguments[0], arguments[1])"
            ".then(() => done('ok'), e => done(String(e)))",
            name,
            arguments,
        )

    def theme(self, name: str) -> None:
        self.command("apputils:change-theme", theme=f"JupyterLab {name}")
        light = "return document.body.dataset.jpThemeLight"
        wait_until(lambda: self.script(light) == ("false" if name == "Dark" else "true"), f"the theme {name}", 20, 0.1)

    def outputs(self) -> list:
        """The outputs of all code cells, with their indices."""
        return self.script(f"return {CELLS}.map(c => c.model.type == 'code' ? c.model.outputs.toJSON() : [])")

    def text(self, index: int) -> str:
        """What a cell shows, as text: what is in the page, not in the model."""
        return self.script(f"return {CELLS}[arguments[0]].outputArea.node.innerText", index)

    def tagged(self, tag: str) -> int:
        (index,) = self.script(
            f"return {CELLS}.map((c, i) => (c.model.getMetadata('tags') ?? []).includes(arguments[0]) ? i : -1)"
            ".filter(i => i >= 0)",
            tag,
        )
        return index

    def containing(self, text: str) -> int:
        """The first code cell whose source has this text."""
        return self.script(
            f"return {CELLS}.findIndex(c => c.model.type == 'code' "
            "&& c.model.sharedModel.getSource().includes(arguments[0]))",
            text,
        )

    def show(self, index: int):
        """Scroll to a cell, make it the active one, and give its node."""
        self.script(f"{PANEL}.content.activeCellIndex = arguments[0]", index)
        self.browser.execute_async_script(
            f"const done = arguments[1]; {PANEL}.content.scrollToItem(arguments[0], 'start').then(() => done(), done)",
            index,
        )
        attached = f"return {CELLS}[arguments[0]].isAttached && {CELLS}[arguments[0]].node.isConnected"
        wait_until(lambda: self.script(attached, index), f"cell {index} to be shown", 20, 0.05)
        return self.script(f"return {CELLS}[arguments[0]].node", index)

    def type(self, index: int, text: str) -> None:
        """Select all in a cell's editor, and type over it."""
        editor = self.show(index).find_element(By.CSS_SELECTOR, ".cm-content")
        editor.click()
        ActionChains(self.browser).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
        self.browser.execute_cdp_cmd("Input.insertText", {"text": text})  # as an input method does: no auto-indent
        source = f"return {CELLS}[arguments[0]].model.sharedModel.getSource()"
        wait_until(lambda: self.script(source, index) == text, "the text to be in the cell", 10, 0.05)

    def run(self, index: int, timeout: float = 90) -> str:
        """Run a cell with the keyboard, wait until it is done, and give what it shows."""
        count = f"return {CELLS}[arguments[0]].model.executionCount"
        state = f"return {CELLS}[arguments[0]].model.executionState"
        before, node = self.script(count, index), self.show(index)
        if "code" in node.get_attribute("class").lower():
            node.find_element(By.CSS_SELECTOR, ".jp-InputPrompt").click()
        ActionChains(self.browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()

        def done():
            return self.script(count, index) not in (None, before) and self.script(state, index) == "idle"

        wait_until(done, f"cell {index} to have run", timeout, 0.05)
        return self.text(index)

    def run_set_up(self) -> None:
        """Run the cells that the questions need."""
        kernel = f"{PANEL}.sessionContext.session.kernel"
        codes = self.script(
            f"return {CELLS}.filter(c => (c.model.getMetadata('tags') ?? []).includes('setup')"
            " && !(c.model.getMetadata('tags') ?? []).includes('harms-brokers'))"
            ".map(c => c.model.sharedModel.getSource())"
        )
        for code in codes:
            said = self.browser.execute_async_script(
                f"const done = arguments[1]; {kernel}.requestExecute({{code: arguments[0]}}).done"
                ".then(reply => done(reply.content.status))",
                code,
            )
            assert said == "ok", code

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("COURSE_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    lab = JupyterLab(browser, tmp_path_factory.mktemp("lab"))
    yield lab
    lab.process.terminate()
    lab.process.wait(30)
    shutil.rmtree(lab.temp, ignore_errors=True)


def pictures(outputs) -> int:
    return sum("image/png" in output.get("data", {}) for cell in outputs for output in cell)


LOOK_AT_PICTURES = """
const done = arguments[arguments.length - 1], odd = [];
(async () => {
  for (const image of document.querySelectorAll('.jp-OutputArea .jp-RenderedImage img')) {
    image.scrollIntoView();
    await image.decode();
    if (image.naturalWidth < 100 || image.clientWidth < 100) odd.push(image.outerHTML.slice(0, 100));
  }
  done([document.querySelectorAll('.jp-OutputArea .jp-RenderedImage img').length, odd]);
})().catch(error => done([0, [String(error)]]));
"""


def assert_all_pictures_shown(lab, count: int) -> None:
    """Scroll through all pictures: each can be decoded, and is wide enough to be read."""
    assert lab.browser.execute_async_script(LOOK_AT_PICTURES) == [count, []]


def move_slider(lab, index: int) -> None:
    """The picture above a slider changes when the slider is moved by the keyboard, and comes back."""
    source = f"return {CELLS}[arguments[0]].node.querySelector('.jp-RenderedImage img').src"
    node, last = lab.show(index), lab.script(source, index)
    handle = wait_until(lambda: node.find_elements(By.CSS_SELECTOR, ".noUi-handle"), "the slider", 20, 0.1)[0]
    for key, same in ((Keys.ARROW_LEFT, False), (Keys.ARROW_RIGHT, True)):
        handle.send_keys(key)
        wait_until(lambda same=same: (lab.script(source, index) == last) == same, "the picture to follow", 20, 0.05)


@each_lesson(in_ci="01 03 08")
def test_run_all(path, lab):
    """No error, all pictures in both themes, sliders that move them, and nothing left when the kernel has ended."""
    lab.open(path)
    assert lab.command("notebook:run-all-cells") == "ok"
    got = lab.outputs()
    assert not [o for cell in got for o in cell if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert pictures(got) == pictures(cell.outputs for cell in code_cells(read(path)))
    for theme in ("Light", "Dark"):
        lab.theme(theme)
        assert_all_pictures_shown(lab, pictures(got))
        lab.screenshot(f"{path.stem}-{theme}")
    sliders = [i for i, cell in enumerate(got) if any("widget-view" in str(o.get("data", {}).keys()) for o in cell)]
    films = [i for i in sliders if pictures([got[i]])]
    assert films or not has_films(path)
    for index in films[:2]:
        move_slider(lab, index)
    assert lab.close() == []


def has_films(path: Path) -> bool:
    return any(f"{word}(" in cell.source for cell in code_cells(read(path)) for word in (Film.__name__, ".film"))


COMMIT_FIRST = "consumer.commit()\n        pack(record.value)"
WRONG = {
    q1: (q1.changed('auto_offset_reset="earliest"', 'auto_offset_reset="latest"'), "auto_offset_reset"),
    q2: ("def place_order(producer, topic, order):\n    return producer.send(topic, order)", "buffer only"),
    q3: (q3.answer.replace("pack(record.value)\n        consumer.commit()", COMMIT_FIRST), "commit came before"),
    q4: (q4.changed(", key=record.key", ""), "key"),
}


def test_answers_typed_into_the_cells_are_judged(lab):
    """Of the first lesson each question: as it is, a wrong answer, a right one, each with its message; and kept."""
    lab.open(LESSONS[0])
    lab.run_set_up()
    lab.run(lab.containing("import q1, q2, q3, q4"))
    for question, (wrong, cause) in WRONG.items():
        cell, check = lab.tagged(f"question-{question.name}"), lab.tagged(f"check-{question.name}")
        lab.run(cell)
        assert f"{question.name}: not started yet" in lab.run(check)
        lab.type(cell, wrong)
        lab.run(cell)
        said = lab.run(check)
        assert f"{question.name}: not yet right" in said and cause in said, said
        lab.screenshot(f"{question.name}-wrong")
        lab.type(cell, question.answer)
        lab.run(cell)
        said = lab.run(check)
        assert f"{question.name}: right" in said and question.why.replace("`", "") in said, said
    lab.screenshot("q4-right")
    assert "Lesson 01: 4 of 4 questions right (q1, q2, q3, q4)" in lab.run(lab.containing("q1.progress()"))
    assert lab.close() == []
    kept, damaged = progress.read(lab.work / progress.FILE)
    assert not damaged
    assert {name: kept["lesson_01", name] for name in ("q1", "q2", "q3", "q4")} == dict.fromkeys(
        ("q1", "q2", "q3", "q4"), progress.Tally(tries=2, right=True)
    )
    answers = [cell.source for cell in read(lab.work / LESSONS[0].name).cells]
    assert all(question.answer in answers for question in WRONG), "the answers were not saved"


def test_interrupted_and_restarted_in_the_middle(lab):
    """An interrupt leaves the brokers alone, a restart ends them all, and the lesson can be begun anew."""
    lab.open(LESSONS[0])
    lab.run_set_up()
    lab.run(lab.containing("trio = Cluster(brokers=3)"))
    there = {process.pid for process in processes_of(lab.temp)}
    assert len(there) >= 4, "the brokers do not run"
    cell = lab.containing("received = take(consumer, orders)")
    lab.type(cell, "while True:\n    pass")
    lab.script(f"{PANEL}.content.activeCellIndex = arguments[0]", cell)
    lab.script("window.jupyterapp.commands.execute('notebook:run-cell')")
    kernel = f"{PANEL}.sessionContext.session.kernel"
    wait_until(lambda: lab.script(f"return {kernel}.status") == "busy", "the loop to run", 20, 0.05)
    assert lab.command("notebook:interrupt-kernel") == "ok"
    wait_until(lambda: lab.script(f"return {kernel}.status") == "idle", "the interrupt", 30, 0.05)
    assert "KeyboardInterrupt" in lab.text(cell)
    assert {process.pid for process in processes_of(lab.temp)} >= there, "the interrupt has harmed the brokers"
    lab.type(cell, "print(cluster, trio)")
    assert lab.run(cell).count("Apache Kafka, ready") == 2
    lab.browser.execute_async_script(f"{kernel}.restart().then(arguments[0])")
    assert lab.left_over() == []
    wait_until(lambda: lab.script(f"return {kernel}.status") == "idle", "the kernel", 60, 0.1)
    lab.run_set_up()
    lab.type(cell, "print(cluster)")
    assert "Apache Kafka, ready" in lab.run(cell)
    lab.script(f"{PANEL}.context.model.dirty = false")
    assert lab.close() == []


def test_a_panel_to_play_with(lab):
    """Its buttons work on a living cluster, its picture follows, and a restarted kernel leaves nothing of it."""
    (path,) = [path for path in LESSONS if path.name.startswith("09")]
    lab.open(path)
    cell = lab.tagged("play")
    lab.run(cell)

    def click(label: str, said: str) -> None:
        (button,) = [b for b in lab.show(cell).find_elements(By.TAG_NAME, "button") if b.text == label]
        wait_until(button.is_enabled, f"{label} to be there", 60, 0.05)
        button.click()
        wait_until(lambda: said in lab.text(cell), said, 60, 0.1)

    def alternative() -> str:
        return lab.script(f"return {CELLS}[arguments[0]].node.querySelector('img')?.alt ?? ''", cell)

    click("Start", "Ready.")
    click("eve orders", "Order 1 of eve: partition 2, offset 0.")
    click("Add a partition", "The topic has 4 partitions now.")
    click("eve orders", "Until now eve's orders went to partition 2!")
    wait_until(lambda: "partition 0: 0 eve: order 2" in alternative(), "the picture to follow", 20, 0.1)
    for theme in ("Dark", "Light"):
        lab.theme(theme)
        lab.screenshot(f"play-{theme}")
    assert processes_of(lab.temp)
    lab.browser.execute_async_script(f"{PANEL}.sessionContext.session.kernel.restart().then(arguments[0])")
    assert lab.left_over() == []
    assert lab.close() == []


@every_lesson
def test_as_html_all_pictures_are_there_without_a_kernel(path, browser, tmp_path):
    """As `jupyter nbconvert --to html` renders it, from a folder without anything else."""
    lesson = read(path)
    expected = pictures(cell.outputs for cell in code_cells(lesson))
    for theme in ("light", "dark"):
        page, _ = HTMLExporter(theme=theme).from_notebook_node(lesson)
        (tmp_path / f"{theme}.html").write_text(page)
    with served(tmp_path) as address:
        for theme in ("light", "dark"):
            browser.get(f"{address}/{theme}.html")
            images = "return [...document.querySelectorAll('.jp-OutputArea img')].map(i => [i.naturalWidth, i.alt])"
            shown = browser.execute_script(images)
            assert len(shown) == expected and all(width > 100 for width, _ in shown)
            assert not browser.execute_script("return document.body.innerText.includes('Error displaying widget')")


@pytest.fixture(scope="module")
def slide_show(tmp_path_factory):
    """A folder with copies of what the pages of slides take from the network, as the teacher's guide says."""
    folder = tmp_path_factory.mktemp("slides")
    packages = re.search(r"`npm pack (.*?)`", TEACHING, re.S)[1].split()
    subprocess.run(["npm", "pack", "--silent", *packages], cwd=folder, check=True, timeout=120)
    for archive in folder.glob("*.tgz"):
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        (folder / "package").rename(folder / archive.name.rpartition("-")[0])
    return folder


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed, and the slides need reveal.js")
@every_lesson
def test_as_slides_all_is_there_and_fits(path, browser, slide_show):
    """By the command of the teacher's guide: each cell is on a slide, each line of code and each picture is seen."""
    command = re.search(r"    jupyter (nbconvert --to slides .*?)\n\n", TEACHING, re.S)[1].replace("\\\n", " ").split()
    command[command.index("notebooks/01_producer_consumer.ipynb")] = str(path)
    command[command.index("--output-dir") + 1] = str(slide_show)
    copies = re.findall(r"`(--SlidesExporter.[^`]*)`", TEACHING)
    transition = "--SlidesExporter.reveal_transition=none"
    subprocess.run([sys.executable, "-m", "jupyter", *command, *copies, transition], check=True, timeout=120)
    lesson = read(path)
    with served(slide_show) as address:
        browser.get(f"{address}/{path.stem}.slides.html")
        wait_until(lambda: browser.execute_async_script(REVEAL), "the slides", 30, 0.1)
        slides = browser.execute_script(LOOK_AT_SLIDES)
    assert sum(slide["cells"] for slide in slides) == len(lesson.cells)
    images = [width for slide in slides for width in slide["images"]]
    assert len(images) == pictures(cell.outputs for cell in code_cells(lesson)) and all(width > 100 for width in images)
    assert not [line for slide in slides for line in slide["too wide"]]
    height = int(re.search(r"reveal_height=(\d+)", TEACHING)[1])
    # A tenth more, for machines with other fonts. Where a single cell is higher, the slide scrolls.
    assert not [s["begins"] for s in slides if s["cells"] > 1 and s["height"] > 1.1 * height]


REVEAL = """
const done = arguments[0];
require(["reveal.js/dist/reveal.js"], reveal => { window.Reveal = reveal; done(reveal.isReady()); }, () => done(false));
"""
LOOK_AT_SLIDES = """
return Reveal.getSlides().map(slide => {
    const place = Reveal.getIndices(slide);
    Reveal.slide(place.h, place.v, 999);
    return {
        "cells": slide.querySelectorAll(".jp-Cell").length,
        "images": [...slide.querySelectorAll(".jp-OutputArea img")].map(image => image.naturalWidth),
        "too wide": [...slide.querySelectorAll("pre")].filter(code => code.scrollWidth > code.clientWidth)
            .map(code => code.innerText.slice(0, 200)),
        "height": slide.scrollHeight,
        "begins": slide.innerText.slice(0, 60),
    };
});
"""


@contextlib.contextmanager
def served(folder: Path):
    """The address at which a folder is served."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
