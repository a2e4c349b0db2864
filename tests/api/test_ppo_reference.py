"""/ppo-reward's arithmetic against its equations written down again, item by item, in 60 digits: 300 random bodies."""

import json
import random
from collections import defaultdict
from typing import Any

import pytest
from mpmath import exp, log, mpf, sqrt, workdps

from app.api.bodies import parse
from app.api.ppo_answer import ItemScores, answer
from app.api.ppo_batch import read_batch
from app.api.ppo_schemas import PPORequest

BETA, THRESHOLD = 0.01, 0.15
MODELS = ("safety", "helpfulness")
USAGE = {"num_tokens": 0, "num_computed_tokens": 0}

Body = dict[str, Any]
Number = Any
"""An mpf; mpmath has no types."""


# -- random bodies ------------------------------------------------------------------------------------------------------


def random_body(seed: int) -> Body:
    source = random.Random(seed)  # noqa: S311 - to be reproducible, not secret
    mode = source.choice(["batch", "group", "none"])
    combine = random_combine(source)
    items = [
        random_item(source, needs_both=combine.get("mode", "llama2") != "llama2") for _ in range(source.randint(1, 8))
    ]
    for item in items:
        item["group_id"] = source.choice([3, 7])
    body: Body = {"items": items, "whiten": {"mode": mode}, "combine": combine}
    if combine.get("mode", "llama2") == "llama2" and (source.random() < 0.5 or "threshold_on" in combine):
        body["safety_threshold"] = source.choice([0.15, 0.5, 0.9, 1e-6])
    if source.random() < 0.5:
        body["beta"] = source.choice([0.0, 0.005, 0.3, 7.0])
    if source.random() < 0.5:
        body["score_clip"] = source.choice([[-1.0, 1.0], [-10, 10], [0.5, 0.5]])
    if source.random() < 0.5:
        body["missing_eos_penalty"] = source.choice([0.0, 1.0, 2.75])
    body["kl"] = {"estimator": source.choice(["k1", "k2", "k3", "abs", "mse", "low_var_kl", "pointwise"])}
    if source.random() < 0.5:
        body["kl"]["clip"] = source.choice([0.1, 1.0, 20])
    body["token_rewards"] = source.random() < 0.7
    if mode != "none":
        body["whiten"] |= random_whitening(
            source, mode, whitens_each=combine.get("whiten_each") or combine.get("mode") == "worst"
        )
    return body


def random_combine(source: random.Random) -> dict[str, Any]:
    weights = {"safety": source.choice([0.0, 0.3, 2.0]), "helpfulness": source.choice([0.7, 1.0])}
    return source.choice(
        [
            {},
            {"mode": "llama2"},
            {"mode": "llama2", "threshold_on": "score"},
            {"mode": "weighted", "weights": weights},
            {"mode": "weighted", "weights": weights, "whiten_each": True},
            {"mode": "lagrangian", "lambda": source.choice([0, 0.1, 1.2, 1e6])},
            {"mode": "worst"},
        ]
    )


def random_item(source: random.Random, *, needs_both: bool) -> dict[str, Any]:
    def score() -> float:
        return source.choice([source.gauss(0, 2), source.gauss(0, 2), 0.0, -1.75, 1.0, source.gauss(0, 50)])

    is_safety = source.random() < 0.3
    item: dict[str, Any] = {"safety_score": score(), "is_safety": is_safety, "ended": source.random() < 0.7}
    if needs_both or not is_safety or source.random() < 0.5:
        item["helpfulness_score"] = score()
    if source.random() < 0.8:
        count = source.randint(1, 7)
        policy: list[float | None] = [-source.expovariate(0.5) for _ in range(count)]
        reference: list[float | None] = [-source.expovariate(0.5) for _ in range(count)]
        if source.random() < 0.5:
            mask = [source.choice([0, 1]) for _ in range(count)]
            mask[source.randrange(count)] = 1
            for i, kept in enumerate(mask):
                if not kept:
                    policy[i], reference[i] = source.choice([(None, 1.0), (1.0, 1.0), (1e300, -1e300)])
            item["mask"] = mask
        item |= {"policy_logprobs": policy, "reference_logprobs": reference}
    return item


