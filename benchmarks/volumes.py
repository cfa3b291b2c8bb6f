"""The volumes that quality is measured on: a truth, and the coarse volume made from it.

A real volume is its own truth: it is reduced by the antialiased cubic kernel, by binning (*box*), or by leaving out
every other position (*point*), and what is left is enhanced. Truths are scaled so that their 0.1 and 99.9 percentiles
are 0 and 1. The phantom, the beads and the rods have a truth without noise.

``TUNING`` volumes were looked at while presets were decided; ``UNTOUCHED`` ones were not, but for one early trial of
zooms on the Golgi. Both halves are reported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from spots import judge_beads, judge_spines
from tifffile import imread

from svision_dask.degradation import CUBIC, Degradation, Degrade
from svision_dask.geometry import Factor
from svision_dask.network.baselines import reduced
from svision_dask.simulation.simulate import Phantom

Voxels = npt.NDArray[np.float32]

DATA = Path(os.environ.get("SVISION_DATA", Path(__file__).parents[2] / "shared" / "data"))
OUTLIERS = (0.1, 99.9)
PHANTOM_SHAPE = (96, 256, 256)
BEAD_SIGMAS = (2.5, 1.0, 1.0)
"""Of the PSF of beads and rods, in fine voxels."""
DENDRITE = "2p_dendrite_rr30a_tp0"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a method is given, and what it is measured against."""

    coarse: Voxels
    truth: Voxels
    factor: Factor
    how: Degradation = CUBIC
    """How the coarse volume came about, which methods may know."""
    judge: Callable[[Voxels], Mapping[str, float]] = lambda fine: {}
    """What else to measure on an enhanced volume."""


