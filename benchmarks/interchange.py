"""Do other programs make of a volume what we make of it? ONNX, torch.export and BioImage.IO, whole and in tiles.

Run ``python benchmarks/interchange.py``, with the extra ``zoo``; it writes ``benchmarks/results/interchange.json``.
Every kind of model there is, after one step of training and after a hundred, is applied to a simulated volume. Tiles
are those of bioimageio.core, which knows only the halo that the package declares.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rows import RESULTS, Row, Rows, collect

from svision_dask import Volume, export_model, train
from svision_dask.simulation.simulate import Phantom, as_volume
from svision_dask.volume import mirror_pad

Voxels = npt.NDArray[np.float32]

CASES: dict[str, dict[str, Any]] = {
    "fast": {"factor": 2},
    "fast, planes": {"factor": (2, 2), "axes": "yx"},
    "fast ×4 in planes": {"factor": (4, 4), "axes": "yx"},
    "fast ×4, ×4, ×2, box": {"factor": (4, 4, 2), "degrade": "box"},
    "fast, point": {"factor": 2, "degrade": "point"},
    "fast, axial": {"factor": 2, "axial": True},
    "best": {"factor": 2, "preset": "best"},
    "paper": {"factor": 2, "preset": "paper"},
}
STEPS = {"untrained": 1, "trained": 100}
SPARE = (6, 21, 29)
"""Coarse voxels (z, y, x) by which a volume is larger than the least block: so there are several, of unequal sizes."""


def volume_of(shape: tuple[int, ...], axes: str) -> Volume:
    """Simulate a measured volume; its first plane where only planes are wanted."""
    full = as_volume(Phantom(shape=tuple(2 * n for n in (16, *shape)[-3:])), "measured", factor=2)
    if axes == "zyx":
        return full
    from svision_dask import open_volume

    return open_volume(full.voxels[0], spacing=full.grid.spacing[1:])


def measure(name: str, state: str) -> Row:
    """Export one model in every format, and apply each."""
    given = dict(CASES[name])
    axes = given.pop("axes", "zyx")
    model = train(volume_of((32, 64, 64)[-len(axes) :], axes), steps=STEPS[state], **given)
    halo = dict(zip("zyx", model.halo, strict=True))
    shape = tuple(2 * halo[a] + (1 if a == "z" else 8) + spare for a, spare in zip("zyx", SPARE, strict=True))
    voxels = volume_of(shape[-len(axes) :], axes).voxels.compute(scheduler="synchronous").astype(np.float32)
    coarse = voxels if axes == "zyx" else voxels[None]
    ours = model.refine(mirror_pad(coarse, model.halo))
    batch, row = (voxels[None, None], {"model": name, "state": state, "halo": list(model.halo)})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for suffix, run in RUNS.items():
            path = Path(folder) / f"model.{suffix}"
            started = time.monotonic()
            export_model(model, path, licence="CC0-1.0", authors=["Nobody"] if suffix == "zip" else [])
            row[f"seconds to write .{suffix}"] = round(time.monotonic() - started, 1)
            for what, theirs in run(path, batch, axes):
                difference = np.abs(theirs.reshape(ours.shape) - ours).max()
                row[what] = float(difference / np.ptp(ours))
    return row


def _onnx(path: Path, batch: Voxels, _axes: str) -> Iterable[tuple[str, Voxels]]:
    import onnxruntime

    yield "onnxruntime", onnxruntime.InferenceSession(path).run(None, {"coarse": batch})[0]


def _pt2(path: Path, batch: Voxels, _axes: str) -> Iterable[tuple[str, Voxels]]:
    import torch

    with torch.inference_mode():
        yield "torch", torch.export.load(path).module()(torch.from_numpy(batch)).numpy()


def _bioimage_io(path: Path, batch: Voxels, axes: str) -> Iterable[tuple[str, Voxels]]:
    from bioimageio.core import Sample, Tensor, create_prediction_pipeline, load_description

    coarse = Tensor.from_numpy(batch, dims=("batch", "channel", *axes))
    sample = Sample(members={"coarse": coarse}, stat={}, id="volume")
    with create_prediction_pipeline(load_description(path)) as pipeline:
        whole = pipeline.predict_sample_without_blocking(sample)
        yield "bioimageio, whole", np.asarray(whole.members["fine"].data.values)
        tiled = pipeline.predict_sample_with_blocking(sample, ns=1)
        yield "bioimageio, tiled", np.asarray(tiled.members["fine"].data.values)


RUNS: dict[str, Callable[[Path, Voxels, str], Iterable[tuple[str, Voxels]]]] = {
    "onnx": _onnx,
    "pt2": _pt2,
    "zip": _bioimage_io,
}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "interchange.json")
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--states", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    wanted = ((f"{m}, {s}", partial(measure, m, s)) for s in given.states for m in given.models)
    collect(given.output, wanted, _no_table, again=given.again)


def _no_table(_rows: Rows, _path: Path) -> None:
    """Leave the table to ``benchmarks/page.py``."""


if __name__ == "__main__":
    main()
