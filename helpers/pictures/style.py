"""The one look of all pictures: colours, type, and a white card to draw on in CSS pixels.

Only matplotlib's object interface is used: no pyplot, no rcParams, so a learner's own charts are not touched.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from math import ceil
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Polygon
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# Okabe and Ito's colours, which colour-blind readers tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
BLUE, DARK_RED = "#0072B2", "#b04a00"  # dark enough for letters on white, and for white letters on them
INK, MUTED, LANE, EDGE, WHITE = "#1f2933", "#5f6b78", "#eef1f4", "#d3d9e0", "#ffffff"
SMALL, BODY, TITLE = 10.0, 11.0, 13.5  # points
PAD = 20.0  # pixels between the card's edge and what is drawn on it
MIN_WIDTH, MAX_WIDTH = 560.0, 900.0  # pixels; JupyterLab scales down what is wider than the page
DPI = 192  # two dots a CSS pixel, so that it is crisp on a dense screen
PIXEL = 0.75  # points in a CSS pixel


class Colour(NamedTuple):
    """The outline and the fill of one thing."""

    line: str
    fill: str


NEUTRAL = Colour("#8793a0", "#e3e7eb")


def tint(colour: str, share: float = 0.2) -> str:
    """The colour mixed with white, `share` of it left."""
    return to_hex([1 - share * (1 - part) for part in to_rgb(colour)])  # type: ignore[arg-type]


class Colours:
    """Gives each key its colour, in the order in which keys are first asked for.

    The seventh to twelfth key have the colours again with a deeper fill; later keys, and no key, are grey.
    """

    def __init__(self, keys: Iterable[str | None] = ()) -> None:
        self._known: dict[str, Colour] = {}
        for key in keys:
            self(key)

    def __call__(self, key: str | None) -> Colour:
        """Return the colour of a key, and remember it."""
        if key is None:
            return NEUTRAL
        if key not in self._known:
            turn, place = divmod(len(self._known), len(PALETTE))
            line = PALETTE[place]
            self._known[key] = Colour(line, tint(line, (0.2, 0.55)[turn])) if turn < 2 else NEUTRAL
        return self._known[key]


@cache
def font(size: float, bold: bool = False) -> FontProperties:
    """DejaVu Sans from matplotlib's own folder: the same letters, so the same picture, on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return FontProperties(fname=Path(matplotlib.get_data_path(), "fonts/ttf", name), size=size)


@lru_cache(maxsize=4096)
def drawable(text: str) -> str:
    """The text on one line, a box for each letter that the font lacks: matplotlib would warn on stderr."""
    known = _letters()
    return "".join(letter if ord(letter) in known else "□" for letter in " ".join(text.split()))


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(font(BODY).get_file()).get_charmap())


@cache
def _ruler() -> RendererAgg:
    return RendererAgg(1, 1, DPI)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float = BODY, bold: bool = False) -> float:
    """The width in pixels of a text as it will be drawn."""
    width, _, _ = _ruler().get_text_width_height_descent(drawable(text), font(size, bold), ismath=False)
    return width * 96 / DPI


@lru_cache(maxsize=4096)
def fit(text: str, width: float, size: float = BODY, bold: bool = False) -> str:
    """The text if it fits into `width` pixels, else as much of it as does, with an ellipsis."""
    text = drawable(text)
    most = int(width / 2)  # no letter is narrower than two pixels
    if len(text) <= most and text_width(text, size, bold) <= width:
        return text
    short = [text[:letters].rstrip() + "…" for letters in range(min(len(text), most) + 1)]
    return short[max(0, bisect_right(short, width, key=lambda each: text_width(each, size, bold)) - 1)]


def wrap(text: str, width: float, size: float = BODY, bold: bool = False) -> list[str]:
    """The text broken between words into lines of at most `width` pixels."""
    lines: list[str] = []
    for word in filter(None, text.split(" ")):  # not at no-break spaces
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(fit(word, width, size, bold))
    return lines


