"""A simulated two-photon volume without end, of which any box can be made on its own.

Every voxel is a function of (seed, its coordinates) and nothing else: a box costs what it holds, and equals, bit by
bit, the same box cut out of a larger one. Nothing is stored, so a worker can make any chunk of 10¹² voxels.

The expectation is fluorophore (`neurites`) blurred by a Gaussian point spread function (PSF), on a faint uneven
background; the counts are Poisson draws of it (`noise`). A coarse measurement is the antialiased cubic reduction of the
expectation, with noise of its own, as at the detector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from svision_dask.errors import UsageError
from svision_dask.geometry import FACTORS, Factor, Grid, Shape, Vector, per_spatial_axis
from svision_dask.simulation.neurites import points_near
from svision_dask.training.noise import cloudiness, poisson_counts
from svision_dask.volume import Box, Volume

What = Literal["truth", "counts", "expected", "measured"]
Array = npt.NDArray[np.float64]

FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))
REFERENCE_RADIUS_UM = 0.6
"""Radius of the dendrite whose axis shows ``Phantom.photons``."""
_TRUNCATE = 4.5
"""The PSF is cut at this many sigmas, where it is below 1e-4 of its peak."""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A simulated two-photon volume: dendrites with spines, and thin axons with boutons, on a fine grid.

    The default voxel is the width (FWHM) of the PSF divided by 2.25, on every axis: 0.2 µm of 0.45 µm across, 0.8 µm
    of 1.8 µm along the optical axis. A Gaussian PSF passes exp(−0.89·(FWHM/spacing)²) of the contrast at the highest
    frequency a grid can hold: 1 % here, so that the fine grid loses nothing, but 32 % on the grid twice as coarse,
    which therefore loses detail that the PSF had resolved (spine necks, heads close to their dendrite, axons side by
    side). With half the spacing the coarse grid would lose nothing either, and nothing would be left to enhance.
    """

    shape: Shape
    """Voxels (z, y, x) of the fine grid. The world has no end; the shape only says which part of it is the volume."""
    seed: int = 0
    spacing: Vector = (0.8, 0.2, 0.2)
    """Fine voxel size (z, y, x) in µm."""
    psf_sigma: Vector = (1.8 / FWHM_PER_SIGMA, 0.45 / FWHM_PER_SIGMA, 0.45 / FWHM_PER_SIGMA)
    """Standard deviations (z, y, x) of the PSF in µm."""
    photons: float = 200.0
    """Expected photons on the axis of a dendrite of radius 0.6 µm and mean brightness in the focal plane."""
    background: float = 4.0
    """Expected photons far from any labelled neurite, on average."""

    def __post_init__(self) -> None:
        if any(len(v) != 3 for v in (self.shape, self.spacing, self.psf_sigma)) or min(self.shape) < 1:
            raise UsageError(f"phantom {self}: shape, spacing and psf_sigma need three numbers z,y,x, shape above 0.")
        if min(self.spacing) <= 0 or any(d > 1.8 * s for d, s in zip(self.spacing, self.psf_sigma, strict=True)):
            # A grid this coarse does not sample the PSF, and the spline of `blurred_points` would be wider than it.
            raise UsageError(
                f"phantom: spacing {self.spacing} µm: allowed is above 0, at most 1.8 × psf_sigma {self.psf_sigma} µm. "
                "For coarser voxels use 'measured'."
            )
        if self.seed < 0 or self.photons < 0 or self.background < 0:
            raise UsageError(f"phantom {self}: seed, photons and background must not be negative.")

    def truth(self, box: Box) -> npt.NDArray[np.float32]:
        """Make the fine volume without noise: the expected photons in each voxel of ``box``.

        Parameters
        ----------
        box
            Start and stop (z, y, x) in fine voxels; may lie beyond ``shape``, where the world goes on.

        Returns
        -------
        truth
            Float32, the shape of ``box``, at least 0.

        Raises
        ------
        UsageError
            If ``box`` lacks a start or a stop, or has a step.
        """
        first, shape = _corner_and_shape(box)
        if 0 in shape:
            return np.zeros(shape, np.float32)
        spacing, sigma = np.array(self.spacing), np.array(self.psf_sigma)
        reach = _TRUNCATE * sigma + 3 * spacing  # the kernel rounded up to voxels, and half a spline
        points, volume = points_near(self.seed, first * spacing - reach, (first + shape) * spacing + reach)
        structure = blurred_points(points, volume, box, spacing=self.spacing, sigma=self.psf_sigma)
        structure *= self.photons / _tube_fraction(self.psf_sigma, REFERENCE_RADIUS_UM)
        structure += self.background * cloudiness(self.seed, first, shape, self.spacing)
        return structure.astype(np.float32)

    def counts(self, box: Box) -> npt.NDArray[np.uint16]:
        """Make the fine volume with noise: a Poisson draw of `truth`, uint16, the same at every call."""
        return self.measured(box, 1)

    def expected(self, box: Box, factor: Factor) -> npt.NDArray[np.float32]:
        """Make the coarse volume without noise: the antialiased cubic reduction of `truth`, not below 0.

        Parameters
        ----------
        box
            Start and stop (z, y, x) in coarse voxels.
        factor
            1, 2 or 4 for all axes or for each: fine voxels per coarse voxel.

        Returns
        -------
        expected
            Float32, the shape of ``box``.

        Raises
        ------
        UsageError
            If ``factor`` or ``box`` is not as above.
        """
        factors = _factors(factor)
        first, shape = _corner_and_shape(box)
        if 0 in shape:
            return np.zeros(shape, np.float32)
        halo = [_reduction_halo(f) for f in factors]
        fine = zip(first, shape, factors, halo, strict=True)
        fine_box = tuple(slice(int(a * f - h), int((a + n) * f + h)) for a, n, f, h in fine)
        return reduce_cubic(self.truth(fine_box), factors).clip(0).astype(np.float32)

    def measured(self, box: Box, factor: Factor) -> npt.NDArray[np.uint16]:
        """Make the coarse volume with noise: a Poisson draw of `expected`, uint16, the same at every call.

        The noise is drawn on the coarse grid, as by a detector that dwells on coarse voxels; it is not the reduced
        noise of `counts`. Parameters and errors are those of `expected`.
        """
        factors = _factors(factor)
        first, _ = _corner_and_shape(box)
        return poisson_counts(self.expected(box, factors), first, key=(self.seed, *factors))

    @property
    def grid(self) -> Grid:
        """The fine grid; the centre of voxel 0 is the origin of the world."""
        return Grid(axes="zyx", shape=self.shape, spacing=self.spacing, origin=(0.0,) * 3, units=("micrometer",) * 3)


