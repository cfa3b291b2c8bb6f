"""Measure what a model is worth on another volume than the one that it was trained on.

Run ``python benchmarks/transfer.py``; it writes ``benchmarks/results/transfer.json`` and, from that, ``transfer.md``.
Within each group every volume is enhanced by a model trained on every other, renormalised, with the defaults of
``fast``: beads, rods and a real texture, as in Table S1 of the paper; the channels of one specimen; three modalities;
and bright and dim volumes, as near the surface and deep in tissue.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
from quality import as_volume, refined
from rows import RESULTS, SEEDS, Row, Rows, collect, spread
from volumes import VOLUMES, Case, beads_x2, rods_x2

from svision_dask.metrics import psnr, ssim
from svision_dask.network.baselines import cubic_back_projected
from svision_dask.network.model import Model
from svision_dask.training.drift import drift, renormalised
from svision_dask.training.train import train

CASES: Mapping[str, Callable[[], Case]] = {**VOLUMES, "beads ×2": beads_x2, "rods ×2": rods_x2}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Textures (Table S1)": ("beads ×2", "rods ×2", "nuclei"),
    "Channels of the brain": ("brain cells", "brain background"),
    "Channels of the spots": ("spots, channel 0", "spots, channel 1"),
    "Modalities: light-sheet, confocal, two-photon": ("nuclei", "fly brain", "dendrite"),
    "Bright and dim": ("phantom 0, 200 photons", "phantom 0, 30 photons"),
}


@cache
def _case(name: str) -> Case:
    return CASES[name]()


@cache
def _model(name: str, seed: int) -> Model:
    return train(as_volume(_case(name).coarse), factor=2, seed=seed)


def measure(trained_on: str, applied_to: str, seed: int) -> Row:
    """Enhance one volume by the model of another."""
    case, model = _case(applied_to), _model(trained_on, seed)
    volume = as_volume(case.coarse)
    own = model if trained_on == applied_to else renormalised(model, volume)
    fine = refined(own, case.coarse)
    both = [cubic_back_projected(case.coarse, 2, clamp=clamp) for clamp in (False, True)]
    return {
        "trained_on": trained_on,
        "applied_to": applied_to,
        "seed": seed,
        "psnr": psnr(fine, case.truth, data_range=1),
        "ssim": ssim(fine, case.truth, data_range=1),
        "cubic_bp": max(psnr(p, case.truth, data_range=1) for p in both),
        "warnings": drift(model, volume),
        "warnings_renormalised": drift(own, volume),
    }


def table(rows: Rows) -> str:
    """Write means and spreads over the seeds as Markdown: who was trained on what, down; applied to what, across."""
    lines = ["# Transfer", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    for title, names in GROUPS.items():
        lines += [f"## {title}", "", "| trained on \\ applied to | " + " | ".join(names) + " |"]
        lines += ["|---" * (len(names) + 1) + "|"]
        for a in names:
            lines.append(f"| {a} | " + " | ".join(_cell(rows, a, b) for b in names) + " |")
        lines += ["| *cubic + BP* | " + " | ".join(f"{_mean(rows, b, b, 'cubic_bp'):.2f}" for b in names) + " |", ""]
    legend = "PSNR ± half its range over the seeds / SSIM; * where the volume is said to be unlike the training."
    return "\n".join([*lines, legend, ""])


def _cell(rows: Rows, a: str, b: str) -> str:
    found = [r for r in rows.values() if (r["trained_on"], r["applied_to"]) == (a, b)]
    if not found:
        return "–"
    star = "*" if any(r["warnings"] for r in found) else ""
    return f"{spread(r['psnr'] for r in found)} / {_mean(rows, a, b, 'ssim'):.3f}{star}"


def _mean(rows: Rows, a: str, b: str, key: str) -> float:
    values = [r[key] for r in rows.values() if (r["trained_on"], r["applied_to"]) == (a, b)]
    return statistics.fmean(values) if values else float(np.nan)


def _publish(rows: Rows, path: Path) -> None:
    path.with_suffix(".md").write_text(table(rows), encoding="utf-8")


def main() -> None:
    """Measure what is missing, and write both files after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "transfer.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    pairs = dict.fromkeys((a, b) for names in GROUPS.values() for a in names for b in names)
    wanted = ((f"{a} -> {b}, {seed}", partial(measure, a, b, seed)) for seed in given.seeds for a, b in pairs)
    collect(given.output, wanted, _publish, again=given.again)


if __name__ == "__main__":
    main()
