"""How fast: the network, volumes in memory, OME-Zarr to OME-Zarr, and the same work done in other ways.

Run ``python benchmarks/speed.py``; it writes ``benchmarks/results/speed.json`` and, from that, ``speed.md``. Give
``--parts`` for some of it: what was measured before stays in the file. Every figure is the median of several runs;
those that are compared take turns. Rates are fine voxels per second, halos not counted. MONAI is compared with where
it is installed. The volume is the two-photon dendrite, or a simulated one where that is not there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from distributed import Client
from environment import environment
from memory import small_model
from published import enhance_as_published
from quality import as_volume
from rows import RESULTS
from scipy.ndimage import zoom
from volumes import DATA

from svision_dask.backend import Backend, Precision, best_precision
from svision_dask.geometry import SPATIAL
from svision_dask.network.architecture import PRESETS, Architecture, Preset, network_axes
from svision_dask.network.model import Model, load_model
from svision_dask.opening.formats import open_volume
from svision_dask.running.cluster import local_client
from svision_dask.running.enhancement import enhance
from svision_dask.running.pipeline import copy_to_zarr, enhance_to_zarr, plan_volume
from svision_dask.simulation.simulate import Phantom
from svision_dask.training.train import train
from svision_dask.volume import mirror_pad
from svision_dask.wishes import Wishes

Voxels = npt.NDArray[Any]
Found = dict[str, Any]
REPEATS = 5
FACTORS = {"×2": (2, 2, 2), "×4": (4, 4, 4)}
STORED: Mapping[Preset, tuple[int, tuple[int, int], tuple[int, int]]] = {
    "fast": (REPEATS, (512, 512), (1024, 1536)),
    "best": (2, (512, 512), (512, 1024)),
}
"""How often; and coarse y and x of the two volumes whose difference is timed: whole rounds of regions, all alike."""
PUBLISHED_SHAPE = (16, 256, 256)
"""Where the published way is timed: some two minutes a run."""


def medians(work: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Run everything in turns; seconds per name. The first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def measured_volume() -> Voxels:
    """Read (64, 768, 768) voxels of 8 bits."""
    path = DATA / "2p_dendrite_rr30a_tp0" / "rr30a_tp0_ch2.ome.tif"
    if path.exists():
        return np.asarray(open_volume(path).voxels[:64])
    phantom = Phantom(shape=(128, 1536, 1536))
    return phantom.measured((slice(0, 64), slice(0, 768), slice(0, 768)), 2).clip(0, 255).astype(np.uint8)


def models(folder: Path, coarse: Voxels, presets: Sequence[Preset]) -> dict[str, Path]:
    """Train each preset for a few steps: speed does not depend on what was learned, and compression hardly."""
    paths = {}
    for preset in presets:
        for name, factor in FACTORS.items():
            if name == "×2" and preset != "paper":
                model = train(as_volume(coarse[:48, :128, :128].astype(np.float32)), preset=preset, steps=40)
            else:
                model = small_model(factor, "zyx", preset)
            paths[f"{preset} {name}"] = model.save(folder / f"{preset}{factor[0]}.safetensors")
    return paths


def ceilings(paths: Mapping[str, Path], coarse: Voxels) -> Found:
    """Measure what the machine can do at most: large products of matrices, and copies."""
    size, found = 4096, {}
    for precision in dict.fromkeys(["float32", best_precision("cpu")]):
        a, b = (torch.randn(size, size).to(getattr(torch, precision)) for _ in range(2))
        found[f"{precision} GFLOP/s"] = 2 * size**3 / medians({"": partial(torch.matmul, a, b)}, 3)[""] / 1e9
    voxels = torch.randn(2**26)
    target = torch.empty_like(voxels)
    found["copy GB/s"] = 2 * voxels.nbytes / medians({"": partial(target.copy_, voxels)})[""] / 1e9
    return found


def operations(design: Architecture, tile: tuple[int, int, int]) -> float:
    """Count multiplications and additions of the convolutions of one forward pass over ``tile``."""
    total, size = 0.0, [t + 2 * h for t, h in zip(tile, design.halo, strict=True)]
    for stage in design.stages:
        inner, axes = list(size), network_axes(stage, design.axes)
        widths = (1, *(layer.channels for layer in stage.layers))
        for layer, (inputs, outputs) in zip(stage.layers, pairwise(widths), strict=True):
            inner = [n - (layer.kernel - 1) * (a in axes) for n, a in zip(inner, SPATIAL, strict=True)]
            total += 2 * np.prod(inner, dtype=float) * inputs // layer.groups * outputs * layer.kernel ** len(axes)
        reach = Architecture(axes=design.axes, stages=(stage,)).halo
        size = [f * (n - 2 * r) for n, r, f in zip(size, reach, stage.factor, strict=True)]
    return total * (8 if design.stages[0].ensemble else 1)


def refine_for(path: str, tile: tuple[int, int, int], precision: Precision, seconds: float) -> float:
    """Make one tile again and again, in a worker; returns fine voxels per second."""
    torch.set_num_threads(1)
    model, backend = load_model(path), Backend(precision=precision)
    haloed = np.random.default_rng(0).random([t + 2 * h for t, h in zip(tile, model.halo, strict=True)], np.float32)
    model.refine(haloed, backend=backend)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        model.refine(haloed, backend=backend)
        count += 1
    fine = np.prod([t * f for t, f in zip(tile, model.factor, strict=True)], dtype=float)
    return float(count * fine / (time.perf_counter() - started))


def network(paths: Mapping[str, Path], coarse: Voxels) -> Found:
    """Time tiles without any reading and writing, one process per core, as regions are made."""
    found: Found = {}
    for name, path in paths.items():
        model = load_model(path)
        wishes = Wishes(tile=dict.fromkeys("zyx", 48)) if "paper" in name else None  # it would take minutes
        plan = plan_volume(as_volume(coarse), model.architecture, wishes=wishes)
        with local_client(workers=plan.workers, memory_bytes=plan.memory_bytes) as client:
            for precision in dict.fromkeys([best_precision("cpu"), *["float32"] * ("×2" in name)]):
                rates = [_together(client, str(path), plan.tile, precision) for _ in range(3)]
                rate = statistics.median(rates)
                per_voxel = operations(model.architecture, plan.tile) / (np.prod(plan.tile) * np.prod(model.factor))
                found[f"{name}, {precision}"] = {
                    "tile": plan.tile,
                    "halo": model.halo,
                    "fine voxels/s": rate,
                    "GFLOP/s": rate * per_voxel / 1e9,
                    "share of the time in convolutions": _share(model, plan.tile, precision),
                }
                print(name, precision, f"{rate / 1e6:.1f} M/s", flush=True)
    return found


def _together(client: Client, path: str, tile: tuple[int, ...], precision: str) -> float:
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    jobs = [client.submit(refine_for, path, tile, precision, 2.0, workers=[w], pure=False) for w in workers]
    return sum(client.gather(jobs))


def _share(model: Model, tile: tuple[int, int, int], precision: Precision) -> float:
    haloed = np.random.default_rng(0).random([t + 2 * h for t, h in zip(tile, model.halo, strict=True)], np.float32)
    torch.set_num_threads(1)
    model.refine(haloed, backend=Backend(precision=precision))
    started = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model.refine(haloed, backend=Backend(precision=precision))
    total = time.perf_counter() - started
    torch.set_num_threads(os.cpu_count() or 1)
    spent = sum(event.self_cpu_time_total for event in profile.key_averages() if "convolution" in event.key)
    return float(spent / 1e6 / total)


def plain(model: Model, haloed: Voxels) -> None:
    """Run the layers of a model as anyone would write them down: single precision, torch's own layout."""
    steps = torch.nn.Sequential(*[_plain_step(step) for step in model.stages[0].network.steps])
    with torch.inference_mode():
        steps(torch.from_numpy(haloed)[None, None])


