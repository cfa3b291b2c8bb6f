"""Make an OME-Zarr image region by region: create the store or go on with it, fill it, coarsen it, publish it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from svision_dask.errors import OutputError
from svision_dask.geometry import Grid, Regions
from svision_dask.omezarr.arrays import storage_shapes
from svision_dask.omezarr.checksums import store_checksums
from svision_dask.omezarr.labels import on_grid
from svision_dask.omezarr.pyramid import step_between
from svision_dask.omezarr.read import StoredArray, is_omezarr, read_provenance
from svision_dask.omezarr.write import add_levels, create_store, list_labels, open_level, publish
from svision_dask.plan import Plan, Wishes
from svision_dask.running.cluster import own_or
from svision_dask.running.label_images import label_levels, label_place, label_plan
from svision_dask.running.ledger import UNDONE, Ledger, Receipt, Record, claim, first_difference
from svision_dask.running.output import begun_record, remove_existing
from svision_dask.running.progress import ClusterState, RunProgress, Tally, timestamp, watched
from svision_dask.running.regions import CoarsenTask, CopyTask, EnhanceTask
from svision_dask.running.scheduling import RegionTask, run_regions
from svision_dask.stores.locations import Location, Remote
from svision_dask.volume import Label, Shown, Volume
from svision_dask.workload import GPU_SEATS

if TYPE_CHECKING:
    from distributed import Client

MEASURED = 384
"""Voxels per axis, at most, that percentiles are taken of."""
SHOWN = (0.1, 99.9)
"""Percentiles of the coarsest level between which viewers show a channel at first."""
RECORDED = (
    *("axes", "input_shape", "output_spacing", "output_origin", "units", "factor", "halo", "tile", "chunk"),
    *("device", "precision", "codec"),
)
"""Of the plan, with shard, region, version and dtype: what decides on voxels and where they are."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of a job."""

    levels: tuple[Grid, ...]
    """Of the pyramid, finest first."""
    missing_chunks: int
    """Of the input; they counted as empty."""
    empty_regions: int
    """In which, halo included, there is a single value only."""
    smaller_tiles: int
    """Regions for which memory ran out with the planned tiles: they agree with their neighbours to rounding only."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be made, of what, and where."""

    volume: Volume
    output: Location
    plan: Plan
    task: EnhanceTask | CopyTask
    """Makes regions of level 0."""
    model: str | None
    """Digest of the model, if there is one."""
    about: dict[str, Any]
    """Provenance, as JSON values."""
    empty_below: float | None = None
    """What the task takes for empty."""
    label: Label | None = None
    """If labels are to be made: which, as the input has them."""
    levels: tuple[Grid, ...]
    """Of the pyramid, finest first."""

    @property
    def record(self) -> Record:
        """Whatever would change a voxel: two jobs of one record make the same image."""
        planned = self.plan.to_json()
        return {
            "input": self.volume.identity,
            "model": self.model,
            "empty_below": self.empty_below,
            **{key: planned[key] for key in (*RECORDED, "shard", "region", "version", "dtype")},
            "levels": [list(grid.shape) for grid in self.levels],
            **{package: version(package) for package in ("svision-dask", "torch")},
        }


def as_recorded(output: str | Location, wishes: Wishes | None) -> Wishes:
    """Wish for what an unfinished output was begun with: its tiles must not depend on the memory that is free now."""
    wishes, record = wishes or Wishes(), begun_record(output)
    if record is None or record.get("version") != wishes.version:
        return wishes
    return replace(
        wishes,
        tile=wishes.tile or record.get("tile"),
        chunk=wishes.chunk or record.get("chunk"),
        shard=wishes.shard or record.get("shard"),
        device=wishes.device or record.get("device"),
        precision=wishes.precision or record.get("precision"),
    )


