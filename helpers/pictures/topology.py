"""The steps of a Kafka Streams topology between its topics, as its own description (`Topology.describe()`) has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .picture import Picture, View
from .style import BLUE, INK, LANE, MAX_WIDTH, MUTED, PAD, PALETTE, SMALL, WHITE, Sheet, fit, text_width, tint

# Kafka Streams names a step after the class that does it; these are the words that the DSL has for some of them.
WORDS = {
    "branch": "split",
    "branchchild": "branch",
    "filter": "filter",
    "flatmap": "flatMap",
    "flatmapvalues": "flatMapValues",
    "foreach": "forEach",
    "key-select": "selectKey",
    "leftjoin": "leftJoin",
    "mapvalues": "mapValues",
    "outerjoin": "outerJoin",
    "source": "table",
    "tostream": "toStream",
    "totable": "toTable",
    "transformvalues": "processValues",
}
ROW, GAP = 66.0, 22.0  # pixels from one row to the next, and between two boxes in a row
BOX, STATEFUL = 30.0, 46.0  # the height of a box, and of one that names its store

Place = tuple[int, str]  # a row, and the name of a box in it


@dataclass(frozen=True)
class Box:
    """A topic, or a step with the names of its stores; `after` names the boxes whose output it takes."""

    name: str
    after: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    topic: bool = False


@dataclass(frozen=True)
class Part:
    """A sub-topology: what one task runs. Topics stand between the parts."""

    name: str
    sources: tuple[Box, ...]
    steps: tuple[Box, ...]
    sinks: tuple[Box, ...]


@dataclass
class _Plan:
    width: float
    left: float  # where boxes may begin; the names of the parts are left of it
    most: list[float] = field(default_factory=list)  # by row: the width that its boxes may have


def topology_view(topology: Any, title: str, plain: Callable[[str], str] = str) -> Picture:
    """Picture a topology that `StreamsBuilder.build()` gave.

    Args:
        topology: the Java Topology, or its description.
        title: what to see.
        plain: gives a topic's (or a store's) name as in the lesson, e.g. `cluster.plain`.
    """
    description = topology.describe() if hasattr(topology, "describe") else topology
    parts = [
        _part(f"sub-topology {part.id()}", part.nodes(), plain)
        for part in sorted(description.subtopologies(), key=lambda part: part.id())
    ]
    parts += [
        _part("on each instance", [store.source(), store.processor()], plain) for store in description.globalStores()
    ]
    parts = _in_order(
        parts, lambda part: {box.name for box in part.sinks}, lambda part: {box.name for box in part.sources}
    )
    return Picture(title, tuple(parts), VIEW)


def _part(name: str, nodes: Any, plain: Callable[[str], str]) -> Part:
    """Read one part; topics take the place of its source and sink nodes."""
    nodes = sorted(nodes, key=lambda node: _number(str(node.name())))
    read = {str(node.name()): [_label(plain(str(t))) for t in node.topicSet() or ()] or [f"{node.topicPattern()}"]
            for node in nodes if hasattr(node, "topicSet")}  # fmt: skip

    def after(node) -> tuple[str, ...]:
        names = sorted((str(previous.name()) for previous in node.predecessors()), key=_number)
        return tuple(label for name in names for label in (map(_topic, read[name]) if name in read else [_label(name)]))

    sources = dict.fromkeys(_topic(label) for labels in read.values() for label in sorted(labels))
    steps, sinks = [], {}
    for node in nodes:
        if hasattr(node, "stores"):
            # the store of a table is named as its topic
            stores = tuple(sorted(_label(plain(str(store))) for store in node.stores()))
            steps.append(Box(_label(str(node.name())), after(node), stores))
        elif not hasattr(node, "topicSet"):
            topic = _topic(_label(plain(str(node.topic())))) if node.topic() else "topic by record"
            sinks[topic] = (*sinks.get(topic, ()), *after(node))
    return Part(
        name,
        tuple(Box(topic, topic=True) for topic in sources),
        tuple(_in_order(steps, lambda box: {box.name}, lambda box: {*box.after})),
        tuple(Box(topic, origins, topic=True) for topic, origins in sinks.items()),
    )


def _topic(label: str) -> str:
    return f"topic {label}"


def _label(name: str) -> str:
    """KSTREAM-MAPVALUES-0000000001 as 'mapValues 1'; a name that somebody gave stays as it is."""

    def short(match: re.Match) -> str:
        words = match[1].lower()
        return f"{WORDS.get(words, words)} {int(match[2])}"

    name = re.sub(r"K(?:STREAM|TABLE)-([A-Z-]+?)(?:-STATE-STORE)?-(\d{10})", short, name)
    return re.sub(r"-STATE-STORE-\d{10}", "", name)


def _number(name: str) -> tuple[int, str]:
    found = re.search(r"\d{10}", name)
    return int(found[0]) if found else 0, name


def _in_order(items: Iterable[Any], makes: Callable[[Any], set[str]], takes: Callable[[Any], set[str]]) -> list[Any]:
    """The items so that one that takes what another makes comes after it; else as they were."""
    left, ordered = list(items), []
    while left:
        made = {id(item): makes(item) for item in left}
        free = (item for item in left if not any(takes(item) & made[id(other)] for other in left if other is not item))
        ordered.append(next(free, left[0]))
        left.remove(ordered[-1])
    return ordered


def _twin(parts: Sequence[Part]) -> list[str]:
    lines = []
    for part in parts:
        lines.append(part.name)
        boxes = [*part.sources, *part.steps, *part.sinks]
        for box in [*part.sources, *part.steps]:
            to = ", ".join(other.name for other in boxes if box.name in other.after)
            kept = f" (store {', '.join(box.stores)})" if box.stores else ""
            lines.append(f"  {box.name}{kept}" + (f" → {to}" if to else ""))
    return lines


@dataclass
class _Grid:
    """Boxes in rows from top to bottom; a place in it is (row, name).

    An arrow over several rows has a place of its own in each row between, without a box.
    """

    rows: list[dict[str, Box | None]] = field(default_factory=list)
    arrows: list[list[Place]] = field(default_factory=list)
    lanes: list[tuple[str, int, int]] = field(default_factory=list)  # name, first and last row of a part

    def add(self, part: Part) -> None:
        """Put a part below what is there; its source topics go into the row that is the last one so far."""
        self.rows = self.rows or [{}]
        top = len(self.rows) - 1
        depth = {box.name: top for box in part.sources}
        for box in part.steps:
            depth[box.name] = 1 + max((depth[name] for name in box.after), default=top)
        bottom = max([top + 1, *depth.values()]) + 1
        self.rows += [{} for _ in range(top, bottom)]
        for box in part.sources:
            self.rows[top].setdefault(box.name, box)
        for box in (*part.steps, *part.sinks):
            row = bottom if box.topic else depth[box.name]
            self.rows[row][box.name] = box
            for name in box.after:
                between = [(level, f"{name} → {box.name}") for level in range(depth[name] + 1, row)]
                for level, point in between:
                    self.rows[level][point] = None
                self.arrows.append([(depth[name], name), *between, (row, box.name)])
        self.lanes.append((part.name, top + 1, bottom - 1))


def _grid(parts: Sequence[Part]) -> _Grid:
    grid = _Grid()
    for part in parts:
        grid.add(part)
    return grid


def _wide(box: Box | None) -> float:
    if box is None:
        return 8.0
    stores = [text_width(f"store {', '.join(box.stores)}", SMALL)] if box.stores else []
    return max(text_width(box.name, bold=True), *stores, 0) + 28


def _plan(models: Sequence[Sequence[Part]], least: float) -> _Plan:
    rows = _grid(models[-1]).rows
    wanted = max((sum(map(_wide, row.values())) + GAP * (len(row) - 1) for row in rows), default=0)
    left = PAD + 24 + max((text_width(part.name, SMALL) for part in models[-1]), default=0)
    plan = _Plan(max(least, min(left + wanted + 2 * PAD, MAX_WIDTH)), left)
    room = plan.width - left - 2 * PAD
    plan.most = [_most(list(map(_wide, row.values())), room - GAP * (len(row) - 1)) for row in rows]
    return plan


def _most(widths: list[float], room: float) -> float:
    """How wide a box may be, so that cutting the widest makes all of them fit."""
    for count, wide in zip(range(len(widths), 0, -1), sorted(widths), strict=True):
        if wide > room / count:
            return room / count
        room -= wide
    return MAX_WIDTH


def _places(grid: _Grid, plan: _Plan) -> dict[Place, tuple[float, float]]:
    """Middle and width of each place: below what leads to it, as far as its neighbours leave room."""
    above: dict[Place, list[Place]] = {}
    for arrow in grid.arrows:
        for start, end in pairwise(arrow):
            above.setdefault(end, []).append(start)
    places: dict[Place, tuple[float, float]] = {}
    for number, row in enumerate(grid.rows):
        hopes = {name: [places[start][0] for start in above.get((number, name), ())] for name in row}
        hoped = {name: sum(xs) / len(xs) if xs else (plan.left + plan.width) / 2 for name, xs in hopes.items()}
        order = sorted(row, key=lambda name: hoped[name] if hopes[name] else plan.width)  # noqa: B023 (used at once)
        widths = {name: min(_wide(row[name]), plan.most[number]) for name in order}
        xs: list[float] = []
        right = -2 * plan.width
        for name in order:
            xs.append(max(hoped[name], right + widths[name] / 2))
            right = xs[-1] + widths[name] / 2 + GAP
        # All that was pushed to the right moves back by the average, then into the card.
        shift = (sum(hoped.values()) - sum(xs)) / max(1, len(xs))
        ends = [(x - widths[name] / 2, x + widths[name] / 2) for name, x in zip(order, xs, strict=True)]
        shift = max(shift, plan.left - min((left for left, _ in ends), default=0))
        shift = min(shift, plan.width - 2 * PAD - max((right for _, right in ends), default=0))
        places |= {(number, name): (x + shift, widths[name]) for name, x in zip(order, xs, strict=True)}
    return places


def _draw(sheet: Sheet, parts: Sequence[Part], plan: _Plan) -> None:
    grid = _grid(parts)
    places = _places(grid, plan)
    heights = [sheet.y + STATEFUL / 2 + row * ROW for row in range(len(grid.rows))]
    for name, first, last in grid.lanes:
        high, low = heights[first] - ROW / 2 + 2, heights[last] + ROW / 2 - 2
        sheet.box(PAD, high, sheet.width - 2 * PAD, low - high, fill=LANE, radius=8, layer=1)
        sheet.text(PAD + 10, high + 13, name, size=SMALL, colour=MUTED)
        sheet.y = low
    for arrow in grid.arrows:
        spans = []
        for row, name in arrow:
            box = grid.rows[row][name]
            half = (BOX if box and not box.stores else STATEFUL) / 2
            spans.append((places[row, name][0], heights[row] - half, heights[row] + half))
        _draw_arrow(sheet, spans)
    for row, boxes in enumerate(grid.rows):
        for name, box in boxes.items():
            if box:
                _draw_box(sheet, box, places[row, name][0], heights[row], places[row, name][1])
                sheet.y = max(sheet.y, heights[row] + STATEFUL / 2)


def _draw_box(sheet: Sheet, box: Box, x: float, y: float, wide: float) -> None:
    colour = BLUE if box.topic else PALETTE[1] if box.stores else MUTED
    fill = tint(colour) if box.topic or box.stores else WHITE
    tall = STATEFUL if box.stores else BOX
    radius = BOX / 2 if box.topic else 6
    sheet.box(x - wide / 2, y - tall / 2, wide, tall, fill=fill, edge=colour, radius=radius)
    sheet.text(x, y - (8 if box.stores else 0), fit(box.name, wide - 16, bold=True), bold=True, align="center")
    if box.stores:
        stores = fit(f"store {', '.join(box.stores)}", wide - 12, SMALL)
        sheet.text(x, y + 11, stores, size=SMALL, colour=INK, align="center")


def _draw_arrow(sheet: Sheet, spans: Sequence[tuple[float, float, float]]) -> None:
    """An arrow through (x, top, bottom) of each row that it passes; it goes aside between the rows only."""
    (x, _, start), *between, (end, tip, _) = spans
    points = [(x, start), *((x, y) for x, high, low in between for y in (high, low)), (end, tip - 8)]
    sheet.line(points, colour=MUTED, width=1.8, layer=1.5)
    sheet.shape([(end, tip - 1), (end - 5, tip - 10), (end + 5, tip - 10)], fill=MUTED)


VIEW = View(_plan, _draw, _twin)
