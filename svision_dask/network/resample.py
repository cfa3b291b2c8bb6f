"""Reduction and interpolation by two, and the back projection built from them, as unpadded finite operators.

Everything here is a correlation with a few taps along one axis, so every operator has an exact reach in voxels, and a
voxel's value does not depend on where in an array it was computed: sums run over the taps in one fixed order.

Tensors are (n, c, z, y, x). ``factor`` has one entry per spatial axis, 1 or 2: one stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from svision_dask.degradation import CUBIC, UP_REACH, Degradation, Taps
from svision_dask.geometry import Shape
from svision_dask.network import portable


def correlate(
    voxels: torch.Tensor, taps: Sequence[float], *, axis: int, start: int, count: int, step: int = 1
) -> torch.Tensor:
    """``out[i] = Σ taps[k] · voxels[start + k + step·i]`` along one axis, for i below ``count``; nothing is padded."""
    if torch.compiler.is_exporting():
        return portable.correlate(
            voxels.narrow(axis, start, step * (count - 1) + len(taps)), taps, axis=axis, step=step
        )
    total: torch.Tensor | None = None
    for k, tap in enumerate(taps):
        window = voxels[_along(axis, slice(start + k, start + k + step * (count - 1) + 1, step))]
        total = window * tap if total is None else total.add_(window, alpha=tap)
    assert total is not None
    return total


def degrade(fine: torch.Tensor, factor: Sequence[int], how: Degradation = CUBIC) -> torch.Tensor:
    """Reduce: 2m fine voxels become the m − 2r coarse ones that need no padding, r being the reach of ``how``."""
    for axis in _changed(factor):
        taps, first = how.down[axis - 2], 2 * how.reach
        start, count = first + 1 - len(taps) // 2, fine.shape[axis] // 2 - first
        fine = correlate(fine, taps, axis=axis, start=start, count=count, step=2)
    return fine


def upsample(coarse: torch.Tensor, factor: Sequence[int], how: Degradation = CUBIC) -> torch.Tensor:
    """Cubic interpolation: m coarse voxels become the 2(m − 4) fine ones that need no padding."""
    even, odd = how.up
    # From x to z: only the last step has all fine voxels, and moves whole planes.
    for axis in reversed(_changed(factor)):
        if torch.compiler.is_exporting():
            coarse = portable.interpolate(coarse, even, odd, axis=axis)
            continue
        count = coarse.shape[axis] - 2 * UP_REACH
        fine = coarse.new_empty([2 * count if i == axis else n for i, n in enumerate(coarse.shape)])
        # Into their places one after the other: torch.stack takes four times as long.
        fine[_along(axis, slice(0, None, 2))] = correlate(coarse, even, axis=axis, start=0, count=count)
        fine[_along(axis, slice(1, None, 2))] = correlate(coarse, odd, axis=axis, start=1, count=count)
        coarse = fine
    return coarse


def correction_kernel(
    factor: Shape, back_projections: int, radius: int, how: Degradation = CUBIC
) -> npt.NDArray[np.float64]:
    """Coarse-grid kernel that stands for all ``back_projections``, cut at ``radius`` on the axes of factor 2.

    Iterating ``y += U(x − D y)`` n times from y₀ gives ``y₀ + U · Σ_{i<n} (I − A)^i (x − D y₀)`` with A = D U, because
    both are linear. On the unbounded grid A is a short separable filter, so the sum is one filter as well; its formal
    reach is n − 1 times that of A (3 voxels where D is cubic), and it falls off exponentially.
    """
    formal = how.step * (back_projections - 1)
    size = 2 * formal + 1  # no wrap-around: the transform of a filter that fits is exact
    spectrum = np.ones(tuple(size if f == 2 else 1 for f in factor))
    for axis, f in enumerate(factor):
        if f == 2:
            shape = [1] * len(factor)
            shape[axis] = size
            spectrum = spectrum * _coarse_filter_spectrum(size, how.down[axis], how.up).reshape(shape)
    total = np.zeros_like(spectrum)
    for _ in range(back_projections):
        total = 1 + (1 - spectrum) * total
    kernel = np.fft.fftshift(np.real(np.fft.ifftn(total)))
    return np.ascontiguousarray(kernel[_core(factor, formal, min(radius, formal))])


@lru_cache(maxsize=16)
def kernel_radius(factor: Shape, back_projections: int, tolerance: float, how: Degradation = CUBIC) -> int:
    """Smallest radius at which the weights cut off add up to ``tolerance`` or less.

    Cutting there changes the correction, on the coarse grid, by at most ``tolerance`` times the largest residual
    |x − D y₀|, itself below the range of the volume; interpolation then adds at most two thirds to that in 3-D.
    A tolerance of 0 gives the formal reach.
    """
    formal = how.step * (back_projections - 1)
    if tolerance <= 0 or formal <= 0:
        return max(formal, 0)
    kernel = np.abs(correction_kernel(factor, back_projections, formal, how))
    total = kernel.sum()
    for radius in range(formal):
        if total - kernel[_core(factor, formal, radius)].sum() <= tolerance:
            return radius
    return formal


def _core(factor: Shape, formal: int, radius: int) -> tuple[slice, ...]:
    """Select the part within ``radius`` of the middle of a kernel that reaches ``formal`` voxels."""
    return tuple(slice(formal - radius, formal + radius + 1) if f == 2 else slice(0, 1) for f in factor)


def _coarse_filter_spectrum(size: int, down: Taps, up: tuple[Taps, Taps]) -> npt.NDArray[np.float64]:
    """Transform A = D U along one axis; real, because A is symmetric."""
    even, odd = (np.array(taps) for taps in up)
    # The fine response to one coarse voxel: fine voxels 2i − 3 … 2i + 4, where odd and even ones alternate.
    response = np.zeros(8)
    response[1::2], response[0::2] = even[::-1], odd[::-1]
    first = -3 - len(down) // 2  # the fine offset of the first product; coarse voxels sit at the even ones
    taps = np.convolve(response, down[::-1])[first % 2 :: 2]
    offsets = (first + first % 2) // 2 + np.arange(len(taps))
    frequencies = 2 * np.pi * np.fft.fftfreq(size)
    return np.asarray((taps * np.cos(np.outer(frequencies, offsets))).sum(axis=1))


def _changed(factor: Sequence[int]) -> list[int]:
    """List the tensor axes that this stage refines."""
    return [axis + 2 for axis, f in enumerate(factor) if f == 2]


def _along(axis: int, window: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, window)