def random_whitening(source: random.Random, mode: str, *, whitens_each: bool) -> dict[str, Any]:
    def stats() -> Any:
        return {"count": source.choice([2, 5, 1000]), "mean": source.gauss(0, 3), "m2": source.choice([0.0, 3.5, 1e4])}

    def of_groups() -> Any:
        return {"3": stats(), "7": stats()} if mode == "group" else stats()

    options: dict[str, Any] = {"singletons": "zero", "shift_mean": source.random() < 0.6}
    if source.random() < 0.4:
        options["stats"] = {model: of_groups() for model in MODELS} if whitens_each else of_groups()
    return options


# -- the equations ------------------------------------------------------------------------------------------------------


def expected_results(body: Body) -> list[dict[str, Any]]:
    items, combine = body["items"], body["combine"]
    mode = combine.get("mode", "llama2")
    each = mode == "worst" or combine.get("whiten_each", False)
    given = body["whiten"].get("stats")
    raw = {model: [to_mpf(item.get(f"{model}_score")) for item in items] for model in MODELS}
    results: list[dict[str, Any]] = [{} for _ in items]
    if each:
        shaped = {model: shape(raw[model], body) for model in MODELS}
        white = {model: whiten(shaped[model], body, given and given[model]) for model in MODELS}
        for i, result in enumerate(results):
            result["by_model"] = {model: (shaped[model][i], white[model][i]) for model in MODELS}
            if mode == "worst":
                result["selected"] = "safety" if white["safety"][i] <= white["helpfulness"][i] else "helpfulness"
                result["whitened"] = white[result["selected"]][i]
                result["parts"] = {m: white[m][i] if m == result["selected"] else mpf(0) for m in MODELS}
            else:
                result["parts"] = {model: mpf(combine["weights"][model]) * white[model][i] for model in MODELS}
                result["whitened"] = sum(result["parts"].values())
    else:
        combined = []
        for i, result in enumerate(results):
            if mode == "llama2":
                result["selected"] = select(items[i], body)
                combined.append(raw[result["selected"]][i])
            else:
                weight = combine["weights"] if mode == "weighted" else lagrangian_weights(combine["lambda"])
                result["parts"] = {model: mpf(weight[model]) * raw[model][i] for model in MODELS}
                combined.append(sum(result["parts"].values()))
        shaped_scores = shape(combined, body)
        for result, score, value in zip(results, shaped_scores, whiten(shaped_scores, body, given), strict=True):
            result["shaped_score"], result["whitened"] = score, value
    for item, result in zip(items, results, strict=True):
        penalize(item, result, body)
    return results


def to_mpf(score: float | None) -> Number:
    return None if score is None else mpf(score)


def lagrangian_weights(multiplier: float) -> dict[str, Number]:
    """(R_h - lambda c) / (1 + lambda) with c = -R_s"""
    return {"safety": mpf(multiplier) / (1 + mpf(multiplier)), "helpfulness": 1 / (1 + mpf(multiplier))}


def select(item: dict[str, Any], body: Body) -> str:
    threshold, safety = mpf(body.get("safety_threshold", THRESHOLD)), mpf(item["safety_score"])
    value = safety if body["combine"].get("threshold_on") == "score" else 1 / (1 + exp(-safety))
    return "safety" if item["is_safety"] or value < threshold else "helpfulness"


def shape(scores: list[Number], body: Body) -> list[Number]:
    low, high = body.get("score_clip", (-1e308, 1e308))
    clipped = [min(max(score, mpf(low)), mpf(high)) for score in scores]
    penalty = mpf(body.get("missing_eos_penalty", 0))
    return [score - (mpf(0) if item["ended"] else penalty) for score, item in zip(clipped, body["items"], strict=True)]


def whiten(scores: list[Number], body: Body, given: Any) -> list[Number]:
    options = body["whiten"]
    if options["mode"] == "none":
        return scores
    groups: dict[str, list[Number]] = defaultdict(list)
    names = [str(item["group_id"]) if options["mode"] == "group" else "" for item in body["items"]]
    for name, score in zip(names, scores, strict=True):
        groups[name].append(score)
    whitened = []
    for name, score in zip(names, scores, strict=True):
        own = groups[name]
        count, mean = len(own), sum(own) / len(own)
        m2 = sum((value - mean) ** 2 for value in own)
        if given is not None:
            stats = given[name] if options["mode"] == "group" else given
            count, mean, m2 = stats["count"], mpf(stats["mean"]), mpf(stats["m2"])
        value = (score - mean) / sqrt(m2 / (count - 1) + mpf("1e-8")) if count > 1 else mpf(0)
        whitened.append(value if options["shift_mean"] else value + mean)
    return whitened


