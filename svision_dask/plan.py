"""How a volume is cut into regions and tiles, what that costs, and whether it fits. Integers only; nothing is read.

A *region* is a box of whole output shards, made by one task. Inside it, one forward pass is responsible for a *tile* of
coarse voxels and reads the *halo* around it. Tuples have one entry per axis of the volume; t and c are never cut finer
than one, and have no halo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from svision_dask.errors import PlanError
from svision_dask.geometry import SPATIAL, Grid, Shape

CHUNK = {2: 1024, 3: 64}
"""Output voxels per spatial axis of one chunk, for planes and for volumes."""
SHARD = {2: 4096, 3: 256}
"""Output voxels per spatial axis of one shard; 64 MiB of float32."""
ENOUGH_REGIONS = 8
"""Smaller volumes get smaller shards, so that there is work for several workers."""
PROCESS_BYTES = 400 * 2**20
"""Resident memory of a worker before its first region: the interpreter, dask, zarr and torch."""
COMPRESSION = 10
"""Microscope volumes rarely compress better; a disk too small even for that is refused."""

Version = Literal["0.4", "0.5"]
VERSIONS: tuple[Version, ...] = ("0.4", "0.5")


@dataclass(frozen=True, kw_only=True)
class Region:
    """What one task owns: a box of whole shards, cut off at the volume's end."""

    index: int
    start: Shape
    """First output voxel, per axis."""
    stop: Shape
    """One past the last output voxel, per axis."""

    @property
    def box(self) -> tuple[slice, ...]:
        """As slices of the output."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True, kw_only=True)
class Regions:
    """An array cut into boxes of ``unit`` voxels, the last axis fastest; made one by one, never as a list."""

    shape: Shape
    unit: Shape

    @property
    def counts(self) -> Shape:
        """Regions along each axis."""
        return tuple(-(-n // u) for n, u in zip(self.shape, self.unit, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def at(self, index: int) -> Region:
        """The region with number ``index``."""
        rest, start = index, []
        for count, length in zip(reversed(self.counts), reversed(self.unit), strict=True):
            rest, position = divmod(rest, count)
            start.append(position * length)
        first = tuple(reversed(start))
        stop = tuple(min(a + u, n) for a, u, n in zip(first, self.unit, self.shape, strict=True))
        return Region(index=index, start=first, stop=stop)

    def __iter__(self) -> Iterator[Region]:
        return (self.at(index) for index in range(len(self)))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything decided before anything runs."""

    coarse: Grid
    fine: Grid
    factor: Shape
    halo: Shape
    """Coarse voxels per side."""
    tile: Shape
    """Coarse voxels one forward pass is responsible for."""
    chunk: Shape
    """Output voxels."""
    shard: Shape | None
    """Output voxels; none in OME-Zarr 0.4."""
    region: Shape
    """Output voxels."""
    version: Version
    dtype: str
    workers: int
    """Processes, each with one region at a time."""
    threads: int
    """torch threads in each."""
    worker_bytes: int
    """Peak resident memory of one worker."""
    memory_bytes: int
    """What one worker may use."""
    read_bytes: int
    """Voxel data read from the input, uncompressed, halos included."""
    write_bytes: int
    """Voxel data of the output without its pyramid, uncompressed."""
    disk_free_bytes: int | None = None

    @property
    def regions(self) -> Regions:
        """The regions of the output."""
        return Regions(shape=self.fine.shape, unit=self.region)

    @property
    def redundancy(self) -> float:
        """Coarse voxels that enter forward passes, per coarse voxel of the volume."""
        entered = [
            math.ceil(n / t) * (t + 2 * h) / n for n, t, h in zip(self.coarse.shape, self.tile, self.halo, strict=True)
        ]
        return math.prod(entered)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for ``svision-dask plan --json``."""
        named = {name: _by_axis(self.coarse.axes, getattr(self, name)) for name in ("factor", "halo", "tile", "chunk")}
        return {
            "axes": self.coarse.axes,
            "input_shape": list(self.coarse.shape),
            "output_shape": list(self.fine.shape),
            "output_spacing": list(self.fine.spacing),
            "output_origin": list(self.fine.origin),
            "units": list(self.fine.units),
            **named,
            "shard": None if self.shard is None else _by_axis(self.coarse.axes, self.shard),
            "region": _by_axis(self.coarse.axes, self.region),
            "regions": len(self.regions),
            "version": self.version,
            "dtype": self.dtype,
            "redundant_compute_percent": round(100 * (self.redundancy - 1), 1),
            "workers": self.workers,
            "threads_per_worker": self.threads,
            "worker_bytes": self.worker_bytes,
            "memory_bytes": self.memory_bytes,
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "disk_free_bytes": self.disk_free_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the work must fit into."""

    cores: int
    memory_bytes: int
    """For all workers together."""
    disk_free_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user fixed; None means that the plan decides."""

    tile: Mapping[str, int] | None = None
    chunk: Mapping[str, int] | None = None
    shard: Mapping[str, int] | None = None
    workers: int | None = None
    worker_memory_bytes: int | None = None
    version: Version = "0.5"


def plan_enhancement(
    coarse: Grid,
    *,
    factor: Shape,
    halo: Shape,
    itemsize: int,
    dtype: str,
    dtype_itemsize: int,
    tile_bytes: Callable[[Shape], int],
    machine: Machine,
    wishes: Wishes | None = None,
) -> Plan:
    """Decide how to enhance ``coarse`` by ``factor``.

    Parameters
    ----------
    coarse
        The input's grid.
    factor
        Per axis; 1 for t and c.
    halo
        Coarse voxels per side for z, y, x, as the architecture says.
    itemsize, dtype, dtype_itemsize
        Bytes of an input voxel; name and bytes of an output voxel.
    tile_bytes
        Memory of one forward pass over a tile (z, y, x), in bytes; raises ValueError where a tile is too large.
    machine
        Cores, memory and disk.
    wishes
        What the user fixed.

    Raises
    ------
    PlanError
        If shards, chunks or tiles do not fit together, or the work does not fit the machine; with both numbers and
        the option to change.
    """
    wishes = wishes or Wishes()
    fine = coarse.finer(factor)
    _check_size(coarse)
    full_halo = tuple(halo[SPATIAL.index(a)] if a in SPATIAL else 0 for a in coarse.axes)
    chunk = _chunk(fine, wishes)
    region = _region(fine, factor, chunk, wishes)
    region_bytes = _region_bytes(region, factor, full_halo, itemsize, dtype_itemsize)
    count = math.prod(-(-n // r) for n, r in zip(fine.shape, region, strict=True))
    processes = min(wishes.workers or machine.cores, count)
    memory = wishes.worker_memory_bytes or machine.memory_bytes // processes
    tile = _tile(
        coarse, region, factor, full_halo, wishes, lambda t: region_bytes + tile_bytes(_zyx(coarse.axes, t)), memory
    )
    worker_bytes = region_bytes + tile_bytes(_zyx(coarse.axes, tile))
    if worker_bytes > memory:
        raise PlanError(
            f"one worker needs {worker_bytes / 2**20:.0f} MiB for a region of {region} and a tile of {tile} with halo "
            f"{full_halo}; it may use {memory / 2**20:.0f} MiB. Use smaller --shards or --tile, fewer --workers, or more --memory."
        )
    if (
        machine.disk_free_bytes is not None
        and math.prod(fine.shape) * dtype_itemsize > COMPRESSION * machine.disk_free_bytes
    ):
        raise PlanError(
            f"the output has {math.prod(fine.shape) * dtype_itemsize / 2**30:.1f} GiB before compression; the disk has "
            f"{machine.disk_free_bytes / 2**30:.1f} GiB free. Choose another disk or a smaller --factor."
        )
    return Plan(
        coarse=coarse,
        fine=fine,
        factor=factor,
        halo=full_halo,
        tile=tile,
        chunk=chunk,
        shard=region if wishes.version == "0.5" else None,
        region=region,
        version=wishes.version,
        dtype=dtype,
        workers=processes,
        threads=max(1, machine.cores // processes),
        worker_bytes=worker_bytes,
        memory_bytes=memory,
        read_bytes=_read_bytes(fine.shape, region, factor, full_halo, itemsize),
        write_bytes=math.prod(fine.shape) * dtype_itemsize,
        disk_free_bytes=machine.disk_free_bytes,
    )


def tile_chunks(shape: Shape, tile: Shape, halo: Shape) -> tuple[tuple[int, ...], ...]:
    """Chunks ``(T + D, T, …, T, T + D)`` of the haloed box, with which every forward pass sees exactly T + 2D voxels.

    ``shape`` counts the voxels the tiles are responsible for; it is rounded up to whole tiles.
    """
    chunks = []
    for n, t, h in zip(shape, tile, halo, strict=True):
        count = -(-n // t)
        chunks.append((t + 2 * h,) if count == 1 else (t + h, *(t,) * (count - 2), t + h))
    return tuple(chunks)


def largest_tile(limit: Shape, halo: Shape, fits: Callable[[Shape], bool]) -> Shape | None:
    """The largest tile that fits, halving the longest axis from ``limit`` on; None if not even one halo's worth does."""
    tile = list(limit)
    while not fits(tuple(tile)):
        # A tile shorter than its halo would need neighbours' neighbours.
        shrinkable = [i for i, (t, h) in enumerate(zip(tile, halo, strict=True)) if t >= 2 * max(h, 1) and t > 1 and h]
        if not shrinkable:
            return None
        longest = max(shrinkable, key=lambda i: tile[i])
        tile[longest] = -(-tile[longest] // 2)
    return tuple(tile)


def _check_size(grid: Grid) -> None:
    for axis, n in zip(grid.axes, grid.shape, strict=True):
        if n < 1:
            raise PlanError(f"axis {axis} has {n} voxels; every axis needs at least 1.")


def _chunk(fine: Grid, wishes: Wishes) -> Shape:
    default = CHUNK[len(fine.spatial)]
    given = wishes.chunk or {}
    return tuple(
        min(int(given.get(axis, default)), n) if axis in SPATIAL else 1
        for axis, n in zip(fine.axes, fine.shape, strict=True)
    )


def _region(fine: Grid, factor: Shape, chunk: Shape, wishes: Wishes) -> Shape:
    """Whole chunks, and whole coarse voxels, per region."""
    default = SHARD[len(fine.spatial)]
    if wishes.shard is not None:
        region = tuple(int(wishes.shard.get(axis, default)) if axis in SPATIAL else 1 for axis in fine.axes)
    else:
        region = tuple(c * min(-(-n // c), max(1, default // c)) for n, c in zip(fine.shape, chunk, strict=True))
        region = tuple(r if axis in SPATIAL else 1 for r, axis in zip(region, fine.axes, strict=True))
        region = _enough_regions(fine, region, chunk)
    for axis, r, c, f, n in zip(fine.axes, region, chunk, factor, fine.shape, strict=True):
        if r < 1 or r % c or (r % f and r < n):
            raise PlanError(
                f"axis {axis}: shards of {r} voxels and chunks of {c}; a shard must be a multiple of the chunk and of "
                f"the factor {f}. Use --shards {axis}={max(1, r // math.lcm(c, f)) * math.lcm(c, f)}."
            )
    return region


def _enough_regions(fine: Grid, region: Shape, chunk: Shape) -> Shape:
    shrunk = list(region)
    while math.prod(-(-n // r) for n, r in zip(fine.shape, shrunk, strict=True)) < ENOUGH_REGIONS:
        divisible = [i for i in range(len(shrunk)) if shrunk[i] >= 2 * chunk[i]]
        if not divisible:
            break
        longest = max(divisible, key=lambda i: shrunk[i])
        shrunk[longest] = chunk[longest] * -(-shrunk[longest] // (2 * chunk[longest]))
    return tuple(shrunk)


def _tile(
    coarse: Grid, region: Shape, factor: Shape, halo: Shape, wishes: Wishes, cost: Callable[[Shape], int], memory: int
) -> Shape:
    limit = tuple(
        min(-(-r // f), n) if axis in SPATIAL else 1
        for axis, r, f, n in zip(coarse.axes, region, factor, coarse.shape, strict=True)
    )
    if wishes.tile is not None:
        tile = tuple(
            min(int(wishes.tile.get(a, n)), n) if a in SPATIAL else 1 for a, n in zip(coarse.axes, limit, strict=True)
        )
        for axis, t, h, n in zip(coarse.axes, tile, halo, limit, strict=True):
            if t < 1 or (t < h and -(-n // t) > 2):
                raise PlanError(
                    f"axis {axis}: a tile of {t} voxels is shorter than its halo of {h}. Use --tile {axis}={h} or more."
                )
        return tile
    tile_that_fits = largest_tile(limit, halo, lambda t: _fits(cost, t, memory))
    if tile_that_fits is None:
        smallest = tuple(min(max(h, 1), n) for h, n in zip(halo, limit, strict=True))
        raise PlanError(
            f"one worker needs {cost(smallest) / 2**20:.0f} MiB for a region of {region} with the smallest tile, {smallest} "
            f"and a halo of {halo}; it may use {memory / 2**20:.0f} MiB. Use smaller --shards, fewer --workers, or more --memory."
        )
    return tile_that_fits


def _fits(cost: Callable[[Shape], int], tile: Shape, memory: int) -> bool:
    try:
        return cost(tile) <= memory
    except ValueError:
        return False


def _region_bytes(region: Shape, factor: Shape, halo: Shape, itemsize: int, dtype_itemsize: int) -> int:
    """Memory of a worker beside the forward pass: the process, the haloed input, and the output.

    The output exists as tiles and joined, then joined and encoded, then joined and read back: twice at any time. The
    input exists as read and with its mirrored faces.
    """
    haloed = math.prod(-(-r // f) + 2 * h for r, f, h in zip(region, factor, halo, strict=True))
    return PROCESS_BYTES + 2 * haloed * itemsize + 2 * math.prod(region) * dtype_itemsize


def _read_bytes(shape: Shape, region: Shape, factor: Shape, halo: Shape, itemsize: int) -> int:
    """Sum over all regions; the box of a region factorises, so the sum does too."""
    total = itemsize
    for n, r, f, h in zip(shape, region, factor, halo, strict=True):
        coarse, step = n // f, -(-r // f)
        total *= sum(min(i + step + h, coarse) - max(i - h, 0) for i in range(0, coarse, step))
    return total


def _zyx(axes: str, tile: Shape) -> Shape:
    return tuple(tile[axes.index(axis)] if axis in axes else 1 for axis in SPATIAL)


def _by_axis(axes: str, values: Sequence[int]) -> dict[str, int]:
    return dict(zip(axes, values, strict=True))
