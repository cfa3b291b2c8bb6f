"""Whether the output may be made where the user wants it; nothing is deleted that is not an OME-Zarr."""

from __future__ import annotations

import shutil
from pathlib import Path

from svision_dask.errors import OutputError
from svision_dask.omezarr import is_omezarr, read_provenance


def check_output(output: str | Path, source: str | Path | None, *, overwrite: bool) -> None:
    """Check, before any work, that ``output`` can be made.

    Raises
    ------
    OutputError
        If it is the input, lies inside it or contains it; if it exists and is not to be, or must not be, replaced; if
        its folder cannot be made.
    """
    target = Path(output).absolute()
    resolved = target.resolve()
    if source is not None:
        given = Path(source).resolve()
        if resolved == given:
            raise OutputError(f"{output}: the output is the input. Choose another name.")
        if given.is_dir() and given in resolved.parents:
            raise OutputError(f"{output}: the output lies inside the input {source}. Choose a place outside it.")
        if resolved in given.parents:
            raise OutputError(f"{output}: the output contains the input {source}. Choose another name.")
    blocking = next((p for p in target.parents if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise OutputError(f"{output}: {blocking} is a file. Choose another folder.")
    if target.exists() or target.is_symlink():
        _check_existing(target, overwrite=overwrite)


def remove_existing(output: str | Path) -> None:
    """Delete an output that ``check_output`` allowed to replace."""
    target = Path(output)
    if target.is_dir():
        shutil.rmtree(target)


def _check_existing(target: Path, *, overwrite: bool) -> None:
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        return
    ours = target.is_dir() and not target.is_symlink() and is_omezarr(target)
    if not ours:
        raise OutputError(f"{target}: exists and is not an OME-Zarr; it is never replaced. Choose another name.")
    if not overwrite:
        state = _state(target)
        raise OutputError(f"{target}: exists ({state}). Use --overwrite to replace it, or choose another name.")


def _state(target: Path) -> str:
    state = read_provenance(target).get("state")
    return {"complete": "a finished output", "incomplete": "an unfinished output"}.get(str(state), "not made by svision-dask")
