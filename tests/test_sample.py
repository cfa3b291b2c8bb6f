from __future__ import annotations

import math

import numpy as np
import pytest

from svision_dask.errors import SampleError, UsageError
from svision_dask.geometry import Grid
from svision_dask.training.sample import EXTENT, read_sample
from svision_dask.volume import Volume


class EmptyButForOnePlace:
    """A volume of any size: a checkerboard in one box, and its background everywhere else. Counts what it gives."""

    dtype = np.dtype(np.uint16)

    def __init__(self, shape: tuple[int, ...], place: tuple[slice, ...], background: int = 7) -> None:
        self.shape, self.place, self.background, self.voxels_read = shape, place, background, 0

    def __getitem__(self, box):
        block = np.full([side.stop - side.start for side in box], self.background, self.dtype)
        self.voxels_read += block.size
        sides = zip(box, self.place, strict=True)
        common = [slice(max(a.start, b.start), max(a.start, min(a.stop, b.stop))) for a, b in sides]
        grids = np.ogrid[tuple(common)]
        inside = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(common, box, strict=True))
        block[inside] += (sum(g // 4 for g in grids) % 2 * 500).astype(self.dtype)
        return block


def volume_of(source, axes: str = "zyx") -> Volume:
    n = len(axes)
    grid = Grid(axes=axes, shape=source.shape, spacing=(1.0,) * n, origin=(0.0,) * n, units=(None,) * n)
    return Volume.from_source(source, grid, chunks=tuple(min(64, s) for s in source.shape), name="test volume")


def random_volume(shape: tuple[int, ...], axes: str, seed: int = 0) -> tuple[Volume, np.ndarray]:
    voxels = np.random.default_rng(seed).integers(0, 1000, shape).astype(np.uint16)
    return volume_of(voxels, axes), voxels


def starts(box: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(side.start for side in box)


@pytest.mark.parametrize("corner", [(0, 0, 0), (96, 512, 256), (288, 768, 768)])
def test_the_only_informative_place_is_found_and_little_else_is_read(corner):
    depth, height, width = EXTENT[3]
    place = tuple(slice(a, a + e) for a, e in zip(corner, (depth, height, width), strict=True))
    source = EmptyButForOnePlace((384, 1024, 1024), place)
    sample = read_sample(volume_of(source))
    assert sample.box == place
    assert source.voxels_read < 0.03 * math.prod(source.shape)


def test_of_very_many_places_a_bounded_number_is_looked_at():
    shape = (10_000, 100_000, 100_000)  # 10¹⁴ voxels: 16 million places
    source = EmptyButForOnePlace(shape, tuple(slice(0, n) for n in shape))
    sample = read_sample(volume_of(source))
    assert sample.voxels.shape[1:] == EXTENT[3]
    assert source.voxels_read < 20e6


def test_the_seed_decides_where_there_is_too_much_to_look_at():
    source = EmptyButForOnePlace((960, 10_000, 10_000), (slice(0, 960), slice(0, 10_000), slice(0, 10_000)))
    boxes = [read_sample(volume_of(source), seed=seed).box for seed in (0, 0, 1)]
    assert boxes[0] == boxes[1] != boxes[2]


def test_places_with_voxels_that_are_not_finite_are_avoided():
    voxels = np.random.default_rng(0).random((96, 256, 1024), dtype=np.float32)
    voxels[:, :, :768] = np.nan
    sample = read_sample(volume_of(voxels))
    assert sample.box[2] == slice(768, 1024)


def test_a_small_volume_is_taken_whole():
    volume, voxels = random_volume((5, 30, 40), "zyx")
    sample = read_sample(volume)
    assert sample.box == (slice(0, 5), slice(0, 30), slice(0, 40))
    np.testing.assert_array_equal(sample.voxels, voxels[None])
    assert sample.voxels.dtype == np.float32


def test_a_thin_volume_gives_as_many_voxels_as_a_thick_one():
    everywhere = (slice(0, 10**6),) * 3
    thin = read_sample(volume_of(EmptyButForOnePlace((3, 3000, 3000), everywhere)))
    assert 0.9 * math.prod(EXTENT[3]) < thin.voxels.size <= math.prod(EXTENT[3])
    plane = read_sample(volume_of(EmptyButForOnePlace((300, 100_000), everywhere[:2]), "yx"))
    assert 0.9 * math.prod(EXTENT[2]) < plane.voxels.size <= math.prod(EXTENT[2])


def test_the_first_time_point_and_every_channel_are_read():
    volume, voxels = random_volume((2, 3, 4, 30, 40), "tczyx")
    sample = read_sample(volume)
    np.testing.assert_array_equal(sample.voxels, voxels[0])
    assert len(sample.normalisation) == 3


def test_a_plane_is_a_volume_of_one_slice():
    volume, voxels = random_volume((30, 40), "yx")
    sample = read_sample(volume, box={"x": slice(5, 25)})
    assert sample.box == (slice(0, 1), slice(0, 30), slice(5, 25))
    np.testing.assert_array_equal(sample.voxels, voxels[None, None, :, 5:25])


def test_a_given_box_is_read_and_axes_not_named_are_whole():
    volume, voxels = random_volume((9, 30, 40), "zyx")
    sample = read_sample(volume, box={"z": slice(2, 7), "y": slice(None, 10), "x": slice(-8, None)})
    assert sample.box == (slice(2, 7), slice(0, 10), slice(32, 40))
    np.testing.assert_array_equal(sample.voxels[0], voxels[2:7, :10, 32:])


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ({"q": slice(0, 5)}, "no axis q; the volume's spatial axes are z,y,x"),
        ({"c": slice(0, 1)}, "no axis c"),
        ({"t": slice(0, 1)}, "no axis t"),
        ({"z": slice(5, 5)}, "sample z=5:5: axis z has 9 voxels"),
        ({"z": slice(6, 4)}, "sample z=6:4"),
        ({"z": slice(0, 10)}, "sample z=0:10: axis z has 9 voxels. Give start:stop inside it"),
        ({"z": slice(20, None)}, "sample z=20:: axis z has 9 voxels"),
        ({"x": slice(0, 20, 2)}, "sample x=0:20"),
    ],
)
def test_a_box_that_is_not_in_the_volume_is_refused(box, message):
    volume, _ = random_volume((1, 9, 30, 40), "czyx")
    with pytest.raises(UsageError, match=message):
        read_sample(volume, box=box)


def test_the_constants_are_mean_and_deviation_and_do_not_mind_outliers():
    rng = np.random.default_rng(0)
    voxels = np.stack([rng.normal(mean, sigma, (20, 50, 50)) for mean, sigma in ((100, 7), (3000, 300))])
    voxels = voxels.astype(np.float32)
    voxels[0, 3, 3, :20] = 1e6  # hot pixels
    for constants, mean, sigma in zip(
        read_sample(volume_of(voxels, "czyx")).normalisation, (100, 3000), (7, 300), strict=True
    ):
        assert constants.offset == pytest.approx(mean, rel=0.01)
        assert constants.scale == pytest.approx(sigma, rel=0.05)


def test_a_few_bright_voxels_on_black_are_no_outliers():
    voxels = np.zeros((20, 50, 50), np.uint8)
    voxels[10, 20, 20:30] = 200  # fewer than are clipped elsewhere
    (constants,) = read_sample(volume_of(voxels)).normalisation
    assert constants.scale == pytest.approx(voxels.std())


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_constant_sample_is_refused_with_its_value(value):
    with pytest.raises(SampleError, match=f"channel 0: every voxel is {value}, so there is nothing to learn"):
        read_sample(volume_of(np.full((5, 30, 40), value, np.uint16)))


def test_one_constant_channel_is_refused_by_its_number():
    voxels = np.random.default_rng(0).random((2, 5, 30, 40), dtype=np.float32)
    voxels[1] = 3
    with pytest.raises(SampleError, match="channel 1: every voxel is 3"):
        read_sample(volume_of(voxels, "czyx"))


def test_nan_and_infinity_are_refused_with_their_number():
    voxels = np.random.default_rng(0).random((5, 30, 40), dtype=np.float32)
    voxels[2, 3, 4:7] = np.nan
    voxels[0, 0, 0] = -np.inf
    with pytest.raises(SampleError, match="z=0:5,y=0:30,x=0:40: 4 of 6000 voxels are NaN or infinite"):
        read_sample(volume_of(voxels))
    assert read_sample(volume_of(voxels), box={"z": slice(3, 5)}).voxels.shape == (1, 2, 30, 40)
