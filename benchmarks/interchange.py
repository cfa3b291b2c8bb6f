"""Do other programs make of a real volume what we make of it? ONNX, torch.export and BioImage.IO, whole and in tiles.

Run ``python benchmarks/interchange.py``, with the extra ``zoo``; it writes ``benchmarks/results/interchange.json``.
Every kind of model there is learns a hundred steps on one part of the fly brain, and is applied to another. Tiles
overlap by the halo that the file declares, and by nothing else: those of a BioImage.IO package are bioimageio.core's,
those of ONNX and torch are cut here, by what the file says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rows import RESULTS, Row, Rows, collect
from volumes import DATA

from svision_dask import Volume, export_model, open_volume, train
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
    "paper, planes": {"factor": (2, 2), "axes": "yx", "preset": "paper"},
    "paper": {"factor": 2, "preset": "paper"},
}
STEPS = 100
TRAINED_ON = (slice(12, 44), slice(64, 128), slice(64, 128))
APPLIED_AT = (8, 120, 120)
"""First voxel of what a model is applied to, which is larger than what it was trained on for some models."""
SPARE = (6, 21, 29)
"""Coarse voxels (z, y, x) by which a volume is larger than the least block: so there are several, of unequal sizes."""
LITTLE = (1, 2, 2)
"""The same for ``paper``, whose halo leaves little of a block: bioimageio.core would make hundreds."""
TILE = (9, 20, 27)
"""Coarse voxels (z, y, x) that a tile of ONNX or torch is responsible for, of the volume's, which is no multiple."""


def part_of_brain(box: tuple[slice, ...], axes: str) -> Volume:
    """Cut out a part; its first plane where only planes are wanted."""
    full = open_volume(str(DATA / "flybrain" / "flybrain.ome.tif"))
    voxels = full.voxels[box].compute(scheduler="synchronous").astype(np.float32)
    return open_volume(voxels if axes == "zyx" else voxels[0], spacing=full.grid.spacing[-len(axes) :], unit="um")


def measure(name: str) -> Row:
    """Export one model in every format, and apply each."""
    given = dict(CASES[name])
    axes = given.pop("axes", "zyx")
    model = train(part_of_brain(TRAINED_ON, axes), steps=STEPS, **given)
    spare = LITTLE if name == "paper" else SPARE
    shape = (2 * halo + (1 if a == "z" else 8) + n for a, halo, n in zip("zyx", model.halo, spare, strict=True))
    box = tuple(slice(first, first + n) for first, n in zip(APPLIED_AT, shape, strict=True))
    voxels = part_of_brain(box, axes).voxels.compute(scheduler="synchronous")
    ours = model.refine(mirror_pad(voxels if axes == "zyx" else voxels[None], model.halo))
    row: Row = {"model": name, "halo": list(model.halo)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for suffix, run in RUNS.items():
            path = Path(folder) / f"model.{suffix}"
            export_model(model, path, licence="CC0-1.0", authors=["Nobody"] if suffix == "zip" else [])
            runs = run(path, voxels[None, None], axes)
            for what, theirs in itertools.islice(runs, 1) if (name, suffix) == ("paper", "zip") else runs:
                difference = np.abs(theirs.reshape(ours.shape) - ours).max()
                row[what] = float(difference / np.ptp(ours))
    return row


def _onnx(path: Path, batch: Voxels, _axes: str) -> Iterable[tuple[str, Voxels]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)

    def run(block: Voxels) -> Voxels:
        return np.asarray(session.run(None, {"coarse": block})[0])

    yield "onnxruntime, whole", run(batch)
    yield "onnxruntime, tiled", tiled(run, batch, session.get_modelmeta().custom_metadata_map)


def _pt2(path: Path, batch: Voxels, _axes: str) -> Iterable[tuple[str, Voxels]]:
    import torch

    extra = {"svision_dask.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    told = {key: json.dumps(value) for key, value in json.loads(extra["svision_dask.json"]).items()}

    def run(block: Voxels) -> Voxels:
        with torch.inference_mode():
            return np.asarray(program(torch.from_numpy(block)).numpy())

    yield "torch, whole", run(batch)
    yield "torch, tiled", tiled(run, batch, told)


def tiled(run: Callable[[Voxels], Voxels], batch: Voxels, told: Mapping[str, str]) -> Voxels:
    """Give each tile its halo, where the volume goes on, and cut the halo off the output."""
    halo, factor = json.loads(told["halo"]), json.loads(told["factor"])
    shape = batch.shape[2:]
    fine = np.full((1, 1, *(n * f for n, f in zip(shape, factor, strict=True))), np.nan, np.float32)
    axes = list(zip(shape, halo, factor, TILE[-len(shape) :], strict=True))
    for start in itertools.product(*(range(0, n, tile) for n, _, _, tile in axes)):
        block, inner, place = [], [], []
        for at, (n, h, f, tile) in zip(start, axes, strict=True):
            stop, first = min(at + tile, n), max(at - h, 0)
            block.append(slice(first, stop + h))
            inner.append(slice(f * (at - first), f * (stop - first)))
            place.append(slice(f * at, f * stop))
        fine[..., *place] = run(np.ascontiguousarray(batch[..., *block]))[..., *inner]
    return fine


def _bioimage_io(path: Path, batch: Voxels, axes: str) -> Iterable[tuple[str, Voxels]]:
    from bioimageio.core import Sample, Tensor, create_prediction_pipeline, load_description

    coarse = Tensor.from_numpy(batch, dims=("batch", "channel", *axes))
    sample = Sample(members={"coarse": coarse}, stat={}, id="volume")
    with create_prediction_pipeline(load_description(path)) as pipeline:
        whole = pipeline.predict_sample_without_blocking(sample)
        yield "bioimageio, whole", np.asarray(whole.members["fine"].data.values)
        blocks = pipeline.predict_sample_with_blocking(sample, ns=1)
        yield "bioimageio, tiled", np.asarray(blocks.members["fine"].data.values)


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
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    collect(given.output, ((m, partial(measure, m)) for m in given.models), _no_table, again=given.again)


def _no_table(_rows: Rows, _path: Path) -> None:
    """Leave the table to ``benchmarks/page.py``."""


if __name__ == "__main__":
    main()
