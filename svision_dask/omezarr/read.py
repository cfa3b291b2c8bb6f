"""Read OME-Zarr images, up to 0.4 (zarr v2) and 0.5 (zarr v3): metadata at once, voxels only when they are asked for.

What the file does not say is not guessed, and nothing outside the image's own folder is opened.
"""

from __future__ import annotations

import hashlib
import math
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from svision_dask.errors import ImageError, SvisionError, UnsupportedError
from svision_dask.geometry import Grid, Shape
from svision_dask.omezarr.bounds import bounded
from svision_dask.omezarr.metadata import (
    Metadata,
    check_files,
    check_inside,
    first_problem,
    folder_inside,
    in_order,
    is_omezarr,
    read_metadata,
    read_provenance,
)
from svision_dask.omezarr.transposed import transposed
from svision_dask.stores.locations import Location, Remote, located
from svision_dask.stores.remote_store import METADATA_FILES, MissingChunkError, RemoteStore, folder_of, store_at
from svision_dask.volume import Missing, Volume, split_box

__all__ = [
    "ImageInfo",
    "Level",
    "describe_omezarr",
    "is_omezarr",
    "list_levels",
    "open_omezarr",
    "read_provenance",
]

VOXEL_TYPES = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}
OBJECT_CODECS = {"pickle", "json2", "msgpack2", "vlen-utf8", "vlen-bytes", "vlen-array", "categorize"}
"""Of numcodecs."""
CHUNK_BYTES = 2**31
"""Codecs count the bytes of a chunk in 32 bits with a sign."""
CHUNKS_PER_AXIS = 10**6
"""A few bytes of metadata can declare any number of chunks, and dask lists those along each axis."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of a pyramid, as its metadata describe it."""

    path: str
    """Path of the array inside the image."""
    grid: Grid
    dtype: str
    """Voxel type as numpy spells it, such as ``"uint16"``."""
    chunks: Shape
    """Voxels per chunk, the unit of compression, in the order of the grid's axes."""
    shards: Shape | None
    """Voxels per shard, the unit of storage, or None where every chunk is stored on its own."""
    compressors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What the metadata of an OME-Zarr image say."""

    version: str
    """Of OME-Zarr: ``"0.1"`` to ``"0.5"``."""
    name: str
    channels: tuple[str, ...]
    axes: str
    """In the order in which they are stored; all else is in the order of volumes."""
    levels: tuple[Level, ...]
    """Finest first."""
    provenance: Mapping[str, Any]
    """What svision-dask wrote about the image; empty for images of other programs."""


@dataclass(frozen=True)
class StoredArray:
    """A zarr array of which no chunk is taken for empty because it is not there: zarr itself never tells."""

    array: zarr.Array[Any]
    missing: Missing = "error"
    root: Path | None = None
    """Folder of the image, which no link may lead out of; by default, that of the array."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "array", bounded(self.array))

    def __reduce__(self) -> Any:
        return StoredArray, (self.array, self.missing, self.root)

    @property
    def shape(self) -> Shape:
        """Voxels along each axis."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type, in any byte order."""
        return self.array.dtype

    def __getitem__(self, box: Any, /) -> Any:
        """Read a box.

        Raises
        ------
        ImageError
            If a chunk, or a shard, is not there, cannot be decoded, or is a link out of the image.
        OSError
            If the disk or the server fails, which may pass.
        """
        # A store at a URL says itself what is not there, as it is read.
        remote = isinstance(self.array.store_path.store, RemoteStore)
        if not remote and (keys := self.absent(box)) and self.missing == "error":
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise self._is_missing(f"{keys[0]}{more}")
        try:
            return self.array[box]
        except MissingChunkError as error:
            raise self._is_missing(error.key) from error
        except Exception as error:  # zarr and its codecs raise nearly anything on damaged bytes
            if not _is_damage(error):
                raise
            raise ImageError(
                f"{self._where}: chunk {self._damaged(box)} cannot be decoded: {first_problem(error).rstrip('.')}. "
                "It is damaged: copy it again, or write the image anew."
            ) from error

    @property
    def _where(self) -> object:
        folder = folder_of(self.array)
        return self.array.store_path if isinstance(folder, Path) else folder

    def _is_missing(self, keys: str) -> ImageError:
        return ImageError(
            f"{self._where}: chunk {keys} is missing. Is the copy complete? "
            "If whoever wrote it left out empty chunks, use --missing empty."
        )

    def _damaged(self, box: Any) -> str:
        """Find the first chunk, or shard, that cannot be decoded; zarr does not say."""
        unit = self.array.shards or self.array.chunks
        for place in self._touched(box):
            try:
                self.array[tuple(slice(n * u, (n + 1) * u) for n, u in zip(place, unit, strict=True))]
            except Exception:
                return self.array.metadata.encode_chunk_key(place)
        return f"of {box}"

    def _touched(self, box: Any) -> Iterator[Shape]:
        """Places of the chunks, or shards, that ``box`` touches."""
        unit = self.array.shards or self.array.chunks
        ranges, _ = split_box(box, self.shape)
        return product(*(range(a // u, -(-b // u)) for (a, b), u in zip(ranges, unit, strict=True)))

    def absent(self, box: Any) -> list[str]:
        """List the keys of the chunks, or shards, that ``box`` touches and that are not there."""
        keys = map(self.array.metadata.encode_chunk_key, self._touched(box))
        folder = folder_of(self.array)
        return folder.absent(keys) if isinstance(folder, Remote) else _absent(keys, folder, self.root or folder)


def _is_damage(error: Exception) -> bool:
    """Whether what was read is wrong, and not how it was read: errors of disks and servers have a number."""
    return not isinstance(error, SvisionError | MemoryError) and not (isinstance(error, OSError) and error.errno)


def _absent(keys: Iterable[str], folder: Path, root: Path) -> list[str]:
    """List what is not there, or without content, which zarr reads as if it were not; refuse links out of ``root``."""
    absent, inside = [], set()
    for key in keys:
        file = folder / key
        try:
            found = file.lstat()
            linked = stat.S_ISLNK(found.st_mode)
            if linked or file.parent not in inside:  # to resolve every path would take longer than to look at the files
                check_inside(file, root)
                inside.add(file.parent)
            size = file.stat().st_size if linked else found.st_size
        except OSError:
            size = 0
        if size == 0:
            absent.append(key)
    return absent


def open_omezarr(path: str | Location, *, level: int = 0, missing: Missing = "error") -> Volume:
    """Open one level of an OME-Zarr image without reading voxels.

    Parameters
    ----------
    path
        Folder or URL with the multiscales metadata, OME-Zarr 0.4 or 0.5.
    level
        Which level of the pyramid; 0 is the finest.
    missing
        What a chunk that is not there means: a damaged copy (``"error"``), or an empty place (``"empty"``). A chunk
        that is left out of a shard that is there is empty: a shard is written in one piece.

    Returns
    -------
    Volume
        Its dask chunks are the stored shards, or the chunks where there are no shards, clipped to the image.

    Raises
    ------
    ImageError
        If the metadata are missing, damaged or contradictory, or the level or its array does not exist.
    """
    metadata = read_metadata(located(path))
    array, found = _read_level(metadata, level, missing)
    root = metadata.path if isinstance(metadata.path, Path) else None
    volume = Volume.from_source(
        transposed(StoredArray(array, missing, root), metadata.order),
        found.grid,
        chunks=in_order(_dask_chunks(array), metadata.order),
        channels=_channels(metadata, found.grid),
        name=metadata.name,
        identity=f"{_identity(metadata.path, metadata.path / metadata.datasets[level].path)}, missing chunks {missing}",
    )
    channels = found.grid.shape[found.grid.axes.index("c")] if "c" in found.grid.axes else 1
    return replace(
        volume,
        shown=metadata.shown if len(metadata.shown) == channels else (),
        carried=metadata.carried,
        dropped=metadata.dropped,
        stored=in_order(array.chunks, metadata.order),  # of a shard, only those chunks are read that are needed
        levels=tuple(dataset.spacing for dataset in metadata.datasets[level:]),
    )


def describe_omezarr(path: str | Location) -> ImageInfo:
    """Describe an OME-Zarr image and all its levels from metadata only.

    Raises
    ------
    ImageError
        As `open_omezarr`, for any of the levels.
    """
    metadata = read_metadata(located(path))
    levels = tuple(_read_level(metadata, i)[1] for i in range(len(metadata.datasets)))
    return ImageInfo(
        version=metadata.version,
        name=metadata.name,
        channels=_channels(metadata, levels[0].grid),
        axes="".join(metadata.axis_names).lower(),
        levels=levels,
        provenance=metadata.provenance,
    )


def list_levels(path: str | Location) -> list[Level]:
    """Describe every level of an OME-Zarr image, finest first, from metadata only.

    Raises
    ------
    ImageError
        As `open_omezarr`, for any of the levels.
    """
    return list(describe_omezarr(path).levels)


def _identity(*folders: Location) -> str:
    """Hash the metadata, and when they were written: nobody could read every voxel to tell whether one is another."""
    digest = hashlib.sha256()
    for file in (folder / name for folder in folders for name in METADATA_FILES):
        if isinstance(file, Remote):
            digest.update(_remote_identity(file))
        elif file.is_file():
            digest.update(f"{file.name} {file.stat().st_mtime_ns} ".encode() + file.read_bytes())
    return digest.hexdigest()


def _remote_identity(file: Remote) -> bytes:
    try:
        return file.read_bytes() + f"{file.name} {file.stamp()} ".encode()
    except (FileNotFoundError, PermissionError):  # a bucket that may not be listed forbids what it does not hold
        return b""


def _read_level(metadata: Metadata, level: int, missing: Missing = "error") -> tuple[zarr.Array[Any], Level]:
    """Open the array of one level, check it against the metadata, and describe it."""
    count = len(metadata.datasets)
    if not 0 <= level < count:
        raise ImageError(
            f"{metadata.path} has no level {level}: it has {count}, 0 (the finest) to {count - 1}. Use one."
        )
    dataset = metadata.datasets[level]
    where = f"{metadata.path}, level {level} ({dataset.path!r})"
    array = _open_array(metadata, folder_inside(metadata.path, dataset.path, where), where, missing)
    _check_array(metadata, array, where)
    _check_codecs(array, where)
    _check_storage(array, where)
    return array, Level(
        path=dataset.path,
        grid=Grid(
            axes=metadata.axes,
            shape=in_order(array.shape, metadata.order),
            spacing=dataset.spacing,
            origin=dataset.origin,
            units=metadata.units,
        ),
        dtype=array.dtype.name,
        chunks=in_order(array.chunks, metadata.order),
        shards=in_order(array.shards, metadata.order) if array.shards else None,
        compressors=tuple(_compressor_name(c) for c in array.compressors),
    )


def _open_array(metadata: Metadata, folder: Location, where: str, missing: Missing) -> zarr.Array[Any]:
    check_files(folder, metadata.path)
    try:
        array = zarr.open_array(
            store_at(folder, complete=missing == "error"), mode="r", zarr_format=metadata.zarr_format
        )
        _ = array.chunks, array.shards, array.compressors  # zarr raises only here for a grid that is not regular
    except FileNotFoundError as error:
        raise ImageError(f"{where}: there is no zarr v{metadata.zarr_format} array. Is the copy complete?") from error
    except ImageError:
        raise
    except Exception as error:  # damaged metadata make zarr raise nearly anything
        raise ImageError(f"{where}: the metadata of the array cannot be read: {first_problem(error)}.") from error
    return array


def _check_array(metadata: Metadata, array: zarr.Array[Any], where: str) -> None:
    """Refuse an array that cannot be the image that the metadata describe."""
    if array.dtype.str[1:] not in VOXEL_TYPES:
        raise UnsupportedError(
            f"{where}: voxels are {array.dtype}; allowed are bool, integers and real floats. Convert them."
        )
    if array.ndim != len(metadata.axes):
        raise ImageError(f"{where}: an array of shape {array.shape} for axes {metadata.axes}. Repair the metadata.")
    names = getattr(array.metadata, "dimension_names", None)  # zarr v2 has none
    # 0.5: dimension_names "MUST match the names in the "axes" metadata".
    if names is not None and tuple(names) != metadata.axis_names:
        raise ImageError(
            f"{where}: the array names its axes {names}, the image {metadata.axis_names}. Repair one of them."
        )


def _check_codecs(array: zarr.Array[Any], where: str) -> None:
    """Refuse codecs that build objects: decoding may run whatever the file says."""
    found = {_compressor_name(codec) for codec in (*array.filters, *array.compressors)}
    if hostile := found & OBJECT_CODECS:
        raise ImageError(f"{where}: codec {', '.join(hostile)} is for objects, not for voxels. Convert the image.")


def _check_storage(array: zarr.Array[Any], where: str) -> None:
    """Refuse sizes that metadata can declare but no machine can hold."""
    if min(*array.shape, *array.chunks) < 1:
        raise ImageError(
            f"{where}: shape {array.shape} in chunks of {array.chunks} holds no voxels. Give another level."
        )
    if math.prod(array.chunks) * array.dtype.itemsize >= CHUNK_BYTES:
        raise UnsupportedError(
            f"{where}: chunks of {array.chunks} voxels take 2 GiB or more. Write it with smaller chunks."
        )
    most = max(-(-n // c) for n, c in zip(array.shape, _dask_chunks(array), strict=True))
    if most > CHUNKS_PER_AXIS:
        raise UnsupportedError(
            f"{where}: {most} chunks along an axis; allowed are {CHUNKS_PER_AXIS}. Write it with larger chunks."
        )


def _dask_chunks(array: zarr.Array[Any]) -> Shape:
    """Voxels per dask chunk: what one read of the storage delivers anyway."""
    stored = array.shards or array.chunks
    if math.prod(stored) * array.dtype.itemsize >= CHUNK_BYTES:  # a whole image can be one shard
        stored = array.chunks
    return tuple(min(c, n) for c, n in zip(stored, array.shape, strict=True))


def _channels(metadata: Metadata, grid: Grid) -> tuple[str, ...]:
    """Labels of the channels, where the display settings name as many as there are."""
    if "c" not in grid.axes or len(metadata.labels) != grid.shape[grid.axes.index("c")]:
        return ()
    return metadata.labels


def _compressor_name(codec: Any) -> str:
    """Name of a zarr v3 codec or of a numcodecs one, with the method inside blosc."""
    config = codec.to_dict() if hasattr(codec, "to_dict") else codec.get_config()
    name = config.get("name") or config.get("id")
    method = config.get("configuration", config).get("cname")
    return f"{name}-{getattr(method, 'value', method)}" if method else str(name)
