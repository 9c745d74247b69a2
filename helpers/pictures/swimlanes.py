"""Who said what to whom: services as lanes, the records between them as arrows, in the order given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .picture import Picture, View
from .style import BLUE, DARK_RED, EDGE, MAX_WIDTH, MUTED, PAD, WHITE, Sheet, fit, text_width

# Each kind's colour, line, sign and word.
KINDS = {
    "forward": (BLUE, "-", "", ""),
    "failure": (DARK_RED, "-", "✗", "failure"),
    "compensation": (DARK_RED, (0, (5, 3)), "↩", "compensation"),
}
MOST = 40  # messages in one picture
ROW = 44.0  # pixels from one message to the next


@dataclass(frozen=True)
class Message:
    """A record from one service to another; `kind` is 'forward', 'failure' or 'compensation'.

    With sender and receiver the same it is something that a service did by itself.
    """

    sender: str
    receiver: str
    label: str
    kind: str = "forward"


@dataclass(frozen=True)
class Talk:
    """What was said between the services, in order."""

    lanes: tuple[str, ...]
    messages: tuple[Message, ...]


@dataclass
class _Plan:
    width: float
    xs: dict[str, float]  # of each service's line


def swimlanes(messages: Iterable[Message], lanes: Sequence[str], title: str) -> Picture:
    """Picture messages between the services named in `lanes`, from left to right."""
    talk = Talk(tuple(lanes), tuple(messages))
    strange = {name for message in talk.messages for name in (message.sender, message.receiver)} - {*lanes}
    if strange:
        raise ValueError(f"No lane is named {', '.join(sorted(strange))}: the lanes are {', '.join(lanes)}.")
    odd = {message.kind for message in talk.messages} - KINDS.keys()
    if odd:
        raise ValueError(f"No kind of message is {', '.join(sorted(odd))}: the kinds are {', '.join(KINDS)}.")
    return Picture(title, talk, VIEW)


def _twin(talk: Talk) -> list[str]:
    told = [f"services: {' | '.join(talk.lanes)}"]
    for message in _shown(talk):
        if isinstance(message, int):
            told.append(f"… {message} more …")
            continue
        way = message.sender + (f" → {message.receiver}" if message.receiver != message.sender else "")
        word = KINDS[message.kind][-1]
        told.append(f"{way}: {message.label}" + (f" ({word})" if word else ""))
    return told


def _plan(models: Sequence[Talk], least: float) -> _Plan:
    """Set the lanes so far apart that each label fits between its two."""
    lanes = models[-1].lanes
    apart = [
        max(150.0, (text_width(a, bold=True) + text_width(b, bold=True)) / 2 + 24)
        for a, b in zip(lanes, lanes[1:], strict=False)
    ]
    tail = text_width(lanes[-1], bold=True) / 2 if lanes else 0
    for message in (message for model in models for message in model.messages):
        first, last = sorted((lanes.index(message.sender), lanes.index(message.receiver)))
        need = text_width(f"↩ {message.label}") + 40
        if first < last:
            lack = need - sum(apart[first:last])
            apart[first:last] = [gap + max(0.0, lack) / (last - first) for gap in apart[first:last]]
        elif last < len(apart):
            apart[last] = max(apart[last], need)
        else:
            tail = max(tail, need)
    head = text_width(lanes[0], bold=True) / 2 if lanes else 0
    room = min(max(head + sum(apart) + tail, least - 2 * PAD), MAX_WIDTH - 2 * PAD)
    share = (room - head - tail) / (sum(apart) or 1)
    xs = {lane: PAD + head + share * sum(apart[:place]) for place, lane in enumerate(lanes)}
    return _Plan(2 * PAD + room, xs)


def _shown(talk: Talk) -> list[Message | int]:
    """The messages; of too many the middle ones as their number."""
    some: list[Message | int] = [*talk.messages]
    return some if len(some) <= MOST else [*some[: MOST // 2], len(some) - MOST, *some[-MOST // 2 :]]


def _draw(sheet: Sheet, talk: Talk, plan: _Plan) -> None:
    top = sheet.y + 26
    for lane, x in plan.xs.items():
        sheet.text(x, sheet.y + 10, lane, bold=True, align="center")
    sheet.y = top - 4
    for message in _shown(talk):
        sheet.y += ROW
        if isinstance(message, int):
            x = sum(plan.xs.values()) / len(plan.xs)
            sheet.text(x, sheet.y - 10, f"… {message} more …", colour=MUTED, align="center", ground=WHITE)
        else:
            _draw_message(sheet, message, plan)
    sheet.y += 22
    for x in plan.xs.values():
        sheet.line([(x, top), (x, sheet.y)], colour=EDGE, width=2.4, layer=1)
    sheet.y += 14
    kinds = {message.kind for message in talk.messages}
    sheet.footer([f"{sign} = {word}" for kind, (*_, sign, word) in KINDS.items() if word and kind in kinds])


def _draw_message(sheet: Sheet, message: Message, plan: _Plan) -> None:
    colour, style, sign, _ = KINDS[message.kind]
    label = f"{sign} {message.label}".strip()
    start, end = plan.xs[message.sender], plan.xs[message.receiver]
    if start == end:
        after = min([x for x in plan.xs.values() if x > start], default=sheet.width - PAD + 8)
        sheet.text(start + 14, sheet.y, fit(label, after - start - 24), colour=colour)
    else:
        way = 1 if end > start else -1
        label = fit(label, abs(end - start) - 26)
        sheet.text((start + end) / 2, sheet.y - 14, label, colour=colour, align="center", ground=WHITE)
        sheet.line([(start, sheet.y), (end - 10 * way, sheet.y)], colour=colour, style=style)
        sheet.shape(
            [(end - 3 * way, sheet.y), (end - 14 * way, sheet.y - 6), (end - 14 * way, sheet.y + 6)], fill=colour
        )
    sheet.box(start - 5, sheet.y - 5, 10, 10, fill=colour, radius=5, layer=3.5)


VIEW = View(_plan, _draw, _twin)
