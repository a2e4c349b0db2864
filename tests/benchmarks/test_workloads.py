import pytest

from benchmarks.flops import shared_work, whole_work
from benchmarks.workloads import ASSISTANT_START, WORKLOADS, Workload, build_workload, tokenizer_words

WORDS = [f"{first}{second}" for first in "bdfgklmnprstvz" for second in ("alo", "eri", "onu")]


def as_sequences(workload: Workload) -> list[list[int]]:
    """Words stand for tokens, which they are but for the chat markup."""
    ids: dict[str, int] = {}
    return [[ids.setdefault(word, len(ids)) for word in text.split()] for text in workload.texts]


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_gives_the_same_texts_every_time(name: str) -> None:
    assert build_workload(name, WORDS, 3) == build_workload(name, WORDS, 3)


@pytest.mark.parametrize("name", WORKLOADS)
def test_another_seed_gives_other_texts_of_the_same_total_length(name: str) -> None:
    one, other = build_workload(name, WORDS, 0), build_workload(name, WORDS, 1)
    assert not set(one.texts) & set(other.texts)
    totals = [whole_work(as_sequences(workload)).num_rows for workload in (one, other)]
    assert totals[0] == pytest.approx(totals[1], rel=0.001)


@pytest.mark.parametrize("name", WORKLOADS)
def test_no_text_of_a_workload_occurs_twice(name: str) -> None:
    texts = build_workload(name, WORDS, 0).texts
    assert len(set(texts)) == len(texts)


def test_distinct_has_96_texts_of_20_to_470_tokens() -> None:
    workload = build_workload("distinct", WORDS, 0)
    num_words = sorted(text.count(" ") for text in workload.texts)
    assert len(workload.texts) == workload.concurrency == 96
    assert num_words[0] < 20
    assert 450 < num_words[-1] <= 470


def test_groups_are_6_prompts_with_16_responses_each() -> None:
    prompts = [text.split(ASSISTANT_START)[0] for text in build_workload("groups", WORDS, 0).texts]
    assert len(set(prompts)) == 6
    assert all(prompts.count(prompt) == 16 for prompt in set(prompts))


def test_pairs_are_48_prompts_with_two_responses_side_by_side() -> None:
    prompts = [text.split(ASSISTANT_START)[0] for text in build_workload("pairs", WORDS, 0).texts]
    assert prompts[::2] == prompts[1::2]
    assert len(set(prompts)) == 48


def test_sharing_saves_most_in_groups_some_in_pairs_and_almost_nothing_in_distinct() -> None:
    saved = {}
    for name in ("distinct", "groups", "pairs"):
        sequences = as_sequences(build_workload(name, WORDS, 0))
        saved[name] = 1 - shared_work(sequences).num_rows / whole_work(sequences).num_rows
    assert saved["distinct"] < 0.02
    assert 0.25 < saved["pairs"] < 0.45
    assert 0.55 < saved["groups"] < 0.75


def test_trickle_never_has_two_responses_of_one_prompt_in_flight() -> None:
    workload = build_workload("trickle", WORDS, 0)
    prompts = [text.split(ASSISTANT_START)[0] for text in workload.texts]
    assert all(prompts.count(prompt) == 12 for prompt in set(prompts))
    for start in range(len(prompts)):
        in_flight = prompts[start : start + 2 * workload.concurrency]
        assert len(set(in_flight)) == len(in_flight)


def test_each_text_of_turns_continues_the_one_of_the_turn_before() -> None:
    texts = build_workload("turns", WORDS, 0).texts
    assert len(texts) == 64
    assert all(texts[i].startswith(texts[i - 8]) for i in range(8, 64))


def test_words_are_the_plain_lower_case_tokens_in_the_order_of_their_ids() -> None:
    vocabulary = {"\u0120the": 9, "\u0120of": 4, "the": 1, "\u0120The": 2, "\u0120a": 3, "\u0120x1": 5, "<|im_end|>": 6}
    assert tokenizer_words(vocabulary) == ["of", "the"]
