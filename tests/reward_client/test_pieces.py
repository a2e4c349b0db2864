"""Statistics, chunks, results, and what the package imports."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_client import InvalidItemError, Limits, WhitenStats, merge_stats
from reward_client.encoding import chunk
from reward_client.errors import error_of
from reward_client.stats import stats_of

VALUES = st.lists(st.floats(-1e3, 1e3), max_size=30)


def near(stats: WhitenStats) -> list[object]:
    return [stats.count, pytest.approx(stats.mean, abs=1e-8), pytest.approx(stats.m2, rel=1e-8, abs=1e-6)]


@given(st.lists(VALUES.filter(bool), min_size=1, max_size=6))
def test_merged_statistics_are_those_of_all_the_values(parts: list[list[float]]) -> None:
    merged = merge_stats(stats_of(part) for part in parts)
    together = np.concatenate([np.array(part) for part in parts])
    expected = WhitenStats(len(together), float(together.mean()), float(((together - together.mean()) ** 2).sum()))
    assert [merged.count, merged.mean, merged.m2] == near(expected)


@given(VALUES.filter(bool), VALUES.filter(bool), VALUES.filter(bool))
def test_merging_does_not_depend_on_the_order(a: list[float], b: list[float], c: list[float]) -> None:
    parts = [stats_of(part) for part in (a, b, c)]
    forth, back = merge_stats(parts), merge_stats(parts[::-1])
    assert [forth.count, forth.mean, forth.m2] == near(back)


def test_groups_are_merged_by_their_names() -> None:
    merged = merge_stats(
        [{"a": WhitenStats(1, 1.0, 0.0)}, {"a": WhitenStats(1, 3.0, 0.0), "b": WhitenStats(2, 0.0, 8.0)}]
    )
    assert merged == {"a": WhitenStats(2, 2.0, 2.0), "b": WhitenStats(2, 0.0, 8.0)}


def test_maps_by_model_of_groups_are_merged_by_both() -> None:
    one, three = WhitenStats(1, 1.0, 0.0), WhitenStats(1, 3.0, 0.0)
    merged = merge_stats(
        [{"safety": {"a": one}, "helpfulness": {"a": one}}, {"safety": {"a": three}, "helpfulness": {}}]
    )
    assert merged == {"safety": {"a": WhitenStats(2, 2.0, 2.0)}, "helpfulness": {"a": one}}


def test_statistics_of_different_forms_do_not_merge() -> None:
    with pytest.raises(TypeError, match="some of the statistics are of groups"):
        merge_stats([WhitenStats(1, 1.0, 0.0), {"a": WhitenStats(1, 1.0, 0.0)}])  # type: ignore[list-item] # on purpose


def test_nothing_merges_to_nothing() -> None:
    assert merge_stats([]) == WhitenStats(0, 0.0, 0.0)
    assert merge_stats([WhitenStats(0, 0.0, 0.0), WhitenStats(2, 1.0, 2.0)]) == WhitenStats(2, 1.0, 2.0)


@given(st.lists(st.text(max_size=40), max_size=20), st.integers(1, 7), st.integers(1, 200))
def test_chunks_keep_order_and_limits(texts: list[str], max_items: int, max_bytes: int) -> None:
    chunks = chunk([{"text": text} for text in texts], Limits(max_items, max_bytes))
    whole = chunk([{"text": text} for text in texts], Limits(10**6, 10**9))
    assert [one for part in chunks for one in part.encoded] == whole[0].encoded
    first = 0
    for part in chunks:
        assert part.first_item == first
        assert part.num_items <= max_items
        assert part.num_items == 1 or sum(map(len, part.encoded)) <= max_bytes
        first += part.num_items


@pytest.mark.parametrize(
    "item", [{"safety_score": float("nan")}, {"text": object()}, {"text": "a", "policy_logprobs": ["a"]}]
)
def test_an_item_that_does_not_fit_into_json_is_named(item: dict[str, object]) -> None:
    with pytest.raises(InvalidItemError, match=r"items\[1\] cannot be sent"):
        chunk([{"text": "a"}, item], Limits())


@pytest.mark.parametrize("content", [b"<html>Bad gateway</html>", b'"words"', b'{"detail": "words"}', b"[]", b"\xff"])
def test_any_error_body_becomes_an_exception(content: bytes) -> None:
    assert error_of(502, content, 0).status == 502


def test_the_package_imports_the_standard_library_and_httpx_alone() -> None:
    """Their own dependencies come with httpx; torch, numpy and the trainers do not."""
    code = (
        "import sys, reward_client\n"
        "from reward_client.adapters import areal, openrlhf, trl, verl\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()  # noqa: S603
    assert not {"torch", "numpy", "app", "pydantic", "fastapi", "trl", "transformers"} & set(loaded)
    assert {"httpx", "reward_client"} <= set(loaded)
