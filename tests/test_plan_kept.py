"""What a plan says is read and computed, against what is counted while every region is made."""

from __future__ import annotations

import math

import numpy as np
import pytest

from svision_dask.geometry import Grid
from svision_dask.network.model import Model
from svision_dask.omezarr.write import create_store
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
