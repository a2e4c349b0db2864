"""POST /compare: the margin ranking loss of preference pairs, and the model's accuracy on them."""

import numpy as np

from app.api.compare_schemas import (
    CompareRequest,
    CompareResponse,
    CompareSummary,
    ModelComparison,
    Pair,
    PairResult,
    PairTruncated,
)
from app.api.inputs import TheService
from app.api.pairs import margin_of, pair_to_inputs
from app.api.score import usage_of
from app.engine.requests import ItemScore
from app.rewards.logistic import sigmoid
from app.rewards.margins import MARGINS
from app.rewards.ranking import margin_ranking_gradient, margin_ranking_loss
from app.rewards.types import Floats

DEFAULT_MODEL = "helpfulness"


async def compare(body: CompareRequest, service: TheService) -> CompareResponse:
    service.check_count("pairs", len(body.pairs))
    models = service.require_models(body.models or [body.model or DEFAULT_MODEL], "this comparison")
    inputs = [side for i, pair in enumerate(body.pairs) for side in pair_to_inputs(pair, i, f"pairs[{i}].")]
    scores = await service.score(inputs, models=models, truncation=body.truncation)
    by_model = {model: compared(body, [item[model] for item in scores.items]) for model in models}
    first = by_model[models[0]]
    return CompareResponse(
        results=first.results,
        summary=first.summary,
        by_model=by_model if body.models is not None else None,
        usage=usage_of(scores),
    )


def compared(body: CompareRequest, items: list[ItemScore]) -> ModelComparison:
    """One model's results; `items` has the chosen and the rejected response of each pair in turn."""
    results = pair_results(
        chosen=np.array([item.score for item in items[::2]], np.float64),
        rejected=np.array([item.score for item in items[1::2]], np.float64),
        margin=np.array([margin_of(pair, body.margin_scheme) for pair in body.pairs], np.float64),
        truncated=[
            PairTruncated(chosen=a.truncated, rejected=b.truncated)
            for a, b in zip(items[::2], items[1::2], strict=True)
        ],
    )
    return ModelComparison(results=results, summary=summarize(body.pairs, results))


def pair_results(chosen: Floats, rejected: Floats, margin: Floats, truncated: list[PairTruncated]) -> list[PairResult]:
    gradient = margin_ranking_gradient(chosen, rejected, margin)
    columns = {
        "chosen_score": chosen,
        "rejected_score": rejected,
        "margin": margin,
        "probability": sigmoid(chosen - rejected),
        "loss": margin_ranking_loss(chosen, rejected),
        "loss_with_margin": margin_ranking_loss(chosen, rejected, margin),
        "grad_chosen": gradient,
        "grad_rejected": -gradient,
        "correct": chosen > rejected,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        PairResult(**dict(zip(columns, row, strict=True)), truncated=cut)
        for row, cut in zip(rows, truncated, strict=True)
    ]


def summarize(pairs: list[Pair], results: list[PairResult]) -> CompareSummary:
    """Means over the pairs, and the accuracy for each rating that occurs."""
    by_rating = {
        rating: mean([result.correct for pair, result in zip(pairs, results, strict=True) if pair.rating == rating])
        for rating in MARGINS["large"]
        if any(pair.rating == rating for pair in pairs)
    }
    return CompareSummary(
        loss=mean([result.loss for result in results]),
        loss_with_margin=mean([result.loss_with_margin for result in results]),
        accuracy=mean([result.correct for result in results]),
        accuracy_by_rating=by_rating,
        count=len(results),
    )


def mean(values: list[float] | list[bool]) -> float:
    return sum(values) / len(values)
