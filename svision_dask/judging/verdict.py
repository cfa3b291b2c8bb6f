"""What figures come to, in a sentence: whether a network is worth more than what there is without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svision_dask.judging.comparison import self_check_gain

CUBIC, PROJECTED = "cubic interpolation", "back projection"


def against(score: float, rivals: Mapping[str, float]) -> str:
    """Say which of the ``rivals`` a score in dB is better than, and how far it is from the best of them."""
    beaten = [f"{name} ({value:.2f} dB)" for name, value in rivals.items() if score > value]
    others = [f"{name} ({value:.2f} dB)" for name, value in rivals.items() if score <= value]
    gain = f"by {score - max(rivals.values()):+.2f} dB"
    if not others:
        return f"better than {' and '.join(beaten)} {gain}"
    if not beaten:
        return f"no better than {' and '.join(others)} {gain}"
    return f"better than {' and '.join(beaten)}, but not than {' and '.join(others)} {gain}"


def of_self_check(provenance: Mapping[str, Any]) -> str:
    """Say what a model was worth on the sample that it was trained on."""
    if self_check_gain(provenance) is None:
        return "Self-check: AFTER holds no record of one."
    scores = provenance["training"]["self_check"]
    rivals = {CUBIC: scores["cubic_psnr"], PROJECTED: scores["cubic_bp_psnr"]}
    return (
        f"Self-check (the sample reduced once more, enhanced, and compared with itself): {scores['psnr']:.2f} dB, "
        f"which is {against(scores['psnr'], rivals)}."
    )


def of_reference(figures: Mapping[str, Any]) -> str | None:
    """Say how AFTER compares with the reference; None where there is none, or nothing to compare with."""
    named = {CUBIC: figures.get("cubic", {}), PROJECTED: figures.get("cubic_bp", {})}
    rivals = {name: row["psnr"] for name, row in named.items() if "psnr" in row}
    if "psnr" not in figures or not rivals:
        return None
    return f"Against the reference: {figures['psnr']:.2f} dB, which is {against(figures['psnr'], rivals)}."
