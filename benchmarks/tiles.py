"""Does the rule by which tiles are chosen take fast ones? Forward passes over ever smaller tiles.

Run ``python benchmarks/tiles.py``; it writes ``benchmarks/results/tiles.json``. The first tile of each case is a
region, and each of the others one half of the one before. All of them take turns. On a processor the time is that of
one core at work, which depends less than that of a clock on what else the machine does; memory comes as it does in
workers, in huge pages.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from memory import small_model
from rows import RESULTS

from svision_dask.backend import Backend, Device, best_precision
from svision_dask.geometry import Shape
from svision_dask.plan import halved, lighter_tile
from svision_dask.running.cluster import MEMORY_KEPT


@dataclass(frozen=True)
class Case:
    """A model, and the region that it is applied to."""

    preset: Any
    region: Shape
    """Coarse voxels (z, y, x)."""
    factor: Shape = (2, 2, 2)


CASES = {
    "fast": Case("fast", (128, 128, 128)),
    "fast, planes": Case("fast", (1, 2048, 4096), factor=(2, 2)),
    "fast, ×1×2×2": Case("fast", (128, 128, 256), factor=(1, 2, 2)),
    "fast ×4": Case("fast", (64, 64, 64), factor=(4, 4, 4)),
    "best": Case("best", (128, 128, 128)),
    "best, planes": Case("best", (1, 2048, 2048), factor=(2, 2)),
    "paper": Case("paper", (64, 64, 64)),  # 128³ would take minutes, and more memory than most workers have
}
HALVINGS = 5
REPEATS = 5


def tiles_of(region: Shape, halo: Shape) -> list[Shape]:
    """List a region and what comes of halving it, again and again."""
    tiles = [region]
    while len(tiles) <= HALVINGS and (smaller := halved(tiles[-1], halo)) is not None:
        tiles.append(smaller)
    return tiles


def seconds(work: Sequence[Callable[[], Any]], device: Device, repeats: int) -> list[float]:
    """Run everything in turns, and once before that; median seconds of each."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    spent: list[list[float]] = [[] for _ in work]
    for _ in range(repeats + 1):
        for run, times in zip(work, spent, strict=True):
            started = clock()
            run()  # it ends when its result is in the memory of the process
            times.append(clock() - started)
    return [statistics.median(times[1:]) for times in spent]


def measure(case: Case, device: Device, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Enhance tiles; fine voxels per second of each, halo not counted, and as a share of the first."""
    axes = "zyx"[-len(case.factor) :]
    model = small_model(case.factor, axes, case.preset)
    backend = Backend(device=device, precision=best_precision(device))
    tiles = tiles_of(case.region, model.halo)
    half = backend.precision != "float32"
    light = lighter_tile(case.region, model.halo, partial(model.architecture.tile_bytes, half=half))
    random = np.random.default_rng(0)
    blocks = [
        random.random([t + 2 * h for t, h in zip(tile, model.halo, strict=True)], dtype=np.float32) for tile in tiles
    ]
    work = [lambda block=block: model.refine(block, backend=backend) for block in blocks]
    times = seconds(work, device, repeats)
    voxels = [math.prod(case.factor) * math.prod(tile) for tile in tiles]
    rates = [n / spent for n, spent in zip(voxels, times, strict=True)]
    return [
        {
            "tile": tile,
            "precision": backend.precision,
            "fine voxels/s": rate,
            "of the first": rate / rates[0],
            "planned": tile == (light if device == "cpu" else case.region),
        }
        for tile, rate in zip(tiles, rates, strict=True)
    ]


def main() -> None:
    """Measure each preset, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "tiles.json")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    given = parser.parse_args()
    if not MEMORY_KEPT.items() <= os.environ.items():  # the C library reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MEMORY_KEPT})
    torch.set_num_threads(1)  # as many as a worker has where there is one for each core
    found = json.loads(given.output.read_text())["found"] if given.output.exists() else {}
    for name in given.cases:
        found[name] = measure(CASES[name], given.device, given.repeats)
        for row in found[name]:
            print(name, row, flush=True)
        given.output.write_text(json.dumps({"environment": environment(), "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
