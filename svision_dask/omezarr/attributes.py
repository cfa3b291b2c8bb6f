"""The attributes of an OME-Zarr image: multiscales and display settings, built as validated objects."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import zarr
from ome_zarr_models.v04.axes import Axis
from ome_zarr_models.v04.multiscales import Dataset
from ome_zarr_models.v04.multiscales import Multiscale as MultiscaleV04
from ome_zarr_models.v04.omero import Channel, Omero, Window
from zarr.storage import MemoryStore

from svision_dask.errors import UsageError
from svision_dask.geometry import Grid
from svision_dask.omezarr.metadata import AXIS_TYPES
from svision_dask.volume import Shown
from svision_dask.wishes import Version

COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")
"""Neighbouring channels differ for colour-blind eyes, too: green and magenta first."""


def image_attributes(
    levels: Sequence[Grid],
    name: str,
    version: Version,
    *,
    channels: Sequence[str] = (),
    shown: Sequence[Shown] | None = None,
) -> dict[str, Any]:
    """Build the attributes of an image: multiscales, and display settings where ``shown`` is given.

    Raises
    ------
    UsageError
        If the number of channel names or displays is not the number of channels.
    """
    method = {"type": "mean", "metadata": {"method": "svision_dask.omezarr.pyramid.block_mean"}}
    published = _written_by_ome_zarr(_multiscale(levels, name, version, method), version)
    if shown is not None:
        published.get("ome", published)["omero"] = _omero(levels[0], name, channels, shown)
    return published


def label_attributes(
    levels: Sequence[Grid], name: str, version: Version, *, label: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the attributes of an image whose voxels are labels, and mean nothing but themselves."""
    method = {"type": "nearest", "metadata": {"method": "svision_dask.omezarr.labels.NearestSource"}}
    published = _written_by_ome_zarr(_multiscale(levels, name, version, method), version)
    # 0.4: "image-label … SHOULD contain … version"; 0.5 has one version for all, in "ome".
    published.get("ome", published)["image-label"] = {**label, **({"version": "0.4"} if version == "0.4" else {})}
    return published


def _multiscale(levels: Sequence[Grid], name: str, version: Version, method: Mapping[str, Any]) -> dict[str, Any]:
    """Build the multiscales entry as a validated object, and return its JSON."""
    axes = [
        Axis(name=axis, type=AXIS_TYPES[axis], unit=unit)
        for axis, unit in zip(levels[0].axes, levels[0].units, strict=True)
    ]
    datasets = [
        Dataset.build(path=str(number), scale=grid.spacing, translation=grid.origin)
        for number, grid in enumerate(levels)
    ]
    entry = MultiscaleV04(
        axes=tuple(axes),
        datasets=tuple(datasets),
        name=name,
        version="0.4",
        **method,
    )
    model = entry if version == "0.4" else entry.to_version("0.5")
    dumped: dict[str, Any] = model.model_dump(mode="json", exclude_none=True)
    return dumped


def _written_by_ome_zarr(entry: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """Let ome-zarr-py lay out a validated entry, in memory: on disk it would take several writes, not one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # ome_zarr deprecates classes of its own as it is imported
        from ome_zarr.format import format_from_version
        from ome_zarr.writer import write_multiscales_metadata

        form = format_from_version(version)
        group = zarr.create_group(MemoryStore(), zarr_format=form.zarr_format)
        write_multiscales_metadata(
            group,
            entry["datasets"],
            fmt=form,
            axes=[{key: value for key, value in axis.items() if key != "unit"} for axis in entry["axes"]],
            axes_units={axis["name"]: axis["unit"] for axis in entry["axes"] if "unit" in axis},
            name=entry["name"],
            metadata=entry["metadata"],
        )
    written: dict[str, Any] = dict(group.attrs.asdict())
    # "multiscales" dictionaries SHOULD also contain the field "type" (OME-Zarr 0.5, 2.4); ome-zarr-py leaves it out.
    written.get("ome", written)["multiscales"][0]["type"] = entry["type"]
    return written


def _omero(grid: Grid, name: str, channels: Sequence[str], shown: Sequence[Shown]) -> dict[str, Any]:
    """Build the display settings of all channels as a validated object, and return its JSON."""
    count = grid.shape[grid.axes.index("c")] if "c" in grid.axes else 1
    labels = list(channels) or ([name] if count == 1 else [str(i) for i in range(count)])
    if not len(labels) == len(shown) == count:
        raise UsageError(
            f"{len(labels)} channel names and {len(shown)} windows for {count} channels. Give one for each channel."
        )
    colours = ["FFFFFF"] if count == 1 else [COLOURS[i % len(COLOURS)] for i in range(count)]
    settings = [
        Channel.model_validate(
            {"label": label, "active": each.active, "color": each.colour or colour, "window": _window(each)}
        )
        for label, colour, each in zip(labels, colours, shown, strict=True)
    ]
    dumped: dict[str, Any] = Omero(channels=settings).model_dump(mode="json")
    return dumped


def _window(shown: Shown) -> Window:
    assert shown.window is not None
    low, high, start, end = shown.window
    assert low is not None
    assert high is not None
    return Window(min=low, max=high, start=start, end=end)
