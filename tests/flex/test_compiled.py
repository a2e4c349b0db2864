"""Compiled flex_attention on the CPU, as a GPU would run it: the same numbers as attention in blocks, and few graphs.

Needs g++: inductor compiles its CPU kernels with it.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from app.engine import self_test
from app.engine.attention import cuda
from app.engine.attention.backend import LayerOptions
from app.engine.attention.block_mask import KeyBlocks, TreeIntervals
from app.engine.attention.cpu import BlockBackend
from app.engine.attention.cuda import FlexBackend, bucket_length, compiled_flex
from app.engine.batch import Batch
from app.engine.cache_test import add_cache
from app.engine.prefix_cache import MIN_PREFIX_TOKENS
from app.engine.prefix_tree import PrefixTree, encode_key
from app.engine.reward_model import ExecutionPlan, RewardModel
from app.engine.row_layout import RowLayout
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from tests.engine.loaded import load, load_from, token_ids
from tests.models import make_model

NUM_BATCHES = 200
MAX_TOKENS = 2048
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # inductor's own, of the libraries it uses


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    """Each test begins with nothing compiled."""
    torch.compiler.reset()
    compiled_flex.cache_clear()
    counters.clear()
    yield
    torch.compiler.reset()


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def random_layout(rng: np.random.Generator, max_tokens: int, *, cached: bool) -> RowLayout:
    """Groups of sequences with shared prefixes; `cached`: of each a part is."""
    keys: list[bytes] = []
    num_tokens = 0
    while num_tokens < max_tokens and len(keys) < 40:
        prefix = token_ids(rng, int(rng.integers(1, 300)))
        for _ in range(int(rng.integers(1, 5))):
            tail = token_ids(rng, int(rng.integers(1, 80)))
            keys.append(encode_key(prefix + tail))
            num_tokens += len(tail)
        num_tokens += len(prefix)
    tree = PrefixTree.of(keys)
    is_cached = np.zeros(tree.num_tokens, np.bool_)
    if cached:
        for path in tree.paths:
            is_cached[path[: int(rng.integers(0, len(path)))]] = True
    return RowLayout.of(tree, is_cached, [path[-1:] for path in tree.paths])


@pytest.mark.parametrize(
    "options",
    [LayerOptions(), LayerOptions(window=50), LayerOptions(scaling=0.3, softcap=5.0), LayerOptions(0.3, 20, 5.0)],
    ids=["plain", "window", "softcap", "all"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_attention_equals_attention_in_blocks(options: LayerOptions, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    flex, blocks = FlexBackend(), BlockBackend()
    for i, size in enumerate((1, 200, 700, 1500)):
        layout = random_layout(rng, size, cached=i % 2 == 1)
        rows = flex.num_rows(layout.num_computed_tokens, 64)
        keys = flex.num_keys(rows, len(layout.cached))
        query, key, value = (
            torch.randn(1, heads, n, 32, dtype=dtype) for heads, n in ((4, rows), (2, keys), (2, keys))
        )
        with torch.inference_mode():
            got = flex.prepare(layout, rows).attend(query, key, value, options)
            wanted = blocks.prepare(layout, rows).attend(query.float(), key.float(), value.float(), options)
        assert torch.isfinite(got).all()
        computed = slice(layout.num_computed_tokens)
        torch.testing.assert_close(
            got[:, computed].float(),
            wanted[:, computed],
            atol=1e-5 if dtype == torch.float32 else 2e-2,
            rtol=0 if dtype == torch.float32 else 2e-2,
        )


def sequences_of(rng: np.random.Generator, prompts: list[list[int]]) -> list[TokenSequence]:
    """Up to 24 sequences of which some share a prompt that came before."""
    lists = []
    for _ in range(int(rng.integers(1, 25))):
        if rng.random() < 0.3:
            prompts.append(token_ids(rng, int(rng.integers(1, 200))))
        prompt = prompts[int(rng.integers(len(prompts)))]
        lists.append(prompt + token_ids(rng, int(rng.integers(1, 120))))
    return [TokenSequence.of(ids) for ids in lists]


def test_two_models_over_200_random_batches_take_fewer_graphs_than_there_are_bucket_lengths(tmp_path: Path) -> None:
    """One has sliding windows and soft-caps, both have a prefix cache, and every score is the reference forward's."""
    rng = np.random.default_rng(0)
    models = [load(tmp_path / "llama", "llama"), load(tmp_path / "gemma2", "gemma2")]
    for model in models:
        model.plan = ExecutionPlan("packed", "forced", backend="flex")
        add_cache(model, 20_000_000, min_prefix_tokens=MIN_PREFIX_TOKENS)
        assert model.cache is not None, model.cache_reason
    prompts = [token_ids(rng, 100)]
    lengths, num_cached = set(), 0
    for i in range(NUM_BATCHES // 2):
        batch = Batch.of(sequences_of(rng, prompts))
        for model in models:
            scores = model.score(batch)
            lengths.add(bucket_length(sum(each.num_computed_tokens for each in scores)))
            num_cached += sum(each.num_cached_tokens for each in scores)
            if i % 10 == 0:
                for scored, sequence in zip(scores, batch.sequences, strict=True):
                    expected = model.reference_score(sequence)
                    assert scored.score == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))
    assert len(lengths) > 8
    assert num_cached > 10_000
    assert 2 <= num_graphs() <= len({bucket_length(n) for n in range(1, MAX_TOKENS + 1)})


