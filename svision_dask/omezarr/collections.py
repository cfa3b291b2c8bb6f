"""OME-Zarr groups that hold several images: series of bioformats2raw, and the fields of wells and plates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from svision_dask.errors import ImageError, UsageError
from svision_dask.omezarr.metadata import Attributes, folder_inside, is_omezarr, read_attributes
from svision_dask.stores.locations import Location

LAYOUT = "bioformats2raw.layout"
MOST_IMAGES = 10**5
"""Metadata of a few bytes each can name any number; the largest plates have 3456 wells of some tens of fields."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Several images in one group."""

    kind: str
    """``"plate"``, ``"well"`` or ``"series"``."""
    images: tuple[str, ...]
    """Their paths below the group, in the order of the metadata."""

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.images)

    def find(self, path: Location, series: int | str | None) -> str:
        """Find the path of one image, by its number from 0 or by its path.

        Raises
        ------
        ImageError
            If none is named and there are several, or there are none.
        UsageError
            If there is no such image.
        """
        if isinstance(series, str) and series.strip("/") in self.images:
            return series.strip("/")
        if series is not None and (isinstance(series, int) or series.isdecimal()) and int(series) in range(self.count):
            return self.images[int(series)]
        if series is None and self.count == 1:
            return self.images[0]
        named = ", ".join(self.images[:4]) + (", …" if self.count > 4 else "")
        found = f"{path} holds {self.count} images ({self.kind}): {named}"
        if series is not None:
            raise UsageError(f"{found}; there is no {series}. Use --series with one of them, or its number from 0.")
        raise ImageError(f"{found}. Give one of them by --series, such as --series {self.images[0]}.")


def read_collection(path: Location) -> Collection | None:
    """Read which images a group holds; None where it is an image itself, or nothing that we know.

    Raises
    ------
    ImageError
        If the metadata of a plate, of a well or of series are damaged, or name images outside of the group.
    """
    attributes = _ome(path)
    if "multiscales" in attributes:
        return None
    if "plate" in attributes:  # bioformats2raw makes plates, too
        return _collection(path, "plate", _fields_of_plate(path, attributes["plate"]))
    if "well" in attributes:
        return _collection(path, "well", _fields_of_well(path, attributes["well"]))
    if LAYOUT in attributes:
        return _collection(path, "series", _series(path))
    return None


def _collection(path: Location, kind: str, images: Iterator[str]) -> Collection:
    found = []
    for image in images:
        folder_inside(path, image, f"{path}, {kind} image {image!r}")
        found.append(image)
        if len(found) > MOST_IMAGES:
            raise ImageError(f"{path} names more than {MOST_IMAGES} images. Give one of them, such as {path / image}.")
    if not found:
        raise ImageError(f"{path} is a collection ({kind}) that names no images. Give an image.")
    return Collection(kind=kind, images=tuple(found))


def _ome(path: Location) -> Attributes:
    zarr_format, attributes = read_attributes(path)
    nested = attributes.get("ome") if zarr_format == 3 else attributes
    return nested if isinstance(nested, dict) else {}


def _entries(path: Location, holder: Any, key: str) -> list[str]:
    """Take the paths out of a list of objects."""
    entries = holder.get(key) if isinstance(holder, dict) else None
    entries = entries if isinstance(entries, list) else [entries]  # which has no path
    paths = [entry.get("path") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(each, str) for each in paths):
        raise ImageError(f"{path}: {key} must be a list of objects with a path. Repair the metadata.")
    return [str(each) for each in paths]


def _fields_of_plate(path: Location, plate: Any) -> Iterator[str]:
    for well in _entries(path, plate, "wells"):
        folder = folder_inside(path, well, f"{path}, well {well!r}")
        yield from (f"{well}/{field}" for field in _fields_of_well(folder, _ome(folder).get("well")))


def _fields_of_well(path: Location, well: Any) -> Iterator[str]:
    yield from _entries(path, well, "images")


def _series(path: Location) -> Iterator[str]:
    """List the images of bioformats2raw: as its group OME names them, or else by consecutive numbers.

    OME-Zarr 0.5, 2.2: "if the "series" attribute does not exist … consecutively numbered groups (i.e. 0/, 1/, 2/…)".
    """
    named = _ome(path / "OME").get("series") if is_omezarr(path / "OME") else None
    if named is None:
        yield from (str(n) for n in _numbers_at(path))
    elif isinstance(named, list) and all(isinstance(each, str) for each in named):
        yield from named
    else:
        raise ImageError(f"{path / 'OME'}: series must be a list of paths. Repair the metadata.")


def _numbers_at(path: Location) -> Iterator[int]:
    for number in count():
        if not is_omezarr(path / str(number)):
            return
        yield number
