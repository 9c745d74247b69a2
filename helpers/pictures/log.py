"""The log: partitions as lanes, records as cells in the order of their offsets, and who has read how far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .picture import Picture, View
from .style import (
    BODY,
    DARK_RED,
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
MARKERS = {"commit", "abort"}
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

    `kind` is 'record', 'tombstone' (no value), 'aborted', 'open' (its transaction has not ended), 'commit' or
    'abort' (a transaction's marker), or 'gap': the offsets from `offset` to `last` were removed by compaction.
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


@dataclass(frozen=True)
class _Strip:
    """What picture and text show of a partition."""

    lane: Lane
    places: tuple[Place, ...]


@dataclass(frozen=True)
class _Board:
    """What picture and text show of a topic; `rest` is a word for the partitions that are too many."""

    topic: str
    strips: tuple[_Strip, ...]
    rest: str


def log_view(
    logs: Log | Iterable[Log],
    title: str,
    keys: Iterable[str] = (),
    colour: str = "key",
) -> Picture:
    """Picture one log or several, one below the other.

    `title` says what to see. Keys get their colours in the order in which they appear, those in `keys` first:
    so a lesson can give a key the same colour in all its pictures. `colour` is what the note below says that the
    colour stands for, where `capture_log` was told to colour by something else than the record's key.
    """
    order = tuple(keys)
    view = View(lambda models, least: _plan(models, least, order, colour), _draw, _twin)
    return Picture(title, _boards([logs] if isinstance(logs, Log) else list(logs)), view)


# What picture and text have in common: shortened by number, so that both leave out the same


def _boards(logs: Sequence[Log]) -> tuple[_Board, ...]:
    limit = max(10, CELLS // max(1, sum(len(log.lanes[:LANES]) for log in logs)))
    boards = []
    for log in logs:
        strips = tuple(_Strip(lane, tuple(_shorten(_places(lane), limit))) for lane in log.lanes[:LANES])
        rest = log.lanes[LANES:]
        records = sum(cell.kind in RECORDS for lane in rest for cell in lane.cells)
        word = f"… {len(rest)} more partitions with {records} records …" if rest else ""
        boards.append(_Board(log.topic, strips, word))
    return tuple(boards)


def _places(lane: Lane) -> list[Place]:
    """The lane's cells with the marks before each, the last place being the log's end."""
    cells: list[Cell] = []
    for cell in [*[Cell(0, kind="deleted", last=lane.start - 1)] * (lane.start > 0), *lane.cells]:
        if cell.last is not None:
            # A mark within removed offsets stands exactly where it is: the stretch is drawn as two.
            for cut in sorted({mark.offset for mark in lane.marks if cell.offset < mark.offset <= cell.last}):
                cells.append(replace(cell, last=cut - 1))
                cell = replace(cell, offset=cut)
        cells.append(cell)
    waiting = sorted(lane.marks, key=lambda mark: (mark.offset, mark.kind, mark.group))
    places: list[Place] = []
    for cell in cells:
        reached = 0
        while reached < len(waiting) and waiting[reached].offset <= cell.offset:
            reached += 1
        places.append((cell, tuple(waiting[:reached])))
        waiting = waiting[reached:]
    return [*places, (None, tuple(waiting))]


def _shorten(places: list[Place], limit: int) -> list[Place]:
    """Put a word for the middle of a long lane; its ends stay, and what stands around the marks."""
    if len(places) <= limit + 6:
        return places
    kept = {*range(limit // 2), *range(len(places) - limit // 2 - 1, len(places))}
    for index, (_, marks) in enumerate(places):
        kept.update({index - 1, index} if marks else ())
    short: list[Place] = []
    before = -1
    for index in sorted(kept - {-1}):
        hidden = [cell for cell, _ in places[before + 1 : index]]
        if len(hidden) > 1:
            records = str(sum(cell.kind in RECORDS for cell in hidden))
            short.append((Cell(hidden[0].offset, kind="more", label=records, last=_last(hidden[-1])), ()))
        else:
            short += [(cell, ()) for cell in hidden]
        short.append(places[index])
        before = index
    return short


def _last(cell: Cell) -> int:
    return cell.offset if cell.last is None else cell.last


def _range(cell: Cell) -> str:
    return str(cell.offset) if cell.last in (None, cell.offset) else f"{cell.offset}–{cell.last}"


def _name(lane: Lane, mark: Mark) -> str:
    """What a mark is called; with its offset where it lies beyond the log's end."""
    end = lane.end if lane.end is not None else (_last(lane.cells[-1]) + 1 if lane.cells else lane.start)
    return f"{mark.group} at {mark.offset}" if mark.offset > end else mark.group


