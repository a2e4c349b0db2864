"""The commands for a GPU: without one they say so, and they need torch and transformers alone. `make flex-test` runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = ("accelerate", "fastapi", "gguf", "prometheus_client", "pydantic", "pydantic_settings", "tabulate", "uvicorn")
COMMANDS = {"equality": ("benchmarks.gpu.equality", []), "throughput": ("benchmarks", ["gpu"])}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which the command would take for minutes")
@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_gpu_or_our_own_packages_a_command_says_so_and_succeeds(name: str) -> None:
    module, arguments = COMMANDS[name]
    blocked = "".join(f"sys.modules[{each!r}] = None\n" for each in OURS)  # an import of it raises
    code = f"import runpy, sys\n{blocked}sys.argv = [{module!r}, *{arguments!r}]\nrunpy.run_module({module!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    assert done.returncode == 0, done.stderr
    *_, said, last = done.stdout.splitlines()
    assert said == "no GPU that torch can use: nothing was run"
    assert json.loads(last)["ran"] is False
