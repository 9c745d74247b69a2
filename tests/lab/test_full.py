"""The long tests: every lesson with other sizes, and the first lesson on a machine that has never seen Kafka."""

import functools
import http.server
import threading

import papermill
import pytest

from helpers.kafka import cache
from tests.lab.each_lesson import each_lesson
from tools.lessons import LESSONS, code_cells, read, tagged

pytestmark = pytest.mark.full


def sizes(path, factor: int) -> dict:
    """The lesson's parameters that are whole numbers, times a factor."""
    (cell,) = tagged(read(path), "parameters")
    values = {}
    exec(cell.source, values)
    return {name: value * factor for name, value in values.items() if type(value) is int}


@each_lesson(in_ci="01 03 07 09")
def test_lesson_holds_with_ten_times_as_many_records(path, tmp_path):
    papermill.execute_notebook(
        path, tmp_path / path.name, sizes(path, 10), cwd=tmp_path, execution_timeout=120, progress_bar=False
    )


@pytest.fixture
def mirror():
    """The jars of the warm cache, served as a Maven repository."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=cache.jars_folder())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_cold_cache_leaves_the_same_outputs(tmp_path, monkeypatch, mirror):
    monkeypatch.setenv("COURSE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COURSE_MAVEN_MIRROR", mirror)
    executed = tmp_path / LESSONS[0].name
    papermill.execute_notebook(LESSONS[0], executed, cwd=tmp_path, execution_timeout=120, progress_bar=False)
    assert list((tmp_path / "cache").glob("*.aot")), "the first start makes the AOT cache"
    stored = {cell.id: cell.outputs for cell in code_cells(read(LESSONS[0]))}
    (start,) = [cell for cell in code_cells(read(executed)) if cell.source == "cluster = Cluster()"]
    assert start.outputs == stored[start.id] == []
