"""POST /score: each item's score by each model."""

import math
from typing import Any

from starlette.requests import Request

from app.api.inputs import TheService, engine_input, while_connected
from app.api.route import native_router
from app.engine.engine import ItemScore, Scores
from app.schemas import ScoreRequest, ScoreResponse, Usage

router = native_router()


@router.post("/score", summary="Scores by the safety and the helpfulness model", response_model=ScoreResponse)
async def score(body: ScoreRequest, service: TheService, request: Request) -> dict[str, Any]:
    service.check_count("items", len(body.items))
    models = service.require_models(body.models, "models")
    inputs = [engine_input(item, i) for i, item in enumerate(body.items)]
    scores = await while_connected(
        request,
        service.score(inputs, models=models, truncation=body.truncation, token_scores=body.token_scores),
    )
    # Plain, as ScoreResponse says: to make its models costs a small request more than to parse its body.
    return {
        "results": [{"scores": {name: model_score(item[name]) for name in models}} for item in scores.items],
        "usage": {"num_tokens": scores.num_tokens, "num_computed_tokens": scores.num_computed_tokens},
    }


def model_score(item: ItemScore) -> dict[str, Any]:
    """A `ModelScore`."""
    entry: dict[str, Any] = {
        "score": item.score,
        "probability": sigmoid(item.score),
        "num_tokens": item.num_tokens,
        "truncated": item.truncated,
    }
    return entry if item.token_scores is None else entry | {"token_scores": item.token_scores}


def sigmoid(score: float) -> float:
    """1 / (1 + exp(-score)), without overflow at either end."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def usage_of(scores: Scores) -> Usage:
    return Usage(num_tokens=scores.num_tokens, num_computed_tokens=scores.num_computed_tokens)
