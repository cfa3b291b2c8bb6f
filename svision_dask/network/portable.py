"""The operators as plain convolutions: what they become in a graph that other programs run.

Ours write into places and look at memory in other ways, which is fast, but means nothing to others. These do the same
with the few operations that every runtime has, in whatever order it likes to sum, so they agree but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from svision_dask.geometry import Shape


def correlate(voxels: torch.Tensor, taps: Sequence[float], *, axis: int, step: int) -> torch.Tensor:
    """``out[i] = Σ taps[k] · voxels[k + step·i]`` along one axis of (n, 1, z, y, x), as long as there are voxels."""
    return F.conv3d(voxels, _kernel(voxels, taps, axis), stride=_along(axis, step))


def interpolate(coarse: torch.Tensor, even: Sequence[float], odd: Sequence[float], *, axis: int) -> torch.Tensor:
    """``out[2i] = Σ even[k] · coarse[i + k]`` and ``out[2i + 1] = Σ odd[k] · coarse[i + 1 + k]``, m → 2(m − 4)."""
    # What coarse voxel j gives to fine voxel 2j − 8 + t: the taps that meet there, the last ones first.
    taps = [tap for pair in zip((0.0, *reversed(even)), (*reversed(odd), 0.0), strict=True) for tap in pair]
    spare = tuple(8 * (a == axis) for a in (2, 3, 4))
    return F.conv_transpose3d(coarse, _kernel(coarse, taps, axis), stride=_along(axis, 2), padding=spare)


def interleave(phases: torch.Tensor, factor: Shape) -> torch.Tensor:
    """Put the channels of each coarse voxel in place: (n, p, z, y, x) → (n, 1, fz·z, fy·y, fx·x)."""
    count = math.prod(factor)
    places = torch.eye(count, dtype=phases.dtype, device=phases.device).view(count, 1, *factor)
    return F.conv_transpose3d(phases, places, stride=factor)


def _kernel(voxels: torch.Tensor, taps: Sequence[float], axis: int) -> torch.Tensor:
    return voxels.new_tensor(taps).view(1, 1, *(len(taps) if a == axis else 1 for a in (2, 3, 4)))


def _along(axis: int, step: int) -> list[int]:
    return [step if a == axis else 1 for a in (2, 3, 4)]
