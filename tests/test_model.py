from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from svision_dask.errors import ModelError, OutputError, UsageError
from svision_dask.network.architecture import architecture
from svision_dask.network.model import MAX_BYTES, Model, Normalisation, _loaded, load_model, load_model_once
from svision_dask.network.stage import Stage
from svision_dask.volume import mirror_pad
from tests.models import fast, tiny, untrained

FACTORS = [("zyx", (2, 2, 2)), ("zyx", (1, 2, 4)), ("zyx", (4, 2, 1)), ("yx", (1, 2, 2)), ("yx", (1, 4, 4))]


def random_box(model: Model, inner: int, seed: int = 0) -> np.ndarray:
    planar = model.architecture.axes == "yx"
    shape = [(1 if planar and axis == 0 else inner) + 2 * h for axis, h in enumerate(model.halo)]
    return np.random.default_rng(seed).random(shape, dtype=np.float32) * 200


def parts(content: bytes) -> tuple[dict, dict[str, torch.Tensor]]:
    """Our header and the weights of a model file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["svision_dask"]), load(content)


def file_of(header: object, weights: dict[str, torch.Tensor]) -> bytes:
    return save(weights, metadata={"svision_dask": json.dumps(header)})


@pytest.mark.parametrize(("axes", "factor"), FACTORS)
def test_a_box_is_refined_to_factor_times_its_voxels(axes, factor):
    model = tiny(factor, axes)
    fine = model.refine(random_box(model, 5))
    assert fine.dtype == np.float32
    assert fine.shape == tuple((1 if axes == "yx" and axis == 0 else 5) * f for axis, f in enumerate(factor))


@pytest.mark.parametrize(("axes", "factor"), FACTORS)
def test_no_voxel_beyond_the_halo_has_an_influence(axes, factor):
    model = tiny(factor, axes)
    box = random_box(model, 3)
    fine = model.refine(box)
    for axis in (i for i, name in enumerate("zyx") if name in axes):
        changed = box.copy()
        np.moveaxis(changed, axis, 0)[0] += 1000
        inner = [slice(None)] * 3
        inner[axis] = slice(factor[axis], None)  # the first coarse voxel is within its halo
        np.testing.assert_array_equal(model.refine(changed)[tuple(inner)], fine[tuple(inner)])


@pytest.mark.parametrize(("axes", "factor"), FACTORS)
def test_the_voxels_of_the_halo_have_an_influence(axes, factor):
    model = tiny(factor, axes)
    box = random_box(model, 1)
    for axis in (i for i, name in enumerate("zyx") if name in axes):
        changed = box.copy()
        # A halo rounded up for a second stage may hold one voxel too many.
        np.moveaxis(changed, axis, 0)[1] += 1e6
        assert not np.array_equal(model.refine(changed), model.refine(box))


def test_a_model_with_silent_networks_leaves_a_constant_as_it_is():
    model = untrained(architecture("paper", (4, 4, 4), "zyx", kernel_radius=1))
    for stage in model.stages:
        stage.network.steps[-1].weight.zero_()
    np.testing.assert_allclose(model.refine(np.full([1 + 2 * h for h in model.halo], 137.0)), 137.0, rtol=1e-5)


def test_intensities_come_back_in_the_units_of_the_volume():
    model = fast((2, 2, 2))
    box = random_box(model, 4)
    shifted = replace(model, normalisation=(Normalisation(offset=100.0 * 8 + 3000, scale=50.0 * 8),))
    np.testing.assert_allclose(shifted.refine(box * 8 + 3000), model.refine(box) * 8 + 3000, rtol=1e-4)


def test_every_channel_has_its_own_constants_and_one_serves_all():
    model = fast((1, 2, 2), "zyx", channels=2)
    box = random_box(model, 4)
    own = replace(model, normalisation=model.normalisation[1:])
    np.testing.assert_array_equal(model.refine(box, channel=1), own.refine(box))
    np.testing.assert_array_equal(own.refine(box, channel=5), own.refine(box))
    assert not np.array_equal(model.refine(box, channel=0), model.refine(box, channel=1))


def test_a_model_of_two_channels_serves_no_volume_of_three():
    model = fast((2, 2, 2), channels=2)
    model.for_channels(2)
    fast((2, 2, 2)).for_channels(3)
    with pytest.raises(ModelError, match="trained on 2 channels; the volume has 3"):
        model.for_channels(3)


def test_a_box_that_is_all_halo_is_refused():
    with pytest.raises(UsageError, match="nothing is left"):
        fast((2, 2, 2)).refine(np.zeros((7, 6, 7), np.float32))


@pytest.mark.parametrize(("axes", "factor"), FACTORS)
def test_a_saved_model_refines_bit_by_bit_alike(tmp_path, axes, factor):
    model = tiny(factor, axes, channels=2)
    model = replace(model, provenance={"seed": 7, "loss": [[0.5, 0.25]], "sample": [[0, 9]]})
    again = load_model(model.save(tmp_path / "model.safetensors"))
    box = random_box(model, 5)
    np.testing.assert_array_equal(again.refine(box), model.refine(box))
    assert (again.architecture, again.normalisation, again.provenance) == (
        model.architecture,
        model.normalisation,
        model.provenance,
    )
    assert again.to_bytes() == model.to_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_the_digest_is_that_of_the_file_and_differs_with_every_part(tmp_path):
    import hashlib

    model = fast((2, 2, 2))
    path = model.save(tmp_path / "model.safetensors")
    assert model.digest == load_model(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()
    others = [
        replace(model, normalisation=(Normalisation(offset=100.0, scale=50.000001),)),
        replace(model, provenance={"seed": 1}),
        untrained(model.architecture, seed=1),
        fast((1, 2, 2)),
    ]
    assert len({model.digest, *(other.digest for other in others)}) == 5


def test_a_model_loaded_for_a_plan_must_be_the_one_it_was_planned_with(tmp_path):
    path = fast((2, 2, 2)).save(tmp_path / "model.safetensors")
    digest = fast((2, 2, 2)).digest
    assert load_model_once(str(path), digest) is load_model_once(str(path), digest)
    fast((1, 2, 2)).save(path)
    _loaded.cache_clear()
    with pytest.raises(ModelError, match="has changed since the plan was made"):
        load_model_once(str(path), digest)


def test_a_process_loads_a_model_once_however_many_of_its_regions_ask_at_the_same_time(tmp_path):
    path, digest = str(fast((2, 2, 2)).save(tmp_path / "model.safetensors")), fast((2, 2, 2)).digest
    together, found = threading.Barrier(8), []

    def ask() -> None:
        together.wait(10)
        found.append(load_model_once(path, digest))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 8
    assert len({id(each) for each in found}) == 1


SAVE_ON_A_SMALL_DISK = """
import resource, sys
from svision_dask.errors import OutputError
from svision_dask.network.model import load_model
model = load_model(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))  # no file can be longer than ten bytes
try:
    model.save(sys.argv[2])
