"""Enhance every field of a plate or of a well, by one model, into a plate or well of the same layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svision_dask.errors import ImageError, OutputError
from svision_dask.network.model import Model
from svision_dask.omezarr.collections import Collection, read_collection
from svision_dask.omezarr.metadata import is_omezarr, read_attributes, read_provenance
from svision_dask.omezarr.write import create_collection, publish_collection
from svision_dask.opening.formats import open_volume
from svision_dask.plan import Plan
from svision_dask.running.cluster import own_or
from svision_dask.running.enhancement import full_factor
from svision_dask.running.ledger import Record, claim, first_difference
from svision_dask.running.output import begun_record, check_apart, check_output, forget_finished, remove_existing
from svision_dask.running.pipeline import enhance_to_zarr, model_path_beside, plan_volume
from svision_dask.running.preflight import check_workers
from svision_dask.running.progress import ClusterState, RunProgress
from svision_dask.stores.locations import Location, local_path, located
from svision_dask.volume import Volume
from svision_dask.wishes import Version, Wishes

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True, kw_only=True)
class FieldsReport:
    """What was made of a plate or well."""

    output: str
    model_path: str
    made: tuple[str, ...]
    """Paths of the fields that were made by this run."""
    finished: tuple[str, ...]
    """Paths of those that were there already."""


def fields_of(source: str | Location) -> Collection | None:
    """Say which fields a plate or well has; None for anything else."""
    place = located(source)
    if isinstance(place, Path) and (not place.is_dir() or not is_omezarr(place)):
        return None
    collection = read_collection(place)
    return collection if collection is not None and collection.kind in ("plate", "well") else None


def check_fields(source: str | Location, opening: Mapping[str, Any] | None = None) -> Collection:
    """Open every field of a plate or well, without reading voxels, and say which there are.

    Raises
    ------
    ImageError
        If it is no plate or well, or one of its fields is not there or cannot be read.
    """
    place = located(source)
    collection = fields_of(place)
    if collection is None:
        raise ImageError(f"{place} is no plate and no well. Use enhance_to_zarr for an image.")
    for field in collection.images:
        _open(place, field, opening)
    return collection


def enhance_fields(
    source: str | Location,
    output: str,
    *,
    model: Model,
    dtype: str = "same",
    wishes: Wishes | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    opening: Mapping[str, Any] | None = None,
    on_field: Callable[[int, int, str], None] | None = None,
    on_progress: Callable[[RunProgress], None] | None = None,
    on_workers: Callable[[ClusterState], None] | None = None,
) -> FieldsReport:
    """Enhance all fields of a plate or well, one after the other; run again, it goes on with those that are missing.

    The output is an OME-Zarr of the same layout: rows, columns, wells, acquisitions and names stay. It has no metadata
    of a plate, or well, until all fields are finished.

    Parameters
    ----------
    source
        Plate or well.
    output
        Folder to make.
    model
        For all fields, which share the optics; it is kept beside the output.
    dtype, wishes, client
        As `pipeline.enhance_to_zarr`.
    overwrite
        Replace an output of this function.
    opening
        Options of `formats.open_volume` for every field.
    on_field
        Called before each field with its number from 0, how many there are, and its path.
    on_progress, on_workers
        As `pipeline.enhance_to_zarr`, of the field that is being made.

    Raises
    ------
    ImageError
        If it is no plate or well, or one of its fields cannot be read: before the first is made.
    OutputError
        If something else is in the way, another run makes it, or it was begun with something else.
    SvisionError
        As `pipeline.enhance_to_zarr`, for a field; fields before it stay, to go on with.
    """
    place, target = located(source), local_path(output, "the output of a plate or well").absolute()
    collection = check_fields(place, opening)
    wishes = wishes or Wishes()
    asked = _asked(place, model, dtype, wishes, opening)
    _check_begin(target, place, asked, overwrite=overwrite)  # before the lock leaves anything there
    made, finished = [], []
    first, kept = _open(place, collection.images[0], opening), model_path_beside(target, model.digest)
    if client is not None:
        check_workers(client, volume=first, output=target, model=kept)
    with claim(target):  # all the time: who replaces an output must not delete it under those who make it
        _begin(target, place, asked, wishes.version, overwrite=overwrite)
        model.save(kept)
        plan = plan_volume(first, model, output=target, dtype=dtype, wishes=wishes, client=client)
        gpus = plan.backend.device == "cuda"
        own = {"workers": plan.workers, "memory_bytes": plan.memory_bytes, "seats": plan.seats}
        with own_or(client, **own, on_gpus=gpus) as cluster:
            for number, field in enumerate(collection.images):
                volume = _open(place, field, opening)
                if _is_finished(target / field, volume, model):
                    finished.append(field)
                    continue
                if on_field is not None:
                    on_field(number, collection.count, field)
                (target / field).parent.mkdir(parents=True, exist_ok=True)
                begun = begun_record(target / field)  # its tiles, not those of the first, are gone on with
                enhance_to_zarr(
                    volume,
                    target / field,
                    model=kept,
                    plan=None if begun else _plan_for(volume, first, plan, model),
                    dtype=dtype,
                    wishes=replace(wishes, threads=plan.threads),
                    client=cluster,
                    on_progress=on_progress,
                    on_workers=on_workers,
                )
                made.append(field)
        _publish(place, target, collection, wishes.version)
    return FieldsReport(output=str(output), model_path=str(kept), made=tuple(made), finished=tuple(finished))


def _open(place: Location, field: str, opening: Mapping[str, Any] | None) -> Volume:
    return open_volume(place / field, **(opening or {}))


def _plan_for(volume: Volume, first: Volume, plan: Plan, model: Model) -> Plan | None:
    """Take the plan of the first field for one that is alike and lies elsewhere; None for any other."""
    grid = volume.grid
    if replace(grid, origin=plan.coarse.origin) != plan.coarse:
        return None
    if (volume.dtype, volume.levels) != (first.dtype, first.levels):  # it would be clipped, or have another pyramid
        return None
    fine = grid.finer(full_factor(model, grid.axes), model.architecture.sampling)
    return replace(plan, coarse=grid, fine=fine)


def _is_finished(field: Path, volume: Volume, model: Model) -> bool:
    """Whether a field was made already, of this volume."""
    known = read_provenance(field) if is_omezarr(field) else {}
    if known.get("state") != "complete" or known.get("model") != model.digest:
        return False
    if (known.get("record") or {}).get("input") != volume.identity:
        raise OutputError(f"{field} is finished, and its input was changed since. Use --overwrite to begin anew.")
    forget_finished(field)
    return True


def _check_begin(target: Path, place: Location, asked: Record, *, overwrite: bool) -> None:
    """Check that an output can be begun, or replaced, or that it was begun with the same."""
    check_apart(target, place)
    if begun_with(target) is None:
        check_output(target, place, overwrite=False)
    elif overwrite:
        check_output(target.with_name(f"{target.name}.new"), place, overwrite=False)
    else:
        _check_same(target, asked)


def _check_same(target: Path, asked: Record) -> None:
    known = read_provenance(target)
    if known.get("state") == "complete":
        raise OutputError(f"{target} exists, finished. Use --overwrite to replace it, or choose another name.")
    difference = first_difference(asked, known.get("asked") or {})
    if difference:
        raise OutputError(f"{target} is unfinished, and its {difference}. Use --overwrite to begin anew.")


def _begin(target: Path, place: Location, asked: Record, layout: Version, *, overwrite: bool) -> None:
    """Make the group of the output, or find that it was begun with the same."""
    _check_begin(target, place, asked, overwrite=overwrite)  # another run may have had it in the meantime
    begun = begun_with(target) is not None
    if begun and overwrite:
        remove_existing(target)
    if overwrite or not begun:
        package = f"svision-dask {version('svision-dask')}"
        about = {"package": package, "fields_of": place.name, "model": asked["model"], "asked": asked}
        create_collection(target, version=layout, attributes=about)


def _asked(
    place: Location, model: Model, dtype: str, wishes: Wishes, opening: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Put what decides on voxels, and on how they are stored, into JSON values: all fields must be of one kind."""
    asked = {
        "model": model.digest,
        "source": str(place.absolute()),
        "dtype": dtype,
        "opening": dict(opening or {}),
        "version": wishes.version,
        "codec": wishes.codec and asdict(wishes.codec),
        "pyramid": wishes.pyramid,
        "trust": wishes.trust,
        "chunk": wishes.chunk and dict(wishes.chunk),
        "shard": wishes.shard and dict(wishes.shard),
    }
    as_json: dict[str, Any] = json.loads(json.dumps(asked, default=str))
    return as_json


