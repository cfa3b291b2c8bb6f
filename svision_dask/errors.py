"""Every error that svision-dask raises on purpose.

::

    SvisionError
    ├── UsageError    (ValueError)    an argument is wrong; nothing was read            exit 2
    ├── ImageError    (ValueError)    the input is not an image we can read safely      exit 1
    │   └── UnsupportedError          its metadata are valid, and we do not read such   exit 1
    ├── PlanError     (ValueError)    the work does not fit, or cannot be cut that way  exit 1
    ├── SampleError   (ValueError)    there is nothing to learn from in the sample      exit 1
    ├── ModelError    (ValueError)    the model file is damaged or is not for this volume  exit 1
    ├── ClusterError  (RuntimeError)  workers that cannot do the work, or no workers   exit 1
    ├── OutputError   (OSError)       the output exists, is the input, or is not ours   exit 1
    └── RegionError   (RuntimeError)  a region of the output could not be made          exit 3

A message is one line: where, what was given, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class SvisionError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(SvisionError, ValueError):
    """An argument is not one of the allowed values."""

    exit_code = 2


class ImageError(SvisionError, ValueError):
    """The input is missing, is not an image, or cannot be read without guessing."""


class UnsupportedError(ImageError):
    """The metadata of the input are valid, but of a kind that svision-dask does not read."""


class PlanError(SvisionError, ValueError):
    """The volume cannot be cut as asked, or one task would not fit in memory or on disk."""


class SampleError(SvisionError, ValueError):
    """The chosen sample is empty, constant or not finite, so that no network can learn from it."""


class ModelError(SvisionError, ValueError):
    """The model file is damaged, or was made for other axes, factors or channels."""


class OutputError(SvisionError, OSError):
    """The output exists, overlaps the input, or cannot be written."""


class ClusterError(SvisionError, RuntimeError):
    """A cluster cannot be reached, or its workers are not fit for the work."""


class RegionError(SvisionError, RuntimeError):
    """One or more regions failed; what was written stays, but is not published as an image."""

    exit_code = 3

    def __init__(self, message: str, failures: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)
        """Which, and why, one by one."""


def one_line(error: BaseException) -> str:
    """Put the message of any error on one line, or name its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
