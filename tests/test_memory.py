from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks.memory import measure, ramp_volume, small_model
from svision_dask.backend import process_bytes
from svision_dask.geometry import Grid
from svision_dask.judging import scan
from svision_dask.judging.comparison import compare
from svision_dask.network.architecture import Architecture, Layer, StageSpec
from svision_dask.volume import Volume
from svision_dask.wishes import Wishes
from tests.models import untrained

pytestmark = pytest.mark.usefixtures("fresh_workers")

MIB = 2**20


def test_a_volume_larger_than_the_workers_memory_is_enhanced_within_it() -> None:
    limit = process_bytes() + 192 * MIB
    volume = ramp_volume((128, 704, 960 * -(-limit // (660 * MIB))), "float64")
    layers = (Layer(kernel=3, channels=4), Layer(kernel=3, channels=2))
    stage = StageSpec(factor=(1, 1, 2), layers=layers, back_projections=0, kernel_radius=0, ensemble=False)
    model = untrained(Architecture(axes="zyx", stages=(stage,)))
    result = measure(volume, model, Wishes(worker_memory_bytes=limit), dtype="float32")
    assert result["volume_bytes"] > limit == result["limit"]
    assert result["measured"] <= result["planned"] <= limit
    assert result["planned"] <= 2 * result["measured"]


def test_the_plan_bounds_what_large_tiles_take() -> None:
    volume = ramp_volume((96, 192, 192), "uint16")
    result = measure(volume, small_model((2, 2, 2), "zyx", "fast"), Wishes(tile={"z": 96, "y": 96, "x": 96}))
    assert result["measured"] <= result["planned"] <= 2 * result["measured"]
    assert np.prod(result["tile"]) >= 64**3


@dataclass(frozen=True)
class Waves:
    """A volume that is computed where it is read, alike everywhere."""

    shape: tuple[int, ...]
    dtype = np.dtype("float32")

    def __getitem__(self, box):
        rows = np.ogrid[box]
        return np.asarray(100 + sum(np.sin(0.7 * row) for row in rows) * 10, "float32")


def test_comparing_takes_no_more_memory_for_a_larger_volume(monkeypatch) -> None:
    monkeypatch.setattr(scan, "SIDE", 32)
    monkeypatch.setattr(scan, "SAMPLED", 2**15)
    monkeypatch.setattr(scan, "PLACE", (16, 32, 32))
    peaks, done = [], []
    for side in (64, 64, 256):  # the first time, more is imported
        shape = (32, side, side)
        grid = Grid(axes="zyx", shape=shape, spacing=(1.0,) * 3, origin=(0.0,) * 3, units=("micrometer",) * 3)
        fine = grid.finer((1, 2, 2))
        pair = [Volume.from_source(Waves(each.shape), each, chunks=(32, 32, 32)) for each in (grid, fine)]
        tracemalloc.start()
        compare(*pair, degrade="cubic", on_progress=lambda *counts: done.append(counts))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]  # of sixteen times the voxels
    assert peaks[2] < 32 * 512 * 512 * 4 / 4  # a quarter of the fine volume
    assert done[-2:] == [(255, 256), (256, 256)]
