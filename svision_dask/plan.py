"""How a volume is cut into regions and tiles, what that costs, and whether it fits. Integers only; nothing is read.

A *region* is a box of whole output shards, made by one task. Inside it, one forward pass is responsible for a *tile* of
coarse voxels and reads the *halo* around it. Tuples have one entry per axis of the volume; t and c are never cut finer
than one, and have no halo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from svision_dask.backend import CPU, Backend
from svision_dask.codec import Codec, check_bytes, usual_codec
from svision_dask.cutting import ENOUGH_REGIONS, chunk_of, region_of
from svision_dask.degradation import Sampling
from svision_dask.errors import PlanError
from svision_dask.geometry import SPATIAL, Grid, Regions, Shape, spatial_shape
from svision_dask.notebook import html_table, per_axis
from svision_dask.wishes import Machine, Pyramid, Version, Wishes
from svision_dask.workload import SEATS, Workload

ENOUGH_MEMORY = 1.25
"""More processes with smaller tiles are preferred to fewer with larger ones, up to so many times the work per core."""
LIGHT_BYTES = 88 * 2**20
"""Of a forward pass whose tensors have 32 MiB: for larger ones the C library gets new pages, every time."""
MORE_HALO = 1.25
"""That costs less than so many times more halo does."""
MAP_ITEMSIZE = 4
"""Bytes of a voxel of a trust map, which is float32."""
COMPRESSION = 10
"""Microscope volumes rarely compress better; a disk too small even for that is refused."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything decided before anything runs."""

    coarse: Grid
    """Of the input."""
    fine: Grid
    """Of the output."""
    factor: Shape
    """How many times finer the output is, along each axis."""
    halo: Shape
    """Coarse voxels per side."""
    tile: Shape
    """Coarse voxels one forward pass is responsible for."""
    chunk: Shape
    """Output voxels."""
    shard: Shape | None
    """Output voxels; none in OME-Zarr 0.4."""
    region: Shape
    """Output voxels; whole shards, or, where there are none, whole chunks."""
    version: Version
    """Of OME-Zarr."""
    dtype: str
    """Of the output's voxels."""
    workers: int
    """Processes, each of which computes one region at a time."""
    threads: int
    """torch threads in each."""
    seats: int
    """Regions in the memory of each at once: while one is computed, others are read and written."""
    worker_bytes: int
    """Peak resident memory of one worker."""
    memory_bytes: int
    """What one worker may use."""
    redundancy: float
    """Coarse voxels that enter forward passes, per coarse voxel of the volume."""
    input_bytes: int
    """Voxel data of the input, uncompressed."""
    read_bytes: int
    """Voxel data read from the input, uncompressed, halos included, in whole chunks."""
    write_bytes: int
    """Voxel data of the output without its pyramid, uncompressed."""
    disk_free_bytes: int | None = None
    """Where the output is to be made; None where that is not known."""
    backend: Backend = CPU
    """What computes, and in which precision."""
    codec: Codec
    """How chunks are compressed."""
    pyramid: Pyramid = "isotropic"
    """Which axes become coarser from level to level."""
    stored: Shape | None = None
    """Of the input: voxels of a chunk, which is read as a whole; None where single voxels are."""
    trust: bool = False
    """Whether maps are made that say how far to trust each place."""

    def _repr_html_(self) -> str:
        axes = self.coarse.axes
        rows = {name: per_axis(axes, getattr(self, name)) for name in ("factor", "halo", "tile", "chunk", "region")}
        rows |= {"output": f"{per_axis(axes, self.fine.shape)}, {self.dtype}", "regions": str(len(self.regions))}
        rows["memory"] = f"{self.workers} workers of {self.worker_bytes / 2**20:.0f} MiB each"
        rows["reads, writes"] = f"{self.read_bytes / 2**20:.0f} MiB, {self.write_bytes / 2**20:.0f} MiB"
        return html_table("Plan", rows)

    @property
    def regions(self) -> Regions:
        """The regions of the output."""
        return Regions(shape=self.fine.shape, unit=self.region)

    @property
    def times_read(self) -> float:
        """How often a voxel of the input is read, on average: for its region, for halos, and along with its chunk."""
        return self.read_bytes / self.input_bytes

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
            "codec": str(self.codec),
            "pyramid": self.pyramid,
            "trust": self.trust,
            "dtype": self.dtype,
            "redundant_compute_percent": round(100 * (self.redundancy - 1), 1),
            "workers": self.workers,
            "threads_per_worker": self.threads,
            "regions_at_once_per_worker": self.seats,
            "worker_bytes": self.worker_bytes,
            "memory_bytes": self.memory_bytes,
            "input_bytes": self.input_bytes,
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "disk_free_bytes": self.disk_free_bytes,
            "device": self.backend.device,
            "precision": self.backend.precision,
        }


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
    sampling: Sampling = "area",
    margin: Shape = (0, 0, 0),
    image_bytes: Callable[[Shape], int] | None = None,
    kept_bytes: int = 0,
    stored: Shape | None = None,
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
    sampling
        Whether coarse voxels are means over their area, or points.
    margin
        Of trust maps, if they are wished for: coarse voxels per side for z, y, x beyond the halo.
    image_bytes
        As ``tile_bytes`` is without trust maps; by default, there are none.
    kept_bytes
        What a worker keeps of the input, decoded.
    stored
        Voxels per axis that the input is read in, as a whole, if it is.

    Raises
    ------
    PlanError
        If shards, chunks or tiles do not fit together, or the work does not fit the machine; with both numbers and
        the option to change.
    """
    wishes = wishes or Wishes()
    if wishes.shard and wishes.version == "0.4":
        raise PlanError("shards: OME-Zarr 0.4 has none. Use --ome-zarr-version 0.5, or leave out --shards.")
    fine = coarse.finer(factor, sampling)
    _check_sizes(coarse, wishes)
    chunk = chunk_of(fine, wishes)
    shard = region_of(fine, factor, chunk, wishes)
    what, unit = ("shards", shard) if wishes.version == "0.5" else ("chunks", chunk)
    check_bytes(what, unit, max(dtype_itemsize, MAP_ITEMSIZE if wishes.trust else 0))
    region = tuple((wishes.region or {}).get(axis, n) for axis, n in zip(fine.axes, shard, strict=True))
    work = Workload(
        axes=coarse.axes,
        shape=coarse.shape,
        region=tuple(-(-r // f) for r, f in zip(region, factor, strict=True)),
        halo=_on_axes(coarse.axes, halo),
        factor=factor,
        itemsize=itemsize,
        stored=stored,
        output_bytes=max(math.prod(region) * dtype_itemsize, _map_bytes(region, factor) if wishes.trust else 0),
        tile_bytes=tile_bytes,
        image_bytes=image_bytes or tile_bytes,
        gpu_bytes=wishes.gpu_bytes,
        process_bytes=wishes.process_bytes,
        kept_bytes=kept_bytes,
        margin=_on_axes(coarse.axes, margin) if wishes.trust else None,
    )
    count = len(Regions(shape=fine.shape, unit=region))
    processes, tile = _share(work, wishes, machine, count=count)
    memory = _memory(wishes, machine, processes)
    seats = work.seats(tile, memory, min(wishes.seats or SEATS, -(-count // processes)))
    if wishes.region is None:
        larger = work.with_larger_regions(tile, memory, seats=seats, enough=ENOUGH_REGIONS * processes)
        region = tuple(n * b // a for n, a, b in zip(region, work.region, larger.region, strict=True))
        work = larger
    write_bytes = math.prod(fine.shape) * dtype_itemsize + (_map_bytes(fine.shape, factor) if wishes.trust else 0)
    _check_disk(write_bytes, machine.disk_free_bytes)
    return Plan(
        coarse=coarse,
        fine=fine,
        factor=factor,
        halo=work.halo,
        tile=tile,
        chunk=chunk,
        shard=shard if wishes.version == "0.5" else None,
        region=region,
        version=wishes.version,
        dtype=dtype,
        workers=processes,
        threads=_threads(wishes, machine, processes),
        seats=seats,
        worker_bytes=work.worker_bytes(tile, seats),
        memory_bytes=memory,
        redundancy=work.redundancy(tile),
        input_bytes=work.input_bytes,
        read_bytes=work.read_bytes(tile),
        write_bytes=write_bytes,
        disk_free_bytes=machine.disk_free_bytes,
        backend=Backend(device=wishes.device or "cpu", precision=wishes.precision or "float32"),
        codec=wishes.codec or usual_codec(wishes.version),
        pyramid=wishes.pyramid,
        stored=stored,
        trust=wishes.trust,
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


def halved(tile: Shape, halo: Shape) -> Shape | None:
    """Halve the longest axis of a tile; None if not even a halo's worth would be left of it."""
    # A tile shorter than its halo would need neighbours' neighbours.
    shrinkable = [i for i, (t, h) in enumerate(zip(tile, halo, strict=True)) if t >= 2 * max(h, 1) and t > 1 and h]
    if not shrinkable:
        return None
    longest = max(shrinkable, key=lambda i: tile[i])
    return (*tile[:longest], -(-tile[longest] // 2), *tile[longest + 1 :])


def largest_tile(limit: Shape, halo: Shape, fits: Callable[[Shape], bool]) -> Shape | None:
    """Find the largest tile that fits, ``limit`` or what comes of halving it; None if none does."""
    tile: Shape | None = limit
    while tile is not None and not fits(tile):
        tile = halved(tile, halo)
    return tile


def lighter_tile(largest: Shape, halo: Shape, tile_bytes: Callable[[Shape], int]) -> Shape:
    """Halve a tile as long as a forward pass takes much memory, but not where that makes halos much of the work."""
    tile, most = largest, MORE_HALO * _with_halo(largest, halo)
    while tile_bytes(tile) > LIGHT_BYTES:
        smaller = halved(tile, halo)
        if smaller is None or _with_halo(smaller, halo) > most:
            break
        tile = smaller
    return tile


def _with_halo(tile: Shape, halo: Shape) -> float:
    """Count the voxels that enter a forward pass, per voxel of its tile."""
    return math.prod((t + 2 * h) / t for t, h in zip(tile, halo, strict=True))


def _check_sizes(grid: Grid, wishes: Wishes) -> None:
    for axis, n in zip(grid.axes, grid.shape, strict=True):
        if n < 1:
            raise PlanError(f"axis {axis} has {n} voxels; every axis needs at least 1.")
    for option, given in (("tile", wishes.tile), ("chunks", wishes.chunk), ("shards", wishes.shard)):
        for axis, n in (given or {}).items():
            if n < 1:
                raise PlanError(f"--{option} {axis}={n}: at least 1 voxel is needed.")


def _check_disk(write_bytes: int, free_bytes: int | None) -> None:
    if free_bytes is not None and write_bytes > COMPRESSION * free_bytes:
        raise PlanError(
            f"the output has {write_bytes / 2**30:.1f} GiB before compression; the disk has "
            f"{free_bytes / 2**30:.1f} GiB free. Choose another disk or a smaller --factor."
        )


def _share(work: Workload, wishes: Wishes, machine: Machine, *, count: int) -> tuple[int, Shape]:
    """Choose the number of processes, and the tile that fits the memory of each.

    One process per core; fewer, with more threads each, where memory is so short that a tile would be mostly halo.
    """
    most = wishes.workers or machine.cores
    if wishes.workers is None and wishes.worker_memory_bytes is not None:
        most = min(most, machine.memory_bytes // wishes.worker_memory_bytes)
    most = max(1, min(most, count))
    options = {}
    for processes in range(1, most + 1) if wishes.workers is None else (most,):
        tile = _tile(work, wishes, _memory(wishes, machine, processes))
        if tile is not None:
            options[processes] = tile
    if not options:
        raise _too_large(work, wishes, _memory(wishes, machine, most if wishes.workers else 1))
    cost = {p: work.redundancy(tile) / (p * _threads(wishes, machine, p)) for p, tile in options.items()}
    best = max(processes for processes in options if cost[processes] <= ENOUGH_MEMORY * min(cost.values()))
    return best, options[best]


def _threads(wishes: Wishes, machine: Machine, processes: int) -> int:
    return wishes.threads or max(1, machine.cores // processes)


def _memory(wishes: Wishes, machine: Machine, processes: int) -> int:
    return wishes.worker_memory_bytes or machine.memory_bytes // processes


def _tile(work: Workload, wishes: Wishes, memory: int) -> Shape | None:
    """Take the tile that was asked for, or one that is fast; None if it does not fit."""
    if wishes.tile is None:
        largest = largest_tile(work.region_tile, work.halo, lambda tile: work.fits(tile, memory))
        if largest is None or work.gpu_bytes is not None:
            return largest
        return lighter_tile(largest, work.halo, lambda tile: work.image_bytes(spatial_shape(work.axes, tile)))
    tile = tuple(min(wishes.tile.get(axis, n), n) for axis, n in zip(work.axes, work.region_tile, strict=True))
    for axis, t, h, n in zip(work.axes, tile, work.halo, work.region_tile, strict=True):
        if t < h and -(-n // t) > 2:
            raise PlanError(
                f"axis {axis}: a tile of {t} voxels is shorter than its halo of {h}. Use --tile {axis}={h} or more."
            )
    return tile if work.fits(tile, memory) else None


def _too_large(work: Workload, wishes: Wishes, memory: int) -> PlanError:
    smallest = {axis: max(h, 1) for axis, h in zip(work.axes, work.halo, strict=True)}
    given = smallest if wishes.tile is None else wishes.tile
    tile = tuple(min(given.get(axis, n), n) for axis, n in zip(work.axes, work.region_tile, strict=True))
    try:
        needed = f"{work.worker_bytes(tile) / 2**20:.0f} MiB"
    except ValueError as error:
        needed = str(error)
    return PlanError(
        f"one worker needs {needed} for a region of {work.region} coarse voxels in tiles of {tile} with a halo of "
        f"{work.halo}; it may use {memory / 2**20:.0f} MiB. "
        "Use smaller --shards or --tile, fewer --workers, or more --memory."
    )


def _map_bytes(fine: Shape, factor: Shape) -> int:
    """Bytes of both trust maps of a box of fine voxels; one of them is on the coarse grid."""
    return MAP_ITEMSIZE * (math.prod(fine) + math.prod(-(-n // f) for n, f in zip(fine, factor, strict=True)))


def _on_axes(axes: str, spatial: Shape) -> Shape:
    """Spread values for z, y, x over ``axes``; 0 on the others."""
    return tuple(spatial[SPATIAL.index(axis)] if axis in SPATIAL else 0 for axis in axes)


def _by_axis(axes: str, values: Sequence[int]) -> dict[str, int]:
    return dict(zip(axes, values, strict=True))
