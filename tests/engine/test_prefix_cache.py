"""The pages of the prefix cache: what is found is what was published, whatever comes; what is used outlasts a scan."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.prefix_cache import MIN_PREFIX_TOKENS, PAGE_TOKENS, PrefixCache, Reservation, least_prefix_tokens
from app.engine.prefix_tree import PrefixTree, encode_key
from app.engine.sequence import TokenSequence
from tests.engine.loaded import forests, token_ids


class Store:
    """A cache over slots that hold, in place of keys and values, the prefix that the token was computed behind."""

    def __init__(self, num_pages: int, min_prefix_tokens: int = MIN_PREFIX_TOKENS) -> None:
        self.cache = PrefixCache(num_pages, min_prefix_tokens)
        self.slots: list[bytes] = [b""] * (num_pages * PAGE_TOKENS)

    def score(self, keys: list[bytes], *, fails: bool = False) -> Reservation:
        """Checks what is cached, fills the reserved slots, and publishes them unless the batch fails."""
        tree = PrefixTree.of(keys)
        prefixes = [b""] * tree.num_tokens
        for key, path in zip(keys, tree.paths, strict=True):
            for i, row in enumerate(path):
                prefixes[row] = key[: 4 * i + 4]
        reservation = self.cache.reserve(keys, tree)
        for row in np.flatnonzero(reservation.slots >= 0):
            assert self.slots[reservation.slots[row]] == prefixes[row]
        for key, path, num_cached in zip(keys, tree.paths, reservation.num_cached_tokens, strict=True):
            assert (reservation.slots[path[:num_cached]] >= 0).all(), len(key)
        for row, slot in zip(reservation.filled_rows, reservation.filled_slots, strict=True):
            self.slots[slot] = prefixes[row]
        if fails:
            self.cache.release(reservation)
        else:
            self.cache.publish(keys, tree, reservation)
        self.cache.check()
        return reservation


def key_of(seed: int, num_tokens: int) -> bytes:
    return encode_key(token_ids(np.random.default_rng(seed), num_tokens))


@settings(deadline=None, max_examples=60)
@given(num_pages=st.integers(1, 24), batches=st.lists(st.tuples(forests(max_sequences=5), st.booleans()), max_size=8))
def test_a_cached_prefix_is_the_one_that_was_computed_whatever_came_between(
    num_pages: int, batches: list[tuple[list[TokenSequence], bool]]
) -> None:
    store = Store(num_pages)
    for sequences, fails in batches:
        store.score([sequence.key for sequence in sequences], fails=fails)
        store.score([sequence.key for sequence in sequences[::2]])


def test_a_sequence_that_was_scored_is_found_whole_and_one_that_goes_on_from_it_finds_all_of_it() -> None:
    store, key = Store(16), key_of(0, 150)
    assert store.score([key]).num_cached_tokens == [0]
    assert store.cache.num_cached_tokens(key) == 150
    assert store.cache.num_cached_tokens(key + key_of(1, 40)) == 150
    assert store.cache.num_cached_tokens(key[: 4 * 130] + key_of(2, 40)) == 130
    store.score([key + key_of(1, 40)])
    assert store.cache.statistics.num_cached_tokens == 190  # the page that was not full has given way to a fuller one


@pytest.mark.parametrize("least", [MIN_PREFIX_TOKENS, PAGE_TOKENS, 100, 136])
def test_sequences_and_prefixes_of_few_tokens_are_left_alone(least: int) -> None:
    store, few = Store(16, least), least - 1
    store.score([key_of(0, few)])
    assert store.cache.is_empty
    key = key_of(1, 200)
    store.score([key])
    assert store.cache.num_cached_tokens(key[: 4 * few] + key_of(2, 200)) == 0
    assert store.cache.num_cached_tokens(key[: 4 * least] + key_of(2, 200)) == least


def test_the_least_prefix_is_longer_where_a_token_costs_little() -> None:
    assert least_prefix_tokens(1e12) == least_prefix_tokens(1e6) == MIN_PREFIX_TOKENS
    assert least_prefix_tokens(73_728) == 136  # one layer, 64 wide


def test_a_batch_that_failed_leaves_nothing() -> None:
    store, key = Store(16), key_of(0, 150)
    store.score([key], fails=True)
    assert store.cache.is_empty
    assert store.cache.num_cached_tokens(key) == 0


def test_thousands_of_responses_that_come_once_do_not_push_out_a_prompt_that_is_used() -> None:
    store, prompt = Store(64), key_of(0, 640)
    store.score([prompt + key_of(1, 60)])
    assert store.score([prompt + key_of(2, 60)]).num_cached_tokens == [640]
    for seed in range(1000):
        store.score([key_of(10 + seed, 200)])
    assert store.cache.num_cached_tokens(prompt) == 640
    assert store.cache.statistics.num_evicted_pages > 900


def test_prompts_that_are_no_longer_used_make_room_for_new_ones() -> None:
    store = Store(40)
    for seed in range(30):
        prompt = key_of(1000 * seed, 640)
        for response in range(3):
            store.score([prompt + key_of(1000 * seed + response + 1, 60)])
        assert store.cache.num_cached_tokens(prompt) == 640


@pytest.mark.parametrize("num_pages", [0, 1, 3])
def test_a_sequence_larger_than_the_cache_is_kept_as_far_as_it_goes(num_pages: int) -> None:
    store, key = Store(num_pages), key_of(0, 1000)
    store.score([key])
    assert store.cache.num_cached_tokens(key) == num_pages * PAGE_TOKENS
