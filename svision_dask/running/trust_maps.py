"""Trust maps: how far a model's orientations disagree, and how far its result is from what was measured.

*Spread* is on the fine grid: the standard deviation, at each voxel, of what the model makes of the volume flipped and
turned. *Consistency* is on the coarse one: ``|D(result) − input|``, of the result as it is stored. Both are in the
intensities of the volume. Like the image, they do not know how it was cut: a tile is judged with all it depends on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.backend import Backend, is_out_of_memory, release_memory
from svision_dask.errors import ModelError
from svision_dask.geometry import SPATIAL, Region, Regions, Shape, spatial_shape
from svision_dask.network.baselines import reduced
from svision_dask.network.ensemble import orientations, reduction_margin
from svision_dask.network.model import Model, load_model_once
from svision_dask.plan import Plan, halved
from svision_dask.running.enhancement import cast
from svision_dask.running.ledger import Receipt
from svision_dask.running.regions import EnhanceTask, computing, own_level, write_checked
from svision_dask.volume import mirror, read_mirrored

Voxels = npt.NDArray[np.float32]

SPREAD, CONSISTENCY = "spread", "consistency"
MAPS = (SPREAD, CONSISTENCY)
KEPT_BITS = 8
"""Of the 23 of a float32's fraction: two to three digits, which is more than a map tells, in half the bytes."""


@dataclass(frozen=True, kw_only=True)
class MapPlace:
    """Where the task writes one of the maps."""

    kind: str
    """Of ``MAPS``."""
    output: str
    run: str
    """Of the store of the map."""
    regions: Regions
    """Of its level 0: as many as the image has, in the same order."""


