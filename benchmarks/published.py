"""The published algorithm, executed the published way: the whole volume at once, padded, corrected on the fine grid.

Photonics Research 11(1), 2023, sections 2.2 and 2.3, and the order of operations of its code: each of the eight
orientations goes through the padded network, and is back-projected ten times; their mean is back-projected ten times
more. Resizing gathers, axis by axis, all taps of all voxels into one array in double precision and adds them up. Its
defects are left out (orientations undone along the wrong axis, clamping, eight bits), and it learns the residual.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from svision_dask.degradation import CUBIC
from svision_dask.network.layers import interleave
from svision_dask.network.model import Model
from svision_dask.volume import mirror

Voxels = npt.NDArray[np.float32]
BACK_PROJECTIONS = 10
"""Of each orientation, and of their mean."""
FLIPS: Sequence[list[int]] = ([], [1], [2], [1, 2])
ORIENTATIONS = [(flips, swap) for flips in FLIPS for swap in (False, True)]


def enhance_as_published(model: Model, coarse: Voxels) -> Voxels:
    """Enhance a volume (z, y, x) of the factor 2 with the network and the constants of a ``paper`` model."""
    (stage,), (constants,) = model.stages, model.normalisation
    voxels = torch.from_numpy((coarse - constants.offset) / constants.scale)
    with torch.inference_mode():
        total = torch.zeros([2 * n for n in coarse.shape])
        for flips, swap in ORIENTATIONS:
            turned = voxels.flip(flips)
            turned = turned.transpose(1, 2) if swap else turned
            fine = upsampled(turned) + stage.residual_scale * _padded(stage.network.steps, turned)
            fine = (fine.transpose(1, 2) if swap else fine).flip(flips)
            total += back_projected(fine, voxels)
        fine = back_projected(total / len(ORIENTATIONS), voxels)
    return np.asarray(fine * constants.scale + constants.offset)


def back_projected(fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Correct ``fine`` ten times by what its reduction and ``coarse`` disagree about."""
    for _ in range(BACK_PROJECTIONS):
        fine = fine + upsampled(coarse - reduced(fine))
    return fine


def upsampled(coarse: torch.Tensor) -> torch.Tensor:
    """Interpolate each axis by two, cubic."""
    even, odd = CUBIC.up
    for axis, n in enumerate(coarse.shape):
        centre = np.repeat(np.arange(n), 2)
        first = centre - 2 + np.arange(2 * n) % 2
        weights = np.where(np.arange(2 * n)[:, None] % 2 == 0, even, odd)
        coarse = _resized(coarse, axis, first[:, None] + np.arange(4), weights)
    return coarse


def reduced(fine: torch.Tensor) -> torch.Tensor:
    """Reduce each axis by two, cubic and antialiased."""
    for axis, n in enumerate(fine.shape):
        places = 2 * np.arange(n // 2)[:, None] - 3 + np.arange(8)
        fine = _resized(fine, axis, places, np.tile(CUBIC.down[axis], (n // 2, 1)))
    return fine


def _resized(
    voxels: torch.Tensor, axis: int, places: npt.NDArray[np.intp], weights: npt.NDArray[np.float64]
) -> torch.Tensor:
    """Weigh what lies at ``places`` (size, taps) along an axis, mirrored at the faces."""
    n = voxels.shape[axis]
    mirrored = mirror(-n, 2 * n, n)[places + n]
    first = voxels.transpose(axis, 0)
    gathered = first[torch.from_numpy(mirrored.T.copy())]  # (taps, size, …)
    taps = torch.from_numpy(weights.T.copy()).reshape(*weights.T.shape, 1, 1)
    return (gathered * taps).sum(dim=0).float().transpose(axis, 0)


def _padded(steps: torch.nn.Sequential, coarse: torch.Tensor) -> torch.Tensor:
    """Apply the network with zeros around every layer's input, so that sizes stay."""
    voxels = coarse[None, None]
    for step in steps:
        if isinstance(step, torch.nn.Conv3d):
            margin = tuple(n // 2 for n in step.kernel_size)
            voxels = torch.nn.functional.conv3d(voxels, step.weight, step.bias, padding=margin, groups=step.groups)
        else:
            voxels = step(voxels)
    return interleave(voxels, (2, 2, 2))[0, 0]
