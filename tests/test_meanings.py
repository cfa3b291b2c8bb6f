"""No number of a comparison goes without its unit and its definition."""

from __future__ import annotations

import json

import numpy as np
import pytest

from svision_dask.judging.meanings import unit_of
from tests.commands import run
from tests.test_beads import gaussian_bead
from tests.test_comparison import FACTOR, grid, plan, scene, stored

TRUST = {"spread": {"median": 1.0, "p99": 2.0}, "consistency": {"median": 1.0, "p99": 2.0, "beyond_3_sigma": 0.1}}


def leaves(value, key=()):
    """Every number and where it is; written anew, so that a walk that misses some is noticed."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*key, name))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, key)
    elif type(value) in (int, float):
        yield key


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the command prints of volumes of which all that there is can be measured: as JSON, and in words."""
    folder = tmp_path_factory.mktemp("meanings")
    coarse, fine, truth = scene(shape=(32, 128, 128))
    bead = 2000 * gaussian_bead((16, 60, 70), (3, 3, 3), truth.shape)
    noise = 60 * np.random.default_rng(1).standard_normal(coarse.shape)
    coarse = coarse + noise + bead.reshape(16, 2, 64, 2, 64, 2).mean(axis=(1, 3, 5))
    where, about = grid(coarse.shape), {"trust": {**TRUST, "words": ["spread: small"]}, "plan": plan(16)}
    before = stored(folder / "before.ome.zarr", coarse.astype("f4"), where, {})
    after = stored(folder / "after.ome.zarr", (fine + bead).astype("f4"), where.finer(FACTOR), about)
    reference = stored(folder / "truth.ome.zarr", (truth + bead).astype("f4"), where.finer(FACTOR), {})
    asked = ("compare", before, after, "--reference", reference, "--degrade", "cubic", "--beads")
    outcomes = run(*asked, "--json"), run(*asked)
    assert [each.exit_code for each in outcomes] == [0, 0]
    return json.loads(outcomes[0].stdout), outcomes[1].stdout


def test_every_number_has_a_unit_and_every_group_of_them_a_definition(printed):
    found = printed[0]
    keys = sorted(set(leaves({k: v for k, v in found.items() if k not in ("units", "definitions")})))
    groups = {key[0] for key in keys}
    assert {"one_image_frc", "beads", "frc", "decorrelation", "seam", "trust", "shift", "psnr", "cubic_bp"} <= groups
    assert [key for key in keys if not found["units"].get(".".join(key))] == []
    assert len(found["units"]) == len(keys)
    undefined = [
        name
        for name in groups
        if not (isinstance(found[name], dict) and "definition" in found[name]) and not found["definitions"].get(name)
    ]
    assert undefined == []


@pytest.mark.parametrize(
    ("key", "unit"),
    [
        ("psnr", "dB"),
        ("cubic_bp.ssim", "1 for equal volumes"),
        ("consistency.rmse", "intensities"),
        ("consistency.rmse_percent", "% of the range"),
        ("consistency.worst.index.z", "coarse voxels"),
        ("shift.world.x", "micrometer"),
        ("seam.worst.step", "intensities"),
        ("seam.worst.index", "fine voxels"),
        ("frc.lateral.frequencies", "1/micrometer"),
        ("decorrelation.places", "places"),
        ("decorrelation.after.lateral", "micrometer"),
        ("profiles.values.after", "intensities"),
        ("trust.consistency.beyond_3_sigma", "share of voxels"),
        ("after.spacing", "micrometer"),
    ],
)
def test_the_unit_is_that_of_the_smallest_group_that_has_one(printed, key, unit):
    assert printed[0]["units"][key] == unit


def test_what_nobody_knows_has_no_unit():
    assert unit_of("versions.of.something") is None


def test_words_name_units_and_say_what_p_means(printed):
    words = printed[1]
    assert "consistency  root mean square" in words
    for line in words.splitlines():
        if line.startswith(("consistency", "range")):
            assert "intensities" in line
        if line.startswith("seam"):
            assert "how likely a jump as in the worst of" in line
