"""GET /health, /ready, /info, /metrics: for orchestrators, people and Prometheus."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app import __version__
from app.api.compat.dialect import choose_model
from app.api.errors import NATIVE_ERRORS
from app.api.inputs import TheService
from app.api.schemas import example
from app.engine.engine import Engine
from app.engine.reward_model import RewardModel
from app.errors import NotReadyError

router = APIRouter(responses=NATIVE_ERRORS.responses(), tags=["operation"])


class Health(BaseModel):
    model_config = example({"status": "ok"})

    status: Literal["ok", "loading"]


class Ready(BaseModel):
    model_config = example({"status": "ready", "models": ["safety", "helpfulness"]})

    status: Literal["ready"]
    models: list[str]


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Whether the process answers and its model threads are alive")
async def health(service: TheService) -> Health:
    if service.engine is None:
        return Health(status="loading")
    check_alive(service.engine)
    return Health(status="ok")


def check_alive(engine: Engine[RewardModel]) -> None:
    if not engine.is_alive:
        raise NotReadyError("a model thread has died (see the log); restart the service")


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Whether the models are loaded and have scored")
async def ready(service: TheService) -> Ready:
    service.accept()
    check_alive(service.ready_engine())
    return Ready(status="ready", models=list(service.ready_engine().models))


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(service: TheService, request: Request) -> Response:
    content, content_type = service.metrics.exposition(request.headers.get("accept", ""))
    return Response(content, headers={"content-type": content_type})


@router.get("/info", summary="Models, limits, version")
async def info(service: TheService) -> dict[str, Any]:
    service.accept()
    engine, settings = service.ready_engine(), service.settings
    models = {name: model_info(model) for name, model in engine.models.items()}
    first = next(iter(models.values()))
    return {
        "version": __version__,
        "models": models,
        "limits": {
            "max_items": settings.max_items,
            "max_body_mb": settings.max_body_mb,
            "max_waiting_requests": settings.max_waiting_requests,
            "deadline_seconds": settings.deadline_seconds,
            "max_queue_tokens": {str(name): d.scheduler.max_queue_tokens for name, d in engine.devices.items()},
        },
        "cpu_threads": {"limit": service.thread_limit.num_threads, "reason": service.thread_limit.reason},
        "safety_threshold": settings.safety_threshold,
        "beta": settings.beta,
        # read by clients of text-embeddings-inference
        "model_id": first["model_id"],
        "model_sha": first["version"],
        "model_dtype": first["dtype"],
        "served_model_name": choose_model(service, None),
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_concurrent_requests": settings.max_waiting_requests,
        "max_input_length": min(model["max_length"] for model in models.values()),
        "max_batch_tokens": min(model["max_batch_tokens"] for model in models.values()),
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_items,
        "auto_truncate": settings.compat_truncation != "error",
        "tokenization_workers": 1,
        "sha": None,
        "docker_label": None,
    }


def model_info(model: RewardModel) -> dict[str, Any]:
    return {
        "model_id": model.checkpoint.source,
        "version": model.checkpoint.version,
        "tags": list(model.checkpoint.tags),
        "architecture": type(model.net).__name__,
        "num_parameters": model.net.num_parameters(),
        "dtype": model.weight_dtype,
        "device": str(model.device),
        "devices": model.devices,
        "max_length": model.tokenization.max_length,
        "max_batch_tokens": model.max_batch_tokens,
        "has_chat_template": model.tokenization.has_template,
        "parts": dict(model.checkpoint.about),
        "path": model.plan.path,
        "path_reason": model.plan.reason,
        "batch_invariant": model.plan.batch_invariant,
        "token_scores": model.is_causal,
        "step_scores": model.head.position.is_per_step,
        "cpu_thread_counts": list(model.threads.counts),
        "prefix_cache_bytes": model.cache.max_bytes if model.cache is not None else 0,
        "prefix_cache_reason": model.cache_reason,
    }
