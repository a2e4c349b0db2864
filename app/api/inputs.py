"""From bodies to the engine: input forms, and an answer that stops being computed when its client leaves."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated, TypeVar

from fastapi import Depends
from starlette.requests import Request

from app.alarms import Alarms
from app.api.errors import ClientGoneError
from app.engine.tokenization import Input as EngineInput
from app.engine.tokenization import PromptResponse, Text, TokenIds
from app.pairs import engine_messages
from app.schemas import Input
from app.service import Service

T = TypeVar("T")
WATCH_AFTER_SECONDS = 0.1
"""How long an answer may take before anyone looks whether its client is still there."""


def get_service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


TheService = Annotated[Service, Depends(get_service)]


def engine_input(given: Input, item: int) -> EngineInput:
    place = f"items[{item}]"
    if given.messages is not None:
        return EngineInput(engine_messages(given.messages), item, place)
    if given.text is not None:
        return EngineInput(Text(given.text), item, place)
    if given.input_ids is not None:
        return EngineInput(TokenIds(given.input_ids), item, place)
    return EngineInput(PromptResponse(given.prompt or "", given.response or ""), item, place)


class Watch:
    """Looks whether a request's client is still there, and stops its task when it is not."""

    def __init__(self, request: Request) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.is_gone = False
        self._request = request
        self._watcher: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._look())

    def end(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    async def _look(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        self.task.cancel()


def new_watches() -> Alarms[Watch]:
    """Those of one app: a watch that is set begins if its answer takes its time."""
    return Alarms(WATCH_AFTER_SECONDS, Watch.begin)


async def while_connected(request: Request, answer: Awaitable[T]) -> T:
    """Awaits the answer, and stops it when the client disconnects; an answer that is quick costs no watcher."""
    watch = Watch(request)
    watches: Alarms[Watch] = request.app.state.watches
    watches.set(watch)
    try:
        return await answer
    except asyncio.CancelledError:
        if not watch.is_gone:
            raise
        watch.task.uncancel()
        raise ClientGoneError from None
    finally:
        watches.clear(watch)
        watch.end()
