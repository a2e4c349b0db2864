"""Two models on two devices have a thread and a queue each, and score at the same time; and which errors mean too little memory."""

import asyncio
import threading

import pytest
import torch

from app.engine.batch import Batch
from app.engine.devices import is_out_of_memory
from app.engine.engine import Engine
from app.engine.inputs import Input, Text, TokenIds
from app.engine.sequence import Scored, TokenSequence
from app.engine.tokenization import Tokenization
from app.service import load_models
from app.settings import Settings
from tests.models import VOCAB_SIZE, make_tokenizer

SECONDS = 30


class MeetingModel:
    """Scores only while the other model is scoring, too: alone it would wait until the barrier breaks."""

    is_causal = True
    max_batch_tokens = 512

    def __init__(self, name: str, device: str, barrier: threading.Barrier, tokenization: Tokenization) -> None:
        self.name, self.device, self.barrier, self.tokenization = name, torch.device(device), barrier, tokenization
        self.threads: set[int] = set()

    def find_fault(self, sequence: TokenSequence) -> str | None:  # noqa: ARG002 - the protocol's
        return None

    def num_cached_tokens(self, sequence: TokenSequence, *, token_scores: bool) -> int:  # noqa: ARG002 - the protocol's
        return 0

    def shrink_cache(self) -> bool:
        return False

    def score(self, batch: Batch) -> list[Scored]:
        self.threads.add(threading.get_ident())
        self.barrier.wait(SECONDS)
        return [Scored(float(sequence.num_tokens)) for sequence in batch.sequences]


def test_two_devices_score_one_request_at_the_same_time() -> None:
    tokenization = Tokenization(make_tokenizer(), 512, VOCAB_SIZE)
    barrier = threading.Barrier(2)
    models = {
        name: MeetingModel(name, device, barrier, tokenization)
        for name, device in (("safety", "cuda:0"), ("helpfulness", "cuda:1"))
    }

    async def run() -> list[float]:
        engine = Engine(models)
        engine.start()
        assert len(engine.devices) == 2
        try:
            scores = await engine.score([Input(TokenIds([5, 6, 7]))], deadline_seconds=SECONDS)
        finally:
            engine.reject_all()
            await asyncio.to_thread(engine.close)
        return [item.score for item in scores.items[0].values()]

    assert asyncio.run(run()) == [3.0, 3.0]
    assert not barrier.broken
    assert models["safety"].threads.isdisjoint(models["helpfulness"].threads)


def test_real_models_on_two_devices_give_the_scores_they_give_on_one(
    safety_dir: object, helpfulness_dir: object
) -> None:
    """`cpu:0` and `cpu:1` are two devices to torch and to the engine, though one piece of silicon."""
    sources = {"safety_model": str(safety_dir), "helpfulness_model": str(helpfulness_dir)}
    inputs = [Input(Text(f"a text of number {i}")) for i in range(40)]

    async def scores(**devices: str) -> tuple[int, list[dict[str, float]]]:
        engine = Engine(load_models(Settings(_env_file=None, **sources, **devices)))  # type: ignore[arg-type]
        engine.start()
        try:
            result = await engine.score(inputs, deadline_seconds=SECONDS)
        finally:
            engine.reject_all()
            await asyncio.to_thread(engine.close)
        return len(engine.devices), [{name: each.score for name, each in item.items()} for item in result.items]

    one, together = asyncio.run(scores(safety_device="cpu", helpfulness_device="cpu"))
    two, apart = asyncio.run(scores(safety_device="cpu:0", helpfulness_device="cpu:1"))
    assert (one, two) == (1, 2)
    assert apart == together


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes"),
            True,
        ),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the matmul primitive"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_that_mean_too_little_memory(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory
