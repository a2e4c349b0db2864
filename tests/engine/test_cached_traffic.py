"""Through the whole engine a score does not depend on what the prefix caches hold, to the bit, whatever goes wrong beside it.

Two models of one device, one with sliding windows, one with soft-caps besides. Their caches are so small that pages are evicted all
the time. Requests fork off earlier ones, are cut, want token scores, leave in the middle of a forward, and forwards fail midway.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.checkpoints.loading import load_checkpoint
from app.engine import threads
from app.engine.attention import cpu
from app.engine.attention.pool import KeyValueCache
from app.engine.batch import Batch
from app.engine.engine import Engine
from app.engine.inputs import Input, TokenIds, Truncation
from app.engine.requests import Scores
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from app.errors import InferenceFailedError, NonFiniteScoreError
from tests.engine.loaded import token_ids
from tests.models import make_model

MODELS = {"safety": "gemma2", "helpfulness": "mistral"}
MAX_LENGTH = 200
NUM_ROUNDS, NUM_REQUESTS, NUM_TWICE, NUM_PAGES = 3, 24, 8, 5
LEAVES, FAILS, NO_MEMORY, NOT_FINITE = "somebody leaves", "a fault", "no memory", "not finite"
KINDS = [LEAVES, FAILS, LEAVES, NO_MEMORY, LEAVES, NOT_FINITE, NOT_FINITE]
MAX_NO_MEMORY = 2  # per round: each time a model's cache is halved


@dataclass(frozen=True)
class Ask:
    """One request of the traffic."""

    inputs: list[Input]
    models: tuple[str, ...]
    truncation: Truncation
    token_scores: bool


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModel]:
    loaded = {}
    for name, family in MODELS.items():
        checkpoint = load_checkpoint(str(make_model(tmp_path_factory.mktemp(family), family)), device="cpu")
        model = RewardModel(name, checkpoint, max_batch_tokens=300, max_length=MAX_LENGTH)
        select_plan(model)
        assert model.plan.batch_invariant
        loaded[name] = model
    return loaded


def traffic(rng: np.random.Generator) -> Iterator[Ask]:
    """Requests of one to three texts, each of which forks off an earlier one, is cut from it, repeats it or is new."""
    earlier = [token_ids(rng, int(rng.integers(40, 150))) for _ in range(3)]
    for _ in range(NUM_REQUESTS):
        lists = []
        for _ in range(int(rng.integers(1, 4))):
            parent = earlier[int(rng.integers(len(earlier)))]
            kept = int(rng.choice([0, 64, 128, len(parent), int(rng.integers(len(parent) + 1))]))
            lists.append(parent[:kept] + token_ids(rng, int(rng.choice([1, 20, 70]))))
        earlier += lists
        yield Ask(
            [Input(TokenIds(ids), i, f"items[{i}]") for i, ids in enumerate(lists)],
            [("safety", "helpfulness"), ("safety",), ("helpfulness",)][int(rng.choice(3, p=[0.6, 0.2, 0.2]))],
            "left" if rng.random() < 0.5 else "right",
            bool(rng.random() < 0.15),
        )


def expected_of(models: dict[str, RewardModel], ask: Ask) -> list[dict[str, tuple[float, list[float] | None]]]:
    """Per input the score and the token scores of each model, of the one sequence alone, without a cache."""
    found: list[dict[str, tuple[float, list[float] | None]]] = [{} for _ in ask.inputs]
    for name in ask.models:
        model = models[name]
        for item, sequence in zip(found, model.tokenization.encode(ask.inputs, ask.truncation), strict=True):
            assert isinstance(sequence, TokenSequence)
            (scored,) = model.score(Batch.of([sequence], [ask.token_scores]))
            item[name] = scored.score, scored.token_scores
    return found


def got_of(answer: Scores) -> list[dict[str, tuple[float, list[float] | None]]]:
    return [{name: (score.score, score.token_scores) for name, score in item.items()} for item in answer.items]


class Trouble:
    """What happens in the middle of forwards: in every fourth layer the next of the kinds of trouble, in turn."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.tasks: list[asyncio.Task[Scores]] = []
        self.loop = asyncio.get_running_loop()
        self.num_layers = 0
        self.happened: Counter[str] = Counter()
        self._attend = cpu.BlockAttention.attend

    def attend(self, own: cpu.BlockAttention, *args: Any) -> Tensor:
        self.num_layers += 1
        kind = KINDS[self.num_layers // 4 % len(KINDS)] if self.num_layers % 4 == 0 else None
        if kind == NO_MEMORY and self.happened[kind] == MAX_NO_MEMORY:
            kind = None
        if kind is not None:
            self.happened[kind] += 1
        if kind == LEAVES:
            left = self.tasks[int(self.rng.integers(len(self.tasks)))]
            self.loop.call_soon_threadsafe(left.cancel)
        elif kind == FAILS:
            raise ZeroDivisionError("a fault in the middle of a forward")
        elif kind == NO_MEMORY:
            raise torch.OutOfMemoryError("CUDA out of memory")
        attended = self._attend(own, *args)
        return attended * torch.inf if kind == NOT_FINITE else attended


async def answers_of(
    engine: Engine[RewardModel], asks: list[Ask], rng: np.random.Generator, trouble: Trouble | None = None
) -> list[Scores | BaseException]:
    tasks: list[asyncio.Task[Scores]] = []
    for ask in asks:
        tasks.append(
            asyncio.create_task(
                engine.score(ask.inputs, models=ask.models, truncation=ask.truncation, token_scores=ask.token_scores)
            )
        )
        if trouble is not None:
            trouble.tasks = tasks
        for _ in range(int(rng.integers(3))):
            await asyncio.sleep(0)
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)


