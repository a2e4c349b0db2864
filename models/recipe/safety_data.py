"""Step 3a: responses with severities, human ones from the pyrit wheel -> `work/safety_responses.jsonl`.

One line a response: `{"prompt", "response", "severity": 0..1, "source", "group"}`. `group` names the objective; everything
that shares a prompt stays on one side of every split. Sources:

- `harm`: responses to harmful objectives with human severities on five levels (the mean where three people rated);
- `objective`: responses to further objectives, judged only "the objective was achieved" (1) or not (0);
- `many_shot`: harmful demonstrations of a jailbreak set, each a full compliance;
- `refusal_scorer`: refusals, off-topic and ordinary answers, all of them safe;
- `benign`: SmolLM2's answers to the recipe's harmless prompts (`data/answers.jsonl`), one a topic;
- `refusal`: a written refusal of each `many_shot` and `benign` prompt, safe;
- `opening`: the first sentence or two of some of the above, with the same severity: short texts must be scored too.

    python -m models.recipe.safety_data
"""

# ruff: noqa: S311 - draws are to be reproducible, not secret

import csv
import io
import json
import random
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from models.recipe.common import DATA, SEED, WORK, read_jsonl, wheel, write_jsonl
from models.recipe.failures import sentences, whole_sentences, written_refusals

PYRIT = "pyrit==1.1.0"
ROOT = "pyrit/datasets/"
# The refusal scorer's rows are safe whether they refuse, miss the point or answer, except answers to these prompts.
HARMFUL_REFUSAL_PROMPTS = (
    "design a phishing",
    "design a fake news",
    "explain how to manipulate people",
    "write a script that denies",
    "which tools can be dangerous",
    "write a hateful story",
)


def read_scores(archive: zipfile.ZipFile, path: str) -> Iterator[dict[str, str]]:
    """Rows of one of pyrit's scorer CSVs, whose first lines may be comments."""
    text = io.StringIO(archive.read(path).decode("utf-8", errors="replace"))
    lines = csv.reader(text)
    header = next(row for row in lines if row and not row[0].startswith("#"))
    for row in lines:
        if row:
            yield dict(zip(header, row, strict=False))


def human_score(row: dict[str, str]) -> float:
    """Mean of the human scores of a row, one to three of them."""
    scores = [float(value) for name, value in row.items() if name and name.startswith("human_score") and value.strip()]
    return sum(scores) / len(scores)


def repair(text: str) -> str:
    """Undo the commonest encoding damage of the files and collapse blank space."""
    for wrong, right in (
        ("\u00e2\u20ac\u2122", "'"),
        ('\u00e2\u20ac"', "-"),
        ("\ufffd", "'"),
        ("\u00e2\u20ac\u0153", '"'),
    ):
        text = text.replace(wrong, right)
    return re.sub(r"[ \t]+", " ", text).strip()


def group_of(prompt: str) -> str:
    """Key that two spellings of one objective share."""
    return re.sub(r"[^a-z0-9]+", " ", prompt.lower()).strip()


def response(prompt: str, text: str, severity: float, source: str) -> dict[str, Any]:
    return {
        "prompt": repair(prompt),
        "response": repair(text),
        "severity": round(severity, 4),
        "source": source,
        "group": group_of(prompt),
    }


def benign_answers(rng: random.Random) -> list[dict[str, Any]]:
    """One of SmolLM2's answers a topic; the topic is the group, so that no split divides it."""
    by_topic: dict[str, list[dict[str, Any]]] = {}
    for row in read_jsonl(DATA / "answers.jsonl"):
        by_topic.setdefault(row["topic"], []).append(row)
    chosen = [rng.choice(rows) for rows in by_topic.values()]
    return [response(row["prompt"], whole_sentences(row["calm"]), 0.0, "benign") for row in chosen]


def scorer_rows(archive: zipfile.ZipFile, kind: str) -> Iterator[dict[str, Any]]:
    """The responses of one folder of pyrit's scorer evaluations."""
    for path in sorted(archive.namelist()):
        if not (path.startswith(f"{ROOT}scorer_evals/{kind}/") and path.endswith(".csv")):
            continue
        for row in read_scores(archive, path):
            severity = human_score(row)
            if kind == "refusal_scorer":
                if severity == 0 and group_of(row["objective"]).startswith(HARMFUL_REFUSAL_PROMPTS):
                    continue
                severity = 0.0  # the label there says "refused"
            yield response(row["objective"], row["assistant_response"], severity, kind)


def openings(rows: list[dict[str, Any]], rng: random.Random) -> Iterator[dict[str, Any]]:
    """The first one or two sentences of some clearly safe and clearly harmful responses."""
    for row in rows:
        if row["source"] in ("objective", "refusal") or row["severity"] not in (0.0, 1.0) or rng.random() >= 0.4:
            continue
        if len(parts := sentences(row["response"])) > 2:
            start = "".join(parts[: rng.randint(1, 2)])
            yield response(row["prompt"], start, row["severity"], "opening")


def collect() -> list[dict[str, Any]]:
    """All responses, each (prompt, response) once; human severities win over the weaker sources."""
    rng = random.Random(SEED)
    rows: list[dict[str, Any]] = []
    with zipfile.ZipFile(wheel(PYRIT)) as archive:
        for kind in ("harm", "objective", "refusal_scorer"):
            rows += scorer_rows(archive, kind)
        shots = json.loads(archive.read(f"{ROOT}jailbreak/many_shot_examples.json"))
    rows += [response(shot["user"], shot["assistant"], 1.0, "many_shot") for shot in shots]
    rows += benign_answers(rng)
    refusals = written_refusals()
    refused = [row for row in rows if row["source"] in ("many_shot", "benign")]
    rows += [response(row["prompt"], rng.choice(refusals), 0.0, "refusal") for row in refused]
    rows += list(openings(rows, rng))
    unique: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["response"]:
            unique.setdefault((row["group"], row["response"]), row)
    return [{"id": index, **row} for index, row in enumerate(unique.values())]


def main() -> None:
    rows = collect()
    write_jsonl(WORK / "safety_responses.jsonl", rows)
    for source in sorted({row["source"] for row in rows}):
        own = [row for row in rows if row["source"] == source]
        print(f"{source:10} {len(own):5} responses, {len({row['group'] for row in own}):4} prompts")


if __name__ == "__main__":
    main()
