"""The OME-XML of a TIFF file: where it is, also in a companion file or in another TIFF, and what it may declare."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import tifffile

from svision_dask.errors import ImageError

ENDING = ".companion.ome"
"""Of an OME-XML file that describes TIFF files beside it, by the OME-TIFF specification."""
MOST_BYTES = 2**28
"""Of a companion file, which has some hundred bytes for each plane."""
MOST_PLANES = 10**7
"""Of an OME-TIFF: the index alone takes some gigabytes."""


def is_companion(path: str | Path) -> bool:
    """Whether a file has the name of a companion file."""
    return str(path).lower().endswith(ENDING)


def open_described(path: str) -> tuple[tifffile.TiffFile, str | None]:
    """Open a TIFF file with the OME-XML that describes it, and say in which other file that is, if it is in one.

    Parameters
    ----------
    path
        A TIFF file, or the companion file of several, of which the first is opened.

    Raises
    ------
    ImageError
        If the file that describes it, or that is described, is not beside it.
    """
    if is_companion(path):
        xml = _xml_of(Path(path))
        return tifffile.TiffFile(_first_tiff(path, xml), omexml=xml), path
    file = tifffile.TiffFile(path)
    try:
        beside = _described_in(path, file.ome_metadata or "")
    except BaseException:
        file.close()
        raise
    if beside is None:
        return file, None
    file.close()
    if beside.suffix.lower() in (".tif", ".tiff"):
        return tifffile.TiffFile(beside), str(beside)
    return tifffile.TiffFile(path, omexml=_xml_of(beside)), str(beside)


def check_declared(file: tifffile.TiffFile, path: str) -> None:
    """Refuse OME-XML that declares more planes than there can be: tifffile takes memory for each before it looks.

    Nor does it look at the names of files: by their identifiers alone, planes would come from the wrong ones.

    Raises
    ------
    ImageError
        If there are too many, or files cannot be told from each other.
    """
    if not file.ome_metadata:
        return
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError:
        return  # tifffile knows more about mending it
    named = {(each.text, each.get("FileName")) for each in root.iterfind(".//{*}TiffData/{*}UUID[@FileName]")}
    if len({identifier for identifier, _ in named}) < len(named):
        raise ImageError(f"{path}: several files have one UUID in the metadata. Repair the metadata.")
    for pixels in root.iterfind(".//{*}Pixels"):
        planes = math.prod(int(pixels.get(f"Size{axis}", 1)) for axis in "ZCT")
        if planes > MOST_PLANES:
            raise ImageError(f"{path}: {planes} planes are declared; allowed are {MOST_PLANES}. Repair the metadata.")


def _described_in(path: str, xml: str) -> Path | None:
    """Find the file that a ``BinaryOnly`` element names; None where the description is in the TIFF file itself."""
    if "BinaryOnly" not in xml:
        return None
    element = ElementTree.fromstring(xml).find("{*}BinaryOnly")
    return None if element is None else _beside(path, element.get("MetadataFile", ""))


def _beside(path: str, name: str) -> Path:
    """Resolve a file that metadata name, which must be in the folder of ``path``: they must not open others."""
    beside = Path(path).parent / name
    if Path(name).name != name or not beside.is_file():
        raise ImageError(
            f"{path} is one part of a multi-file OME-TIFF and goes with {name!r}, which is not beside it. Copy all "
            "TIFF files of the set and its companion file (.companion.ome) into one folder, then give any of them."
        )
    return beside


def _xml_of(beside: Path) -> str:
    """Read a companion file, less its own identifier: tifffile would take it for that of the TIFF file it opens."""
    size = beside.stat().st_size
    if size > MOST_BYTES:
        raise ImageError(f"{beside}: {size} bytes of metadata; allowed are {MOST_BYTES}. Give another image.")
    return re.sub(r'(<(?:\w+:)?OME\b[^>]*?)\sUUID="[^"]*"', r"\1", beside.read_text("utf-8-sig"), count=1)


def _first_tiff(path: str, xml: str) -> Path:
    """Find the first TIFF file that a companion file names."""
    named = ElementTree.fromstring(xml).find(".//{*}TiffData/{*}UUID")
    if named is None:
        raise ImageError(f"{path} names no TIFF files. Give one of the TIFF files that it belongs to.")
    return _beside(path, named.get("FileName", ""))
