"""What viewers are told to show is measured on all voxels of a box, shard by shard."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from svision_dask.running import patience
from svision_dask.running.display import _read

VOXELS = np.random.default_rng(0).integers(0, 1000, (7, 20, 33)).astype("uint16")


@pytest.fixture(scope="module", params=[(4, 8, 16), None], ids=["shards", "chunks"])
def array(request):
    made = zarr.create_array({}, shape=VOXELS.shape, chunks=(2, 4, 8), shards=request.param, dtype=VOXELS.dtype)
    made[...] = VOXELS
    return made


@given(box=st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, 40)) for n in VOXELS.shape)))
def test_every_voxel_of_a_box_is_read_once(array, box):
    box = tuple(slice(start, start + length) for start, length in box)
    np.testing.assert_array_equal(np.sort(_read(array, box)), np.sort(VOXELS[box], axis=None))


def test_a_shard_that_cannot_be_read_for_a_while_is_waited_for(array, monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.01))
    failing, real = iter([True, False, True, True, False] + [False] * 100), zarr.Array.__getitem__

    def read(self, part):
        if next(failing):
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(self, part)

    monkeypatch.setattr(zarr.Array, "__getitem__", read)
    box = tuple(slice(0, n) for n in VOXELS.shape)
    np.testing.assert_array_equal(np.sort(_read(array, box)), np.sort(VOXELS, axis=None))