def make_image(
    job: Job,
    *,
    client: Client | None,
    overwrite: bool,
    on_progress: Callable[[RunProgress], None] | None,
    on_workers: Callable[[ClusterState], None] | None = None,
) -> Made:
    """Make what is missing of an image: all of it, or what an interrupted run left.

    Parameters
    ----------
    job
        Its output was allowed by ``output.check_output``.
    client
        Of the cluster to use; by default, one is started on this machine.
    overwrite
        Replace what is there, instead of going on with it.
    on_progress
        Called after each region.
    on_workers
        Called with what the workers do, every few seconds, from another thread.

    Returns
    -------
    Made
        What it came to.

    Raises
    ------
    OutputError
        If another run makes this output, or it was begun with something else.
    RegionError
        If regions could not be made; what was made stays, to go on with.
    """
    plan, levels = job.plan, job.levels
    cuts = [plan.regions, *(_regions(plan, grid) for grid in levels[1:])]
    tally = Tally(cuts=cuts, axes=plan.fine.axes, itemsize=np.dtype(plan.dtype).itemsize, on_progress=on_progress)
    with claim(job.output) as ledger:
        for receipt in _begun(ledger, job, levels, cuts, overwrite=overwrite):
            tally.add(receipt)

        def on_receipt(receipt: Receipt) -> None:
            ledger.add(receipt)
            tally.show(receipt)

        gpus = plan.backend.device == "cuda"
        with (
            own_or(client, workers=plan.workers, memory_bytes=plan.memory_bytes, on_gpus=gpus) as cluster,
            watched(cluster, tally, on_workers),
        ):
            for level, regions in enumerate(cuts):
                run_regions(
                    cluster,
                    _task(job, levels, level, ledger.run),
                    ledger.left(level, regions),
                    on_receipt=on_receipt,
                    on_failure=tally.fail,
                    seats=GPU_SEATS if gpus and level == 0 else 1,
                )
            _make_labels(job, cluster)
        for level, regions in enumerate(cuts):
            assert UNDONE not in ledger.checksums[level], level
            made = ledger.checksums[level].astype(np.uint32).reshape(regions.counts)
            store_checksums(job.output, level, made, unit=regions.unit)
        publish(
            job.output,
            levels,
            name=job.volume.name,
            channels=job.volume.channels,
            version=plan.version,
            attributes={
                **job.about,
                "times": {**read_provenance(job.output).get("times", {}), **tally.times()},
                "plan": plan.to_json(),
                "record": job.record,
                **({"labels": [label.name for label in job.volume.labels]} if job.volume.labels else {}),
                **tally.counted,
            },
            shown=_shown(job, tally.limits) if job.label is None else None,
            label=job.label.described if job.label else None,
            carried=job.volume.carried,
        )
    return Made(levels=levels, **tally.counted)


def _make_labels(job: Job, cluster: Client) -> None:
    """Make the labels of an image before it is published: what looks finished must be."""
    for label in job.volume.labels:
        _make_label(_label_job(job, label), cluster)
    if job.volume.labels:
        list_labels(job.output, [label.name for label in job.volume.labels], version=job.plan.version)


def _label_job(job: Job, label: Label) -> Job:
    levels, output = label_levels(label, job.levels), label_place(job.output, label)
    source = replace(label.volume.bare, shown=(), channels=())
    return Job(
        volume=source,
        output=output,
        plan=label_plan(label, levels[0], job.plan),
        task=CopyTask(volume=on_grid(source, levels[0]), output=str(output.absolute())),
        model=None,
        about={"package": job.about["package"], "input": source.name},
        label=label,
        levels=levels,
    )


def _make_label(job: Job, cluster: Client) -> None:
    """Make labels, or go on with them; those that are finished stay."""
    known = read_provenance(job.output) if is_omezarr(job.output) else {}
    record, begun = job.record, begun_record(job.output)
    if known.get("state") == "complete" and first_difference(record, known.get("record") or {}) is None:
        return
    again = bool(known) and (begun is None or first_difference(record, begun) is not None)
    make_image(job, client=cluster, overwrite=again, on_progress=None)


