"""POST /ppo-reward: the final reward of each response for PPO. Select, shape, whiten, subtract beta * KL; in float64."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from app.api.inputs import TheService, engine_input
from app.api.ppo_answer import ItemScores, answer, write_answer
from app.api.ppo_batch import read_batch
from app.api.ppo_schemas import PPOItem, PPORequest
from app.api.ppo_steps import ModelSteps
from app.api.score import usage_fields
from app.api.steps import require_steps
from app.engine.requests import ItemScore, Scores
from app.errors import InvalidInputError
from app.rewards.combination import LLAMA2_MODELS
from app.service import Service

LARGE_BATCH_TOKENS = 50_000
"""A batch with this many policy logprobs or more is read in a thread, and its rewards are computed in the worker process."""


async def ppo_reward(body: PPORequest, service: TheService) -> dict[str, Any] | bytes:
    service.check_count("items", len(body.items))
    defaults = service.settings
    read = partial(read_batch, body, beta=defaults.beta, safety_threshold=defaults.safety_threshold)
    num_tokens = sum(len(item.policy_logprobs) for item in body.items if item.policy_logprobs is not None)
    if num_tokens < LARGE_BATCH_TOKENS:
        batch = read()
        return answer(batch, *await score_unscored(body, service))
    batch = await asyncio.to_thread(read)
    return await service.worker.run(write_answer, batch, *await score_unscored(body, service))


async def score_unscored(body: PPORequest, service: Service) -> tuple[list[ItemScores], dict[str, int]]:
    """Every item's scores and the usage. The models run only for items without scores."""
    process_model = body.process.model if body.process is not None else None
    if process_model is not None:
        require_steps(service, process_model, "process.model")
    unscored = [i for i, item in enumerate(body.items) if not item.has_scores]
    scored: dict[int, dict[str, ItemScore]] = {}
    usage = {"num_tokens": 0, "num_computed_tokens": 0, "num_cached_tokens": 0}
    if unscored:
        wanted = models_for(body, unscored, service)
        models = tuple(dict.fromkeys(wanted if process_model is None else (*wanted, process_model)))
        inputs = [engine_input(body.items[i], i) for i in unscored]
        scores: Scores = await service.score(inputs, models=models, truncation=body.truncation)
        if body.combine.mode == "llama2" and body.combine.threshold_on != "score":
            check_threshold(scores)
        scored = dict(zip(unscored, scores.items, strict=True))
        usage = usage_fields(scores)
    return [item_scores(item, scored.get(i), process_model) for i, item in enumerate(body.items)], usage


def models_for(body: PPORequest, unscored: list[int], service: Service) -> tuple[str, ...]:
    """The models that the rule needs for these items; for llama2 always both, if loaded.

    Raises InvalidInputError if a model that is needed is not loaded.
    """
    if body.combine.mode != "llama2":
        return service.require_models(body.combine.score_models, f"combine mode {body.combine.mode}")
    service.require_models(["safety"], "selecting by safety")
    loaded = service.ready_engine().models
    plain = next((i for i in unscored if not body.items[i].is_safety), None)
    if plain is not None and "helpfulness" not in loaded:
        raise InvalidInputError(
            f"items[{plain}] is not is_safety and needs the helpfulness model, which is not loaded; "
            "set REWARD_HELPFULNESS_MODEL",
            plain,
        )
    return tuple(name for name in LLAMA2_MODELS if name in loaded)


def check_threshold(scores: Scores) -> None:
    """Raises InvalidInputError if the safety model outputs probabilities: the threshold is for sigmoid(score)."""
    if scores.items[0]["safety"].is_probability:
        raise InvalidInputError(
            "the safety model's score is a probability already; send combine.threshold_on score, and safety_threshold in its unit"
        )


def item_scores(item: PPOItem, scored: Mapping[str, ItemScore] | None, process_model: str | None) -> ItemScores:
    """The item's scores, from the models or its own, and the process reward model's steps."""
    if scored is None:
        return ItemScores(item.known_scores)
    return ItemScores(
        {name: each.score for name, each in scored.items()},
        any(score.truncated for score in scored.values()),
        model_steps(scored[process_model]) if process_model is not None else None,
    )


def model_steps(scored: ItemScore) -> ModelSteps:
    assert scored.steps is not None
    return ModelSteps(
        scored.steps.scores,
        scored.is_probability,
        [position - scored.num_tokens for position in scored.steps.positions],
    )
