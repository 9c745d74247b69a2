"""One lesson of a headless run, executed by papermill; a program of its own, started by `course.run.headless`.

Its argument is a job in JSON; it tells how far it is by lines of JSON on stdout. Its stdin is its leash: when a line
comes, because time is up or the run is interrupted, or when it closes, because the run itself was killed, this process
kills its kernel, which ends the lesson's brokers (their watchdog sees to that), and saves the notebook as far as it
came. It imports nothing of `helpers`, which would cost each lesson a second.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path

import psutil

ERROR_MARKER = "papermill-error-cell-tag"  # papermill takes cells with this tag out before it executes a notebook


def wait_for_watchdogs(logs: Path, timeout: float = 10) -> None:
    """Wait until the watchdogs of a lesson have ended its brokers, copied their logs to `logs` and deleted their data.

    A lesson that ends as it should waits for them itself; one whose kernel was killed does not. They are told from
    those of other labs by their environment.
    """
    watchdogs = []
    for process in psutil.process_iter(["cmdline"]):
        if any(Path(part).name == "supervisor.py" for part in process.info["cmdline"] or []):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("COURSE_KEEP_LOGS") == str(logs):
                    watchdogs.append(process)
    psutil.wait_procs(watchdogs, timeout)


class _Leash(threading.Thread):
    """Waits until stdin says why the lesson must stop, or closes; then kills the kernel, and any still to come."""

    reason: str | None = None
    orphaned = False

    def __init__(self):
        super().__init__(daemon=True)

    def run(self) -> None:
        """Wait, then kill."""
        line = sys.stdin.readline().strip()
        self.orphaned = not line
        self.reason = line or "the run was killed"
        pause = threading.Event()
        while True:
            for kernel in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    kernel.kill()
            pause.wait(0.2)


def main() -> None:
    """The lesson's process: execute, save, tell."""
    job = json.loads(sys.argv[1])
    lesson, folder = Path(job["lesson"]), Path(job["folder"])
    # stdout is for the messages to the run alone; what libraries print goes the way of stderr.
    tell = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    leash = _Leash()
    leash.start()
    executed = folder / "executed" / lesson.name
    try:
        result = _papermill(lesson, folder, executed, job["parameters"], leash, tell)
    except Exception as error:
        result = _failure("", type(error).__name__, str(error))
    try:
        if executed.exists():
            write_html(executed)
    except Exception as error:
        if result["outcome"] == "ok":
            result = _failure("HTML", type(error).__name__, str(error))
    if leash.orphaned:
        wait_for_watchdogs(folder / "logs")
        with contextlib.suppress(Exception):  # nobody is there to be told; a later start sweeps
            from course.leftovers import of_run

            of_run(folder / "logs")
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
        return
    tell.write(json.dumps(result) + "\n")


def _papermill(lesson: Path, folder: Path, executed: Path, parameters: dict, leash: _Leash, tell) -> dict:
    """Execute a lesson; returns the message of how it ended."""
    import papermill
    from traitlets.config import Config

    at = {"cell": 0, "index": 0}
    ends = _ends_of_kernels()

    def on_cell_execute(cell, cell_index):
        at.update(cell=at["cell"] + 1, index=cell_index)
        tell.write(json.dumps(at) + "\n")

    # Copied under a plain name: papermill takes braces in a path for parameters, and "s3://" for an address.
    copy, desk = folder / lesson.name, folder / "desk"
    copy.write_bytes(lesson.read_bytes())
    desk.mkdir()
    executed.parent.mkdir()
    try:
        papermill.execute_notebook(
            copy,
            executed,
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=120,
            cwd=desk,
            on_cell_execute=on_cell_execute,
            config=Config(KernelManager={"transport_encryption": "auto"}),  # as in course.lab.jupyter
        )
    except papermill.PapermillExecutionError as error:
        return _failure(f"In [{error.exec_count}]", error.ename, error.evalue, "\n".join(error.traceback))
    except Exception as error:  # the kernel died, by us or by itself; or the notebook cannot be read
        where = f"In [{at['cell']}]" if at["cell"] else ""
        said = f"the kernel died ({_meaning(ends[0])})" if ends else str(error)
        if executed.exists():
            came_to = f"in {where}" if where else "before its first cell"
            mark(executed, at["index"], f"{leash.reason or said.partition(' (')[0]} {came_to}")
        return _failure(where, type(error).__name__, said)
    return {"outcome": "ok"}


def _ends_of_kernels() -> list[int]:
    """A list that gets the exit status of each kernel of this process; jupyter_client asks for it, and keeps none."""
    from jupyter_client.provisioning import LocalProvisioner

    ends, poll = [], LocalProvisioner.poll

    async def remembering(provisioner):
        status = await poll(provisioner)
        if provisioner.process and status is not None:
            ends.append(status)
        return status

    LocalProvisioner.poll = remembering
    return ends


def _meaning(status: int) -> str:
    """What an exit status says of an end."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"exit status {status}: {name}" + (", as the system sends when memory is short" if name == "SIGKILL" else "")


def _failure(where: str, kind: str, said: str, details: str = "") -> dict:
    """The message of a lesson that failed: where ("In [3]" or nothing), the exception's type, text and traceback."""
    first = next(iter(said.strip().splitlines()), "")
    error = ", ".join(part for part in (where, f"{kind}: {first}" if first else kind) if part)
    return {"outcome": "failed", "error": error, "kind": kind, "details": details, "where": where}


def mark(executed: Path, index: int, what: str) -> None:
    """Say on top of a notebook, and where it was, why it goes no further; papermill does so for exceptions only."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    style = 'style="color:red; font-size:2em;"'
    top = f'<span {style}>{what[:1].upper() + what[1:]}: <a href="#stopped-here">here</a>.</span>'
    here = f'<span id="stopped-here" {style}>Stopped in the next cell; the cells after it were not run.</span>'
    for position, text in ((index, here), (0, top)):
        notebook.cells.insert(position, nbformat.v4.new_markdown_cell(text, metadata={"tags": [ERROR_MARKER]}))
    nbformat.write(notebook, executed)


# nbconvert's own page loads scripts from elsewhere, which no lesson needs, drops a picture's alternative text, and is
# always light.
PAGE = """
{%- extends "lab/index.html.j2" -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}
{{ resources.include_css("static/theme-dark.css")
   | replace("<style", "<style media='(prefers-color-scheme: dark)'") }}
{%- endblock -%}
{%- block data_png scoped -%}
{{ super() | replace("<img ", '<img alt="' ~ (output | get_metadata("alt", "image/png") or "") | escape_html ~ '" ') }}
{%- endblock -%}
"""


def write_html(executed: Path) -> None:
    """Write a notebook as HTML, beside it; what links to another lesson leads to its page."""
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(extra_loaders=[DictLoader({"page.html.j2": PAGE})], template_file="page.html.j2")
    page, _ = exporter.from_filename(str(executed))
    page = re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.html', page)
    executed.with_suffix(".html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
