from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svision_dask.backend import CPU, Backend
from svision_dask.errors import ImageError, ModelError, PlanError
from svision_dask.geometry import Grid
from svision_dask.network.model import Model, load_model
from svision_dask.running import enhancement
from svision_dask.running.enhancement import ManyTilesWarning, cast, enhance
from svision_dask.volume import Volume, mirror_pad
from tests.models import WAYS, fast, tiny

ROUNDING = 2e-5
"""Of the range: what float32 convolutions of another shape may differ by."""

HALF_ROUNDING = 2e-2
"""Of the range: bfloat16 has eight bits, and these networks' residuals are as strong as the signal."""

RANGE = 200
"""Of the voxels that ``random_voxels`` draws."""

AXIAL_FACTORS = [(2, 1, 1), (4, 1, 1)]
FACTORS = [(2, 2, 2), (1, 2, 2), *AXIAL_FACTORS, (1, 2, 4), (4, 2, 1)]
PLANE_FACTORS = [(1, 2, 2), (1, 1, 2), (1, 4, 2)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors: threads that wait for each other cost more than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def volume_of(voxels: np.ndarray | da.Array, axes: str, chunks: object = -1) -> Volume:
    n = len(axes)
    grid = Grid(axes=axes, shape=voxels.shape, spacing=(1.0,) * n, origin=(0.0,) * n, units=(None,) * n)
    lazy = voxels if isinstance(voxels, da.Array) else da.from_array(voxels, chunks=chunks)
    return Volume(voxels=lazy, grid=grid)


def enhanced(volume: Volume, model: Model, tile: dict[str, int] | None = None) -> np.ndarray:
    return np.asarray(enhance(volume, model, tile=tile).voxels.compute(scheduler="synchronous"))


def untiled(voxels: np.ndarray, model: Model) -> np.ndarray:
    """The reference: one forward pass over the whole volume, no dask."""
    spatial = voxels.reshape((1,) * (3 - voxels.ndim) + voxels.shape)
    return model.refine(mirror_pad(spatial, model.halo)).reshape(
        tuple(n * f for n, f in zip(voxels.shape, model.factor[3 - voxels.ndim :], strict=True))
    )


def random_voxels(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) * RANGE).astype(dtype)


@st.composite
def ragged(draw: st.DrawFn, length: int) -> tuple[int, ...]:
    """Chunks of any lengths that add up to ``length``."""
    cuts = draw(st.sets(st.integers(1, length - 1), max_size=4)) if length > 1 else set()
    edges = [0, *sorted(cuts), length]
    return tuple(b - a for a, b in pairwise(edges))


@st.composite
def tile_length(draw: st.DrawFn, length: int, halo: int) -> int:
    """A tile that is allowed: as long as its halo, or so long that there are at most two."""
    return draw(st.one_of(st.integers(max(halo, 1), max(halo, 1) + length), st.integers(-(-length // 2), length)))


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Model, str, tuple[int, ...], tuple, tuple[dict[str, int], ...]]:
    """A model, axes, shape, dask chunks, and two tilings."""
    axes = draw(st.sampled_from(["zyx", "yx"]))
    factor = draw(st.sampled_from(FACTORS if axes == "zyx" else PLANE_FACTORS))
    shape = tuple(draw(st.integers(1, 12 if axes == "zyx" else 40)) for _ in axes)
    axial = factor in AXIAL_FACTORS and draw(st.booleans())
    model = tiny(factor, axes, how=draw(st.sampled_from(WAYS)), axial=axial)
    halo = model.halo[3 - len(axes) :]
    tiles = tuple(
        {axis: draw(tile_length(n, h)) for axis, n, h in zip(axes, shape, halo, strict=True)} for _ in range(2)
    )
    return model, axes, shape, tuple(draw(ragged(n)) for n in shape), tiles


def assert_seamless(model: Model, reference: Model, axes: str, shape: tuple[int, ...], chunks, tiles) -> None:
    """The property: however the volume is cut, it is the reference's untiled result."""
    voxels = random_voxels(shape)
    wanted = untiled(voxels, reference)
    tolerance = ROUNDING * max(np.ptp(wanted), np.ptp(voxels), RANGE)
    first = enhanced(volume_of(voxels, axes, chunks), model, tiles[0])
    assert first.shape == wanted.shape
    assert np.abs(first - wanted).max() <= tolerance
    # The same tile, other chunks: the same bits.
    assert np.array_equal(first, enhanced(volume_of(voxels, axes), model, tiles[0]))
    second = enhanced(volume_of(voxels, axes, chunks), model, tiles[1])
    assert np.abs(second - wanted).max() <= tolerance


@given(cut=cuts())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_any_cut_gives_the_same_volume(cut) -> None:
    model, axes, shape, chunks, tiles = cut
    assert_seamless(model, model, axes, shape, chunks, tiles)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2)])
