"""The steps from scores to rewards as charts: which bars, on which axes, under which titles. Draws nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.rewards.logistic import probability
from app.ui.plots import Axis, span
from app.ui.render import MINUS, TIMES

MAX_STRIP_TOKENS = 400
"""Maximum cells of one item's strip; thousands would make the page slow and the cells too thin to see."""

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a stage: the left edge and width of its bar, and the value beside it."""

    left: float
    width: float
    value: float
    kind: str
    from_before: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    title: str
    says: str
    name: str
    axis: Axis
    bars: tuple[Bar, ...]
    threshold: float | None = None

    @property
    def zero(self) -> float:
        return self.axis.clamped(0.0)


def stages(results: list[Result], options: dict[str, Any]) -> list[Stage]:
    """The four steps from scores to rewards, with one bar per item."""
    combine = options["combine"]
    first = selection_stages(results, options) if combine["mode"] == "llama2" else part_stages(results, combine)
    axis = Axis.over([0.0, *(result[name] for result in results for name in ("whitened", "reward"))], 3)
    each = combine["mode"] == "worst" or combine.get("whiten_each")
    rewards = tuple(
        Bar(*span(axis, 0.0, r["reward"]), r["reward"], sign(r["reward"]), span(axis, r["whitened"], r["reward"]))
        for r in results
    )
    return [
        *first,
        Stage(
            "3  Combined" if each else "3  Whitening",
            COMBINED[combine["mode"]] if each else "mean 0 and variance 1 over the batch, or over each group",
            "whitened",
            axis,
            bars(results, axis, lambda r: r["whitened"], lambda r: r["selected"] or sign(r["whitened"])),
        ),
        Stage(
            "4  Reward",
            f"whitened {MINUS} {options['beta']:g} {TIMES} KL; the hatched part is the penalty",
            "reward",
            axis,
            rewards,
        ),
    ]


COMBINED = {
    "weighted": "the sum of both parts",
    "lagrangian": "the sum of both parts",
    "worst": "the lower of the two",
}


def selection_stages(results: list[Result], options: dict[str, Any]) -> list[Stage]:
    """Llama 2's rule: which score is selected, and its value."""
    unit = Axis(0.0, 1.0, 0.5)
    threshold = options["safety_threshold"]
    scores = Axis.over([0.0, *(result["shaped_score"] for result in results)], 3)
    return [
        Stage(
            "1  Selection",
            f"probability by the safety model; its score is taken below {threshold:g}, or for a safety prompt",
            "safety_probability",
            unit,
            bars(results, unit, lambda r: probability(r["safety_score"]), lambda r: r["selected"]),
            threshold,
        ),
        Stage(
            "2  Logit",
            "of the probability selected: the score itself",
            "shaped_score",
            scores,
            bars(results, scores, lambda r: r["shaped_score"], lambda r: r["selected"]),
        ),
    ]


def part_stages(results: list[Result], combine: dict[str, Any]) -> list[Stage]:
    """The other rules: each model's contribution on one axis; for `worst`, the two whitened scores."""
    shown = "whitened" if combine["mode"] == "worst" else "contribution"
    axis = Axis.over([0.0, *(part[shown] for result in results for part in result["parts"].values())], 3)
    return [
        Stage(
            f"{place}  {model.capitalize()}",
            part_note(combine, model),
            f"{model}_part",
            axis,
            bars(results, axis, lambda r, model=model: r["parts"][model][shown], lambda _, model=model: model),  # type: ignore[misc] # bound now
        )
        for place, model in ((1, "safety"), (2, "helpfulness"))
    ]


def part_note(combine: dict[str, Any], model: str) -> str:
    if combine["mode"] == "worst":
        return f"the {model} score, whitened"
    if combine["mode"] == "lagrangian":
        weight = (
            f"{combine['lambda']:g} / (1 + {combine['lambda']:g})"
            if model == "safety"
            else f"1 / (1 + {combine['lambda']:g})"
        )
        return f"{weight} {TIMES} the {model} score" + (", whose negative is the cost" if model == "safety" else "")
    each = ", whitened" if combine.get("whiten_each") else ""
    return f"{combine['weights'][model]:g} {TIMES} the {model} score{each}"


def bars(
    results: list[Result], axis: Axis, value: Callable[[Result], float], kind: Callable[[Result], str]
) -> tuple[Bar, ...]:
    return tuple(Bar(*span(axis, 0.0, value(r)), value(r), kind(r)) for r in results)


def sign(value: float) -> str:
    return "plus" if value >= 0 else "minus"


@dataclass(frozen=True, slots=True)
class Cell:
    value: float
    shade: float
    """Rewards from -1 to 1, relative to the largest penalty in the batch. The last token's reward includes the score and is marked."""
    is_last: bool


def heat(results: list[Result], whitened: str = "whitened") -> list[list[Cell]]:
    """One cell per token, for each item that has token rewards."""
    strips: list[list[Cell]] = []
    for result in results:
        rewards = (result["token_rewards"] or [])[:MAX_STRIP_TOKENS]
        full = result["token_rewards"] or []
        last = max((i for i, value in enumerate(full) if value != 0), default=-1)
        parts = [value - result[whitened] if i == last else value for i, value in enumerate(rewards)]
        strips.append(
            [Cell(value, part, i == last) for i, (value, part) in enumerate(zip(rewards, parts, strict=True))]
        )
    largest = max((abs(cell.shade) for strip in strips for cell in strip), default=0.0) or 1.0
    return [[Cell(cell.value, round(cell.shade / largest, 3), cell.is_last) for cell in strip] for strip in strips]