# The text


def _twin(boards: Sequence[_Board]) -> list[str]:
    lines = []
    for board in boards:
        lines.append(f"topic {board.topic}" + ("" if board.strips else ": no partitions"))
        for strip in board.strips:
            told = []
            for cell, marks in strip.places:
                told += [_told_mark(strip.lane, mark) for mark in marks]
                told += [_told_cell(cell)] if cell else ["empty"] * (not strip.lane.cells)
            lines.append(f"partition {strip.lane.partition}: {' | '.join(' '.join(each.split()) for each in told)}")
        lines += [board.rest] * bool(board.rest)
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
    value = "tombstone" if cell.kind == "tombstone" else cell.label
    said = ": ".join(part for part in (cell.key, value) if part)
    return f"{cell.offset} {said}".rstrip() + (f" ({cell.kind})" if cell.kind in ("aborted", "open") else "")


# The drawing


@dataclass
class _Plan:
    width: float
    gutter: float  # left edge of the lanes
    cell: float  # width of a record
    colours: Colours
    notes: list[str]
    levels: dict[tuple[int, int], list[int]]  # of each lane: levels of labels above each of its rows
    tall: set[tuple[int, int]]  # the lanes with cells in them


def _plan(models: Sequence[Sequence[_Board]], least: float, keys: Sequence[str] = (), colour: str = "key") -> _Plan:
    strips = [
        ((at, row), strip)
        for boards in models
        for at, board in enumerate(boards)
        for row, strip in enumerate(board.strips)
    ]
    cells = [cell for _, strip in strips for cell, _ in strip.places if cell]
    marks = [mark for _, strip in strips for mark in strip.lane.marks]
    texts = [width for cell in cells if cell.kind in RECORDS for width in _text_widths(cell)]
    names = [text_width(f"partition {strip.lane.partition}") for _, strip in strips]
    plan = _Plan(
        width=least,
        gutter=PAD + max(names, default=0) + 14,
        cell=min(max([48.0, *(width + 16 for width in texts)]), 168.0),
        colours=Colours([*keys, *(cell.key for cell in cells)]),
        notes=_notes(cells, marks, colour),
        levels={},
        tall={place for place, strip in strips if strip.places[0][0]},
    )
    for place, strip in strips:
        known = plan.levels.setdefault(place, [])
        for index, (_, end, labels) in enumerate(_rows(strip, plan)):
            known += [0] * (index + 1 - len(known))
            levels = stack_labels([(x, label_width(name)) for x, name, _ in labels])
            known[index] = max([known[index], *(level + 1 for level in levels)])
            plan.width = max(plan.width, plan.gutter + end + LANE_PAD + PAD)
    return plan


def _notes(cells: Iterable[Cell], marks: Iterable[Mark], colour: str) -> list[str]:
    """How to read the signs, of those that occur."""
    kinds = {cell.kind for cell in cells} | {mark.kind for mark in marks}
    meanings = {
        "aborted": "dashed = aborted",
        "open": "white = transaction still open",
        "tombstone": "struck through = tombstone",
        "gap": "dotted = removed by compaction",
        "committed": "▼ = committed offset, read next",
        "position": "▽ = position of a consumer",
        "stable": "last stable offset = read_committed stops here",
    }
    notes = [f"colour = {colour}"] if any(cell.key is not None for cell in cells) else []
    return notes + [meaning for kind, meaning in meanings.items() if kind in kinds]


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


def _rows(strip: _Strip, plan: _Plan) -> list[Row]:
    """Lay a strip out in rows: (x, cell) from its left edge, where the row ends, (x, name, kind) of marks."""
    room = MAX_WIDTH - plan.gutter - LANE_PAD - PAD
    rows: list[Row] = []
    cells: list[tuple[float, Cell]] = []
    labels: list[tuple[float, str, str]] = []
    x = GAP
    for index, (cell, marks) in enumerate(strip.places):
        names = [(fit(_name(strip.lane, mark), 220, BODY, True), mark.kind) for mark in marks]
        wide = _cell_width(cell, plan) + GAP if cell else 0
        need = max([wide, *(label_width(name) for name, _ in names)])
        if index == len(strip.places) - 2:  # the marks at the log's end stay beside its last cell
            last = [fit(_name(strip.lane, mark), 220, BODY, True) for mark in strip.places[-1][1]]
            need = max([need, *(wide + label_width(name) for name in last)])
        if cell and cells and x + need - GAP > room:
            rows.append(_row(cells, x, labels))
            cells, labels, x = [], [], GAP
        labels += [(x - GAP / 2, name, kind) for name, kind in names]
        cells += [(x, cell)] if cell else []
        x += wide
    return [*rows, _row(cells, x, labels)]


