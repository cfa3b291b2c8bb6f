"""Point spread functions: given as widths or as a measured kernel, turned into what a reduction can undo.

Only what separates into a profile along each axis is used; how much of a kernel that leaves out is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.degradation import DEGRADES, LONGEST, Degradation, Degrade, Taps
from svision_dask.errors import UsageError
from svision_dask.geometry import SPATIAL, Grid, per_spatial_axis

Line = npt.NDArray[np.float64]

FWHM_OF_SIGMA = 2 * math.sqrt(2 * math.log(2))
FINENESS = 16
"""Samples per coarse voxel of a profile."""
CUT = 4
"""Standard deviations at which it ends."""
WIDEST = 64.0
"""Coarse voxels; a wider PSF is a mistaken unit."""
MOST_CUT_OFF = 0.02
"""Share of a profile that may lie beyond what a reduction can reach; a FWHM of 3.5 coarse voxels has 1 %."""
MOST_LEFT_OUT = 0.5
"""Share of a kernel (root of its energy) that its profiles may leave out. A widefield one leaves out nearly all."""
KERNEL_BYTES = 2**28
"""Size of a kernel file above which it is another file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Psf:
    """One profile per axis, symmetric about its middle."""

    profiles: tuple[Line, Line, Line]
    """For z, y, x: intensities, ``FINENESS`` per coarse voxel, the middle one at the centre."""
    left_out: float = 0.0
    """Root of the share of the kernel's energy that the product of its profiles does not have."""

    @property
    def fwhm(self) -> tuple[float, ...]:
        """Full width at half maximum for z, y, x, in coarse voxels."""
        return tuple(_width(line) / FINENESS for line in self.profiles)

    def weights(self, axis: int, distances: Sequence[float]) -> Line:
        """Intensities at ``distances`` (coarse voxels) from the centre along ``axis``, with the sum 1."""
        line = self.profiles[axis]
        positions = (np.arange(len(line)) - len(line) // 2) / FINENESS
        values = np.interp(distances, positions, line, left=0, right=0)
        return np.asarray(values / values.sum() if values.any() else values)

    def cut_off(self, axis: int) -> float:
        """Tell the share of a profile beyond what a reduction can reach."""
        line = self.profiles[axis]
        distance = np.abs(np.arange(len(line)) - len(line) // 2) / FINENESS
        return float(line[distance > LONGEST / 4].sum() / line.sum())

    def degradation(self) -> Degradation:
        """Make the reduction that blurs by this PSF: its weights at the fine voxels around a coarse one."""
        distances = [(k + 0.5) / 2 for k in range(-LONGEST // 2, LONGEST // 2)]
        return Degradation(kind="psf", psf=tuple(_taps(self.weights(axis, distances)) for axis in range(3)))


def find_psf(given: Any, grid: Grid) -> Psf | None:
    """Make the PSF that was asked for.

    Parameters
    ----------
    given
        None or ``"auto"``: it is not known. Numbers: its full width at half maximum, one for all spatial axes, one each
        in order, or by name, in the units of the spacing. An array (z, y, x), or the path of a TIFF, ``.npy`` or
        ``.mat`` with one: a measured kernel, in voxels as large as those of ``grid``.
    grid
        Of the coarse volume.

    Raises
    ------
    UsageError
        If a width is not positive, or a kernel is empty, not finite, of other axes, or cannot be read.
    """
    if given is None or (isinstance(given, str) and given == "auto"):
        return None
    if isinstance(given, (str, Path)):
        return measured_psf(_read(Path(given)), grid.axes, name=str(given))
    if isinstance(given, np.ndarray):
        return measured_psf(given, grid.axes)
    widths = per_spatial_axis(given, grid.axes, what="psf")
    for axis, width in widths.items():
        if not 0 < width < math.inf:
            raise UsageError(f"psf {axis}={width}: a width must be above 0. Give it in the units of the spacing.")
    spacing = dict(zip(grid.axes, grid.spacing, strict=True))
    for axis, width in widths.items():
        if width / spacing[axis] > WIDEST:
            raise UsageError(
                f"psf {axis}={width:g}: {width / spacing[axis]:.3g} voxels of {spacing[axis]:g}; allowed are at most "
                f"{WIDEST:g}. Give it in the units of the spacing."
            )
    return gaussian_psf([widths[axis] / spacing[axis] if axis in widths else 0.0 for axis in SPATIAL])


def gaussian_psf(fwhm: Sequence[float]) -> Psf:
    """Make a Gaussian of the given widths (z, y, x; coarse voxels); 0 for none."""
    lines = []
    for width in fwhm:
        sigma = max(width / FWHM_OF_SIGMA * FINENESS, 1e-3)
        half = math.ceil(CUT * sigma)
        lines.append(np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2))
    return Psf(profiles=(lines[0], lines[1], lines[2]))


def measured_psf(kernel: npt.NDArray[Any], axes: str = "zyx", *, name: str = "psf") -> Psf:
    """Take the profiles of a measured kernel (z, y, x, or y, x for planes), without its background.

    Raises
    ------
    UsageError
        If it is empty, not finite, constant, or has other axes.
    """
    spatial = sum(axis in SPATIAL for axis in axes)
    real = kernel.dtype.kind in "buif"
    kernel = kernel.astype(np.float64).squeeze() if real else np.empty(0)
    if kernel.ndim != spatial or kernel.size == 0 or not np.isfinite(kernel).all():
        raise UsageError(f"{name}: a kernel of {kernel.shape} voxels; {spatial} axes of finite numbers are needed.")
    bright = np.maximum(kernel.reshape((1,) * (3 - spatial) + kernel.shape) - _background(kernel), 0)
    total = bright.sum()
    if total == 0:
        raise UsageError(f"{name}: a kernel without a peak. Give one that is brighter than its background.")
    lines = [bright.sum(axis=tuple(a for a in range(3) if a != axis)) / total for axis in range(3)]
    product = lines[0][:, None, None] * lines[1][:, None] * lines[2]
    left_out = float(np.linalg.norm(bright / total - product) / np.linalg.norm(bright / total))
    z, y, x = (_symmetric(line) for line in lines)
    return Psf(profiles=(z, y, x), left_out=left_out)


def _background(kernel: npt.NDArray[np.float64]) -> float:
    """Median of the faces: a kernel that was cut out closely has more peak than background."""
    inner = np.zeros(kernel.shape, bool)
    inner[tuple(slice(1, -1) if n > 2 else slice(None) for n in kernel.shape)] = True
    return float(np.median(kernel[~inner])) if not inner.all() else 0.0


def degradation_of(kind: Degrade, psf: Psf | None) -> Degradation:
    """Make the degradation of a kind.

    Raises
    ------
    UsageError
        If there is no such kind, or it is ``"psf"`` and there is none that its profiles describe.
    """
    if kind not in DEGRADES:
        raise UsageError(f"degradation {kind!r}: allowed are {', '.join(DEGRADES)}.")
    if kind != "psf":
        return Degradation(kind=kind)
    if psf is None:
        raise UsageError("degradation psf: which one? Give --psf its width in the units of the spacing, or a kernel.")
    if psf.left_out > MOST_LEFT_OUT:
        raise UsageError(
            f"psf: {psf.left_out:.0%} of the kernel is lost if it is taken for a product of one profile per axis, at "
            f"most {MOST_LEFT_OUT:.0%} may be. Use another --degrade; --psf then sets the scale only."
        )
    for name, axis in zip(SPATIAL, range(3), strict=True):
        if psf.cut_off(axis) > MOST_CUT_OFF:
            raise UsageError(
                f"psf: {psf.cut_off(axis):.0%} of it along {name} lies beyond {LONGEST // 4} coarse voxels; at most "
                f"{MOST_CUT_OFF:.0%} may. Use another --degrade; --psf then sets the scale only."
            )
    return psf.degradation()


def _read(path: Path) -> npt.NDArray[Any]:
    """Read the one array of a TIFF, ``.npy`` or ``.mat`` file; nothing in it is executed."""
    if not path.is_file():
        raise UsageError(f"--psf {path}: neither a width nor a file. Give a FWHM, a .tif, .npy or .mat, or auto.")
    if path.stat().st_size > KERNEL_BYTES:
        raise UsageError(f"{path}: {path.stat().st_size} bytes; a kernel has at most {KERNEL_BYTES}. Cut it out.")
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        if path.suffix.lower() == ".mat":
            return _from_matlab(path)
        from tifffile import imread

        return np.asarray(imread(path))
    except UsageError:
        raise
    except Exception as error:  # whatever the three readers raise on a file that is none of theirs
        raise UsageError(f"{path}: no kernel can be read from it ({error}). Give a .tif, .npy or .mat.") from error


def _from_matlab(path: Path) -> npt.NDArray[Any]:
    """Take the only array of two or three axes; MATLAB has rows (y), columns (x), planes (z)."""
    from scipy.io import loadmat

    arrays = [
        v for k, v in loadmat(path).items() if not k.startswith("__") and isinstance(v, np.ndarray) and v.size > 1
    ]
    if len(arrays) != 1:
        raise UsageError(f"{path}: {len(arrays)} arrays; a kernel file has one. Save the kernel alone.")
    return np.moveaxis(arrays[0], 2, 0) if arrays[0].ndim == len(SPATIAL) else arrays[0]


def _symmetric(line: Line) -> Line:
    """Centre a profile on its mean position, ``FINENESS`` samples per voxel, and average it with its mirror image."""
    from scipy.interpolate import CubicSpline

    centre = float((line * np.arange(len(line))).sum() / line.sum())
    half = math.ceil(max(centre, len(line) - 1 - centre))
    positions = np.arange(-half * FINENESS, half * FINENESS + 1) / FINENESS + centre + 1
    spline = CubicSpline(np.arange(len(line) + 2), np.pad(line, 1), extrapolate=False)
    centred = np.maximum(np.nan_to_num(spline(positions)), 0)
    return np.asarray((centred + centred[::-1]) / 2)


def _width(line: Line) -> float:
    """Count the samples between the two places where a symmetric profile falls to half of its middle."""
    right = line[len(line) // 2 :] / line[len(line) // 2]
    below = np.flatnonzero(right < 0.5)
    if not below.size:
        return float(len(line))
    last = int(below[0])
    return float(2 * (last - 1 + (right[last - 1] - 0.5) / (right[last - 1] - right[last])))


def _taps(weights: Line) -> Taps:
    """Leave out the zeros at both ends, and make the rest exactly symmetric with the sum 1."""
    used = np.flatnonzero(weights > 1e-6 * weights.max(initial=0))
    if not used.size:  # narrower than a fine voxel: what binning does
        return (0.5, 0.5)
    kept = weights[used[0] : used[-1] + 1]
    kept = (kept + kept[::-1]) / 2
    return tuple((kept / kept.sum()).tolist())
