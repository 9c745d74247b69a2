"""What happened to whom, and when: a lane for each thing, its steps on one axis of time, to scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .charts import _figure, _ticks
from .picture import Picture, View
from .style import BLUE, DARK_RED, EDGE, MAX_WIDTH, MUTED, PAD, PALETTE, SMALL, Sheet, fit, text_width, tint

# Each kind's colour, sign and word, and the colour of the wait that comes after such a step.
KINDS = {
    "forward": (BLUE, "", "", EDGE),
    "failure": (DARK_RED, "✗", "failure", tint(PALETTE[1], 0.45)),
}
MOST = 20  # lanes in one picture
ROW = 32.0  # pixels from one lane to the next
SCALE = 620.0  # pixels of the whole time, at least


@dataclass(frozen=True)
class Step:
    """Something that happened in a lane at a time in seconds; `kind` is 'forward' or 'failure'."""

    time: float
    lane: str
    label: str
    kind: str = "forward"


@dataclass(frozen=True)
class Timeline:
    """The steps of each lane, in the order of time, and how many lanes are left out."""

    lanes: tuple[tuple[str, tuple[Step, ...]], ...]
    rest: int


@dataclass
class _Plan:
    width: float
    gutter: float  # left edge of the axis
    start: float
    scale: float  # pixels of a second
    ticks: list[float]

    def x(self, time: float) -> float:
        return self.gutter + (time - self.start) * self.scale


def timeline(steps: Iterable[Step], title: str, lanes: Sequence[str] = ()) -> Picture:
    """Picture steps, each in its lane: those of `lanes` first, the others as they come. The wait between two is a bar.

    Times differ from run to run, so the text tells each lane's steps in their order, without times.
    """
    steps = sorted(steps, key=lambda step: step.time)
    odd = {step.kind for step in steps} - KINDS.keys()
    if odd:
        raise ValueError(f"No kind of step is {', '.join(sorted(odd))}: the kinds are {', '.join(KINDS)}.")
    names = list(dict.fromkeys([*lanes, *(step.lane for step in steps)]))
    shown = tuple((name, tuple(step for step in steps if step.lane == name)) for name in names[:MOST])
    return Picture(title, Timeline(shown, len(names) - len(shown)), VIEW)


def _twin(model: Timeline) -> list[str]:
    told = [f"{name}: " + (" · ".join(_told(step) for step in steps) or "nothing") for name, steps in model.lanes]
    return [*(told or ["nothing to show"]), *([f"… {model.rest} more …"] if model.rest else [])]


def _told(step: Step) -> str:
    word = KINDS[step.kind][2]
    return step.label + (f" ({word})" if word and step.label != word else "")


def _plan(models: Sequence[Timeline], least: float) -> _Plan:
    lanes = [lane for model in models for lane in model.lanes]
    times = [step.time for _, steps in lanes for step in steps] or [0.0]
    ticks = _ticks(min(times), max(times), 8)
    gutter = PAD + max((min(text_width(name), 200.0) for name, _ in lanes), default=0) + 20
    last = max((text_width(_sign(steps[-1])) + 20 for _, steps in lanes if steps), default=0)
    wide = min(max(SCALE, least - gutter - PAD), MAX_WIDTH - gutter - PAD)
    span = max(max(times) - ticks[0], 1e-9)
    scale = min(wide / (((ticks[-1] - ticks[0]) or 1) * 1.02), max(wide - last, 100.0) / span)
    return _Plan(gutter + wide + PAD, gutter, ticks[0], scale, ticks)


def _sign(step: Step) -> str:
    return f"{KINDS[step.kind][1]} {step.label}".strip()


def _draw(sheet: Sheet, model: Timeline, plan: _Plan) -> None:
    bottom = sheet.y + ROW * len(model.lanes) + 4
    for tick in plan.ticks:
        sheet.line([(plan.x(tick), sheet.y), (plan.x(tick), bottom)], colour=EDGE, width=1, layer=1)
        sheet.text(plan.x(tick), bottom + 12, _figure(tick), size=SMALL, colour=MUTED, align="center")
    for name, steps in model.lanes:
        middle = sheet.y + ROW / 2
        sheet.text(plan.gutter - 14, middle, fit(name, 200), align="right")
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            _draw_step(sheet, step, following, middle, plan)
        sheet.y += ROW
    sheet.text(sheet.width - PAD, bottom + 32, "seconds", size=SMALL, colour=MUTED, align="right")
    sheet.y = bottom + 46
    notes = ["● = a step, the bar after it = waiting"]
    failures = any(step.kind == "failure" for _, steps in model.lanes for step in steps)
    notes += ["✗ = failure"] if failures else []
    sheet.footer([*notes, *([f"{model.rest} more lanes are not shown"] if model.rest else [])])


def _draw_step(sheet: Sheet, step: Step, following: Step | None, middle: float, plan: _Plan) -> None:
    colour, _, _, wait = KINDS[step.kind]
    x = plan.x(step.time)
    room = (plan.x(following.time) if following else sheet.width - PAD + 6) - x - 16
    if following:
        sheet.box(x, middle - 10, max(room + 16, 1), 20, fill=wait, radius=2)
    told = _sign(step)
    if text_width(told, SMALL) <= room:
        sheet.text(x + 10, middle, told, size=SMALL, colour=colour)
    sheet.box(x - 5, middle - 5, 10, 10, fill=colour, radius=5, layer=3.5)


VIEW = View(_plan, _draw, _twin)
