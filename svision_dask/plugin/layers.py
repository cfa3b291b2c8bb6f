"""From layers of napari to volumes, and back to layers in the same place of the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from svision_dask.errors import UsageError
from svision_dask.geometry import AXES, SPATIAL
from svision_dask.opening.in_memory import open_array

if TYPE_CHECKING:
    from napari.layers import Image

    from svision_dask.plugin.work import Enhanced
    from svision_dask.volume import Volume

USUAL = {2: "yx", 3: "zyx", 4: "tzyx"}
"""Axes of layers without names for them; channels are layers of their own."""
SAME = ("contrast_limits", "colormap", "gamma", "rotate", "shear", "affine")
"""What a new layer has of the one that it was made of."""


def volume_of(layer: Image, axes: str | None = None) -> Volume:
    """Take the voxels of a layer, at its finest level, for a volume that is where the layer is.

    Parameters
    ----------
    layer
        Of numpy or lazy arrays.
    axes
        Of its dimensions; by default as it names them, or else the usual ones.

    Raises
    ------
    UsageError
        If it has colours for voxels, or its axes are not known.
    """
    if layer.rgb:
        raise UsageError(f"layer {layer.name}: a picture in colours. Split its channels: Layers, Split RGB.")
    named = "".join(name.lower() for name in layer.axis_labels)
    axes = axes or (named if set(named) <= set(AXES) else USUAL.get(layer.ndim))
    if axes is None or len(axes) != layer.ndim:
        raise UsageError(f"layer {layer.name}: axes {axes} for {layer.ndim} dimensions. Name them, such as tczyx.")
    spacing = {axis: float(s) for axis, s in zip(axes, layer.scale, strict=True) if axis in SPATIAL}
    volume = open_array(layer.data[0] if layer.multiscale else layer.data, axes=axes, spacing=spacing)
    units = tuple(None if str(unit) == "pixel" else str(unit) for unit in layer.units)
    origin = tuple(float(t) for t in layer.translate)
    path = layer.source.path
    return replace(
        volume,
        grid=replace(volume.grid, spacing=tuple(float(s) for s in layer.scale), origin=origin, units=units),
        name=layer.name,
        paths=(str(path),) if path else (),
    )


def check_straight(layer: Image) -> None:
    """Check that an OME-Zarr can say where a layer is.

    Raises
    ------
    UsageError
        If the layer is turned or sheared.
    """
    turn = _placed(layer, np.zeros(layer.ndim)).linear_matrix @ layer.affine.linear_matrix
    if not np.allclose(turn, np.eye(layer.ndim)) or np.any(layer.affine.translate):
        raise UsageError(f"layer {layer.name} is turned or sheared, which OME-Zarr does not hold. Write to memory.")


def fine_layer(made: Enhanced, volume: Volume, layer: Image | None) -> Mapping[str, Any]:
    """Say how to show what was made of a volume: arguments of ``Viewer.add_image``.

    ``layer`` is what the volume was taken from, if it was one.
    """
    grid = made.grid
    like = {} if layer is None else {name: getattr(layer, name) for name in SAME}
    translate = grid.origin
    if layer is not None:  # a layer is scaled, then turned and sheared, then moved
        translate = _placed(layer, layer.translate)(np.subtract(grid.origin, volume.grid.origin))
    return {
        **like,
        "data": made.levels if len(made.levels) > 1 else made.levels[0],
        "multiscale": len(made.levels) > 1,
        "name": f"{volume.name} enhanced",
        "scale": grid.spacing,
        "translate": translate,
        "units": [unit or "pixel" for unit in grid.units],
        "axis_labels": list(grid.axes) if layer is None else layer.axis_labels,
        "metadata": {"svision_dask": list(made.words)},
    }


def _placed(layer: Image, translate: Any) -> Any:
    """How napari turns, shears and then moves what it has scaled."""
    from napari.utils.transforms import Affine

    return Affine(rotate=layer.rotate, shear=layer.shear, translate=translate)
