from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile

import svision_dask
from svision_dask.errors import ImageError, UsageError
from svision_dask.opening.formats import open_volume
from svision_dask.tiff.read import TiffSource, open_tiff
from svision_dask.volume import Volume

MICROMETER = "micrometer"


def ramp(shape, dtype="u2"):
    """Every voxel different where the type allows it, so that a wrong order shows."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def presented(stored, axes):
    """What a reader must see of an array stored in the order ``axes``: the same, in the order tczyx."""
    return stored.transpose([axes.index(a) for a in "tczyx" if a in axes])


def random_boxes(shape, count=12):
    rng = np.random.default_rng(7)
    for _ in range(count):
        ends = [sorted(rng.integers(0, n + 1, 2)) for n in shape]
        yield tuple(slice(int(a), int(b)) for a, b in ends)


def everything(volume: Volume):
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


# ---- real volumes, described by their own inventory


def inventory(data_dir):
    return json.loads((data_dir / "volumes.json").read_text(encoding="utf-8"))


def open_as_described(data_dir, entry):
    """Name the axes only where the file does not."""
    said = entry["axes"].lower()
    return open_tiff(data_dir / entry["file"], axes=None if set(said) <= set("tczyx") else "zyx")


def test_real_volumes_have_the_shape_and_values_of_the_inventory(data_dir):
    for entry in inventory(data_dir):
        assert hashlib.sha256((data_dir / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
        volume = open_as_described(data_dir, entry)
        axes = entry["axes"].lower() if set(entry["axes"]) <= set("TCZYX") else "zyx"
        assert volume.grid.axes == "".join(a for a in "tczyx" if a in axes), entry["file"]
        assert volume.grid.shape == tuple(entry["shape"][axes.index(a)] for a in volume.grid.axes), entry["file"]
        assert volume.dtype == entry["dtype"], entry["file"]
        voxels = everything(volume)
        assert voxels.dtype.isnative
        # The inventory rounds extremes to six digits, percentiles to three decimals.
        assert float(voxels.min()) == pytest.approx(entry["min"], rel=1e-5), entry["file"]
        assert float(voxels.max()) == pytest.approx(entry["max"], rel=1e-5), entry["file"]
        assert float(np.median(voxels)) == pytest.approx(entry["p50"], abs=6e-4), entry["file"]


def test_real_volumes_have_the_spacing_of_the_inventory_or_none(data_dir):
    for entry in inventory(data_dir):
        if entry["file"].startswith(("tiff_cases/", "beads_measured/psf_bead")):
            continue  # not stated in the inventory; stated only in prose inside the file
        grid = open_as_described(data_dir, entry).grid
        for axis, expected in zip("zyx", entry["voxel_um_zyx"] or [None] * 3, strict=True):
            spacing, unit = grid.spacing[grid.axes.index(axis)], grid.units[grid.axes.index(axis)]
            if expected is None:
                assert (spacing, unit) == (1.0, None), (entry["file"], axis)
            else:
                assert unit == MICROMETER, (entry["file"], axis)
                assert spacing == pytest.approx(expected, rel=2e-3), (entry["file"], axis)


def test_boxes_of_real_volumes_equal_tifffile(data_dir):
    for entry in inventory(data_dir):
        volume = open_as_described(data_dir, entry)
        axes = entry["axes"].lower() if set(entry["axes"]) <= set("TCZYX") else "zyx"
        expected = presented(tifffile.imread(data_dir / entry["file"]), axes)
        for box in random_boxes(volume.grid.shape, count=3):
            np.testing.assert_array_equal(volume.source[box], expected[box], err_msg=entry["file"])


def test_a_real_stack_without_axes_is_refused_until_they_are_named(data_dir):
    path = data_dir / "beads_measured" / "bead_dlab_25pct.tif"
    with pytest.raises(ImageError, match=r"axes QYX and shape \(64, 64, 64\).*--axes zyx"):
        open_tiff(path)
    assert open_tiff(path, axes="zyx").grid.axes == "zyx"


# ---- layouts

LAYOUTS = {
    "contiguous": {},
    "big_endian": {"byteorder": ">"},
    "strips": {"rowsperstrip": 5},
    "zlib": {"compression": "zlib", "rowsperstrip": 7},
    "zlib_predictor": {"compression": "zlib", "predictor": True},
    "zlib_big_endian": {"compression": "zlib", "byteorder": ">"},
    "tiles": {"tile": (16, 32)},
    "zlib_tiles": {"tile": (16, 16), "compression": "zlib"},
    "bigtiff": {"bigtiff": True, "compression": "zlib"},
}


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f2", "f4", "f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_box_equals_tifffile_in_every_layout(tmp_path, layout, dtype):
    options = dict(LAYOUTS[layout])
    options |= {"predictor": 3 if dtype[0] == "f" and options.pop("predictor", False) else None}
    if options["predictor"] == 3 and importlib.util.find_spec("imagecodecs") is None:
        pytest.skip("the floating point predictor needs imagecodecs")
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, ramp((3, 2, 37, 41), dtype), metadata={"axes": "TZYX"}, **options)
    expected = tifffile.imread(path)
    volume = open_tiff(path)
    for box in random_boxes(expected.shape):
        np.testing.assert_array_equal(volume.source[box], expected[box])
    np.testing.assert_array_equal(volume.voxels.compute(), expected)


def test_pages_apart_with_strips_of_one_row_are_read(tmp_path):
    voxels = ramp((4, 9, 11))
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for plane in voxels:
            file.write(plane, rowsperstrip=1, contiguous=False, metadata=None)
    volume = open_tiff(tmp_path / "pages.tif", axes="zyx")
    for box in random_boxes(voxels.shape):
        np.testing.assert_array_equal(volume.source[box], voxels[box])


def test_strips_that_do_not_follow_one_another_are_found_by_their_offsets(tmp_path):
    path, voxels = tmp_path / "pages.tif", ramp((4, 10, 11))
    with tifffile.TiffWriter(path) as file:
        for plane in voxels:
            file.write(plane, rowsperstrip=5, contiguous=False, metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[2].tags["StripOffsets"]
        tag.overwrite(tag.value[::-1])
    voxels[2] = np.roll(voxels[2], 5, axis=0)
    np.testing.assert_array_equal(everything(open_tiff(path, axes="zyx")), voxels)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_an_imagej_hyperstack_is_presented_as_tczyx(tmp_path, byteorder):
    stored = ramp((2, 3, 5, 7, 11))
    path = tmp_path / "hyperstack.tif"
    tifffile.imwrite(path, stored, imagej=True, byteorder=byteorder, metadata={"axes": "TZCYX"})
    volume = open_tiff(path)
    assert volume.grid.axes == "tczyx"
    assert volume.grid.shape == (2, 5, 3, 7, 11)
    np.testing.assert_array_equal(everything(volume), presented(stored, "tzcyx"))


def test_ome_axes_in_another_order_are_presented_as_tczyx(tmp_path):
    stored = ramp((3, 2, 5, 7, 11))
    tifffile.imwrite(tmp_path / "a.ome.tif", stored, metadata={"axes": "ZTCYX"}, compression="zlib")
    np.testing.assert_array_equal(everything(open_tiff(tmp_path / "a.ome.tif")), presented(stored, "ztcyx"))


def test_one_plane_needs_no_axes(tmp_path):
    tifffile.imwrite(tmp_path / "page.tif", ramp((5, 7)), metadata=None)
    volume = open_tiff(tmp_path / "page.tif")
    assert (volume.grid.axes, volume.grid.shape, volume.name) == ("yx", (5, 7), "page")


def test_named_axes_say_how_the_voxels_are_stored(tmp_path):
    stored = ramp((2, 5, 7))
    tifffile.imwrite(tmp_path / "a.tif", stored)
    volume = open_tiff(tmp_path / "a.tif", axes="xzy")
    assert volume.grid.shape == (5, 7, 2)
    np.testing.assert_array_equal(everything(volume), presented(stored, "xzy"))


def test_each_series_is_its_own_volume_and_the_choice_is_told(tmp_path, caplog):
    with tifffile.TiffWriter(tmp_path / "two.ome.tif") as file:
        file.write(ramp((2, 5, 7)), metadata={"axes": "ZYX", "PhysicalSizeX": 2.0, "PhysicalSizeXUnit": "nm"})
        file.write(ramp((3, 11, 13), "u1"), metadata={"axes": "CYX", "Channel": {"Name": ["a", "b", "c"]}})
    first, second = (open_tiff(tmp_path / "two.ome.tif", series=number) for number in (0, 1))
    assert "holds 2 series; series 1 is read" in caplog.text
    assert (first.grid.shape, first.grid.spacing[2], first.grid.units[2]) == ((2, 5, 7), 2.0, "nanometer")
    assert (second.grid.shape, second.grid.axes, second.channels) == ((3, 11, 13), "cyx", ("a", "b", "c"))
    np.testing.assert_array_equal(everything(second), ramp((3, 11, 13), "u1"))
    with pytest.raises(ImageError, match="series 2 does not exist; the file has 2"):
        open_tiff(tmp_path / "two.ome.tif", series=2)


def write_multifile_ome(folder, voxels):
    """One file per plane, as Micro-Manager and others write; every file holds the whole description."""
    names = [f"plane{z}.ome.tif" for z in range(len(voxels))]
    ids = [f"urn:uuid:00000000-0000-4000-8000-00000000000{z}" for z in range(len(voxels))]
    planes = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{names[z]}">{ids[z]}</UUID></TiffData>'
        for z in range(len(voxels))
    )
    for z, plane in enumerate(voxels):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{ids[z]}"><Image ID="Image:0">'
            f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="{plane.shape[1]}" '
            f'SizeY="{plane.shape[0]}" SizeZ="{len(voxels)}" SizeC="1" SizeT="1" PhysicalSizeZ="3">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
        )
        order, packing = ("<>"[z % 2], [None, "zlib"][z % 2])
        tifffile.imwrite(folder / names[z], plane, description=xml, metadata=None, byteorder=order, compression=packing)
    return [folder / name for name in names]


def test_a_multifile_ome_tiff_is_read_from_all_its_files(tmp_path, monkeypatch):
    voxels = ramp((3, 5, 7))
    write_multifile_ome(tmp_path, voxels)
    monkeypatch.chdir(tmp_path)
    volume = open_tiff("plane0.ome.tif")
    monkeypatch.chdir("/")
    assert (volume.grid.shape, volume.grid.spacing[0], volume.grid.units[0]) == ((3, 5, 7), 3.0, MICROMETER)
    for box in random_boxes(voxels.shape):
        np.testing.assert_array_equal(volume.source[box], voxels[box])


def test_a_missing_file_of_a_multifile_ome_tiff_is_an_error_and_not_zeros(tmp_path):
    paths = write_multifile_ome(tmp_path, ramp((3, 5, 7)))
    paths[1].unlink()
    with pytest.raises(ImageError, match="3 planes are described and 2 are there"):
        open_tiff(paths[0])


def write_companion(folder, voxels, *, described: str = "set.companion.ome"):
    """The same, with the description in a file of its own, which all others name."""
    paths = write_multifile_ome(folder, voxels)
    for path, plane in zip(paths, voxels, strict=True):
        with tifffile.TiffFile(path) as file:
            xml = file.ome_metadata
        own = re.search(r'UUID="([^"]+)"', xml).group(1)
        whole = "urn:uuid:00000000-0000-4000-8000-0000000000ff"
        (folder / "set.companion.ome").write_text(f'<?xml version="1.0" encoding="UTF-8"?>{xml.replace(own, whole, 1)}')
        only = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{own}"><BinaryOnly MetadataFile="'
        xml = f'{only}{described}" UUID="{whole}"/></OME>'
        if path.name != described:
            tifffile.imwrite(path, plane, description=xml, metadata=None)
    return [folder / "set.companion.ome", *paths]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_companion_file_or_any_of_its_tiffs_opens_all_of_them(tmp_path, number):
    voxels = ramp((3, 5, 7))
    path = write_companion(tmp_path, voxels)[number]
    volume = open_volume(path)
    assert (volume.grid.shape, volume.grid.spacing[0], volume.grid.units[0]) == ((3, 5, 7), 3.0, MICROMETER)
    assert volume.name == ["set", "plane0", "plane1", "plane2"][number]
    for box in random_boxes(voxels.shape):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume.source))[box], voxels[box])
    known = volume.identity
    companion = tmp_path / "set.companion.ome"
    companion.write_text(companion.read_text().replace('PhysicalSizeZ="3"', 'PhysicalSizeZ="4.5"'))
    assert open_volume(path).identity != known


def test_the_description_may_be_in_one_of_the_tiffs(tmp_path):
    voxels = ramp((3, 5, 7))
    paths = write_companion(tmp_path, voxels, described="plane1.ome.tif")
    (tmp_path / "set.companion.ome").unlink()
    for path in paths[1:]:
        np.testing.assert_array_equal(everything(open_tiff(path)), voxels)


def test_identifiers_in_a_companion_file_never_mix_up_files(tmp_path):
    voxels = ramp((3, 5, 7))
    companion, *paths = write_companion(tmp_path, voxels)
    xml = companion.read_text()
    own = 'UUID="urn:uuid:00000000-0000-4000-8000-0000000000ff"'
    assert own in xml
    companion.write_text(xml.replace(own, 'UUID="urn:uuid:00000000-0000-4000-8000-000000000002"'))
    for path in (companion, *paths):
        np.testing.assert_array_equal(everything(open_tiff(path)), voxels)
    companion.write_text(xml.replace("0001</UUID>", "0000</UUID>"))
    with pytest.raises(ImageError, match="several files have one UUID"):
        open_tiff(companion)


@pytest.mark.parametrize("gone", ["set.companion.ome", "plane0.ome.tif", "plane2.ome.tif"])
def test_what_is_missing_of_a_companion_set_is_named_with_the_way_round(tmp_path, gone):
    companion, *paths = write_companion(tmp_path, ramp((3, 5, 7)))
    (tmp_path / gone).unlink()
    for path in (companion, *paths):
        if path.exists():
            with pytest.raises(ImageError) as caught:
                open_tiff(path)
            message = str(caught.value)
            assert "companion file (.companion.ome) into one folder" in message or "2 are there" in message
            assert "\n" not in message


def test_a_companion_file_names_no_files_elsewhere(tmp_path):
    (tmp_path / "set").mkdir()
    companion, *paths = write_companion(tmp_path / "set", ramp((3, 5, 7)))
    (tmp_path / "plane0.ome.tif").write_bytes(paths[0].read_bytes())
    companion.write_text(companion.read_text().replace('"plane0.ome.tif"', '"../plane0.ome.tif"'))
    for path in (companion, *paths):
        with pytest.raises(ImageError, match=r"not beside it|outside its folder"):
            open_tiff(path)


# ---- what is read, by whom


def test_only_the_planes_of_the_box_are_read(tmp_path):
    path, voxels = tmp_path / "a.ome.tif", np.random.default_rng(0).integers(0, 99, (4, 40, 40), np.uint8)
    tifffile.imwrite(path, voxels, compression="zlib", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        offset, size = file.series[0][2].dataoffsets[0], file.series[0][2].databytecounts[0]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)
    volume = open_tiff(path)
    np.testing.assert_array_equal(volume.source[0:2], voxels[0:2])
    with pytest.raises(ImageError, match="plane 2 cannot be decoded"):
        volume.source[1:4]


def test_dask_indexing_reaches_the_source_as_integers_and_steps(tmp_path):
    voxels = ramp((6, 7, 8))
    tifffile.imwrite(tmp_path / "a.tif", voxels, metadata={"axes": "ZYX"})
    lazy = open_tiff(tmp_path / "a.tif").voxels
    for index in [np.s_[2], np.s_[::2, 3], np.s_[-1, ::-3, 1:5:2], np.s_[5:2], np.s_[[4, 1]], np.s_[..., 0]]:
        np.testing.assert_array_equal(lazy[index].compute(scheduler="synchronous"), voxels[index])


def test_a_source_takes_indices_as_numpy_does(tmp_path):
    voxels = ramp((6, 7, 8))
    tifffile.imwrite(tmp_path / "a.tif", voxels, metadata={"axes": "ZYX"})
    source = open_tiff(tmp_path / "a.tif").source
    for index in [np.s_[2], np.s_[-1, 3], np.s_[5:1:-2, 0:99], np.s_[:, 4:4], np.s_[1:5:3, ::-1, -3], np.s_[:]]:
        np.testing.assert_array_equal(source[index], voxels[index])
    for index in [np.s_[6], np.s_[0, 0, 0, 0], np.s_[[1, 2]]]:
        with pytest.raises(IndexError):
            source[index]


def test_another_process_in_another_folder_reads_the_same_from_a_small_pickle(tmp_path, monkeypatch):
    voxels = ramp((30, 21, 22))
    tifffile.imwrite(tmp_path / "a.ome.tif", voxels, compression="zlib", metadata={"axes": "ZYX"})
    monkeypatch.chdir(tmp_path)
    source = open_tiff("a.ome.tif").source
    source[0:1]  # what has been read must not travel
    message = pickle.dumps(source)
    assert len(message) < 2000
    code = (
        "import pickle, sys; source = pickle.loads(sys.stdin.buffer.read());"
        "sys.stdout.buffer.write(source[3:29, 1:20, 5:6].tobytes())"
    )
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        input=message,
        capture_output=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(svision_dask.__file__).parents[1])},
        check=False,
    )
    assert answer.stderr == b""
    assert answer.stdout == voxels[3:29, 1:20, 5:6].tobytes()


def test_many_threads_read_at_once(tmp_path):
    voxels = ramp((12, 33, 34))
    tifffile.imwrite(tmp_path / "a.ome.tif", voxels, compression="zlib", metadata={"axes": "ZYX"})
    source = open_tiff(tmp_path / "a.ome.tif").source
    boxes = list(random_boxes(voxels.shape, count=100))
    with ThreadPoolExecutor(8) as pool:
        for box, read in zip(boxes, pool.map(source.__getitem__, boxes), strict=True):
            np.testing.assert_array_equal(read, voxels[box])


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_no_file_stays_open(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", ramp((3, 5, 7)), compression="zlib", metadata={"axes": "ZYX"})
    (tmp_path / "damaged.tif").write_bytes((tmp_path / "a.ome.tif").read_bytes()[:100])
    gc.collect()
    before = open_files()
    volume = open_tiff(tmp_path / "a.ome.tif")
    volume.voxels.compute()
    with pytest.raises(ImageError):
        open_tiff(tmp_path / "damaged.tif")
    assert open_files() == before


def test_a_file_that_was_replaced_by_another_shape_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp((2, 5, 7)), metadata={"axes": "ZYX"})
    volume = open_tiff(path)
    tifffile.imwrite(path, ramp((5, 5, 7)), metadata={"axes": "ZYX"})
    with pytest.raises(ImageError, match="has changed since it was opened"):
        volume.source[0:1]


def test_a_file_that_was_replaced_is_not_read_with_the_old_positions(tmp_path):
    path, voxels = tmp_path / "a.tif", ramp((2, 5, 7))
    tifffile.imwrite(path, voxels, metadata={"axes": "ZYX"})
    volume = open_tiff(path)
    tifffile.imwrite(path, voxels + 1, metadata={"axes": "ZYX", "note": "x" * 5000})
    np.testing.assert_array_equal(everything(volume), voxels + 1)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((40, 1000, 1000), "u2"), ((400, 300, 300), "f4"), ((2, 9000, 9000), "u1"), ((20000, 5001), "u1")],
)
def test_chunks_are_16_to_64_megabytes_and_whole_planes_where_those_fit(tmp_path, shape, dtype):
    path = tmp_path / "empty.tif"
    tifffile.imwrite(path, shape=shape, dtype=dtype, metadata={"axes": "ZYX"[-len(shape) :]})  # sparse on disk
    lazy = open_tiff(path).voxels
    assert 16 * 10**6 <= np.prod(lazy.chunksize) * lazy.dtype.itemsize <= 64 * 2**20
    whole = lazy.chunksize[-2:] == shape[-2:]
    assert whole or np.prod(shape[-2:]) * lazy.dtype.itemsize > 64 * 2**20


def test_a_small_volume_is_one_chunk(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", ramp((2, 3, 5, 7)), imagej=True, metadata={"axes": "ZCYX"})
    assert open_tiff(tmp_path / "a.tif").voxels.numblocks == (1, 1, 1, 1)


# ---- what the file says


@pytest.mark.parametrize("spelling", ["um", "\\u00B5m", "micron", "microns", "Micrometer", "micrometre", "micrometers"])
def test_imagej_spellings_of_micrometre_are_one(tmp_path, spelling):
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX", "spacing": 3.0, "unit": spelling}
    tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, resolution=(4, 2), metadata=metadata)
    grid = open_tiff(path).grid
    assert grid.spacing == (3.0, 1 / 2, 1 / 4)  # the resolution tags count x first, voxels per unit
    assert grid.units == (MICROMETER,) * 3


@pytest.mark.parametrize(
    ("spelling", "unit"), [("nm", "nanometer"), ("mm", "millimeter"), ("inch", "inch"), ("cm", "centimeter")]
)
def test_other_imagej_units_have_their_ome_zarr_names(tmp_path, spelling, unit):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, metadata={"axes": "ZYX", "spacing": 3, "unit": spelling})
    assert open_tiff(path).grid.units == (unit,) * 3


@pytest.mark.parametrize("unit", ["pixel", "pixels", ""])
def test_an_uncalibrated_imagej_stack_has_spacing_one_and_no_unit(tmp_path, unit):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, resolution=(1, 1), metadata={"axes": "ZYX", "unit": unit})
    grid = open_tiff(path).grid
    assert (grid.spacing, grid.units) == ((1.0,) * 3, (None,) * 3)


def test_a_resolution_of_zero_is_unknown(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, resolution=(0, 4), metadata={"axes": "ZYX", "unit": "um"})
    grid = open_tiff(path).grid
    assert (grid.spacing, grid.units) == ((1.0, 1 / 4, 1.0), (None, MICROMETER, None))


def test_imagej_counts_slices_upwards_with_a_negative_spacing(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, metadata={"axes": "ZYX", "spacing": -3.0, "unit": "um"})
    assert open_tiff(path).grid.spacing[0] == 3.0


def test_imagej_without_a_unit_means_the_unit_of_the_resolution_but_not_of_a_screen(tmp_path):
    path = tmp_path / "a.tif"
    for resolution, unit, expected in [(10, "CENTIMETER", (0.1, "centimeter")), (72, "INCH", (1.0, None))]:
        options = {"resolution": (resolution,) * 2, "resolutionunit": unit}
        tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, metadata={"axes": "ZYX"}, **options)
        grid = open_tiff(path).grid
        assert (grid.spacing[2], grid.units[2]) == expected


def test_a_spacing_without_any_unit_keeps_the_ratio(tmp_path):
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX", "spacing": 3.0}
    tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, resolution=(2, 4), resolutionunit="NONE", metadata=metadata)
    grid = open_tiff(path).grid
    assert (grid.spacing, grid.units) == ((3.0, 0.25, 0.5), (None,) * 3)


def test_an_unknown_unit_keeps_the_ratio_and_is_told(tmp_path, caplog):
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX", "unit": "furlong", "spacing": 3}
    tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, resolution=(2, 2), metadata=metadata)
    grid = open_tiff(path).grid
    assert (grid.spacing, grid.units) == ((3.0, 0.5, 0.5), (None,) * 3)
    assert "'furlong' is not a unit we know" in caplog.text


def test_dots_per_inch_of_a_plain_stack_are_a_printer_and_not_a_microscope(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp((2, 5, 7)), resolution=(300, 300), resolutionunit="INCH", metadata={"axes": "ZYX"})
    grid = open_tiff(path).grid
    assert (grid.spacing, grid.units) == ((1.0,) * 3, (None,) * 3)


def test_imagej_frame_interval_is_the_spacing_of_time(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, metadata={"axes": "TYX", "finterval": 12.5})
    assert open_tiff(path, unit="um").grid.units == (None, MICROMETER, MICROMETER)
    tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, metadata={"axes": "TYX", "finterval": 12.5, "unit": "um"})
    grid = open_tiff(path).grid
    assert (grid.spacing[0], grid.units[0]) == (12.5, "second")


def test_ome_sizes_units_and_channel_names_are_read(tmp_path):
    metadata = {
        "axes": "TCZYX", "PhysicalSizeX": 11, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5,
        "PhysicalSizeZ": 2.5, "PhysicalSizeZUnit": "\u00b5m", "TimeIncrement": 1.5, "TimeIncrementUnit": "min",
        "Channel": {"Name": ["nuclei", ""]},
    }  # fmt: skip
    tifffile.imwrite(tmp_path / "a.ome.tif", ramp((3, 2, 2, 5, 7)), metadata=metadata)
    volume = open_tiff(tmp_path / "a.ome.tif")
    assert volume.grid.spacing == (1.5, 1.0, 2.5, 0.5, 11.0)
    assert volume.grid.units == ("minute", None, MICROMETER, MICROMETER, "nanometer")
    assert volume.channels == ("nuclei", "Channel 1")
    assert volume.name == "a"


def test_ome_without_sizes_has_spacing_one_and_no_unit_and_no_names(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", ramp((2, 3, 5, 7)), metadata={"axes": "CZYX"})
    volume = open_tiff(tmp_path / "a.ome.tif")
    assert (volume.grid.spacing, volume.grid.units, volume.channels) == ((1.0,) * 4, (None,) * 4, ())


def test_an_ome_image_without_planes_does_not_lend_its_sizes(tmp_path):
    pixels = (
        '<Image ID="Image:{0}" Name="{0}"><Pixels ID="Pixels:{0}" DimensionOrder="XYZCT" Type="uint16" '
        'SizeX="7" SizeY="5" SizeZ="1" SizeC="1" SizeT="1" PhysicalSizeX="{1}">'
        '<Channel ID="Channel:{0}:0"/>{2}</Pixels></Image>'
    )
    images = pixels.format("empty", 3, "") + pixels.format("full", 4, '<TiffData IFD="0" PlaneCount="1"/>')
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{images}</OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", ramp((5, 7)), description=xml, metadata=None)
    assert open_tiff(tmp_path / "a.ome.tif").grid.spacing == (1.0, 4.0)


# ---- what the caller says instead


@pytest.fixture
def calibrated(tmp_path):
    """0.5 x 0.25 x 0.25 micrometres."""
    path = tmp_path / "calibrated.tif"
    metadata = {"axes": "ZYX", "spacing": 0.5, "unit": "um"}
    tifffile.imwrite(path, ramp((2, 5, 7)), imagej=True, resolution=(4, 4), metadata=metadata)
    return path


def test_a_given_spacing_replaces_the_files_in_the_files_unit(calibrated):
    grid = open_tiff(calibrated, spacing={"z": 3}).grid
    assert (grid.spacing, grid.units) == ((3.0, 0.25, 0.25), (MICROMETER,) * 3)


def test_a_given_spacing_and_unit_replace_both(calibrated):
    grid = open_tiff(calibrated, spacing=(3, 2, 2), unit="nm").grid
    assert (grid.spacing, grid.units) == ((3.0, 2.0, 2.0), ("nanometer",) * 3)


def test_a_unit_alone_may_name_the_unknown_but_not_contradict(calibrated, tmp_path):
    with pytest.raises(UsageError, match=r"spacing of z,y,x in micrometer, not nanometer.*--spacing with --unit"):
        open_tiff(calibrated, unit="nm")
    tifffile.imwrite(tmp_path / "plain.tif", ramp((2, 5, 7)))
    grid = open_tiff(tmp_path / "plain.tif", axes="zyx", spacing=2, unit="\u00b5m").grid
    assert (grid.spacing, grid.units) == ((2.0,) * 3, (MICROMETER,) * 3)


def test_a_renamed_axis_does_not_keep_the_spacing_of_another(calibrated):
    grid = open_tiff(calibrated, axes="tyx").grid
    assert (grid.spacing, grid.units) == ((1.0, 0.25, 0.25), (None, MICROMETER, MICROMETER))
    swapped = open_tiff(calibrated, axes="yzx").grid
    assert (swapped.spacing, swapped.units) == ((1.0, 1.0, 0.25), (None, None, MICROMETER))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": "yx"}, "--axes yx does not fit. Name its 3 axes"),
        ({"axes": "zzx"}, "--axes zzx does not fit"),
        ({"axes": "zyq"}, "--axes zyq does not fit"),
        ({"axes": "tcz"}, "--axes tcz does not fit"),
        ({"spacing": 0}, "spacing z=0.0: give a positive number"),
        ({"spacing": {"y": float("nan")}}, "spacing y=nan: give a positive number"),
        ({"spacing": {"t": 1}}, "no axis t"),
        ({"spacing": (1, 2)}, "3 in the order z,y,x"),
        ({"unit": "second"}, "'second' is not a unit of length"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(calibrated, options, message):
    with pytest.raises(UsageError, match=message):
        open_tiff(calibrated, **options)


# ---- files that cannot be read


def test_a_missing_path_says_so(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        open_tiff(tmp_path / "absent.tif")


@pytest.mark.parametrize(
    "content", [b"", b"II", b"II*\0", b"PNG and more", b"II*\0\xff\xff\xff\x7f", b"MM\0+" + b"\1" * 40]
)
def test_what_is_not_a_tiff_is_an_error_of_one_line(tmp_path, content):
    path = tmp_path / "not.tif"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_tiff(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_rgb_is_refused_in_one_line(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", ramp((5, 7, 3), "u1"), photometric="rgb")
    for axes in (None, "yxc"):
        with pytest.raises(ImageError, match="RGB"):
            open_tiff(tmp_path / "rgb.tif", axes=axes)


def test_complex_voxels_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", ramp((5, 7), "c8"))
    with pytest.raises(ImageError, match="type complex64"):
        open_tiff(tmp_path / "a.tif")


WRITERS = {
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "shaped": {"metadata": {"axes": "ZYX"}},
    "shaped_zlib": {"metadata": {"axes": "ZYX"}, "compression": "zlib"},
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "ome_zlib": {"ome": True, "metadata": {"axes": "ZYX"}, "compression": "zlib"},
    "bare": {"metadata": None},
    "bare_zlib": {"metadata": None, "compression": "zlib"},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_truncated_file_is_never_a_smaller_volume(tmp_path, writer):
    path = tmp_path / "a.tif"
    voxels = np.random.default_rng(0).integers(0, 99, (6, 20, 21), np.uint16)
    tifffile.imwrite(path, voxels, **WRITERS[writer])
    whole = path.read_bytes()
    np.testing.assert_array_equal(everything(open_tiff(path, axes="zyx")), voxels)
    for length in range(8, len(whole) - 1, len(whole) // 40):
        path.write_bytes(whole[:length])
        for axes in (None, "zyx", "yx"):
            try:
                volume = open_tiff(path, axes=axes)
            except (ImageError, UsageError):
                continue
            # Some writers put nothing but padding at the end.
            np.testing.assert_array_equal(everything(volume), voxels, err_msg=f"{length} of {len(whole)} bytes")


def test_a_truncated_imagej_stack_of_one_page_is_not_a_single_plane(tmp_path):
    path, voxels = tmp_path / "a.tif", ramp((6, 20, 21))
    # As ImageJ writes stacks above 4 GB: one page describes the first plane, the others follow it.
    tifffile.imwrite(path, voxels[0], description="ImageJ=1.53t\nimages=6\nslices=6\n", metadata=None)
    with path.open("ab") as file:
        file.write(voxels[1:].tobytes())
    np.testing.assert_array_equal(everything(open_tiff(path)), voxels)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ImageError, match="description and its pages disagree"):
        open_tiff(path)


def test_a_description_of_far_more_than_the_file_holds_costs_no_memory(tmp_path):
    description = '{"shape": [9999999999, 6, 7], "axes": "ZYX"}'
    tifffile.imwrite(tmp_path / "a.tif", ramp((6, 7)), description=description, metadata=None, software="tifffile.py")
    with pytest.raises(ImageError, match=r"\d{12} bytes are described and \d{3} are there"):
        open_tiff(tmp_path / "a.tif")


def test_a_plane_without_data_is_an_error_and_not_zeros(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp((2, 32, 32)), tile=(16, 16), compression="zlib", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path, mode="r+b") as file:
        for code in (324, 325):
            tag = file.pages[1].aspage().tags[code] if hasattr(file.pages[1], "aspage") else file.pages[1].tags[code]
            tag.overwrite([0, *tag.value[1:]])
    with pytest.raises(ImageError, match="plane 1 has strips or tiles without data"):
        open_tiff(path)


@pytest.mark.parametrize(
    ("compression", "predictor", "dtype"),
    [("lzw", None, "u2"), ("lzw", 2, "u2"), ("jpeg", None, "u1"), ("zstd", None, "f4"), ("packbits", None, "u1")],
)
@pytest.mark.parametrize("tile", [None, (16, 32)])
def test_compressed_planes_are_read_with_the_extra(tmp_path, compression, predictor, dtype, tile):
    pytest.importorskip("imagecodecs", reason="the extra tiff is not installed")
    path = tmp_path / "a.tif"
    voxels = ramp((3, 40, 50)).astype(dtype)
    options = {"compression": compression, "predictor": predictor, "tile": tile, "photometric": "minisblack"}
    tifffile.imwrite(path, voxels, metadata={"axes": "ZYX"}, **options)
    expected = tifffile.imread(path)
    source = open_tiff(path).source
    np.testing.assert_array_equal(source[:], expected)
    np.testing.assert_array_equal(source[1:3, 11:38, 7:44], expected[1:3, 11:38, 7:44])


WITHOUT_IMAGECODECS = """
import sys
sys.modules["imagecodecs"] = None
from svision_dask.errors import ImageError
from svision_dask.tiff.read import open_tiff
try:
    open_tiff(sys.argv[1])
except ImageError as error:
    print(error)
"""


def test_a_codec_that_is_absent_says_what_to_install(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp((5, 7)), compression="zlib", metadata=None)
    content = path.read_bytes()
    zlib_tag, lzw_tag = (struct.pack("<HHIHH", 259, 3, 1, code, 0) for code in (8, 5))
    assert content.count(zlib_tag) == 1
    path.write_bytes(content.replace(zlib_tag, lzw_tag))
    call = [sys.executable, "-c", WITHOUT_IMAGECODECS, str(path)]
    said = subprocess.run(call, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.search(r"LZW.*install svision-dask\[tiff\]", said)


def test_a_source_describes_itself():
    source = TiffSource("/a.tif", 0, (1, 0, 2), (2, 3, 5), np.dtype("u2"))
    assert pickle.loads(pickle.dumps(source)) == source
