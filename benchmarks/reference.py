"""The reference for the servers, computed in separate processes: reference scores and the machine's GEMM rate."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self


def reference_scores(checkpoint: Path, texts: Sequence[str], num_threads: int) -> list[float]:
    """Return transformers' own scores of `texts`, each computed alone."""
    command = [sys.executable, "-m", "benchmarks.reference_forward", str(checkpoint), "--threads", str(num_threads)]
    done = subprocess.run(command, input=json.dumps(list(texts)), stdout=subprocess.PIPE, text=True, check=True)
    return [float(score) for score in json.loads(done.stdout)]


class GemmMeter:
    """A measuring process that sleeps between measurements."""

    def __init__(self, config_path: Path, num_rows: int, num_threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.gemm", str(config_path)]
        options = ["--rows", str(num_rows), "--threads", str(num_threads)]
        self._process = subprocess.Popen([*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self) -> float:
        """Return the current FLOP/s; takes about 1.5 s."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the GEMM process was started without pipes")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