@pytest.mark.parametrize("takes_steps", [False, True], ids=["whole forwards", "in steps, as on a GPU"])
def test_every_answer_is_the_one_without_a_cache(
    models: dict[str, RewardModel], monkeypatch: pytest.MonkeyPatch, *, takes_steps: bool
) -> None:
    monkeypatch.setattr(threads, "takes_steps", lambda device: takes_steps)  # noqa: ARG005 - as it is called
    seen: Counter[str] = Counter()
    for seed in range(NUM_ROUNDS):
        rng = np.random.default_rng(seed)
        asks = list(traffic(rng))
        for model in models.values():
            model.cache = None
        expected = [expected_of(models, ask) for ask in asks]
        for model in models.values():
            bytes_per_token = sum(layer.bytes_per_token for layer in model.attended_layers)
            page_bytes = KeyValueCache(0, bytes_per_token).page_bytes
            model.cache = KeyValueCache(NUM_PAGES * page_bytes, bytes_per_token)
        asyncio.run(troubled_round(models, asks, expected, rng, seen))
    expected_kinds = {*KINDS, "evicted pages", "cached tokens"}
    assert expected_kinds <= {kind for kind, count in seen.items() if count}


async def troubled_round(
    models: dict[str, RewardModel],
    asks: list[Ask],
    expected: list[list[dict[str, tuple[float, list[float] | None]]]],
    rng: np.random.Generator,
    seen: Counter[str],
) -> None:
    """Everything is asked twice: while much goes wrong, and after it, with what that has left in the caches. Then the first
    requests, each alone and at once again, so that some find their own tokens whatever the batches before were."""
    engine = Engine(models)
    engine.start()
    try:
        trouble = Trouble(np.random.default_rng(rng.integers(1 << 32)))

        def attend(own: cpu.BlockAttention, *args: Any) -> Tensor:
            return trouble.attend(own, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu.BlockAttention, "attend", attend)
            troubled = await answers_of(engine, asks, rng, trouble)
        later = await answers_of(engine, asks, rng)
        twice = [each for ask in asks[:NUM_TWICE] for _ in range(2) for each in await answers_of(engine, [ask], rng)]
    finally:
        engine.reject_all()
        await asyncio.to_thread(engine.close)
    for answer, wanted in zip(troubled, expected, strict=True):
        if isinstance(answer, Scores):
            assert got_of(answer) == wanted
        else:
            assert isinstance(answer, InferenceFailedError | NonFiniteScoreError | asyncio.CancelledError), answer
            seen[type(answer).__name__] += 1
    twice_expected = [wanted for wanted in expected[:NUM_TWICE] for _ in range(2)]
    for answer, wanted in zip(later + twice, expected + twice_expected, strict=True):
        assert isinstance(answer, Scores), answer
        assert got_of(answer) == wanted
        seen["cached tokens"] += answer.num_cached_tokens
    seen.update(trouble.happened)
    for device in engine.devices.values():
        assert device.scheduler.num_jobs == device.scheduler.num_tokens == 0
    for model in models.values():
        assert model.cache is not None
        seen["evicted pages"] += model.cache.prefixes.check().statistics.num_evicted_pages
