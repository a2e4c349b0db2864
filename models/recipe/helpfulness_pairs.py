"""Step 3b: synthetic preferences with ratings out of SmolLM2's answers -> `work/helpfulness_pairs.jsonl`.

The chosen side is always the calm answer, cut after its last whole sentence. The rejected side is one of eight kinds of
failure. No human judged these pairs: they teach that a failure is worse than an attempt, nothing finer.

Traps that the construction avoids: a rejected answer never comes from the other side of the train/held-out split; in
the off-topic kinds every answer is rejected exactly as often as it is chosen, so that "this answer is bad" cannot be
learned; and but for refusals the longer side is the chosen one in about half of a kind's pairs.

The training side gets more failures than the held-out side (`extra_failures`: other wordings, other loops, garbled words),
from draws of their own, so that the held-out pairs stay the same whatever is added.

    python -m models.recipe.helpfulness_pairs
"""

# ruff: noqa: S311 - draws are to be reproducible, not secret

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from models.recipe.common import DATA, SEED, WORK, read_jsonl, write_jsonl
from models.recipe.failures import (
    composed_refusal,
    garbled,
    late_loop,
    loops,
    opening,
    repetition,
    sentences,
    shuffled,
    truncation,
    whole_sentences,
    wider_refusal,
    written_refusals,
)

RATING = {
    "refuse": "significantly_better",
    "repeat": "significantly_better",
    "shuffle": "significantly_better",
    "random": "significantly_better",
    "near": "better",
    "truncated": "better",
    "hot": "slightly_better",
    "garble": "slightly_better",
}
HELD_OUT_TOPICS = 0.2
MIN_WORDS = 15


def derangement(rows: list[dict[str, Any]], same_category: bool, rng: random.Random) -> list[int]:
    """For each row another row's index, each index once: of another topic in its category, or of another category.

    Found by swaps that lower the total length difference, so that the two sides of a pair are about equally long.
    """
    lengths = [len(row["answer"]) for row in rows]

    def allowed(i: int, j: int) -> bool:
        if same_category:
            return bool(rows[i]["category"] == rows[j]["category"] and rows[i]["topic"] != rows[j]["topic"])
        return bool(rows[i]["category"] != rows[j]["category"])

    def cost(i: int, j: int) -> float:
        return abs(lengths[i] - lengths[j]) if allowed(i, j) else 1e6

    match = list(range(len(rows)))
    blocks: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        blocks.setdefault(row["category"] if same_category else "", []).append(index)
    for block in blocks.values():
        for _ in range(400 * len(block)):
            i, j = rng.choice(block), rng.choice(block)
            if cost(i, match[j]) + cost(j, match[i]) < cost(i, match[i]) + cost(j, match[j]):
                match[i], match[j] = match[j], match[i]
    return [j if allowed(i, j) else -1 for i, j in enumerate(match)]


def failures(
    row: dict[str, Any], refusals: list[str], times: int, rng: random.Random
) -> Iterator[tuple[str, str, str]]:
    """(kind, chosen, rejected) of the failures that one prompt's own answers give; `times` repetitions."""
    answer = row["answer"]
    yield "refuse", answer, rng.choice(refusals)
    if times > 1:
        yield "refuse", answer, composed_refusal(row["topic"], rng)
    for _ in range(times):
        yield "repeat", answer, repetition(answer, rng)
    yield "shuffle", answer, shuffled(answer, rng)
    if cut := truncation(answer, rng):
        yield "truncated", *cut
    hot = whole_sentences(row["hot"])
    if len(hot.split()) >= MIN_WORDS:
        yield "hot", answer, hot


def off_topic(rows: list[dict[str, Any]], times: dict[str, int], rng: random.Random) -> Iterator[tuple[int, str, str]]:
    """(row, kind, rejected) of other prompts' answers, `times[kind]` derangements of each kind."""
    for kind, count in times.items():
        for _ in range(count):
            for i, j in enumerate(derangement(rows, kind == "near", rng)):
                if j >= 0:
                    yield i, kind, rows[j]["answer"]


