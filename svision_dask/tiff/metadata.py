"""What a TIFF file says about its voxels: spacing, units and channel names, from OME-XML or from ImageJ's keys.

Nothing is guessed: an axis that the file does not describe is absent from the answer.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import tifffile

from svision_dask.errors import UsageError
from svision_dask.geometry import SPATIAL

logger = logging.getLogger(__name__)

_PREFIXES = {
    "": "", "Y": "yotta", "Z": "zetta", "E": "exa", "P": "peta", "T": "tera", "G": "giga", "M": "mega", "k": "kilo",
    "h": "hecto", "d": "deci", "c": "centi", "m": "milli", "u": "micro", "\u00b5": "micro", "\u03bc": "micro",
    "n": "nano", "p": "pico", "f": "femto", "a": "atto", "z": "zepto", "y": "yocto",
}  # fmt: skip
_LENGTH_WORDS = {
    "in": "inch", '"': "inch", "inches": "inch", "ft": "foot", "feet": "foot", "foot": "foot", "yd": "yard",
    "mi": "mile", "pc": "parsec", "\u00c5": "angstrom", "\u212b": "angstrom", "micron": "micrometer",
    "microns": "micrometer",
}  # fmt: skip
_TIME_WORDS = {"sec": "second", "secs": "second", "min": "minute", "h": "hour", "hr": "hour", "d": "day"}
_UNCALIBRATED = ("pixel", "pixels", "px", "voxel", "voxels")
_INCH, _CENTIMETRE, _MILLIMETRE, _MICROMETRE = 2, 3, 4, 5
"""Values of TIFF's ResolutionUnit; 1 is "no absolute unit", 4 and 5 are not in TIFF 6.0 but in use."""
_SCREEN_DPI = (72, 72)

Stated = Mapping[str, tuple[object, str | None]]
"""Number and unit by axis letter, as the file spells them; no unit where only the ratio of the numbers counts."""


def _spellings(base: str, symbol: str, words: Mapping[str, str]) -> dict[str, str]:
    """Every spelling of a unit mapped to its UDUNITS-2 name; OME-Zarr: "SHOULD be one of these strings"."""
    metric = {prefix + symbol: name + base for prefix, name in _PREFIXES.items()}
    names = {*metric.values(), *words.values()}
    british = {name.replace("meter", "metre"): name for name in names}
    singular = {**{name: name for name in names}, **british}
    return {**{name + "s": unit for name, unit in singular.items()}, **singular, **metric, **words}


LENGTHS = _spellings("meter", "m", _LENGTH_WORDS)
TIMES = _spellings("second", "s", _TIME_WORDS)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the file states; axes that it does not describe are absent."""

    spacing: Mapping[str, float] = field(default_factory=dict)
    """Distance between neighbouring voxels by axis letter, in ``units``."""
    units: Mapping[str, str] = field(default_factory=dict)
    """OME-Zarr's name of the unit by axis letter."""
    channels: tuple[str, ...] = ()
    """Channel names, an empty one where the file gives none."""


def unit_name(text: str, spellings: Mapping[str, str] = LENGTHS) -> str | None:
    """OME-Zarr's name of the unit that ``text`` spells, or None if it is not a unit that we know."""
    # ImageJ writes the micro sign as the six characters \u00B5; read as Latin-1, UTF-8 leaves an A with circumflex.
    plain = text.strip().replace("\\u00B5", "\u00b5").replace("\u00c2\u00b5", "\u00b5")
    # Symbols differ by case (mm and Mm), names do not.
    return spellings.get(plain) or spellings.get(plain.casefold() if len(plain) > 2 else plain)


def check_unit(text: str) -> str:
    """OME-Zarr's name of a unit of length that the user gave.

    Raises
    ------
    UsageError
        If it is not a unit of length.
    """
    name = unit_name(text)
    if name is None:
        raise UsageError(f"unit {text!r} is not a unit of length; use one such as micrometer, um, nanometer or nm.")
    return name


def read_calibration(file: tifffile.TiffFile, position: int) -> Calibration:
    """Read what ``file`` says about the voxels of its series number ``position``.

    Sources: OME model 2016-06 (``Pixels``); ImageJ's ``TiffDecoder`` and ``Opener`` for ImageJ's keys, which tifffile
    also writes as JSON.
    """
    series = file.series[position]
    if series.kind == "ome":
        return _from_ome(file, position)
    page = series.keyframe
    if series.kind == "imagej":
        return _from_keys(file.imagej_metadata or {}, page, imagej=True)
    return _from_keys(_json_keys(page) if series.kind == "shaped" else {}, page, imagej=False)


