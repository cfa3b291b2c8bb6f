"""What an OME-Zarr image says beyond its axes, places and voxels: how it is shown, and what other programs wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from svision_dask.volume import Shown

Attributes = Mapping[str, Any]

MULTISCALE_KEYS = {"axes", "datasets", "name", "version", "coordinateTransformations"}
"""Of a multiscales entry: read, or else written anew."""
METHOD_KEYS = {"type", "metadata"}
"""Of a multiscales entry: how its coarser levels were made, which those of an output are not."""
CHANNEL_KEYS = {"label", "color", "window", "active"}
IMAGE_KEYS = {"multiscales", "omero", "version", "image-label", "labels"}
REPLACED = {"svision_dask", "_ARRAY_DIMENSIONS", "ome"}
"""Attributes of the group that an output has of its own, or must not have."""
FORMER = IMAGE_KEYS | {"plate", "well", "bioformats2raw.layout"}
"""Where 0.4 has the OME metadata: in an output they would be those of its input, and speak of other images."""


def read_shown(omero: Any) -> tuple[Shown, ...]:
    """Read how each channel is shown; what is damaged is left out, because it stops nobody from reading voxels."""
    channels = _mapping(omero).get("channels")
    return tuple(_shown(channel) for channel in channels) if isinstance(channels, list) else ()


def _shown(channel: Any) -> Shown:
    channel = _mapping(channel)
    colour = str(channel.get("color", "")).lstrip("#")
    window = _mapping(channel.get("window"))
    limits = map(window.get, ("min", "max", "start", "end"))
    low, high, start, end = (float(n) if is_number(n) else None for n in limits)
    return Shown(
        # 0.4: "color … a string of 6 hex digits"; some writers add two of opacity
        colour=colour[:6].upper() if re.fullmatch(r"[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", colour) else "",
        window=None if start is None or end is None else (low, high, start, end),  # some writers have no min and max
        active=channel.get("active") is not False,
    )


def carried_attributes(attributes: Attributes) -> dict[str, Any]:
    """Take what other programs keep beside the OME metadata; only what JSON can hold."""
    ours = REPLACED | FORMER
    return {key: value for key, value in attributes.items() if key not in ours and _is_json({key: value})}


def dropped_attributes(zarr_format: int, attributes: Attributes) -> tuple[str, ...]:
    """Name what an output will not have: fields that nobody but their writer knows how to bring to another grid."""
    ome = _mapping(attributes.get("ome")) if zarr_format == 3 else attributes
    entries, omero = ome.get("multiscales"), _mapping(ome.get("omero"))
    entry = _mapping(entries[0]) if isinstance(entries, list) and entries else {}
    channels = omero.get("channels")
    fields = {key for each in (channels if isinstance(channels, list) else ()) for key in _mapping(each)}
    named = [f"multiscales.{key}" for key in entry if key not in MULTISCALE_KEYS | METHOD_KEYS]
    named += [f"omero.{key}" for key in omero if key not in {"channels", "version", "name", "id"}]
    named += [f"omero.channels.{key}" for key in sorted(fields - CHANNEL_KEYS)]
    if zarr_format == 3:
        named += [f"ome.{key}" for key in ome if key not in IMAGE_KEYS]
        named += [key for key in attributes if key in FORMER]
    named += [key for key, value in attributes.items() if key not in REPLACED and not _is_json({key: value})]
    if _mapping(_mapping(attributes.get("svision_dask")).get("plan")).get("trust") is True:
        named.append("trust (maps of how the input was made)")
    return tuple(map(whole_text, named))


def whole_text(text: str) -> str:
    """Spell out halves of characters, which JSON can hold and no file or terminal can."""
    return text.encode(errors="backslashreplace").decode()


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of JSON is a finite number that a float can hold; JSON has integers of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _mapping(value: Any) -> Attributes:
    return value if isinstance(value, dict) else {}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True
