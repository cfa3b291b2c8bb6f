"""One picture that shows the same place of several volumes side by side, on one grey scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from svision_dask.errors import UsageError
from svision_dask.geometry import Shape, Vector
from svision_dask.volume import Box

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = 3.2
DOTS_PER_INCH = 160
FRAME = "#ffb000"
"""Colour of the frame around the place that is shown enlarged; stands out from grey, also for the colour-blind."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One volume of the comparison: a column of the picture."""

    title: str
    voxels: npt.NDArray[Any]
    """(z, y, x); all panels show the same space."""
    factor: Shape
    """How many voxels of the finest panel one voxel of this one spans, per axis."""


def draw_comparison(
    path: str | Path, panels: Sequence[Panel], *, place: Box, spacing: Vector, white: float, caption: str = ""
) -> Path:
    """Draw the maximum projection along z of each volume, and of one place of it, enlarged, along z and along y.

    Every voxel is drawn as a rectangle of its own size and at its own place, nothing is interpolated, and every panel
    has the same linear grey scale. The picture is made without a display and leaves no global state behind.

    Parameters
    ----------
    path
        PNG file to write.
    panels
        At least two, shown from left to right.
    place
        Start and stop (z, y, x) in voxels of the finest panel; a multiple of every panel's factor.
    spacing
        Of the finest panel (z, y, x), in µm.
    white
        Intensity shown as white; 0 is black.
    caption
        Written below.

    Raises
    ------
    UsageError
        If ``place`` cuts through a voxel of a panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for panel in panels:
        _check_whole_voxels(place, panel)
    views = _views(panels[0], place)
    heights = [_height(view, spacing) for view in views]
    figure = Figure(figsize=(PANEL_INCHES * len(panels), PANEL_INCHES * sum(heights) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(views), len(panels), height_ratios=heights, squeeze=False)
    for column, panel in zip(axes.T, panels, strict=True):
        column[0].set_title(panel.title, fontsize=10)
        for cell, view in zip(column, views, strict=True):
            _draw_view(cell, panel, view, spacing, white)
        _draw_frame(column[0], place, spacing)
    for row, view in zip(axes, views, strict=True):
        row[0].set_ylabel(view.label, fontsize=9)
        _draw_scale_bar(row[0], view, spacing)
    figure.supxlabel(caption, fontsize=8, x=0.01, ha="left")
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return Path(path)


def informative_place(truth: npt.NDArray[Any], size: Shape, *, factor: Shape, ceiling: float) -> Box:
    """Find where coarse voxels hold most detail of their own: the sum of the truth's spread inside each.

    Only the truth decides, so that the place favours none of the volumes that are compared with it.

    Parameters
    ----------
    truth
        (z, y, x), on the fine grid.
    size
        Voxels (z, y, x) of the place, multiples of ``2·factor``; axes that are shorter are taken whole.
    factor
        Fine voxels per coarse voxel (z, y, x); divides the shape.
    ceiling
        Intensities above it count as equal, so that many dim structures outweigh a single bright one.

    Returns
    -------
    Box
        Start and stop; starts are multiples of half of ``size``.
    """
    size = tuple(min(s, n) for s, n in zip(size, truth.shape, strict=True))
    parts = tuple(part for n, f in zip(truth.shape, factor, strict=True) for part in (n // f, f))
    spread = np.minimum(truth, ceiling).reshape(parts).std(axis=(1, 3, 5))
    starts = [range(0, n - s + 1, max(s // 2, 1)) for n, s in zip(truth.shape, size, strict=True)]
    boxes = [tuple(slice(a, a + s) for a, s in zip(corner, size, strict=True)) for corner in itertools.product(*starts)]
    return max(boxes, key=lambda box: float(spread[_coarser(box, factor)].sum()))


@dataclass(frozen=True, kw_only=True)
class _View:
    """One row: what is projected, along which axis."""

    label: str
    box: Box
    """In voxels of the finest panel."""
    along: int
    """Axis of the projection; the other two are drawn, x to the right."""

    @property
    def drawn(self) -> tuple[int, int]:
        """The axes drawn downwards and to the right."""
        return (1, 2) if self.along == 0 else (0, 2)


def _views(panel: Panel, place: Box) -> tuple[_View, ...]:
    whole = tuple(slice(0, n * f) for n, f in zip(panel.voxels.shape, panel.factor, strict=True))
    return (
        _View(label="whole volume, maximum along z", box=whole, along=0),
        _View(label="framed place, maximum along z", box=place, along=0),
        _View(label="framed place, maximum along y", box=place, along=1),
    )


def _coarser(box: Box, factor: Shape) -> Box:
    """Count ``box`` in voxels that span ``factor`` of its own."""
    return tuple(slice(s.start // f, s.stop // f) for s, f in zip(box, factor, strict=True))


def _check_whole_voxels(place: Box, panel: Panel) -> None:
    if any(s.start % f or s.stop % f for s, f in zip(place, panel.factor, strict=True)):
        raise UsageError(
            f"place {place}: it cuts through voxels of {panel.title!r}, which span {panel.factor} fine ones."
        )


def _extent(view: _View, axis: int, spacing: Vector) -> tuple[float, float]:
    """Edges in µm of what is drawn along one axis."""
    return view.box[axis].start * spacing[axis], view.box[axis].stop * spacing[axis]


def _height(view: _View, spacing: Vector) -> float:
    """Height over width."""
    (top, bottom), (left, right) = (_extent(view, axis, spacing) for axis in view.drawn)
    return (bottom - top) / (right - left)


def _draw_view(cell: Axes, panel: Panel, view: _View, spacing: Vector, white: float) -> None:
    (top, bottom), (left, right) = (_extent(view, axis, spacing) for axis in view.drawn)
    cell.imshow(
        panel.voxels[_coarser(view.box, panel.factor)].max(axis=view.along),
        extent=(left, right, bottom, top),
        vmin=0,
        vmax=white,
        cmap="gray",
        interpolation="nearest",
    )
    cell.set_xticks([])
    cell.set_yticks([])


def _draw_frame(cell: Axes, place: Box, spacing: Vector) -> None:
    from matplotlib.patches import Rectangle

    (top, bottom), (left, right) = ((s.start * d, s.stop * d) for s, d in zip(place[1:], spacing[1:], strict=True))
    cell.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=FRAME, linewidth=1))


def _draw_scale_bar(cell: Axes, view: _View, spacing: Vector) -> None:
    """Draw a bar of a round length, about a quarter of the width; its dark edge shows on bright ground."""
    from matplotlib.patheffects import withStroke

    (top, bottom), (left, right) = (_extent(view, axis, spacing) for axis in view.drawn)
    length = round_length((right - left) / 4)
    x, y = left + 0.05 * (right - left), bottom - 0.06 * (bottom - top)
    ends = ([x, x + length], [y, y])
    cell.plot(
        *ends,
        color="white",
        linewidth=3,
        solid_capstyle="butt",
        path_effects=[withStroke(linewidth=5, foreground="black")],
    )
    cell.text(
        x + length / 2,
        y - 0.02 * (bottom - top),
        f"{length:g} µm",
        color="white",
        ha="center",
        va="bottom",
        fontsize=8,
        path_effects=[withStroke(linewidth=2, foreground="black")],
    )


def round_length(longest: float) -> float:
    """Find the largest 1, 2 or 5 times a power of ten that is not above ``longest``."""
    power = 10.0 ** math.floor(math.log10(longest))
    return power * max(digit for digit in (1, 2, 5) if digit * power <= longest)
