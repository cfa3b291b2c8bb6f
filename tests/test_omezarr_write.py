from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import pytest
import zarr

from svision_dask.errors import ImageError, OutputError, PlanError, UsageError
from svision_dask.geometry import Grid
from svision_dask.omezarr.arrays import storage_shapes
from svision_dask.omezarr.pyramid import block_mean, halving, pyramid_grids
from svision_dask.omezarr.read import describe_omezarr, list_levels, open_omezarr, read_provenance
from svision_dask.omezarr.write import create_store, open_level, publish
from svision_dask.volume import Shown

with warnings.catch_warnings():
    # Importing ome_zarr, or ngff_zarr, calls things that zarr and others have deprecated.
    warnings.simplefilter("ignore")
    import ngff_zarr
    import ome_zarr.format
    import ome_zarr.io
    import ome_zarr.reader
    import ome_zarr.writer

AXES = ["yx", "zyx", "cyx", "tzyx", "czyx", "tczyx"]
VERSIONS = ["0.4", "0.5"]
UNITS = {"t": "second", "c": None, "z": "micrometer", "y": "micrometer", "x": "micrometer"}
SIZES = {"t": 2, "c": 3, "z": 7, "y": 21, "x": 18}
SPACINGS = {"t": 1.5, "c": 1.0, "z": 0.3, "y": 0.1, "x": 0.1}
ORIGINS = {"t": 0.0, "c": 0.0, "z": -2.7, "y": 1 / 3, "x": 1e-7}
CHUNKS = {"t": 1, "c": 1, "z": 4, "y": 4, "x": 8}


def grid(axes: str) -> Grid:
    return Grid(
        axes=axes,
        shape=tuple(SIZES[a] for a in axes),
        spacing=tuple(SPACINGS[a] for a in axes),
        origin=tuple(ORIGINS[a] for a in axes),
        units=tuple(UNITS[a] for a in axes),
    )


def create(path: Path, levels: list[Grid], *, version: str = "0.5", dtype: str = "u2", **changes: Any) -> Path:
    chunks = tuple(CHUNKS[a] for a in levels[0].axes)
    shards = None if version == "0.4" else tuple(2 * c for c in chunks)
    settings: dict[str, Any] = {"chunks": chunks, "shards": shards, "attributes": {"plan": "p"}, **changes}
    create_store(path, levels, dtype=dtype, version=version, **settings)
    return path


def fill(path: Path, levels: list[Grid]) -> list[np.ndarray]:
    """Write a ramp and its block means, each level in one assignment."""
    voxels = np.arange(np.prod(levels[0].shape), dtype="u2").reshape(levels[0].shape)
    filled = []
    for number, level in enumerate(levels):
        open_level(path, number, "r+")[...] = voxels
        filled.append(voxels)
        voxels = block_mean(voxels, halving(level))
    return filled


@pytest.fixture(params=[(axes, version) for axes in AXES for version in VERSIONS], ids="-".join)
def written(request, tmp_path) -> tuple[Path, list[Grid], list[np.ndarray], str]:
    """A finished image of every kind: its path, grids, voxels and version."""
    axes, version = request.param
    levels = pyramid_grids(grid(axes), smallest=6)
    assert len(levels) > 2
    path = create(tmp_path / "fine.ome.zarr", levels, version=version)
    voxels = fill(path, levels)
    channels = ("red", "green", "blue") if "c" in axes else ()
    shown = [Shown(window=(0, 65535, 10, 200))] * max(1, len(channels))
    publish(path, levels, name="fine", channels=channels, version=version, attributes={"model": "m"}, shown=shown)
    return path, levels, voxels, version


# ---------------------------------------------------------------- what was written is what others read


def test_every_store_is_valid_for_the_published_models(written):
    path, levels, _, version = written
    image = ome_zarr_models.open_ome_zarr(path, version=version)
    assert type(image).__name__ == "Image"
    assert image.ome_zarr_version == version
    assert len(image.datasets[0]) == len(levels)


