"""How noisy a volume is, measured on the volume itself: variance = floor + gain · intensity (Poisson–Gaussian).

A network that refines its own, less noisy reduction would meet more noise when applied than it saw in training, and
sharpen it. Training therefore adds the noise that the reduction took away, and needs to know how much that is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 32
QUANTILE = 0.25
"""Of the absolute differences in a bin: low, because edges make the large ones larger, and leave the small ones."""
QUANTILE_OF_NORMAL = 0.3186393639643752
"""The same quantile of |N(0, 1)|: the inverse normal distribution at 0.625."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Variance of a voxel of intensity I is ``floor + gain · I``, in squared intensity units."""

    floor: float
    gain: float


def estimate_noise(voxels: npt.NDArray[np.float32]) -> Noise:
    """Estimate the noise of independent voxels (z, y, x) from mixed second differences in y and x.

    ``(v₀₀ − v₀₁ − v₁₀ + v₁₁) / 2`` of a 2×2 block has the variance of one voxel, and sees an edge only if it is
    diagonal. Blocks are sorted by their mean into bins of equal size; a line is fitted through the bins' variances.
    Counts of which most are 0 or 1 look less noisy than they are; too few voxels for the bins, or a constant, not at
    all.
    """
    even = voxels[:, : voxels.shape[1] // 2 * 2, : voxels.shape[2] // 2 * 2]
    blocks = (even[:, ::2, ::2], even[:, ::2, 1::2], even[:, 1::2, ::2], even[:, 1::2, 1::2])
    difference = np.abs(blocks[0] - blocks[1] - blocks[2] + blocks[3]).ravel() / 2
    mean = np.mean(blocks, axis=0).ravel()
    if mean.size < BINS:
        return Noise(floor=0.0, gain=0.0)
    order = np.argsort(mean, kind="stable")
    means, variances = [], []
    for members in np.array_split(order, BINS):
        means.append(float(mean[members].mean()))
        variances.append((float(np.quantile(difference[members], QUANTILE)) / QUANTILE_OF_NORMAL) ** 2)
    return _fit(np.maximum(means, 0), np.array(variances))


def _fit(means: npt.NDArray[np.float64], variances: npt.NDArray[np.float64]) -> Noise:
    """Non-negative line; bins weigh by their own variance, so that bright ones, where structure hides, do not rule."""
    from scipy.optimize import nnls

    if not variances.any():
        return Noise(floor=0.0, gain=0.0)
    weight = 1 / (variances + variances.mean())
    columns = np.stack([np.ones_like(means), means], axis=1)
    (floor, gain), _ = nnls(columns * weight[:, None], variances * weight)
    return Noise(floor=float(floor), gain=float(gain))
