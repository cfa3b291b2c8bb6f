"""A graph traced, and written as ONNX or as ``torch.export`` program."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from svision_dask.interchange.facts import INPUT, OPSET, OUTPUT
from svision_dask.interchange.graph import Graph

FACTS_FILE = "svision_dask.json"
"""In a ``.pt2``: what the model says about itself."""


def write_onnx(graph: Graph, about: dict[str, Any], path: Path) -> None:
    """Write one file, weights included, with dynamic sizes; what it says about itself is in its metadata."""
    import onnx

    program = traced(graph)
    with _quietly():
        made = torch.onnx.export(
            program, input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, dynamo=True, verbose=False
        )
    assert made is not None
    proto = made.model_proto
    del proto.graph.value_info[:]  # sizes of what is between, in names that mean nothing to anyone
    for tensor, factor in ((proto.graph.input[0], None), (proto.graph.output[0], about["factor"])):
        _name_sizes(tensor, about["axes"], factor)
    onnx.helper.set_model_props(
        proto, {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    )
    proto.producer_name, _, proto.producer_version = str(about["package"]).partition(" ")
    proto.doc_string = f"Raw intensities ({', '.join(about['axes'])}) to {about['factor']} times finer ones."
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))


def traced(graph: Graph) -> torch.export.ExportedProgram:
    """Trace a graph, for any size of its input."""
    from torch.export import Dim

    example = graph.example()
    names = {0: "n", **dict(enumerate("yx" if graph.planar else "zyx", start=2))}
    sizes = {axis: Dim(name, min=1) for axis, name in names.items()}
    with _quietly(), torch.inference_mode():
        return torch.export.export(graph, (example,), dynamic_shapes=(sizes,), strict=False)


def write_pt2(graph: Graph, about: dict[str, Any], path: Path) -> None:
    """Write a program that torch runs without us; what it says about itself is in a file beside it in the archive."""
    program = traced(graph)
    with _quietly():
        torch.export.save(program, path, extra_files={FACTS_FILE: json.dumps(about, indent=2)})


def _name_sizes(tensor: Any, axes: str, factor: Sequence[int] | None) -> None:
    """Name the sizes of a tensor by its axes; those of the output are multiples of the input's."""
    multiples = [1, 1, *(factor or [1] * (len(axes) - 2))]
    for size, axis, multiple in zip(tensor.type.tensor_type.shape.dim, axes, multiples, strict=True):
        if axis != "c":
            size.dim_param = axis if multiple == 1 else f"{multiple}*{axis}"


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to itself what the exporter says about itself: what is wrong comes as an error."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _own_kernels_afterwards():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _own_kernels_afterwards() -> Iterator[None]:
    """Take care of the settings that torch's exporter switches off, and leaves off where it fails in between.

    Without oneDNN, every convolution that follows in this process takes thirty times as long. What `compute_exactly`
    has set is what makes it fail: it asks for one setting of all operators, by the name that it had before.
    """
    cudnn: Any = torch.backends.cudnn
    enabled, exactly = torch.backends.mkldnn.enabled, cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = exactly
        torch.backends.mkldnn.enabled = enabled
