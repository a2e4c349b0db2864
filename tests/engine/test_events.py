"""What the engine tells its listener: counts that add up, times in order, and faults that stay the listener's own."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.engine import Engine
from app.engine.events import BatchScored, RequestOutcome
from app.engine.requests import Scores
from tests.engine.test_engine import FAIL, NAN, FakeModel, held_up, ids, scores_of, settle, with_engine


class Diary:
    def __init__(self) -> None:
        self.batches: list[BatchScored] = []
        self.outcomes: list[RequestOutcome] = []

    def batch_scored(self, event: BatchScored) -> None:
        self.batches.append(event)

    def request_ended(self, outcome: RequestOutcome) -> None:
        self.outcomes.append(outcome)


class Broken:
    def batch_scored(self, event: BatchScored) -> None:
        raise ZeroDivisionError(event)

    def request_ended(self, outcome: RequestOutcome) -> None:
        raise ZeroDivisionError(outcome)


def told(*inputs: list[int], models: tuple[FakeModel, ...] = ()) -> tuple[Diary, list[Scores | BaseException]]:
    """Scores each list of ids as a request of its own, all queued together."""
    diary = Diary()

    async def use(engine: Engine[FakeModel]) -> list[Scores | BaseException]:
        first = next(iter(engine.models.values()))
        async with held_up(engine, first) as scheduler:
            engine.events.listener = diary
            tasks = [asyncio.create_task(engine.score([ids(*token_ids)])) for token_ids in inputs]
            while scheduler.num_jobs < len(inputs):  # noqa: ASYNC110 - the tokenizer's thread changes it
                await asyncio.sleep(0)
        return await settle(*tasks)

    answers = with_engine(use, *models)
    diary.batches = [batch for batch in diary.batches if batch.num_tokens > 1]  # what held it up was one token
    return diary, answers


def test_a_batch_is_one_event_with_what_it_shared() -> None:
    diary, _ = told(list(range(5, 45)), list(range(5, 45)), [*range(5, 35), 50, 51])
    (batch,) = diary.batches
    assert (batch.device, batch.num_sequences, batch.num_tokens, batch.num_computed_tokens) == ("cpu", 3, 112, 42)
    assert len(batch.queue_seconds) == 3
    assert min(batch.queue_seconds) > 0
    (forward,) = batch.forwards
    assert (forward.model, forward.num_tokens, forward.num_computed_tokens) == ("helpfulness", 112, 42)
    assert sorted(forward.scores) == sorted([sum(range(5, 45)), sum(range(5, 45)), sum(range(5, 35)) + 101])
    assert 0 < forward.seconds <= batch.seconds


def test_every_request_ends_once_with_its_outcome() -> None:
    diary, _ = told([5, 6], [7, FAIL])  # a fault fails its whole batch, and not the one before
    assert sorted(diary.outcomes) == ["failed", "failed", "scored"]


def test_a_request_whose_caller_leaves_is_told_as_cancelled() -> None:
    diary = Diary()
    model = FakeModel()

    async def use(engine: Engine[FakeModel]) -> None:
        engine.events.listener = diary
        async with held_up(engine, model):
            task = asyncio.create_task(engine.score([ids(5), ids(6)]))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert diary.outcomes == ["cancelled"]

    with_engine(use, model)


def test_a_score_that_is_not_finite_is_told_too() -> None:
    diary, _ = told([5, NAN], [6, 7])
    scores = [score for batch in diary.batches for forward in batch.forwards for score in forward.scores]
    assert len(scores) == 2
    assert sum(score != score for score in scores) == 1  # noqa: PLR0124 - NaN


def test_two_models_of_a_device_are_two_forwards_of_one_batch() -> None:
    diary, _ = told([5, 6, 7], models=(FakeModel("safety"), FakeModel("helpfulness")))
    (batch,) = diary.batches
    assert [forward.model for forward in batch.forwards] == ["safety", "helpfulness"]
    assert batch.forwards[0].started + batch.forwards[0].seconds <= batch.forwards[1].started


def test_an_answer_knows_when_its_parts_happened() -> None:
    _, (answer,) = told([5, 6, 7])
    assert isinstance(answer, Scores)
    times = answer.times
    assert times.submitted <= times.first_queued == times.last_queued <= times.last_taken
    assert times.queue_seconds == times.last_taken - times.first_queued
    (batch,) = times.batches
    assert times.last_taken <= batch.forwards[0].started


def test_a_listener_that_raises_disturbs_nobody() -> None:
    async def use(engine: Engine[FakeModel]) -> list[Scores | BaseException]:
        engine.events.listener = Broken()
        answers = [await engine.score([ids(5, 6)]) for _ in range(3)]
        assert engine.is_alive
        return list(answers)

    assert [scores_of(answer) for answer in with_engine(use)] == [[11.0]] * 3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(5, 9), min_size=1, max_size=40), min_size=1, max_size=8))
def test_the_events_add_up_to_what_the_answers_say(inputs: list[list[int]]) -> None:
    diary = Diary()

    async def use(engine: Engine[FakeModel]) -> list[Scores | BaseException]:
        engine.events.listener = diary
        return await settle(*(engine.score([ids(*token_ids)]) for token_ids in inputs))

    answers = [answer for answer in with_engine(use) if isinstance(answer, Scores)]
    assert len(answers) == len(inputs) == len(diary.outcomes)
    assert sum(batch.num_sequences for batch in diary.batches) == len(inputs)
    assert sum(batch.num_tokens for batch in diary.batches) == sum(answer.num_tokens for answer in answers)
    computed = sum(batch.num_computed_tokens for batch in diary.batches)
    assert computed == sum(answer.num_computed_tokens for answer in answers)
