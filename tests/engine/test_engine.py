"""Faults, cancellation and accounting, with a fake model whose scores are known without any arithmetic of a network."""

import asyncio
import math
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.batch import Batch
from app.engine.engine import Engine
from app.engine.inputs import Input, TokenIds
from app.engine.requests import Scores
from app.engine.scheduler import Scheduler
from app.engine.sequence import Scored, TokenSequence
from app.engine.tokenization import Tokenization
from app.errors import (
    DeadlineExceededError,
    InferenceFailedError,
    InvalidInputError,
    NonFiniteScoreError,
    OverloadedError,
    RequestError,
    ShuttingDownError,
)
from tests.models import VOCAB_SIZE, make_tokenizer

T = TypeVar("T")
FAIL, NAN, DIE = 300, 301, 302
"""Token ids at which the fake model raises, gives NaN, or takes its thread down."""


class FakeModel:
    """Scores a sequence with the sum of its token ids; breaks where its tokens say so."""

    is_causal = True

    def __init__(self, name: str = "helpfulness", *, max_batch_tokens: int = 100, fits: int = 1_000_000) -> None:
        self.name = name
        self.device = torch.device("cpu")
        self.max_batch_tokens = max_batch_tokens
        self.tokenization = Tokenization(make_tokenizer(), 100, VOCAB_SIZE)
        self.fits = fits
        self.batches: list[int] = []
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def find_fault(self, sequence: TokenSequence) -> str | None:  # noqa: ARG002 - the protocol's
        return None

    def num_cached_tokens(self, sequence: TokenSequence, *, token_scores: bool) -> int:  # noqa: ARG002 - the protocol's
        return 0

    def shrink_cache(self) -> bool:
        return False

    def score(self, batch: Batch) -> list[Scored]:
        sequences = batch.sequences
        self.entered.set()
        self.go.wait()
        tokens = {int(i) for sequence in sequences for i in sequence.token_ids}
        if DIE in tokens:
            raise SystemExit
        if FAIL in tokens:
            raise ZeroDivisionError("a fault in the forward")
        if len(sequences) > self.fits:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        self.batches.append(len(sequences))
        return [
            Scored(math.nan if NAN in s.token_ids else float(s.token_ids.sum()), None, num_new_tokens)
            for s, num_new_tokens in zip(sequences, batch.num_new_tokens, strict=True)
        ]


def ids(*token_ids: int, item: int = 0) -> Input:
    return Input(TokenIds(list(token_ids)), item, f"items[{item}]")


def with_engine(
    use: Callable[[Engine[FakeModel]], Awaitable[T]],
    *models: FakeModel,
    max_queue_tokens: int | None = None,
    max_waiting: int = 100,
) -> T:
    """Runs `use` against a started engine, and closes it."""

    async def run() -> T:
        named = {model.name: model for model in models or (FakeModel(),)}
        engine = Engine(named, max_queue_tokens=max_queue_tokens, max_waiting_requests=max_waiting)
        engine.start()
        try:
            return await use(engine)
        finally:
            for model in named.values():
                model.go.set()
            engine.reject_all()
            await asyncio.to_thread(engine.close)

    return asyncio.run(run())


async def settle(*awaitables: Awaitable[Scores]) -> list[Scores | BaseException]:
    return await asyncio.gather(*awaitables, return_exceptions=True)


def scores_of(answer: Scores | BaseException) -> list[float]:
    assert isinstance(answer, Scores), answer
    return [item["helpfulness"].score for item in answer.items]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - other threads change what is waited for
        await asyncio.sleep(0)


@asynccontextmanager
async def held_up(engine: Engine[FakeModel], model: FakeModel) -> AsyncIterator[Scheduler]:
    """The model thread is inside a forward for as long as the context lasts, so that what comes is queued."""
    model.go.clear()
    first = asyncio.create_task(engine.score([ids(1)]))
    await until(model.entered.is_set)
    (device,) = engine.devices.values()
    try:
        yield device.scheduler
    finally:
        model.go.set()
        await settle(first)


def test_answers_come_in_the_order_of_the_inputs_with_their_tokens_counted() -> None:
    answer = with_engine(lambda engine: engine.score([ids(9, 8, 7), ids(9, 8, 6, 5), ids(4)]))
    assert scores_of(answer) == [24, 28, 4]
    assert (answer.num_tokens, answer.num_computed_tokens) == (8, 6)


def test_two_models_of_one_vocabulary_score_one_tokenization() -> None:
    answer = with_engine(lambda e: e.score([ids(9, 8)]), FakeModel("safety"), FakeModel("helpfulness"))
    assert {name: item.score for name, item in answer.items[0].items()} == {"safety": 17, "helpfulness": 17}
    assert (answer.num_tokens, answer.num_computed_tokens) == (4, 4)


