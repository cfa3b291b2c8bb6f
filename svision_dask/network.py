"""The network of one stage: unpadded convolutions on the coarse grid, one channel per fine voxel at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from svision_dask.architecture import Layer
from svision_dask.geometry import SPATIAL, Shape


class Network(nn.Module):
    """Map (n, 1, z, y, x) to the residual (n, p, z − 2r, y − 2r, x − 2r), with p fine voxels per coarse voxel.

    r is the number of voxels the kernels reach; on an axis that is not in ``axes`` the kernels have one voxel and r
    is 0. Features are computed on the coarse grid only (Fig. 9 of Photonics Research 11(1), 2023).
    """

    def __init__(self, layers: Sequence[Layer], axes: str) -> None:
        super().__init__()
        widths = (1, *(layer.channels for layer in layers))
        steps: list[nn.Module] = []
        for layer, (inputs, outputs) in zip(layers, pairwise(widths), strict=True):
            extent = tuple(layer.kernel if axis in axes else 1 for axis in SPATIAL)
            steps += [nn.Conv3d(inputs, outputs, extent, groups=layer.groups), nn.PReLU(outputs)]
        self.steps = nn.Sequential(*steps[:-1])  # the residual has both signs
        self.reach = tuple(sum(layer.kernel // 2 for layer in layers) * (axis in axes) for axis in SPATIAL)
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, coarse: torch.Tensor) -> torch.Tensor:
        """Apply all layers."""
        residual: torch.Tensor = self.steps(coarse.contiguous(memory_format=torch.channels_last_3d))
        return residual

    def start(self, generator: torch.Generator) -> None:
        """Draw weights such that a standardised input keeps its variance, and the first residual is nearly zero."""
        convolutions = [step for step in self.steps if isinstance(step, nn.Conv3d)]
        with torch.no_grad():
            for convolution in convolutions:
                inputs = math.prod(convolution.weight.shape[1:])
                convolution.weight.normal_(0, math.sqrt(2 / inputs), generator=generator)
                if convolution.bias is not None:
                    convolution.bias.zero_()
            # Starting at the cubic interpolation, not at noise around it, is what keeps sparse volumes from stalling.
            convolutions[-1].weight.mul_(0.1)


def interleave(phases: torch.Tensor, factor: Shape) -> torch.Tensor:
    """Put the channels of each coarse voxel in place as its fine voxels: (n, p, z, y, x) → (n, 1, fz·z, fy·y, fx·x)."""
    n, _, z, y, x = phases.shape
    fz, fy, fx = factor
    fine = phases.reshape(n, fz, fy, fx, z, y, x)
    fine = fine.permute(0, 4, 1, 5, 2, 6, 3)  # (n, z, fz, y, fy, x, fx)
    return fine.reshape(n, 1, z * fz, y * fy, x * fx)


def separate(fine: torch.Tensor, factor: Shape) -> torch.Tensor:
    """Undo ``interleave``: the fine voxels of each coarse voxel become its channels."""
    n = fine.shape[0]
    fz, fy, fx = factor
    z, y, x = (size // f for size, f in zip(fine.shape[2:], factor, strict=True))
    phases = fine.reshape(n, z, fz, y, fy, x, fx)
    phases = phases.permute(0, 2, 4, 6, 1, 3, 5)  # (n, fz, fy, fx, z, y, x)
    return phases.reshape(n, fz * fy * fx, z, y, x)
