"""Chunks that decode to more than their voxels are refused before the memory for them is taken."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import zlib
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from svision_dask.errors import ImageError
from svision_dask.omezarr.bounds import SPARE_BYTES, _zstd_bytes
from svision_dask.omezarr.read import StoredArray

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")]

VOXELS = np.random.default_rng(0).poisson(5, (16, 32, 32)).astype("u2")
CHUNK = 16 * 16 * 32 * 2
BOMB = bytes(2**24)
WITHOUT_SIZE = bytes.fromhex("28b52ffd0058")
"""The beginning of a Zstandard frame that does not say what it holds."""
CODECS = {
    "gzip": GzipCodec(),
    "blosc": BloscCodec(),
    "zstd": ZstdCodec(),
    "numcodecs.zstd": {"name": "numcodecs.zstd", "configuration": {}},
    "numcodecs.zlib": {"name": "numcodecs.zlib", "configuration": {}},
    "numcodecs.bz2": {"name": "numcodecs.bz2", "configuration": {}},
    "numcodecs.lzma": {"name": "numcodecs.lzma", "configuration": {}},
    "numcodecs.lz4": {"name": "numcodecs.lz4", "configuration": {}},
}
OLD_CODECS = [numcodecs.Blosc(), numcodecs.Zstd(), numcodecs.GZip(), numcodecs.Zlib(), numcodecs.LZ4()]


def blocks(content: bytes, kind: int, size: int) -> bytes:
    """Zstandard blocks: as they are (0), or each one byte that is repeated (1)."""
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    heads = [(len(part) << 3 | kind << 1).to_bytes(3, "little") for part in parts]
    written = [head + (part[:1] if kind == 1 else part) for head, part in zip(heads, parts, strict=True)]
    return b"".join(written) + b"\1\0\0"  # the last one is empty


BOMBS = {
    "gzip": gzip.compress(BOMB),
    "gzip of two members": gzip.compress(bytes(2**16)) + gzip.compress(bytes(2**17)),
    "blosc": numcodecs.Blosc().encode(BOMB),
    "zstd": numcodecs.Zstd().encode(BOMB),
    "zstd of two frames": numcodecs.Zstd().encode(bytes(4)) + numcodecs.Zstd().encode(BOMB),
    "zstd that does not say": WITHOUT_SIZE + blocks(BOMB, 1, 2**17),
    "numcodecs.zlib": zlib.compress(BOMB),
    "numcodecs.bz2": bz2.compress(BOMB),
    "numcodecs.lzma": lzma.compress(BOMB),
    "numcodecs.lz4": numcodecs.LZ4().encode(BOMB),
}


def stored(path: Path, **how: Any) -> zarr.Array[Any]:
    return zarr.create_array(path, data=VOXELS, chunks=(16, 16, 32), **how)


def as_workers_have_it(array: zarr.Array[Any]) -> StoredArray:
    return pickle.loads(pickle.dumps(StoredArray(array)))


@pytest.mark.parametrize("shards", [None, (16, 32, 32)])
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_whatever_was_compressed_is_read_as_it_was(codec, shards, tmp_path):
    array = stored(tmp_path / "a", compressors=[codec, Crc32cCodec()], shards=shards)
    np.testing.assert_array_equal(as_workers_have_it(array)[:], VOXELS)
    np.testing.assert_array_equal(as_workers_have_it(array)[3:5, 7, ::2], VOXELS[3:5, 7, ::2])


@pytest.mark.parametrize("filters", [None, [numcodecs.Delta("u2", "i8")]])
@pytest.mark.parametrize("codec", OLD_CODECS)
def test_whatever_was_compressed_in_zarr_2_is_read_as_it_was(codec, filters, tmp_path):
    array = stored(tmp_path / "a", compressors=codec, filters=filters, zarr_format=2)
    np.testing.assert_array_equal(as_workers_have_it(array)[:], VOXELS)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_chunk_that_holds_more_than_its_voxels_is_refused(kind, version, tmp_path):
    name = kind.partition(" ")[0]
    codec = numcodecs.get_codec({"id": name.removeprefix("numcodecs.")}) if version == 2 else CODECS[name]
    array = stored(tmp_path / "a", compressors=codec, zarr_format=version)
    (tmp_path / "a" / array.metadata.encode_chunk_key((0, 1, 0))).write_bytes(BOMBS[kind])
    read = as_workers_have_it(array)
    np.testing.assert_array_equal(read[:, :16], VOXELS[:, :16])
    with pytest.raises(ImageError, match=rf"it holds \d+ bytes or more, where at most {CHUNK + SPARE_BYTES} belong"):
        read[:]


@pytest.mark.parametrize("box", [slice(None), (slice(0, 2), slice(0, 2), slice(0, 2))])
def test_a_chunk_of_a_shard_that_holds_more_than_its_voxels_is_refused(box, tmp_path):
    array = stored(tmp_path / "a", compressors=GzipCodec(), shards=(16, 32, 32))
    bomb, none = BOMBS["gzip"], 2**64 - 1
    index = np.array([0, len(bomb), none, none], "<u8").tobytes()
    (tmp_path / "a" / "c" / "0" / "0" / "0").write_bytes(bomb + numcodecs.CRC32C().encode(index).tobytes())
    with pytest.raises(ImageError, match="bytes or more, where at most"):
        as_workers_have_it(array)[box]


def test_a_frame_that_does_not_say_what_it_holds_is_read(tmp_path):
    array = stored(tmp_path / "a", compressors=ZstdCodec())
    content = VOXELS[:, :16].tobytes()
    (tmp_path / "a" / "c" / "0" / "0" / "0").write_bytes(WITHOUT_SIZE + blocks(content, 0, 1000))
    np.testing.assert_array_equal(as_workers_have_it(array)[:], VOXELS)


@given(sizes=st.lists(st.integers(0, 2**18), max_size=3), checksum=st.booleans(), level=st.integers(-5, 12))
def test_the_frames_of_the_encoder_are_counted(sizes, checksum, level):
    rng = np.random.default_rng(0)
    encode = numcodecs.Zstd(level=level, checksum=checksum).encode
    frames = b"".join(encode(rng.integers(0, 5, size, "u1").tobytes()) for size in sizes)
    assert _zstd_bytes(memoryview(frames)) == sum(sizes)


@given(st.binary(max_size=100))
def test_any_bytes_are_counted_as_something(content):
    assert _zstd_bytes(memoryview(WITHOUT_SIZE[:4] + content)) >= 0
