"""Who said what to whom: services as lanes, the records between them as arrows, in the order given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .picture import Picture
from .style import BLUE, MAX_WIDTH, PAD, text_width

# Each kind's colour, line and word. A failure and what makes up for it differ by their line as well.
KINDS = {
    "forward": (BLUE, "-", ""),
    "failure": ("#b04a00", "-", "failure"),
    "compensation": ("#b04a00", (0, (5, 3)), "compensation"),
}


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


def swimlanes(messages: Iterable[Message], lanes: Sequence[str], title: str,
              subtitle: str | None = None) -> Picture:
    """Picture messages between the services named in `lanes`, from left to right."""
    talk = Talk(tuple(lanes), tuple(messages))
    strange = {name for message in talk.messages for name in (message.sender, message.receiver)} - {*lanes}
    if strange:
        raise ValueError(f"No lane is named {', '.join(sorted(strange))}: the lanes are {', '.join(lanes)}.")
    return Picture(title, talk, VIEW, subtitle)


def _twin(talk: Talk) -> list[str]:
    told = [f"services: {' | '.join(talk.lanes)}"]
    for message in talk.messages:
        way = message.sender + (f" → {message.receiver}" if message.receiver != message.sender else "")
        word = KINDS[message.kind][2]
        told.append(f"{way}: {message.label}" + (f" ({word})" if word else ""))
    return told


def _plan(models: Sequence[Talk]) -> _Plan:
    """Set the lanes so far apart that each label fits between its two."""
    lanes = models[-1].lanes
    apart = [max(150.0, (text_width(a, bold=True) + text_width(b, bold=True)) / 2 + 24)
             for a, b in zip(lanes, lanes[1:], strict=False)]
    tail = text_width(lanes[-1], bold=True) / 2 if lanes else 0
    for message in (message for model in models for message in model.messages):
        first, last = sorted((lanes.index(message.sender), lanes.index(message.receiver)))
        need = text_width(message.label) + 36
        if first < last:
            lack = need - sum(apart[first:last])
            apart[first:last] = [gap + max(0.0, lack) / (last - first) for gap in apart[first:last]]
        elif last < len(apart):
            apart[last] = max(apart[last], need)
        else:
            tail = max(tail, need)
    head = text_width(lanes[0], bold=True) / 2 if lanes else 0
    room = MAX_WIDTH - 2 * PAD
    share = min(1.0, room / (head + sum(apart) + tail))
    xs = {lane: PAD + share * (head + sum(apart[:place])) for place, lane in enumerate(lanes)}
    return _Plan(2 * PAD + share * (head + sum(apart) + tail), xs)
