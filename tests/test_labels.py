"""Labels, display settings, other programs' attributes, pyramids and codecs: what an output has of its input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from svision_dask.codec import parse_codec
from svision_dask.errors import OutputError, PlanError, UsageError
from svision_dask.geometry import Grid
from svision_dask.judging.checking import check
from svision_dask.omezarr.labels import NearestSource
from svision_dask.omezarr.read import describe_omezarr, list_levels, read_provenance
from svision_dask.opening.formats import open_volume
from svision_dask.running.cluster import local_client
from svision_dask.running.pipeline import copy_to_zarr, enhance_to_zarr, plan_volume
from svision_dask.running.verification import images_of
from svision_dask.wishes import Wishes
from tests.commands import run, textured
from tests.models import fast

SPACING, ORIGIN = [1.0, 2.0, 0.5, 0.5], [0.0, 7.0, -3.0, 1.25]
SHAPE = (2, 9, 21, 30)
OMERO = {
    "channels": [
        {"label": "DAPI", "color": "0000FF", "window": {"min": 0, "max": 4095, "start": 120, "end": 900}},
        {"label": "GFP", "color": "12ab34ff", "active": False, "coefficient": 2, "window": {"min": 0, "max": 65535}},
    ],
    "rdefs": {"model": "color"},
}
COLOURS = [{"label-value": 1, "rgba": [255, 0, 0, 255]}, {"label-value": 300, "rgba": [0, 255, 0, 128]}]


@pytest.fixture(scope="module")
def client():
    with local_client(workers=1, memory_bytes=4 * 2**30) as started:
        yield started


def multiscale(axes: str, spacing: list[float], origin: list[float], **more: Any) -> dict[str, Any]:
    types = {"t": "time", "c": "channel"}
    placed = [{"type": "scale", "scale": spacing}, {"type": "translation", "translation": origin}]
    return {
        "axes": [{"name": a, "type": types.get(a, "space")} for a in axes],
        "datasets": [{"path": "0", "coordinateTransformations": placed}],
        **more,
    }


def write(path: Path, version: str, voxels: np.ndarray, entry: dict[str, Any], **more: Any) -> zarr.Group:
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    names = {"dimension_names": [a["name"] for a in entry["axes"]]} if version == "0.5" else {}
    group.create_array("0", data=voxels, chunks=tuple(min(8, n) for n in voxels.shape), **names)
    tell(group, version, multiscales=[entry if version == "0.5" else {"version": "0.4", **entry}], **more)
    return group


def tell(group: zarr.Group, version: str, **attributes: Any) -> None:
    group.attrs.update({"ome": {"version": "0.5", **attributes}} if version == "0.5" else attributes)


def label_voxels(dtype: str = "u2") -> np.ndarray:
    """Blocks of labels 0, 1 and 300 with ragged borders."""
    return np.random.default_rng(3).choice([0, 1, 300], SHAPE[1:]).astype(dtype)


def write_image(path: Path, version: str = "0.5", **labels: tuple[np.ndarray, dict[str, Any]]) -> Path:
    """Two channels with display settings, another program's attributes, and labels."""
    entry = multiscale("czyx", SPACING, ORIGIN, name="cells", oddity={"by": "someone"})
    group = write(path, version, textured(SHAPE), entry, omero=OMERO)
    group.attrs["acquisition"] = {"laser": 488}
    tell(group.create_group("labels"), version, labels=list(labels))
    for name, (voxels, label_entry) in labels.items():
        write(path / "labels" / name, version, voxels, label_entry, **{"image-label": {"colors": COLOURS}})
    return path


def voxels_of(path: Path, level: int = 0) -> np.ndarray:
    volume = open_volume(path, level=level)
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


def ome(path: Path) -> dict[str, Any]:
    attributes = zarr.open_group(path, mode="r").attrs.asdict()
    return attributes.get("ome", attributes)


def nearest(labels: np.ndarray, spacing: list[float], origin: list[float], grid: Grid) -> np.ndarray:
    """What stands at each voxel's world position, searched for one voxel at a time."""
    found = []
    for axis, count in enumerate(labels.shape):
        centres = origin[axis] + spacing[axis] * np.arange(count)
        world = grid.origin[axis] + grid.spacing[axis] * np.arange(grid.shape[axis])
        found.append(np.abs(world[:, None] - centres).round(9).argmin(axis=1))
    return labels[np.ix_(*found)]


