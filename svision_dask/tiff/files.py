"""Open a folder or a pattern of TIFF files, a plane or stack each, as one lazy volume in the order of their numbers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from glob import has_magic
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.errors import ImageError, UsageError
from svision_dask.geometry import AXES, Grid, Shape
from svision_dask.tiff.read import CHUNK_BYTES, Spacing, TiffSource, given_spacing, given_units, is_tiff, open_tiff
from svision_dask.volume import Volume, split_box

ENDINGS = (".tif", ".tiff")
_LISTINGS_PER_PROCESS = 8


@dataclass(frozen=True)
class FilesSource:
    """Files of equal shape as one, with an axis that counts them; it pickles as its fields, however many they are."""

    pattern: str
    """Absolute, because workers start elsewhere; of a folder, the folder."""
    listing: str
    """Digest of the names: a file that has come or gone since would move all others."""
    axis: int
    """Position of the axis that counts the files."""
    inner: TiffSource
    """The first file; the others are read as it is."""
    shape: Shape
    dtype: np.dtype[Any]
    """In the machine's byte order."""

    def __getitem__(self, box: Any, /) -> npt.NDArray[Any]:
        """Read a box from those files that it touches.

        Raises
        ------
        ImageError
            If a file is damaged or unlike the first, or the files are not those that were opened.
        """
        ranges, rest = split_box(box, self.shape)
        block = np.empty([stop - start for start, stop in ranges], self.dtype)
        start, stop = ranges[self.axis]
        within = tuple(slice(*r) for i, r in enumerate(ranges) if i != self.axis)
        files = _listed(self.pattern, self.listing)[start:stop]
        for part, file in zip(np.moveaxis(block, self.axis, 0), files, strict=True):
            part[...] = replace(self.inner, path=file)[within]
        voxels: npt.NDArray[Any] = block[rest]
        return voxels

    @property
    def kept_bytes(self) -> int:
        """What reading it may keep in memory."""
        return self.inner.kept_bytes * self.shape[self.axis]


def is_files(path: Path) -> bool:
    """Whether ``path`` is a pattern such as ``planes/*.tif``, or a folder with TIFF files in it."""
    if path.is_dir():
        return any(file.suffix.lower() in ENDINGS for file in path.iterdir())
    return has_magic(str(path)) and not path.exists()


def open_tiff_files(
    path: str | Path, *, axes: str | None = None, spacing: Spacing | None = None, unit: str | None = None
) -> Volume:
    """Open a folder or a pattern of TIFF files without reading voxels; they are counted along z, in natural order.

    Parameters
    ----------
    path
        A folder, or a pattern such as ``planes/*_ch1_*.tif``. One number in the names may differ from file to file.
    axes
        A letter of ``tczyx`` for what counts the files, and one for each axis that is stored in a file, such as
        ``tzyx`` for a folder of volumes; ``zyx`` by default.
    spacing, unit
        What the files do not say, as in `tiff.open_tiff`; no file of one plane says how far apart the planes are.

    Returns
    -------
    Volume
        Spacing 1.0 and unit None where neither the files nor the caller give one.

    Raises
    ------
    ImageError
        If there are no files, a number is missing between them, or they are not planes and ``axes`` is not given.
    UsageError
        If ``axes``, ``spacing`` or ``unit`` do not fit the files.
    """
    pattern = str(Path(path).absolute())
    files = list_files(pattern)
    _check_numbers(pattern, files)
    counted, stored = (axes[0].lower(), axes[1:].lower()) if axes else ("z", "yx")
    first = open_tiff(files[0], axes=stored if axes else None)
    if not axes and first.grid.axes != "yx":
        raise ImageError(
            f"{path}: {Path(files[0]).name} holds axes {first.grid.axes}, not one plane. Name what counts the files, "
            f"such as --axes t{first.grid.axes}, or give one file: that of an OME-TIFF set finds the others."
        )
    source = first.source
    assert isinstance(source, TiffSource), source
    if counted in first.grid.axes or counted not in AXES:
        raise UsageError(f"{path}: --axes {axes} counts files by {counted}, which each file has; name another letter.")
    return _stacked(pattern, files, first, source, counted, spacing, unit)


