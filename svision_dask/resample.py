"""Cubic resampling by two, and the back projection built from it, as unpadded finite operators.

Everything here is a correlation with a few taps along one axis, so every operator has an exact reach in voxels, and a
voxel's value does not depend on where in an array it was computed: sums run over the taps in one fixed order.

Tensors are (n, c, z, y, x). ``factor`` has one entry per spatial axis, 1 or 2: one stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from svision_dask.architecture import CUBIC_REACH, KERNEL_STEP
from svision_dask.geometry import Shape


def cubic_kernel(distance: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = −1/2 (IEEE Trans. ASSP 29, 1981, eq. 15)."""
    d = np.abs(distance)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def degrade_taps() -> npt.NDArray[np.float64]:
    """Eight taps of antialiased cubic reduction by two, for the fine voxels 2i − 3 … 2i + 4 of coarse voxel i."""
    # The centre of coarse voxel i lies between the fine voxels 2i and 2i + 1; the kernel is widened by the factor.
    return cubic_kernel((np.arange(-3, 5) - 0.5) / 2) / 2


def upsample_taps() -> npt.NDArray[np.float64]:
    """Four taps of cubic interpolation for the even fine voxels; the odd ones use them reversed."""
    # Fine voxel 2i sits a quarter of a coarse voxel before voxel i: taps for the coarse voxels i − 2 … i + 1.
    return cubic_kernel(np.arange(-2, 2) + 0.25)


def correlate(
    voxels: torch.Tensor, taps: Sequence[float], *, axis: int, start: int, count: int, step: int = 1
) -> torch.Tensor:
    """``out[i] = Σ taps[k] · voxels[start + k + step·i]`` along one axis, for i below ``count``; nothing is padded."""
    total: torch.Tensor | None = None
    for k, tap in enumerate(taps):
        window = voxels[_along(axis, slice(start + k, start + k + step * (count - 1) + 1, step))]
        total = window * tap if total is None else total.add_(window, alpha=tap)
    assert total is not None
    return total


def degrade(fine: torch.Tensor, factor: Sequence[int]) -> torch.Tensor:
    """Antialiased cubic reduction: 2m fine voxels become the m − 4 coarse ones that need no padding."""
    taps = degrade_taps().tolist()
    for axis in _changed(factor):
        fine = correlate(fine, taps, axis=axis, start=1, count=fine.shape[axis] // 2 - 2 * CUBIC_REACH, step=2)
    return fine


def upsample(coarse: torch.Tensor, factor: Sequence[int]) -> torch.Tensor:
    """Cubic interpolation: m coarse voxels become the 2(m − 4) fine ones that need no padding."""
    even = upsample_taps().tolist()
    for axis in _changed(factor):
        count = coarse.shape[axis] - 2 * CUBIC_REACH
        phases = (
            correlate(coarse, even, axis=axis, start=0, count=count),
            correlate(coarse, even[::-1], axis=axis, start=1, count=count),
        )
        coarse = torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1)
    return coarse


def correction_kernel(factor: Shape, back_projections: int, radius: int) -> npt.NDArray[np.float64]:
    """Coarse-grid kernel that stands for all ``back_projections``, cut at ``radius`` on the axes of factor 2.

    Iterating ``y += U(x − D y)`` n times from y₀ gives ``y₀ + U · Σ_{i<n} (I − A)^i (x − D y₀)`` with A = D U, because
    both are linear. On the unbounded grid A is a short separable filter, so the sum is one filter as well; its formal
    reach is 3(n − 1) voxels, and it falls off exponentially.
    """
    formal = KERNEL_STEP * (back_projections - 1)
    size = 2 * formal + 1  # no wrap-around: the transform of a filter that fits is exact
    spectrum = np.ones(tuple(size if f == 2 else 1 for f in factor))
    for axis, f in enumerate(factor):
        if f == 2:
            shape = [1] * len(factor)
            shape[axis] = size
            spectrum = spectrum * _coarse_filter_spectrum(size).reshape(shape)
    total = np.zeros_like(spectrum)
    for _ in range(back_projections):
        total = 1 + (1 - spectrum) * total
    kernel = np.fft.fftshift(np.real(np.fft.ifftn(total)))
    return np.ascontiguousarray(kernel[_core(factor, formal, min(radius, formal))])


@lru_cache(maxsize=16)
def kernel_radius(factor: Shape, back_projections: int, tolerance: float) -> int:
    """Smallest radius at which the weights cut off add up to ``tolerance`` or less.

    Cutting there changes the correction, on the coarse grid, by at most ``tolerance`` times the largest residual
    |x − D y₀|, itself below the range of the volume; interpolation then adds at most two thirds to that in 3-D.
    A tolerance of 0 gives the formal reach.
    """
    formal = KERNEL_STEP * (back_projections - 1)
    if tolerance <= 0 or formal <= 0:
        return max(formal, 0)
    kernel = np.abs(correction_kernel(factor, back_projections, formal))
    total = kernel.sum()
    for radius in range(formal):
        if total - kernel[_core(factor, formal, radius)].sum() <= tolerance:
            return radius
    return formal


def _core(factor: Shape, formal: int, radius: int) -> tuple[slice, ...]:
    """Select the part within ``radius`` of the middle of a kernel that reaches ``formal`` voxels."""
    return tuple(slice(formal - radius, formal + radius + 1) if f == 2 else slice(0, 1) for f in factor)


def _coarse_filter_spectrum(size: int) -> npt.NDArray[np.float64]:
    """Transform A = D U along one axis; real, because A is symmetric."""
    even, down = upsample_taps(), degrade_taps()
    # The fine response to one coarse voxel: fine voxels 2i − 3 … 2i + 4, where odd and even ones alternate.
    response = np.zeros(8)
    response[1::2], response[0::2] = even[::-1], even
    taps = np.convolve(response, down[::-1])[1::2]
    offsets = np.arange(len(taps)) - len(taps) // 2
    frequencies = 2 * np.pi * np.fft.fftfreq(size)
    return np.asarray((taps * np.cos(np.outer(frequencies, offsets))).sum(axis=1))


def _changed(factor: Sequence[int]) -> list[int]:
    """List the tensor axes that this stage refines."""
    return [axis + 2 for axis, f in enumerate(factor) if f == 2]


def _along(axis: int, window: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, window)