# ---- labels


def test_labels_that_were_deleted_do_not_pass(client, tmp_path):
    output, placed = tmp_path / "out.zarr", multiscale("zyx", SPACING[1:], ORIGIN[1:])
    copy_to_zarr(open_volume(write_image(tmp_path / "in.zarr", cells=(label_voxels(), placed))), output, client=client)
    assert images_of(output) == [str(output), str(output / "labels" / "cells")]
    shutil.rmtree(output / "labels")
    with pytest.raises(OutputError, match="its labels 'cells' are lost"):
        images_of(output)


def test_labels_that_do_not_fit_are_refused_before_anything_is_computed(monkeypatch, tmp_path):
    volume = open_volume(
        write_image(tmp_path / "in.zarr", cells=(label_voxels("i8"), multiscale("zyx", SPACING[1:], ORIGIN[1:])))
    )

    def refuse(*_: Any) -> None:
        raise PlanError("labels do not fit")

    monkeypatch.setattr("svision_dask.running.label_images.label_plan", refuse)
    with pytest.raises(PlanError, match="labels do not fit"):
        plan_volume(volume, fast((1, 2, 2), channels=2).architecture)
    with pytest.raises(PlanError, match="labels do not fit"):
        copy_to_zarr(volume, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_metadata_of_the_input_are_not_carried_as_those_of_another_program(tmp_path):
    group = zarr.open_group(write_image(tmp_path / "in.zarr"))
    former = {"multiscales": [{"datasets": [{"path": "x"}]}], "plate": {}, "well": {}, "bioformats2raw.layout": 3}
    group.attrs.update(former)
    volume = open_volume(tmp_path / "in.zarr")
    assert set(volume.carried) == {"acquisition"}
    assert set(former) <= set(volume.dropped)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_the_nearest_ones_at_every_level_and_never_a_mixture(client, tmp_path, version):
    labels = label_voxels()
    source = write_image(tmp_path / "in.zarr", version, cells=(labels, multiscale("zyx", SPACING[1:], ORIGIN[1:])))
    output = tmp_path / "out.zarr"
    wishes = Wishes(version=version, chunk={"z": 6, "y": 16, "x": 16}, pyramid="isotropic")
    enhance_to_zarr(source, output, model=fast((1, 2, 2), channels=2), client=client, wishes=wishes)
    place = output / "labels" / "cells"
    assert ome(output / "labels")["labels"] == ["cells"]
    image_levels, label_levels = list_levels(output), list_levels(place)
    assert len(image_levels) == len(label_levels)
    for number, (image, level) in enumerate(zip(image_levels, label_levels, strict=True)):
        assert (level.grid.spacing, level.grid.origin) == (image.grid.spacing[1:], image.grid.origin[1:])
        expected = nearest(labels, SPACING[1:], ORIGIN[1:], level.grid)
        np.testing.assert_array_equal(voxels_of(place, number), expected)
    described = ome(place)["image-label"]
    assert (described["colors"], described["source"]) == (COLOURS, {"image": "../../"})
    model = ome_zarr_models.v04.ImageLabel if version == "0.4" else ome_zarr_models.v05.ImageLabel
    model.from_zarr(zarr.open_group(place, mode="r"))
    assert not list(output.rglob("*.svision"))


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 9),
    factor=st.sampled_from([1, 2, 3, 4]),
    coarser=st.booleans(),
    origin=st.floats(-1e6, 1e6),
    spacing=st.floats(1e-3, 1e3),
    data=st.data(),
)
def test_any_box_of_labels_on_another_grid_is_what_a_search_finds(count, factor, coarser, origin, spacing, data):
    stored = Grid(axes="yx", shape=(count, 1), spacing=(spacing, 1), origin=(origin, 0), units=(None, None))
    grid = stored.coarser((factor, 1)) if coarser else stored.finer((factor, 1))
    labels = np.arange(count, dtype="u1")[:, None]
    source = NearestSource(labels, stored, grid, grid.shape, labels.dtype)
    places = np.arange(grid.shape[0])
    # halfway between two, the first counts; a last block may reach beyond the labels
    exact = np.ceil(places * factor + (factor - 1) / 2 - 0.5) if coarser else places // factor
    expected = np.minimum(exact, count - 1)
    start = data.draw(st.integers(0, grid.shape[0] - 1))
    np.testing.assert_array_equal(source[start:, 0], expected[start:])


