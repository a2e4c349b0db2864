"""Two clients for the commands that read files: of the app in this process, without a socket, and of a running server."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any, Protocol, Self

import httpx

from app.errors import RewardServiceError
from app.settings import Settings

LINES_PER_REQUEST = 256
FILE_LIMITS = {"api_keys": (), "deadline_seconds": 1e9, "max_body_mb": 1e9}
"""Switches off the settings that protect a service from its clients: the user owns the file."""
DEADLINE_SECONDS = 3600.0
"""The time limit of one request to a running server, retries included."""
KEY_VARIABLE = "REWARD_CLIENT_API_KEY"


class RefusedError(RewardServiceError):
    """A request was answered with an error; `item` is the index of the offending entry, if there is one."""

    def __init__(self, message: str, item: int | None) -> None:
        super().__init__(message)
        self.item = item


class RouteClient(Protocol):
    """Sends requests to the service's routes, within its context."""

    max_items: int

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exception: object) -> None: ...
    async def info(self) -> dict[str, Any]: ...
    async def post(self, path: str, body: bytes) -> dict[str, Any]: ...


class InProcess:
    """A client of the app in this process, without a socket."""

    def __init__(self, settings: Settings) -> None:
        from app.main import create_app

        self.max_items = min(LINES_PER_REQUEST, settings.max_items)
        self.app = create_app(settings.model_copy(update=FILE_LIMITS))
        self.stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.stack.enter_async_context(self.app.lifespan())
        self.client = await self.stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://reward-service")
        )
        await self.app.state.service.wait_until_ready()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stack.aclose()

    async def info(self) -> dict[str, Any]:
        return self._answer(await self.client.get("/info"))

    async def post(self, path: str, body: bytes) -> dict[str, Any]:
        """The answer's body. Raises RefusedError if it is an error."""
        return self._answer(await self.client.post(path, content=body, headers={"content-type": "application/json"}))

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        answer: dict[str, Any] = response.json()
        if response.is_error:
            raise RefusedError(answer["error"]["message"], answer["error"].get("item"))
        return answer


class Remote:
    """A client of a running server, which retries while the server is busy.

    The first request is not retried, so that a wrong address fails at once.
    """

    def __init__(self, url: str) -> None:
        self.max_items = LINES_PER_REQUEST
        self.url = url
        self.stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        from reward_client import AsyncRewardClient, Retry

        key = os.environ.get(KEY_VARIABLE)
        with self._errors():
            async with AsyncRewardClient(self.url, api_key=key, retry=Retry(max_attempts=1)) as once:
                limits = (await once.info(deadline_seconds=10)).get("limits", {})
            self.client = await self.stack.enter_async_context(
                AsyncRewardClient(self.url, api_key=key, deadline_seconds=DEADLINE_SECONDS)
            )
        self.max_items = min(LINES_PER_REQUEST, limits.get("max_items", LINES_PER_REQUEST))
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stack.aclose()

    async def info(self) -> dict[str, Any]:
        with self._errors():
            return dict(await self.client.info())

    async def post(self, path: str, body: bytes) -> dict[str, Any]:
        """The answer's body. Raises RefusedError if it is an error, or the server does not answer."""
        with self._errors():
            return dict(await self.client.post(path, json.loads(body)))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        from reward_client import APIError, ConfigurationError, ConnectionFailedError, RewardClientError

        try:
            yield
        except APIError as error:
            if not error.code:  # every error of the service has a code
                words = f"{self.url} answered HTTP {error.status} without an error of the reward service"
                raise RefusedError(f"{words}; check --url, and the proxy if there is one", None) from None
            hint = f"; set {KEY_VARIABLE} to an API key" if error.status == httpx.codes.UNAUTHORIZED else ""
            raise RefusedError(f"{error.message}{hint}", error.item) from None
        except ConfigurationError as error:
            raise RefusedError(str(error).replace("base_url", "--url", 1), None) from None
        except ConnectionFailedError as error:
            raise RefusedError(f"{error}; start one with `reward-service serve`, or give another --url", None) from None
        except (RewardClientError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise RefusedError(f"{self.url} does not answer as a reward service: {error}", None) from None
