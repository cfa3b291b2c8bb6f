"""Beads: where they are, and how wide they look; full width at half maximum stands for the width of the PSF."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.geometry import Shape

Voxels = npt.NDArray[Any]
Points = npt.NDArray[np.float64]

LINE = 12
"""Voxels to either side of a bead on which its width is measured."""
FINENESS = 64
"""Samples per voxel of the spline through a line."""


def peaks(volume: Voxels, above: float) -> Points:
    """Find the local maxima of 3×3×3 voxels brighter than ``above``, the middle of each plateau: (n, 3), z, y, x."""
    from scipy import ndimage

    highest = (volume == ndimage.maximum_filter(volume, size=3)) & (volume > above)
    labels, count = ndimage.label(highest, structure=np.ones((3, 3, 3)))
    return np.array(ndimage.center_of_mass(highest, labels, range(1, count + 1))).reshape(count, 3)


def nearest(points: Points, others: Points) -> npt.NDArray[np.float64]:
    """Distance of each point from the nearest of the others."""
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(others).query(points)[0]) if len(others) else np.full(len(points), np.inf)


def alone(points: Points, apart: float) -> npt.NDArray[np.bool_]:
    """Tell which points are further than ``apart`` voxels from all others."""
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return np.ones(len(points), bool)
    return np.asarray(cKDTree(points).query(points, k=2)[0][:, 1] > apart)


def well_inside(points: Points, shape: Shape, apart: float | Points) -> npt.NDArray[np.bool_]:
    """Tell which points are further than ``apart`` voxels, of each axis or of all, from every face."""
    return np.asarray(((points > apart) & (points < np.array(shape) - 1 - apart)).all(axis=1))


def widths(volume: Voxels, centre: Points) -> list[float]:
    """Measure the full width at half maximum along z, y and x, in voxels, without a background.

    On the lines through the brightest voxel next to ``centre``; each is a cubic spline, so that its maximum may lie
    between voxels. Not a number where the line ends before it has fallen to half.
    """
    place = np.round(centre).astype(int)
    first = np.maximum(place - 2, 0)
    box = volume[tuple(slice(a, p + 3) for a, p in zip(first, place, strict=True))]
    peak = first + np.unravel_index(int(box.argmax()), box.shape)
    return [
        _width(volume[tuple(slice(None) if a == axis else p for a, p in enumerate(peak))], peak[axis])
        for axis in range(volume.ndim)
    ]


def _width(line: Voxels, peak: int) -> float:
    from scipy.interpolate import CubicSpline

    reach = int(min(LINE, peak, len(line) - 1 - peak))
    if reach == 0:
        return math.nan
    position = np.linspace(-reach, reach, FINENESS * 2 * reach + 1)
    value = CubicSpline(np.arange(-reach, reach + 1), line[peak - reach : peak + reach + 1])(position)
    top = int(np.where(np.abs(position) <= 1, value, -np.inf).argmax())
    below = value < value[top] / 2
    left, right = np.flatnonzero(below[:top]), np.flatnonzero(below[top:])
    return float(position[top + right[0]] - position[left[-1]]) if left.size and right.size else math.nan
