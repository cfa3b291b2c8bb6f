"""From a volume and a model to a finished OME-Zarr: plan, create, fill region by region, coarsen, publish."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from svision_dask.backend import process_bytes
from svision_dask.errors import UsageError
from svision_dask.geometry import SPATIAL, Grid
from svision_dask.network.architecture import Architecture
from svision_dask.network.ensemble import map_bytes, orientations, reduction_margin
from svision_dask.network.model import Model, load_model, model_file
from svision_dask.omezarr.pyramid import pyramid_grids, whole_steps
from svision_dask.opening.formats import open_volume
from svision_dask.plan import Plan, plan_enhancement
from svision_dask.running.cluster import this_machine, wishes_here
from svision_dask.running.enhancement import check_model, full_factor
from svision_dask.running.image import Job, make_image
from svision_dask.running.label_images import check_labels
from svision_dask.running.outcome import Report
from svision_dask.running.output import as_recorded, check_output
from svision_dask.running.preflight import check_workers
from svision_dask.running.progress import ClusterState, RunProgress
from svision_dask.running.regions import CopyTask, EnhanceTask
from svision_dask.stores.locations import Location, Remote, located, state_folder
from svision_dask.training.drift import DriftWarning, drift
from svision_dask.training.noise_estimate import Noise
from svision_dask.volume import Volume
from svision_dask.wishes import Machine, Wishes

if TYPE_CHECKING:
    from distributed import Client

CURVES = ("loss", "exam")
"""Of a model's provenance: what training went through, step by step."""


def plan_volume(
    volume: Volume,
    design: Model | Architecture,
    *,
    output: str | Location | None = None,
    dtype: str = "same",
    wishes: Wishes | None = None,
    machine: Machine | None = None,
    client: Client | None = None,
) -> Plan:
    """Plan the enhancement of ``volume`` by a model, or by one that is yet to be trained.

    Parameters
    ----------
    volume, design
        What is enhanced, and by what: a model, or the architecture of one.
    output
        Where it is to be made; its disk must have room for it.
    dtype
        ``"same"`` as the volume's, or ``"float32"``.
    wishes
        What is fixed already.
    machine
        To plan for; by default, this one.
    client
        Of a cluster to plan for instead.

    Returns
    -------
    Plan
        Regions, tiles, halo, bytes and memory.

    Raises
    ------
    ClusterError
        If workers of the cluster cannot do the work.
    PlanError
        If it cannot be cut as asked, or does not fit the machine.
    UsageError
        If ``dtype`` is neither ``"same"`` nor ``"float32"``, the pyramid cannot be had, as `levels_of`, or there are no
        orientations to compare for trust maps.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import svision_dask as sv
    >>> voxels = np.random.default_rng(0).poisson(9, (8, 32, 32)).astype("uint8")
    >>> model = sv.train(sv.open_volume(voxels, spacing=1), factor=2, steps=1)
    >>> brain = sv.open_volume(da.zeros((2000, 8000, 8000), chunks=256, dtype="uint8"), spacing=1)
    >>> plan = sv.plan_volume(brain, model, machine=sv.Machine(cores=8, memory_bytes=32 * 2**30))
    >>> plan.fine.shape, plan.halo, plan.workers
    ((4000, 16000, 16000), (3, 3, 3), 8)
    """
    if dtype not in ("same", "float32"):
        raise UsageError(f"dtype {dtype!r}: allowed are same and float32.")
    written = volume.dtype if dtype == "same" else np.dtype(np.float32)
    design = design.architecture if isinstance(design, Model) else design
    wishes = wishes or Wishes()
    machine = machine or this_machine(output, gpus=client is None and wishes.device != "cpu")
    wishes = check_workers(client, device=wishes.device).wishes(wishes) if client else wishes_here(wishes, machine)
    if wishes.trust and len(orientations(design.stages)) == 1:
        raise UsageError(
            "--trust: where coarse voxels are points, and y and x are not refined alike, there is one orientation, and "
            "nothing to compare it with. Leave out --trust."
        )
    named, half = dict(zip(SPATIAL, design.factor, strict=True)), wishes.precision not in (None, "float32")
    image_bytes = partial(design.tile_bytes, half=half)
    plan = plan_enhancement(
        volume.grid,
        factor=tuple(named.get(axis, 1) for axis in volume.grid.axes),
        halo=design.halo,
        itemsize=volume.dtype.itemsize,
        dtype=written.name,
        dtype_itemsize=written.itemsize,
        tile_bytes=partial(map_bytes, design, half=half) if wishes.trust else image_bytes,
        image_bytes=image_bytes,
        machine=machine,
        wishes=wishes,
        sampling=design.sampling,
        margin=reduction_margin(design),
        kept_bytes=volume.kept_bytes,
        stored=volume.stored,
    )
    levels_of(plan, volume)  # a pyramid that cannot be is refused now, and so are labels
    return plan


