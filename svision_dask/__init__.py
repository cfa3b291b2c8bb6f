"""Enhance the resolution of microscope volumes of any size, by self-supervision, from OME-Zarr to OME-Zarr.

>>> import svision_dask as sv
>>> volume = sv.open_volume("brain.ome.zarr")  # doctest: +SKIP
>>> model = sv.train(volume, factor={"z": 1, "y": 2, "x": 2})  # doctest: +SKIP
>>> fine = sv.enhance(volume, model)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svision_dask.backend import Backend
    from svision_dask.errors import (
        ClusterError,
        ImageError,
        ModelError,
        OutputError,
        PlanError,
        RegionError,
        SampleError,
        SvisionError,
        UsageError,
    )
    from svision_dask.geometry import Grid
    from svision_dask.interchange.export import export_model
    from svision_dask.judging.comparison import Comparison, compare
    from svision_dask.judging.report import write_report
    from svision_dask.judging.viewing import View, view
    from svision_dask.network.architecture import Architecture
    from svision_dask.network.model import Model, load_model
    from svision_dask.opening.formats import open_volume, stack_channels
    from svision_dask.plan import Plan
    from svision_dask.running.enhancement import enhance
    from svision_dask.running.outcome import Report
    from svision_dask.running.pipeline import copy_to_zarr, enhance_to_zarr, plan_volume
    from svision_dask.running.progress import ClusterState, RunProgress
    from svision_dask.running.verification import Verification, verify
    from svision_dask.training.drift import DriftWarning
    from svision_dask.training.train import Progress, train
    from svision_dask.volume import Source, Volume
    from svision_dask.wishes import Machine, Wishes

_HOMES = {
    "Architecture": "network.architecture",
    "Backend": "backend",
    "ClusterError": "errors",
    "ClusterState": "running.progress",
    "Comparison": "judging.comparison",
    "DriftWarning": "training.drift",
    "Grid": "geometry",
    "ImageError": "errors",
    "Machine": "wishes",
    "Model": "network.model",
    "ModelError": "errors",
    "OutputError": "errors",
    "Plan": "plan",
    "PlanError": "errors",
    "Progress": "training.train",
    "RegionError": "errors",
    "Report": "running.outcome",
    "RunProgress": "running.progress",
    "SampleError": "errors",
    "Source": "volume",
    "SvisionError": "errors",
    "UsageError": "errors",
    "Verification": "running.verification",
    "View": "judging.viewing",
    "Volume": "volume",
    "Wishes": "wishes",
    "compare": "judging.comparison",
    "copy_to_zarr": "running.pipeline",
    "enhance": "running.enhancement",
    "enhance_to_zarr": "running.pipeline",
    "export_model": "interchange.export",
    "load_model": "network.model",
    "open_volume": "opening.formats",
    "plan_volume": "running.pipeline",
    "stack_channels": "opening.formats",
    "train": "training.train",
    "verify": "running.verification",
    "view": "judging.viewing",
    "write_report": "judging.report",
}

__all__ = [
    "Architecture",
    "Backend",
    "ClusterError",
    "ClusterState",
    "Comparison",
    "DriftWarning",
    "Grid",
    "ImageError",
    "Machine",
    "Model",
    "ModelError",
    "OutputError",
    "Plan",
    "PlanError",
    "Progress",
    "RegionError",
    "Report",
    "RunProgress",
    "SampleError",
    "Source",
    "SvisionError",
    "UsageError",
    "Verification",
    "View",
    "Volume",
    "Wishes",
    "compare",
    "copy_to_zarr",
    "enhance",
    "enhance_to_zarr",
    "export_model",
    "load_model",
    "open_volume",
    "plan_volume",
    "stack_channels",
    "train",
    "verify",
    "view",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: torch alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # next time without this detour, and before a submodule of the same name
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
