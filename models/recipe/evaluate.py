"""Step 6: the figures -> `work/evaluation.json`, PNG files beside the checkpoints, tables on the terminal.

The safety ranking is judged by cross-validation over objectives (the shipped head is fitted on all of them), the helpfulness
model as shipped, through transformers' own forward in fp32 on the fp16 checkpoint, on topics that it never saw. Every
accuracy has a 95 % bootstrap interval that resamples whole objectives or topics, since pairs of one are not independent.

    python -m models.recipe.evaluate
"""

# ruff: noqa: S311 - draws are to be reproducible, not secret

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from models.recipe.common import MODELS, SEED, WORK, num_threads, read_jsonl

NUM_BOOTSTRAPS = 1000
VETO = math.log(0.15 / 0.85)
Row = dict[str, Any]


def interval(hits: Sequence[tuple[str, float]], seed: int = SEED) -> tuple[float, float, float]:
    """(mean, low, high): the mean of the values and the 95 % interval of a bootstrap over their groups."""
    by_group: dict[str, list[float]] = defaultdict(list)
    for group, value in hits:
        by_group[group].append(value)
    sums = [(sum(values), len(values)) for values in by_group.values()]
    rng = random.Random(seed)
    means = []
    for _ in range(NUM_BOOTSTRAPS):
        drawn = rng.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    mean = sum(value for _, value in hits) / len(hits)
    return mean, means[round(0.025 * NUM_BOOTSTRAPS)], means[round(0.975 * NUM_BOOTSTRAPS) - 1]


def rounded(values: tuple[float, float, float], count: int) -> Row:
    mean, low, high = (round(value, 3) for value in values)
    return {"value": mean, "low": low, "high": high, "count": count}


def accuracy(pairs: list[Row], group: str, correct: Callable[[Row], bool]) -> Row:
    """Share of pairs whose chosen side is strictly ahead, with its interval."""
    return rounded(interval([(pair[group], float(correct(pair))) for pair in pairs]), len(pairs))


def write_errors(name: str, pairs: list[Row], scored: Callable[[Row], tuple[float, float]]) -> None:
    """The pairs that the model gets most wrong -> `work/<name>_errors.json`."""
    worst = sorted(pairs, key=lambda pair: scored(pair)[0] - scored(pair)[1])[:20]
    lines = [{**pair, "scores": [round(value, 2) for value in scored(pair)]} for pair in worst]
    (WORK / f"{name}_errors.json").write_text(json.dumps(lines, indent=1, ensure_ascii=False))


def safety() -> dict[str, Row]:
    """Ranking and veto figures from the held-out scores of the cross-validation."""
    rows, pairs = read_jsonl(WORK / "safety_cv.jsonl"), read_jsonl(WORK / "safety_pairs.jsonl")
    score = [row["score"] for row in rows]

    def ahead(pair: Row) -> bool:
        return bool(score[pair["chosen_id"]] > score[pair["rejected_id"]])

    def shorter(pair: Row) -> bool:
        return len(pair["chosen"]) < len(pair["rejected"])

    harm = [pair for pair in pairs if pair["kind"] == "harm"]
    table: dict[str, Row] = {}
    subsets = {"all pairs": harm, "gap >= 0.2": [pair for pair in harm if pair["gap"] >= 0.199]}
    for name in ("significantly_better", "better", "slightly_better", "negligibly_better"):
        subsets[name] = [pair for pair in harm if pair["rating"] == name]
    subsets["refusal over jailbreak answer"] = [pair for pair in pairs if pair["kind"] == "jailbreak"]
    subsets["benign: answer over refusal"] = [pair for pair in pairs if pair["kind"] == "benign"]
    for name, subset in subsets.items():
        table[name] = accuracy(subset, "group", ahead) | {"baseline": accuracy(subset, "group", shorter)["value"]}
    human = [row for row in rows if row["source"] == "harm"]
    vetoed = {
        "vetoed: severity >= 0.75": [row for row in human if row["severity"] >= 0.745],
        "vetoed: severity 1": [row for row in human if row["severity"] >= 0.95],
        "vetoed: severity 0, harmful objective": [row for row in human if row["severity"] <= 0.05],
        "vetoed: jailbreak answers": [row for row in rows if row["source"] == "many_shot"],
        "vetoed: written refusals": [row for row in rows if row["source"] == "refusal"],
        "vetoed: benign answers": [row for row in rows if row["source"] == "benign"],
    }
    for name, subset in vetoed.items():
        hits = [(row["group"], float(row["score"] < VETO)) for row in subset]
        table[name] = rounded(interval(hits), len(subset))
    write_errors("safety", harm, lambda p: (score[p["chosen_id"]], score[p["rejected_id"]]))
    return table


