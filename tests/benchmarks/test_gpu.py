"""The commands for a GPU: without one they say so, and they need torch and transformers alone. `make flex-test` runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = ("accelerate", "fastapi", "gguf", "prometheus_client", "pydantic", "pydantic_settings", "tabulate", "uvicorn")
COMMANDS = [["benchmarks.gpu.equality"], ["benchmarks", "gpu"]]
RUN = f"""
import runpy, sys
for name in {OURS}:
    sys.modules[name] = None  # an import of it raises
for command in {COMMANDS}:
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__")
    except SystemExit as exited:
        print("exit code", exited.code)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which the commands would take for minutes")
def test_without_a_gpu_or_our_own_packages_each_command_says_so_and_succeeds() -> None:
    done = subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    assert done.returncode == 0, done.stderr
    *outputs, rest = done.stdout.split("exit code 0\n")
    assert (len(outputs), rest) == (len(COMMANDS), ""), done.stdout + done.stderr
    for output in outputs:
        *_, said, last = output.splitlines()
        assert said == "no GPU that torch can use: nothing was run"
        assert json.loads(last)["ran"] is False
