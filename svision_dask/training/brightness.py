"""How bright what stands out of the dark is: training pairs shall be as bright as what the network will meet.

What is smaller than a voxel shares it with the dark around it: reduction makes beads and thin fibres dimmer, by up to
the number of voxels that become one. A network that has seen the dimmer ones alone does to the brighter ones, when it
is applied, what nothing has ever judged, and the longer it learns, the further it strays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

BLACK = 0.05
"""Share of the voxels that are darker than what counts as black."""
SLIGHT = 1.5
"""Gain up to which pairs stay as they are: what a sample holds differs in brightness by as much. Beads of less than a
voxel lose a factor of 3.6, thin rods 2; volumes that are sampled well less than 1.4, and gained nothing by it."""


def matched_gain(volume: torch.Tensor, reductions: Sequence[torch.Tensor]) -> float:
    """Find by how much brighter things are in ``volume`` than in its ``reductions``: 1 where it is slight."""
    black = black_level(volume)
    dim = sum(brightness(reduction, black) for reduction in reductions) / len(reductions)
    gain = brightness(volume, black) / dim if dim else 1.0
    return gain if gain > SLIGHT else 1.0


def black_level(voxels: torch.Tensor) -> float:
    """Find the level above which things are bright."""
    return float(voxels.flatten().kthvalue(1 + int(BLACK * (voxels.numel() - 1))).values)


def brightness(voxels: torch.Tensor, black: float) -> float:
    """Height of bright things above ``black``, however rare they are: root of the fourth moment over the second."""
    squares = (voxels.double() - black).square()
    total = float(squares.sum())
    return float(squares.square().sum() / total) ** 0.5 if total else 0.0
