"""The comparison picture: where it looks, and that it shows voxels as they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import find_objects, label

from svision_dask.errors import UsageError
from svision_dask.judging.figure import Panel, draw_comparison, informative_place, round_length

PLACE = (slice(4, 8), slice(8, 24), slice(8, 24))


def panels(factor=(2, 2, 2)):
    fine = np.random.default_rng(0).random((12, 32, 32))
    coarse = fine[tuple(slice(None, None, f) for f in factor)]
    return [Panel(title="coarse", voxels=coarse, factor=factor), Panel(title="fine", voxels=fine, factor=(1, 1, 1))]


def test_the_place_is_where_coarse_voxels_hold_detail_not_where_it_is_bright():
    truth = np.zeros((16, 64, 64))
    truth[:, :32] = (
        np.kron(np.random.default_rng(0).random((8, 16, 32)), np.ones((2, 2, 2))) * 1000
    )  # none within 2³ voxels
    truth[8:, 32:, :32] = np.random.default_rng(1).random((8, 32, 32))
    place = informative_place(truth, (8, 32, 32), factor=(2, 2, 2), ceiling=1e9)
    assert place == (slice(8, 16), slice(32, 64), slice(0, 32))


def test_intensities_above_the_ceiling_count_as_equal():
    truth = np.zeros((8, 32, 64))
    truth[..., :32] = 100 + 50 * np.random.default_rng(0).random((8, 32, 32))
    truth[..., 32:] = 10 * np.random.default_rng(1).random((8, 32, 32))
    left, right = (slice(0, 8), slice(0, 32), slice(0, 32)), (slice(0, 8), slice(0, 32), slice(32, 64))
    assert informative_place(truth, (8, 32, 32), factor=(2, 2, 2), ceiling=1e9) == left
    assert informative_place(truth, (8, 32, 32), factor=(2, 2, 2), ceiling=20) == right


def test_a_place_larger_than_the_volume_is_the_volume():
    truth = np.zeros((4, 32, 16))
    assert informative_place(truth, (8, 32, 32), factor=(1, 2, 2), ceiling=1) == tuple(slice(0, n) for n in truth.shape)


def test_a_voxel_is_drawn_as_one_plain_rectangle_of_grey(tmp_path):
    from matplotlib.image import imread

    voxels = np.zeros((4, 4, 4))
    voxels[1, 1, 2] = 50.0
    place = tuple(slice(0, n) for n in voxels.shape)
    same = [Panel(title=str(i), voxels=voxels, factor=(1, 1, 1)) for i in range(2)]
    path = draw_comparison(tmp_path / "a.png", same, place=place, spacing=(1, 1, 1), white=100.0)
    grey = np.round(255 * imread(path)[..., 0]).astype(int)
    # Half of white is 127 or 128; an edge may fall within a pixel, but interpolation would make a broad rim.
    pieces, _ = label(np.isin(grey, (127, 128)))
    boxes = find_objects(pieces)
    large = [box for box in boxes if min(s.stop - s.start for s in box) > 20]
    assert len(large) == 2 * 3  # two panels in three rows
    for box in large:
        assert np.isin(grey[box], (127, 128)).all()
        around = grey[tuple(slice(s.start - 2, s.stop + 2) for s in box)].copy()
        around[1:-1, 1:-1] = 0
        assert not around.any()


def test_brighter_than_white_is_white_in_every_panel_alike(tmp_path):
    first, second = (
        draw_comparison(tmp_path / f"{white}.png", panels(), place=PLACE, spacing=(0.8, 0.2, 0.2), white=white)
        for white in (0.01, 1.0)
    )
    from matplotlib.image import imread

    assert imread(first).mean() > imread(second).mean()


def test_a_place_that_cuts_a_coarse_voxel_is_refused(tmp_path):
    place = (slice(3, 8), *PLACE[1:])
    with pytest.raises(UsageError, match="cuts through voxels of 'coarse'"):
        draw_comparison(tmp_path / "a.png", panels(), place=place, spacing=(1, 1, 1), white=1)


def test_drawing_leaves_no_figure_open_in_pyplot(tmp_path):
    import matplotlib.pyplot

    draw_comparison(tmp_path / "a.png", panels(), place=PLACE, spacing=(1, 1, 1), white=1)
    assert matplotlib.pyplot.get_fignums() == []


@pytest.mark.parametrize(("longest", "length"), [(12.8, 10), (9.9, 5), (5.0, 5), (3.2, 2), (1.9, 1), (0.34, 0.2)])
def test_a_scale_bar_has_around_length(longest, length):
    assert round_length(longest) == pytest.approx(length)
