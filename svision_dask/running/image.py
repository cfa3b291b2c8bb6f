"""Make an OME-Zarr image region by region: create the store or go on with it, fill it, coarsen it, publish it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from svision_dask.errors import OutputError
from svision_dask.geometry import Grid, Regions, Shape
from svision_dask.omezarr.arrays import storage_shapes
from svision_dask.omezarr.checksums import store_checksums
from svision_dask.omezarr.labels import on_grid
from svision_dask.omezarr.pyramid import coarser_region, step_between
from svision_dask.omezarr.read import StoredArray, is_omezarr, read_provenance
from svision_dask.omezarr.write import add_group, add_levels, create_store, list_labels, open_level, publish
from svision_dask.plan import Plan
from svision_dask.running.cluster import own_or
from svision_dask.running.display import show_channels
from svision_dask.running.label_images import label_levels, label_place, label_plan
from svision_dask.running.ledger import UNDONE, Ledger, Receipt, Record, claim, first_difference
from svision_dask.running.outcome import Made
from svision_dask.running.output import begun_record, remove_existing
from svision_dask.running.patience import patiently
from svision_dask.running.progress import ClusterState, RunProgress, Tally, timestamp, watched
from svision_dask.running.regions import CoarsenTask, CopyTask, EnhanceTask, NextLevel
from svision_dask.running.scheduling import GOES_NOT_ON, GOES_ON, RegionTask, run_regions
from svision_dask.running.trust_images import FOLDER, map_levels, map_place, map_plan
from svision_dask.running.trust_maps import MAPS, MapPlace, TrustTask
from svision_dask.running.trust_summary import summarise_maps
from svision_dask.stores.locations import Location, Remote
from svision_dask.training.noise_estimate import Noise
from svision_dask.volume import Label, Volume

if TYPE_CHECKING:
    from distributed import Client

RECORDED = (
    *("axes", "input_shape", "output_spacing", "output_origin", "units", "factor", "halo", "tile", "chunk"),
    *("device", "precision", "codec", "trust"),
)
"""Of the plan, with shard, region, version and dtype: what decides on voxels and where they are."""


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
    noise: Sequence[Noise] = ()
    """Of the channels of the volume, as training measured it: what trust maps are compared with."""

    @property
    def coarser(self) -> Shape | None:
        """Voxels of level 1 that a region of level 0 makes along with its own, if they are whole chunks.

        Not of labels, whose levels are not means, nor of maps, which are written by the task of their image.
        """
        if self.label is not None or "map" in self.about or len(self.levels) < 2:
            return None
        finest, second = self.levels[:2]
        chunks, _ = storage_shapes(second.shape, self.plan.chunk, None)
        return coarser_region(finest.shape, self.plan.region, _step(self.levels, 1), chunks)

    @property
    def after(self) -> str:
        """What is left to do if a region fails."""
        return GOES_ON if self.volume.identity else GOES_NOT_ON

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
    plan, summary = job.plan, None
    gpus = plan.backend.device == "cuda"
    with _making(job, overwrite=overwrite, on_progress=on_progress) as image:
        with (
            own_or(
                client, workers=plan.workers, memory_bytes=plan.memory_bytes, seats=plan.seats, on_gpus=gpus
            ) as cluster,
            watched(cluster, image.tally, on_workers),
            ExitStack() as stack,
        ):
            if plan.trust:
                add_group(job.output, FOLDER, version=plan.version)
            maps = [stack.enter_context(_making(each)) for each in _map_jobs(job) if not _is_made(each)]
            _make_regions(image, maps, cluster)
            _make_coarser(image, cluster)
            _make_labels(job, cluster)
            for each in maps:
                _make_coarser(each, cluster)
                patiently(partial(_publish, each))
        if plan.trust:
            summary = summarise_maps(job.volume, {kind: map_place(job.output, kind) for kind in MAPS}, job.noise)
        patiently(partial(_publish, image, **({"trust": summary} if summary else {})))
    return Made(levels=job.levels, trust=summary, **image.tally.counted)


@dataclass(frozen=True, kw_only=True)
class _Making:
    """An image whose store is begun, and which this run has locked."""

    job: Job
    ledger: Ledger
    cuts: Sequence[Regions]
    """Of all levels."""
    tally: Tally

    def add(self, receipt: Receipt) -> None:
        """Note that a region is done, or made again because a map of it was missing.

        Another processor, or smaller tiles, may then have given it other voxels, to rounding; their checksum counts.
        """
        known = self._kept(receipt)
        if receipt.coarser is not None and self._kept(receipt.coarser) == UNDONE:
            self.tally.also(receipt.coarser)
        self.tally.show(receipt, again=known != UNDONE)

    def _kept(self, receipt: Receipt) -> int:
        """Keep a receipt; returns the checksum of its region before."""
        known = int(self.ledger.checksums[receipt.level][receipt.index])
        if known != receipt.crc32:
            self.ledger.add(receipt)
        return known


@contextmanager
def _making(
    job: Job, *, overwrite: bool = False, on_progress: Callable[[RunProgress], None] | None = None
) -> Iterator[_Making]:
    """Lock an output, and begin it, or go on with it."""
    cuts = [job.plan.regions, *(_regions(job.plan, grid) for grid in job.levels[1:])]
    if job.coarser is not None:
        cuts[1] = Regions(shape=job.levels[1].shape, unit=job.coarser)
    itemsize = np.dtype(job.plan.dtype).itemsize
    tally = Tally(cuts=cuts, axes=job.plan.fine.axes, itemsize=itemsize, on_progress=on_progress)
    with claim(job.output) as ledger:
        for receipt in _begun(ledger, job, job.levels, cuts, overwrite=overwrite):
            tally.add(receipt)
        yield _Making(job=job, ledger=ledger, cuts=cuts, tally=tally)


def _make_regions(image: _Making, maps: Sequence[_Making], cluster: Client) -> None:
    """Make what is missing of level 0, of the image or of its trust maps: each region with all that belongs to it."""
    job = image.job
    along = NextLevel(factor=_step(job.levels, 1), regions=image.cuts[1]) if job.coarser is not None else None
    task: RegionTask = replace(job.task, run=image.ledger.run, next_level=along)
    if maps:
        assert isinstance(task, EnhanceTask), task
        task = TrustTask(image=task, places=tuple(_map_target(each) for each in maps))
    together = (image, *maps)

    def on_receipt(receipt: Receipt) -> None:
        for making, part in zip(together, (receipt, *receipt.maps), strict=True):
            making.add(part)

    left = np.any([each.ledger.checksums[0] == UNDONE for each in together], axis=0)
    for each in together:
        each.tally.reopen(int((left & (each.ledger.checksums[0] != UNDONE)).sum()))
    run_regions(
        cluster,
        task,
        (image.cuts[0].at(int(index)) for index in np.flatnonzero(left)),
        on_receipt=on_receipt,
        on_failure=image.tally.fail,
        seats=job.plan.seats,
        after=job.after,
    )


def _make_coarser(making: _Making, cluster: Client) -> None:
    """Make what is missing of the coarser levels."""
    for level, regions in enumerate(making.cuts[1:], start=1):
        task = _task(making.job, making.job.levels, level, making.ledger.run)
        left = making.ledger.left(level, regions)
        done, fail = making.add, making.tally.fail
        run_regions(cluster, task, left, on_receipt=done, on_failure=fail, after=making.job.after)


def _publish(making: _Making, **found: Any) -> None:
    """Keep the checksums of an image in it, and turn it into one."""
    job = making.job
    for level, regions in enumerate(making.cuts):
        assert UNDONE not in making.ledger.checksums[level], level
        made = making.ledger.checksums[level].astype(np.uint32).reshape(regions.counts)
        store_checksums(job.output, level, made, unit=regions.unit)
    publish(
        job.output,
        job.levels,
        name=job.volume.name,
        channels=job.volume.channels,
        version=job.plan.version,
        attributes={
            **job.about,
            "times": {**read_provenance(job.output).get("times", {}), **making.tally.times()},
            "plan": job.plan.to_json(),
            "record": job.record,
            **({"labels": [label.name for label in job.volume.labels]} if job.volume.labels else {}),
            **making.tally.counted,
            **found,
        },
        shown=show_channels(job.volume, job.output, job.levels, job.plan.dtype, making.tally.limits)
        if job.label is None
        else None,
        label=job.label.described if job.label else None,
        carried=job.volume.carried,
    )


def _map_jobs(job: Job) -> list[Job]:
    """Plan the trust maps of an image, if it is to have any."""
    jobs = []
    for kind in MAPS if job.plan.trust else ():
        planned = map_plan(kind, job.plan)
        source = replace(job.volume.bare, shown=(), name=f"{job.volume.name} {kind}".strip())
        about = {**job.about, "map": kind}
        levels, output = map_levels(planned, job.volume), map_place(job.output, kind)
        jobs.append(replace(job, volume=source, output=output, plan=planned, about=about, levels=levels))
    return jobs


def _map_target(making: _Making) -> MapPlace:
    job = making.job
    output = str(job.output.absolute())
    return MapPlace(kind=job.about["map"], output=output, run=making.ledger.run, regions=making.cuts[0])


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
    if _is_made(job):
        return
    known = read_provenance(job.output) if is_omezarr(job.output) else {}
    record, begun = job.record, begun_record(job.output)
    again = bool(known) and (begun is None or first_difference(record, begun) is not None)
    make_image(job, client=cluster, overwrite=again, on_progress=None)


def _is_made(job: Job) -> bool:
    """Whether an image is finished already, and would not become another one."""
    known = read_provenance(job.output) if is_omezarr(job.output) else {}
    if known.get("state") != "complete" or first_difference(job.record, known.get("record") or {}) is not None:
        return False
    with claim(job.output):  # a run that was stopped just after it was published has left its ledger
        return True


def _begun(
    ledger: Ledger, job: Job, levels: Sequence[Grid], cuts: Sequence[Regions], *, overwrite: bool
) -> Iterator[Receipt]:
    """Create the store, or give the receipts of one that was begun."""
    counts, known, plan = [len(regions) for regions in cuts], begun_record(job.output), job.plan
    stored: Any = {"version": plan.version, "dtype": plan.dtype, "chunks": plan.chunk, "shards": plan.shard}
    stored["codec"] = plan.codec
    if plan.shard is not None and job.coarser is not None:
        # As large as those of other levels where a region's part holds some of them, and else the part itself.
        parts = zip(job.coarser, plan.shard, strict=True)
        stored["second_shards"] = tuple(part if part % shard else shard for part, shard in parts)
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
    output = str(job.output.absolute())
    if job.label is not None:  # each level from the labels themselves: the nearest of the nearest is not the nearest
        return CopyTask(volume=on_grid(job.volume, levels[level]), output=output, run=run, level=level)
    return CoarsenTask(output=output, level=level, factor=_step(levels, level), run=run)


def _step(levels: Sequence[Grid], level: int) -> Shape:
    return step_between(levels[level - 1], levels[level])
