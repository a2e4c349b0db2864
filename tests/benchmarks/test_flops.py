import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.flops import (
    ModelShape,
    Work,
    interpolated_work,
    linear_flops_per_row,
    shared_work,
    trunk_flops,
    whole_work,
)

SHAPE = ModelShape.from_config(
    {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
)
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8)


def test_the_shape_of_a_config_without_head_dim_divides_the_hidden_size() -> None:
    assert SHAPE.head_dim == 2
    assert SHAPE.projections == ((8, 8), (8, 4), (8, 4), (8, 8), (8, 16), (8, 16), (16, 8))


def test_flops_equal_a_count_by_hand() -> None:
    # one layer, one row: q 8x8, k and v 8x4 each, o 8x8, gate and up 8x16 each, down 16x8; two FLOPs a multiply-add
    assert linear_flops_per_row(SHAPE) == 2 * (64 + 32 + 32 + 64 + 128 + 128 + 128)
    # 3 tokens have 1 + 2 + 3 pairs; each pair costs a product of width 2 for the score and one for the value in each of 4 heads
    work = whole_work([[5, 6, 7]])
    assert work == Work(num_rows=3, num_pairs=6, num_scored=1)
    assert trunk_flops(SHAPE, work) == 2 * (3 * 1152 + 6 * 4 * 2 * 2 * 2)


def test_a_pruned_last_layer_counts_keys_and_values_for_all_rows_and_the_rest_for_scored_ones() -> None:
    work = Work(num_rows=10, num_pairs=0, num_scored=1)
    key_value = 2 * (32 + 32)
    assert trunk_flops(SHAPE, work, pruned_last_layer=True) == 10 * 1152 + 10 * key_value + (1152 - key_value)


def test_a_prefix_is_counted_once_with_the_pairs_of_its_own_rows_only() -> None:
    # the trie of [1, 2, 3] and [1, 2, 4, 5] has 5 nodes at depths 0, 1, 2, 2, 3
    assert shared_work([[1, 2, 4, 5], [1, 2, 3]]) == Work(num_rows=5, num_pairs=1 + 2 + 3 + 3 + 4, num_scored=2)


@given(SEQUENCES)
def test_shared_rows_are_the_distinct_prefixes(sequences: list[list[int]]) -> None:
    prefixes = {tuple(sequence[: end + 1]) for sequence in sequences for end in range(len(sequence))}
    work = shared_work(sequences)
    assert work.num_rows == len(prefixes)
    assert work.num_pairs == sum(map(len, prefixes))


@given(SEQUENCES)
def test_interpolated_work_is_exact_at_both_ends(sequences: list[list[int]]) -> None:
    whole, shared = whole_work(sequences), shared_work(sequences)
    assert interpolated_work(whole, shared, whole.num_rows) == whole
    assert interpolated_work(whole, shared, shared.num_rows) == shared


def test_interpolated_pairs_lie_between_as_the_rows_do() -> None:
    whole, shared = Work(100, 1000, 4), Work(50, 600, 4)
    assert interpolated_work(whole, shared, 75) == Work(75, 800, 4)


@pytest.mark.parametrize("pruned", [True, False])
def test_no_rows_cost_nothing(pruned: bool) -> None:
    assert trunk_flops(SHAPE, Work(0, 0, 0), pruned_last_layer=pruned) == 0