def as_volume(
    phantom: Phantom, what: What = "truth", *, factor: Factor | None = None, chunks: Shape = (64, 64, 64)
) -> Volume:
    """Open a lazy volume of a phantom; each chunk is simulated where and when it is read.

    Parameters
    ----------
    phantom
        What to simulate.
    what
        ``"truth"`` or ``"counts"`` on the fine grid; ``"expected"`` (no noise) or ``"measured"`` on the coarse grid.
    factor
        How many times coarser, 1, 2 or 4, only for the coarse grid and needed there.
    chunks
        Voxels (z, y, x) per chunk. A chunk below some 64³ spends more on finding its neurites than on drawing them.

    Returns
    -------
    Volume
        Axes zyx in micrometers, float32 or uint16. For the coarse grid, ``grid.finer(factor)`` is the phantom's grid.

    Raises
    ------
    UsageError
        If ``what`` is unknown, ``factor`` does not fit it, or does not divide the shape of the phantom.
    """
    if what not in ("truth", "counts", "expected", "measured"):
        raise UsageError(f"what={what!r}: allowed are 'truth', 'counts', 'expected' and 'measured'.")
    is_coarse = what in ("expected", "measured")
    if is_coarse == (factor is None):
        raise UsageError(f"what={what!r} with factor={factor}: a factor belongs to 'expected' and 'measured' only.")
    factors = _factors(1 if factor is None else factor)
    if any(n % f for n, f in zip(phantom.shape, factors, strict=True)):
        raise UsageError(f"phantom of {phantom.shape} voxels: factor {factors} must divide it. Change the shape.")
    source = PhantomSource(phantom=phantom, what=what, factor=factors)
    return Volume.from_source(source, phantom.grid.coarser(factors), chunks=chunks, name=f"phantom {what}")