def _plain_step(step: torch.nn.Module) -> torch.nn.Module:
    if not isinstance(step, torch.nn.Conv3d):
        return torch.nn.LeakyReLU(step.negative_slope) if isinstance(step, torch.nn.LeakyReLU) else step
    copy = torch.nn.Conv3d(step.in_channels, step.out_channels, step.kernel_size, groups=step.groups)
    copy.load_state_dict({name: value.contiguous() for name, value in step.state_dict().items()})
    return copy


def peers(paths: Mapping[str, Path], coarse: Voxels) -> Found:
    """Compare with other ways to do the same, in one process with all cores."""
    voxels = coarse.astype(np.float32)
    part = voxels[:48, :192, :192]
    fast, paper = (load_model(paths[f"{preset} ×2"]) for preset in ("fast", "paper"))
    half = Backend(precision=best_precision("cpu"))
    haloed = mirror_pad(part, fast.halo)
    work: dict[str, Callable[[], Any]] = {
        "fast, one forward pass": lambda: fast.refine(haloed, backend=half),
        "fast, one forward pass in float32": lambda: fast.refine(haloed),
        "its layers, plain": lambda: plain(fast, haloed),
        "fast, one da.map_overlap": lambda: _overlapped(fast, part, half),
        "scipy.ndimage.zoom, cubic": lambda: zoom(part, 2, order=3),
    }
    if importlib.util.find_spec("monai"):
        work["fast, MONAI sliding_window_inference"] = lambda: _sliding(fast, part)
    rates = {name: 8 * part.size / seconds for name, seconds in medians(work).items()}
    small = np.ascontiguousarray(voxels[: PUBLISHED_SHAPE[0], : PUBLISHED_SHAPE[1], : PUBLISHED_SHAPE[2]])
    seconds = medians({"": lambda: enhance_as_published(paper, small)}, 2)[""]
    return {**rates, "the published way": 8 * small.size / seconds}


def _overlapped(model: Model, voxels: Voxels, backend: Backend) -> None:
    volume = as_volume(voxels)
    enhance(volume, model, tile={"z": 48, "y": 64, "x": 64}, backend=backend).voxels.compute(scheduler="threads")