def _scaled(
    path: str, crop: tuple[slice, ...], channel: int | None, kind: Degrade, factor: tuple[int, int, int] = (2, 2, 2)
) -> Case:
    voxels = imread(DATA / path).squeeze().astype(np.float32)
    if channel is not None:
        voxels = voxels[:, channel]
    low, high = np.percentile(voxels, OUTLIERS)
    truth = ((voxels - low) / (high - low))[crop]
    even = tuple(slice(0, n // f * f) for n, f in zip(truth.shape, factor, strict=True))
    truth = np.ascontiguousarray(truth[even], np.float32)
    how = Degradation(kind=kind)
    return Case(coarse=reduced(truth, factor, how), truth=truth, factor=factor, how=how)


def _real(
    path: str, crop: tuple[slice, ...] = (), channel: int | None = None, kind: Degrade = "cubic"
) -> Callable[[], Case]:
    return lambda: _scaled(path, crop, channel, kind)


def _decimated(path: str, crop: tuple[slice, ...] = (), channel: int | None = None) -> Callable[[], Case]:
    """Leave out three of four planes, as a stack of coarse steps does."""
    return lambda: _scaled(path, crop, channel, "point", (4, 1, 1))


def _dendrite() -> Case:
    case = _scaled(f"{DENDRITE}/rr30a_tp0_ch2.ome.tif", (slice(None), slice(128, 640), slice(128, 640)), None, "cubic")
    return replace(case, judge=lambda fine: judge_spines(fine, (0, 128, 128), DATA / DENDRITE / "spines.csv"))


def phantom(seed: int, photons: int, shape: tuple[int, int, int] = PHANTOM_SHAPE) -> Callable[[], Case]:
    """Simulate a two-photon volume; its truth has no noise."""

    def make() -> Case:
        simulated = Phantom(shape=shape, seed=seed, photons=photons)
        fine, coarse = (tuple(slice(0, n // f) for n in shape) for f in (1, 2))
        measured = simulated.measured(coarse, 2).astype(np.float32) / np.float32(photons)
        return Case(coarse=measured, truth=simulated.truth(fine) / np.float32(photons), factor=2)

    return make


def _beads() -> Case:
    """Read the published script's beads; their coarse volume was scaled to its own maximum (README there)."""
    fine, coarse = (imread(DATA / f"beads_simulated/beads_{n}.ome.tif").squeeze() for n in ("fine", "coarse_x4"))
    truth = fine / np.float32(255)
    coarse = coarse.astype(np.float32) * np.float32(0.3114 / 255)
    return Case(coarse=coarse, truth=truth, factor=4, judge=lambda enhanced: judge_beads(enhanced, truth))


def _rods() -> Case:
    truth = rods()
    return Case(coarse=reduced(truth, 4), truth=truth, factor=4)


def beads_x2() -> Case:
    """Reduce the beads' truth by two only."""
    truth = imread(DATA / "beads_simulated/beads_fine.ome.tif").squeeze() / np.float32(255)
    return Case(coarse=reduced(truth, 2), truth=truth, factor=2)


def rods_x2() -> Case:
    """Reduce the rods by two only."""
    truth = rods()
    return Case(coarse=reduced(truth, 2), truth=truth, factor=2)


def rods(seed: int = 0, shape: tuple[int, int, int] = (60, 512, 512), count: int = 500) -> Voxels:
    """Make rods of 6 to 24 voxels in any direction, seen through the PSF of the beads, as the paper's Table S1 has."""
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape, np.float32)
    for _ in range(count):
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        steps = np.arange(rng.uniform(6, 24), step=0.25)[:, None]
        points = np.round(rng.uniform(0, shape) + steps * direction).astype(int)
        inside = points[((points >= 0) & (points < shape)).all(axis=1)]
        volume[tuple(inside.T)] = 1
    blurred = gaussian_filter(volume, BEAD_SIGMAS)
    return np.asarray(blurred / blurred.max(), np.float32)


TUNING: Mapping[str, Callable[[], Case]] = {
    "nuclei": _real("lsfm_nuclei_c5/c5image.ome.tif"),
    "fly brain": _real("flybrain/flybrain.ome.tif"),
    "dendrite": _dendrite,
    "beads ×4": _beads,
    "nuclei, box": _real("lsfm_nuclei_c5/c5image.ome.tif", kind="box"),
    "nuclei, point": _real("lsfm_nuclei_c5/c5image.ome.tif", kind="point"),
    "fly embryo": _real("lsfm_drosophila_embryo/droso_test.ome.tif"),
    "envelopes": _real("neubias_cells/xyz_nuclear_envelope_drosophila.tif"),
    "brain cells": _real("brain_cells_cellfinder/crop_ch0_signal.ome.tif"),
    "phantom 0, 30 photons": phantom(0, 30),
    "phantom 0, 200 photons": phantom(0, 200),
}
UNTOUCHED: Mapping[str, Callable[[], Case]] = {
    "golgi": _real("neubias_cells/xyz_calibrated_16bit__golgi_bfa.tif"),
    "golgi, box": _real("neubias_cells/xyz_calibrated_16bit__golgi_bfa.tif", kind="box"),
    "golgi, point": _real("neubias_cells/xyz_calibrated_16bit__golgi_bfa.tif", kind="point"),
    "fly brain, box": _real("flybrain/flybrain.ome.tif", kind="box"),
    "fly brain, point": _real("flybrain/flybrain.ome.tif", kind="point"),
    "rods ×4": _rods,
    "ovule": _real("plant_ovule/ovule_1135_mini.ome.tif"),
    "chromosomes": _real("neubias_cells/xyz_8bit__chromosomes.tif"),
    "spots, channel 0": _real("neubias_cells/xyzc_16bit__spots.tif", channel=0),
    "spots, channel 1": _real("neubias_cells/xyzc_16bit__spots.tif", channel=1),
    "brain background": _real("brain_cells_cellfinder/crop_ch1_background.ome.tif"),
    "bead, widefield": _real("beads_measured/bead_dlab_25pct.tif"),
    "beads, confocal": _real("beads_measured/beads_confocal_mpi.tif"),
    "bead, camera": _real("beads_measured/psf_bead_pycudadecon.tif"),
    "phantom 1, 30 photons": phantom(1, 30),
    "phantom 1, 200 photons": phantom(1, 200),
    "phantom 2, 1000 photons": phantom(2, 1000),
}
DECIMATED: Mapping[str, Callable[[], Case]] = {
    "golgi, every 4th plane": _decimated("neubias_cells/xyz_calibrated_16bit__golgi_bfa.tif"),
    "nuclei, every 4th plane": _decimated("lsfm_nuclei_c5/c5image.ome.tif"),
    "fly brain, every 4th plane": _decimated("flybrain/flybrain.ome.tif"),
    "ovule, every 4th plane": _decimated("plant_ovule/ovule_1135_mini.ome.tif"),
    "beads, confocal, every 4th plane": _decimated("beads_measured/beads_confocal_mpi.tif"),
    "bead, widefield, every 4th plane": _decimated("beads_measured/bead_dlab_25pct.tif"),
}
"""For axial refinement; the first two were looked at while it was made."""
VOLUMES = {**TUNING, **UNTOUCHED, **DECIMATED}
