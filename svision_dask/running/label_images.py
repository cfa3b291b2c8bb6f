"""The labels of an output: which images are to be made beside it, and when they are finished."""

from __future__ import annotations

from collections.abc import Sequence

from svision_dask.backend import process_bytes
from svision_dask.geometry import SPATIAL, Grid
from svision_dask.omezarr.arrays import check_storage
from svision_dask.omezarr.labels import label_grid
from svision_dask.plan import Plan, plan_enhancement
from svision_dask.stores.locations import Location
from svision_dask.volume import Label
from svision_dask.wishes import Machine, Wishes


def label_levels(label: Label, levels: Sequence[Grid]) -> tuple[Grid, ...]:
    """Make the grids of the levels of a label image: as many as the image has, in the same places.

    OME-Zarr 0.4: "Within the multiscales object, the JSON array associated with the datasets key MUST have the same
    number of entries (scale levels) as the original unlabeled image".
    """
    return tuple(label_grid(label.volume.grid, grid) for grid in levels)


def label_plan(label: Label, fine: Grid, plan: Plan) -> Plan:
    """Plan to write labels on ``fine``, level 0 of `label_levels`, stored as the image is that ``plan`` is for.

    Raises
    ------
    PlanError
        If regions of labels do not fit where regions of the image do.
    """
    axes, dtype = plan.fine.axes, label.volume.dtype
    spatial = [axis for axis in axes if axis in SPATIAL]
    chunk = {axis: plan.chunk[axes.index(axis)] for axis in spatial}
    shard = {axis: plan.shard[axes.index(axis)] for axis in spatial} if plan.shard is not None else None
    machine = Machine(cores=plan.workers * plan.threads, memory_bytes=plan.workers * plan.memory_bytes)
    wishes = Wishes(
        chunk=chunk,
        shard=shard,
        workers=plan.workers,
        process_bytes=process_bytes(),
        device="cpu",
        version=plan.version,
        codec=plan.codec,
        pyramid=plan.pyramid,
    )
    return plan_enhancement(
        fine,
        factor=(1,) * len(fine.axes),
        halo=(0, 0, 0),
        itemsize=dtype.itemsize,
        dtype=dtype.name,
        dtype_itemsize=dtype.itemsize,
        tile_bytes=lambda tile: 0,
        machine=machine,
        wishes=wishes,
    )


def check_labels(labels: Sequence[Label], levels: Sequence[Grid], plan: Plan) -> None:
    """Check, before an image is computed, that its labels can be written on ``levels``, those of the image.

    Raises
    ------
    PlanError
        As `label_plan`.
    UsageError
        If they cannot be stored as the image is, as `omezarr.arrays.check_storage`.
    """
    for label in labels:
        grids = label_levels(label, levels)
        planned = label_plan(label, grids[0], plan)
        for grid in grids:
            check_storage(planned.chunk, planned.shard, label.volume.dtype, grid, plan.version)


def label_place(output: Location, label: Label) -> Location:
    """Where the labels of an image are."""
    return output / "labels" / label.name
