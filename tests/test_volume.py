from __future__ import annotations

import pickle

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svision_dask.geometry import Grid
from svision_dask.volume import Volume, mirror, mirror_pad, read_mirrored


class CountingSource:
    """An array that remembers what was read of it."""

    def __init__(self, voxels: np.ndarray) -> None:
        self.voxels, self.shape, self.dtype, self.boxes = voxels, voxels.shape, voxels.dtype, []

    def __getitem__(self, box):
        self.boxes.append(box)
        return self.voxels[box]


def volume_of(voxels: np.ndarray, chunks: tuple[int, ...] | None = None) -> tuple[Volume, CountingSource]:
    axes = "tczyx"[-voxels.ndim :]
    n = voxels.ndim
    grid = Grid(axes=axes, shape=voxels.shape, spacing=(1.0,) * n, origin=(0.0,) * n, units=(None,) * n)
    source = CountingSource(voxels)
    return Volume.from_source(source, grid, chunks=chunks or voxels.shape), source


def test_opening_reads_nothing_and_reading_reads_once():
    volume, source = volume_of(np.arange(3 * 5 * 7).reshape(3, 5, 7), chunks=(2, 2, 2))
    assert source.boxes == []
    box = (slice(1, 3), slice(0, 5), slice(2, 4))
    np.testing.assert_array_equal(volume.read(box), source.voxels[box])
    assert source.boxes == [box]


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("code", ["u2", "i4", "f4", "f8"])
def test_voxels_come_in_the_byte_order_of_the_machine(order, code):
    volume, source = volume_of(np.arange(12, dtype=order + code).reshape(3, 4))
    read = volume.read((slice(0, 3), slice(0, 4)))
    assert volume.dtype == volume.voxels.dtype == read.dtype == np.dtype(code)
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, source.voxels)
    np.testing.assert_array_equal(volume.voxels.compute(scheduler="synchronous"), source.voxels)


def test_a_volume_without_a_source_is_read_through_dask():
    voxels = np.arange(60).reshape(3, 4, 5)
    grid = Grid(axes="zyx", shape=(3, 4, 5), spacing=(1.0,) * 3, origin=(0.0,) * 3, units=(None,) * 3)
    volume = Volume(voxels=da.from_array(voxels, chunks=2) * 7, grid=grid)
    box = (slice(1, 2), slice(0, 3), slice(4, 5))
    np.testing.assert_array_equal(volume.read(box), voxels[box] * 7)


def test_a_volume_travels_to_another_process():
    volume, _ = volume_of(np.arange(20).reshape(4, 5))
    again = pickle.loads(pickle.dumps(volume))
    assert again.grid == volume.grid
    np.testing.assert_array_equal(again.read((slice(0, 4), slice(0, 5))), np.arange(20).reshape(4, 5))


@given(size=st.integers(1, 9), before=st.integers(0, 30), after=st.integers(0, 30))
def test_an_axis_goes_on_as_its_mirror_image_however_far(size, before, after):
    # numpy's pad is the oracle; it repeats the mirroring where the margin is longer than the axis.
    expected = np.pad(np.arange(size), (before, after), mode="symmetric")
    np.testing.assert_array_equal(mirror(-before, size + after, size), expected)


def test_the_voxel_at_the_face_comes_twice():
    np.testing.assert_array_equal(mirror(-2, 5, 3), [1, 0, 0, 1, 2, 2, 1])


@given(data=st.data(), shape=st.tuples(*[st.integers(1, 6)] * 3))
@settings(deadline=None)
def test_a_box_beyond_the_volume_is_what_padding_the_volume_gives_and_is_read_in_one_request(data, shape):
    volume, source = volume_of(np.arange(np.prod(shape)).reshape(shape))
    margin = 13
    start = tuple(data.draw(st.integers(-margin, n + margin - 1)) for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n + margin)) for a, n in zip(start, shape, strict=True))
    padded = mirror_pad(source.voxels, (margin,) * 3)
    expected = padded[tuple(slice(a + margin, b + margin) for a, b in zip(start, stop, strict=True))]
    np.testing.assert_array_equal(read_mirrored(volume, start, stop), expected)
    assert len(source.boxes) == 1
    assert all(0 <= side.start < side.stop <= n for side, n in zip(source.boxes[0], shape, strict=True))


def test_a_box_inside_the_volume_reads_no_more_than_itself():
    volume, source = volume_of(np.arange(1000).reshape(10, 10, 10))
    read_mirrored(volume, (2, 3, 4), (5, 7, 9))
    assert source.boxes == [(slice(2, 5), slice(3, 7), slice(4, 9))]
