"""The log: partitions as lanes, records as cells in the order of their offsets, and who has read how far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .picture import Picture, View
from .style import (
    BODY,
    INK,
    LABEL_ROW,
    LANE,
    MAX_WIDTH,
    MUTED,
    NEUTRAL,
    PAD,
    SMALL,
    WHITE,
    Colours,
    Sheet,
    fit,
    label_width,
    stack_labels,
    text_width,
)

RECORDS = {"record", "tombstone", "aborted", "open"}
MARKERS = {"commit", "abort", "marker"}
CELLS = 60  # that one picture shows at most; of longer lanes the middle is told in a word
LANES = 16
GAP, CELL_HEIGHT, LANE_PAD = 10.0, 48.0, 8.0  # pixels


@dataclass(frozen=True)
class Mark:
    """How far a group has come: the offset that it reads next.

    `kind` is 'committed' (kept by Kafka), 'position' (in the consumer's memory) or 'stable', the last stable
    offset, where readers of committed records stop.
    """

    group: str
    offset: int
    kind: str = "committed"


@dataclass(frozen=True)
class Cell:
    """What stands at an offset.

    `kind` is 'record', 'tombstone' (no value), 'aborted', 'open' (read_committed does not get there yet),
    'commit' or 'abort' (a transaction's marker), 'marker' (one of unknown kind), or 'gap': the offsets from
    `offset` to `last` were removed by compaction.
    """

    offset: int
    key: str | None = None
    label: str = ""
    kind: str = "record"
    last: int | None = None


@dataclass(frozen=True)
class Lane:
    """A partition from its log start offset to its log end offset, the offset of the next record."""

    partition: int
    cells: tuple[Cell, ...] = ()
    marks: tuple[Mark, ...] = ()
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Log:
    """A topic and its partitions."""

    topic: str
    lanes: tuple[Lane, ...] = ()


Place = tuple[Cell | None, tuple[Mark, ...]]  # a cell and the marks before it; no cell at the log's end


def log_view(logs: Log | Iterable[Log], title: str, subtitle: str | None = None,
             keys: Iterable[str] = ()) -> Picture:
    """Picture one log or several, one below the other.

    `title` says what to see. Keys get their colours in the order in which they appear, those in `keys` first:
    so a lesson can give a key the same colour in all its pictures.
    """
    order = tuple(keys)
    view = VIEW if not order else replace(VIEW, plan=lambda models: _plan(models, order))
    return Picture(title, (logs,) if isinstance(logs, Log) else tuple(logs), view, subtitle)


# What picture and text have in common: the places of a lane, shortened by number and not by width


def _places(lane: Lane, limit: int) -> list[Place]:
    """The lane's cells with the marks before each, the last place being the log's end."""
    cells = [Cell(0, kind="deleted", last=lane.start - 1)] * (lane.start > 0)
    for cell in [*cells, *lane.cells]:
        # A mark within removed offsets stands exactly where it is: the stretch is drawn as two.
        for cut in sorted({mark.offset for mark in lane.marks if cell.offset < mark.offset <= _last(cell)}):
            cells.append(replace(cell, last=cut - 1))
            cell = replace(cell, offset=cut)
        cells.append(cell)
    cells = cells[lane.start > 0 :]
    waiting = sorted(lane.marks, key=lambda mark: (mark.offset, mark.kind, mark.group))
    places: list[Place] = []
    for cell in cells:
        reached = [mark for mark in waiting if mark.offset <= cell.offset]
        waiting = waiting[len(reached) :]
        places.append((cell, tuple(reached)))
    return _shorten([*places, (None, tuple(waiting))], limit)


def _shorten(places: list[Place], limit: int) -> list[Place]:
    """Put a word for the middle of a long lane; its ends stay, and what stands around the marks."""
    if len(places) <= limit + 6:
        return places
    kept = {*range(limit // 2), *range(len(places) - limit // 2 - 1, len(places))}
    for index, (_, marks) in enumerate(places):
        kept.update({index - 1, index} if marks else ())
    short: list[Place] = []
    for index, place in enumerate(places):
        if index in kept or (index - 1 in kept and index + 1 in kept):
            short.append(place)
        elif short[-1][0].kind == "more":
            more = short[-1][0]
            count = int(more.label) + (place[0].kind in RECORDS)
            short[-1] = (replace(more, last=_last(place[0]), label=str(count)), ())
        else:
            count = int(place[0].kind in RECORDS)
            short.append((Cell(place[0].offset, kind="more", last=_last(place[0]), label=str(count)), ()))
    return short


def _last(cell: Cell) -> int:
    return cell.offset if cell.last is None else cell.last


def _range(cell: Cell) -> str:
    return str(cell.offset) if cell.last in (None, cell.offset) else f"{cell.offset}–{cell.last}"


def _limit(logs: Sequence[Log]) -> int:
    return max(10, CELLS // max(1, sum(len(log.lanes[:LANES]) for log in logs)))


def _name(lane: Lane, mark: Mark) -> str:
    """What a mark is called; with its offset where it lies beyond the log's end."""
    end = lane.end if lane.end is not None else (_last(lane.cells[-1]) + 1 if lane.cells else lane.start)
    return f"{mark.group} at {mark.offset}" if mark.offset > end else mark.group


def _hidden(log: Log) -> str:
    """A word for the partitions that are too many to be drawn, or nothing."""
    rest = log.lanes[LANES:]
    records = sum(cell.kind in RECORDS for lane in rest for cell in lane.cells)
    return f"… {len(rest)} more partitions with {records} records …" if rest else ""


# The text


def _twin(logs: Sequence[Log]) -> list[str]:
    lines = []
    for log in logs:
        lines.append(f"topic {log.topic}" + ("" if log.lanes else ": no partitions"))
        for lane in log.lanes[:LANES]:
            told = []
            for cell, marks in _places(lane, _limit(logs)):
                told += [_told_mark(lane, mark) for mark in marks]
                told += [_told_cell(cell)] if cell else ["empty"] * (not lane.cells)
            lines.append(f"partition {lane.partition}: {' | '.join(told)}")
        lines += [_hidden(log)] * bool(_hidden(log))
    return lines


def _told_mark(lane: Lane, mark: Mark) -> str:
    if mark.kind == "committed":
        return f"▼ {_name(lane, mark)}"
    return f"▽ {_name(lane, mark)}" + (" (position)" if mark.kind == "position" else "")


def _told_cell(cell: Cell) -> str:
    if cell.kind in MARKERS:
        return f"{cell.offset} [{cell.kind}]"
    if cell.kind == "more":
        return f"… {cell.label} more, {_range(cell)} …"
    if cell.kind in ("gap", "deleted"):
        return f"{_range(cell)} {'removed' if cell.kind == 'gap' else 'deleted'}"
    said = ": ".join(part for part in (cell.key, "tombstone" if cell.kind == "tombstone" else cell.label) if part)
    return f"{cell.offset} {said}" + (f" ({cell.kind})" if cell.kind in ("aborted", "open") else "")


# The drawing


@dataclass
class _Plan:
    width: float
    gutter: float  # left edge of the lanes
    cell: float  # width of a record
    colours: Colours
    levels: dict[tuple[int, int], list[int]]  # of the labels above each row of a lane


def _plan(models: Sequence[Sequence[Log]], keys: Sequence[str] = ()) -> _Plan:
    lanes = [(at, row, lane, _limit(logs))
             for logs in models for at, log in enumerate(logs) for row, lane in enumerate(log.lanes[:LANES])]
    shown = [cell for *_, lane, limit in lanes for cell, _ in _places(lane, limit) if cell]
    texts = [width for cell in shown if cell.kind in RECORDS for width in _text_widths(cell)]
    names = [text_width(f"partition {lane.partition}") for *_, lane, _ in lanes]
    plan = _Plan(
        width=0,
        gutter=PAD + max(names, default=0) + 14,
        cell=min(max([48.0, *(width + 16 for width in texts)]), 168.0),
        colours=Colours([*keys, *(cell.key for cell in shown)]),
        levels={},
    )
    for at, row, lane, limit in lanes:
        rows = _rows(_places(lane, limit), lane, plan)
        known = plan.levels.setdefault((at, row), [])
        known += [0] * (len(rows) - len(known))
        for index, (_, end, labels) in enumerate(rows):
            levels = stack_labels([(x, label_width(name)) for x, name, _ in labels])
            known[index] = max([known[index], *(level + 1 for level in levels)])
            plan.width = max(plan.width, plan.gutter + end + LANE_PAD + PAD)
    return plan


def _text_widths(cell: Cell) -> list[float]:
    return [text_width(cell.key or "", SMALL, bold=True), text_width(_value(cell), BODY)]


def _value(cell: Cell) -> str:
    return "null" if cell.kind == "tombstone" else cell.label


def _cell_width(cell: Cell, plan: _Plan) -> float:
    if cell.kind in RECORDS:
        return plan.cell
    below = text_width(_range(cell), SMALL) + 4
    within = {"more": text_width(_more(cell)), "deleted": text_width("deleted") + 16}.get(cell.kind, 22)
    return max(below, within)


def _more(cell: Cell) -> str:
    return f"… {cell.label} more …"


Row = tuple[list[tuple[float, Cell]], float, list[tuple[float, str, str]]]


def _rows(places: Sequence[Place], lane: Lane, plan: _Plan) -> list[Row]:
    """Lay a lane's cells out in rows: (x, cell) from the lane's left edge, the row's end, (x, name, kind) marks."""
    room = MAX_WIDTH - plan.gutter - LANE_PAD - PAD
    rows: list[Row] = [([], GAP, [])]
    for index, (cell, marks) in enumerate(places):
        labels = [(fit(_name(lane, mark), 220, BODY, True), mark.kind) for mark in marks]
        wide = _cell_width(cell, plan) if cell else 0
        need = max([wide, *(label_width(name) for name, _ in labels)])
        if index == len(places) - 2:  # the marks at the log's end stay beside its last cell
            need = max([need, *(wide + GAP + label_width(_name(lane, mark)) for mark in places[-1][1])])
        cells, x, flags = rows[-1]
        if cell and cells and x + need > room:
            cells, x, flags = [], GAP, []
            rows.append((cells, x, flags))
        flags += [(x - GAP / 2, name, kind) for name, kind in labels]
        cells += [(x, cell)] if cell else []
        end = max([x + wide, *(x - GAP / 2 + label_width(name) - 10 for name, _ in labels)])
        rows[-1] = (cells, x + wide + GAP if cell else end, flags)
    return [(cells, max([end - GAP, *(x + label_width(name) - 10 for x, name, _ in flags)]), flags)
            for cells, end, flags in rows]


def _draw(sheet: Sheet, logs: Sequence[Log], plan: _Plan) -> None:
    for at, log in enumerate(logs):
        sheet.text(PAD, sheet.y + 8, "topic", colour=MUTED)
        name = log.topic if log.lanes else f"{log.topic}: no partitions"
        sheet.text(PAD + text_width("topic") + 6, sheet.y + 8, fit(name, 480, bold=True), bold=True)
        sheet.y += 24
        for row, lane in enumerate(log.lanes[:LANES]):
            _draw_lane(sheet, lane, _limit(logs), plan.levels[at, row], plan)
        if _hidden(log):
            sheet.text(plan.gutter + GAP, sheet.y + 8, _hidden(log), colour=MUTED)
            sheet.y += 24
        sheet.y += 6
    sheet.footer(_notes(logs))


def _draw_lane(sheet: Sheet, lane: Lane, limit: int, levels: Sequence[int], plan: _Plan) -> None:
    rows = _rows(_places(lane, limit), lane, plan)
    left, wide = plan.gutter, plan.width - PAD - plan.gutter
    high = CELL_HEIGHT + 2 * LANE_PAD if any(cells for cells, *_ in rows) else 40
    for index, level in enumerate(levels):
        cells, _, labels = rows[index] if index < len(rows) else ([], 0, [])
        top = sheet.y + LABEL_ROW * level + 2 * (level > 0)
        sheet.box(left, top, wide, high, fill=LANE, radius=8, layer=1)
        if index == 0:
            sheet.text(left - 14, top + high / 2, f"partition {lane.partition}", colour=MUTED, align="right")
        for x, cell in cells:
            _draw_cell(sheet, left + x, top + LANE_PAD, cell, plan)
        if not lane.cells and not cells:
            sheet.text(left + GAP + 4, top + high / 2, "empty", colour=MUTED)
        heights = stack_labels([(x, label_width(name)) for x, name, _ in labels])
        for (x, name, kind), place in zip(labels, heights, strict=True):
            y = top - 2 - LABEL_ROW * (place + 0.5)
            sheet.label(left + x, y, top + high, name, hollow=kind != "committed")
        sheet.y = top + high + (22 if high > 40 else 8)
    sheet.y += 4


def _draw_cell(sheet: Sheet, x: float, y: float, cell: Cell, plan: _Plan) -> None:
    wide = _cell_width(cell, plan)
    middle, centre = y + CELL_HEIGHT / 2, x + wide / 2
    sheet.text(centre, y + CELL_HEIGHT + LANE_PAD + 10, _range(cell), size=SMALL, colour=MUTED, align="center")
    if cell.kind == "more":
        sheet.text(centre, middle, _more(cell), colour=MUTED, align="center")
    elif cell.kind == "gap":
        sheet.box(x, y, wide, CELL_HEIGHT, fill=LANE, edge=NEUTRAL.line, style=(0, (1, 2)), line=1.4)
    elif cell.kind == "deleted":
        sheet.box(x, y, wide, CELL_HEIGHT, fill=NEUTRAL.fill)
        sheet.text(centre, middle, "deleted", colour=MUTED, align="center")
    elif cell.kind in MARKERS:
        fill = {"commit": INK, "abort": "#b04a00"}.get(cell.kind, MUTED)
        sheet.box(centre - 9.5, y - 5, 19, CELL_HEIGHT + 10, fill=fill, radius=5)
        sheet.text(centre, middle, cell.kind, size=SMALL, colour=WHITE, angle=90)
    else:
        colour = plan.colours(cell.key)
        hollow = cell.kind in ("aborted", "open")
        style = (0, (4, 2.4)) if cell.kind == "aborted" else "-"
        sheet.box(x, y, wide, CELL_HEIGHT, fill=WHITE if hollow else colour.fill, edge=colour.line, style=style)
        ink = MUTED if hollow or cell.kind == "tombstone" else INK
        texts = [(cell.key, SMALL, True), (_value(cell), BODY, False)]
        lines = [(fit(text, wide - 10, size, bold), size, bold) for text, size, bold in texts if text]
        for number, (text, size, bold) in enumerate(lines):
            at = middle + (number - (len(lines) - 1) / 2) * 18
            sheet.text(centre, at, text, size=size, bold=bold, colour=ink, align="center")
            if cell.kind == "tombstone" and number == 0:
                half = text_width(text, size, bold) / 2 + 3
                sheet.line([(centre - half, at + 0.5), (centre + half, at + 0.5)], colour=INK, width=1.4, layer=5)


def _notes(logs: Sequence[Log]) -> list[str]:
    """How to read the signs, of those that occur."""
    lanes = [lane for log in logs for lane in log.lanes[:LANES]]
    cells = [cell for lane in lanes for cell, _ in _places(lane, _limit(logs)) if cell]
    kinds = {cell.kind for cell in cells} | {mark.kind for lane in lanes for mark in lane.marks}
    meanings = {
        "aborted": "dashed = aborted",
        "open": "white = not yet readable with read_committed",
        "tombstone": "struck through = tombstone",
        "gap": "dotted = removed by compaction",
        "committed": "▼ = committed offset, read next",
        "position": "▽ = position of a consumer",
    }
    notes = ["colour = key"] if any(cell.key is not None for cell in cells) else []
    return notes + [meaning for kind, meaning in meanings.items() if kind in kinds]


VIEW = View(_plan, _draw, _twin)
