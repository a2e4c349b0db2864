"""The application: `create_app(settings)`, whose lifespan owns the models and their threads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import __version__
from app.api import docs, errors
from app.api.routes import JSON_ROUTES, ROUTERS
from app.http.application import Application
from app.observability.logs import log_loop_fault
from app.service import Service
from app.settings import Settings

DESCRIPTION = """Llama 2 style rewards for RL trainers: `/score`, `/compare` (margin ranking loss) and `/ppo-reward`
(select by safety, whiten, subtract the KL penalty). Every error has the body `{"error": {"code", "message", "item"}}`."""


def create_app(settings: Settings) -> Application:
    """The ASGI app of one service. It answers 503 `not_ready` while its models load."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(log_loop_fault)
        loading = asyncio.create_task(service.load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.wait([loading])
            await service.close()
            await asyncio.to_thread(service.tracing.close)

    api = FastAPI(
        title="reward-service",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=docs.SCHEMA_PATH,
        docs_url=None,
        redoc_url=None,
        servers=docs.SERVERS,
        openapi_tags=docs.TAGS,
        redirect_slashes=False,  # to a URL that a proxy's clients cannot reach
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the service has its own
    )
    errors.install(api)
    docs.install(api, needs_key=bool(settings.api_keys))
    for router in ROUTERS:
        api.include_router(router)
    app = Application(service, JSON_ROUTES, api)
    if settings.ui:
        from app import ui

        ui.mount(app, service)
    return app
