"""What figures come to in words: each rival is on the side where its figure is."""

from __future__ import annotations

import pytest

from svision_dask.judging.verdict import of_reference, of_self_check

SIDES = [
    (31.0, "31.00 dB, which is better than cubic interpolation (29.00 dB) and back projection (30.00 dB) by +1.00 dB."),
    (
        29.5,
        "29.50 dB, which is better than cubic interpolation (29.00 dB), but not than back projection (30.00 dB) by "
        "-0.50 dB.",
    ),
    (
        28.0,
        "28.00 dB, which is no better than cubic interpolation (29.00 dB) and back projection (30.00 dB) by -2.00 dB.",
    ),
]


@pytest.mark.parametrize(("score", "words"), SIDES, ids=["above both", "between", "below both"])
def test_the_verdict_says_which_rival_is_beaten(score, words):
    scores = {"psnr": score, "cubic_psnr": 29.0, "cubic_bp_psnr": 30.0}
    assert of_self_check({"training": {"self_check": scores}}).endswith(words)
    figures = {"psnr": score, "cubic": {"psnr": 29.0}, "cubic_bp": {"psnr": 30.0}}
    assert of_reference(figures) == f"Against the reference: {words}"


def test_the_other_order_of_rivals_is_told_as_well():
    scores = {"psnr": 29.27, "cubic_psnr": 28.94, "cubic_bp_psnr": 29.5}
    assert "is better than cubic interpolation (28.94 dB), but not than back" in of_self_check(
        {"training": {"self_check": scores}}
    )
    scores = {"psnr": 29.27, "cubic_psnr": 29.5, "cubic_bp_psnr": 28.94}
    assert "is better than back projection (28.94 dB), but not than cubic" in of_self_check(
        {"training": {"self_check": scores}}
    )


def test_without_figures_there_is_no_verdict():
    assert of_self_check({}) == "Self-check: AFTER holds no record of one."
    assert of_reference({"psnr": 3.0}) is None
    assert of_reference({"cubic": {"psnr": 3.0}}) is None
