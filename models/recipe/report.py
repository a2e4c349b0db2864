"""Step 4: the figures of the held-out responses -> `work/evaluation.json`, and into the cards and `models/README.md`.

Only what stands between the marks `<!-- figures: name -->` and `<!-- end -->` is replaced.

    python -m models.recipe.report
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.recipe.common import MODELS, WORK
from models.recipe.export import calibrations_of
from models.recipe.folds import BLIND, FOLDS, NUM_FOLDS, is_held_out, is_of_unseen_kind, read_scores, unseen_kinds
from models.recipe.groups import TASKS, Group
from models.recipe.judge import Scored, accuracy, vetoes, worst_pairs
from models.recipe.preferences import longer_wins, pairs_of, read_preferences
from models.recipe.words import fit_words

NUM_WORST = 5
Row = dict[str, Any]


def judged_folds() -> list[str]:
    """The folds whose training has been run."""
    return [name for name in FOLDS if (WORK / f"scores_{name}.jsonl").exists()]


def words_of(scored: Sequence[Scored], groups: Sequence[Group], task: str) -> dict[int, list[float]]:
    """The bag-of-words baseline's scores, fitted for each training on what it was trained on, by the group's identity."""
    found: dict[int, list[float]] = {}
    unseen = unseen_kinds(groups)
    for name in {each.fold for each in scored}:
        judged = [each.group for each in scored if each.fold == name]
        trained = pairs_of((group for group in groups if not is_held_out(name, group, unseen)), task)
        for group, scores in zip(judged, fit_words(list(trained), judged), strict=True):
            found[id(group)] = scores
    return found


def row(title: str, scored: Sequence[Scored], task: str, words: dict[int, list[float]]) -> Row:
    pairs = list(pairs_of((each.group for each in scored), task))
    baseline = accuracy(scored, task, lambda each: words.get(id(each.group), [0.0] * len(each.group.responses)))
    return {
        "title": title,
        **accuracy(scored, task, lambda each: each.scores[task]).to_dict(),
        "words": round(baseline.value, 3) if words else None,
        "longer": round(longer_wins(pairs), 3),
    }


def rows_of(scored: Sequence[Scored], groups: Sequence[Group], task: str, min_pairs: int = 5) -> list[Row]:
    """All kinds together, then each with enough pairs."""
    words = words_of(scored, groups, task)
    rows = [row("all kinds", scored, task, words)]
    for kind in sorted({each.group.kind for each in scored}):
        of_kind = [each for each in scored if each.group.kind == kind]
        if sum(1 for _ in pairs_of((each.group for each in of_kind), task)) >= min_pairs:
            rows.append(row(kind, of_kind, task, words))
    return rows


def veto_rows(scored: Sequence[Scored]) -> list[Row]:
    if len({each.fold for each in scored}) == 1:  # then each half is judged under the other's calibration
        scored = [replace(each, fold=str(number % 2)) for number, each in enumerate(scored)]
    calibrations = calibrations_of(scored)
    named = {"": scored} | {
        f", {kind}": [each for each in scored if each.group.kind == kind]
        for kind in ("scary_harmless", "warnings", "self_harm")
    }
    rows = []
    for suffix, part in named.items():
        for name, share in vetoes(part, calibrations).items():
            if share.count:
                rows.append({"title": f"vetoed: {name}{suffix}", **share.to_dict(), "words": None, "longer": None})
    return rows


def evaluate() -> dict[str, Any]:
    groups = read_preferences()
    unseen = unseen_kinds(groups)
    scored: list[Scored] = []
    never_seen: list[Scored] = []
    for each in (each for name in judged_folds() for each in read_scores(name)):
        (never_seen if is_of_unseen_kind(each.fold, each.group, unseen) else scored).append(each)
    report: dict[str, Any] = {"folds": judged_folds(), "unseen": unseen if never_seen else []}
    for task in TASKS:
        rows = rows_of(scored, groups, task)
        if never_seen:
            rows += [entry | {"title": f"never seen: {entry['title']}"} for entry in rows_of(never_seen, groups, task)]
        if task == "safety":
            rows += veto_rows(scored)
        report[task] = {"rows": rows, "worst": [shown(*entry) for entry in worst_pairs(scored, task, NUM_WORST)]}
    return report


def shown(pair: Any, difference: float) -> Row:
    better, worse = pair.texts
    return {
        "kind": pair.group.kind,
        "prompt": pair.group.prompt,
        "better": better,
        "worse": worse,
        "difference": round(difference, 2),
    }


def table(title: str, rows: Sequence[Row]) -> str:
    lines = [
        f"| {title} | model | 95 % interval | bag of words | longer wins | count |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry in rows:
        words, longer = ("" if entry[name] is None else f"{entry[name]:.3f}" for name in ("words", "longer"))
        interval = f"{entry['low']:.3f} to {entry['high']:.3f}"
        lines.append(
            f"| {entry['title']} | {entry['value']:.3f} | {interval} | {words} | {longer} | {entry['count']} |"
        )
    return "\n".join(lines)


def wrong_examples(worst: Sequence[Row]) -> str:
    """As a table, with the texts on one line and cut to what fits."""

    def cell(text: str) -> str:
        line = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
        return line if len(line) <= 140 else f"{line[:137]}..."

    lines = ["| kind | prompt | better | scored higher | by |", "| --- | --- | --- | --- | --- |"]
    for entry in worst:
        texts = " | ".join(cell(entry[name]) for name in ("kind", "prompt", "better", "worse"))
        lines.append(f"| {texts} | {-entry['difference']:.2f} |")
    return "\n".join(lines)


def with_figures(text: str, name: str, figures: str) -> str:
    """`text` with the block between `<!-- figures: name -->` and `<!-- end -->` replaced by `figures`."""
    block = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not block.search(text):
        raise ValueError(f"the text has no place for the figures of {name}")
    return block.sub(lambda match: f"{match[1]}{figures}\n{match[2]}", text)


def write(file: Path, figures: dict[str, str]) -> None:
    text = file.read_text(encoding="utf-8")
    for name, block in figures.items():
        text = with_figures(text, name, block)
    file.write_text(text, encoding="utf-8")


def folds_in_words(folds: Sequence[str], unseen: Sequence[str]) -> str:
    judged = "All five folds" if len(folds) == NUM_FOLDS else f"So far {len(folds)} of five folds"
    seen = f"the kinds that fold {BLIND} never saw are {', '.join(unseen)}" if unseen else "no training left kinds out"
    return f"{judged} by prompt {'was' if len(folds) == 1 else 'were'} trained and judged; {seen}."


def main() -> None:
    report = evaluate()
    folds = folds_in_words(report["folds"], report["unseen"])
    (WORK / "evaluation.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    summary = {}
    for task in TASKS:
        rows = report[task]["rows"]
        write(
            MODELS / task / "README.md",
            {"folds": folds, task: table(task, rows), "wrong": wrong_examples(report[task]["worst"])},
        )
        summary[task] = table(
            task, [entry for entry in rows if entry["title"].endswith("all kinds") or ":" in entry["title"]]
        )
        about = f"demo: right in {rows[0]['value']:.0%} of the pairs of prompts held out; models/{task}/README.md has the rest"
        (MODELS / task / "reward.json").write_text(json.dumps({"about": about}, indent=2) + "\n", encoding="utf-8")
        print(summary[task])
    write(MODELS / "README.md", summary | {"folds": folds})


if __name__ == "__main__":
    main()
