from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svision_dask.errors import ImageError
from svision_dask.omezarr.read import describe_omezarr, is_omezarr, list_levels, open_omezarr, read_provenance

TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def multiscale(axes: str, scales: list[list[float]], **more: Any) -> dict[str, Any]:
    return {
        "axes": [{"name": a, "type": TYPES[a.lower()]} for a in axes],
        "datasets": [
            {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": s}]} for i, s in enumerate(scales)
        ],
        **more,
    }


def write_image(
    path: Path, entry: dict[str, Any], arrays: dict[str, Any], *, version: str = "0.5", **extra: Any
) -> Path:
    """An image made with zarr alone; ``arrays`` holds numpy arrays, or arguments of create_array."""
    if version == "0.5":
        attributes = {"ome": {"version": "0.5", "multiscales": [entry], **extra}}
    else:
        attributes = {"multiscales": [{"version": "0.4", **entry}], **extra}
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2, attributes=attributes)
    for name, array in arrays.items():
        if isinstance(array, dict):
            group.create_array(name, **array)
        else:
            group.create_array(name, data=array, chunks=tuple(min(4, n) for n in array.shape))
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A valid 0.5 image whose metadata tests then damage."""
    return write_image(tmp_path / "cells.ome.zarr", multiscale("zyx", [[3, 2, 2]]), {"0": np.zeros((5, 6, 7), "u2")})


def change(path: Path, **changes: Any) -> None:
    """Overwrite fields of the multiscales entry of a 0.5 image."""
    text = json.loads((path / "zarr.json").read_text())
    text["attributes"]["ome"]["multiscales"][0].update(changes)
    (path / "zarr.json").write_text(json.dumps(text))


def refusal(path: Path, **options: Any) -> str:
    """The message with which the image is refused, which must be one line that names the path."""
    with pytest.raises(ImageError) as caught:
        open_omezarr(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# ---------------------------------------------------------------- stores that other programs wrote


def cases(data_dir: Path) -> list[dict[str, Any]]:
    return [c for c in json.loads((data_dir / "cases.json").read_text()) if "reference" in c]


@pytest.fixture(scope="session")
def references(data_dir: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every level of every conformance store, with an independent reading of it."""
    found = [(data_dir / c["path"] / r["group"], r) for c in cases(data_dir) for r in c["reference"]]
    assert len(found) > 20
    return found


def test_every_level_of_the_conformance_stores_reads_as_an_independent_reader_reads_it(references):
    for path, reference in references:
        volume = open_omezarr(path, level=reference["level"])
        assert volume.grid.axes == "".join(a["name"] for a in reference["axes"])
        assert volume.grid.units == tuple(a.get("unit") for a in reference["axes"])
        assert volume.grid.shape == tuple(reference["shape"])
        assert volume.dtype == reference["dtype"]
        given = {t["type"]: t[t["type"]] for t in reference["transforms"]}
        assert volume.grid.spacing == tuple(given["scale"])
        assert volume.grid.origin == tuple(given.get("translation", [0] * len(given["scale"])))
        if "sha256_c_order_le" in reference:
            voxels = volume.voxels.compute(scheduler="synchronous")
            assert hashlib.sha256(np.ascontiguousarray(voxels).tobytes()).hexdigest() == reference["sha256_c_order_le"]
            whole = tuple(slice(0, n) for n in volume.grid.shape)
            np.testing.assert_array_equal(volume.read(whole), voxels)


def test_levels_of_the_conformance_stores_are_described_as_stored(references):
    for path, reference in references:
        level = list_levels(path)[reference["level"]]
        assert level.path == reference["path"]
        assert level.dtype == reference["dtype"]
        assert level.chunks == tuple(reference["chunks"])
        assert level.shards is None
        assert describe_omezarr(path).version == reference["version"]


