"""Where the planes of a TIFF series lie in its files, and reading boxes of them.

The index is parsed once per process; files are open only while something is read, so that threads share no position
in a file and nothing stays open.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import tifffile

from svision_dask.errors import ImageError, one_line
from svision_dask.geometry import Shape
from svision_dask.tiff import decoded
from svision_dask.tiff.companion import check_declared, is_companion, open_described
from svision_dask.tiff.metadata import Calibration, read_calibration
from svision_dask.workload import DECODED_BYTES

Array = npt.NDArray[Any]
Decoder = Callable[..., tuple[Any, Any, Any]]
Range = tuple[int, int]
"""Start and stop along one axis."""

_UNDESCRIBED = ("generic", "uniform", "")
"""Kinds of series that tifffile makes from bare pages."""
_INDICES_PER_PROCESS = 64
SEGMENT_BYTES = 2**31
"""Codecs count bytes in 32 bits with a sign."""


@dataclass(frozen=True, kw_only=True)
class PlaneFile:
    """One file of a series, and how its planes are encoded."""

    path: str
    stored_dtype: np.dtype[Any]
    """Voxel type in the file's byte order."""
    decode: Decoder | None
    """tifffile's decoder of one strip or tile, or None where each plane is its rows, one after the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlaneIndex:
    """A TIFF series as it is stored: planes in C order of the leading axes."""

    axes: str
    """tifffile's letter for each axis, in the stored order; Q, I and others mean that the file does not say."""
    shape: Shape
    dtype: np.dtype[Any]
    """Voxel type in the machine's byte order."""
    series_count: int
    calibration: Calibration
    files: tuple[PlaneFile, ...]
    file_of: npt.NDArray[np.intp]
    """Number of the file that holds each plane."""
    offsets: npt.NDArray[np.int64]
    """Position in the file in bytes, (plane, segment); a segment is a strip or a tile."""
    sizes: npt.NDArray[np.int64]
    """Encoded bytes, (plane, segment)."""
    segment: tuple[int, int]
    """Rows and columns of a segment; one row where rows can be read without the rest."""
    tables: tuple[bytes | None, ...]
    """JPEG tables of each plane."""
    version: tuple[int, int]
    """Time and size of the file that was opened: another one if it has changed."""
    described_in: str | None = None
    """The file that describes it, where that is not one of its own."""

    @property
    def kept_bytes(self) -> int:
        """What reading it may keep in memory: nothing where rows can be read without the rest."""
        if all(file.decode is None for file in self.files):
            return 0
        return min(DECODED_BYTES, math.prod(self.shape) * self.dtype.itemsize)


