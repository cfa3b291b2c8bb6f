"""Would another runtime convolve faster? The network alone, by torch as we use it, and by those that read ONNX.

Run ``python benchmarks/runtimes.py``, with the extra ``onnx`` and with openvino; it writes
``benchmarks/results/runtimes.json``. All take turns on one thread, at the same block of voxels in float32, and the time
is that of one core at work. Both runtimes may prepare as long as they want.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from environment import environment
from rows import RESULTS
from tiles import seconds

from svision_dask.geometry import Shape
from svision_dask.network.layers import Network
from svision_dask.running.cluster import MEMORY_KEPT
from svision_dask.training.train import design_for

Voxels = npt.NDArray[np.float32]
Run = Callable[[], Voxels]

PRESETS = ("fast", "best")
TILES = ((64, 64, 64), (64, 128, 128))
"""Coarse voxels (z, y, x); the latter are what is planned for float32."""
REPEATS = 7


def runs(network: Network, block: torch.Tensor, folder: Path) -> Iterator[tuple[str, Run]]:
    """Prepare the network for each runtime; the last but one is torch without what we do for it."""
    import onnxruntime
    import openvino

    plain, file = network.steps, folder / "network.onnx"
    torch.onnx.export(plain, (block,), file, dynamo=True, verbose=False)
    given = block.numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    exact = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(file, "CPU", exact).create_infer_request()
    yield "torch", lambda: _without_gradients(network, block)
    yield "torch, plain", lambda: _without_gradients(plain, block)
    yield "onnxruntime", lambda: np.asarray(session.run(None, {entry.name: given})[0])
    yield "openvino", lambda: request.infer({0: given})[0]


def _without_gradients(module: torch.nn.Module, block: torch.Tensor) -> Voxels:
    with torch.inference_mode():
        return np.asarray(module(block).numpy())


def measure(preset: Any, tile: Shape, repeats: int) -> list[dict[str, Any]]:
    """Time of each runtime per fine voxel, and how far it is off."""
    (stage,) = design_for("zyx", (2, 2, 2), preset=preset).stages
    network = Network(stage.layers, "zyx", stage.slope).eval()
    network.start(torch.Generator().manual_seed(0))
    size = [t + 2 * reach for t, reach in zip(tile, network.reach, strict=True)]
    block = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        prepared = dict(runs(network, block, Path(folder)))
        outputs = {name: run() for name, run in prepared.items()}
        times = seconds(list(prepared.values()), "cpu", repeats)
    ours = outputs["torch"]
    return [
        {
            "preset": preset,
            "tile": tile,
            "runtime": name,
            "ns_per_fine_voxel": spent / ours.size * 1e9,
            "against_torch": times[0] / spent,
            "largest_difference": float(np.abs(outputs[name] - ours).max() / np.ptp(ours)),
        }
        for name, spent in zip(prepared, times, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "runtimes.json")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    given = parser.parse_args(arguments)
    if not MEMORY_KEPT.items() <= os.environ.items():  # the C library reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MEMORY_KEPT})
    torch.set_num_threads(1)
    found = []
    for preset in PRESETS:
        for tile in TILES:
            rows = measure(preset, tile, given.repeats)
            print(*rows, sep="\n", flush=True)
            found += rows
    versions = {name: version(name) for name in ("onnxruntime", "openvino")}
    given.output.write_text(json.dumps({"environment": {**environment(), **versions}, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
