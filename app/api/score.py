"""POST /score: the score of each item by each model."""

from collections.abc import Mapping
from typing import Any

from app.api.inputs import TheService, engine_input
from app.api.schemas import ScoreRequest, Usage
from app.api.steps import no_steps_error
from app.engine.head import Head
from app.engine.requests import ItemScore, Scores
from app.engine.reward_model import RewardModel
from app.engine.sequence import Steps
from app.rewards.logistic import probability


async def score(body: ScoreRequest, service: TheService) -> dict[str, Any]:
    service.check_count("items", len(body.items))
    models = service.require_models(body.models, "models", is_list=True)
    loaded = service.ready_engine().models  # kept, because a reload may replace them meanwhile
    if body.step_scores or body.reduce is not None:
        check_steps(body, {name: loaded[name].head for name in models})
    inputs = [engine_input(item, i) for i, item in enumerate(body.items)]
    scores = await service.score(inputs, models=models, truncation=body.truncation, token_scores=body.token_scores)
    # Dicts with ScoreResponse's fields: for a small request, building pydantic models would cost more than parsing the body.
    results = [{"scores": {name: model_score(item[name]) for name in models}} for item in scores.items]
    for result, item in zip(results, scores.items, strict=True):
        for name, scored in item.items():
            if scored.steps is not None:
                result["scores"][name] |= step_fields(scored.steps, loaded[name], body)
    return {"results": results, "usage": usage_fields(scores)}


def check_steps(body: ScoreRequest, heads: Mapping[str, Head]) -> None:
    """Raises InvalidInputError if a model named in the request has no step scores, or none of the default models has."""
    others = [name for name, head in heads.items() if not head.position.is_per_step]
    if others and (body.models is not None or len(others) == len(heads)):
        raise no_steps_error("step_scores" if body.step_scores else "reduce", others[0])


def step_fields(steps: Steps, model: RewardModel, body: ScoreRequest) -> dict[str, Any]:
    """The fields of a `ModelScore` that depend on its steps."""
    fields: dict[str, Any] = {}
    is_probability = model.head.map.gives_probability
    if body.reduce is not None:
        reduced = model.head.reduce(steps.scores, body.reduce)
        fields = {"score": reduced, "probability": reduced if is_probability else probability(reduced)}
    if body.step_scores is not False:
        fields["step_scores"] = steps.scores
        fields["step_probabilities"] = steps.scores if is_probability else [probability(s) for s in steps.scores]
        fields["step_positions"] = steps.positions
    return fields


def model_score(item: ItemScore) -> dict[str, Any]:
    """The fields of a `ModelScore`."""
    entry: dict[str, Any] = {
        "score": item.score,
        "probability": item.score if item.is_probability else probability(item.score),
        "num_tokens": item.num_tokens,
        "truncated": item.truncated,
    }
    return entry if item.token_scores is None else entry | {"token_scores": item.token_scores}


def usage_fields(scores: Scores) -> dict[str, int]:
    """The fields of a `Usage`."""
    return {
        "num_tokens": scores.num_tokens,
        "num_computed_tokens": scores.num_computed_tokens,
        "num_cached_tokens": scores.num_cached_tokens,
    }


def usage_of(scores: Scores) -> Usage:
    return Usage(**usage_fields(scores))
