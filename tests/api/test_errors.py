"""Bad input: one error body, the item's place, the value and the remedy; never a stack trace, never a 500."""

import asyncio
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import errors
from app.main import create_app
from app.settings import Settings
from tests.api.asking import LOCK, TEA, assert_error
from tests.conftest import Serve
from tests.models import make_model

JSON = {"content-type": "application/json"}
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
KNOWN = {"safety_score": 1.0, "helpfulness_score": 2.0}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
LOGPROBS = '{"safety_score": 1, "is_safety": true, "policy_logprobs": [%s}'
ROUTES = ["/score", "/compare", "/ppo-reward"]


def post_raw(client: httpx.Client, path: str, body: str | bytes) -> httpx.Response:
    return client.post(path, content=body, headers=JSON)


def logprobs(**changes: Any) -> dict[str, Any]:
    return KNOWN | {"policy_logprobs": [-1.0, -2.0], "reference_logprobs": [-1.5, -2.5]} | changes


BAD_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({}, "no input"),
    ({"prompt": "p"}, "has no response"),
    ({"response": "r"}, "has no prompt"),
    ({**TEA, "text": "t"}, "exactly one of"),
    ({"text": "t", "input_ids": [5]}, "exactly one of"),
    ({"messages": [USER, ASSISTANT], "text": "t"}, "exactly one of"),
    ({"messages": []}, "items[1].messages"),
    ({"messages": [ASSISTANT, USER]}, "must be the assistant's"),
    ({"messages": [{"role": "assistant"}]}, "items[1].messages[0].content is missing"),
    ({"messages": [{**ASSISTANT, "nmae": "n"}]}, "items[1].messages[0].nmae is unknown"),
    ({"messages": [{"role": "assistant", "content": [{"type": "text", "text": "t"}]}]}, "items[1].messages[0].content"),
    ({"messages": [{"role": "assistant", "content": None}]}, "items[1].messages[0] has no content"),
    ({"messages": [CALLING]}, "items[1] has tool_calls, which the checkpoint's chat template does not render"),
    ({"messages": [{**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "arguments is '{'"),
    ({"messages": [{**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": "1"}}]}]}, "send an object"),
    (
        {"messages": [{**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": "[" * 10_000}}]}]},
        "which is not JSON (recursion limit exceeded",
    ),
    ({"messages": [{**ASSISTANT, "reasoning_content": "Well."}]}, "items[1] has reasoning_content, which"),
    ({"input_ids": []}, "items[1].input_ids"),
    ({"input_ids": [5, 320]}, "token id 320"),
    ({"input_ids": [-1]}, "token id -1"),
    ({"input_ids": [10**30]}, "token id 1000"),
    ({"input_ids": [5.5]}, "items[1].input_ids[0]"),
    ({"input_ids": [5.0]}, "items[1].input_ids[0]"),
    ({"input_ids": [True]}, "items[1].input_ids[0]"),
    ({"input_ids": ["5"]}, "items[1].input_ids[0]"),
    ({"input_ids": [[5]]}, "items[1].input_ids[0]"),
    ({"text": 7}, "items[1].text"),
    ({"text": None}, "no input"),
    ({"text": "t", "txet": "t"}, "items[1].txet is unknown"),
    ({"text": "t", "max-length": 3}, "max-length is unknown"),
    ({"text": "t", "str": 3}, "str is unknown"),
]


@pytest.mark.parametrize("path", ["/score", "/ppo-reward"])
@pytest.mark.parametrize(("item", "says"), BAD_INPUTS, ids=[says for _, says in BAD_INPUTS])
def test_a_bad_input_is_refused_with_its_place(
    client: httpx.Client, path: str, item: dict[str, Any], says: str
) -> None:
    response = client.post(path, json={"items": [TEA, item]})
    assert_error(response, 422, "invalid_input", item=1, says=says)
    assert "items[1]" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ({}, "no input"),
        ({"prompt": "p", "chosen": "a"}, "send prompt, chosen and rejected"),
        ({**PAIR, "chosen_messages": [ASSISTANT]}, "send prompt, chosen and rejected"),
        ({"chosen_messages": [ASSISTANT]}, "send prompt, chosen and rejected"),
        ({"chosen_messages": [ASSISTANT], "rejected_messages": [USER]}, "rejected_messages is 'user'"),
        ({"chosen_messages": [ASSISTANT], "rejected_messages": []}, "pairs[1].rejected_messages"),
        ({**PAIR, "rating": "better", "margin": 1.0}, "both rating and margin"),
        ({**PAIR, "rating": "best"}, "pairs[1].rating"),
        ({**PAIR, "margin": -1.0}, "pairs[1].margin"),
        ({**PAIR, "margin": "3"}, "pairs[1].margin"),
        ({**PAIR, "chosen_score": 1.0}, "pairs[1].chosen_score is unknown"),
    ],
)
def test_a_bad_pair_is_refused_with_its_place(client: httpx.Client, pair: dict[str, Any], says: str) -> None:
    response = client.post("/compare", json={"pairs": [PAIR, pair]})
    assert_error(response, 422, "invalid_input", item=1, says=says)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (logprobs(reference_logprobs=[-1.0]), "different lengths"),
        (logprobs(mask=[1]), "different lengths"),
        (logprobs(mask=[]), "different lengths"),
        (logprobs(mask=[0, 0]), "counts no token"),
        (logprobs(mask=[1, 2]), "items[1].mask[1]"),
        (logprobs(mask=[1, None]), "items[1].mask[1]"),
        (logprobs(policy_logprobs=[-1.0, 0.5]), "items[1].policy_logprobs[1] is 0.5"),
        (logprobs(reference_logprobs=[0.0011, -1.0]), "items[1].reference_logprobs[0] is 0.0011"),
        (logprobs(policy_logprobs=[None, -1.0]), "items[1].policy_logprobs[0] is null"),
        (logprobs(policy_logprobs=[None, -1.0], mask=[1, 0]), "items[1].policy_logprobs[0] is null"),
        (logprobs(policy_logprobs=[], reference_logprobs=[]), "items[1].policy_logprobs"),
        (logprobs(reference_logprobs=None), "no reference_logprobs"),
        (logprobs(policy_logprobs=None), "no policy_logprobs"),
        (logprobs(policy_logprobs=["-1", -1.0]), "items[1].policy_logprobs[0]"),
        (logprobs(policy_logprobs=[True, -1.0]), "items[1].policy_logprobs[0]"),
        (KNOWN | {"mask": [1]}, "no logprobs"),
        (KNOWN | TEA, "both scores and prompt and response"),
        ({"helpfulness_score": 1.0}, "no safety_score"),
        ({"safety_score": 1.0}, "no helpfulness_score"),
        ({"helpfulness_score": 1.0, "is_safety": True}, "no safety_score"),
        (KNOWN | {"is_safety": 1}, "items[1].is_safety"),
        (KNOWN | {"ended": "yes"}, "items[1].ended"),
        (KNOWN | {"group_id": 1.5}, "items[1].group_id"),
        (KNOWN | {"group_id": True}, "items[1].group_id"),
    ],
)
def test_a_bad_rollout_is_refused_with_its_place(client: httpx.Client, item: dict[str, Any], says: str) -> None:
    response = client.post("/ppo-reward", json={"items": [KNOWN, item]})
    assert_error(response, 422, "invalid_input", item=1, says=says)


STATS = {"count": 4, "mean": 0.0, "m2": 1.0}


@pytest.mark.parametrize(
    ("options", "says", "item"),
    [
        ({"whiten": {"mode": "group"}}, "no group_id", 0),
        ({"missing_eos_penalty": 1.0}, "no ended", 0),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty", None),
        ({"beta": -0.1}, "beta", None),
        ({"safety_threshold": 0}, "safety_threshold", None),
        ({"safety_threshold": 1.0}, "safety_threshold", None),
        ({"score_clip": [1, -1]}, "score_clip", None),
        ({"score_clip": [1]}, "score_clip", None),
        ({"score_clip": 1}, "score_clip", None),
        ({"kl": {"clip": 0}}, "kl.clip", None),
        ({"kl": {"estimator": "k4"}}, "kl.estimator", None),
        ({"kl": {"clib": 1}}, "kl.clib is unknown", None),
        ({"kl": None}, "kl", None),
        ({"whiten": {"mode": "all"}}, "whiten.mode", None),
        ({"whiten": {"stats": STATS, "mode": "none"}}, "mode none does not whiten", None),
        ({"whiten": {"stats": {"a": STATS}}}, "map by group in mode group", None),
        ({"whiten": {"stats": STATS, "mode": "group"}}, "map by group in mode group", None),
        ({"whiten": {"stats": {**STATS, "count": -1}}}, "whiten.stats", None),
        ({"whiten": {"stats": {**STATS, "m2": -1.0}}}, "whiten.stats", None),
        ({"whiten": {"stats": {**STATS, "count": 1}}}, "needs 2", None),
        ({"token_rewards": "yes"}, "token_rewards", None),
        ({"truncation": "middle"}, "truncation", None),
        ({"betta": 0.1}, "betta is unknown", None),
    ],
)
def test_a_bad_reward_option_is_refused(
    client: httpx.Client, options: dict[str, Any], says: str, item: int | None
) -> None:
    response = client.post("/ppo-reward", json={"items": [KNOWN, KNOWN], **options})
    assert_error(response, 422, "invalid_input", item=item, says=says)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/score", {"items": []}, "items"),
        ("/score", {}, "items is missing"),
        ("/score", {"items": None}, "items"),
        ("/score", {"items": TEA}, "items"),
        ("/score", {"items": [TEA], "models": []}, "models"),
        ("/score", {"items": [TEA], "models": ["harmlessness"]}, "models[0]"),
        ("/score", {"items": [TEA], "models": "safety"}, "models"),
        ("/score", {"items": [TEA], "token_scores": 1}, "token_scores"),
        ("/score", {"items": [TEA], "truncation": None}, "truncation"),
        ("/compare", {"pairs": []}, "pairs"),
        ("/compare", {"items": [TEA]}, "items is unknown"),
        ("/compare", {"pairs": [PAIR], "model": "both"}, "model"),
        ("/compare", {"pairs": [PAIR], "margin_scheme": "medium"}, "margin_scheme"),
        ("/ppo-reward", {"items": []}, "items"),
        ("/ppo-reward", {"items": [KNOWN]}, "mode none"),
    ],
)
def test_a_bad_request_is_refused(client: httpx.Client, path: str, body: dict[str, Any], says: str) -> None:
    assert_error(client.post(path, json=body), 422, "invalid_input", says=says)


def test_a_group_of_one_is_refused_with_its_name_and_the_ways_out(client: httpx.Client) -> None:
    items = [KNOWN | {"group_id": group} for group in ("a", "a", "lonely")]
    response = client.post("/ppo-reward", json={"items": items, "whiten": {"mode": "group"}})
    for words in ("'lonely'", "more items", "whiten.stats", "mode none"):
        assert_error(response, 422, "invalid_input", says=words)


def test_statistics_that_lack_a_group_are_refused_with_its_name(client: httpx.Client) -> None:
    items = [KNOWN | {"group_id": group} for group in ("a", "a", "b", "b")]
    whiten = {"mode": "group", "stats": {"a": STATS}}
    response = client.post("/ppo-reward", json={"items": items, "whiten": whiten})
    assert_error(response, 422, "invalid_input", says="'b'")


def test_a_penalty_that_overflows_names_the_token_and_the_remedy(client: httpx.Client) -> None:
    item = KNOWN | {"policy_logprobs": [-1.0, -900.0], "reference_logprobs": [-1.0, -1.0]}
    body = {"items": [KNOWN, item], "kl": {"estimator": "k3"}}
    assert_error(client.post("/ppo-reward", json=body), 422, "invalid_input", item=1, says="token 1")
    assert_error(client.post("/ppo-reward", json=body), 422, "invalid_input", item=1, says="kl.clip")
    assert client.post("/ppo-reward", json=body | {"kl": {"estimator": "k3", "clip": 10}}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"items": [KNOWN | {"safety_score": -1.7e308, "is_safety": True}, KNOWN | {"safety_score": 1.0}]},
        {"items": [{"safety_score": s, "is_safety": True} for s in (-1.7e308, 1.7e308, -1.7e308)]},
        {"items": [KNOWN, KNOWN], "whiten": {"stats": {"count": 2, "mean": -1.7e308, "m2": 0.0}}},
        {"items": [KNOWN, KNOWN], "whiten": {"stats": {"count": 2, "mean": 0.0, "m2": 1.7e308}}, "beta": 1e308},
        {"items": [logprobs(), logprobs(policy_logprobs=[-1e300, -1.0])], "beta": 1e300},
        {"items": [logprobs(policy_logprobs=[-1.7e308, -1.7e308])] * 2},
        {"items": [logprobs(policy_logprobs=[-1.7e308, -1.0])] * 3},
        {"items": [KNOWN | {"ended": False}] * 2, "missing_eos_penalty": 1.7e308},
        {"items": [KNOWN] * 2, "combine": {"mode": "weighted", "weights": {"safety": 1e308, "helpfulness": 1e308}}},
        {
            "items": [{"safety_score": s, "helpfulness_score": -s} for s in (1.7e308, -1.7e308)],
            "combine": {"mode": "weighted", "weights": {"safety": 2, "helpfulness": 2}},
            "whiten": {"mode": "none"},
        },
        {"items": [KNOWN, KNOWN | {"safety_score": 1.7e308}], "combine": {"mode": "worst"}},
        {"items": [KNOWN, KNOWN | {"helpfulness_score": -1.7e308}], "combine": {"mode": "lagrangian", "lambda": 1e308}},
        {"items": [KNOWN | {"safety_score": 1.7e308}], "combine": {"mode": "worst"}, "whiten": {"singletons": "zero"}},
        {"items": [logprobs(reference_logprobs=[-1.0, -1.7e308])] * 2, "kl": {"estimator": "pointwise"}},
        {"items": [logprobs(policy_logprobs=[-1.7e308, -1.0])] * 2, "kl": {"estimator": "low_var_kl"}},
    ],
)
def test_no_answer_holds_a_number_that_is_not_finite(client: httpx.Client, body: dict[str, Any]) -> None:
    response = client.post("/ppo-reward", json=body)
    if response.status_code == 200:
        results = response.json()
        numbers = [value for result in results["results"] for value in result.values() if isinstance(value, float)]
        numbers += [number for stats in stats_in(results["whiten_stats"]) for number in stats.values()]
        numbers += [
            number
            for result in results["results"]
            for part in result.get("parts", {}).values()
            for number in part.values()
        ]
        assert all(math.isfinite(number) for number in numbers)
        assert all(isinstance(result["reward"], float) for result in results["results"])
    else:
        item = response.json()["error"].get("item")
        assert_error(response, 422, "invalid_input", item=item, says="overflows")


def stats_in(found: dict[str, Any]) -> list[dict[str, float]]:
    """The statistics, whether they are one object or a map of such."""
    return [found] if "count" in found else list(found.values())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400])