@dataclass(frozen=True, kw_only=True)
class PhantomSource:
    """A phantom read like an array, by integers and by slices of step 1; pickles to less than a kilobyte."""

    phantom: Phantom
    what: What
    factor: Shape

    @property
    def shape(self) -> Shape:
        """Voxels along each axis."""
        return tuple(n // f for n, f in zip(self.phantom.shape, self.factor, strict=True))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Float32 without noise, uint16 with it."""
        return np.dtype(np.float32 if self.what in ("truth", "expected") else np.uint16)

    def __getitem__(self, index: Any, /) -> npt.NDArray[Any]:
        index = index if isinstance(index, tuple) else () if index is Ellipsis else (index,)
        index += (slice(None),) * (self.ndim - len(index))
        box = tuple(_box_side(i, n) for i, n in zip(index, self.shape, strict=True))
        return self._read(box)[tuple(slice(None) if isinstance(i, slice) else 0 for i in index)]

    def _read(self, box: Box) -> npt.NDArray[Any]:
        if self.what in ("truth", "expected"):
            return self.phantom.expected(box, self.factor)
        return self.phantom.measured(box, self.factor)


def _box_side(index: Any, size: int) -> slice:
    """Return the start and stop that ``index``, an integer or a slice, selects out of ``size`` voxels."""
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        if step != 1:
            raise UsageError(f"phantom: index {index} has a step; read without a step, then thin out.")
        return slice(start, max(start, stop))
    start = range(size)[index]
    return slice(start, start + 1)


def reduce_cubic(fine: npt.NDArray[Any], factor: int | Sequence[int]) -> Array:
    """Reduce an array by an antialiased cubic kernel, without padding: the plain oracle for faster reductions.

    Keys' cubic (a = −1/2) stretched by the factor f, its 4f taps normalised to sum 1. Coarse voxel i is centred on fine
    coordinate f·i + (f − 1)/2; for f = 2 its taps are fine voxels 2i − 3 … 2i + 4. The result starts with the coarse
    voxel whose first tap is ``fine[0]``, so give it fine voxels from f·i − 3f/2 to have i first; n voxels along an axis
    become (n − 4f)//f + 1. Where f = 1 the axis is untouched.

    Parameters
    ----------
    fine
        Any number of axes.
    factor
        One for all axes, or one for each.

    Returns
    -------
    coarse
        Float64.

    Raises
    ------
    UsageError
        If an axis is shorter than the kernel.
    """
    factors = (factor,) * fine.ndim if isinstance(factor, int) else tuple(factor)
    coarse = fine.astype(np.float64)
    for axis, f in enumerate(factors):
        coarse = _reduce_axis(coarse, axis, f)
    return coarse


def keys_taps(factor: int) -> Array:
    """Return the 4·factor weights of `reduce_cubic`, sum 1 (Keys 1981, doi:10.1109/TASSP.1981.1163711, eq. 15)."""
    t = np.abs(np.arange(4 * factor) - (4 * factor - 1) / 2) / factor
    taps = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2)
    return np.asarray(taps / taps.sum())


def _reduce_axis(fine: Array, axis: int, factor: int) -> Array:
    if factor == 1:
        return fine
    taps, size = keys_taps(factor), fine.shape[axis]
    count = (size - len(taps)) // factor + 1
    if count < 1:
        raise UsageError(f"axis {axis}: {size} voxels are fewer than the {len(taps)} taps of factor {factor}.")
    moved = np.moveaxis(fine, axis, 0)
    # One tap after the other, so that each voxel is summed in the same order whatever the box.
    parts = (w * moved[t : t + factor * (count - 1) + 1 : factor] for t, w in enumerate(taps))
    coarse = next(parts)
    for part in parts:
        coarse += part
    return np.moveaxis(coarse, 0, axis)


def _reduction_halo(factor: int) -> int:
    """Fine voxels that the taps of a coarse voxel reach beyond its own ``factor`` fine voxels, on either side."""
    return 0 if factor == 1 else 3 * factor // 2


