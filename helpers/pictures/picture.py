"""What a cell shows: a picture with its text twin, and a film of several moments with a slider."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from helpers import settings
from helpers.notebook import somebody_is_watching

from .style import MAX_WIDTH, MIN_WIDTH, PAD, TITLE, Sheet, fit, text_width

DRAWN_FROM = "drawn-from"  # where a picture, and a cell's output, say which facts they were drawn from


@dataclass(frozen=True)
class View:
    """How one kind of model is shown: what its moments share, how it is drawn, and how it is told.

    `plan` gets all models that are to be drawn alike (one, or the moments of a film) and the least width in
    pixels; it returns an object with a `width`, which `draw` gets back. `twin` gives the lines of the text.
    """

    plan: Callable[[Sequence[Any], float], Any]
    draw: Callable[[Sheet, Any, Any], None]
    twin: Callable[[Any], list[str]]


class Picture:
    """A picture of one recorded model, and the same facts as text (`picture.text`).

    The text is what nbval compares, what a log without a screen shows, and what a screen reader reads:
    VS Code takes it as the picture's alternative text. JupyterLab 4.6 has no place for one, so with
    `COURSE_PICTURES=text` in the environment there is the text alone, there as everywhere.
    """

    def __init__(
        self,
        title: str,
        model: Any,
        view: View,
        subtitle: str | None = None,
        *,
        alike: Sequence[Any] | None = None,
        text: str | None = None,
    ) -> None:
        self.title, self.subtitle, self.model, self.view = title, subtitle, model, view
        self._alike = alike or [model]
        self._text = text

    @property
    def body(self) -> list[str]:
        """The lines of the text below the title."""
        return self.view.twin(self.model)

    @property
    def text(self) -> str:
        """The text twin: the facts of the picture, and nothing that differs from run to run."""
        return self._text or "\n".join([self.title, *([self.subtitle] if self.subtitle else []), *self.body])

    @cached_property
    def sheet(self) -> Sheet:
        """The drawing, made when it is first asked for."""
        title = text_width(self.title, TITLE, bold=True) + 2 * PAD
        plan = self.view.plan(self._alike, max(MIN_WIDTH, min(title, MAX_WIDTH)))
        sheet = Sheet(plan.width)
        sheet.header(self.title, self.subtitle)
        self.view.draw(sheet, self.model, plan)
        sheet.finish()
        return sheet

    @property
    def drawn_from(self) -> str:
        """A hash of the facts that the picture shows: the first 16 hex digits of the text twin's sha256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @cached_property
    def png(self) -> bytes:
        """The picture as a PNG of two dots a CSS pixel; its text chunk `drawn-from` holds the hash of its facts."""
        return self.sheet.png({DRAWN_FROM: self.drawn_from})

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        if _text_alone():
            return {"text/plain": self.text}, {}
        data = {
            "image/png": base64.b64encode(self.png).decode(),
            "text/plain": self.text,
            f"application/x.{DRAWN_FROM}": self.drawn_from,  # nbval compares this, and never the picture
        }
        return data, {"image/png": {"width": self.sheet.width, "alt": self.text}}


class Film:
    """The moments of a recording, one picture each, drawn alike so that only what changed moves.

    As the last value of a cell it is one output: the picture of the last moment, and a text that tells all of
    them. In a front end with a person before it, a slider follows that changes the picture; the slider is an
    output of its own, so that without a kernel the picture is still there.
    """

    def __init__(self, title: str, moments: Sequence[tuple[str, Picture]]) -> None:
        if not moments:
            raise ValueError("A film needs at least one moment: a list of (caption, picture).")
        self.title = title
        self.captions = [f"{number} of {len(moments)} · {caption}" for number, (caption, _) in enumerate(moments, 1)]
        told = [
            [caption, *(f"  {line}" for line in picture.body)]
            for caption, (_, picture) in zip(self.captions, moments, strict=True)
        ]
        self.text = "\n".join([title, *(line for lines in told for line in lines)])
        alike = [picture.model for _, picture in moments]
        self.pictures = [
            Picture(title, picture.model, picture.view, fit(caption, MIN_WIDTH - 2 * PAD), alike=alike, text=self.text)
            for caption, (_, picture) in zip(self.captions, moments, strict=True)
        ]

    def __repr__(self) -> str:
        return self.text

    def _ipython_display_(self) -> None:
        self.show()

    def show(self) -> None:
        """Show the last moment and, where a person can move it, a slider through all of them."""
        from IPython.display import display  # here, so that pictures can be made without IPython

        if len(self.pictures) == 1 or _text_alone() or not somebody_is_watching():
            display(self.pictures[-1])
            return
        handle = display(self.pictures[-1], display_id=True)
        slider = _slider(self.captions)
        if slider is not None:
            slider.observe(lambda change: handle.update(self.pictures[change["new"]]), names="value")
            display(slider)


def _text_alone() -> bool:
    return settings.value("COURSE_PICTURES") == "text"


def _slider(captions: Sequence[str]) -> Any:
    """A slider over the moments, whose captions stand in the picture; None where widgets are not to be had."""
    try:
        from ipywidgets import Layout, SelectionSlider

        options = [(f"{place + 1} of {len(captions)}", place) for place in range(len(captions))]
        return SelectionSlider(
            options=options,
            value=len(options) - 1,
            description="moment",
            layout=Layout(width="100%", max_width="900px"),
        )
    except Exception:  # a comfort: whatever keeps it away (no package, no comm), the picture stays
        return None


def picture_as_html(picture) -> str:
    """Return the picture itself with its text as the alternative, or the text alone where pictures are switched off."""
    data, metadata = picture._repr_mimebundle_()
    text = html.escape(data["text/plain"])
    if "image/png" not in data:
        return f"<pre>{text}</pre>"
    source, width = f"data:image/png;base64,{data['image/png']}", metadata["image/png"]["width"]
    return f'<img style="max-width: 100%; margin-top: 0.5em" width="{width}" alt="{text}" src="{source}">'
