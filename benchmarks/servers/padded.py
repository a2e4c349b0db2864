"""A reward server like those that trainers ship: transformers' forward on padded batches in arrival order.

`python -m benchmarks.servers.padded CHECKPOINT --port N --batch-size 16 --threads 2`

It answers OpenRLHF's `/get_reward`. OpenRLHF's own script scores each request by itself on the event loop. This server is
faster: it batches waiting texts, oldest first, up to the batch size, and runs the model on a thread. `--batch-size 1` is OpenRLHF's behaviour
for the one-query requests that its trainer sends.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import torch
import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

Waiting: TypeAlias = tuple[str, asyncio.Future[float]]


class Query(BaseModel):
    query: list[str]
    prompts: list[str] = []


class Rewards(BaseModel):
    rewards: list[float]
    scores: list[float]


class PaddedScorer:
    """Scores texts as one padded batch."""

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def score(self, texts: Sequence[str]) -> list[float]:
        batch = self._tokenizer(list(texts), padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits  # (batch, 1)
        return [float(score) for score in logits[:, 0]]


async def score_in_arrival_order(scorer: PaddedScorer, waiting: asyncio.Queue[Waiting], batch_size: int) -> None:
    """Forever take up to `batch_size` waiting texts and score them off the event loop."""
    # One thread: torch keeps a pool of threads for each thread that calls it, and several pools fight for the cores.
    model_thread = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    while True:
        batch = [await waiting.get()]
        while len(batch) < batch_size and not waiting.empty():
            batch.append(waiting.get_nowait())
        scores = await loop.run_in_executor(model_thread, scorer.score, [text for text, _ in batch])
        for (_, future), score in zip(batch, scores, strict=True):
            if not future.done():
                future.set_result(score)


def create_app(scorer: PaddedScorer, batch_size: int) -> FastAPI:
    waiting: asyncio.Queue[Waiting] = asyncio.Queue()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(score_in_arrival_order(scorer, waiting, batch_size))
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/get_reward")
    async def get_reward(body: Query) -> Rewards:
        futures = [asyncio.get_running_loop().create_future() for _ in body.query]
        for text, future in zip(body.query, futures, strict=True):
            waiting.put_nowait((text, future))
        rewards = list(await asyncio.gather(*futures))
        return Rewards(rewards=rewards, scores=rewards)

    @app.get("/ready")
    async def ready(_request: Request) -> dict[str, bool]:
        return {"ready": True}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    app = create_app(PaddedScorer(arguments.checkpoint), arguments.batch_size)
    uvicorn.run(app, port=arguments.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
