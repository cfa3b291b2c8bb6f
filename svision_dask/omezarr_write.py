"""Write OME-Zarr images: `create_store` first, shards by whoever makes them, `publish` last.

Until `publish`, the store has no multiscales metadata and says "incomplete": nobody can take it for an image.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from ome_zarr_models.v04.axes import Axis
from ome_zarr_models.v04.multiscales import Dataset
from ome_zarr_models.v04.multiscales import Multiscale as MultiscaleV04
from ome_zarr_models.v04.omero import Channel, Omero, Window
from zarr.storage import MemoryStore

from svision_dask.errors import OutputError, PlanError, UsageError
from svision_dask.geometry import Grid, Shape
from svision_dask.locations import Location, Remote, located
from svision_dask.omezarr_metadata import AXIS_TYPES, PROVENANCE, first_problem
from svision_dask.remote_store import store_at

Version = Literal["0.4", "0.5"]
Windows = Sequence[tuple[float, float, float, float]]
"""Display range per channel: the limits of the control (min, max), then what is shown (start, end)."""

ZSTD_LEVEL = 1
"""Four times as fast as level 3 on a volume of brain cells (630 against 160 MB/s per core), and 4 % larger."""
SHARD_BYTES = 2**31
"""Codecs count the bytes of a chunk in 32 bits with a sign, and a shard is encoded in one piece."""
COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")
"""Neighbouring channels differ for colour-blind eyes, too: green and magenta first."""


def create_store(
    path: str | Location,
    levels: Sequence[Grid],
    *,
    dtype: npt.DTypeLike,
    chunks: Shape,
    shards: Shape | None = None,
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
    _check_storage(chunks, shards, np.dtype(dtype), levels[0], version)
    provenance = {**attributes, "state": "incomplete"}
    _check_json(provenance)
    if path.exists() and (isinstance(path, Remote) or not (path.is_dir() and not any(path.iterdir()))):
        raise OutputError(f"{path} exists already. Choose another name, or remove it first.")
    storage: Any = {"dtype": np.dtype(dtype), "chunks": chunks, "shards": shards}
    if isinstance(path, Remote):
        _create_group(path, version, provenance)
        add_levels(path, levels, version=version, **storage)
        return
    draft = path.absolute().with_name(f".{path.name}.{uuid.uuid4().hex}.creating")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.create_group(draft, zarr_format=_zarr_format(version), attributes={PROVENANCE: provenance})
        for number, grid in enumerate(levels):
            _create_level(group, str(number), grid, **storage)
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
                _create_level(group, str(number), grid, dtype=np.dtype(dtype), chunks=chunks, shards=shards)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}.") from error


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


def storage_shapes(shape: Shape, chunks: Shape, shards: Shape | None) -> tuple[Shape, Shape | None]:
    """Fit chunks and shards to a level that may be smaller than they are.

    Chunks end with the level; shards are whole chunks, no more than the level needs.
    """
    fitted = tuple(min(c, n) for c, n in zip(chunks, shape, strict=True))
    if shards is None:
        return fitted, None
    whole = (-(-n // c) * c for c, n in zip(fitted, shape, strict=True))
    return fitted, tuple(min(s, w) for s, w in zip(shards, whole, strict=True))


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
    windows: Windows | None = None,
) -> None:
    """Turn a filled store into an image: multiscales metadata, provenance and "complete" in one atomic write.

    Parameters
    ----------
    path, levels, version
        As they were given to `create_store`.
    name
        Name of the image.
    channels
        Channel names. They are part of the display settings, and so written only with ``windows``.
    attributes
        Provenance as JSON values; replaces that of `create_store`.
    windows
        (min, max, start, end) of every channel, or of the image where there is no channel axis.

    Raises
    ------
    OutputError
        If the store was not made by `create_store` with these levels, or cannot be written.
    UsageError
        If the number of channel names or windows is not the number of channels, or ``attributes`` are not JSON.
    """
    path = located(path)
    published = _written_by_ome_zarr(_multiscale(levels, name, version), version)
    if windows is not None:
        image = published["ome"] if version == "0.5" else published
        image["omero"] = _omero(levels[0], name, channels, windows)
    published[PROVENANCE] = {**attributes, "state": "complete"}
    _check_json(published)
    group = _open_ours(path, version)
    _check_levels(path, levels)
    try:
        # One file holds all attributes and is replaced as a whole: a crash leaves the old or the new one.
        group.update_attributes(published)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}. Run the command again.") from error


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


def _check_storage(chunks: Shape, shards: Shape | None, dtype: np.dtype[Any], grid: Grid, version: Version) -> None:
    """Refuse chunks and shards that cannot be stored, whatever the shape of the level."""
    if shards is not None and version == "0.4":
        raise UsageError(f"shards {shards}: OME-Zarr 0.4 has none. Leave out --shards, or write 0.5.")
    for what, lengths in (("chunks", chunks), ("shards", shards or chunks)):
        if len(lengths) != len(grid.axes) or min(lengths) < 1:
            raise PlanError(f"{what} {lengths}: allowed is 1 or more voxels for each of the axes {grid.axes}.")
    if any(s % c for s, c in zip(shards or chunks, chunks, strict=True)):
        raise PlanError(f"shards of {shards} voxels are not whole chunks of {chunks}. Use multiples of the chunks.")
    fitted, whole = storage_shapes(grid.shape, chunks, shards)
    size = math.prod(whole or fitted) * dtype.itemsize
    if size >= SHARD_BYTES:
        what = "chunks" if whole is None else "shards"
        raise PlanError(
            f"{what} of {whole or fitted} voxels take {size} bytes each; {SHARD_BYTES} is too much. Use smaller."
        )


def _check_json(attributes: Mapping[str, Any]) -> None:
    """Refuse what JSON cannot hold: zarr would write NaN, and other programs could not open the store."""
    try:
        json.dumps(attributes, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"attributes of the output: {first_problem(error)}. Use strings, finite numbers, lists and objects."
        ) from error


def _create_level(
    group: zarr.Group, path: str, grid: Grid, *, dtype: np.dtype[Any], chunks: Shape, shards: Shape | None
) -> None:
    chunks, shards = storage_shapes(grid.shape, chunks, shards)
    form: dict[str, Any]
    if group.metadata.zarr_format == 2:
        codec: dict[str, Any] = {"id": "zstd", "level": ZSTD_LEVEL}  # `open_level` adds the checksum
        form = {"compressors": codec, "chunk_key_encoding": {"name": "v2", "separator": "/"}}
    else:
        # Without a checksum, flipped bits come back as voxels.
        codec = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}}
        form = {"compressors": codec, "shards": shards, "dimension_names": list(grid.axes)}
    config: Any = {"write_empty_chunks": True}
    group.create_array(path, shape=grid.shape, dtype=dtype, chunks=chunks, fill_value=0, config=config, **form)


def _multiscale(levels: Sequence[Grid], name: str, version: Version) -> dict[str, Any]:
    """Build the multiscales entry as a validated object, and return its JSON."""
    axes = [
        Axis(name=axis, type=AXIS_TYPES[axis], unit=unit)
        for axis, unit in zip(levels[0].axes, levels[0].units, strict=True)
    ]
    datasets = [
        Dataset.build(path=str(number), scale=grid.spacing, translation=grid.origin)
        for number, grid in enumerate(levels)
    ]
    entry = MultiscaleV04(
        axes=tuple(axes),
        datasets=tuple(datasets),
        name=name,
        type="mean",
        metadata={"method": "svision_dask.pyramid.block_mean"},
        version="0.4",
    )
    model = entry if version == "0.4" else entry.to_version("0.5")
    dumped: dict[str, Any] = model.model_dump(mode="json", exclude_none=True)
    return dumped


def _written_by_ome_zarr(entry: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """Let ome-zarr-py lay out a validated entry, in memory: on disk it would take several writes, not one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # ome_zarr deprecates classes of its own as it is imported
        from ome_zarr.format import format_from_version
        from ome_zarr.writer import write_multiscales_metadata

        form = format_from_version(version)
        group = zarr.create_group(MemoryStore(), zarr_format=form.zarr_format)
        write_multiscales_metadata(
            group,
            entry["datasets"],
            fmt=form,
            axes=[{key: value for key, value in axis.items() if key != "unit"} for axis in entry["axes"]],
            axes_units={axis["name"]: axis["unit"] for axis in entry["axes"] if "unit" in axis},
            name=entry["name"],
            metadata=entry["metadata"],
        )
    written: dict[str, Any] = dict(group.attrs.asdict())
    # "multiscales" dictionaries SHOULD also contain the field "type" (OME-Zarr 0.5, 2.4); ome-zarr-py leaves it out.
    written.get("ome", written)["multiscales"][0]["type"] = entry["type"]
    return written


def _omero(grid: Grid, name: str, channels: Sequence[str], windows: Windows) -> dict[str, Any]:
    """Build the display settings of all channels as a validated object, and return its JSON."""
    count = grid.shape[grid.axes.index("c")] if "c" in grid.axes else 1
    labels = list(channels) or ([name] if count == 1 else [str(i) for i in range(count)])
    if not len(labels) == len(windows) == count:
        raise UsageError(
            f"{len(labels)} channel names and {len(windows)} windows for {count} channels. Give one for each channel."
        )
    colours = ["FFFFFF"] if count == 1 else [COLOURS[i % len(COLOURS)] for i in range(count)]
    settings = [
        Channel.model_validate({"label": label, "active": True, "color": colour, "window": _window(window)})
        for label, colour, window in zip(labels, colours, windows, strict=True)
    ]
    dumped: dict[str, Any] = Omero(channels=settings).model_dump(mode="json")
    return dumped


def _window(window: tuple[float, float, float, float]) -> Window:
    return Window(min=window[0], max=window[1], start=window[2], end=window[3])


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
