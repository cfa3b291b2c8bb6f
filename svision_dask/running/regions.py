"""Make a region of the output, on a worker: it writes whole shards and reads them back."""

from __future__ import annotations

import math
import threading
import zlib
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from svision_dask.backend import is_out_of_memory, release_memory
from svision_dask.errors import ImageError, RegionError
from svision_dask.geometry import Region, Regions, Shape
from svision_dask.network.model import load_model_once
from svision_dask.omezarr.metadata import read_provenance
from svision_dask.omezarr.pyramid import block_mean
from svision_dask.omezarr.write import open_level
from svision_dask.plan import Plan, halved
from svision_dask.running.enhancement import enhance_haloed
from svision_dask.running.ledger import UNDONE, Receipt
from svision_dask.stores.remote_store import folder_of
from svision_dask.volume import Volume, read_mirrored

if TYPE_CHECKING:
    import zarr

computing = threading.Lock()
"""Held by the region that computes; others of the process may be read or written meanwhile."""


@dataclass(frozen=True, kw_only=True)
class NextLevel:
    """Level 1, where every region of level 0 has all that a region of it is made from."""

    factor: Shape
    regions: Regions
    """As many as level 0 has, in the same order."""


@dataclass(frozen=True, kw_only=True)
class EnhanceTask:
    """Read a region and its halo once, enhance it, write it."""

    volume: Volume
    model_path: str
    model_digest: str
    output: str
    plan: Plan
    empty_below: float | None = None
    """A region and its halo in which every voxel is below count as zeros."""
    run: str | None = None
    """Of the store; it is left alone if it has become another's."""
    next_level: NextLevel | None = None
    """What to make along with level 0."""

    def __call__(self, region: Region) -> Receipt:
        """Make one region of level 0, and what there is to make along with it."""
        import torch

        torch.set_num_threads(self.plan.threads)  # dask's nanny starts workers with one
        return self._made(region, self.plan.tile)

    def _made(self, region: Region, tile: Shape, halvings: int = 0) -> Receipt:
        """Make one region in tiles of ``tile`` voxels, or in smaller ones if memory runs out."""
        try:
            return replace(self._made_in(tile, region), halvings=halvings)
        except (MemoryError, RuntimeError) as error:
            smaller = halved(tile, self.plan.halo)
            if smaller is None or not is_out_of_memory(error):
                raise
        release_memory()  # only here: while an error is handled, its traceback holds on to the tensors
        return self._made(region, smaller, halvings + 1)

    def _made_in(self, tile: Shape, region: Region) -> Receipt:
        plan, model = self.plan, load_model_once(self.model_path, self.model_digest)
        axes = plan.coarse.axes
        start = tuple(a // f for a, f in zip(region.start, plan.factor, strict=True))
        tiles = tuple(
            -(-(b - a) // (f * t)) for a, b, f, t in zip(region.start, region.stop, plan.factor, tile, strict=True)
        )
        first = tuple(a - h for a, h in zip(start, plan.halo, strict=True))
        last = tuple(a + k * t + h for a, k, t, h in zip(start, tiles, tile, plan.halo, strict=True))
        haloed = read_mirrored(self.volume, first, last)
        if self.empty_below is not None and (haloed < self.empty_below).all():
            haloed = np.zeros_like(haloed)
        inside = tuple(slice(max(a, 0), min(b, n)) for a, b, n in zip(first, last, plan.coarse.shape, strict=True))
        missing = self.volume.absent(inside)
        channel = start[axes.index("c")] if "c" in axes else 0
        fine = enhance_haloed(
            da.from_array(haloed, chunks=-1, name=False),
            model,
            axes=axes,
            tile=tile,
            dtype=np.dtype(plan.dtype),
            channel=channel,
            backend=plan.backend,
        )
        wanted = tuple(slice(0, b - a) for a, b in zip(region.start, region.stop, strict=True))
        # Inside a worker, plain compute() would submit to the whole cluster.
        with computing:
            block = fine[wanted].compute(scheduler="synchronous")
        receipt = write_checked(own_level(self.output, 0, self.run), region, block, missing=missing)
        if self.next_level is not None:
            receipt = replace(receipt, coarser=write_coarser(self.output, self.run, self.next_level, block, region))
        read = math.prod(s.stop - s.start for s in inside) * self.volume.dtype.itemsize
        return replace(receipt, empty=bool((haloed == haloed.flat[0]).all()), read_bytes=read)


@dataclass(frozen=True, kw_only=True)
class CopyTask:
    """Read a region and write it as it is."""

    volume: Volume
    output: str
    run: str | None = None
    level: int = 0
    next_level: NextLevel | None = None
    """What to make along with it, if it is level 0."""

    def __call__(self, region: Region) -> Receipt:
        """Make one region of ``level``, and what there is to make along with it."""
        block, missing = self.volume.read(region.box), self.volume.absent(region.box)
        array = own_level(self.output, self.level, self.run)
        receipt = write_checked(array, region, block, level=self.level, missing=missing)
        if self.next_level is not None:
            receipt = replace(receipt, coarser=write_coarser(self.output, self.run, self.next_level, block, region))
        return replace(receipt, read_bytes=block.nbytes)


@dataclass(frozen=True, kw_only=True)
class CoarsenTask:
    """Make a region of one pyramid level from the level before it."""

    output: str
    level: int
    factor: Shape
    run: str | None = None

    def __call__(self, region: Region) -> Receipt:
        """Make one region of ``level``."""
        coarser = own_level(self.output, self.level, self.run)
        block, read = self._coarsened(region)
        return replace(write_checked(coarser, region, block, level=self.level), read_bytes=read)

    def _coarsened(self, region: Region) -> tuple[npt.NDArray[Any], int]:
        """Compute a region, and count the bytes that were read for it."""
        finer = open_level(self.output, self.level - 1)
        # To ask for less than zarr stores in one piece takes longer than to decode it.
        stored = finer.shards or finer.chunks
        unit = tuple(-(-n // f) for n, f in zip(stored, self.factor, strict=True))
        return _coarsened(finer, region, self.factor, unit)


@dataclass(frozen=True, kw_only=True)
class VerifyTask:
    """Read a region of an output, and say what is there; ``UNDONE`` for a checksum where nothing whole is."""

    volume: Volume
    level: int

    def __call__(self, region: Region) -> Receipt:
        """Read one region of ``level``."""
        try:
            return _receipt(self.volume.read(region.box), region, level=self.level)
        except ImageError:  # any other error says nothing about what is there
            return Receipt(
                level=self.level, index=region.index, start=region.start, low=0, high=0, voxels=0, crc32=UNDONE
            )


def write_coarser(output: str, run: str | None, wanted: NextLevel, block: npt.NDArray[Any], region: Region) -> Receipt:
    """Make the part of level 1 that a region of level 0 has all of, while its voxels ``block`` are in memory."""
    array, part = own_level(output, 1, run), wanted.regions.at(region.index)
    own = replace(part, start=(0,) * block.ndim, stop=tuple(b - a for a, b in zip(part.start, part.stop, strict=True)))
    return write_checked(array, part, _coarsened(block, own, wanted.factor, array.chunks)[0], level=1)


def _coarsened(
    finer: npt.NDArray[Any] | zarr.Array[Any], region: Region, factor: Shape, unit: Shape
) -> tuple[npt.NDArray[Any], int]:
    """Average a region, and count the bytes that were read for it.

    ``unit`` by ``unit`` voxels: the sums behind the means of a whole region would take many times its memory.
    """
    shape = tuple(b - a for a, b in zip(region.start, region.stop, strict=True))
    block, read = np.empty(shape, finer.dtype), 0
    for part in Regions(shape=shape, unit=unit):
        source = tuple(
            slice((r + a) * f, min((r + b) * f, n))
            for r, a, b, f, n in zip(region.start, part.start, part.stop, factor, finer.shape, strict=True)
        )
        voxels = np.asarray(finer[source])
        block[part.box] = block_mean(voxels, factor)
        read += voxels.nbytes
    return block, read


def own_level(output: str, level: int, run: str | None) -> zarr.Array[Any]:
    """Open a level to write to, if the store still is that of the run that the task belongs to.

    A cluster goes on with tasks that nobody waits for any more: of a client that was killed, or was interrupted.
    """
    if read_provenance(output).get("run") != run:
        raise RegionError(f"{output}: the run that began this region is over; it was not written.")
    return open_level(output, level, "r+")


def write_checked(
    array: zarr.Array[Any], region: Region, block: npt.NDArray[Any], *, level: int = 0, missing: int = 0
) -> Receipt:
    """Write whole shards in one assignment, read them back, and compare.

    Raises
    ------
    RegionError
        If what was read back is not what was written.
    """
    unit = array.shards or array.chunks
    aligned = all(
        a % u == 0 and (b % u == 0 or b == n)
        for a, b, u, n in zip(region.start, region.stop, unit, array.shape, strict=True)
    )
    if not aligned:
        # Two tasks that write into one shard lose each other's voxels, in silence.
        raise RegionError(f"region {region.box} does not consist of whole shards of {unit}; nothing was written.")
    assert block.shape == tuple(b - a for a, b in zip(region.start, region.stop, strict=True)), (block.shape, region)
    assert block.dtype == array.dtype, (block.dtype, array.dtype)
    try:
        array[region.box] = block
    except Exception:  # zarr reads what is there first, and a torn shard cannot be read
        _erase(array, region)
        array[region.box] = block
    back = np.asarray(array[region.box])
    # As bytes: NaN, which no reading would call equal, cannot hide a difference, nor make one.
    if not np.array_equal(_bytes(back), _bytes(block)):
        raise RegionError(f"{array.store_path} {region.box}: read back other voxels than were written. Check the disk.")
    return _receipt(back, region, level=level, missing=missing)


def _erase(array: zarr.Array[Any], region: Region) -> None:
    """Delete the shards of a region that is being made: what they hold is of no use."""
    unit = array.shards or array.chunks
    places = product(*(range(a // u, -(-b // u)) for a, b, u in zip(region.start, region.stop, unit, strict=True)))
    folder = folder_of(array)
    for place in places:
        (folder / array.metadata.encode_chunk_key(place)).unlink(missing_ok=True)


def _receipt(back: npt.NDArray[Any], region: Region, *, level: int, missing: int = 0) -> Receipt:
    finite = back[np.isfinite(back)] if back.dtype.kind == "f" else back
    return Receipt(
        level=level,
        index=region.index,
        start=region.start,
        low=float(finite.min()) if finite.size else 0.0,
        high=float(finite.max()) if finite.size else 0.0,
        voxels=back.size,
        crc32=checksum(back),
        missing=missing,
    )


def checksum(block: npt.NDArray[Any]) -> int:
    """CRC-32 of voxels, in C order and the machine's byte order."""
    return zlib.crc32(_bytes(block).data)


def _bytes(block: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(block).reshape(-1).view(np.uint8)
