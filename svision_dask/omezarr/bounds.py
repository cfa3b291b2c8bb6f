"""Arrays whose codecs refuse to decode more bytes than a chunk has: a few bytes can be made that hold any number.

Zstandard, Blosc and LZ4 say how much there is before they decode it; the others decode no more than that. Codecs that
do not come with zarr are used as they are.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numcodecs
import zarr
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer

SPARE_BYTES = 2**17
"""What a chunk may have beside its voxels: checksums, the end of a Zstandard block that does not say how full it is."""
PART_FILLED = 8
"""Compressed blocks of Zstandard do not say how full they are, and writers that stream leave them part empty."""
FILTERED_BYTES = 8
"""Of a voxel, at most, before filters of zarr v2 have made its type of it."""


def bounded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Give the same array, with codecs that raise ``ValueError`` where a chunk holds more than it should.

    A shard must be given here again where it was unpickled: zarr forgets what its inner codecs were.
    """
    metadata: Any = array.metadata
    if metadata.zarr_format == 3:
        metadata = replace(metadata, codecs=_bounded_codecs(metadata.codecs))
    else:
        itemsize = max(array.dtype.itemsize, FILTERED_BYTES if metadata.filters else 0)
        most = math.prod(array.chunks) * itemsize + SPARE_BYTES
        filters = [_bounded_v2(codec, most) for codec in metadata.filters or ()]
        metadata = replace(metadata, compressor=_bounded_v2(metadata.compressor, most), filters=filters or None)
    return zarr.Array(zarr.AsyncArray(metadata, array.store_path, array.async_array.config))


def _bounded_codecs(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    return tuple(map(_bounded_codec, codecs))


def _bounded_codec(codec: Codec) -> Codec:
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=_bounded_codecs(codec.codecs))
    if isinstance(codec, _Bounded) or not isinstance(codec, BytesBytesCodec):
        return codec
    said: Any = codec.to_dict()
    kind, _, name = said["name"].rpartition("numcodecs.")
    configuration = said.get("configuration", {}) if kind else {}  # no codec of the standard needs any to decode
    return _Bounded(codec, numcodecs.get_codec({"id": name, **configuration})) if name in DECODERS else codec


def _bounded_v2(codec: Any, most: int) -> Any:
    return _BoundedV2(codec, most) if getattr(codec, "codec_id", None) in DECODERS else codec


@dataclass(frozen=True)
class _Bounded(BytesBytesCodec):
    """A codec of zarr v3, for reading."""

    inner: BytesBytesCodec
    codec: Any
    """Of numcodecs, that decodes the same."""
    is_fixed_size = False

    def to_dict(self) -> Any:
        return self.inner.to_dict()

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return self.inner.compute_encoded_size(input_byte_length, chunk_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        most = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize + SPARE_BYTES
        content = chunk_data.as_numpy_array()
        decoded = await asyncio.to_thread(_decode, self.codec, content, most)
        return chunk_spec.prototype.buffer.from_bytes(decoded)


@dataclass(frozen=True)
class _BoundedV2(numcodecs.abc.Codec):  # type: ignore[misc]  # numcodecs is untyped
    """A codec of zarr v2, for reading."""

    inner: Any
    most: int
    codec_id = "bounded"

    def get_config(self) -> Any:
        return self.inner.get_config()

    def encode(self, buf: Any) -> Any:
        return self.inner.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        return _decode(self.inner, buf, self.most)


def _decode(codec: Any, content: Any, most: int) -> Any:
    return DECODERS[codec.codec_id](codec, memoryview(content).cast("B"), most)


def _check(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"it holds {size} bytes or more, where at most {most} belong")


def _decode_stated(size_of: Callable[[memoryview], int]) -> Callable[[Any, memoryview, int], Any]:
    def decode(codec: Any, content: memoryview, most: int) -> Any:
        _check(size_of(content), most)
        return codec.decode(content)

    return decode


def _decode_stream(make: Callable[[Any], Any], *, several: bool = True) -> Callable[[Any, memoryview, int], bytes]:
    def decode(codec: Any, content: memoryview, most: int) -> bytes:
        parts, rest, size = [], bytes(content), 0
        while rest:
            decoder = make(codec)
            parts.append(decoder.decompress(rest, most - size + 1))
            size += len(parts[-1])
            _check(size, most)
            if not decoder.eof:
                raise EOFError("it ends before its content does")
            rest = decoder.unused_data.lstrip(b"\0") if several else b""
        return parts[0] if len(parts) == 1 else b"".join(parts)

    return decode


def _zstd_bytes(content: memoryview) -> int:
    """Count what Zstandard frames hold: as they say, or else what their blocks may well hold (RFC 8878, 3.1)."""
    place = total = 0
    while place + 5 < len(content):
        magic = int.from_bytes(content[place : place + 4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # a frame to skip
            place += 8 + int.from_bytes(content[place + 4 : place + 8], "little")
            continue
        if magic != 0xFD2FB528:
            break  # no frame, which the decoder says
        flags, window = content[place + 4], content[place + 5]
        single = flags >> 5 & 1
        place += 6 - single + (0, 1, 2, 4)[flags & 3]
        length = (single, 2, 4, 8)[flags >> 6]
        stated = int.from_bytes(content[place : place + length], "little") + (256 if length == 2 else 0)
        block = min(2**17, (8 + (window & 7)) << 7 + (window >> 3))
        held, place = _skip_blocks(content, place + length, block)
        place += 4 * (flags >> 2 & 1)
        total += stated if length else held
    return total


def _skip_blocks(content: memoryview, place: int, most: int) -> tuple[int, int]:
    """Count what blocks hold; one that is compressed does not say, and holds a part of ``most`` bytes at least."""
    held = last = 0
    while not last and place + 3 <= len(content):
        header = int.from_bytes(content[place : place + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        held += size if kind < 2 else most // PART_FILLED
        place += 3 + (1 if kind == 1 else size)
    return held, place


DECODERS: dict[str, Callable[[Any, memoryview, int], Any]] = {
    "zstd": _decode_stated(_zstd_bytes),
    "blosc": _decode_stated(lambda content: int.from_bytes(content[4:8], "little")),
    "lz4": _decode_stated(lambda content: int.from_bytes(content[:4], "little")),
    "gzip": _decode_stream(lambda codec: zlib.decompressobj(31)),
    "zlib": _decode_stream(lambda codec: zlib.decompressobj(), several=False),
    "bz2": _decode_stream(lambda codec: bz2.BZ2Decompressor()),
    "lzma": _decode_stream(lambda codec: lzma.LZMADecompressor(codec.format, filters=codec.filters)),
}
"""By the name that numcodecs gives them."""