@pytest.mark.parametrize(
    ("path", "name", "entry"),
    [
        ("/score", "items", '{"input_ids": [%s]}'),
        ("/score", "items", '{"text": %s}'),
        ("/score", "items", '{"text": "t", "surprise": %s}'),
        ("/compare", "pairs", '{"prompt": "p", "chosen": "a", "rejected": "b", "margin": %s}'),
        ("/ppo-reward", "items", '{"safety_score": %s, "helpfulness_score": 1}'),
        ("/ppo-reward", "items", '{"safety_score": 1, "helpfulness_score": %s}'),
        ("/ppo-reward", "items", LOGPROBS % '-1, %s], "reference_logprobs": [-1, -1]'),
        ("/ppo-reward", "items", LOGPROBS % '-1, -1], "reference_logprobs": [-1, %s], "mask": [1, 0]'),
    ],
)
def test_an_item_with_a_number_that_is_not_finite_is_refused(
    client: httpx.Client, path: str, name: str, entry: str, number: str
) -> None:
    response = post_raw(client, path, f'{{"{name}": [{entry % number}]}}')
    assert_error(response, 422, "invalid_input", item=0, says=f"{name}[0]")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400])
@pytest.mark.parametrize(
    "option",
    [
        '"beta": %s',
        '"safety_threshold": %s',
        '"missing_eos_penalty": %s',
        '"score_clip": [%s, 1]',
        '"kl": {"clip": %s}',
        '"whiten": {"stats": {"count": 2, "mean": %s, "m2": 1}}',
        '"whiten": {"stats": {"count": %s, "mean": 1, "m2": 1}}',
        '"surprise": %s',
    ],
)
def test_an_option_that_is_not_finite_is_refused(client: httpx.Client, option: str, number: str) -> None:
    items = (
        '[{"safety_score": 1, "is_safety": true, "ended": true}, {"safety_score": 2, "is_safety": true, "ended": true}]'
    )
    response = post_raw(client, "/ppo-reward", f'{{"items": {items}, {option % number}}}')
    assert_error(response, 422, "invalid_input")


