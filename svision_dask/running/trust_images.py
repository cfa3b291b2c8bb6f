"""The trust maps of an output: images of their own inside it, stored as it is."""

from __future__ import annotations

import math
from dataclasses import replace

from svision_dask.geometry import Grid
from svision_dask.omezarr.pyramid import pyramid_grids, whole_steps
from svision_dask.plan import Plan
from svision_dask.running.trust_maps import SPREAD
from svision_dask.stores.locations import Location
from svision_dask.volume import Volume

FOLDER = "trust"


def map_place(output: Location, kind: str) -> Location:
    """Where a trust map of an image is."""
    return output / FOLDER / kind


def map_plan(kind: str, plan: Plan) -> Plan:
    """Plan a trust map: spread is cut and stored as the image is, consistency as the coarse voxels of its regions."""
    changed = replace(plan, dtype="float32", trust=False)
    if kind == SPREAD:
        return changed
    unit = plan.shard or plan.region
    cut = [_coarse_cut(*axis) for axis in zip(plan.coarse.shape, plan.chunk, unit, plan.factor, strict=True)]
    chunk, shard = tuple(c for c, _ in cut), tuple(u for _, u in cut)
    region = tuple(s * (r // u) for s, r, u in zip(shard, plan.region, unit, strict=True))
    return replace(
        changed,
        fine=plan.coarse,
        factor=(1,) * len(cut),
        chunk=chunk,
        shard=shard if plan.shard else None,
        region=region,
    )


def map_levels(planned: Plan, volume: Volume) -> tuple[Grid, ...]:
    """Choose the grids of the pyramid of a map that is ``planned`` for ``volume``, as those of an image."""
    steps = whole_steps(volume.levels) or () if planned.pyramid == "match" and volume.levels else ()
    return tuple(pyramid_grids(planned.fine, kind=planned.pyramid, steps=steps))


def _coarse_cut(size: int, chunk: int, shard: int, factor: int) -> tuple[int, int]:
    """Chunk and shard along one axis of ``size`` coarse voxels, no larger than those of the image."""
    if shard >= size * factor:  # all of it, and perhaps not whole coarse voxels
        chunk = min(chunk, size)
        return chunk, -(-size // chunk) * chunk
    shard //= factor
    return math.gcd(chunk, shard), shard
