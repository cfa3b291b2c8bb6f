"""How much memory and time does comparing take? A pair of OME-Zarrs on a disk, of a billion fine voxels and of fewer.

Run ``python benchmarks/compare.py``; it writes ``benchmarks/results/compare.json``. Every row has a fresh process,
because one never forgets its peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory import peak_bytes

from svision_dask.geometry import Grid, Regions
from svision_dask.judging.comparison import compare
from svision_dask.judging.report import write_report
from svision_dask.network.baselines import cubic
from svision_dask.omezarr.write import create_store, open_level, publish

RESULTS = Path(__file__).parent / "results" / "compare.json"
SIDES = (250, 1000)
"""Fine voxels along z, y and x."""
FACTOR = (2, 2, 2)
PERIOD = 50
"""Coarse voxels after which the picture repeats."""
SHARD = 200


def pair(folder: Path, side: int) -> tuple[Path, Path]:
    """Write a coarse volume that repeats itself, and its interpolation with something invented."""
    rng = np.random.default_rng(0)
    block = rng.poisson(20 + 40 * rng.random((PERIOD,) * 3) ** 4).astype(np.float32)
    wrapped = np.pad(block, 8, mode="wrap")
    fine = cubic(wrapped, FACTOR)[16:-16, 16:-16, 16:-16]
    fine = fine + 3 * rng.standard_normal(fine.shape, dtype=np.float32)
    units = ("micrometer",) * 3
    grid = Grid(axes="zyx", shape=(side // 2,) * 3, spacing=(0.4,) * 3, origin=(0.0,) * 3, units=units)
    before = _repeat(folder / "before.ome.zarr", block, grid)
    return before, _repeat(folder / "after.ome.zarr", fine, grid.finer(FACTOR))


def _repeat(path: Path, block: np.ndarray, grid: Grid) -> Path:
    cut = {"chunks": (PERIOD * 2,) * 3, "shards": (SHARD,) * 3}
    create_store(path, [grid], dtype="uint8", attributes={}, **cut)
    array, times = open_level(path, 0, "r+"), -(-SHARD // len(block))
    shard = np.tile(np.clip(block.round(), 0, 255).astype(np.uint8), (times,) * 3)
    for region in Regions(shape=grid.shape, unit=(SHARD,) * 3):
        array[region.box] = shard[tuple(slice(0, s.stop - s.start) for s in region.box)]
    publish(path, [grid], name=path.stem, attributes={})
    return path


def measure(side: int, folder: Path) -> dict[str, Any]:
    """Compare, then write the page; bytes are the peak of this process until then, and seconds the time of each."""
    before, after = pair(folder, side)
    reports: list[int] = []
    empty = peak_bytes()
    started = time.monotonic()
    found = compare(before, after, degrade="cubic", on_progress=lambda done, total: reports.append(done))
    compared = time.monotonic()
    figures = {"seconds": round(compared - started, 1), "peak_bytes": peak_bytes()}
    page = write_report(found, folder / "report.html")
    return {
        "side": side,
        "fine_voxels": side**3,
        "peak_bytes_before_comparing": empty,
        **figures,
        "seconds_of_the_page": round(time.monotonic() - compared, 1),
        "peak_bytes_with_the_page": peak_bytes(),
        "page_bytes": page.stat().st_size,
        "reports_of_progress": len(reports),
    }


def main() -> None:
    """Measure both pairs, each in a process of its own, or the one of ``--side`` in this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--side", type=int)
    given = parser.parse_args()
    if given.side:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(given.side, Path(folder))))
        return
    from environment import environment

    rows = []
    for side in SIDES:
        command = [sys.executable, __file__, "--side", str(side)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    given.output.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
