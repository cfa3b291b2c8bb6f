"""Does a worker stay within what the plan said? Peak resident memory, measured against planned, per preset and tile.

Run ``python benchmarks/memory.py``; it writes ``benchmarks/results/memory.json``. The volume is simulated zeros: no
bytes on disk, any size. Every row has a fresh worker, because a process never forgets its peak.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from svision_dask.geometry import Grid
from svision_dask.network.model import Model, Normalisation
from svision_dask.running.cluster import local_client, this_machine
from svision_dask.running.pipeline import enhance_to_zarr, plan_volume
from svision_dask.training.fitting import SETTINGS
from svision_dask.training.sample import Sample
from svision_dask.training.train import design_for, train_on_sample
from svision_dask.volume import Volume
from svision_dask.wishes import Wishes

RESULTS = Path(__file__).parent / "results" / "memory.json"


@dataclass(frozen=True)
class Ramp:
    """A volume of any size that is computed where it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, box: Any) -> np.ndarray:
        """Make a box: a ramp along the last axis."""
        sizes = [len(range(*s.indices(n))) for s, n in zip(box, self.shape, strict=True)]
        return np.broadcast_to(np.arange(sizes[-1]) % 1000, sizes).astype(self.dtype)


def ramp_volume(shape: tuple[int, ...], dtype: str) -> Volume:
    """Open a ramp lazily."""
    n = len(shape)
    grid = Grid(axes="zyx"[-n:], shape=shape, spacing=(1.0,) * n, origin=(0.0,) * n, units=(None,) * n)
    return Volume.from_source(Ramp(shape, np.dtype(dtype)), grid, chunks=tuple(min(256, s) for s in shape), name="ramp")


def small_model(factor: tuple[int, ...], axes: str, preset: Any) -> Model:
    """Train a model for one step: memory does not depend on what it learned."""
    design = design_for(axes, factor, preset=preset)
    size = tuple(32 if axis in axes else 1 for axis in "zyx")
    voxels = np.random.default_rng(0).random((1, *size), dtype=np.float32)
    sample = Sample(
        voxels=voxels,
        box=tuple(slice(0, n) for n in size),
        normalisation=(Normalisation(offset=0.5, scale=0.3),),
    )
    settings = replace(SETTINGS[preset], steps=1, batch=1, patch=tuple(min(8, n) for n in size))
    return train_on_sample(sample, design, settings, seed=0)


def peak_bytes() -> int:
    """Peak resident memory of this process, as Linux counts it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def measure(volume: Volume, model: Model, wishes: Wishes, *, dtype: str = "same") -> dict[str, Any]:
    """Enhance ``volume`` on one fresh worker; returns planned and measured peak in bytes."""
    plan = plan_volume(volume, model.architecture, dtype=dtype, wishes=wishes, machine=replace(this_machine(), cores=1))
    own = {"workers": 1, "memory_bytes": plan.memory_bytes, "seats": plan.seats}
    with tempfile.TemporaryDirectory() as folder, local_client(**own) as client:
        enhance_to_zarr(volume, Path(folder) / "out.ome.zarr", model=model, plan=plan, client=client)
        measured = max(client.run(peak_bytes).values())
    return {
        "tile": plan.tile,
        "region": plan.region,
        "halo": plan.halo,
        "seats": plan.seats,
        "planned": plan.worker_bytes,
        "measured": measured,
        "limit": plan.memory_bytes,
        "ratio": round(plan.worker_bytes / measured, 3),
        "volume_bytes": int(np.prod(volume.grid.shape)) * volume.dtype.itemsize,
    }


CASES: list[tuple[str, tuple[int, ...], tuple[int, ...], str, str, dict[str, int]]] = [
    ("fast", (2, 2, 2), (128, 256, 256), "uint16", "zyx", {}),
    ("fast", (2, 2, 2), (128, 256, 256), "uint16", "zyx", {"z": 64, "y": 64, "x": 64}),
    ("fast", (1, 2, 2), (70, 256, 256), "uint8", "zyx", {}),
    ("fast", (4, 4, 4), (64, 64, 64), "float32", "zyx", {}),
    ("fast", (2, 2), (4096, 4096), "uint16", "yx", {}),
    ("best", (2, 2, 2), (128, 128, 128), "uint16", "zyx", {}),
    ("paper", (2, 2, 2), (64, 128, 128), "uint16", "zyx", {}),
]


def main() -> None:
    """Measure all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    rows = []
    for preset, factor, shape, dtype, axes, tile in CASES:
        row = measure(ramp_volume(shape, dtype), small_model(factor, axes, preset), Wishes(tile=tile or None))
        rows.append({"preset": preset, "factor": factor, "shape": shape, "dtype": dtype, **row})
        print(json.dumps(rows[-1]), flush=True)
    from environment import environment

    parser.parse_args().output.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
