"""How bright what stands out of the dark is, to make training pairs as bright as what the network will meet.

What is smaller than a voxel shares it with the dark around it: reduction makes beads and thin fibres dimmer, by up to
the number of voxels that become one. A network that has learned from the dimmer ones alone does with the brighter ones,
when it is applied, what it has never been judged by, and the longer it learns, the further it strays.
"""

from __future__ import annotations

import torch

BLACK = 0.05
"""Share of the voxels that are darker than what counts as black."""


def black_level(voxels: torch.Tensor) -> float:
    """Find the level above which things are bright."""
    return float(voxels.flatten().kthvalue(1 + int(BLACK * (voxels.numel() - 1))).values)


def brightness(voxels: torch.Tensor, black: float) -> float:
    """Mean height above ``black``, in which every voxel counts by the cube of its own: that of bright things, however
    rare they are; 0 where there are none.
    """
    squares = (voxels.double() - black).square()
    square = float(squares.mean())
    return (float(squares.square().mean()) / square) ** 0.5 if square else 0.0
