"""The facts of one HTTP request that its log line, its metrics and its spans report: counts and times, never a text.

A context variable holds the context, so every function that runs in the request's task can read it and add to it.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter

from app.engine.requests import Scores, Times

UNMATCHED = "unmatched"
"""The route of a request that matched none."""


@dataclass(slots=True)
class RequestContext:
    """Filled in while the request runs. `started` is in seconds of `time.perf_counter`.

    `code` is that of the error response, if the response is one. The numbers of items and tokens stay None for a
    request that reached no scoring code.
    """

    request_id: str
    method: str
    started: float = field(default_factory=perf_counter)
    route: str = UNMATCHED
    status: int = 0
    code: str | None = None
    num_items: int | None = None
    num_tokens: int | None = None
    num_computed_tokens: int | None = None
    num_cached_tokens: int | None = None
    times: Times | None = None
    trace_id: str | None = None

    def set_scores(self, scores: Scores) -> None:
        """Takes over the token counts and the times of a call of `Engine.score`."""
        self.num_tokens = scores.num_tokens
        self.num_computed_tokens = scores.num_computed_tokens
        self.num_cached_tokens = scores.num_cached_tokens
        self.times = scores.times


_current: ContextVar[RequestContext | None] = ContextVar("request", default=None)


def bind_request(context: RequestContext) -> None:
    """Makes this the context of the current task, and of the tasks that it starts from now on."""
    _current.set(context)


def current_request() -> RequestContext | None:
    """The context of the request that the current task works for; None outside a request."""
    return _current.get()
