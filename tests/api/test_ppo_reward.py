"""POST /ppo-reward against the recipe written out by hand in plain Python."""

import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api.bodies import parse
from app.api.ppo_reward import LARGE_BATCH_TOKENS
from app.http.dispatch import LARGE_BODY_BYTES, LARGE_BODY_COMMAS
from tests.api.asking import LOCK, TEA, ask, assert_error

FIELDS = {
    "safety_score",
    "helpfulness_score",
    "selected",
    "selected_score",
    "selected_probability",
    "shaped_score",
    "whitened",
    "kl",
    "num_kl_tokens",
    "reward",
    "token_rewards",
    "truncated",
}
NONE = {"mode": "none"}


def close(value: Any) -> Any:
    """Equal but for the rounding of float64."""
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def known(safety: float, helpfulness: float | None = None, **rest: Any) -> dict[str, Any]:
    scores = {"safety_score": safety} | ({"helpfulness_score": helpfulness} if helpfulness is not None else {})
    return scores | rest


def reward(client: httpx.Client, *items: dict[str, Any], **options: Any) -> dict[str, Any]:
    return ask(client, "/ppo-reward", {"items": list(items), **options})


def column(answer: dict[str, Any], name: str) -> list[Any]:
    return [result[name] for result in answer["results"]]


def whitened_by_hand(values: list[float]) -> list[float]:
    mean, variance = statistics.fmean(values), statistics.variance(values)
    return [(x - mean) / math.sqrt(variance + 1e-8) for x in values]


def test_scores_of_the_models_are_those_of_score(client: httpx.Client) -> None:
    answer = reward(client, TEA, LOCK | {"is_safety": True})
    scores = ask(client, "/score", {"items": [TEA, LOCK]})
    for result, scored in zip(answer["results"], scores["results"], strict=True):
        assert set(result) == FIELDS
        assert result["safety_score"] == pytest.approx(scored["scores"]["safety"]["score"], abs=1e-5)
        assert result["helpfulness_score"] == pytest.approx(scored["scores"]["helpfulness"]["score"], abs=1e-5)
        assert result["truncated"] is False
    assert set(answer) == {"results", "whiten_stats", "mean_kl", "usage"}
    assert answer["usage"]["num_tokens"] == scores["usage"]["num_tokens"]
    # What was scored before is in the prefix cache.
    assert answer["usage"]["num_computed_tokens"] >= scores["usage"]["num_computed_tokens"] > 0


def test_the_recipes_selections_hold(client: httpx.Client) -> None:
    scores = [(-2.0, 0.7), (-0.3, 0.7), (1.3, 0.4)]
    answer = reward(client, *(known(*pair) for pair in scores), whiten=NONE)
    assert column(answer, "selected") == ["safety", "helpfulness", "helpfulness"]
    assert column(answer, "selected_score") == [-2.0, 0.7, 0.4]
    answer = reward(client, *(known(*pair, is_safety=True) for pair in scores), whiten=NONE)
    assert column(answer, "selected") == ["safety"] * 3
    assert column(answer, "selected_score") == [-2.0, -0.3, 1.3]
    assert answer["usage"] == {"num_tokens": 0, "num_computed_tokens": 0, "num_cached_tokens": 0}


def test_the_threshold_may_be_given(client: httpx.Client) -> None:
    answer = reward(client, known(-0.3, 0.7), known(0.3, 0.7), whiten=NONE, safety_threshold=0.5)
    assert column(answer, "selected") == ["safety", "helpfulness"]


def test_a_safety_prompt_needs_no_helpfulness_score(client: httpx.Client) -> None:
    (result,) = reward(client, known(1.5, is_safety=True), whiten=NONE)["results"]
    assert result["helpfulness_score"] is None
    assert result["selected_score"] == result["whitened"] == result["reward"] == 1.5


def test_scores_beyond_the_sigmoids_saturation_stay_apart(client: httpx.Client) -> None:
    answer = reward(client, *(known(s, is_safety=True) for s in (20.0, 30.0, 40.0, 800.0, -800.0)), whiten=NONE)
    assert column(answer, "reward") == [20.0, 30.0, 40.0, 800.0, -800.0]
    assert column(answer, "selected_probability")[-2:] == [1.0, 0.0]


