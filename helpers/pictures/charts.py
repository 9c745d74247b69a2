"""Ordinary charts in the same look: bars for rates and costs, lines for what grows or lags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from .picture import Picture, View
from .style import (
    BLUE,
    BODY,
    EDGE,
    MUTED,
    PAD,
    PALETTE,
    SMALL,
    Colours,
    Sheet,
    fit,
    text_width,
    tint,
)

WIDTH = 720.0  # pixels


@dataclass(frozen=True)
class Bars:
    """Named amounts of one unit. `measured` ones differ from run to run, so the text leaves them out."""

    rows: tuple[tuple[str, float], ...]
    unit: str
    measured: bool


@dataclass(frozen=True)
class Lines:
    """Named series of (x, y) points; `measured` as in Bars."""

    series: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    x_label: str
    y_label: str
    measured: bool


@dataclass
class _Plan:
    width: float
    gutter: float = 0
    top: float = 0  # the greatest amount


def bars(
    rows: Mapping[str, float] | Iterable[tuple[str, float]],
    title: str,
    unit: str,
    measured: bool = True,
) -> Picture:
    """Picture amounts, e.g. `{"one by one": 310, "in batches": 41_000}` in 'records/s', as horizontal bars.

    With `measured` the text names the rows without their figures.
    """
    pairs = rows.items() if isinstance(rows, Mapping) else rows
    model = Bars(tuple((str(name), float(amount)) for name, amount in pairs), unit, measured)
    return Picture(title, model, View(_plan_bars, _draw_bars, _twin_of_bars))


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    x_label: str,
    y_label: str,
    measured: bool = True,
) -> Picture:
    """Picture series of (x, y) points, each with its name at its end; `measured` as in `bars`."""
    model = Lines(
        tuple((str(name), tuple((float(x), float(y)) for x, y in points)) for name, points in series.items()),
        x_label,
        y_label,
        measured,
    )
    return Picture(title, model, View(_plan_lines, _draw_lines, _twin_of_lines))


def _figure(amount: float) -> str:
    """An amount as one reads it: three digits that count, thousands apart."""
    digits = 0 if amount == 0 else max(0, 2 - floor(log10(abs(amount))))
    told = f"{amount:,.{min(digits, 6)}f}"
    return told.rstrip("0").rstrip(".") if "." in told else told


def _plan_bars(models: Sequence[Bars], least: float) -> _Plan:
    rows = [row for model in models for row in model.rows]
    names = max((min(text_width(name), 280) for name, _ in rows), default=0)
    return _Plan(max(least, WIDTH), PAD + names + 12, max((amount for _, amount in rows), default=0))


def _draw_bars(sheet: Sheet, model: Bars, plan: _Plan) -> None:
    told = [f"{_figure(amount)} {model.unit}" for _, amount in model.rows]
    longest = max((text_width(figure, bold=True) for figure in told), default=0)
    room = sheet.width - PAD - plan.gutter - longest - 12
    for (name, amount), figure in zip(model.rows, told, strict=True):
        long = max(2.0, room * amount / plan.top) if plan.top > 0 else 0.0
        sheet.text(plan.gutter - 12, sheet.y + 14, fit(name, 280), align="right")
        if amount > 0:
            sheet.box(plan.gutter, sheet.y, long, 28, fill=tint(BLUE), edge=BLUE, radius=4)
        sheet.text(plan.gutter + long + 10, sheet.y + 14, figure, bold=True)
        sheet.y += 38
    if not model.rows:
        sheet.text(PAD, sheet.y + 8, "nothing to show", colour=MUTED)
        sheet.y += 24


def _twin_of_bars(model: Bars) -> list[str]:
    if model.measured:
        return [f"bars in {model.unit}: " + (" | ".join(name for name, _ in model.rows) or "nothing to show")]
    return [f"{name}: {_figure(amount)} {model.unit}" for name, amount in model.rows] or ["nothing to show"]


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round figures from at most `low` to at least `high`."""
    step = 10 ** floor(log10((high - low) / about)) if high > low else 1.0
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= about)
    return [number * step for number in range(floor(low / step), ceil(high / step) + 1)]


def _plan_lines(models: Sequence[Lines], least: float) -> _Plan:
    return _Plan(max(least, WIDTH))


def _draw_lines(sheet: Sheet, model: Lines, plan: _Plan) -> None:
    points = [point for _, series in model.series for point in series]
    colours = Colours(name for name, _ in model.series)
    across = _ticks(min((x for x, _ in points), default=0), max((x for x, _ in points), default=1), 7)
    upward = _ticks(min([0.0, *(y for _, y in points)]), max((y for _, y in points), default=1))
    left = PAD + max(text_width(_figure(y), SMALL) for y in upward) + 8
    names = {name: fit(name, 200, BODY, True) for name, _ in model.series}
    right = sheet.width - PAD - max((text_width(name, BODY, True) for name in names.values()), default=0) - 12
    high, top = max(220.0, 20.0 * len(names)), sheet.y + 30

    def x_of(x: float) -> float:
        return left + (right - left) * (x - across[0]) / ((across[-1] - across[0]) or 1)

    def y_of(y: float) -> float:
        return top + high * (1 - (y - upward[0]) / ((upward[-1] - upward[0]) or 1))

    sheet.text(PAD, sheet.y + 8, fit(model.y_label, 400), colour=MUTED)
    for y in upward:
        sheet.line([(left, y_of(y)), (right, y_of(y))], colour=EDGE, width=1, layer=1)
        sheet.text(left - 8, y_of(y), _figure(y), size=SMALL, colour=MUTED, align="right")
    for x in across:
        sheet.text(x_of(x), top + high + 16, _figure(x), size=SMALL, colour=MUTED, align="center")
    sheet.text(right, top + high + 38, fit(model.x_label, 400), colour=MUTED, align="right")
    ends = []
    for place, (name, series) in enumerate(model.series):
        if series:
            style = "-" if place < len(PALETTE) else (0, (4, 2))
            sheet.line([(x_of(x), y_of(y)) for x, y in series], colour=colours(name).line, width=2.4, style=style)
            ends.append((y_of(series[-1][1]), name, x_of(series[-1][0])))
    for y, name, x, at in _spread(ends, top, top + high):
        sheet.line([(x, y), (right + 2, y), (right + 9, at)], colour=colours(name).line, width=1)
        sheet.text(right + 12, at, names[name], bold=True)
    sheet.y = top + high + 50


def _spread(ends: list[tuple[float, str, float]], top: float, bottom: float) -> list[tuple[float, str, float, float]]:
    """The (y, name, x) of the lines' ends with the y at which each name stands: names that would meet give way."""
    places: list[float] = []
    for y, _, _ in sorted(ends, reverse=True):
        places.append(min(y, places[-1] - 20 if places else bottom))
    for index in reversed(range(len(places))):
        places[index] = max(places[index], places[index + 1] + 20 if index + 1 < len(places) else top)
    return [(*end, place) for end, place in zip(sorted(ends, reverse=True), places, strict=True)]


def _twin_of_lines(model: Lines) -> list[str]:
    axes = f"lines of {model.y_label} over {model.x_label}"
    if model.measured:
        return [f"{axes}: " + (" | ".join(name for name, _ in model.series) or "nothing to show")]
    return [
        axes,
        *(
            f"{name}: " + (", ".join(f"{_figure(x)} → {_figure(y)}" for x, y in series) or "nothing")
            for name, series in model.series
        ),
    ]
