"""The report of an evaluation as text, for a terminal."""

from collections.abc import Iterator
from typing import Any

from app.training.evaluation import Evaluation
from app.training.statistics import Cut

NAME_WIDTH = 30
TABLE = f"{{:<{NAME_WIDTH}}} {{:>6}}  {{:>8}}  {{:<16}}  {{:>11}}"


def report(evaluation: Evaluation, title: str, margin_scheme: str, threshold: float | None) -> str:
    """All sections; with the sweep if there is a threshold."""
    lines = [
        title,
        "",
        *accuracy_table(evaluation),
        "",
        *losses(evaluation, margin_scheme),
        "",
        *reliability(evaluation),
    ]
    if threshold is not None:
        lines += ["", *sweep(evaluation, threshold)]
    return "\n".join(lines) + "\n"


def accuracy_table(evaluation: Evaluation) -> Iterator[str]:
    yield TABLE.format("", "pairs", "accuracy", "95 % (Wilson)", "longer wins")
    yield accuracy_row("all", evaluation.row())
    for title, rows in evaluation.tables.items():
        yield f"by {title}"
        yield from (accuracy_row(f"  {name}", row) for name, row in rows.items())


def accuracy_row(name: str, row: dict[str, Any]) -> str:
    accuracy = row["accuracy"]
    low, high = accuracy.interval
    shown = name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 3]}..."
    interval = f"{low:.3f} to {high:.3f}"
    longer = f"{row['longer_wins'].value:.3f}" if "longer_wins" in row else ""
    return TABLE.format(shown, accuracy.count, f"{accuracy.value:.3f}", interval, longer).rstrip()


def losses(evaluation: Evaluation, margin_scheme: str) -> Iterator[str]:
    figures = evaluation.to_dict()
    yield f"loss {evaluation.loss:.4f}, with margin ({margin_scheme}) {evaluation.loss_with_margin:.4f}"
    pearson, spearman = (number(figures["length_correlation"][name]) for name in ("pearson", "spearman"))
    yield f"score difference against length difference: Pearson {pearson}, Spearman {spearman}"
    if figures["num_ties"]:
        yield f"{figures['num_ties']} ties, counted as wrong"
    if evaluation.num_truncated:
        yield f"{evaluation.num_truncated} pairs truncated"


def reliability(evaluation: Evaluation) -> Iterator[str]:
    bins, ece = evaluation.calibration
    yield f"calibration of sigmoid(difference): ECE {ece:.4f}"
    yield f"{'  confidence':<14} {'pairs':>6}  {'mean':>6}  {'right':>6}"
    for each in bins:
        span = f"  {each.low:.2f} to {each.high:.2f}"
        yield f"{span:<14} {each.count:>6}  {each.confidence:>6.3f}  {each.accuracy:>6.3f}"


def sweep(evaluation: Evaluation, threshold: float) -> Iterator[str]:
    cuts = evaluation.cuts(threshold)
    if not cuts:
        yield "no threshold sweep: no response is labelled unsafe"
        return
    source = "labelled by the lines" if evaluation.has_labels else "rejected counted as unsafe, chosen as safe"
    yield f"veto below a threshold: {cuts[0].num_unsafe} unsafe and {cuts[0].num_safe} safe responses, {source}"
    yield f"{'  threshold':<14} {'vetoed':>6}  {'precision':>9}  {'recall':>6}  {'false alarms':>12}"
    yield from (sweep_row(each, is_default=each.threshold == threshold) for each in cuts)


def sweep_row(each: Cut, *, is_default: bool) -> str:
    mark = "  <- the service's" if is_default else ""
    vetoed = each.caught + each.false_alarms
    figures = f"{number(each.precision):>9}  {each.recall:>6.3f}  {number(each.false_alarm_rate):>12}"
    return f"{f'  {each.threshold:<.2g}':<14} {vetoed:>6}  {figures}{mark}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