def enhance_to_zarr(
    source: Volume | str | Location,
    output: str | Location,
    *,
    model: Model | str | Path,
    plan: Plan | None = None,
    dtype: str = "same",
    wishes: Wishes | None = None,
    client: Client | None = None,
    empty_below: float | None = None,
    trust: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[RunProgress], None] | None = None,
    on_workers: Callable[[ClusterState], None] | None = None,
) -> Report:
    """Enhance a volume of any size into an OME-Zarr with a pyramid.

    Regions of whole shards are made by the workers of a Dask cluster, a few at a time, so that neither the client nor a
    worker needs more memory for a larger volume. Every shard is read back. The multiscales metadata are written last:
    what is unfinished does not look finished. An unfinished output of the same input, model and options is gone on with
    where it stopped.

    Parameters
    ----------
    source
        A volume, or the path of one. Workers read from its source; a volume without one travels to them.
    output
        Folder to make, or the URL of an object store (s3, gs).
    model
        A model, which is then kept beside the output (`model_path_beside`), as one at a URL is; or the path of one. For
        both, see `load_model`.
    plan
        Made by ``plan_volume`` for this volume and model; by default, made here from ``dtype`` and ``wishes``.
    dtype, wishes
        As ``plan_volume``.
    client
        Of a cluster whose workers see ``source`` and ``output`` under the same paths; by default, worker processes are
        started on this machine.
    empty_below
        Take regions for zeros in which, halo included, every voxel is below this intensity. Tiles of a single value
        are never computed twice anyway.
    trust
        Also write the maps ``trust/spread`` and ``trust/consistency`` into the output; see docs/compare.md. The network
        then runs nine times as often, three times with preset ``paper``. The image itself is the same, given the tile.
    overwrite
        Replace an OME-Zarr that is in the way, also an unfinished one.
    resume
        Insist on an unfinished output to go on with.
    on_progress
        Called after each region.
    on_workers
        Called with what the workers do, every few seconds, from another thread.

    Returns
    -------
    Report
        What was made.

    Raises
    ------
    SvisionError
        Of the class that fits; see ``errors``.

    Warns
    -----
    DriftWarning
        If the volume is unlike the one that the model was trained on.
    """
    started = time.monotonic()
    volume = source if isinstance(source, Volume) else open_volume(source)
    check_output(output, *volume.paths, overwrite=overwrite, resume=resume)
    if empty_below is not None and not math.isfinite(empty_below):
        raise UsageError(f"empty_below {empty_below}: allowed are finite numbers. Use --empty-below 0.")
    trained = model if isinstance(model, Model) else load_model(model)
    check_model(trained, volume)
    differences = drift(trained, volume)
    for difference in differences:
        warnings.warn(f"{volume.name}: {difference}. Train on this volume, or renormalise.", DriftWarning, stacklevel=2)
    wishes = (wishes or Wishes()) if overwrite else as_recorded(output, wishes)
    wishes = replace(wishes, trust=wishes.trust or trust)
    plan = plan or plan_volume(volume, trained, output=output, dtype=dtype, wishes=wishes, client=client)
    own = None if isinstance(model, Model) else model_file(model)
    kept = model_path_beside(output, trained.digest)
    if client is not None:
        check_workers(client, volume=volume, output=output, model=own or kept, device=plan.backend.device)
    _check_plan(plan, volume, trained)
    if trust and not plan.trust:
        raise UsageError("plan: made without trust maps. Make it with Wishes(trust=True).")
    kept.parent.mkdir(parents=True, exist_ok=True)
    path = own or trained.save(kept)
    task = EnhanceTask(
        volume=volume.bare,
        model_path=str(path.absolute()),
        model_digest=trained.digest,
        output=str(located(output).absolute()),
        plan=plan,
        empty_below=empty_below,
    )
    about = {
        "package": f"svision-dask {version('svision-dask')}",
        "input": volume.name,
        "chosen": {axis: list(which) for axis, which in volume.chosen.items()},
        "dropped": list(volume.dropped),
        "model": trained.digest,
        "drift": differences,
        # The curves stay in the model, which is kept; readers of the image load all of its attributes.
        "training": {key: value for key, value in trained.provenance.items() if key not in CURVES},
    }
    if trained.training_seconds is not None:
        about["times"] = {"training_seconds": round(trained.training_seconds, 3)}
    job = Job(
        volume=volume,
        output=located(output),
        plan=plan,
        task=task,
        model=trained.digest,
        about=about,
        empty_below=empty_below,
        levels=levels_of(plan, volume),
        noise=_measured_noise(trained),
    )
    made = make_image(job, client=client, overwrite=overwrite, on_progress=on_progress, on_workers=on_workers)
    return Report(
        output=str(output),
        plan=plan,
        made=made,
        model_path=str(path),
        model_digest=trained.digest,
        seconds=time.monotonic() - started,
    )