@pytest.mark.parametrize("digits", [30, 400, 4000])
def test_a_huge_count_never_breaks_the_arithmetic(client: httpx.Client, digits: int) -> None:
    whiten = {"stats": {"count": 10**digits, "mean": 0.0, "m2": 1.0}}
    response = client.post("/ppo-reward", json={"items": [KNOWN, KNOWN], "whiten": whiten})
    if response.status_code != 200:
        assert_error(response, 422, "invalid_input")


def test_an_integer_beyond_all_parsers_is_refused(client: httpx.Client) -> None:
    response = post_raw(
        client, "/ppo-reward", '{"items": [{"safety_score": 1, "is_safety": true, "group_id": %s}]}' % ("9" * 5000)
    )
    assert response.status_code in {400, 422}
    assert_error(response, response.status_code, response.json()["error"]["code"])


def test_a_huge_group_name_costs_what_it_weighs(client: httpx.Client) -> None:
    items = [KNOWN | {"group_id": "g"} for _ in range(1000)] + [KNOWN | {"group_id": "x" * 5_000_000}] * 2
    response = client.post("/ppo-reward", json={"items": items, "whiten": {"mode": "group"}})
    assert response.status_code == 200
    assert len(response.json()["whiten_stats"]) == 2


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"items": [}',
        b'{"items": []} x',
        b"{'items': []}",
        b'{"items": [{"text": "\xff\xfe"}], "pairs": []}',
        b'{"items": [{"text": "\\ud800"}], "pairs": []}',
        b'{"items": [{"text": "\\udc00 tail"}], "pairs": []}',
        b'{"items": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"items": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"items": []}'.decode().encode("utf-16"),
        b'{"items": [{"text": "a\nb"}]}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_not_json_is_400(client: httpx.Client, path: str, body: bytes) -> None:
    assert_error(post_raw(client, path, body), 400, "invalid_json", says="not JSON")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("body", ["null", "1", '"text"', "[]", "true", "[[]]"])