def test_our_reader_gives_back_grids_voxels_and_names(written):
    path, levels, voxels, version = written
    info = describe_omezarr(path)
    assert info.version == version
    assert info.name == "fine"
    assert info.channels == (("red", "green", "blue") if "c" in levels[0].axes else ())
    assert [level.grid for level in info.levels] == levels  # exactly: spacing, origin, units, shape
    assert info.provenance == {"model": "m", "state": "complete"}
    for number, expected in enumerate(voxels):
        volume = open_omezarr(path, level=number)
        assert volume.dtype == "u2"
        np.testing.assert_array_equal(volume.voxels.compute(scheduler="synchronous"), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside ome_zarr
def test_ome_zarr_py_reads_the_same_voxels_and_places(written):
    path, levels, voxels, _ = written
    node = next(iter(ome_zarr.reader.Reader(ome_zarr.io.parse_url(str(path)))()))
    assert [a["name"] for a in node.metadata["axes"]] == list(levels[0].axes)
    assert len(node.data) == len(levels)
    for number, level in enumerate(levels):
        np.testing.assert_array_equal(node.data[number].compute(scheduler="synchronous"), voxels[number])
        scale, translation = node.metadata["coordinateTransformations"][number]
        assert tuple(scale["scale"]) == level.spacing
        assert tuple(translation["translation"]) == level.origin


def test_ngff_zarr_reads_the_same_voxels_and_places(written):
    path, levels, voxels, _ = written
    images = ngff_zarr.from_ngff_zarr(str(path)).images
    assert len(images) == len(levels)
    for image, level, expected in zip(images, levels, voxels, strict=True):
        assert "".join(image.dims) == level.axes
        assert tuple(image.scale[a] for a in level.axes) == level.spacing
        assert tuple(image.translation[a] for a in level.axes) == level.origin
        assert tuple((image.axes_units or {}).get(a) for a in level.axes) == level.units
        np.testing.assert_array_equal(image.data.compute(scheduler="synchronous"), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside ome_zarr
def test_the_metadata_are_those_that_ome_zarr_py_writes(written, tmp_path):
    path, _, _, version = written
    ours = _ome(path, version)
    entry = ours["multiscales"][0]
    form = ome_zarr.format.format_from_version(version)
    theirs = tmp_path / "theirs.zarr"
    group = zarr.create_group(theirs, zarr_format=form.zarr_format)
    axes = [{k: v for k, v in a.items() if k != "unit"} for a in entry["axes"]]
    units = {a["name"]: a["unit"] for a in entry["axes"] if "unit" in a}
    ome_zarr.writer.write_multiscales_metadata(
        group, entry["datasets"], fmt=form, axes=axes, axes_units=units, name="fine", metadata=entry["metadata"]
    )
    expected = _ome(theirs, version)
    assert {**expected["multiscales"][0], "type": "mean"} == entry
    assert expected.get("version") == ours.get("version")


def _ome(path: Path, version: str) -> dict[str, Any]:
    """The OME part of the attributes, as the file has them."""
    if version == "0.4":
        return json.loads((path / ".zattrs").read_text())
    return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]


# ---------------------------------------------------------------- storage


@pytest.mark.parametrize("version", VERSIONS)
def test_arrays_are_stored_as_asked(tmp_path, version):
    levels = pyramid_grids(grid("zyx"), smallest=6)
    path = create(tmp_path / "a", levels, version=version)
    text = json.loads((path / "0" / ("zarr.json" if version == "0.5" else ".zarray")).read_text())
    if version == "0.5":
        assert text["dimension_names"] == ["z", "y", "x"]
        assert text["chunk_grid"]["configuration"]["chunk_shape"] == [8, 8, 16]
        (sharding,) = text["codecs"]
        assert sharding["configuration"]["chunk_shape"] == [4, 4, 8]
        assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "blosc", "crc32c"]
    else:
        assert text["dimension_separator"] == "/"
        assert text["chunks"] == [4, 4, 8]
        assert text["compressor"].keys() == {"id", "level"}  # other readers know no more
    assert text["fill_value"] == 0
    assert text["shape"] == list(levels[0].shape)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_flipped_bit_is_noticed(tmp_path, version):
    path = create(tmp_path / "a", [grid("yx")], version=version, shards=None)
    array = pickle.loads(pickle.dumps(open_level(path, 0, "r+")))
    array[...] = np.random.default_rng(0).integers(0, 2**16, array.shape)
    name = path / "0" / ("c/0/0" if version == "0.5" else "0/0")
    stored = bytearray(name.read_bytes())
    for bit in np.random.default_rng(1).integers(0, 8 * len(stored), 40):
        damaged = stored.copy()
        damaged[bit // 8] ^= 1 << (bit % 8)
        name.write_bytes(damaged)
        with pytest.raises((RuntimeError, ValueError)):
            zarr.open_array(path / "0", mode="r")[:4, :8]  # any reader notices


@pytest.mark.parametrize("version", VERSIONS)
def test_zeros_are_stored_even_after_reopening_and_pickling(tmp_path, version):
    level = grid("zyx")
    path = create(tmp_path / "a", [level], version=version)
    array = pickle.loads(pickle.dumps(open_level(path, 0, "r+")))
    array[...] = np.zeros(level.shape, "u2")
    lengths = array.shards or array.chunks
    expected = int(np.prod([-(-n // c) for n, c in zip(level.shape, lengths, strict=True)]))
    stored = [p for p in (path / "0").rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr"))]
    assert len(stored) == expected
    assert all(p.stat().st_size > 0 for p in stored)


def test_inner_chunks_of_zeros_are_stored_in_their_shard(tmp_path):
    path = create(tmp_path / "a", [grid("yx")])
    open_level(path, 0, "r+")[:8, :16] = 0
    shard = (path / "0" / "c" / "0" / "0").read_bytes()
    # The index ends with a checksum of 4 bytes; an absent chunk has all bits of its offset and length set.
    index = np.frombuffer(shard[-(4 * 16 + 4) : -4], "<u8")
    assert not (index == 2**64 - 1).any()


def test_an_array_for_workers_pickles_to_a_few_kilobytes(tmp_path):
    path = create(tmp_path / "a", [grid("tczyx")])
    assert len(pickle.dumps(open_level(path, 0, "r+"))) < 4096


def test_a_level_opened_for_reading_cannot_be_written(tmp_path):
    path = create(tmp_path / "a", [grid("yx")])
    with pytest.raises(ValueError, match="read-only"):
        open_level(path, 0)[0, 0] = 1


@pytest.mark.parametrize(
    ("shape", "chunks", "shards"),
    [
        ((100, 100), (4, 8), (16, 16)),  # larger than a shard: as asked
        ((9, 100), (4, 8), (12, 16)),  # between chunk and shard: whole chunks, no more than needed
        ((3, 100), (3, 8), (3, 16)),  # smaller than a chunk: one chunk
        ((16, 1), (4, 1), (16, 1)),
    ],
)
def test_chunks_and_shards_fit_small_levels(shape, chunks, shards):
    assert storage_shapes(shape, (4, 8), (16, 16)) == (chunks, shards)
    assert storage_shapes(shape, (4, 8), None) == (chunks, None)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (4, 8), (5, 9), (15, 17), (16, 16), (33, 100)])
def test_a_level_of_any_shape_can_be_stored(tmp_path, shape):
    level = Grid(axes="yx", shape=shape, spacing=(1, 1), origin=(0, 0), units=(None, None))
    path = create(tmp_path / "a", [level], chunks=(4, 8), shards=(16, 16))
    voxels = np.arange(np.prod(shape), dtype="u2").reshape(shape)
    open_level(path, 0, "r+")[...] = voxels
    np.testing.assert_array_equal(open_level(path, 0)[...], voxels)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_every_voxel_type_can_be_written(tmp_path, version, dtype):
    path = create(tmp_path / "a", [grid("yx")], version=version, dtype=dtype)
    voxels = np.arange(21 * 18).reshape(21, 18).astype(dtype)
    open_level(path, 0, "r+")[...] = voxels
    publish(path, [grid("yx")], name="a", version=version, attributes={})
    volume = open_omezarr(path)
    assert volume.dtype == voxels.dtype
    np.testing.assert_array_equal(volume.voxels.compute(scheduler="synchronous"), voxels)


# ---------------------------------------------------------------- unfinished never looks finished


@pytest.mark.parametrize("version", VERSIONS)
def test_before_publish_the_store_is_nobodys_image(tmp_path, version):
    path = create(tmp_path / "a", pyramid_grids(grid("zyx"), smallest=6), version=version)
    assert read_provenance(path) == {"plan": "p", "state": "incomplete"}
    with pytest.raises(ImageError, match="unfinished output"):
        open_omezarr(path)
    with pytest.raises(RuntimeError, match="Could not successfully validate"):
        ome_zarr_models.open_ome_zarr(path)


@pytest.mark.parametrize("version", VERSIONS)
def test_publish_replaces_the_attributes_in_one_step(tmp_path, monkeypatch, version):
    path = create(tmp_path / "a", [grid("yx")], version=version)
    name = path / ("zarr.json" if version == "0.5" else ".zattrs")
    seen = []

    replace = os.replace

    def watching(source: Any, target: Any) -> None:
        seen.append(name.read_text())
        replace(source, target)
        seen.append(name.read_text())

    monkeypatch.setattr(os, "replace", watching)
    publish(path, [grid("yx")], name="a", version=version, attributes={"model": "m"})
    assert seen
    for text in seen:
        assert ("multiscales" in text) == ('"complete"' in text)
    assert "multiscales" not in seen[0]
    assert "multiscales" in seen[-1]


KILLED = """
import os, sys
from pathlib import Path
from svision_dask.geometry import Grid
from svision_dask.omezarr.write import create_store

folder, version = Path(sys.argv[1]), sys.argv[2]
levels = [Grid(axes="yx", shape=(n, n), spacing=(1, 1), origin=(0, 0), units=(None, None)) for n in (8, 4)]
for number in range(1, 9):
    if os.fork() == 0:  # zarr has not started its thread yet
        replace, count = os.replace, iter(range(1, 99))
        os.replace = lambda *names: os._exit(9) if next(count) == number else replace(*names)
        create_store(folder / str(number) / "a", levels, dtype="u1", chunks=(4, 4), version=version, attributes={})
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_process_killed_while_creating_leaves_a_whole_store_or_none(tmp_path, version):
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), version]
    codes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert codes[0] == "9"
    assert codes[-1] == "0"
    for number, code in enumerate(codes, start=1):
        path = tmp_path / str(number) / "a"
        assert path.exists() == (code == "0")
        if path.exists():
            assert [open_level(path, level).shape for level in (0, 1)] == [(8, 8), (4, 4)]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        create(tmp_path / "a", [grid("yx")])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("content", ["file", "folder", "store"])
def test_what_exists_is_not_overwritten(tmp_path, content):
    path = tmp_path / "a"
    if content == "file":
        path.write_text("precious")
    elif content == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("precious")
    else:
        create(path, [grid("yx")])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="exists already"):
        create(path, [grid("yx")])
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_taken_and_missing_ones_are_made(tmp_path):
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "a", tmp_path / "b" / "c" / "d.ome.zarr"):
        create(path, [grid("yx")])
        assert open_level(path, 0).shape == (21, 18)


def test_a_relative_path_is_one_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create(Path("a.zarr"), [grid("yx")])
    array = open_level("a.zarr", 0, "r+")
    monkeypatch.chdir("/")
    array[0, 0] = 5
    assert open_level(tmp_path / "a.zarr", 0)[0, 0] == 5


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"shards": (6, 8)}, PlanError, "not whole chunks"),
        ({"chunks": (0, 4), "shards": None}, PlanError, "1 or more voxels"),
        ({"chunks": (4,), "shards": None}, PlanError, "1 or more voxels"),
        ({"shards": (8, 16, 8)}, PlanError, "1 or more voxels"),
        ({"version": "0.4", "shards": (8, 16)}, UsageError, "0.4 has none"),
        ({"attributes": {"score": float("nan")}}, UsageError, "finite numbers"),
        ({"attributes": {"score": np.float32(1)}}, UsageError, "finite numbers"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path, changes, error, match):
    with pytest.raises(error, match=match):
        create(tmp_path / "a", [grid("yx")], **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sharded", [False, True])
def test_two_gibibytes_are_too_much_for_a_shard_or_chunk_and_one_voxel_less_is_not(tmp_path, sharded):
    level = Grid(axes="yx", shape=(2**16, 2**16), spacing=(1, 1), origin=(0, 0), units=(None, None))
    large = {"chunks": (1, 2**15), "shards": (2**15, 2**15)} if sharded else {"chunks": (2**15, 2**15), "shards": None}
    with pytest.raises(PlanError, match="2147483648 is too much"):
        create(tmp_path / "a", [level], dtype="u2", **large)
    fitting = (
        {"chunks": (1, 2**15), "shards": (2**15 - 1, 2**15)} if sharded else {**large, "chunks": (2**15, 2**15 - 1)}
    )
    create(tmp_path / "a", [level], dtype="u2", **fitting)


def test_publish_refuses_a_store_of_another_program(tmp_path):
    zarr.create_group(tmp_path / "a", zarr_format=3, attributes={"mine": 1})
    with pytest.raises(OutputError, match="not made by svision-dask"):
        publish(tmp_path / "a", [grid("yx")], name="a", attributes={})
    assert zarr.open_group(tmp_path / "a", mode="r").attrs.asdict() == {"mine": 1}


def test_publish_refuses_a_missing_store_or_another_version(tmp_path):
    with pytest.raises(OutputError, match=r"no OME-Zarr 0\.5 output of ours"):
        publish(tmp_path / "a", [grid("yx")], name="a", attributes={})
    create(tmp_path / "b", [grid("yx")], version="0.4")
    with pytest.raises(OutputError, match=r"no OME-Zarr 0\.5 output of ours"):
        publish(tmp_path / "b", [grid("yx")], name="b", attributes={})


def test_publish_refuses_levels_that_are_not_those_of_the_store(tmp_path):
    path = create(tmp_path / "a", [grid("yx")])
    with pytest.raises(OutputError, match="level 0 has shape"):
        publish(path, [grid("yx").finer((2, 2))], name="a", attributes={})
    with pytest.raises(OutputError, match="level 1 cannot be opened"):
        publish(path, [grid("yx"), grid("yx").coarser((2, 2))], name="a", attributes={})
    assert read_provenance(path)["state"] == "incomplete"


@pytest.mark.parametrize(("channels", "windows"), [(["a"], 3), (["a", "b", "c"], 1), ([], 0)])
def test_publish_wants_one_name_and_window_per_channel(tmp_path, channels, windows):
    path = create(tmp_path / "a", [grid("cyx")])
    with pytest.raises(UsageError, match="for 3 channels"):
        publish(
            path,
            [grid("cyx")],
            name="a",
            channels=channels,
            shown=[Shown(window=(0, 1, 0, 1))] * windows,
            attributes={},
        )


def test_publish_refuses_a_window_that_is_not_finite(tmp_path):
    path = create(tmp_path / "a", [grid("yx")])
    with pytest.raises(UsageError, match="finite numbers"):
        publish(path, [grid("yx")], name="a", shown=[Shown(window=(0, float("inf"), 0, 1))], attributes={})


def test_display_settings_are_written_only_with_windows(tmp_path):
    path = create(tmp_path / "a", [grid("cyx")])
    publish(path, [grid("cyx")], name="a", channels=["a", "b", "c"], attributes={})
    assert "omero" not in _ome(path, "0.5")
    publish(
        path, [grid("cyx")], name="a", channels=["a", "b", "c"], shown=[Shown(window=(0, 9, 1, 2))] * 3, attributes={}
    )
    settings = _ome(path, "0.5")["omero"]["channels"]
    assert [c["label"] for c in settings] == ["a", "b", "c"]
    assert settings[0]["window"] == {"min": 0, "max": 9, "start": 1, "end": 2}
    assert len({c["color"] for c in settings}) == 3


def test_the_name_of_an_image_without_channels_is_its_label(tmp_path):
    path = create(tmp_path / "a", [grid("yx")])
    publish(path, [grid("yx")], name="liver", shown=[Shown(window=(0, 9, 1, 2))], attributes={})
    (channel,) = _ome(path, "0.5")["omero"]["channels"]
    assert (channel["label"], channel["color"]) == ("liver", "FFFFFF")


def test_opening_a_level_that_is_not_there_is_an_error_of_one_line(tmp_path):
    with pytest.raises(OutputError, match="level 3 cannot be opened") as caught:
        open_level(tmp_path, 3)
    assert "\n" not in str(caught.value)


def test_levels_of_an_unfinished_store_are_not_listed_as_an_image(tmp_path):
    with pytest.raises(ImageError, match="unfinished"):
        list_levels(create(tmp_path / "a", [grid("yx")]))
