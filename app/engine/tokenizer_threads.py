"""The threads that tokenize: one for short inputs, several for long ones, so that long texts do not delay short ones.

A tokenizer releases the GIL, so a long text on a thread of its own takes only processor time from others. Long texts take
turns chunk by chunk (`app.engine.encoder`). Knows neither tokenizers nor requests.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from app.errors import InferenceFailedError, one_line

logger = logging.getLogger(__name__)
R = TypeVar("R")
NUM_LONG_THREADS = 16
"""At most this many requests with long texts are tokenized at a time; further ones wait."""


class RequestQueue(Generic[R]):
    """Requests that wait for a thread. Thread-safe."""

    def __init__(self, max_taken: int | None) -> None:
        self._max_taken = max_taken
        self._requests: deque[R] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False

    @property
    def num_waiting(self) -> int:
        return len(self._requests)

    def put(self, requests: list[R]) -> bool:
        """Adds the requests. Once the queue is stopped, it adds none and returns False."""
        with self._changed:
            if self._is_stopped:
                return False
            self._requests.extend(requests)
            self._changed.notify(len(requests))
            return True

    def take(self) -> list[R]:
        """The oldest requests, up to `max_taken`; waits for the first. Empty once the queue is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._is_stopped)
            if self._is_stopped:
                return []
            num_taken = min(len(self._requests), self._max_taken or len(self._requests))
            return [self._requests.popleft() for _ in range(num_taken)]

    def discard(self, requests: Collection[R]) -> None:
        with self._changed:
            if self._requests:
                self._requests = deque(each for each in self._requests if each not in requests)

    def stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()


class TokenizerThread(threading.Thread, Generic[R]):
    """Calls `tokenize` with the requests of its queue. Once the queue is stopped, it ends after its current call.

    When it ends, for whatever reason, it stops the queue.
    """

    def __init__(self, name: str, queue: RequestQueue[R], tokenize: Callable[[list[R]], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._queue = queue
        self._tokenize = tokenize

    def stop(self) -> None:
        self._queue.stop()

    def run(self) -> None:
        try:
            while requests := self._queue.take():
                self._tokenize(requests)
        finally:
            self._queue.stop()


class TokenizerThreads(Generic[R]):
    """Calls `tokenize` with requests until none has inputs left.

    `tokenize` handles the next inputs of each request and returns the requests that are not finished. One call gets all
    requests whose next input is short; a request whose next input `is_long` gets a call of its own. `fail` gets the requests
    of a call that raised, and those for which there is no thread any more.
    """

    def __init__(
        self,
        tokenize: Callable[[list[R]], list[R]],
        fail: Callable[[list[R], Exception], None],
        is_long: Callable[[R], bool],
    ) -> None:
        self._tokenize = tokenize
        self._fail = fail
        self._is_long = is_long
        self._short: RequestQueue[R] = RequestQueue(None)
        self._long: RequestQueue[R] = RequestQueue(1)
        self.threads = [
            TokenizerThread("tokenizer", self._short, self._tokenize_next),
            *(TokenizerThread(f"tokenizer-{i}", self._long, self._tokenize_next) for i in range(NUM_LONG_THREADS)),
        ]

    @property
    def num_waiting(self) -> int:
        return self._short.num_waiting + self._long.num_waiting

    def submit(self, requests: list[R]) -> None:
        short: list[R] = []
        long: list[R] = []
        for request in requests:
            (long if self._is_long(request) else short).append(request)
        for queue, own in ((self._short, short), (self._long, long)):
            if own and not queue.put(own):
                self._fail(own, InferenceFailedError("a tokenizer thread has died; the service must be restarted"))

    def discard(self, requests: Collection[R]) -> None:
        """Removes those of the requests that still wait for a thread."""
        for queue in (self._short, self._long):
            queue.discard(requests)

    def _tokenize_next(self, requests: list[R]) -> None:
        try:
            self.submit(self._tokenize(requests))
        except BaseException as error:  # such as a Rust panic: it fails these requests, and the thread goes on
            logger.exception("tokenizing failed for %d requests", len(requests))
            self._fail(requests, error if isinstance(error, Exception) else RuntimeError(one_line(error)))
