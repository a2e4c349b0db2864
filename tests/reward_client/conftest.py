"""One `Ask` for both clients: what a test says of one, it says of the other."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from reward_client import AsyncRewardClient, Retry, RewardClient

Ask = Callable[..., Any]
QUICK = Retry(max_attempts=4, first_seconds=0.001, max_seconds=0.002)


@pytest.fixture
def url(client: httpx.Client) -> str:
    return str(client.base_url)


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, url: str) -> Ask:
    """`ask("score", items, models=..., settings={...})` by a client of either kind, of the running server by default."""

    defaults: dict[str, Any] = {"base_url": url, "retry": QUICK}

    def ask_sync(method: str, *args: Any, settings: dict[str, Any] | None = None, **options: Any) -> Any:
        with RewardClient(**defaults | (settings or {})) as client:
            return getattr(client, method)(*args, **options)

    def ask_async(method: str, *args: Any, settings: dict[str, Any] | None = None, **options: Any) -> Any:
        async def run() -> Any:
            async with AsyncRewardClient(**defaults | (settings or {})) as client:
                return await getattr(client, method)(*args, **options)

        return asyncio.run(run())

    return ask_sync if request.param == "sync" else ask_async
