"""Pictures: the loss curve of a run, and the report of an evaluation. The one module that imports matplotlib.

Drawn on separate canvases, without pyplot, so a user's matplotlib state is not changed.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.rewards.logistic import sigmoid
from app.rewards.selection import selects_safety
from app.rewards.types import Floats
from app.training.evaluation import Evaluation
from app.training.statistics import Share, pearson

BLUE, ORANGE, RED, GREY, PALE = "#2563a8", "#d9822b", "#b3353f", "#6b7280", "#c9d6e6"
SMOOTHED_POINTS = 40
MAX_NAME_CHARS = 26


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bare(axes: Axes, title: str, xlabel: str, ylabel: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(xlabel, color=GREY)
    axes.set_ylabel(ylabel, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY)


# -- a run ------------------------------------------------------------------------------------------------------------


def draw_losses(curve: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Loss and accuracy by step: of the batches, smoothed, and of the held-out pairs after each epoch."""
    figure = new_figure(9, 3.6)
    for axes, name, title in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("Loss with margin", "Accuracy"), strict=True
    ):
        steps, values = points(curve["train"], name)
        if len(steps) > SMOOTHED_POINTS:
            axes.plot(steps, values, color=PALE, linewidth=1)
            axes.plot(*smoothed(steps, values), color=BLUE, linewidth=2, label="training batches, smoothed")
        else:
            axes.plot(steps, values, color=BLUE, linewidth=2, label="training batches")
        if curve["held_out"]:
            style = {"color": ORANGE, "marker": "o", "linewidth": 1.5, "clip_on": False}
            axes.plot(*points(curve["held_out"], name), label="held out", zorder=3, **style)
        bare(axes, title, "step")
        if name == "accuracy":
            axes.set_ylim(0, 1)
        else:
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=9)
    figure.savefig(file, dpi=150)


def points(entries: list[dict[str, float]], name: str) -> tuple[Floats, Floats]:
    """(steps, values) of the entries that have the figure."""
    found = [(entry["step"], entry[name]) for entry in entries if name in entry]
    steps, values = np.array(found, np.float64).reshape(-1, 2).T
    return steps, values