def _begun(
    ledger: Ledger, job: Job, levels: Sequence[Grid], cuts: Sequence[Regions], *, overwrite: bool
) -> Iterator[Receipt]:
    """Create the store, or give the receipts of one that was begun."""
    counts, known, plan = [len(regions) for regions in cuts], begun_record(job.output), job.plan
    stored: Any = {"version": plan.version, "dtype": plan.dtype, "chunks": plan.chunk, "shards": plan.shard}
    stored["codec"] = plan.codec
    if overwrite or known is None:
        if overwrite:
            remove_existing(job.output)
        ledger.begin(job.record, counts)
        times = {"begun": timestamp(), **job.about.get("times", {})}
        create_store(job.output, levels, attributes={**job.about, "run": ledger.run, "times": times}, **stored)
        return
    if not job.volume.identity:
        raise OutputError(f"{job.output} is unfinished, and whether its input was this one cannot be told. {_ANEW}")
    difference = first_difference(job.record, known)
    if difference:
        raise OutputError(f"{job.output} is unfinished, and its {difference}. {_ANEW}")
    if isinstance(job.output, Remote):
        add_levels(job.output, levels, **stored)
    arrays = [StoredArray(open_level(job.output, level)) for level in range(len(levels))]
    for receipt in ledger.resume(counts):
        if arrays[receipt.level].absent(cuts[receipt.level].at(receipt.index).box):
            ledger.forget(receipt)  # a copy that lacks it, a clean-up, a power cut: zarr would read zeros
        else:
            yield receipt


_ANEW = "Use --overwrite to begin anew."


def _regions(plan: Plan, grid: Grid) -> Regions:
    """Cut a coarser level into whole shards, or into as many whole chunks as fit into a region of level 0."""
    chunks, shards = storage_shapes(grid.shape, plan.chunk, plan.shard)
    return Regions(
        shape=grid.shape,
        unit=shards or tuple(max(r // c, 1) * c for r, c in zip(plan.region, chunks, strict=True)),
    )


def _task(job: Job, levels: Sequence[Grid], level: int, run: str) -> RegionTask:
    if level == 0:
        return replace(job.task, run=run)
    output = str(job.output.absolute())
    if job.label is not None:  # each level from the labels themselves: the nearest of the nearest is not the nearest
        return CopyTask(volume=on_grid(job.volume, levels[level]), output=output, run=run, level=level)
    return CoarsenTask(output=output, level=level, factor=step_between(levels[level - 1], levels[level]), run=run)


def _shown(job: Job, limits: dict[int, tuple[float, float]]) -> list[Shown]:
    """Show each channel as the input does, or from its own voxels where the input does not say.

    Voxels of another type have the same intensities, so what is shown stays; the limits of the control, which often are
    those of the type, become those of the voxels.
    """
    given = job.volume.shown or (Shown(),) * len(limits)
    measured = None
    shown = []
    for channel, (each, (low, high)) in enumerate(zip(given, (limits[c] for c in sorted(limits)), strict=True)):
        window = each.window
        if window is None:
            measured = measured or _windows(job.output, job.levels, limits)
            window = measured[channel]
        elif np.dtype(job.plan.dtype) != job.volume.dtype:
            window = (min(low, window[2]), max(high, window[3]), *window[2:])
        shown.append(replace(each, window=window))
    return shown


def _windows(
    output: str | Location, levels: Sequence[Grid], limits: dict[int, tuple[float, float]]
) -> list[tuple[float, float, float, float]]:
    """Per channel: lowest and highest voxel, and percentiles to show, of the first time point's coarsest level.

    Of a level that is not small, because few are wanted, the middle is looked at.
    """
    axes = levels[0].axes
    coarsest = open_level(output, len(levels) - 1)
    windows = []
    for channel, (low, high) in sorted(limits.items()):
        chosen = {"t": slice(0, 1), "c": slice(channel, channel + 1)}
        spatial = (slice(max(0, (n - MEASURED) // 2), (n + MEASURED) // 2) for n in coarsest.shape)
        voxels = np.asarray(coarsest[tuple(chosen.get(a, s) for a, s in zip(axes, spatial, strict=True))])
        finite = voxels[np.isfinite(voxels)].astype(np.float64)
        start, end = (float(v) for v in np.percentile(finite, SHOWN)) if finite.size else (low, high)
        if end <= start:  # nearly all voxels are alike
            end = high if high > start else start + 1
        windows.append((low, high, start, end))
    return windows
