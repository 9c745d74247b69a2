"""Pictures and their texts: one model, nothing that overlaps or is cut, one output without a screen."""

import base64
import io
import itertools
import random
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import jupyter_client
import matplotlib
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text
from PIL import Image

from helpers.pictures import (
    Film,
    Mark,
    Message,
    OwnershipRecorder,
    Step,
    bars,
    batch_sizes,
    capture,
    capture_log,
    lines,
    log_view,
    ownership,
    stacked,
    swimlanes,
    table_view,
    timeline,
)
from helpers.pictures.log import Cell, Lane, Log
from helpers.pictures.ownership import Moment, Ownership, Span
from helpers.pictures.picture import Picture

ORDERS = Log("orders", (
    Lane(0, (
        Cell(0, "ann", "+1"), Cell(1, "bob", "+1"), Cell(2, "ann", "+2", "aborted"), Cell(3, kind="abort"),
        Cell(4, "bob", "null", "tombstone"), Cell(5, kind="gap", last=8), Cell(9, "ann", "+4"), Cell(10, kind="commit"),
    ), (Mark("billing", 2), Mark("mail", 2), Mark("shop", 7), Mark("ann", 11, "position")), 0, 11),
    Lane(1, (Cell(3, "eve", "+1"), Cell(4, "dan", "+5", "open"), Cell(5, None, "no key")),
         (Mark("slow", 2), Mark("last stable offset", 4, "stable"), Mark("lost", 9)), 3, 6),
    Lane(2),
))  # fmt: skip

RECORDING = Ownership(
    "orders", (0, 1, 2),
    (Span(0, "ann", 0, 2), Span(1, "ann", 0, 1), Span(1, "bob", 1.3, 5), Span(2, "bob", 1.3, 5), Span(0, "bob", 3, 5)),
    (Moment("ann alone", 0.5), Moment("bob joined", 1.31), Moment("ann killed", 1.32), Moment("bob has all", 4)), 5,
)  # fmt: skip

TALK = (
    Message("order", "stock", "CREATE_ORDER"),
    Message("stock", "payment", "RESERVE_INVENTORY"),
    Message("payment", "payment", "card is refused", "failure"),
    Message("payment", "stock", "PAYMENT_REFUSED", "failure"),
    Message("stock", "order", "RELEASE_INVENTORY", "compensation"),
    Message("payment", "order", "TOLD_ACROSS"),
)


def recording_view(model=RECORDING, title="Who reads what"):
    return Picture(title, model, ownership.VIEW)


