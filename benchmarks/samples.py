"""Measure how many voxels a model has to see: PSNR against the size of the training sample, as Fig. 8 of the paper.

Run ``python benchmarks/samples.py``; it writes ``benchmarks/results/samples.json`` and a plot, ``samples.png``. Samples
of seven sizes are taken where the sampler finds most structure, and at random places; ``fast`` is trained on each, and
the whole volume is enhanced. The largest samples are the whole volume.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
from quality import as_volume, refined
from rows import RESULTS, SEEDS, Row, Rows, collect
from volumes import VOLUMES, Case, phantom

from svision_dask.errors import SampleError
from svision_dask.metrics import psnr
from svision_dask.network.baselines import cubic_back_projected
from svision_dask.training.sample import informative_box
from svision_dask.training.train import train

EXTENTS = ((8, 16, 16), (12, 24, 24), (16, 32, 32), (24, 48, 48), (32, 64, 64), (48, 96, 96), (96, 256, 256))
"""Coarse voxels (z, y, x) of the samples, at most."""
CASES = {"phantom": phantom(0, 200, (128, 512, 512)), "fly brain": VOLUMES["fly brain"]}
PLACES = ("chosen", "random")


def measure(case: Case, extent: tuple[int, ...], place: str, seed: int) -> Row:
    """Train on one sample, and enhance the whole volume."""
    volume = as_volume(case.coarse)
    if place == "chosen":
        box = informative_box(volume, seed, extent)
    else:
        rng = np.random.default_rng(seed)
        sizes = [min(e, n) for e, n in zip(extent, case.coarse.shape, strict=True)]
        first = [int(rng.integers(n - s + 1)) for n, s in zip(case.coarse.shape, sizes, strict=True)]
        box = tuple(slice(a, a + s) for a, s in zip(first, sizes, strict=True))
    try:
        model = train(as_volume(case.coarse), factor=2, seed=seed, sample=dict(zip("zyx", box, strict=True)))
    except SampleError:  # a random place without any structure
        return {"voxels": math.prod(s.stop - s.start for s in box), "psnr": None}
    fine = refined(model, case.coarse)
    return {
        "voxels": math.prod(s.stop - s.start for s in box),
        "psnr": psnr(fine, case.truth, data_range=1),
    }


def plot(rows: Rows, path: Path) -> None:
    """Draw mean and range over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(CASES), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(CASES), squeeze=False)[0], CASES, strict=True):
        own = [r for r in rows.values() if r["volume"] == name]
        for place, colour in zip(PLACES, ("#0b6e99", "#c4622d"), strict=True):
            sizes = sorted({r["voxels"] for r in own if r.get("place") == place})
            values = [[r["psnr"] for r in own if r.get("place") == place and r["voxels"] == s] for s in sizes]
            known = [(s, [v for v in vs if v is not None]) for s, vs in zip(sizes, values, strict=True)]
            known = [(s, vs) for s, vs in known if vs]
            if known:
                x = [s for s, _ in known]
                axes.plot(x, [np.mean(vs) for _, vs in known], "o-", color=colour, label=f"{place} place")
                axes.fill_between(x, [min(v) for _, v in known], [max(v) for _, v in known], color=colour, alpha=0.2)
        for r in own:
            if "place" not in r:
                axes.axhline(r["psnr"], color="0.5", linestyle="--", label="cubic + back projection")
        axes.set(xscale="log", title=name, xlabel="training voxels", ylabel="PSNR (dB)")
        axes.legend(loc="lower right")
    figure.savefig(path.with_suffix(".png"), dpi=110)


def _wanted(seeds: Iterable[int]) -> Iterable[tuple[str, Callable[[], Row]]]:
    for name in CASES:
        yield f"{name}, cubic + BP", partial(_baseline, name)
        for seed, extent, place in product(seeds, EXTENTS, PLACES):
            yield f"{name}, {'×'.join(map(str, extent))}, {place}, {seed}", partial(_row, name, extent, place, seed)


@cache
def _case(name: str) -> Case:
    return CASES[name]()


def _row(name: str, extent: tuple[int, ...], place: str, seed: int) -> Row:
    return {"volume": name, "place": place, "seed": seed, **measure(_case(name), extent, place, seed)}


def _baseline(name: str) -> Row:
    case = _case(name)
    both = [cubic_back_projected(case.coarse, 2, clamp=clamp) for clamp in (False, True)]
    return {"volume": name, "psnr": max(psnr(p, case.truth, data_range=1) for p in both)}


def main() -> None:
    """Measure what is missing, and write both files after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "samples.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    given = parser.parse_args()
    collect(given.output, _wanted(given.seeds), plot)


if __name__ == "__main__":
    main()