def test_the_fast_preset_is_seamless(factor) -> None:
    halo = fast(factor).halo
    tiles = ({"z": 9, "y": 9, "x": 11}, {"z": 10, "y": 13, "x": 9})
    assert all(t[axis] >= h for t in tiles for axis, h in zip("zyx", halo, strict=True))
    assert_seamless(fast(factor), fast(factor), "zyx", (13, 29, 31), ((4, 9), (1, 28), (31,)), tiles)


@given(cut=cuts())
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
def test_half_precision_is_as_seamless_to_its_own_rounding(cut) -> None:
    model, axes, shape, chunks, tiles = cut
    voxels, half = random_voxels(shape), Backend(precision="bfloat16")
    wanted = untiled(voxels, model)
    found = [enhance(volume_of(voxels, axes, c), model, tile=tiles[0], backend=half) for c in (chunks, -1)]
    first, second = (np.asarray(volume.voxels.compute(scheduler="synchronous")) for volume in found)
    assert np.array_equal(first, second)
    assert np.abs(first - wanted).max() <= HALF_ROUNDING * max(np.ptp(wanted), RANGE)


def test_a_result_that_is_not_finite_is_refused_and_never_cast_to_zeros():
    voxels = np.full((12, 12, 12), 3e38, np.float32)
    voxels[6, 6, 6] = -3e38
    with pytest.raises(ModelError, match="not finite"):
        enhanced(volume_of(voxels, "zyx"), tiny((2, 2, 2)))


@dataclass(frozen=True, kw_only=True)
class ShortHalo(Model):
    """Mutant: the halo is one voxel short, and made up for by mirroring the tile's own edge."""

    @property
    def halo(self):
        return tuple(max(h - 1, 0) for h in super().halo)

    def refine(self, haloed, *, channel=0, backend=CPU):
        missing = tuple(h - s for h, s in zip(super().halo, self.halo, strict=True))
        return exact(self).refine(mirror_pad(haloed, missing), channel=channel)


@dataclass(frozen=True, kw_only=True)
class TileStatistics(Model):
    """Mutant: every tile is normalised by its own mean."""

    def refine(self, haloed, *, channel=0, backend=CPU):
        own = haloed.mean()
        return exact(self).refine(haloed - own + 100, channel=channel) + own - 100


@dataclass(frozen=True, kw_only=True)
class PaddedConvolutions(Model):
    """Mutant: convolutions pad with zeros, so a tile needs no halo."""

    @property
    def halo(self):
        return (0, 0, 0)

    def refine(self, haloed, *, channel=0, backend=CPU):
        model = exact(self)
        return model.refine(np.pad(haloed, [(h, h) for h in model.halo]), channel=channel)


def exact(mutant: Model) -> Model:
    return Model(
        architecture=mutant.architecture, stages=mutant.stages, normalisation=mutant.normalisation, provenance={}
    )


def mutated(kind: type[Model], model: Model) -> Model:
    return kind(architecture=model.architecture, stages=model.stages, normalisation=model.normalisation)


@pytest.mark.parametrize("mutant", [ShortHalo, TileStatistics, PaddedConvolutions])
@pytest.mark.parametrize(
    "make", [partial(tiny, back_projections=0), partial(fast, back_projections=0)], ids=["tiny", "fast"]
)
def test_the_seam_test_catches(mutant, make) -> None:
    # Without back projection, whose outermost taps are as small as the tolerance; the next tests see those.
    model = make((2, 2, 2))
    tiles = ({"z": 8, "y": 9, "x": 10}, {"z": 16, "y": 16, "x": 8})
    arguments = ("zyx", (16, 16, 16), ((16,), (16,), (16,)), tiles)
    assert_seamless(model, model, *arguments)
    broken = mutated(mutant, model)
    with pytest.raises(AssertionError):
        assert_seamless(broken, model, *arguments)


