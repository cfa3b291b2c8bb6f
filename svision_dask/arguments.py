"""Turn what is typed after an option into values: numbers per axis, boxes, sizes. Pure; errors are one line."""

from __future__ import annotations

from collections.abc import Mapping

from svision_dask.errors import UsageError
from svision_dask.geometry import SPATIAL

Numbers = float | tuple[float, ...] | Mapping[str, float]
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_numbers(text: str, *, option: str) -> Numbers:
    """One number, a list in axis order such as ``1,2,2``, or names such as ``z=1,y=2,x=2``.

    Raises
    ------
    UsageError
        If a part is not a number, or names and bare numbers are mixed.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any("=" in part for part in parts):
        numbers = tuple(_number(part, option) for part in parts)
        return numbers[0] if len(numbers) == 1 else numbers
    named: dict[str, float] = {}
    for part in parts:
        axis, equals, value = part.partition("=")
        if not equals or axis in named:
            raise UsageError(f"{option} {text}: name every axis once. Use {option} 2, {option} 1,2,2 or {option} z=1,y=2,x=2.")
        named[axis.strip()] = _number(value, option)
    return named


def parse_lengths(text: str, axes: str, *, option: str) -> dict[str, int]:
    """Whole voxels of at least 1 for some or all spatial axes of ``axes``.

    Raises
    ------
    UsageError
        If a number is not whole or not positive, or the axes do not match.
    """
    given = parse_numbers(text, option=option)
    spatial = [axis for axis in axes if axis in SPATIAL]
    if isinstance(given, tuple):
        if len(given) != len(spatial):
            raise UsageError(f"{option} {text}: give one number, or {len(spatial)} in the order {','.join(spatial)}.")
        given = dict(zip(spatial, given, strict=True))
    elif not isinstance(given, Mapping):
        given = dict.fromkeys(spatial, given)
    for axis, value in given.items():
        if axis not in spatial or value < 1 or value != int(value):
            raise UsageError(f"{option} {axis}={value:g}: allowed are whole voxels from 1 on the axes {','.join(spatial)}.")
    return {axis: int(value) for axis, value in given.items()}


def parse_box(text: str, axes: str, *, option: str = "--sample") -> dict[str, slice]:
    """``start:stop`` per spatial axis, in axis order or by name; an end left out is the volume's.

    Raises
    ------
    UsageError
        If a part is no ``start:stop`` of whole voxels from 0, or the axes do not match.
    """
    spatial = [axis for axis in axes if axis in SPATIAL]
    parts = [part.strip() for part in text.split(",")]
    if any("=" in part for part in parts):
        named = {part.partition("=")[0].strip(): part.partition("=")[2] for part in parts}
    elif len(parts) == len(spatial):
        named = dict(zip(spatial, parts, strict=True))
    else:
        raise UsageError(f"{option} {text}: give start:stop for each of {','.join(spatial)}, or by name, such as y=0:256.")
    return {axis: _span(span, f"{option} {axis}") for axis, span in named.items()}


def parse_bytes(text: str, *, option: str) -> int:
    """A size such as ``2GB``, ``512MiB`` or a number of bytes.

    Raises
    ------
    UsageError
        If it is none of these, or not positive.
    """
    number = text.strip().rstrip("BKMGTIbkmgti ")
    unit = text.strip()[len(number) :].strip().upper()
    value = _number(number, option) * UNITS.get(unit, 0)
    if value < 1:
        raise UsageError(f"{option} {text}: allowed is a size such as 512MiB or 2GB.")
    return int(value)


def parse_tolerance(text: str) -> float:
    """``exact`` as 0, or a share of the range in (0, 1).

    Raises
    ------
    UsageError
        If it is neither.
    """
    if text == "exact":
        return 0.0
    value = _number(text, "--halo")
    if not 0 < value < 1:
        raise UsageError(f"--halo {text}: allowed is exact, or a share of the range between 0 and 1, such as 1e-4.")
    return value


def _number(text: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{option} {text.strip()!r}: not a number. Use {option} 2 or {option} z=1,y=2,x=2.") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise UsageError(f"{option} {text.strip()}: not a finite number.")
    return int(value) if value == int(value) else value


def _span(text: str, option: str) -> slice:
    start, colon, stop = text.partition(":")
    if not colon or not all(not end.strip() or end.strip().isdigit() for end in (start, stop)):
        raise UsageError(f"{option}={text}: give start:stop in whole voxels from 0, such as 0:256.")
    return slice(int(start) if start.strip() else None, int(stop) if stop.strip() else None)