def stack_labels(labels: Sequence[tuple[float, float]]) -> list[int]:
    """Put labels that stand on stems on as few levels as do, so that none covers another one or a stem.

    A label is (x of its stem, width); its text runs to the right from the stem. Level 0 is the lowest. Those
    further left go higher, hence no stem can run through a text.
    """
    levels = [0] * len(labels)
    placed: list[tuple[float, float, int]] = []
    for index in sorted(range(len(labels)), key=lambda i: -labels[i][0]):
        x, width = labels[index]
        levels[index] = 1 + max((level for other, _, level in placed if other < x + width), default=-1)
        placed.append((x, width, levels[index]))
    return levels


class Sheet:
    """A white card with round corners: all lengths in CSS pixels from its top left corner, y downward.

    `y` is the cursor: whoever draws moves it down, and the card ends below it. Outside of the card the
    picture is transparent, so that it suits a light page and a dark one.
    """

    def __init__(self, width: float) -> None:
        self.width = ceil(width)
        self.y = PAD - 2
        self.figure = Figure(dpi=DPI, layout="none")  # type: ignore[arg-type]
        self.canvas = FigureCanvasAgg(self.figure)
        self.figure.patch.set_visible(False)
        self._axes = self.figure.add_axes((0, 0, 1, 1), frameon=False, xticks=(), yticks=())

    def header(self, title: str, subtitle: str | None) -> None:
        """Write what there is to see, over as many lines as it takes."""
        for line in wrap(title, self.width - 2 * PAD, TITLE, bold=True):
            self.text(PAD, self.y + 11, line, size=TITLE, bold=True)
            self.y += 24
        for line in wrap(subtitle or "", self.width - 2 * PAD):
            self.text(PAD, self.y + 9, line, colour=MUTED)
            self.y += 20
        self.y += 8

    def topic(self, name: str) -> None:
        """Write which topic is drawn below."""
        self.text(PAD, self.y + 8, "topic", colour=MUTED)
        at = PAD + text_width("topic") + 6
        self.text(at, self.y + 8, fit(name, self.width - PAD - at, bold=True), bold=True)
        self.y += 24

    def footer(self, notes: Sequence[str]) -> None:
        """Write how to read the signs that occur in the picture."""
        told = " ".join(f"{note} ·".replace(" ", "\N{NO-BREAK SPACE}") for note in notes)
        for line in wrap(told, self.width - 2 * PAD, SMALL):
            self.text(PAD, self.y + 9, line.rstrip("·\N{NO-BREAK SPACE}"), size=SMALL, colour=MUTED)
            self.y += 18

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = BODY,
        colour: str = INK,
        bold: bool = False,
        align: str = "left",
        angle: float = 0,
        ground: str | None = None,
    ) -> None:
        """Write one line, its small letters centred on y; `ground` is a colour to clear behind it."""
        drawn = Text(
            x,
            y,
            drawable(text),
            fontproperties=font(size, bold),
            color=colour,
            rotation=angle,
            ha="center" if angle else align,
            va="center" if angle else "baseline",
            parse_math=False,
            usetex=False,
            zorder=4,
        )
        if not angle:  # on the baseline, or a label with a 'g' would sit higher than its neighbour
            drawn.set_y(y + 0.36 * size / PIXEL)
        if ground:
            drawn.set_bbox({"facecolor": ground, "edgecolor": "none", "pad": 1.5})
        self._axes.add_artist(drawn)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = WHITE,
        edge: str | None = None,
        style: object = "-",
        radius: float = 6,
        line: float = 1.6,
        layer: float = 2,
    ) -> None:
        """Draw a box with round corners."""
        self._axes.add_artist(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle=f"round,pad=0,rounding_size={min(radius, width / 2, height / 2)}",
                facecolor=fill,
                edgecolor=edge or "none",
                linewidth=line * PIXEL if edge else 0,
                linestyle=style,
                zorder=layer,
            )
        )

    def line(
        self,
        points: Sequence[tuple[float, float]],
        *,
        colour: str = INK,
        width: float = 2,
        style: object = "-",
        layer: float = 3,
    ) -> None:
        """Draw a line through the points."""
        xs, ys = zip(*points, strict=True)
        self._axes.add_artist(
            Line2D(
                xs,
                ys,
                color=colour,
                linewidth=width * PIXEL,
                linestyle=style,  # type: ignore[arg-type]
                marker="",
                zorder=layer,
                solid_capstyle="round",
                solid_joinstyle="round",
            )
        )

    def shape(self, points: Sequence[tuple[float, float]], *, fill: str = INK, edge: str | None = None) -> None:
        """Draw a closed shape, for example the head of an arrow."""
        self._axes.add_artist(
            Polygon(
                points,
                facecolor=fill,
                edgecolor=edge or fill,
                linewidth=1.4 * PIXEL,
                joinstyle="round",
                zorder=3.5,
            )
        )

    def label(self, x: float, y: float, bottom: float, text: str, *, hollow: bool = False) -> None:
        """Draw a label on a stem: a triangle at y, its text to the right, the stem down to `bottom`."""
        self.line([(x, y), (x, bottom)])
        corners = [(x - 6, y - 5), (x + 6, y - 5), (x, y + 5)]
        self.shape(corners, fill=WHITE if hollow else INK, edge=INK)
        self.text(x + LABEL_GAP, y, text, bold=True)

    def png(self, notes: Mapping[str, str] | None = None) -> bytes:
        """The finished picture, at two dots a pixel, with the 256 colours that matter most in it.

        Args:
            notes: text chunks to keep in the file, by their keywords.

        All that is flat and the soft edge of the card keep their exact colour, the rare shades at the edges
        of letters get a near one; the file, which is stored in a notebook, is less than half as large.
        """
        self.finish()
        self.canvas.draw()
        dots = np.ascontiguousarray(self.canvas.buffer_rgba()).view(np.uint32)
        high, wide, _ = dots.shape
        dots = dots.ravel()
        starts = np.append(0, np.flatnonzero(dots[1:] != dots[:-1]) + 1)  # of the runs of one colour
        lengths = np.diff(starts, append=dots.size)
        shades, places = np.unique(dots[starts], return_inverse=True)
        weights = np.bincount(places, lengths)
        parts = shades.view(np.uint8).reshape(-1, 4)
        weights[(parts[:, 3] > 0) & (parts[:, 3] < 255)] += dots.size
        kept = parts[np.argsort(-weights)[:256]]
        apart = parts[:, None].astype(int) - kept
        nearest = (apart**2).sum(axis=2).argmin(axis=1).astype(np.uint8)
        image = Image.fromarray(np.repeat(nearest[places], lengths).reshape(high, wide))
        image.putpalette(kept.tobytes(), "RGBA")
        buffer = io.BytesIO()
        chunks = PngInfo()
        for keyword, text in (notes or {}).items():
            chunks.add_text(keyword, text)
        image.save(buffer, "png", pnginfo=chunks)
        return buffer.getvalue()

    def finish(self) -> None:
        """Lay the card under what was drawn, and set the size; once."""
        if self.figure.get_size_inches()[0] == self.width / 96:
            return
        height = round(self.y + PAD - 4)
        self.box(1, 1, self.width - 2, height - 2, edge=EDGE, radius=12, line=1, layer=0)
        self.figure.set_size_inches(self.width / 96, height / 96)
        self._axes.set_xlim(0, self.width)
        self._axes.set_ylim(height, 0)


LABEL_GAP = 11.0  # pixels from a stem to its text
LABEL_ROW = 20.0  # pixels from one level of labels to the next


def label_width(text: str) -> float:
    """The room that a label takes to the right of its stem, with some air behind it."""
    return LABEL_GAP + text_width(text, bold=True) + 12
