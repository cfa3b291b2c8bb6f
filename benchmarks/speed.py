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
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from distributed import Client
from environment import environment
from memory import peak_bytes, small_model
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
Size = tuple[int, int, int]
STORED: Mapping[str, tuple[int, Size, Size]] = {
    "fast ×2": (REPEATS, (64, 512, 512), (64, 1024, 1536)),
    "fast ×4": (3, (64, 256, 256), (64, 512, 512)),
    "best ×2": (2, (64, 512, 512), (64, 512, 1024)),
    "best ×4": (1, (64, 256, 256), (64, 256, 512)),
    "paper ×2": (1, (96, 96, 192), (96, 192, 384)),
    "paper ×4": (1, (48, 96, 96), (48, 96, 192)),
}
"""How often; and coarse voxels of the two volumes whose difference is timed: whole rounds of regions, all alike."""
LONG = 30.0
"""Seconds of a first run from which on it counts like any other."""
PUBLISHED_SHAPE = (16, 256, 256)
"""Where the published way is timed: some two minutes a run."""


def medians(work: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Run everything in turns; seconds per name. A first round does not count, unless one run is as long as `LONG`."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    rounds = 0
    while rounds < repeats:
        for name, run in work.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
        rounds = len(seconds[name]) - (max(times[0] for times in seconds.values()) < LONG)
    return {name: statistics.median(times[-repeats:]) for name, times in seconds.items()}


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
        plan = plan_volume(as_volume(coarse), model.architecture, wishes=_wishes(name))
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
    return _convolving(profile) / total


def _convolving(profile: torch.profiler.profile) -> float:
    """Sum the seconds of convolutions."""
    return sum(event.self_cpu_time_total for event in profile.key_averages() if "convolution" in event.key) / 1e6


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
    for name in STORED:
        if name in paths:
            found[name] = _stored(name, load_model(paths[name]), coarse)
            print(name, f"OME-Zarr to OME-Zarr {found[name]['fine voxels/s'] / 1e6:.1f} M/s", flush=True)
    return found


def _stored(name: str, model: Model, coarse: Voxels) -> Found:
    repeats, *sizes = STORED[name]
    with tempfile.TemporaryDirectory() as folder:
        inputs, fine = [], []
        for shape in sizes:
            inputs.append(Path(folder) / f"{len(inputs)}.ome.zarr")
            copy_to_zarr(as_volume(_sized(coarse, shape)), inputs[-1])
            fine.append(math.prod(shape) * math.prod(model.factor))
        run = partial(_enhanced, output=Path(folder) / "out.ome.zarr", model=model)
        wishes, last = _wishes(name), dict[str, Any]()
        work: dict[str, Callable[[], Any]] = {
            "small": lambda: run(inputs[0], wishes),
            "large": lambda: last.update(run(inputs[1], wishes)),
        }
        if repeats > 2:  # where the network takes nearly all of the time, what the rest takes is lost in the noise
            work["large, no pyramid"] = lambda: run(inputs[1], replace(wishes, pyramid="none"))
        seconds = medians(work, repeats)
    rate = (fine[1] - fine[0]) / (seconds["large"] - seconds["small"])
    return {
        "fine voxels/s": rate,
        "coarse bytes/s": coarse.itemsize * rate / math.prod(model.factor),
        "fine voxels": dict(zip(seconds, fine, strict=False)),
        "seconds": seconds,
        **last,
    }


def _wishes(name: str) -> Wishes:
    """Take small tiles, and regions that hold whole ones, where those of the plan would take minutes."""
    small = Wishes(tile=dict.fromkeys("zyx", 48), shard=dict.fromkeys("zyx", 192))
    return small if "paper" in name else Wishes()


def _sized(coarse: Voxels, shape: Size) -> Voxels:
    """Cut or mirror a volume to a shape."""
    lacking = [(0, max(0, n - m)) for n, m in zip(shape, coarse.shape, strict=True)]
    z, y, x = shape
    return np.pad(coarse, lacking, mode="symmetric")[:z, :y, :x]


def _enhanced(source: Path, wishes: Wishes, *, output: Path, model: Model) -> Found:
    """Enhance as the command does, and ask the workers what memory they took."""
    volume = open_volume(source)
    plan = plan_volume(volume, model.architecture, wishes=wishes)
    own = {"workers": plan.workers, "memory_bytes": plan.memory_bytes, "seats": plan.seats}
    with local_client(**own) as client:
        enhance_to_zarr(volume, output, model=model, plan=plan, client=client, overwrite=output.exists())
        peak = max(client.run(peak_bytes).values())
    return {
        "tile": plan.tile,
        "peak of a worker, MiB": peak / 2**20,
        "planned, MiB": plan.worker_bytes / 2**20,
    }


def training(paths: Mapping[str, Path], coarse: Voxels) -> Found:
    """Time training as the command does it, with all cores; and what of it is convolutions, there and back."""
    found = {}
    for name, factor in FACTORS.items():
        started = time.perf_counter()
        train(as_volume(coarse.astype(np.float32)), preset="fast", factor=factor)
        seconds = time.perf_counter() - started
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            began = time.perf_counter()
            train(as_volume(coarse.astype(np.float32)), preset="fast", factor=factor, steps=100)
            total = time.perf_counter() - began
        found[f"fast {name}"] = {
            "seconds": seconds,
            "share in convolutions, of 100 steps": _convolving(profile) / total,
        }
        print("training", name, f"{seconds:.0f} s", flush=True)
    return found


PARTS: Mapping[str, Callable[[Mapping[str, Path], Voxels], Found]] = {
    "ceilings": ceilings,
    "network": network,
    "peers": peers,
    "storage": storage,
    "training": training,
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
    if "peers" in found:
        lines += ["| in memory | M fine voxels/s | × the published way |", "|---" * 3 + "|"]
        for name, rate in found["peers"].items():
            lines.append(f"| {name} | {rate / 1e6:.2f} | {f'{rate / published:.0f}' if published else '–'} |")
        lines.append("")
    if "storage" in found:
        lines += [*_stored_table(found["storage"], found.get("network", {}), published), ""]
    if "training" in found:
        titles = ("training", "seconds", "in convolutions")
        lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for name, row in found["training"].items():
            seconds, share = row.values()
            lines.append(f"| {name} | {seconds:.0f} | {share:.0%} |")
        lines.append("")
    return "\n".join(lines)


def _stored_table(rows: Found, network: Found, published: float | None) -> list[str]:
    titles = (
        "OME-Zarr to OME-Zarr",
        "M fine voxels/s",
        "× the published way",
        "M coarse bytes/s",
        "of the network's rate",
        "pyramid, of the time",
        "peak of a worker, of planned MiB",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in rows.items():
        rate, seconds = row["fine voxels/s"], row["seconds"]
        without = seconds.get("large, no pyramid")
        alone = next((n["fine voxels/s"] for key, n in network.items() if key.startswith(f"{name},")), None)
        cells = (
            name,
            f"{rate / 1e6:.2f}",
            f"{rate / published:.0f}" if published else "–",
            f"{row['coarse bytes/s'] / 1e6:.2f}",
            f"{rate / alone:.0%}" if alone else "–",
            f"{1 - without / seconds['large']:.0%}" if without else "–",
            f"{row['peak of a worker, MiB']:.0f} of {row['planned, MiB']:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


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
