"""What it takes to judge a model's result without a truth: orientations to compare, voxels to know, memory to have.

Integers only, as in `network.architecture`: a plan needs them before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from svision_dask.geometry import Shape
from svision_dask.network.architecture import Architecture, StageSpec

Orientation = tuple[tuple[int, ...], bool]
"""Axes of (z, y, x) that are reversed, and whether y and x are exchanged afterwards."""

MAP_BUFFERS = 5
"""Fine tiles in float32 beside a forward pass: two sums, the member, its difference, and the first member."""


def orientations(stages: Sequence[StageSpec]) -> list[Orientation]:
    """List the lateral flips that a model's other operators commute with, each as it is and with y and x exchanged.

    Eight; four where y and x are refined or blurred differently; fewer where coarse voxels are points between others,
    which are not where they were once the order of a refined axis is reversed.
    """
    square = all(s.factor[1] == s.factor[2] and s.degradation.down[1] == s.degradation.down[2] for s in stages)
    axes = [a for a in (1, 2) if not any(s.degradation.sampling == "point" and s.factor[a] == 2 for s in stages)]
    mirrored = [(), *((a,) for a in axes), *([tuple(axes)] if len(axes) > 1 else [])]
    return [(flips, swap) for flips in mirrored for swap in ((False, True) if square else (False,))]


def reduction_margin(design: Architecture) -> Shape:
    """Count the coarse voxels per side, for z, y, x, by which the fine ones must reach further to be reduced."""
    margin: Shape = (0, 0, 0)
    for stage in reversed(design.stages):
        reach = stage.degradation.reach
        margin = tuple(reach * (f == 2) + -(-m // f) for m, f in zip(margin, stage.factor, strict=True))
    return margin


def map_bytes(design: Architecture, tile: Shape, *, half: bool = False) -> int:
    """Memory of judging a tile of coarse voxels (z, y, x), in bytes: a wider forward pass and what goes with it.

    Raises
    ------
    ValueError
        As `Architecture.tile_bytes`.
    """
    wide = tuple(t + 2 * m for t, m in zip(tile, reduction_margin(design), strict=True))
    return design.tile_bytes(wide, half=half) + 4 * MAP_BUFFERS * math.prod(wide) * math.prod(design.factor)
