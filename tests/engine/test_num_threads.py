"""The number of threads of a forward: what limits it, and how it follows what other processes leave free."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.engine import num_threads
from app.engine.batch import Batch
from app.engine.cgroups import ControlGroup
from app.engine.num_threads import ThreadChooser, ThreadLimit, candidates_below, thread_limit
from app.engine.processors import FreeProcessors, Quota
from app.engine.reward_model import RewardModel
from app.engine.sequence import TokenSequence
from app.engine.thread_counts import equal_thread_counts, follow_load, keep_equal_counts
from tests.engine.loaded import load, token_ids


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return load(tmp_path_factory.mktemp("model"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight physical cores, sixteen processors, no quota, no variables."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(num_threads, "affinity", lambda: frozenset(range(16)))
    monkeypatch.setattr(num_threads, "quotas", list)
    return monkeypatch


def quota(num_processors: float) -> Quota:
    return Quota(num_processors, Path("/sys/fs/cgroup/cpu.max"), ControlGroup(Path("/sys/fs/cgroup"), 2))


def test_the_limit_is_the_physical_cores(machine: pytest.MonkeyPatch) -> None:
    assert thread_limit(None) == ThreadLimit(8, "the physical cores")
    machine.setenv("OMP_NUM_THREADS", "8")
    assert thread_limit(None) == ThreadLimit(8, "OMP_NUM_THREADS")


def test_the_affinity_caps_the_threads(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(num_threads, "affinity", lambda: frozenset({3, 5}))
    assert thread_limit(None) == ThreadLimit(2, "the affinity of this process: 2 processors")


@pytest.mark.parametrize(("given", "expected"), [(0.5, 1), (1, 1), (1.9, 1), (4, 4), (100, 8)])
def test_a_quota_caps_the_threads_and_is_rounded_down(machine: pytest.MonkeyPatch, given: float, expected: int) -> None:
    machine.setattr(num_threads, "quotas", lambda: [quota(200), quota(given)])
    limit = thread_limit(None)
    assert limit.num_threads == expected
    wanted = f"the quota of {given:g} processors in /sys/fs/cgroup/cpu.max" if expected < 8 else "the physical cores"
    assert limit.reason == wanted


def test_the_setting_overrides_what_was_found(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(num_threads, "quotas", lambda: [quota(1)])
    assert thread_limit(6) == ThreadLimit(6, "REWARD_NUM_THREADS", is_fixed=True)


def test_no_candidate_is_below_half_of_the_limit() -> None:
    assert [candidates_below(limit) for limit in (1, 2, 3, 4, 16)] == [[], [1], [2], [3, 2], [15, 14, 12, 8]]


@pytest.mark.parametrize(
    ("free", "counts", "expected"),
    [
        (2.0, (2, 1), 2),
        (1.7, (2, 1), 2),  # a client that uses a third of a processor
        (1.5, (2, 1), 1),
        (1.0, (2, 1), 1),
        (0.0, (2, 1), 1),
        (3.0, (4, 2), 2),  # three threads would give other bits
        (0.0, (8, 7, 6, 4), 4),
        (0.0, (8, 7), 8),  # seven would have too few processors as well
        (float("inf"), (8, 4), 8),
    ],
)
def test_the_largest_number_is_chosen_for_which_processors_are_free(
    free: float, counts: tuple[int, ...], expected: int
) -> None:
    assert ThreadChooser(ThreadLimit(counts[0], ""), lambda: free).choose(counts) == expected


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_forward_follows_the_load_from_layer_to_layer_with_the_same_bits(tmp_path: Path, family: str) -> None:
    model = load(tmp_path, family)
    batch = Batch.of([TokenSequence.of(token_ids(np.random.default_rng(n), 20 + 30 * n)) for n in range(4)])
    free, seen = [2.0, 2.0, 1.0, 2.0], list[int]()
    torch.set_num_threads(2)
    model.small_forward_flops = 0
    expected = model.score(batch)
    counts = equal_thread_counts(model, 2)
    model.small_forward_flops = 0
    chooser = ThreadChooser(ThreadLimit(2, ""), lambda: free[min(len(seen), 3)])
    model.threads.follow(chooser, counts, model.layers)
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    assert counts == (2, 1)
    assert model.score(batch) == expected
    assert model.score(batch) == expected
    assert torch.get_num_threads() == 2
    assert {1, 2} == set(seen)


def test_a_small_forward_stays_on_one_thread(tmp_path: Path) -> None:
    model, seen = load(tmp_path), list[int]()
    torch.set_num_threads(2)
    model.threads.follow(ThreadChooser(ThreadLimit(2, ""), lambda: 2.0), (2, 1), model.layers)
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    model.score(Batch.of([TokenSequence.of([5, 6, 7])]))
    assert set(seen) == {1}


def test_numbers_that_give_other_bits_are_not_chosen(tmp_path: Path) -> None:
    model = load(tmp_path)

    def other_bits_on_three(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return out * (1 + 2**-22) if torch.get_num_threads() == 3 else out

    model.layers[0].mlp.down_proj.register_forward_hook(other_bits_on_three)  # type: ignore[union-attr]
    assert equal_thread_counts(model, 4) == (4, 2)


def test_numbers_that_give_other_bits_are_used_no_more(tmp_path: Path) -> None:
    model, limit = load(tmp_path), ThreadLimit(4, "")
    follow_load(model, ThreadChooser(limit, lambda: 4.0))
    assert list(model.threads.counts) == [4, 3, 2]
    assert keep_equal_counts(model, limit)
    hook = model.layers[0].register_forward_hook(lambda _m, _i, out: out * (1 + (torch.get_num_threads() == 3) * 1e-3))
    assert not keep_equal_counts(model, limit)
    hook.remove()
    assert model.threads.counts == (4, 2)


@pytest.mark.parametrize("limit", [ThreadLimit(1, ""), ThreadLimit(4, "REWARD_NUM_THREADS", is_fixed=True)])
def test_one_number_alone_is_kept_without_a_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: ThreadLimit
) -> None:
    model = load(tmp_path)
    monkeypatch.setattr(model, "launch", lambda _: pytest.fail("computed something"))
    follow_load(model, ThreadChooser(limit, lambda: 4.0))
    assert keep_equal_counts(model, limit)
    assert model.threads.counts == (limit.num_threads,)


def test_the_reference_forward_follows_the_load(tmp_path: Path) -> None:
    """It is most of the self-test: on more threads than processors are free a start takes minutes."""
    model, seen = load(tmp_path), list[int]()
    torch.set_num_threads(2)
    model.small_forward_flops = 0
    follow_load(model, ThreadChooser(ThreadLimit(2, ""), lambda: 1.0))
    model.layers[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    model.reference_states(TokenSequence.of([5, 6, 7]))
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_a_test_runs_on_the_number_of_threads_that_it_asks_for(tmp_path: Path) -> None:
    model, seen = load(tmp_path), list[int]()
    torch.set_num_threads(2)
    follow_load(model, ThreadChooser(ThreadLimit(2, ""), lambda: 1.0))
    model.layers[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    for small_forward_flops in (0, 10**9):
        model.small_forward_flops = small_forward_flops
        for count in (1, 2):
            with model.threads.fixed_at(count):
                model.score(Batch.of([TokenSequence.of([5, 6, 7])]))
    assert seen == [1, 2, 1, 2]


def test_one_thread_leaves_nothing_to_choose(model: RewardModel) -> None:
    assert equal_thread_counts(model, 1) == (1,)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux tells what its processors do")
def test_this_system_tells_what_is_free() -> None:
    free_processors = FreeProcessors(clock=iter([0.0, 1.0, 1.0]).__next__)
    assert 0 <= free_processors() < float("inf")
