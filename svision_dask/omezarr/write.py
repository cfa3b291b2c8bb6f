"""Write OME-Zarr images: `create_store` first, shards by whoever makes them, `publish` last.

Until `publish`, the store has no multiscales metadata and says "incomplete": nobody can take it for an image.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr

from svision_dask.codec import Codec, usual_codec
from svision_dask.errors import OutputError, UsageError
from svision_dask.geometry import Grid, Shape
from svision_dask.omezarr.arrays import check_storage, create_level
from svision_dask.omezarr.attributes import image_attributes, label_attributes
from svision_dask.omezarr.metadata import PROVENANCE, first_problem, is_omezarr
from svision_dask.stores.locations import Location, Remote, located
from svision_dask.stores.remote_store import store_at
from svision_dask.volume import Shown
from svision_dask.wishes import Version


def create_store(
    path: str | Location,
    levels: Sequence[Grid],
    *,
    dtype: npt.DTypeLike,
    chunks: Shape,
    shards: Shape | None = None,
    second_shards: Shape | None = None,
    codec: Codec | None = None,
    version: Version = "0.5",
    attributes: Mapping[str, Any],
) -> None:
    """Make the group and the empty arrays "0", "1", … of an image: in a folder, all at once or not at all.

    At a URL, where nothing can be renamed, the group comes first; what a crash left is gone on with by `add_levels`.

    Chunks carry a checksum, and are stored even where they hold nothing but zeros, so that a missing one is a fault.

    Parameters
    ----------
    path
        A folder, or URL, that does not exist yet, or is empty.
    levels
        Grids of the pyramid, finest first.
    dtype
        Type of the voxels, the same at every level.
    chunks, shards
        Voxels per chunk and shard of level 0; see `storage_shapes` for the others. No shards in OME-Zarr 0.4.
    second_shards
        Voxels per shard of level 1, where they are not those of the others.
    codec
        How chunks are compressed; by default, as `usual_codec` says.
    version
        OME-Zarr 0.5 (zarr v3) or 0.4 (zarr v2).
    attributes
        Provenance as JSON values, kept in the attribute ``svision_dask`` beside ``state``: ``"incomplete"``.

    Raises
    ------
    PlanError
        If shards are not whole chunks, or chunks or shards take 2 GiB or more.
    UsageError
        If shards are asked for in OME-Zarr 0.4, or ``attributes`` are not JSON.
    OutputError
        If something is at ``path`` already, or it cannot be written.
    """
    path = located(path)
    check_storage(chunks, shards, np.dtype(dtype), levels[0], version)
    provenance = {**attributes, "state": "incomplete"}
    _check_json(provenance)
    if path.exists() and (isinstance(path, Remote) or not (path.is_dir() and not any(path.iterdir()))):
        raise OutputError(f"{path} exists already. Choose another name, or remove it first.")
    storage: Any = {
        "dtype": np.dtype(dtype),
        "chunks": chunks,
        "codec": codec or usual_codec(version),
    }
    if isinstance(path, Remote):
        _create_group(path, version, provenance)
        add_levels(path, levels, version=version, shards=shards, second_shards=second_shards, **storage)
        return
    draft = path.absolute().with_name(f".{path.name}.{uuid.uuid4().hex}.creating")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.create_group(draft, zarr_format=_zarr_format(version), attributes={PROVENANCE: provenance})
        for number, grid in enumerate(levels):
            create_level(group, str(number), grid, shards=_shards(number, shards, second_shards), **storage)
        draft.rename(path.absolute())  # a crash leaves no store with half of its arrays
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {first_problem(error)}. Check the folder and the space on the disk."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def add_levels(
    path: Remote,
    levels: Sequence[Grid],
    *,
    version: Version,
    dtype: npt.DTypeLike,
    chunks: Shape,
    shards: Shape | None,
    second_shards: Shape | None = None,
    codec: Codec | None = None,
) -> None:
    """Make those arrays of a store at a URL that are not there: `create_store` may have been stopped among them.

    Raises
    ------
    OutputError
        If the store is not ours, or cannot be written.
    """
    group, name = _open_ours(path, version), "zarr.json" if version == "0.5" else ".zarray"
    try:
        for number, grid in enumerate(levels):
            if not (path / str(number) / name).is_file():
                storage: Any = {"dtype": np.dtype(dtype), "chunks": chunks}
                storage["shards"] = _shards(number, shards, second_shards)
                create_level(group, str(number), grid, codec=codec or usual_codec(version), **storage)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}.") from error


def _shards(level: int, shards: Shape | None, second: Shape | None) -> Shape | None:
    return second if level == 1 and second is not None else shards


def mark_incomplete(path: Remote) -> None:
    """Make whatever image is at a URL an unfinished one, which is no image, before it is deleted.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    _create_group(path, "0.5" if (path / "zarr.json").is_file() else "0.4", {"state": "incomplete"})


