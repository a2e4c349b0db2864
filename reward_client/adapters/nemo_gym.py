"""NeMo Gym: a resources server whose `POST /verify` scores the response; `POST /seed_session` does nothing.

    uvicorn reward_client.adapters.nemo_gym:app --port 9000

An ASGI application without a framework. Options are environment variables (`reward_client.adapters.source`). If an input cannot
be scored or the service does not answer, the response is an error status, never a reward.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from reward_client.adapters.source import Choice, Item, Reward, shared
from reward_client.async_client import AsyncRewardClient
from reward_client.errors import InvalidItemError, InvalidRequestError, RewardClientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DEADLINE_SECONDS = 280.0
NUM_REQUESTS = 512
ROLES = {"developer": "system"}


async def app(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI 3 application."""
    if scope["type"] != "http":
        raise NotImplementedError(f"this application serves http, not {scope['type']}")
    status, reply = await answer(scope["method"], scope["path"], await body_of(receive))
    content = json.dumps(reply).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def body_of(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def answer(method: str, path: str, content: bytes) -> tuple[int, dict[str, Any]]:
    if (method, path) == ("POST", "/seed_session"):
        return 200, {}
    if (method, path) != ("POST", "/verify"):
        return 404, {"detail": f"{method} {path} is not served; POST /verify and POST /seed_session are"}
    try:
        return 200, await verify(json.loads(content))
    except (ValueError, InvalidRequestError) as error:
        return 422, {"detail": str(error)}
    except RewardClientError as error:
        return 503, {"detail": str(error)}


async def verify(request: Any) -> dict[str, Any]:
    """The request with `reward` and its parts. Raises ValueError for a request in an unknown format, else a RewardClientError."""
    item = item_of_responses(request)
    client = shared(AsyncRewardClient, DEADLINE_SECONDS, NUM_REQUESTS)
    (reward,) = await Choice.from_environment().ascore(client, [item])
    return {**request, "reward": reward.value, **parts(reward)}


def parts(reward: Reward) -> dict[str, Any]:
    """`reward_components` for several objectives, and the same numbers at the top level, where NeMo Gym aggregates them. The score of a
    model that did not run is left out.
    """
    known = {name: value for name, value in reward.extra.items() if value == value}  # noqa: PLR0124 - NaN is not itself
    scores = {name: value for name, value in known.items() if name.endswith("_score")}
    return {**known, "reward_components": scores}


def item_of_responses(request: Any) -> Item:
    """The conversation of a verify request; `is_safety` in the request or in the params' metadata marks a safety prompt."""
    try:
        params, output = request["responses_create_params"], request["response"]["output"]
        given = params["input"]
        prompt = [{"role": "user", "content": given}] if isinstance(given, str) else turns_of(given)
        system = [{"role": "system", "content": params["instructions"]}] if params.get("instructions") else []
        label = request.get("is_safety") or (params.get("metadata") or {}).get("is_safety")
        messages = [*system, *prompt, *turns_of(output)]
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidItemError(
            f"the request has no responses_create_params.input and response.output of the Responses API: {error!r}"
        ) from error
    return {"messages": messages} | ({"is_safety": True} if label in (True, "true") else {})


def turns_of(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages from the Responses API's items: calls and their outputs become tool calls and tool turns, reasoning is left out."""
    turns: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "message":
            turns.append({"role": ROLES.get(item["role"], item["role"]), "content": text_of(item["content"])})
        elif kind == "function_call":
            call = {
                "id": item["call_id"],
                "type": "function",
                "function": {"name": item["name"], "arguments": item["arguments"]},
            }
            if turns and turns[-1].get("tool_calls"):
                turns[-1]["tool_calls"].append(call)
            else:
                turns.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            turns.append({"role": "tool", "content": str(item["output"]), "tool_call_id": item["call_id"]})
        elif kind != "reasoning":
            raise InvalidItemError(
                f"an item of type {kind!r} cannot be scored; text, function calls and their outputs can"
            )
    return turns


def text_of(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if "text" not in part:
            raise InvalidItemError(f"a content part of type {part.get('type')!r} cannot be scored; text can")
    return "".join(part["text"] for part in content)
