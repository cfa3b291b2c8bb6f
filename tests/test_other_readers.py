"""Readers that share no code with us on plates and trust maps; those of images are in `test_round_trip`."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # importing ome_zarr calls things that others have deprecated
    import ome_zarr.io
    import ome_zarr.reader

from svision_dask.omezarr.read import list_levels
from svision_dask.opening.formats import open_volume
from svision_dask.running.cluster import local_client
from svision_dask.running.plates import enhance_fields
from svision_dask.running.verification import images_of
from svision_dask.wishes import Wishes
from tests.commands import textured
from tests.models import fast
from tests.test_plates import FIELDS, write_layout
from tests.test_selection import write_field

SHAPE = (3, 20, 140)
"""Of every field; the enhanced ones have two levels."""


@pytest.fixture(scope="module")
def client():
    with local_client(workers=1, memory_bytes=4 * 2**30) as started:
        yield started


@pytest.fixture(scope="module", params=["0.4", "0.5"])
def plate(request, client, tmp_path_factory) -> Path:
    """Fields of one shape, as ome-zarr-py takes for granted, with trust maps."""
    folder = tmp_path_factory.mktemp("plates")
    source = write_layout(folder / "in.zarr", request.param)
    for number, field in enumerate(FIELDS):
        write_field(source / field, textured(SHAPE, seed=number), request.param)
    wishes = Wishes(version=request.param, chunk={"z": 3, "y": 16, "x": 16}, trust=True)
    enhance_fields(source, str(folder / "out.zarr"), model=fast((1, 2, 2)), wishes=wishes, client=client)
    return folder / "out.zarr"


def read(path: Path | str, level: int = 0) -> np.ndarray:
    volume = open_volume(path, level=level)
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


def nodes(path: Path | str) -> list[ome_zarr.reader.Node]:
    return list(ome_zarr.reader.Reader(ome_zarr.io.parse_url(str(path)))())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside ome_zarr
def test_ome_zarr_py_lays_out_a_plate_as_it_is(plate):
    (node,) = nodes(plate)
    assert len(node.data) == 2
    for level, laid_out in enumerate(node.data):
        first, last = read(plate / "A/1/0", level), read(plate / "B/2/0", level)
        empty = np.zeros_like(first)
        expected = np.concatenate(
            [np.concatenate([first, empty], axis=2), np.concatenate([empty, last], axis=2)], axis=1
        )
        np.testing.assert_array_equal(laid_out.compute(scheduler="synchronous"), expected)
    assert node.metadata["metadata"]["plate"]["name"] == "screen"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside ome_zarr
def test_ome_zarr_py_reads_trust_maps_where_they_are(plate):
    for kind in ("spread", "consistency"):
        place = plate / "A/1/1" / "trust" / kind
        node = nodes(place)[0]
        for number, level in enumerate(list_levels(place)):
            np.testing.assert_array_equal(node.data[number].compute(scheduler="synchronous"), read(place, number))
            scale, translation = node.metadata["coordinateTransformations"][number]
            assert tuple(scale["scale"]) == level.grid.spacing
            assert tuple(translation["translation"]) == level.grid.origin


def test_tensorstore_reads_every_level_of_fields_and_maps(plate):
    tensorstore = pytest.importorskip("tensorstore", reason="the reader tensorstore is not installed")
    driver, count = "zarr3" if (plate / "zarr.json").exists() else "zarr", 0
    for image in images_of(str(plate)):
        for number, level in enumerate(list_levels(image)):
            kept = {"driver": "file", "path": f"{image}/{level.path}"}
            array = tensorstore.open({"driver": driver, "kvstore": kept}).result().read().result()
            np.testing.assert_array_equal(array, read(image, number))
            count += bool(array.any())
    assert count == 5 * len(FIELDS)  # two levels of the field and of its spread; consistency is on the coarse grid