def plane_index(path: str, series: int) -> PlaneIndex:
    """Index the planes of series number ``series``; once per process, and again when the file has changed.

    Raises
    ------
    ImageError
        If the file is missing, is not a TIFF, is damaged or truncated, lacks the series, or needs an absent codec.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}. Give the path of a TIFF file.") from error
    return _plane_index(path, series, (status.st_mtime_ns, status.st_size))


def series_number(path: str, series: int | str) -> int:
    """Find the number of a series from its name in the file, or from a number written out.

    Raises
    ------
    ImageError
        If the file cannot be read, or not exactly one series has this name.
    """
    if isinstance(series, int) or series.isdecimal():
        return int(series)
    try:
        with open_described(path)[0] as file:
            check_declared(file, path)
            names = [each.name for each in file.series]
    except ImageError:
        raise
    except Exception as error:  # damaged files make tifffile raise nearly anything
        raise _unreadable(path, error) from error
    if names.count(series) != 1:
        raise ImageError(f"{path}: no one series is called {series!r}; names are {names}. Use its number, from 0.")
    return names.index(series)


@lru_cache(maxsize=_INDICES_PER_PROCESS)
def _plane_index(path: str, series: int, version: tuple[int, int]) -> PlaneIndex:
    try:
        opened, beside = open_described(path)
        with opened as file:
            return replace(_build_index(file, path, series, version), described_in=beside)
    except ImageError:
        raise
    except Exception as error:  # damaged files make tifffile raise nearly anything, from struct.error to KeyError
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> ImageError:
    return ImageError(f"{path} cannot be read as TIFF: {one_line(error)}. Check that the file is complete.")


def _build_index(file: tifffile.TiffFile, path: str, position: int, version: tuple[int, int]) -> PlaneIndex:
    check_declared(file, path)
    count = len(file.series)
    if not 0 <= position < count:
        raise ImageError(f"{path}: series {position} does not exist; the file has {count} series, counted from 0.")
    series = file.series[position]
    _check_described(file, series, path)
    _check_pages(series, path)
    pages, offsets, sizes = _planes(series, path)
    keyframes = {page.parent.filehandle.path: page.keyframe for page in pages}
    _check_beside(path, keyframes)
    numbers = {name: number for number, name in enumerate(keyframes)}
    # Where every plane is its rows one after the other, a few rows can be read without the rest.
    raw = all(page.is_final for page in keyframes.values()) and _are_consecutive(offsets, sizes)
    if not raw:
        _check_segment(series.keyframe, path)
    index = PlaneIndex(
        axes=series.axes,
        shape=tuple(series.shape),
        dtype=np.dtype(series.dtype).newbyteorder("="),
        series_count=count,
        calibration=read_calibration(file, position),
        files=tuple(_plane_file(name, page, raw=raw) for name, page in keyframes.items()),
        file_of=np.array([numbers[page.parent.filehandle.path] for page in pages], dtype=np.intp),
        offsets=offsets[:, :1] if raw else offsets,
        sizes=np.full((len(pages), 1), series.keyframe.nbytes) if raw else sizes,
        segment=(1, series.shape[-1]) if raw else _segment_shape(series.keyframe),
        tables=tuple(page.jpegtables for page in pages),
        version=version,
    )
    _check_complete(index)
    return index


def _check_beside(path: str, files: Iterable[str]) -> None:
    """Refuse an OME-TIFF that names files outside its folder: metadata must not open other files."""
    folder = Path(os.path.normpath(Path(path).absolute())).parent  # a link is meant where it lies, not where it leads
    for name in files:
        if not Path(os.path.normpath(Path(name).absolute())).is_relative_to(folder):
            raise ImageError(f"{path} names {name}, which lies outside its folder. Copy it there, and repair the name.")


def _check_described(file: tifffile.TiffFile, series: tifffile.TiffPageSeries, path: str) -> None:
    """Refuse bare pages where a description was lost, or where the chain of pages is cut: they would be too few."""
    if series.kind not in _UNDESCRIBED and not (is_companion(path) and series.kind != "ome"):
        return
    if file.is_ome or file.is_imagej or file.is_shaped:
        raise ImageError(
            f"{path}: its description and its pages disagree. Check that the file is complete, and that all files of a "
            "multi-file OME-TIFF are in one folder."
        )
    if _next_page(file) != 0:
        raise ImageError(f"{path}: the chain of pages points beyond page {len(file.pages) - 1}; the file is truncated.")


def _next_page(file: tifffile.TiffFile) -> int:
    """Position in bytes of the page after the last readable one; TIFF 6.0: "0 if there is none"."""
    layout, stream, last = file.tiff, file.filehandle, file.pages[-1]
    stream.seek(last.offset)
    (tags,) = struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))
    stream.seek(last.offset + layout.tagnosize + tags * layout.tagsize)
    return int(struct.unpack(layout.offsetformat, stream.read(layout.offsetsize))[0])


def _check_pages(series: tifffile.TiffPageSeries, path: str) -> None:
    page = series.keyframe
    if page.samplesperpixel != 1 or "S" in series.axes:
        raise ImageError(
            f"{path}: axes {series.axes} hold {page.samplesperpixel} samples per voxel (RGB), which are no intensities "
            "of one channel. Split the colours into channels."
        )
    if len(series.shape) < 2 or tuple(series.shape[-2:]) != page.shape or series.transform is not None:
        raise ImageError(
            f"{path}: pages of shape {page.shape} with axes {page.axes} are not planes. Save it as OME-TIFF."
        )
    if page.dtype is None or page.dtype.kind not in "biuf":
        raise ImageError(f"{path}: voxels of type {page.dtype}; allowed are integers and floating point numbers.")
    _check_codec(page, path)


def _check_segment(page: tifffile.TiffPage, path: str) -> None:
    """Refuse strips and tiles that can be declared but not be decoded: each is decoded as a whole."""
    rows, columns = _segment_shape(page)
    if rows * columns * np.dtype(page.dtype).itemsize >= SEGMENT_BYTES:
        raise ImageError(
            f"{path}: strips or tiles of {rows}×{columns} voxels take 2 GiB or more. Write it with smaller tiles."
        )


def _check_codec(page: tifffile.TiffPage, path: str) -> None:
    if page.compression == 1:
        return
    try:
        _ = tifffile.TIFF.DECOMPRESSORS[page.compression], tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError as error:
        codec = f"{tifffile.COMPRESSION(page.compression).name}, predictor {int(page.predictor)}"
        raise ImageError(f"{path} is compressed with {codec}; to read it, install svision-dask[tiff].") from error


def _planes(series: tifffile.TiffPageSeries, path: str) -> tuple[list[Any], Array, Array]:
    """List the page of each plane, and the position and bytes of its segments."""
    page, count = series.keyframe, math.prod(series.shape[:-2])
    if series.dataoffset is not None and not series.is_multifile:
        # ImageJ describes any number of planes by one page and lets them follow one another.
        _check_end(path, series.dataoffset + count * page.nbytes)
        offsets = series.dataoffset + page.nbytes * np.arange(count, dtype=np.int64)[:, None]
        return [page] * count, offsets, np.full_like(offsets, page.nbytes)
    pages = [page for page in series if page is not None]
    if len(pages) != count:
        raise ImageError(
            f"{path}: {count} planes are described and {len(pages)} are there. "
            "Check that the file is complete, and that all files of a multi-file OME-TIFF are beside it."
        )
    offsets = np.array([page.dataoffsets for page in pages], dtype=np.int64)
    sizes = np.array([page.databytecounts for page in pages], dtype=np.int64)
    return pages, offsets, sizes


def _are_consecutive(offsets: Array, sizes: Array) -> bool:
    return np.array_equal(offsets[:, 1:], offsets[:, :-1] + sizes[:, :-1])


def _plane_file(path: str, page: tifffile.TiffPage, *, raw: bool) -> PlaneFile:
    stored = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    return PlaneFile(path=path, stored_dtype=stored, decode=None if raw else page.decode)


def _segment_shape(page: tifffile.TiffPage) -> tuple[int, int]:
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _check_complete(index: PlaneIndex) -> None:
    """Refuse planes that lie outside their file, or have no bytes at all: they would read as zeros."""
    ends = np.max(index.offsets + index.sizes, axis=1)
    for number, file in enumerate(index.files):
        _check_end(file.path, int(ends[index.file_of == number].max()))
    empty = np.flatnonzero(np.min(index.sizes, axis=1) <= 0)
    if empty.size:
        raise ImageError(
            f"{index.files[0].path}: plane {empty[0]} has strips or tiles without data; it was not written."
        )


def _check_end(path: str, end: int) -> None:
    size = Path(path).stat().st_size
    if end > size:
        raise ImageError(f"{path}: {end} bytes are described and {size} are there; the file is truncated.")


def read_box(index: PlaneIndex, ranges: Sequence[Range], out: Array) -> None:
    """Fill ``out`` with the voxels of a box; only the rows, strips or tiles that it touches are read.

    Parameters
    ----------
    index
        Where the planes are.
    ranges
        Start and stop along each stored axis.
    out
        Array of the box's shape, axes in the stored order, any memory layout.

    Raises
    ------
    ImageError
        If a plane cannot be decoded, or the file ends before it.
    OSError
        If the file system fails; reading again may succeed.
    """
    every = np.arange(len(index.file_of)).reshape(index.shape[:-2])
    wanted = np.ndenumerate(every[tuple(slice(*r) for r in ranges[:-2])])
    for number, planes in groupby(wanted, key=lambda item: int(index.file_of[item[1]])):
        file = index.files[number]
        with Path(file.path).open("rb") as stream:
            for position, plane in planes:
                read = _read_rows if file.decode is None else _read_segments
                read(index, file, stream, int(plane), (ranges[-2], ranges[-1]), out[position])


def _read_rows(
    index: PlaneIndex, file: PlaneFile, stream: IO[bytes], plane: int, window: tuple[Range, Range], out: Array
) -> None:
    (top, bottom), columns = window
    width = index.shape[-1]
    first = int(index.offsets[plane, 0]) + top * width * file.stored_dtype.itemsize
    data = _read_bytes(file, stream, plane, first, (bottom - top) * width * file.stored_dtype.itemsize)
    out[...] = np.frombuffer(data, file.stored_dtype).reshape(bottom - top, width)[:, slice(*columns)]


def _read_segments(
    index: PlaneIndex, file: PlaneFile, stream: IO[bytes], plane: int, window: tuple[Range, Range], out: Array
) -> None:
    rows, columns = window
    length, width = index.segment
    across = -(-index.shape[-1] // width)
    for down, right in product(
        range(rows[0] // length, -(-rows[1] // length)), range(columns[0] // width, -(-columns[1] // width))
    ):
        number = down * across + right
        offset, size = int(index.offsets[plane, number]), int(index.sizes[plane, number])

        def decode(number: int = number, offset: int = offset, size: int = size) -> Array:
            return _decode(index, file, plane, number, _read_bytes(file, stream, plane, offset, size))

        ends = min(down * length + length, index.shape[-2]), min(right * width + width, index.shape[-1])
        whole = (
            rows[0] <= down * length and ends[0] <= rows[1] and columns[0] <= right * width and ends[1] <= columns[1]
        )
        # One that is wanted as a whole is hardly wanted again.
        segment = decode() if whole else decoded.of_this_process.get((file.path, index.version, offset), decode)
        y, y_out = _overlap(rows, down * length, segment.shape[0])
        x, x_out = _overlap(columns, right * width, segment.shape[1])
        out[y_out, x_out] = segment[y, x]


def _overlap(wanted: Range, start: int, length: int) -> tuple[slice, slice]:
    """Where a segment of ``length`` voxels from ``start`` meets ``wanted``: in the segment, and in the wanted range."""
    first, last = max(wanted[0], start), min(wanted[1], start + length)
    return slice(first - start, last - start), slice(first - wanted[0], last - wanted[0])


def _read_bytes(file: PlaneFile, stream: IO[bytes], plane: int, offset: int, size: int) -> bytes:
    stream.seek(offset)
    data = stream.read(size)
    if len(data) != size:
        raise ImageError(f"{file.path} ends inside plane {plane}; it was complete when it was opened.")
    return data


def _decode(index: PlaneIndex, file: PlaneFile, plane: int, number: int, data: bytes) -> Array:
    """One strip or tile as (rows, columns), in the machine's byte order."""
    assert file.decode is not None
    try:
        segment, _, _ = file.decode(data, number, jpegtables=index.tables[plane])
    except Exception as error:  # each codec has its own errors
        raise ImageError(f"{file.path}: plane {plane} cannot be decoded: {one_line(error)}. Check the file.") from error
    return np.asarray(segment)[0, :, :, 0]  # (depth, rows, columns, samples)
