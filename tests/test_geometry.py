from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svision_dask.errors import UsageError
from svision_dask.geometry import AXES, Grid, check_axes, parse_factor, per_spatial_axis, spatial_shape

ALLOWED = {"yx", "zyx", "cyx", "czyx", "tyx", "tzyx", "tcyx", "tczyx"}

lengths = st.integers(1, 50)
# Quarters: exact in binary, so that the positions below are exact, too.
quarters = st.integers(-400, 400).map(lambda n: n / 4)
steps = st.integers(1, 400).map(lambda n: n / 4)
factors = st.sampled_from([1, 2, 4])


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    def three(values: st.SearchStrategy) -> tuple:
        return tuple(draw(values) for _ in "zyx")

    return Grid(axes="zyx", shape=three(lengths), spacing=three(steps), origin=three(quarters), units=(None,) * 3)


@given(axes=st.text(AXES + "iq", max_size=5))
def test_axes_are_allowed_exactly_if_they_are_a_subset_of_tczyx_in_that_order_with_y_and_x(axes):
    if axes in ALLOWED:
        assert check_axes(axes) == axes
    else:
        with pytest.raises(UsageError, match="with y and x"):
            check_axes(axes)


@pytest.mark.parametrize("axes", sorted(ALLOWED))
def test_the_spatial_axes_are_those_of_zyx(axes):
    n = len(axes)
    grid = Grid(axes=axes, shape=(1,) * n, spacing=(1.0,) * n, origin=(0.0,) * n, units=(None,) * n)
    assert "".join(axes[i] for i in grid.spatial) == axes[-3:].removeprefix("c").removeprefix("t")


def test_a_grid_of_contradicting_lengths_is_refused():
    with pytest.raises(UsageError, match="one entry per axis"):
        Grid(axes="zyx", shape=(3, 5, 7), spacing=(1.0, 1.0), origin=(0.0,) * 3, units=(None,) * 3)


@given(grid=grids(), factor=st.tuples(factors, factors, factors))
def test_a_finer_grid_covers_the_same_space_edge_to_edge(grid, factor):
    fine = grid.finer(factor)
    for axis in range(3):
        low, high = -0.5, grid.shape[axis] - 0.5
        assert grid.spacing[axis] / factor[axis] == fine.spacing[axis]
        assert grid.world((low,) * 3)[axis] == fine.world((low,) * 3)[axis]
        assert grid.world((high,) * 3)[axis] == fine.world((fine.shape[axis] - 0.5,) * 3)[axis]


@given(grid=grids(), factor=st.tuples(factors, factors, factors))
def test_the_centre_of_a_coarse_voxel_is_the_mean_of_the_centres_of_its_fine_voxels(grid, factor):
    fine = grid.finer(factor)
    for axis, f in enumerate(factor):
        centres = [Fraction(fine.world((i,) * 3)[axis]) for i in range(f, 2 * f)]
        assert sum(centres) / f == Fraction(grid.world((1,) * 3)[axis])


@given(grid=grids(), factor=st.tuples(factors, factors, factors))
def test_points_stay_where_they_are_and_the_fine_ones_come_between(grid, factor):
    fine = grid.finer(factor, "point")
    assert fine.origin == grid.origin
    assert fine.shape == grid.finer(factor).shape
    for axis, f in enumerate(factor):
        assert fine.world((f,) * 3)[axis] == pytest.approx(grid.world((1,) * 3)[axis], rel=1e-12, abs=1e-12)


@given(grid=grids(), factor=st.tuples(factors, factors, factors))
def test_coarser_undoes_finer(grid, factor):
    assert grid.finer(factor).coarser(factor) == grid


def test_a_last_partial_block_counts_as_a_coarse_voxel():
    grid = Grid(axes="yx", shape=(7, 5), spacing=(1.0, 1.0), origin=(0.0, 0.0), units=(None, None))
    assert grid.coarser((2, 3)).shape == (4, 2)


@pytest.mark.parametrize(
    ("factor", "axes", "expected"),
    [
        (2, "zyx", (2, 2, 2)),
        (4, "tcyx", (1, 1, 4, 4)),
        ((1, 2, 4), "czyx", (1, 1, 2, 4)),
        ({"y": 2}, "zyx", (1, 2, 1)),
        ({"x": 4, "z": 2}, "tczyx", (1, 1, 2, 1, 4)),
    ],
)
def test_a_factor_is_one_number_or_one_each_or_named(factor, axes, expected):
    assert parse_factor(factor, axes) == expected


@pytest.mark.parametrize(
    ("factor", "axes", "message"),
    [
        (3, "zyx", "factor z=3: allowed are 1, 2 and 4"),
        (8, "yx", "factor y=8"),
        (0, "zyx", "factor z=0"),
        (-2, "zyx", "factor z=-2"),
        (1, "zyx", "leaves nothing to do"),
        ({"y": 1}, "zyx", "leaves nothing to do"),
        ({}, "zyx", "leaves nothing to do"),
        ({"z": 2}, "tyx", "no axis z; the volume's spatial axes are y,x"),
        ({"t": 2}, "tzyx", "no axis t"),
        ((2, 2), "zyx", "one number, or 3 in the order z,y,x"),
        ((2, 2, 2), "yx", "one number, or 2 in the order y,x"),
    ],
)
def test_a_factor_that_cannot_be_is_refused_with_what_is_allowed(factor, axes, message):
    with pytest.raises(UsageError, match=message):
        parse_factor(factor, axes)


def test_a_value_that_is_missing_for_an_axis_is_asked_for():
    with pytest.raises(UsageError, match=r"spacing: no value for axis z,x\. Name it, such as z=1"):
        per_spatial_axis({"y": 0.5}, "zyx", what="spacing")


def test_a_plane_is_a_volume_of_one_slice():
    assert spatial_shape("tczyx", (2, 3, 5, 7, 11)) == (5, 7, 11)
    assert spatial_shape("cyx", (3, 7, 11)) == (1, 7, 11)
