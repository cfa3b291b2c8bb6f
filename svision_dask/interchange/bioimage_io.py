"""A model as BioImage.IO package: ONNX weights, halo and scale for those that tile, and tensors to test it with."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.errors import ModelError, OutputError, one_line
from svision_dask.geometry import SPATIAL, Shape
from svision_dask.interchange.facts import INPUT, OPSET, OUTPUT
from svision_dask.interchange.graph import Graph
from svision_dask.interchange.tracing import write_onnx
from svision_dask.network.model import Model
from svision_dask.opening.formats import open_volume
from svision_dask.running.enhancement import check_model
from svision_dask.simulation.simulate import Phantom, as_volume
from svision_dask.volume import Volume, mirror_pad, read_mirrored

TEST_STEPS = {"z": 1, "y": 1, "x": 2}
"""How far above the least size of a block the test tensors are, in steps: no two of their sides are equal."""
CITED = "He et al. Self-supervised deep-learning two-photon microscopy. Photonics Research 11(1), 1-11, 2023."
DOI = "10.1364/PRJ.469231"
README = """# {name}

Enhances {axes} volumes {factor} times, by svision-dask. It was trained on {trained_on} and on nothing else; use it for
that, and for what is just like it. Super-resolution can invent what was never there: do not count or measure in its
output what cannot be seen in the input.

The input is intensities as measured; the output has the same units, is float32, and neither rounded nor clipped.
Tiles overlap by the halo, {halo} coarse voxels per side, whose part of the output is cut off. Then the result does not
depend on the tiles, but for rounding.

## Validation

