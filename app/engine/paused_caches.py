"""Frees the prefix caches during a reload, so that a GPU has room for the new models."""

import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from app.engine.reward_model import RewardModel

if TYPE_CHECKING:
    from app.engine.attention.pool import KeyValueCache

RELOADING = "paused during a reload, which needs its memory"
MAX_WAIT_SECONDS = 60


class PausedCaches:
    """The prefix caches of the models on a GPU, detached. Thread-safe: a running batch keeps the cache that it has."""

    def __init__(self, models: Iterable[RewardModel]) -> None:
        self._models: list[tuple[RewardModel, KeyValueCache]] = []
        self._freed: list[threading.Event] = []
        for model in models:
            if model.cache is not None and is_paused_on(model.device.type):
                freed = threading.Event()
                weakref.finalize(model.cache, freed.set)
                self._freed.append(freed)
                self._models.append((model, model.cache.empty_copy()))
                model.cache, model.cache_reason = None, RELOADING

    def wait_until_freed(self) -> None:
        """Waits until the batches that still use the caches have ended, up to a minute per cache."""
        for freed in self._freed:
            freed.wait(MAX_WAIT_SECONDS)

    def resume(self) -> None:
        """Gives the models empty caches of the same size."""
        for model, cache in self._models:
            model.cache, model.cache_reason = cache, None


def is_paused_on(device_type: str) -> bool:
    """Whether a reload frees the caches on such a device. On the CPU they are small enough to stay."""
    return device_type == "cuda"
