"""Whether a result may be made where the user wants it; nothing is deleted that is not one OME-Zarr image."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from svision_dask.errors import ImageError, OutputError, UsageError
from svision_dask.omezarr.read import describe_omezarr, is_omezarr, read_provenance
from svision_dask.omezarr.write import mark_incomplete
from svision_dask.running.ledger import Record, claim, read_record
from svision_dask.stores.locations import WRITABLE, Location, Remote, local_path, located
from svision_dask.stores.remote_store import METADATA_FILES
from svision_dask.wishes import Wishes


def check_output(output: str | Location, *sources: str | Location, overwrite: bool, resume: bool = False) -> None:
    """Check, before any work, that the folder ``output`` can be made from ``sources``, or gone on with.

    Raises
    ------
    OutputError
        If it is the input, lies inside it or contains it; if it is finished and is not to be, or must not be, replaced;
        if it cannot be written there; if ``resume`` insists on an unfinished one and there is none.
    """
    target = located(output)
    for source in sources:
        check_apart(target, located(source))
    if isinstance(target, Remote):
        _check_writable(target)
    else:
        _check_folder(target)
    if overwrite and resume:
        raise UsageError("--overwrite begins anew, and --resume goes on: use one of them.")
    if resume and not begun_record(output):
        raise OutputError(f"{output}: there is nothing to resume. Leave out --resume.")
    if overwrite or not begun_record(output):
        forget_finished(target)
        _check_existing(target, overwrite=overwrite)


def forget_finished(output: Location) -> None:
    """Remove the ledger of a run that was killed just after it had published its output."""
    if read_record(output) is not None and is_omezarr(output) and _state(output) == "complete":
        with claim(output):
            pass  # whoever claims an output, and ends well, leaves no ledger


def check_apart(output: Location, source: Location) -> None:
    """Check that nothing of the input is deleted with an output, nor written over.

    Raises
    ------
    OutputError
        If the output is the input, lies inside it or contains it.
    """
    if isinstance(output, Remote) or isinstance(source, Remote):
        _check_urls_apart(output, source)
        return
    target, given = output.resolve(), source.resolve()
    if _same(target, given):
        raise OutputError(f"{output}: the output is the input. Choose another name.")
    if any(_same(folder, given) for folder in target.parents):
        raise OutputError(f"{output}: the output lies inside the input {source}. Choose a place outside it.")
    if any(_same(target, folder) for folder in given.parents):
        raise OutputError(f"{output}: the output contains the input {source}. Choose another name.")


def check_new_file(path: str | Path) -> None:
    """Check, before any work, that the file ``path`` can be made in a folder that is there, replacing nothing.

    Raises
    ------
    OutputError
        If it exists, its folder does not, or it cannot be written there.
    """
    if os.path.lexists(path):  # before a zip file that is there is looked into
        raise OutputError(f"{path} exists; a model file is never replaced. Choose another name.")
    target = local_path(path, "a new file").absolute()
    if not target.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {target.parent}. Make it, or choose another one.")
    _check_folder(target)


def check_page(path: Path, *, overwrite: bool) -> None:
    """Check, before any work, that a page or a picture can be written.

    Raises
    ------
    OutputError
        If it exists, and is not to be replaced, or its folder does not.
    """
    if path.exists() and not (overwrite and path.is_file()):
        raise OutputError(f"{path} exists. Give another name, or --overwrite to replace a file.")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.absolute().parent}. Make it, or choose another one.")


def remove_existing(output: str | Location) -> None:
    """Delete an output that ``check_output`` allowed to replace."""
    target = located(output).absolute()
    if isinstance(target, Remote):
        if is_omezarr(target):  # half deleted it would still look finished
            mark_incomplete(target)
            target.remove_all(last=METADATA_FILES)
    elif target.is_dir():
        # Under its own name a half-deleted image would still look finished.
        doomed = target.with_name(f".{target.name}.{uuid.uuid4().hex}.removing")
        shutil.rmtree(target.rename(doomed))


def _check_urls_apart(output: Location, source: Location) -> None:
    if not isinstance(output, Remote) or not isinstance(source, Remote):
        return
    # The object s3://bucket/a is also at https://bucket.server/a and at https://server/bucket/a.
    given = source.url if source.scheme == output.scheme else _aliased(source, output)
    if output.url == given:
        raise OutputError(f"{output}: the output is the input. Choose another name.")
    if output.url.startswith(f"{given}/"):
        raise OutputError(f"{output}: the output lies inside the input {source}. Choose a place outside it.")
    if given.startswith(f"{output.url}/"):
        raise OutputError(f"{output}: the output contains the input {source}. Choose another name.")


def _aliased(source: Remote, output: Remote) -> str:
    """Spell the URL of a web server as one of the output's bucket, if it may be that."""
    host, _, path = source.url.partition("://")[2].partition("/")
    bucket = output.url.partition("://")[2].partition("/")[0]
    if host.split(".")[0] == bucket:
        return f"{output.scheme}://{bucket}/{path}"
    return f"{output.scheme}://{path}" if path.startswith(f"{bucket}/") else source.url