def _create_group(path: Remote, version: Version, provenance: Mapping[str, Any]) -> None:
    files: dict[str, dict[str, Any]] = {"zarr.json": {"zarr_format": 3, "node_type": "group"}}
    if version == "0.4":
        files = {".zattrs": {}, ".zgroup": {"zarr_format": 2}}
    try:
        for number, (name, content) in enumerate(files.items()):
            attributes = {PROVENANCE: provenance}
            whole = {**content, "attributes": attributes} if version == "0.5" else content if number else attributes
            (path / name).write_bytes(json.dumps(whole).encode())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}.") from error


def open_level(path: str | Location, level: int, mode: Literal["r", "r+"] = "r") -> zarr.Array[Any]:
    """Open the array of one level of a store made by `create_store`; it pickles to a few kilobytes.

    Only arrays opened here write checksums in OME-Zarr 0.4, and chunks of zeros in any version.

    Raises
    ------
    OutputError
        If there is no such array, or its metadata are damaged.
    """
    try:
        array = zarr.open_array(store_at(located(path) / str(level)), mode=mode)
    except Exception as error:  # damaged metadata make zarr raise nearly anything
        raise OutputError(
            f"{path}: level {level} cannot be opened: {first_problem(error)}. Make the output anew."
        ) from error
    codec = getattr(array.metadata, "compressor", None)  # of zarr v2 only
    if codec is not None and codec.codec_id == "zstd":
        # Every decoder checks the checksum of a frame that has one, but several refuse an array whose .zarray has the
        # key "checksum" (zarr-python#2647), so the metadata do not mention it.
        codec.checksum = True
    # zarr 3.1 ignores the ``config`` of open_array, and would delete every chunk that is all zeros.
    return array.with_config({"write_empty_chunks": True})


def publish(
    path: str | Location,
    levels: Sequence[Grid],
    *,
    name: str,
    channels: Sequence[str] = (),
    version: Version = "0.5",
    attributes: Mapping[str, Any],
    shown: Sequence[Shown] | None = None,
    label: Mapping[str, Any] | None = None,
    carried: Mapping[str, Any] | None = None,
) -> None:
    """Turn a filled store into an image: multiscales metadata, provenance and "complete" in one atomic write.

    Parameters
    ----------
    path, levels, version
        As they were given to `create_store`.
    name
        Name of the image.
    channels
        Channel names. They are part of the display settings, and so written only with ``shown``.
    attributes
        Provenance as JSON values; replaces that of `create_store`.
    shown
        How every channel is shown, or the image where there is no channel axis.
    label
        If the voxels are labels: what is kept in the attribute ``image-label``.
    carried
        What other programs wrote into the attributes of the input.

    Raises
    ------
    OutputError
        If the store was not made by `create_store` with these levels, or cannot be written.
    UsageError
        If the number of channel names or displays is not the number of channels, or ``attributes`` are not JSON.
    """
    path = located(path)
    if label is None:
        published = image_attributes(levels, name, version, channels=channels, shown=shown)
    else:
        published = label_attributes(levels, name, version, label=label)
    published = {**(carried or {}), **published, PROVENANCE: {**attributes, "state": "complete"}}
    _check_json(published)
    group = _open_ours(path, version)
    _check_levels(path, levels)
    try:
        # One file holds all attributes and is replaced as a whole: a crash leaves the old or the new one.
        group.update_attributes(published)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}. Run the command again.") from error