def test_a_sparse_pyramid_opens_without_reading_its_voxels(data_dir):
    path = data_dir / "conformance" / "fiji_pyramid_v04.zarr"
    open_omezarr(path)  # what is imported on first use does not count
    tracemalloc.start()
    volume = open_omezarr(path)
    assert len(list_levels(path)) == 3
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < volume.voxels.nbytes / 50
    corner = volume.read((slice(0, 2), slice(0, 3), slice(0, 4)))
    np.testing.assert_array_equal(corner, zarr.open_array(path / "0", mode="r")[:2, :3, :4])


def test_channel_names_come_from_the_display_settings(data_dir):
    volume = open_omezarr(data_dir / "conformance" / "fiji_5d_5d_v04.ome.zarr")
    assert volume.channels == ("lynEGFP", "NLStdTomato", "lynEGFP")


def test_a_container_of_images_names_one_of_them(data_dir):
    path = data_dir / "conformance" / "fiji_bf2raw_v05.ome.zarr"
    message = refusal(path)
    assert "bioformats2raw" in message
    assert f"such as {path / '0'}." in message


# "The length of the scale and translation array MUST be the same as the length of "axes"", which a schema cannot say.
WRONG_LENGTH = {"0.4": {"valid/mismatch_axes_units.json"}, "0.5": set()}
# The reader does not use colours and display ranges, so damage there does not stop it.
DISPLAY_ONLY = {"invalid/invalid_channels_color.json", "invalid/invalid_channels_window.json"}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_official_suites_are_opened_or_refused_as_they_say(data_dir, tmp_path, version):
    folder = data_dir / "conformance" / f"ngff_spec_{version}" / "tests"
    tests = [t for f in folder.glob("*image_suite.json") for t in json.loads(f.read_text())["tests"]]
    assert len(tests) > 30
    for number, test in enumerate(tests):
        path = tmp_path / str(number)
        attributes = test["data"]
        group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2, attributes=attributes)
        entries = (attributes["ome"] if version == "0.5" else attributes).get("multiscales") or [{}]
        for dataset in entries[0].get("datasets", []):
            if isinstance(dataset.get("path"), str):
                group.create_array(dataset["path"], shape=(2,) * len(entries[0].get("axes", [0])), dtype="u1")
        # Valid, but not an image that can be enhanced: an axis "angle".
        strange = any(a.get("name") == "angle" for a in entries[0].get("axes", []))
        refused = strange or test["formerly"] in WRONG_LENGTH[version]
        if (test["valid"] and not refused) or test["formerly"] in DISPLAY_ONLY:
            assert len(list_levels(path)) == len(entries[0]["datasets"])
        else:
            refusal(path)


# ---------------------------------------------------------------- geometry, names, storage


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "zyx", "cyx", "tyx", "czyx", "tzyx", "tcyx", "tczyx"])
def test_axes_shape_and_voxels_survive(tmp_path, version, axes):
    shape = (2, 3, 5, 7, 11)[5 - len(axes) :]
    voxels = np.arange(np.prod(shape), dtype="i4").reshape(shape)
    path = write_image(tmp_path / "a.zarr", multiscale(axes, [[1.5] * len(axes)]), {"0": voxels}, version=version)
    volume = open_omezarr(path)
    assert volume.grid.axes == axes
    assert volume.grid.spacing == (1.5,) * len(axes)
    np.testing.assert_array_equal(volume.voxels.compute(scheduler="synchronous"), voxels)


def test_transformations_of_the_pyramid_follow_those_of_the_level(tmp_path):
    entry = multiscale("yx", [[2, 3]])
    entry["datasets"][0]["coordinateTransformations"].append({"type": "translation", "translation": [5, 7]})
    entry["coordinateTransformations"] = [
        {"type": "scale", "scale": [11, 13]},
        {"type": "translation", "translation": [17, 19]},
    ]
    grid = open_omezarr(write_image(tmp_path / "a", entry, {"0": np.zeros((2, 2))})).grid
    assert grid.spacing == (2 * 11, 3 * 13)
    assert grid.origin == (5 * 11 + 17, 7 * 13 + 19)


def test_units_are_kept_and_missing_ones_are_none(tmp_path):
    entry = multiscale("zyx", [[1, 1, 1]])
    entry["axes"][1]["unit"], entry["axes"][2]["unit"] = "micrometer", ""
    path = write_image(tmp_path / "a", entry, {"0": np.zeros((2, 2, 2))})
    assert open_omezarr(path).grid.units == (None, "micrometer", None)


