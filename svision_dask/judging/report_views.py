"""Parts of the page that show voxels: planes behind sliders, with scale bars, and charts in frames."""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.degradation import CUBIC
from svision_dask.errors import ImageError
from svision_dask.geometry import SPATIAL, Shape
from svision_dask.judging.charts import draw_map
from svision_dask.judging.compared import Stack
from svision_dask.judging.comparison import Comparison
from svision_dask.judging.figure import round_length
from svision_dask.judging.scan import place_at
from svision_dask.network.baselines import reduced
from svision_dask.opening.formats import open_volume
from svision_dask.running.trust_images import map_place
from svision_dask.running.trust_maps import CONSISTENCY, SPREAD
from svision_dask.stores.locations import located
from svision_dask.volume import Box

Voxels = npt.NDArray[Any]

VIEW = (64, 256, 256)
"""Fine voxels (z, y, x) around a place that are shown, at most."""
WIDE = 520
"""Pixels of a page that the longer side of a view takes."""
NARROW = 140
"""Pixels that its shorter side takes at least, where voxels allow."""
PLANES = (("xy", 0), ("xz", 1), ("yz", 2))
"""Names of the planes, and the axis across them."""


def unit_of(comparison: Comparison) -> str:
    """Write the unit of lengths as people do."""
    return {"micrometer": "µm", "nanometer": "nm", None: "voxel units"}.get(
        comparison.compared.after.unit, str(comparison.compared.after.unit)
    )


