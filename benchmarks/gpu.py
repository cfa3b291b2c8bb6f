"""Everything about GPUs at once: whether they give what the processor gives, seams, memory, speed, a volume on workers.

Run ``python benchmarks/gpu.py`` where torch finds a GPU, for some minutes; it prints one table, and writes
``benchmarks/results/gpu.json``. Without one it says so and ends. ``--device cpu --small`` runs the same code on
a processor, to see that the script itself works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from environment import environment
from memory import ramp_volume, small_model
from rows import RESULTS
from tiles import Case
from tiles import measure as measure_tiles

from svision_dask.backend import PRECISIONS, Backend, Device, to_device, to_host
from svision_dask.geometry import Grid
from svision_dask.metrics import psnr
from svision_dask.network.architecture import PRESETS
from svision_dask.network.model import Model
from svision_dask.running.cluster import local_client, this_machine
from svision_dask.running.enhancement import enhance
from svision_dask.running.pipeline import enhance_to_zarr, plan_volume
from svision_dask.simulation.simulate import Phantom
from svision_dask.training.train import train
from svision_dask.volume import Volume, mirror_pad
from svision_dask.wishes import Wishes

REPEATS = 5
LIMITS = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 1e-2}
"""Of the range: how far a GPU may be from the processor in single precision."""


@dataclass(frozen=True)
class Row:
    """A check or a measurement."""

    what: str
    found: float | str
    wanted: str = ""
    passed: bool | None = None
    """None for measurements."""


def refined(model: Model, coarse: np.ndarray, backend: Backend) -> np.ndarray:
    """Enhance a whole volume in memory."""
    return model.refine(mirror_pad(coarse, model.halo), backend=backend)


def precisions(device: Device) -> list[str]:
    """List what a device computes in."""
    return [p for p in PRECISIONS if not (device == "cpu" and p == "float16")]


def synchronise(device: Device) -> None:
    """Wait for what was asked of a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def agreement(model: Model, coarse: np.ndarray, device: Device) -> list[Row]:
    """Compare with the processor, in every precision."""
    wanted, rows = refined(model, coarse, Backend()), []
    for precision in precisions(device):
        found = refined(model, coarse, Backend(device=device, precision=precision))
        error = float(np.abs(found - wanted).max() / np.ptp(wanted))
        rows.append(
            Row(
                f"{precision} against the processor, of the range",
                error,
                f"≤ {LIMITS[precision]}",
                error <= LIMITS[precision],
            )
        )
    return rows


