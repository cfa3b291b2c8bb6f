"""What computes: the processor, or a GPU that torch can use; and in which precision."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from svision_dask.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

Device = Literal["cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("cpu", "cuda")
Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
PROCESS_BYTES = 448 * 2**20
"""Resident memory of a worker before its first region: the interpreter, dask, zarr, and torch for processors alone."""
GPU_BUILD_BYTES = 512 * 2**20
"""What torch takes on top if it was built for GPUs, even where none is used."""
OUT_OF_MEMORY = (
    *("can't allocate memory", "could not create a primitive", "could not create a memory"),
    *("CUDA error: out of memory", "STATUS_ALLOC_FAILED", "unable to find an engine"),
)
"""What torch, oneDNN, cuDNN and cuBLAS say when they are given no more."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Where the network runs, and in which precision its convolutions do; everything around them is float32."""

    device: Device = "cpu"
    """Which computes: the processor, or a GPU."""
    precision: Precision = "float32"
    """Of the convolutions; ``"float16"`` on GPUs only."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UsageError(f"device {self.device!r}: allowed are {', '.join(DEVICES)}. Use --device cpu.")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r}: allowed are {', '.join(PRECISIONS)}.")
        if self.device == "cpu" and self.precision == "float16":
            raise UsageError("precision float16: processors compute it more slowly than float32. Use bfloat16.")


CPU = Backend()


def best_device() -> Device:
    """Choose a GPU where torch can use one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def best_precision(device: Device) -> Precision:
    """Choose bfloat16 where there are instructions for it: convolutions take half the time, results differ by rounding.

    Elsewhere it is emulated, and slower than float32.
    """
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # not in older versions
    return "bfloat16" if known.get("avx512_bf16") or known.get("amx_bf16") else "float32"


def check_emulated(asked: Precision | None, best: Precision, who: str) -> None:
    """Refuse bfloat16 on processors that emulate it, in many times the time and the memory that is planned.

    Raises
    ------
    UsageError
        If it is asked for, and is not the best that they can do.
    """
    if asked == "bfloat16" != best:
        raise UsageError(
            f"precision bfloat16: {who} no instructions for it. Use --precision float32, with --overwrite if the "
            "output was begun elsewhere."
        )


def gpu_memory() -> tuple[int, ...]:
    """Free bytes of every GPU that torch can use in this process; empty where there is none.

    Asked for in a process of its own: to ask takes a context on each GPU, which stays until the process ends, and of
    which some clusters allow only one.
    """
    import torch

    if not torch.cuda.is_available():
        return ()
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    return tuple(int(free) for free in asked.stdout.split())


_ASK = "import torch; print(*(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())))"


def own_gpu() -> tuple[str, int] | None:
    """Name and free bytes of the GPU that this process computes on, if it has one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_properties(0).uuid), torch.cuda.mem_get_info(0)[0]


def process_bytes() -> int:
    """Resident memory of a worker of this installation before its first region."""
    torch = find_spec("torch")  # not imported, which takes seconds
    libraries = Path(torch.origin).parent / "lib" if torch and torch.origin else Path()
    for_gpus = [file for kind in ("cuda", "hip") for file in libraries.glob(f"*torch_{kind}.*")]
    return PROCESS_BYTES + GPU_BUILD_BYTES * bool(for_gpus)


def compute_exactly() -> None:
    """Have cuDNN multiply float32 as it is; by default it rounds the factors to ten bits."""
    import torch

    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def to_device(voxels: npt.NDArray[Any], device: Device) -> torch.Tensor:
    """Hand voxels to what computes; a GPU fetches them by itself, from memory that stays where it is."""
    import torch

    tensor = torch.from_numpy(voxels)
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def to_host(computed: torch.Tensor) -> torch.Tensor:
    """Bring a result to the memory of the process; it is there, to be read, when this returns."""
    import torch

    if not computed.is_cuda:
        return computed
    return torch.empty(computed.shape, dtype=computed.dtype, pin_memory=True).copy_(computed)  # waits for the copy


def pinned_bytes(*arrays: int) -> int:
    """Say what torch takes for arrays of so many bytes that a GPU copies: powers of two, which it keeps."""
    return sum(1 << (size - 1).bit_length() for size in arrays)


def share_of_gpu(free_bytes: Iterable[int]) -> int:
    """Say what a forward pass may use, the same on every GPU: cuDNN takes some memory to work with."""
    return int(0.6 * min(free_bytes))


def release_memory() -> None:
    """Let go of tensors of a failed attempt, and of what torch keeps of a GPU for later."""
    import torch

    gc.collect()  # the frames of a traceback hold on to each other

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: numpy, torch and oneDNN have errors of their own for that."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
