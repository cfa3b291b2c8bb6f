"""What a worker process of our own clusters does first: dask calls `dask_setup` before it gives it tasks."""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Any


def dask_setup(worker: Any) -> None:
    """Import what regions need, and have no garbage collection look through that ever again.

    While some 250 000 objects are made, of which none is garbage, Python would look for it again and again: a fifth of
    the time that importing takes.
    """
    gc.disable()
    import_module("svision_dask.running.regions")
    gc.enable()
    gc.freeze()
