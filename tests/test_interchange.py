"""Models that others run: what ONNX, torch.export and BioImage.IO make of a volume is what we make of it."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import socket
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from svision_dask.backend import compute_exactly
from svision_dask.commands.cli import main
from svision_dask.errors import ModelError, OutputError, UsageError
from svision_dask.interchange.export import export_model
from svision_dask.interchange.graph import Graph
from svision_dask.interchange.tracing import FACTS_FILE
from svision_dask.network import portable
from svision_dask.network.layers import interleave
from svision_dask.network.model import Model, Normalisation, load_model
from svision_dask.network.resample import correlate, degrade, upsample
from svision_dask.opening.formats import open_volume
from svision_dask.simulation.simulate import Phantom, as_volume
from svision_dask.volume import mirror_pad
from tests.models import WAYS, tiny, untrained
from tests.servers import serve_folder

MODELS = [
    tiny((2, 2, 2)),
    tiny((4, 2, 1)),
    tiny((1, 2, 2), how=WAYS[2]),
    tiny((2, 1, 1), axial=True),
    tiny((1, 4, 4), "yx"),
]


@pytest.fixture(scope="module")
def coarse() -> np.ndarray:
    """A measured volume (z, y, x), or a simulated one where there are none; no two sides are equal."""
    folder = Path(os.environ.get("SVISION_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "2p_dendrite_rr30a_tp0" / "rr30a_tp0_ch2.ome.tif"
    if path.is_file():
        box = open_volume(str(path)).voxels[20:59, 400:438, 300:327]
    else:
        box = as_volume(Phantom(shape=(78, 76, 54)), "measured", factor=2).voxels
    return box.compute(scheduler="synchronous").astype(np.float32)


@pytest.fixture(scope="module")
def model(coarse) -> Model:
    """Two stages with back projection, and the intensities of the volume."""
    return as_if_trained((4, 2, 1), coarse)


def as_if_trained(factor: tuple[int, int, int], coarse: np.ndarray) -> Model:
    """A model with constants that change something, each."""
    constants = Normalisation(offset=float(coarse.mean()), scale=float(coarse.std()))
    design = tiny(factor).architecture
    stages = tuple(replace(stage, ensemble=False) for stage in design.stages)  # eight members take a minute to trace
    made = untrained(replace(design, stages=stages))
    for number, stage in enumerate(made.stages):
        stage.damping, stage.residual_scale = 0.4 + 0.1 * number, 0.6
    return replace(made, normalisation=(constants,), provenance={"input": "x_$y"})


def ours(model: Model, coarse: np.ndarray) -> np.ndarray:
    return model.refine(mirror_pad(coarse, model.halo))


def assert_close(found: np.ndarray, expected: np.ndarray):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


def tiled(run, coarse: np.ndarray, *, halo, factor, tile) -> np.ndarray:
    """What others do: cut a volume into tiles, give each its halo where there is some, cut off the halo's output."""
    fine = np.full([n * f for n, f in zip(coarse.shape, factor, strict=True)], np.nan, np.float32)
    for start in itertools.product(*(range(0, n, t) for n, t in zip(coarse.shape, tile, strict=True))):
        stop = [min(s + t, n) for s, t, n in zip(start, tile, coarse.shape, strict=True)]
        first = [max(s - h, 0) for s, h in zip(start, halo, strict=True)]
        block = coarse[tuple(slice(f, e + h) for f, e, h in zip(first, stop, halo, strict=True))]
        inner = tuple(slice((s - a) * f, (e - a) * f) for s, e, a, f in zip(start, stop, first, factor, strict=True))
        fine[tuple(slice(s * f, e * f) for s, e, f in zip(start, stop, factor, strict=True))] = run(block)[inner]
    return fine


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.architecture.axes} {model.factor}")
@pytest.mark.parametrize("shape", [(5, 9, 8), (1, 2, 3)])
def test_a_graph_has_all_that_a_model_does_however_small_its_input(model, shape):
    graph = Graph(model).eval()
    coarse = np.random.default_rng(0).random(shape[:1] * (not graph.planar) + shape[1:], dtype=np.float32) * 200
    found = graph(torch.from_numpy(coarse)[None, None]).numpy()[0, 0]
    expected = ours(model, coarse[None] if graph.planar else coarse)
    np.testing.assert_array_equal(found, expected[0] if graph.planar else expected)


