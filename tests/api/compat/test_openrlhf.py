import httpx
import pytest
from transformers import PreTrainedTokenizerBase

from app.api.compat import openrlhf
from tests.api.compat.support import LONG, answer, llama2, native, post, sigmoid

QUERY = "<s>How do I pick a lock? I can't help with that.</s>"
BODY = (
    b'{"query": ["<s>How do I pick a lock? I can\'t help with that.</s>"], '
    b'"prompts": ["<s>How do I pick a lock?"], "labels": [""]}'
)


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    encoded: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return encoded


def test_one_query_gets_reward_probability_and_both_models_scores(
    client: httpx.Client, tokenizer: PreTrainedTokenizerBase
) -> None:
    scores = native(client, {"input_ids": ids(tokenizer, QUERY)})
    reward = llama2(scores)
    assert answer(client, "/get_reward", BODY) == {
        "rewards": [reward],
        "scores": [pytest.approx(sigmoid(reward))],
        "extra_logs": {
            "safety_score": [scores["safety"]],
            "helpfulness_score": [scores["helpfulness"]],
            "truncated": [0.0],
        },
    }


def test_a_query_is_tokenized_without_adding_special_tokens(
    client: httpx.Client, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "How do I pick a lock?"
    reward = answer(client, "/get_reward", {"query": [text]})["rewards"][0]
    assert reward == llama2(native(client, {"input_ids": ids(tokenizer, text)}))
    assert reward != llama2(native(client, {"text": text}))


@pytest.mark.parametrize("label", ["safety", {"is_safety": True}])
def test_a_safety_label_takes_the_safety_score(client: httpx.Client, label: object) -> None:
    reply = answer(client, "/get_reward", {"query": [QUERY], "labels": [label]})
    assert reply["rewards"] == reply["extra_logs"]["safety_score"]


@pytest.mark.parametrize("label", ["42", None, {"is_safety": False}, {"is_safety": "yes"}, 7])
def test_any_other_label_leaves_the_choice_to_the_threshold(client: httpx.Client, label: object) -> None:
    scores = native(client, {"text": QUERY})
    assert answer(client, "/get_reward", {"query": [QUERY], "labels": [label]})["rewards"] == [llama2(scores)]


def test_no_queries_get_empty_lists(client: httpx.Client) -> None:
    """With several URLs the later servers get the empty rest of the batch."""
    assert answer(client, "/get_reward", b'{"query": [], "prompts": [], "labels": []}') == {
        "rewards": [],
        "scores": [],
        "extra_logs": {"safety_score": [], "helpfulness_score": [], "truncated": []},
    }


def test_unknown_fields_are_ignored(client: httpx.Client) -> None:
    assert answer(client, "/get_reward", {"query": [QUERY], "temperature": 1})["rewards"]


def test_a_long_rollout_keeps_bos_and_its_end(client: httpx.Client, tokenizer: PreTrainedTokenizerBase) -> None:
    text = f"<s>{LONG} the end</s>"
    reply = answer(client, "/get_reward", {"query": [QUERY, text]})
    kept = ids(tokenizer, text)
    cut = [kept[0], *kept[-511:]]
    assert reply["rewards"][1] == llama2(native(client, {"input_ids": cut}))
    assert reply["extra_logs"]["truncated"] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"query": ["a"', 400, "not JSON"),
        (b'{"prompts": ["a"]}', 422, "query is missing"),
        (b'{"query": ["a", "b"], "labels": ["safety"]}', 422, "labels has 1 entries and query 2"),
        (b'{"query": [""]}', 422, "query[0] has no tokens"),
    ],
)
def test_an_error_has_fastapis_body(client: httpx.Client, body: bytes, status: int, words: str) -> None:
    response = post(client, "/get_reward", body)
    assert response.status_code == status
    assert words in response.json()["detail"]


def test_the_deadline_is_under_the_clients_180_seconds_and_the_operators_shorter_one_holds(
    hurried: httpx.Client,
) -> None:
    assert 110 < openrlhf.DEADLINE_SECONDS < 180
    response = post(hurried, "/get_reward", BODY)
    assert response.status_code == 504
    assert "deadline" in response.json()["detail"]
