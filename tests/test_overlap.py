"""Reading, computing and writing within one worker process: at the same time, over a store that takes its time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import zarr
from distributed import Client
from zarr.storage import LocalStore, WrapperStore

from svision_dask.geometry import Grid
from svision_dask.network.model import Model
from svision_dask.omezarr import write
from svision_dask.running.pipeline import enhance_to_zarr, plan_volume
from svision_dask.volume import Volume
from svision_dask.wishes import Wishes
from tests.models import tiny

SHAPE = (16, 16, 192)
REGIONS = 12
SECONDS = 0.05

events: list[str] = []
"""In the order in which they happen."""


class SlowStore(WrapperStore[LocalStore]):
    """Takes its time for every chunk that is read or written."""

    async def get(self, key, prototype, byte_range=None):
        if "json" not in key:
            await asyncio.sleep(SECONDS)
        return await super().get(key, prototype, byte_range)

    async def set(self, key, value):
        await asyncio.sleep(SECONDS)
        await super().set(key, value)
        if self._store.root.name == "0":  # of the pyramid; others are checksums
            events.append("has written")


@pytest.fixture
def slow_volume(tmp_path) -> Volume:
    grid = Grid(axes="zyx", shape=SHAPE, spacing=(1.0,) * 3, origin=(0.0,) * 3, units=(None,) * 3)
    voxels = np.random.default_rng(0).integers(0, 1000, SHAPE).astype("u2")
    zarr.create_array(tmp_path / "coarse", data=voxels, chunks=(16,) * 3)
    return Volume.from_source(zarr.open_array(SlowStore(LocalStore(tmp_path / "coarse"))), grid, chunks=(16,) * 3)


@pytest.fixture
def noted(monkeypatch) -> None:
    """Have outputs written to a slow store, and forward passes noted, too."""
    opened, refine = write.store_at, Model.refine

    def refined(self, *given, **options):
        events.append("computes")
        fine = refine(self, *given, **options)
        events.append("has computed")
        return fine

    monkeypatch.setattr(write, "store_at", lambda place: SlowStore(LocalStore(opened(place))))
    monkeypatch.setattr(Model, "refine", refined)
    events.clear()


def read_ahead() -> Iterator[int]:
    """For each region that has been written: how many others, not yet written, had been read and begun by then."""
    begun = written = 0
    for event in events:
        begun += event == "computes"
        if event == "has written":
            written += 1
            yield begun - written


@pytest.mark.parametrize("seats", [1, 3])
def test_regions_are_read_and_computed_while_another_is_written(seats, slow_volume, noted, tmp_path):
    model, shard = tiny((2, 2, 2)), dict.fromkeys("zyx", 32)
    wishes = Wishes(shard=shard, chunk=shard, pyramid="none")
    with Client(n_workers=1, threads_per_worker=seats, processes=False, dashboard_address="127.0.0.1:0") as client:
        plan = plan_volume(slow_volume, model.architecture, client=client, wishes=wishes)
        assert (plan.seats, len(plan.regions)) == (seats, REGIONS)
        enhance_to_zarr(slow_volume, tmp_path / "fine.zarr", model=model, plan=plan, client=client)
    ahead = list(read_ahead())
    assert len(ahead) == events.count("computes") == REGIONS
    assert max(ahead) <= seats - 1
    if seats > 1:
        assert sum(n > 0 for n in ahead) >= REGIONS // 2
    assert_one_at_a_time("computes", "has computed")


def assert_one_at_a_time(begins: str, ends: str) -> None:
    """Check that nothing of a kind begins before the one before it has ended."""
    steps = [event for event in events if event in (begins, ends)]
    assert steps == [begins, ends] * (len(steps) // 2)