def _row(cells: list[tuple[float, Cell]], x: float, labels: list[tuple[float, str, str]]) -> Row:
    return cells, max([x - GAP, *(at + label_width(name) - LANE_PAD for at, name, _ in labels)]), labels


def _draw(sheet: Sheet, boards: Sequence[_Board], plan: _Plan) -> None:
    for at, board in enumerate(boards):
        sheet.topic(board.topic if board.strips else f"{board.topic}: no partitions")
        for row, strip in enumerate(board.strips):
            _draw_strip(sheet, strip, (at, row), plan)
        if board.rest:
            sheet.text(plan.gutter + GAP, sheet.y + 8, board.rest, colour=MUTED)
            sheet.y += 24
        sheet.y += 6
    sheet.footer(plan.notes)


def _draw_strip(sheet: Sheet, strip: _Strip, place: tuple[int, int], plan: _Plan) -> None:
    rows = _rows(strip, plan)
    left, wide = plan.gutter, sheet.width - PAD - plan.gutter
    high = CELL_HEIGHT + 2 * LANE_PAD if place in plan.tall else 40
    for index, above in enumerate(plan.levels[place]):
        cells, _, labels = rows[index] if index < len(rows) else ([], 0, [])
        top = sheet.y + LABEL_ROW * above + 2 * (above > 0)
        sheet.box(left, top, wide, high, fill=LANE, radius=8, layer=1)
        if index == 0:
            sheet.text(left - 14, top + high / 2, f"partition {strip.lane.partition}", colour=MUTED, align="right")
        for x, cell in cells:
            _draw_cell(sheet, left + x, top + LANE_PAD, cell, plan)
        if index == 0 and not strip.lane.cells and not cells:
            sheet.text(left + GAP + 4, top + high / 2, "empty", colour=MUTED)
        levels = stack_labels([(x, label_width(name)) for x, name, _ in labels])
        for (x, name, kind), level in zip(labels, levels, strict=True):
            y = top - 2 - LABEL_ROW * (level + 0.5)
            sheet.label(left + x, y, top + high, name, hollow=kind != "committed")
        sheet.y = top + high + (22 if place in plan.tall else 8)
    sheet.y += 4


def _draw_cell(sheet: Sheet, x: float, y: float, cell: Cell, plan: _Plan) -> None:
    wide = _cell_width(cell, plan)
    middle, centre = y + CELL_HEIGHT / 2, x + wide / 2
    below = y + CELL_HEIGHT + LANE_PAD + 10
    sheet.text(centre, below, _range(cell), size=SMALL, colour=MUTED, align="center")
    if cell.kind == "more":
        sheet.text(centre, middle, _more(cell), colour=MUTED, align="center")
    elif cell.kind == "gap":
        sheet.box(x, y, wide, CELL_HEIGHT, fill=LANE, edge=NEUTRAL.line, style=(0, (1, 2)), line=1.4)
    elif cell.kind == "deleted":
        sheet.box(x, y, wide, CELL_HEIGHT, fill=NEUTRAL.fill)
        sheet.text(centre, middle, "deleted", colour=MUTED, align="center")
    elif cell.kind in MARKERS:
        fill = DARK_RED if cell.kind == "abort" else INK
        sheet.box(centre - 9.5, y - 5, 19, CELL_HEIGHT + 10, fill=fill, radius=5)
        sheet.text(centre, middle, cell.kind, size=SMALL, colour=WHITE, angle=90)
    else:
        colour = plan.colours(cell.key)
        hollow = cell.kind in ("aborted", "open")
        style = (0, (4, 2.4)) if cell.kind == "aborted" else "-"
        fill = WHITE if hollow else colour.fill
        sheet.box(x, y, wide, CELL_HEIGHT, fill=fill, edge=colour.line, style=style)
        ink = MUTED if hollow or cell.kind == "tombstone" else INK
        texts = [(cell.key, SMALL, True), (_value(cell), BODY, False)]
        lines = [(fit(text, wide - 10, size, bold), size, bold) for text, size, bold in texts if text]
        for number, (text, size, bold) in enumerate(lines):
            at = middle + (number - (len(lines) - 1) / 2) * 18
            sheet.text(centre, at, text, size=size, bold=bold, colour=ink, align="center")
            if cell.kind == "tombstone" and number == 0:
                half = text_width(text, size, bold) / 2 + 3
                ends = [(centre - half, at + 0.5), (centre + half, at + 0.5)]
                sheet.line(ends, colour=INK, width=1.4, layer=5)
