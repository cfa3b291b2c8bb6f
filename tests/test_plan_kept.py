"""What a plan says is read and computed, against what is counted while every region is made."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from zarr.abc.store import SuffixByteRequest
from zarr.storage import _local

from svision_dask import workload
from svision_dask.codec import Codec
from svision_dask.geometry import Grid, Shape
from svision_dask.network.model import Model
from svision_dask.omezarr.write import create_store, open_level, publish
from svision_dask.opening.formats import open_volume
from svision_dask.plan import Plan
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


@pytest.fixture
def served(tmp_path, monkeypatch) -> list[int]:
    """Bytes of every chunk that is read from below ``in.zarr``."""
    sizes, get = [], _local._get

    def counted(file, prototype, byte_range):
        content = get(file, prototype, byte_range)
        index = isinstance(byte_range, SuffixByteRequest)  # of a shard
        if file.is_relative_to(tmp_path / "in.zarr") and file.name.isdigit() and not index:
            sizes.append(len(content))
        return content

    monkeypatch.setattr(_local, "_get", counted)  # the one place where zarr, of any version, reads a file
    return sizes


def stored_volume(path: Path, shape: Shape, chunk: Shape, shard: Shape | None = None) -> Volume:
    """Store noise."""
    grid = Grid(axes="zyx", shape=shape, spacing=(1.0,) * 3, origin=(0.0,) * 3, units=(None,) * 3)
    # Without compression, what is stored of voxels is their bytes, and a checksum.
    create_store(path, [grid], dtype="u2", chunks=chunk, shards=shard, codec=Codec("none", 0), attributes={})
    open_level(path, 0, "r+")[...] = np.random.default_rng(0).integers(1, 1000, grid.shape)
    publish(path, [grid], name="in", channels=(), version="0.5", attributes={})
    return open_volume(path)


def make_regions(volume: Volume, model: Model, plan: Plan, output: Path) -> np.ndarray:
    """Make all regions, one after the other; returns the fine voxels."""
    create_store(output, [plan.fine], dtype="u2", chunks=plan.chunk, shards=plan.shard, attributes={})
    path = model.save(output.with_name("model.safetensors"))
    task = EnhanceTask(volume=volume, model_path=str(path), model_digest=model.digest, output=str(output), plan=plan)
    for region in plan.regions:
        task(region)
    return open_level(output, 0)[...]


@pytest.mark.parametrize(
    ("chunk", "shard", "lengths"),
    [
        ((16, 16, 16), None, (32, 64, 32)),
        ((16, 16, 16), None, (16, 32, 96)),
        ((8, 16, 16), (16, 32, 48), (32, 32, 32)),
        ((48, 64, 48), None, (48, 64, 48)),
    ],
)
def test_what_a_store_is_asked_for_is_what_the_plan_says(chunk, shard, lengths, tmp_path, served):
    if shard and hasattr(_local.LocalStore, "get_ranges_sync"):
        pytest.skip("this zarr reads several parts of a shard at once, and nothing counts them")
    volume, model = stored_volume(tmp_path / "in.zarr", (48, 64, 48), chunk, shard), tiny((2, 2, 2))
    named = dict(zip("zyx", lengths, strict=True))
    plan = plan_volume(volume, model.architecture, wishes=Wishes(shard=named, chunk=named, workers=1), machine=MACHINE)
    make_regions(volume, model, plan, tmp_path / "fine.zarr")
    assert plan.read_bytes == pytest.approx(sum(served), rel=0.01)
    assert plan.times_read > 2


def test_regions_of_several_shards_read_chunks_less_often_and_make_the_same_voxels(tmp_path, served, monkeypatch):
    monkeypatch.setattr(workload, "LITTLE_BYTES", 0)
    volume, model = stored_volume(tmp_path / "in.zarr", (32, 64, 96), (32, 32, 32)), tiny((2, 2, 2))
    asked = Wishes(shard=dict.fromkeys("zyx", 32), chunk=dict.fromkeys("zyx", 32), workers=1)
    made, read, plans = [], [], []
    for name, region in (("small", asked.shard), ("large", None)):
        served.clear()
        plans.append(plan_volume(volume, model.architecture, wishes=replace(asked, region=region), machine=MACHINE))
        made.append(make_regions(volume, model, plans[-1], tmp_path / f"{name}.zarr"))
        read.append(sum(served))
    small, large = plans
    assert (small.shard, small.tile, small.redundancy) == (large.shard, large.tile, large.redundancy)
    assert small.region == small.shard
    assert math.prod(large.region) > math.prod(large.shard)
    assert [plan.read_bytes for plan in plans] == pytest.approx(read, rel=0.01)
    assert read[1] < read[0] / 2
    np.testing.assert_array_equal(*made)
