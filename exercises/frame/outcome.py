"""What comes out of a question: the answer of a check, the reason why it is not right, a hint, a solution."""

import html
import re

from helpers.pictures.picture import picture_as_html

NOT_STARTED, NOT_RIGHT, RIGHT, NOT_JUDGED = "not started", "not right", "right", "not judged"

_LOOKS = {RIGHT: ("✔", "#009E73"), NOT_RIGHT: ("✘", "#D55E00"), NOT_STARTED: ("○", "#56B4E9"), "": ("➜", "#E69F00")}


class Wrong(Exception):
    """What a judge raises: the answer is not right yet.

    Args:
        observed: what was found on the log, in the database, in the returned value.
        wanted: what should have been there.
        cause: the likely cause, as a hint at the learner's code.
        picture: a `Picture` of what was observed.
    """

    def __init__(self, observed: str, wanted: str = "", cause: str = "", picture=None):
        super().__init__(observed)
        self.facts = [("Observed", observed), ("Wanted", wanted), ("Likely cause", cause)]
        self.picture = picture
        self.trace = ""  # for authors: the whole story of an exception, where there was one


class NoJudgement(Wrong):
    """The check could not be done, which says nothing about the answer: no cluster, a dead broker, a slow machine."""


class Card:
    """Facts to show: HTML for the notebook, and the same in plain text.

    Args:
        title: the first line.
        facts: pairs of a label (or "") and a text, in which backticks mark code; those without text are left out.
        picture: a `Picture`, which brings its own text twin.
        kind: what it is about, an outcome's state; gives the colour.
    """

    def __init__(self, title: str, facts: list[tuple[str, str]], picture=None, kind: str = ""):
        self.title, self.facts, self.picture, self.kind = title, [fact for fact in facts if fact[1]], picture, kind

    def __repr__(self):
        lines = ["  " + (_heading(label, fact) + fact).replace("\n", "\n    ") for label, fact in self.facts]
        return "\n".join([self.title, *lines, *([repr(self.picture)] if self.picture is not None else [])])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        mark, colour = _LOOKS.get(self.kind, _LOOKS[""])
        rows = [f"<div><b>{mark} {_to_html(self.title)}</b></div>"]
        for label, fact in self.facts:
            heading = f"<b>{_to_html(_heading(label, fact))}</b>"
            rows.append(f'<div style="white-space: pre-wrap; margin-top: 0.3em">{heading}{_to_html(fact)}</div>')
        if self.picture is not None:
            rows.append(picture_as_html(self.picture))
        style = f"border-left: 6px solid {colour}; background: {colour}22; padding: 0.5em 1em; max-width: 60em"
        return {"text/html": f'<div style="{style}">{"".join(rows)}</div>', "text/plain": repr(self)}


class Outcome(Card):
    """The answer of a check: its `state` is "not started", "not right", "right" or "not judged".

    It is not judged where something else than the answer is in the way, and then it counts as no try; `trace` is a
    whole traceback, for authors.
    """

    def __init__(self, state: str, title: str, facts: list[tuple[str, str]], picture=None, trace=""):
        super().__init__(title, facts, picture, kind=state)
        self.state, self.trace = state, trace

    @property
    def judged(self) -> bool:
        """Whether the outcome says something about the answer."""
        return self.state != NOT_JUDGED


class Interrupted(KeyboardInterrupt):
    """A learner who does not wait for the check: one line in the notebook, and no traceback of the course's code."""

    def _render_traceback_(self) -> list[str]:
        return [f"{self.args[0]}: interrupted; nothing was judged, and it counts as no try."]


class Source:
    """A solution to show: as Markdown, which JupyterLab colours in its theme, and in plain text."""

    def __init__(self, title: str, text: str):
        self.title, self.text = title, text

    def __repr__(self):
        return f"{self.title}\n\n{self.text}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/markdown": f"{self.title}\n\n```python\n{self.text}\n```", "text/plain": repr(self)}


def _heading(label: str, fact: str) -> str:
    """What stands before a fact; one of several lines begins on a line of its own."""
    return label and label + (":\n" if "\n" in fact else ": ")


def _to_html(text: str) -> str:
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html.escape(text))
