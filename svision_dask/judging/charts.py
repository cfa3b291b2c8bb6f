"""Curves, bars and maps as SVG whose lines and words take the colour of the page around them, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[Any] | Sequence[float]

INK = "#010203"
"""Drawn in by matplotlib, and then replaced by the colour of the page's text."""
SEEN = 99.9
"""Percentile of a map at which its colours end; what is beyond has the last one, and the scale an arrow."""
COLOURS = {"before": "#8a8f98", "cubic": "#d98200", "after": "#2f8ded", "reference": "#1f9e77"}
"""Told apart by the colour-blind, on light ground and on dark (after Okabe, Ito 2008)."""
STYLES = {"before": "-", "cubic": ":", "after": "-", "reference": "--"}
SIZE, MAP_SIZE = (5.2, 3.0), (5.2, 4.2)
"""Inches."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a chart."""

    name: str
    """``before``, ``cubic``, ``after`` or ``reference`` have their own colours."""
    x: Values
    y: Values
    steps: bool = False
    """Whether values hold for a whole voxel or bin."""


def draw_lines(
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    level: tuple[float, str] | None = None,
    log: bool = False,
    floor: float | None = None,
) -> str:
    """Draw curves as SVG.

    Parameters
    ----------
    lines
        What is drawn; the legend names each, if there is more than one.
    x, y
        What the axes show, with the unit.
    level
        A horizontal line, and what it means.
    log
        Whether the y axis is logarithmic.
    floor
        Where the y axis begins.
    """
    with _ink():
        return _drawn_lines(lines, x=x, y=y, level=level, log=log, floor=floor)


def _drawn_lines(
    lines: Sequence[Line], *, x: str, y: str, level: tuple[float, str] | None, log: bool, floor: float | None
) -> str:
    figure, axes = _figure(SIZE)
    for line in lines:
        drawn: dict[str, Any] = {"color": COLOURS.get(line.name, COLOURS["after"]), "label": line.name}
        drawn |= {"linewidth": 1.6, "linestyle": STYLES.get(line.name, "-")}
        axes.plot(line.x, line.y, drawstyle="steps-mid" if line.steps else "default", **drawn)
    if level is not None:
        axes.axhline(level[0], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            level[1], (0.99, level[0]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
        )
    if log:
        axes.set_yscale("log")
    if floor is not None:
        axes.set_ylim(bottom=floor)
    axes.set_xlabel(_words(x))
    axes.set_ylabel(_words(y))
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def draw_map(
    values: npt.NDArray[Any],
    *,
    extent: tuple[float, float, float, float],
    x: str,
    y: str,
    colours: str,
    signed: bool = False,
    mark: tuple[float, float] | None = None,
) -> str:
    """Draw a plane of values with a colour bar, as SVG.

    Parameters
    ----------
    values
        (rows, columns); the first row is at the top.
    extent
        World positions of the left, right, bottom and top edge.
    x, y
        What the axes show, with the unit.
    colours
        What the colours mean, with the unit.
    signed
        Whether 0 is in the middle of the colours.
    mark
        World position (x, y) to draw a ring around.
    """
    with _ink():
        return _drawn_map(values, extent=extent, x=x, y=y, colours=colours, signed=signed, mark=mark)


def _drawn_map(
    values: npt.NDArray[Any],
    *,
    extent: tuple[float, float, float, float],
    x: str,
    y: str,
    colours: str,
    signed: bool,
    mark: tuple[float, float] | None,
) -> str:
    figure, axes = _figure(MAP_SIZE)
    size = np.abs(values)
    most = float(np.percentile(size, SEEN)) or float(size.max()) or 1.0  # one hot pixel must not make all others black
    beyond = float(size.max()) > most
    shown = axes.imshow(
        values,
        extent=extent,
        vmin=-most if signed else 0.0,
        vmax=most,
        cmap="RdBu_r" if signed else "inferno",
        interpolation="nearest",
    )
    if mark is not None:
        axes.plot(*mark, marker="o", markersize=14, markerfacecolor="none", markeredgecolor="#2fd9ed", linewidth=0)
    axes.set_xlabel(_words(x))
    axes.set_ylabel(_words(y))
    extend = "neither" if not beyond else "both" if signed else "max"
    figure.colorbar(shown, label=_words(colours), shrink=0.85, extend=extend)
    return _svg(figure)


def _words(label: str) -> str:
    """Keep matplotlib from reading a file's unit as mathematics, which it may fail at; ticks stay mathematics."""
    return label.replace("$", r"\$")


@contextmanager
def _ink() -> Iterator[None]:
    """Draw everything that would be black in ``INK``, and words as words."""
    from matplotlib import rc_context

    inked = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color", "xtick.labelcolor")
    settings: Any = dict.fromkeys(inked, INK)
    settings |= {"ytick.labelcolor": INK, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context({**settings, "svg.fonttype": "none", "svg.hashsalt": "svision-dask"}):
        yield


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.set_facecolor("none")
    return figure, axes


def _svg(figure: Figure) -> str:
    """Write a figure without what differs from run to run, and without what only a file of its own needs."""
    stream = io.StringIO()
    figure.savefig(
        stream, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None, "Creator": None}
    )
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