def channel_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Complete the file's channel names; none if it does not name ``count`` channels."""
    if len(names) != count or not any(names):
        return ()
    return tuple(name or f"Channel {number}" for number, name in enumerate(names))


def _calibration(stated: Stated, channels: tuple[str, ...] = ()) -> Calibration:
    """Keep the axes whose number is a length and whose unit is not "pixel"."""
    spacing: dict[str, float] = {}
    units: dict[str, str] = {}
    for axis, (number, unit) in stated.items():
        length = _positive(number)
        if length is None or (unit or "").strip().casefold() in _UNCALIBRATED:
            continue
        spacing[axis] = length
        name = unit and unit_name(unit, LENGTHS if axis in SPATIAL else TIMES)
        if name:
            units[axis] = name
        elif unit:
            logger.warning("axis %s: %r is not a unit we know; its spacing %g is kept without one.", axis, unit, length)
    return Calibration(spacing=spacing, units=units, channels=channels)


def _positive(number: object) -> float | None:
    """Return ``number`` if it can be a length, else None."""
    try:
        length = float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return length if math.isfinite(length) and length > 0 else None


def _from_ome(file: tifffile.TiffFile, position: int) -> Calibration:
    root = ElementTree.fromstring(file.ome_metadata or "")
    image = _image_of(root.findall("{*}Image"), file, position)
    pixels = None if image is None else image.find("{*}Pixels")
    if pixels is None:
        logger.warning("%s: no OME image matches series %d; its spacing is unknown.", file.filename, position)
        return Calibration()
    # The schema's defaults: PhysicalSizeXUnit is micrometre, TimeIncrementUnit is second.
    stated: dict[str, tuple[object, str | None]] = {
        axis: (pixels.get(f"PhysicalSize{axis.upper()}"), pixels.get(f"PhysicalSize{axis.upper()}Unit", "um"))
        for axis in SPATIAL
    }
    stated["t"] = (pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"))
    return _calibration(stated, tuple(channel.get("Name", "") for channel in pixels.findall("{*}Channel")))


def _image_of(images: list[ElementTree.Element], file: tifffile.TiffFile, position: int) -> ElementTree.Element | None:
    """Find the OME image that became series number ``position``; tifffile leaves out images without planes."""
    if len(images) == len(file.series):
        return images[position]
    named = [image for image in images if image.get("Name", "") == file.series[position].name]
    return named[0] if len(named) == 1 else None


def _json_keys(page: tifffile.TiffPage) -> Mapping[str, Any]:
    """Parse the metadata that tifffile wrote into ImageDescription."""
    keys = json.loads(page.description) if page.description.startswith("{") else {}
    return keys if isinstance(keys, dict) else {}


def _from_keys(keys: Mapping[str, Any], page: tifffile.TiffPage, *, imagej: bool) -> Calibration:
    """Spacing from ImageJ's keys and from the resolution tags, which count pixels per unit."""
    unit = str(keys.get("unit", "")).strip() or _resolution_unit(page, imagej=imagej)
    # Without a unit the tags are a program's default; with a spacing beside them the ratio was meant.
    if unit is None and not ("spacing" in keys and page.tags.valueof(296) == 1):
        return Calibration()
    columns, rows = (_positive(value) for value in page.resolution)
    stated: Stated = {
        "z": (_depth(keys.get("spacing")), keys.get("zunit", unit)),
        "y": (rows and 1 / rows, keys.get("yunit", unit)),
        "x": (columns and 1 / columns, unit),
        "t": (keys.get("finterval"), keys.get("tunit", "sec")),
    }
    return _calibration(stated)


def _resolution_unit(page: tifffile.TiffPage, *, imagej: bool) -> str | None:
    """Name the unit of the resolution tags where they describe the specimen, and not a printed page."""
    units = {_MILLIMETRE: "mm", _MICROMETRE: "um"}
    # Of the programs that write inch or centimetre, ImageJ alone reads them back as a voxel size; it too takes
    # 72 dpi for "not calibrated", because that is what other programs write for a screen.
    if imagej and page.resolution != _SCREEN_DPI:
        units |= {_INCH: "inch", _CENTIMETRE: "cm"}
    return units.get(page.tags.valueof(296, default=_INCH))  # TIFF 6.0: "Default = 2 (inch)."


def _depth(spacing: object) -> float | None:
    """Return ImageJ's spacing of slices; its ``Opener`` too drops the sign."""
    return abs(spacing) if isinstance(spacing, int | float) else None
