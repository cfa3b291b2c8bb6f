"""How noisy a volume is, measured on the volume itself: variance = floor + gain · (intensity − offset).

A network that refines its own, less noisy reduction would meet more noise when applied than it saw in training, and
sharpen it. Training therefore adds the noise that the reduction took away, and needs to know how much that is.

That holds for the noise of a detector, which is independent from voxel to voxel. Noise that neighbours share was left
by averaging: the volume was made from a finer one, whose noise it still carries, and the finer one is what is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from svision_dask.geometry import Shape

BINS = 32
QUANTILE = 0.25
"""Of the absolute differences in a bin: low, because edges make the large ones larger, and leave the small ones."""
QUANTILE_OF_NORMAL = 0.3186393639643752
"""The same quantile of |N(0, 1)|: the inverse normal distribution at 0.625."""
DIFFERENCE = (-1, 3, -3, 1)
"""Third difference: its response falls with the cube of the frequency, so that it sees hardly anything but noise."""
CUBIC = (-3, -9, 29, 111, 111, 29, -9, -3)
"""Weights of the antialiased cubic reduction by two."""
HIGH, BELOW = (1, -4, 6, -4, 1), (-1, 2, 0, -2, 1)
"""Differences along one axis that see the highest frequencies, and those around two thirds of them."""
INDEPENDENT = 1.15
"""Power below the highest frequencies over power at them, up to which noise is independent. Along one axis at least it
was 0.97 to 1.05 on 12 of 15 recorded volumes; along all axes, 1.26 or more on all 15 once they were reduced by two."""
SHORTEST = 12
"""Voxels that an axis needs for differences along it, also once it is reduced."""
FEWEST = 16 * BINS
"""Differences below which nothing is said."""

Voxels = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Poisson–Gaussian: a voxel of intensity I has the variance ``floor + gain · max(I − offset, 0)``."""

    floor: float
    gain: float
    offset: float = 0.0
    """Intensity of the darkest voxels: cameras add one, and converted files may be negative."""

    def variance(self, intensity: float) -> float:
        """In squared intensity units."""
        return self.floor + self.gain * max(intensity - self.offset, 0.0)


SILENT = Noise(floor=0.0, gain=0.0)


def estimate_noise(voxels: Voxels, factor: Shape = (2, 2, 2)) -> Noise:
    """Estimate the noise of a detector: the roughness that goes once the volume is reduced by two.

    Averaging takes most of the noise away, but structure is as rough as before, or rougher, for the voxels that it then
    has. Without the comparison, beads smaller than a voxel would pass for shot noise. There is none to speak of where
    neighbours share it along every axis of ``voxels`` (z, y, x) that ``factor`` refines.
    """
    axes = [axis for axis, n in enumerate(voxels.shape) if n >= SHORTEST]
    if not is_independent(voxels, factor):
        return SILENT
    rough, left = _roughness(voxels, axes), _roughness(reduce(_halved, axes, voxels), axes)
    floor = rough.floor - left.variance(rough.offset)
    return Noise(floor=max(0.0, floor), gain=max(0.0, rough.gain - left.gain), offset=rough.offset)


def is_independent(voxels: Voxels, factor: Shape = (2, 2, 2)) -> bool:
    """Whether ``voxels`` (z, y, x) have noise that neighbours along one axis that ``factor`` refines do not share."""
    axes = [axis for axis, n in enumerate(voxels.shape) if n >= SHORTEST]
    refined = [axis for axis in axes if factor[axis] > 1] or axes
    return any(_correlation(voxels, axis, axes) <= INDEPENDENT for axis in refined)


def _roughness(voxels: Voxels, axes: Sequence[int]) -> Noise:
    """Measure the noise there would be if nothing else were rough, from mixed third differences along ``axes``.

    Microscopes blur along every axis, so the corner of the spectrum where all frequencies are high holds noise and
    little else; an edge shows there only if it is oblique to all axes. The differences, scaled to the variance of one
    voxel, are sorted by the mean of their neighbourhood into bins of equal size, and the bins' variances are fitted by
    a parabola: what grows with the square of the intensity is structure. Too few voxels for the bins, or a constant,
    are not rough at all.
    """
    size = np.abs(reduce(lambda v, axis: _correlated(v, DIFFERENCE, axis), axes, voxels)).ravel()
    # Each voxel adds to the variance of a difference by the square of its tap: so it counts in the mean.
    power = tuple(tap * tap for tap in DIFFERENCE)
    gain = float(sum(power)) ** len(axes)
    mean = reduce(lambda v, axis: _correlated(v, power, axis), axes, voxels).ravel() / gain
    if not axes or size.size < FEWEST:
        return SILENT
    order = np.argsort(mean, kind="stable")
    means, variances = [], []
    for members in np.array_split(order, BINS):
        means.append(float(mean[members].mean()))
        variances.append((float(np.quantile(size[members], QUANTILE)) / QUANTILE_OF_NORMAL) ** 2 / gain)
    return _fit(np.array(means), np.array(variances))


def _correlation(voxels: Voxels, axis: int, axes: Sequence[int]) -> float:
    """Compare two bands of frequencies along ``axis``, the highest ones along the others: 1 for independent noise.

    Medians, because edges are in the minority.
    """
    corner = reduce(lambda v, other: _correlated(v, DIFFERENCE, other), [a for a in axes if a != axis], voxels)
    high, below = (np.square(_correlated(corner, t, axis)) / np.float32(np.square(t).sum()) for t in (HIGH, BELOW))
    varies = high + below > 0  # a black background says nothing
    return float(np.median(below[varies]) / max(np.median(high[varies]), 1e-30)) if varies.any() else np.inf


def _halved(voxels: Voxels, axis: int) -> Voxels:
    """Reduce ``axis`` by two with the antialiased cubic kernel, faces mirrored."""
    margin = [(3, 4) if a == axis else (0, 0) for a in range(voxels.ndim)]
    smooth = _correlated(np.pad(voxels, margin, mode="symmetric"), CUBIC, axis)
    return smooth[(*(slice(None),) * axis, slice(None, None, 2))] / np.float32(sum(CUBIC))


def _correlated(voxels: Voxels, taps: tuple[int, ...], axis: int) -> Voxels:
    """Correlate with ``taps`` along ``axis``, where all of them lie inside."""
    count = voxels.shape[axis] - len(taps) + 1
    windows = (voxels[(slice(None),) * axis + (slice(k, k + count),)] for k in range(len(taps)))
    return np.asarray(sum(tap * window for tap, window in zip(taps, windows, strict=True)))


def _fit(means: npt.NDArray[np.float64], variances: npt.NDArray[np.float64]) -> Noise:
    """Non-negative parabola; bins weigh by their variance, so that bright ones, where structure hides, do not rule."""
    from scipy.optimize import nnls

    if not variances.any():
        return SILENT
    weight = 1 / (variances + variances.mean())
    above = means - means[0]
    spread = max(above[-1], 1e-30)  # in parts of it, so that the unit of the intensities does not matter
    columns = np.stack([np.ones_like(above), above / spread, (above / spread) ** 2], axis=1)
    (floor, slope, _), _ = nnls(columns * weight[:, None], variances * weight)
    return Noise(floor=float(floor), gain=float(slope / spread), offset=float(means[0]))
