"""Measure whether trust maps predict the error, on volumes whose truth is known.

Run ``python benchmarks/trust.py``; it writes ``benchmarks/results/trust.json`` and, from that, ``trust.md`` and
``docs/images/trust.png``. What was measured before stays, and is measured again only with ``--again``.

Each network is trained on the coarse volume alone, with the defaults of its preset. Voxels are sorted by a map into
twenty bins of equal size, and each bin has its root mean square error. *Spread* and *consistency* are the maps of
``--trust``, the latter repeated onto the fine grid. Two plain rivals need no maps: the *slope* (length of the intensity
gradient of the result) and the *intensity* of the result. All are of the middle of the volume, at most
32 × 112 × 112 coarse voxels, without two voxels at the faces; truths have a range of 1.

- *top 5 %*: which share of the squared error lies in the 5 % of the voxels where the map is largest; it would be 5 % if
  the map said nothing, and *at best* is what sorting by the error itself gives.
- *ρ*: rank correlation (Spearman) of the map and the size of the error.
- *error ÷ spread*: root mean square of the error over that of the spread; above 1, the spread is too small.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from quality import as_volume
from rows import RESULTS, SEEDS, Row, Rows, collect
from scipy.stats import spearmanr
from volumes import VOLUMES, Case

from svision_dask.backend import CPU
from svision_dask.geometry import parse_factor
from svision_dask.metrics import psnr
from svision_dask.network.architecture import Preset
from svision_dask.network.ensemble import reduction_margin
from svision_dask.network.model import Model
from svision_dask.running.trust_maps import judge_box
from svision_dask.training.train import train
from svision_dask.volume import mirror_pad

Voxels = npt.NDArray[np.float32]

NAMES = ("phantom 0, 30 photons", "nuclei", "fly brain", "dendrite")
BEST = "fly brain"
"""On which ``best`` is measured as well, with one seed."""
MIDDLE = (32, 112, 112)
"""Coarse voxels, at most."""
BINS = 20
TOP = 0.05
BORDER = 2
MAPS = ("spread", "consistency", "slope", "intensity")
LEAST = 1e-2
"""Percent of the range: what is drawn. Below it are empty places, of single values."""
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "trust.png"


def measure(case: Case, preset: Preset, seed: int) -> Row:
    """Train, enhance the middle, and compare its maps with its error."""
    model = train(as_volume(case.coarse), factor=case.factor, preset=preset, seed=seed, degrade=case.how.kind)
    coarse, truth = middle(case)
    fine = model.refine(mirror_pad(coarse, model.halo))
    error = inner(fine - truth)
    maps = {name: inner(values) for name, values in maps_of(model, coarse, fine).items()}
    size = np.abs(error)
    return {
        "psnr": psnr(fine, truth, data_range=1),
        "rmse": rms(error),
        "at_best": top_share(size, error),
        "ratio": rms(error) / rms(maps["spread"]),
        "maps": {name: against(values, error) for name, values in maps.items()},
    }


def middle(case: Case) -> tuple[Voxels, Voxels]:
    """Cut out the middle of the coarse volume and of the truth."""
    factor = parse_factor(case.factor, "zyx")
    size = tuple(min(n, m) for n, m in zip(case.coarse.shape, MIDDLE, strict=True))
    first = tuple((n - s) // 2 for n, s in zip(case.coarse.shape, size, strict=True))
    box = tuple(slice(a, a + s) for a, s in zip(first, size, strict=True))
    finer = tuple(slice(f * b.start, f * b.stop) for f, b in zip(factor, box, strict=True))
    return np.ascontiguousarray(case.coarse[box]), np.ascontiguousarray(case.truth[finer])


def maps_of(model: Model, coarse: Voxels, fine: Voxels) -> dict[str, Voxels]:
    """Make the maps, and what needs none, on the fine grid."""
    margin = tuple(h + m for h, m in zip(model.halo, reduction_margin(model.architecture), strict=True))
    found = judge_box(
        mirror_pad(coarse, margin),
        model,
        axes="zyx",
        tile=coarse.shape,
        start=(0, 0, 0),
        volume=coarse.shape,
        dtype=np.dtype(np.float32),
        backend=CPU,
    )
    spread, consistency = found["spread"], found["consistency"]
    for axis, f in enumerate(model.factor):
        consistency = np.repeat(consistency, f, axis=axis)
    slope = np.sqrt(sum(np.square(g) for g in np.gradient(fine)))
    return {"spread": spread, "consistency": consistency, "slope": slope, "intensity": fine}


def inner(voxels: Voxels) -> Voxels:
    """Leave out the border, and the order of the axes."""
    return voxels[(slice(BORDER, -BORDER),) * 3].ravel()


def against(values: Voxels, error: Voxels) -> Row:
    """Compare a map with the error: by bins, by ranks, and by what its largest values hold."""
    order = np.argsort(values, kind="stable")
    bins = np.array_split(order, BINS)
    every = slice(None, None, max(1, error.size // 300_000))
    return {
        "value": [rms(values[b]) for b in bins],
        "rmse": [rms(error[b]) for b in bins],
        "spearman": float(spearmanr(values[every], np.abs(error[every])).statistic),
        "pearson": float(np.corrcoef(values, np.abs(error))[0, 1]),
        "top": top_share(values, error),
    }


def top_share(values: Voxels, error: Voxels) -> float:
    """Which share of the squared error is where ``values`` are largest."""
    count = round(TOP * error.size)
    chosen = np.argpartition(values, -count)[-count:]
    squares = np.square(error, dtype=np.float64)
    return float(squares[chosen].sum() / squares.sum())


def rms(values: Voxels) -> float:
    """Root mean square."""
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def table(rows: Rows) -> str:
    """Write means over the seeds as Markdown."""
    lines = ["# Trust maps", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    heads = ("volume", "preset", "PSNR", *(f"{m}: top 5 %, ρ" for m in MAPS), "at best", "error ÷ spread")
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (name, preset), own in grouped(rows).items():
        cells = [f"{mean(r['maps'][m]['top'] for r in own):.0%}, {mean(_rho(r, m) for r in own):.2f}" for m in MAPS]
        first = [
            name,
            f"{preset} ({len(own)} seeds)" if len(own) > 1 else preset,
            f"{mean(r['psnr'] for r in own):.2f}",
        ]
        last = [f"{mean(r['at_best'] for r in own):.0%}", f"{mean(r['ratio'] for r in own):.2f}"]
        lines.append("| " + " | ".join((*first, *cells, *last)) + " |")
    lines += [
        "",
        "Root mean square error per bin of spread, in percent of the range: lowest, middle and highest bin.",
        "",
    ]
    lines += ["| volume | preset | spread | error |", "|---|---|---|---|"]
    for (name, preset), own in grouped(rows).items():
        cells = [
            ", ".join(f"{100 * mean(r['maps']['spread'][key][i] for r in own):.2f}" for i in (0, BINS // 2, BINS - 1))
            for key in ("value", "rmse")
        ]
        lines.append(f"| {name} | {preset} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, ""])


def _rho(row: Row, name: str) -> float:
    return float(row["maps"][name]["spearman"])


def grouped(rows: Rows) -> dict[tuple[str, str], list[Row]]:
    """Put the seeds of a volume and preset together."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows.values():
        groups.setdefault((row["volume"], row["preset"]), []).append(row)
    return groups


