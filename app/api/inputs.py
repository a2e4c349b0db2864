"""Shared by the handlers: the service, and the conversion of an API input to the engine's input."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from app.api.pairs import engine_messages
from app.api.schemas import Input
from app.engine.inputs import Input as EngineInput
from app.engine.inputs import PromptResponse, RenderedChat, Text, TokenIds
from app.service import Service


def get_service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


TheService = Annotated[Service, Depends(get_service)]


def engine_input(given: Input, item: int) -> EngineInput:
    location = f"items[{item}]"
    if given.messages is not None:
        return EngineInput(engine_messages(given.messages), item, location)
    if given.text is not None:
        return EngineInput(Text(given.text), item, location)
    if given.rendered is not None:
        return EngineInput(RenderedChat(given.rendered), item, location)
    if given.input_ids is not None:
        return EngineInput(TokenIds(given.input_ids), item, location)
    return EngineInput(PromptResponse(given.prompt or "", given.response or ""), item, location)
