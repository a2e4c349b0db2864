"""The next batch is prepared while a device computes, and neither faults nor the prefix cache are the worse for it.

The steps of a GPU's forward, on the CPU, where each is done when it returns.
"""

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from app.engine import packed, threads
from app.engine.attempts import Attempt, SteppedModel
from app.engine.batch import Batch
from app.engine.cache_test import add_cache
from app.engine.engine import Engine
from app.engine.forward import Computed, Prepared
from app.engine.inputs import Input, TokenIds
from app.engine.prefix_cache import MIN_PREFIX_TOKENS, PrefixCache
from app.engine.requests import Scores
from app.engine.reward_model import RewardModel
from app.engine.scheduler import ScheduledBatch, Scheduler
from app.engine.sequence import Scored, TokenSequence
from app.errors import InferenceFailedError
from tests.engine.loaded import load, token_ids
from tests.engine.test_engine import FakeModel, ids

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "takes_steps", lambda device: True)  # noqa: ARG005 - as it is called


@pytest.fixture
def model(tmp_path: Path) -> RewardModel:
    """Its batches hold 500 tokens, of which some thirty requests fill several."""
    model = load(tmp_path, "mistral", max_batch_tokens=500)
    add_cache(model, 8_000_000, min_prefix_tokens=MIN_PREFIX_TOKENS)
    assert model.cache is not None
    return model


def run(models: list[Any], inputs: list[list[Input]]) -> list[Scores | BaseException]:
    """The answers of as many concurrent requests."""

    async def ask() -> list[Scores | BaseException]:
        engine = Engine({model.name: model for model in models})
        engine.start()
        try:
            calls = (engine.score(own, deadline_seconds=SECONDS) for own in inputs)
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            engine.reject_all()
            await asyncio.to_thread(engine.close)

    return asyncio.run(ask())


def traffic(num_requests: int = 30) -> list[list[Input]]:
    rng = np.random.default_rng(0)
    prompts = [token_ids(rng, 90) for _ in range(3)]
    return [[Input(TokenIds(prompts[i % 3] + token_ids(rng, 10 + i)))] for i in range(num_requests)]


def scores_of(answers: list[Scores | BaseException]) -> list[float]:
    found = []
    for answer in answers:
        assert isinstance(answer, Scores), answer
        found.append(answer.items[0]["helpfulness"].score)
    return found


def alone(model: RewardModel, inputs: list[list[Input]]) -> list[float]:
    cache, model.cache = model.cache, None
    try:
        sequences = [TokenSequence.of(own[0].form.token_ids) for own in inputs]  # type: ignore[union-attr]
        return [model.score(Batch.of([sequence]))[0].score for sequence in sequences]
    finally:
        model.cache = cache


class Recorder(FakeModel):
    """A model with steps, whose every forward lasts until the next batch is prepared, if there is one."""

    def __init__(self, num_batches: int) -> None:
        super().__init__(max_batch_tokens=10)
        self.num_batches = num_batches
        self.steps: list[str] = []
        self.num_prepared = 0

    def prepare(self, batch: Batch) -> Prepared:
        self.num_prepared += 1
        self.steps.append("prepare")
        return Prepared(batch)

    def is_current(self, prepared: Prepared) -> bool:  # noqa: ARG002 - the protocol's
        return True

    def launch(self, prepared: Prepared) -> Computed:
        self.steps.append("launch")
        return Computed(torch.zeros(1), prepared.batch.num_new_tokens, [0] * len(prepared.batch))

    def finish(self, prepared: Prepared, computed: Computed) -> list[Scored]:  # noqa: ARG002 - the protocol's
        self.steps.append("finish")
        return self.score(prepared.batch)

    def abandon(self, prepared: Prepared) -> None: ...


def test_the_next_batch_is_prepared_between_the_launch_of_one_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorder(4)
    assert isinstance(model, SteppedModel)
    queued = threading.Event()
    take = Scheduler.take

    def once_all_are_queued(self: Scheduler) -> ScheduledBatch | None:
        while self.num_queued_tokens < 40 and not queued.is_set() and not self._closed:
            queued.wait(0.01)
        queued.set()
        return take(self)

    monkeypatch.setattr(Scheduler, "take", once_all_are_queued)
    answers = run([model], [[ids(*range(5 + i, 15 + i))] for i in range(4)])
    assert scores_of(answers) == [sum(range(5 + i, 15 + i)) for i in range(4)]
    one = ["launch", "prepare", "finish"]
    assert model.steps == ["prepare", *one, *one, *one, "launch", "finish"]


def test_scores_are_the_same_to_the_bit(model: RewardModel) -> None:
    inputs = traffic()
    expected = alone(model, inputs)
    for _ in range(3):
        answers = run([model], inputs)
        assert scores_of(answers) == expected
    assert sum(answer.num_cached_tokens for answer in answers if isinstance(answer, Scores)) > 0
    assert model.cache is not None
    model.cache.prefixes.check()


