"""Memory that runs out in spite of the plan: the region is made in smaller tiles, and its receipt says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from svision_dask.network.architecture import architecture
from svision_dask.network.layers import Network
from svision_dask.omezarr.write import create_store, open_level
from svision_dask.opening.formats import open_volume
from svision_dask.plan import Plan
from svision_dask.running.cluster import this_machine
from svision_dask.running.pipeline import plan_volume
from svision_dask.running.regions import EnhanceTask
from svision_dask.wishes import Wishes
from tests.commands import textured, write_tiff
from tests.models import untrained

pytestmark = pytest.mark.faults

TILE = {"z": 64, "y": 64, "x": 64}
TOLERANCE = 1
"""Of integers, between tiles of different shapes."""


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> EnhanceTask:
    """Makes the only region of a volume that is one tile."""
    folder = tmp_path_factory.mktemp("work")
    volume = open_volume(write_tiff(folder / "a.ome.tif", textured((64, 64, 64))))
    model = untrained(architecture("best", (2, 2, 2), "zyx"))
    path = model.save(folder / "model.safetensors")
    shard = dict.fromkeys("zyx", 128)
    plan: Plan = plan_volume(
        volume,
        model.architecture,
        wishes=Wishes(tile=TILE, shard=shard, workers=1, precision="float32"),
        machine=this_machine(),
    )
    assert plan.tile == (64, 64, 64)
    output = folder / "fine.zarr"
    create_store(output, [plan.fine], dtype=plan.dtype, chunks=plan.chunk, shards=plan.shard, attributes={})
    return EnhanceTask(volume=volume, model_path=str(path), model_digest=model.digest, output=str(output), plan=plan)


def made_by(task: EnhanceTask):
    receipt = task(task.plan.regions.at(0))
    return receipt, open_level(task.output, 0)[...]


def test_a_region_is_made_in_halves_until_they_fit(task, monkeypatch):
    receipt, wanted = made_by(task)
    assert receipt.halvings == 0
    # With a halo of 12, halves of one axis do not fit, halves of two do.
    real, limit = Network.forward, 50 * 88 * 88

    def forward(network, voxels):
        if voxels.numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return real(network, voxels)

    monkeypatch.setattr(Network, "forward", forward)
    receipt, found = made_by(task)
    assert receipt.halvings == 2
    assert np.abs(found.astype(int) - wanted).max() <= TOLERANCE


def test_what_is_no_lack_of_memory_is_not_tried_again(task, monkeypatch):
    tried = []

    def forward(*rest):
        tried.append(rest)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Network, "forward", forward)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        made_by(task)
    assert len(tried) == 1


CHILD = """
import json, pickle, resource, sys
from pathlib import Path
import torch
task = pickle.loads(Path(sys.argv[1]).read_bytes())
torch.set_num_threads(1)
size = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
task(task.plan.regions.at(0))  # threads and libraries take address space once
warm = size()
for share in (0.4, 0.3, 0.2, 0.15, 0.1, 0.05):  # less and less, until the planned tile does not fit
    resource.setrlimit(resource.RLIMIT_AS, (warm + int(share * int(sys.argv[2])), resource.RLIM_INFINITY))
    receipt = task(task.plan.regions.at(0))
    if receipt.halvings:
        break
print(json.dumps([share, receipt.halvings]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts address space as Linux does")
def test_an_allocation_that_the_system_refuses_halves_the_tiles(task, tmp_path):
    import pickle

    _, wanted = made_by(task)
    (tmp_path / "task").write_bytes(pickle.dumps(task))
    budget = task.plan.worker_bytes - 400 * 2**20
    child = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "task", str(budget)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert child.returncode == 0, child.stderr
    _, halvings = json.loads(child.stdout)
    assert halvings >= 1
    assert np.abs(open_level(task.output, 0)[...].astype(int) - wanted).max() <= TOLERANCE
