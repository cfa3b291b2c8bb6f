"""Trust maps are what they are defined as, whatever the cuts, and are looked after as the image is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import ome_zarr_models
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.memory import measure, ramp_volume
from svision_dask.backend import CPU, PROCESS_BYTES, process_bytes
from svision_dask.errors import OutputError, UsageError
from svision_dask.geometry import spatial_shape
from svision_dask.judging.checking import check
from svision_dask.network.architecture import Architecture, Layer, StageSpec
from svision_dask.network.baselines import reduced
from svision_dask.network.ensemble import orientations, reduction_margin
from svision_dask.network.model import Model
from svision_dask.omezarr.read import list_levels, read_provenance
from svision_dask.omezarr.write import create_store, open_level
from svision_dask.opening.formats import open_volume
from svision_dask.running import image
from svision_dask.running.cluster import local_client
from svision_dask.running.enhancement import cast
from svision_dask.running.pipeline import enhance_to_zarr, plan_volume
from svision_dask.running.progress import RunProgress
from svision_dask.running.trust_maps import judge_box, shortened
from svision_dask.running.trust_summary import summarise_maps
from svision_dask.running.verification import images_of, reopen_damaged, verify
from svision_dask.training.noise_estimate import Noise
from svision_dask.volume import Volume, mirror_pad, read_mirrored
from svision_dask.wishes import Machine, Wishes
from tests.commands import run, textured, write_tiff
from tests.models import WAYS, fast, tiny, untrained
from tests.test_enhancement import RANGE, ROUNDING, random_voxels, volume_of
from tests.test_resume import interrupt_after

MODELS = {
    "fast": fast((2, 2, 2)),
    "fast ×4": fast((4, 4, 4)),
    "planes of a stack": fast((1, 2, 2)),
    "mixed": tiny((1, 2, 4)),
    "ensemble": tiny((2, 2, 2)),
    "axial": tiny((2, 1, 1), axial=True),
    "points": tiny((2, 2, 2), how=WAYS[2]),
    "a plane": fast((1, 2, 2), "yx"),
}
KINDS = ("spread", "consistency")
MACHINE = Machine(cores=2, memory_bytes=8 * 2**30)
CUT = Wishes(
    tile={"z": 8, "y": 12, "x": 12}, chunk={"z": 8, "y": 8, "x": 8}, shard={"z": 16, "y": 24, "x": 24}, trust=True
)
LONG = Wishes(
    tile={"z": 8, "y": 24, "x": 32}, chunk={"z": 8, "y": 16, "x": 16}, shard={"z": 16, "y": 48, "x": 64}, trust=True
)
"""For ``source``: five regions, and a coarser level."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def client():
    with local_client(workers=2, memory_bytes=4 * 2**30) as started:
        yield started


def whole(voxels: np.ndarray, model: Model, *, one_pass: bool = False) -> np.ndarray:
    return model.refine(mirror_pad(voxels, model.halo), one_pass=one_pass)


def defined(voxels: np.ndarray, model: Model) -> dict[str, np.ndarray]:
    """Both maps of a whole volume (z, y, x) by their definitions: no tiles, and members made of the volume itself."""
    members = []
    for flips, swap in orientations(model.architecture.stages):
        turned = np.flip(voxels, flips)
        turned = turned.swapaxes(1, 2) if swap else turned
        fine = whole(turned, model, one_pass=True)
        members.append(np.flip(fine.swapaxes(1, 2) if swap else fine, flips))
    stored = cast(whole(voxels, model), voxels.dtype)
    again = reduced(stored, model.factor, model.architecture.stages[0].degradation)
    return {"spread": np.std(members, axis=0, dtype=np.float64), "consistency": np.abs(again - voxels)}


def assert_close(found: np.ndarray, wanted: np.ndarray, rounding: float = 4 * ROUNDING * RANGE) -> None:
    np.testing.assert_allclose(found, wanted, rtol=2**-8, atol=rounding)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(MODELS)))
