"""The self-test finds a wrong mask, in bfloat16 too, where hidden states would not show it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engine import self_test
from app.engine.attention import cpu
from app.engine.attention.block_mask import TreeIntervals
from app.engine.attention.cuda import FlexAttention, FlexBackend, bucket_length
from app.engine.batch import Batch
from app.engine.cache_test import add_cache
from app.engine.packed import BACKENDS
from app.engine.prefix_cache import MIN_PREFIX_TOKENS
from app.engine.reward_model import RewardModel
from app.engine.row_layout import RowLayout
from app.engine.self_test import forked_tree, select_plan
from tests.engine.loaded import load_from
from tests.models import make_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile"
)  # meant: it needs no compiler


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "flex", FlexBackend(compiled=False))
    monkeypatch.setattr(self_test, "is_gpu", lambda device: True)  # noqa: ARG005 - as it is called


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """Self-tested as on a GPU: by flex_attention, on a path of 640 tokens and beyond the sliding window of 600."""
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "sliding_window": 600, "max_position_embeddings": 1024}
    directory = make_model(tmp_path_factory.mktemp("model"), "gemma2", **sizes)
    with pytest.MonkeyPatch.context() as monkeypatch:
        as_on_a_gpu(monkeypatch)
        return load_from(directory, dtype=request.param)


@pytest.fixture
def model(loaded: RewardModel, monkeypatch: pytest.MonkeyPatch) -> RewardModel:
    """A test may find another plan or cache for it."""
    as_on_a_gpu(monkeypatch)
    for name in ("plan", "row_multiple", "cache", "cache_reason"):
        monkeypatch.setattr(loaded, name, getattr(loaded, name))
    return loaded


def test_a_right_mask_passes(model: RewardModel) -> None:
    assert model.plan.name == "packed with flex_attention", model.plan.reason
    add_cache(model, 20_000_000, min_prefix_tokens=MIN_PREFIX_TOKENS)
    assert model.cache is not None, model.cache_reason


def an_end_later(self: TreeIntervals) -> None:
    self.end[: self.num_rows] += 1


def an_end_sooner(self: TreeIntervals) -> None:
    self.end[:] = np.maximum(self.end - 1, self.row + 1)


def depths_off_by_one(self: TreeIntervals) -> None:
    self.depth[self.depth > 600] += 1


BROKEN: dict[str, Callable[[TreeIntervals], None]] = {
    "a token sees one behind its subtree": an_end_later,
    "a subtree lacks its last token": an_end_sooner,
    "a window ends one token too soon": depths_off_by_one,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_mask_that_is_off_by_one_token_is_found(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    exact = TreeIntervals.of.__func__  # type: ignore[attr-defined]  # of a class method

    def broken(cls: Any, *args: Any) -> TreeIntervals:
        intervals: TreeIntervals = exact(cls, *args)
        BROKEN[how](intervals)
        return intervals

    monkeypatch.setattr(TreeIntervals, "of", classmethod(broken))
    select_plan(model)
    assert model.plan.name == "packed"
    assert "packed with flex_attention" in model.plan.reason
    assert "attends to wrong tokens" in model.plan.reason or "off by" in model.plan.reason


def test_attention_in_blocks_is_tested_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its mask is wrong, too, the padded path is taken."""
    exact = cpu.widest_mask

    def broken(num_keys: int, length: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        mask = exact(num_keys, length, window, dtype)
        mask[:, -length - 7] = -torch.inf
        return mask

    monkeypatch.setattr(cpu, "widest_mask", broken)
    monkeypatch.setattr(cpu, "_masks", {})
    model = load_from(make_model(tmp_path), dtype="bfloat16")
    assert model.plan.path == "padded"
    assert "packed: " in model.plan.reason


def test_the_tree_of_a_gpus_self_test_has_blocks_of_every_kind(model: RewardModel) -> None:
    tree = Batch.of(forked_tree(model)).tree
    assert max(len(path) for path in tree.paths) >= 384
    rows = bucket_length(tree.num_tokens)
    mask = FlexAttention(RowLayout(tree), rows, torch.nn.attention.flex_attention.flex_attention).mask(
        None, torch.device("cpu")
    )
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_num_blocks.sum() >= 3
    assert mask.kv_num_blocks.sum() >= 6
    assert mask.to_dense().sum() < (rows // 128) * (rows // 128 + 1) // 2


def test_the_plans_of_a_gpu_try_attention_in_blocks_before_the_padded_path(model: RewardModel) -> None:
    plans = list(self_test.candidates(model))
    assert [(plan.path, plan.backend) for plan in plans] == [
        ("packed", "flex"),
        ("packed", "blocks"),
        ("packed", "blocks"),
        ("padded", "blocks"),
        ("single", "blocks"),
    ]


def test_attention_that_is_wrong_at_another_length_is_found(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code serves every length: that it is right at one says little of the others."""
    exact = FlexAttention.attend

    def wrong_when_short(self: FlexAttention, query: Any, *args: Any) -> Any:
        out = exact(self, query, *args)
        return out.roll(1, 1) if query.shape[2] == 256 else out

    monkeypatch.setattr(FlexAttention, "attend", wrong_when_short)
    select_plan(model)
    assert model.plan.name == "packed"
