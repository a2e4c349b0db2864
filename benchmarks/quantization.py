"""Compares int8 weights with float32 on real texts: scores, speed and memory, model by model.

    python -m benchmarks.quantization

The models are the two demo models, and SmolLM2-135M with a head. The head is a ridge regression on the last token's state that
distinguishes answers sampled at a low temperature from answers to the same prompts at a high one; it is fitted on other prompts
than those measured. The texts come from the recipe. Prints one table and, on the last line, JSON.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

from app.checkpoints.loading import load_checkpoint
from app.engine.batch import Batch
from app.engine.inputs import Input, PromptResponse
from app.engine.process import prepare_process
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from benchmarks.checkpoints import PADDING, find_gguf
from benchmarks.table import format_table

ROOT = Path(__file__).resolve().parent.parent
PREFERENCES = ROOT / "models" / "recipe" / "data" / "preferences"
MAX_LENGTH = 256
RIDGE = 10.0


@dataclass(frozen=True, slots=True)
class Row:
    """One model's figures; differences are int8 minus float32, in units of the score."""

    model: str
    num_texts: int
    score_deviation: float
    mean_difference: float
    max_difference: float
    spearman: float
    flipped_pairs: float  # share of all pairs of texts whose order changes
    flipped_answers: float  # share of the prompts whose better answer changes
    megabytes: tuple[float, float]  # float32, int8
    tokens_per_second: tuple[float, float]
    is_batch_invariant: bool


