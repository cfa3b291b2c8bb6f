"""Tables of the pages results, interchange and performance, between markers, made of ``benchmarks/results/``.

Run ``python benchmarks/tables.py`` after a benchmark, or ``python benchmarks/page.py``, which does it too.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = tuple(ROOT / "docs" / f"{name}.md" for name in ("results", "interchange", "performance"))
MARKED = re.compile(r"(<!-- made by benchmarks/tables\.py: (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_METHODS = ("cubic", "cubic + BP", "best")
DEMO = ("cubic", "cubic + back projection", "cubic + back projection, best blur", "enhanced")


def _read(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def _demo() -> Iterator[str]:
    """PSNR and SSIM of each seed."""
    yield f"| seed | {' | '.join(DEMO)} |"
    yield "|---" * (len(DEMO) + 1) + "|"
    for run in _read("demo")["runs"]:
        scores = {score["name"]: f"{score['psnr']:.2f} / {score['ssim']:.3f}" for score in run["scores"]}
        yield f"| {run['seed']} | {' | '.join(scores[name] for name in DEMO)} |"


def _gains() -> Iterator[str]:
    """Tell what ``best`` gains over the better of the two that need no network."""
    rows = list(_read("quality")["rows"].values())
    yield from ("| volume | gain of `best`, dB | its seeds |", "|---|---|---|")
    for volume in dict.fromkeys(row["volume"] for row in rows if row["method"] == "best"):
        psnr = {m: [r["psnr"] for r in rows if (r["volume"], r["method"]) == (volume, m)] for m in _METHODS}
        without = max(psnr["cubic"] + psnr["cubic + BP"])
        gains = [value - without for value in psnr["best"]]
        span = f"{min(gains):+.2f} to {max(gains):+.2f}" if len(gains) > 1 else "one"
        yield f"| {volume} | {statistics.fmean(gains):+.1f} | {span} |"


def _runner() -> Iterator[str]:
    """Set what was measured beside what was wanted."""
    parts = _read("runner")["parts"]
    begun, share, client = parts["beginning"], parts["share"], parts["client memory"]
    few, many = client["mib_above_idle_after_10000"], client["mib_above_idle_after_100000"]
    scaled, times = share["two_workers_against_one"], share["seconds"]
    each = [one / two for one, two in zip(times["1"], times["2"], strict=True)]
    sleeping = parts["sleeping"]
    long, short = (sleeping[f"efficiency_of_64_workers_at_{seconds}_s"] for seconds in ("1.25", "0.5"))
    overhead = parts["overhead"]["milliseconds_per_region"]
    peaks = [row["peak_mib"] for row in parts["flat"].values()]
    planned = max(row["planned_mib"] for row in parts["flat"].values())
    yield from ("| what | measured | wanted |", "|---|---|---|")
    yield f"| overhead per region that does nothing, two workers | {overhead:.1f} ms | {_at_most(overhead, 15)} ms |"
    chunks, regions = _power(begun["output_chunks"]), _power(begun["regions"])
    what = f"plan of {_power(begun['voxels'])} voxels ({chunks} chunks of output, {regions} regions)"
    plan = begun["plan_seconds"]
    yield f"| {what} | {1000 * plan:.1f} ms | {_at_most(plan, 10)} s |"
    first = begun["first_region_seconds"]
    yield f"| its first region is read after | {first:.2f} s | {_at_most(first, 2)} s |"
    yield f"| client and scheduler after 10⁴ regions, above idle | {few:.0f} MiB | {_at_most(few, 100)} MiB |"
    more = f"{many:.0f} MiB: {2**20 * (many - few) / (10**5 - 10**4):.0f} bytes for each more"
    yield f"| after 10⁵ regions | {more} | {_at_most(many, 100)} MiB; hardly more |"
    inside = 100 * share["share_in_regions"]
    yield f"| share of a worker's time that is spent in its regions | {inside:.1f} % | {_at_least(inside, 90)} % |"
    allowed = f"{scaled:.2f} × ({min(each):.2f} to {max(each):.2f}), where the cores allow {share['ceiling']:.2f} ×"
    yield f"| two workers against one | {allowed} | {_at_least(scaled, 1.8)} × |"
    what = "64 workers that sleep 1.25 s per region, against one"
    yield f"| {what} | {100 * long:.0f} % efficient | {_at_least(100 * long, 90)} % |"
    yield f"| the same at 0.5 s per region | {100 * short:.0f} % efficient | |"
    sizes = ", ".join(parts["flat"])
    shown = ", ".join(f"{peak:.0f}" for peak in peaks)
    yield f"| peak of a worker over volumes of {sizes} (24 regions each) | {shown} of {planned:.0f} MiB | flat |"


def _power(value: float) -> str:
    digits, _, power = f"{value:.1e}".partition("e+")
    return f"{'' if digits == '1.0' else f'{digits}·'}10{str(int(power)).translate(RAISED)}"


def _at_most(value: float, bound: float) -> str:
    return f"{'' if value <= bound else 'missed: '}≤ {bound:g}"


def _at_least(value: float, bound: float) -> str:
    return f"{'' if value >= bound else 'missed: '}≥ {bound:g}"


def _soak() -> Iterator[str]:
    """Count what went wrong, and what came of it."""
    yield "| `benchmarks/soak/` | minutes | what happened | outputs finished | as the undisturbed one |"
    yield "|---" * 5 + "|"
    for name, part in _read("soak").items():
        seen = dict(part["seen"])
        finished, equal = seen.pop("ended with 0"), seen.pop("outputs equal to the undisturbed one")
        faults = ", ".join(
            f"{count} {what}" for what, count in seen.items() if not what.startswith(("ended", "outputs"))
        )
        yield f"| `{name}.py` | {part['minutes']:g} | {faults} | {finished} | {equal} |"


def _memory() -> Iterator[str]:
    """Planned and measured peaks of each case."""
    yield "| preset | factor | volume | type | tile | halo | planned, MiB | measured, MiB | planned / measured |"
    yield "|---" * 9 + "|"
    for row in _read("memory")["rows"]:
        factor, shape, tile, halo = ("×".join(map(str, row[key])) for key in ("factor", "shape", "tile", "halo"))
        mebibytes = (f"{row[key] / 2**20:.0f}" for key in ("planned", "measured"))
        cells = (row["preset"], factor, shape, row["dtype"], tile, halo, *mebibytes, f"{row['ratio']:.2f}")
        yield f"| {' | '.join(cells)} |"


def _interchange() -> Iterator[str]:
    """How far others are off."""
    rows = sorted(_read("interchange")["rows"].values(), key=lambda row: row["model"])
    runs = [f"{name}, {how}" for name in ("onnxruntime", "torch", "bioimageio") for how in ("whole", "tiled")]
    yield f"| model | halo | {' | '.join(runs)} |"
    yield "|---" * (len(runs) + 2) + "|"
    for row in rows:
        off = " | ".join(f"{row[run]:.0e}" if run in row else "–" for run in runs)
        yield f"| {row['model']} | {'×'.join(map(str, row['halo']))} | {off} |"


def _tiles() -> Iterator[str]:
    """Set the speed of smaller tiles beside that of the largest."""
    yield "| what | tile, in coarse voxels | fine voxels per second, of those of the first | planned |"
    yield "|---|---|---|---|"
    for name, rows in _read("tiles")["found"].items():
        for row in rows:
            tile = "×".join(map(str, row["tile"]))
            yield f"| {name} | {tile} | {row['of the first']:.2f} | {'yes' if row['planned'] else ''} |"


def _runtimes() -> Iterator[str]:
    """Set what others take beside what torch does."""
    yield from (
        "| preset | tile, in coarse voxels | runtime | ns per fine voxel | speed against ours |",
        "|---" * 5 + "|",
    )
    for row in _read("runtimes")["found"]:
        tile = "×".join(map(str, row["tile"]))
        cells = row["preset"], tile, row["runtime"], f"{row['ns_per_fine_voxel']:.0f}", f"{row['against_torch']:.2f}"
        yield f"| {' | '.join(cells)} |"


TABLES: Mapping[str, Callable[[], Iterator[str]]] = {
    "demo": _demo,
    "gains": _gains,
    "runner": _runner,
    "soak": _soak,
    "memory": _memory,
    "interchange": _interchange,
    "tiles": _tiles,
    "runtimes": _runtimes,
}


def with_tables(text: str) -> str:
    """``text`` of a page with the tables of today."""
    return MARKED.sub(lambda found: f"{found[1]}\n{chr(10).join(TABLES[found[2]]())}\n\n{found[3]}", text)


def main() -> None:
    """Write the tables into the pages."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
