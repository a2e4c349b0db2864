"""A client of the service's HTTP API that needs no socket; the page sends the same requests as any other client."""

from collections.abc import Mapping
from typing import Any

import httpx
from starlette.types import ASGIApp

from app.errors import RewardServiceError


class RefusedError(RewardServiceError):
    """The service returned an error: its HTTP status, and the code and message of the body."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Client:
    """Sends requests to an app in the same process and event loop; ignores the environment's proxy settings."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        headers = [(b"authorization", b"Bearer " + api_key.encode())] if api_key is not None else []
        transport = httpx.ASGITransport(app)  # it has no timeouts; the service's deadline applies
        self._http = httpx.AsyncClient(transport=transport, base_url="http://reward-service", headers=headers)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The response's JSON; raises RefusedError if it is an error."""
        return answer_of(await self._http.post(path, json=body))

    async def get(self, path: str) -> dict[str, Any]:
        return answer_of(await self._http.get(path))

    async def text(self, path: str) -> str:
        response = await self._http.get(path)
        if response.is_error:
            answer_of(response)
        return response.text


def answer_of(response: httpx.Response) -> dict[str, Any]:
    answer: dict[str, Any] = response.json()
    if response.is_error:
        error = answer["error"]
        raise RefusedError(response.status_code, error["code"], error["message"])
    return answer
