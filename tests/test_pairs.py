from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from svision_dask.degradation import CUBIC, Degradation
from svision_dask.errors import SampleError
from svision_dask.network.architecture import architecture
from svision_dask.simulation.simulate import reduce_cubic
from svision_dask.training.fitting import settings_for, shortened
from svision_dask.training.noise_estimate import SILENT, Noise
from svision_dask.training.pairs import Pairs, make_pairs
from svision_dask.volume import mirror_pad

NO_ZOOM = (1.0, 1.0, 1.0)


def pairs_of(voxels, factor=(2, 2, 2), margin=(3, 3, 3), zoom=NO_ZOOM, noise=SILENT, offset=0.0, scale=1.0, how=CUBIC):
    return make_pairs(
        voxels[None],
        factor=factor,
        margin=margin,
        zooms=[zoom],
        noise=[noise],
        offsets=[offset],
        scales=[scale],
        how=how,
    )


def random_voxels(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (2, 1, 2)])
def test_the_network_sees_the_antialiased_reduction_of_what_it_shall_predict(factor):
    voxels = random_voxels((8, 10, 12))
    (scale,) = pairs_of(voxels, factor=factor).scales
    np.testing.assert_array_equal(scale.fine[0, 0].numpy(), voxels)
    mirrored = mirror_pad(voxels, tuple(3 if f == 2 else 0 for f in factor))
    coarse = scale.coarse[0, 0, 3:-3, 3:-3, 3:-3].numpy()
    np.testing.assert_allclose(coarse, reduce_cubic(mirrored, factor), atol=1e-6)


def test_beyond_its_faces_the_reduction_goes_on_as_its_mirror_image():
    (scale,) = pairs_of(random_voxels((8, 10, 12)), margin=(5, 3, 7)).scales
    inner = scale.coarse[0, 0, 5:-5, 3:-3, 7:-7].numpy()
    np.testing.assert_array_equal(scale.coarse[0, 0].numpy(), mirror_pad(inner, (5, 3, 7)))


def test_odd_voxels_at_the_end_are_left_out():
    (scale,) = pairs_of(random_voxels((7, 11, 13)), factor=(1, 2, 2)).scales
    assert scale.fine.shape == (1, 1, 7, 10, 12)
    assert scale.coarse.shape == (1, 1, 7 + 6, 5 + 6, 6 + 6)


def test_an_axis_too_short_to_be_reduced_is_refused():
    with pytest.raises(SampleError, match=r"1 voxel along z: at least 2 are needed\. Use --factor z=1"):
        pairs_of(random_voxels((1, 8, 8)))
    assert pairs_of(random_voxels((1, 8, 8)), factor=(1, 2, 2)).scales


def test_zooming_enlarges_what_is_refined_and_keeps_the_intensities():
    ramp = np.broadcast_to(np.linspace(0, 1, 20, dtype=np.float32), (6, 20, 20)).copy()
    (zoomed,) = pairs_of(ramp, factor=(1, 2, 2), zoom=(1.5, 1.5, 1.5)).scales
    assert zoomed.fine.shape[2:] == (6, 30, 30)
    # Voxel i of 30 is centred on (i + 1/2)/1.5 − 1/2 of 20; a ramp stays a ramp away from its ends.
    expected = np.interp((np.arange(30) + 0.5) / 1.5 - 0.5, np.arange(20), ramp[0, 0])
    np.testing.assert_allclose(zoomed.fine[0, 0, 0, 0, 4:-4].numpy(), expected[4:-4], atol=1e-5)


def draw_all(pairs: Pairs, patch: tuple[int, int, int], draws: int = 40) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng(0)
    return [pairs.draw(rng, patch, 2, (3, 3, 3)) for _ in range(draws)]


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (1, 2, 1)])
def test_patches_are_aligned_whatever_their_orientation(factor):
    # The volume is its own position, so that a wrong flip, turn or offset of one of the two shows.
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (8, 20, 24)), indexing="ij")
    pairs = pairs_of(100 * z + 10 * y + x, factor=factor)
    orientations = set()
    for coarse, fine in draw_all(pairs, (3, 4, 4)):
        inner = coarse[:, :, 3:-3, 3:-3, 3:-3]
        blocks = torch.nn.functional.avg_pool3d(fine, factor)
        # The reduction keeps linear ramps, but for the mirrored ends, where it strays by less than two fine voxels.
        for axis in (2, 3, 4):
            n = inner.shape[axis]
            slope = (inner.narrow(axis, n - 1, 1) - inner.narrow(axis, 0, 1)).mean()
            wanted = (blocks.narrow(axis, n - 1, 1) - blocks.narrow(axis, 0, 1)).mean()
            assert slope == pytest.approx(float(wanted), rel=0.2)
        assert (inner - blocks).abs().mean() < 0.1 * (blocks.max() - blocks.min())
        orientations.add(float(torch.sign(fine[0, 0, -1, -1, -1] - fine[0, 0, 0, 0, 0])))
    assert orientations == {-1, 1}


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (2, 1, 2)])
def test_points_are_the_first_of_their_fine_voxels_whatever_their_orientation(factor):
    voxels = random_voxels((12, 16, 20))
    pairs = pairs_of(voxels, factor=factor, how=Degradation(kind="point"))
    seen = set()
    for coarse, fine in draw_all(pairs, (3, 4, 4)):
        assert torch.equal(coarse[:, :, 3:-3, 3:-3, 3:-3], fine[(..., *(slice(None, None, f) for f in factor))])
        z, y, x = np.argwhere(voxels == float(fine[0, 0, 0, 0, 0]))[0]
        seen |= {step for step in (-1, 1) if 0 <= x + step < 20 and voxels[z, y, x + step] == fine[0, 0, 0, 0, 1]}
    assert seen == {-1, 1}


