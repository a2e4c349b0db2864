"""Reference scores: transformers' own fp32 forward on one unpadded text at a time.

`python -m benchmarks.reference_forward CHECKPOINT --threads 2` reads a JSON list of texts and prints the list of their scores. It is a separate
process (`reference.reference_scores`), so that the load generator never loads a model.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def _score_alone(checkpoint: Path, texts: Sequence[str]) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    scores: list[float] = []
    for text in texts:
        with torch.inference_mode():
            logits = model(**tokenizer(text, return_tensors="pt")).logits  # (1, 1)
        scores.append(float(logits[0, 0]))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(_score_alone(arguments.checkpoint, json.load(sys.stdin))))


if __name__ == "__main__":
    main()
