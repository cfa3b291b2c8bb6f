"""How an output is cut into chunks, and into regions of whole chunks. Integers only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from svision_dask.errors import PlanError
from svision_dask.geometry import SPATIAL, Grid, Regions, Shape
from svision_dask.wishes import Wishes

CHUNK = {2: 1024, 3: 64}
"""Output voxels per spatial axis of one chunk, for planes and for volumes."""
SHARD = {2: 4096, 3: 256}
"""Output voxels per spatial axis of one shard; 64 MiB of float32."""
ENOUGH_REGIONS = 8
"""Smaller volumes get smaller shards, so that there is work for several workers."""


def chunk_of(fine: Grid, wishes: Wishes) -> Shape:
    """Choose the voxels of a chunk."""
    default = CHUNK[len(fine.spatial)]
    chunk, shard = wishes.chunk or {}, wishes.shard or {}
    return tuple(
        min(chunk.get(axis, min(default, shard.get(axis, default))), n) if axis in SPATIAL else 1
        for axis, n in zip(fine.axes, fine.shape, strict=True)
    )


def region_of(fine: Grid, factor: Shape, chunk: Shape, wishes: Wishes) -> Shape:
    """Choose whole chunks, and whole coarse voxels, per region; the last of an axis ends with the volume.

    Raises
    ------
    PlanError
        If the shards that were asked for are none of these.
    """
    given = wishes.shard or {}
    region, units = [], []
    for axis, n, c, f in zip(fine.axes, fine.shape, chunk, factor, strict=True):
        unit = math.lcm(c, f) if c < n else c
        length = SHARD[len(fine.spatial)] if axis in SPATIAL else 1
        if axis not in SPATIAL and given.get(axis, 1) > 1:
            raise PlanError(f"axis {axis}: a shard holds one channel and time point. Leave {axis} out of --shards.")
        r = min(given.get(axis, unit * max(1, length // unit)), -(-n // c) * c)
        if r % c or (r % f and r < n):
            raise PlanError(
                f"axis {axis}: shards of {r} voxels and chunks of {c}; a shard must be a multiple of the chunk and of "
                f"the factor {f}. Use --shards {axis}={max(1, r // unit) * unit}."
            )
        region.append(r)
        units.append(r if axis in given else unit)
    return _enough_regions(fine.shape, region, units)


def _enough_regions(shape: Shape, region: Sequence[int], units: Sequence[int]) -> Shape:
    """Halve the longest side of the regions, in ``units``, until there is work for several workers."""
    shrunk = list(region)
    while len(Regions(shape=shape, unit=tuple(shrunk))) < ENOUGH_REGIONS:
        divisible = [i for i, unit in enumerate(units) if shrunk[i] > unit]
        if not divisible:
            break
        longest = max(divisible, key=lambda i: shrunk[i])
        shrunk[longest] = units[longest] * -(-shrunk[longest] // (2 * units[longest]))
    return tuple(shrunk)
