"""A score does not depend on what the prefix cache holds: to the bit on the CPU in float32, whatever came before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.attention import cpu
from app.engine.attention.cuda import FlexBackend
from app.engine.batch import Batch
from app.engine.cache_test import add_cache
from app.engine.packed import BACKENDS
from app.engine.prefix_cache import MIN_PREFIX_TOKENS
from app.engine.reward_model import ExecutionPlan, RewardModel
from app.engine.sequence import Scored, TokenSequence
from tests.engine.loaded import forests, load, token_ids
from tests.models import CAUSAL

WIDE = 8_000_000
PER_EXAMPLE = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModel]:
    return {family: load(tmp_path_factory.mktemp(family), family) for family in CAUSAL}


def set_cache(model: RewardModel, num_bytes: int) -> RewardModel:
    add_cache(model, num_bytes, min_prefix_tokens=MIN_PREFIX_TOKENS)
    assert model.cache is not None, model.cache_reason
    return model


def uncached(model: RewardModel, batch: Batch) -> list[Scored]:
    cache, model.cache = model.cache, None
    try:
        return model.score(batch)
    finally:
        model.cache = cache


def same_scores(got: list[Scored], expected: list[Scored]) -> bool:
    return [(s.score, s.token_scores) for s in got] == [(s.score, s.token_scores) for s in expected]


@st.composite
def traffic(draw: st.DrawFn) -> list[tuple[Batch, bool]]:
    """Batches that fork off the sequences of earlier ones, some with token scores, and whether each fails midway."""
    sequences = draw(forests(max_sequences=14, max_length=150))
    batches = []
    for _ in range(draw(st.integers(2, 7))):
        chosen = draw(st.lists(st.sampled_from(sequences), min_size=1, max_size=5))
        if draw(st.booleans()):  # truncated
            chosen = [TokenSequence(each.key[-4 * draw(st.integers(1, 200)) :]) for each in chosen]
        wanted = [draw(st.integers(0, 5)) == 0 for _ in chosen]
        batches.append((Batch.of(chosen, wanted), draw(st.integers(0, 3)) == 0))
    return batches


@pytest.mark.parametrize("num_pages", [3, 500])
@pytest.mark.parametrize("family", CAUSAL)
@PER_EXAMPLE
@given(batches=traffic())
def test_scores_are_the_same_to_the_bit_through_evictions_and_faults(
    models: dict[str, RewardModel], family: str, num_pages: int, batches: list[tuple[Batch, bool]]
) -> None:
    model = set_cache(models[family], WIDE)
    assert model.plan.batch_invariant
    assert model.cache is not None
    model.cache.prefixes.resize(num_pages)
    model.cache._pool.num_pages = num_pages
    for batch, fails in batches:
        expected = uncached(model, batch)
        if fails:
            with pytest.MonkeyPatch.context() as patch:
                break_after(patch, 1)
                with pytest.raises(ZeroDivisionError):
                    model.score(batch)
        before = [
            model.num_cached_tokens(each, token_scores=wanted)
            for each, wanted in zip(batch.sequences, batch.token_scores, strict=True)
        ]
        got = model.score(batch)
        assert same_scores(got, expected)
        for scored, sequence, known in zip(got, batch.sequences, before, strict=True):
            assert scored.num_computed_tokens <= sequence.num_tokens
            assert scored.num_cached_tokens >= known
        model.cache.prefixes.check()


def break_after(patch: pytest.MonkeyPatch, num_layers: int) -> None:
    """Has a forward fail after some layers have written to the pool."""
    attend, calls = cpu.BlockAttention.attend, []

    def fail(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) > num_layers:
            raise ZeroDivisionError("a fault in the middle of a forward")
        return attend(self, *args)

    patch.setattr(cpu.BlockAttention, "attend", fail)


def conversation(num_turns: int = 4) -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    tokens = token_ids(rng, 70 * num_turns)
    return [TokenSequence.of(tokens[: 70 * (i + 1)]) for i in range(num_turns)]


def test_only_what_is_new_is_computed(models: dict[str, RewardModel]) -> None:
    model = set_cache(models["llama"], WIDE)
    counts = [model.score(Batch.of([each]))[0] for each in conversation()]
    assert [(each.num_computed_tokens, each.num_cached_tokens) for each in counts] == [
        (70, 0),
        (70, 70),
        (70, 140),
        (70, 210),
    ]


def test_a_sequence_that_is_still_cached_costs_its_last_token(models: dict[str, RewardModel]) -> None:
    model, batch = set_cache(models["llama"], WIDE), Batch.of(conversation()[-1:])
    expected = model.score(batch)
    assert model.num_cached_tokens(batch.sequences[0], token_scores=False) == 279
    again = model.score(batch)
    assert same_scores(again, expected)
    assert again[0].num_computed_tokens == 1


def test_token_scores_compute_every_token_whatever_is_cached(models: dict[str, RewardModel]) -> None:
    model, sequence = set_cache(models["llama"], WIDE), conversation()[-1]
    model.score(Batch.of([sequence]))
    (scored,) = model.score(Batch.of([sequence], [True]))
    assert scored.num_computed_tokens == sequence.num_tokens
    assert model.num_cached_tokens(sequence, token_scores=True) == 0


def test_a_key_that_is_not_finite_is_not_kept(models: dict[str, RewardModel]) -> None:
    model = set_cache(models["llama"], WIDE)
    norm = model.trunk.layers[1].input_layernorm.weight
    sequences = conversation()[:2]
    with torch.no_grad():
        kept = norm.clone()
        norm.fill_(torch.inf)
        try:
            model.score(Batch.of(sequences))
        finally:
            norm.copy_(kept)
    assert model.cache is not None
    assert model.cache.prefixes.is_empty


def test_the_pool_never_takes_more_than_its_limit(models: dict[str, RewardModel]) -> None:
    model = set_cache(models["llama"], 100_000)
    rng = np.random.default_rng(1)
    for _ in range(30):
        model.score(Batch.of([TokenSequence.of(token_ids(rng, 150)) for _ in range(3)]))
    assert model.cache is not None
    layers = model.cache._pool._layers
    assert 50_000 < sum(tensor.nbytes for layer in layers for tensor in layer) <= 100_000
    assert model.cache.prefixes.statistics.num_evicted_pages > 0


def test_halving_the_cache_forgets_everything(models: dict[str, RewardModel]) -> None:
    model, batch = set_cache(models["llama"], WIDE), Batch.of(conversation())
    expected = model.score(batch)
    assert model.cache is not None
    size = model.cache.max_bytes
    assert model.shrink_cache()
    assert model.cache.max_bytes <= size / 2
    assert model.num_cached_tokens(batch.sequences[0], token_scores=False) == 0
    assert same_scores(model.score(batch), expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # meant: compiled it needs a compiler
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_flex_attention_reads_cached_keys_too(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "flex", FlexBackend(compiled=False))
    model = load(tmp_path, family)
    expected = model.score(Batch.of(conversation()))
    model.plan = ExecutionPlan("packed", "forced", backend="flex")
    set_cache(model, WIDE)
    model.score(Batch.of(conversation()[1:2]))
    got = model.score(Batch.of(conversation()))
    assert sum(each.num_cached_tokens for each in got) == 70 + 3 * 140
    assert [each.score for each in got] == pytest.approx([each.score for each in expected], abs=1e-5)


def test_a_model_that_is_not_packed_has_no_cache_and_says_why(tmp_path: Path) -> None:
    model = load(tmp_path, "bert")
    add_cache(model, WIDE, min_prefix_tokens=MIN_PREFIX_TOKENS)
    assert model.cache is None
    assert model.cache_reason == "the padded path computes whole sequences"
