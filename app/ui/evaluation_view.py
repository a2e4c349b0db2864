"""An evaluation as HTML: which bars, points and rows. The figures are app.training's; draws nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.training.evaluation import Evaluation
from app.training.statistics import Bin, Share
from app.ui.plots import Axis, Chart, Dot, Line, path
from app.ui.render import count, kind, render

MAX_ERRORS = 20
SHARES = Axis(0.0, 1.0, 0.2)
CONFIDENCES = Axis(0.5, 1.0, 0.1)


@dataclass(frozen=True, slots=True)
class AccuracyRow:
    name: str
    accuracy: Share
    longer_wins: Share | None
    is_group: bool = True


@dataclass(frozen=True, slots=True)
class Error:
    """A pair that the model ranks the wrong way round. `difference` is chosen - rejected, 0 or less."""

    line: int
    prompt: str
    chosen: str
    rejected: str
    rating: str
    difference: float


def accuracy_rows(evaluation: Evaluation) -> list[tuple[str, list[AccuracyRow]]]:
    """Per kind of group its title and rows; first all pairs."""
    tables = [("", [row_of("all pairs", evaluation.row())])]
    for title, rows in evaluation.tables.items():
        tables.append((f"by {title}", [row_of(name.replace("_", " "), row) for name, row in rows.items()]))
    return tables


def row_of(name: str, row: dict[str, Share]) -> AccuracyRow:
    return AccuracyRow(name, row["accuracy"], row.get("longer_wins"))


def reliability(bins: Sequence[Bin], model: str) -> Chart:
    """The share of correct pairs over the model's confidence, with the diagonal of perfect calibration."""
    points = [(each.confidence, each.accuracy) for each in bins]
    lines = (
        Line("perfectly calibrated", "other", path(CONFIDENCES, SHARES, [(0.5, 0.5), (1.0, 1.0)])),
        Line(model, kind(model), path(CONFIDENCES, SHARES, points if len(points) > 1 else points * 2)),
    )
    dots = tuple(
        Dot(CONFIDENCES.at(each.confidence), SHARES.at(each.accuracy), count(each.count), kind(model), "right small")
        for each in bins
    )
    return Chart(CONFIDENCES, SHARES, lines, dots=dots)


def worst_errors(evaluation: Evaluation, prompts: Sequence[str]) -> list[Error]:
    """The pairs that are ranked wrongly, the surest first."""
    errors = []
    for i in np.argsort(evaluation.differences, kind="stable")[:MAX_ERRORS].tolist():
        if not evaluation.correct[i]:
            line, (chosen, rejected) = evaluation.lines[i], evaluation.lines[i].responses
            rating = line.pair.rating or ""
            errors.append(Error(line.number, prompts[i], chosen, rejected, rating, float(evaluation.differences[i])))
    return errors


def report(
    evaluation: Evaluation,
    model: str,
    *,
    notes: Sequence[str],
    prompts: Sequence[str],
    table: str,
    made_from: dict[str, Any],
) -> str:
    bins, ece = evaluation.calibration
    return render(
        "evaluate.html",
        model=model,
        accuracy=evaluation.accuracy,
        tables=accuracy_rows(evaluation),
        figures=evaluation.to_dict(),
        chart=reliability(bins, model),
        bins=bins,
        ece=ece,
        errors=worst_errors(evaluation, prompts),
        num_wrong=int((~evaluation.correct).sum()),
        notes=notes,
        table=table,
        made_from=made_from,
    )
