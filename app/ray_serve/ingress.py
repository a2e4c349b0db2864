"""The ingress deployment: forwards HTTP requests to engine replicas, chosen by the request's prompt. Imports no torch.

A request's session is the name of its prompt: the client's `x-session-id`, or a name derived from the body in any of the
supported dialects. Ray's consistent-hash router sends a session to one replica until that replica is full, then to the
next one on its ring. No endpoint has side effects, so a request whose replica dies is sent to another.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from pydantic_core import from_json
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.errors import DeadlineExceededError, NotReadyError, OverloadedError, RequestError, UnavailableError
from app.ray_serve.messages import ForwardedRequest, ForwardedResponse
from app.ray_serve.metrics import merge_pages
from app.settings import Settings
from reward_client.session import HEADER, is_list, session_of

logger = logging.getLogger(__name__)
FORWARDED_SCOPE_KEYS = ("type", "asgi", "http_version", "method", "scheme", "query_string", "root_path", "headers")
BROADCAST_PATHS = frozenset({"/admin/reload", "/metrics"})
PROBES = frozenset({"/health", "/ready"})
PROBE_SECONDS = 3.0
"""Time limit of a probe; after it the ingress itself answers 503."""
MAX_DIALECT_DEADLINE_SECONDS = 170.0
"""The longest deadline of a dialect (OpenRLHF's); used unless the operator sets one."""
TRANSFER_SECONDS = 5.0
"""Added to the app's deadline for the transfer between ingress and replica."""
MAX_ATTEMPTS = 8
"""A replica whose model threads have died answers immediately, so further attempts are cheap."""
MAX_DEATHS = 2
"""Attempts end after this many replicas died with the request, because it may be the cause."""
MAX_PARSED_BYTES = 256_000
"""Larger bodies are not parsed for their prompt: they contain many prompts, and parsing would block other requests."""
TEXTS = ("query", "input", "text", "inputs")
REPLICA_DIED = (RayActorError, DeploymentUnavailableError)


class Engine(Protocol):
    """A Ray Serve handle of the engine's deployment."""

    def options(self, *, method_name: str, session_id: str = ...) -> Any: ...
    def broadcast(self, method_name: str, *args: Any) -> Any: ...


class Ingress:
    """The deployment. Ray calls `__serve_build_asgi_app__` in the replica to get its ASGI app."""

    def __init__(self, engine: Engine, args: dict[str, Any]) -> None:
        self.engine = engine
        self.settings = Settings(**args)

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", Forward(self.engine, self.settings))])


class Forward:
    """The ASGI app that forwards each request and writes the response."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        max_bytes = int(self.settings.max_body_mb * 1e6)
        body = await read_body(Headers(scope=scope), receive, max_bytes)
        if body is None:
            return
        path = scope["path"].removeprefix(scope["root_path"])  # Ray's route prefix of the application
        request = ForwardedRequest(
            {key: scope[key] for key in FORWARDED_SCOPE_KEYS} | {"path": path, "client": None, "server": None}, body
        )
        is_probe = path in PROBES
        try:
            async with asyncio.timeout(self.limit_seconds(path)):
                answer = await self.forward(request)
        except RequestError as error:
            response: Response = error_response(error)
        except TimeoutError:
            late = DeadlineExceededError(
                "no engine took the request within the deadline; send fewer or shorter inputs, or add engines"
            )
            response = error_response(NotReadyError("no engine answers; retry later") if is_probe else late)
        else:
            response = Response(answer.body, answer.status)
            own = {b"content-length", b"x-request-id"}  # Starlette and Ray's proxy set their own
            response.raw_headers += [header for header in answer.headers if header[0].lower() not in own]
        await response(scope, receive, send)

    def limit_seconds(self, path: str) -> float | None:
        """Time limit of a request that no engine accepts. If an engine accepts it, the app's own deadline ends it earlier."""
        if path in PROBES:
            return PROBE_SECONDS
        if path in BROADCAST_PATHS:
            return None  # a reload may take minutes
        is_set = "deadline_seconds" in self.settings.model_fields_set
        return (self.settings.deadline_seconds if is_set else MAX_DIALECT_DEADLINE_SECONDS) + TRANSFER_SECONDS

    async def forward(self, request: ForwardedRequest) -> ForwardedResponse:
        """Raises NotReadyError if the attempts only reached replicas that died, OverloadedError if all replicas are full."""
        if request.scope["path"] in BROADCAST_PATHS:
            return await self.forward_to_all(request)
        session = session_of_request(request)
        num_deaths = 0
        for attempt in range(MAX_ATTEMPTS):
            # Another name has another position on the ring, so a retry goes to another replica.
            name = f"{session}/{attempt}" if session and attempt else session
            try:
                answer = await self.forward_to_one(request, name)
            except REPLICA_DIED as error:
                num_deaths += 1
                logger.warning("a replica died with a request: %s, attempt %d", type(error).__name__, attempt + 1)
                if num_deaths == MAX_DEATHS:
                    break
            except BackPressureError as error:
                raise OverloadedError(
                    "every engine is busy and the queue in front of them is full; retry later"
                ) from error
            else:
                if answer.healthy:
                    return answer
        raise NotReadyError("the engines died with the request; retry when they have been replaced")

    async def forward_to_one(self, request: ForwardedRequest, session: str | None) -> ForwardedResponse:
        # Ray generates a session for a request without one, which spreads these requests evenly.
        handle = self.engine.options(method_name="answer", session_id=session or "")
        response = handle.remote(request)
        try:
            answer: ForwardedResponse = await response
        except asyncio.CancelledError:  # the client disconnected, or the deadline passed
            response.cancel()
            raise
        return answer

    async def forward_to_all(self, request: ForwardedRequest) -> ForwardedResponse:
        """Sends the request to every replica and returns the worst response, so 200 means all of them. Merges metrics pages."""
        # Without an Accept header, metrics come in the text format, which `merge_pages` reads.
        plain = [header for header in request.scope["headers"] if header[0] != b"accept"]
        request = ForwardedRequest({**request.scope, "headers": plain}, request.body)
        try:
            answers: list[ForwardedResponse] = await self.engine.broadcast("answer", request).results_async()
        except REPLICA_DIED as error:
            raise NotReadyError(
                "an engine died during a request to all engines; retry when it has been replaced"
            ) from error
        if not answers:
            raise NotReadyError("there is no engine yet; retry later")
        worst = max(answers, key=lambda answer: answer.status)
        if request.scope["path"] == "/metrics" and worst.status == 200:  # noqa: PLR2004 - HTTP's own
            worst.body = merge_pages({answer.replica: answer.body.decode() for answer in answers})
            worst.headers = [header for header in worst.headers if header[0] != b"content-length"]
        return worst


def error_response(error: RequestError) -> Response:
    """The error body of the native routes; `app.api.errors` would import torch into this process."""
    retry = {"retry-after": str(error.retry_after_seconds)} if isinstance(error, UnavailableError) else None
    return JSONResponse({"error": {"code": error.code, "message": error.message}}, error.status, retry)


async def read_body(headers: Headers, receive: Receive, max_bytes: int) -> bytes | None:
    """The body, or just enough of a body over the limit for the app to reject it. None if the client disconnected."""
    parts: list[bytes] = []
    declared = headers.get("content-length", "")
    num_left = max_bytes + 1 if not declared.isdecimal() or int(declared) <= max_bytes else 0
    more = True
    while more and num_left > 0:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        num_left -= len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts)


