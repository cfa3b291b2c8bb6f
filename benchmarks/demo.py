"""How much closer to the truth does enhancing come than what needs no network? The demonstration, for three seeds.

Run ``python benchmarks/demo.py``; it writes ``benchmarks/results/demo.json``. Each seed is another volume, other noise
and another start of the training; mean and spread are over all of them, none is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from environment import environment

from svision_dask.simulation.demo import SHAPE, DemoResult, run_demo

RESULTS = Path(__file__).parent / "results" / "demo.json"


def measure(seed: int, shape: tuple[int, ...], steps: int | None) -> tuple[DemoResult, float]:
    """Run one demonstration in a folder of its own; also return how busy the machine was before."""
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        return run_demo(folder, seed=seed, shape=shape, steps=steps), busy


def run_values(result: DemoResult, busy: float) -> dict[str, Any]:
    """Turn one run into plain values."""
    return {
        "seed": result.seed,
        "scores": [asdict(score) for score in result.scores],
        "gain_db": result.gain,
        "train_seconds": round(result.train_seconds, 1),
        "enhance_seconds": round(result.enhance_seconds, 1),
        "seconds": round(result.seconds, 1),
        "load_before": round(busy, 2),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, lowest and highest."""
    return {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values)}


def summary(results: Sequence[DemoResult]) -> dict[str, Any]:
    """Mean and spread over the seeds, per kind of volume."""
    by_name = zip(*(result.scores for result in results), strict=True)
    return {
        **{
            scores[0].name: {"psnr": spread([s.psnr for s in scores]), "ssim": spread([s.ssim for s in scores])}
            for scores in by_name
        },
        "gain_db": spread([result.gain for result in results]),
    }


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    parser.add_argument("--steps", type=int)
    given = parser.parse_args()
    runs = []
    for seed in given.seeds:
        runs.append(measure(seed, tuple(given.shape), given.steps))
        print(f"seed {seed}\n{runs[-1][0].table()}", flush=True)
    results = [result for result, _ in runs]
    report = {
        "environment": {**environment(), "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY")},
        "shape": list(given.shape),
        "steps": given.steps,
        "data_range": results[0].data_range,
        "summary": summary(results),
        "runs": [run_values(*run) for run in runs],
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":  # the workers of the cluster import this file
    main()
