"""A model as one graph that others can run: raw intensities in, fine intensities out, faces mirrored as ours are."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from svision_dask.errors import UsageError
from svision_dask.network.model import Model
from svision_dask.network.stage import trim

EXAMPLE = 7
"""Voxels per axis of what a graph is traced with; no graph depends on it."""


class Graph(nn.Module):
    """Map raw intensities (n, 1, z, y, x), float32, to fine ones (n, 1, fz·z, fy·y, fx·x); of planes, z is left out.

    It holds all that `Model.refine` does: standardising by the constants of one channel, every stage with its ensemble
    and back projection, and the way back to intensities, neither rounded nor clipped. Beyond the faces of what it is
    given, the voxels go on as their mirror image, as beyond those of a volume; so a whole volume comes out as ours, and
    of a block that was cut out of one, all but what lies within the halo of a cut.
    """

    def __init__(self, model: Model, *, channel: int = 0) -> None:
        super().__init__()
        constants = model.normalisation[channel]
        self.offset, self.scale = constants.offset, constants.scale
        self.stages = nn.ModuleList(deepcopy(stage).requires_grad_(requires_grad=False) for stage in model.stages)
        self.planar = "z" not in model.architecture.axes
        self.halo = model.halo
        self.spare = model.spare

    def forward(self, coarse: torch.Tensor) -> torch.Tensor:
        """Enhance everything."""
        voxels = coarse.unsqueeze(2) if self.planar else coarse
        for axis, halo in enumerate(self.halo):
            voxels = _mirrored(voxels, axis + 2, halo)
        voxels = (voxels - self.offset) / self.scale
        for stage in self.stages:
            voxels = stage(voxels)
        voxels = trim(voxels, self.spare) * self.scale + self.offset
        return voxels.squeeze(2) if self.planar else voxels

    def example(self) -> torch.Tensor:
        """Make something to trace with; as no two of its sides are equal, none is taken for another."""
        sides = [EXAMPLE + axis for axis in range(3)][self.planar :]
        return torch.full((2, 1, *sides), self.offset)


def graph_of(model: Model, channel: int | None) -> Graph:
    """Make the graph of one channel.

    Raises
    ------
    UsageError
        If the model has several channels and none is named, or it has no such channel.
    """
    count = len(model.normalisation)
    if channel is None and count > 1:
        raise UsageError(f"model of {count} channels: one is exported at a time. Use --channel 0 to {count - 1}.")
    if channel is not None and not 0 <= channel < count:
        raise UsageError(f"channel {channel}: the model has {count}, counted from 0. Use --channel {count - 1}.")
    return Graph(model, channel=channel or 0).eval()


def _mirrored(voxels: torch.Tensor, axis: int, halo: int) -> torch.Tensor:
    """Continue an axis as its mirror image, the voxel at the face repeated, however short it is: `volume.mirror`."""
    if not halo:
        return voxels
    size = voxels.shape[axis]
    # Shifted by whole periods, so that all numbers are positive: runtimes differ in what is left of negative ones.
    position = torch.arange(-halo, size + halo, device=voxels.device) + 2 * halo * size
    position = position.remainder(torch.full((1,), 2 * size, device=voxels.device))
    return voxels.index_select(axis, torch.minimum(position, 2 * size - 1 - position))
