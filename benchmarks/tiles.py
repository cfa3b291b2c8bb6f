"""Would measuring tiles beat the rule, which takes the largest that fits? Forward passes over ever smaller tiles.

Run ``python benchmarks/tiles.py``; it writes ``benchmarks/results/tiles.json``. The first tile of each preset is a
region, what the rule takes where memory allows; each of the others is one half of the one before. All of them take
turns. On a processor the time is that of one core at work, which depends less than that of a clock on what else the
machine does; memory comes as it does in workers, in huge pages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from memory import small_model
from rows import RESULTS

from svision_dask.backend import Backend, Device, best_precision
from svision_dask.geometry import Shape
from svision_dask.network.architecture import PRESETS
from svision_dask.plan import largest_tile
from svision_dask.running.cluster import HUGE_PAGES

REGION = {"fast": 128, "best": 128, "paper": 64}
"""Coarse voxels per side of the first tile; with ``paper``, 128 would take minutes, and more than most workers have."""
HALVINGS = 5
REPEATS = 3


def halved(tile: Shape, halo: Shape, times: int) -> list[Shape]:
    """List a tile and what the plan would take in its place, one after the other, where memory is short."""
    tiles: list[Shape] = [tile]
    while len(tiles) <= times:
        smaller = largest_tile(tiles[-1], halo, lambda size: size != tiles[-1])
        if smaller is None:
            break
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


def measure(preset: Any, side: int, device: Device, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Enhance tiles; fine voxels per second of each, halo not counted, and as a share of the first."""
    model, backend = small_model((2, 2, 2), "zyx", preset), Backend(device=device, precision=best_precision(device))
    tiles = halved((side,) * 3, model.halo, HALVINGS)
    random = np.random.default_rng(0)
    blocks = [
        random.random([t + 2 * h for t, h in zip(tile, model.halo, strict=True)], dtype=np.float32) for tile in tiles
    ]
    work = [lambda block=block: model.refine(block, backend=backend) for block in blocks]
    times = seconds(work, device, repeats)
    rates = [8 * float(np.prod(tile)) / spent for tile, spent in zip(tiles, times, strict=True)]
    return [
        {"tile": tile, "precision": backend.precision, "fine voxels/s": rate, "of the first": rate / rates[0]}
        for tile, rate in zip(tiles, rates, strict=True)
    ]


def main() -> None:
    """Measure each preset, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "tiles.json")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    given = parser.parse_args()
    if not HUGE_PAGES.items() <= os.environ.items():  # the C library reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **HUGE_PAGES})
    torch.set_num_threads(1)  # as many as a worker has where there is one for each core
    found = json.loads(given.output.read_text())["found"] if given.output.exists() else {}
    for preset in given.presets:
        found[preset] = measure(preset, REGION[preset], given.device, given.repeats)
        for row in found[preset]:
            print(preset, row, flush=True)
        given.output.write_text(json.dumps({"environment": environment(), "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