def levels_of(plan: Plan, volume: Volume) -> tuple[Grid, ...]:
    """Choose the grids of an output's pyramid, on which its labels can be written too.

    Raises
    ------
    PlanError
        If regions of labels, which may have larger voxels than the image, do not fit where those of the image do.
    UsageError
        If it is to match that of the input, and there is none, or its steps are not whole.
    """
    steps = whole_steps(volume.levels) if plan.pyramid == "match" and volume.levels else ()
    if plan.pyramid == "match" and (steps is None or not volume.levels):
        what = "has levels that are not whole steps apart" if volume.levels else "has no pyramid to match"
        raise UsageError(f"{volume.name} {what}. Use --pyramid isotropic, xy or none.")
    levels = tuple(pyramid_grids(plan.fine, kind=plan.pyramid, steps=steps or ()))
    check_labels(volume.labels, levels, plan)
    return levels


def _check_plan(plan: Plan, volume: Volume, model: Model) -> None:
    """Refuse a plan made for something else: its spacing would be published as this volume's."""
    made_for = (
        plan.coarse,
        plan.fine,
        tuple(h for h, a in zip(plan.halo, plan.coarse.axes, strict=True) if a in SPATIAL),
    )
    axes = volume.grid.axes
    halo = tuple(h for h, a in zip(model.halo, SPATIAL, strict=True) if a in axes)
    fine = volume.grid.finer(full_factor(model, axes), model.architecture.sampling)
    of_type = plan.dtype in (volume.dtype.name, "float32")  # any other would be clipped without a word
    if made_for != (volume.grid, fine, halo) or not of_type:
        raise UsageError(f"plan: made for another volume or model than {volume.name}. Make it with plan_volume.")


def _measured_noise(model: Model) -> tuple[Noise, ...]:
    """Read the noise of each channel that training measured; none where it did not."""
    try:
        noise = tuple(Noise(**each) for each in model.provenance["noise"][0])
        finite = all(math.isfinite(value) for each in noise for value in (each.floor, each.gain, each.offset))
    except (KeyError, IndexError, TypeError):
        return ()
    return noise if finite else ()


def model_path_beside(output: str | Location, digest: str) -> Path:
    """Where ``enhance_to_zarr`` keeps a model: named by its content, so that a file never changes under its name.

    For an output at a URL it is in a folder of the user (`locations.state_folder`), which workers must see.
    """
    target = located(output).absolute()
    folder = state_folder(target) if isinstance(target, Remote) else target.parent
    return folder / f"{target.name.removesuffix('.zarr').removesuffix('.ome')}-{digest[:8]}.safetensors"


def copy_to_zarr(
    volume: Volume,
    output: str | Location,
    *,
    wishes: Wishes | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[RunProgress], None] | None = None,
    on_workers: Callable[[ClusterState], None] | None = None,
) -> Plan:
    """Write a volume as it is into an OME-Zarr with a pyramid: ``enhance_to_zarr`` without a model.

    Parameters
    ----------
    volume
        What is written, all axes, in its own dtype.
    output, wishes, client, overwrite, resume, on_progress, on_workers
        As ``enhance_to_zarr``.

    Returns
    -------
    Plan
        How it was cut.

    Raises
    ------
    SvisionError
        Of the class that fits; see ``errors``.
    """
    check_output(output, *volume.paths, overwrite=overwrite, resume=resume)
    ones = (1,) * len(volume.grid.axes)
    wishes = (wishes or Wishes()) if overwrite else as_recorded(output, wishes)
    if client is not None:
        wishes = check_workers(client, volume=volume, output=output).wishes(wishes)
    else:
        wishes = replace(wishes, process_bytes=process_bytes())
    plan = plan_enhancement(
        volume.grid,
        factor=ones,
        halo=(0, 0, 0),
        itemsize=volume.dtype.itemsize,
        dtype=volume.dtype.name,
        dtype_itemsize=volume.dtype.itemsize,
        tile_bytes=lambda tile: 0,
        machine=this_machine(output),
        kept_bytes=volume.kept_bytes,
        stored=volume.stored,
        wishes=replace(wishes, device="cpu", gpu_bytes=None, trust=False),
    )
    package = f"svision-dask {version('svision-dask')}"
    about = {
        "package": package,
        "input": volume.name,
        "chosen": {axis: list(which) for axis, which in volume.chosen.items()},
        "dropped": list(volume.dropped),
    }
    task = CopyTask(volume=volume.bare, output=str(located(output).absolute()))
    job = Job(
        volume=volume,
        output=located(output),
        plan=plan,
        task=task,
        model=None,
        about=about,
        levels=levels_of(plan, volume),
    )
    make_image(job, client=client, overwrite=overwrite, on_progress=on_progress, on_workers=on_workers)
    return plan
