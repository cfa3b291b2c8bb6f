"""What was asked of a run, and what there is to do it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from svision_dask.backend import PROCESS_BYTES, Device, Precision
from svision_dask.codec import Codec

Version = Literal["0.4", "0.5"]
VERSIONS: tuple[Version, ...] = ("0.4", "0.5")
Pyramid = Literal["isotropic", "xy", "match", "none"]
"""Which axes become coarser from level to level: the finest, y and x, those of the input's levels; or no levels."""
PYRAMIDS: tuple[Pyramid, ...] = ("isotropic", "xy", "match", "none")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the work must fit into, if it is done here."""

    cores: int
    """Processors that may be used."""
    memory_bytes: int
    """For all workers together."""
    disk_free_bytes: int | None = None
    """Where the output is to be made; None where that does not matter."""
    gpus: tuple[int, ...] = ()
    """Free bytes of each."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user, or a cluster that is there, fixed; None means that the plan decides."""

    tile: Mapping[str, int] | None = None
    """Coarse voxels that one forward pass is responsible for, by axis; the halo comes on top."""
    chunk: Mapping[str, int] | None = None
    """Output voxels of a chunk, by axis."""
    shard: Mapping[str, int] | None = None
    """Output voxels of a shard, by axis."""
    region: Mapping[str, int] | None = None
    """Output voxels of a region, by axis: whole shards."""
    workers: int | None = None
    """Processes, each of which computes one region at a time."""
    worker_memory_bytes: int | None = None
    """Of each process."""
    process_bytes: int = PROCESS_BYTES
    """Resident memory of each process before its first region."""
    threads: int | None = None
    """For torch, in each process."""
    seats: int | None = None
    """Regions in the memory of each process at once, at most."""
    device: Device | None = None
    """Which computes: the processor, or GPUs."""
    precision: Precision | None = None
    """Of the convolutions."""
    gpu_bytes: int | None = None
    """What a forward pass may use of each GPU; None where the processor computes."""
    version: Version = "0.5"
    """Of OME-Zarr."""
    codec: Codec | None = None
    """How chunks are compressed, as ``svision_dask.codec.parse_codec("zstd:3")`` reads it."""
    pyramid: Pyramid = "isotropic"
    """Which axes become coarser from level to level."""
    trust: bool = False
    """Whether maps are to be made that say how far to trust each place."""