def test_whitening_gives_the_reference_numbers(client: httpx.Client) -> None:
    values = [0.83, 1.2, 3.3, 4.6]
    plain = reward(client, *(known(x, is_safety=True) for x in values))
    shifted = reward(client, *(known(x + 100, is_safety=True) for x in values))
    assert column(plain, "whitened") == close(whitened_by_hand(values))
    assert column(shifted, "whitened") == close(column(plain, "whitened"))
    assert plain["whiten_stats"]["count"] == 4
    assert plain["whiten_stats"]["mean"] == pytest.approx(2.4825)
    assert plain["whiten_stats"]["m2"] == pytest.approx(statistics.variance(values) * 3)


def test_whitening_may_keep_the_mean(client: httpx.Client) -> None:
    values = [0.83, 1.2, 3.3, 4.6]
    kept = reward(client, *(known(x, is_safety=True) for x in values), whiten={"shift_mean": False})
    assert column(kept, "whitened") == close([x + 2.4825 for x in whitened_by_hand(values)])


def test_groups_are_whitened_each_on_its_own(client: httpx.Client) -> None:
    values = {"a": [1.0, 2.0, 4.0], "7": [10.0, 30.0]}
    items = [
        known(values["a"][0], is_safety=True, group_id="a"),
        known(values["7"][0], is_safety=True, group_id=7),
        known(values["a"][1], is_safety=True, group_id="a"),
        known(values["7"][1], is_safety=True, group_id=7),
        known(values["a"][2], is_safety=True, group_id="a"),
    ]
    answer = reward(client, *items, whiten={"mode": "group"})
    whitened = column(answer, "whitened")
    assert whitened[::2] == close(whitened_by_hand(values["a"]))
    assert whitened[1::2] == close(whitened_by_hand(values["7"]))
    assert {group: stats["count"] for group, stats in answer["whiten_stats"].items()} == {"a": 3, "7": 2}


def test_group_names_differ_by_every_character(client: httpx.Client) -> None:
    items = [
        known(float(i), is_safety=True, group_id=group) for i, group in enumerate(["g", "g", "g\0", "g\0", "", ""])
    ]
    answer = reward(client, *items, whiten={"mode": "group"})
    assert {group: stats["mean"] for group, stats in answer["whiten_stats"].items()} == {"g": 0.5, "g\0": 2.5, "": 4.5}