def _check_writable(output: Remote) -> None:
    """See whether something can be written below ``output``, and deleted."""
    if output.scheme not in WRITABLE:
        raise OutputError(f"{output}: {output.scheme} is for reading only. Use {' or '.join(WRITABLE)}, or a folder.")
    probe = output / f".{uuid.uuid4().hex}.probe"
    try:
        probe.write_bytes(b"svision-dask")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror}. Choose another place.") from error


def _same(one: Path, other: Path) -> bool:
    """Whether both are one file or folder; where upper and lower case do not count, names may differ."""
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _check_folder(output: Path) -> None:
    folder = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir():
        raise OutputError(f"{output}: {folder} is not a folder. Choose another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: {folder} is not writable. Choose another place, or change its rights.")


def _check_existing(output: Location, *, overwrite: bool) -> None:
    if not _is_there(output):
        return
    what = _replaceable(output)
    if what is None:
        raise OutputError(
            f"{output} exists and is not one OME-Zarr image; it is never replaced. Choose another name, or remove it."
        )
    if not overwrite:
        raise OutputError(f"{output} exists: {what}. Use --overwrite to replace it, or choose another name.")


def _is_there(output: Location) -> bool:
    if isinstance(output, Remote):
        return output.exists()
    return os.path.lexists(output) and not _is_empty_folder(output)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def begun_record(output: str | Location) -> Record | None:
    """Read what an output that was begun was to become; None where there is no such output.

    A ledger that outlived its output says nothing.
    """
    path = located(output)
    folder = isinstance(path, Remote) or (path.is_dir() and not path.is_symlink())
    unfinished = folder and is_omezarr(path) and _state(path) == "incomplete"
    return read_record(path) if unfinished else None


def as_recorded(output: str | Location, wishes: Wishes | None) -> Wishes:
    """Wish for what an unfinished output was begun with: its tiles must not depend on the memory that is free now."""
    wishes, record = wishes or Wishes(), begun_record(output)
    if record is None or record.get("version") != wishes.version:
        return wishes
    return replace(
        wishes,
        tile=wishes.tile or record.get("tile"),
        chunk=wishes.chunk or record.get("chunk"),
        shard=wishes.shard or record.get("shard"),
        region=record.get("region"),
        device=wishes.device or record.get("device"),
        precision=wishes.precision or record.get("precision"),
    )


def _state(path: Location) -> Any:
    try:
        return read_provenance(path).get("state")
    except ImageError:
        return None


def _replaceable(path: Location) -> str | None:
    """Say what is at ``path`` if that is one OME-Zarr image, finished or not; a link or a collection is none."""
    if (not isinstance(path, Remote) and path.is_symlink()) or not is_omezarr(path):
        return None
    if _state(path) == "incomplete":
        return "an unfinished output of svision-dask, and what was done of it is not known"
    try:
        found = describe_omezarr(path)
    except ImageError:
        return None
    return "a finished output of svision-dask" if found.provenance else "an OME-Zarr that svision-dask did not make"