class Counted:
    """Voxels that say how many of them were asked for at once, at most."""

    def __init__(self, voxels: np.ndarray) -> None:
        self.voxels, self.most = voxels, 0

    def __getitem__(self, box: Any) -> np.ndarray:
        block = self.voxels[box]
        self.most = max(self.most, block.size)
        return block


def test_a_coarse_level_of_large_labels_is_read_in_parts(monkeypatch):
    monkeypatch.setattr("svision_dask.omezarr.labels.AT_ONCE", 4096)
    voxels = np.arange(64 * 64 * 64, dtype="u4").reshape(64, 64, 64)
    stored = Grid(axes="zyx", shape=voxels.shape, spacing=(1, 1, 1), origin=(0, 0, 0), units=(None,) * 3)
    coarse, counted = stored.coarser((8, 8, 8)), Counted(voxels)
    source = NearestSource(counted, stored, coarse, coarse.shape, voxels.dtype)
    np.testing.assert_array_equal(source[:, :, 1:], voxels[3::8, 3::8, 11::8])
    assert counted.most <= 4096
    same = NearestSource(counted, stored, stored, stored.shape, voxels.dtype)
    np.testing.assert_array_equal(same[:], voxels)
    assert counted.most == voxels.size  # where all of them count, in one piece


def test_labels_of_a_coarser_level_are_brought_to_the_finest(client, tmp_path):
    labels = label_voxels()[:, ::3, ::3].copy()
    spacing = [2.0, 1.5, 1.5]
    origin = [7.0, -3.0 + 0.5, 1.25 + 0.5]
    source = write_image(tmp_path / "in.zarr", nuclei=(labels, multiscale("zyx", spacing, origin)))
    copy_to_zarr(open_volume(source), tmp_path / "out.zarr", client=client)
    (level, *_) = list_levels(tmp_path / "out.zarr" / "labels" / "nuclei")
    assert level.grid.shape == SHAPE[1:]
    np.testing.assert_array_equal(
        voxels_of(tmp_path / "out.zarr" / "labels" / "nuclei"), nearest(labels, spacing, origin, level.grid)
    )


def test_labels_that_cannot_be_brought_along_are_named_and_the_image_is_made(client, tmp_path):
    source = write_image(
        tmp_path / "in.zarr",
        moved=(label_voxels(), multiscale("zyx", SPACING[1:], [7.0, 50.0, 1.25])),
        real=(label_voxels().astype("f4"), multiscale("zyx", SPACING[1:], ORIGIN[1:])),
        gone=(label_voxels(), multiscale("zyx", SPACING[1:], ORIGIN[1:])),
        flat=(label_voxels()[0], multiscale("yx", SPACING[2:], ORIGIN[2:])),
    )
    (source / "labels" / "gone" / "zarr.json").write_text("{")
    volume = open_volume(source)
    assert volume.labels == ()
    dropped = " ".join(volume.dropped)
    flat = "labels/flat (their spatial axes are y,x, those of the image z,y,x)"
    for reason in ("labels/moved (they cover another place", "labels/real (voxels are float32", "labels/gone (", flat):
        assert reason in dropped
    copy_to_zarr(volume, tmp_path / "out.zarr", client=client)
    assert read_provenance(tmp_path / "out.zarr")["dropped"] == list(volume.dropped)
    assert not (tmp_path / "out.zarr" / "labels").exists()