def test_patches_turn_only_where_y_and_x_are_refined_alike():
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32), (8, 24, 24)).copy()  # along x only

    def lies_along_y(fine: torch.Tensor) -> bool:
        return bool((fine[..., 1:, :] != fine[..., :-1, :]).any())

    assert {lies_along_y(fine) for _, fine in draw_all(pairs_of(ramp), (2, 4, 4))} == {False, True}
    assert {lies_along_y(fine) for _, fine in draw_all(pairs_of(ramp, factor=(2, 1, 2)), (2, 4, 4))} == {False}


def test_patches_are_never_larger_than_the_volume():
    coarse, fine = pairs_of(random_voxels((3, 30, 30))).draw(np.random.default_rng(0), (12, 8, 8), 5, (3, 3, 3))
    assert coarse.shape == (5, 1, 1 + 6, 8 + 6, 8 + 6)
    assert fine.shape == (5, 1, 2, 16, 16)


def test_every_channel_is_drawn():
    voxels = np.stack([np.full((8, 8, 8), c, np.float32) for c in (1, 3)])
    pairs = make_pairs(
        voxels,
        factor=(2, 2, 2),
        margin=(3, 3, 3),
        zooms=[NO_ZOOM],
        noise=[SILENT] * 2,
        offsets=[0.0] * 2,
        scales=[1.0] * 2,
    )
    assert len(pairs.scales) == 2
    assert {round(float(fine.mean())) for _, fine in draw_all(pairs, (2, 2, 2))} == {1, 3}


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2)])
def test_with_its_missing_noise_a_reduction_is_as_noisy_as_the_volume(factor):
    # Nothing but noise: counts of gain 2 around 50, and a floor of 20, standardised by other constants.
    offset, scale, mean, noise = 30.0, 4.0, 50.0, Noise(floor=20.0, gain=2.0)
    rng = np.random.default_rng(0)
    counts = 2 * rng.poisson(mean / 2, (24, 64, 64)) + rng.normal(0, np.sqrt(20), (24, 64, 64))
    pairs = pairs_of(
        ((counts - offset) / scale).astype(np.float32), factor=factor, noise=noise, offset=offset, scale=scale
    )
    drawn = torch.cat([coarse.flatten() for coarse, _ in draw_all(pairs, (8, 16, 16), draws=20)])
    assert float(drawn.mean()) * scale + offset == pytest.approx(mean, rel=0.02)
    assert float(drawn.var()) * scale**2 == pytest.approx(2 * mean + 20, rel=0.1)
    silent = pairs_of(((counts - offset) / scale).astype(np.float32), factor=factor, offset=offset, scale=scale)
    drawn = torch.cat([coarse.flatten() for coarse, _ in draw_all(silent, (8, 16, 16), draws=20)])
    assert float(drawn.var()) * scale**2 < 0.6 * (2 * mean + 20)


def test_drawing_is_decided_by_the_generator_alone():
    pairs = pairs_of(random_voxels((12, 20, 20)), noise=Noise(floor=1.0, gain=0.0))
    draws = [pairs.draw(np.random.default_rng(seed), (4, 6, 6), 3, (3, 3, 3)) for seed in (5, 5, 6)]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not torch.equal(draws[0][0], draws[2][0])


def test_a_smaller_halo_shows_less_of_the_same_places():
    pairs = pairs_of(random_voxels((12, 20, 20)))
    wide, narrow = (pairs.draw(np.random.default_rng(1), (3, 4, 4), 3, (h, h, h)) for h in (3, 1))
    torch.testing.assert_close(wide[0][..., 2:-2, 2:-2, 2:-2], narrow[0])
    torch.testing.assert_close(wide[1], narrow[1])