def _stacked(
    pattern: str,
    files: Sequence[str],
    first: Volume,
    inner: TiffSource,
    counted: str,
    spacing: Spacing | None,
    unit: str | None,
) -> Volume:
    axes = "".join(axis for axis in AXES if axis in (counted, *first.grid.axes))
    at = axes.index(counted)

    def inserted(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
        return (*values[:at], value, *values[at:])

    said = {axis: u for axis, u in zip(first.grid.axes, first.grid.units, strict=True) if u}
    steps = dict(zip(first.grid.axes, first.grid.spacing, strict=True))
    given = given_spacing(spacing, axes)
    units = {**said, **given_units(Path(pattern), axes, said, given, unit)}
    grid = Grid(
        axes=axes,
        shape=inserted(first.grid.shape, len(files)),
        spacing=tuple(given.get(axis, steps.get(axis, 1.0)) for axis in axes),
        origin=(0.0,) * len(axes),
        units=tuple(units.get(axis) for axis in axes),
    )
    listing = _digest(files)
    source = FilesSource(pattern, listing, at, inner, grid.shape, inner.dtype)
    at_once = max(1, CHUNK_BYTES // max(1, first.voxels.nbytes)) if counted in "tz" else 1
    stored = tuple(int(n) for n in first.voxels.chunksize)
    volume = Volume.from_source(
        source,
        grid,
        chunks=inserted(stored, min(at_once, len(files)) if stored == first.grid.shape else 1),
        name=_name(pattern),
        identity=f"{len(files)} files {listing} {_stamps(files)}, axes {axes}",
    )
    return replace(volume, paths=(pattern,) if Path(pattern).is_dir() else (files[0], files[-1]))


def list_files(pattern: str) -> list[str]:
    """List the TIFF files of a folder or a pattern in natural order: 2 before 10.

    Raises
    ------
    ImageError
        If there are none, or one is no TIFF.
    """
    anchor = Path(pattern).anchor
    found = (
        [str(file) for file in Path(pattern).iterdir() if file.suffix.lower() in ENDINGS]
        if Path(pattern).is_dir()
        else [str(file) for file in Path(anchor).glob(str(Path(pattern).relative_to(anchor)))]
    )
    files = sorted((file for file in found if not Path(file).name.startswith(".")), key=_natural)
    if not files:
        raise ImageError(f"{pattern}: no file has such a name. Give a folder, or a pattern in quotes, such as '*.tif'.")
    for file in (files[0], files[-1]):
        if not is_tiff(file):
            raise ImageError(f"{file} is no TIFF. Give a pattern of TIFF files only, in quotes, such as '*.tif'.")
    return files


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]


def _check_numbers(pattern: str, files: Sequence[str]) -> None:
    """Refuse names in which more than one number changes, or one is left out: planes would be in wrong places."""
    numbers = [[int(n) for n in re.findall(r"\d+", Path(file).name)] for file in files]
    words = {re.sub(r"\d+", "0", Path(file).name) for file in files}
    if len(files) < 2:
        return
    if len(words) > 1:
        two = sorted(words)[:2]
        raise ImageError(f"{pattern}: names differ in more than a number: {two}. Give a pattern in quotes: 'a_*.tif'.")
    changing = [column for column in zip(*numbers, strict=True) if len(set(column)) > 1]
    if len(changing) != 1:
        raise ImageError(
            f"{pattern}: {len(changing)} numbers change from name to name, and which one counts the planes is not ours "
            "to guess. Give a pattern in quotes in which one does, such as '*_ch1_*.tif'."
        )
    steps = [b - a for a, b in pairwise(changing[0])]
    odd = next((i for i, step in enumerate(steps) if step != min(steps)), None)
    if odd is not None or min(steps) < 1:
        before, after = (Path(files[(odd or 0) + i]).name for i in (0, 1))
        raise ImageError(f"{pattern}: no file between {before} and {after}. Is the copy complete?")


def _digest(files: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(files).encode()).hexdigest()[:32]


def _stamps(files: Sequence[str]) -> str:
    seen = [Path(file).stat() for file in files]
    return hashlib.sha256(repr([(s.st_size, s.st_mtime_ns) for s in seen]).encode()).hexdigest()[:32]


@lru_cache(maxsize=_LISTINGS_PER_PROCESS)
def _listed(pattern: str, listing: str) -> list[str]:
    files = list_files(pattern)
    if _digest(files) != listing:
        raise ImageError(f"{pattern}: files have come or gone since it was opened; open it again.")
    return files


def _name(pattern: str) -> str:
    path = Path(pattern)
    plain = re.sub(r"[*?\[\]]+|\.tiff?$", "", path.name, flags=re.IGNORECASE).strip("_-. ")
    return plain or path.parent.name
