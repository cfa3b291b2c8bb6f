"""How chunks are compressed, as the user names it and as Zarr spells it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from svision_dask.errors import PlanError, UsageError

LEVELS = {"zstd": (1, 22), "gzip": (1, 9), "blosc": (1, 9), "none": (0, 0)}
"""Allowed levels by codec."""
DEFAULTS = {"zstd": 1, "gzip": 5, "blosc": 1, "none": 0}
"""Measured (`docs/performance.md`): higher levels take two to four times as long for files a few percent smaller."""
MOST_BYTES = 2**31
"""Codecs count the bytes of a chunk in 32 bits with a sign, and a shard is encoded in one piece."""


@dataclass(frozen=True)
class Codec:
    """A codec that OME-Zarr viewers can read, and how hard it tries."""

    name: str
    level: int

    def __str__(self) -> str:
        return self.name if self.name == "none" else f"{self.name}:{self.level}"

    def spelled(self, zarr_format: Literal[2, 3]) -> list[dict[str, Any]]:
        """Spell it as the compressors of a zarr array; in zarr v3, with a checksum where the codec has none.

        Without a checksum, flipped bits come back as voxels. In zarr v2, blosc and none have no place for one;
        ``omezarr.write.open_level`` adds that of zstd.
        """
        if zarr_format == 2:
            return _V2[self.name](self.level)
        return _V3[self.name](self.level)


def usual_codec(version: str) -> Codec:
    """Choose the codec of an OME-Zarr ``version`` where nobody did.

    Shuffled bit by bit before zstd, voxels of 16 bits take a fifth less space and half the time. But in zarr v2, as in
    OME-Zarr 0.4, it has no place for a checksum.
    """
    name = "zstd" if version == "0.4" else "blosc"
    return Codec(name, DEFAULTS[name])


def check_bytes(what: str, lengths: Sequence[int], itemsize: int) -> None:
    """Refuse chunks or shards that no codec takes.

    Raises
    ------
    PlanError
        If they are that large.
    """
    size = math.prod(lengths) * itemsize
    if size >= MOST_BYTES:
        raise PlanError(
            f"{what} of {tuple(lengths)} voxels take {size} bytes each; {MOST_BYTES} is too much. Use smaller --{what}."
        )


_CRC = {"name": "crc32c"}
_V2: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "zstd": lambda level: [{"id": "zstd", "level": level}],
    "gzip": lambda level: [{"id": "gzip", "level": level}],
    "blosc": lambda level: [{"id": "blosc", "cname": "zstd", "clevel": level, "shuffle": 2}],  # 2: bits
    "none": lambda level: [],
}
_V3: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "zstd": lambda level: [{"name": "zstd", "configuration": {"level": level, "checksum": True}}],
    "gzip": lambda level: [{"name": "gzip", "configuration": {"level": level}}],
    "blosc": lambda level: [
        {"name": "blosc", "configuration": {"cname": "zstd", "clevel": level, "shuffle": "bitshuffle"}},
        _CRC,
    ],
    "none": lambda level: [_CRC],
}


def parse_codec(text: str) -> Codec:
    """Parse a codec such as ``zstd``, ``blosc:9`` or ``none``.

    Raises
    ------
    UsageError
        If it is none of them, or has no such level.
    """
    match = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", text.strip().lower())
    name = match[1] if match else ""
    level = int(match[2]) if match and match[2] else DEFAULTS.get(name, -1)
    low, high = LEVELS.get(name, (0, -1))
    if not low <= level <= high:
        allowed = ", ".join(f"{each}:{a}–{b}" if b else each for each, (a, b) in LEVELS.items())
        raise UsageError(f"--codec {text}: allowed are {allowed}. Use --codec blosc, or --codec zstd:3.")
    return Codec(name, level)
