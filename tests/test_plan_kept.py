"""What a plan says is read and computed, against what is counted while every region is made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from zarr.abc.store import SuffixByteRequest
from zarr.storage import _local

from svision_dask.codec import Codec
from svision_dask.geometry import Grid
from svision_dask.network.model import Model
from svision_dask.omezarr.write import create_store, open_level, publish
from svision_dask.opening.formats import open_volume
from svision_dask.running.pipeline import plan_volume
from svision_dask.running.regions import EnhanceTask
from svision_dask.volume import Volume
from svision_dask.wishes import Machine, Wishes
from tests.models import tiny

MACHINE = Machine(cores=1, memory_bytes=2**33)


class Counted:
    """Voxels that count how many of them are read."""

    def __init__(self, voxels: np.ndarray) -> None:
        self.voxels, self.shape, self.dtype = voxels, voxels.shape, voxels.dtype
        self.read = 0

    def __getitem__(self, box):
        block = self.voxels[box]
        self.read += block.size
        return block


@pytest.mark.parametrize(
    ("shape", "shard", "tile"),
    [
        ((24, 40, 40), {"z": 16, "y": 32, "x": 32}, None),
        ((24, 40, 40), {"z": 48, "y": 80, "x": 80}, {"z": 12, "y": 20, "x": 20}),
        ((9, 33, 50), {"z": 18, "y": 32, "x": 48}, {"z": 9, "y": 8, "x": 12}),
        ((5, 70, 21), {"z": 10, "y": 40, "x": 42}, {"z": 5, "y": 10, "x": 9}),
    ],
)
def test_what_is_read_and_computed_is_what_the_plan_says(shape, shard, tile, tmp_path, monkeypatch):
    voxels = np.random.default_rng(0).integers(0, 1000, shape).astype("u2")
    source, model, computed = Counted(voxels), tiny((2, 2, 2)), []
    grid = Grid(axes="zyx", shape=shape, spacing=(1.0,) * 3, origin=(0.0,) * 3, units=(None,) * 3)
    volume = Volume.from_source(source, grid, chunks=shape)
    wishes = Wishes(shard=shard, chunk=shard, tile=tile, workers=1)
    plan = plan_volume(volume, model.architecture, wishes=wishes, machine=MACHINE)
    path = model.save(tmp_path / "model.safetensors")
    create_store(tmp_path / "fine.zarr", [plan.fine], dtype="u2", chunks=plan.chunk, shards=plan.shard, attributes={})
    refine = Model.refine

    def counted(self, coarse, **options):
        computed.append(coarse.size)
        return refine(self, coarse, **options)

    monkeypatch.setattr(Model, "refine", counted)
    task = EnhanceTask(
        volume=volume,
        model_path=str(path),
        model_digest=model.digest,
        output=str(tmp_path / "fine.zarr"),
        plan=plan,
    )
    for region in plan.regions:
        task(region)
    assert source.read * 2 == plan.read_bytes
    assert sum(computed) == pytest.approx(plan.redundancy * math.prod(shape))


@pytest.mark.parametrize(
    ("chunk", "shard", "lengths"),
    [
        ((16, 16, 16), None, (32, 64, 32)),
        ((16, 16, 16), None, (16, 32, 96)),
        ((8, 16, 16), (16, 32, 48), (32, 32, 32)),
        ((48, 64, 48), None, (48, 64, 48)),
    ],
)
def test_what_a_store_is_asked_for_is_what_the_plan_says(chunk, shard, lengths, tmp_path, monkeypatch):
    if shard and hasattr(_local.LocalStore, "get_ranges_sync"):
        pytest.skip("this zarr reads several parts of a shard at once, and nothing counts them")
    grid = Grid(axes="zyx", shape=(48, 64, 48), spacing=(1.0,) * 3, origin=(0.0,) * 3, units=(None,) * 3)
    path = tmp_path / "in.zarr"
    # Without compression, what is stored of voxels is their bytes, and a checksum.
    create_store(path, [grid], dtype="u2", chunks=chunk, shards=shard, codec=Codec("none", 0), attributes={})
    open_level(path, 0, "r+")[...] = np.random.default_rng(0).integers(1, 1000, grid.shape)
    publish(path, [grid], name="in", channels=(), version="0.5", attributes={})
    volume, model, served, get = open_volume(path), tiny((2, 2, 2)), [], _local._get
    named = dict(zip("zyx", lengths, strict=True))
    plan = plan_volume(volume, model.architecture, wishes=Wishes(shard=named, chunk=named, workers=1), machine=MACHINE)

    def counted(file, prototype, byte_range):
        content = get(file, prototype, byte_range)
        if file.is_relative_to(path) and file.name.isdigit() and not isinstance(byte_range, SuffixByteRequest):
            served.append(len(content))  # but for the index of a shard
        return content

    monkeypatch.setattr(_local, "_get", counted)  # the one place where zarr, of any version, reads a file
    create_store(tmp_path / "fine.zarr", [plan.fine], dtype="u2", chunks=plan.chunk, shards=plan.shard, attributes={})
    task = EnhanceTask(
        volume=volume,
        model_path=str(model.save(tmp_path / "model.safetensors")),
        model_digest=model.digest,
        output=str(tmp_path / "fine.zarr"),
        plan=plan,
    )
    for region in plan.regions:
        task(region)
    assert plan.read_bytes == pytest.approx(sum(served), rel=0.01)
    assert plan.times_read > 2