def test_requests_that_are_queued_together_share_a_prefix() -> None:
    model = FakeModel()

    async def use(engine: Engine[FakeModel]) -> list[Scores | BaseException]:
        async with held_up(engine, model) as queue:
            tasks = [asyncio.create_task(engine.score([ids(*range(10, 40), i)])) for i in range(50, 54)]
            await until(lambda: queue.num_queued_tokens == 4 * 31)
        return await settle(*tasks)

    shared = with_engine(use, model)
    assert [answer.num_computed_tokens for answer in shared if isinstance(answer, Scores)] == [31, 1, 1, 1]


def test_an_exception_in_the_forward_fails_its_batch_only() -> None:
    async def use(engine: Engine[FakeModel]) -> None:
        with pytest.raises(InferenceFailedError, match="a fault in the forward"):
            await engine.score([ids(FAIL)])
        assert scores_of(await engine.score([ids(7)])) == [7]
        assert engine.is_alive

    with_engine(use)


def test_out_of_memory_splits_the_batch_and_tries_again() -> None:
    model = FakeModel(fits=3)
    answer = with_engine(lambda engine: engine.score([ids(i) for i in range(10, 30)]), model)
    assert scores_of(answer) == list(range(10, 30))
    assert max(model.batches) <= 3


def test_what_a_failed_forward_held_is_free_before_the_halves_are_tried() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    class Hungry(FakeModel):
        def score(self, batch: Batch) -> list[Scored]:
            assert all(tensor() is None for tensor in held)
            working_memory = torch.zeros(1)
            held.append(weakref.ref(working_memory))
            return super().score(batch)

    answer = with_engine(lambda engine: engine.score([ids(i) for i in range(10, 30)]), Hungry(fits=3))
    assert scores_of(answer) == list(range(10, 30))
    assert len(held) > 2


def test_one_sequence_that_does_not_fit_alone_fails() -> None:
    async def use(engine: Engine[FakeModel]) -> None:
        with pytest.raises(InferenceFailedError, match="can't allocate memory"):
            await engine.score([ids(5)])

    with_engine(use, FakeModel(fits=0))


def test_a_non_finite_score_fails_its_own_request_and_names_the_item() -> None:
    model = FakeModel()

    async def use(engine: Engine[FakeModel]) -> list[Scores | BaseException]:
        async with held_up(engine, model) as queue:
            bad = asyncio.create_task(engine.score([ids(3), ids(NAN, item=1)]))
            good = asyncio.create_task(engine.score([ids(4)]))
            await until(lambda: queue.num_queued_tokens == 3)
        return await settle(bad, good)

    bad, good = with_engine(use, model)
    assert isinstance(bad, NonFiniteScoreError)
    assert (bad.item, bad.message) == (1, "items[1]: the helpfulness model gives it nan")
    assert scores_of(good) == [4]


def test_requests_that_come_together_may_be_truncated_differently() -> None:
    async def use(engine: Engine[FakeModel]) -> list[Scores | BaseException]:
        return await settle(
            engine.score([ids(1)], truncation="left"),
            engine.score([ids(2)], truncation="right"),
            engine.score([ids(3)], truncation="left"),
        )

    assert [scores_of(answer) for answer in with_engine(use)] == [[1], [2], [3]]


def test_a_thread_that_dies_leaves_no_future_hanging_and_says_so() -> None:
    async def use(engine: Engine[FakeModel]) -> None:
        answers = await settle(*(engine.score([ids(DIE if i == 5 else i)]) for i in range(10)))
        assert all(isinstance(answer, Scores | InferenceFailedError) for answer in answers)
        assert isinstance(answers[5], InferenceFailedError)
        (device,) = engine.devices.values()
        await asyncio.to_thread(device.join)
        assert not engine.is_alive
        with pytest.raises(InferenceFailedError, match="must be restarted"):
            await engine.score([ids(1)])

    with_engine(use)


def test_the_deadline_ends_a_wait_and_frees_the_queue() -> None:
    model = FakeModel()

    async def use(engine: Engine[FakeModel]) -> None:
        async with held_up(engine, model):
            with pytest.raises(DeadlineExceededError, match=r"0\.05 s"):
                await engine.score([ids(2)], deadline_seconds=0.05)
        assert scores_of(await engine.score([ids(3)])) == [3]

    with_engine(use, model)
    assert model.batches == [1, 1]


def test_a_cancelled_request_costs_no_tokens() -> None:
    model = FakeModel()

    async def use(engine: Engine[FakeModel]) -> None:
        async with held_up(engine, model) as queue:
            leaving = asyncio.create_task(engine.score([ids(*range(10, 90))]))
            await until(lambda: queue.num_queued_tokens == 80)
            leaving.cancel()
            await settle(leaving)
        await engine.score([ids(2)])

    with_engine(use, model)
    assert model.batches == [1, 1]


