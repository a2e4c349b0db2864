import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.api.ppo_schemas import PPORequest
from app.errors import InvalidInputError
from app.ui import batch

text = st.text(min_size=1, max_size=20).filter(str.strip)
logprobs = st.lists(st.floats(-20, 0), min_size=1, max_size=6)
items = st.lists(
    st.fixed_dictionaries(
        {"prompt": text, "response": st.text(max_size=20)},
        optional={
            "is_safety": st.just(True),
            "group_id": text,
            "policy_logprobs": logprobs,
            "reference_logprobs": logprobs,
            "mask": st.lists(st.sampled_from([0, 1]), min_size=1, max_size=6),
            "ended": st.booleans(),
        },
    ),
    min_size=1,
    max_size=4,
)


@given(items)
@example([{"prompt": "False", "response": ""}])
def test_items_survive_the_way_through_the_table(given_items: list[dict[str, Any]]) -> None:
    assert batch.items_of_rows(batch.rows_of(given_items)) == given_items


@pytest.mark.parametrize(
    "item",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"text": "Hi"},
        {"input_ids": [1, 2, 3]},
        {"safety_score": -2.0, "helpfulness_score": 0.5, "is_safety": True},
        {"prompt": "Hi", "response": "", "mask": [1, None]},
    ],
)
def test_what_has_no_column_of_its_own_is_kept(item: dict[str, Any]) -> None:
    assert batch.items_of_rows(batch.rows_of([item])) == [item]


def test_blank_rows_are_left_out_and_a_blank_table_says_what_to_do() -> None:
    blank: list[Any] = ["", "", False, "", "", "", ""]
    row = batch.rows_of([{"prompt": "Hi", "response": "Hello"}])[0]
    assert len(batch.items_of_rows([blank, row, [None] * 7])) == 1
    with pytest.raises(InvalidInputError, match="take an example"):
        batch.items_of_rows([blank])


def test_a_column_too_many_is_refused_in_words() -> None:
    row = [*batch.rows_of([{"prompt": "Hi", "response": "Hello"}])[0], "more"]
    with pytest.raises(InvalidInputError, match="the table needs its 7 columns, prompt, response"):
        batch.items_of_rows([row])


@pytest.mark.parametrize(
    ("cell", "value", "says"),
    [
        (4, "-0.1; -0.2", r"row 2, policy_logprobs: '\[-0.1; -0.2\]' is not readable; give numbers with commas"),
        (5, "minus one", "row 2, reference_logprobs"),
        (6, "mask 1 0", "row 2, other fields: 'mask 1 0' is not readable; give a JSON object"),
        (6, "[1, 0]", "row 2, other fields"),
        (6, "[" * 10_000, "row 2, other fields"),
    ],
)
def test_a_cell_that_is_not_readable_is_named(cell: int, value: str, says: str) -> None:
    rows = batch.rows_of([{"prompt": "Hi", "response": "Hello"}] * 2)
    rows[1][cell] = value
    with pytest.raises(InvalidInputError, match=says):
        batch.items_of_rows(rows)


@pytest.mark.parametrize(
    ("given_text", "says"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "line 2 is not JSON"),
        ("[" * 10_000, "line 1 is not JSON"),
        ('\n\n["a"]', r"line 3 is \[\"a\"\]; give one JSON object a line"),
        (" \n", "there is no line"),
    ],
)
def test_a_line_that_is_no_item_is_named(given_text: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        batch.items_of_jsonl(given_text)


def test_a_line_separator_in_a_string_ends_no_line() -> None:
    item = {"prompt": "a\u2028b\u0085c", "response": "d"}
    assert batch.items_of_jsonl(json.dumps(item, ensure_ascii=False)) == [item]


@pytest.mark.parametrize("name", batch.EXAMPLES)
def test_the_examples_are_requests_that_the_api_takes(name: str) -> None:
    PPORequest.model_validate_json(json.dumps({"items": batch.example(name)}))


def test_items_that_were_scored_need_no_model_again() -> None:
    results: list[dict[str, Any]] = [
        {"safety_score": -1.0, "helpfulness_score": None},
        {"safety_score": 0.5, "helpfulness_score": 2.0},
    ]
    known = batch.scored([{"prompt": "a", "response": "b", "is_safety": True}, {"text": "c", "group_id": "g"}], results)
    assert known == [
        {"is_safety": True, "safety_score": -1.0},
        {"group_id": "g", "safety_score": 0.5, "helpfulness_score": 2.0},
    ]
