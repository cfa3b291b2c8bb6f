"""How alike two volumes are: PSNR and SSIM, with a data range that the caller states, and up to which detail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.errors import UsageError

Voxels = npt.NDArray[Any]

BORDER = 2
"""Voxels left out at every face, where what is compared depends on how the volume was continued beyond it."""
RESOLVED = 1 / 7
"""Correlation down to which detail counts as shared (Rosenthal, Henderson 2003, doi:10.1016/j.jmb.2003.07.013)."""
FEWEST_SHELLS = 4
"""Below which there is nothing to tell a resolution from."""
WINDOW = 7
"""Voxels along each side of the window of SSIM, where the axes are that long."""


def psnr(image: Voxels, reference: Voxels, *, data_range: float, border: int = BORDER) -> float:
    """Measure the peak signal-to-noise ratio, ``10·log₁₀(data_range² / mean squared error)``, in dB.

    Parameters
    ----------
    image, reference
        Of equal shape, any number of axes and any dtype.
    data_range
        What counts as the full range of intensities, above 0. It never defaults: twice the range is 6 dB more.
    border
        Voxels to leave out at every face; an axis of one voxel has no faces and is taken whole.

    Returns
    -------
    float
        Infinite where image and reference are equal, and not a number where one of them holds NaN.

    Raises
    ------
    UsageError
        If the shapes differ, the range is not a positive number, or nothing is left inside the border.
    """
    inner, inner_reference = _inside(image, reference, data_range, border)
    error = np.mean(np.square(np.subtract(inner, inner_reference, dtype=np.float64)))
    return math.inf if error == 0 else float(10 * np.log10(data_range**2 / error))


def ssim(image: Voxels, reference: Voxels, *, data_range: float, border: int = BORDER) -> float:
    """Measure the structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861): at most 1, for equal images.

    The window is a cube, or a square, of 7 voxels per side. Where an axis has fewer voxels inside the border, the
    window is the largest odd number that fits, at least 3, along all axes: its values do not compare with those of
    other windows. Axes of one voxel are dropped, so that a volume of one plane is measured as a plane.

    Parameters
    ----------
    image, reference
        Of equal shape, any number of axes and any dtype.
    data_range
        What counts as the full range of intensities, above 0.
    border
        Voxels to leave out at every face; an axis of one voxel has no faces.

    Raises
    ------
    UsageError
        As `psnr`, or if fewer than 3 voxels are left along an axis.
    """
    from skimage.metrics import structural_similarity

    inner, inner_reference = (part.squeeze() for part in _inside(image, reference, data_range, border))
    shortest = min(inner.shape, default=0)
    if shortest < 3:
        raise UsageError(
            f"ssim of {image.shape} voxels: {inner.shape} are left inside a border of {border}; each axis needs 3. "
            "Give a larger volume, or a smaller border."
        )
    window = min(WINDOW, shortest - 1 + shortest % 2)
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]  # skimage leaves it unannotated
            inner.astype(np.float64), inner_reference.astype(np.float64), data_range=data_range, win_size=window
        )
    )


def fsc(image: Voxels, reference: Voxels, *, border: int = BORDER) -> tuple[Voxels, Voxels]:
    """Correlate two volumes shell by shell in frequency space (van Heel 1987, doi:10.1016/0304-3991(87)90010-1).

    Means are taken off, and a Hann window takes the faces off, where they would pass for detail.

    Parameters
    ----------
    image, reference
        Of equal shape, any number of axes and any dtype.
    border
        Voxels to leave out at every face; an axis of one voxel is taken whole.

    Returns
    -------
    frequencies, correlations
        Middle of each shell in cycles per voxel, up to 1/2, and the correlation in it, from −1 to 1; 0 for a shell that
        is empty in one of them.

    Raises
    ------
    UsageError
        If the shapes differ, or nothing is left inside the border.
    """
    parts = _inside(image, reference, 1.0, border)
    if max(parts[0].shape) < 2 * FEWEST_SHELLS:
        raise UsageError(
            f"volume of {image.shape} voxels: {parts[0].shape} are left inside a border of {border}; one axis needs "
            f"{2 * FEWEST_SHELLS}. Give a larger volume, or a smaller border."
        )
    first, second = (_spectrum(part) for part in parts)
    axes = [np.fft.fftfreq(n) for n in first.shape]
    distance = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True)))
    edges = np.linspace(0, 0.5, max(first.shape) // 2 + 1)
    shell = np.digitize(distance.ravel(), edges) - 1
    products = (first * second.conj()).real, np.abs(first) ** 2, np.abs(second) ** 2
    cross, own, other = (np.bincount(shell, p.ravel(), minlength=len(edges))[: len(edges) - 1] for p in products)
    norm = np.sqrt(own * other)
    return (edges[:-1] + edges[1:]) / 2, np.divide(cross, norm, out=np.zeros_like(cross), where=norm > 0)


def fsc_resolution(image: Voxels, reference: Voxels, *, border: int = BORDER) -> float:
    """Find the period, in voxels, of the finest detail that both volumes share: where ``fsc`` first falls below 1/7.

    Parameters
    ----------
    image, reference, border
        As `fsc`.

    Returns
    -------
    float
        2 or more; infinite where even the coarsest detail differs.

    Raises
    ------
    UsageError
        As `fsc`.
    """
    frequencies, correlations = fsc(image, reference, border=border)
    below = np.flatnonzero(correlations < RESOLVED)
    if not below.size:
        return 2.0
    k = int(below[0])
    if k == 0:
        return math.inf
    share = (correlations[k - 1] - RESOLVED) / (correlations[k - 1] - correlations[k])
    return float(1 / (frequencies[k - 1] + share * (frequencies[k] - frequencies[k - 1])))


def _spectrum(voxels: Voxels) -> npt.NDArray[np.complexfloating[Any]]:
    """Transform the voxels without their mean, faded out towards the faces."""
    faded = voxels - voxels.mean(dtype=np.float64)
    for axis, n in enumerate(voxels.shape):
        if n > 1:
            faded = faded * np.hanning(n + 2)[1:-1].reshape([-1 if a == axis else 1 for a in range(voxels.ndim)])
    return np.asarray(np.fft.fftn(faded))


def _inside(image: Voxels, reference: Voxels, data_range: float, border: int) -> tuple[Voxels, Voxels]:
    """Both volumes without their border."""
    if image.shape != reference.shape:
        raise UsageError(f"image of {image.shape} and reference of {reference.shape} voxels: the shapes must be equal.")
    if not (math.isfinite(data_range) and data_range > 0):
        raise UsageError(f"data_range {data_range}: give a positive number, such as the maximum of the reference.")
    if border < 0 or any(1 < n <= 2 * border for n in image.shape) or 0 in image.shape:
        raise UsageError(
            f"volume of {image.shape} voxels: nothing is left inside a border of {border}. Give a smaller border."
        )
    core = tuple(slice(border, n - border) if n > 1 else slice(None) for n in image.shape)
    return image[core], reference[core]
