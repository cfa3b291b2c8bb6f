"""What it costs to run regions on a cluster: time per region, memory of the client, scaling; and how fast it begins.

Run ``python benchmarks/runner.py``; it writes ``benchmarks/results/runner.json``. Give ``--parts`` for some of it: what
was measured before stays in the file. Volumes are computed where they are read, so they may have any size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import Client
from environment import environment
from memory import Ramp, peak_bytes, ramp_volume, small_model
from rows import RESULTS

from svision_dask.geometry import Grid, Region, Regions
from svision_dask.network.model import Model
from svision_dask.omezarr.write import create_store
from svision_dask.plan import Plan
from svision_dask.running.cluster import local_client, this_machine
from svision_dask.running.ledger import Receipt, claim
from svision_dask.running.pipeline import enhance_to_zarr, plan_volume
from svision_dask.running.regions import EnhanceTask
from svision_dask.running.scheduling import RegionTask, run_regions
from svision_dask.volume import Volume
from svision_dask.wishes import Wishes

MIB = 2**20
REPEATS = 3
WORKER_BYTES = 2 * 2**30


@dataclass(frozen=True)
class NoOp:
    """A region that takes as long as it is told, and leaves nothing."""

    seconds: float = 0.0

    def __call__(self, region: Region) -> Receipt:
        """Wait."""
        time.sleep(self.seconds)
        return Receipt(level=0, index=region.index, start=region.start, low=0, high=0, voxels=1, crc32=0)


@dataclass(frozen=True)
class Timed:
    """Adds the seconds that a region took to a file."""

    task: RegionTask
    folder: Path

    def __call__(self, region: Region) -> Receipt:
        """Make the region."""
        started = time.perf_counter()
        receipt = self.task(region)
        (self.folder / str(region.index)).write_text(str(time.perf_counter() - started))
        return receipt


@dataclass(frozen=True)
class Watched(Ramp):
    """Notes when a region of it was first read."""

    note: Path

    def __getitem__(self, box: Any) -> np.ndarray:
        """Make a box."""
        if box[-1].stop - box[-1].start > 1 and not self.note.exists():  # one voxel is a trial of the worker
            self.note.write_text(str(time.time()))
        return super().__getitem__(box)


def run_noted(client: Client, task: RegionTask, count: int, folder: Path, seats: int = 1) -> float:
    """Run regions with their receipts, as an image is made; returns seconds."""
    with claim(folder / "noted.zarr") as ledger:
        ledger.begin({"input": "none"}, [count])
        started = time.perf_counter()
        regions = Regions(shape=(count,), unit=(1,))
        run_regions(client, task, ledger.left(0, regions), on_receipt=ledger.add, seats=seats)
        return time.perf_counter() - started


def overhead(folder: Path) -> dict[str, Any]:
    """Seconds per region that does nothing, on two workers of this machine."""
    with local_client(workers=2, memory_bytes=WORKER_BYTES) as client:
        run_noted(client, NoOp(), 50, folder)
        measured = [run_noted(client, NoOp(), 1000, folder) / 1000 for _ in range(REPEATS)]
    return {"milliseconds_per_region": 1000 * statistics.median(measured), "regions": 1000}


def client_memory(folder: Path) -> dict[str, Any]:
    """Memory of the process of client and scheduler, idle and after 10⁴ and 10⁵ regions that do nothing."""
    process, found = psutil.Process(), {}
    with local_client(workers=2, memory_bytes=WORKER_BYTES) as client:
        run_noted(client, NoOp(), 50, folder)
        idle = process.memory_info().rss
        for count in (10**4, 10**5):
            run_noted(client, NoOp(), count, folder)
            found[f"mib_above_idle_after_{count}"] = (process.memory_info().rss - idle) / MIB
    return found


def beginning(folder: Path) -> dict[str, Any]:
    """Seconds until a plan is made for 10¹² voxels, and until the first region of it is read: 10⁷ chunks and more."""
    side, note = 10**4, folder / "first"
    shape = (side,) * 3
    grid = Grid(axes="zyx", shape=shape, spacing=(1.0,) * 3, origin=(0.0,) * 3, units=(None,) * 3)
    source = Watched(shape, np.dtype("uint8"), note)
    volume = Volume.from_source(source, grid, chunks=(256,) * 3, name="ramp")
    model = small_model((2, 2, 2), "zyx", "fast")
    started = time.perf_counter()
    machine = replace(this_machine(), disk_free_bytes=None)
    plan = plan_volume(volume, model.architecture, machine=machine)
    planned = time.perf_counter() - started
    process = psutil.Process()

    class Enough(Exception):
        pass

    def stop(progress: Any) -> None:
        raise Enough

    with local_client(workers=2, memory_bytes=plan.memory_bytes) as client:
        run_noted(client, NoOp(), 10, folder)
        idle, begun = process.memory_info().rss, time.time()
        with contextlib.suppress(Enough):
            enhance_to_zarr(volume, folder / "huge.zarr", model=model, plan=plan, client=client, on_progress=stop)
        grown = process.memory_info().rss - idle
    chunks = int(np.prod([-(-n // c) for n, c in zip(plan.fine.shape, plan.chunk, strict=True)]))
    return {
        "voxels": side**3,
        "output_chunks": chunks,
        "regions": len(plan.regions),
        "plan_seconds": planned,
        "first_region_seconds": float(note.read_text()) - begun,
        "client_mib_above_idle": grown / MIB,
    }


def enhancing(folder: Path, shape: tuple[int, ...], wishes: Wishes) -> tuple[Volume, Model, Plan, EnhanceTask]:
    """Get everything ready to make regions of level 0."""
    volume, model = ramp_volume(shape, "uint16"), small_model((2, 2, 2), "zyx", "fast")
    machine = replace(this_machine(), disk_free_bytes=None)
    plan = plan_volume(volume, model.architecture, wishes=wishes, machine=machine)
    path = model.save(folder / "model.safetensors")
    output = folder / f"fine{time.time_ns()}.zarr"
    create_store(output, [plan.fine], dtype=plan.dtype, chunks=plan.chunk, shards=plan.shard, attributes={})
    task = EnhanceTask(volume=volume, model_path=str(path), model_digest=model.digest, output=str(output), plan=plan)
    return volume, model, plan, task


def share(folder: Path) -> dict[str, Any]:
    """Share of a worker's time that is spent in regions, and how much faster two workers are than one.

    The cores may share caches, memory and more: how much faster two processes are that have nothing to do with each
    other, and make one tile again and again, is the ceiling.
    """
    times: dict[int, list[float]] = {1: [], 2: []}
    shares = []
    for _ in range(REPEATS):
        for workers in times:
            wishes = Wishes(tile=dict.fromkeys("zyx", 64), workers=workers, threads=1)
            _, _, plan, task = enhancing(folder, (256, 384, 256), wishes)
            notes = Path(tempfile.mkdtemp(dir=folder))
            with local_client(workers=workers, memory_bytes=plan.memory_bytes) as client:
                client.gather(client.map(_load, [task] * workers, workers=list(client.nthreads()), pure=False))
                started = time.perf_counter()
                run_regions(client, Timed(task, notes), plan.regions, on_receipt=lambda receipt: None)
                wall = time.perf_counter() - started
            times[workers].append(wall)
            if workers == 1:
                shares.append(sum(float(note.read_text()) for note in notes.iterdir()) / wall)
    with local_client(workers=2, memory_bytes=plan.memory_bytes) as client:
        first, second = client.nthreads()
        ceilings = []
        for _ in range(REPEATS):
            alone = client.submit(_tiles, task, workers=[first], pure=False).result()
            both = [client.submit(_tiles, task, workers=[worker], pure=False) for worker in (first, second)]
            ceilings.append(2 * alone / max(client.gather(both)))
    return {
        "regions": len(plan.regions),
        "share_in_regions": statistics.median(shares),
        "seconds": times,
        "ceiling": statistics.median(ceilings),
        "two_workers_against_one": statistics.median(a / b for a, b in zip(times[1], times[2], strict=True)),
    }


def _load(task: EnhanceTask) -> None:
    """Import what a worker needs, and load the model, before the clock starts."""
    from svision_dask.network.model import load_model_once

    load_model_once(task.model_path, task.model_digest).refine(np.zeros((30, 30, 30), np.float32))


def _tiles(task: EnhanceTask) -> float:
    """Make one tile again and again, in memory; returns seconds."""
    import torch

    from svision_dask.network.model import load_model_once

    torch.set_num_threads(1)
    model = load_model_once(task.model_path, task.model_digest)
    tile = np.random.default_rng(0).random([t + 2 * h for t, h in zip(task.plan.tile, task.plan.halo, strict=True)])
    model.refine(tile)
    started = time.perf_counter()
    for _ in range(8):
        model.refine(tile)
    return time.perf_counter() - started


def sleeping(folder: Path) -> dict[str, Any]:
    """Efficiency of 64 workers whose network sleeps as long as a region may take, against one."""
    found = {}
    for seconds in (0.5, 1.25):
        each = {}
        for workers in (1, 64):
            count = 8 * workers
            with Client(n_workers=workers, threads_per_worker=1, processes=False, memory_limit=0) as client:
                # All workers are threads of this process, which therefore has that many seats.
                run_noted(client, NoOp(), 2 * workers, folder, seats=workers)
                each[workers] = run_noted(client, NoOp(seconds), count, folder, seats=workers) / count
        found[f"efficiency_of_64_workers_at_{seconds}_s"] = each[1] / each[64] / 64
    return found


def flat(folder: Path) -> dict[str, Any]:
    """Peak memory of a worker that makes 24 regions of volumes of 1, 8 and 64 GB."""
    found = {}
    for gigabytes, shape in ((1, (512, 1024, 1024)), (8, (1024, 2048, 2048)), (64, (2048, 4096, 4096))):
        _, _, plan, task = enhancing(folder, shape, Wishes(tile=dict.fromkeys("zyx", 64), workers=1, threads=2))
        some = (plan.regions.at(i * (len(plan.regions) // 24)) for i in range(24))
        with local_client(workers=1, memory_bytes=plan.memory_bytes) as client:
            run_regions(client, task, some, on_receipt=lambda receipt: None)
            found[f"{gigabytes} GB"] = {
                "peak_mib": max(client.run(peak_bytes).values()) / MIB,
                "planned_mib": plan.worker_bytes / MIB,
            }
    return found


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "overhead": overhead,
    "beginning": beginning,
    "share": share,
    "sleeping": sleeping,
    "flat": flat,
    "client memory": client_memory,
}


def main() -> None:
    """Measure, and write the file after each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "runner.json")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    given = parser.parse_args()
    parts = json.loads(given.output.read_text())["parts"] if given.output.exists() else {}
    for name in given.parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[name] = PARTS[name](Path(folder))
        print(name, json.dumps(parts[name]), flush=True)
        given.output.write_text(json.dumps({"environment": environment(), "parts": parts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
