"""Judge what people look for: beads and their widths, and the spines that an expert marked on the dendrite."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from svision_dask.judging.beads import alone, nearest, peaks, well_inside, widths

Voxels = npt.NDArray[np.float32]

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
    known, found = (peaks(volume, BRIGHT * float(truth.max())) for volume in (truth, fine))
    lone = known[alone(known, APART)]
    inner = lone[well_inside(lone, truth.shape, APART)]
    measured = np.array([widths(fine, centre) for centre in inner])
    return {
        "beads": len(found),
        "recall": float((nearest(lone, found) <= MATCH).mean()),
        "precision": float((nearest(found, known) <= MATCH).mean()) if len(found) else 0.0,
        "fwhm_axial": float(np.nanmedian(measured[:, 0])),
        "fwhm_lateral": float(np.nanmedian(measured[:, 1:])),
    }


def judge_spines(fine: Voxels, first: Sequence[int], path: Path) -> dict[str, float]:
    """Count the spines of a table that are among the strongest detections; ``first`` is voxel 0 of ``fine`` in it."""
    with path.open() as table:
        rows = [r for r in csv.DictReader(table) if r["roiType"] == "spineROI"]
    marked = np.array([[float(r[k]) for k in ("z_slice", "y_px", "x_px")] for r in rows]) - np.array(first)
    marked = marked[((marked >= 0) & (marked < fine.shape)).all(axis=1)]
    narrow, wide = (ndimage.gaussian_filter(fine, sigmas) for sigmas in SPINE_SIGMAS)
    response = narrow - wide
    found = peaks(response, 0.0)
    strengths = response[tuple(np.round(found).astype(int).T)]
    strongest = found[np.argsort(strengths)[::-1][: DETECTIONS * len(marked)]]
    unit = np.array(SPINE_MATCH)
    return {"spines": len(marked), "spines_found": int((nearest(marked / unit, strongest / unit) <= 1).sum())}
