"""The viewer, in a real browser: what it draws is there, is where it is in the world, and differs before and after."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import tifffile
import zarr
from matplotlib.image import imread

from svision_dask.errors import OutputError, UsageError
from svision_dask.judging.view_layers import contrast_so_far, growing
from svision_dask.judging.viewing import View, view
from svision_dask.network.baselines import reduced
from svision_dask.omezarr.write import create_store, open_level, publish
from svision_dask.opening.formats import open_volume
from svision_dask.running.ledger import claim
from svision_dask.stores.serving import ImageServer
from svision_dask.volume import Shown
from tests.browser import find_browser
from tests.commands import run, write_tiff
from tests.servers import serve_folder
from tests.test_comparison import FACTOR, grid, stored

needs_neuroglancer = pytest.mark.skipif(
    importlib.util.find_spec("neuroglancer") is None, reason="neuroglancer is not installed (extra view)"
)
SIZE = (600, 400)


def panels(shown, path):
    """Draw the view; what the panels of before and after show, without the scale bars at the bottom."""
    grey = imread(shown.screenshot(path, size=SIZE))[: SIZE[1] - 60, :, :3].mean(axis=2)
    gap = SIZE[0] // 2
    return grey[:, : gap - 10], grey[:, gap + 10 :]


def place(panel, start):
    """Where the bright bead is, in pixels of the whole picture (down, right)."""
    weights = np.where(panel > 0.3, panel, 0)
    down, right = (float((weights * index).sum() / weights.sum()) for index in np.indices(panel.shape))
    return np.array([down, right + start])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A bead off the middle; fine voxels lie between coarse ones, so that a mistaken half voxel shows."""
    folder = tmp_path_factory.mktemp("view")
    distance = sum(((i - c) / 4) ** 2 for i, c in zip(np.indices((16, 96, 96)), (7.5, 35.5, 55.5), strict=True))
    fine = (200 * np.exp(-distance / 2)).astype(np.float32)
    coarse = reduced(fine, FACTOR)
    where = grid(coarse.shape, origin=(0.0, 0.0, 0.0))
    before = stored(folder / "before.ome.zarr", coarse, where, {})
    sizes = dict(zip(("PhysicalSizeZ", "PhysicalSizeY", "PhysicalSizeX"), where.spacing, strict=True))
    tifffile.imwrite(folder / "before.ome.tif", coarse, ome=True, metadata={"axes": "ZYX", **sizes})
    return before, stored(folder / "after.ome.zarr", fine, where.finer(FACTOR), {}), fine