@pytest.mark.parametrize("leave", ["cancelled", "deadline"])
def test_whoever_leaves_makes_room_for_others_while_the_model_is_busy(leave: str) -> None:
    model = FakeModel()
    deadline = 0.05 if leave == "deadline" else None

    async def use(engine: Engine[FakeModel]) -> list[Scores | BaseException]:
        async with held_up(engine, model) as queue:
            leaving = [
                asyncio.create_task(engine.score([ids(*range(10 * i, 10 * i + 10))], deadline_seconds=deadline))
                for i in range(7)
            ]
            if leave == "cancelled":
                await until(lambda: queue.num_jobs == 7)
                for task in leaving:
                    task.cancel()
            await settle(*leaving)
            await until(lambda: queue.num_jobs == queue.num_tokens == queue.num_waiting_requests == 0)
            staying = [asyncio.create_task(engine.score([ids(i)])) for i in range(7)]
            await until(lambda: queue.num_jobs == 7)
        return await settle(*staying)

    answers = with_engine(use, model, max_queue_tokens=20, max_waiting=7)
    assert [scores_of(answer)[0] for answer in answers] == [0, 1, 2, 3, 4, 5, 6]
    assert sum(model.batches) == 8


def test_requests_wait_for_room_and_only_too_many_of_them_are_refused() -> None:
    model = FakeModel()

    async def use(engine: Engine[FakeModel]) -> list[Scores | BaseException]:
        async with held_up(engine, model) as queue:
            tasks = []
            for i in range(7):
                tasks.append(asyncio.create_task(engine.score([ids(*range(10 * i, 10 * i + 10))])))
                await until(lambda: queue.num_queued_tokens // 10 + queue.num_waiting_requests == len(tasks))
            with pytest.raises(OverloadedError, match="5 requests wait"):
                await engine.score([ids(1)])
        return await settle(*tasks)

    answers = with_engine(use, model, max_queue_tokens=20, max_waiting=5)
    assert [scores_of(answer)[0] for answer in answers] == [45 + 100 * i for i in range(7)]


def test_a_request_larger_than_the_queue_enters_piece_by_piece() -> None:
    answer = with_engine(lambda e: e.score([ids(*range(i, i + 10)) for i in range(200)]), max_queue_tokens=50)
    assert len(answer.items) == 200


def test_closing_answers_whoever_still_waits() -> None:
    model = FakeModel()

    async def use(engine: Engine[FakeModel]) -> list[Scores | BaseException]:
        async with held_up(engine, model) as queue:
            tasks = [asyncio.create_task(engine.score([ids(i)])) for i in range(5)]
            await until(lambda: queue.num_queued_tokens == 5)
            engine.reject_all()
            answers = await settle(*tasks)
        with pytest.raises(ShuttingDownError):
            await engine.score([ids(1)])
        return answers

    assert all(isinstance(answer, ShuttingDownError) for answer in with_engine(use, model))


def test_token_ids_are_refused_where_they_mean_different_tokens() -> None:
    other = FakeModel("safety")
    other.tokenization = Tokenization(make_tokenizer(add_bos=False), 100, VOCAB_SIZE)

    async def use(engine: Engine[FakeModel]) -> None:
        with pytest.raises(InvalidInputError, match="name one model"):
            await engine.score([ids(1, 2)])
        assert (await engine.score([ids(1, 2)], models=("safety",))).num_tokens == 2

    with_engine(use, other, FakeModel())


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_no_future_is_ever_left_hanging(data: st.DataObject) -> None:
    """Requests that fail, are cancelled, time out and outlive the engine, at random: each one is answered."""
    plans = data.draw(
        st.lists(
            st.tuples(
                st.lists(st.sampled_from([5, 6, 7, FAIL, NAN, DIE, -1]), min_size=1, max_size=3),
                st.sampled_from(["wait", "cancel", "time out"]),
            ),
            min_size=1,
            max_size=15,
        )
    )
    closes = data.draw(st.booleans())

    async def use(engine: Engine[FakeModel]) -> list[Scores | BaseException]:
        tasks = []
        for tokens, fate in plans:
            deadline = 0.001 if fate == "time out" else 30
            tasks.append(asyncio.create_task(engine.score([ids(t) for t in tokens], deadline_seconds=deadline)))
            await asyncio.sleep(0)
            if fate == "cancel":
                tasks[-1].cancel()
        if closes:
            engine.reject_all()
        return await asyncio.wait_for(settle(*tasks), 20)

    answers = with_engine(use, FakeModel(max_batch_tokens=3), max_queue_tokens=4)
    assert len(answers) == len(plans)
    assert all(isinstance(a, Scores | RequestError | asyncio.CancelledError) for a in answers)


def test_out_of_memory_empties_the_prefix_cache_once_and_then_splits_the_batch() -> None:
    done: list[str] = []

    class Cached(FakeModel):
        def shrink_cache(self) -> bool:
            done.append("shrink")
            return True

        def score(self, batch: Batch) -> list[Scored]:
            done.append(f"score {len(batch)}")
            return super().score(batch)

    answer = with_engine(lambda engine: engine.score([ids(i) for i in range(10, 14)]), Cached(fits=2))
    assert scores_of(answer) == list(range(10, 14))
    assert done == ["score 4", "shrink", "score 4", "score 2", "score 2"]
