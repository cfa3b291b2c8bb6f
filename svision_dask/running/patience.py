"""Errors that pass, and how long to wait for them: network file systems and servers come back."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

PAUSES = (0.5, 2.0, 8.0)
"""Seconds before another try after an error that passes."""
_TRANSIENT = "EAGAIN EBUSY ECONNABORTED ECONNRESET EHOSTUNREACH EINTR EIO ENETUNREACH ESTALE ETIMEDOUT"
TRANSIENT = {getattr(errno, name) for name in _TRANSIENT.split() if hasattr(errno, name)}
"""Errors that pass. A full disk, a read-only one and a forbidden one do not."""

Result = TypeVar("Result")


def patiently(act: Callable[[], Result]) -> Result:
    """Do something again, after longer and longer pauses, while it fails of what passes; then raise that."""
    for pause in PAUSES:
        try:
            return act()
        except Exception as error:  # zarr and torch raise nearly anything, because of what passes
            if not passes(error):
                raise
        time.sleep(pause)
    return act()


def passes(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is one of those that network file systems get over."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in TRANSIENT:
            return True
        error = error.__cause__ or error.__context__
    return False
