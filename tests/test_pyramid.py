from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from svision_dask.errors import UsageError
from svision_dask.geometry import Grid, Regions
from svision_dask.omezarr.pyramid import block_mean, coarser_region, halving, pyramid_grids


def grid(axes: str, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Grid:
    return Grid(axes=axes, shape=shape, spacing=spacing, origin=(0.0,) * len(axes), units=("micrometer",) * len(axes))


def blocks_of(block: np.ndarray, factor: tuple[int, ...]):
    """Every coarse index with the voxels that are averaged into it, cut one by one."""
    coarse = [range(-(-n // f)) for n, f in zip(block.shape, factor, strict=True)]
    for index in itertools.product(*coarse):
        yield index, block[tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factor, strict=True))]


INTEGERS = [np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)]
factors = st.tuples(*[st.integers(1, 4)] * 3)
small_shapes = st.tuples(*[st.integers(1, 7)] * 3)


@given(data=st.data(), dtype=st.sampled_from([*INTEGERS, np.dtype(bool)]), shape=small_shapes, factor=factors)
@settings(deadline=None, max_examples=80)
def test_integer_means_are_exact_and_rounded_half_to_even(data, dtype, shape, factor):
    block = data.draw(arrays.arrays(dtype, shape))
    mean = block_mean(block, factor)
    assert mean.dtype == dtype
    for index, voxels in blocks_of(block, factor):
        # Fraction is exact, and its round() is half to even.
        assert int(mean[index]) == round(Fraction(sum(int(v) for v in voxels.flat), voxels.size))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_float_means_agree_with_the_mean_of_every_block(dtype):
    block = np.random.default_rng(0).normal(100, 30, (5, 7, 11)).astype(dtype)
    mean = block_mean(block, (2, 3, 4))
    assert mean.dtype == block.dtype
    assert mean.shape == (3, 3, 3)
    for index, voxels in blocks_of(block, (2, 3, 4)):
        # One rounding to the kept dtype, and a float64 sum in another order.
        np.testing.assert_allclose(
            mean[index], math.fsum(voxels.astype("f8").flat) / voxels.size, rtol=np.finfo(dtype).eps
        )


def test_big_endian_voxels_keep_their_dtype_and_values():
    block = np.arange(12, dtype=">u2").reshape(3, 4)
    mean = block_mean(block, (1, 2))
    assert mean.dtype == block.dtype
    np.testing.assert_array_equal(mean, [[0, 2], [4, 6], [8, 10]])  # 0.5, 2.5, 4.5, ... to even


def test_a_mean_of_64_bit_extremes_does_not_overflow():
    for extreme in (np.iinfo("i8").min, np.iinfo("i8").max):
        np.testing.assert_array_equal(block_mean(np.full((4, 4), extreme), (2, 4)), [[extreme], [extreme]])
    top = np.iinfo("u8").max
    np.testing.assert_array_equal(block_mean(np.array([top, top - 2], "u8"), (2,)), np.array([top - 1], "u8"))


def test_a_single_bad_voxel_spoils_only_its_own_block():
    block = np.zeros((6, 6), "f4")
    block[0, 0], block[5, 4], block[5, 5] = np.nan, np.inf, -np.inf
    mean = block_mean(block, (2, 2))
    assert np.argwhere(~np.isfinite(mean)).tolist() == [[0, 0], [2, 2]]


@given(shape=small_shapes, factor=factors, cut=st.tuples(*[st.integers(0, 3)] * 3), dtype=st.sampled_from(["u2", "f4"]))
@settings(deadline=None, max_examples=40)
def test_pieces_cut_at_multiples_of_the_factor_give_what_the_whole_gives(shape, factor, cut, dtype):
    block = (np.random.default_rng(1).random(shape) * 60_000).astype(dtype)
    whole = block_mean(block, factor)
    for sides in itertools.product([slice(None, 1), slice(1, None)], repeat=3):
        fine, coarse = [], []
        for side, c, f in zip(sides, cut, factor, strict=True):
            first = side.start is None
            coarse.append(slice(None, c) if first else slice(c, None))
            fine.append(slice(None, c * f) if first else slice(c * f, None))
        if block[tuple(fine)].size:
            np.testing.assert_array_equal(block_mean(block[tuple(fine)], factor), whole[tuple(coarse)])


def test_a_factor_of_one_returns_a_copy():
    block = np.arange(6).reshape(2, 3)
    mean = block_mean(block, (1, 1))
    mean[0, 0] = 99
    assert block[0, 0] == 0


@pytest.mark.parametrize("factor", [(2,), (2, 2, 2), (0, 2)])
def test_a_factor_that_does_not_fit_the_block_is_refused(factor):
    with pytest.raises(UsageError, match="one whole number"):
        block_mean(np.zeros((4, 4)), factor)


@pytest.mark.parametrize(
    ("region", "step", "chunks", "unit"),
    [
        ((128, 256), (2, 2), (64, 64), (64, 128)),
        ((128, 256), (1, 2), (64, 64), (128, 128)),
        ((64, 256), (2, 2), (64, 64), None),  # half a chunk
        ((128, 250), (2, 4), (64, 25), None),  # half a voxel
        ((300, 256), (2, 2), (64, 64), (192, 128)),  # all of an axis
        ((300, 2000), (2, 2), (1000, 1000), (150, 500)),
    ],
)
def test_a_region_makes_its_part_of_the_next_level_where_that_is_whole_chunks(region, step, chunks, unit):
    assert coarser_region((300, 1000), region, step, chunks) == unit


@given(
    st.lists(st.tuples(*(st.integers(1, n) for n in (300, 8, 4, 3, 12))), min_size=1, max_size=3).map(
        lambda axes: [(n, r * s * c if whole > 1 else r * c, s, c) for n, r, s, whole, c in axes]
    )
)
def test_every_region_has_all_voxels_of_its_part_of_the_next_level(axes):
    shape, region, step, chunks = zip(*axes, strict=True)
    unit = coarser_region(shape, region, step, chunks)
    if unit is None:
        return
    coarser = tuple(-(-n // s) for n, s in zip(shape, step, strict=True))
    regions, parts = Regions(shape=shape, unit=region), Regions(shape=coarser, unit=unit)
    assert regions.counts == parts.counts
    for whole, part in zip(itertools.islice(regions, 50), parts, strict=False):
        assert part.start == tuple(-(-a // s) for a, s in zip(whole.start, step, strict=True))
        assert all(a % s == 0 for a, s in zip(whole.start, step, strict=True))
        assert part.stop == tuple(-(-b // s) for b, s in zip(whole.stop, step, strict=True))
        assert all(
            a % min(c, n) == 0 and (b % min(c, n) == 0 or b == n)
            for a, b, c, n in zip(part.start, part.stop, chunks, coarser, strict=True)
        )


def test_an_isotropic_volume_is_halved_along_all_spatial_axes_until_it_is_small():
    levels = pyramid_grids(grid("tczyx", (3, 2, 100, 700, 513), (1, 1, 0.5, 0.5, 0.5)))
    assert [g.shape for g in levels] == [(3, 2, 100, 700, 513), (3, 2, 50, 350, 257), (3, 2, 25, 175, 129)]
    assert levels[-1].spacing == (1, 1, 2, 2, 2)


def test_fine_axes_are_halved_alone_until_the_others_are_about_as_fine():
    levels = pyramid_grids(grid("zyx", (1000, 4096, 4096), (2.0, 0.5, 0.5)), smallest=512)
    assert [g.spacing for g in levels] == [(2, 0.5, 0.5), (2, 1, 1), (2, 2, 2), (4, 4, 4)]


@given(ratio=st.floats(0.05, 20), size=st.integers(2_000, 60_000))
@settings(deadline=None)
def test_deep_levels_are_isotropic_within_a_factor_of_the_square_root_of_two(ratio, size):
    level = grid("zyx", (size, size, size), (ratio, 1.0, 1.0))
    for _ in range(math.ceil(abs(math.log2(ratio))) + 1):
        level = level.coarser(halving(level))
    z, y, x = level.spacing
    assert y == x
    assert 1 / math.sqrt(2) - 1e-9 <= z / y <= math.sqrt(2) + 1e-9


def test_an_axis_of_one_voxel_does_not_hold_the_others_back():
    levels = pyramid_grids(grid("zyx", (1, 600, 600), (0.01, 1.0, 1.0)))
    assert [g.shape for g in levels] == [(1, 600, 600), (1, 300, 300), (1, 150, 150)]


def test_a_long_series_of_small_images_is_one_level():
    assert len(pyramid_grids(grid("tcyx", (5000, 300, 256, 256), (1, 1, 1, 1)))) == 1


def test_a_smallest_level_below_one_voxel_is_refused():
    with pytest.raises(UsageError, match="smallest level 0"):
        pyramid_grids(grid("yx", (9, 9), (1, 1)), smallest=0)


@given(shape=st.tuples(*[st.integers(16, 40)] * 3), spacing=st.tuples(*[st.floats(0.1, 10)] * 3), data=st.data())
@settings(deadline=None, max_examples=30)
def test_a_coarse_voxel_lies_at_the_mean_of_its_level_0_voxels(shape, spacing, data):
    fine = Grid(axes="zyx", shape=shape, spacing=spacing, origin=(7.0, -11.0, 0.5), units=(None,) * 3)
    factor = (1, 1, 1)
    for level in pyramid_grids(fine, smallest=4):
        blocks = [-(-n // f) for n, f in zip(shape, factor, strict=True)]
        assert level.shape == tuple(blocks)
        if any(f > n for n, f in zip(shape, factor, strict=True)):
            break  # a partial block keeps the position of a complete one, so that the grid is regular
        index = [data.draw(st.integers(0, n // f - 1)) for n, f in zip(shape, factor, strict=True)]
        members = itertools.product(*(range(i * f, i * f + f) for i, f in zip(index, factor, strict=True)))
        centre = np.mean([fine.world(voxel) for voxel in members], axis=0)
        np.testing.assert_allclose(level.world(index), centre, rtol=1e-9, atol=1e-9)
        factor = tuple(a * b for a, b in zip(factor, halving(level), strict=True))


def test_the_mean_of_coordinates_is_the_coordinate_of_the_mean():
    fine = Grid(axes="yx", shape=(9, 6), spacing=(0.5, 2.0), origin=(3.0, -1.0), units=(None, None))
    coordinates = np.array([[fine.world((y, x)) for x in range(6)] for y in range(9)])
    coarse = fine.coarser((2, 3))
    means = np.stack([block_mean(coordinates[..., i], (2, 3)) for i in range(2)], axis=-1)
    for index in itertools.product(range(4), range(2)):  # the fifth row of blocks is partial
        assert tuple(means[index]) == coarse.world(index)
