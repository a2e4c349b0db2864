"""Request and response bodies of POST /compare."""

from typing import Self

from pydantic import BaseModel, Field, model_validator

from app.api.schemas import TEA, Body, Conversation, Truncation, Usage, check_last_turn, example, wrong
from app.rewards.margins import MarginScheme, Rating


class Pair(Body):
    """Prompt, chosen and rejected; or whole conversations as chosen_messages and rejected_messages."""

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    chosen_messages: Conversation | None = None
    rejected_messages: Conversation | None = None
    rating: Rating | None = Field(None, description="How much better the chosen one is; names a margin of the scheme.")
    margin: float | None = Field(None, ge=0, le=1e6, description="The margin itself, in place of a rating.")

    @model_validator(mode="after")
    def one_form(self) -> Self:
        plain = [name for name in ("prompt", "chosen", "rejected") if getattr(self, name) is not None]
        whole = [name for name in ("chosen_messages", "rejected_messages") if getattr(self, name) is not None]
        if not (len(plain) == 3 and not whole) and not (len(whole) == 2 and not plain):  # noqa: PLR2004 - their names are above
            raise wrong(
                f"has {', '.join(plain + whole) or 'no input'}; send prompt, chosen and rejected, "
                "or chosen_messages and rejected_messages"
            )
        for name in whole:
            check_last_turn(getattr(self, name), name)
        if self.rating is not None and self.margin is not None:
            raise wrong("has both rating and margin; send one of them, or neither for margin 0")
        return self


class CompareRequest(Body):
    model_config = example(
        {
            "pairs": [
                {
                    "prompt": TEA["prompt"],
                    "chosen": TEA["response"],
                    "rejected": "tea tea tea tea tea",
                    "rating": "significantly_better",
                }
            ]
        }
    )

    pairs: list[Pair] = Field(min_length=1)
    model: str | None = Field(None, description="The model's name; by default `helpfulness`.")
    models: list[str] | None = Field(
        None,
        min_length=1,
        description="Several models at once, in place of `model`: `by_model` has the results of each, `results` and `summary` "
        "those of the first.",
    )
    margin_scheme: MarginScheme = Field(
        "large", description="Margins by rating: small 1, 2/3, 1/3, 0; large 3, 2, 1, 0."
    )
    truncation: Truncation = "error"

    @model_validator(mode="after")
    def names_models_once(self) -> Self:
        if self.models is not None and self.model is not None:
            raise wrong("has both model and models; send one of them")
        return self


class PairTruncated(BaseModel):
    chosen: bool
    rejected: bool


class PairResult(BaseModel):
    chosen_score: float
    rejected_score: float
    margin: float
    probability: float = Field(description="sigmoid(chosen_score - rejected_score)")
    loss: float = Field(description="-log sigmoid(chosen_score - rejected_score)")
    loss_with_margin: float = Field(description="-log sigmoid(chosen_score - rejected_score - margin)")
    grad_chosen: float = Field(description="d loss_with_margin / d chosen_score")
    grad_rejected: float = Field(description="d loss_with_margin / d rejected_score")
    correct: bool = Field(description="chosen_score > rejected_score; a tie is not.")
    truncated: PairTruncated


class CompareSummary(BaseModel):
    loss: float
    loss_with_margin: float
    accuracy: float
    accuracy_by_rating: dict[Rating, float]
    count: int


class ModelComparison(BaseModel):
    results: list[PairResult]
    summary: CompareSummary


class CompareResponse(ModelComparison):
    model_config = example(
        {
            "results": [
                {
                    "chosen_score": 1.5,
                    "rejected_score": -0.5,
                    "margin": 3.0,
                    "probability": 0.8808,
                    "loss": 0.1269,
                    "loss_with_margin": 1.3133,
                    "grad_chosen": -0.7311,
                    "grad_rejected": 0.7311,
                    "correct": True,
                    "truncated": {"chosen": False, "rejected": False},
                }
            ],
            "summary": {
                "loss": 0.1269,
                "loss_with_margin": 1.3133,
                "accuracy": 1.0,
                "accuracy_by_rating": {"significantly_better": 1.0},
                "count": 1,
            },
            "usage": {"num_tokens": 62, "num_computed_tokens": 44, "num_cached_tokens": 0},
        }
    )

    by_model: dict[str, ModelComparison] | None = Field(
        None, description="If `models` were named: each one's.", exclude_if=lambda value: value is None
    )
    usage: Usage