def read_pairs(num_prompts: int, skip: int = 0) -> list[PromptResponse]:
    """Two consecutive responses per prompt; the prompts cover the kinds evenly."""
    rows = [json.loads(line) for file in sorted(PREFERENCES.glob("*.jsonl")) for line in file.open(encoding="utf-8")]
    chosen = rows[skip :: len(rows) // num_prompts][:num_prompts]
    return [PromptResponse(row["prompt"], response["text"]) for row in chosen for response in row["responses"][:2]]


def load(directory: Path, dtype: str) -> RewardModel:
    checkpoint = load_checkpoint(str(directory), device="cpu", dtype=dtype)
    model = RewardModel("helpfulness", checkpoint, max_batch_tokens=2048, max_length=MAX_LENGTH)
    select_plan(model)
    return model


def sequences_of(model: RewardModel, texts: Sequence[PromptResponse]) -> list[TokenSequence]:
    encoded = model.tokenization.encode([Input(text) for text in texts], "right")
    return [sequence for sequence in encoded if isinstance(sequence, TokenSequence)]


def scored(model: RewardModel, texts: Sequence[PromptResponse]) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """(scores, tokens per second), in batches of about the token budget."""
    sequences = sequences_of(model, texts)
    scores: list[float] = []
    started = time.perf_counter()
    for start in range(0, len(sequences), 16):
        scores += [result.score for result in model.score(Batch.of(sequences[start : start + 16]))]
    seconds = time.perf_counter() - started
    return np.array(scores), sum(sequence.num_tokens for sequence in sequences) / seconds


def weight_megabytes(model: RewardModel) -> float:
    total = 0
    for weight in model.net.parameters():
        total += weight.qdata.nbytes + weight.scale.nbytes if hasattr(weight, "qdata") else weight.nbytes
    return total / 1e6


def ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.argsort(np.argsort(values))


def compare(name: str, directory: Path, texts: Sequence[PromptResponse]) -> Row:
    exact_model = load(directory, "float32")
    exact, exact_speed = scored(exact_model, texts)
    exact_megabytes = weight_megabytes(exact_model)
    del exact_model
    model = load(directory, "int8")
    rounded, speed = scored(model, texts)
    error = np.abs(rounded - exact)
    first, second = np.triu_indices(len(exact), 1)
    is_flipped = np.sign(exact[first] - exact[second]) != np.sign(rounded[first] - rounded[second])
    answers = np.sign(exact[::2] - exact[1::2]) != np.sign(rounded[::2] - rounded[1::2])
    return Row(
        model=name,
        num_texts=len(exact),
        score_deviation=float(exact.std()),
        mean_difference=float(error.mean()),
        max_difference=float(error.max()),
        spearman=float(np.corrcoef(ranks(exact), ranks(rounded))[0, 1]),
        flipped_pairs=float(is_flipped.mean()),
        flipped_answers=float(answers.mean()),
        megabytes=(exact_megabytes, weight_megabytes(model)),
        tokens_per_second=(exact_speed, speed),
        is_batch_invariant=model.plan.batch_invariant,
    )


def make_smollm2(directory: Path, texts: Sequence[PromptResponse]) -> Path:
    """All 30 layers of SmolLM2-135M, with a head fitted to separate each prompt's two responses."""
    if (directory / "model.safetensors").exists():
        return directory
    gguf = find_gguf(directory.parent)
    base = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.pad_token = PADDING
    config = base.config
    del config.quantization_config  # it describes GGUF, but these weights are converted
    config.num_labels, config.tie_word_embeddings = 1, False
    config.pad_token_id = tokenizer.get_vocab()[PADDING]
    config.architectures = ["LlamaForSequenceClassification"]
    net: Any = LlamaForSequenceClassification(config)  # type: ignore[no-untyped-call]
    net.model.load_state_dict(base.model.state_dict())
    net.score.weight.data.fill_(1.0)
    unfitted = directory.with_name(f"{directory.name}-unfitted")
    net.save_pretrained(unfitted)
    tokenizer.save_pretrained(unfitted)
    net.score.weight.data.copy_(ridge_head(load(unfitted, "float32"), texts))
    net.save_pretrained(unfitted)
    unfitted.rename(directory)  # complete, or absent
    return directory


def ridge_head(model: RewardModel, texts: Sequence[PromptResponse]) -> torch.Tensor:
    """w = argmin |S w - y|^2 + ridge |w|^2 with S the standardized last states, y +-1; as weights of the plain states."""
    rows = []
    with torch.inference_mode():
        for sequence in sequences_of(model, texts):
            out = model.trunk(input_ids=torch.from_numpy(sequence.token_ids)[None], use_cache=False)
            rows.append(out.last_hidden_state[0, -1].double())
    states = torch.stack(rows)  # (texts, hidden)
    scale = states.std(0)
    standard = (states - states.mean(0)) / scale
    wanted = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(rows) // 2)
    inverse = torch.linalg.solve(standard @ standard.T + RIDGE * torch.eye(len(rows), dtype=torch.float64), wanted)
    weight: torch.Tensor = standard.T @ inverse / scale
    return weight.float()[None]


def table(rows: Sequence[Row]) -> str:
    headers = ["model", "invariant", "texts", "deviation", "mean |d|", "max |d|", "Spearman", "flipped pairs"]
    headers += ["flipped answers", "MB fp32", "MB int8", "speed int8 / fp32"]
    cells = [
        [
            row.model,
            "yes" if row.is_batch_invariant else "no",
            str(row.num_texts),
            f"{row.score_deviation:.3f}",
            f"{row.mean_difference:.4f}",
            f"{row.max_difference:.4f}",
            f"{row.spearman:.5f}",
            f"{row.flipped_pairs:.2%}",
            f"{row.flipped_answers:.2%}",
            f"{row.megabytes[0]:.0f}",
            f"{row.megabytes[1]:.0f}",
            f"{row.tokens_per_second[1] / row.tokens_per_second[0]:.2f}",
        ]
        for row in rows
    ]
    return format_table(headers, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48, help="with two answers each")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "work")
    options = parser.parse_args()
    prepare_process()
    texts = read_pairs(options.prompts)
    deep = make_smollm2(options.work / "smollm2-135m-head", read_pairs(options.prompts, skip=3))
    models = {name: ROOT / "models" / name for name in ("safety", "helpfulness")} | {"SmolLM2-135M": deep}
    rows = [compare(name, directory, texts) for name, directory in models.items()]
    print(table(rows))
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
