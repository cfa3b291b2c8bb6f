"""Measure what each choice of the presets brings: the same training with one choice undone, or one thing added.

Run ``python benchmarks/ablation.py``; it writes ``benchmarks/results/ablation.json`` and, from that, ``ablation.md``.
The volumes are those that presets were decided on; a row is the difference in PSNR to ``fast`` of the same seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch.nn.functional as F
from quality import as_volume, refined
from rows import RESULTS, SEEDS, Row, Rows, collect, spread
from volumes import TUNING, Case, beads_x2

from svision_dask.geometry import parse_factor
from svision_dask.metrics import psnr, ssim
from svision_dask.network.architecture import Architecture, architecture
from svision_dask.training.fitting import SETTINGS, TrainSettings
from svision_dask.training.sample import Sample, read_sample
from svision_dask.training.train import design_for, train_on_sample

Choice = Callable[[Architecture, TrainSettings], tuple[Architecture, TrainSettings]]

CASES = {**TUNING, "beads ×2": beads_x2}
VOLUMES = ("nuclei", "fly brain", "dendrite", "envelopes", "brain cells", "phantom 0, 30 photons", "beads ×2")
AS_IT_IS = "fast"


def _settings(**changes: object) -> Choice:
    return lambda design, settings: (design, replace(settings, **changes))


def _stages(**changes: object) -> Choice:
    def change(design: Architecture, settings: TrainSettings) -> tuple[Architecture, TrainSettings]:
        return replace(design, stages=tuple(replace(stage, **changes) for stage in design.stages)), settings

    return change


def _first_of_five(design: Architecture, settings: TrainSettings) -> tuple[Architecture, TrainSettings]:
    stages = (replace(stage, layers=(replace(stage.layers[0], kernel=5), *stage.layers[1:])) for stage in design.stages)
    return replace(design, stages=tuple(stages)), settings


def _layers_of_best(design: Architecture, settings: TrainSettings) -> tuple[Architecture, TrainSettings]:
    best = architecture("best", design.factor, design.axes)
    stages = (replace(own, layers=its.layers) for own, its in zip(design.stages, best.stages, strict=True))
    return replace(design, stages=tuple(stages)), settings


def _projections_of_best(design: Architecture, settings: TrainSettings) -> tuple[Architecture, TrainSettings]:
    best = design_for(design.axes, design.factor, preset="best")
    pairs = zip(design.stages, best.stages, strict=True)
    stages = (
        replace(own, back_projections=its.back_projections, kernel_radius=its.kernel_radius) for own, its in pairs
    )
    return replace(design, stages=tuple(stages)), settings


def _undamped(design: Architecture, settings: TrainSettings) -> tuple[Architecture, TrainSettings]:
    return _settings(fit_damping=False)(*_stages(back_projections=1)(design, settings))


def _best(design: Architecture, settings: TrainSettings) -> tuple[Architecture, TrainSettings]:
    return design_for(design.axes, design.factor, preset="best"), SETTINGS["best"]


CHOICES: Mapping[str, Choice] = {
    AS_IT_IS: lambda design, settings: (design, settings),
    "noise not matched": _settings(match_noise=False),
    "scale not matched": _settings(match_zoom=False),
    "one scale instead of three": _settings(spread=0.0),
    "squared error": _settings(loss=F.mse_loss),
    "slopes learned per channel": _stages(slope=None),
    "a first kernel of five voxels": _first_of_five,
    "one back projection": _stages(back_projections=1),
    "one back projection, not damped": _undamped,
    "two back projections": _projections_of_best,
    "mean of eight orientations": _stages(ensemble=True),
    "1 500 steps": _settings(steps=SETTINGS["best"].steps),
    "32 channels, one layer more": _layers_of_best,
    "two back projections, 1 500 steps, 32 channels, one layer more (best)": _best,
}


@cache
def _case(name: str) -> Case:
    return CASES[name]()


@cache
def _sample(name: str) -> Sample:
    return read_sample(as_volume(_case(name).coarse))


def measure(name: str, choice: str, seed: int) -> Row:
    """Train on one volume, with one choice changed, and enhance it."""
    case = _case(name)
    design = design_for("zyx", parse_factor(case.factor, "zyx"), preset="fast", degradation=case.how)
    changed, settings = CHOICES[choice](design, SETTINGS["fast"])
    fine = refined(train_on_sample(_sample(name), changed, settings, seed=seed), case.coarse)
    return {
        "volume": name,
        "choice": choice,
        "seed": seed,
        "psnr": psnr(fine, case.truth, data_range=1),
        "ssim": ssim(fine, case.truth, data_range=1),
    }


def publish(rows: Rows, path: Path) -> None:
    """Write what each choice adds or costs as Markdown."""
    lines = ["# Ablation", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    lines += ["| choice | " + " | ".join(VOLUMES) + " |", "|---" * (len(VOLUMES) + 1) + "|"]
    for choice in CHOICES:
        cells = [_cell(rows, name, choice) for name in VOLUMES]
        if any(cells):
            lines.append(f"| {choice} | " + " | ".join(cell or "–" for cell in cells) + " |")
    legend = "dB; ± half the range over the seeds. The first row is the PSNR itself."
    path.with_suffix(".md").write_text("\n".join([*lines, "", legend, ""]), encoding="utf-8")


def _cell(rows: Rows, name: str, choice: str) -> str:
    found = {row["seed"]: row["psnr"] for row in rows.values() if (row["volume"], row["choice"]) == (name, choice)}
    base = {row["seed"]: row["psnr"] for row in rows.values() if (row["volume"], row["choice"]) == (name, AS_IT_IS)}
    if choice == AS_IT_IS:
        return spread(found.values()) if found else ""
    gains = [psnr - base[seed] for seed, psnr in found.items() if seed in base]
    return f"{'+' * (sum(gains) >= 0)}{spread(gains)}" if gains else ""


def _wanted(given: argparse.Namespace) -> Iterable[tuple[str, Callable[[], Row]]]:
    for seed in given.seeds:
        for name in given.volumes:
            for choice in given.choices:
                yield f"{name}, {choice}, {seed}", partial(measure, name, choice, seed)


def main() -> None:
    """Measure what is missing, and write both files after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "ablation.json")
    parser.add_argument("--volumes", nargs="+", default=list(VOLUMES), choices=list(VOLUMES))
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    collect(given.output, _wanted(given), publish, again=given.again)


if __name__ == "__main__":
    main()