def test_upper_case_axis_names_are_accepted(tmp_path):
    entry = multiscale("ZYX", [[1, 2, 3]])
    array = {"shape": (2, 3, 4), "dtype": "u1", "dimension_names": ["Z", "Y", "X"]}
    assert open_omezarr(write_image(tmp_path / "a", entry, {"0": array})).grid.axes == "zyx"


def test_axes_without_a_type_are_known_by_their_names(image):
    change(image, axes=[{"name": a} for a in "zyx"])
    assert open_omezarr(image).grid.axes == "zyx"


@pytest.mark.parametrize(("name", "expected"), [("liver", "liver"), ("/", "cells"), (None, "cells"), (7, "cells")])
def test_the_name_is_that_of_the_metadata_or_of_the_folder(image, name, expected):
    change(image, name=name)
    assert open_omezarr(image).name == expected


@pytest.mark.parametrize(
    ("labels", "expected"), [(["a", "b"], ("a", "b")), (["a"], ()), (["a", "b", "c"], ()), (["a", 5], ())]
)
def test_labels_that_are_not_one_name_per_channel_are_not_used(tmp_path, labels, expected):
    omero = {"channels": [{"label": label} for label in labels]}
    entry = multiscale("cyx", [[1, 1, 1]])
    path = write_image(tmp_path / "a", entry, {"0": np.zeros((2, 3, 3))}, omero=omero)
    assert open_omezarr(path).channels == expected


@pytest.mark.parametrize("omero", [7, [], {"channels": 3}, {"channels": [None, None]}])
def test_damaged_display_settings_do_not_stop_the_reader(tmp_path, omero):
    path = write_image(tmp_path / "a", multiscale("cyx", [[1, 1, 1]]), {"0": np.zeros((2, 3, 3))}, omero=omero)
    assert open_omezarr(path).channels == ()


def test_dask_chunks_are_the_shards_clipped_to_the_image(tmp_path):
    array = {"shape": (9, 20), "dtype": "u2", "chunks": (2, 4), "shards": (16, 8), "dimension_names": ["y", "x"]}
    path = write_image(tmp_path / "a", multiscale("yx", [[1, 1]]), {"0": array})
    assert open_omezarr(path).voxels.chunks == ((9,), (8, 8, 4))
    level = list_levels(path)[0]
    assert (level.chunks, level.shards) == ((2, 4), (16, 8))


def test_a_shard_too_large_for_memory_is_cut_into_its_chunks(tmp_path):
    array = {"shape": (2**17, 2**16), "dtype": "u1", "chunks": (1024, 1024), "shards": (2**16, 2**16)}
    path = write_image(tmp_path / "a", multiscale("yx", [[1, 1]]), {"0": array})
    assert open_omezarr(path).voxels.chunksize == (1024, 1024)


def test_compressors_are_named(tmp_path):
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    array = {"shape": (4, 4), "dtype": "u2", "chunks": (2, 2)}
    codecs = {"0": BloscCodec(cname="lz4"), "1": [ZstdCodec(), Crc32cCodec()], "2": None}
    arrays = {name: {**array, "compressors": codec} for name, codec in codecs.items()}
    path = write_image(tmp_path / "a", multiscale("yx", [[1, 1]] * 3), arrays)
    assert [level.compressors for level in list_levels(path)] == [("blosc-lz4",), ("zstd", "crc32c"), ()]


@pytest.mark.parametrize("dtype", ["?", "u1", ">u2", "u4", "u8", "i1", ">i2", "i4", "i8", "f2", ">f4", "f8"])
def test_voxels_are_read_in_the_byte_order_of_the_machine(tmp_path, dtype):
    voxels = np.arange(12).reshape(3, 4).astype(dtype)
    path = write_image(tmp_path / "a", multiscale("yx", [[1, 1]]), {"0": voxels}, version="0.4")
    volume = open_omezarr(path)
    eager, lazy = volume.read((slice(0, 3), slice(1, 3))), volume.voxels[:, 1:3].compute(scheduler="synchronous")
    for block in (eager, lazy):
        assert block.dtype == volume.voxels.dtype == voxels.dtype.newbyteorder("=")
        assert block.dtype.isnative
        np.testing.assert_array_equal(block, voxels[:, 1:3])


