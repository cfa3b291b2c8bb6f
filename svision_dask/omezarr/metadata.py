"""The metadata of OME-Zarr images, up to 0.4 (zarr v2) and 0.5 (zarr v3): read, checked, and put into plain values.

The published models of ome-zarr-models do the checking; they do not leave this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zarr
from ome_zarr_models.common.coordinate_transformations import VectorScale, VectorTranslation
from ome_zarr_models.v04.multiscales import Multiscale as MultiscaleV04
from ome_zarr_models.v05.multiscales import Multiscale as MultiscaleV05
from pydantic import ValidationError

from svision_dask.errors import ImageError, UnsupportedError
from svision_dask.geometry import AXES, Shape, Vector
from svision_dask.omezarr.extras import carried_attributes, dropped_attributes, read_shown, whole_text
from svision_dask.stores.locations import Location, Remote, Zipped, located
from svision_dask.stores.remote_store import METADATA_FILES, store_at
from svision_dask.stores.transfer import METADATA_BYTES
from svision_dask.volume import Shown

PROVENANCE = "svision_dask"
"""The attribute of a group in which svision-dask says how the image was made, and whether it is finished."""
AXIS_TYPES = dict(zip(AXES, ["time", "channel", "space", "space", "space"], strict=True))
CONTAINERS = {"bioformats2raw.layout": 1, "plate": 3, "well": 1, "labels": 1}
"""Attributes of groups that hold images, and how many folders down the images are."""

OLD_VERSIONS = ("0.1", "0.2", "0.3")
"""Of OME-Zarr, in zarr v2: without any spacing."""

Multiscale = MultiscaleV04 | MultiscaleV05
Attributes = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where one level is, in the image and in the world."""

    path: str
    spacing: Vector
    origin: Vector


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What the group of an image says; nothing about its arrays is known yet."""

    path: Location
    zarr_format: Literal[2, 3]
    version: str
    """Of OME-Zarr."""
    name: str
    axes: str
    """In the one order that volumes have, as is all that follows but ``axis_names``."""
    axis_names: tuple[str, ...]
    """As written in the file, in the order in which they are stored."""
    order: Shape
    """For each of ``axes``, which stored axis it is."""
    units: tuple[str | None, ...]
    datasets: tuple[Dataset, ...]
    """One per level, finest first."""
    labels: tuple[str, ...]
    """Channel names of the display settings; they may be fewer or more than the channels."""
    shown: tuple[Shown, ...]
    """As the display settings say, likewise."""
    provenance: Attributes
    carried: Attributes
    """What other programs wrote beside all that."""
    dropped: tuple[str, ...]
    """What outputs will not have."""


def is_omezarr(path: str | Location) -> bool:
    """Whether ``path`` is a zarr folder; cheap, and no promise that it holds an image."""
    return any((located(path) / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup"))


def read_metadata(path: Location) -> Metadata:
    """Read and check the multiscales metadata of the group at ``path``.

    Raises
    ------
    ImageError
        If there are none, they break the specification, or they leave open what the axes or the spacing are.
    """
    zarr_format, attributes = read_attributes(path)
    provenance = _mapping(attributes.get(PROVENANCE))
    if provenance.get("state") == "incomplete":
        raise ImageError(f"{path} is an unfinished output of svision-dask. Run the command that makes it again.")
    ome = _mapping(attributes.get("ome")) if zarr_format == 3 else attributes
    multiscale = _parse_multiscale(path, zarr_format, ome)
    stored = _stored_axes(path, multiscale)
    order = tuple(stored.index(axis) for axis in AXES if axis in stored)
    units = [a.unit if isinstance(a.unit, str) and a.unit else None for a in multiscale.axes]
    return Metadata(
        path=path,
        zarr_format=zarr_format,
        version=str(_version(zarr_format, ome)),
        name=_name(path, multiscale),
        axes="".join(in_order(stored, order)),
        axis_names=tuple(str(axis.name) for axis in multiscale.axes),
        order=order,
        units=in_order(units, order),
        datasets=_datasets(path, multiscale, order),
        labels=_labels(ome.get("omero")),
        shown=read_shown(ome.get("omero")),
        provenance=provenance,
        carried=carried_attributes(attributes),
        dropped=dropped_attributes(zarr_format, attributes),
    )


def in_order(stored: Sequence[Any], order: Shape) -> tuple[Any, ...]:
    """Put what is stored, one for each axis, into ``order``."""
    return tuple(stored[axis] for axis in order)


def read_provenance(path: str | Location) -> Attributes:
    """Read what svision-dask wrote about a store, finished or not; empty if it is not one of ours.

    Raises
    ------
    ImageError
        If there is no zarr group at ``path``, or its metadata cannot be read.
    """
    return _mapping(read_attributes(located(path))[1].get(PROVENANCE))


def read_attributes(path: Location) -> tuple[Literal[2, 3], Attributes]:
    """Read the zarr format and the attributes of the group at ``path``.

    Raises
    ------
    ImageError
        If there is no zarr group, or its metadata cannot be read.
    """
    try:
        zarr_format = _zarr_format(path)
    except OSError as error:  # of a server
        raise ImageError(f"{path} cannot be read: {error.strerror}. Check the URL, then try again.") from error
    check_files(path, path)
    try:
        # A consolidated copy of the metadata may be older than the metadata.
        group = zarr.open_group(store_at(path), mode="r", zarr_format=zarr_format, use_consolidated=False)
        return zarr_format, group.attrs.asdict()
    except Exception as error:  # damaged metadata make zarr raise nearly anything
        raise ImageError(f"{path}: the metadata of the zarr group cannot be read: {first_problem(error)}.") from error


def check_files(folder: Location, root: Location) -> None:
    """Refuse metadata that would fill the memory before anybody has looked at them, or are links out of ``root``.

    At a URL, the store does, as it reads them.
    """
    for file in (folder / name for name in METADATA_FILES):
        if isinstance(file, Zipped):
            file.is_file()
        elif isinstance(file, Path) and isinstance(root, Path) and file.is_file():
            check_inside(file, root)
            size = file.stat().st_size
            if size > METADATA_BYTES:
                raise ImageError(f"{file}: {size} bytes of metadata; allowed are {METADATA_BYTES}. Give another image.")


def check_inside(file: Path, root: Path) -> None:
    """Refuse a file that is not in ``root`` when links are followed.

    Raises
    ------
    ImageError
        If it is not.
    """
    if not file.resolve().is_relative_to(root.resolve()):
        raise ImageError(
            f"{file} lies outside the image, behind a symbolic link. Copy what it leads to into the image."
        )


def _zarr_format(path: Location) -> Literal[2, 3]:
    """Find out which zarr the group at ``path`` is of."""
    if not isinstance(path, Remote) and not path.exists():
        raise ImageError(f"{path} does not exist. Give the folder of an OME-Zarr image.")
    version_3 = (path / "zarr.json").is_file()
    if (not version_3 or not isinstance(path, Remote)) and (path / ".zarray").is_file():
        raise ImageError(
            f"{path} is a single zarr array. Give the OME-Zarr image that holds it, such as {path.parent}."
        )
    if not version_3 and not is_omezarr(path):
        raise ImageError(
            f"{path} is not a zarr group: {_nothing_at(path)}no zarr.json, .zgroup or .zattrs in it. "
            "Give an OME-Zarr image."
        )
    return 3 if version_3 else 2


def _nothing_at(path: Location) -> str:
    """Say why there may be nothing to see, where a server has said so."""
    try:
        _ = isinstance(path, Remote) and (path / "zarr.json").read_bytes()
    except PermissionError as error:
        return f"{error.strerror} Or there is "
    except FileNotFoundError:
        pass
    return ""


def folder_inside(root: Location, path: str, where: str) -> Location:
    """Resolve the folder of an array or an image, which must be inside ``root``: metadata must not open other files.

    Raises
    ------
    ImageError
        If the path leads elsewhere, also by a symbolic link; the message begins with ``where``.
    """
    if {"", ".", ".."} & set(path.split("/")) or any(s in path for s in ("\\", "://", "\0")):
        raise ImageError(f"{where}: the path of an array must lead down from the image. Repair the metadata.")
    if isinstance(root, Remote):
        return root / path
    folder = root.absolute() / path
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ImageError(f"{where}: the array lies outside the image, behind a symbolic link. Copy it into the image.")
    return folder


def first_problem(error: Exception) -> str:
    """Put the first problem that ``error`` names on one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), " ".join(first["msg"].split())])
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _parse_multiscale(path: Location, zarr_format: int, ome: Attributes) -> Multiscale:
    """Validate the one multiscales entry with the published model of its version."""
    entries = ome.get("multiscales")
    if not isinstance(entries, list) or not entries:
        raise ImageError(_why_no_image(path, ome))
    if len(entries) > 1:
        raise UnsupportedError(
            f"{path} holds {len(entries)} multiscales; which one is meant is not ours to guess. Keep one."
        )
    entry = _mapping(entries[0])
    stated = version = _version(zarr_format, ome)
    if zarr_format == 2 and version in OLD_VERSIONS:
        version, entry = "0.4", _from_old(entry)
    if version != ("0.5" if zarr_format == 3 else "0.4"):
        raise ImageError(
            f"{path}: OME-Zarr {stated!r} in zarr v{zarr_format}; allowed are '0.1' to '0.4' in v2 and '0.5' in v3. "
            "Convert it."
        )
    model = MultiscaleV05 if zarr_format == 3 else MultiscaleV04
    try:
        return model.model_validate({**entry, "axes": _with_types(entry.get("axes"))})
    except Exception as error:  # validators of the models can meet values that they did not expect
        raise ImageError(
            f"{path}: the metadata are not valid OME-Zarr {stated}: {first_problem(error)}. Repair them."
        ) from error


