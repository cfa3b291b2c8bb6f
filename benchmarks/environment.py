"""On which machine, and with which versions, a benchmark ran."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What decides how fast a processor convolves, which names do not tell."""
PACKAGES = ("dask", "distributed", "numpy", "ome-zarr", "svision-dask", "tifffile", "torch", "zarr")


def environment() -> dict[str, Any]:
    """Processor, cores, memory and versions, as plain values."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "processor": told.get("model name", platform.processor()),
        "instructions": [name for name in INSTRUCTIONS if name in told.get("flags", "").split()],
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
