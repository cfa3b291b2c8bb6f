"""What a worker reads, holds and computes for its regions, as a function of the tile. Integers only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from svision_dask.backend import pinned_bytes
from svision_dask.geometry import SPATIAL, Shape, spatial_shape

DECODED_BYTES = 256 * 2**20
"""What a process keeps of strips and tiles of compressed TIFFs, at most."""
CUDA_BYTES = 2 * 2**30
"""What a process that uses a GPU needs on top."""
OFTEN = 4
"""How often an input may be read as a whole before it is worth larger regions, or a word."""
LITTLE_BYTES = 2**30
"""Reading no more than that is not worth larger regions, however often it is the same."""
SPARED = 0.8
"""What larger regions must leave of the reading, at most."""
SEATS = 3
"""Regions at once in a process, where there is memory: one is read and one written while another is computed."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work on one volume that is cut into regions; tuples have one entry per axis, in coarse voxels."""

    axes: str
    shape: Shape
    """Of the volume."""
    region: Shape
    """At the volume's end it is cut off."""
    halo: Shape
    """Per side."""
    factor: Shape
    """How many times finer the output is."""
    itemsize: int
    """Bytes of a coarse voxel as it is read."""
    stored: Shape | None = None
    """What the input is read in, as a whole: a chunk; None where single voxels are."""
    output_bytes: int
    """Of one region."""
    tile_bytes: Callable[[Shape], int]
    """Memory of one forward pass over a tile (z, y, x), in bytes; raises ValueError where a tile is too large."""
    image_bytes: Callable[[Shape], int]
    """The same without trust maps: by it tiles are chosen, so that maps do not change the image."""
    gpu_bytes: int | None = None
    """Memory of the GPU that computes; None where the processor does."""
    process_bytes: int
    """Resident memory of a worker before its first region."""
    kept_bytes: int = 0
    """What a worker keeps of the input, decoded, between regions."""
    margin: Shape | None = None
    """Coarse voxels per side beyond the halo, if each region is read once more to judge what was made of it."""

    @property
    def input_bytes(self) -> int:
        """Voxel data of the volume."""
        return math.prod(self.shape) * self.itemsize

    @property
    def region_tile(self) -> Shape:
        """A tile that covers a region, or the volume."""
        return tuple(min(r, n) for r, n in zip(self.region, self.shape, strict=True))

    def worker_bytes(self, tile: Shape, seats: int = 1) -> int:
        """Peak resident memory of one worker with so many regions at once, of which one is computed.

        The output exists as tiles and joined, then joined and encoded, then joined and read back: twice at any time.
        The input exists as read and with its mirrored faces.
        """
        haloed = math.prod(-(-r // t) * t + 2 * h for r, t, h in zip(self.region, tile, self._widest, strict=True))
        buffers = 2 * haloed * self.itemsize + 2 * self.output_bytes
        process = self.process_bytes + self.kept_bytes
        if self.gpu_bytes is not None:
            return process + CUDA_BYTES + seats * (buffers + self._pinned_bytes(tile))
        return process + seats * buffers + self.tile_bytes(spatial_shape(self.axes, tile))

    def seats(self, tile: Shape, memory_bytes: int, most: int) -> int:
        """Count the regions that fit into ``memory_bytes`` at once; one does, if the tile was chosen for that."""
        return max([1, *(n for n in range(2, min(most, SEATS) + 1) if self.worker_bytes(tile, n) <= memory_bytes)])

    def fits(self, tile: Shape, memory_bytes: int) -> bool:
        """Say whether one worker gets along with ``memory_bytes``."""
        try:
            on_gpu = self.gpu_bytes is None or self.tile_bytes(spatial_shape(self.axes, tile)) <= self.gpu_bytes
            return on_gpu and self.worker_bytes(tile) <= memory_bytes
        except ValueError:
            return False

    def with_larger_regions(self, tile: Shape, memory_bytes: int, *, seats: int, enough: int) -> Workload:
        """Double regions, one axis after the other, where the same chunks of the input are read again and again.

        As long as that spares a fifth of the reading, ``seats`` of them fit, and there are ``enough``. The tiles stay
        where they are, so that no voxel changes.
        """
        work = self
        while work.read_bytes(tile) > max(OFTEN * work.input_bytes, LITTLE_BYTES):
            larger = [
                replace(
                    work, region=(*work.region[:i], 2 * r, *work.region[i + 1 :]), output_bytes=2 * work.output_bytes
                )
                for i, (axis, r, n, t) in enumerate(zip(work.axes, work.region, work.shape, tile, strict=True))
                if axis in SPATIAL and r < n and r % t == 0
            ]
            possible = [
                each
                for each in larger
                if each.worker_bytes(tile, seats) <= memory_bytes
                and math.prod(-(-n // r) for n, r in zip(each.shape, each.region, strict=True)) >= enough
            ]
            best = min(possible, key=lambda each: each.read_bytes(tile), default=work)
            if best.read_bytes(tile) > SPARED * work.read_bytes(tile):
                break
            work = best
        return work

    def redundancy(self, tile: Shape) -> float:
        """Coarse voxels that enter forward passes, per coarse voxel of the volume."""
        share = 1.0
        for n, r, t, h in zip(self.shape, self.region, tile, self.halo, strict=True):
            whole, rest = divmod(n, r)
            share *= (whole * -(-r // t) + -(-rest // t)) * (t + 2 * h) / n
        return share

    def read_bytes(self, tile: Shape) -> int:
        """Voxels of all chunks read for all regions; the box of a region factorises, so the sum does too."""
        halos = [self.halo] if self.margin is None else [self.halo, self._widest]
        stored = self.stored or (1,) * len(self.shape)
        return self.itemsize * sum(
            math.prod(map(_read_along_axis, self.shape, self.region, tile, halo, stored)) for halo in halos
        )

    def _pinned_bytes(self, tile: Shape) -> int:
        """Memory of the process that a GPU copies a tile from, and its result to, in single precision."""
        haloed = math.prod(t + 2 * h for t, h in zip(tile, self._widest, strict=True))
        return pinned_bytes(4 * haloed, 4 * math.prod(tile) * math.prod(self.factor))

    @property
    def _widest(self) -> Shape:
        """Coarse voxels per side that are read around a region."""
        return tuple(h + m for h, m in zip(self.halo, self.margin or (0,) * len(self.halo), strict=True))


def _read_along_axis(size: int, region: int, tile: int, halo: int, stored: int) -> int:
    """Voxels read along one axis: whole tiles and their halo, mirrored at the faces, in whole chunks."""
    length = -(-region // tile) * tile + 2 * halo
    # The regions first … last see no face, nor a chunk that is cut off. There may be millions of them, which meet
    # chunks in the same way again and again, and only a few others.
    first, last = -(-halo // region), (size // stored * stored + halo - length) // region
    inside, period = max(0, last - first + 1), stored // math.gcd(region, stored)
    starts = (index * region - halo for index in range(first, first + min(inside, period)))
    spans = [_in_chunks(start, start + length, size, stored) for start in starts]
    whole, rest = divmod(inside, period)
    total = whole * sum(spans) + sum(spans[:rest])
    count = -(-size // region)
    for index in (*range(min(first, count)), *range(max(first, last + 1), count)):
        start = index * region
        stop = start + -(-min(region, size - start) // tile) * tile
        total += _in_chunks(*_mirrored(start - halo, stop + halo, size), size, stored)
    return total


def _in_chunks(low: int, high: int, size: int, stored: int) -> int:
    """Voxels of the chunks that ``low … high`` touches, along one axis."""
    return min(-(-high // stored) * stored, size) - low // stored * stored


def _mirrored(start: int, stop: int, size: int) -> tuple[int, int]:
    """From the first to the last voxel that ``volume.mirror`` lists."""
    low = max(0, min(start, 2 * size - stop)) if stop > size else max(0, start)
    return low, min(size, max(stop, -start))