def list_labels(path: str | Location, names: Sequence[str], *, version: Version) -> None:
    """Say which labels an image has.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = located(path)
    listed: dict[str, Any] = {"labels": list(names)}
    group = _open_ours(path, version)
    try:
        folder = group.require_group("labels")
        for name in names:
            if "/" in name:  # zarr v3 has no groups without metadata of their own
                folder.require_group(name.rpartition("/")[0])
        folder.attrs.put({"ome": {"version": version, **listed}} if version == "0.5" else listed)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}. Run the command again.") from error


def add_group(path: str | Location, name: str, *, version: Version) -> None:
    """Make a group inside an image, for other images that belong to it.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    group = _open_ours(located(path), version)
    try:
        group.require_group(name)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}. Run the command again.") from error


def create_collection(path: Path, *, version: Version, attributes: Mapping[str, Any]) -> None:
    """Make the group that several images are to be in; until `publish_collection`, it says "incomplete".

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    provenance: Any = {PROVENANCE: {**attributes, "state": "incomplete"}}
    try:
        zarr.create_group(path, zarr_format=_zarr_format(version), attributes=provenance)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}.") from error


def publish_collection(path: Path, described: Mapping[str, Any], *, version: Version) -> None:
    """Turn a group into a plate or well whose images are finished: metadata and "complete" in one atomic write.

    Parameters
    ----------
    path
        Of a group that was made here, or of a folder that becomes one.
    described
        Metadata of the plate or well, as the version has them; nothing for a row of wells.
    version
        Of OME-Zarr.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    ome: Any = {"ome": {"version": version, **described}} if version == "0.5" else dict(described)
    try:
        if not is_omezarr(path):
            zarr.create_group(path, zarr_format=_zarr_format(version))
        group = zarr.open_group(path, mode="r+", zarr_format=_zarr_format(version), use_consolidated=False)
        provenance = group.attrs.get(PROVENANCE)
        if isinstance(provenance, dict):
            ome[PROVENANCE] = {**provenance, "state": "complete"}
        group.attrs.put(ome)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}.") from error


def unpublish(path: str | Location, *, run: str) -> None:
    """Take back `publish`: what the store holds stays, but it is no image any more, and belongs to ``run``.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        group = zarr.open_group(store_at(located(path)), mode="r+", use_consolidated=False)
        kept = {**dict(group.attrs[PROVENANCE]), "run": run, "state": "incomplete"}  # type: ignore[arg-type]
        group.attrs.put({PROVENANCE: kept})
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}.") from error


def _zarr_format(version: Version) -> Literal[2, 3]:
    return 3 if version == "0.5" else 2


def _check_json(attributes: Mapping[str, Any]) -> None:
    """Refuse what JSON cannot hold: zarr would write NaN, and other programs could not open the store."""
    try:
        json.dumps(attributes, allow_nan=False, ensure_ascii=False).encode()  # which lone surrogates have not
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"attributes of the output: {first_problem(error)}. Use strings, finite numbers, lists and objects."
        ) from error


def _open_ours(path: Location, version: Version) -> zarr.Group:
    """Open the group of a store made by `create_store`, and nothing else."""
    try:
        group = zarr.open_group(store_at(path), mode="r+", zarr_format=_zarr_format(version), use_consolidated=False)
    except Exception as error:  # damaged metadata make zarr raise nearly anything
        raise OutputError(
            f"{path}: no OME-Zarr {version} output of ours: {first_problem(error)}. Make the output anew."
        ) from error
    if PROVENANCE not in group.attrs:
        raise OutputError(f"{path} was not made by svision-dask, and is left as it is. Choose another name.")
    return group


def _check_levels(path: Location, levels: Sequence[Grid]) -> None:
    for number, grid in enumerate(levels):
        shape = open_level(path, number).shape
        if shape != grid.shape:
            raise OutputError(
                f"{path}: level {number} has shape {shape}, planned were {grid.shape}. Make the output anew."
            )
