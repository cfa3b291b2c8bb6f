"""The channel of AFTER is that of BEFORE that it was made of; where nobody knows which, it is said or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from svision_dask.errors import UsageError
from svision_dask.judging.picking import Held, pick, pick_reference
from svision_dask.omezarr.metadata import read_provenance
from tests.commands import run, write_tiff
from tests.test_comparison import FACTOR, grid, scene


def of(channels, chosen=(), names=()):
    return Held(name="it", counts={"c": channels}, names=names, chosen={"c": chosen})


@pytest.mark.parametrize(
    ("before", "after", "channel", "expected"),
    [
        (of(3), of(3), None, (0, 0)),
        (of(3), of(3), 2, (2, 2)),
        (of(3), of(1, (1,)), None, (1, 0)),
        (of(3), of(1, (1,)), 1, (1, 0)),
        (of(3), of(2, (2, 0)), None, (2, 0)),
        (of(3), of(2, (2, 0)), "0", (0, 1)),
        (of(3, names=("a", "b", "c")), of(2, (2, 0)), "c", (2, 0)),
        (of(2, (4, 7)), of(1, (7,)), None, (1, 0)),  # BEFORE itself is a part of its file
        (of(1), of(1, (2,)), None, (0, 0)),  # BEFORE was copied out of the file
        (of(3), of(1), 2, (2, 0)),
    ],
)
def test_the_channel_of_after_is_the_one_made_of_that_of_before(before, after, channel, expected):
    first, second, _ = pick({"c": channel}, before, after)
    assert (first["c"], second["c"]) == expected


def test_what_cannot_belong_together_is_refused_and_what_may_not_is_warned_of():
    with pytest.raises(UsageError, match=r"--channel 0: it was made of channels 1\. Give one"):
        pick({"c": 0}, of(3), of(1, (1,)))
    with pytest.raises(UsageError, match="it has 2 channels, it 3, and does not say which belong together"):
        pick({}, of(3), of(2))
    assert any("does not say of which of 3 channels" in text for text in pick({}, of(3), of(1))[2])
    assert not any("does not say" in text for text in pick({"c": 1}, of(3), of(1))[2])


def test_a_truth_has_the_channels_of_after_or_of_before_or_one():
    places = {"c": 2}, {"c": 0}
    counts = [(1, 0), (3, 2)]
    assert [pick_reference(of(n), of(3), of(1, (2,)), places)["c"] for n, _ in counts] == [at for _, at in counts]
    with pytest.raises(UsageError, match="--reference it has 4 channels"):
        pick_reference(of(4), of(3), of(1), places)


def test_an_output_of_one_channel_is_compared_with_that_channel(tmp_path):
    rng = np.random.default_rng(0)
    voxels = np.stack([scene(seed, (16, 64, 64))[0] for seed in (0, 1)]).astype("uint16")
    voxels[0] = rng.permutation(voxels[0].ravel()).reshape(voxels[0].shape)  # nothing that channel 1 is like
    source = write_tiff(tmp_path / "two.ome.tif", voxels, "CZYX")
    made = run("enhance", source, tmp_path / "fine.ome.zarr", "--channel", 1, "--steps", 1, "--seed", 1)
    assert made.exit_code == 0, made.stderr
    assert read_provenance(tmp_path / "fine.ome.zarr")["chosen"] == {"c": [1]}
    found = [run("compare", source, tmp_path / "fine.ome.zarr", "--json", *more) for more in ((), ("--channel", 1))]
    figures = [json.loads(each.stdout) for each in found]
    assert [each["channel"] for each in figures] == [1, 1]
    assert figures[0]["consistency"] == figures[1]["consistency"]
    assert figures[0]["consistency"]["rmse_percent"] < 5
    wrong = run("compare", source, tmp_path / "fine.ome.zarr", "--channel", 0)
    assert "was made of channels 1" in wrong.error


def test_before_is_opened_as_enhance_opens_it(tmp_path):
    coarse, fine, _ = scene(shape=(16, 64, 64))
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as file:
        for voxels in (np.zeros((4, 8, 8), "float32"), coarse):
            file.write(voxels, metadata={"axes": "ZYX"})
    where = grid(coarse.shape)
    after = tmp_path / "fine.ome.tif"
    sizes = {f"PhysicalSize{a}": s for a, s in zip("ZYX", where.finer(FACTOR).spacing, strict=True)}
    tifffile.imwrite(after, fine, ome=True, metadata={"axes": "ZYX", **sizes})
    how = ("--series", 1, "--spacing", "z=0.8,y=0.4,x=0.4", "--unit", "micrometer", "--json")
    outcome = run("compare", tmp_path / "two.ome.tif", after, *how)
    assert outcome.exit_code == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["before"]["shape"] == list(coarse.shape)
    assert found["before"]["spacing"] == [0.8, 0.4, 0.4]
    assert not any("does not say where its voxels are" in text for text in found["warnings"])