@pytest.mark.parametrize("make", [tiny, fast])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 4)])
def test_a_voxel_counts_up_to_the_halo_and_not_beyond(make, axis, factor) -> None:
    model = make(factor)
    halo = model.halo
    # Fine voxels that the two-stage halo was rounded up for are the only slack there may be.
    slack = 1 if len(model.stages) == 2 else 0
    voxels = random_voxels(tuple(2 * h + 3 for h in halo))
    box = model.refine(voxels)

    def changed(distance: int) -> bool:
        other = np.pad(voxels, 1, mode="edge")
        place = [n // 2 for n in other.shape]
        place[axis] = halo[axis] + 1 - distance
        other[tuple(place)] += 1000
        return not np.array_equal(model.refine(other[1:-1, 1:-1, 1:-1]), box)

    assert not changed(halo[axis] + 1)  # beyond the halo the voxel is not even read
    assert changed(halo[axis]) or (slack and changed(halo[axis] - slack))


def test_perturbing_beyond_the_halo_leaves_the_enhanced_volume_bit_for_bit() -> None:
    model = tiny((2, 2, 2))
    h = model.halo[2]
    voxels = random_voxels((4, 5, 40))
    tile = {"z": 4, "y": 5, "x": h}
    before = enhanced(volume_of(voxels, "zyx"), model, tile)
    voxels[2, 2, 20] += 1000
    after = enhanced(volume_of(voxels, "zyx"), model, tile)
    touched = np.flatnonzero((before != after).any(axis=(0, 1)))
    # Of the two fine voxels of the last coarse one, the cubic taps reach one.
    assert 2 * (20 - h) <= touched.min() <= 2 * (20 - h) + 1
    assert 2 * (20 + h) <= touched.max() <= 2 * (20 + h) + 1


@pytest.mark.parametrize(("dtype", "lsb"), [("uint8", 1), ("uint16", 1), ("int16", 1)])
def test_integers_differ_by_at_most_one_between_tilings(dtype, lsb) -> None:
    voxels = random_voxels((9, 20, 21), dtype)
    model = tiny((2, 2, 2))
    one = enhanced(volume_of(voxels, "zyx"), model)
    other = enhanced(volume_of(voxels, "zyx"), model, {"z": 9, "y": 11, "x": 10})
    assert one.dtype == np.dtype(dtype)
    assert np.abs(one.astype(int) - other.astype(int)).max() <= lsb


def test_channels_and_times_are_enhanced_one_by_one_with_their_own_constants() -> None:
    voxels = random_voxels((2, 3, 9, 10, 11))
    model = tiny((2, 2, 2), channels=3)
    result = enhanced(volume_of(voxels, "tczyx", (1, 2, 9, 4, 11)), model)
    for t in range(2):
        for c in range(3):
            alone = model.refine(mirror_pad(voxels[t, c], model.halo), channel=c)
            np.testing.assert_allclose(result[t, c], alone, atol=ROUNDING * np.ptp(alone))
    assert not np.array_equal(
        model.refine(mirror_pad(voxels[0, 0], model.halo), channel=0),
        model.refine(mirror_pad(voxels[0, 0], model.halo), channel=1),
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 2), (2, 3, 1)])
def test_an_axis_shorter_than_the_halo_is_enhanced_all_the_same(shape) -> None:
    voxels = random_voxels(shape)
    model = fast((2, 2, 2))
    np.testing.assert_array_equal(enhanced(volume_of(voxels, "zyx"), model), untiled(voxels, model))


def test_the_result_is_lazy_and_its_grid_finer() -> None:
    def read(block: np.ndarray) -> np.ndarray:
        raise AssertionError("read while the graph was built")

    lazy = da.map_blocks(
        read, da.zeros((40, 40, 40), chunks=20), dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )
    grid = Grid(axes="zyx", shape=(40, 40, 40), spacing=(2.0, 1.0, 1.0), origin=(0.0, 5.0, 0.0), units=(None,) * 3)
    fine = enhance(Volume(voxels=lazy, grid=grid), tiny((1, 2, 4)))
    assert fine.voxels.shape == (40, 80, 160)
    assert fine.grid.spacing == (2.0, 0.5, 0.25)
    assert fine.grid.origin == (0.0, 4.75, -0.375)


def test_enhance_is_one_map_overlap_that_sees_one_block_shape(monkeypatch) -> None:
    seen = set()
    refine = Model.refine
    calls = []
    overlap = da.map_overlap

    def watched(self, haloed, *, channel=0, backend=CPU):
        seen.add(haloed.shape)
        return refine(self, haloed, channel=channel)

    monkeypatch.setattr(Model, "refine", watched)
    monkeypatch.setattr(da, "map_overlap", lambda *a, **k: calls.append(1) or overlap(*a, **k))
    model = tiny((2, 2, 2))
    enhanced(volume_of(random_voxels((13, 31, 37)), "zyx", (5, 7, 11)), model, {"z": 12, "y": 14, "x": 13})
    assert len(calls) == 1
    assert seen == {tuple(t + 2 * h for t, h in zip((12, 14, 13), model.halo, strict=True))}