def seams(model: Model, coarse: np.ndarray, device: Device) -> list[Row]:
    """Cut a volume in three ways: equal tiles give equal bits, others agree to rounding."""
    rows = []
    n = len(coarse.shape)
    grid = Grid(axes="zyx", shape=coarse.shape, spacing=(1.0,) * n, origin=(0.0,) * n, units=(None,) * n)
    volume = Volume.from_source(coarse, grid, chunks=tuple(max(1, s // 3) for s in coarse.shape))
    for precision in precisions(device):
        backend = Backend(device=device, precision=precision)

        def cut(tile: int, backend: Backend = backend) -> np.ndarray:
            lazy = enhance(volume, model, tile=dict.fromkeys("zyx", tile), backend=backend)
            return np.asarray(lazy.voxels.compute(scheduler="synchronous"))

        first, again, other = cut(24), cut(24), cut(32)
        rows.append(Row(f"{precision}, same tiles twice", "same bits", "same bits", np.array_equal(first, again)))
        error = float(np.abs(first - other).max() / np.ptp(first))
        limit = 2e-5 if precision == "float32" else LIMITS[precision]
        rows.append(Row(f"{precision}, other tiles, of the range", error, f"≤ {limit}", error <= limit))
    return rows


def learning(coarse: Volume, truth: np.ndarray, device: Device, steps: int | None) -> list[Row]:
    """Train on the device and on the processor; the networks differ, what they are worth must not."""
    found, rows = {}, []
    for where in dict.fromkeys((device, "cpu")):
        started = time.perf_counter()
        model = train(coarse, seed=0, steps=steps, device=where)
        rows.append(Row(f"training of fast on {where}, seconds", time.perf_counter() - started))
        fine = refined(model, coarse.read(tuple(slice(0, n) for n in coarse.grid.shape)), Backend())
        found[where] = psnr(fine, truth, data_range=float(np.ptp(truth)))
        rows.append(Row(f"trained on {where}, dB", found[where]))
    difference = abs(found[device] - found["cpu"])
    return [*rows, Row("trained on either, difference in dB", difference, "≤ 0.3", difference <= 0.3)]


def memory(model: Model, side: int, device: Device) -> list[Row]:
    """Compare what a tile takes on the GPU with what the plan counts."""
    if device == "cpu":
        return []
    tile = (side,) * 3
    planned, backend = model.architecture.tile_bytes(tile), Backend(device=device)
    voxels = np.zeros([n + 2 * h for n, h in zip(tile, model.halo, strict=True)], np.float32)
    model.refine(voxels, backend=backend)
    torch.cuda.reset_peak_memory_stats()
    model.refine(voxels, backend=backend)
    peak = torch.cuda.max_memory_allocated()
    return [Row(f"peak of a tile of {side}³ against the plan", peak / planned, "≤ 1.6", peak <= planned / 0.6)]


def speed(preset: Any, side: int, device: Device) -> list[Row]:
    """Measure fine voxels per second of one tile, voxels copied to the device and back included."""
    model, rows = small_model((2, 2, 2), "zyx", preset), []
    voxels = np.random.default_rng(0).random([side + 2 * h for h in model.halo], dtype=np.float32)
    for precision in precisions(device):
        backend, times = Backend(device=device, precision=precision), []
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            model.refine(voxels, backend=backend)
            synchronise(device)
            times.append(time.perf_counter() - started)
        rate = 8 * side**3 / statistics.median(times[1:]) / 1e6
        rows.append(Row(f"{preset}, tile of {side}³ in {precision}, M fine voxels/s", rate))
    return rows


def copies(side: int, device: Device) -> list[Row]:
    """Time a tile on its way to the device and its result on the way back, through pinned memory and without."""
    coarse, fine = (np.ones((n,) * 3, np.float32) for n in (side, 2 * side))
    computed = torch.from_numpy(fine).to(device)
    ways: dict[str, Callable[[], Any]] = {
        "pinned": lambda: (to_device(coarse, device), to_host(computed)),
        "pageable": lambda: (torch.from_numpy(coarse).to(device), computed.cpu()),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS + 1):
        for way, copy in ways.items():
            synchronise(device)
            started = time.perf_counter()
            copy()
            synchronise(device)
            times[way].append(time.perf_counter() - started)
    return [
        Row(f"tile of {side}³ to {device} and its result back, {way}, milliseconds", 1000 * statistics.median(each[1:]))
        for way, each in times.items()
    ]


def tiles(preset: Any, side: int, device: Device) -> list[Row]:
    """Compare smaller tiles with the largest, which the plan takes."""
    return [
        Row(f"{preset}, tile of {'×'.join(map(str, row['tile']))}, speed against the largest", row["of the first"])
        for row in measure_tiles(Case(preset, (side,) * 3), device)[1:]
    ]


def whole(shape: tuple[int, ...], device: Device, folder: Path, tile: int) -> list[Row]:
    """OME-Zarr of a volume larger than a worker's memory, on one worker and on two; equal to the processor's."""
    volume, model = ramp_volume(shape, "uint16"), small_model((2, 2, 2), "zyx", "fast")
    rows, arrays = [], {}
    for name, workers, where in (("one worker", 1, device), ("two workers", 2, device), ("the processor", 1, "cpu")):
        machine = this_machine(gpus=where == "cuda")
        if where == "cuda":  # two processes share a card where there is one
            machine = replace(machine, gpus=(min(machine.gpus) // workers,) * workers)
        wishes = Wishes(tile=dict.fromkeys("zyx", tile), device=where, precision="float32", workers=workers)
        plan = plan_volume(volume, model.architecture, wishes=wishes, machine=machine)
        gpus = [str(n % torch.cuda.device_count()) for n in range(workers)] if where == "cuda" else []
        with local_client(workers=workers, memory_bytes=plan.memory_bytes, seats=plan.seats, gpus=gpus) as client:
            started = time.perf_counter()
            output = folder / f"{name}.zarr"
            enhance_to_zarr(volume, output, model=model, plan=plan, client=client)
            seconds = time.perf_counter() - started
        arrays[name] = np.asarray(zarr.open_array(output / "0", mode="r")[...]).astype(np.int32)
        rows.append(Row(f"volume of {shape} on {name} ({where}), M fine voxels/s", arrays[name].size / seconds / 1e6))
    same = bool(np.array_equal(arrays["one worker"], arrays["two workers"]))
    rows.append(Row("one worker and two", "same voxels" if same else "other voxels", "same voxels", same))
    most = int(np.abs(arrays["one worker"] - arrays["the processor"]).max())
    return [*rows, Row("against the processor, steps of uint16", most, "≤ 1", most <= 1)]


def measure(device: Device, small: bool, folder: Path) -> list[Row]:
    """Run all parts; one that fails is a row, too."""
    side = 48 if small else 192
    phantom = Phantom(shape=(64, 128, 128) if small else (128, 512, 512), seed=0, photons=200)
    fine_box, coarse_box = (tuple(slice(0, n // f) for n in phantom.shape) for f in (1, 2))
    truth, measured = phantom.truth(fine_box), phantom.measured(coarse_box, 2).astype(np.float32)
    grid = Grid(axes="zyx", shape=measured.shape, spacing=(1.0,) * 3, origin=(0.0,) * 3, units=(None,) * 3)
    volume = Volume.from_source(measured, grid, chunks=measured.shape)
    model = train(volume, seed=0, steps=30 if small else None, device="cpu")
    crop = measured[:48, :64, :64]
    parts: list[Callable[[], list[Row]]] = [
        lambda: agreement(model, crop, device),
        lambda: seams(model, crop, device),
        lambda: memory(model, side, device),
        *[lambda preset=preset: speed(preset, side if preset != "paper" else side // 2, device) for preset in PRESETS],
        *[lambda preset=preset: tiles(preset, side if preset != "paper" else side // 2, device) for preset in PRESETS],
        lambda: copies(side, device),
        lambda: learning(volume, truth, device, 30 if small else None),
        lambda: whole((64, 96, 96) if small else (256, 512, 512), device, folder, 32 if small else 128),
    ]
    rows = []
    for part in parts:
        try:
            rows += part()
        except Exception as error:  # the others are worth having all the same
            rows.append(Row(f"failed: {type(error).__name__}: {error}", "", "", False))
        for row in rows[-1:]:
            print(asdict(row), flush=True)
    return rows


def main() -> None:
    """Run everything, print a table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU here; nothing was measured.")
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(given.device, given.small, Path(folder))
    for row in rows:
        mark = {None: "", True: "passed", False: "FAILED"}[row.passed]
        found = row.found if isinstance(row.found, str) else f"{row.found:.4g}"
        print(f"{row.what:70} {found:>14} {row.wanted:12} {mark}")
    name = torch.cuda.get_device_name() if given.device == "cuda" else "none"
    facts = {**environment(), "gpu": name}
    given.output.write_text(json.dumps({"environment": facts, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
