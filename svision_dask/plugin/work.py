"""What the widget asks for, done step by step: train, then enhance in memory or into an OME-Zarr; no napari in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from svision_dask.backend import Backend, best_device, best_precision
from svision_dask.commands.console import size_words, training_lines
from svision_dask.errors import PlanError
from svision_dask.geometry import Grid, parse_factor
from svision_dask.network.architecture import Preset
from svision_dask.omezarr.read import describe_omezarr
from svision_dask.opening.formats import open_volume
from svision_dask.running.arguments import parse_numbers
from svision_dask.running.cluster import this_machine
from svision_dask.running.output import check_output

if TYPE_CHECKING:
    import dask.array as da

    from svision_dask.network.model import Model
    from svision_dask.running.progress import RunProgress
    from svision_dask.training.train import Progress
    from svision_dask.volume import Volume

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is. What it raises ends the work."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to make of what."""

    volume: Volume
    factor: str
    """As ``--factor`` has it."""
    preset: Preset
    output: Path | None = None
    """OME-Zarr to make; None for an array in memory."""
    overwrite: bool = False
    """Replace an OME-Zarr image that is there."""
    steps: int | None = None
    """Of training, instead of the preset's."""


@dataclass(frozen=True, kw_only=True)
class Enhanced:
    """What was made."""

    levels: tuple[npt.NDArray[Any] | da.Array, ...]
    """Voxels, finest first: one array in memory, or the pyramid of the OME-Zarr, which is read when it is looked at."""
    grid: Grid
    """Of the finest."""
    words: tuple[str, ...]
    """What the model is worth, and what to beware of."""


def run(task: Task, report: Report) -> Enhanced:
    """Train on a volume, and enhance it.

    Raises
    ------
    SvisionError
        Of the class that fits; before training, if there is no room for the result, or something is there.
    """
    report("looking at the volume", 0, 0)
    factor: Any = parse_numbers(task.factor, option="factor")
    if task.output is None:
        _check_memory(task.volume, parse_factor(factor, task.volume.grid.axes))
    else:
        check_output(task.output, *task.volume.paths, overwrite=task.overwrite)
    from svision_dask.training.drift import drift  # torch takes seconds, which the widget does not wait for
    from svision_dask.training.train import train

    def on_step(state: Progress) -> None:
        gain = "" if state.gain is None else f", {state.gain:+.1f} dB over cubic"
        report(f"training stage {state.stage + 1} of {state.stages}{gain}", state.step, state.steps)

    model = train(task.volume, factor=factor, preset=task.preset, steps=task.steps, on_step=on_step)
    words = (*training_lines(model.provenance), *drift(model, task.volume))
    if task.output is None:
        return _in_memory(task.volume, model, words, report)
    return _in_omezarr(task, task.output, model, words, report)


def _in_memory(volume: Volume, model: Model, words: tuple[str, ...], report: Report) -> Enhanced:
    from svision_dask.running.enhancement import enhance

    device = best_device()
    fine = enhance(volume, model, backend=Backend(device=device, precision=best_precision(device)))
    return Enhanced(levels=(computed(fine.voxels, report),), grid=fine.grid, words=words)


def _in_omezarr(task: Task, output: Path, model: Model, words: tuple[str, ...], report: Report) -> Enhanced:
    from svision_dask.running.pipeline import enhance_to_zarr

    def on_progress(state: RunProgress) -> None:
        report("enhancing" if state.level == 0 else f"pyramid, level {state.level}", state.done, state.regions)

    report("starting workers", 0, 0)
    enhance_to_zarr(task.volume, output, model=model, overwrite=task.overwrite, on_progress=on_progress)
    levels = [open_volume(output, level=level) for level in range(len(describe_omezarr(output).levels))]
    return Enhanced(levels=tuple(level.voxels for level in levels), grid=levels[0].grid, words=words)


def computed(voxels: da.Array, report: Report) -> npt.NDArray[Any]:
    """Compute a lazy result tile by tile: each is one pass of the network, which has all cores, and can be the last."""
    whole = np.empty(voxels.shape, voxels.dtype)
    edges = [np.cumsum((0, *lengths)) for lengths in voxels.chunks]
    places = list(np.ndindex(*voxels.numblocks))
    for done, place in enumerate(places):
        report("enhancing", done, len(places))
        box = tuple(slice(edge[i], edge[i + 1]) for edge, i in zip(edges, place, strict=True))
        whole[box] = voxels.blocks[place].compute(scheduler="synchronous")
    return whole


def _check_memory(volume: Volume, factor: tuple[int, ...]) -> None:
    """Refuse what would not fit, before training."""
    needed = volume.dtype.itemsize * math.prod(n * f for n, f in zip(volume.grid.shape, factor, strict=True))
    free = this_machine().memory_bytes
    if needed > free:
        raise PlanError(
            f"{volume.name}: the result has {size_words(needed)}, and {size_words(free)} of memory may be used. "
            "Name an OME-Zarr to write it to."
        )