def penalize(item: dict[str, Any], result: dict[str, Any], body: Body) -> None:
    beta, kl, clip = mpf(body.get("beta", BETA)), body["kl"], body["kl"].get("clip")
    result["kl"], result["token_rewards"] = None, None
    result["reward"] = result["whitened"]
    if "policy_logprobs" not in item:
        return
    mask = item.get("mask", [1] * len(item["policy_logprobs"]))
    terms = []
    for counted, policy, reference in zip(mask, item["policy_logprobs"], item["reference_logprobs"], strict=True):
        x = mpf(policy) - mpf(reference) if counted else mpf(0)
        x = x if clip is None else min(max(x, -mpf(clip)), mpf(clip))
        terms.append(estimate(kl["estimator"], x, mpf(reference)) if counted else mpf(0))
    result["kl"] = sum(terms)
    result["reward"] = result["whitened"] - beta * result["kl"]
    if body["token_rewards"]:
        rewards = [-beta * term for term in terms]
        rewards[max(i for i, counted in enumerate(mask) if counted)] += result["whitened"]
        result["token_rewards"] = rewards


def estimate(estimator: str, x: Number, reference: Number) -> Number:
    k3 = exp(-x) - 1 + x
    rules = {"k1": x, "k2": x * x / 2, "mse": x * x / 2, "k3": k3, "abs": abs(x), "low_var_kl": min(k3, mpf(10))}
    return rules[estimator] if estimator in rules else exp(reference) * -x


# -- both ---------------------------------------------------------------------------------------------------------------


def answered(body: Body) -> dict[str, Any]:
    """As the route answers it, but for HTTP."""
    request = parse(PPORequest, json.dumps(body).encode())
    batch = read_batch(request, beta=BETA, safety_threshold=THRESHOLD)
    scores = [ItemScores(item.known_scores) for item in request.items]
    return answer(batch, scores, USAGE)


def close(value: Number) -> Any:
    """To nine digits; whitening can magnify the rounding of a score of 100 by 1e4."""
    return pytest.approx(float(value), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(300))
def test_a_random_body_is_answered_by_the_equations(seed: int) -> None:
    body = random_body(seed)
    with workdps(60):
        expected = expected_results(body)
    got = answered(body)
    for result, right in zip(got["results"], expected, strict=True):
        assert result["selected"] == right.get("selected")
        for name in ("whitened", "reward"):
            assert result[name] == close(right[name])
        if "shaped_score" in right:
            assert result["shaped_score"] == close(right["shaped_score"])
        assert result["kl"] == (None if right["kl"] is None else close(right["kl"]))
        if right["token_rewards"] is None:
            assert result["token_rewards"] is None
        else:
            assert result["token_rewards"] == [close(value) for value in right["token_rewards"]]
        assert ("parts" in result) == ("parts" in right)
        for model, value in right.get("parts", {}).items():
            assert result["parts"][model]["contribution"] == close(value)
        for model, (shaped, whitened) in right.get("by_model", {}).items():
            assert result["parts"][model]["shaped_score"] == close(shaped)
            assert result["parts"][model]["whitened"] == close(whitened)
    kls = [right["kl"] for right in expected if right["kl"] is not None]
    assert got["mean_kl"] == (close(sum(kls) / len(kls)) if kls else None)


def test_the_random_bodies_have_every_option() -> None:
    """Else the test above would show less than it says."""
    bodies = [random_body(seed) for seed in range(300)]
    modes = {json.dumps({k: v for k, v in body["combine"].items() if k != "weights"}) for body in bodies}
    assert len(modes) >= 9
    assert {body["kl"]["estimator"] for body in bodies} >= {"k1", "k2", "k3", "abs", "mse", "low_var_kl", "pointwise"}
    assert {body["whiten"]["mode"] for body in bodies} == {"batch", "group", "none"}
    assert sum("stats" in body["whiten"] for body in bodies) > 30
    assert log(mpf(THRESHOLD) / (1 - mpf(THRESHOLD))) < -1.73  # -1.75 is on the other side of it than 0
