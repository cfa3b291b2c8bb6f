"""What an exported model says about itself: how to tile it, and where it comes from."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from svision_dask.geometry import SPATIAL
from svision_dask.interchange.graph import Graph
from svision_dask.network.model import Model

INPUT, OUTPUT = "coarse", "fine"
"""Names of the graph's tensors."""
OPSET = 18
"""Of ONNX: 2022, and the first that the exporter of torch writes without converting."""


def facts(model: Model, graph: Graph, *, licence: str) -> dict[str, Any]:
    """Collect, as plain values, what a program needs to run the graph, and a reader to trust it.

    ``halo`` is in coarse voxels per side, in the order of ``axes``: what lies within it of a cut is to be cut off.
    """
    axes, provenance = model.architecture.axes, model.provenance
    named = {
        "axes": f"nc{axes}",
        "factor": _spatial(model.factor, axes),
        "halo": _spatial(model.halo, axes),
        "faces": "mirror, the voxel at the face repeated",
        "sampling": model.architecture.sampling,
        "input": "intensities as measured, float32",
        "output": "intensities, float32, neither rounded nor clipped",
        "offset": graph.offset,
        "scale": graph.scale,
        "preset": provenance.get("preset"),
        "degradation": model.architecture.stages[0].degradation.kind,
        "trained_on": provenance.get("input"),
        "spacing": provenance.get("spacing"),
        "units": provenance.get("units"),
        "self_check": provenance.get("self_check"),
        "model_sha256": model.digest,
        "licence": licence,
        "package": f"svision-dask {version('svision-dask')}",
    }
    return {name: value for name, value in named.items() if value not in (None, "")}


def _spatial(values: tuple[int, ...], axes: str) -> list[int]:
    return [value for axis, value in zip(SPATIAL, values, strict=True) if axis in axes]