def session_of_request(request: ForwardedRequest) -> str | None:
    """The client's own session name, or that of the body's first prompt; None if there is neither."""
    named = Headers(raw=request.scope["headers"]).get(HEADER)
    if named:
        return named
    if request.scope["method"] != "POST" or not 0 < len(request.body) <= MAX_PARSED_BYTES:
        return None
    with contextlib.suppress(ValueError):  # not JSON: the app rejects it
        return session_in(from_json(request.body))
    return None


def session_in(body: Any) -> str | None:
    """The session name of a body's first prompt, in any dialect; None if the body does not separate prompt and response."""
    if not isinstance(body, Mapping):
        return None
    for name in ("items", "pairs"):  # ours
        if is_list(body.get(name)):
            return session_of(body[name][0]) if body[name] and isinstance(body[name][0], Mapping) else None
    if is_list(body.get("prompts")) and body["prompts"]:  # OpenRLHF
        return session_of({"prompt": body["prompts"][0]})
    text = next((body[name] for name in TEXTS if name in body), None)
    if text is None:  # slime's prompt, vLLM's messages
        return session_of(body)
    while is_list(text) and text:
        if len(text) == 2 and all(isinstance(part, str) for part in text):  # noqa: PLR2004 - TEI's pair
            return session_of({"prompt": text[0]})
        text = text[0]
    return session_of({"text": text}) if isinstance(text, str) else None
