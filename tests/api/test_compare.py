import math
from typing import Any

import httpx
import pytest
import torch

from app.rewards.margins import MARGINS, MarginScheme
from tests.api.asking import TEA, ask

PAIRS: list[dict[str, Any]] = [
    {"prompt": "How long should tea steep?", "chosen": "Two minutes.", "rejected": "tea tea tea", "rating": "better"},
    {"prompt": "How long should tea steep?", "chosen": "tea tea tea", "rejected": "Two minutes.", "rating": "better"},
    {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away.", "rating": "significantly_better"},
    {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."},
    {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away.", "margin": 0.25},
    {"prompt": "Hi", "chosen": "Hello!", "rejected": "Hello!", "rating": "negligibly_better"},
]


def compare(client: httpx.Client, *pairs: dict[str, Any], **options: Any) -> dict[str, Any]:
    return ask(client, "/compare", {"pairs": list(pairs), **options})


def score_of(client: httpx.Client, prompt: str, response: str, model: str) -> float:
    answer = ask(client, "/score", {"items": [{"prompt": prompt, "response": response}], "models": [model]})
    return float(answer["results"][0]["scores"][model]["score"])


@pytest.mark.parametrize("model", ["helpfulness", "safety"])
@pytest.mark.parametrize("scheme", ["large", "small"])
def test_a_pair_has_the_margin_ranking_loss_of_its_scores(
    client: httpx.Client, model: str, scheme: MarginScheme
) -> None:
    answer = compare(client, *PAIRS, model=model, margin_scheme=scheme)
    for pair, result in zip(PAIRS, answer["results"], strict=True):
        chosen = score_of(client, str(pair["prompt"]), str(pair["chosen"]), model)
        rejected = score_of(client, str(pair["prompt"]), str(pair["rejected"]), model)
        margin = MARGINS[scheme][pair["rating"]] if "rating" in pair else pair.get("margin", 0.0)
        assert result["chosen_score"] == pytest.approx(chosen, abs=1e-5 * max(1, abs(chosen)))
        assert result["rejected_score"] == pytest.approx(rejected, abs=1e-5 * max(1, abs(rejected)))
        assert result["margin"] == margin
        scores = torch.tensor(
            [result["chosen_score"], result["rejected_score"]], dtype=torch.float64, requires_grad=True
        )
        difference = scores[0] - scores[1]
        loss = torch.nn.functional.softplus(-(difference - margin), threshold=100)
        loss.backward()  # type: ignore[no-untyped-call]
        assert scores.grad is not None
        assert result["loss"] == pytest.approx(
            torch.nn.functional.softplus(-difference, threshold=100).item(), rel=1e-9
        )
        assert result["loss_with_margin"] == pytest.approx(loss.item(), rel=1e-9)
        assert [result["grad_chosen"], result["grad_rejected"]] == pytest.approx(scores.grad.tolist(), rel=1e-9)
        assert result["probability"] == pytest.approx(torch.sigmoid(difference).item(), rel=1e-9)
        assert result["correct"] is (result["chosen_score"] > result["rejected_score"])
        assert result["truncated"] == {"chosen": False, "rejected": False}


def test_the_summary_is_of_all_pairs_and_of_each_rating_that_occurs(client: httpx.Client) -> None:
    answer = compare(client, *PAIRS)
    results, summary = answer["results"], answer["summary"]
    assert set(summary) == {"loss", "loss_with_margin", "accuracy", "accuracy_by_rating", "count"}
    assert summary["count"] == len(PAIRS)
    for name in ("loss", "loss_with_margin"):
        assert summary[name] == pytest.approx(math.fsum(result[name] for result in results) / len(results))
    assert summary["accuracy"] == pytest.approx(sum(result["correct"] for result in results) / len(results))
    assert set(summary["accuracy_by_rating"]) == {"better", "significantly_better", "negligibly_better"}
    assert summary["accuracy_by_rating"]["better"] == 0.5
    assert summary["accuracy_by_rating"]["negligibly_better"] == 0.0


def test_a_tie_is_not_correct(client: httpx.Client) -> None:
    result = compare(client, PAIRS[-1])["results"][0]
    assert result["chosen_score"] == result["rejected_score"]
    assert result["correct"] is False
    assert result["probability"] == 0.5
    assert result["loss"] == pytest.approx(math.log(2))


def test_whole_conversations_compare_like_prompt_and_responses(client: httpx.Client) -> None:
    prompt = {"role": "user", "content": "How long should tea steep?"}
    whole = {
        "chosen_messages": [prompt, {"role": "assistant", "content": "Two minutes."}],
        "rejected_messages": [prompt, {"role": "assistant", "content": "tea tea tea"}],
        "rating": "better",
    }
    together, plain = compare(client, whole)["results"][0], compare(client, PAIRS[0])["results"][0]
    assert together == plain


def test_a_pair_shares_its_prompt(client: httpx.Client) -> None:
    usage = compare(client, {"prompt": "word " * 60, "chosen": "Yes.", "rejected": "No."})["usage"]
    assert usage["num_computed_tokens"] < 0.75 * usage["num_tokens"]


def test_truncation_is_told_for_each_side(client: httpx.Client) -> None:
    pair = {"prompt": TEA["prompt"], "chosen": "Yes.", "rejected": "word " * 600}
    result = compare(client, pair, truncation="left")["results"][0]
    assert result["truncated"] == {"chosen": False, "rejected": True}


def test_a_margin_of_three_costs_a_hopeless_pair_three(client: httpx.Client) -> None:
    pair = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}
    far = compare(client, pair | {"margin": 1000.0}, pair | {"margin": 1003.0})["results"]
    assert far[1]["loss_with_margin"] - far[0]["loss_with_margin"] == pytest.approx(3.0)
    assert far[0]["loss"] == far[1]["loss"]
    assert far[0]["grad_chosen"] == pytest.approx(-1.0)
