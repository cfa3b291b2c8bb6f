"""Makes a worker that is started with it end by itself at a random moment, as dask's own tests have it."""

from __future__ import annotations

import os
from typing import Any

from distributed.chaos import KillWorker


async def dask_setup(worker: Any) -> None:
    """Prepare each worker that preloads this."""
    await worker.plugin_add(KillWorker(float(os.environ["SOAK_SECONDS"]), mode=os.environ["SOAK_MODE"]))