def test_given_statistics_whiten_in_place_of_the_requests_own(client: httpx.Client) -> None:
    stats = {"count": 5, "mean": 1.0, "m2": 16.0}
    answer = reward(client, known(3.0, is_safety=True), whiten={"stats": stats})
    assert column(answer, "whitened") == close([2.0 / math.sqrt(4.0 + 1e-8)])
    assert answer["whiten_stats"] == {"count": 1, "mean": 3.0, "m2": 0.0}
    items = [known(3.0, is_safety=True, group_id="a"), known(5.0, is_safety=True, group_id="b")]
    by_group = {"mode": "group", "stats": {"a": stats, "b": {"count": 2, "mean": 4.0, "m2": 1.0}}}
    answer = reward(client, *items, whiten=by_group)
    assert column(answer, "whitened") == close([2.0 / math.sqrt(4.0 + 1e-8), 1 / math.sqrt(1 + 1e-8)])


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=12), st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_over_two_requests_whitens_like_one(
    client: httpx.Client, values: list[float], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    items = [known(x, is_safety=True) for x in values]
    parts = [items[:cut], items[cut:]]
    a, b = (reward(client, *part, whiten=NONE)["whiten_stats"] for part in parts)
    count, delta = a["count"] + b["count"], b["mean"] - a["mean"]
    merged = {
        "count": count,
        "mean": a["mean"] + delta * b["count"] / count,
        "m2": a["m2"] + b["m2"] + delta**2 * a["count"] * b["count"] / count,
    }
    whitened = [x for part in parts for x in column(reward(client, *part, whiten={"stats": merged}), "whitened")]
    assert whitened == pytest.approx(column(reward(client, *items), "whitened"), abs=1e-7)


def test_scores_are_clipped_and_penalised_before_they_are_whitened(client: httpx.Client) -> None:
    items = [
        known(12.0, is_safety=True, ended=True),
        known(-3.0, is_safety=True, ended=False),
        known(-12.0, is_safety=True, ended=False),
    ]
    answer = reward(client, *items, score_clip=[-10, 10], missing_eos_penalty=1.5)
    assert column(answer, "selected_score") == [12.0, -3.0, -12.0]
    assert column(answer, "selected_probability") == pytest.approx([1 / (1 + math.exp(-x)) for x in (12, -3, -12)])
    assert column(answer, "shaped_score") == [10.0, -4.5, -11.5]
    assert column(answer, "whitened") == close(whitened_by_hand([10.0, -4.5, -11.5]))


POLICY, REFERENCE = [-1.0, -0.2, -3.0, -0.5], [-1.5, -0.1, -2.0, -0.5]
RATIOS = [p - r for p, r in zip(POLICY, REFERENCE, strict=True)]
ESTIMATORS: dict[str, Callable[[float], float]] = {
    "k1": lambda x: x,
    "k2": lambda x: x * x / 2,
    "k3": lambda x: math.exp(-x) - 1 + x,
    "abs": abs,
    "mse": lambda x: x * x / 2,
    "low_var_kl": lambda x: min(10.0, math.exp(-x) - 1 + x),
}


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("mask", [None, [0, 1, 1, 0], [True, False, True, True]])
def test_the_penalty_is_the_sum_of_the_estimator_over_counted_tokens(
    client: httpx.Client, estimator: str, clip: float | None, mask: list[int] | None
) -> None:
    item = known(1.0, is_safety=True, policy_logprobs=POLICY, reference_logprobs=REFERENCE, mask=mask)
    kl_options = {"estimator": estimator, "clip": clip}
    answer = reward(client, item, known(2.0, is_safety=True), beta=0.5, kl=kl_options, token_rewards=True)
    first, second = answer["results"]
    clipped = [x if clip is None else max(-clip, min(clip, x)) for x in RATIOS]
    terms = [ESTIMATORS[estimator](x) if mask is None or mask[i] else 0.0 for i, x in enumerate(clipped)]
    assert first["kl"] == close(math.fsum(terms))
    assert first["num_kl_tokens"] == (4 if mask is None else sum(mask))
    assert first["reward"] == close(first["whitened"] - 0.5 * math.fsum(terms))
    expected = [-0.5 * term for term in terms]
    expected[2 if mask == [0, 1, 1, 0] else 3] += first["whitened"]
    assert first["token_rewards"] == close(expected)
    assert math.fsum(first["token_rewards"]) == close(first["reward"])
    assert (second["kl"], second["token_rewards"], second["num_kl_tokens"]) == (None, None, 0)
    assert second["reward"] == second["whitened"]
    assert answer["mean_kl"] == first["kl"]


def test_the_mean_penalty_is_of_the_items_that_have_one(client: httpx.Client) -> None:
    items = [known(1.0, is_safety=True, policy_logprobs=[-1.0], reference_logprobs=[x]) for x in (-2.0, -4.0)]
    answer = reward(client, *items, known(2.0, is_safety=True))
    assert column(answer, "kl") == [1.0, 3.0, None]
    assert answer["mean_kl"] == 2.0
    assert reward(client, known(2.0, is_safety=True), whiten=NONE)["mean_kl"] is None


def test_a_negative_k1_raises_the_reward(client: httpx.Client) -> None:
    item = known(1.0, is_safety=True, policy_logprobs=[-3.0], reference_logprobs=[-1.0])
    (result,) = reward(client, item, whiten=NONE)["results"]
    assert (result["kl"], result["reward"]) == (-2.0, pytest.approx(1.02))


def test_only_counted_positions_are_checked(client: httpx.Client) -> None:
    item = known(
        1.0,
        is_safety=True,
        policy_logprobs=[1.0, -1.0, None, -2.0, 1e308],
        reference_logprobs=[None, -1.5, 1.0, -2.5, -1e308],
        mask=[0, 1, 0, 1, 0],
    )
    for estimator, term in ESTIMATORS.items():
        (result,) = reward(client, item, whiten=NONE, kl={"estimator": estimator}, token_rewards=True)["results"]
        assert result["num_kl_tokens"] == 2
        assert [result["token_rewards"][i] for i in (0, 2, 4)] == [0, 0, 0]
        assert result["kl"] == close(2 * term(0.5))


def test_a_logprob_a_rounding_above_zero_is_accepted(client: httpx.Client) -> None:
    item = known(1.0, is_safety=True, policy_logprobs=[0.001, 0], reference_logprobs=[0.0, 0.001])
    assert reward(client, item, whiten=NONE)["results"][0]["kl"] == 0.0


def test_known_and_unknown_scores_may_be_mixed(client: httpx.Client) -> None:
    alone = reward(client, TEA, LOCK, whiten=NONE)["results"]
    mixed = reward(client, known(1.0, 2.0), TEA, known(-3.0, 2.0), LOCK, whiten=NONE)["results"]
    assert [mixed[1]["reward"], mixed[3]["reward"]] == pytest.approx([r["reward"] for r in alone], abs=1e-5)
    assert [mixed[0]["reward"], mixed[2]["reward"]] == [2.0, -3.0]


def test_every_input_form_is_taken(client: httpx.Client) -> None:
    turns = [{"role": "user", "content": TEA["prompt"]}, {"role": "assistant", "content": TEA["response"]}]
    first, second, *_ = reward(
        client, TEA, {"messages": turns}, {"text": "Hi"}, {"input_ids": [1, 40, 41]}, whiten=NONE
    )["results"]
    assert first == second


def test_truncation_is_told(client: httpx.Client) -> None:
    long = {"prompt": "word " * 600, "response": "Yes."}
    answer = reward(client, long, TEA, truncation="prompt")
    assert column(answer, "truncated") == [True, False]


def test_constant_scores_whiten_to_nothing(client: httpx.Client) -> None:
    answer = reward(client, *[known(0.1, is_safety=True)] * 7)
    assert column(answer, "whitened") == pytest.approx([0.0] * 7, abs=1e-9)


def test_the_services_own_threshold_and_beta_are_the_defaults(client: httpx.Client) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    usual = service.settings
    service.settings = usual.model_copy(update={"safety_threshold": 0.5, "beta": 0.25})
    try:
        item = known(-0.3, 0.7, policy_logprobs=[-1.0], reference_logprobs=[-2.0])
        (own,) = reward(client, item, whiten=NONE)["results"]
        (given,) = reward(client, item, whiten=NONE, safety_threshold=0.15, beta=0)["results"]
    finally:
        service.settings = usual
    assert (own["selected"], own["reward"]) == ("safety", pytest.approx(-0.3 - 0.25))
    assert (given["selected"], given["reward"]) == ("helpfulness", 0.7)


def test_a_large_body_is_answered_as_a_small_one_is(client: httpx.Client) -> None:
    item = known(-0.3, 0.7, policy_logprobs=[-1.0, -0.5, -2.0], reference_logprobs=[-2.0, -0.25, -1.0], mask=[1, 0, 1])
    items = [item | {"policy_logprobs": [-1.0 - i / 7, -0.5, -2.0]} for i in range(64)]
    body = json.dumps({"items": items, "token_rewards": True}).encode()
    small, large = (
        client.post("/ppo-reward", content=content, headers={"content-type": "application/json"})
        for content in (body, body + b" " * LARGE_BODY_BYTES)
    )
    assert small.status_code == 200
    assert large.content == small.content


@pytest.mark.parametrize("combine", [{"mode": "llama2"}, {"mode": "lagrangian", "lambda": 2}, {"mode": "worst"}])
def test_a_batch_of_many_tokens_is_answered_by_the_worker_as_it_is_here(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, combine: dict[str, Any]
) -> None:
    count = LARGE_BATCH_TOKENS // 2
    item = known(-0.3, 0.7, policy_logprobs=[-1.25] * count, reference_logprobs=[-2.0] * count)
    items = [item | {"safety_score": float(i), "group_id": i // 2} for i in range(3)]
    whiten = {"mode": "group", "singletons": "zero"}
    body = {"items": items, "token_rewards": True, "combine": combine, "whiten": whiten}
    there = client.post("/ppo-reward", json=body)
    monkeypatch.setattr("app.api.ppo_reward.LARGE_BATCH_TOKENS", math.inf)
    assert there.status_code == 200
    assert there.content == client.post("/ppo-reward", json=body).content


def test_a_batch_of_many_tokens_is_refused_by_the_worker_with_its_place(client: httpx.Client) -> None:
    fine = known(-0.3, 0.7, policy_logprobs=[-1.0] * LARGE_BATCH_TOKENS, reference_logprobs=[-2.0] * LARGE_BATCH_TOKENS)
    far = known(-0.3, 0.7, policy_logprobs=[-900.0], reference_logprobs=[-1.0])
    response = client.post("/ppo-reward", json={"items": [fine, far], "kl": {"estimator": "k3"}})
    assert (response.status_code, response.json()["error"]["item"]) == (422, 1)


def test_a_body_of_very_many_items_is_refused_without_blocking_anyone(client: httpx.Client) -> None:
    """330,000 empty objects fit into 1 MB and take seconds to refuse."""
    body = b'{"items":[' + b",".join([b"{}"] * LARGE_BODY_COMMAS * 2) + b"]}"
    service = client.app.state.service  # type: ignore[attr-defined]
    before = service.worker
    calls: list[Any] = []

    class Spy:
        async def run(self, *arguments: Any, **options: Any) -> Any:
            calls.append(arguments[0])
            return await before.run(*arguments, **options)

    service.worker = Spy()
    try:
        response = client.post("/ppo-reward", content=body, headers={"content-type": "application/json"})
    finally:
        service.worker = before
    assert (response.status_code, response.json()["error"]["item"], calls) == (422, 0, [parse])


def test_a_large_body_is_refused_as_a_small_one_is(client: httpx.Client) -> None:
    items = [known(0.1, is_safety=True)] * 3 + [known(0.1, policy_logprobs=["x"])]
    body = json.dumps({"items": items}).encode()
    small, large = (
        client.post("/ppo-reward", content=content, headers={"content-type": "application/json"})
        for content in (body, body + b" " * LARGE_BODY_BYTES)
    )
    assert (small.status_code, small.json()["error"]["item"]) == (422, 3)
    assert (large.status_code, large.json()) == (small.status_code, small.json())


# -- combine ------------------------------------------------------------------------------------------------------------

PAIRS = [(-2.0, 0.5), (0.25, 1.5), (1.0, -1.0), (3.0, 0.75)]
SAFETY, HELPFULNESS = ([pair[i] for pair in PAIRS] for i in (0, 1))
WEIGHTS = {"safety": 0.3, "helpfulness": 0.7}


def combined(client: httpx.Client, combine: dict[str, Any], **options: Any) -> dict[str, Any]:
    return reward(client, *(known(*pair) for pair in PAIRS), combine=combine, **options)


def contributions(answer: dict[str, Any], model: str) -> list[float]:
    return [result["parts"][model]["contribution"] for result in answer["results"]]


def test_llama2_is_the_default_and_has_no_parts(client: httpx.Client) -> None:
    answer = combined(client, {"mode": "llama2"})
    assert answer == reward(client, *(known(*pair) for pair in PAIRS))
    assert set(answer["results"][0]) == FIELDS


def test_the_threshold_may_be_on_the_raw_score(client: httpx.Client) -> None:
    items = [known(-0.3, 0.7), known(1.3, 0.4), known(0.15, 0.4)]
    on_score = reward(
        client, *items, whiten=NONE, combine={"mode": "llama2", "threshold_on": "score"}, safety_threshold=0.15
    )
    assert column(on_score, "selected_score") == [-0.3, 0.4, 0.4]
    far = reward(client, *items, whiten=NONE, combine={"threshold_on": "score"}, safety_threshold=7)
    assert column(far, "selected") == ["safety"] * 3
    zero = reward(client, *items, whiten=NONE, combine={"threshold_on": "score"}, safety_threshold=0)
    assert column(zero, "selected_score") == [-0.3, 0.4, 0.4]
    assert column(reward(client, *items, whiten=NONE), "selected_score") == [0.7, 0.4, 0.4]


def test_a_weighted_sum_is_whitened_as_a_whole(client: httpx.Client) -> None:
    answer = combined(client, {"mode": "weighted", "weights": WEIGHTS})
    sums = [0.3 * s + 0.7 * h for s, h in PAIRS]
    assert column(answer, "shaped_score") == close(sums)
    assert column(answer, "whitened") == close(whitened_by_hand(sums))
    assert contributions(answer, "safety") == close([0.3 * s for s in SAFETY])
    assert contributions(answer, "helpfulness") == close([0.7 * h for h in HELPFULNESS])
    assert column(answer, "selected") == column(answer, "selected_score") == [None] * 4
    assert column(answer, "selected_probability") == [None] * 4
    assert answer["whiten_stats"]["mean"] == close(statistics.fmean(sums))


def test_each_models_scores_may_be_whitened_before_they_are_summed(client: httpx.Client) -> None:
    answer = combined(client, {"mode": "weighted", "weights": WEIGHTS, "whiten_each": True})
    white = {"safety": whitened_by_hand(SAFETY), "helpfulness": whitened_by_hand(HELPFULNESS)}
    sums = [0.3 * s + 0.7 * h for s, h in zip(*white.values(), strict=True)]
    assert column(answer, "whitened") == column(answer, "reward") == close(sums)
    for model, raw in (("safety", SAFETY), ("helpfulness", HELPFULNESS)):
        assert [result["parts"][model]["shaped_score"] for result in answer["results"]] == raw
        assert [result["parts"][model]["whitened"] for result in answer["results"]] == close(white[model])
        assert contributions(answer, model) == close([WEIGHTS[model] * value for value in white[model]])
        assert answer["whiten_stats"][model]["mean"] == close(statistics.fmean(raw))
    assert column(answer, "shaped_score") == [None] * 4


def test_the_lagrangian_takes_the_cost_off_the_reward(client: httpx.Client) -> None:
    answer = combined(client, {"mode": "lagrangian", "lambda": 1.2}, whiten=NONE)
    expected = [(h - 1.2 * -s) / (1 + 1.2) for s, h in PAIRS]
    assert column(answer, "reward") == close(expected)
    assert contributions(answer, "safety") == close([1.2 * s / 2.2 for s in SAFETY])
    assert column(combined(client, {"mode": "lagrangian", "lambda": 0}, whiten=NONE), "reward") == HELPFULNESS


def test_the_worst_of_the_whitened_scores_is_taken(client: httpx.Client) -> None:
    answer = combined(client, {"mode": "worst"})
    white = list(zip(whitened_by_hand(SAFETY), whitened_by_hand(HELPFULNESS), strict=True))
    assert column(answer, "whitened") == close([min(pair) for pair in white])
    selected = ["safety" if s <= h else "helpfulness" for s, h in white]
    assert column(answer, "selected") == selected
    assert column(answer, "selected_score") == [pair[selected[i] == "helpfulness"] for i, pair in enumerate(PAIRS)]
    assert set(selected) == {"safety", "helpfulness"}


def test_the_models_score_for_every_rule(client: httpx.Client) -> None:
    llama2 = reward(client, TEA, LOCK, whiten=NONE)["results"]
    answer = reward(client, TEA, LOCK | {"is_safety": True}, whiten=NONE, combine={"mode": "lagrangian", "lambda": 3})
    expected = [(result["helpfulness_score"] + 3 * result["safety_score"]) / 4 for result in llama2]
    assert column(answer, "reward") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("combine", [{"mode": "worst"}, {"mode": "weighted", "weights": WEIGHTS, "whiten_each": True}])
@pytest.mark.parametrize("mode", ["batch", "group"])
def test_statistics_by_model_whiten_a_batch_over_two_requests(
    client: httpx.Client, combine: dict[str, Any], mode: str
) -> None:
    items = [known(*pair, group_id=i % 2) for i, pair in enumerate([*PAIRS, *((h, s) for s, h in PAIRS)])]
    whole = reward(client, *items, combine=combine, whiten={"mode": mode})
    again = [
        reward(client, *half, combine=combine, whiten={"mode": mode, "stats": whole["whiten_stats"]})
        for half in (items[:3], items[3:])
    ]
    assert [result["reward"] for part in again for result in part["results"]] == close(column(whole, "reward"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"combine": {"mode": "average"}}, "combine.mode"),
        ({"combine": {"mode": "weighted"}}, "combine has no weights"),
        ({"combine": {"mode": "weighted", "weights": {"safety": 1}}}, "combine.weights.helpfulness is missing"),
        ({"combine": {"mode": "weighted", "weights": {"safety": -1, "helpfulness": 1}}}, "combine.weights.safety"),
        ({"combine": {"mode": "weighted", "weights": WEIGHTS, "lambda": 1}}, "combine has lambda"),
        ({"combine": {"mode": "lagrangian"}}, "combine has no lambda"),
        ({"combine": {"mode": "lagrangian", "lambda": -1}}, "combine.lambda"),
        ({"combine": {"mode": "lagrangian", "multiplier": 1}}, "combine.multiplier is unknown"),
        ({"combine": {"mode": "worst", "whiten_each": True}}, "combine has whiten_each"),
        ({"combine": {"mode": "worst", "threshold_on": "score"}}, "combine has threshold_on"),
        ({"combine": {"mode": "worst"}, "safety_threshold": 0.15}, "safety_threshold, which combine mode worst"),
        ({"combine": {"threshold_on": "score"}}, "no safety_threshold"),
        ({"safety_threshold": 1.5}, "safety_threshold 1.5"),
        ({"combine": {"mode": "worst"}, "whiten": {"stats": {"count": 2, "mean": 0.0, "m2": 1.0}}}, "map by model"),
        ({"whiten": {"stats": {"count": 2.5, "mean": 0.0, "m2": 1.0}}}, "whiten.stats.count is 2.5"),
        (
            {"whiten": {"mode": "group", "stats": {"a": {"count": 2.5, "mean": 0.0, "m2": 1.0}}}},
            "whiten.stats.a.count is 2.5",
        ),
        ({"whiten": {"stats": {"count": 2, "mean": 0.0, "m3": 1.0}}}, "whiten.stats.m3 is unknown"),
        ({"whiten": {"mode": "none", "singletons": "zero"}}, "mode none does not whiten"),
        ({"whiten": {"singletons": "drop"}}, "whiten.singletons"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(client: httpx.Client, options: dict[str, Any], says: str) -> None:
    response = client.post("/ppo-reward", json={"items": [known(1.0, 2.0)] * 2, **options})
    assert_error(response, 422, "invalid_input", says=says)


def test_a_rule_that_needs_both_scores_names_the_item_that_has_one(client: httpx.Client) -> None:
    body = {"items": [known(1.0, 2.0), known(1.0, is_safety=True)], "combine": {"mode": "worst"}}
    assert_error(client.post("/ppo-reward", json=body), 422, "invalid_input", item=1, says="both scores")


# -- groups -------------------------------------------------------------------------------------------------------------


def test_groups_whose_names_would_be_one_key_are_refused(client: httpx.Client) -> None:
    items = [known(float(i), is_safety=True, group_id=group) for i, group in enumerate([1, 1, "1", "1"])]
    response = client.post("/ppo-reward", json={"items": items, "whiten": {"mode": "group"}})
    assert_error(response, 422, "invalid_input", item=2, says="items[2].group_id is '1' and items[0].group_id is 1")
    assert len(reward(client, *items)["results"]) == 4  # elsewhere nothing depends on the group


def test_a_group_of_one_may_be_whitened_to_zero(client: httpx.Client) -> None:
    items = [known(x, is_safety=True, group_id=group) for x, group in ((1.0, "a"), (5.0, "lonely"), (3.0, "a"))]
    answer = reward(client, *items, whiten={"mode": "group", "singletons": "zero"})
    assert column(answer, "singleton") == [False, True, False]
    assert column(answer, "whitened") == close([-1 / math.sqrt(2 + 1e-8), 0.0, 1 / math.sqrt(2 + 1e-8)])
    assert column(answer, "whitened")[1] == 0.0
    assert answer["whiten_stats"]["lonely"] == {"count": 1, "mean": 5.0, "m2": 0.0}
    with_mean = reward(client, *items, whiten={"mode": "group", "singletons": "zero", "shift_mean": False})
    assert column(with_mean, "whitened")[1] == 5.0
    (alone,) = reward(client, items[0], whiten={"singletons": "zero"})["results"]
    assert (alone["whitened"], alone["singleton"]) == (0.0, True)


@pytest.mark.parametrize("combine", [{"mode": "worst"}, {"mode": "weighted", "weights": WEIGHTS, "whiten_each": True}])
def test_a_group_of_one_is_zero_for_every_model(client: httpx.Client, combine: dict[str, Any]) -> None:
    (alone,) = reward(client, known(2.0, -1.0), combine=combine, whiten={"singletons": "zero"})["results"]
    assert (alone["whitened"], alone["singleton"]) == (0.0, True)


def test_a_constant_group_is_exactly_zero(client: httpx.Client) -> None:
    answer = reward(client, *[known(0.1, is_safety=True)] * 7)
    assert column(answer, "whitened") == [0.0] * 7
    assert answer["whiten_stats"] == {"count": 7, "mean": 0.1, "m2": 0.0}
