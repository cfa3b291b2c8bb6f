"""Arrays of a program as volumes: numpy, dask, xarray."""

from __future__ import annotations

import doctest

import dask.array as da
import numpy as np
import pytest
import xarray

import svision_dask as sv
from svision_dask import geometry
from svision_dask import volume as volumes
from svision_dask.errors import ImageError, UsageError
from svision_dask.opening import formats, in_memory
from svision_dask.running import enhancement, pipeline
from tests.models import fast

FALLING = np.array([2, 1, 0], np.uint8)


def labelled(data, dims, **coords):
    made = {dim: (dim, *values) if isinstance(values, tuple) else (dim, values) for dim, values in coords.items()}
    return xarray.DataArray(data, dims=list(dims), coords=made, name="brain")


@pytest.mark.parametrize("of", [np.asarray, da.from_array], ids=["numpy", "dask"])
def test_a_plain_array_is_a_volume_with_the_spacing_given(of):
    voxels = np.arange(5 * 7 * 11, dtype=np.uint16).reshape(5, 7, 11)
    volume = sv.open_volume(of(voxels), spacing=(2, 0.5, 0.5), unit="um")
    assert (volume.grid.axes, volume.grid.spacing, volume.grid.units) == ("zyx", (2, 0.5, 0.5), ("micrometer",) * 3)
    np.testing.assert_array_equal(volume.read((slice(1, 3), slice(0, 7), slice(4, 5))), voxels[1:3, :, 4:5])
    fine = sv.enhance(volume, fast((2, 2, 2)), tile={"z": 5, "y": 7, "x": 11})
    assert (fine.grid.shape, fine.grid.spacing) == ((10, 14, 22), (1, 0.25, 0.25))


def test_dimensions_and_coordinates_say_axes_spacing_origin_unit_and_channels():
    data = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(4, 2, 5, 3)
    microns = {"units": "um"}
    array = labelled(
        data, "ycxz", y=([1.0, 1.5, 2.0, 2.5], microns), x=(np.arange(5) / 3, microns), z=[10, 12, 14], c=["a", "b"]
    )
    volume = sv.open_volume(array)
    assert (volume.grid.axes, volume.grid.shape, volume.channels, volume.name) == (
        "czyx",
        (2, 3, 4, 5),
        ("a", "b"),
        "brain",
    )
    assert volume.grid.spacing == pytest.approx((1, 2, 0.5, 1 / 3))
    assert volume.grid.origin == (0, 10, 1, 0)
    assert volume.grid.units == (None, None, "micrometer", "micrometer")
    np.testing.assert_array_equal(volume.voxels.compute(scheduler="synchronous"), data.transpose(1, 3, 0, 2))


@pytest.mark.parametrize(
    ("array", "options", "error", "said"),
    [
        (np.zeros((4, 4)), {}, UsageError, "does not say"),
        (np.zeros((4, 4)), {"spacing": 0}, UsageError, "above 0"),
        (np.zeros((4, 4)), {"spacing": 1, "axes": "zyx"}, UsageError, "2 dimensions"),
        (np.zeros((2, 2, 2, 2)), {"spacing": 1}, UsageError, "axes"),
        (np.zeros((4, 0)), {"spacing": 1}, ImageError, "at least one"),
        (np.zeros((4, 4), complex), {"spacing": 1}, ImageError, "numbers"),
        (np.zeros((4, 4)), {"spacing": 1, "level": 2}, UsageError, "--level"),
        (labelled(np.zeros((3, 3)), "yx", y=[0, 1, 3], x=[0, 1, 2]), {}, ImageError, "coordinates of y"),
        (
            labelled(np.zeros((3, 3)), "yx", y=FALLING, x=[0, 1, 2]),
            {},
            ImageError,
            r"isel\(y=slice\(None, None, -1\)\)",
        ),
        (labelled(np.zeros((3, 3)), "yx", y=[2, 2, 2], x=[0, 1, 2]), {}, ImageError, "rise evenly"),
        (labelled(np.zeros((3, 3)), "yx").to_dataset(), {"spacing": 1}, UsageError, "choose one variable"),
        (xarray.Dataset(), {}, UsageError, "variables none"),
        (labelled(np.zeros((3, 3)), "yw"), {"spacing": 1}, UsageError, "Rename"),
        (labelled(np.zeros((3, 3)), "yx"), {"spacing": 1, "axes": "yx"}, UsageError, "Leave them out"),
        ([[1, 2], [3, 4]], {"spacing": 1}, UsageError, "list: allowed"),
        (None, {}, UsageError, "NoneType: allowed"),
    ],
)
def test_what_leaves_the_geometry_open_is_refused_in_one_line(array, options, error, said):
    with pytest.raises(error, match=said) as caught:
        sv.open_volume(array, **options)
    assert "\n" not in str(caught.value)


class Stored:
    """As an array of zarr or h5py: sliced like numpy's, and read only where it is sliced."""

    def __init__(self, held):
        self.held, self.read = held, []
        self.shape, self.dtype, self.ndim = held.shape, held.dtype, held.ndim

    def __getitem__(self, box):
        part = self.held[box]
        self.read += [box] * bool(part.size)  # dask asks for no voxels at all, to see what it gets
        return part

    def __array__(self, *_args, **_options):
        raise AssertionError("read as a whole")


def test_an_array_on_a_disk_is_not_read_before_it_is_needed():
    stored = Stored(np.arange(4 * 6 * 8).reshape(4, 6, 8))
    volume = sv.open_volume(stored, spacing=1)
    assert not stored.read
    np.testing.assert_array_equal(volume.read((slice(1, 2), slice(0, 6), slice(3, 5))), stored.held[1:2, :, 3:5])
    assert stored.read == [(slice(1, 2), slice(0, 6), slice(3, 5))]


@pytest.mark.parametrize("call", [sv.train, lambda array: sv.enhance(array, fast((2, 2, 2)))], ids=["train", "enhance"])
def test_what_is_no_volume_yet_is_refused_by_what_makes_one_of_it(call):
    with pytest.raises(UsageError, match=r"ndarray in place of a volume. Make one: open_volume\(path\)"):
        call(np.zeros((8, 8, 8)))


WITH_EXAMPLES = [enhancement, formats, geometry, in_memory, pipeline, volumes]


@pytest.mark.parametrize("module", WITH_EXAMPLES, ids=lambda module: module.__name__)
def test_its_examples_are_true(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
