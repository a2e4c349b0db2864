"""Bodies of every route, as nobody would send them: never a 500, never a hang, always the dialect's own error.

`make fuzz` asks for many more examples than a plain run of the suite.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.rewards.kl import Estimator
from tests.conftest import Serve

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5")) * 10
ROUTES = (
    *(
        "/score",
        "/compare",
        "/ppo-reward",
        "/get_reward",
        "/classify",
        "/pooling",
        "/v1/embeddings",
        "/predict",
        "/slime",
    ),
)
ANSWERS = {200, 400, 413, 422}
SECONDS = 30
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,  # the request has a time-out
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)

SPECIAL = (
    "<s>",
    "</s>",
    "<pad>",
    "<|im_start|>assistant\n",
    "<|im_end|>",
    "{{ 7 * 7 }}",
    "{% raise %}",
    "\x00",
    "\ufeff",
)
ODD = (
    "\ud800",
    "\udfff",
    "\U0010ffff",
    "e\u0301" * 20,
    "\u202e",
    "\u200d" * 9,
    "👩‍👩‍👧‍👦",
    "ﷺ",
    "\r\n",
    "\x1b[2J",
    "İ",
    "ß",
)
texts = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(exclude_categories=()), max_size=30),  # lone surrogates too
    st.lists(st.sampled_from((*SPECIAL, *ODD, "tea")), max_size=12).map("".join),
)
numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([0, -0.0, 1e308, -1e308, 5e-324, 2**31, 2**63, -1, 319, 320]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", ""]) | texts, "content": texts | anything}
    ),
    max_size=4,
)
token_ids = st.lists(st.integers(0, 319) | numbers, max_size=20)
logprobs = st.lists(st.floats(-20, 0) | numbers | st.none(), max_size=5)


def mostly(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What belongs there, or now and then anything."""
    return st.one_of(right, right, right, anything)