def test_a_run_that_stopped_among_the_labels_goes_on_with_them(client, tmp_path, monkeypatch):
    from svision_dask.running import image

    entry = multiscale("zyx", SPACING[1:], ORIGIN[1:])
    source = write_image(tmp_path / "in.zarr", one=(label_voxels(), entry), two=(label_voxels()[::-1], entry))
    whole, output = image.list_labels, tmp_path / "out.zarr"

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(image, "list_labels", stopped)
    with pytest.raises(KeyboardInterrupt):
        copy_to_zarr(open_volume(source), output, client=client)
    with pytest.raises(ValueError, match="unfinished"):
        open_volume(output)
    monkeypatch.setattr(image, "list_labels", whole)
    made = (output / "labels" / "one" / "zarr.json").stat().st_mtime_ns
    copy_to_zarr(open_volume(source), output, client=client, resume=True)
    assert (output / "labels" / "one" / "zarr.json").stat().st_mtime_ns == made
    np.testing.assert_array_equal(voxels_of(output / "labels" / "two"), label_voxels()[::-1])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_groups_on_the_way_to_labels_have_metadata(client, tmp_path, version):
    entry = multiscale("zyx", SPACING[1:], ORIGIN[1:])
    labels = {"a/b/nuclei": (label_voxels(), entry), "a/cells": (label_voxels(), entry)}
    source, output = write_image(tmp_path / "in.zarr", version, **labels), tmp_path / "out.zarr"
    copy_to_zarr(open_volume(source), output, client=client, wishes=Wishes(version=version))
    group = zarr.open_group(output, mode="r")
    for path in ("labels/a", "labels/a/b"):
        assert isinstance(group[path], zarr.Group)
        metadata = output / path / ("zarr.json" if version == "0.5" else ".zgroup")
        assert [str(finding) for finding in check(output)] == []
        kept = metadata.read_bytes()
        metadata.unlink()
        for other in (".zattrs", ".zgroup"):
            (output / path / other).unlink(missing_ok=True)
        assert [f.problem for f in check(output)] == ["a folder on the way to an image that is no zarr group"]
        metadata.write_bytes(kept)


def test_damaged_labels_are_found_and_made_anew(client, tmp_path):
    entry = multiscale("zyx", SPACING[1:], ORIGIN[1:])
    source, output = write_image(tmp_path / "in.zarr", cells=(label_voxels(), entry)), tmp_path / "out.zarr"
    copy_to_zarr(open_volume(source), output, client=client)
    chunk = next(f for f in sorted((output / "labels" / "cells" / "0" / "c").rglob("*")) if f.is_file())
    chunk.write_bytes(b"")
    outcome = run("verify", output, "--reopen")
    assert outcome.exit_code == 1
    assert "labels/cells: level 0" in outcome.stdout
    copy_to_zarr(open_volume(source), output, client=client, resume=True)
    np.testing.assert_array_equal(voxels_of(output / "labels" / "cells"), label_voxels())
    assert run("verify", output).exit_code == 0


def test_labels_follow_the_times_that_are_chosen(client, tmp_path):
    axes, spacing, origin = "tzyx", [3.0, 1, 1, 1], [0.0] * 4
    labels = np.random.default_rng(0).integers(0, 9, (4, 3, 8, 8)).astype("u1")
    source = tmp_path / "in.zarr"
    group = write(source, "0.5", textured((4, 3, 8, 8)), multiscale(axes, spacing, origin))
    tell(group.create_group("labels"), "0.5", labels=["cells"])
    write(source / "labels" / "cells", "0.5", labels, multiscale(axes, spacing, origin))
    copy_to_zarr(open_volume(source, time="1:3"), tmp_path / "out.zarr", client=client)
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.zarr" / "labels" / "cells"), labels[1:3])


# ---- how it is shown, and what others wrote


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_colours_and_windows_are_kept_and_what_is_missing_is_measured(client, tmp_path, version):
    volume = open_volume(write_image(tmp_path / "in.zarr", version))
    copy_to_zarr(volume, tmp_path / "out.zarr", client=client, wishes=Wishes(version=version))
    first, second = ome(tmp_path / "out.zarr")["omero"]["channels"]
    assert (first["label"], first["color"], first["active"]) == ("DAPI", "0000FF", True)
    assert first["window"] == {"min": 0, "max": 4095, "start": 120, "end": 900}
    assert (second["label"], second["color"], second["active"]) == ("GFP", "12AB34", False)
    voxels = textured(SHAPE)[1]
    assert (second["window"]["min"], second["window"]["max"]) == (voxels.min(), voxels.max())


