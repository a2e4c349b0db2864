"""Routes without a body that clients of vLLM, SGLang and SageMaker call before they send work."""

import time
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from app import __version__
from app.api.compat.dialect import COMPAT_TAGS, choices, choose_model, models_of
from app.api.compat.vllm.options import max_model_len
from app.api.errors import NATIVE_ERRORS
from app.api.inputs import TheService
from app.api.schemas import ErrorBody
from app.engine.inputs import Input, Text
from app.errors import NotFoundError
from app.service import Service

router = APIRouter(responses=NATIVE_ERRORS.responses(), tags=list(COMPAT_TAGS))
HEALTH_SECONDS = 20
"""How long SGLang's own server waits for its answer to a health check."""


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["reward-service"] = "reward-service"
    root: str
    parent: None = None
    max_model_len: int
    permission: list[None] = Field(default_factory=list, max_length=0)


class ModelCards(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/v1/models", summary="OpenAI, vLLM, SGLang: the names that a request's model can have, the default first")
async def models(service: TheService) -> ModelCards:
    service.accept()
    return ModelCards(data=[card(service, name) for name in served(service)])


@router.get("/v1/models/{name}", summary="OpenAI, SGLang: one of them", responses={404: {"model": ErrorBody}})
async def model(name: str, service: TheService) -> ModelCard:
    service.accept()
    found = next((each for each in served(service) if each == name), None)
    if found is None:
        raise NotFoundError(f"the model {name!r:.80} does not exist; /v1/models lists those that do")
    return card(service, found)


@router.get("/version", summary="vLLM: the version of this server")
async def version() -> dict[str, str]:
    return {"version": __version__}


@router.api_route(
    "/ping",
    methods=["GET", "HEAD", "POST"],
    summary="SageMaker: 200 once requests can be answered",
    include_in_schema=False,
)
async def ping(service: TheService) -> Response:
    service.accept()
    return Response()


@router.get("/health_generate", summary="SGLang: 200 if the models score a text now", response_class=Response)
async def health_generate(service: TheService) -> Response:
    service.accept()
    loaded = service.require_models(None, "scoring")
    await service.score([Input(Text("ready"))], models=loaded, deadline_seconds=HEALTH_SECONDS)
    return Response()


@router.get("/get_model_info", summary="SGLang, older clients: as /model_info")
@router.get("/model_info", summary="SGLang: the model that answers by default")
async def model_info(service: TheService) -> dict[str, Any]:
    service.accept()
    choice = choose_model(service, None)
    model = service.ready_engine().models[models_of(choice)[-1]]
    return {
        "model_path": model.checkpoint.source,
        "served_model_name": choice,
        "tokenizer_path": model.checkpoint.source,
        "is_generation": False,
        "preferred_sampling_params": None,
        "weight_version": model.checkpoint.version,
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": model.net.config.model_type,
        "architectures": [type(model.net).__name__],
    }


def served(service: Service) -> list[str]:
    """The names that a request's `model` can have, the default first."""
    default = choose_model(service, None)
    return sorted(choices(service.require_models(None, "scoring")), key=lambda name: name != default)


def card(service: Service, name: str) -> ModelCard:
    needed = models_of(name)
    source = service.ready_engine().models[needed[0]].checkpoint.source if len(needed) == 1 else name
    return ModelCard(id=name, created=int(time.time()), root=source, max_model_len=max_model_len(service, name))