def _sliding(model: Model, voxels: Voxels) -> None:
    """Use the same network in windows that overlap by a quarter; each is padded, so that windows do not shrink."""
    from monai.inferers import sliding_window_inference

    (stage,) = model.stages
    margin = [n for h in reversed(model.halo) for n in (h, h)]
    with torch.inference_mode():
        sliding_window_inference(
            torch.from_numpy(voxels)[None, None],
            roi_size=(48, 64, 64),
            sw_batch_size=1,
            predictor=lambda window: stage(torch.nn.functional.pad(window, margin, mode="replicate")),
            overlap=0.25,
        )


def storage(paths: Mapping[str, Path], coarse: Voxels) -> Found:
    """Time OME-Zarr to OME-Zarr, pyramid included; what a run takes whatever its size is left out."""
    found: Found = {}
    for preset, (repeats, *sizes) in STORED.items():
        if f"{preset} ×2" not in paths:
            continue
        model = load_model(paths[f"{preset} ×2"])
        with tempfile.TemporaryDirectory() as name:
            folder, voxels = Path(name), {}
            for size, (y, x) in zip(("small", "large"), sizes, strict=True):
                lacking = [(0, 0), *((0, max(0, n - m)) for n, m in zip((y, x), coarse.shape[1:], strict=True))]
                crop = np.pad(coarse, lacking, mode="symmetric")[:, :y, :x]
                copy_to_zarr(as_volume(crop), folder / f"{size}.ome.zarr")
                voxels[size] = 8 * crop.size
            seconds = medians({size: partial(_enhanced, folder, size, model) for size in voxels}, repeats)
            rate = (voxels["large"] - voxels["small"]) / (seconds["large"] - seconds["small"])
            found[f"{preset} ×2"] = {
                "fine voxels/s": rate,
                "fine voxels": voxels,
                "seconds": seconds,
                "parts": _parts(folder, model),
            }
        print(preset, f"OME-Zarr to OME-Zarr {rate / 1e6:.1f} M/s", flush=True)
    return found


def _enhanced(folder: Path, size: str, model: Model) -> None:
    output = folder / "out.ome.zarr"
    enhance_to_zarr(folder / f"{size}.ome.zarr", output, model=model, overwrite=output.exists(), wishes=Wishes())


def _parts(folder: Path, model: Model) -> dict[str, float]:
    """Split one large run into its levels: level 0 is the enhancement, the others are the pyramid."""
    ends: dict[int, float] = {}
    started: list[float] = []

    def note(progress: Any) -> None:
        started.append(progress.seconds)
        ends[progress.level] = progress.seconds

    output = folder / "out.ome.zarr"
    enhance_to_zarr(folder / "large.ome.zarr", output, model=model, overwrite=True, on_progress=note)
    return {"enhancement": ends[0] - started[0], "pyramid": ends[max(ends)] - ends[0]}


PARTS: Mapping[str, Callable[[Mapping[str, Path], Voxels], Found]] = {
    "ceilings": ceilings,
    "network": network,
    "peers": peers,
    "storage": storage,
}


def table(found: Mapping[str, Found]) -> str:
    """Write what was found as Markdown."""
    lines = ["# Speed", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    published = found.get("peers", {}).get("the published way")
    if "ceilings" in found:
        lines += [
            "Ceilings: " + ", ".join(f"{name} {value:.0f}" for name, value in found["ceilings"].items()) + ".",
            "",
        ]
    if "network" in found:
        titles = ("network only", "M fine voxels/s", "GFLOP/s", "of the ceiling", "in convolutions", "tile", "halo")
        lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for name, row in found["network"].items():
            ceiling = found.get("ceilings", {}).get(f"{name.rpartition(', ')[2]} GFLOP/s")
            cells = (
                name,
                f"{row['fine voxels/s'] / 1e6:.2f}",
                f"{row['GFLOP/s']:.0f}",
                f"{row['GFLOP/s'] / ceiling:.0%}" if ceiling else "–",
                f"{row['share of the time in convolutions']:.0%}",
                *("×".join(map(str, row[key])) for key in ("tile", "halo")),
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    for part, title in (("peers", "in memory"), ("storage", "OME-Zarr to OME-Zarr")):
        if part in found:
            lines += [f"| {title} | M fine voxels/s | × the published way |", "|---" * 3 + "|"]
            for name, row in found[part].items():
                rate = row["fine voxels/s"] if part == "storage" else row
                ratio = f"{rate / published:.0f}" if published else "–"
                lines.append(f"| {name} | {rate / 1e6:.2f} | {ratio} |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for, and write both files after each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "speed.json")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    given = parser.parse_args()
    coarse = measured_volume()
    with tempfile.TemporaryDirectory() as folder:
        paths = models(Path(folder), coarse, given.presets)
        for part in given.parts:
            known = json.loads(given.output.read_text(encoding="utf-8")) if given.output.exists() else {}
            before = known.get("found", {})
            found = {**before, part: {**before.get(part, {}), **PARTS[part](paths, coarse)}}
            text = json.dumps({"environment": environment(), "found": found}, indent=1)
            given.output.write_text(text + "\n", encoding="utf-8")
            given.output.with_suffix(".md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