def test_json_that_is_no_object_is_422(client: httpx.Client, path: str, body: str) -> None:
    assert_error(post_raw(client, path, body), 422, "invalid_input", says="the body")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_another_content_type_is_refused_with_the_right_one(client: httpx.Client, path: str, content_type: str) -> None:
    response = client.post(path, content=json.dumps({"items": [TEA]}), headers={"content-type": content_type})
    assert_error(response, 415, "unsupported_media_type", says="application/json")


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_read(client: httpx.Client, encoding: str, compress: Callable[[bytes], bytes]) -> None:
    body = json.dumps({"items": [TEA]}).encode()
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = client.post("/score", content=compress(body), headers=headers)
    plain = client.post("/score", json={"items": [TEA]})
    assert answer.json()["results"] == plain.json()["results"]  # the usage tells what was cached
    assert_error(
        client.post("/score", content=compress(body)[:-9], headers=headers), 400, "invalid_json", says="cut off"
    )
    assert_error(client.post("/score", content=body, headers=headers), 400, "invalid_json", says="decompressed")
    two = compress(body) + compress(b" ")
    assert_error(client.post("/score", content=two, headers=headers), 400, "invalid_json", says="after its compressed")


def test_a_body_that_grows_past_the_limit_when_decompressed_is_413(serve: Serve) -> None:
    with serve(max_body_mb=1) as small:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        response = small.post("/score", content=gzip.compress(b" " * 300_000_000), headers=headers)
        assert_error(response, 413, "body_too_large", says="1 MB")