def views(comparison: Comparison, title: str, centre: Shape, why: str) -> Iterator[str]:
    """Show three planes through a coarse voxel, before and after, behind sliders, and the consistency error in one."""
    compared = comparison.compared
    size = tuple(min(n, v // f) for n, v, f in zip(compared.before.shape, VIEW, compared.factor, strict=True))
    start = tuple(c - s // 2 for c, s in zip(centre, size, strict=True))
    coarse_box = place_at(compared.before.shape, size, start)
    coarse = compared.before.read(tuple(s.start for s in coarse_box), tuple(s.stop for s in coarse_box))
    fine_start = tuple(s.start * f for s, f in zip(coarse_box, compared.factor, strict=True))
    fine_stop = tuple(s.stop * f for s, f in zip(coarse_box, compared.factor, strict=True))
    fine = compared.after.read(fine_start, fine_stop)
    before = coarse
    for axis, f in enumerate(compared.factor):
        before = before.repeat(f, axis)
    unit, world = unit_of(comparison), compared.before.world(centre)
    at = ", ".join(f"{axis} = {w:.4g}" for axis, w in zip(SPATIAL, world, strict=True)) + f" {unit}"
    low, high = comparison.ranges.low, comparison.ranges.high
    yield f"<h2>{title}</h2><p>{escape(why[0].upper() + why[1:])}: {escape(at)}. Black is {low:.4g}, white {high:.4g}; "
    yield "linear, nothing is interpolated. Move the slider to see less or more of AFTER.</p><div class='row'>"
    middle = tuple(
        (c - s.start) * f + (f - 1) // 2 for c, s, f in zip(centre, coarse_box, compared.factor, strict=True)
    )
    for name, axis in PLANES:
        rows, columns = [a for a in range(3) if a != axis]
        if fine.shape[rows] < 2 or fine.shape[columns] < 2:
            continue
        planes = [np.take(v, middle[axis], axis=axis) for v in (before, fine)]
        if name == "yz":  # z to the right, so that y goes down as in xy
            planes, rows, columns = [p.T for p in planes], columns, rows
        steps = (compared.after.spacing[rows], compared.after.spacing[columns])
        across = f"{name} at {SPATIAL[axis]} = {world[axis]:.4g} {unit}, {SPATIAL[columns]} to the right"
        yield _slider(planes, steps, (low, high), across, unit)
    yield "</div><div class='row'>"
    if compared.how is not None:
        yield _error_plane(comparison, coarse_box, coarse, fine, centre, title)
    if compared.reference is not None:
        yield _difference_plane(comparison, compared.reference, fine_start, middle[0], fine, title)
    yield "</div>"


def _slider(
    planes: Sequence[Voxels], steps: tuple[float, float], window: tuple[float, float], across: str, unit: str
) -> str:
    tall, wide = (n * d for n, d in zip(planes[0].shape, steps, strict=True))
    scale = max(WIDE / max(tall, wide), 0.0)
    if min(tall, wide) * scale < NARROW:
        scale = min(NARROW / min(tall, wide), 1.5 * scale)
    bar = round_length(wide / 4)
    before, after = (
        f"<img {kind} src='{_png(plane, window)}' alt='{escape(f'{word}, {across}', quote=True)}'>"
        for plane, kind, word in zip(planes, ("", "class='top'"), ("before", "after"), strict=True)
    )
    return (
        f"<figure style='width:{wide * scale:.0f}px'>"
        f"<div class='slider' style='aspect-ratio:{wide:.6g}/{tall:.6g}'>{before}{after}"
        f"<span class='cut'></span><span class='side' style='left:.25rem'>after</span>"
        f"<span class='side' style='right:.25rem'>before</span>"
        f"<span class='bar' style='width:{100 * bar / wide:.3f}%'></span>"
        f"<span class='length'>{bar:g} {escape(unit)}</span>"
        f"</div><input type='range' min='0' max='100' value='50' "
        f"aria-label='{escape(f'share of after, {across}', quote=True)}'>"
        f"<figcaption>{escape(across)}; the bar is {bar:g} {escape(unit)}</figcaption></figure>"
    )


def _png(plane: Voxels, window: tuple[float, float]) -> str:
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, plane, cmap="gray", vmin=window[0], vmax=window[1], format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _error_plane(comparison: Comparison, box: Box, coarse: Voxels, fine: Voxels, centre: Shape, title: str) -> str:
    compared, unit = comparison.compared, unit_of(comparison)
    error = reduced(fine, compared.factor, compared.how or CUBIC) - coarse
    plane = error[centre[0] - box[0].start]
    first = compared.before.world(tuple(s.start for s in box))
    alt = f"consistency error in the plane xy: {title}"
    return chart(
        draw_map(
            plane,
            extent=edges(first, compared.before.spacing, plane.shape),
            x=f"x ({unit})",
            y=f"y ({unit})",
            colours="AFTER made coarse − BEFORE (intensities)",
            signed=True,
        ),
        alt,
        f"Consistency error in the plane xy: what AFTER has and BEFORE has not (red), and the reverse (blue); z = "
        f"{compared.before.world(centre)[0]:.4g} {unit}.",
    )


def _difference_plane(
    comparison: Comparison, reference: Stack, start: Shape, middle: int, fine: Voxels, title: str
) -> str:
    """Show AFTER minus the reference in the plane xy that is ``middle`` fine voxels behind ``start``."""
    after, unit = comparison.compared.after, unit_of(comparison)
    first = (start[0] + middle, *start[1:])
    stop = (first[0] + 1, *(a + n for a, n in zip(start[1:], fine.shape[1:], strict=True)))
    plane = fine[middle] - reference.read(first, stop)[0]
    return chart(
        draw_map(
            plane,
            extent=edges(after.world(first), after.spacing, plane.shape),
            x=f"x ({unit})",
            y=f"y ({unit})",
            colours="AFTER − reference (intensities)",
            signed=True,
        ),
        f"AFTER minus the reference in the plane xy: {title}",
        f"Difference from the reference in the plane xy: what AFTER has and the truth has not (red), and the reverse "
        f"(blue); z = {after.world(first)[0]:.4g} {unit}.",
    )


def trust_maps(comparison: Comparison) -> Iterator[str]:
    """Say what the trust maps of AFTER came to, and show both in the plane xy of the informative place."""
    words = comparison.figures.get("trust", {}).get("words")
    if not words:
        return
    yield "<h2>Trust maps</h2><ul>"
    yield from (f"<li>{escape(text)}</li>" for text in words)
    yield "</ul><div class='row'>"
    compared = comparison.compared
    yield from _trust_plane(comparison, SPREAD, compared.after, compared.factor)
    yield from _trust_plane(comparison, CONSISTENCY, compared.before, (1, 1, 1))
    yield "</div>"


def _trust_plane(comparison: Comparison, kind: str, grid: Stack, factor: Shape) -> Iterator[str]:
    """Show a map, which has the voxels of ``grid``: so many per coarse voxel as ``factor`` says."""
    found = _map_of(comparison, kind)
    if found is None or found.shape != grid.shape:
        yield f"<p>The map of {kind} is not inside AFTER any more.</p>"
        return
    box, unit = comparison.informative, unit_of(comparison)
    z = comparison.figures["profiles"][0]["through"]["z"] * factor[0] + (factor[0] - 1) // 2
    first, last = ([v * f for v, f in zip(corner, factor[1:], strict=True)] for corner in _corners(box))
    plane = found.read((z, *first), (z + 1, *last))[0]
    start = grid.world((z, *first))
    yield chart(
        draw_map(
            plane,
            extent=edges(start, grid.spacing, plane.shape),
            x=f"x ({unit})",
            y=f"y ({unit})",
            colours=f"{kind} (intensities)",
        ),
        f"trust map of {kind} in the plane xy of an informative place",
        f"The map of {kind} in the plane xy where BEFORE varies most; z = {start[0]:.4g} {unit}.",
    )


def _map_of(comparison: Comparison, kind: str) -> Stack | None:
    """Open a trust map of AFTER; None where it is not there."""
    after = comparison.compared.after
    if len(after.volume.paths) != 1:
        return None
    try:
        volume = open_volume(map_place(located(after.volume.paths[0]), kind))
    except ImageError:
        return None
    return Stack(volume=volume, picked=after.picked) if volume.grid.axes == after.volume.grid.axes else None


def _corners(box: Box) -> tuple[Shape, Shape]:
    """First (y, x) of a box, and one past the last."""
    return tuple(s.start for s in box[1:]), tuple(s.stop for s in box[1:])


def edges(first: Sequence[float], spacing: Sequence[float], shape: Shape) -> tuple[float, float, float, float]:
    """Find where the left, right, bottom and top edges are of a plane (y, x) whose first voxel is at ``first``."""
    (top, left), (tall, wide) = ([v[axis] for axis in (1, 2)] for v in (first, spacing))
    return left - wide / 2, left + (shape[1] - 0.5) * wide, top + (shape[0] - 0.5) * tall, top - tall / 2


def chart(svg: str, alt: str, caption: str) -> str:
    """Frame a chart; its identifiers are made its own, because all charts of a page share one space of them."""
    own = f"c{zlib.crc32((alt + caption + svg).encode()):08x}-"
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{own}", svg)
    svg = svg.replace("<svg ", f"<svg role='img' aria-label='{escape(alt, quote=True)}' ", 1)
    return f"<figure class='chart'>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
