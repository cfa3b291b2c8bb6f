"""Files with anything in them are opened, or refused in one line; ``benchmarks/soak/fuzz.py`` does it for hours."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from svision_dask.errors import SvisionError
from svision_dask.network.model import load_model
from svision_dask.opening.formats import open_volume
from tests.models import fast
from tests.test_labels import multiscale
from tests.test_omezarr import JSON, places

pytestmark = pytest.mark.faults
LOOKED_AT = 40
"""Voxels along each axis that are read: damage can declare any number."""
VOXELS = np.arange(2 * 3 * 20 * 24, dtype="u2").reshape(2, 3, 20, 24)
WRITTEN: dict[str, dict[str, Any]] = {
    "OME": {"ome": True, "metadata": {"axes": "CZYX", "PhysicalSizeX": 0.5, "Channel": {"Name": ["a", "b"]}}},
    "ImageJ": {"imagej": True, "metadata": {"axes": "ZCYX", "spacing": 2.0, "unit": "um"}, "resolution": (2, 2)},
    "tiles": {"tile": (16, 16), "compression": "zlib", "predictor": True, "metadata": {"axes": "CZYX"}},
    "strips": {"rowsperstrip": 7, "compression": "lzw", "metadata": None},
    "big": {"bigtiff": True, "metadata": {"axes": "CZYX"}},
}
AXES = {"strips": "zyx"}
"""Of those that do not say."""
CHANGES = st.lists(st.tuples(st.integers(0, 2**14), st.integers(0, 255)), min_size=1, max_size=5)
"""Where, and what is put there."""
ODD = ["", "0", "-1", "1e999", "nan", "1e-320", "9" * 400, "µm", "pixel", "\\u00B5m", "&#0;", "XYZCT", "uint16", "24"]
VALUES = st.sampled_from(ODD) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=4)
SIZES = [f"Size{axis}" for axis in "XYZCT"]
PIXELS = [*SIZES, "DimensionOrder", "Type", "PhysicalSizeX", "PhysicalSizeYUnit", "TimeIncrement"]
KEYS = ["images", "channels", "slices", "frames", "spacing", "unit", "yunit", "zunit", "finterval", "tunit", "min"]


@cache
def written(kind: str) -> bytes:
    """A TIFF that is as it should be."""
    file = io.BytesIO()
    tifffile.imwrite(file, VOXELS, photometric="minisblack", **WRITTEN[kind])
    return file.getvalue()


def described(text: str) -> bytes:
    """A TIFF of six planes that says ``text`` of itself."""
    file = io.BytesIO()
    tifffile.imwrite(file, VOXELS.reshape(6, 20, 24), description=text.encode(), metadata=None)
    return file.getvalue()


def changed(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    """With some bytes that are others; most of those that count are at the beginning, or at the end."""
    damaged = bytearray(content)
    for place, value in changes:
        damaged[(place if place < 2**13 else 2**13 - place) % len(damaged)] = value
    return bytes(damaged)


def look(name: str, content: bytes, use: Callable[[Path], object]) -> str:
    """Use a file; what is said of it must be an error of ours, and one line. Nothing where it is as it should be."""
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            use(path)
        except SvisionError as error:
            said = str(error)
    assert "\n" not in said, said
    return said


def read_some(path: Path, axes: str | None = None) -> None:
    """Read the first voxels."""
    volume = open_volume(path, axes=axes)
    volume.read(tuple(slice(0, min(n, LOOKED_AT)) for n in volume.grid.shape))


@pytest.mark.parametrize("kind", WRITTEN)
def test_files_without_damage_are_read(kind: str) -> None:
    assert look("a.tif", written(kind), lambda path: read_some(path, AXES.get(kind))) == ""


@given(kind=st.sampled_from(sorted(WRITTEN)), changes=CHANGES)
@settings(deadline=None, max_examples=150)
def test_tiffs_with_other_bytes(kind: str, changes: list[tuple[int, int]]) -> None:
    look("a.tif", changed(written(kind), changes), lambda path: read_some(path, AXES.get(kind)))


@given(pixels=st.dictionaries(st.sampled_from(PIXELS), VALUES, max_size=4), channels=st.lists(VALUES, max_size=3))
@settings(deadline=None, max_examples=100)
def test_tiffs_with_any_ome_xml(pixels: dict[str, str], channels: list[str]) -> None:
    sizes = {"SizeX": "24", "SizeY": "20", "SizeZ": "6", "SizeC": "1", "SizeT": "1"}
    stated = {"DimensionOrder": "XYZCT", "Type": "uint16", **sizes, **pixels}
    attributes = " ".join(f'{name}="{value}"' for name, value in stated.items())
    named = "".join(f'<Channel ID="Channel:0:{n}" Name="{name}"/>' for n, name in enumerate(channels))
    root = 'OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
    inside = f'<Image ID="Image:0"><Pixels ID="Pixels:0" {attributes}>{named}<TiffData/></Pixels></Image>'
    look("a.ome.tif", described(f'<?xml version="1.0" encoding="UTF-8"?><{root}>{inside}</OME>'), read_some)


@given(keys=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
@settings(deadline=None, max_examples=100)
def test_tiffs_with_any_keys_of_imagej(keys: dict[str, str]) -> None:
    lines = {"ImageJ": "1.54", "images": "6", "slices": "6", **keys}
    look("a.tif", described("\n".join(f"{name}={value}" for name, value in lines.items())), read_some)


@given(
    shape=st.lists(st.integers(-3, 2**40), max_size=7), keys=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4)
)
@settings(deadline=None, max_examples=100)
def test_tiffs_with_any_json(shape: list[int], keys: dict[str, Any]) -> None:
    text = json.dumps({"shape": shape or [6, 20, 24], "axes": "ZYX", **keys})
    look("a.tif", described(text), read_some)


@cache
def model() -> tuple[bytes, int]:
    """A model, and where its header ends."""
    content = fast((2, 2, 2)).to_bytes()
    return content, 8 + int.from_bytes(content[:8], "little")


@given(changes=CHANGES, cut=st.none() | st.integers(0, 200))
@settings(deadline=None, max_examples=60)
def test_models_with_other_headers(changes: list[tuple[int, int]], cut: int | None) -> None:
    content, end = model()
    damaged = changed(content[:end], changes) + content[end:]
    look("a.safetensors", damaged[: None if cut is None else max(0, end - cut)], load_model)


@cache
def documents() -> dict[str, Any]:
    """The metadata of an image and of its array."""
    with tempfile.TemporaryDirectory() as folder:
        group = zarr.create_group(folder, zarr_format=3)
        group.create_array("0", shape=(3, 20, 24), chunks=(3, 8, 8), dtype="u2", dimension_names=["z", "y", "x"])
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale("zyx", [1.0] * 3, [0.0] * 3)]}
        return {name: json.loads((Path(folder) / name).read_text()) for name in ("zarr.json", "0/zarr.json")}


@given(data=st.data(), name=st.sampled_from(["zarr.json", "0/zarr.json"]), junk=JSON)
@settings(deadline=None, max_examples=100)
def test_omezarrs_with_any_metadata(data: st.DataObject, name: str, junk: Any) -> None:
    texts = {each: json.dumps(known) for each, known in documents().items()}
    inner = damaged = json.loads(texts[name])
    place = data.draw(st.sampled_from([place for place in places(damaged) if place]))
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    texts[name] = json.dumps(damaged)

    def use(path: Path) -> None:
        (path.parent / "0").mkdir()
        for each, text in texts.items():
            (path.parent / each).write_text(text)
        volume = open_volume(path.parent, missing="empty")
        volume.read(tuple(slice(0, min(n, LOOKED_AT)) for n in volume.grid.shape))

    look("zarr.json", b"", use)
