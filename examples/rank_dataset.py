"""Scores a JSONL file with one item per line, as in POST /score, and writes it best first.

    python -m examples.rank_dataset items.jsonl ranked.jsonl [--model helpfulness] [--url http://127.0.0.1:8000]

Other keys of a line are kept. Items that are too long are truncated from the left.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reward_client import RewardClient

INPUTS = ("prompt", "response", "messages", "text", "input_ids")
LINES_A_CALL = 256


def batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    waiting = iter(rows)
    while batch := list(islice(waiting, LINES_A_CALL)):
        yield batch


def rank(client: RewardClient, rows: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """The rows with a `score`, best first."""
    scored = []
    with tqdm(total=len(rows), unit="item") as progress:
        for batch in batches(rows):
            items = [{key: row[key] for key in INPUTS if key in row} for row in batch]
            scores = client.score(items, models=[model], truncation="left").of(model)
            scored += [row | {"score": score} for row, score in zip(batch, scores, strict=True)]
            progress.update(len(batch))
    return sorted(scored, key=lambda row: -row["score"])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", type=Path)
    options.add_argument("target", type=Path)
    options.add_argument("--model", default="helpfulness", choices=("helpfulness", "safety"))
    options.add_argument("--url", default="http://127.0.0.1:8000")
    given = options.parse_args()
    rows = [json.loads(line) for line in given.source.read_text(encoding="utf-8").splitlines() if line.strip()]
    with RewardClient(given.url) as client:
        ranked = rank(client, rows, given.model)
    given.target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ranked), encoding="utf-8")


if __name__ == "__main__":
    main()
