"""A replica of the engine deployment: runs the whole app and answers forwarded requests. Knows nothing about routing."""

import asyncio
import contextlib
import logging
from typing import Any

from ray import serve
from starlette.types import Message, Scope

from app.main import create_app
from app.ray_serve.messages import ForwardedRequest, ForwardedResponse
from app.settings import Settings

logger = logging.getLogger(__name__)
HEALTH_SCOPE: Scope = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/health",
    "raw_path": b"/health",
    "query_string": b"",
    "root_path": "",
    "headers": [],
    "client": None,
    "server": None,
}


class Replica:
    """Constructed once its models are ready; a StartError makes the deployment fail with its message."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc] # Ray awaits it
        self.app = create_app(Settings(**args))
        self.service = self.app.state.service
        self.running = contextlib.AsyncExitStack()
        await self.running.enter_async_context(self.app.lifespan())
        await self.service.wait_until_ready()

    async def check_health(self) -> None:
        """Raises RuntimeError if `/health` is not 200. Ray calls this every few seconds and replaces a replica after three failures."""
        response = await self.answer(ForwardedRequest(HEALTH_SCOPE))
        if response.status != 200:  # noqa: PLR2004 - HTTP's own
            raise RuntimeError(f"/health answers {response.status}: {response.body.decode()}")

    async def answer(self, request: ForwardedRequest) -> ForwardedResponse:
        """The app's response. When a client disconnects, Ray cancels this call, and the app stops working on the request."""
        bodies = [request.body]

        async def receive() -> Message:
            if not bodies:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}

        response = ForwardedResponse(replica=serve.get_replica_context().replica_id.unique_id)
        parts: list[bytes] = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                response.status, response.headers = message["status"], list(message["headers"])
            else:
                parts.append(message.get("body", b""))

        try:
            await self.app(dict(request.scope), receive, send)
        except Exception:  # the app has sent a 500 and raises again so that its server can log it
            logger.exception("an unexpected error")
        response.body = b"".join(parts)
        engine = self.service.engine
        response.healthy = engine is not None and engine.is_alive
        return response

    async def __del__(self) -> None:
        """Stops the model threads. Ray awaits this after the replica's last request."""
        await self.running.aclose()