def test_a_volume_pickles_to_a_few_kilobytes_and_reads_elsewhere(image, monkeypatch, tmp_path):
    monkeypatch.chdir(image.parent)
    source = open_omezarr(image.name, missing="empty").source
    text = pickle.dumps(source)
    assert len(text) < 4096
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(text)[1, 2, 3] == 0


def test_any_level_can_be_opened(tmp_path):
    arrays = {"0": np.zeros((8, 8)), "1": np.ones((4, 4))}
    path = write_image(tmp_path / "a", multiscale("yx", [[1, 1], [2, 2]]), arrays)
    assert open_omezarr(path, level=1).grid.shape == (4, 4)
    assert open_omezarr(path, level=1).read((slice(0, 1), slice(0, 1))) == 1


def test_stale_consolidated_metadata_are_not_used(tmp_path):
    path = write_image(tmp_path / "a", multiscale("yx", [[1, 1]]), {"0": np.zeros((4, 4))}, version="0.4")
    zarr.consolidate_metadata(path, zarr_format=2)
    newer = {"multiscales": [{"version": "0.4", **multiscale("yx", [[5, 7]])}]}
    (path / ".zattrs").write_text(json.dumps(newer))
    assert open_omezarr(path).grid.spacing == (5, 7)


def test_where_both_formats_describe_the_image_the_newer_is_read(image):
    attributes = {"multiscales": [{"version": "0.4", **multiscale("zyx", [[9, 9, 9]])}]}
    (image / ".zgroup").write_text('{"zarr_format": 2}')
    (image / ".zattrs").write_text(json.dumps(attributes))
    assert open_omezarr(image).grid.spacing == (3, 2, 2)


def test_is_omezarr_looks_for_the_files_of_a_zarr_group(image, tmp_path):
    assert is_omezarr(image)
    assert is_omezarr(str(image))
    assert not is_omezarr(tmp_path)
    assert not is_omezarr(tmp_path / "missing")


# ---------------------------------------------------------------- refusals


def test_a_missing_path_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing.zarr")


def test_a_folder_or_file_that_is_not_zarr_is_refused(tmp_path):
    assert "not a zarr group" in refusal(tmp_path)
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    assert "not a zarr group" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_is_refused_with_the_image_above_it(tmp_path, zarr_format):
    group = zarr.create_group(tmp_path / "a", zarr_format=zarr_format)
    group.create_array("0", shape=(2, 2), dtype="u1")
    refusal(tmp_path / "a" / "0")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_group_without_multiscales_is_refused(tmp_path, zarr_format):
    zarr.create_group(tmp_path / "a", zarr_format=zarr_format)
    assert "without multiscales" in refusal(tmp_path / "a")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_unfinished_output_is_called_unfinished(tmp_path, zarr_format):
    attributes = {"svision_dask": {"state": "incomplete", "plan": "p"}}
    zarr.create_group(tmp_path / "a", zarr_format=zarr_format, attributes=attributes)
    assert "unfinished output of svision-dask" in refusal(tmp_path / "a")
    assert read_provenance(tmp_path / "a")["plan"] == "p"


def test_images_of_other_programs_have_no_provenance(image):
    assert read_provenance(image) == {}


@pytest.mark.parametrize(
    ("kind", "below"), [("plate", "A/1/0"), ("well", "0"), ("labels", "nuclei"), ("bioformats2raw.layout", "0")]
)
def test_containers_name_an_image_below_them(tmp_path, kind, below):
    root = zarr.create_group(tmp_path / "a", zarr_format=2, attributes={kind: {}})
    root.create_group(below)
    assert f"such as {tmp_path / 'a' / below}." in refusal(tmp_path / "a")