def test_an_encoding_that_is_not_read_is_named(client: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "br"}
    assert_error(client.post("/score", content=b"?", headers=headers), 415, "unsupported_media_type", says="'br'")


def test_a_byte_order_mark_is_passed_over(client: httpx.Client) -> None:
    response = post_raw(client, "/score", b"\xef\xbb\xbf" + json.dumps({"items": [TEA]}).encode())
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_may_ask_for_the_head_alone(client: httpx.Client, path: str) -> None:
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("path", ["/score/", "/health/"])
def test_a_path_with_a_slash_too_many_is_404_and_no_redirect(client: httpx.Client, path: str) -> None:
    assert_error(client.request("POST", path, json={"items": [TEA]}), 404, "not_found", says=path)


def test_a_content_type_may_name_its_charset(client: httpx.Client) -> None:
    response = client.post(
        "/score", content=json.dumps({"items": [TEA]}), headers={"content-type": "Application/JSON; charset=utf-8"}
    )
    assert response.status_code == 200


def test_only_the_first_of_many_mistakes_is_told_with_the_number_of_the_others(client: httpx.Client) -> None:
    response = client.post("/score", json={"items": [TEA, {"text": 1}, {"text": 2}, {"text": 3}]})
    assert_error(response, 422, "invalid_input", item=1, says="(and 2 more)")


