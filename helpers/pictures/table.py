"""A table in the look of the other pictures, and pictures one below the other: a log and the state that it yields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .picture import Picture, View
from .style import (
    EDGE,
    INK,
    MAX_WIDTH,
    MUTED,
    PAD,
    Colours,
    Sheet,
    fit,
    text_width,
)

ROW, GAP = 30.0, 28.0  # pixels from one row to the next, and between two columns
ROWS = 40  # that one picture shows at most
EMPTY = "–"


@dataclass(frozen=True)
class Table:
    """Rows by key, each with its values in the order of `columns`; `rest` is the number of rows that are too many."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    rest: int = 0


@dataclass
class _Plan:
    width: float
    colours: Colours
    xs: list[float] = field(default_factory=list)  # where the columns begin
    wide: list[float] = field(default_factory=list)  # how wide their texts may be
    rows: int = 0  # of the longest moment, so that nothing below moves


def table_view(
    rows: Mapping[str, Mapping[str, Any]],
    name: str,
    title: str,
    columns: Iterable[str] = (),
    keys: Iterable[str] = (),
) -> Picture:
    """Picture rows by key, e.g. `{"ann": {"home": "house 2"}}`, in the colours that `log_view` gives the keys.

    Args:
        rows: the values of each key by column; where one is missing, there is a dash.
        name: what the table is, written above it.
        title: what to see.
        columns: which columns, in which order; without it those that occur.
        keys: whose colours come first, as in `log_view`.
    """
    heads = tuple(columns) or tuple(dict.fromkeys(column for row in rows.values() for column in row))
    told = [(str(key), tuple(str(row.get(head, EMPTY)) for head in heads)) for key, row in rows.items()]
    order = tuple(keys)
    view = View(lambda models, least: _plan(models, least, order), _draw, _twin)
    return Picture(title, Table(name, heads, tuple(told[:ROWS]), max(0, len(told) - ROWS)), view)


def stacked(pictures: Sequence[Picture], title: str) -> Picture:
    """Put pictures on one card, one below the other, under one title; their own titles are left out."""
    views = [picture.view for picture in pictures]

    def plan(models: Sequence[tuple[Any, ...]], least: float) -> _Plans:
        def plans(wide: float) -> list[Any]:
            return [view.plan([model[at] for model in models], wide) for at, view in enumerate(views)]

        wide = max([least, *(part.width for part in plans(least))])
        return _Plans(wide, plans(wide))  # once more, for those that use the room that others need

    def draw(sheet: Sheet, model: tuple[Any, ...], plan: _Plans) -> None:
        for view, part, its_plan in zip(views, model, plan.parts, strict=True):
            view.draw(sheet, part, its_plan)
            sheet.y += 10

    def twin(model: tuple[Any, ...]) -> list[str]:
        return [line for view, part in zip(views, model, strict=True) for line in view.twin(part)]

    return Picture(title, tuple(picture.model for picture in pictures), View(plan, draw, twin))


@dataclass
class _Plans:
    width: float
    parts: list[Any]


def _rest(table: Table) -> list[str]:
    return [f"… {table.rest} more rows …"] if table.rest else []


def _twin(table: Table) -> list[str]:
    told = [
        f"{key}: " + " | ".join(f"{head} {value}" for head, value in zip(table.columns, values, strict=True))
        for key, values in table.rows
    ]
    return [table.name, *(told or ["empty"]), *_rest(table)]


def _plan(models: Sequence[Table], least: float, keys: Sequence[str]) -> _Plan:
    columns = max((model.columns for model in models), key=len)
    texts = [[key for model in models for key, _ in model.rows]]
    for at, head in enumerate(columns):
        values = [values[at] for model in models for _, values in model.rows if at < len(values)]
        texts.append([head, *values])
    most = (MAX_WIDTH - 2 * PAD - 28) / len(texts) - GAP
    wide = [
        min(max((text_width(text, bold=not at) for text in column), default=0), most) + 1
        for at, column in enumerate(texts)
    ]
    xs = [PAD + 12 + sum(wide[:at]) + GAP * at for at in range(len(wide))]
    plan = _Plan(max(least, xs[-1] + wide[-1] + 12 + PAD), Colours([*keys, *texts[0]]), xs, wide)
    plan.rows = max(len(model.rows) + bool(model.rest) for model in models)
    return plan


def _draw(sheet: Sheet, table: Table, plan: _Plan) -> None:
    sheet.text(PAD, sheet.y + 8, fit(table.name, plan.width - 2 * PAD, bold=True), bold=True)
    sheet.y += 26
    for head, x, wide in zip(table.columns, plan.xs[1:], plan.wide[1:], strict=False):
        sheet.text(x, sheet.y + 4, fit(head, wide), colour=MUTED)
    sheet.y += 18
    top, right = sheet.y, plan.xs[-1] + plan.wide[-1] + 12
    for row, (key, values) in enumerate(table.rows):
        y, colour = top + ROW * row, plan.colours(key)
        sheet.box(PAD, y, right - PAD, ROW - 4, fill=colour.fill, edge=colour.line, line=1.2)
        for at, (text, x, wide) in enumerate(zip((key, *values), plan.xs, plan.wide, strict=False)):
            ink = MUTED if text == EMPTY and at else INK
            sheet.text(x, y + ROW / 2 - 2, fit(text, wide, bold=not at), bold=not at, colour=ink)
    for at, text in enumerate(_rest(table) or ([] if table.rows else ["empty"])):
        sheet.text(plan.xs[0], top + ROW * (len(table.rows) + at) + ROW / 2 - 2, text, colour=MUTED)
    sheet.y = top + ROW * max(plan.rows, 1)
    sheet.line([(PAD, top - 5), (right, top - 5)], colour=EDGE, width=1, layer=1)


VIEW = View(lambda models, least: _plan(models, least, ()), _draw, _twin)