def test_a_model_travels_in_the_graph_and_is_the_same_there(tmp_path: Path) -> None:
    model = tiny((2, 2, 2))
    copy = pickle.loads(pickle.dumps(model))
    assert copy.digest == model.digest == load_model(model.save(tmp_path / "m.safetensors")).digest


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_not_finite_is_an_error(bad) -> None:
    voxels = random_voxels((8, 8, 8))
    voxels[3, 4, 5] = bad
    with pytest.raises(ImageError, match=r"tile \(0, 0, 0\) \(zyx\) holds voxels that are NaN or infinite"):
        enhanced(volume_of(voxels, "zyx"), tiny((2, 2, 2)))


def test_a_model_for_other_axes_or_channels_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model is for axes zyx; the volume  has yx"):
        enhance(volume_of(random_voxels((8, 8)), "yx"), tiny((2, 2, 2)))
    with pytest.raises(ModelError, match="trained on 3 channels; the volume has 2"):
        enhance(volume_of(random_voxels((2, 8, 8, 8)), "czyx"), tiny((2, 2, 2), channels=3))


def test_a_tile_shorter_than_its_halo_is_refused() -> None:
    with pytest.raises(PlanError, match="axis x: a tile of 2 voxels is shorter than its halo"):
        enhance(volume_of(random_voxels((8, 8, 80)), "zyx"), tiny((2, 2, 2)), tile={"x": 2})


def test_very_many_tiles_warn_and_too_many_are_refused() -> None:
    model = tiny((1, 1, 2), "yx")
    tile = {"y": 2, "x": 16}
    with pytest.warns(ManyTilesWarning, match="enhance_to_zarr"):
        enhance(volume_of(da.zeros((2 * 120, 16 * 100), chunks=-1), "yx"), model, tile=tile)
    with pytest.raises(PlanError, match="60000 tiles in one dask graph; at most 50000"):
        enhance(volume_of(da.zeros((2 * 600, 16 * 100), chunks=-1), "yx"), model, tile=tile)


@pytest.mark.parametrize(
    ("dtype", "given", "wanted"),
    [
        ("uint8", [-3.2, 0.5, 1.5, 254.6, 300], [0, 0, 2, 255, 255]),
        ("uint16", [-5.0, 65535.4, 70000], [0, 65535, 65535]),
        ("int16", [-40000.0, 40000], [-32768, 32767]),
        ("uint32", [-1.0, 2.0**32, 1e20], [0, 2**32 - 1, 2**32 - 1]),
        ("int64", [-1e30, 1e30], [-(2**63), 2**63 - 1]),
        ("bool", [0.4, 0.6, -1, 7], [False, True, False, True]),
    ],
)
def test_casting_rounds_and_clips_and_never_wraps(dtype, given, wanted) -> None:
    result = cast(np.array(given, np.float32), np.dtype(dtype))
    assert result.dtype == np.dtype(dtype)
    assert result.tolist() == wanted


def test_tiles_of_a_single_value_are_computed_once_and_to_the_bit_as_if_each_were(monkeypatch):
    values = random_voxels((10, 40, 90), "uint16")
    values[:, :, 30:] = 7
    volume, model, tile = volume_of(values, "zyx"), fast((2, 2, 2)), {"z": 10, "y": 10, "x": 10}
    seen, refine = [], Model.refine

    def counted(model: Model, voxels: np.ndarray, **options: int) -> np.ndarray:
        seen.append(voxels)
        return refine(model, voxels, **options)

    monkeypatch.setattr(Model, "refine", counted)
    enhanced = enhance(volume, model, tile=tile).voxels.compute(scheduler="synchronous")
    constant = sum(int(v.min() == v.max()) for v in seen)
    assert (constant, len(seen)) == (1, 4 * 4 + 1)  # of the nine tiles along x, four see anything but sevens
    monkeypatch.setattr(enhancement, "_refined", lambda model, coarse, channel, backend: refine(model, coarse))
    each = enhance(volume, model, tile=tile).voxels.compute(scheduler="synchronous")
    np.testing.assert_array_equal(enhanced, each)