def _version(zarr_format: int, ome: Attributes) -> Any:
    """Take the version: 0.5 has it beside the multiscales; 0.4 has it inside, where it may be missing."""
    return ome.get("version") if zarr_format == 3 else _mapping(ome["multiscales"][0]).get("version", "0.4")


def _from_old(entry: Attributes) -> Attributes:
    """Put an entry of 0.1, 0.2 or 0.3 as 0.4 has it: level 0 only, because these never say where coarser levels are.

    0.1, 0.2: "the array MUST be 5-dimensional … in the order (t, c, z, y, x)"; 0.3: "axes" is a list of names.
    """
    axes, datasets = entry.get("axes", list(AXES)), entry.get("datasets")
    names = axes if isinstance(axes, list) and all(isinstance(each, str) for each in axes) else []
    first = datasets[:1] if isinstance(datasets, list) else []
    scale = [{"type": "scale", "scale": [1.0] * len(names)}]
    return {
        **{key: value for key, value in entry.items() if key == "name"},
        "axes": [{"name": name} for name in names],
        "datasets": [{"path": _mapping(each).get("path"), "coordinateTransformations": scale} for each in first],
    }


def _with_types(axes: Any) -> Any:
    """Fill in missing types: an axis only SHOULD have one, and the five names we accept imply it."""
    if not isinstance(axes, list) or not all(isinstance(a, dict) for a in axes):
        return axes
    return [{"type": AXIS_TYPES.get(str(a.get("name")).lower()), **a} for a in axes]