def test_a_huge_wrong_value_is_not_echoed(client: httpx.Client) -> None:
    response = client.post("/score", json={"items": [TEA], "truncation": "x" * 1_000_000})
    assert_error(response, 422, "invalid_input", says="truncation")
    response = client.post("/score", json={"items": [TEA], "x" * 100_000: 1})
    assert_error(response, 422, "invalid_input", says="unknown")
    response = client.post(
        "/ppo-reward", json={"items": [KNOWN | {"group_id": "x" * 100_000}], "whiten": {"mode": "group"}}
    )
    assert_error(response, 422, "invalid_input", says="needs 2")
    response = client.post("/score", json={"items": [{"messages": [{"role": "x" * 100_000, "content": ""}]}]})
    assert_error(response, 422, "invalid_input", item=0, says="must be the assistant's")
    response = client.post("/score", json={"items": [{"input_ids": [10**4000]}]})
    assert_error(response, 422, "invalid_input", item=0, says="token id 1000")


def test_an_over_long_item_names_its_tokens_and_the_limit(client: httpx.Client) -> None:
    response = client.post("/score", json={"items": [TEA, {"input_ids": [7] * 600}]})
    assert_error(response, 422, "too_long", item=1, says="items[1] has 600 tokens; the limit is 512")
    pair = {"prompt": "p", "chosen": "a", "rejected": "word " * 600}
    response = client.post("/compare", json={"pairs": [PAIR, pair]})
    assert_error(response, 422, "too_long", item=1, says="pairs[1].rejected has")
    response = client.post("/ppo-reward", json={"items": [TEA, {"text": "word " * 600}]})
    assert_error(response, 422, "too_long", item=1, says="the limit is 512")


def test_the_place_of_an_item_counts_those_that_bring_scores(client: httpx.Client) -> None:
    response = client.post("/ppo-reward", json={"items": [KNOWN, KNOWN, {"input_ids": [320]}]})
    assert_error(response, 422, "invalid_input", item=2, says="items[2]")


