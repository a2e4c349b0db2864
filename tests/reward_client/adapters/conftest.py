"""The environment names the running server, and the clients that adapters share are closed after each test."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from reward_client import AsyncRewardClient, RewardClient
from reward_client.adapters import source


@pytest.fixture
def url(client: httpx.Client) -> str:
    return str(client.base_url)


@pytest.fixture(autouse=True)
def environment(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("REWARD_CLIENT_URL", url)
    yield
    close_shared_clients()


def close_shared_clients() -> None:
    for key, client in list(source._clients.items()):
        if isinstance(client, RewardClient):
            client.close()
        else:
            asyncio.run(client.aclose())
        del source._clients[key]


def count_shared_clients(kind: type[RewardClient | AsyncRewardClient]) -> int:
    return sum(isinstance(client, kind) for client in source._clients.values())
