"""Step 3b: synthetic preferences with ratings out of SmolLM2's answers -> `work/helpfulness_pairs.jsonl`.

The chosen side is always the calm answer, cut after its last whole sentence. The rejected side is one of seven kinds of
failure. No human judged these pairs: they teach that a failure is worse than an attempt, nothing finer.

Traps that the construction avoids: a rejected answer never comes from the other side of the train/held-out split; in
the off-topic kinds every answer is rejected exactly as often as it is chosen, so that "this answer is bad" cannot be
learned; and in each kind the longer side is the chosen one in about half of the pairs.

    python -m models.recipe.helpfulness_pairs
"""

# ruff: noqa: S311 - draws are to be reproducible, not secret

import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from models.recipe.common import DATA, SEED, WORK, read_jsonl, write_jsonl

RATING = {
    "refuse": "significantly_better",
    "repeat": "significantly_better",
    "shuffle": "significantly_better",
    "random": "significantly_better",
    "near": "better",
    "truncated": "better",
    "hot": "slightly_better",
}
HELD_OUT_TOPICS = 0.2
MIN_WORDS = 15

OPENERS = ("I'm sorry, but ", "Unfortunately, ", "Sorry, ", "I regret that ", "Thank you for asking, but ", "")
BODIES = (
    "I can't talk about {topic}.",
    "I am not able to answer questions about {topic}.",
    "this is not something that I can do.",
    "I have to decline.",
    "my guidelines do not allow me to give information on {topic}.",
    "I have no knowledge of {topic} and cannot answer.",
    "I won't write anything about {topic}.",
    "answering this is beyond what I can do.",
)
CLOSERS = (
    "",
    " Please ask me something else.",
    " Is there another question that I could answer?",
    " Please ask an expert instead.",
    " I hope that you find the information you need somewhere else, since I am only able to help with certain subjects.",
    " As an assistant I try to be careful, and I would rather not say anything that might turn out to be wrong.",
)


def written_refusals() -> list[str]:
    """The refusals of `data/refusals.txt`, short and long."""
    return (DATA / "refusals.txt").read_text().splitlines()


def composed_refusal(topic: str, rng: random.Random) -> str:
    """A refusal for the training side, so that the model sees more of them than the written ones."""
    body = rng.choice(BODIES).format(topic=topic)
    text = rng.choice(OPENERS) + body + rng.choice(CLOSERS)
    return text[0].upper() + text[1:]


def whole_sentences(text: str) -> str:
    """`text` up to the end of its last finished sentence; all of it where none is finished."""
    ends = [match.end() for match in re.finditer(r"[.!?][\"')*`]*(?=\s|$)|```(?=\s*$)", text)]
    ends = [end for end in ends if not re.search(r"(?:^|\s)\d+\.$", text[:end])]  # "3." opens a list item
    return text[: ends[-1]].strip() if ends else text.strip()


def sentences(text: str) -> list[str]:
    """The finished sentences of `text`, with the white space that precedes each."""
    result, start = [], 0
    for match in re.finditer(r"[.!?][\"')*]*(?=\s|$)", text):
        if not re.search(r"(?:^|\s)\d+\.$", text[: match.end()]):
            result.append(text[start : match.end()])
            start = match.end()
    return result


def repetition(answer: str, rng: random.Random) -> str:
    """A loop: the answer's opening is followed by one of its phrases over and over, to about the answer's own length."""
    target = int(len(answer) * rng.uniform(0.7, 1.3))
    opening = sentences(answer) or [answer]
    start = rng.randrange(min(3, len(opening)))
    phrase = opening[start]
    if rng.random() < 0.5:
        words = phrase.split(" ")
        phrase = " " + " ".join(words[: rng.randint(3, 8)]).strip()
    text = "".join(opening[:start])
    while len(text) < target:
        text += phrase if phrase[:1].isspace() else " " + phrase
    return text.strip()


def shuffled(answer: str, rng: random.Random) -> str:
    """The answer's words in random order."""
    words = answer.split()
    rng.shuffle(words)
    return " ".join(words)


def truncation(answer: str, rng: random.Random) -> tuple[str, str] | None:
    """(whole, cut in mid-sentence) of about equal expected length; None where the answer has fewer than two sentences.

    The whole side ends after a random sentence, so that shortness alone says nothing.
    """
    parts = sentences(answer)
    if len(parts) < 2:
        return None
    whole = "".join(parts[: rng.randint(1, len(parts))]).strip()
    kept = rng.randrange(len(parts))
    words = parts[kept].split(" ")
    if len(words) < 5:
        return None
    cut = "".join(parts[:kept]) + " ".join(words[: rng.randint(3, len(words) - 1)])
    return whole, cut.strip().rstrip(".!?")


def loops(text: str) -> bool:
    """Whether the language model itself fell into a loop: over a fifth of the word 4-grams are repeats."""
    words = text.lower().split()
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return len(set(grams)) < 0.8 * len(grams)


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


def build(rows: list[dict[str, Any]], held_out: bool, rng: random.Random) -> list[dict[str, Any]]:
    """Every pair of one side of the split; a quarter of the written refusals is kept for the held-out side."""
    refusals = [text for i, text in enumerate(written_refusals()) if (i % 4 == 1) == held_out]
    found = [
        (row, kind, chosen, rejected)
        for row in rows
        for kind, chosen, rejected in failures(row, refusals, 1 if held_out else 3, rng)
    ]
    times = {"near": 1, "random": 1} if held_out else {"near": 3, "random": 2}
    found += [(rows[i], kind, rows[i]["answer"], rejected) for i, kind, rejected in off_topic(rows, times, rng)]
    return [
        {
            "prompt": row["prompt"],
            "chosen": chosen,
            "rejected": rejected,
            "rating": RATING[kind],
            "kind": kind,
            "topic": row["topic"],
            "held_out": held_out,
        }
        for row, kind, chosen, rejected in found
        if rejected and chosen != rejected
    ]


def main() -> None:
    rng = random.Random(SEED)
    rows = [{**row, "answer": whole_sentences(row["calm"])} for row in read_jsonl(DATA / "answers.jsonl")]
    rows = [row for row in rows if len(row["answer"].split()) >= MIN_WORDS and not loops(row["answer"])]
    topics = sorted({row["topic"] for row in rows})
    held_out = set(rng.sample(topics, round(HELD_OUT_TOPICS * len(topics))))
    pairs = build([row for row in rows if row["topic"] not in held_out], False, rng)
    pairs += build([row for row in rows if row["topic"] in held_out], True, rng)
    write_jsonl(WORK / "helpfulness_pairs.jsonl", pairs)
    for side in (False, True):
        own = [pair for pair in pairs if pair["held_out"] == side]
        prompts = len({pair["prompt"] for pair in own})
        print("held out" if side else "train", prompts, "prompts", dict(Counter(pair["kind"] for pair in own)))
        for kind in RATING:
            some = [len(p["chosen"]) > len(p["rejected"]) for p in own if p["kind"] == kind]
            print(f"  {kind:10} longer side is chosen in {sum(some) / max(1, len(some)):.2f}")


if __name__ == "__main__":
    main()
