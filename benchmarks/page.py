"""Tables of all results, for the documentation and for README.md; no figure is typed by hand.

Run ``python benchmarks/page.py`` after a benchmark: it writes the table between the markers of README.md. The page
``docs/benchmarks.md`` is made whenever the documentation is built, of whatever is in ``benchmarks/results/``.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rows import FORMER, is_former

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- figures: made by benchmarks/page.py -->", "<!-- end of figures -->"
SHOWN = ("nuclei", "golgi", "fly brain", "fly embryo", "envelopes", "dendrite", "beads, confocal", "brain cells")
"""Volumes in README.md: real ones, among them those on which little or nothing is gained."""

Found = Mapping[str, Any]


def tables() -> str:
    """Everything under ``benchmarks/results/``, as Markdown."""
    return "\n".join(line for path in sorted(RESULTS.glob("*.json")) for line in _section(path))


def _section(path: Path) -> Iterator[str]:
    """One benchmark: as its script writes it, or value by value; of soaks, each script has its own part."""
    found = json.loads(path.read_text(encoding="utf-8"))
    parts = {f"soak/{name}": part for name, part in found.items()} if path.stem == "soak" else {path.stem: found}
    written = path.with_suffix(".md")
    yield f"## {path.stem.capitalize()}"  # what links to the file become links to, whatever its own title is
    for script, part in parts.items():
        if written.exists():
            _, *body = written.read_text(encoding="utf-8").splitlines()
            yield from (f"#{line}" if line.startswith("##") else line for line in body)
        else:
            yield from ("", f"Run ``python benchmarks/{script}.py``.", "")
            yield from _plain({key: value for key, value in part.items() if key != "environment"})
        machine = ", ".join(f"{key} {value}" for key, value in part.get("environment", {}).items())
        yield from ("", f"Measured with: {machine}.", "") if machine else ("",)


def _plain(found: Any) -> Iterator[str]:
    """Rows of equal kind as a table, all else as names and values."""
    rest = {}
    for name, value in found.items():
        rows = list(value.values()) if isinstance(value, Mapping) else value
        if _alike(rows):
            labels = list(value) if isinstance(value, Mapping) else None
            yield from (f"**{name}**", "", *_table(rows, labels), "")
        else:
            rest[name] = value
    if rest:
        yield from ("| | |", "|---|---|", *(f"| {key} | {shown} |" for key, shown in _flat(rest)), "")


def _alike(rows: Any) -> bool:
    """Whether these are several rows that have the columns of the first; a later one may have more."""
    if not isinstance(rows, list) or len(rows) < 2 or not all(isinstance(row, Mapping) for row in rows):
        return False
    return all(row.keys() >= rows[0].keys() for row in rows)


def _table(rows: Sequence[Found], labels: Sequence[str] | None) -> Iterator[str]:
    flat = [dict(_flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    first = [""] if labels else []
    yield f"| {' | '.join([*first, *names])} |"
    yield "|---" * len([*first, *names]) + "|"
    for number, row in enumerate(flat):
        cells = [row.get(name, "–") for name in names]
        yield f"| {' | '.join([*([labels[number]] if labels else []), *cells])} |"


def _flat(found: Found, prefix: str = "") -> Iterator[tuple[str, str]]:
    """All single values below ``found``, by their path; what was left to its default (null) is left out."""
    for key, value in found.items():
        name = f"{prefix}{key}".replace("_", " ")
        if value is None:
            continue
        if isinstance(value, Mapping) and value.keys() == {"mean", "lowest", "highest"}:
            mean, lowest, highest = (_number(value[which]) for which in ("mean", "lowest", "highest"))
            yield name, f"{mean} ({lowest} to {highest})"
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}, ")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value):
                row = dict(item) if isinstance(item, Mapping) else {"": item}
                yield from _flat(row, f"{row.pop('name', f'{name} {number}')}, ")
        else:
            yield name, _number(value)


def _number(value: Any) -> str:
    if isinstance(value, list):
        sizes = all(isinstance(item, int) for item in value)
        return ("×" if sizes else ", ").join(_number(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def readme_figures() -> str:
    """Write the figures of README.md, as Markdown."""
    return "\n".join([*_quality(_read("quality")["rows"]), "", *_others()])


def _quality(rows: Mapping[str, Found]) -> Iterable[str]:
    """PSNR of what there is without a network, and with one, mean of the seeds."""
    methods = ("cubic", "cubic + BP", "fast", "best")
    yield f"| volume, reduced by two and enhanced again | {' | '.join(methods)} |"
    yield "|---" * (len(methods) + 1) + "|"
    for volume in SHOWN:
        measured = [[r for r in rows.values() if (r["volume"], r["method"]) == (volume, m)] for m in methods]
        if any(measured):
            yield f"| {volume} | {' | '.join(map(_mean, measured))} |"
    yield from ("", "†: with a network that has changed since; docs/results.md says how.")


def _mean(rows: Sequence[Found]) -> str:
    if not rows:
        return "–"
    return f"{statistics.fmean(row['psnr'] for row in rows):.1f}{FORMER * any(map(is_former, rows))}"


def _others() -> Iterable[str]:
    """Figures that are no quality, each with the command that measures it."""
    demo, speed, memory, soak = (_read(name) for name in ("demo", "speed", "memory", "soak"))
    best = max(value["psnr"]["mean"] for name, value in demo["summary"].items() if name.startswith("cubic"))
    gain = demo["summary"]["enhanced"]["psnr"]["mean"] - best
    storage = speed["found"]["storage"]
    ratios = [row["ratio"] for row in memory["rows"]]
    seen = [part["seen"] for part in soak.values()]
    kills = sum(count for each in seen for what, count in each.items() if what.endswith("killed"))
    equal = sum(each["outputs equal to the undisturbed one"] for each in seen)
    yield from ("| what else | measured | by |", "|---|---|---|")
    yield f"| demo: gain over the best without a network | {gain:.1f} dB | `python benchmarks/demo.py` |"
    for name, value in storage.items():
        rate = value["fine voxels/s"] / 1e6
        cores = speed["environment"]["cores"]
        what = f"`{name}`, OME-Zarr to OME-Zarr, {cores} cores"
        yield f"| {what} | {rate:.2g} M voxels/s | `python benchmarks/speed.py` |"
    yield (
        f"| planned memory, as a multiple of what was used | {min(ratios):.1f} to {max(ratios):.1f} "
        "| `python benchmarks/memory.py` |"
    )
    yield (
        f"| random kills survived; outputs finished, all equal to the undisturbed one | {kills}; {equal} "
        "| `python benchmarks/soak/chaos.py` and its neighbours |"
    )


def _read(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def with_figures(text: str) -> str:
    """``text`` of README.md with the figures of today, which it has once."""
    for marker in (BEGIN, END):
        if text.count(marker) != 1:
            raise ValueError(f"{text.count(marker)} lines {marker!r}, and there must be one. Delete the others.")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{readme_figures()}\n\n{END}{after}"


def main() -> None:
    """Write the figures into README.md, and the tables of other pages."""
    import tables as of_results

    of_results.main()
    README.write_text(with_figures(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
