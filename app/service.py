"""The running service: settings, models, engine, and whether it is loading, ready, draining or failed.

The one place that loads models and decides what a request may ask of them; `app.main` owns its lifetime.
"""

import asyncio
import gc
import logging
from collections.abc import Sequence as Many
from typing import cast

import torch

from app.engine.engine import Engine, Scores
from app.engine.loading import load_checkpoint
from app.engine.process import give_back_freed_memory, prepare_process
from app.engine.refusals import one_line
from app.engine.reward_model import RewardModel
from app.engine.self_test import choose_path
from app.engine.tokenization import Input, Text, Truncation
from app.errors import (
    InvalidInputError,
    NotReadyError,
    ReloadInProgressError,
    ReloadRefusedError,
    RewardServiceError,
    ShuttingDownError,
    StartError,
)
from app.metrics import Metrics
from app.record import note_items, note_scores
from app.settings import MODEL_NAMES, ModelName, Settings
from app.tracing import Tracing, provider_from_environment
from app.worker import Worker

logger = logging.getLogger(__name__)

GARBAGE_OBJECTS = 5_000
"""New objects that call for a collection: a request makes hundreds, and next to no circles."""
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 4096, 32768


def load_models(settings: Settings) -> dict[str, RewardModel]:
    """The models that the settings name, tested and ready to score; raises StartError in one readable line."""
    sources = {name: settings.model_source(cast("ModelName", name)) for name in MODEL_NAMES}
    prepare_process()
    models = {}
    for name, source in sources.items():
        if source is not None:
            checkpoint = load_checkpoint(
                source,
                device=getattr(settings, f"{name}_device"),
                dtype=settings.dtype,
                trust_remote_code=settings.trust_remote_code,
            )
            by_device = CPU_BATCH_TOKENS if checkpoint.device.type == "cpu" else GPU_BATCH_TOKENS
            model = RewardModel(
                name,
                checkpoint,
                max_batch_tokens=settings.max_batch_tokens or by_device,
                max_length=settings.max_length,
            )
            choose_path(model)
            logger.info("%s: %s on %s, %s path (%s)", name, source, model.device, model.facts.path, model.facts.reason)
            models[name] = model
    return models


class Service:
    """What the routes share. Every method is called on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine: Engine[RewardModel] | None = None
        self.worker = Worker()
        self.start_error: StartError | None = None
        self.draining = False
        self.num_in_flight = 0
        self.tracing = Tracing(provider_from_environment())
        self.metrics = Metrics(self, safety_threshold=settings.safety_threshold)
        # Now: a thread that begins while a small forward runs on one thread would take that for everybody's number.
        self._num_threads = settings.num_threads or torch.get_num_threads()
        self._ready = asyncio.Event()
        self._reloading: Engine[RewardModel] | None = None
        self._retirement: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Loads the models off the loop and scores once; a StartError is kept in `start_error`."""
        try:
            self.engine = await self._new_engine()
        except StartError as error:
            self.start_error = error
        except Exception as error:
            logger.exception("loading failed")
            self.start_error = StartError(f"loading failed: {error!r}")
        finally:
            self._ready.set()

    async def reload(self) -> None:
        """Loads the configured models anew beside those that serve, tests them and swaps them in.

        Requests that were accepted before get their answers from the old ones, which are then given up. Raises
        ReloadInProgressError, or ReloadRefusedError with the reason: then the old ones stay.
        """
        old = self.ready_engine()
        if self._reloading is not None:
            raise ReloadInProgressError("a reload is under way, or the models before it still answer; retry later")
        self._reloading = old
        try:
            engine = await self._new_engine()
        except Exception as error:
            self._reloading = None
            self.metrics.reloaded("refused")
            if not isinstance(error, RewardServiceError):
                logger.exception("reloading failed")
            raise ReloadRefusedError(f"{one_line(error)}; the models that were loaded before stay") from error
        if self.draining:
            self._reloading = None
            await asyncio.to_thread(engine.close)
            raise ShuttingDownError("the service is shutting down; retry elsewhere")
        self.engine = engine
        self.metrics.reloaded("swapped")
        self._retirement = asyncio.create_task(self._retire(old))

    async def _retire(self, engine: Engine[RewardModel]) -> None:
        await engine.close_when_done()
        self._reloading = None
        await asyncio.to_thread(give_back_freed_memory)

    async def _new_engine(self) -> Engine[RewardModel]:
        """An engine with the models loaded off the loop, which has scored once."""
        engine = Engine(
            await asyncio.to_thread(self._load),
            max_queue_tokens=self.settings.max_queue_tokens,
            max_waiting_requests=self.settings.max_waiting_requests,
            num_threads=self._num_threads,
        )
        engine.start()
        try:
            await engine.score([Input(Text("ready"))])
        except BaseException:
            await asyncio.to_thread(engine.close)
            raise
        self.metrics.listen(engine)  # not before: what was scored so far was nobody's
        # What is loaded stays: without this, every full collection walks all of torch and stops every thread.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE_OBJECTS)
        return engine

    def _load(self) -> dict[str, RewardModel]:
        torch.set_num_threads(self._num_threads)
        return load_models(self.settings)

    async def wait_until_ready(self) -> None:
        """Returns once requests can be answered; raises what kept the service from it."""
        await self._ready.wait()
        if self.start_error is not None:
            raise self.start_error

    async def close(self) -> None:
        """Refuses what is left and stops the threads."""
        for engine in {self.engine, self._reloading}:
            if engine is not None:
                engine.refuse_all()
                await asyncio.to_thread(engine.close)
        await asyncio.to_thread(self.worker.close)

    def accept(self) -> None:
        """Asked once a request, before its body is read: what was accepted is answered, whenever draining begins."""
        if self.draining:
            raise ShuttingDownError("the service is shutting down; retry elsewhere")
        self.ready_engine()

    def ready_engine(self) -> Engine[RewardModel]:
        if self.engine is None:
            raise NotReadyError("the models are still loading; retry when /ready answers 200")
        return self.engine

    def require_models(self, wanted: Many[str] | None, needed_for: str) -> tuple[str, ...]:
        """The models wanted, by default all that are loaded; InvalidInputError where one is not."""
        loaded = self.ready_engine().models
        for name in wanted or ():
            if name not in loaded:
                raise InvalidInputError(
                    f"{needed_for} needs the {name} model, which is not loaded; set REWARD_{name.upper()}_MODEL"
                )
        return tuple(dict.fromkeys(wanted)) if wanted is not None else tuple(loaded)

    def check_count(self, name: str, count: int) -> None:
        note_items(count)
        if count > self.settings.max_items:
            raise InvalidInputError(
                f"{name} has {count} entries; the limit is {self.settings.max_items}, so split them"
            )

    async def score(
        self,
        inputs: Many[Input],
        *,
        models: tuple[str, ...],
        truncation: Truncation = "error",
        token_scores: bool = False,
        deadline_seconds: float | None = None,
    ) -> Scores:
        """`Engine.score` once the models are ready; the deadline is the settings' unless a caller has its own."""
        scores = await self.ready_engine().score(
            inputs,
            models=models,
            truncation=truncation,
            token_scores=token_scores,
            deadline_seconds=deadline_seconds if deadline_seconds is not None else self.settings.deadline_seconds,
        )
        note_scores(scores)
        return scores