def test_a_window_without_its_limits_keeps_what_is_shown(client, tmp_path):
    group = zarr.open_group(write_image(tmp_path / "in.zarr"))
    described = group.attrs.asdict()["ome"]
    windows = [{"start": 120, "end": 900}, {"min": 0, "start": -5, "end": 60000}]
    for channel, window in zip(described["omero"]["channels"], windows, strict=True):
        channel["window"] = window
    group.attrs["ome"] = described
    copy_to_zarr(open_volume(tmp_path / "in.zarr"), tmp_path / "out.zarr", client=client)
    first, second = (channel["window"] for channel in ome(tmp_path / "out.zarr")["omero"]["channels"])
    voxels = textured(SHAPE)
    assert first == {"min": min(voxels[0].min(), 120), "max": max(voxels[0].max(), 900), "start": 120, "end": 900}
    assert second == {"min": -5, "max": 60000, "start": -5, "end": 60000}


def test_with_another_dtype_the_limits_are_those_of_the_voxels_and_what_is_shown_stays(client, tmp_path):
    source = write_image(tmp_path / "in.zarr")
    output = tmp_path / "out.zarr"
    enhance_to_zarr(source, output, model=fast((1, 2, 2), channels=2), dtype="float32", client=client)
    window = ome(output)["omero"]["channels"][0]["window"]
    fine = voxels_of(output)[0]
    assert (window["start"], window["end"]) == (120, 900)
    assert (window["min"], window["max"]) == (min(fine.min(), 120), max(fine.max(), 900))


def test_attributes_of_other_programs_are_carried_or_named_as_dropped(client, tmp_path):
    volume = open_volume(write_image(tmp_path / "in.zarr"))
    assert set(volume.dropped) == {"multiscales.oddity", "omero.rdefs", "omero.channels.coefficient"}
    copy_to_zarr(volume, tmp_path / "out.zarr", client=client)
    attributes = zarr.open_group(tmp_path / "out.zarr", mode="r").attrs.asdict()
    assert attributes["acquisition"] == {"laser": 488}
    assert attributes["svision_dask"]["dropped"] == list(volume.dropped)


def test_the_command_line_says_what_is_dropped(tmp_path):
    source = write_image(tmp_path / "in.zarr")
    outcome = run("convert", source, tmp_path / "out.zarr", "--codec", "blosc:9", "--pyramid", "none")
    assert outcome.exit_code == 0, outcome.stderr
    assert describe_omezarr(tmp_path / "out.zarr").levels[0].compressors[0] == "blosc-zstd"
    assert "dropped  multiscales.oddity, omero.rdefs, omero.channels.coefficient" in outcome.stderr
    assert "dropped  multiscales.oddity" in run("info", source).stdout


# ---- pyramids and codecs