def some_of(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the fields, and now and then one more."""
    named = st.fixed_dictionaries({}, optional={name: mostly(strategy) for name, strategy in fields.items()})
    return named | st.tuples(named, st.dictionaries(texts, anything, max_size=1)).map(lambda pair: pair[0] | pair[1])


forms = {"prompt": texts, "response": texts, "messages": messages, "text": texts, "input_ids": token_ids}
truncation = st.sampled_from(["error", "prompt", "left", "right"])
items = some_of(
    **forms,
    safety_score=numbers,
    helpfulness_score=numbers,
    is_safety=st.booleans(),
    group_id=texts | numbers,
    ended=st.booleans(),
    policy_logprobs=logprobs,
    reference_logprobs=logprobs,
    mask=st.lists(st.sampled_from([0, 1, True]), max_size=5),
)
pairs = some_of(
    prompt=texts, chosen=texts, rejected=texts, chosen_messages=messages, rejected_messages=messages, margin=numbers
)
stats = some_of(count=numbers, mean=numbers, m2=numbers)
whiten = some_of(
    mode=st.sampled_from(["batch", "group", "none"]),
    shift_mean=st.booleans(),
    singletons=st.sampled_from(["error", "zero"]),
    stats=stats | st.dictionaries(texts, stats) | st.fixed_dictionaries({"safety": stats, "helpfulness": stats}),
)
weights = some_of(safety=numbers, helpfulness=numbers)
modes = ["llama2", "weighted", "lagrangian", "worst"]
combine = some_of(
    mode=st.sampled_from(modes),
    threshold_on=st.sampled_from(["probability", "score"]),
    weights=weights,
    whiten_each=st.booleans(),
) | st.sampled_from(
    [
        {"mode": "weighted", "weights": {"safety": 0.3, "helpfulness": 0.7}, "whiten_each": True},
        {"mode": "lagrangian", "lambda": 1.2},
        {"mode": "worst"},
    ]
)
vllm = {
    "input": texts | token_ids | st.lists(texts, max_size=3) | st.lists(token_ids, max_size=3),
    "messages": messages,
}
options = {"model": texts | st.sampled_from(["llama2", "safety"]), "use_activation": st.booleans()}
side = {"truncate_prompt_tokens": st.just(-1) | numbers, "truncation_side": st.sampled_from(["left", "right"])}
BODIES = {
    "/score": some_of(items=st.lists(some_of(**forms), max_size=3), truncation=truncation, token_scores=st.booleans()),
    "/compare": some_of(pairs=st.lists(pairs, max_size=3), truncation=truncation),
    "/ppo-reward": some_of(
        items=st.lists(items, max_size=3),
        beta=numbers,
        safety_threshold=numbers,
        combine=combine,
        whiten=whiten,
        kl=some_of(estimator=st.sampled_from([*get_args(Estimator)]), clip=numbers),
        token_rewards=st.booleans(),
        score_clip=st.lists(numbers, min_size=2, max_size=2),
        missing_eos_penalty=numbers,
    ),
    "/get_reward": some_of(query=st.lists(texts, max_size=3), labels=st.lists(anything, max_size=3), prompts=anything),
    "/v1/classify": some_of(**vllm, **options, **side),
    "/v1/score": some_of(queries=texts | st.lists(texts, max_size=3), documents=texts | st.lists(texts, max_size=3)),
    **dict.fromkeys(
        ("/v1/rerank", "/v2/rerank"), some_of(query=texts, documents=st.lists(texts, max_size=3), top_n=numbers)
    ),
    "/rerank": some_of(query=texts, documents=st.lists(texts, max_size=3), texts=st.lists(texts, max_size=3)),
    "/tokenize": some_of(
        prompt=texts | st.lists(texts, max_size=3), messages=messages, return_token_strs=st.booleans()
    ),
    "/": some_of(inputs=texts | st.lists(texts, max_size=3), query=texts, texts=st.lists(texts, max_size=3)),
    "/classify": some_of(**vllm, **options, **side, text=texts | st.lists(texts, max_size=3), input_ids=token_ids),
    "/pooling": some_of(**vllm, **options, **side),
    "/v1/embeddings": some_of(**vllm, **options, **side),
    "/predict": some_of(
        inputs=texts | st.lists(texts | st.lists(texts, max_size=3), max_size=3), truncate=st.booleans()
    ),
    "/slime": some_of(prompt=texts | messages, response=texts, label=anything),
}


def encode(body: object) -> bytes:
    """As Python's json does: NaN and lone surrogates too."""
    return json.dumps(body).encode()


@pytest.fixture(scope="module")
def target(serve: Serve) -> Iterator[httpx.Client]:
    with serve() as client:
        client.timeout = httpx.Timeout(SECONDS)
        yield client


def check(response: httpx.Response) -> None:
    assert response.status_code in ANSWERS, (response.status_code, response.text)
    answer = response.json()
    if response.status_code != 200:
        assert isinstance(answer, dict)
        assert "Traceback" not in response.text


@pytest.mark.parametrize("route", ROUTES)
@fuzzed
@given(data=st.data())
def test_a_body_of_the_right_fields_is_answered_or_refused(
    target: httpx.Client, route: str, data: st.DataObject
) -> None:
    body = encode(data.draw(BODIES[route]))
    check(target.post(route, content=body, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("route", ROUTES)
@fuzzed
@given(
    body=st.binary(max_size=80) | anything.map(encode) | st.text(max_size=80).map(lambda text: text.encode("utf-16"))
)
def test_a_body_of_any_bytes_is_answered_or_refused(target: httpx.Client, route: str, body: bytes) -> None:
    check(target.post(route, content=body, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"items": ' + b"[" * 5000,
        b"1" * 100_000,
        b'"' + b"\\u0000" * 50_000 + b'"',
        b"\xff\xfe",
    ],
    ids=["brackets", "braces", "items", "digits", "nuls", "a mark"],
)
def test_a_deep_or_long_body_is_refused(target: httpx.Client, route: str, body: bytes) -> None:
    response = target.post(route, content=body, headers={"content-type": "application/json"})
    check(response)
    assert response.status_code != 200


@fuzzed
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]),
    path=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#\\"), max_size=20),
    headers=st.dictionaries(
        st.sampled_from(
            ["accept", "authorization", "content-type", "x-request-id", "expect", "cookie", "accept-encoding"]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip),
        max_size=3,
    ),
)
def test_any_path_and_headers_are_answered(
    target: httpx.Client, method: str, path: str, headers: dict[str, str]
) -> None:
    url = target.base_url.copy_with(raw_path=f"/{path}".encode())  # httpx reads "//..." as the name of a host
    response = target.request(method, url, headers=headers)
    assert response.status_code < 500, (response.status_code, response.text)


def test_after_all_that_the_service_is_well(target: httpx.Client) -> None:
    assert target.get("/health").json() == {"status": "ok"}
    assert target.app.state.service.num_in_flight == 0  # type: ignore[attr-defined]
