"""A trained model: stages, normalisation and provenance, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from svision_dask.backend import CPU, Backend, compute_exactly, to_device, to_host
from svision_dask.errors import ModelError, OutputError, UsageError
from svision_dask.geometry import Shape
from svision_dask.network.architecture import Architecture
from svision_dask.network.stage import Stage, trim
from svision_dask.notebook import html_table, per_axis
from svision_dask.stores.locations import Location, Remote, Zipped, located

FORMAT = 3
"""Version of the file's layout; raised when an older reader would misread a newer file."""
MAX_BYTES = 64 * 2**20
"""A model of this kind has some kilobytes; anything above this is not one."""
HASHED = "#sha256="
"""Between the place of a model and what its file must be."""
MAX_HEADER_BYTES = 4 * 2**20
"""Of which most is the loss curve."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Intensity constants of one channel, measured once, on the training sample."""

    offset: float
    """Mean of the sample, outliers clipped, in the volume's intensity units."""
    scale: float
    """Standard deviation of the sample, outliers clipped, in the same units."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """Everything needed to enhance, and to say how the model came about.

    Models are the same if their ``digest`` is.
    """

    architecture: Architecture
    """What it is made of, and from that its factor, halo and memory."""
    stages: tuple[Stage, ...]
    """Trained, in the order in which they run."""
    normalisation: tuple[Normalisation, ...]
    """One per channel; a single one serves every channel."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Plain values: preset, seed, steps, losses, sample, input, versions."""
    training_seconds: float | None = None
    """How long training took, where this process did it; not saved: the same training makes the same file."""
    _copies: dict[Backend, tuple[Stage, ...]] = field(default_factory=dict, init=False, repr=False)

    def _repr_html_(self) -> str:
        rows = {
            "axes": self.architecture.axes,
            "factor": per_axis("zyx", self.factor),
            "halo": per_axis("zyx", self.halo),
            "parameters": self.architecture.parameters,
            "channels": len(self.normalisation),
            "trained on": self.provenance.get("input", ""),
            "preset": self.provenance.get("preset", ""),
            "sha256": self.digest,
        }
        return html_table("Model", {name: value for name, value in rows.items() if value != ""})

    @property
    def factor(self) -> Shape:
        """How many times finer the output is, for z, y, x."""
        return self.architecture.factor

    @property
    def halo(self) -> Shape:
        """Coarse voxels needed beyond a box, per side, for z, y, x."""
        return self.architecture.halo

    @property
    def spare(self) -> Shape:
        """Fine voxels per side, for z, y, x, that the stages leave of a halo.

        A later stage's reach need not be a multiple of the factor before it, and the halo was rounded up.
        """
        left = self.halo
        for stage in self.stages:
            left = tuple(f * (n - r) for n, r, f in zip(left, stage.reach, stage.spec.factor, strict=True))
        return left

    def refine(
        self, haloed: npt.NDArray[Any], *, channel: int = 0, backend: Backend = CPU, one_pass: bool = False
    ) -> npt.NDArray[np.float32]:
        """Enhance a box that carries its halo.

        Parameters
        ----------
        haloed
            Coarse voxels (z, y, x): a box and ``halo`` voxels on each side of it.
        channel
            Whose normalisation to use.
        backend
            What computes.
        one_pass
            Run each network once, also where its output is otherwise the mean over several orientations.

        Returns
        -------
        ndarray of float32
            Fine voxels (fz·z, fy·y, fx·x) of the box, in the input's intensity units.

        Raises
        ------
        UsageError
            If nothing is left of the box without its halo.
        """
        constants = self.normalisation[min(channel, len(self.normalisation) - 1)]
        box = tuple(n - 2 * h for n, h in zip(haloed.shape, self.halo, strict=True))
        if min(box) < 1:
            raise UsageError(f"box of {haloed.shape} voxels: with a halo of {self.halo} on each side, nothing is left.")
        with torch.inference_mode():
            voxels = to_device(np.ascontiguousarray(haloed, dtype=np.float32), backend.device)[None, None]
            voxels = (voxels - constants.offset) / constants.scale
            for stage in self._stages_on(backend):
                voxels = stage(voxels, one_pass=one_pass)
            # Not ``self.spare``: one pass of an axial stage leaves more.
            spare = tuple((n - f * b) // 2 for n, f, b in zip(voxels.shape[2:], self.factor, box, strict=True))
            voxels = trim(voxels, spare).mul_(constants.scale).add_(constants.offset)
            return np.ascontiguousarray(to_host(voxels[0, 0]).numpy())

    def _stages_on(self, backend: Backend) -> tuple[Stage, ...]:
        """Copy the stages to where they are used, once."""
        if backend == CPU:
            return self.stages
        if backend not in self._copies:
            compute_exactly()
            copies = tuple(deepcopy(stage).to(backend.device) for stage in self.stages)
            for stage in copies:
                if backend.precision != "float32":
                    stage.precision = getattr(torch, backend.precision)
                    stage.network.to(stage.precision)
            self._copies[backend] = copies
        return self._copies[backend]

    def for_channels(self, count: int) -> None:
        """Check that the model can serve a volume of ``count`` channels.

        Raises
        ------
        ModelError
            If it was trained on several channels, but not on as many.
        """
        if len(self.normalisation) not in (1, count):
            raise ModelError(
                f"model was trained on {len(self.normalisation)} channels; the volume has {count}. "
                "Train on this volume, or use a model of one channel."
            )

    def to_bytes(self) -> bytes:
        """Make the file's content; equal models give equal bytes."""
        from safetensors.torch import save

        weights = {name: value.contiguous() for name, value in _weights(self.stages).items()}
        header = {
            "format": FORMAT,
            "architecture": self.architecture.to_json(),
            "residual_scale": [stage.residual_scale for stage in self.stages],
            "damping": [stage.damping for stage in self.stages],
            "normalisation": [{"offset": n.offset, "scale": n.scale} for n in self.normalisation],
            "provenance": self.provenance,
        }
        return bytes(save(weights, metadata={"svision_dask": json.dumps(header, sort_keys=True)}))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file's content."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write the model to ``path``, whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written; a file that was there is left as it was.
        """
        path = Path(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(self.to_bytes())
            return partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OutputError(f"{path}: the model cannot be written ({error}). Choose another place.") from error

    def __reduce__(self) -> tuple[Callable[[bytes], Model], tuple[bytes]]:
        # A dask graph holds the model once per task; each process makes it once.
        return _unpickled, (self.to_bytes(),)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return ("svision_dask.Model", self.digest)


def load_model(place: str | Path) -> Model:
    """Read a model file; nothing in it is executed.

    Parameters
    ----------
    place
        A path or a URL (https, s3, gs), which ``#sha256=`` and the 64 digits that ``sha256sum`` prints may follow: then
        the file must have this content. A URL needs it.

    Returns
    -------
    Model
        The model.

    Raises
    ------
    ModelError
        If the file is missing, too large or another one, is not a model, is damaged, or was made by a newer version.
    UsageError
        If what follows is no hash, a URL has none, or it is in a zip file.
    """
    name, marked, wanted = str(place).partition(HASHED)
    found = located(name)
    if isinstance(found, Zipped):
        raise UsageError(f"{name}: a model in a zip file. Unpack it, and give its model.safetensors.")
    if marked and not (len(wanted) == 64 and set(wanted.lower()) <= set("0123456789abcdef")):
        raise UsageError(f"{name}: the hash after {HASHED} has 64 digits, 0-9 and a-f. Give what sha256sum prints.")
    if isinstance(found, Remote) and not marked:
        raise UsageError(f"{name}: a model at a URL needs its hash: {name}{HASHED}…, which sha256sum prints. Add it.")
    content = _content_of(found)
    digest = hashlib.sha256(content).hexdigest()
    if marked and digest != wanted.lower():
        raise ModelError(f"{name}: its sha256 is {digest}, not {wanted.lower()}: it is another file. Ask who gave it.")
    return _from_bytes(content, name)


def model_file(place: str | Path) -> Path | None:
    """Say which file on this machine ``place`` means; None for one at a URL."""
    found = located(str(place).partition(HASHED)[0])
    return None if isinstance(found, Remote) else found


def _content_of(found: Location) -> bytes:
    """Read a file that is no larger than models are."""
    try:
        size = found.size() if isinstance(found, Remote) else found.stat().st_size
        if size is None:
            raise ModelError(f"{found}: the server does not say its size. Copy the model here.")
        if size > MAX_BYTES:
            raise ModelError(f"{found}: {size} bytes; a model has at most {MAX_BYTES}. Is it another file?")
        return found.read_part(0, size) if isinstance(found, Remote) else found.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ModelError(f"{found}: no such model file. Make one with svision-dask train.") from error
    except OSError as error:
        raise ModelError(f"{found}: the model cannot be read ({error}). Copy it here anew.") from error


def load_model_once(path: str, digest: str) -> Model:
    """Load a model once per process, and only if it is the one that was planned with.

    Raises
    ------
    ModelError
        If the file has changed since.
    """
    with _loading:
        return _loaded(path, digest)


_loading = threading.Lock()
"""Regions of a process ask for it at the same time, and ``lru_cache`` would have each of them load it."""


@lru_cache(maxsize=2)
def _loaded(path: str, digest: str) -> Model:
    model = load_model(path)
    if model.digest != digest:
        raise ModelError(
            f"{path}: the model file has changed since the plan was made. Give every model a name of its own."
        )
    return model


@lru_cache(maxsize=2)
def _unpickled(content: bytes) -> Model:
    return _from_bytes(content, "pickled model")


def _from_bytes(content: bytes, where: str) -> Model:
    """Make a model from a file's content; ``where`` it came from is for the messages."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        header = _read_header(content)
        written = header["format"]
        if written != FORMAT:
            raise ModelError(
                f"{where}: a model of format {written!r}; this version reads {FORMAT}. Use the version that made it."
            )
        weights = load(content)
        normalisation = tuple(
            Normalisation(offset=_finite(n["offset"]), scale=_positive(n["scale"])) for n in header["normalisation"]
        )
        scales = [_positive(value) for value in header["residual_scale"]]
        dampings = [_share(value) for value in header["damping"]]
        described, provenance = header["architecture"], dict(header["provenance"])
        if not normalisation:
            raise ValueError("no normalisation")
    except ModelError:
        raise
    except (SafetensorError, ArithmeticError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ModelError(f"{where}: not a model of svision-dask, or damaged ({reason}). Train it anew.") from error
    architecture = Architecture.from_json(described, where)
    return Model(
        architecture=architecture,
        stages=_with_weights(architecture, scales, dampings, weights, where),
        normalisation=normalisation,
        provenance=provenance,
    )


def _read_header(content: bytes) -> Any:
    """Read our part of a safetensors header: eight bytes of length, then JSON with strings under ``__metadata__``."""
    length = int.from_bytes(content[:8], "little")
    if length > min(len(content) - 8, MAX_HEADER_BYTES):
        raise ValueError(f"a header of {length} bytes in a file of {len(content)}")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["svision_dask"])


def _with_weights(
    architecture: Architecture,
    scales: list[float],
    dampings: list[float],
    weights: dict[str, torch.Tensor],
    where: str,
) -> tuple[Stage, ...]:
    """Rebuild the stages and fill in their weights, which must be exactly those that the architecture names."""
    count = len(architecture.stages)
    if (len(scales), len(dampings)) != (count, count):
        raise ModelError(
            f"{where}: {len(scales)} residual scales and {len(dampings)} dampings for {count} stages; train it anew."
        )
    stages = tuple(
        Stage(spec, architecture.axes, residual_scale=scale, damping=damping)
        for spec, scale, damping in zip(architecture.stages, scales, dampings, strict=True)
    )
    expected = {name: (tuple(value.shape), value.dtype) for name, value in _weights(stages).items()}
    found = {name: (tuple(value.shape), value.dtype) for name, value in weights.items()}
    if expected != found:
        odd = min(set(expected.items()) ^ set(found.items()), key=lambda item: item[0])
        raise ModelError(f"{where}: weights do not fit the architecture, first {odd[0]} {odd[1][0]}; train it anew.")
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise ModelError(f"{where}: weights that are not finite; train it anew.")
    for index, stage in enumerate(stages):
        prefix = f"stage{index}."
        stage.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        stage.eval().requires_grad_(requires_grad=False)
    return stages


def _weights(stages: tuple[Stage, ...]) -> dict[str, torch.Tensor]:
    return {f"stage{i}.{name}": value for i, stage in enumerate(stages) for name, value in stage.state_dict().items()}


def _finite(value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _positive(value: Any) -> float:
    if _finite(value) <= 0:
        raise ValueError(f"{value!r} is not positive")
    return float(value)


def _share(value: Any) -> float:
    if not 0 <= _finite(value) <= 1:
        raise ValueError(f"{value!r} is not in 0..1")
    return float(value)