def _stored_axes(path: Location, multiscale: Multiscale) -> str:
    """Join the names of the axes as they are stored, checked against tczyx and against their types.

    OME-Zarr 0.4, 0.5: the axes "MUST be ordered by "type"", which the models check, but "the spatial axes SHOULD be
    ordered as "zyx"".
    """
    names = [str(axis.name).lower() for axis in multiscale.axes]
    types = [axis.type for axis in multiscale.axes]
    if not set(names) <= set(AXES) or types != [AXIS_TYPES[name] for name in names]:
        given = ", ".join(f"{name} ({kind})" for name, kind in zip(names, types, strict=True))
        raise UnsupportedError(
            f"{path} has axes {given}; allowed are t (time), c (channel) and z, y, x (space). Rename them."
        )
    if len(set(names)) < len(names) or not {"y", "x"} <= set(names):
        raise UnsupportedError(
            f"{path} has axes {','.join(names)}; allowed is a subset of t,c,z,y,x with y and x, each once. Rename them."
        )
    return "".join(names)


def _datasets(path: Location, multiscale: Multiscale, order: Shape) -> tuple[Dataset, ...]:
    """Place every level: by its own transformations, then by those of the whole pyramid; axes come in ``order``."""
    ndim = len(multiscale.axes)
    outer = _scale_and_translation(path, multiscale.coordinateTransformations or (), ndim)
    placed = []
    for dataset in multiscale.datasets:
        spacing, origin = _scale_and_translation(path, dataset.coordinateTransformations, ndim)
        # 0.5: those of the multiscales "are applied after" those of the dataset, "to all resolution levels".
        spacing = tuple(s * f for s, f in zip(spacing, outer[0], strict=True))
        origin = tuple(o * f + t for o, f, t in zip(origin, *outer, strict=True))
        where = f"{path}, level {dataset.path!r}"
        if not all(math.isfinite(s) and s > 0 for s in spacing):
            raise ImageError(f"{where}: spacing {spacing}; allowed are finite numbers above 0. Repair the metadata.")
        if not all(map(math.isfinite, origin)):
            raise ImageError(f"{where}: origin {origin}; allowed are finite numbers. Repair the metadata.")
        placed.append(Dataset(path=dataset.path, spacing=in_order(spacing, order), origin=in_order(origin, order)))
    return tuple(placed)


