"""Step 2: SmolLM2's own answers to the benign prompts of `data/topics.json` -> `data/answers.jsonl`.

Each prompt is answered twice: once calmly (temperature 0.3, the later *chosen* side) and once hot (1.0 to 1.4, a
*rejected* kind). The file is committed, because sampling is reproducible by seed only on one machine and torch build;
the later steps read the file and never the language model.

    python -m models.recipe.generate [--limit N] [--out FILE]
"""

# ruff: noqa: S311 - draws are to be reproducible, not secret

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from models.recipe.common import DATA, SEED, load_language_model, num_threads

LENGTH_HINTS = ("", "", " Answer in two or three sentences.", " Answer in one short paragraph.")
NUM_PROMPTS = 768  # of the 928 that the topics give
HOT_TEMPERATURES = (1.0, 1.1, 1.2, 1.3, 1.4)
MAX_NEW_TOKENS = 160


def benign_prompts() -> list[dict[str, str]]:
    """Every prompt with its topic, category and the length hint that only the generator sees, shuffled by seed."""
    rng = random.Random(SEED)
    rows = [
        {"category": group["category"], "topic": topic, "prompt": template.format(topic=topic)}
        for group in json.loads((DATA / "topics.json").read_text())
        for topic in group["topics"]
        for template in group["templates"]
    ]
    rng.shuffle(rows)
    for row in rows:
        row["hint"] = "" if row["category"] in ("code", "story") else rng.choice(LENGTH_HINTS)
    return rows


def batches(rows: list[dict[str, str]], size: int) -> Iterator[list[dict[str, str]]]:
    """Consecutive slices, each sorted by hint so that a batch's answers end at about the same time."""
    for start in range(0, len(rows), 4 * size):
        block = sorted(rows[start : start + 4 * size], key=lambda row: row["hint"])
        for begin in range(0, len(block), size):
            yield block[begin : begin + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=NUM_PROMPTS, help="answer the first N prompts")
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--out", type=Path, default=DATA / "answers.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(num_threads())
    model, tokenizer = load_language_model()
    rows = benign_prompts()[: args.limit]
    rng = random.Random(SEED + 1)
    with args.out.open("w") as out, tqdm(total=2 * len(rows), desc="answers", unit="answer") as progress:
        for index, batch in enumerate(batches(rows, args.batch_size)):
            chats = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": row["prompt"] + row["hint"]}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
                for row in batch
            ]
            inputs = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
            answers: dict[str, list[str]] = {}
            hot = rng.choice(HOT_TEMPERATURES)
            for kind, temperature in (("calm", 0.3), ("hot", hot)):
                torch.manual_seed(SEED + 2 * index + (kind == "hot"))
                output = model.generate(
                    **inputs,
                    do_sample=True,
                    temperature=temperature,
                    top_k=0,
                    max_new_tokens=MAX_NEW_TOKENS,
                    pad_token_id=tokenizer.pad_token_id,
                )
                new = output[:, inputs["input_ids"].shape[1] :]  # (batch, new tokens)
                answers[kind] = tokenizer.batch_decode(new, skip_special_tokens=True)
                progress.update(len(batch))
            for row, calm, hot_answer in zip(batch, answers["calm"], answers["hot"], strict=True):
                record = {**row, "calm": calm.strip(), "hot": hot_answer.strip(), "temperature": hot}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
