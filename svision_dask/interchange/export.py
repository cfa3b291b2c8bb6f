"""Write a model as one file that other programs run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from svision_dask.errors import OutputError, UsageError
from svision_dask.interchange.bioimage_io import write_package
from svision_dask.interchange.facts import facts
from svision_dask.interchange.graph import graph_of
from svision_dask.interchange.tracing import write_onnx, write_pt2
from svision_dask.network.model import Model, load_model
from svision_dask.running.output import check_new_file
from svision_dask.volume import Volume

Format = Literal["onnx", "pt2", "bioimageio"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "pt2", ".zip": "bioimageio"}
_NEEDED = {"onnx": ("onnx", ("onnx", "onnxscript")), "bioimageio": ("zoo", ("onnx", "onnxscript", "bioimageio.spec"))}


def export_model(
    model: Model | str | Path,
    output: str | Path,
    *,
    format: Format | None = None,
    channel: int | None = None,
    licence: str = "",
    authors: Sequence[str] = (),
    sample: Volume | str | None = None,
) -> Path:
    """Write a model as ONNX, as ``torch.export`` program, or as BioImage.IO package.

    The exported graph maps raw intensities (n, 1, z, y, x), float32, of any size to fine ones (n, 1, fz·z, fy·y, fx·x),
    as `enhance` does to float32; a model of planes has no z. Normalisation, all stages, ensemble and back projection
    are part of it. Beyond the faces of its input it goes on with mirrored voxels, so that tiles are to overlap by the
    halo, whose part of the output is cut off.

    Parameters
    ----------
    model
        A model, or the path or URL of one, as `load_model` takes it.
    output
        File to make: ``.onnx``, ``.pt2`` or ``.zip``.
    format
        ``"onnx"``, ``"pt2"`` or ``"bioimageio"``, where the suffix does not say.
    channel
        Whose intensity constants it gets, from 0; needed if the model has several.
    licence
        Of the model, as SPDX names it, such as ``"CC-BY-4.0"``; by default it has none.
    authors
        Names, for a BioImage.IO package.
    sample
        From whose middle the test tensors of a BioImage.IO package are cut: a volume, or the path of one. By default, a
        simulated one.

    Returns
    -------
    Path
        The file, whole or not there at all.

    Raises
    ------
    UsageError
        If the format is unknown, what writes it is not installed, or an argument does not belong to it.
    ModelError
        If the model cannot be read, or the sample is not for it.
    OutputError
        If the file exists, or cannot be written.
    """
    path = Path(output)
    chosen = _format(path, format)
    if chosen != "bioimageio" and (authors or sample is not None):
        raise UsageError(f"{path}: authors and a sample are for BioImage.IO packages. Leave them out, or write a .zip.")
    _check_installed(chosen)
    check_new_file(path)
    trained = model if isinstance(model, Model) else load_model(model)
    graph = graph_of(trained, channel)
    about = facts(trained, graph, licence=licence)
    with _whole(path) as partial:
        if chosen == "pt2":
            write_pt2(graph, about, partial)
        elif chosen == "onnx":
            write_onnx(graph, about, partial)
        else:
            write_package(trained, graph, about, partial, channel=channel or 0, authors=authors, sample=sample)
    return path


def _format(path: Path, given: str | None) -> Format:
    known = given or SUFFIXES.get(path.suffix.lower())
    if known not in FORMATS:
        raise UsageError(f"{path}: a format to export to is missing. Use .onnx, .pt2 or .zip, or --format.")
    return known


def _check_installed(chosen: Format) -> None:
    extra, packages = _NEEDED.get(chosen, ("", ()))
    for package in packages:
        parts = package.split(".")
        if not all(importlib.util.find_spec(".".join(parts[: i + 1])) for i in range(len(parts))):
            raise UsageError(f"{chosen}: writing it takes {package}. Install svision-dask[{extra}].")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Let a file be written under another name in its folder, and give it its own when it is whole."""
    partial = path.with_name(f".{os.getpid()}.partial{path.suffix or '.bin'}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: the model cannot be written ({error}). Choose another place.") from error
    finally:
        partial.unlink(missing_ok=True)
