"""Measures how long other requests wait while very long texts are tokenized, under a limit of a million tokens.

The texts are over the limit and get rejected, so only their tokenization is measured and no model runs for them. Meanwhile one
connection requests `/health` and another scores one short text after the other.
"""

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.large_body import LargeBody, beside_probes, post
from benchmarks.servers.process import free_port, running
from benchmarks.table import format_table

MAX_LENGTH = 1 << 20
NUM_CHARS = 12_000_000
NUM_UNCUTTABLE_CHARS = 1_000_000
"""Maximum run of one kind of character; a longer run is rejected without being tokenized."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
QUIET_SECONDS = 2.0


def words(num_chars: int = NUM_CHARS) -> str:
    sentence = "The quick brown fox jumps over the lazy dog. "
    return sentence * (num_chars // len(sentence))


TEXTS: dict[str, Callable[[], list[str]]] = {
    "words": lambda: [words()],
    "words, 8 requests": lambda: [words()] * 8,
    "1 MB of a letter, then words": lambda: ["a" * NUM_UNCUTTABLE_CHARS + words()],
    "1 MB of a digit, then words": lambda: ["7" * NUM_UNCUTTABLE_CHARS + words()],
    "1 MB of spaces, then words": lambda: [" " * NUM_UNCUTTABLE_CHARS + words()],
    "1 MB of a letter, then words, 8 requests": lambda: ["a" * NUM_UNCUTTABLE_CHARS + words()] * 8,
}


def make_checkpoint(directory: Path) -> Path:
    """A one-layer model that accepts a million tokens, with the demo models' tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=0,
    )
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)  # type: ignore[no-untyped-call]  # transformers has no types here
    model.save_pretrained(directory)
    for name in TOKENIZER_FILES:
        shutil.copy(Path("models/trunk") / name, directory)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": MAX_LENGTH}))
    return directory


def measure_long_texts(command: tuple[str, ...], work_dir: Path) -> dict[str, LargeBody]:
    """Results by label; the first is without a long text, for comparison."""
    port = free_port()
    environment = {
        "REWARD_PORT": str(port),
        "REWARD_SAFETY_MODEL": str(make_checkpoint(work_dir / "long-texts")),
        "REWARD_HELPFULNESS_MODEL": "",
        "HF_HUB_OFFLINE": "1",
    }
    log_dir = work_dir / "logs"
    with running("long-texts", command, port=port, ready_path="/ready", environment=environment, log_dir=log_dir):
        return asyncio.run(_measure(port))


async def _measure(port: int) -> dict[str, LargeBody]:
    measured = {"none": await beside_probes(port, asyncio.sleep(QUIET_SECONDS), 0)}
    for label, make in TEXTS.items():
        bodies = [json.dumps({"items": [{"text": text}]}).encode() for text in make()]
        work = asyncio.gather(*(asyncio.to_thread(post, port, "/score", body, 422) for body in bodies))
        measured[label] = await beside_probes(port, work, sum(map(len, bodies)))
    return measured


def format_long_texts(measured: Mapping[str, LargeBody]) -> str:
    headers = ("text", "bytes", "answer s", "longest /health s", "longest /score s")
    rows = [
        (label, f"{each.num_bytes:,}", *(f"{x:.3f}" for x in (each.seconds, each.health_seconds, each.score_seconds)))
        for label, each in measured.items()
    ]
    return format_table(headers, rows)
