import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.prefix_tree import PrefixTree, TreeSize, decode_key, encode_key, num_common_tokens

TOKENS = st.lists(st.sampled_from([0, 1, 255, 256, 65536, 4_000_000_000]), min_size=1, max_size=12)
LISTS = st.lists(TOKENS, min_size=1, max_size=10)


def trie_of(lists: list[list[int]]) -> set[tuple[int, ...]]:
    """Every distinct prefix is a node."""
    return {tuple(ids[: i + 1]) for ids in lists for i in range(len(ids))}


@given(TOKENS)
def test_a_key_holds_its_token_ids(ids: list[int]) -> None:
    assert decode_key(encode_key(ids)).tolist() == ids


@given(TOKENS, TOKENS)
def test_keys_sort_as_token_lists_do(a: list[int], b: list[int]) -> None:
    assert (encode_key(a) < encode_key(b)) == (a < b)


@given(TOKENS, TOKENS)
def test_the_common_prefix_is_counted_in_tokens(a: list[int], b: list[int]) -> None:
    plain = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert num_common_tokens(encode_key(a), encode_key(b)) == plain


@given(LISTS)
def test_the_tree_has_one_row_for_each_distinct_prefix_and_paths_spell_the_sequences(lists: list[list[int]]) -> None:
    tree = PrefixTree.of([encode_key(ids) for ids in lists])
    assert tree.num_tokens == len(trie_of(lists))
    for ids, path in zip(lists, tree.paths, strict=True):
        assert tree.token_ids[path].tolist() == ids
        assert tree.depth[path].tolist() == list(range(len(ids)))
        assert (np.diff(path) > 0).all()


@given(LISTS)
def test_a_token_sees_exactly_its_own_path(lists: list[list[int]]) -> None:
    tree = PrefixTree.of([encode_key(ids) for ids in lists])
    rows = np.arange(tree.num_tokens)
    seen = (rows <= rows[:, None]) & (rows[:, None] < tree.end())  # (query, key)
    for path in tree.paths:
        for place, row in enumerate(path):
            assert np.flatnonzero(seen[row]).tolist() == path[: place + 1].tolist()


@given(LISTS)
def test_tails_cover_every_row_once(lists: list[list[int]]) -> None:
    tree = PrefixTree.of([encode_key(ids) for ids in lists])
    own = [row for path, (shared, length) in zip(tree.paths, tree.tails, strict=True) for row in path[shared:length]]
    assert sorted(own) == list(range(tree.num_tokens))


@given(LISTS)
@settings(max_examples=50)
def test_the_size_counts_what_each_key_adds(lists: list[list[int]]) -> None:
    size = TreeSize()
    for n, ids in enumerate(lists):
        expected = len(trie_of(lists[: n + 1])) - len(trie_of(lists[:n]))
        assert size.cost(encode_key(ids)) == expected
        assert size.add(encode_key(ids)) == expected
    assert size.num_tokens == len(trie_of(lists))