@needs_neuroglancer
@pytest.mark.parametrize("kind", ["zarr", "tif"])
def test_before_and_after_show_the_same_place_and_differ(images, tmp_path, kind):
    find_browser()
    before, after, _ = images
    with view(before.with_suffix(f".{kind}"), after) as shown:
        assert shown.url.startswith("http://127.0.0.1:")
        first, second = panels(shown, tmp_path / "a.png")
    both = place(first, 0), place(second, SIZE[0] // 2 + 10)
    # Panels are 304 pixels apart, with the bar between them. Half a fine voxel, the least mistake, has 3.3 pixels.
    assert both[1] - both[0] == pytest.approx([0, 304], abs=2)
    assert np.abs(first[:, : second.shape[1]] - second[:, : first.shape[1]]).mean() > 0.001
    said = imread(tmp_path / "a.png")[-35:, :, :3].mean(axis=2) > 0.9  # beyond the scale bars: what each panel shows
    assert said[:, 120 : SIZE[0] // 2].sum() > 200
    assert said[:, SIZE[0] // 2 + 120 :].sum() > 200


@pytest.fixture(scope="module")
def channels(images, tmp_path_factory):
    """Three channels, of which the last has the bead, the middle one is bright all over, and the first is dark."""
    folder, (_, _, fine) = tmp_path_factory.mktemp("channels"), images
    fine = np.stack([np.zeros_like(fine), 200 + fine[:, ::-1], fine / 4])
    coarse = np.stack([reduced(each, FACTOR) for each in fine])
    where = grid(coarse.shape, spacing=(1.0, 0.8, 0.4, 0.4), origin=(0.0,) * 4, axes="czyx")
    where = replace(where, units=(None, *where.units[1:]))
    sizes = dict(zip(("PhysicalSizeZ", "PhysicalSizeY", "PhysicalSizeX"), where.spacing[1:], strict=True))
    tifffile.imwrite(folder / "before.ome.tif", coarse, ome=True, metadata={"axes": "CZYX", **sizes})
    stored(folder / "before.ome.zarr", coarse, where, {})
    made = where.finer((1, *FACTOR))
    one = replace(made, shape=(1, *made.shape[1:]))
    stored(folder / "third.ome.zarr", fine[2:], one, {"chosen": {"c": [2]}})
    return folder, stored(folder / "after.ome.zarr", fine, made, {"chosen": {}})


@needs_neuroglancer
@pytest.mark.parametrize(("kind", "after"), [("zarr", "after"), ("tif", "after"), ("zarr", "third"), ("tif", "third")])
def test_one_channel_is_shown_before_and_after_on_its_own_scale(channels, tmp_path, kind, after):
    find_browser()
    folder, _ = channels
    channel = 2 if after == "after" else None  # of the third, nothing else was made
    with view(folder / f"before.ome.{kind}", folder / f"{after}.ome.zarr", channel=channel) as shown:
        first, second = panels(shown, tmp_path / "a.png")
    both = place(first, 0), place(second, SIZE[0] // 2 + 10)
    assert both[1] - both[0] == pytest.approx([0, 304], abs=2)
    for panel in (first, second):
        assert panel.max() > 0.9  # a quarter as bright as the middle channel
        assert np.median(panel) < 0.1


@needs_neuroglancer
@pytest.mark.parametrize("without_parts", [False, True])
def test_sharded_images_at_urls_are_shown_also_where_the_server_has_no_parts_of_files(images, tmp_path, without_parts):
    pytest.importorskip("aiohttp")
    find_browser()
    before, _, fine = images
    where = open_volume(before).grid.finer(FACTOR)
    path = tmp_path / "shards.ome.zarr"
    create_store(path, [where], dtype="float32", chunks=(16, 32, 32), shards=(16, 96, 96), attributes={})
    open_level(path, 0, "r+")[...] = fine
    publish(path, [where], name="a", channels=["a"], attributes={}, shown=[Shown(window=(0, 200, 0, 150))])
    with serve_folder(tmp_path) as (url, faults):
        faults.without_parts = without_parts
        with view(before, f"{url}/shards.ome.zarr") as shown:
            first, second = panels(shown, tmp_path / "a.png")
        assert any("GET" in each and "shards.ome.zarr/0/c" in each for each in faults.requests)
    assert place(second, SIZE[0] // 2 + 10) - place(first, 0) == pytest.approx([0, 304], abs=2)


@needs_neuroglancer
def test_one_level_and_one_of_several_images_is_shown(images, tmp_path):
    """A bead that only the coarser level has, of the second image."""
    find_browser()
    before = images[0]
    where = open_volume(before).grid
    (tmp_path / "many.zarr").mkdir()
    (tmp_path / "many.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    (tmp_path / "many.zarr" / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    for name, level in (("0", where), ("1", where.finer((1, 2, 2)))):
        levels = [level] if name == "0" else [level, where]
        path = tmp_path / "many.zarr" / name
        create_store(path, levels, dtype="float32", chunks=(8, 16, 16), shards=None, version="0.4", attributes={})
        publish(path, levels, name=name, channels=(), version="0.4", attributes={})
    open_level(tmp_path / "many.zarr" / "1", 1, "r+")[...] = open_level(before, 0)[...]
    with view(tmp_path / "many.zarr", before, series=1, level=1) as shown:
        first, second = panels(shown, tmp_path / "a.png")
    assert place(second, SIZE[0] // 2 + 10) - place(first, 0) == pytest.approx([0, 304], abs=2)


@needs_neuroglancer
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("level", [0, 1])
def test_axes_in_another_order_are_shown_where_they_are(images, tmp_path, version, level):
    find_browser()
    before = images[0]
    where, path, order = open_volume(before).grid, tmp_path / "yxz.zarr", (1, 2, 0)
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    names, voxels = ["y", "x", "z"], np.asarray(open_level(before, 0)).transpose(order)
    for name in ("0", "1"):
        of_both = voxels if name == str(level) else np.zeros_like(voxels)
        group.create_array(name, data=of_both, **({"dimension_names": names} if version == "0.5" else {}))
    placed = [
        {"type": "scale", "scale": [where.spacing[i] for i in order]},
        {"type": "translation", "translation": [where.origin[i] for i in order]},
    ]
    entry = {
        "axes": [{"name": name, "type": "space", "unit": where.units[i]} for name, i in zip(names, order, strict=True)],
        "datasets": [{"path": name, "coordinateTransformations": placed} for name in ("0", "1")[: level + 1]],
    }
    told = {"ome": {"version": "0.5", "multiscales": [entry]}}
    group.attrs.update(told if version == "0.5" else {"multiscales": [{"version": "0.4", **entry}]})
    with view(path, before, level=level) as shown:
        first, second = panels(shown, tmp_path / "a.png")
    assert place(second, SIZE[0] // 2 + 10) - place(first, 0) == pytest.approx([0, 304], abs=2)


@needs_neuroglancer
def test_volumes_of_different_places_are_warned_of(images, tmp_path):
    before, after, fine = images
    with view(before, after) as shown:
        assert shown.warnings == ()
    elsewhere = replace(open_volume(after).grid, origin=(0.0, 5.0, 0.0))
    with view(before, stored(tmp_path / "else.ome.zarr", fine, elsewhere, {})) as shown:
        assert shown.warnings == ("AFTER covers y = 4.9 to 24.1, BEFORE -0.2 to 19: they are not of one place",)


@needs_neuroglancer
def test_a_picture_is_not_replaced_nor_put_where_no_folder_is(images, tmp_path):
    (tmp_path / "a.png").write_bytes(b"precious")
    refused = run("view", images[0], "--screenshot", tmp_path / "a.png")
    assert (refused.exit_code, (tmp_path / "a.png").read_bytes()) == (1, b"precious")
    assert "a.png exists. Give another name, or --overwrite" in refused.error
    assert "there is no folder" in run("view", images[0], "--screenshot", tmp_path / "no" / "a.png").error
    find_browser()
    assert run("view", images[0], "--screenshot", tmp_path / "a.png", "--overwrite").exit_code == 0
    assert imread(tmp_path / "a.png").shape[:2] == (800, 1400)


@needs_neuroglancer
def test_all_of_one_volume_is_seen_in_each_of_its_three_planes(tmp_path):
    find_browser()
    bright = np.full((48, 48, 48), 200, np.float32)
    bright[0, 0, 0] = 0
    cube = stored(tmp_path / "cube.ome.zarr", bright, grid((48,) * 3, spacing=(0.4,) * 3, origin=(0.0,) * 3), {})
    with view(cube) as shown:
        drawn = imread(shown.screenshot(tmp_path / "a.png", size=(1400, 800)))[..., :3].mean(axis=2)
    for corner in (drawn[30:390, :690], drawn[30:390, 710:], drawn[430:740, 710:]):
        outline = np.concatenate([corner[:8].ravel(), corner[:, :8].ravel(), corner[:, -8:].ravel()])
        assert (corner > 0.9).sum() > 50_000
        assert (outline > 0.9).mean() < 0.05


@needs_neuroglancer
def test_what_is_being_made_is_shown_as_far_as_it_is(images, tmp_path):
    find_browser()
    before, _, fine = images
    growing = tmp_path / "growing.ome.zarr"
    level = grid(tuple(n // 2 for n in fine.shape), origin=(0.0, 0.0, 0.0)).finer(FACTOR)
    create_store(growing, [level], dtype="float32", chunks=(16, 32, 32), shards=(16, 96, 32), attributes={})
    bright = []
    for columns in (32, 96):
        open_level(growing, 0, "r+")[:, :, :columns] = fine[:, :, :columns]
        with view(before, growing) as shown:
            first, second = panels(shown, tmp_path / f"{columns}.png")
        bright.append((second > 0.3).sum() / (first > 0.3).sum())
    assert bright[0] < 0.1  # the bead is in columns 32 to 63 and beyond
    assert bright[1] == pytest.approx(1, abs=0.3)
    both = place(first, 0), place(second, SIZE[0] // 2 + 10)
    assert both[1] - both[0] == pytest.approx([0, 304], abs=2)
    with pytest.raises(UsageError, match="give what it is made of first"):
        view(growing)


def half_made(output, coarse):
    """Leave an output as an interrupted run does: half of its columns, and its record."""
    level = coarse.finer(FACTOR)
    record = {"axes": level.axes, "output_spacing": level.spacing, "output_origin": level.origin, "units": level.units}
    with suppress(KeyboardInterrupt), claim(output) as ledger:
        ledger.begin(record, [4])
        cut = {"dtype": "uint16", "chunks": (16, 16, 16), "shards": (16, 16, 32)}
        create_store(output, [level], **cut, attributes={"run": ledger.run})
        open_level(output, 0, "r+")[:, :32] = np.tile(500 + np.arange(64, dtype="uint16"), (16, 32, 1))
        raise KeyboardInterrupt
    return level


def test_an_unfinished_output_is_placed_by_the_record_of_its_run_or_by_what_it_is_made_of(tmp_path):
    coarse, output = grid((8, 32, 32), origin=(3.0, 5.0, 7.0)), tmp_path / "growing.ome.zarr"
    level = half_made(output, coarse)
    assert growing(output, None) == level
    assert contrast_so_far(output) == pytest.approx((500, 563), abs=0.5)  # as if only what is there were there
    shutil.rmtree(tmp_path / ".growing.ome.zarr.svision")  # of a run elsewhere
    assert growing(output, coarse) == level
    with pytest.raises(UsageError, match="give what it is made of first"):
        growing(output, None)
    with pytest.raises(UsageError, match="of another volume"):
        growing(output, replace(coarse, shape=(8, 32, 21)))


def test_of_an_unfinished_output_what_is_there_is_served_and_the_rest_is_missing(tmp_path):
    half_made(tmp_path / "growing.ome.zarr", grid((8, 32, 32)))
    server = ImageServer({"after": tmp_path / "growing.ome.zarr"})
    found = {}
    try:
        for place in ("zarr.json", *(f"c/0/{y}/{x}" for y in range(4) for x in range(2))):
            try:
                with urlopen(f"{server.url('after')}0/{place}", timeout=10) as answer:
                    found[place] = answer.read()
            except HTTPError as error:
                found[place] = error.code
    finally:
        server.close()
    described = json.loads(found.pop("zarr.json"))
    assert (described["shape"], described["dimension_names"]) == ([16, 64, 64], ["z", "y", "x"])
    # What a viewer is told is not there, it takes for empty.
    assert {place for place, answer in found.items() if answer == 404} == {
        f"c/0/{y}/{x}" for y in (2, 3) for x in (0, 1)
    }
    assert all(len(answer) > 0 for answer in found.values() if answer != 404)


def test_where_positions_were_skipped_an_unfinished_output_keeps_its_first_voxel(tmp_path):
    coarse = grid((8, 32, 32))
    level = coarse.finer(FACTOR, "point")
    made = {"training": {"sampling": "point"}}
    create_store(tmp_path / "a", [level], dtype="u1", chunks=(16,) * 3, shards=(16,) * 3, attributes=made)
    assert growing(tmp_path / "a", coarse).origin == coarse.origin
    assert growing(tmp_path / "a", coarse) == level


@needs_neuroglancer
def test_a_tiff_is_shown_and_where_there_is_no_browser_a_screenshot_is_refused(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.ome.tif", np.zeros((4, 16, 16), "uint8"))
    with view(path) as shown:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(OutputError, match="no browser is installed"):
            View.screenshot(shown, tmp_path / "b.png")


@needs_neuroglancer
def test_the_command_writes_a_picture(images, tmp_path):
    find_browser()
    outcome = run("view", *images[:2], "--screenshot", tmp_path / "c.png")
    assert outcome.exit_code == 0, outcome.stderr
    assert imread(tmp_path / "c.png").shape[:2] == (800, 1400)


def test_without_neuroglancer_the_command_says_what_to_install(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    ended = run("view", images[0])
    assert ended.exit_code == 2
    assert "pip install 'svision-dask[view]'" in ended.error


@needs_neuroglancer
def test_trust_maps_are_shown_below_each_on_its_own_scale(images, tmp_path):
    find_browser()
    before, after, fine = images
    path = tmp_path / "after.ome.zarr"
    shutil.copytree(after, path)
    where = open_volume(path).grid
    for kind, values, lies in (
        ("spread", fine / 1000, where),
        ("consistency", reduced(fine, FACTOR)[:, ::-1] / 50, open_volume(before).grid),
    ):
        stored(path / "trust" / kind, values, lies, {})
    with view(before, path, trust=True) as shown:
        drawn = imread(shown.screenshot(tmp_path / "view.png", size=SIZE))[..., :3].mean(axis=2)
    middle = SIZE[1] // 2
    panels = [
        drawn[a : a + middle - 60, b : b + SIZE[0] // 2 - 10] for a in (20, middle + 20) for b in (0, SIZE[0] // 2)
    ]
    for panel in panels:
        assert (panel > 0.3).sum() > 20
    down = [float(np.average(np.arange(len(p)), weights=np.where(p > 0.3, p, 0).sum(axis=1))) for p in panels]
    assert abs(down[2] - down[0]) < 6  # the bead; that of the other map is upside down
    assert abs(down[3] - down[0]) > 20


def test_trust_maps_that_are_not_there_are_not_shown(images):
    before, after, _ = images
    with pytest.raises(UsageError, match="has no trust maps"):
        view(before, after, trust=True)
    with pytest.raises(UsageError, match="belong to AFTER"):
        view(before, trust=True)
