"""The service's engine without HTTP: the same texts at the same concurrency, one task per text.

`python -m benchmarks.servers.in_process CHECKPOINT --port N --threads 2`

One control request, `POST /run`, contains a whole run's texts, so the measurement does not include HTTP. Only `open_engine` uses the
engine's API.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from app.engine.inputs import Input, Text
from app.service import Service
from app.settings import Settings
from benchmarks.servers.dialects import Reply

Score: TypeAlias = Callable[[str], Awaitable[Reply]]
MODEL_NAME = "helpfulness"


class RunRequest(BaseModel):
    texts: list[str]
    concurrency: int


class RunAnswer(BaseModel):
    """`seconds` for the whole run and `latencies` of each text in seconds; `scores` in the texts' order."""

    seconds: float
    latencies: list[float]
    scores: list[float | None]
    num_computed_tokens: list[int | None]


@asynccontextmanager
async def open_engine(checkpoint: Path, num_threads: int) -> AsyncIterator[Score]:
    """Load `checkpoint` into the service's engine; the context's value scores one text as the HTTP route would."""
    service = Service(Settings(safety_model="", helpfulness_model=str(checkpoint), num_threads=num_threads))
    await service.load()
    await service.wait_until_ready()
    engine = service.ready_engine()

    async def score(text: str) -> Reply:
        scores = await engine.score([Input(Text(text))], models=(MODEL_NAME,))
        return Reply(scores.items[0][MODEL_NAME].score, scores.num_computed_tokens)

    try:
        yield score
    finally:
        await service.close()


async def run(score: Score, request: RunRequest) -> RunAnswer:
    replies: list[Reply | None] = [None] * len(request.texts)
    latencies = [0.0] * len(request.texts)
    pending = iter(range(len(request.texts)))

    async def worker() -> None:
        for index in pending:
            sent = time.perf_counter()
            replies[index] = await score(request.texts[index])
            latencies[index] = time.perf_counter() - sent

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(request.concurrency):
            group.create_task(worker())
    seconds = time.perf_counter() - started
    finished = [reply for reply in replies if reply is not None]
    return RunAnswer(
        seconds=seconds,
        latencies=latencies,
        scores=[reply.score for reply in finished],
        num_computed_tokens=[reply.num_computed_tokens for reply in finished],
    )


def create_app(checkpoint: Path, num_threads: int) -> FastAPI:
    engine: dict[str, Score] = {}

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with open_engine(checkpoint, num_threads) as engine["score"]:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/run")
    async def run_texts(body: RunRequest) -> RunAnswer:
        return await run(engine["score"], body)

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        return {"ready": True}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    app = create_app(arguments.checkpoint, arguments.threads)
    uvicorn.run(app, port=arguments.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
