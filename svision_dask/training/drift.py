"""How far a volume is from what a model was trained on: a network does not know when it is out of its depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from svision_dask.errors import SampleError
from svision_dask.geometry import SPATIAL
from svision_dask.network.model import Model
from svision_dask.training.sample import Sample, read_sample
from svision_dask.training.zoom import roughness
from svision_dask.volume import Volume, middle

EXTENT = (48, 128, 128)
"""Voxels (z, y, x) whose roughness is measured, at most."""
MOST_SHIFT = 1.0
"""Standard deviations by which mean intensities may differ. Depth, gain or another label differ by more."""
MOST_GAIN = 2.0
"""Ratio of the standard deviations, and its inverse, within which volumes pass for alike."""
MOST_ROUGHNESS = 2.5
"""The same of the roughness along an axis: sharpness, sampling and noise."""


class DriftWarning(UserWarning):
    """The volume is unlike the one that the model was trained on."""


def typical_roughness(sample: Sample) -> list[list[float]]:
    """Measure, for each channel and z, y, x, how rough a sample is relative to its contrast."""
    channels = np.ascontiguousarray(middle(sample.voxels, EXTENT))
    return [roughness(torch.from_numpy(channel)[None, None], None) for channel in channels]


def drift(model: Model, volume: Volume) -> list[str]:
    """Compare a sample of ``volume`` with what the model was trained on.

    Parameters
    ----------
    model
        One that says what its sample was like; of others nothing can be said.
    volume
        To be enhanced.

    Returns
    -------
    list of str
        A sentence for each difference that matters; empty where the volumes are alike.
    """
    known = _stored(model.provenance.get("roughness"))
    if not known:
        return []
    try:
        sample = read_sample(volume)
    except SampleError as error:
        return [f"this volume cannot be compared with the one that the model was trained on: {error}"]
    found = []
    for number, (own, rough) in enumerate(zip(sample.normalisation, typical_roughness(sample), strict=True)):
        trained = model.normalisation[min(number, len(model.normalisation) - 1)]
        where = f"channel {number}: " if len(sample.normalisation) > 1 else ""
        if abs(own.offset - trained.offset) > MOST_SHIFT * trained.scale:
            found.append(f"{where}mean intensity {own.offset:.4g}, in training {trained.offset:.4g}")
        if not 1 / MOST_GAIN <= own.scale / trained.scale <= MOST_GAIN:
            found.append(f"{where}contrast (standard deviation) {own.scale:.4g}, in training {trained.scale:.4g}")
        found += _rougher(where, rough, known[min(number, len(known) - 1)])
    return found


def renormalised(model: Model, volume: Volume) -> Model:
    """Take the intensity constants from ``volume`` instead of the volume that the model was trained on.

    For another channel, gain, depth or microscope, whose structures are alike. What is enhanced with the result does
    not compare in intensity with what is enhanced with ``model``.

    Raises
    ------
    SampleError
        If ``volume`` has nothing to measure them on.
    """
    sample = read_sample(volume)
    provenance = {
        **model.provenance,
        "renormalised": {"input": volume.name, "sample": [[window.start, window.stop] for window in sample.box]},
        "roughness": typical_roughness(sample),
    }
    return replace(model, normalisation=sample.normalisation, provenance=provenance)


def _stored(value: Any) -> list[list[float]]:
    """Read what a model file says of its sample, or nothing where it cannot be that: nobody has checked the file."""
    rows = value if isinstance(value, list) else []
    right = all(
        isinstance(row, list) and len(row) == len(SPATIAL) and all(isinstance(v, (int, float)) and v >= 0 for v in row)
        for row in rows
    )
    return rows if right else []


def _rougher(where: str, own: Sequence[float], trained: Sequence[float]) -> list[str]:
    found = []
    for axis, a, b in zip(SPATIAL, own, trained, strict=True):
        if a > 0 and b > 0 and not 1 / MOST_ROUGHNESS <= a / b <= MOST_ROUGHNESS:
            word = "rougher (sharper, noisier, or sampled more coarsely)" if a > b else "smoother"
            found.append(f"{where}{max(a / b, b / a):.1f} times {word} along {axis} than in training")
    return found