def mean(values: Iterable[float]) -> float:
    """Average over the seeds."""
    return statistics.fmean(values)


def draw(rows: Rows, path: Path) -> None:
    """Draw reliability curves of both maps, and what their largest values hold."""
    from matplotlib.figure import Figure

    groups = grouped(rows)
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, name in zip(panels, ("spread", "consistency"), strict=False):
        for (volume, preset), own in groups.items():
            x, y = (
                [100 * mean(r["maps"][name][key][i] for r in own) for i in range(BINS)] for key in ("value", "rmse")
            )
            style = {"marker": "o", "ls": "-"} if preset == "fast" else {"marker": "s", "ls": "--"}
            panel.loglog(x, y, ms=3.5, lw=1, label=f"{volume}{'' if preset == 'fast' else f', {preset}'}", **style)
        low, high = min(panel.get_xlim()[0], panel.get_ylim()[0]), max(panel.get_xlim()[1], panel.get_ylim()[1])
        panel.plot([low, high], [low, high], color="0.7", lw=1, zorder=0, label="error = value")
        low = max(low, LEAST)
        panel.set(xlim=(low, high), ylim=(low, high))
        panel.set(xlabel=f"{name}, % of the range", ylabel="root mean square error, % of the range")
        panel.set_title(f"Error in 20 bins of {name}")
    panels[0].legend(fontsize=8)
    _draw_top(panels[2], groups)
    figure.savefig(path, dpi=100)


def _draw_top(panel: object, groups: dict[tuple[str, str], list[Row]]) -> None:
    names = (*MAPS, "error itself")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        shares = [
            100 * mean(r["at_best"] if name == names[-1] else r["maps"][name]["top"] for r in own)
            for own in groups.values()
        ]
        places = np.arange(len(groups)) + (i - len(names) / 2 + 0.5) * width
        panel.bar(places, shares, width, label=name, color=("C0", "C1", "0.45", "0.65", "0.85")[i])  # type: ignore[attr-defined]
    panel.axhline(100 * TOP, color="k", lw=1, ls=":")  # type: ignore[attr-defined]
    labels = [f"{volume}, {preset}".replace(", ", "\n") for volume, preset in groups]
    panel.set_xticks(range(len(groups)), labels, fontsize=8)  # type: ignore[attr-defined]
    panel.set(ylabel="% of the squared error", title="In the 5 % with the largest values")  # type: ignore[attr-defined]
    panel.legend(fontsize=8)  # type: ignore[attr-defined]


def _wanted(given: argparse.Namespace) -> Iterable[tuple[str, Callable[[], Row]]]:
    runs: Sequence[tuple[str, Preset, int]] = [(name, "fast", seed) for seed in given.seeds for name in given.volumes]
    if BEST in given.volumes:
        runs = [*runs, (BEST, "best", 0)]
    for name, preset, seed in runs:
        yield f"{name}, {preset}, {seed}", partial(_row, name, preset, seed)


def _row(name: str, preset: Preset, seed: int) -> Row:
    return {"volume": name, "preset": preset, "seed": seed, **measure(VOLUMES[name](), preset, seed)}


def _publish(rows: Rows, path: Path) -> None:
    path.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    draw(rows, PICTURE if path.parent == RESULTS else path.with_suffix(".png"))


def main() -> None:
    """Measure what is missing, and write everything after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "trust.json")
    parser.add_argument("--volumes", nargs="+", default=list(NAMES), choices=list(VOLUMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    collect(given.output, _wanted(given), _publish, again=given.again)


if __name__ == "__main__":
    main()
