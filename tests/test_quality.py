from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "quality.py"


def test_the_quality_benchmark_adds_rows_and_keeps_those_it_has(tmp_path, data_dir):
    output = tmp_path / "quality.json"
    command = [sys.executable, SCRIPT, "--output", output, "--volumes", "nuclei", "--methods"]
    for method in ("cubic", "cubic + BP"):
        subprocess.run([*command, method], check=True, timeout=300)
    rows = json.loads(output.read_text())["rows"]
    # The figures published for this volume, in the same convention, are 31.17 and 32.42 dB, SSIM .873 and .894.
    assert rows["nuclei, cubic, 0"]["clipped"] == pytest.approx(31.17, abs=0.02)
    assert rows["nuclei, cubic + BP, 0"]["clipped"] == pytest.approx(32.42, abs=0.02)
    assert [round(row["ssim"], 3) for row in rows.values()] == [0.873, 0.894]
    line = next(line for line in output.with_suffix(".md").read_text().splitlines() if line.startswith("| nuclei"))
    assert "31.17" in line
    assert "32.4" in line
