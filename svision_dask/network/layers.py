"""The network of one stage: unpadded convolutions on the coarse grid, one channel per fine voxel at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import nn

from svision_dask.geometry import SPATIAL, Shape
from svision_dask.network import portable
from svision_dask.network.architecture import Layer

KEPT_BYTES = 32 * 2**20
"""Up to so many, the C library keeps memory for the next tensor; then adding to zeros would cost more than it saves."""


class Network(nn.Module):
    """Map (n, 1, z, y, x) to the residual (n, p, z − 2r, y − 2r, x − 2r), with p fine voxels per coarse voxel.

    r is the number of voxels the kernels reach along ``axes``, and 0 along others. Without z among them, z must be 1.
    ``slope`` is that of the activations below zero; by default each channel learns its own.
    Features are computed on the coarse grid only (Fig. 9 of Photonics Research 11(1), 2023).
    """

    def __init__(self, layers: Sequence[Layer], axes: str, slope: float | None = None) -> None:
        super().__init__()
        self.planar = "z" not in axes
        # A plane as a volume of one slice would leave torch's fast path: ten times slower, five times the memory.
        convolution: Any = nn.Conv2d if self.planar else nn.Conv3d
        widths = (1, *(layer.channels for layer in layers))
        steps: list[nn.Module] = []
        for layer, (inputs, outputs) in zip(layers, pairwise(widths), strict=True):
            kernel = tuple(layer.kernel if axis in axes else 1 for axis in SPATIAL[self.planar :])
            steps.append(convolution(inputs, outputs, kernel, groups=layer.groups))
            # In place: with slopes of their own, activations take as long as convolutions, and twice the memory.
            steps.append(nn.PReLU(outputs) if slope is None else nn.LeakyReLU(slope, inplace=True))
        self.steps = nn.Sequential(*steps[:-1])  # the residual has both signs
        self.reach = tuple(sum(layer.kernel // 2 for layer in layers) * (axis in axes) for axis in SPATIAL)
        self._memory_format = torch.channels_last if self.planar else torch.channels_last_3d
        self.to(memory_format=self._memory_format)  # type: ignore[call-overload]  # torch's annotations lack it

    def forward(self, coarse: torch.Tensor) -> torch.Tensor:
        """Apply all layers."""
        voxels = coarse.squeeze(2) if self.planar else coarse
        if not torch.compiler.is_exporting():  # where channels lie in memory is each runtime's own affair
            voxels = voxels.contiguous(memory_format=self._memory_format)
        if self._reuses_memory(voxels):
            voxels = _convolved(self.steps[-1], None, self._features(voxels))
        else:
            for convolution, activation in zip_longest(list(self.steps)[::2], list(self.steps)[1::2]):
                voxels = _convolved(convolution, activation, voxels)
        return voxels.unsqueeze(2) if self.planar else voxels

    def _reuses_memory(self, voxels: torch.Tensor) -> bool:
        """Whether nobody needs the features of a layer once the next one is done, and torch can write over them."""
        if torch.is_grad_enabled() or torch.compiler.is_exporting() or voxels.device.type != "cpu":
            return False
        steps = list(self.steps)
        widest = max((step.out_channels for step in steps[:-1:2] if isinstance(step, nn.Conv2d | nn.Conv3d)), default=0)
        large = widest * voxels.nbytes > KEPT_BYTES
        in_place = all(isinstance(step, nn.LeakyReLU) for step in steps[1::2])
        return large and in_place and _adds_in_place(voxels.dtype, voxels.ndim - 2)

    def _features(self, voxels: torch.Tensor) -> torch.Tensor:
        """Apply all layers but the last, in two pieces of memory that take turns.

        Large ones come from the system, which has to clear them: with one for each layer, all takes up to 1.4 times as
        long.
        """
        steps = list(self.steps)
        layers = list(zip(steps[:-1:2], steps[1::2], strict=True))
        sizes, spatial = [], voxels.shape[2:]
        for convolution, _ in layers:
            assert isinstance(convolution, nn.Conv2d | nn.Conv3d), convolution
            spatial = torch.Size(n - k + 1 for n, k in zip(spatial, convolution.kernel_size, strict=True))
            sizes.append((len(voxels), *spatial, convolution.out_channels))
        pieces = [voxels.new_empty(max(map(math.prod, sizes[i::2]), default=0)) for i in (0, 1)]
        for (convolution, activation), size in zip(layers, sizes, strict=True):
            features = pieces[0][: math.prod(size)].view(size).movedim(-1, 1)  # channels last, as convolutions want it
            voxels = activation(_add_convolution(features.zero_(), convolution, voxels))
            pieces.reverse()
        return voxels

    def start(self, generator: torch.Generator) -> None:
        """Draw weights such that a standardised input keeps its variance, and the first residual is nearly zero."""
        convolutions = [step for step in self.steps if isinstance(step, (nn.Conv2d, nn.Conv3d))]
        with torch.no_grad():
            for convolution in convolutions:
                inputs = math.prod(convolution.weight.shape[1:])
                # On the processor, so that a seed means the same weights wherever they are used.
                drawn = torch.empty_like(convolution.weight, device="cpu")
                convolution.weight.copy_(drawn.normal_(0, math.sqrt(2 / inputs), generator=generator))
                if convolution.bias is not None:
                    convolution.bias.zero_()
            # Starting at the cubic interpolation, not at noise around it, is what keeps sparse volumes from stalling.
            convolutions[-1].weight.mul_(0.1)


def _is_for_onednn(voxels: torch.Tensor) -> bool:
    """Whether torch would ask oneDNN for a convolution if it held that to be worth it."""
    there = voxels.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(there) and voxels.dtype == torch.float32 and not torch.compiler.is_exporting()


def _convolved(convolution: nn.Module, activation: nn.Module | None, voxels: torch.Tensor) -> torch.Tensor:
    """Convolve, and activate, as torch does, to the bit in float32, and up to four times as fast.

    torch takes another way where batch, channels and the first two lengths multiply to less than some number: for the
    first layer, which has one channel, and for small tiles.
    """
    if isinstance(activation, nn.LeakyReLU) and _is_fused(voxels):
        return _convolve_activated(convolution, activation.negative_slope, voxels)
    onednn = _is_for_onednn(voxels)
    features = torch.mkldnn_convolution(voxels, *_arguments(convolution)) if onednn else convolution(voxels)
    return features if activation is None else activation(features)


def _is_fused(voxels: torch.Tensor) -> bool:
    """Whether oneDNN can activate features as it computes them; there is no way back for a gradient."""
    if torch.is_grad_enabled() or torch.compiler.is_exporting() or voxels.device.type != "cpu":
        return False
    return _activates(voxels.dtype, voxels.ndim - 2)


def _convolve_activated(convolution: nn.Module, slope: float, voxels: torch.Tensor) -> torch.Tensor:
    """Convolve, and activate each feature while it is at hand: what torch.compile makes of the two."""
    fused = torch.ops.mkldnn._convolution_pointwise
    return fused(voxels, *_arguments(convolution), "leaky_relu", [slope], "")  # type: ignore[no-any-return]


def _add_convolution(features: torch.Tensor, convolution: nn.Module, voxels: torch.Tensor) -> torch.Tensor:
    """Add a convolution to ``features``, where they are: the only way that torch has to say where its result goes."""
    added = torch.ops.mkldnn._convolution_pointwise_.binary  # what torch.compile makes of an addition
    return added(features, voxels, *_arguments(convolution), "add", 1.0, None, [], None)  # type: ignore[no-any-return]


def _arguments(convolution: nn.Module) -> tuple[Any, ...]:
    """Weight, bias, padding, stride, dilation and groups."""
    assert isinstance(convolution, nn.Conv2d | nn.Conv3d), convolution
    weight = convolution.weight
    none, one = ([n] * (weight.ndim - 2) for n in (0, 1))
    return weight, convolution.bias, none, one, one, convolution.groups


@cache
def _adds_in_place(dtype: torch.dtype, axes: int) -> bool:
    """Whether `_add_convolution` does, here."""
    features = torch.zeros(1, *[6] * axes, 8, dtype=dtype).movedim(-1, 1)
    added = _tried(
        lambda convolution, voxels: _add_convolution(features, convolution, voxels), lambda y: y, dtype, axes
    )
    return added is not None and added.data_ptr() == features.data_ptr()


@cache
def _activates(dtype: torch.dtype, axes: int) -> bool:
    """Whether `_convolve_activated` does, here."""
    activation = nn.LeakyReLU(0.1)
    fused = _tried(lambda convolution, voxels: _convolve_activated(convolution, 0.1, voxels), activation, dtype, axes)
    return fused is not None


def _tried(
    way: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    then: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
    axes: int,
) -> torch.Tensor | None:
    """Try a way to convolve: its result, where it is torch's own with ``then`` applied to that.

    torch promises nothing about what is not public, and not all processors have it for all types.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # the weights do not matter, and the caller's numbers are the caller's
        convolution: Any = (nn.Conv2d if axes == 2 else nn.Conv3d)(4, 8, 3, dtype=dtype)
    voxels = torch.rand(1, 4, *[8] * axes, generator=generator).to(dtype)
    with torch.no_grad():
        try:
            found = way(convolution, voxels)
        except (AttributeError, RuntimeError, TypeError, NotImplementedError):
            return None
        wanted = then(convolution(voxels))
        return found if torch.allclose(found.float(), wanted.float(), atol=8 * torch.finfo(dtype).eps) else None


def interleave(phases: torch.Tensor, factor: Shape) -> torch.Tensor:
    """Put the channels of each coarse voxel in place as its fine voxels: (n, p, z, y, x) → (n, 1, fz·z, fy·y, fx·x)."""
    if torch.compiler.is_exporting():
        return portable.interleave(phases, factor)
    n, _, z, y, x = phases.shape
    fz, fy, fx = factor
    runs = phases.permute(0, 2, 3, 4, 1).reshape(-1)  # as channels lie in memory: neighbours along x together
    # Moved as one element, two neighbours take a third of the time; but there is no way back for a gradient.
    wide = _TWICE.get(phases.element_size()) if fx == 2 and not phases.requires_grad else None
    runs = runs if wide is None else runs.view(wide)
    fine = runs.view(n, z, y, x, fz, fy, -1).permute(0, 1, 4, 2, 5, 3, 6).reshape(-1)  # z, fz, y, fy, x, fx
    fine = fine if wide is None else fine.view(phases.dtype)
    return fine.view(n, 1, z * fz, y * fy, x * fx)


_TWICE = {2: torch.float32, 4: torch.float64}
"""Types of twice the size, in bytes; they are only moved."""
