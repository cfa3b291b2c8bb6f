"""What the trust maps of an output come to, in figures and in words that do not promise more than they tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.geometry import SPATIAL, Region, Regions
from svision_dask.omezarr.write import open_level
from svision_dask.running.trust_maps import CONSISTENCY, SPREAD
from svision_dask.stores.locations import Location
from svision_dask.training.noise_estimate import Noise
from svision_dask.volume import Volume

BLOCKS = 64
"""That are looked at, spread evenly; all of them where there are no more."""
SIDE = {2: 512, 3: 64}
"""Coarse voxels of a block along each spatial axis."""
PER_BLOCK = 2**16
"""Voxels of a block that percentiles are taken of."""
OUTLIERS = (0.1, 99.9)
"""Percentiles of the input between which the range lies."""
SIGMAS = 3
ERROR_OVER_SPREAD = "6 to 18"
"""Root mean square of the error over that of the spread; a test ties it to ``benchmarks/results/trust.json``."""
BY_CHANCE = math.erfc(SIGMAS / math.sqrt(2))
"""Share of voxels whose Gaussian noise alone is beyond so many standard deviations."""


def summarise_maps(volume: Volume, places: Mapping[str, Location], noise: Sequence[Noise] = ()) -> dict[str, Any]:
    """Sum up the trust maps of what was made of ``volume``.

    Parameters
    ----------
    volume
        What was enhanced.
    places
        Where the maps ``"spread"`` and ``"consistency"`` are.
    noise
        Of the channels of the volume, in its intensities; one serves all. None where nobody measured it.

    Returns
    -------
    dict
        JSON values: ``range``, ``spread`` and ``consistency`` (median and 99th percentile in intensities, and the
        latter's share of voxels beyond three standard deviations of the noise, or None), the ``share`` of the voxels
        that were looked at, and ``words``.
    """
    seen, share = _sampled(volume, places, noise)
    low, high = (float(v) for v in np.percentile(seen["input"], OUTLIERS))
    beyond = float(seen["beyond"].mean()) if seen["beyond"].size else None
    summary: dict[str, Any] = {
        "range": [low, high],
        SPREAD: _typical(seen[SPREAD]),
        CONSISTENCY: {**_typical(seen[CONSISTENCY]), "beyond_3_sigma": beyond},
        "share": share,
    }
    return {**summary, "words": list(_words(summary))}


def _sampled(
    volume: Volume, places: Mapping[str, Location], noise: Sequence[Noise]
) -> tuple[dict[str, npt.NDArray[Any]], float]:
    """Read some blocks of the input and the maps, and say which share of the voxels that is."""
    axes, shape = volume.grid.axes, volume.grid.shape
    unit = tuple(
        min(n, SIDE[len(volume.grid.spatial)]) if a in SPATIAL else 1 for a, n in zip(axes, shape, strict=True)
    )
    blocks = Regions(shape=shape, unit=unit)
    chosen = sorted({round(float(i)) for i in np.linspace(0, len(blocks) - 1, min(BLOCKS, len(blocks)))})
    arrays = {kind: open_level(place, 0) for kind, place in places.items()}
    factor = tuple(m // n for m, n in zip(arrays[SPREAD].shape, shape, strict=True))
    found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in ("input", "beyond", SPREAD, CONSISTENCY)}
    taken = 0
    for block in map(blocks.at, chosen):
        measured = volume.read(block.box).astype(np.float64)
        off = np.asarray(arrays[CONSISTENCY][block.box])
        fine = np.asarray(arrays[SPREAD][_finer(block, factor)])
        channel = block.start[axes.index("c")] if "c" in axes else 0
        sigma = _sigma(measured, noise[min(channel, len(noise) - 1)]) if noise else None
        taken += measured.size
        found["input"].append(_some(measured))
        found[CONSISTENCY].append(_some(off))
        found[SPREAD].append(_some(fine))
        if sigma is not None:
            found["beyond"].append(_some(off > SIGMAS * sigma))
    joined = {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in found.items()}
    return joined, taken / math.prod(shape)


def _finer(block: Region, factor: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a * f, b * f) for a, b, f in zip(block.start, block.stop, factor, strict=True))


def _some(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Take voxels at a stride that shares no factor with the lengths of the axes, so that all places are seen."""
    step = -(-voxels.size // PER_BLOCK)
    while step > 1 and any(math.gcd(step, n) > 1 for n in voxels.shape):
        step += 1
    return voxels.reshape(-1)[::step]


def _sigma(measured: npt.NDArray[np.float64], noise: Noise) -> npt.NDArray[np.float64] | None:
    """Tell the standard deviation of the noise at every voxel; None if there is no noise to speak of."""
    if noise.floor <= 0 and noise.gain <= 0:
        return None
    return np.sqrt(np.maximum(noise.floor + noise.gain * np.maximum(measured - noise.offset, 0), 0))


def _typical(voxels: npt.NDArray[Any]) -> dict[str, float]:
    median, most = (float(v) for v in np.percentile(voxels, (50, 99)))
    return {"median": median, "p99": most}


def _words(summary: Mapping[str, Any]) -> Iterator[str]:
    low, high = summary["range"]
    of_range = (lambda value: f"{100 * value / (high - low):.2g} %") if high > low else (lambda value: f"{value:.3g}")
    of = f"of the range {low:.4g} to {high:.4g} of what was sampled" if high > low else "in intensities"
    spread, consistency = summary[SPREAD], summary[CONSISTENCY]
    yield (
        f"spread: median {of_range(spread['median'])}, 99th percentile {of_range(spread['p99'])} {of}. It is how far "
        "turned and flipped copies disagree, not the error: what all of them get wrong alike does not show. Where the "
        f"truth was known, the error was {ERROR_OVER_SPREAD} times as large"
    )
    line = (
        f"consistency: median {of_range(consistency['median'])}, 99th percentile {of_range(consistency['p99'])} {of}, "
        "by which the result, made coarse again, differs from what was measured"
    )
    if consistency["beyond_3_sigma"] is None:
        yield f"{line}; no noise of a detector is known to compare it with"
    else:
        yield (
            f"{line}; {100 * consistency['beyond_3_sigma']:.2g} % of the voxels differ by more than {SIGMAS} standard "
            f"deviations of the noise there ({100 * BY_CHANCE:.2g} % would by noise alone)"
        )
    if summary["share"] < 1:
        yield f"these figures are of {100 * summary['share']:.2g} % of the voxels, spread evenly"