@pytest.mark.parametrize("shape", [(8, 20, 64), (8, 64, 20), (64, 8, 8)])
def test_what_is_held_back_is_never_trained_on_and_nothing_else_is_lost(shape):
    voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    split = pairs_of(voxels).hold_back()
    assert split is not None
    learned, held = (np.concatenate([s.fine.numpy().ravel() for s in part.scales]) for part in split)
    assert not set(learned) & set(held)
    assert set(learned) | set(held) == set(voxels.ravel())
    assert 0.1 < held.size / voxels.size < 0.15
    for part in split:
        for scale in part.scales:
            inner = tuple(n - 6 for n in scale.coarse.shape[2:])
            assert tuple(2 * n for n in inner) == tuple(scale.fine.shape[2:])
            means = torch.nn.functional.avg_pool3d(scale.fine, 2)
            # A ramp's reduction is its block means, but near the faces of the volume, where it is mirrored.
            core = (..., *(slice(2, -2) if n > 4 else slice(None) for n in inner))
            gap = (scale.coarse[..., 3:-3, 3:-3, 3:-3] - means)[core].abs()
            assert float(gap.median()) < 0.01 * voxels.max()  # shifted by a voxel of z it would be 0.05 or more


def test_a_volume_too_small_to_spare_a_slab_holds_nothing_back():
    assert pairs_of(random_voxels((8, 20, 24))).hold_back() is None


def test_the_only_bead_of_an_image_is_not_held_back():
    z, y, x = np.ogrid[:64, :64, :64]
    bead = np.exp(-((z - 32.0) ** 2 + (y - 32.0) ** 2 + (x - 32.0) ** 2) / 50).astype(np.float32)
    learned, held = pairs_of(bead).hold_back()
    seen, judged = (sum(float((s.fine - bead.mean()).square().sum()) for s in part.scales) for part in (learned, held))
    assert 1 / 16 <= judged / (seen + judged) <= 1 / 4  # an eighth of the volume; in the middle it would be nearly all


def test_the_same_slab_is_held_back_at_every_scale():
    voxels = random_voxels((64, 64, 64))
    zooms = [(1.22, 1.38, 1.3), (1.3, 1.22, 1.38), (1.38, 1.3, 1.22)]  # the longest axis differs
    pairs = make_pairs(
        voxels[None], factor=(2, 2, 2), margin=(3, 3, 3), zooms=zooms, noise=[SILENT], offsets=[0.0], scales=[1.0]
    )
    learned, held = pairs.hold_back()
    sizes = [(slab.fine.shape[2:], whole.fine.shape[2:]) for slab, whole in zip(held.scales, pairs.scales, strict=True)]
    cut = [tuple(n < m / 2 for n, m in zip(slab, whole, strict=True)) for slab, whole in sizes]
    assert set(cut) == {(False, True, False)}  # y is the longest at the first scale
    assert len(learned.scales) == 6


def brightened(voxels: np.ndarray, offset: float = 0.0, scale: float = 1.0) -> Pairs:
    """Pairs of ``offset + scale · voxels`` that are to be as bright as it."""
    zooms: dict[str, Any] = {"zooms": [NO_ZOOM], "noise": [SILENT], "offsets": [0.0], "scales": [1.0]}
    volume = (offset + scale * voxels[None]).astype(np.float32)
    return make_pairs(volume, factor=(2, 2, 2), margin=(3, 3, 3), match_brightness=True, **zooms)


def points(distance: int = 8) -> np.ndarray:
    voxels = np.zeros((32, 32, 32), np.float32)
    voxels[4::distance, 4::distance, 4::distance] = 1
    return voxels


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (-300.0, 50.0)])
def test_pairs_of_points_are_drawn_from_as_dim_as_they_are_to_as_bright_as_the_volume(offset, scale):
    pairs = brightened(points(), offset, scale)
    highest = [float((coarse.max() - offset) / scale) for coarse, _ in draw_all(pairs, (13, 13, 13), 200)]
    # The antialiased kernel leaves (111/256)³ = 0.08 of a point in a voxel that holds it.
    assert min(highest) == pytest.approx((111 / 256) ** 3, rel=0.05)
    assert max(highest) == pytest.approx(1, abs=0.1)
    for coarse, fine in draw_all(pairs, (13, 13, 13), 5):
        inner = coarse[:, :, 3:-3, 3:-3, 3:-3]
        ratio = (fine.double().mean() - offset) / (inner.double().mean() - offset)
        assert float(ratio) == pytest.approx(1, abs=0.1)  # both of a pair alike


def test_what_reduction_makes_dim_is_learned_for_fewer_steps_unless_they_are_asked_for():
    design = architecture("best", (2, 2, 2), "zyx")
    (gain,) = {scale.gain for scale in brightened(points()).scales}
    settings = settings_for("best", design, None)
    assert shortened(settings, brightened(points())).steps == round(settings.steps / gain) < settings.steps / 3
    assert shortened(settings, pairs_of(points())).steps == settings.steps
    assert shortened(settings_for("best", design, 70), brightened(points())).steps == 70


def test_what_is_as_bright_once_reduced_stays_as_it_is():
    blurred = ndimage.gaussian_filter(points(16), 2.5)
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((32, 32, 32)), 1.5)
    for voxels in (blurred, texture, np.zeros((32, 32, 32))):
        assert brightened(voxels.astype(np.float32)).scales[0].gain == 1