Reduce a volume, enhance that, and compare with the volume. On the training sample that gave {gain}.
"""


def write_package(
    model: Model,
    graph: Graph,
    about: dict[str, Any],
    path: Path,
    *,
    channel: int,
    authors: Sequence[str],
    sample: Volume | str | None,
) -> None:
    """Write the package; what it says is checked by the publisher's own validation, without the network.

    Raises
    ------
    ModelError
        If the sample is not for the model.
    OutputError
        If the package would not be valid.
    """
    from bioimageio.spec import save_bioimageio_package

    coarse = _test_input(model, sample, channel)
    fine = model.refine(mirror_pad(coarse, model.halo), channel=channel)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = Path(folder)
        write_onnx(graph, about, files / "model.onnx")
        (files / "model.safetensors").write_bytes(model.to_bytes())
        (files / "README.md").write_text(_readme(about), encoding="utf-8")
        np.save(files / f"{INPUT}.npy", _with_channel(coarse, graph))
        np.save(files / f"{OUTPUT}.npy", _with_channel(fine, graph))
        try:
            described = _described(model, about, files, authors=authors)
            save_bioimageio_package(described, output_path=path)
        except ValueError as error:
            raise OutputError(f"{path}: BioImage.IO refuses the package: {one_line(error)[:300]}.") from error


def _described(model: Model, about: dict[str, Any], files: Path, *, authors: Sequence[str]) -> Any:
    """Describe the model in the words of BioImage.IO."""
    from bioimageio.spec.model import v0_5

    tolerance = {
        "relative_tolerance": 0.0,
        "absolute_tolerance": 2e-5 * float(np.ptp(np.load(files / f"{OUTPUT}.npy"))),
    }
    return v0_5.ModelDescr(
        name=_name(about),
        description=f"Super-resolution of {about['axes'][2:]} volumes, {_times(about)} times, by svision-dask.",
        authors=[v0_5.Author(name=name) for name in authors],
        cite=[v0_5.CiteEntry(text=CITED, doi=v0_5.Doi(DOI))],
        license=about.get("licence"),
        documentation=v0_5.FileDescr(source=files / "README.md"),
        attachments=[v0_5.FileDescr(source=files / "model.safetensors")],
        tags=["super-resolution", "self-supervised", "fluorescence-light-microscopy"],
        inputs=[_input(about, files)],
        outputs=[_output(about, files)],
        weights=v0_5.WeightsDescr(onnx=v0_5.OnnxWeightsDescr(source=files / "model.onnx", opset_version=OPSET)),
        config=v0_5.Config(
            bioimageio=v0_5.BioimageioConfig(
                reproducibility_tolerance=[v0_5.ReproducibilityTolerance(**tolerance)],
                model_parameter_count=model.architecture.parameters,
            ),
            svision_dask=about,
        ),
    )


def _input(about: dict[str, Any], files: Path) -> Any:
    from bioimageio.spec.model import v0_5

    axes: list[Any] = [v0_5.BatchAxis(), v0_5.ChannelAxis(channel_names=[v0_5.Identifier("intensity")])]
    for name, halo in zip(about["axes"][2:], about["halo"], strict=True):
        least, step = _block(name, halo)
        axes.append(v0_5.SpaceInputAxis(id=v0_5.AxisId(name), size=v0_5.ParameterizedSize(min=least, step=step)))
    # Beyond faces, voxels go on as mirror image where nothing is said, as ours do; said, it is written as {}, which is
    # read as zeros (bioimageio.spec 0.5.12).
    return v0_5.InputTensorDescr(
        id=v0_5.TensorId(INPUT),
        description="Intensities as measured.",
        axes=axes,
        test_tensor=v0_5.FileDescr(source=files / f"{INPUT}.npy"),
        data=v0_5.IntervalOrRatioDataDescr(type="float32"),
    )


def _output(about: dict[str, Any], files: Path) -> Any:
    from bioimageio.spec.model import v0_5

    axes: list[Any] = [v0_5.BatchAxis(), v0_5.ChannelAxis(channel_names=[v0_5.Identifier("intensity")])]
    for name, halo, factor in zip(about["axes"][2:], about["halo"], about["factor"], strict=True):
        size = v0_5.SizeReference(tensor_id=v0_5.TensorId(INPUT), axis_id=v0_5.AxisId(name))
        axis: dict[str, Any] = {"id": v0_5.AxisId(name), "size": size, "scale": 1 / factor}
        # Powers of two, with no unit: with a spacing of 0.3, their rounding would lose a voxel.
        haloed = v0_5.SpaceOutputAxisWithHalo(**axis, halo=factor * halo) if halo else v0_5.SpaceOutputAxis(**axis)
        axes.append(haloed)
    return v0_5.OutputTensorDescr(
        id=v0_5.TensorId(OUTPUT),
        description="Intensities, neither rounded nor clipped.",
        axes=axes,
        test_tensor=v0_5.FileDescr(source=files / f"{OUTPUT}.npy"),
        data=v0_5.IntervalOrRatioDataDescr(type="float32"),
    )


def _block(axis: str, halo: int) -> tuple[int, int]:
    """Give the least size of a block, and the step by which it grows: a stack may have few planes, but wide ones."""
    return (2 * halo + 1, 1) if axis == "z" else (2 * halo + 8, 8)


def _test_shape(model: Model) -> Shape:
    """Coarse voxels (z, y, x) of the test tensors, which must be of a size that a block may have."""
    shape = []
    for axis, halo in zip(SPATIAL, model.halo, strict=True):
        least, step = _block(axis, halo)
        shape.append(least + TEST_STEPS[axis] * step if axis in model.architecture.axes else 1)
    return tuple(shape)


def _test_input(model: Model, sample: Volume | str | None, channel: int) -> npt.NDArray[np.float32]:
    """Cut coarse voxels (z, y, x) out of the middle of a sample, mirrored where it is thin, or simulate some."""
    shape, constants = _test_shape(model), model.normalisation[channel]
    if sample is None:
        phantom = as_volume(Phantom(shape=tuple(2 * n for n in shape)), "measured", factor=2)
        counts = phantom.read(tuple(slice(0, n) for n in shape)).astype(np.float32)
        standard = (counts - counts.mean()) / counts.std()
        return np.asarray(standard * constants.scale + constants.offset, np.float32)
    volume = sample if isinstance(sample, Volume) else open_volume(sample)
    check_model(model, volume)
    start, stop = [], []
    for axis, n in zip(volume.grid.axes, volume.grid.shape, strict=True):
        length = dict(zip(SPATIAL, shape, strict=True)).get(axis, 1)
        first = (n - length) // 2 if axis in SPATIAL else channel * (axis == "c")
        start.append(first)
        stop.append(first + length)
    coarse = read_mirrored(volume, tuple(start), tuple(stop)).reshape(shape).astype(np.float32)
    if not np.isfinite(coarse).all() or np.ptp(coarse) == 0:
        raise ModelError(f"{volume.name}: its middle holds one value, or none that is finite. Give another sample.")
    return coarse


def _with_channel(voxels: npt.NDArray[np.float32], graph: Graph) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(voxels[None] if graph.planar else voxels[None, None])


def _name(about: dict[str, Any]) -> str:
    return f"svision-dask {about.get('preset', 'model')} {_times(about)} ({about['model_sha256'][:8]})"


def _times(about: dict[str, Any]) -> str:
    return "x".join(map(str, about["factor"]))


def _readme(about: dict[str, Any]) -> str:
    checked: Any = about.get("self_check")
    gain = "nothing that is known"
    with suppress(KeyError, TypeError):  # a model that comes from elsewhere may say anything
        above = [checked["psnr"] - checked[name] for name in ("cubic_psnr", "cubic_bp_psnr")]
        gain = "{:+.2f} dB over cubic interpolation, {:+.2f} dB over cubic with back projection".format(*above)
    return README.format(
        name=_name(about),
        axes=about["axes"][2:],
        factor=_times(about),
        trained_on=f"`{about['trained_on']}`" if "trained_on" in about else "one volume",
        halo=", ".join(map(str, about["halo"])),
        gain=gain,
    )