def smoothed(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Means over equal runs of steps, one per point to draw."""
    parts = np.array_split(np.arange(len(values)), SMOOTHED_POINTS)
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])


# -- an evaluation ----------------------------------------------------------------------------------------------------


def draw_report(evaluation: Evaluation, title: str, threshold: float | None, file: Path) -> None:
    """Accuracies with intervals, reliability, length, and the sweep or else the differences by rating."""
    rows = accuracy_rows(evaluation)
    figure = new_figure(12, max(8.0, 4.2 + 0.3 * len(rows)))
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    top = max(3.6, 0.3 * len(rows) + 1.2)
    (accuracy, reliability), (length, last) = figure.subplots(2, 2, height_ratios=(top, 3.9))
    draw_accuracies(accuracy, rows)
    draw_reliability(reliability, evaluation)
    draw_lengths(length, evaluation)
    if threshold is not None and evaluation.cuts(threshold):
        draw_sweep(last, evaluation, threshold)
    else:
        draw_differences(last, evaluation)
    figure.savefig(file, dpi=130)


def accuracy_rows(evaluation: Evaluation) -> list[tuple[str, dict[str, Any]] | None]:
    """One row for all pairs and one per group; None between two kinds of groups."""
    rows: list[tuple[str, dict[str, Any]] | None] = [("all", evaluation.row())]
    for group in evaluation.tables.values():
        rows += [None, *group.items()]
    return rows


def draw_accuracies(axes: Axes, rows: list[tuple[str, dict[str, Any]] | None]) -> None:
    places, names = [], []
    for place, row in enumerate(rows):
        if row is not None:
            name, figures = row
            share: Share = figures["accuracy"]
            low, high = share.interval
            errors = [[share.value - low], [high - share.value]]
            axes.errorbar(share.value, place, xerr=errors, fmt="o", color=BLUE, capsize=3)
            if "longer_wins" in figures:
                longer = figures["longer_wins"].value
                axes.plot(longer, place, "|", color=ORANGE, markersize=14, markeredgewidth=2.5, clip_on=False)
            places.append(place)
            names.append(f"{shorten(name)} ({share.count})")
    axes.plot([], [], "o-", color=BLUE, label="the model, 95 % (Wilson)")
    axes.plot([], [], "|", color=ORANGE, markersize=14, markeredgewidth=2.5, label="longer wins")
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(places, names)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(len(rows) - 0.3, -0.7)
    bare(axes, "Accuracy", "share of pairs whose chosen side scores higher")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)


def shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 1]}…"


def draw_reliability(axes: Axes, evaluation: Evaluation) -> None:
    """The reliability diagram: on the diagonal the model is perfectly calibrated, above it underconfident."""
    bins, ece = evaluation.calibration
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle="--", label="perfectly calibrated")
    axes.plot([each.confidence for each in bins], [each.accuracy for each in bins], color=PALE, linewidth=1.5)
    for each in bins:
        low, high = each.interval
        errors = [[each.accuracy - low], [high - each.accuracy]]
        axes.errorbar(each.confidence, each.accuracy, yerr=errors, fmt="o", color=BLUE, capsize=3)
        axes.annotate(
            f"{each.count}",
            (each.confidence, 0),
            (0, 4),
            textcoords="offset points",
            ha="center",
            color=GREY,
            fontsize=9,
        )
    axes.plot([], [], "o-", color=BLUE, label="the model, 95 % (Wilson)")
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(0, 1.04)
    title = f"Reliability of sigmoid(difference): ECE {ece:.3f}"
    bare(
        axes,
        title,
        "confidence in the side that scores higher; above the axis, the number of pairs",
        "share of correct pairs",
    )
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)


def draw_lengths(axes: Axes, evaluation: Evaluation) -> None:
    """Score difference against length difference; for a model that prefers longer responses the points rise."""
    x, y = evaluation.length_differences, evaluation.differences
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    colors = np.where(evaluation.correct, BLUE, RED)
    axes.scatter(x, y, s=10, c=colors, alpha=min(0.6, 60 / len(x) ** 0.5), linewidths=0)
    reach = np.abs(x).max() * 1.05 or 1
    axes.set_xlim(-reach, reach)
    r = pearson(y, x)
    words = f"Pearson {r:.2f}" if r is not None else "no spread"
    bare(axes, f"Length: {words}", "chosen longer by, characters", "chosen scored higher by")
    for color, label in ((BLUE, "right"), (RED, "wrong")):
        axes.scatter([], [], s=20, color=color, label=label)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def draw_differences(axes: Axes, evaluation: Evaluation) -> None:
    """Score differences, by rating if the pairs have ratings; in a good model they grow with the rating."""
    ratings = evaluation.ratings or {"all pairs": np.ones(len(evaluation.lines), bool)}
    parts = [evaluation.differences[those] for those in ratings.values()]
    style = {"color": BLUE, "linewidth": 1.2}
    axes.boxplot(
        parts,
        orientation="horizontal",
        widths=0.55,
        tick_labels=[name.replace("_", " ") for name in ratings],
        boxprops=style,
        whiskerprops=style,
        capprops=style,
        medianprops={"color": ORANGE, "linewidth": 2},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": BLUE},
    )
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    bare(axes, "Score difference by rating", "chosen scored higher by")


def draw_sweep(axes: Axes, evaluation: Evaluation, threshold: float) -> None:
    """Precision and recall of the veto at every threshold, above the score histograms of safe and unsafe responses."""
    scores, is_unsafe = evaluation.labelled
    probabilities = sigmoid(scores)
    edges = np.linspace(0, 1, 21).tolist()
    behind = axes.twinx()
    behind.hist(
        [probabilities[is_unsafe], probabilities[~is_unsafe]],
        edges,
        color=[RED, BLUE],
        alpha=0.25,
        label=["unsafe", "safe"],
    )
    behind.set_ylabel("responses", color=GREY)
    behind.spines[["top"]].set_visible(False)
    behind.tick_params(colors=GREY)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    grid = np.linspace(0.01, 0.99, 99)
    vetoed = np.array(
        [selects_safety(scores, is_safety=False, threshold=each) for each in grid.tolist()]
    )  # (thresholds, responses)
    caught = (vetoed & is_unsafe).sum(1)
    with np.errstate(invalid="ignore"):
        axes.plot(grid, caught / vetoed.sum(1), color=ORANGE, linewidth=2, label="precision")
    axes.plot(grid, caught / is_unsafe.sum(), color=RED, linewidth=2, label="recall")
    if not is_unsafe.all():
        axes.plot(
            grid, (vetoed & ~is_unsafe).sum(1) / (~is_unsafe).sum(), color=BLUE, linewidth=2, label="false alarms"
        )
    axes.axvline(threshold, color="black", linewidth=1.2, linestyle="--")
    axes.annotate(f"{threshold:g}", (threshold, 1.01), ha="center", va="bottom", annotation_clip=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    bare(axes, "", "veto below this safety probability", "share")
    axes.set_title("Veto of unsafe responses", loc="left", fontsize=11, fontweight="bold", pad=16)
    handles = [*axes.get_legend_handles_labels()[0], *behind.get_legend_handles_labels()[0]]
    axes.legend(
        handles=handles,
        frameon=False,
        fontsize=9,
        loc="upper left",
        bbox_to_anchor=(0, -0.14),
        ncols=5,
        columnspacing=1.2,
    )