@pytest.mark.parametrize(("path", "name"), [("/score", "items"), ("/compare", "pairs"), ("/ppo-reward", "items")])
def test_too_many_items_are_refused_with_the_limit(client: httpx.Client, path: str, name: str) -> None:
    entry = PAIR if name == "pairs" else KNOWN if path == "/ppo-reward" else {"text": "t"}
    response = client.post(path, json={name: [entry] * 1025})
    assert_error(response, 422, "invalid_input", says=f"{name} has 1025 entries; the limit is 1024")


def test_an_unknown_path_is_404(client: httpx.Client) -> None:
    assert_error(client.get("/scores"), 404, "not_found", says="/scores")
    assert_error(client.post("/scores", json={}), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/score"), ("PUT", "/compare"), ("POST", "/health"), ("POST", "/info")]
)
def test_a_wrong_method_is_405(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(method, path)
    assert_error(response, 405, "method_not_allowed", says=method)
    assert response.headers["allow"] == ("GET" if method == "POST" else "POST")


HUNDRED_MB = 100_000_000


def test_a_body_over_the_limit_is_413_by_its_declared_length(client: httpx.Client) -> None:
    response = post_raw(client, "/score", b" " * HUNDRED_MB)
    assert_error(response, 413, "body_too_large", says="64 MB")


def test_a_chunked_body_over_the_limit_is_413(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(HUNDRED_MB // 1_000_000):
            yield b" " * 1_000_000

    response = client.post("/score", content=chunks(), headers=JSON)
    assert_error(response, 413, "body_too_large", says="REWARD_MAX_BODY_MB")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["items", "pairs", "prompt", "response", "messages", "text", "whiten", "kl", "mask"]),
                inner,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(ROUTES),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_json_comes_is_never_a_500(client: httpx.Client, body: Any, path: str) -> None:
    response = post_raw(client, path, json.dumps(body))
    if response.status_code != 200:
        assert_error(response, 422, response.json()["error"]["code"], item=response.json()["error"].get("item"))


class FailingEngine:
    """An engine whose every call raises the same error."""

    is_alive = True

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.models = {"safety": None, "helpfulness": None}

    async def score(self, *_: object, **__: object) -> None:
        raise self.error


async def answer_of(
    error: Exception | None, path: str = "/score", *, draining: bool = False, items: list[dict[str, Any]] | None = None
) -> httpx.Response:
    app = create_app(Settings(_env_file=None))
    app.state.service.draining = draining
    if error is not None:
        app.state.service.engine = FailingEngine(error)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, json={"pairs": [PAIR]} if path == "/compare" else {"items": items or [TEA, TEA]})


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (errors.InvalidInputError("said", 1), 422, None),
        (errors.TooLongError("said", 1), 422, None),
        (errors.NonFiniteScoreError("said", 1), 422, None),
        (errors.InferenceFailedError("said"), 500, None),
        (errors.NotReadyError("said"), 503, "1"),
        (errors.OverloadedError("said"), 503, "1"),
        (errors.ShuttingDownError("said"), 503, "5"),
        (errors.DeadlineExceededError("said"), 504, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_engine_raises_is_answered_with_its_code(
    path: str, error: errors.RequestError, status: int, retry_after: str | None
) -> None:
    response = asyncio.run(answer_of(error, path))
    assert_error(response, status, error.code, item=error.item, says="said")
    assert response.headers.get("retry-after") == retry_after


@pytest.mark.parametrize("path", ROUTES)
def test_a_fault_nobody_foresaw_is_a_500_that_tells_nothing(path: str) -> None:
    response = asyncio.run(answer_of(RuntimeError("secret detail"), path))
    assert_error(response, 500, "inference_failed")
    assert "secret" not in response.text


@pytest.mark.parametrize("path", ROUTES)
def test_requests_are_refused_while_models_load(path: str) -> None:
    response = asyncio.run(answer_of(None, path))
    assert_error(response, 503, "not_ready", says="/ready")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ROUTES)
def test_requests_are_refused_while_the_service_drains(path: str) -> None:
    response = asyncio.run(answer_of(RuntimeError("not reached"), path, draining=True))
    assert_error(response, 503, "shutting_down")


def test_a_rollout_that_brings_its_scores_is_refused_while_the_service_drains() -> None:
    response = asyncio.run(answer_of(RuntimeError("not reached"), "/ppo-reward", draining=True, items=[KNOWN, KNOWN]))
    assert_error(response, 503, "shutting_down")


def test_a_request_without_an_answer_in_time_is_504(client: httpx.Client) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    usual = service.settings
    service.settings = usual.model_copy(update={"deadline_seconds": 1e-9})
    try:
        assert_error(client.post("/score", json={"items": [TEA]}), 504, "deadline_exceeded", says="deadline")
    finally:
        service.settings = usual
    assert client.post("/score", json={"items": [LOCK]}).status_code == 200


def test_a_model_that_is_not_loaded_is_named_with_its_setting(serve: Serve) -> None:
    with serve(safety_model="") as client:
        for path, body in (
            ("/score", {"items": [TEA], "models": ["safety"]}),
            ("/compare", {"pairs": [PAIR], "model": "safety"}),
            ("/ppo-reward", {"items": [TEA, TEA]}),
        ):
            assert_error(client.post(path, json=body), 422, "invalid_input", says="REWARD_SAFETY_MODEL")
        assert list(client.post("/score", json={"items": [TEA]}).json()["results"][0]["scores"]) == ["helpfulness"]
        known = client.post("/ppo-reward", json={"items": [KNOWN, KNOWN]})
        assert known.status_code == 200


def test_safety_prompts_need_no_helpfulness_model_and_others_name_their_item(serve: Serve) -> None:
    with serve(helpfulness_model="") as client:
        safe = TEA | {"is_safety": True}
        answer = client.post("/ppo-reward", json={"items": [safe, safe]})
        assert answer.status_code == 200
        assert answer.json()["results"][0]["helpfulness_score"] is None
        response = client.post("/ppo-reward", json={"items": [KNOWN, safe, TEA]})
        assert_error(response, 422, "invalid_input", item=2, says="REWARD_HELPFULNESS_MODEL")
        assert_error(client.post("/compare", json={"pairs": [PAIR]}), 422, "invalid_input", says="helpfulness")


def overflow_at_eos(net: Any) -> None:
    """Finite weights that give `</s>`, and whatever follows it, a score that is not a number."""
    layer = net.model.layers[0]
    net.model.embed_tokens.weight[:, 0] = 0
    net.model.embed_tokens.weight[2, 0] = 10
    layer.self_attn.o_proj.weight[0] = 0
    layer.mlp.gate_proj.weight[:, 0] = 1e30
    layer.mlp.up_proj.weight[:, 0] = 1e30


def test_a_score_that_is_not_finite_fails_its_own_request_only(serve: Serve, tmp_path: Path) -> None:
    directory = make_model(tmp_path / "overflowing", edit=torch.no_grad()(overflow_at_eos))
    with serve(safety_model=str(directory), helpfulness_model="") as client:
        response = client.post("/score", json={"items": [TEA, {"text": "the end</s>"}]})
        assert_error(response, 422, "nonfinite_score", item=1, says="items[1]: the safety model")
        assert client.post("/score", json={"items": [TEA]}).status_code == 200


def test_a_misspelt_field_is_named_before_what_it_leaves_missing(client: httpx.Client) -> None:
    response = client.post("/score", json={"itens": [{"text": "a"}]})
    assert_error(response, 422, "invalid_input", says="itens is unknown")


def test_an_items_own_fault_is_told_before_the_batchs(client: httpx.Client) -> None:
    item = {"safety_score": 1, "helpfulness_score": 2, "policy_logprobs": [0.5], "reference_logprobs": [-1.0]}
    response = client.post("/ppo-reward", json={"items": [item]})
    assert_error(response, 422, "invalid_input", item=0, says="items[0].policy_logprobs[0] is 0.5")