def test_a_box_is_judged_as_the_whole_volume_is_whatever_the_tiles(data, name):
    model = MODELS[name]
    axes = model.architecture.axes
    shape = data.draw(st.tuples(*[st.integers(1, 11)] * len(axes)))
    tile = tuple(data.draw(st.integers(1, n)) for n in shape)
    first = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    count = tuple(data.draw(st.integers(1, -(-(n - a) // t))) for n, a, t in zip(shape, first, tile, strict=True))
    voxels = random_voxels(shape, seed=data.draw(st.integers(0, 9)))
    volume = volume_of(voxels, axes)
    beyond = [h + m for h, m in zip(model.halo, reduction_margin(model.architecture), strict=True)][3 - len(axes) :]
    low = tuple(a - b for a, b in zip(first, beyond, strict=True))
    high = tuple(a + k * t + b for a, k, t, b in zip(first, count, tile, beyond, strict=True))
    wide = read_mirrored(volume, low, high)
    found = judge_box(wide, model, axes=axes, tile=tile, start=first, volume=shape, dtype=voxels.dtype, backend=CPU)
    wanted = defined(voxels.reshape(spatial_shape(axes, shape)), model)
    for kind, factor in (("spread", model.factor[3 - len(axes) :]), ("consistency", (1,) * len(axes))):
        box = tuple(
            slice(f * a, f * min(a + k * t, n)) for f, a, k, t, n in zip(factor, first, count, tile, shape, strict=True)
        )
        there = wanted[kind].reshape([f * n for f, n in zip(factor, shape, strict=True)])[box]
        assert_close(found[kind][tuple(slice(0, n) for n in there.shape)], there)


@pytest.mark.parametrize("name", ["fast", "fast ×4", "ensemble", "mixed"])
def test_a_box_of_one_value_takes_one_voxels_work(name, monkeypatch):
    model, shape = MODELS[name], (6, 5, 7)
    voxels = np.full(shape, 90, np.float32)
    wanted = defined(voxels, model)
    beyond = [h + m for h, m in zip(model.halo, reduction_margin(model.architecture), strict=True)]
    seen = []
    refine = Model.refine
    monkeypatch.setattr(Model, "refine", lambda self, v, **k: seen.append(v.shape) or refine(self, v, **k))
    found = judge_box(
        mirror_pad(voxels, tuple(beyond)),
        model,
        axes="zyx",
        tile=shape,
        start=(0, 0, 0),
        volume=shape,
        dtype=voxels.dtype,
        backend=CPU,
    )
    for kind in KINDS:
        assert_close(found[kind], wanted[kind])
    assert {sorted(s) == sorted(2 * h + 1 for h in model.halo) for s in seen} == {True}


def test_an_ensembles_members_have_its_result_for_their_mean():
    model = tiny((2, 2, 2))
    voxels = random_voxels((7, 9, 8))
    turned = [
        (flips, np.flip(voxels, flips).swapaxes(1, 2) if swap else np.flip(voxels, flips), swap)
        for flips, swap in orientations(model.architecture.stages)
    ]
    members = [whole(v, model, one_pass=True) for _, v, _ in turned]
    upright = [
        np.flip(m.swapaxes(1, 2) if swap else m, flips) for m, (flips, _, swap) in zip(members, turned, strict=True)
    ]
    assert len(members) == 8
    np.testing.assert_allclose(np.mean(upright, axis=0), whole(voxels, model), atol=ROUNDING * RANGE)


def test_values_keep_two_digits_in_half_their_bits():
    values = np.random.default_rng(0).lognormal(0, 5, 10_000).astype(np.float32)
    kept = shortened(values)
    np.testing.assert_allclose(kept, values, rtol=2**-9)
    assert not (kept.view(np.uint32) & 0x7FFF).any()
    assert shortened(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def volume() -> Volume:
    plain = volume_of(random_voxels((7, 17, 19), "uint16"), "zyx", 11)
    grid = replace(plain.grid, spacing=(2.0, 0.5, 0.5), origin=(10.0, -3.0, 0.25), units=("micrometer",) * 3)
    return replace(plain, grid=grid, name="primes")


def made(path: Path, volume: Volume, model: Model, client, wishes: Wishes = CUT) -> Path:
    plan = plan_volume(volume, model.architecture, wishes=wishes, machine=MACHINE)
    enhance_to_zarr(volume, path, model=model, plan=plan, client=client)
    return path


def voxels(path: Path, level: int = 0) -> np.ndarray:
    return np.asarray(open_volume(path, level=level).voxels.compute(scheduler="synchronous"))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_maps_of_an_output_are_images_of_it_and_leave_it_as_it_is(client, volume, version, tmp_path):
    wishes = replace(CUT, version=version, shard=CUT.shard if version == "0.5" else None, precision="float32")
    plain = made(tmp_path / "plain.zarr", volume, fast((2, 2, 2)), client, replace(wishes, trust=False))
    path = made(tmp_path / "trust.zarr", volume, fast((2, 2, 2)), client, wishes)
    np.testing.assert_array_equal(voxels(path), voxels(plain))
    wanted = defined(np.asarray(volume.voxels), fast((2, 2, 2)))
    assert_close(voxels(path / "trust" / "spread"), wanted["spread"])
    # Of the result as it is stored: here and there a voxel is rounded the other way.
    stored = np.abs(reduced(voxels(path), 2) - np.asarray(volume.voxels))
    assert_close(voxels(path / "trust" / "consistency"), stored, 0.5)
    for place in (path, *(path / "trust" / kind for kind in KINDS)):
        assert [f for f in check(str(place)) if f.severity == "error"] == []
        assert ome_zarr_models.open_ome_zarr(place, version=version) is not None
    fine, coarse = (open_volume(path / "trust" / kind).grid for kind in KINDS)
    assert fine == open_volume(path).grid
    assert coarse == volume.grid
    members = dict(zarr.open_group(path, mode="r").groups())
    assert {"spread", "consistency"} == set(dict(members["trust"].groups()))
    assert "trust" not in read_provenance(plain)
    assert read_provenance(path)["trust"]["share"] == 1


def test_other_cuts_give_the_same_maps(client, volume, tmp_path):
    model = tiny((2, 2, 2))
    one = made(tmp_path / "one.zarr", volume, model, client, replace(CUT, precision="float32"))
    other = made(tmp_path / "other.zarr", volume, model, client, Wishes(trust=True, precision="float32"))
    assert open_level(one / "trust" / "spread", 0).shards != open_level(other / "trust" / "spread", 0).shards
    for kind, rounding in (("spread", 4 * ROUNDING * RANGE), ("consistency", 0.5)):
        assert_close(voxels(one / "trust" / kind), voxels(other / "trust" / kind), rounding)


def test_channels_and_times_have_maps_of_their_own(client, tmp_path):
    many = volume_of(random_voxels((2, 3, 13, 11), "float32"), "tcyx", (1, 2, 9, 10))
    model = tiny((1, 2, 2), "yx", channels=3)
    wishes = Wishes(tile={"y": 8, "x": 8}, chunk={"y": 8, "x": 8}, shard={"y": 16, "x": 16}, trust=True)
    path = made(tmp_path / "planes.zarr", many, model, client, replace(wishes, precision="float32"))
    for t, c in np.ndindex(2, 3):
        own = replace(model, normalisation=(model.normalisation[c],))
        wanted = defined(np.asarray(many.voxels)[t, c][None], own)
        for kind in KINDS:
            assert_close(voxels(path / "trust" / kind)[t, c][None], wanted[kind])


def test_empty_regions_are_judged_by_what_was_measured(client, tmp_path):
    dim = volume_of(np.full((8, 16, 16), 3, np.float32) + random_voxels((8, 16, 16)) / RANGE, "zyx")
    model = fast((2, 2, 2))
    path = tmp_path / "dim.zarr"
    enhance_to_zarr(
        dim, path, model=model, trust=True, wishes=Wishes(precision="float32"), empty_below=5, client=client
    )
    again = reduced(voxels(path), 2) - np.asarray(dim.voxels)
    assert_close(voxels(path / "trust" / "consistency"), np.abs(again))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("trust") / "coarse.ome.tif", textured((8, 24, 160)))


@pytest.fixture(scope="module")
def undisturbed(source, client) -> Path:
    return made(source.with_name("undisturbed.zarr"), open_volume(source), fast((2, 2, 2)), client, LONG)


def assert_same(path: Path, other: Path) -> None:
    for place in ("", "trust/spread", "trust/consistency"):
        count = len(list_levels(path / place))
        assert count == len(list_levels(other / place))
        for level in range(count):
            np.testing.assert_array_equal(voxels(path / place, level), voxels(other / place, level))
    assert not [p for p in path.rglob("*") if p.name.startswith(".")]
    assert read_provenance(path)["trust"] == read_provenance(other)["trust"]


@pytest.mark.parametrize("count", [2, 5])
def test_an_interrupted_run_goes_on_to_the_same_maps(count, source, undisturbed, client, tmp_path):
    path, model = tmp_path / "stopped.zarr", fast((2, 2, 2))
    options = {"model": model, "client": client, "wishes": LONG}
    with pytest.raises(KeyboardInterrupt):
        enhance_to_zarr(source, path, on_progress=interrupt_after(count), **options)
    with pytest.raises(OutputError, match=r"trust was true and is false"):
        enhance_to_zarr(source, path, model=model, client=client, wishes=replace(LONG, trust=False))
    enhance_to_zarr(source, path, resume=True, **options)
    assert_same(path, undisturbed)


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_stopped_as_a_map_is_finished_leaves_nothing_beside_it(
    count, source, undisturbed, client, tmp_path, monkeypatch
):
    path, finished = tmp_path / "stopped.zarr", []
    options = {"model": fast((2, 2, 2)), "client": client, "wishes": LONG}
    publish = image.publish

    def stopped(place, *arguments, **others):
        publish(place, *arguments, **others)
        finished.append(place)
        if len(finished) == count:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(image, "publish", stopped)
        with pytest.raises(KeyboardInterrupt):
            enhance_to_zarr(source, path, **options)
    enhance_to_zarr(source, path, resume=True, **options)
    assert_same(path, undisturbed)


def test_a_run_without_maps_is_not_gone_on_with_as_one_that_has_them(source, client, tmp_path):
    path, model, plain = tmp_path / "plain.zarr", fast((2, 2, 2)), replace(LONG, trust=False)
    with pytest.raises(KeyboardInterrupt):
        enhance_to_zarr(source, path, model=model, client=client, wishes=plain, on_progress=interrupt_after(2))
    with pytest.raises(OutputError, match=r"trust was false and is true"):
        enhance_to_zarr(source, path, model=model, client=client, wishes=LONG)


@pytest.mark.parametrize("kind", ["", *KINDS])
def test_a_damaged_shard_is_found_and_made_anew(kind, source, client, tmp_path):
    path, model = tmp_path / "out.zarr", fast((2, 2, 2))
    options = {"model": model, "client": client, "wishes": LONG}
    enhance_to_zarr(source, path, **options)
    place = path / "trust" / kind if kind else path
    before = voxels(place)
    shard = sorted(p for p in (place / "0" / "c").rglob("*") if p.is_file())[-1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 255
    shard.write_bytes(content)
    found = {image: verify(image, client=client) for image in images_of(path)}
    assert [image for image, each in found.items() if each.damaged] == [str(place)]
    reopen_damaged(path, found)
    if kind:  # as if another processor had made the image: the region that is made again has other voxels then
        ledger = path.with_name(f".{path.name}.svision") / "receipts.jsonl"
        receipts = [json.loads(line) for line in ledger.read_text().splitlines()]
        receipts = [r | {"crc32": r["crc32"] ^ (r["level"] == 0 and r["index"] == 4)} for r in receipts]
        ledger.write_text("".join(f"{json.dumps(each)}\n" for each in receipts))
    seen: list[RunProgress] = []
    enhance_to_zarr(source, path, resume=True, on_progress=seen.append, **options)
    assert [(p.done, p.before, p.regions) for p in seen if p.level == 0] == [(5, 4, 5)]
    fine = 16 * 48 * 64
    of_maps = {"": 0, "spread": 4 * fine, "consistency": 4 * fine // 8}[kind]
    assert seen[0].written_bytes == 2 * fine + of_maps
    haloed = 8 * 24 * (32 + 3)  # its faces are those of the volume, but one
    assert seen[0].read_bytes == 2 * (haloed + (8 * 24 * (32 + 3 + 2) if kind else 0))
    np.testing.assert_array_equal(voxels(place), before)
    assert not any(verify(image, client=client).damaged for image in images_of(path))


def test_a_map_that_is_lost_does_not_pass(source, client, tmp_path):
    path = tmp_path / "out.zarr"
    enhance_to_zarr(source, path, model=fast((2, 2, 2)), client=client, wishes=LONG)
    assert [word for word in open_volume(path).dropped if word.startswith("trust")]  # not of what is made of it
    assert list(check(str(path))) == []
    shard = sorted(p for p in (path / "trust" / "consistency" / "0" / "c").rglob("*") if p.is_file())[0]
    shard.unlink()
    assert [f.where for f in check(str(path)) if f.severity == "error"] == [str(path / "trust" / "consistency" / "0")]
    shutil.rmtree(path / "trust" / "spread")
    assert str(path / "trust" / "spread") in [f.where for f in check(str(path)) if f.severity == "error"]
    with pytest.raises(OutputError, match="trust map 'spread' is lost"):
        images_of(path)


def test_the_plan_bounds_the_memory_of_maps_too():
    layers = (Layer(kernel=3, channels=4), Layer(kernel=3, channels=2))
    stage = StageSpec(factor=(1, 1, 2), layers=layers, back_projections=0, kernel_radius=0, ensemble=False)
    model = untrained(Architecture(axes="zyx", stages=(stage,)))
    wishes = Wishes(tile={"z": 48, "y": 160, "x": 160}, precision="float32", trust=True)
    result = measure(ramp_volume((48, 160, 320), "uint16"), model, wishes)
    spare = process_bytes() - PROCESS_BYTES  # a torch for GPUs maps libraries of which not everything is there
    assert result["measured"] <= result["planned"] <= 2 * result["measured"] + spare


def test_the_plan_counts_what_maps_read_and_write():
    volume = volume_of(random_voxels((20, 40, 40), "uint16"), "zyx")
    design = fast((2, 2, 2)).architecture
    plain, planned = (
        plan_volume(volume, design, wishes=Wishes(trust=trust), machine=MACHINE) for trust in (False, True)
    )
    assert planned.write_bytes - plain.write_bytes == 4 * (40 * 80 * 80 + 20 * 40 * 40)
    assert planned.read_bytes > 2 * plain.read_bytes
    assert planned.worker_bytes > plain.worker_bytes
    assert (planned.tile, planned.region) == (plain.tile, plain.region)


def test_points_that_have_one_orientation_only_are_refused():
    volume = volume_of(random_voxels((8, 8)), "yx")
    design = tiny((1, 2, 4), "yx", how=WAYS[2]).architecture
    with pytest.raises(UsageError, match=r"--trust: .* one orientation"):
        plan_volume(volume, design, wishes=Wishes(trust=True), machine=MACHINE)


def test_the_summary_knows_noise_from_what_is_more(tmp_path):
    rng = np.random.default_rng(0)
    volume = volume_of(np.full((20, 30, 40), 100.0, np.float32) + rng.normal(0, 2, (20, 30, 40)), "zyx")
    off = np.abs(rng.normal(0, 2, (20, 30, 40)))
    off[:2] = 50
    maps = {"spread": np.full((40, 60, 80), 0.5), "consistency": off}
    for kind, values in maps.items():
        grid = volume.grid.finer((2, 2, 2)) if kind == "spread" else volume.grid
        create_store(tmp_path / kind, [grid], dtype=np.float32, chunks=(16, 16, 16), attributes={})
        open_level(tmp_path / kind, 0, "r+")[:] = values
    places = {kind: tmp_path / kind for kind in maps}
    summary = summarise_maps(volume, places, [Noise(floor=4.0, gain=0.0)])
    assert summary["consistency"]["beyond_3_sigma"] == pytest.approx(0.1 + 0.9 * 0.0027, abs=1e-3)
    assert summary["spread"] == {"median": 0.5, "p99": 0.5}
    low, high = summary["range"]
    assert f"median {50 / (high - low):.2g} %" in summary["words"][0]
    silent = summarise_maps(volume, places)
    assert silent["consistency"]["beyond_3_sigma"] is None
    assert "no noise of a detector" in silent["words"][1]


def test_the_command_writes_maps_and_says_what_they_tell(source, tmp_path):
    model, path = fast((2, 2, 2)).save(tmp_path / "fast.safetensors"), tmp_path / "out.zarr"
    planned = [json.loads(run("plan", source, path, "-m", model, "--json", *o).stdout) for o in ([], ["--trust"])]
    assert [each["trust"] for each in planned] == [False, True]
    assert planned[1]["write_bytes"] > planned[0]["write_bytes"]
    outcome = run("enhance", source, path, "-m", model, "--trust", "--workers", 1, "--precision", "float32")
    assert outcome.exit_code == 0, outcome.stderr
    said = [line for line in outcome.stderr.splitlines() if line.startswith("trust    ")]
    assert any("spread: median" in line and "not the error" in line for line in said)
    assert any("consistency: median" in line for line in said)
    page = tmp_path / "report.html"
    compared = run("compare", source, path, "-o", page)
    assert compared.exit_code == 0, compared.stderr
    summary = read_provenance(path)["trust"]
    assert [line for line in compared.stdout.splitlines() if line.startswith("trust  ")] == [
        f"trust        {words}" for words in summary["words"]
    ]
    figures = json.loads(run("compare", source, path, "--json").stdout)["trust"]
    assert figures == {key: summary[key] for key in (*KINDS, "words")}
    text = page.read_text(encoding="utf-8")
    assert all(text.count(f"aria-label='trust map of {kind} in the plane xy") == 1 for kind in KINDS)
    assert all(escape(words) in text for words in summary["words"])
    shutil.rmtree(path / "trust")
    assert run("compare", source, path, "-o", page, "--overwrite").exit_code == 0
    assert page.read_text(encoding="utf-8").count("not inside AFTER any more") == 2
