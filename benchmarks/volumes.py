"""The volumes that quality is measured on: a truth, and the coarse volume made from it.

A real volume is its own truth: it is reduced by the antialiased cubic kernel, and the reduction is enhanced. Truths are
scaled so that their 0.1 and 99.9 percentiles are 0 and 1. The phantom and the beads have a truth without noise.

``TUNING`` volumes were looked at while presets were decided; ``UNTOUCHED`` ones were not, but for one early trial of
zooms on the Golgi. Both halves are reported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tifffile import imread

from svision_dask.baselines import reduced
from svision_dask.simulate import Phantom

Voxels = npt.NDArray[np.float32]

DATA = Path(os.environ.get("SVISION_DATA", Path(__file__).parents[2] / "shared" / "data"))
OUTLIERS = (0.1, 99.9)
PHANTOM_SHAPE = (96, 256, 256)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a method is given, and what it is measured against."""

    coarse: Voxels
    truth: Voxels
    factor: int


def _scaled(path: str, crop: tuple[slice, ...] = (), channel: int | None = None) -> Case:
    voxels = imread(DATA / path).squeeze().astype(np.float32)
    if channel is not None:
        voxels = voxels[:, channel]
    low, high = np.percentile(voxels, OUTLIERS)
    truth = ((voxels - low) / (high - low))[crop]
    truth = np.ascontiguousarray(truth[tuple(slice(0, n // 2 * 2) for n in truth.shape)], np.float32)
    return Case(coarse=reduced(truth, 2), truth=truth, factor=2)


def _real(path: str, crop: tuple[slice, ...] = (), channel: int | None = None) -> Callable[[], Case]:
    return lambda: _scaled(path, crop, channel)


def _phantom(seed: int, photons: int) -> Callable[[], Case]:
    def make() -> Case:
        phantom = Phantom(shape=PHANTOM_SHAPE, seed=seed, photons=photons)
        fine, coarse = (tuple(slice(0, n // f) for n in PHANTOM_SHAPE) for f in (1, 2))
        measured = phantom.measured(coarse, 2).astype(np.float32) / np.float32(photons)
        return Case(coarse=measured, truth=phantom.truth(fine) / np.float32(photons), factor=2)

    return make


def _beads() -> Case:
    """Read the published script's beads; their coarse volume was scaled to its own maximum (README there)."""
    fine, coarse = (imread(DATA / f"beads_simulated/beads_{n}.ome.tif").squeeze() for n in ("fine", "coarse_x4"))
    return Case(coarse=coarse.astype(np.float32) * np.float32(0.3114 / 255), truth=fine / np.float32(255), factor=4)


TUNING: Mapping[str, Callable[[], Case]] = {
    "nuclei": _real("lsfm_nuclei_c5/c5image.ome.tif"),
    "fly brain": _real("flybrain/flybrain.ome.tif"),
    "dendrite": _real("2p_dendrite_rr30a_tp0/rr30a_tp0_ch2.ome.tif", (slice(None), slice(128, 640), slice(128, 640))),
    "beads ×4": _beads,
    "fly embryo": _real("lsfm_drosophila_embryo/droso_test.ome.tif"),
    "envelopes": _real("neubias_cells/xyz_nuclear_envelope_drosophila.tif"),
    "brain cells": _real("brain_cells_cellfinder/crop_ch0_signal.ome.tif"),
    "phantom 0, 30 photons": _phantom(0, 30),
    "phantom 0, 200 photons": _phantom(0, 200),
}
UNTOUCHED: Mapping[str, Callable[[], Case]] = {
    "golgi": _real("neubias_cells/xyz_calibrated_16bit__golgi_bfa.tif"),
    "ovule": _real("plant_ovule/ovule_1135_mini.ome.tif"),
    "chromosomes": _real("neubias_cells/xyz_8bit__chromosomes.tif"),
    "spots, channel 0": _real("neubias_cells/xyzc_16bit__spots.tif", channel=0),
    "spots, channel 1": _real("neubias_cells/xyzc_16bit__spots.tif", channel=1),
    "brain background": _real("brain_cells_cellfinder/crop_ch1_background.ome.tif"),
    "bead, widefield": _real("beads_measured/bead_dlab_25pct.tif"),
    "beads, confocal": _real("beads_measured/beads_confocal_mpi.tif"),
    "bead, camera": _real("beads_measured/psf_bead_pycudadecon.tif"),
    "phantom 1, 30 photons": _phantom(1, 30),
    "phantom 1, 200 photons": _phantom(1, 200),
    "phantom 2, 1000 photons": _phantom(2, 1000),
}
VOLUMES = {**TUNING, **UNTOUCHED}