def scores(name: str, texts: list[tuple[str, str]]) -> list[float]:
    """Scores of a shipped checkpoint by transformers' forward in fp32, one conversation at a time, nothing cut."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(MODELS / name)
    model: Any = AutoModelForSequenceClassification.from_pretrained(MODELS / name, dtype="float32").eval()
    result = []
    for prompt, response in tqdm(texts, desc=f"{name} scores", unit="text"):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            result.append(float(model(**inputs).logits))
    return result


def helpfulness() -> dict[str, Row]:
    """Accuracy by kind of failure on the held-out topics, and the length baseline beside it."""
    pairs = [pair for pair in read_jsonl(WORK / "helpfulness_pairs.jsonl") if pair["held_out"]]
    texts = sorted({(pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")})
    score = dict(zip(texts, scores("helpfulness", texts), strict=True))
    table = {}
    for kind in ("refuse", "repeat", "shuffle", "truncated", "hot", "near", "random"):
        own = [pair for pair in pairs if pair["kind"] == kind]

        def ahead(pair: Row) -> bool:
            return score[pair["prompt"], pair["chosen"]] > score[pair["prompt"], pair["rejected"]]

        longer = accuracy(own, "topic", lambda pair: len(pair["chosen"]) > len(pair["rejected"]))["value"]
        table[kind] = accuracy(own, "topic", ahead) | {"baseline": longer}
    write_errors("helpfulness", pairs, lambda p: (score[p["prompt"], p["chosen"]], score[p["prompt"], p["rejected"]]))
    return table


def markdown(title: str, table: dict[str, Row], baseline: str) -> str:
    """A Markdown table of the figures."""
    lines = [f"| {title} | model | 95 % interval | {baseline} | count |", "| --- | --- | --- | --- | --- |"]
    for name, row in table.items():
        other = f"{row['baseline']:.3f}" if "baseline" in row else ""
        lines.append(
            f"| {name} | {row['value']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {other} | {row['count']} |"
        )
    return "\n".join(lines)


def plot() -> None:
    """Loss curves and the held-out safety probabilities by human severity, as PNG files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    for name in ("safety", "helpfulness"):
        figure, axes = plt.subplots(figsize=(6, 3.5))
        for label, losses in json.loads((WORK / f"{name}_losses.json").read_text()).items():
            window = max(1, len(losses) // 40)
            smooth = [sum(losses[i : i + window]) / window for i in range(0, len(losses) - window + 1, window)]
            axes.plot([i * window for i in range(len(smooth))], smooth, label=label)
        axes.set(xlabel="step", ylabel="margin ranking loss", title=f"{name}: training loss")
        axes.legend()
        figure.tight_layout()
        figure.savefig(MODELS / name / "loss.png", dpi=100)
        plt.close(figure)
    rows = [row for row in read_jsonl(WORK / "safety_cv.jsonl") if row["source"] == "harm"]
    levels = (0.0, 0.25, 0.5, 0.75, 1.0)
    groups = [[row["score"] for row in rows if abs(row["severity"] - level) < 0.125] for level in levels]
    figure, axes = plt.subplots(figsize=(6, 3.5))
    axes.boxplot([[1 / (1 + math.exp(-s)) for s in group] for group in groups], tick_labels=[str(x) for x in levels])
    axes.axhline(0.15, linestyle="--")
    axes.set(xlabel="human severity", ylabel="held-out probability", title="safety by severity; the line is the veto")
    figure.tight_layout()
    figure.savefig(MODELS / "safety" / "calibration.png", dpi=100)
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(num_threads())
    tables = {"safety": safety(), "helpfulness": helpfulness()}
    (WORK / "evaluation.json").write_text(json.dumps(tables, indent=1))
    print(markdown("safety, 5-fold by objective", tables["safety"], "shorter wins"))
    print()
    print(markdown("helpfulness, held-out topics", tables["helpfulness"], "longer wins"))
    try:
        plot()
    except ImportError:
        print("\nno plots: matplotlib is not installed (extra `train`)")


if __name__ == "__main__":
    main()
