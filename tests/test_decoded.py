"""Strips of compressed TIFFs are decoded once, in bounded memory, and hold what the file does."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile

from svision_dask.opening.formats import open_volume, stack_channels
from svision_dask.running.pipeline import plan_volume
from svision_dask.tiff import decoded, planes
from svision_dask.tiff.decoded import Decoded
from tests.commands import textured
from tests.models import tiny

SHAPE = (6, 64, 80)
MIB = 2**20


@pytest.fixture
def times(monkeypatch):
    """How often each strip is decoded, from nothing."""
    found, decode = [], planes._decode
    monkeypatch.setattr(decoded, "of_this_process", Decoded())
    monkeypatch.setattr(planes, "_decode", lambda *about: [found.append(about[2:4]), decode(*about)][1])
    return found


def write(path, voxels, **how):
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(path, voxels, ome=True, metadata={"axes": "ZYX", **sizes}, compression="zlib", **how)
    return path


@pytest.mark.parametrize("how", [{"rowsperstrip": 64}, {"rowsperstrip": 24}, {"tile": (32, 48)}])
def test_every_strip_is_decoded_once_however_many_boxes_are_read(tmp_path, times, how):
    voxels = textured(SHAPE)
    volume = open_volume(write(tmp_path / "a.ome.tif", voxels, **how))
    for y in range(0, 64, 20):
        for x in range(0, 80, 20):
            box = (slice(0, 6), slice(y, min(y + 20, 64)), slice(x, x + 20))
            np.testing.assert_array_equal(volume.read(box), voxels[box])
    assert len(times) == len(set(times))


def test_what_is_read_as_a_whole_is_not_kept(tmp_path, times):
    volume = open_volume(write(tmp_path / "a.ome.tif", textured(SHAPE), rowsperstrip=16))
    volume.read((slice(0, 6), slice(0, 64), slice(0, 80)))
    assert decoded.of_this_process.bytes == 0


def test_a_file_that_has_changed_is_decoded_anew(tmp_path, times):
    box = (slice(0, 6), slice(0, 8), slice(0, 8))
    for seed in (0, 1):
        voxels = textured(SHAPE, seed=seed)
        volume = open_volume(write(tmp_path / "a.ome.tif", voxels, rowsperstrip=64))
        np.testing.assert_array_equal(volume.read(box), voxels[box])


def test_a_circle_that_does_not_fit_is_kept_in_part_and_within_the_bound():
    kept, decodings = Decoded(8 * 100), []

    def decode(number):
        decodings.append(number)
        return np.full(100, number, np.uint8)

    for _ in range(20):
        for number in range(12):
            assert kept.get(number, lambda number=number: decode(number))[0] == number
            assert kept.bytes <= 800
    assert len(decodings) < 0.75 * 20 * 12  # whoever throws out the oldest decodes each time
    assert kept.get("large", lambda: np.zeros(1000, np.uint8)).size == 1000
    assert kept.bytes <= 800


def test_what_is_kept_is_in_the_plan_and_does_not_travel(tmp_path):
    voxels = textured(SHAPE)
    plain = tmp_path / "plain.ome.tif"
    tifffile.imwrite(plain, voxels, ome=True, metadata={"axes": "ZYX"})
    volume = open_volume(write(tmp_path / "a.ome.tif", voxels, rowsperstrip=64))
    assert (volume.kept_bytes, open_volume(plain).kept_bytes) == (voxels.nbytes, 0)
    assert stack_channels([volume, volume]).kept_bytes == 2 * voxels.nbytes
    design = tiny((2, 2, 2)).architecture
    with_, without = (plan_volume(each, design).worker_bytes for each in (volume, open_volume(plain)))
    assert with_ - without == voxels.nbytes
    size = len(pickle.dumps(volume.source))
    volume.read((slice(0, 6), slice(0, 8), slice(0, 8)))
    assert len(pickle.dumps(volume.source)) == size
