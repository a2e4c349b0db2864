"""Scores the responses to one prompt by every model, and ranks them as Llama 2's rule would.

The order is by the score that the service's own selection takes, POST /ppo-reward's `selected_score`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.checkpoints.model_settings import ROLES
from app.engine.inputs import Messages, PromptResponse, Truncation
from app.rewards.selection import threshold_score
from app.ui.client import Client
from app.ui.parts import UIContext
from app.ui.plots import Axis, span
from app.ui.render import render
from app.ui.strips import Strip, strips
from app.ui.tokens import tokens_of

Scores = dict[str, dict[str, Any]]
UNIT = Axis(0, 1, 0.25)


@dataclass(frozen=True, slots=True)
class Asked:
    """What to score: each response's label, text and API item, and the options for all of them."""

    labels: Sequence[str]
    texts: Sequence[str]
    items: Sequence[dict[str, Any]]
    is_safety: bool
    truncation: Truncation
    by_word: bool

    @property
    def body(self) -> dict[str, Any]:
        """The body of POST /score, as the page shows it."""
        return {"items": list(self.items), "truncation": self.truncation}


@dataclass(frozen=True, slots=True)
class Row:
    """A response and its scores. `places`: the response's rank by each model's score, from 1; ties share a rank."""

    label: str
    text: str
    scores: Scores
    selected: str | None
    rank_score: float
    places: dict[str, int]
    bars: dict[str, float]
    strips: list[Strip]

    @property
    def is_truncated(self) -> bool:
        return any(entry["truncated"] for entry in self.scores.values())


def form_of(item: Mapping[str, Any]) -> Messages | PromptResponse:
    if "messages" in item:
        return Messages(tuple(item["messages"]))
    return PromptResponse(item["prompt"], item["response"])


async def score(client: Client, context: UIContext, asked: Asked, made_from: dict[str, Any]) -> str:
    """The result's HTML; raises RefusedError if the service returns an error."""
    info = await client.get("/info")
    is_causal = all(model["token_scores"] for model in info["models"].values())
    by_word = asked.by_word and is_causal
    answer = await client.post("/score", asked.body | {"token_scores": by_word})
    found: list[Scores] = [result["scores"] for result in answer["results"]]
    selection = await selections(client, found, is_safety=asked.is_safety)
    texts: list[Any] = [{}] * len(found)
    if by_word:
        forms = [form_of(item) for item in asked.items]
        texts = [await asyncio.to_thread(tokens_of, context.engine, form, asked.truncation) for form in forms]
    rows = [
        Row(
            asked.labels[i],
            asked.texts[i],
            scores,
            *rank_by(scores, selection[i] if selection else None),
            places={
                name: place([each[name]["score"] for each in found], entry["score"]) for name, entry in scores.items()
            },
            bars={name: span(UNIT, 0, entry["probability"])[1] for name, entry in scores.items()},
            strips=strips(scores, texts[i], context.threshold),
        )
        for i, scores in enumerate(found)
    ]
    models = list(found[0])
    ranked = sorted(rows, key=lambda row: -row.rank_score)
    return render(
        "score.html",
        rows=ranked,
        models=models,
        leaders={name: next(row for row in ranked if row.places[name] == 1) for name in models},
        has_selection=selection is not None,
        threshold=context.threshold,
        limit=threshold_score(context.threshold),
        is_safety=asked.is_safety,
        usage=answer["usage"],
        wanted_words=asked.by_word,
        is_causal=is_causal,
        made_from=made_from,
    )


def place(scores: Sequence[float], score: float) -> int:
    return 1 + sum(other > score for other in scores)


def rank_by(scores: Scores, selection: Mapping[str, Any] | None) -> tuple[str | None, float]:
    """(the model whose score is taken, that score); without a selection, no model and the first model's score."""
    if selection is None:
        first = "helpfulness" if "helpfulness" in scores else next(iter(scores))
        return None, scores[first]["score"]
    return selection["selected"], selection["selected_score"]


async def selections(client: Client, found: Sequence[Scores], *, is_safety: bool) -> list[dict[str, Any]] | None:
    """For each response, what the service's rule selects; None if a model that the rule needs is not loaded."""
    needed = ROLES[:1] if is_safety else ROLES
    if not all(role in found[0] for role in needed):
        return None
    items = [
        {f"{role}_score": scores[role]["score"] for role in ROLES if role in scores} | {"is_safety": is_safety}
        for scores in found
    ]
    answer = await client.post("/ppo-reward", {"items": items, "whiten": {"mode": "none"}})
    results: list[dict[str, Any]] = answer["results"]
    return results
