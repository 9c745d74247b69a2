"""Lessons in JupyterLab, in a real browser: Run All ends well, all pictures there, in the light and the dark theme."""

import shutil
import socket
import subprocess
import sys
import time

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from helpers import wait_until
from tests.lessons import LESSONS, code_cells, read

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Debian's chromium and chromium-driver are not installed"),
]
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,1000",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
NOTEBOOK = "window.jupyterapp.shell.currentWidget"


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path}/chromium"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(180)
    yield driver
    driver.quit()


@pytest.fixture
def jupyterlab(tmp_path):
    """`python -m helpers lab` on copies in a temp folder; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "helpers", "lab", "--dir", tmp_path / "work", "--no-browser", "--allow-root"]
    with open(tmp_path / "lab.log", "w") as log:
        # `exposeAppInBrowser` gives scripts of this test the application object
        lab = subprocess.Popen(
            [*command, f"--port={port}", "--IdentityProvider.token=test", "--LabApp.expose_app_in_browser=True"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            lab.terminate()
            lab.wait(30)


def command(browser, name: str, **arguments):
    """Run a command of JupyterLab and wait until it is done."""
    return browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "window.jupyterapp.commands.execute(arguments[0], arguments[1]).then(() => done('ok'), e => done(String(e)))",
        name,
        arguments,
    )


def outputs(browser) -> list:
    return browser.execute_script(
        f"return {NOTEBOOK}.content.widgets.filter(c => c.model.type == 'code').map(c => c.model.outputs.toJSON())"
    )


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_run_all_in_a_browser(path, browser, jupyterlab):
    def opens():
        with socket.create_connection(("127.0.0.1", int(jupyterlab.rsplit(":", 1)[1])), timeout=1):
            return True

    wait_until(opens, "JupyterLab to listen", timeout=60, pause=0.2, retry=(OSError,))
    browser.get(f"{jupyterlab}/lab/tree/{path.name}?token=test&reset")
    ready = (
        f"return {NOTEBOOK}?.sessionContext?.session?.kernel?.status == 'idle' && {NOTEBOOK}.content.widgets.length > 9"
    )
    wait_until(lambda: browser.execute_script(f"try {{ {ready} }} catch (e) {{ return false }}"), "the lesson", 60, 0.3)
    assert command(browser, "notebook:run-all-cells") == "ok"

    got = outputs(browser)
    assert not [o for cell in got for o in cell if o["output_type"] == "error" or o.get("name") == "stderr"]
    pictures = sum("image/png" in o.get("data", {}) for cell in got for o in cell)
    assert pictures == sum("image/png" in o.get("data", {}) for c in code_cells(read(path)) for o in c.outputs)
    for theme, dark in [("JupyterLab Light", False), ("JupyterLab Dark", True)]:
        command(browser, "apputils:change-theme", theme=theme)
        deadline = time.monotonic() + 10
        while (browser.execute_script("return document.body.dataset.jpThemeLight") == "false") != dark:
            assert time.monotonic() < deadline, f"no {theme}"
        shown = "return [...document.querySelectorAll('.jp-OutputArea img')].every(i => i.naturalWidth > 100)"
        assert browser.execute_script(shown)
