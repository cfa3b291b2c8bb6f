"""How alike two volumes are: PSNR and SSIM, with a data range that the caller states."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.errors import UsageError
from svision_dask.geometry import Shape

Voxels = npt.NDArray[Any]

BORDER = 2
"""Voxels left out at every face, where what is compared depends on how the volume was continued beyond it."""
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
    check_range(data_range)
    inner, inner_reference = inside(image, reference, border)
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

    check_range(data_range)
    inner, inner_reference = (part.squeeze() for part in inside(image, reference, border))
    window = ssim_window(image.shape, border)
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]  # skimage leaves it unannotated
            inner.astype(np.float64), inner_reference.astype(np.float64), data_range=data_range, win_size=window
        )
    )


def ssim_map(image: Voxels, reference: Voxels, *, data_range: float, window: int, flat: bool) -> Voxels:
    """Tell the similarity around each voxel, in windows of ``window`` voxels, for `ssim` block by block.

    Voxels nearer than half a window to the faces are not of use. Where ``flat``, planes are measured one by one.
    """
    from skimage.metrics import structural_similarity

    pairs = zip(image, reference, strict=True) if flat else [(image, reference)]
    maps = [
        structural_similarity(  # type: ignore[no-untyped-call]  # skimage leaves it unannotated
            a.astype(np.float64), b.astype(np.float64), data_range=data_range, win_size=window, full=True
        )[1]
        for a, b in pairs
    ]
    return np.stack(maps) if flat else np.asarray(maps[0])


def ssim_window(shape: Shape, border: int = BORDER) -> int:
    """Voxels along each side of the window for volumes of ``shape``.

    Raises
    ------
    UsageError
        If fewer than 3 voxels are left along an axis of more than one.
    """
    inner = tuple(n - 2 * border for n in shape if n > 1)
    shortest = min(inner, default=0)
    if shortest < 3:
        raise UsageError(
            f"ssim of {shape} voxels: {inner} are left inside a border of {border}; each axis needs 3. "
            "Give a larger volume, or a smaller border."
        )
    return min(WINDOW, shortest - 1 + shortest % 2)


def check_range(data_range: float) -> None:
    """Raise ``UsageError`` unless the range is a positive number."""
    if not (math.isfinite(data_range) and data_range > 0):
        raise UsageError(f"data_range {data_range}: give a positive number, such as the maximum of the reference.")


def inside(image: Voxels, reference: Voxels, border: int) -> tuple[Voxels, Voxels]:
    """Cut the border off both volumes.

    Raises
    ------
    UsageError
        If the shapes differ, or nothing is left inside the border.
    """
    if image.shape != reference.shape:
        raise UsageError(f"image of {image.shape} and reference of {reference.shape} voxels: the shapes must be equal.")
    if border < 0 or any(1 < n <= 2 * border for n in image.shape) or 0 in image.shape:
        raise UsageError(
            f"volume of {image.shape} voxels: nothing is left inside a border of {border}. Give a smaller border."
        )
    core = tuple(slice(border, n - border) if n > 1 else slice(None) for n in image.shape)
    return image[core], reference[core]