def long_log(records):
    cells = tuple(Cell(n, f"user-{n % 13}", f"order {n} of a long list") for n in range(records))
    return Log("orders", (Lane(0, cells, (Mark("billing", records // 3), Mark("mail", records)), 0, records),))


PICTURES = {
    "log": lambda: log_view(ORDERS, "Aborted records stay on the log"),
    "several logs": lambda: log_view([ORDERS, Log("none"), Log("dlq", (Lane(0),))], "Three topics"),
    "no logs": lambda: log_view([], "Nothing"),
    "long log": lambda: log_view(long_log(1000), "A thousand records"),
    "wrapped log": lambda: log_view(long_log(40), "Forty records " * 12),
    "many partitions": lambda: log_view(Log("many", tuple(Lane(n, (Cell(0, "k"),)) for n in range(100))), "Many"),
    "many marks": lambda: log_view(
        Log("orders", (Lane(0, tuple(Cell(n, "k", str(n)) for n in range(30)),
                            tuple(Mark(f"a group with a name {n}", n) for n in range(31))),)), "Marks"),
    "non-ASCII": lambda: log_view(
        Log("bücher", (Lane(0, (Cell(0, "Ωmega", "größer ≥ 5"), Cell(1, "日本", "👍 ok"), Cell(2, "a\nb\t", "\x00")),
                            (Mark("Zoë", 1),)),)), "Schöne Bücher – 日本"),
    "dollars": lambda: log_view(
        Log("pri_ces_", (Lane(0, (Cell(0, "$x_1$", "$\\frac{1}{0"), Cell(1, "^{", "100 $ or 90 $")),
                              (Mark("$g_1$", 1),)),)), "$Costs_{$"),
    "ownership": recording_view,
    "zombie": lambda: recording_view(replace(RECORDING, spans=(*RECORDING.spans, Span(1, "zombie", 0, 5)))),
    "nobody": lambda: recording_view(Ownership("orders", (0, 1), (), (Moment("waiting", 1),), 2)),
    "no partitions": lambda: recording_view(Ownership("orders", (), (), (), 0)),
    "many rebalances": lambda: recording_view(Ownership(
        "orders", (0,), tuple(Span(0, f"member {n}", n, n + 0.9) for n in range(60)),
        tuple(Moment(f"moment {n}", n + 0.5) for n in range(0, 60, 12)), 60)),
    "swimlanes": lambda: swimlanes(TALK, ["order", "stock", "payment"], "Each step is undone"),
    "long talk": lambda: swimlanes([Message("a", "b", f"SAY_{n}" * 40) for n in range(200)], ["a", "b"], "Long"),
    "no talk": lambda: swimlanes([], [], "Silence"),
    "bars": lambda: bars({"one by one": 310.4, "in batches": 41_234, "not at all": 0}, "Batches", "records/s"),
    "no bars": lambda: bars({}, "No bars", "records/s"),
    "lines": lambda: lines({"mail": [(0, 0), (3, 1)], "billing": [(0, 1), (3, 1.5)], "late": [(1, 400), (2, 900)]},
                           "A slow group falls behind", "seconds", "records behind"),
    "many lines": lambda: lines({f"group {n}": [(0, 1), (1, n % 3)] for n in range(20)}, "Many", "s", "records"),
    "table": lambda: table_view(STATE, "the state", "Who lives where"),
    "no table": lambda: table_view({}, "the state", "Nobody"),
    "long table": lambda: table_view({f"user {n}": {f"a field {m}" * 9: "long " * 40 for m in range(9)}
                                      for n in range(99)}, "the state " * 20, "Many"),
    "stack": lambda: stacked([log_view(ORDERS, "Log"), table_view(STATE, "the state", "State")], "Log and state"),
    "no lines": lambda: lines({"none": []}, "No lines", "s", "records"),
    "timeline": lambda: timeline(STEPS, "Order 2 is tried twice", ["order 2"]),
    "crowded timeline": lambda: timeline(
        [Step(n / 1000, f"order {n % 40} " * 9, f"step {n}", "failure" if n % 3 else "forward") for n in range(400)],
        "Crowded"),
    "one moment": lambda: timeline([Step(0, "order", "placed")], "One"),
    "no timeline": lambda: timeline([], "Nothing happened"),
}  # fmt: skip

STEPS = (
    Step(0, "order 1", "placed"), Step(0, "order 2", "placed"), Step(0.1, "order 1", "packed"),
    Step(0.2, "order 2", "failed", "failure"), Step(0.9, "order 2", "packed"),
)  # fmt: skip

STATE = {"ann": {"home": "house 2", "name": "Ann"}, "bob": {"home": "house 1"}}


@pytest.fixture(params=PICTURES, scope="module")
def picture(request):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be an output of the cell
        made = PICTURES[request.param]()
        made.png  # noqa: B018
    return made


def texts_of(picture):
    """Each text that is drawn, with its box in CSS pixels."""
    sheet = picture.sheet
    sheet.canvas.draw()
    renderer = sheet.canvas.get_renderer()
    axes = sheet.figure.axes[0]
    drawn = [child for child in axes.get_children() if isinstance(child, Text) and child.get_text()]
    boxes = [text.get_window_extent(renderer).transformed(axes.transData.inverted()) for text in drawn]
    return [(text, *sorted(box.intervalx), *sorted(box.intervaly)) for text, box in zip(drawn, boxes, strict=True)]


def words_of(picture):
    return [text.get_text() for text, *_ in texts_of(picture)]


# One model


def changed(picture, other):
    return picture.png != other.png and picture.text != other.text


@pytest.mark.parametrize("at", range(8))
def test_each_cell_of_a_log_shows_in_picture_and_text(at):
    lane = ORDERS.lanes[0]
    cell = lane.cells[at]
    new = {
        "gap": replace(cell, last=7), "abort": replace(cell, kind="commit"), "commit": replace(cell, kind="abort"),
    }.get(cell.kind, replace(cell, key="new"))  # fmt: skip
    cells = (*lane.cells[:at], new, *lane.cells[at + 1 :])
    altered = replace(ORDERS, lanes=(replace(lane, cells=cells), *ORDERS.lanes[1:]))
    assert changed(log_view(ORDERS, "Log"), log_view(altered, "Log"))


@pytest.mark.parametrize("mark", [Mark("billing", 1), Mark("billing", 2, "position"), Mark("other", 2)])
def test_each_mark_shows_in_picture_and_text(mark):
    lane = ORDERS.lanes[0]
    altered = replace(ORDERS, lanes=(replace(lane, marks=(mark, *lane.marks[1:])), *ORDERS.lanes[1:]))
    assert changed(log_view(ORDERS, "Log"), log_view(altered, "Log"))


def test_the_log_start_offset_shows_in_picture_and_text():
    altered = replace(ORDERS, lanes=(ORDERS.lanes[0], replace(ORDERS.lanes[1], start=0), ORDERS.lanes[2]))
    assert changed(log_view(ORDERS, "Log"), log_view(altered, "Log"))


def test_each_change_shows_in_the_other_views():
    other = replace(RECORDING, spans=(replace(RECORDING.spans[0], owner="eve"), *RECORDING.spans[1:]))
    assert changed(recording_view(), recording_view(other))
    talks = [swimlanes((*TALK[:-1], replace(TALK[-1], **change)), ["order", "stock", "payment"], "Talk")
             for change in ({}, {"label": "OTHER"}, {"receiver": "stock"}, {"kind": "failure"})]  # fmt: skip
    assert all(changed(talks[0], other) for other in talks[1:])
    assert changed(bars({"a": 1}, "Bars", "s", measured=False), bars({"a": 2}, "Bars", "s", measured=False))
    assert changed(bars({"a": 1}, "Bars", "s"), bars({"b": 1}, "Bars", "s"))


def test_each_change_of_a_table_shows_alone_and_in_a_stack():
    moved = STATE | {"bob": {"home": "house 2"}}
    tables = [table_view(state, "the state", "Table") for state in (STATE, moved, {"ann": STATE["ann"]})]
    assert all(changed(tables[0], other) for other in tables[1:])
    stacks = [stacked([log_view(ORDERS, "Log"), each], "Log and state") for each in tables]
    assert all(changed(stacks[0], other) for other in stacks[1:])
    assert tables[0].text.splitlines() == [
        "Table", "the state", "ann: home house 2 | name Ann", "bob: home house 1 | name –",
    ]  # fmt: skip
    assert stacks[0].body == [*log_view(ORDERS, "Log").body, *tables[0].body]


def test_each_step_of_a_timeline_shows_and_the_text_holds_no_times():
    views = [timeline((*STEPS[:3], replace(STEPS[3], **change), STEPS[4]), "Timeline")
             for change in ({}, {"label": "other"}, {"kind": "forward"}, {"lane": "order 3"})]  # fmt: skip
    assert all(changed(views[0], other) for other in views[1:])
    later = timeline([replace(step, time=2 * step.time + 1) for step in STEPS], "Timeline")
    told = ["Timeline", "order 1: placed · packed", "order 2: placed · failed (failure) · packed"]
    assert later.text.splitlines() == views[0].text.splitlines() == told
    with pytest.raises(ValueError, match="no kind|No kind"):
        timeline([Step(0, "a", "b", "compensation")], "Odd")


def test_a_key_has_one_colour_in_a_log_and_in_its_state_and_nothing_moves_in_a_film():
    def moment(state):
        return stacked([log_view(ORDERS, "", keys=["ann"]), table_view(state, "state", "", keys=["ann"])], "")

    film = Film("State", [("empty", moment({})), ("all", moment(STATE))])
    sizes = [picture.sheet.figure.get_size_inches().tolist() for picture in film.pictures]
    assert sizes[0] == sizes[1]
    boxes = [c for c in film.pictures[1].sheet.figure.axes[0].get_children() if isinstance(c, FancyBboxPatch)]
    edges = {matplotlib.colors.to_hex(box.get_edgecolor()) for box in boxes}
    assert "#0072b2" in edges and "empty" in words_of(film.pictures[0])


def test_what_is_drawn_is_what_is_told():
    picture = log_view(ORDERS, "Aborted records stay on the log")
    assert picture.text.splitlines() == [
        "Aborted records stay on the log",
        "topic orders",
        "partition 0: 0 ann: +1 | 1 bob: +1 | ▼ billing | ▼ mail | 2 ann: +2 (aborted) | 3 [abort] | "
        "4 bob: tombstone | 5–6 removed | ▼ shop | 7–8 removed | 9 ann: +4 | 10 [commit] | ▽ ann (position)",
        "partition 1: 0–1 deleted | ▼ slow | 2 deleted | 3 eve: +1 | ▽ last stable offset | 4 dan: +5 (open) | "
        "5 no key | ▼ lost at 9",
        "partition 2: empty",
    ]
    words = words_of(picture)
    assert {"orders", "ann", "+4", "abort", "commit", "billing", "mail", "lost at 9", "5–6", "deleted"} <= {*words}


def test_the_text_of_an_ownership_view_holds_owners_and_no_times():
    assert recording_view().text.splitlines() == [
        "Who reads what",
        "topic orders",
        "ann alone: partition 0 ann · partition 1 ann · partition 2 nobody",
        "bob joined: partition 0 ann · partition 1 bob · partition 2 bob",
        "ann killed: partition 0 ann · partition 1 bob · partition 2 bob",
        "bob has all: partition 0 bob · partition 1 bob · partition 2 bob",
    ]
    slower = Ownership("orders", RECORDING.partitions,
                       tuple(replace(s, start=s.start * 3, end=s.end * 3) for s in RECORDING.spans),
                       tuple(replace(m, time=m.time * 3) for m in RECORDING.moments), 15)  # fmt: skip
    assert recording_view(slower).text == recording_view().text


def test_the_text_of_what_is_measured_holds_no_figures():
    assert bars({"slow": 1.5, "fast": 99}, "Rates", "records/s").text == "Rates\nbars in records/s: slow | fast"
    assert "99 records" in bars({"fast": 99}, "Counted", "records", measured=False).text
    assert lines({"lag": [(0, 7)]}, "Lag", "s", "records").text == "Lag\nlines of records over s: lag"
    assert "0 → 7" in lines({"lag": [(0, 7)]}, "Lag", "s", "records", measured=False).text


def test_a_long_log_keeps_its_ends_and_what_stands_at_its_marks():
    text = log_view(long_log(1000), "Long").text
    for record in ["| 1 user", "332 user", "| ▼ billing | 333 user", "999 user-11: order 999 of a long list | ▼ mail"]:
        assert record in text
    assert "… 303 more, 30–332" in text or "more, 30–331 …" in text
    assert all(f" {n} user" not in text for n in (100, 500, 900))


# What a reader sees


def test_nothing_overlaps_and_nothing_is_cut(picture):
    texts = texts_of(picture)
    width, height = picture.sheet.figure.get_size_inches() * 96
    for text, left, right, top, bottom in texts:
        assert left >= 2 and right <= width - 2 and top >= 2 and bottom <= height - 2, f"{text.get_text()!r} is cut"
    for (one, *a), (other, *b) in itertools.combinations(texts, 2):
        apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] + 1 or b[3] <= a[2] + 1
        assert apart, f"{one.get_text()!r} overlaps {other.get_text()!r}"
    stems = [line.get_xydata() for line in picture.sheet.figure.axes[0].get_children() if isinstance(line, Line2D)
             and line.get_zorder() == 3 and line.get_xydata()[0][0] == line.get_xydata()[-1][0]]  # fmt: skip
    for stem, (text, left, right, top, bottom) in itertools.product(stems, texts):
        (x, low), high = sorted(stem.tolist(), key=lambda point: point[1])[0], stem[:, 1].max()
        assert not (left < x < right and low < bottom and top < high), f"a line runs through {text.get_text()!r}"


def test_type_and_size_are_as_agreed(picture):
    assert min(text.get_fontsize() for text, *_ in texts_of(picture)) >= 10
    assert 560 <= picture.sheet.width <= 900
    image = Image.open(io.BytesIO(picture.png))
    assert image.width == 2 * picture.sheet.width
    corner, inside = (image.convert("RGBA").getpixel(place) for place in ((0, 0), (30, 30)))
    assert corner[3] == 0 and inside == (255, 255, 255, 255)


def test_random_logs_are_drawn_without_overlap():
    chance = random.Random(7)
    kinds = ["record", "tombstone", "aborted", "open", "commit", "abort"]
    for _ in range(8):
        lanes = []
        for number in range(chance.randint(1, 4)):
            start = chance.choice([0, 0, 95_000])
            size = chance.randint(0, 25)
            cells = tuple(
                Cell(
                    start + n,
                    chance.choice(["ann", "a-very-long-user-name-indeed", None]),
                    "x" * chance.randint(0, 40),
                    chance.choice(kinds),
                )
                for n in range(size)
            )
            marks = tuple(Mark(f"group {g}" * chance.randint(1, 4), start + chance.randint(0, size))
                          for g in range(chance.randint(0, 6)))  # fmt: skip
            lanes.append(Lane(number, cells, marks, start, start + size))
        test_nothing_overlaps_and_nothing_is_cut(log_view(Log("orders", tuple(lanes)), "Whatever happens"))


def test_labels_are_never_read_as_formulas():
    words = words_of(PICTURES["dollars"]())
    assert {"$x_1$", "$\\frac{1}{0", "$g_1$", "pri_ces_"} <= {*words}


def test_a_key_has_one_colour_in_all_moments_of_a_film():
    first = Log("orders", (Lane(0, (Cell(0, "ann", "1"),)),))
    second = Log("orders", (Lane(0, (Cell(0, "bob", "1"), Cell(1, "ann", "2"))),))
    film = Film("Two", [("one", log_view(first, "")), ("two", log_view(second, ""))])

    def edges(picture):
        return [patch.get_edgecolor() for patch in picture.sheet.figure.axes[0].get_children()
                if isinstance(patch, FancyBboxPatch) and patch.get_zorder() == 2]  # fmt: skip

    assert edges(film.pictures[0])[0] == edges(film.pictures[1])[1]
    assert edges(log_view(second, "", keys=["ann"]))[1] == edges(film.pictures[0])[0]
    sizes = {tuple(picture.sheet.figure.get_size_inches()) for picture in film.pictures}
    assert len(sizes) == 1, "the page would jump"


def test_a_learners_own_matplotlib_settings_change_nothing():
    usual = log_view(ORDERS, "Log").png
    with matplotlib.rc_context({"figure.autolayout": True, "axes.grid": True, "font.size": 30, "text.usetex": True,
                                "text.color": "red", "lines.linewidth": 9, "figure.dpi": 50}):  # fmt: skip
        assert log_view(ORDERS, "Log").png == usual
    before = dict(matplotlib.rcParams)
    log_view(ORDERS, "Log").png  # noqa: B018
    assert dict(matplotlib.rcParams) == before


def test_a_log_is_drawn_quickly():
    """Measured in time of this very processor, which may be slow, or shared: against a plain loop beside it."""
    drawing, counting = [], []
    for _ in range(3):
        start = time.process_time()
        sum(number * number for number in range(1_000_000))
        counting.append(time.process_time() - start)
        start = time.process_time()
        log_view(ORDERS, "Quick").png  # noqa: B018
        drawing.append(time.process_time() - start)
    assert min(drawing) < 4 * min(counting), (drawing, counting)


# What a front end gets


def test_a_picture_is_a_png_with_its_text():
    picture = log_view(ORDERS, "Log")
    data, metadata = picture._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == picture.png
    assert data["text/plain"] == picture.text == repr(picture)
    assert metadata["image/png"] == {"width": picture.sheet.width, "alt": picture.text}


def test_pictures_can_be_text_alone(monkeypatch):
    monkeypatch.setenv("COURSE_PICTURES", "text")
    assert log_view(ORDERS, "Log")._repr_mimebundle_() == ({"text/plain": log_view(ORDERS, "Log").text}, {})


def test_a_film_needs_a_moment():
    with pytest.raises(ValueError, match="at least one moment"):
        Film("Empty", [])


FILM = """
from helpers.pictures import Film, log_view
from helpers.pictures.log import Cell, Lane, Log
film = Film("Two moments", [(name, log_view(Log("t", (Lane(0, (Cell(0, name),)),)), "")) for name in ("one", "two")])
"""


@pytest.fixture(scope="module")
def kernel():
    manager, client = jupyter_client.manager.start_new_kernel()
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def outputs(client, code, metadata):
    """The outputs of a cell that is sent with these metadata."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    request = client.session.msg("execute_request", content, metadata=metadata)
    client.shell_channel.send(request)
    return until_idle(client, request)


def until_idle(client, request):
    seen = []
    while True:
        message = client.get_iopub_msg(timeout=30)
        if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
            continue
        if message["content"].get("execution_state") == "idle":
            return seen
        if message["msg_type"] in ("display_data", "execute_result", "update_display_data", "stream", "error"):
            seen.append(message)


def test_without_a_screen_a_film_is_one_picture_that_tells_all_moments(kernel):
    (output,) = outputs(kernel, FILM + "film", {})
    assert set(output["content"]["data"]) == {"image/png", "text/plain", "application/x.drawn-from"}
    assert output["content"]["data"]["text/plain"].splitlines() == [
        "Two moments",
        "1 of 2 · one", "  topic t", "  partition 0: 0 one",
        "2 of 2 · two", "  topic t", "  partition 0: 0 two",
    ]  # fmt: skip
    assert [o["msg_type"] for o in outputs(kernel, FILM + "film.show()", {})] == ["display_data"]


def test_before_a_person_a_slider_changes_the_picture_of_a_film(kernel):
    picture, slider = outputs(kernel, FILM + "film", {"cellId": "1"})
    view = slider["content"]["data"]["application/vnd.jupyter.widget-view+json"]
    change = {"method": "update", "state": {"index": 0}, "buffer_paths": []}
    moved = kernel.session.msg("comm_msg", {"comm_id": view["model_id"], "data": change})
    kernel.shell_channel.send(moved)
    (update,) = until_idle(kernel, moved)
    assert update["msg_type"] == "update_display_data"
    assert update["content"]["transient"] == picture["content"]["transient"]
    assert update["content"]["data"]["image/png"] != picture["content"]["data"]["image/png"]
    assert update["content"]["data"]["text/plain"] == picture["content"]["data"]["text/plain"]


def test_without_widgets_the_picture_of_a_film_stays(kernel):
    hide = "import sys; sys.modules['ipywidgets'] = None\n"
    assert len(outputs(kernel, hide + FILM + "film", {"cellId": "1"})) == 1


# The recorder


def test_a_recorder_records_what_listeners_are_told():
    recorder = OwnershipRecorder("orders", 2)
    ann, bob = recorder.listener("ann"), recorder.listener("bob")
    ann.on_partitions_assigned([TopicPartition("orders", 0), TopicPartition("orders", 1), TopicPartition("other", 0)])
    recorder.moment("ann alone")
    ann.on_partitions_revoked([TopicPartition("orders", 1)])
    recorder.moment("handing over")
    bob.on_partitions_assigned([TopicPartition("orders", 1)])
    recorder.wait_for({"ann": [0], "bob": [1]})
    recorder.moment("bob joined")
    bob.on_partitions_assigned([TopicPartition("orders", 0)])
    recorder.moment("ann is a zombie")
    recorder.gone("ann")
    recorder.moment("ann gone")
    told = [line.split(": ", 1)[1] for line in recorder.view("Who").text.splitlines()[2:]]
    assert told == [
        "partition 0 ann · partition 1 ann",
        "partition 0 ann · partition 1 nobody",
        "partition 0 ann · partition 1 bob",
        "partition 0 ann and bob · partition 1 bob",
        "partition 0 bob · partition 1 bob",
    ]
    film = recorder.film("Who")
    assert film.text.splitlines()[1:3] == ["1 of 5 · ann alone", "  partition 0 ann · partition 1 ann"]
    for picture in [*film.pictures, recorder.view("Who")]:
        test_nothing_overlaps_and_nothing_is_cut(picture)


def test_where_moments_are_many_short_names_are_whole_nevertheless():
    times = range(0, 12, 2)
    spans = [Span(0, "uma", at, at + 1.2) for at in times]
    moments = [Moment("one of many", at + 0.6) for at in times]
    picture = recording_view(Ownership("orders", (0,), tuple(spans), tuple(moments), 12))
    assert words_of(picture).count("uma") == len(times)
    test_nothing_overlaps_and_nothing_is_cut(picture)


def test_waiting_ends_with_what_was_seen():
    recorder = OwnershipRecorder("orders", 2)
    recorder.assigned("ann", [0])
    with pytest.raises(TimeoutError, match="wanted .* partition 1 ann; saw partition 0 ann · partition 1 nobody"):
        recorder.wait_for({"ann": [0, 1]}, timeout=0.1)
    polls = iter([0, 1, 2])
    recorder.wait_for({"ann": [0, 1]}, meanwhile=lambda: next(polls) < 2 or recorder.assigned("ann", [1]))


def test_members_without_names_of_their_own_are_told_apart():
    description = {"group_state": "Stable", "members": [
        {"member_id": f"id-{n}", "client_id": "kafka-python",
         "member_assignment": {"assigned_partitions": [{"topic": "orders", "partitions": [n]}]}} for n in (1, 0)
    ]}  # fmt: skip
    assert ownership._owners_in(description, "orders") == [(0, "kafka-python 1"), (1, "kafka-python 2")]
    assert ownership._owners_in({**description, "group_state": "PreparingRebalance"}, "orders") == []


# What is read from a broker


def test_values_are_told_in_short():
    def told(value, label=None):
        return capture._told(None, label, value)

    assert told(b'{"user": "ann", "amount": 1.5}') == "user: ann, amount: 1.5"
    assert [told(v) for v in (b"7", b'"x"', b"", b'""', b"{broken", b"\xff\x00", None)] == [
        "7", "x", '""', '""', "{broken", "0xff00", None]  # fmt: skip
    assert told(b"{broken", lambda record: record.value["id"]) == "{broken"
    assert len(told(b"x" * 1000)) == capture.LONGEST


def test_a_marker_speaks_for_its_own_producer_alone():
    def batch(producer, *offsets, abort=None):
        records = [SimpleNamespace(offset=offset, abort=abort) for offset in offsets]
        return capture._Batch(producer, producer > 0, abort is not None, records)

    log = [batch(1, 0, 1), batch(2, 2), batch(-1, 3), batch(1, 4, abort=True), batch(1, 5), batch(3, 6, abort=True),
           batch(2, 7, abort=False), batch(2, 8)]  # fmt: skip
    assert capture._transactions(log) == ({0, 1}, {5, 8})


@pytest.fixture
def sender(cluster):
    """Sends one record and waits for it; a name makes the producer transactional."""
    producers = {}

    def of(name=None):
        if name not in producers:
            options = {"transactional_id": cluster.transactional_id(name)} if name else {}
            producers[name] = KafkaProducer(**cluster.connection, **options)
            if name:
                producers[name].init_transactions()
        return producers[name]

    yield of
    for producer in producers.values():
        producer.close()


def captured(cluster, topic, *args, **options):
    return log_view(capture_log(cluster, topic, *args, **options), "Log").text.splitlines()[2:]


def test_records_of_transactions_are_told_apart_by_their_markers(cluster, sender):
    topic = cluster.topic("orders", partitions=3)

    def send(producer, key, value, partition=0):
        producer.send(topic, key=key.encode(), value=value, partition=partition)
        producer.flush()

    plain, one, two = sender(), sender("one"), sender("two")
    send(plain, "ann", b"1")
    one.begin_transaction()
    two.begin_transaction()
    send(one, "ann", b"2")
    send(two, "bob", b"3")  # two transactions at once: the order of their markers tells nothing
    send(plain, "eve", None)
    one.abort_transaction()
    two.commit_transaction()
    one.begin_transaction()
    send(one, "fay", b"5", partition=1)
    send(plain, "gil", b"{broken", partition=1)
    group = cluster.group("billing")
    options = {"group_id": group, "enable_auto_commit": False, "auto_offset_reset": "earliest"}
    with KafkaConsumer(**cluster.connection, **options) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), 3)
        consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(1, "", -1)})
        marked = {"ann": consumer, "bob": {2: 0}}
        deadline = time.monotonic() + 10  # markers may be written after the calls have returned
        while (lanes := captured(cluster, topic, group, marked))[0].count("[") < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert sorted(told.split()[1] for told in lanes[0].split(" | ")[-2:]) == ["[abort]", "[commit]"]
    assert lanes[0].startswith("partition 0: 0 ann: 1 | ▼ billing | 1 ann: 2 (aborted) | 2 bob: 3 | ▽ ann (position) | "
                               "3 eve: tombstone | ")  # fmt: skip
    assert lanes[1:] == [
        "partition 1: ▽ last stable offset | 0 fay: 5 (open) | 1 gil: {broken",
        "partition 2: ▽ bob (position) | empty",
    ]
    one.commit_transaction()


def test_batches_are_counted_by_partition(cluster):
    topic = cluster.topic("visits", partitions=2)
    transactional_id = cluster.transactional_id("visitor")
    with KafkaProducer(**cluster.connection, linger_ms=10_000, transactional_id=transactional_id) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        for size in (3, 1):
            for _ in range(size):
                producer.send(topic, b"visit", partition=0)
            producer.flush()
        producer.commit_transaction()
    assert batch_sizes(cluster, topic) == {0: [3, 1], 1: []}
    with pytest.raises(ValueError, match="no topic"):
        batch_sizes(cluster, "nowhere")


def test_removed_offsets_are_told_apart_from_markers(cluster, sender):
    topic = cluster.topic("prices", config={"cleanup.policy": "compact,delete"})
    for key, value in [(b"apple", b"1"), (b"pear", b"2"), (b"apple", b"3"), (b"fig", b"4")]:
        sender().send(topic, key=key, value=value).get(10)
    with KafkaAdminClient(**cluster.connection) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic,
                                            {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"})])  # fmt: skip
        deadline = time.monotonic() + 20
        while "removed" not in (lane := captured(cluster, topic)[0]) and time.monotonic() < deadline:
            time.sleep(0.2)  # a record that comes later than segment.ms rolls the segment
            sender().send(topic, key=b"kiwi", value=b"5").get(10)
        assert lane.startswith("partition 0: 0 removed | 1 pear: 2 | 2 apple: 3 | 3 fig: 4 | ")
        admin.delete_records({TopicPartition(topic, 0): 3})
    assert captured(cluster, topic)[0].startswith("partition 0: 0–2 deleted | 3 fig: 4 | ")


def test_a_topic_that_is_not_there_is_said_so(cluster):
    with pytest.raises(ValueError, match="There is no topic 'nowhere'"):
        capture_log(cluster, "nowhere")


def test_a_group_is_watched_from_outside(cluster):
    topic = cluster.topic("orders", partitions=2)
    recorder = OwnershipRecorder(topic, 2)
    group = cluster.group("billing")
    with recorder.watch(cluster, group, names=lambda client: client.split("-")[0]):
        recorder.moment("nobody yet")
        with KafkaConsumer(topic, **cluster.connection, group_id=group, client_id="ann-thread-1") as consumer:
            recorder.wait_for({"ann": [0, 1]}, meanwhile=lambda: consumer.poll(timeout_ms=100))
            recorder.moment("ann alone")
        recorder.wait_for({})
    assert recorder.view("Who").text.splitlines()[2:] == [
        "nobody yet: partition 0 nobody · partition 1 nobody",
        "ann alone: partition 0 ann · partition 1 ann",
    ]