def _scale_and_translation(path: Location, transformations: Sequence[Any], ndim: int) -> tuple[Vector, Vector]:
    """Take the vectors out of a validated (scale, translation), (scale,) or ()."""
    scale, translation = (1.0,) * ndim, (0.0,) * ndim
    for transformation in transformations:
        if isinstance(transformation, VectorScale):
            scale = tuple(transformation.scale)
        elif isinstance(transformation, VectorTranslation):
            translation = tuple(transformation.translation)
        else:
            raise UnsupportedError(
                f"{path}: a {transformation.type} that is kept in a file is not supported. Write its numbers."
            )
    return scale, translation


def _labels(omero: Any) -> tuple[str, ...]:
    channels = _mapping(omero).get("channels")
    labels = [_mapping(c).get("label") for c in channels] if isinstance(channels, list) else []
    strings = [whole_text(label) for label in labels if isinstance(label, str)]
    return tuple(strings) if len(strings) == len(labels) else ()


def _name(path: Location, multiscale: Multiscale) -> str:
    """Name in the metadata, or else of the folder; some writers name an image after zarr's root group, "/"."""
    name = multiscale.name
    if isinstance(name, str) and name.strip("/ "):
        return whole_text(name)
    return path.absolute().name.removesuffix(".zarr").removesuffix(".ome")


def _why_no_image(path: Location, ome: Attributes) -> str:
    """Say what a group without multiscales is, and where the images below it are if it is a container."""
    for kind, depth in CONTAINERS.items():
        if kind in ome:
            child = _first_below(path, depth)
            return f"{path} holds several images ({kind.split('.')[0]}). Give one of them, such as {child}."
    return f"{path} is a zarr group without multiscales metadata, so not an OME-Zarr 0.4 or 0.5 image. Give one."


def _first_below(path: Location, depth: int) -> Location:
    for _ in range(depth):
        inside = path.iterdir() if not isinstance(path, Remote) and path.is_dir() else ()
        path = min((p for p in inside if is_omezarr(p)), default=path / "0")
    return path


def _mapping(value: Any) -> Attributes:
    return value if isinstance(value, dict) else {}
