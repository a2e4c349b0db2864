"""Takes the prefix caches of models away while others are loaded beside them: on a GPU the caches hold what is free."""

import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from app.engine.reward_model import RewardModel

if TYPE_CHECKING:
    from app.engine.attention.pool import KeyValueCache

RELOADING = "its memory is lent to a reload"
SECONDS = 60


class PausedCaches:
    """The caches of the models that are on a GPU. From any thread: a batch that is computed keeps the cache that it has."""

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
        """Returns when the batches that still used the caches have ended, or after a minute."""
        for freed in self._freed:
            freed.wait(SECONDS)

    def resume(self) -> None:
        """Gives the models caches of the same size, empty."""
        for model, cache in self._models:
            model.cache, model.cache_reason = cache, None


def is_paused_on(device_type: str) -> bool:
    """On the CPU a cache takes a small part of the memory, so that it can stay."""
    return device_type == "cuda"
