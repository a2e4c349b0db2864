"""A GPU's batch and prefix cache are sized by what the largest batch was seen to take. The GPU here is a rule for its bytes."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.checkpoints import memory
from app.engine import paused_caches
from app.engine.attention.pool import KeyValuePool
from app.engine.batch import Batch
from app.engine.cache_test import add_cache
from app.engine.paused_caches import PausedCaches
from app.engine.prefix_cache import MIN_PREFIX_TOKENS
from app.engine.reward_model import RewardModel
from app.engine.sequence import TokenSequence
from app.engine.warm_up import largest_batch, warm_up
from app.errors import ModelRefusedError
from tests.engine.loaded import load

CUDA = torch.device("cuda:0")


@pytest.fixture
def model(tmp_path: Path) -> RewardModel:
    return load(tmp_path)


def device(bytes_per_token: int, size: int) -> Callable[[RewardModel, int], int]:
    """A device that takes so much for each token, and has so much."""

    def measure(model: RewardModel, num_tokens: int) -> int:
        assert num_tokens <= max(model.max_batch_tokens, model.tokenization.max_length)
        if bytes_per_token * num_tokens > size:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return bytes_per_token * num_tokens

    return measure


def test_the_default_batch_takes_at_most_half_of_what_the_weights_leave(model: RewardModel) -> None:
    for free, tokens in ((10**10, 32_768), (65_536_000, 32_768), (65_535_000, 16_384), (5_000_000, 2048)):
        assert warm_up([model], None, free, device(1000, free)) == 1000 * tokens
        assert model.max_batch_tokens == tokens


def test_a_batch_that_does_not_fit_is_halved_although_nothing_says_what_is_free(model: RewardModel) -> None:
    assert warm_up([model], None, None, device(1000, 9_000_000)) == 8_192_000
    assert model.max_batch_tokens == 8192


def test_the_batch_that_was_asked_for_is_taken_or_refused(model: RewardModel) -> None:
    assert warm_up([model], 5000, 6_000_000, device(1000, 6_000_000)) == 5_000_000
    assert model.max_batch_tokens == 5000
    with pytest.raises(
        ModelRefusedError, match=r"cpu has no room for a batch of 7000 tokens beside the weights; set REW"
    ):
        warm_up([model], 7000, 6_000_000, device(1000, 6_000_000))
    with pytest.raises(ModelRefusedError, match="no room for a batch of 1024 tokens"):
        warm_up([model], None, 6_000_000, device(10_000, 6_000_000))


def test_the_largest_of_two_models_decides(tmp_path: Path) -> None:
    models = [load(tmp_path / "small"), load(tmp_path / "large", num_hidden_layers=6)]
    sizes = {id(models[0]): 10, id(models[1]): 1000}

    def measure(model: RewardModel, num_tokens: int) -> int:
        return sizes[id(model)] * num_tokens

    assert warm_up(models, None, 40_000_000, measure) == 16_384_000
    assert [model.max_batch_tokens for model in models] == [16_384, 16_384]


def test_any_other_fault_in_the_largest_batch_stops_the_start(model: RewardModel) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(ModelRefusedError, match=r"fails on a batch of 32768 tokens \(.*illegal memory access"):
        warm_up([model], None, None, fail)


def test_a_text_that_is_longer_than_a_batch_is_tried_too(model: RewardModel, caplog: pytest.LogCaptureFixture) -> None:
    assert model.tokenization.max_length == 512
    assert warm_up([model], 256, 10**9, device(1000, 600_000)) == 512_000
    with caplog.at_level(logging.WARNING):
        assert warm_up([model], 256, 10**9, device(1000, 300_000)) == 256_000
    assert "a text of 512 tokens, the model's longest, does not fit on cpu; set REWARD_MAX_LENGTH" in caplog.text


@pytest.mark.parametrize("num_tokens", [100, 512, 1300])
def test_the_largest_batch_has_so_many_tokens_and_can_be_computed(model: RewardModel, num_tokens: int) -> None:
    batch = largest_batch(model, num_tokens)
    assert batch.tree.num_tokens > 0.98 * num_tokens
    assert sum(each.num_tokens for each in batch.sequences) == num_tokens
    assert max(each.num_tokens for each in batch.sequences) <= 512
    assert len(model.compute(batch).states) == num_tokens


def test_a_gpus_cache_takes_what_weights_and_batch_leave_less_a_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 60_000_000_000)
    assert memory.prefix_cache_bytes(CUDA, None, 10_000_000_000) == 45_000_000_000
    assert memory.prefix_cache_bytes(CUDA, 44_000, 10_000_000_000) == 44_000_000_000
    with pytest.raises(ModelRefusedError, match=r"prefix cache needs 46.00 GB on cuda:0 and 45.00 GB is free"):
        memory.prefix_cache_bytes(CUDA, 46_000, 10_000_000_000)
    assert memory.prefix_cache_bytes(CUDA, None, 70_000_000_000) == 0


@pytest.mark.parametrize("is_required", [False, True])
def test_a_cache_that_cannot_be_allocated_is_one_line_with_the_remedy(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_required: bool
) -> None:
    """By torch's own allocator. What was asked for stops the start; the default is done without."""
    line = (
        "8 MB for the prefix cache of the helpfulness model cannot be allocated on cpu; "
        "set REWARD_PREFIX_CACHE_MB lower, or to 0 for none"
    )
    monkeypatch.setattr(KeyValuePool, "layer", lambda _self, _index, keys, _values: keys.new_empty(1 << 50, 1 << 10))
    if is_required:
        with pytest.raises(ModelRefusedError) as refused:
            add_cache(model, 8_000_000, is_required=True, min_prefix_tokens=MIN_PREFIX_TOKENS)
        assert str(refused.value) == line
    else:
        with caplog.at_level(logging.WARNING):
            add_cache(model, 8_000_000, min_prefix_tokens=MIN_PREFIX_TOKENS)
        assert caplog.messages == [line]
        assert model.cache_reason == line
    assert model.cache is None
    assert len(model.score(Batch.of([TokenSequence.of([5, 6, 7])]))) == 1


def test_a_reload_gets_the_memory_of_the_caches_and_gives_it_back_where_it_is_refused(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paused_caches, "is_paused_on", lambda device_type: device_type == "cpu")
    add_cache(model, 8_000_000, min_prefix_tokens=MIN_PREFIX_TOKENS)
    assert model.cache is not None
    size, batch = model.cache.max_bytes, Batch.of([TokenSequence.of(list(range(5, 200)))])
    expected = model.score(batch)[0].score
    running = model.prepare(batch)  # what a batch uses is not taken from it
    computed = model.launch(running)
    paused = PausedCaches([model])
    assert model.cache is None
    assert not paused._freed[0].is_set()
    assert model.finish(running, computed)[0].score == expected
    del running, computed
    paused.wait_until_freed()
    assert paused._freed[0].is_set()
    assert model.score(batch)[0].score == expected
    paused.resume()
    assert model.cache.max_bytes == size
    assert model.num_cached_tokens(batch.sequences[0], token_scores=False) == 0
    assert model.score(batch)[0].score == expected
    assert model.num_cached_tokens(batch.sequences[0], token_scores=False) == 194