def begun_with(output: str | Path) -> str | None:
    """Digest of the model with which the fields of an output were begun, or made; None if it is no such output."""
    place = Path(output)
    try:
        known = read_provenance(place) if place.is_dir() and is_omezarr(place) else {}
    except ImageError:
        return None
    return str(known["model"]) if "fields_of" in known else None


def _publish(place: Location, target: Path, collection: Collection, layout: Version) -> None:
    """Write the metadata of the wells, then of the plate: what looks finished is."""
    wells = {image.rpartition("/")[0] for image in collection.images} if collection.kind == "plate" else set()
    for row in sorted({well.rpartition("/")[0] for well in wells} - {""}):
        publish_collection(target / row, {}, version=layout)
    for well in sorted(wells):
        publish_collection(target / well, _described(place / well, "well", layout), version=layout)
    publish_collection(target, _described(place, collection.kind, layout), version=layout)


def _described(place: Location, kind: str, layout: Version) -> dict[str, Any]:
    """Take the metadata of a plate or well; 0.4 has the version inside, 0.5 beside it."""
    zarr_format, attributes = read_attributes(place)
    ome = attributes["ome"] if zarr_format == 3 else attributes
    described = {key: value for key, value in ome[kind].items() if key != "version"}
    return {kind: {**described, "version": "0.4"} if layout == "0.4" else described}
