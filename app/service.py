"""The running service: settings, models, engine, and whether it is loading, ready, draining or failed.

The one place that loads models and decides what a request may ask of them; `app.main` owns its lifetime.
"""

import asyncio
import gc
import logging
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from app.checkpoints.loading import load_checkpoint
from app.checkpoints.memory import available_bytes, prefix_cache_bytes
from app.checkpoints.model_settings import in_words, is_model_name
from app.checkpoints.prepacking import is_prepacking_faster, prepack
from app.checkpoints.sharing import SharedBases, shared_bytes
from app.engine.cache_test import add_cache
from app.engine.engine import Engine
from app.engine.forward_memory import ForwardMemory
from app.engine.inputs import Input, Truncation
from app.engine.num_threads import ThreadChooser, ThreadLimit, thread_limit
from app.engine.paused_caches import PausedCaches
from app.engine.process import give_back_freed_memory, in_daemon_thread, prepare_process
from app.engine.processors import FreeProcessors
from app.engine.requests import Scores
from app.engine.reward_model import RewardModel
from app.engine.self_test import sample_input, select_plan
from app.engine.thread_counts import follow_load, keep_equal_counts
from app.engine.units import byte_size
from app.engine.warm_up import DEFAULT_BATCH_TOKENS, warm_up
from app.errors import (
    InvalidInputError,
    NotReadyError,
    ReloadInProgressError,
    ReloadRefusedError,
    RewardServiceError,
    ShuttingDownError,
    StartError,
    one_line,
)
from app.http.body_worker import Worker
from app.observability.metrics import Metrics
from app.observability.request_context import current_request
from app.observability.tracing import Tracing, provider_from_environment
from app.settings import Settings, how_to_load

logger = logging.getLogger(__name__)

GARBAGE_OBJECTS = 5_000
"""New objects that call for a collection: a request makes hundreds, and next to no circles."""
CPU_BATCH_TOKENS = 4096


def load_models(settings: Settings, limit: ThreadLimit | None = None) -> dict[str, RewardModel]:
    """The models that the settings name, tested and ready to score; raises StartError in one readable line.

    `limit` is that of the threads per forward on CPU, by default the settings'.
    """
    limit = limit if limit is not None else thread_limit(settings.num_threads)
    wanted = {name: settings.model_settings(name) for name in settings.model_names}
    prepare_process()
    chooser = ThreadChooser(limit, FreeProcessors())
    bases = SharedBases(given.source for given in wanted.values())
    checkpoints = {
        name: load_checkpoint(
            given.source,
            device=given.device,
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
            declared=given.head,
            text=given.text,
            bases=bases,
        )
        for name, given in wanted.items()
    }
    if is_prepacking_faster():
        prepack([checkpoint.net for checkpoint in checkpoints.values()])
    models: dict[str, RewardModel] = {}
    test_states: dict[str, Tensor] = {}
    for name, checkpoint in checkpoints.items():
        by_device = CPU_BATCH_TOKENS if checkpoint.device.type == "cpu" else DEFAULT_BATCH_TOKENS
        model = RewardModel(
            name,
            checkpoint,
            max_batch_tokens=settings.max_batch_tokens or by_device,
            max_length=settings.max_length,
        )
        follow_load(model, chooser)
        states = select_plan(model)
        if keep_equal_counts(model, limit):  # else the states may have the bits of a number that is not used any more
            test_states[name] = states
        if model.device.type == "cpu":
            model.memory = ForwardMemory.of(model, partial(available_bytes, model.device))
        logger.info(
            "%s: %s on %s, %s path (%s)", name, checkpoint.source, model.device, model.plan.name, model.plan.reason
        )
        if shared := shared_bytes(model.net, [other.net for other in models.values()]):
            logger.info("%s: shares %s of weights with a model above, which has the same base", name, byte_size(shared))
        models[name] = model
    if any(model.device.type == "cpu" for model in models.values()):
        logger.info("threads per forward pass on CPU: %d (%s)", limit.num_threads, limit.reason)
    for device in dict.fromkeys(model.device for model in models.values()):
        own = [model for model in models.values() if model.device == device]
        is_gpu = device.type == "cuda"
        batch_bytes = warm_up(own, settings.max_batch_tokens, available_bytes(device)) if is_gpu else 0
        add_caches(own, settings.prefix_cache_mb, batch_bytes, test_states)
    return models