def test_an_empty_container_is_refused_too(tmp_path):
    zarr.create_group(tmp_path / "a", zarr_format=2, attributes={"plate": {}})
    assert "plate" in refusal(tmp_path / "a")


@pytest.mark.parametrize("axes", ["zyxc", "ctzyx", "zcyx", "ztyx", "zy", "xx", "zyz", "xyX"])
def test_axes_in_a_forbidden_order_or_missing_are_refused_whatever_their_sizes(tmp_path, axes):
    path = write_image(tmp_path / "a", multiscale(axes, [[1] * len(axes)]), {"0": np.zeros((3,) * len(axes))})
    refusal(path)


@pytest.mark.parametrize(
    "axis", [{"name": "q", "type": "space"}, {"name": "angle"}, {"name": "z", "type": "channel"}, {"name": None}, {}, 5]
)
def test_unknown_axes_are_refused(image, axis):
    change(image, axes=[axis, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}])
    refusal(image)


@pytest.mark.parametrize(
    "path",
    ["/etc", "../0", "0/../../cells.ome.zarr/0", "..", ".", "./0", "", "a\\b", "file:///etc", "s3://bucket/0", "0\0"],
)
def test_a_dataset_path_that_leads_out_of_the_image_is_refused(image, path):
    change(image, datasets=[{"path": path, "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}])
    assert "must lead down" in refusal(image)


def test_a_symbolic_link_out_of_the_image_is_refused(image, tmp_path):
    (image / "0").rename(tmp_path / "secret")
    (image / "0").symlink_to(tmp_path / "secret")
    assert "outside the image" in refusal(image)


def test_a_symbolic_link_to_the_whole_image_is_followed(image, tmp_path):
    (tmp_path / "link").symlink_to(image)
    assert open_omezarr(tmp_path / "link").grid.shape == (5, 6, 7)


def test_a_missing_array_is_refused(image):
    (image / "0").rename(image / "gone")
    assert "there is no zarr v3 array" in refusal(image)


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]"])
def test_voxels_that_are_not_real_numbers_are_refused(tmp_path, dtype):
    array = {"shape": (2, 2), "dtype": dtype}
    path = write_image(tmp_path / "a", multiscale("yx", [[1, 1]]), {"0": array}, version="0.4")
    assert "allowed are bool, integers and real floats" in refusal(path)


@pytest.mark.parametrize(
    "damage",
    [
        {"dtype": "|O", "filters": [{"id": "pickle"}]},
        {"dtype": "<u2", "filters": [{"id": "pickle"}]},
        {"dtype": [["a", "<u2"], ["b", "<u2"]]},
        {"compressor": {"id": "unheard_of"}},
        {"shape": [-1, 4]},
        {"chunks": [0, 4]},
        {"chunks": None},
    ],
)
def test_hostile_array_metadata_are_refused(tmp_path, damage):
    path = write_image(tmp_path / "a", multiscale("yx", [[1, 1]]), {"0": np.zeros((4, 4), "u2")}, version="0.4")
    text = json.loads((path / "0" / ".zarray").read_text())
    (path / "0" / ".zarray").write_text(json.dumps({**text, **damage}))
    refusal(path)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "wide", None, 1e200])
def test_spacing_must_be_finite_and_above_zero(image, scale):
    transformations = [{"type": "scale", "scale": [1, scale, 1]}]
    change(image, datasets=[{"path": "0", "coordinateTransformations": transformations}])
    if scale == 1e200:
        change(image, coordinateTransformations=transformations)  # each is finite, their product is not
    refusal(image)


def test_an_origin_must_be_finite(image):
    transformations = [
        {"type": "scale", "scale": [1, 1, 1]},
        {"type": "translation", "translation": [0, 0, float("inf")]},
    ]
    change(image, datasets=[{"path": "0", "coordinateTransformations": transformations}])
    assert "origin" in refusal(image)


def test_a_scale_kept_in_a_file_is_refused(image):
    transformations = [{"type": "scale", "path": "scale.bin"}]
    change(image, datasets=[{"path": "0", "coordinateTransformations": transformations}])
    assert "kept in a file" in refusal(image)


