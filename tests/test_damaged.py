"""Chunks that cannot be decoded are the input's fault: one line that names the file, and exit 1."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from svision_dask.errors import ImageError
from svision_dask.opening.formats import open_volume
from svision_dask.running.cluster import local_client
from svision_dask.running.pipeline import enhance_to_zarr
from svision_dask.training.train import train
from tests.commands import run, textured
from tests.models import tiny
from tests.test_labels import multiscale

pytestmark = pytest.mark.faults
CHUNKS = (16, 32, 32)
SHARDS = (16, 32, 64)
CODECS = {"gzip": GzipCodec(), "blosc": BloscCodec(), "zstd": ZstdCodec()}


def cut_short(file: Path) -> None:
    """As a copy that was interrupted."""
    file.write_bytes(file.read_bytes()[:500])


def flipped(file: Path) -> None:
    """In the index of a shard, which is at its end."""
    content = bytearray(file.read_bytes())
    content[-30] ^= 255
    file.write_bytes(content)


DAMAGES: dict[str, tuple[dict[str, Any], str, Callable[[Path], None]]] = {
    **{name: ({"compressors": [codec]}, "c/0/0/1", cut_short) for name, codec in CODECS.items()},
    "shard": ({"shards": SHARDS}, "c/0/1/0", flipped),
}


def image_of(path: Path, **stored: Any) -> Path:
    """An image of one level."""
    group = zarr.create_group(path, zarr_format=3)
    voxels = textured((16, 64, 64))
    group.create_array("0", data=voxels, chunks=CHUNKS, dimension_names=["z", "y", "x"], **stored)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale("zyx", [1.0] * 3, [0.0] * 3)]}
    return path


@pytest.fixture(scope="module")
def client():
    with local_client(workers=1, memory_bytes=2 * 2**30) as started:
        yield started


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_chunk_is_named_by_training_and_by_workers(kind, client, tmp_path):
    stored, key, damage = DAMAGES[kind]
    volume = open_volume(image_of(tmp_path / "image.zarr", **stored))
    damage(tmp_path / "image.zarr" / "0" / key)
    said = rf"image\.zarr/0: chunk {key} cannot be decoded: .*copy it again"
    with pytest.raises(ImageError, match=said):
        train(volume, steps=1)
    with pytest.raises(ImageError, match=rf"^region 0 at \(0, 0, 0\): .*{said}.*Mend the input") as caught:
        enhance_to_zarr(volume, tmp_path / "fine.zarr", model=tiny((1, 2, 2)), client=client)
    assert "\n" not in str(caught.value)


def test_a_command_ends_with_1_and_goes_on_when_the_chunk_is_whole_again(tmp_path):
    source, output = image_of(tmp_path / "image.zarr", compressors=[GzipCodec()]), tmp_path / "copy.zarr"
    chunk = source / "0" / "c" / "0" / "1" / "1"
    shutil.copy(chunk, tmp_path / "whole")
    cut_short(chunk)
    outcome = run("convert", source, output, "--chunks", 32, "--shards", 32)
    assert outcome.exit_code == 1
    assert "the same command goes on" not in outcome.error
    assert "chunk c/0/1/1 cannot be decoded: EOFError" in outcome.error
    shutil.copy(tmp_path / "whole", chunk)
    again = run("convert", source, output, "--chunks", 32, "--shards", 32)
    assert again.exit_code == 0, again.stderr
