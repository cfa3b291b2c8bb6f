"""Judge what people look for: beads and their widths, and the spines that an expert marked on the dendrite."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Voxels = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]

BRIGHT = 0.1
"""Share of the brightest bead of the truth above which a local maximum is a bead."""
MATCH = 4.0
"""Fine voxels within which a bead is the same one: one coarse voxel at a factor of 4."""
APART = 8.0
"""Fine voxels from its neighbours that a bead must be to be counted: two coarse voxels."""
SPINE_SIGMAS = ((0.5, 1.0, 1.0), (1.0, 2.0, 2.0))
"""Of the difference of Gaussians that finds spines, in voxels of 1.0 × 0.12 × 0.12 µm: a quarter of a µm across."""
SPINE_MATCH = (1.5, 4.0, 4.0)
"""Voxels within which a detection is the spine that was marked."""
DETECTIONS = 160
"""Detections to allow, as a multiple of the spines there are: alike for every method. So many, because the dendrite
itself has most of the strong ones; so simple a detector finds a good third of what an expert does."""


def judge_beads(fine: Voxels, truth: Voxels) -> dict[str, float]:
    """Match beads that stand alone, and measure their widths.

    Recall is for the beads of the truth that are further than ``APART`` from all others; every bead that is found must
    be one of the truth's to be precise. Widths are medians over the beads that stand alone, in fine voxels.
    """
    known, found = (_peaks(volume, BRIGHT * float(truth.max())) for volume in (truth, fine))
    gaps = np.linalg.norm(known[:, None] - known, axis=2)
    np.fill_diagonal(gaps, np.inf)
    alone = known[gaps.min(axis=1) > APART]
    inner = alone[((alone > APART) & (alone < np.array(truth.shape) - 1 - APART)).all(axis=1)]
    widths = np.array([_widths(fine, centre) for centre in inner])
    return {
        "beads": len(found),
        "recall": float((_nearest(alone, found) <= MATCH).mean()),
        "precision": float((_nearest(found, known) <= MATCH).mean()) if len(found) else 0.0,
        "fwhm_axial": float(np.median(widths[:, 0])),
        "fwhm_lateral": float(np.median(widths[:, 1:])),
    }


def judge_spines(fine: Voxels, first: Sequence[int], path: Path) -> dict[str, float]:
    """Count the spines of a table that are among the strongest detections; ``first`` is voxel 0 of ``fine`` in it."""
    with path.open() as table:
        rows = [r for r in csv.DictReader(table) if r["roiType"] == "spineROI"]
    marked = np.array([[float(r[k]) for k in ("z_slice", "y_px", "x_px")] for r in rows]) - np.array(first)
    marked = marked[((marked >= 0) & (marked < fine.shape)).all(axis=1)]
    narrow, wide = (ndimage.gaussian_filter(fine, sigmas) for sigmas in SPINE_SIGMAS)
    response = narrow - wide
    peaks = _peaks(response, 0.0)
    strengths = response[tuple(np.round(peaks).astype(int).T)]
    strongest = peaks[np.argsort(strengths)[::-1][: DETECTIONS * len(marked)]]
    unit = np.array(SPINE_MATCH)
    return {"spines": len(marked), "spines_found": int((_nearest(marked / unit, strongest / unit) <= 1).sum())}


def _peaks(volume: Voxels, above: float) -> Points:
    """Local maxima of 3×3×3 voxels, the middle of each plateau."""
    highest = (volume == ndimage.maximum_filter(volume, size=3)) & (volume > above)
    labels, count = ndimage.label(highest, structure=np.ones((3, 3, 3)))
    return np.array(ndimage.center_of_mass(highest, labels, range(1, count + 1))).reshape(count, 3)


def _nearest(points: Points, others: Points) -> npt.NDArray[np.float64]:
    """Distance of each point from the nearest of the others."""
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(others).query(points)[0]) if len(others) else np.full(len(points), np.inf)


def _widths(volume: Voxels, centre: Points) -> list[float]:
    """Full width at half maximum along each axis, on the lines through the brightest voxel next to ``centre``."""
    place = np.round(centre).astype(int)
    box = volume[tuple(slice(p - 2, p + 3) for p in place)]
    peak = place - 2 + np.unravel_index(int(box.argmax()), box.shape)
    return [
        _width(volume[tuple(slice(None) if a == axis else p for a, p in enumerate(peak))], peak[axis])
        for axis in range(3)
    ]


def _width(line: npt.NDArray[Any], peak: int) -> float:
    """Width at half of the maximum of a cubic spline through the line; the maximum may lie between voxels."""
    from scipy.interpolate import CubicSpline

    reach = int(min(APART + 4, peak, len(line) - 1 - peak))
    position = np.linspace(-reach, reach, 64 * 2 * reach + 1)
    value = CubicSpline(np.arange(-reach, reach + 1), line[peak - reach : peak + reach + 1])(position)
    top = int(np.where(np.abs(position) <= 1, value, -np.inf).argmax())
    below = value < value[top] / 2
    left, right = np.flatnonzero(below[:top]), np.flatnonzero(below[top:])
    return float(position[top + right[0]] - position[left[-1]]) if left.size and right.size else float(2 * reach)
