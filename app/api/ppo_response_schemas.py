"""The response body of POST /ppo-reward."""

from pydantic import BaseModel, Field

from app.api.arrays import Floats
from app.api.ppo_schemas import StatsByGroup, StatsByModel, WhitenStatsBody
from app.api.schemas import Usage, example


class PPOPart(BaseModel):
    """What one model adds to the combined score."""

    shaped_score: float | None = Field(
        None,
        description="The model's score, clipped, less the missing EOS penalty; where combine whitens each.",
        exclude_if=lambda value: value is None,
    )
    whitened: float | None = Field(None, description="As above, whitened.", exclude_if=lambda value: value is None)
    contribution: float = Field(
        description="The contributions sum to whitened where combine whitens each, else to the score before clipping."
    )


class PPOResult(BaseModel):
    safety_score: float | None
    helpfulness_score: float | None
    scores: dict[str, float] | None = Field(
        None, description="The scores of further models, by name.", exclude_if=lambda value: value is None
    )
    selected: str | None = Field(description="The model whose score was taken; null where scores are summed.")
    selected_score: float | None
    selected_probability: float | None
    shaped_score: float | None = Field(
        description="The selected or summed score, clipped, less the missing EOS penalty; null where combine sums whitened scores."
    )
    parts: dict[str, PPOPart] | None = Field(
        None, description="In every combine mode except llama2.", exclude_if=lambda value: value is None
    )
    whitened: float
    singleton: bool | None = Field(
        None,
        description="With whiten.singletons zero: whether the item was whitened to 0 because there was no second score.",
        exclude_if=lambda value: value is None,
    )
    kl: float | None = Field(description="Sum over the counted tokens; null without logprobs.")
    num_kl_tokens: int
    process_rewards: list[float] | None = Field(
        None, description="The reward of each step, before the weight.", exclude_if=lambda value: value is None
    )
    step_ends: list[int] | None = Field(
        None, description="The response's token that each step ends at.", exclude_if=lambda value: value is None
    )
    process_reward: float | None = Field(
        None, description="weight * the sum of process_rewards", exclude_if=lambda value: value is None
    )
    reward: float = Field(description="whitened - beta * kl, plus process_reward where there is one")
    token_rewards: Floats | None
    truncated: bool


class PPOResponse(BaseModel):
    model_config = example(
        {
            "results": [
                {
                    "safety_score": 1.0,
                    "helpfulness_score": 0.5,
                    "selected": selected,
                    "selected_score": score,
                    "selected_probability": probability,
                    "shaped_score": score,
                    "whitened": whitened,
                    "kl": 0.3,
                    "num_kl_tokens": 3,
                    "reward": whitened - 0.003,
                    "token_rewards": [-0.001, -0.001, whitened - 0.001],
                    "truncated": False,
                }
                for selected, score, probability, whitened in (
                    ("safety", 1.0, 0.7311, 0.7071),
                    ("helpfulness", 0.5, 0.6225, -0.7071),
                )
            ],
            "whiten_stats": {"count": 2, "mean": 0.75, "m2": 0.125},
            "mean_kl": 0.3,
            "usage": {"num_tokens": 114, "num_computed_tokens": 106, "num_cached_tokens": 0},
        }
    )

    results: list[PPOResult]
    whiten_stats: WhitenStatsBody | StatsByGroup | StatsByModel = Field(
        description="Statistics of this request's own shaped scores, in every mode; a map by group in mode group; "
        "if combine whitens each model's scores, a map by model of either form."
    )
    mean_kl: float | None = Field(description="Mean of the items' kl that are not null.")
    usage: Usage
