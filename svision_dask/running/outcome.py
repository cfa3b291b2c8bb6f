"""What became of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from svision_dask.geometry import Grid
from svision_dask.notebook import per_axis
from svision_dask.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of a job."""

    levels: tuple[Grid, ...]
    """Of the pyramid, finest first."""
    missing_chunks: int
    """Of the input; they counted as empty."""
    empty_regions: int
    """In which, halo included, there is a single value only."""
    smaller_tiles: int
    """Regions for which memory ran out with the planned tiles: they agree with their neighbours to rounding only."""
    trust: Mapping[str, Any] | None = None
    """What the trust maps came to, if they were made, as `trust_summary.summarise` has it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was made."""

    output: str
    """Where it is."""
    plan: Plan
    """How it was cut."""
    made: Made
    """Levels of the pyramid, and how many regions were empty, or made with smaller tiles."""
    model_path: str
    """Where the model is that made it."""
    model_digest: str
    """SHA-256 of that file."""
    seconds: float
    """Of enhancing, writing and coarsening; without training."""

    def __str__(self) -> str:
        fine, made = self.plan.fine, self.made
        notable = {
            "of a single value": made.empty_regions,
            "with smaller tiles, because memory ran out": made.smaller_tiles,
            "chunks of the input missing": made.missing_chunks,
        }
        said = [f"{count} {what}" for what, count in notable.items() if count]
        return (
            f"{self.output}: {per_axis(fine.axes, fine.shape)}, {self.plan.dtype}, in {self.seconds:.0f} s\n"
            f"{', '.join([f'{len(made.levels)} levels, {len(self.plan.regions)} regions', *said])}\n"
            f"model {self.model_path}"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "plan": self.plan.to_json()}