@dataclass(frozen=True, kw_only=True)
class TrustTask:
    """Make a region of the image, and judge it at once."""

    image: EnhanceTask
    places: tuple[MapPlace, ...]

    def __call__(self, region: Region) -> Receipt:
        """Make one region of level 0 of the image and of the maps."""
        receipt = self.image(region)
        made, halvings = self._made(region, self.image.plan.tile)
        maps = []
        for place in self.places:
            part = place.regions.at(region.index)
            written = write_checked(own_level(place.output, 0, place.run), part, made[place.kind])
            maps.append(replace(written, halvings=halvings))
        return replace(receipt, maps=tuple(maps), read_bytes=receipt.read_bytes + self._read_bytes(region))

    def _read_bytes(self, region: Region) -> int:
        """Count what judging a region reads of the volume, once more and with a margin."""
        task, plan = self.image, self.image.plan
        model = load_model_once(task.model_path, task.model_digest)
        start, count = region_tiles(plan, region, plan.tile)
        first, last = _around(plan, start, count, plan.tile, _margin(model, plan))
        inside = (max(0, min(b, n) - max(a, 0)) for a, b, n in zip(first, last, plan.coarse.shape, strict=True))
        return math.prod(inside) * task.volume.dtype.itemsize

    def _made(self, region: Region, tile: Shape, halvings: int = 0) -> tuple[dict[str, npt.NDArray[Any]], int]:
        """Judge a region in tiles of ``tile`` voxels, or in smaller ones if memory runs out."""
        try:
            return self._made_in(tile, region), halvings
        except (MemoryError, RuntimeError) as error:
            smaller = halved(tile, self.image.plan.halo)
            if smaller is None or not is_out_of_memory(error):
                raise
        release_memory()  # only here: while an error is handled, its traceback holds on to the tensors
        return self._made(region, smaller, halvings + 1)

    def _made_in(self, tile: Shape, region: Region) -> dict[str, npt.NDArray[Any]]:
        task, plan = self.image, self.image.plan
        model = load_model_once(task.model_path, task.model_digest)
        start, count = region_tiles(plan, region, tile)
        read = read_mirrored(task.volume, *_around(plan, start, count, tile, _margin(model, plan)))
        shape = tuple(b - a for a, b in zip(region.start, region.stop, strict=True))
        with computing:
            found = judge_box(
                read,
                model,
                axes=plan.coarse.axes,
                tile=tile,
                start=start,
                volume=plan.coarse.shape,
                dtype=np.dtype(plan.dtype),
                channel=start[plan.coarse.axes.index("c")] if "c" in plan.coarse.axes else 0,
                backend=plan.backend,
                empty_below=task.empty_below,
            )
        coarse = tuple(-(-n // f) for n, f in zip(shape, plan.factor, strict=True))
        return {
            kind: found[kind][tuple(slice(0, n) for n in size)]
            for kind, size in zip(MAPS, (shape, coarse), strict=True)
        }


def region_tiles(plan: Plan, region: Region, tile: Shape) -> tuple[Shape, Shape]:
    """First coarse voxel of a region, and its tiles per axis."""
    start = tuple(a // f for a, f in zip(region.start, plan.factor, strict=True))
    extents = zip(region.start, region.stop, plan.factor, tile, strict=True)
    return start, tuple(-(-(b - a) // (f * t)) for a, b, f, t in extents)


def judge_box(
    wide: npt.NDArray[Any],
    model: Model,
    *,
    axes: str,
    tile: Shape,
    start: Shape,
    volume: Shape,
    dtype: np.dtype[Any],
    channel: int = 0,
    backend: Backend,
    empty_below: float | None = None,
) -> dict[str, npt.NDArray[np.float32]]:
    """Make both maps of a box of one channel and time point, tile by tile.

    Parameters
    ----------
    wide
        Coarse voxels: whole tiles, and on both sides of them the model's halo and `reduction_margin`.
    model
        What enhanced them.
    axes
        Of ``wide``, ``tile``, ``start`` and ``volume``.
    tile
        Coarse voxels per forward pass; the halo and the margin come on top.
    start
        Of the first tile in the volume.
    volume
        Coarse voxels of all of it: beyond its faces, the result goes on as its mirror image.
    dtype
        Of the result as it is stored.
    channel, backend
        As `Model.refine`.
    empty_below
        The result is that of zeros where every voxel of the box and its halo is below.

    Returns
    -------
    dict of ndarray
        ``"spread"`` on the fine grid and ``"consistency"`` on the coarse one, float32, in the volume's intensities.

    Raises
    ------
    ModelError
        If a value is not finite.
    """
    size, first, shape = (spatial_shape(axes, each) for each in (tile, start, volume))
    block = wide.reshape(spatial_shape(axes, wide.shape))
    margin = reduction_margin(model.architecture)
    beyond = tuple(h + m for h, m in zip(model.halo, margin, strict=True))
    count = tuple((n - 2 * b) // t for n, b, t in zip(block.shape, beyond, size, strict=True))
    seen = block
    if empty_below is not None and (_trimmed(block, margin) < empty_below).all():
        seen = np.zeros_like(block)
    spread = np.empty([k * t * f for k, t, f in zip(count, size, model.factor, strict=True)], np.float32)
    consistency = np.empty([k * t for k, t in zip(count, size, strict=True)], np.float32)
    for place in product(*map(range, count)):
        corner = tuple(p * t for p, t in zip(place, size, strict=True))
        box = tuple(slice(c, c + t + 2 * b) for c, t, b in zip(corner, size, beyond, strict=True))
        fine, deviation = _judged(model, seen[box], margin, channel, backend)
        own = tuple(slice(c, c + t) for c, t in zip(corner, size, strict=True))
        finer = tuple(slice(f * s.start, f * s.stop) for f, s in zip(model.factor, own, strict=True))
        spread[finer] = deviation
        at = tuple(a + c - m for a, c, m in zip(first, corner, margin, strict=True))
        stored = _beyond_faces(cast(fine, dtype), at, shape, model.factor)
        again = _trimmed(reduced(stored, model.factor, model.architecture.stages[0].degradation), margin)
        consistency[own] = np.abs(again - _trimmed(block[box], beyond))
    found = {SPREAD: shortened(spread), CONSISTENCY: shortened(consistency)}
    for kind, voxels in found.items():
        if not np.isfinite(voxels).all():
            raise ModelError(
                f"{kind} at {start} ({axes}) in {backend.precision} is not finite. Use --precision float32, or leave "
                "out --trust."
            )
    return {kind: _on_axes(voxels, axes) for kind, voxels in found.items()}


def shortened(voxels: Voxels) -> Voxels:
    """Round values that are not negative to ``KEPT_BITS`` of their fraction, so that they compress."""
    dropped = 23 - KEPT_BITS
    bits = np.ascontiguousarray(voxels, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(1 << (dropped - 1))) & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return rounded.view(np.float32)


def _judged(
    model: Model, wide: npt.NDArray[Any], margin: Shape, channel: int, backend: Backend
) -> tuple[Voxels, Voxels]:
    """Enhance a tile with its margin, and tell the spread without; of a single value, as `enhancement` does, once."""
    if (wide == wide.flat[0]).all():
        whole = tuple(n - 2 * h for n, h in zip(wide.shape, model.halo, strict=True))
        wide = wide[tuple(slice(0, 1 + 2 * h) for h in model.halo)]
        fine = model.refine(wide, channel=channel, backend=backend)
        deviation = _deviation(_members(model, wide, fine, channel, backend))
        own = tuple(n - 2 * m for n, m in zip(whole, margin, strict=True))
        return np.tile(fine, whole), np.tile(deviation, own)
    fine = model.refine(wide, channel=channel, backend=backend)
    inner = _trimmed(fine, tuple(m * f for m, f in zip(margin, model.factor, strict=True)))
    return fine, _deviation(_members(model, _trimmed(wide, margin), inner, channel, backend))


def _members(model: Model, haloed: npt.NDArray[Any], known: Voxels, channel: int, backend: Backend) -> Iterator[Voxels]:
    """Enhance a tile in every orientation of `ensemble.orientations`, by one run of the network each.

    ``known`` is the first of them already, unless the model's own result is a mean over several.
    """
    averaged = any(stage.averaged for stage in model.architecture.stages)
    for flips, swap in orientations(model.architecture.stages):
        if not flips and not swap and not averaged:
            yield known
            continue
        turned = np.flip(haloed, flips)
        turned = turned.swapaxes(1, 2) if swap else turned
        fine = model.refine(turned, channel=channel, backend=backend, one_pass=True)
        yield np.flip(fine.swapaxes(1, 2) if swap else fine, flips)


def _deviation(members: Iterator[Voxels]) -> Voxels:
    """Measure the standard deviation of members; sums of differences from the first keep their digits in float32."""
    first = next(members)
    count, total, squares = 1, np.zeros_like(first), np.zeros_like(first)
    for member in members:
        difference = member - first
        total += difference
        squares += np.square(difference, out=difference)
        count += 1
    total /= count
    squares /= count
    squares -= np.square(total, out=total)
    return np.sqrt(squares.clip(0, out=squares), out=squares)


def _beyond_faces(fine: npt.NDArray[Any], start: Shape, volume: Shape, factor: Shape) -> npt.NDArray[Any]:
    """Continue the fine voxels by their mirror image where they leave the volume: it is how they are stored.

    ``start`` is their first coarse voxel, and ``volume`` counts coarse voxels too.
    """
    for axis, (a, n, f) in enumerate(zip(start, volume, factor, strict=True)):
        length = fine.shape[axis]
        if a >= 0 and f * a + length <= f * n:
            continue
        index = mirror(f * a, f * a + length, f * n) - f * a
        # What is mirrored from further off belongs to voxels that are cut off.
        fine = np.take(fine, index.clip(0, length - 1), axis=axis)
    return fine


def _margin(model: Model, plan: Plan) -> Shape:
    """Coarse voxels beyond the halo that reduction reaches, on the axes of the volume."""
    spatial = dict(zip(SPATIAL, reduction_margin(model.architecture), strict=True))
    return tuple(spatial.get(axis, 0) for axis in plan.coarse.axes)


def _around(plan: Plan, start: Shape, count: Shape, tile: Shape, margin: Shape) -> tuple[Shape, Shape]:
    """First coarse voxel, and one past the last, of whole tiles with the halo and the margin around them."""
    beyond = tuple(h + m for h, m in zip(plan.halo, margin, strict=True))
    first = tuple(a - b for a, b in zip(start, beyond, strict=True))
    last = tuple(a + k * t + b for a, k, t, b in zip(start, count, tile, beyond, strict=True))
    return first, last


def _trimmed(voxels: npt.NDArray[Any], margin: Sequence[int]) -> npt.NDArray[Any]:
    """Cut ``margin`` voxels off both ends of every axis."""
    return voxels[tuple(slice(m, n - m) for m, n in zip(margin, voxels.shape, strict=True))]


def _on_axes(voxels: Voxels, axes: str) -> Voxels:
    """Give (z, y, x) the axes of the volume; those that it lacks, and t and c, have one voxel."""
    lengths = dict(zip(SPATIAL, voxels.shape, strict=True))
    assert math.prod(lengths[a] for a in axes if a in SPATIAL) == voxels.size, (axes, voxels.shape)
    return voxels.reshape([lengths.get(axis, 1) for axis in axes])