def plain(tmp_path: Path, shape: tuple[int, ...], levels: int = 1, step: tuple[float, ...] = (2, 2, 2)) -> Path:
    entry = multiscale("zyx", [1.0] * 3, [0.0] * 3)
    first = entry["datasets"][0]
    group = write(tmp_path / "plain.zarr", "0.5", textured(shape), entry)
    for level in range(1, levels):
        scale = [s**level for s in step]
        made = tuple(max(1, int(n / s)) for n, s in zip(shape, scale, strict=True))
        group.create_array(str(level), shape=made, dtype="u2", chunks=made, dimension_names=list("zyx"))
        entry["datasets"].append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    first["coordinateTransformations"] = first["coordinateTransformations"][:1]
    tell(group, "0.5", multiscales=[entry])
    return tmp_path / "plain.zarr"


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("isotropic", [(270, 8, 530), (135, 4, 265), (68, 2, 133)]),
        ("xy", [(270, 8, 530), (270, 4, 265), (270, 2, 133)]),
        ("none", [(270, 8, 530)]),
        ("match", [(270, 8, 530), (270, 4, 177)]),
    ],
)
def test_a_pyramid_halves_the_axes_that_are_asked_for(client, tmp_path, kind, shapes):
    source = plain(tmp_path, (270, 8, 530), levels=2, step=(1, 2, 3))
    copy_to_zarr(open_volume(source), tmp_path / "out.zarr", client=client, wishes=Wishes(pyramid=kind))
    levels = list_levels(tmp_path / "out.zarr")
    assert [level.grid.shape for level in levels] == shapes
    corner, fine = levels[-1].grid.shape, textured((270, 8, 530)).astype("f8")
    step = tuple(round(s) for s in levels[-1].grid.spacing)
    assert levels[-1].grid.origin == tuple((s - 1) / 2 for s in step)
    whole = tuple(n // s for n, s in zip(fine.shape, step, strict=True))
    blocks = fine[tuple(slice(0, n * s) for n, s in zip(whole, step, strict=True))]
    parts = [length for n, s in zip(whole, step, strict=True) for length in (n, s)]
    mean = blocks.reshape(parts).mean(axis=(1, 3, 5))
    found = voxels_of(tmp_path / "out.zarr", len(levels) - 1)
    assert found.shape == corner
    np.testing.assert_allclose(found[tuple(slice(0, n) for n in whole)], mean, atol=0.5 * len(levels))


def test_a_pyramid_that_cannot_be_matched_is_refused_before_any_work(tmp_path):
    for number, (levels, step, why) in enumerate([(2, (1, 1.5, 2), "not whole steps apart"), (1, (2,) * 3, None)]):
        (tmp_path / str(number)).mkdir()
        source = plain(tmp_path / str(number), (8, 40, 41), levels=levels, step=step)
        if why:
            outcome = run("plan", source, "--pyramid", "match")
            assert outcome.exit_code == 2
            assert why in outcome.error
        else:
            assert run("plan", source, "--pyramid", "match").exit_code == 0


def test_a_step_that_is_off_by_a_rounded_shape_is_taken_for_whole():
    from svision_dask.omezarr.pyramid import whole_steps

    assert whole_steps([(1, 1), (2.016, 1.0), (4.03, 2.032)]) == ((2, 1), (2, 2))
    assert whole_steps([(1, 1), (1.5, 1.0)]) is None


CODECS = {
    "zstd:3": ({"id": "zstd", "level": 3}, ["bytes", "zstd"]),
    "gzip": ({"id": "gzip", "level": 5}, ["bytes", "gzip"]),
    "blosc:9": ({"id": "blosc", "cname": "zstd", "clevel": 9, "shuffle": 2}, ["bytes", "blosc", "crc32c"]),
    "none": (None, ["bytes", "crc32c"]),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_chunks_are_compressed_as_asked(client, tmp_path, codec, version):
    volume, output = open_volume(plain(tmp_path, (5, 20, 21))), tmp_path / "out.zarr"
    copy_to_zarr(volume, output, client=client, wishes=Wishes(codec=parse_codec(codec), version=version))
    np.testing.assert_array_equal(voxels_of(output), textured((5, 20, 21)))
    v2, v3 = CODECS[codec]
    if version == "0.4":
        said = json.loads((output / "0" / ".zarray").read_text())["compressor"]
        assert said == v2 or {k: said[k] for k in v2} == v2
    else:
        (sharding,) = json.loads((output / "0" / "zarr.json").read_text())["codecs"]
        assert [c["name"] for c in sharding["configuration"]["codecs"]] == v3


@pytest.mark.parametrize(("version", "said"), [("0.4", "zstd"), ("0.5", "blosc-zstd")])
def test_the_usual_codec_is_the_one_with_a_checksum(client, tmp_path, version, said):
    volume, output = open_volume(plain(tmp_path, (5, 20, 21))), tmp_path / "out.zarr"
    copy_to_zarr(volume, output, client=client, wishes=Wishes(version=version))
    assert describe_omezarr(output).levels[0].compressors == (said,) + ("crc32c",) * (version == "0.5")


@pytest.mark.parametrize("codec", ["zstd:0", "zstd:23", "lzma", "", "none:1", "zstd:x", "blosc:10"])
def test_a_codec_that_is_not_one_is_refused(tmp_path, codec):
    with pytest.raises(UsageError, match=r"--codec .*allowed are zstd:1–22, gzip:1–9, blosc:1–9, none"):
        parse_codec(codec)
