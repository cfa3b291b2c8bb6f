from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from svision_dask.errors import SampleError
from svision_dask.network.model import Model
from svision_dask.omezarr.read import read_provenance
from svision_dask.running.pipeline import enhance_to_zarr
from svision_dask.training.drift import DriftWarning, drift, renormalised
from svision_dask.training.train import train
from svision_dask.volume import Volume
from tests.commands import run, textured, write_tiff
from tests.models import tiny
from tests.test_training import refined, volume_of

SHAPE = (12, 40, 40)


@pytest.fixture(scope="module")
def model() -> Model:
    return train(volume(), steps=1)


def volume(gain: float = 1.0, offset: float = 0.0, blur: float = 0.0, seed: int = 0) -> Volume:
    voxels = textured(SHAPE, seed=seed).astype(np.float32)
    voxels = gaussian_filter(voxels, blur) if blur else voxels
    return volume_of((gain * voxels + offset).astype(np.float32))


def test_volumes_of_one_kind_pass_without_a_word(model):
    for seed in (0, 1, 2):
        assert drift(model, volume(seed=seed)) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"offset": 1000.0}, ["mean intensity 15"]),
        ({"gain": 0.1}, ["mean intensity", "contrast (standard deviation)"]),
        ({"gain": 4.0, "offset": -1727.0}, ["contrast (standard deviation)"]),
        ({"blur": 2.0}, ["times smoother along z", "times smoother along y", "times smoother along x"]),
    ],
)
def test_what_is_unlike_the_training_is_named(model, other, words):
    found = drift(model, volume(**other))
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence


def test_channels_are_compared_each_with_its_own():
    pair = np.stack([textured(SHAPE), textured(SHAPE) * 5]).astype(np.float32)
    own = train(volume_of(pair, "czyx"), steps=1)
    assert drift(own, volume_of(pair, "czyx")) == []
    found = drift(own, volume_of(pair[::-1].copy(), "czyx"))
    assert {sentence.split(":")[0] for sentence in found} == {"channel 0", "channel 1"}


def test_a_model_that_does_not_say_what_it_saw_is_not_judged():
    assert drift(tiny((2, 2, 2)), volume()) == []


@pytest.mark.parametrize(
    "odd", [5, "abc", {"a": 1}, [5], [["a", "b", "c"]], [[1, 2]], [[1, 2, float("nan")]], [[1, 2, -1]]]
)
def test_what_a_model_file_says_of_its_sample_is_not_trusted(model, odd):
    assert drift(replace(model, provenance={**model.provenance, "roughness": odd}), volume(offset=1e6)) == []


def test_a_volume_without_contrast_is_said_not_to_compare(model):
    (sentence,) = drift(model, volume_of(np.full(SHAPE, 7, np.float32)))
    assert "cannot be compared" in sentence


@pytest.mark.parametrize(("gain", "offset"), [(257.0, 0.0), (0.01, -3.0)])
def test_renormalised_a_model_does_the_same_in_another_unit(model, gain, offset):
    other = volume(gain=gain, offset=offset)
    again = renormalised(model, other)
    assert drift(again, other) == []
    assert again.provenance["renormalised"]["input"] == other.name
    plain = textured(SHAPE).astype(np.float32)
    wanted = gain * refined(model, plain) + offset
    got = refined(again, (gain * plain + offset).astype(np.float32))
    assert np.abs(got - wanted).max() < 1e-3 * np.ptp(wanted)
    with pytest.raises(SampleError, match="nothing to learn"):
        renormalised(model, volume_of(np.full(SHAPE, 7, np.float32)))


def test_enhancing_warns_and_the_image_says_so(tmp_path, model):
    with pytest.warns(DriftWarning, match="mean intensity 15"):
        enhance_to_zarr(volume(offset=1000.0), tmp_path / "far.zarr", model=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        enhance_to_zarr(volume(), tmp_path / "near.zarr", model=model)
    said = {name: read_provenance(tmp_path / f"{name}.zarr")["drift"] for name in ("far", "near")}
    assert said["near"] == []
    assert "mean intensity" in said["far"][0]


def test_the_command_line_warns_once_and_renormalises_on_request(tmp_path):
    near = write_tiff(tmp_path / "near.ome.tif", textured(SHAPE))
    far = write_tiff(tmp_path / "far.ome.tif", textured(SHAPE) * 9)
    assert run("train", near, "-o", tmp_path / "m.safetensors", "--steps", 1).exit_code == 0
    for extra, times in (((), 1), (("--renormalise",), 0)):
        done = run("enhance", far, tmp_path / "out.zarr", "-m", tmp_path / "m.safetensors", "--overwrite", *extra)
        assert done.exit_code == 0, done.stderr
        assert done.stderr.count("warning: mean intensity") == times
    assert "Leave it out, or give -m" in run("enhance", near, tmp_path / "b.zarr", "--renormalise").error
