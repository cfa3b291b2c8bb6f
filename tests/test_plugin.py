"""The plugin for napari: what it makes is what the package makes, and lies where the layer lies."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

from svision_dask.backend import Backend, best_precision
from svision_dask.commands.console import training_lines
from svision_dask.errors import OutputError, PlanError, UsageError
from svision_dask.opening.formats import open_volume
from svision_dask.opening.in_memory import open_array
from svision_dask.plugin.layers import check_straight, fine_layer, volume_of
from svision_dask.plugin.work import Enhanced, Task, computed, run
from svision_dask.running.enhancement import enhance
from svision_dask.training.drift import drift
from svision_dask.training.train import train
from tests.commands import textured, write_tiff

SHAPE = (6, 40, 44)


@pytest.fixture(scope="module")
def volume():
    return open_array(textured(SHAPE), spacing=(2, 0.5, 0.5), unit="um")


@pytest.fixture(scope="module")
def layers():
    return pytest.importorskip("napari.layers", reason="napari is not installed (extra napari)")


class Enough(Exception):
    """Of a user who stops the work."""


def silent(what, done, total):
    """Nobody looks."""


def test_in_memory_the_result_is_that_of_the_package_and_steps_are_reported(volume):
    told = []
    made = run(Task(volume=volume, factor="z=1,y=2,x=2", preset="fast", steps=3), lambda *each: told.append(each))
    model = train(volume, factor={"z": 1, "y": 2, "x": 2}, steps=3, device="cpu")
    expected = enhance(volume, model, backend=Backend(precision=best_precision("cpu")))
    assert np.array_equal(made.levels[0], expected.voxels.compute())
    assert made.grid == expected.grid
    assert [(done, total) for what, done, total in told if what.startswith("training")] == [(1, 3), (2, 3), (3, 3)]
    assert told[-1] == ("enhancing", 0, 1)
    assert made.words == (*training_lines(model.provenance), *drift(model, volume))


def test_a_lazy_result_is_computed_tile_by_tile():
    told, whole = [], np.arange(7 * 11).reshape(7, 11)
    assert np.array_equal(computed(da.from_array(whole, chunks=(3, 5)), lambda *each: told.append(each)), whole)
    assert told == [("enhancing", done, 9) for done in range(9)]


def test_into_an_omezarr_an_image_that_was_stopped_is_gone_on_with(tmp_path):
    image, output = write_tiff(tmp_path / "coarse.ome.tif", textured(SHAPE)), tmp_path / "fine.ome.zarr"
    task = Task(volume=open_volume(image), factor="z=1,y=2,x=2", preset="fast", steps=2, output=output)
    told = []

    def stop(what, done, total):
        if what == "enhancing":
            raise Enough

    with pytest.raises(Enough):
        run(task, stop)
    made = run(task, lambda *each: told.append(each))
    regions = [done for what, done, total in told if what == "enhancing"]
    assert regions[0] > 1  # the first was there
    assert made.levels[0].shape == (6, 80, 88)
    assert made.grid.spacing == (2.0, 0.25, 0.25)
    with pytest.raises(OutputError, match="exists: a finished output"):
        run(task, silent)


def test_what_does_not_fit_into_memory_is_refused_before_training(tmp_path):
    large = open_array(da.zeros((10**4,) * 3, chunks=1000, dtype="u1"), spacing=1)
    with pytest.raises(PlanError, match=r"the result has 7\.3 TiB, .* Name an OME-Zarr"):
        run(Task(volume=large, factor="2", preset="fast"), silent)


def test_a_layer_is_a_volume_where_it_is(layers):
    layer = layers.Image(np.zeros((2, 4, 8, 8)), scale=(3, 2, 0.5, 0.25), translate=(0, 5, 7, 11))
    layer.axis_labels, layer.units = ("c", "z", "y", "x"), ("pixel", "um", "um", "um")
    grid = volume_of(layer).grid
    assert (grid.axes, grid.spacing, grid.origin) == ("czyx", (3, 2, 0.5, 0.25), (0, 5, 7, 11))
    assert grid.units == (None, "micrometer", "micrometer", "micrometer")
    unnamed = layers.Image(np.zeros((2, 4, 8, 8)))
    assert volume_of(unnamed).grid.axes == "tzyx"
    assert volume_of(unnamed, "czyx").grid.axes == "czyx"
    pyramid = layers.Image([np.zeros((8, 8)), np.zeros((4, 4))], multiscale=True)
    assert volume_of(pyramid).grid.shape == (8, 8)


def test_layers_that_are_no_volume_are_refused(layers):
    with pytest.raises(UsageError, match="Split its channels"):
        volume_of(layers.Image(np.zeros((8, 8, 3), "u1"), rgb=True))
    with pytest.raises(UsageError, match="axes None for 5 dimensions"):
        volume_of(layers.Image(np.zeros((2, 2, 2, 8, 8))))
    check_straight(layers.Image(np.zeros((8, 8)), scale=(2, 3), translate=(5, 7)))
    for crooked in ({"rotate": 10}, {"shear": (0.5,)}, {"affine": np.diag((2, 1, 1))}):
        with pytest.raises(UsageError, match="OME-Zarr does not hold"):
            check_straight(layers.Image(np.zeros((8, 8)), **crooked))


@pytest.mark.parametrize(
    "crooked", [{}, {"rotate": 30}, {"shear": (0.5,)}, {"affine": [[1, 2, 3], [0, 2, 1], [0, 0, 1]]}]
)
def test_a_result_covers_its_layer_and_looks_like_it(layers, crooked):
    common = {"scale": (2, 0.5), "translate": (5, 7), "contrast_limits": (3, 90), "colormap": "magenta", **crooked}
    layer = layers.Image(np.zeros((8, 6)), name="cells", units=("um", "um"), axis_labels=("y", "x"), **common)
    volume = volume_of(layer)
    grid = volume.grid.finer((2, 4))
    shown = fine_layer(Enhanced(levels=(np.zeros(grid.shape),), grid=grid, words=("good",)), volume, layer)
    fine = layers.Image(**shown)
    for index in ((-0.5, -0.5), (7.5, 5.5), (1.0, 4.0)):  # two corners, and a place between
        inside = tuple(f * (i + 0.5) - 0.5 for f, i in zip((2, 4), index, strict=True))
        assert np.allclose(fine.data_to_world(inside), layer.data_to_world(index))
    assert (fine.name, fine.contrast_limits, fine.colormap.name) == ("cells enhanced", [3, 90], "magenta")
    assert (fine.units, fine.axis_labels) == (layer.units, layer.axis_labels)


def test_the_panel_does_what_it_says():
    # In a process of its own: as one ends in which Qt was used, Qt now and then ends it with a fault.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("panel.py")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    *_, last = done.stdout.splitlines()
    if re.match(r"\d+ skipped in", last):
        pytest.skip("napari or Qt is not installed, or Qt finds no libEGL")
    assert re.match(r"\d+ passed(, \d+ skipped)? in", last), done.stdout