def add_caches(
    models: Sequence[RewardModel], megabytes: float | None, batch_bytes: int, test_states: Mapping[str, Tensor]
) -> None:
    """Gives every packed model of one device its share of the device's prefix cache."""
    packed = [model for model in models if model.plan.path == "packed"]
    if packed and megabytes != 0:
        num_bytes = prefix_cache_bytes(packed[0].device, megabytes, batch_bytes) // len(packed)
        for model in packed:
            add_cache(model, num_bytes, test_states=test_states.get(model.name), is_required=megabytes is not None)
            size = f"{model.cache.max_bytes / 1e6:.0f} MB" if model.cache is not None else f"none, {model.cache_reason}"
            logger.info("%s: prefix cache: %s", model.name, size)


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
        self.thread_limit = thread_limit(settings.num_threads)
        self._ready = asyncio.Event()
        self._loading: asyncio.Future[dict[str, RewardModel]] | None = None
        self._reloading: Engine[RewardModel] | None = None
        self._reloads: set[asyncio.Task[None]] = set()
        self._retirement: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Loads the models off the loop and scores once; a StartError is kept in `start_error`."""
        try:
            self.engine = await self._new_engine()
        except ShuttingDownError:
            logger.info("stopped while the models were loading")
        except StartError as error:
            self.start_error = error
        except Exception as error:
            logger.exception("loading failed")
            self.start_error = StartError(f"loading failed: {error!r}")
        finally:
            self._ready.set()

    async def reload(self) -> None:
        """Loads the configured models anew beside those that serve, tests them and swaps them in.

        It goes on where the caller is cancelled: whoever asked for it wants it, and may have been cut off by a proxy.
        Requests that were accepted before get their answers from the old ones, which are then given up. Raises
        ReloadInProgressError, or ReloadRefusedError with the reason: then the old ones stay. Raises ShuttingDownError
        where the service is told to stop meanwhile.
        """
        reload = asyncio.create_task(self._reload())
        self._reloads.add(reload)
        reload.add_done_callback(self._reload_ended)
        await asyncio.shield(reload)

    def _reload_ended(self, reload: asyncio.Task[None]) -> None:
        """Its outcome goes to the log, too: the client that asked may not be there any more."""
        self._reloads.discard(reload)
        if reload.cancelled():
            return
        if error := reload.exception():
            logger.warning("the models were not reloaded: %s", one_line(error))
        else:
            logger.info("the models were reloaded")

    async def _reload(self) -> None:
        old = self.ready_engine()
        if self._reloading is not None:
            raise ReloadInProgressError("a reload is under way, or the models before it still answer; retry later")
        self._reloading = old
        paused = PausedCaches(old.models.values())
        try:
            await asyncio.to_thread(paused.wait_until_freed)
            engine = await self._new_engine()
        except ShuttingDownError:
            self._reloading = None
            raise
        except Exception as error:
            self._reloading = None
            paused.resume()
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
        """An engine with the models loaded off the loop, which has scored once.

        Raises ShuttingDownError where `abandon_loading` is called meanwhile.
        """
        self._loading = in_daemon_thread(self._load)
        engine = Engine(
            await self._loading,
            max_queue_tokens=self.settings.max_queue_tokens,
            max_waiting_requests=self.settings.max_waiting_requests,
            num_threads=self.thread_limit.num_threads,
        )
        engine.start()
        try:
            for name, model in engine.models.items():
                await engine.score([sample_input(model)], models=(name,))
        except asyncio.CancelledError:
            in_daemon_thread(engine.close)  # not awaited: the first forward may be compiling for minutes
            raise
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
        torch.set_num_threads(self.thread_limit.num_threads)
        return load_models(self.settings, self.thread_limit)

    async def wait_until_ready(self) -> None:
        """Returns once requests can be answered; raises what kept the service from it."""
        await self._ready.wait()
        if self.start_error is not None:
            raise self.start_error

    def abandon_loading(self) -> None:
        """Stops waiting for models that are being loaded, and fails whoever waits for them with ShuttingDownError.

        The thread that loads cannot be stopped. The process does not wait for it when it exits.
        """
        if self._loading is not None and not self._loading.done():
            self._loading.set_exception(ShuttingDownError("the service is shutting down; retry elsewhere"))

    async def close(self) -> None:
        """Refuses what is left and stops the threads."""
        self.abandon_loading()
        for reload in self._reloads:
            reload.cancel()
        for engine in {self.engine, self._reloading}:
            if engine is not None:
                engine.reject_all()
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

    def require_models(
        self, wanted: Sequence[str] | None, needed_for: str, *, is_list: bool = False
    ) -> tuple[str, ...]:
        """The models wanted, by default all that are loaded; InvalidInputError where one is not.

        `needed_for` begins the message; where it is a request's list of the models, the entry's index follows it.
        """
        loaded = self.ready_engine().models
        for index, name in enumerate(wanted or ()):
            if name not in loaded:
                place = f"{needed_for}[{index}]" if is_list else needed_for
                remedies = [f"name one of {', '.join(loaded)}", *([how_to_load(name)] if is_model_name(name) else [])]
                raise InvalidInputError(
                    f"{place} needs the {in_words(name)} model, which is not loaded; {', or '.join(remedies)}"
                )
        return tuple(dict.fromkeys(wanted)) if wanted is not None else tuple(loaded)

    def check_count(self, name: str, count: int) -> None:
        if context := current_request():
            context.num_items = count
        if count > self.settings.max_items:
            raise InvalidInputError(
                f"{name} has {count} entries; the limit is {self.settings.max_items}, so split them"
            )

    async def score(
        self,
        inputs: Sequence[Input],
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
        if context := current_request():
            context.set_scores(scores)
        return scores
