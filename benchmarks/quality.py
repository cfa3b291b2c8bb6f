"""Measure how close enhancing comes to the truth, on every volume, for every seed.

Run ``python benchmarks/quality.py``; it writes ``benchmarks/results/quality.json`` and, from that, ``quality.md``. Give
``--volumes`` and ``--methods`` for a part: what was measured before stays in the file, and is measured again only with
``--again``. Each network is trained on the coarse volume alone, with the defaults of its preset. The *oracle* is the
network of ``best`` trained on true pairs from the other half of the volume: what no self-supervised training can know.

PSNR and SSIM are for a data range of 1, with two border voxels left out. *clipped* is the PSNR of the result clipped
to 0..1 against the truth that is not: the convention of the published figures. The FSC resolution is the period, in
fine voxels, of the finest detail shared with the truth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rows import FORMER, NETWORKS, RESULTS, SEEDS, Row, Rows, collect, is_former, spread
from volumes import DECIMATED, TUNING, UNTOUCHED, VOLUMES, Case

from svision_dask.geometry import Grid, parse_factor
from svision_dask.judging.resolution import fsc_resolution
from svision_dask.metrics import psnr, ssim
from svision_dask.network.architecture import Preset, StageSpec
from svision_dask.network.baselines import cubic, cubic_back_projected
from svision_dask.network.model import Model, Normalisation
from svision_dask.network.stage import Stage
from svision_dask.training.exam import Exam
from svision_dask.training.fitting import SETTINGS, train_stage
from svision_dask.training.pairs import Pairs, Scale
from svision_dask.training.train import design_for, train
from svision_dask.volume import Volume, mirror_pad

Voxels = npt.NDArray[np.float32]

PRESETS = ("paper", "fast", "best")
METHODS = ("cubic", "cubic + BP", *PRESETS, "oracle")
AXIAL = ("cubic", "cubic + BP", "fast", "axial", "best axial")
"""Where planes were left out; the axial rows are the presets with ``--axial``."""
EVERY = tuple(dict.fromkeys((*METHODS, *AXIAL)))
WITHOUT = (("beads ×4", "oracle"), ("rods ×4", "oracle"))
"""The oracle has one stage."""
JUDGED = {
    "beads ×4": ("recall", "precision", "fwhm_lateral", "fwhm_axial"),
    "dendrite": ("spines", "spines_found"),
}
"""What else is measured on single volumes; see ``spots.py``."""


def measure(case: Case, method: str, seed: int) -> Row:
    """Apply one method, and compare with the truth."""
    started = time.monotonic()
    enhance, notes = _made(case, method, seed)
    trained = time.monotonic()
    fine = enhance()
    seconds = time.monotonic() - trained
    return {
        "psnr": psnr(fine, case.truth, data_range=1),
        "clipped": psnr(fine.clip(0, 1), case.truth, data_range=1),
        "ssim": ssim(fine, case.truth, data_range=1),
        "fsc": fsc_resolution(fine, case.truth),
        "network": NETWORKS[method],
        **case.judge(fine),
        "train_seconds": round(trained - started, 1),
        "enhance_seconds": round(seconds, 2),
        **notes,
    }


def _made(case: Case, method: str, seed: int) -> tuple[Callable[[], Voxels], Row]:
    if method == "cubic":
        return lambda: cubic(case.coarse, case.factor, case.how), {}
    if method == "cubic + BP":
        return lambda: _better_projected(case), {}
    if method == "oracle":
        halves = _oracle(case, seed)
        return lambda: _joined(case, halves), {}
    preset: Preset = {"axial": "fast", "best axial": "best"}.get(method, method)  # type: ignore[assignment]
    model = train(
        as_volume(case.coarse),
        factor=case.factor,
        preset=preset,
        seed=seed,
        degrade=case.how.kind,
        axial="axial" in method,
    )
    notes = {key: model.provenance[key] for key in ("zoom", "noise", "verdict", "self_check")}
    return lambda: refined(model, case.coarse), {**notes, "damping": [stage.damping for stage in model.stages]}


def _better_projected(case: Case) -> Voxels:
    """Clamped at 0 or not, whichever is closer to the truth: the stronger baseline."""
    both = [cubic_back_projected(case.coarse, case.factor, case.how, clamp=clamp) for clamp in (False, True)]
    return max(both, key=lambda fine: psnr(fine, case.truth, data_range=1))


def _oracle(case: Case, seed: int) -> list[Model]:
    """Train on the true pairs of either half of the longest axis."""
    design = design_for("zyx", parse_factor(case.factor, "zyx"), preset="best", degradation=case.how)
    (spec,) = design.stages
    models = []
    for half in (0, 1):
        coarse, fine = _half(case.coarse, case, half), _half(case.truth, case, half)
        offset, scale = float(coarse.mean()), float(coarse.std())
        stage = Stage(spec, "zyx")
        pairs = _true_pairs((coarse - offset) / scale, (fine - offset) / scale, Exam.margin_of(stage), spec)
        train_stage(stage, pairs, SETTINGS["best"], seed=seed, report=lambda step, loss, gain: None)
        constants = (Normalisation(offset=offset, scale=scale),)
        models.append(Model(architecture=design, stages=(stage,), normalisation=constants))
    return models


def _true_pairs(coarse: Voxels, fine: Voxels, margin: tuple[int, ...], spec: StageSpec) -> Pairs:
    scale = Scale(
        coarse=torch.from_numpy(mirror_pad(coarse, margin))[None, None],
        fine=torch.from_numpy(np.ascontiguousarray(fine))[None, None],
        noise=(0.0, 0.0),
        kept=0.0,
        axes="zyx",
        shift=0.0,
    )
    return Pairs(scales=(scale,), margin=margin, factor=spec.factor, how=spec.degradation)


def _joined(case: Case, models: Sequence[Model]) -> Voxels:
    """Each half as the model that was trained on the other one makes it."""
    first, second = (refined(model, case.coarse) for model in reversed(models))
    return np.concatenate([_half(first, case, 0), _half(second, case, 1)], axis=_longest(case))


def _half(voxels: Voxels, case: Case, half: int) -> Voxels:
    """Take the first or second half of the coarse or the fine volume along its longest axis."""
    axis = _longest(case)
    n, length = case.coarse.shape[axis], voxels.shape[axis]
    middle = n // 2 * (length // n)
    return np.take(voxels, range(middle) if half == 0 else range(middle, length), axis)


def _longest(case: Case) -> int:
    return case.coarse.shape.index(max(case.coarse.shape))


def refined(model: Model, coarse: Voxels) -> Voxels:
    """Enhance a whole volume in memory."""
    return model.refine(mirror_pad(coarse, model.halo))


def as_volume(voxels: Voxels) -> Volume:
    """Make a volume without a unit."""
    grid = Grid(axes="zyx", shape=voxels.shape, spacing=(1.0,) * 3, origin=(0.0,) * 3, units=(None,) * 3)
    return Volume.from_source(voxels, grid, chunks=voxels.shape, name="benchmark")


def table(rows: Rows) -> str:
    """Write mean and spread over the seeds as Markdown, both halves of the volumes apart."""
    lines = ["# Quality", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    for title, names, methods in (
        ("Tuning half", TUNING, METHODS),
        ("Untouched half", UNTOUCHED, METHODS),
        ("Every 4th plane", DECIMATED, AXIAL),
    ):
        lines += [f"## {title}", "", "| volume | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
        for name in names:
            cells = [
                _cell([row for row in rows.values() if (row["volume"], row["method"]) == (name, m)]) for m in methods
            ]
            if any(cells):
                lines.append(f"| {name} | " + " | ".join(cell or "–" for cell in cells) + " |")
        lines.append("")
    legend = "PSNR ± half its range over the seeds / clipped / SSIM / FSC resolution, then seconds of training."
    legend += f" {FORMER}: with networks that have changed since."
    legend += " Other work may have run beside it: they are no figures of speed."
    return "\n".join([*lines, legend, "", *_judged(rows)])


def _judged(rows: Rows) -> Iterable[str]:
    """Beads and spines, which few volumes have."""
    for volume, keys in JUDGED.items():
        yield from (
            f"## {volume}: {', '.join(keys)}",
            "",
            "| method | " + " | ".join(keys) + " |",
            "|---" * (len(keys) + 1) + "|",
        )
        for method in METHODS:
            measured = [r for r in rows.values() if (r["volume"], r["method"]) == (volume, method)]
            if measured:
                means = (f"{statistics.fmean(r[key] for r in measured):.3g}" for key in keys)
                yield f"| {method} | " + " | ".join(means) + " |"
        yield ""


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    keys = ("clipped", "ssim", "fsc", "train_seconds")
    mean = {key: statistics.fmean(row[key] for row in rows) for key in keys}
    psnrs = spread(row["psnr"] for row in rows)
    text = f"{psnrs} / {mean['clipped']:.2f} / {mean['ssim']:.3f} / {mean['fsc']:.1f}"
    former = FORMER if any(map(is_former, rows)) else ""
    return text + (f", {mean['train_seconds']:.0f} s" if mean["train_seconds"] >= 1 else "") + former


def _wanted(given: argparse.Namespace) -> Iterable[tuple[str, Callable[[], Row]]]:
    for name in given.volumes:
        for method in given.methods:
            if method not in (AXIAL if name in DECIMATED else METHODS) or (name, method) in WITHOUT:
                continue
            for seed in given.seeds if not method.startswith("cubic") else (0,):
                yield f"{name}, {method}, {seed}", partial(_row, name, method, seed)


def _row(name: str, method: str, seed: int) -> Row:
    return {"volume": name, "method": method, "seed": seed, **measure(VOLUMES[name](), method, seed)}


def _publish(rows: Rows, path: Path) -> None:
    path.with_suffix(".md").write_text(table(rows), encoding="utf-8")


def main() -> None:
    """Measure what is missing, and write both files after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    parser.add_argument("--volumes", nargs="+", default=list(VOLUMES), choices=list(VOLUMES))
    parser.add_argument("--methods", nargs="+", default=list(EVERY), choices=EVERY)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    collect(given.output, _wanted(given), _publish, again=given.again)


if __name__ == "__main__":
    main()