def test_a_translation_before_the_scale_is_refused(image):
    transformations = [{"type": "translation", "translation": [1, 1, 1]}, {"type": "scale", "scale": [2, 2, 2]}]
    change(image, datasets=[{"path": "0", "coordinateTransformations": transformations}])
    refusal(image)


@pytest.mark.parametrize("level", [-1, 2, 99])
def test_a_level_that_does_not_exist_is_refused_with_the_number_of_levels(tmp_path, level):
    arrays = {"0": np.zeros((8, 8)), "1": np.zeros((4, 4))}
    path = write_image(tmp_path / "a", multiscale("yx", [[1, 1], [2, 2]]), arrays)
    assert f"no level {level}: it has 2" in refusal(path, level=level)


def test_an_array_with_another_number_of_axes_is_refused(tmp_path):
    path = write_image(tmp_path / "a", multiscale("zyx", [[1, 1, 1]]), {"0": np.zeros((4, 4))})
    assert "shape (4, 4) for axes zyx" in refusal(path)


def test_an_array_that_names_its_axes_differently_is_refused(tmp_path):
    array = {"shape": (4, 4), "dtype": "u1", "dimension_names": ["x", "y"]}
    path = write_image(tmp_path / "a", multiscale("yx", [[1, 1]]), {"0": array})
    assert "names its axes ('x', 'y')" in refusal(path)


def test_an_image_without_voxels_is_refused(tmp_path):
    path = write_image(
        tmp_path / "a", multiscale("yx", [[1, 1]]), {"0": {"shape": (0, 4), "dtype": "u1", "chunks": (1, 1)}}
    )
    assert "no voxels" in refusal(path)


def test_two_multiscales_are_refused(image):
    text = json.loads((image / "zarr.json").read_text())
    text["attributes"]["ome"]["multiscales"] *= 2
    (image / "zarr.json").write_text(json.dumps(text))
    assert "holds 2 multiscales" in refusal(image)


@pytest.mark.parametrize(
    ("written", "stored"), [("0.4", "0.0"), ("0.4", "0.5"), ("0.5", "0.4"), ("0.5", "0.6"), ("0.5", None)]
)
def test_other_versions_are_refused(tmp_path, written, stored):
    entry = multiscale("yx", [[1, 1]])
    if written == "0.4":
        path = write_image(tmp_path / "a", {**entry, "version": stored}, {"0": np.zeros((4, 4))}, version="0.4")
    else:
        attributes = {"ome": {"multiscales": [entry]} | ({"version": stored} if stored else {})}
        path = tmp_path / "a"
        zarr.create_group(path, zarr_format=3, attributes=attributes).create_array("0", shape=(4, 4), dtype="u1")
    assert repr(stored) in refusal(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "\x00", '{"zarr_format": 3}', '{"zarr_format": 9}'])
@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
def test_broken_json_is_refused(image, name, text):
    (image / name).write_text(text)
    refusal(image)


def test_declared_sizes_that_no_machine_can_hold_are_refused_before_reading(tmp_path):
    bombs = {
        "chunks": {"shape": (10**6, 10**6), "chunks": (2**16, 2**15)},
        "axis": {"shape": (10**15, 4), "chunks": (1, 4)},
    }
    for name, bomb in bombs.items():
        path = write_image(tmp_path / name, multiscale("yx", [[1, 1]]), {"0": {"dtype": "u1", **bomb}})
        assert "Write it with" in refusal(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, as a path of keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, inner in items for place in places(inner, (*here, key)))]


@given(data=st.data(), junk=JSON)
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
def test_any_damage_to_the_metadata_is_harmless_or_refused(image, name, data, junk):
    file = image / name
    good = file.read_text()
    text = json.loads(good)
    place = data.draw(st.sampled_from([p for p in places(text) if p]))
    inner = damaged = copy.deepcopy(text)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    file.write_text(json.dumps(damaged))
    with contextlib.suppress(ImageError):
        open_omezarr(image)
    file.write_text(good)
