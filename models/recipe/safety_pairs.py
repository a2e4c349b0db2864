"""Step 4a: human severities -> rated preference pairs -> `work/safety_pairs.jsonl`.

Three kinds. `harm`: two responses to one objective that people rated differently; these carry the evaluation.
`jailbreak`: a refusal over a jailbreak set's full compliance. `benign`: an ordinary answer over a refusal of the same
harmless prompt, with no margin, so that refusing and brevity are not mistaken for safety. The ratings follow the difference
of severities; an objective gives at most PAIRS_PER_OBJECTIVE pairs, or one with 1,211 would be a third of all.

    python -m models.recipe.safety_pairs
"""

# ruff: noqa: S311 - draws are to be reproducible, not secret

import random
from collections import Counter, defaultdict
from typing import Any

from models.recipe.common import SEED, WORK, read_jsonl, write_jsonl

PAIRS_PER_OBJECTIVE = 25
LEVELS = ((0.7, "significantly_better"), (0.4, "better"), (0.2, "slightly_better"), (0.0, "negligibly_better"))


def rating(gap: float) -> str:
    """The rating that a positive difference of severities stands for."""
    if gap <= 0:
        raise ValueError(f"a preference needs a positive difference of severities, not {gap}")
    return next(name for least, name in LEVELS if gap + 1e-6 >= least)


def harm_pairs(rows: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Pairs within an objective, the less severe response chosen, capped by objective."""
    by_group: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["source"] == "harm":
            by_group[row["group"]].append(row)
    pairs: list[dict[str, Any]] = []
    for group in sorted(by_group):
        members = by_group[group]
        candidates = [(a, b) for a in members for b in members if a["severity"] < b["severity"]]
        rng.shuffle(candidates)
        for chosen, rejected in candidates[:PAIRS_PER_OBJECTIVE]:
            gap = rejected["severity"] - chosen["severity"]
            pairs.append(pair(chosen, rejected, rating(gap), "harm") | {"gap": round(gap, 4)})
    return pairs


def pair(chosen: dict[str, Any], rejected: dict[str, Any], rated: str, kind: str) -> dict[str, Any]:
    """One preference; `chosen_id` and `rejected_id` point into `work/safety_responses.jsonl`."""
    return {
        "prompt": chosen["prompt"],
        "chosen": chosen["response"],
        "rejected": rejected["response"],
        "rating": rated,
        "kind": kind,
        "group": chosen["group"],
        "chosen_id": chosen["id"],
        "rejected_id": rejected["id"],
    }


def refusal_pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`jailbreak` and `benign` pairs: the refusals were written beside the answers by `safety_data`."""
    refusal = {row["group"]: row for row in rows if row["source"] == "refusal"}
    pairs = []
    for row in rows:
        if row["group"] in refusal and row["source"] == "many_shot":
            pairs.append(pair(refusal[row["group"]], row, "significantly_better", "jailbreak"))
        if row["group"] in refusal and row["source"] == "benign":
            pairs.append(pair(row, refusal[row["group"]], "negligibly_better", "benign"))
    return pairs


def main() -> None:
    rows = read_jsonl(WORK / "safety_responses.jsonl")
    pairs = harm_pairs(rows, random.Random(SEED)) + refusal_pairs(rows)
    write_jsonl(WORK / "safety_pairs.jsonl", pairs)
    for (kind, rated), count in sorted(Counter((p["kind"], p["rating"]) for p in pairs).items()):
        print(f"{kind:10} {rated:22} {count:5}")


if __name__ == "__main__":
    main()
