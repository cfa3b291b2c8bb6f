from __future__ import annotations

import numpy as np
import pytest

from benchmarks.memory import measure, ramp_volume, small_model
from svision_dask.network.architecture import Architecture, Layer, StageSpec
from svision_dask.wishes import Wishes
from tests.models import untrained

pytestmark = pytest.mark.usefixtures("fresh_workers")

MIB = 2**20


def test_a_volume_larger_than_the_workers_memory_is_enhanced_within_it() -> None:
    limit = 560 * MIB
    volume = ramp_volume((128, 640, 960), "float64")
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
