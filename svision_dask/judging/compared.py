"""What is compared: a volume before and after, and perhaps a reference, checked to be of one place in the world."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.degradation import CUBIC, Degradation, Degrade
from svision_dask.errors import ImageError, ModelError
from svision_dask.geometry import FACTORS, SPATIAL, Shape, Vector, spatial_shape
from svision_dask.judging.picking import held, pick, pick_reference
from svision_dask.judging.seams import Cuts, regular_cuts
from svision_dask.network.model import Model, load_model
from svision_dask.omezarr.metadata import read_provenance
from svision_dask.omezarr.read import describe_omezarr, is_omezarr
from svision_dask.opening.formats import open_volume
from svision_dask.running.pipeline import model_path_beside
from svision_dask.stores.locations import Location, Remote, located
from svision_dask.training.psf import degradation_of
from svision_dask.volume import Volume, read_mirrored

Voxels = npt.NDArray[np.float32]

SAME_SPACING = 1e-3
"""Relative; files round their spacing."""
MOST_SHIFT = 0.1
"""Fine voxels by which AFTER may lie elsewhere than its shape says."""
ASSUMED = "AFTER does not say how coarse voxels came about, which is taken to be cubic; --degrade says otherwise"


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One channel and time point of a volume, as z, y, x; a plane is a stack of one."""

    volume: Volume
    picked: Mapping[str, int]
    """Which time point and channel, of those axes that there are."""

    @property
    def name(self) -> str:
        """What it was opened from, or is called."""
        return " + ".join(self.volume.paths) or self.volume.name

    @property
    def shape(self) -> Shape:
        """Voxels along z, y and x."""
        return spatial_shape(self.volume.grid.axes, self.volume.grid.shape)

    @property
    def spacing(self) -> Vector:
        """Along z, y and x; 1 where there is no z."""
        return self._along(self.volume.grid.spacing, 1.0)

    @property
    def origin(self) -> Vector:
        """Centre of voxel 0 along z, y and x; 0 where there is no z."""
        return self._along(self.volume.grid.origin, 0.0)

    @property
    def unit(self) -> str | None:
        """Unit of all spatial axes, or None if there is none, or more than one."""
        units = {self.volume.grid.units[i] for i in self.volume.grid.spatial}
        return units.pop() if len(units) == 1 else None

    @property
    def is_placed(self) -> bool:
        """Whether its file says how far apart voxels are."""
        grid = self.volume.grid
        return any(grid.units[i] or grid.spacing[i] != 1 for i in grid.spatial)

    def read(self, start: Shape, stop: Shape) -> Voxels:
        """Read (z, y, x); beyond the faces the volume goes on as its mirror image."""
        axes = self.volume.grid.axes
        first = tuple(start[SPATIAL.index(a)] if a in SPATIAL else self.picked[a] for a in axes)
        last = tuple(stop[SPATIAL.index(a)] if a in SPATIAL else self.picked[a] + 1 for a in axes)
        block = read_mirrored(self.volume, first, last)
        block = block[tuple(slice(None) if a in SPATIAL else 0 for a in axes)].astype(np.float32)
        if "z" in axes:
            return np.asarray(block)
        return np.broadcast_to(block, (stop[0] - start[0], *block.shape))

    def world(self, index: Shape) -> Vector:
        """World position of the centre of a voxel (z, y, x)."""
        return tuple(o + s * i for o, s, i in zip(self.origin, self.spacing, index, strict=True))

    def _along(self, values: Vector, missing: float) -> Vector:
        named = dict(zip(self.volume.grid.axes, values, strict=True))
        return tuple(named.get(axis, missing) for axis in SPATIAL)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Everything that is compared, and what is known of how it was made."""

    before: Stack
    after: Stack
    reference: Stack | None
    factor: Shape
    """Fine voxels per coarse voxel, along z, y and x."""
    how: Degradation | None
    """How coarse voxels come about; None where nobody knows."""
    cuts: Cuts | None
    """Where AFTER was cut; None where nobody knows."""
    provenance: Mapping[str, Any]
    """What AFTER says of itself; empty if svision-dask did not make it."""
    model: Model | None
    """What AFTER was made by, where it was kept beside it."""
    warnings: tuple[str, ...]


def find_compared(
    before: Volume | str | Location,
    after: Volume | str | Location,
    reference: Volume | str | Location | None = None,
    *,
    channel: int | str | None = None,
    time: int | None = None,
    degrade: Degrade | None = None,
    tile: Mapping[str, int] | None = None,
) -> Compared:
    """Open what is compared, and check that it is of one place.

    Parameters
    ----------
    before, after
        Coarse and fine: 1, 2 or 4 times as many voxels along each axis, on more than none of them.
    reference
        On the grid of ``after``.
    channel, time
        Which one of ``before``, counted from 0, or by name; by default, the first that ``after`` was made of.
    degrade
        How coarse voxels came about; by default, what ``after`` says it was made for, or cubic.
    tile
        Fine voxels per axis at whose multiples ``after`` was cut; by default, what it says, or how it is stored.

    Raises
    ------
    ImageError
        If one cannot be read, or they are not of one place.
    UsageError
        If there is no such channel or time point, or it is not known which PSF is meant.
    """
    volumes = [v if isinstance(v, Volume) or v is None else open_volume(v) for v in (before, after, reference)]
    assert volumes[0] is not None
    assert volumes[1] is not None
    provenance = _provenance(volumes[1])
    held_before, held_after = held(volumes[0]), held(volumes[1], provenance)
    picked, picked_after, alone = pick({"c": channel, "t": time}, held_before, held_after)
    coarse, fine = Stack(volume=volumes[0], picked=picked), Stack(volume=volumes[1], picked=picked_after)
    truth = None
    if volumes[2] is not None:
        wanted = pick_reference(held(volumes[2]), held_before, held_after, (picked, picked_after))
        truth = Stack(volume=volumes[2], picked=wanted)
    factor = _factor(coarse, fine)
    model = _model(fine, provenance)
    how = _degradation(degrade, provenance, model)
    warnings = [*_misplaced(coarse, fine, factor, how or CUBIC), *alone]
    if degrade is None and model is None and _known_degradation(provenance) is None:
        warnings.append(ASSUMED)
    if truth is not None:
        warnings += _check_reference(fine, truth)
    return Compared(
        before=coarse,
        after=fine,
        reference=truth,
        factor=factor,
        how=how,
        cuts=_cuts(fine, tile, provenance),
        provenance=provenance,
        model=model,
        warnings=tuple(warnings),
    )


def _factor(before: Stack, after: Stack) -> Shape:
    if math.prod(before.shape) == 1:
        raise ImageError(f"{before.name} has one voxel: there is nothing to compare. Give a larger volume.")
    factor = tuple(fine // coarse for fine, coarse in zip(after.shape, before.shape, strict=True))
    fits = tuple(n * f for n, f in zip(before.shape, factor, strict=True)) == after.shape
    if not fits or any(f not in FACTORS for f in factor) or max(factor) == 1:
        raise ImageError(
            f"{after.name} has {after.shape} voxels (z, y, x), {before.name} {before.shape}; AFTER must have 1, 2 or 4 "
            "times as many along each axis, and more along one. Give the volume that it was made from."
        )
    return factor


def _misplaced(before: Stack, after: Stack, factor: Shape, how: Degradation) -> list[str]:
    """Refuse volumes whose files say that they are not of one place; warn where they say nothing.

    Raises
    ------
    ImageError
        If the spacing does not go with the number of voxels, or AFTER begins elsewhere.
    """
    if not (before.is_placed and after.is_placed):
        return ["one of the files does not say where its voxels are, so that it cannot be told whether they fit"]
    if before.unit != after.unit:
        raise ImageError(f"{after.name} is in {after.unit}, {before.name} in {before.unit}. Convert one of them.")
    named = [i for i, axis in enumerate(SPATIAL) if axis in before.volume.grid.axes]
    for i in named:
        expected = before.spacing[i] / factor[i]
        if abs(after.spacing[i] - expected) > SAME_SPACING * expected:
            raise ImageError(
                f"{after.name}: the spacing along {SPATIAL[i]} is {after.spacing[i]:g}; {factor[i]} times the voxels "
                f"of {before.name}, {before.spacing[i]:g} apart, are {expected:g} apart. One of them is wrong."
            )
    if after.volume.paths and not is_stored_omezarr(after.volume):
        return [f"{after.name} does not say where it begins, and is taken to begin where the finer grid does"]
    behind = [(f - 1) / 2 if how.sampling == "area" else 0.0 for f in factor]
    for i in named:
        expected = before.origin[i] - behind[i] * after.spacing[i]
        shift = after.origin[i] - expected
        if abs(shift) > MOST_SHIFT * after.spacing[i]:
            raise ImageError(
                f"{after.name} begins at {SPATIAL[i]} = {after.origin[i]:g} {after.unit or ''}, which is "
                f"{shift / after.spacing[i]:+.2f} fine voxels from {expected:g}, where the finer grid of {before.name} "
                f"begins ({how.sampling} sampling). Correct its translation, or give --degrade as it was made."
            )
    return []


def _check_reference(after: Stack, reference: Stack) -> list[str]:
    if reference.shape != after.shape:
        raise ImageError(
            f"--reference {reference.name} has {reference.shape} voxels (z, y, x), {after.name} {after.shape}; they "
            "must be equal. Give the truth on the fine grid."
        )
    if not (reference.is_placed and after.is_placed):
        return []
    wrong = [
        f"the reference's spacing along {axis} is {theirs:g}, that of AFTER {own:g}"
        for axis, own, theirs in zip(SPATIAL, after.spacing, reference.spacing, strict=True)
        if abs(own - theirs) > SAME_SPACING * own and axis in after.volume.grid.axes
    ]
    if wrong or not is_stored_omezarr(reference.volume) or not is_stored_omezarr(after.volume):
        return wrong  # TIFFs do not say where they begin
    return [
        f"the reference begins {(theirs - own) / step:+.2f} fine voxels from AFTER along {axis}"
        for axis, own, theirs, step in zip(SPATIAL, after.origin, reference.origin, after.spacing, strict=True)
        if abs(own - theirs) > MOST_SHIFT * step
    ]


def is_stored_omezarr(volume: Volume) -> bool:
    """Whether a volume is one OME-Zarr; TIFFs do not say where they begin."""
    return len(volume.paths) == 1 and (isinstance(located(volume.paths[0]), Remote) or is_omezarr(volume.paths[0]))


def _provenance(after: Volume) -> Mapping[str, Any]:
    return read_provenance(after.paths[0]) if is_stored_omezarr(after) else {}


def _model(after: Stack, provenance: Mapping[str, Any]) -> Model | None:
    """Load the model that an output was made by, if it lies beside it."""
    digest = provenance.get("model")
    if not isinstance(digest, str):
        return None
    path: Path = model_path_beside(after.volume.paths[0], digest)
    if not path.is_file():
        return None
    try:
        model = load_model(path)
    except ModelError:  # of another version; what AFTER itself says has to do
        return None
    return model if model.digest == digest else None


def _degradation(kind: Degrade | None, provenance: Mapping[str, Any], model: Model | None) -> Degradation | None:
    if kind is not None and kind != "psf":
        return degradation_of(kind, None)
    if model is not None:
        return model.architecture.stages[0].degradation
    known = _known_degradation(provenance)
    if kind == "psf" or known == "psf":  # the file of the model has it, and is not there
        return None
    return degradation_of(known, None) if known in ("box", "point") else CUBIC


def _known_degradation(provenance: Mapping[str, Any]) -> Any:
    trained = provenance.get("training")
    return trained.get("degradation") if isinstance(trained, Mapping) else None


def _cuts(after: Stack, tile: Mapping[str, int] | None, provenance: Mapping[str, Any]) -> Cuts | None:
    """Where AFTER was cut: as told, as its plan says, or as it is stored."""
    if tile is not None:
        given = tuple(tile.get(axis, n) for axis, n in zip(SPATIAL, after.shape, strict=True))
        return regular_cuts(after.shape, given, after.shape)
    plan = provenance.get("plan")
    try:
        planned: Any = plan
        tiles = tuple(
            planned["tile"].get(a, n) * planned["factor"].get(a, 1) for a, n in zip(SPATIAL, after.shape, strict=True)
        )
        region = tuple(planned["region"].get(a, n) for a, n in zip(SPATIAL, after.shape, strict=True))
        return regular_cuts(after.shape, tiles, region)
    except (AttributeError, KeyError, TypeError, ValueError):
        return _stored_cuts(after)  # it was made by something else


def _stored_cuts(after: Stack) -> Cuts | None:
    if not is_stored_omezarr(after.volume):
        return None
    level = describe_omezarr(after.volume.paths[0]).levels[0]
    axes = after.volume.grid.axes
    chunk, shard = spatial_shape(axes, level.chunks), spatial_shape(axes, level.shards or level.chunks)
    return regular_cuts(after.shape, chunk, shard)


def described(compared: Compared) -> dict[str, Any]:
    """Say what is compared, as plain values."""
    stacks = {"before": compared.before, "after": compared.after, "reference": compared.reference}
    return {
        name: {
            "path": stack.name,
            "shape": list(stack.shape),
            "spacing": list(stack.spacing),
            "origin": list(stack.origin),
            "unit": stack.unit,
            "dtype": stack.volume.dtype.name,
        }
        for name, stack in stacks.items()
        if stack is not None
    }
