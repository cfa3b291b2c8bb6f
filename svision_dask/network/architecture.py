"""What a model is made of, in integers: layers, stages, and from them halo and memory. No arrays, no torch.

The halo follows from the operators, so a plan can be made, and refused, before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from svision_dask.degradation import CUBIC, UP_REACH, Degradation, Sampling
from svision_dask.errors import ModelError, UsageError
from svision_dask.geometry import SPATIAL, Shape

Preset = Literal["fast", "best", "paper"]
PRESETS: tuple[Preset, ...] = ("fast", "best", "paper")

TENSOR_LIMIT = 2**31
"""Bytes and elements a tensor must stay below: oneDNN slows down past the one and is wrong past the other."""
SMALL_INPUT = 20480
"""Up to so many channels · z · y of its input, torch copies it once per tap of an ungrouped 3³ convolution."""
MAX_PARAMETERS = 2**20
"""Of all stages; a hundred times what the presets have, and still little to build from a file nobody has checked."""
MAX_BACK_PROJECTIONS = 40
"""The kernel of so many fits into memory while it is made, whatever the axes."""
SLOPE = 0.1
"""Of activations below zero: as good as learned slopes, which take as long as the convolutions do."""
MAX_KERNEL = 120
"""Formal reach of that kernel, in coarse voxels per side."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One unpadded convolution; an activation follows all but the last."""

    kernel: int
    """Voxels per axis."""
    channels: int
    """Output channels."""
    groups: int = 1
    """Groups of channels that do not see each other."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One ×2 step: a network on the coarse grid, cubic interpolation, and back projection."""

    factor: Shape
    """1 or 2 for z, y, x."""
    layers: tuple[Layer, ...]
    """The last layer has one channel per fine voxel of a coarse voxel."""
    back_projections: int
    """How often the fine volume is corrected towards agreeing with the coarse one; 0 for never."""
    kernel_radius: int
    """Coarse voxels per side at which the kernel of all back projections but the first is cut."""
    ensemble: bool
    """Whether the network's output is the mean over the lateral flips and rotations."""
    degradation: Degradation = CUBIC
    """How coarse voxels came about; training and back projection assume it."""
    slope: float | None = None
    """Of the activations below zero; None where each channel learns its own (PReLU)."""
    axial: bool = False
    """Whether the network looks along z and x only, and its output is the mean of that and of z and y."""

    @property
    def averaged(self) -> bool:
        """Whether the network runs more than once."""
        return self.ensemble or self.axial


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All stages of a model, and the spatial axes it works on."""

    axes: str
    """``"zyx"`` or ``"yx"``; z of a plane has one voxel and is never looked along."""
    stages: tuple[StageSpec, ...]
    """In the order in which they run."""

    @property
    def factor(self) -> Shape:
        """How many times finer the output is, for z, y, x."""
        return tuple(math.prod(f) for f in zip(*(stage.factor for stage in self.stages), strict=True))

    @property
    def sampling(self) -> Sampling:
        """Whether voxel edges stay where they are (area), or the centre of the first voxel (point)."""
        return self.stages[0].degradation.sampling

    @property
    def halo(self) -> Shape:
        """Coarse voxels needed beyond a box, per side, for z, y, x, to enhance the box exactly."""
        halo: Shape = (0, 0, 0)
        for stage in reversed(self.stages):  # a later stage's reach is counted in voxels that are already finer
            reach = stage_reach(stage, self.axes)
            halo = tuple(r + -(-h // f) for r, h, f in zip(reach, halo, stage.factor, strict=True))
        return halo

    @property
    def parameters(self) -> int:
        """Trained numbers: weights, biases, and slopes of activations that learn theirs."""
        return sum(_parameters(stage, self.axes) for stage in self.stages)

    def tile_bytes(self, tile: Shape, *, half: bool = False) -> int:
        """Memory of one forward pass over ``tile`` coarse voxels (z, y, x) and their halo, in bytes.

        Counted per stage as what is alive at once: the features before and after a layer, or the fine voxels while they
        are put in place and corrected. ``half`` says whether features take two bytes, not four.

        Raises
        ------
        ValueError
            If a tensor would reach 2³¹ bytes; smaller tiles are then required.
        """
        peak, size = 0, tuple(t + 2 * h for t, h in zip(tile, self.halo, strict=True))
        for stage in self.stages:
            plane = 4 * math.prod(size)  # bytes of one channel
            phases = math.prod(stage.factor)
            widest = plane * max(phases, *(layer.channels for layer in stage.layers))
            if widest >= TENSOR_LIMIT:
                raise ValueError(f"a tensor of {widest} bytes reaches the limit of {TENSOR_LIMIT}")
            # The coarse voxels; of an ensemble also their turned copy, and the running mean.
            kept = 1 + (1 + phases) * stage.averaged
            # The fine voxels are stacked, interleaved and corrected: up to three and a half of them at once.
            network = _network_bytes(stage, size, network_axes(stage, self.axes)) // (2 if half else 1)
            peak = max(peak, plane * kept + max(network, 4 * phases * plane))
            reach = stage_reach(stage, self.axes)
            size = tuple(f * (n - 2 * r) for n, r, f in zip(size, reach, stage.factor, strict=True))
        return peak + peak // 3  # the allocator leaves holes between tensors below 32 MiB

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the model file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any, where: str = "model") -> Architecture:
        """From a plain ``value``, checked; ``where`` it came from is for the message.

        Raises
        ------
        ModelError
            If a value is missing, of another type, or out of bounds.
        """
        try:
            stages = tuple(
                StageSpec(
                    factor=tuple(_bounded(f, 1, 2) for f in stage["factor"]),
                    layers=tuple(
                        Layer(**{k: _bounded(layer[k], 1, 512) for k in ("kernel", "channels", "groups")})
                        for layer in stage["layers"]
                    ),
                    back_projections=_bounded(stage["back_projections"], 0, MAX_BACK_PROJECTIONS),
                    kernel_radius=_bounded(stage["kernel_radius"], 0, MAX_KERNEL),
                    ensemble=_truth(stage["ensemble"]),
                    degradation=Degradation.from_json(stage["degradation"]),
                    slope=_slope(stage["slope"]),
                    axial=_truth(stage["axial"]),
                )
                for stage in value["stages"]
            )
            if value["axes"] not in ("zyx", "yx") or not 1 <= len(stages) <= 2:
                raise ValueError(f"axes {value['axes']!r}, {len(stages)} stages")
            made = cls(axes=value["axes"], stages=stages)
            for stage in stages:
                _check_stage(stage, made.axes)
            if len({stage.degradation.sampling for stage in stages}) > 1:
                raise ValueError("stages of different sampling")
            if made.parameters > MAX_PARAMETERS:
                raise ValueError(f"{made.parameters} parameters, at most {MAX_PARAMETERS}")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{'there is no ' * isinstance(error, KeyError)}{error}"
            raise ModelError(
                f"{where}: this version cannot build its architecture: {reason}. Use the version that made it, "
                "or train it anew."
            ) from error
        return made


def network_axes(stage: StageSpec, axes: str) -> str:
    """Tell the axes that one run of the network looks along."""
    return "zx" if stage.axial else axes


def stage_reach(stage: StageSpec, axes: str) -> Shape:
    """Count the coarse voxels per side, for z, y, x, that one stage uses up."""
    network = sum(layer.kernel // 2 for layer in stage.layers)
    # y₀ needs the network and U; the residual x − D y₀ needs D; its kernel and U bring it to the fine grid.
    correction = stage.degradation.reach + UP_REACH + stage.kernel_radius if stage.back_projections else 0
    return tuple(
        (max(network, UP_REACH * (f == 2)) + correction * (f == 2)) if axis in axes else 0
        for axis, f in zip(SPATIAL, stage.factor, strict=True)
    )


def architecture(
    preset: Preset,
    factor: Sequence[int],
    axes: str,
    *,
    kernel_radius: int | None = None,
    degradation: Degradation = CUBIC,
    axial: bool = False,
) -> Architecture:
    """Build the architecture of a preset.

    Parameters
    ----------
    preset
        ``"paper"`` is Fig. 9 of Photonics Research 11(1), 2023: 6 636 parameters at factor 2 in 3-D, mean over eight
        lateral flips and rotations, ten back projections of each and ten of the mean. The operators are linear, so
        these are twenty back projections of the mean. ``"fast"`` is one pass of a shallow network, ``"best"`` one of a
        wider and deeper one with two back projections; how far to go with them is found in training.
    factor
        1, 2 or 4 for z, y, x.
    axes
        ``"zyx"`` or ``"yx"``.
    kernel_radius
        Where to cut the kernel of repeated back projection; by default, and at most, its formal reach.
    degradation
        How coarse voxels came about.
    axial
        Whether z alone is refined, by a network that looks along z and one lateral axis at a time.

    Raises
    ------
    UsageError
        If there is no such preset, z is to be refined where there is none, or more than z is to be refined axially.
    """
    if axial and (axes != "zyx" or tuple(factor[1:]) != (1, 1)):
        raise UsageError(f"factor {tuple(factor)} for axes {axes}: axial refines z and nothing else. Use --factor z=2.")
    if "z" not in axes and factor[0] != 1:
        raise UsageError(f"factor {tuple(factor)} for axes {axes}: there is no z to refine; its factor must be 1.")
    if preset not in PRESETS:
        raise UsageError(f"preset {preset!r}: allowed are {', '.join(PRESETS)}.")
    back_projections = {"fast": 0, "best": 2, "paper": 20}[preset]
    stages = []
    for number, step in enumerate(stage_factors(factor)):
        how = degradation.of_step(number)
        formal = _formal_radius(back_projections, how)
        phases = math.prod(step)
        stages.append(
            StageSpec(
                factor=step,
                layers=_LAYERS[preset](phases),
                back_projections=back_projections,
                kernel_radius=formal if kernel_radius is None else min(kernel_radius, formal),
                ensemble=preset == "paper",
                degradation=how,
                slope=None if preset == "paper" else SLOPE,
                axial=axial,
            )
        )
    return Architecture(axes=axes, stages=tuple(stages))


def stage_factors(factor: Sequence[int]) -> Iterator[Shape]:
    """Split ``factor``, of powers of two, into the ×2 steps that make it; an axis that is done keeps its sampling."""
    remaining = tuple(factor)
    while max(remaining) > 1:
        step = tuple(min(f, 2) for f in remaining)
        yield step
        remaining = tuple(f // s for f, s in zip(remaining, step, strict=True))


def _formal_radius(back_projections: int, how: Degradation) -> int:
    return how.step * max(back_projections - 1, 0)


def _paper_layers(phases: int) -> tuple[Layer, ...]:
    """Stack extraction, shrinking, four grouped middle layers, and subpixel expansion (Fig. 9)."""
    middle = (Layer(kernel=3, channels=6, groups=6),) * 4
    return (Layer(kernel=5, channels=16), Layer(kernel=3, channels=6), *middle, Layer(kernel=3, channels=phases))


def _fast_layers(phases: int) -> tuple[Layer, ...]:
    """Stack fewer and wider layers: 16 channels fill a vector register, and a shallow network has a short halo."""
    return (*(Layer(kernel=3, channels=16),) * 2, Layer(kernel=3, channels=phases))


def _best_layers(phases: int) -> tuple[Layer, ...]:
    """Twice as wide, one layer deeper: what ten times the training time can still fill."""
    return (*(Layer(kernel=3, channels=32),) * 4, Layer(kernel=3, channels=phases))


_LAYERS: Mapping[Preset, Callable[[int], tuple[Layer, ...]]] = {
    "fast": _fast_layers,
    "best": _best_layers,
    "paper": _paper_layers,
}


def _network_bytes(stage: StageSpec, size: Shape, axes: str) -> int:
    """Memory of the widest layer: what its convolution or the PReLU after it reads, copies and writes, in bytes."""
    peak, inputs = 0, 1
    for layer in stage.layers:
        inner = tuple(n - layer.kernel + 1 if axis in axes else n for axis, n in zip(SPATIAL, size, strict=True))
        copied = 0
        if layer.groups > 1:  # oneDNN works on copies in blocks of 16 channels
            copied = 2 * 16 * -(-max(inputs, layer.channels) // 16)
        elif layer.kernel <= 3 and "z" in axes and inputs * size[0] * size[1] <= SMALL_INPUT:
            copied = inputs * 27
        convolution = inputs * math.prod(size) + (copied + layer.channels) * math.prod(inner)
        peak = max(peak, convolution, (1 + (stage.slope is None)) * layer.channels * math.prod(inner))
        size, inputs = inner, layer.channels
    return 4 * peak


def _parameters(stage: StageSpec, axes: str) -> int:
    widths = (1, *(layer.channels for layer in stage.layers))
    slopes = sum(widths[1:-1]) if stage.slope is None else 0
    return slopes + sum(
        outputs * (inputs // layer.groups * math.prod([layer.kernel] * len(network_axes(stage, axes))) + 1)
        for layer, (inputs, outputs) in zip(stage.layers, pairwise(widths), strict=True)
    )


def _check_stage(stage: StageSpec, axes: str) -> None:
    if len(stage.factor) != len(SPATIAL) or not 1 <= len(stage.layers) <= 64:
        raise ValueError(f"factor {stage.factor}, {len(stage.layers)} layers")
    if "z" not in axes and stage.factor[0] != 1:
        raise ValueError(f"factor {stage.factor} for axes {axes}")
    if not stage.kernel_radius <= _formal_radius(stage.back_projections, stage.degradation) <= MAX_KERNEL:
        raise ValueError(f"kernel radius {stage.kernel_radius} for {stage.back_projections} back projections")
    if stage.axial and (stage.factor != (2, 1, 1) or axes != "zyx"):
        raise ValueError(f"axial with factor {stage.factor} for axes {axes}")
    if stage.layers[-1].channels != math.prod(stage.factor) or math.prod(stage.factor) == 1:
        raise ValueError(f"last layer of {stage.layers[-1].channels} channels for factor {stage.factor}")
    inputs = 1
    for layer in stage.layers:
        if layer.kernel % 2 == 0 or layer.kernel > 15 or inputs % layer.groups or layer.channels % layer.groups:
            raise ValueError(str(layer))
        inputs = layer.channels


def _bounded(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r} is not an integer in {low}..{high}")
    return int(value)


def _slope(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) is not float or not 0 < value < 1:
        raise ValueError(f"{value!r} is not a slope between 0 and 1")
    return value


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return bool(value)