def blurred_points(points: Array, volume: Array, box: Box, *, spacing: Vector, sigma: Vector) -> Array:
    """Image points with a Gaussian PSF whose width is exact wherever in its voxel a point lies.

    A point is first spread over 3³ voxels by a quadratic B-spline, whose variance is 1/4 voxel² at any position in the
    voxel (that of a trilinear spread varies between 0 and 1/4, and the width of the image with it); a sampled Gaussian
    then adds the rest of the variance.

    Parameters
    ----------
    points
        (n, 3) in µm; the centre of voxel 0 is at 0.
    volume
        (n,) in µm³.
    box
        Start and stop (z, y, x) in voxels.
    spacing, sigma
        Voxel size and standard deviation of the PSF (z, y, x) in µm.

    Returns
    -------
    image
        Float64, the shape of ``box``: 1 inside a body of points that fills space and is larger than the PSF.
    """
    from scipy.ndimage import correlate1d

    first, shape = _corner_and_shape(box)
    kernels = [_gaussian(math.sqrt((s / d) ** 2 - 0.25)) for s, d in zip(sigma, spacing, strict=True)]
    halo = np.array([len(k) // 2 for k in kernels])
    image = _splat(points / np.array(spacing), volume / math.prod(spacing), first - halo, shape + 2 * halo)
    for axis, kernel in enumerate(kernels):
        image = correlate1d(image, kernel, axis=axis, mode="constant")
        h = len(kernel) // 2
        image = image[(slice(None),) * axis + (slice(h, -h),)]
    return np.ascontiguousarray(image)


def _gaussian(sigma: float) -> Array:
    radius = math.ceil(_TRUNCATE * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(kernel / kernel.sum())


def _splat(points: Array, weight: Array, first: npt.NDArray[np.int64], shape: npt.NDArray[np.int64]) -> Array:
    """Spread points (in voxels) over the voxels of a box; each voxel is summed in the order of the points."""
    nearest = np.floor(points + 0.5)
    at = nearest.astype(np.int64) - first + 1  # a frame of one voxel takes the points that only touch the box
    framed = shape + 2
    inside = ((at >= 0) & (at < framed)).all(axis=1)
    points, nearest, at, weight = points[inside], nearest[inside], at[inside], weight[inside]
    f = points - nearest  # −1/2 .. 1/2
    spline = (0.5 * (0.5 - f) ** 2, 0.75 - f**2, 0.5 * (0.5 + f) ** 2)
    strides = np.array([(framed[1] + 2) * (framed[2] + 2), framed[2] + 2, 1])
    flat = ((at + 1) * strides).sum(axis=1)
    image = np.zeros(math.prod((framed + 2).tolist()))  # one more voxel for the neighbours of the frame
    for k in np.ndindex(3, 3, 3):
        share = weight * spline[k[0]][:, 0] * spline[k[1]][:, 1] * spline[k[2]][:, 2]
        np.add.at(image, flat + int(((np.array(k) - 1) * strides).sum()), share)
    return image.reshape(framed + 2)[2:-2, 2:-2, 2:-2]


def _tube_fraction(sigma: Vector, radius: float) -> float:
    """Share of the PSF that a straight tube in the focal plane fills, seen from its axis."""
    from scipy.special import erf

    y = (np.arange(400) + 0.5) / 400 * radius
    lateral = np.exp(-0.5 * (y / sigma[1]) ** 2) / (sigma[1] * math.sqrt(2 * math.pi))
    axial = erf(np.sqrt(radius**2 - y**2) / (sigma[0] * math.sqrt(2)))
    return float(2 * (lateral * axial).sum() * radius / 400)


def _corner_and_shape(box: Box) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    if len(box) != 3 or any(s.start is None or s.stop is None or s.step not in (None, 1) for s in box):
        raise UsageError(f"box {box}: give slices with start and stop, without step, for z, y and x.")
    first = np.array([s.start for s in box], np.int64)
    return first, np.maximum(0, np.array([s.stop for s in box], np.int64) - first)


def _factors(factor: int | Sequence[int] | Mapping[str, int]) -> Shape:
    factors = tuple(int(f) for f in per_spatial_axis(factor, "zyx", what="factor", missing=1).values())
    if any(f not in FACTORS for f in factors):
        raise UsageError(f"factor {factor}: allowed are 1, 2 and 4 per axis.")
    return factors