@pytest.mark.parametrize("how", WAYS, ids=lambda how: how.kind)
@pytest.mark.parametrize("axis", [2, 3, 4])
def test_portable_operators_are_ours(how, axis):
    voxels = torch.randn(2, 1, 14, 16, 18, generator=torch.Generator().manual_seed(0))
    factor = tuple(1 + (a == axis) for a in (2, 3, 4))
    even, odd = how.up
    torch.testing.assert_close(portable.interpolate(voxels, even, odd, axis=axis), upsample(voxels, factor, how))
    taps, count = how.down[axis - 2], (voxels.shape[axis] - len(how.down[axis - 2])) // 2 + 1
    expected = correlate(voxels, taps, axis=axis, start=0, count=count, step=2)
    torch.testing.assert_close(portable.correlate(voxels, taps, axis=axis, step=2), expected)
    phases = torch.randn(2, 2, 3, 4, 5)
    torch.testing.assert_close(portable.interleave(phases, factor), interleave(phases, factor), rtol=0, atol=0)
    assert degrade(voxels, factor, how).shape[axis] < voxels.shape[axis]


def test_onnx_is_one_file_that_says_how_to_tile_it(coarse, tmp_path):
    model = as_if_trained((2, 2, 1), coarse)  # one stage: ONNX is made operation by operation, in as much time
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="needs svision-dask[onnx]")
    ort = pytest.importorskip("onnxruntime", reason="needs svision-dask[onnx]")
    path = export_model(model, tmp_path / "model.onnx", licence="CC-BY-4.0")
    assert list(tmp_path.iterdir()) == [path]
    session = ort.InferenceSession(path)
    told = session.get_modelmeta().custom_metadata_map
    assert (told["axes"], told["licence"], told["model_sha256"]) == ("nczyx", "CC-BY-4.0", model.digest)
    halo, factor = json.loads(told["halo"]), json.loads(told["factor"])
    assert (tuple(halo), tuple(factor)) == (model.halo, model.factor)
    assert session.get_inputs()[0].shape == ["n", 1, "z", "y", "x"]
    assert session.get_outputs()[0].shape == ["n", 1, "2*z", "2*y", "x"]

    def run(block):
        return session.run(None, {"coarse": block[None, None]})[0][0, 0]

    expected = ours(model, coarse)
    assert_close(run(coarse), expected)
    assert_close(tiled(run, coarse, halo=halo, factor=factor, tile=(20, 20, 27)), expected)
    less = tiled(run, coarse, halo=[h // 2 for h in halo], factor=factor, tile=(20, 20, 27))
    assert np.abs(less - expected).max() > 1e-5 * np.ptp(expected)
    pair = session.run(None, {"coarse": np.stack([coarse, coarse[::-1]])[:, None]})[0][:, 0]
    assert_close(pair[1], ours(model, coarse[::-1]))
    assert_close(run(coarse[:1, :2, :3]), ours(model, coarse[:1, :2, :3]))


def test_a_torch_program_runs_without_us(model, coarse, tmp_path):
    path = export_model(model, tmp_path / "model.pt2")
    extra = {FACTS_FILE: ""}
    program = torch.export.load(path, extra_files=extra).module()
    told = json.loads(extra[FACTS_FILE])
    assert told["halo"] == list(model.halo)
    with torch.inference_mode():
        found = tiled(
            lambda block: program(torch.from_numpy(block)[None, None])[0, 0].numpy(),
            coarse,
            halo=told["halo"],
            factor=told["factor"],
            tile=(20, 20, 27),
        )
    assert_close(found, ours(model, coarse))


def test_exporting_leaves_torch_as_it_was(model, tmp_path):
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    compute_exactly()  # as after training on a GPU, of which torch's exporter makes an error that leaves oneDNN off
    try:
        export_model(model, tmp_path / "exact.pt2")
        assert torch.backends.mkldnn.enabled
        assert conv.fp32_precision == "ieee"
    finally:
        conv.fp32_precision = before


@pytest.fixture
def core(monkeypatch):
    """bioimageio.core without a network."""
    core = pytest.importorskip("bioimageio.core", reason="needs svision-dask[zoo]")
    for place, name in ((socket, "getaddrinfo"), (socket.socket, "connect"), (socket.socket, "connect_ex")):
        monkeypatch.setattr(place, name, _no_network)
    yield core
    gc.collect()  # it leaves files open, of which the test that is running when they are collected is warned


def _no_network(*_given, **_options):
    raise OSError("no network here")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # bioimageio.core's own
def test_a_bioimageio_package_passes_its_test_offline_and_is_tiled_without_seams(core, model, coarse, tmp_path):
    path = export_model(model, tmp_path / "model.zip", authors=["A. Person"], licence="CC-BY-4.0")
    summary = core.test_model(str(path))
    assert summary.status == "passed", summary.format()
    described = core.load_description(str(path))
    told = described.config.model_dump()["svision_dask"]
    assert (told["halo"], told["factor"]) == (list(model.halo), list(model.factor))
    assert described.weights.onnx.opset_version == 18
    expected = ours(model, coarse)
    tensor = core.Tensor.from_numpy(coarse[None, None], dims=("batch", "channel", "z", "y", "x"))
    with core.create_prediction_pipeline(described) as pipeline:
        block = {"batch": 1, "channel": 1, **{a: 2 * h + 9 for a, h in zip("zyx", model.halo, strict=True)}}
        for found in (
            pipeline.predict_sample_with_fixed_blocking(_sample(core, tensor), {"coarse": block}),
            pipeline.predict_sample_without_blocking(_sample(core, tensor)),
        ):
            assert_close(found.members["fine"].data.values[0, 0], expected)


def _sample(core, tensor):
    return core.Sample(members={"coarse": tensor}, stat={}, id="sample")


def test_what_cannot_be_exported_is_refused_before_any_work(model, tmp_path):
    path = model.save(tmp_path / "m.safetensors")
    several = replace(model, normalisation=model.normalisation * 3)
    for given, error, said in (
        ((several, "a.pt2", {}), UsageError, "3 channels"),
        ((several, "a.pt2", {"channel": 3}), UsageError, "channel 3"),
        ((model, "a.tflite", {}), UsageError, "format"),
        ((model, "a.onnx", {"authors": ["A"]}), UsageError, "BioImage.IO"),
        ((model, "m.safetensors", {"format": "pt2"}), OutputError, "exists"),
        ((tmp_path / "none", "a.pt2", {}), ModelError, "no such model"),
    ):
        first, name, options = given
        with pytest.raises(error, match=said) as caught:
            export_model(first, tmp_path / name, **options)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]
    ended = CliRunner().invoke(main, ["export", str(path), str(tmp_path / "a.doc")])
    assert ended.exit_code != 0


def test_a_model_comes_from_a_path_or_url_only_as_the_file_it_was_said_to_be(model, tmp_path):
    path = model.save(tmp_path / "m.safetensors")
    digest, other = hashlib.sha256(path.read_bytes()).hexdigest(), "0" * 64
    with serve_folder(tmp_path) as (url, _):
        for place in (str(path), f"{url}/m.safetensors"):
            assert load_model(f"{place}#sha256={digest.upper()}").digest == model.digest
            with pytest.raises(ModelError, match=f"sha256 is {digest}, not {other}"):
                load_model(f"{place}#sha256={other}")
            with pytest.raises(UsageError, match="64 digits"):
                load_model(f"{place}#sha256=12")
        with pytest.raises(UsageError, match="needs its hash"):
            load_model(f"{url}/m.safetensors")
        with zipfile.ZipFile(tmp_path / "m.zip", "w") as packed:
            packed.write(path, "model.safetensors")
        for place in (tmp_path / "m.zip", f"{tmp_path}/m.zip#sha256={other}", tmp_path / "m.zip" / "model.safetensors"):
            with pytest.raises(UsageError, match="model in a zip file"):
                load_model(place)
        with pytest.raises(ModelError, match="no such model"):
            load_model(f"{url}/none.safetensors#sha256={other}")
        (tmp_path / "large").write_bytes(bytes(2**26 + 1))
        with pytest.raises(ModelError, match="at most"):
            load_model(f"{url}/large#sha256={other}")
