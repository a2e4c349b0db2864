"""Where the service is and how long and how often to ask it; what both clients take."""

from __future__ import annotations

import time
from typing import Any

import httpx

from reward_client.encoding import Limits
from reward_client.exchange import Retry

JSON = {"content-type": "application/json"}


class Connection:
    """What both clients take.

    `base_url` may hold a path, and user:password for HTTP Basic; `api_key` is sent as bearer token. `deadline_seconds`
    is for a whole call, with all its requests, attempts and waits; `connect_seconds` for one connection. At most
    `max_concurrency` requests are under way at once. `transport` is httpx's, of the client's kind.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        deadline_seconds: float = 180.0,
        connect_seconds: float = 5.0,
        max_concurrency: int = 16,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        limits: Limits = Limits(),  # noqa: B008
        transport: Any = None,
    ) -> None:
        self.base_url = base_url
        self.headers = JSON | ({"authorization": f"Bearer {api_key}"} if api_key else {})
        self.deadline_seconds = deadline_seconds
        self.connect_seconds = connect_seconds
        self.max_concurrency = max_concurrency
        self.retry = retry
        self.limits = limits
        self.transport = transport

    def deadline(self, seconds: float | None) -> float:
        return time.monotonic() + (seconds if seconds is not None else self.deadline_seconds)

    def timeout(self, seconds: float) -> httpx.Timeout:
        return httpx.Timeout(seconds, connect=min(seconds, self.connect_seconds))

    def options(self) -> dict[str, Any]:
        limits = httpx.Limits(max_connections=self.max_concurrency, max_keepalive_connections=self.max_concurrency)
        return {"base_url": self.base_url, "headers": self.headers, "limits": limits, "transport": self.transport}
