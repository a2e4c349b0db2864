"""The commands for a GPU, in their small form on the CPU: no mistake in them waits for the first GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*command: str) -> dict[str, Any]:
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-m", *command, "--device", "cpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["ran"]
    return found


def test_gpu_test_compares_scores_and_counts_compilations() -> None:
    found = run("benchmarks.gpu.equality")
    assert found["failures"] == []
    assert all(errors["float32"] < 1e-5 for errors in found["largest_score_error"].values())
    assert 0 < found["compilations"]["graphs"] <= found["compilations"]["buckets"]


def test_the_benchmark_measures_every_workload_by_flex_attention() -> None:
    found = run("benchmarks", "gpu")
    assert found["plan"] == "packed with flex_attention"
    rows = {row["workload"]: row for row in found["workloads"]}
    assert list(rows) == ["distinct", "groups", "trickle"]
    assert rows["trickle"]["num_computed_tokens"] < 0.2 * rows["trickle"]["num_tokens"]
    for row in rows.values():
        assert row["seconds"] > 0
        assert row["padded_seconds"] > 0
        assert row["largest_score_difference"] < 0.3  # in bfloat16
