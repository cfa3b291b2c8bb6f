"""Choose and read the sub-volume to learn from, and measure its intensity constants once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from svision_dask.errors import SampleError, UsageError
from svision_dask.geometry import SPATIAL, Shape, spatial_shape
from svision_dask.network.model import Normalisation
from svision_dask.volume import Box, Volume

EXTENT = {2: (1, 2048, 2048), 3: (96, 256, 256)}
"""Voxels (z, y, x) of a sample, for planes and for volumes; volumes with fewer voxels are taken whole."""
PROBE = {2: (1, 256, 256), 3: (16, 64, 64)}
"""Voxels (z, y, x) read to judge a candidate."""
CANDIDATES = 64
"""Boxes to judge, at most; of more, some are drawn at random."""
OUTLIERS = 0.1
"""Percent of the voxels at each end that do not count for the intensity constants: hot pixels, dead lines."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a model is trained on."""

    voxels: npt.NDArray[np.float32]
    """(c, z, y, x), in the volume's intensity units."""
    box: Box
    """Where it is in the volume, for z, y, x."""
    normalisation: tuple[Normalisation, ...]
    """One per channel."""


def read_sample(volume: Volume, *, box: Mapping[str, slice] | None = None, seed: int = 0) -> Sample:
    """Read the sub-volume to train on: all channels of the first time point.

    Parameters
    ----------
    volume
        Where to read from.
    box
        Start and stop per spatial axis; axes not named are taken whole. By default, an informative box is chosen.
    seed
        Decides between candidates where there are too many to look at.

    Raises
    ------
    UsageError
        If the box is empty, leaves the volume, or names another axis.
    SampleError
        If the sample has voxels that are not finite, or nothing but one value.
    """
    chosen = _given_box(volume, box) if box is not None else informative_box(volume, seed)
    voxels = _read(volume, chosen)
    if not np.isfinite(voxels).all():
        raise SampleError(
            f"{_text(chosen)}: {int((~np.isfinite(voxels)).sum())} of {voxels.size} voxels are NaN or infinite; "
            "all must be finite. Choose another place with --sample."
        )
    normalisation = tuple(_constants(v, f"{_text(chosen)}, channel {c}") for c, v in enumerate(voxels))
    return Sample(voxels=voxels, box=chosen, normalisation=normalisation)


def _constants(voxels: npt.NDArray[np.float32], where: str) -> Normalisation:
    low, high = np.percentile(voxels, (OUTLIERS, 100 - OUTLIERS))
    clipped = np.clip(voxels, low, high) if high > low else voxels
    offset, scale = float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64))
    if scale <= 1e-6 * abs(offset) or scale == 0:
        raise SampleError(
            f"{where}: every voxel is {offset:g}, so there is nothing to learn. Choose another place with --sample, or "
            "give a trained model with -m."
        )
    return Normalisation(offset=offset, scale=scale)


def _given_box(volume: Volume, box: Mapping[str, slice]) -> Box:
    sizes = dict(zip(SPATIAL, spatial_shape(volume.grid.axes, volume.grid.shape), strict=True))
    unknown = [axis for axis in box if axis not in volume.grid.axes or axis not in SPATIAL]
    if unknown:
        spatial = ",".join(axis for axis in volume.grid.axes if axis in SPATIAL)
        raise UsageError(f"sample: no axis {','.join(unknown)}; the volume's spatial axes are {spatial}. Use these.")
    slices = []
    for axis, size in sizes.items():
        asked = box.get(axis, slice(None))
        start, stop, step = asked.indices(size)
        if stop - start < 1 or step != 1 or (asked.stop or 0) > size:
            raise UsageError(f"sample {axis}={_span(asked)}: axis {axis} has {size} voxels. Give start:stop inside it.")
        slices.append(slice(start, stop))
    return tuple(slices)


def informative_box(volume: Volume, seed: int, extent: Shape | None = None) -> Box:
    """Pick the box with most structure in its middle.

    Parameters
    ----------
    volume
        Where to read from.
    seed
        Decides between candidates where there are too many to look at.
    extent
        Voxels (z, y, x) of the box, at most; by default ``EXTENT``.
    """
    dimensions = len(volume.grid.spatial)
    shape = spatial_shape(volume.grid.axes, volume.grid.shape)
    extent = _extent(shape, extent or EXTENT[dimensions])
    corners = _corners(shape, extent, seed)
    if len(corners) > 1:
        scores = [_structure(volume, corner, extent, PROBE[dimensions]) for corner in corners]
        corners = [corners[int(np.argmax(scores))]]
    return tuple(slice(a, a + e) for a, e in zip(corners[0], extent, strict=True))


def _corners(shape: Shape, extent: Shape, seed: int) -> list[Shape]:
    """List the first voxels of boxes side by side, the last ones moved back into the volume; some, if there are many.

    They are numbered and drawn, never listed in full: a volume may hold millions.
    """
    counts = [-(-n // e) for n, e in zip(shape, extent, strict=True)]
    total = math.prod(counts)
    drawn = np.random.default_rng(seed).choice(total, size=min(total, CANDIDATES), replace=False)
    places = np.stack(np.unravel_index(np.sort(drawn), counts), axis=1).tolist()
    return [tuple(min(i * e, n - e) for i, e, n in zip(place, extent, shape, strict=True)) for place in places]


def _structure(volume: Volume, corner: Shape, extent: Shape, probe: Shape) -> float:
    """Measure the spread of the voxels in the middle of a box, averaged over 2×2, where noise counts less."""
    size = tuple(min(p, e) for p, e in zip(probe, extent, strict=True))
    first = tuple(a + (e - s) // 2 for a, e, s in zip(corner, extent, size, strict=True))
    voxels = _read(volume, tuple(slice(a, a + s) for a, s in zip(first, size, strict=True)))
    _, _, y, x = voxels.shape
    if min(y, x) < 2 or not np.isfinite(voxels).all():
        return -1.0
    means = voxels[..., : y // 2 * 2, : x // 2 * 2].reshape(*voxels.shape[:2], y // 2, 2, x // 2, 2).mean(axis=(3, 5))
    return float(means.std(axis=(1, 2, 3)).sum())


def _extent(shape: Shape, default: Shape) -> Shape:
    """Fit ``default`` to the volume, with more along the other axes where the volume is thinner than it."""
    voxels = math.prod(default)
    if math.prod(shape) <= voxels:
        return shape
    extent = [min(d, n) for d, n in zip(default, shape, strict=True)]
    for axis in (2, 1, 0):
        others = math.prod(extent) // extent[axis]
        extent[axis] = max(extent[axis], min(shape[axis], voxels // others))
    return tuple(extent)


def _read(volume: Volume, box: Box) -> npt.NDArray[np.float32]:
    """Read (c, z, y, x) of the first time point as float32."""
    axes = volume.grid.axes
    place = dict(zip(SPATIAL, box, strict=True))
    full = tuple(
        place[axis] if axis in SPATIAL else slice(0, 1 if axis == "t" else n)
        for axis, n in zip(axes, volume.grid.shape, strict=True)
    )
    channels = volume.grid.shape[axes.index("c")] if "c" in axes else 1
    return volume.read(full).astype(np.float32).reshape(channels, *(s.stop - s.start for s in box))


def _text(box: Box) -> str:
    return "sample " + ",".join(f"{axis}={_span(s)}" for axis, s in zip(SPATIAL, box, strict=True))


def _span(window: slice) -> str:
    return ":".join("" if end is None else str(end) for end in (window.start, window.stop))
