"""Turn what is typed after an option into values: numbers per axis, boxes, sizes. Pure; errors are one line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from svision_dask.errors import UsageError
from svision_dask.geometry import SPATIAL, per_spatial_axis

Numbers = float | tuple[float, ...] | Mapping[str, float]


def parse_numbers(text: str, *, option: str) -> Numbers:
    """Parse one number, a list in axis order such as ``1,2,2``, or names such as ``z=1,y=2,x=2``.

    Raises
    ------
    UsageError
        If a part is not a finite number, or names and bare numbers are mixed.
    """
    if "=" in text:
        return {axis: _number(value, option) for axis, value in _named(text, option).items()}
    numbers = tuple(_number(part, option) for part in text.split(","))
    return numbers[0] if len(numbers) == 1 else numbers


def parse_lengths(text: str, axes: str, *, option: str) -> dict[str, int]:
    """Parse whole voxels of at least 1 for some or all spatial axes of ``axes``.

    Raises
    ------
    UsageError
        If a number is not whole or not positive, or the axes do not match.
    """
    given = parse_numbers(text, option=option)
    named = given if isinstance(given, Mapping) else per_spatial_axis(given, axes, what=option)
    spatial = [axis for axis in axes if axis in SPATIAL]
    for axis, value in named.items():
        if axis not in spatial or value < 1 or value != int(value):
            raise UsageError(
                f"{option} {axis}={value:g}: allowed are whole voxels from 1 on the axes {','.join(spatial)}. "
                f"Use {option} 64 or {option} {spatial[-1]}=64."
            )
    return {axis: int(value) for axis, value in named.items()}


def parse_box(text: str, axes: str, *, option: str) -> dict[str, slice]:
    """Parse ``start:stop`` per spatial axis, in axis order or by name; an end left out is the volume's.

    Raises
    ------
    UsageError
        If a part is no ``start:stop`` of whole voxels from 0, or an order has not as many as there are axes.
    """
    if "=" in text:
        return {axis: _span(span, option) for axis, span in _named(text, option).items()}
    spatial, parts = [axis for axis in axes if axis in SPATIAL], text.split(",")
    if len(parts) != len(spatial):
        raise UsageError(
            f"{option} {text}: give start:stop for each of {','.join(spatial)}, or by name, such as "
            f"{spatial[0]}=0:256; an axis left out is taken whole."
        )
    return {axis: _span(span, option) for axis, span in zip(spatial, parts, strict=True)}


def parse_options(text: str, *, option: str) -> dict[str, str]:
    """Parse names and values such as ``partition=gpu,time=2:00:00``.

    Raises
    ------
    UsageError
        If a part is no ``name=value``, or a name comes twice.
    """
    return _named(text, option, "name")


def parse_size(text: str, *, option: str) -> int:
    """Parse a size in bytes, such as ``2GB``, ``512MiB`` or ``1000000``.

    Raises
    ------
    UsageError
        If it is none of these, or less than one byte.
    """
    from dask.utils import parse_bytes  # the sizes of dask's own command line

    try:
        size = int(parse_bytes(text)) if re.search(r"\d", text) else 0  # dask reads "GB" as 1 GB
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise UsageError(f"{option} {text}: not a size. Use {option} 512MiB or {option} 2GB.")
    return size


def parse_tolerance(text: str, *, option: str) -> float:
    """Parse ``exact`` as 0, or a share of the range in (0, 1).

    Raises
    ------
    UsageError
        If it is neither.
    """
    value = 0.0 if text == "exact" else _number(text, option)
    if text != "exact" and not 0 < value < 1:
        raise UsageError(f"{option} {text}: allowed is a share of the range between 0 and 1. Use 1e-4, or exact.")
    return value


def _named(text: str, option: str, what: str = "axis") -> dict[str, str]:
    """Split ``name=value`` pairs, each name once."""
    named: dict[str, str] = {}
    for part in text.split(","):
        axis, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not axis or axis in named:
            raise UsageError(f"{option} {text}: give each {what} once, as {what}=value, with commas between them.")
        named[axis] = value
    return named


def _number(text: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{option} {text.strip()!r}: not a number. Use {option} 2 or {option} z=1,y=2,x=2.")
    return int(value) if value == int(value) else value


def _span(text: str, option: str) -> slice:
    match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", text)
    if match is None:
        raise UsageError(f"{option} {text.strip()!r}: give start:stop in whole voxels from 0, such as 0:256.")
    start, stop = (int(end) if end else None for end in match.groups())
    return slice(start, stop)