except OutputError as error:
    print(error)
"""


def test_a_model_is_written_whole_or_not_at_all(tmp_path):
    whole, path = fast((2, 2, 2)).save(tmp_path / "whole.safetensors"), tmp_path / "model.safetensors"
    path.write_bytes(b"before")
    # In a process of its own: this one may be writing its report into a file, which the limit would cut short.
    command = [sys.executable, "-c", SAVE_ON_A_SMALL_DISK, str(whole), str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "model.safetensors: the model cannot be written" in said
    assert path.read_bytes() == b"before"
    assert sorted(tmp_path.iterdir()) == [path, whole]


def test_a_model_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="taken: the model cannot be written"):
        fast((2, 2, 2)).save(tmp_path / "taken")
    with pytest.raises(OutputError, match="absent"):
        fast((2, 2, 2)).save(tmp_path / "absent" / "model.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def assert_refused(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_a_file_is_refused(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(ModelError, match="no such model file"):
            load_model(path)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/mem is a file that cannot be read from its start")
def test_a_file_that_cannot_be_read_is_refused():
    with pytest.raises(ModelError, match="cannot be read"):
        load_model("/proc/self/mem")


def test_a_file_far_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ModelError, match=f"{MAX_BYTES + 1} bytes; a model has at most {MAX_BYTES}"):
        load_model(path)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_no_truncated_file_is_read(tmp_path_factory, data):
    content = fast((2, 2, 2)).to_bytes()
    length = data.draw(st.one_of(st.integers(0, 64), st.integers(0, len(content) - 1)))
    assert_refused(
        tmp_path_factory.mktemp("cut") / "model", content[:length], "not a model of svision-dask, or damaged"
    )


@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory, content):
    assert_refused(tmp_path_factory.mktemp("noise") / "model", content, "not a model of svision-dask, or damaged")


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_a_flipped_bit_of_the_header_ends_in_a_refusal_or_in_a_model(place, bit, tmp_path_factory):
    model = fast((2, 2, 2))
    content = bytearray(model.to_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[place % header] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "model"
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        again = load_model(path)
        assert again.refine(random_box(again, 1)).shape == (2, 2, 2)


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "write", [lambda c, p: p.write_bytes(pickle.dumps(c)), lambda c, p: torch.save(c, p)], ids=["pickle", "torch"]
)
def test_loading_executes_nothing(tmp_path, write):
    canary, path = tmp_path / "canary", tmp_path / "model.pt"
    write(Canary(canary), path)
    with pytest.raises(ModelError, match="not a model of svision-dask"):
        load_model(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # it would have


def without(mapping: dict, key: str) -> dict:
    return {k: v for k, v in mapping.items() if k != key}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: {**h, "format": 1}, "a model of format 1; this version reads 3"),
        (lambda h: {**h, "format": "1"}, "a model of format '1'"),
        (lambda h: without(h, "format"), "damaged"),
        (lambda h: without(h, "architecture"), "damaged"),
        (lambda h: without(h, "provenance"), "damaged"),
        (lambda h: {**h, "provenance": 3}, "damaged"),
        (lambda h: {**h, "normalisation": []}, "no normalisation"),
        (lambda h: {**h, "normalisation": [{"offset": 0.0}]}, "damaged"),
        (lambda h: {**h, "normalisation": [{"offset": 0.0, "scale": 0.0}]}, "not positive"),
        (lambda h: {**h, "normalisation": [{"offset": float("nan"), "scale": 1.0}]}, "not a finite number"),
        (lambda h: {**h, "normalisation": [{"offset": 10**400, "scale": 1.0}]}, "damaged"),
        (lambda h: {**h, "residual_scale": [-1.0]}, "not positive"),
        (lambda h: {**h, "residual_scale": "1"}, "not a finite number"),
        (lambda h: {**h, "residual_scale": [1.0, 1.0]}, "2 residual scales and 1 dampings for 1 stages"),
        (lambda h: {**h, "damping": []}, "1 residual scales and 0 dampings for 1 stages"),
        (lambda h: {**h, "damping": [1.5]}, "not in 0..1"),
        (lambda h: without(h, "damping"), "damaged"),
        (lambda h: {**h, "architecture": {"axes": "zyx", "stages": []}}, "cannot build its architecture: axes"),
        (lambda h: {**h, "architecture": without(h["architecture"], "axes")}, "architecture: there is no 'axes'. Use"),
        (lambda h: [h], "damaged"),
        (lambda h: None, "damaged"),
        (lambda h: {**h, "architecture": architecture("fast", (1, 2, 2), "zyx").to_json()}, "do not fit"),
        (lambda h: {**h, "architecture": architecture("paper", (2, 2, 2), "zyx").to_json()}, "do not fit"),
    ],
    ids=range(23),
)
def test_a_header_that_is_wrong_or_of_another_model_is_refused(tmp_path, change, reason):
    header, weights = parts(fast((2, 2, 2)).to_bytes())
    assert_refused(tmp_path / "model", file_of(change(header), weights), reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w, name: without(w, name), "do not fit"),
        (lambda w, name: {**w, "extra": torch.zeros(3)}, "do not fit the architecture, first extra"),
        (lambda w, name: {**w, name: w[name][:1].clone()}, "do not fit"),
        (lambda w, name: {**w, name: w[name].half()}, "do not fit"),
        (lambda w, name: {**w, name: w[name] * torch.nan}, "not finite"),
        (lambda w, name: {**w, name: w[name] + torch.inf}, "not finite"),
    ],
    ids=["missing", "extra", "shape", "type", "NaN", "infinite"],
)
def test_weights_that_are_not_those_of_the_architecture_are_refused(tmp_path, change, reason):
    header, weights = parts(fast((2, 2, 2)).to_bytes())
    assert_refused(tmp_path / "model", file_of(header, change(weights, "stage0.network.steps.2.weight")), reason)


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b'{"__metadata__": {}}',
        b'{"__metadata__": {"other": "1"}}',
        b'{"__metadata__": {"svision_dask": "' + b"[" * 100_000 + b'"}}',
        b'{"__metadata__": [' + b"[" * 100_000,
        b"\xff" * 40,
    ],
    ids=["empty", "no text", "another's", "nested text", "nested", "not text"],
)
def test_a_safetensors_file_that_is_not_ours_is_refused(tmp_path, header):
    assert_refused(tmp_path / "model", len(header).to_bytes(8, "little") + header, "damaged")


def test_a_header_that_claims_to_be_endless_is_refused(tmp_path):
    assert_refused(tmp_path / "model", (2**63).to_bytes(8, "little") + b"{}", "a header of 9223372036854775808 bytes")


def test_a_pickled_model_is_its_file_and_is_made_once_per_process():
    model = fast((2, 2, 2))
    content = pickle.dumps(model)
    again = pickle.loads(content)
    assert model.to_bytes() in content
    assert len(content) < len(model.to_bytes()) + 200
    assert again.digest == model.digest
    assert pickle.loads(content) is again  # however many tasks of a graph carry it
    box = random_box(model, 4)
    np.testing.assert_array_equal(again.refine(box), model.refine(box))


def test_a_pickled_model_arrives_in_another_process():
    model = fast((2, 2, 2))
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).digest)"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(model), capture_output=True, check=True)
    assert done.stdout.decode().strip() == model.digest


def test_dask_knows_equal_models_by_their_digest():
    model = fast((2, 2, 2))
    copy = replace(model)
    assert copy is not model
    assert dask.base.tokenize(copy) == dask.base.tokenize(model)
    assert dask.base.tokenize(untrained(model.architecture, seed=1)) != dask.base.tokenize(model)


def test_refining_leaves_the_voxels_and_the_random_numbers_alone():
    model, state = fast((2, 2, 2)), torch.random.get_rng_state()
    box = random_box(model, 4)
    before = box.copy()
    model.refine(box)
    np.testing.assert_array_equal(box, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float16, np.float64, ">u2"])
def test_any_real_voxel_type_is_refined_alike(dtype):
    model = fast((2, 2, 2))
    box = np.rint(random_box(model, 4))
    np.testing.assert_array_equal(model.refine(box.astype(dtype)), model.refine(box))


def test_mirrored_faces_are_the_volume_gone_on():
    # A volume that is mirror-symmetric about its middle face is refined alike from either half.
    model = tiny((2, 2, 2))
    half = np.random.default_rng(3).random((9, 9, 9), dtype=np.float32)
    whole = np.concatenate([half[:, :, ::-1], half], axis=2)
    fine_half = model.refine(mirror_pad(half, model.halo))
    fine_whole = model.refine(mirror_pad(whole, model.halo))
    np.testing.assert_allclose(fine_whole[:, :, 18:], fine_half, atol=1e-4)


def test_a_stage_has_no_gradient_after_loading(tmp_path):
    model = load_model(fast((2, 2, 2)).save(tmp_path / "model"))
    assert all(isinstance(stage, Stage) and not stage.training for stage in model.stages)
    assert not any(p.requires_grad for stage in model.stages for p in stage.parameters())