def extra_failures(
    row: dict[str, Any], refusals: list[str], pool: list[str], rng: random.Random
) -> Iterator[tuple[str, str, str]]:
    """(kind, chosen, rejected) of further failures for the training side; `pool` holds words of its answers."""
    answer, hot = row["answer"], whole_sentences(row["hot"])
    yield "refuse", opening(answer, rng), rng.choice(refusals)
    for _ in range(2):
        yield "refuse", answer, wider_refusal(row["topic"], rng)
        yield "repeat", answer, late_loop(answer, rng)
        yield "repeat", answer, repetition(answer, rng)
        yield "garble", answer, garbled(answer, pool, rng)
    if cut := truncation(answer, rng):
        yield "truncated", *cut
    if len(sentences(hot)) > 1 and len(sentences(answer)) > 1:
        yield "hot", opening(answer, rng), opening(hot, rng)


def to_pair(row: dict[str, Any], kind: str, chosen: str, rejected: str, held_out: bool) -> dict[str, Any]:
    return {
        "prompt": row["prompt"],
        "chosen": chosen,
        "rejected": rejected,
        "rating": RATING[kind],
        "kind": kind,
        "topic": row["topic"],
        "held_out": held_out,
    }


def refusals_of(held_out: bool) -> list[str]:
    """The written refusals of one side; a quarter is kept for the held-out side."""
    return [text for i, text in enumerate(written_refusals()) if (i % 4 == 1) == held_out]


def build(rows: list[dict[str, Any]], held_out: bool, rng: random.Random) -> list[dict[str, Any]]:
    """Every pair of one side of the split, but for the training side's extra ones."""
    refusals = refusals_of(held_out)
    found = [(row, *failure) for row in rows for failure in failures(row, refusals, 1 if held_out else 3, rng)]
    times = {"near": 1, "random": 1} if held_out else {"near": 3, "random": 2}
    found += [(rows[i], kind, rows[i]["answer"], rejected) for i, kind, rejected in off_topic(rows, times, rng)]
    return [to_pair(*each, held_out) for each in found if each[3] and each[2] != each[3]]


def build_extra(rows: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """The training side's extra pairs."""
    refusals, pool = refusals_of(False), [word for row in rows for word in row["answer"].split()]
    found = [(row, *failure) for row in rows for failure in extra_failures(row, refusals, pool, rng)]
    return [to_pair(*each, False) for each in found if each[3] and each[2] != each[3]]


def main() -> None:
    rng = random.Random(SEED)
    rows = [{**row, "answer": whole_sentences(row["calm"])} for row in read_jsonl(DATA / "answers.jsonl")]
    rows = [row for row in rows if len(row["answer"].split()) >= MIN_WORDS and not loops(row["answer"])]
    topics = sorted({row["topic"] for row in rows})
    held_out = set(rng.sample(topics, round(HELD_OUT_TOPICS * len(topics))))
    training = [row for row in rows if row["topic"] not in held_out]
    pairs = build(training, False, rng)
    pairs += build([row for row in rows if row["topic"] in held_out], True, rng)
    pairs += build_extra(training, random.Random(SEED + 1))
    write_jsonl(WORK / "helpfulness_pairs.jsonl", pairs)
    for side in (False, True):
        own = [pair for pair in pairs if pair["held_out"] == side]
        prompts = len({pair["prompt"] for pair in own})
        print("held out" if side else "train", prompts, "prompts", dict(Counter(pair["kind"] for pair in own)))
        for kind in RATING:
            some = [len(p["chosen"]) > len(p["rejected"]) for p in own if p["kind"] == kind]
            if some:
                print(f"  {kind:10} longer side is chosen in {sum(some) / len(some):.2f}")


if __name__ == "__main__":
    main()
