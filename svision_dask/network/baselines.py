"""What every result is measured against: cubic interpolation and back projection, without any network.

The literal iteration on the fine grid, of whole volumes in memory with mirrored faces. It shares the cubic kernels with
`stage`, but not its shortcuts, so that the one can check the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.degradation import CUBIC, UP_REACH, Degradation
from svision_dask.errors import UsageError
from svision_dask.geometry import SPATIAL, Factor, Shape, parse_factor
from svision_dask.volume import mirror_pad

Voxels = npt.NDArray[np.float32]


def cubic(coarse: npt.NDArray[Any], factor: Factor, how: Degradation = CUBIC) -> Voxels:
    """Interpolate by Keys' cubic kernel (a = −1/2), twice in a row for a factor of 4.

    Parameters
    ----------
    coarse
        (z, y, x), any dtype.
    factor
        1, 2 or 4: for every axis, one each in order, or by name.
    how
        The coarse voxels came about: it says where the fine ones lie between them.

    Returns
    -------
    fine
        (fz·z, fy·y, fx·x), neither rounded nor clipped: at edges it overshoots, also below 0.

    Raises
    ------
    UsageError
        If the volume does not have three axes, or the factor is not allowed.
    """
    fine = coarse.astype(np.float32)
    for step in _steps(coarse, factor):
        fine = _up(fine, step, how)
    return fine


def cubic_back_projected(
    coarse: npt.NDArray[Any], factor: Factor, how: Degradation = CUBIC, *, iterations: int = 10, clamp: bool = False
) -> Voxels:
    """Interpolate, then repeat ``fine += U(coarse − D fine)``: D reduces, antialiased, and U interpolates.

    The fine volume is drawn towards one whose reduction is the coarse one (Irani and Peleg 1991,
    doi:10.1016/1049-9652(91)90045-L); noise of the coarse volume is taken for signal and grows.

    Parameters
    ----------
    coarse, factor, how
        As `cubic`; D and U of factor 4 are those of factor 2, twice in a row.
    iterations
        How often to correct.
    clamp
        Whether to set negative voxels to 0 after each correction; helps where the background is black.

    Returns
    -------
    fine
        (fz·z, fy·y, fx·x).

    Raises
    ------
    UsageError
        As `cubic`.
    """
    wanted, steps = coarse.astype(np.float32), _steps(coarse, factor)
    fine = cubic(coarse, factor, how)
    for _ in range(iterations):
        error = wanted - reduced(fine, factor, how)
        for step in steps:
            error = _up(error, step, how)
        fine += error
        if clamp:
            np.maximum(fine, 0, out=fine)
    return fine


def reduced(fine: npt.NDArray[Any], factor: Factor, how: Degradation = CUBIC) -> Voxels:
    """Reduce, by default by the antialiased cubic kernel, twice in a row for a factor of 4; faces are mirrored.

    Parameters
    ----------
    fine
        (z, y, x), any dtype, whole multiples of the factor.
    factor, how
        As `cubic`.

    Returns
    -------
    coarse
        (z/fz, y/fy, x/fx).

    Raises
    ------
    UsageError
        As `cubic`, or if an axis is not a multiple of its factor.
    """
    steps = _steps(fine, factor)
    total = [math.prod(f) for f in zip(*steps, strict=True)]
    if any(n % f for n, f in zip(fine.shape, total, strict=True)):
        raise UsageError(f"volume of {fine.shape} voxels: factor {total} must divide it. Cut it to size.")
    coarse = fine.astype(np.float32)
    for number, step in reversed(list(enumerate(steps))):
        coarse = _down(coarse, step, how.of_step(number))
    return coarse


def best_smoothed(
    fine: Voxels, reference: Voxels, *, widths: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
) -> Voxels:
    """Blur by the Gaussian that comes closest to ``reference``: the most that removing noise by smoothing could gain.

    A reference without noise also rewards what merely removes noise. Nobody can choose the width this way without
    knowing the truth, so an enhanced volume that is better than this has more than less noise to show for it.

    Parameters
    ----------
    fine, reference
        Of equal shape.
    widths
        Standard deviations to try, in voxels, on all axes alike.
    """
    from scipy.ndimage import gaussian_filter

    blurred = (gaussian_filter(fine, width) for width in widths)
    return min(blurred, key=lambda voxels: float(np.square(voxels - reference).mean(dtype=np.float64)))


def _steps(coarse: npt.NDArray[Any], factor: Factor) -> tuple[Shape, ...]:
    """Factors of 1 and 2 per axis, one set per step, whose product is ``factor``."""
    if coarse.ndim != len(SPATIAL) or coarse.size == 0:
        raise UsageError(f"volume of {coarse.shape} voxels: it needs the axes {SPATIAL}, none of them empty.")
    factors = parse_factor(factor, SPATIAL)
    first = tuple(min(f, 2) for f in factors)
    second = tuple(f // a for f, a in zip(factors, first, strict=True))
    return (first, second) if max(second) > 1 else (first,)


def _up(coarse: Voxels, step: Shape, how: Degradation) -> Voxels:
    import torch

    from svision_dask.network.resample import upsample

    padded = mirror_pad(coarse, tuple(UP_REACH * (f == 2) for f in step))
    return np.ascontiguousarray(upsample(torch.from_numpy(padded)[None, None], step, how)[0, 0].numpy())


def _down(fine: Voxels, step: Shape, how: Degradation) -> Voxels:
    import torch

    from svision_dask.network.resample import degrade

    padded = mirror_pad(fine, tuple(2 * how.reach * (f == 2) for f in step))
    return np.ascontiguousarray(degrade(torch.from_numpy(padded)[None, None], step, how)[0, 0].numpy())