@pytest.mark.parametrize("step", ["prepare", "launch", "finish"])
@pytest.mark.parametrize("error", [ZeroDivisionError("a fault"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_fault_in_any_step_fails_its_batch_alone_and_leaves_the_cache_in_order(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    """Out of memory fails nothing: the cache is emptied and the batch tried again."""
    inputs = traffic()
    expected = alone(model, inputs)
    exact: Callable[..., Any] = getattr(RewardModel, step)
    calls: Counter[str] = Counter()

    def failing(self: RewardModel, *args: Any) -> Any:
        calls[step] += 1
        if calls[step] in {2, 5}:
            raise error
        return exact(self, *args)

    monkeypatch.setattr(RewardModel, step, failing)
    answers = run([model], inputs)
    got = [each.items[0]["helpfulness"].score if isinstance(each, Scores) else None for each in answers]
    assert all(score in {None, wanted} for score, wanted in zip(got, expected, strict=True))
    if isinstance(error, torch.OutOfMemoryError):
        assert None not in got
    else:
        assert 0 < got.count(None) < len(got)
        assert all(isinstance(each, Scores | InferenceFailedError) for each in answers)
    assert model.cache is not None
    model.cache.prefixes.check()
    monkeypatch.undo()
    assert alone(model, inputs) == expected
    assert scores_of(run([model], inputs)) == expected


def test_a_thread_that_dies_in_a_forward_leaves_nothing_in_the_cache(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the batch that it computed nor of the one that it had prepared."""
    exact = packed.trunk_states
    calls: list[int] = []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            exact(*args)  # every layer has written to the pool
            raise SystemExit
        return exact(*args)

    monkeypatch.setattr(packed, "trunk_states", dying)
    answers = run([model], traffic())
    failed = [each for each in answers if not isinstance(each, Scores)]
    assert all(isinstance(each, InferenceFailedError) for each in failed)
    assert 0 < len(failed) < len(answers)
    assert model.cache is not None
    prefixes = model.cache.prefixes.check()
    lost = [own[0].form.token_ids for own, each in zip(traffic(), answers, strict=True) if not isinstance(each, Scores)]  # type: ignore[union-attr]
    assert all(prefixes.num_cached_tokens(TokenSequence.of(token_ids).key) <= 90 for token_ids in lost)


def test_a_thread_that_dies_gives_back_what_the_next_batch_had_reserved(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in the end of a forward, once the batch behind it is prepared."""
    prepare, finish = RewardModel.prepare, RewardModel.finish
    calls: Counter[str] = Counter()

    def counting(self: RewardModel, batch: Batch) -> Prepared:
        calls["prepared"] += 1
        return prepare(self, batch)

    def dying(self: RewardModel, *args: Any) -> list[Scored]:
        calls["finished"] += 1
        if calls["prepared"] > calls["finished"]:
            raise SystemExit
        return finish(self, *args)

    monkeypatch.setattr(RewardModel, "prepare", counting)
    monkeypatch.setattr(RewardModel, "finish", dying)
    answers = run([model], traffic())
    assert calls["prepared"] == calls["finished"] + 1
    assert any(isinstance(each, InferenceFailedError) for each in answers)
    assert model.cache is not None
    prefixes = model.cache.prefixes.check()  # which counts the pages
    if calls["finished"] == 1:
        assert prefixes.is_empty


def test_a_batch_that_was_prepared_too_soon_is_prepared_anew(model: RewardModel) -> None:
    """The batch before it added what it needs: it would compute that again."""
    first, second = (Batch.of([TokenSequence.of(list(range(5, n)))]) for n in (200, 250))
    attempts = [Attempt(model, ScheduledBatch([], batch)) for batch in (first, second)]
    attempts[0].launch()
    attempts[0].scores()
    attempts[1].launch()
    (scored,) = attempts[1].scores()
    assert scored.num_cached_tokens == 195
    assert model.cache is not None
    model.cache.prefixes.check()


def test_a_batch_that_was_prepared_before_the_cache_was_emptied_is_prepared_anew(model: RewardModel) -> None:
    first, second = (Batch.of([TokenSequence.of(list(range(5, n)))]) for n in (200, 250))
    expected = [model.score(batch)[0].score for batch in (first, second)]
    attempt = Attempt(model, ScheduledBatch([], second))
    assert model.shrink_cache()
    attempt.launch()
    (scored,) = attempt.scores()
    assert scored.num_cached_tokens == 0
    assert scored.score == expected[1]
    assert model.cache is not None
    model.cache.prefixes.check()


def test_what_was_reserved_before_the_cache_was_emptied_gives_no_page_back() -> None:
    cache = PrefixCache(4)
    batch = Batch.of([TokenSequence.of(list(range(5, 200)))])
    keys = [sequence.key for sequence in batch.sequences]
    for settle in (cache.release, lambda reservation: cache.publish(keys, batch.tree, reservation)):
        reservation = cache.reserve(keys, batch.tree)
        cache.resize(4)
        settle(reservation)
        assert cache.check().is_empty