@torch._dynamo.config.patch(recompile_limit=2)  # type: ignore[untyped-decorator]  # pytest would delete the option
def test_past_the_limit_of_graphs_a_call_fails_and_never_computes_dense_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models that differ in their heads need a graph each; two are allowed here."""
    monkeypatch.setattr(cuda, "MAX_GRAPHS", 2)
    dense = forbidden_dense(monkeypatch)
    sequence = TokenSequence.of(list(range(5, 200)))
    models: list[RewardModel] = []
    for heads in (1, 2, 4):
        model = load(tmp_path / str(heads), "llama", num_attention_heads=heads, num_key_value_heads=1)
        model.plan = ExecutionPlan("packed", "forced", backend="flex")
        models.append(model)
    for model in models[:2]:
        model.score(Batch.of([sequence]))
    with pytest.raises(FailOnRecompileLimitHit):
        models[2].score(Batch.of([sequence]))
    assert not dense
    for model in models[:2]:  # what is compiled still serves
        model.score(Batch.of([sequence]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_self_test_finds_blocks_that_are_left_out_or_taken_for_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """What only compiled code shows: without it flex_attention asks the mask for every pair."""
    monkeypatch.setattr(self_test, "is_gpu", lambda device: True)  # noqa: ARG005 - as it is called
    model = load_from(make_model(tmp_path, max_position_embeddings=1024), dtype=dtype)
    assert model.plan.name == "packed with flex_attention", model.plan.reason
    exact = TreeIntervals.blocks

    def none_full(self: TreeIntervals, window: int | None) -> KeyBlocks:
        return dataclasses.replace(blocks := exact(self, window), num_full=blocks.num_full * 0)

    def all_full(self: TreeIntervals, window: int | None) -> KeyBlocks:
        blocks = exact(self, window)
        return KeyBlocks(blocks.num_full, blocks.full_indices, blocks.num_partial, blocks.partial_indices)

    for broken in (none_full, all_full):
        monkeypatch.setattr(TreeIntervals, "blocks", broken)
        select_plan(model)
        assert model.plan.name == "packed", broken


def forbidden_dense(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said where flex_attention runs without compiled code: nothing, if it never does."""
    said: list[str] = []
    warn: Callable[..., Any] = torch.nn.attention.flex_attention._warn_once

    def note(warning_id: str, *args: Any, **options: Any) -> None:
        said.append(warning_id)
        warn(warning_id, *args, **options)

    monkeypatch.setattr(torch.nn.attention.flex_attention, "_warn_once", note)
    return said
