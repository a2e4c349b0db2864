"""The application: `create_app(settings)`, whose lifespan owns the models and their threads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import __version__
from app.api import compare, errors, ops, ppo_reward, score
from app.api.compat import router as compat_router
from app.api.gate import Gate
from app.service import Service
from app.settings import Settings

DESCRIPTION = """Llama 2 style rewards for RL trainers: `/score`, `/compare` (margin ranking loss) and `/ppo-reward`
(select by safety, whiten, subtract the KL penalty). Every error has the body `{"error": {"code", "message", "item"}}`."""


def create_app(settings: Settings) -> FastAPI:
    """The app of one service. It listens while its models load and answers 503 `not_ready` until they have."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(service.load())
        try:
            yield
        finally:
            await loading
            await service.close()

    app = FastAPI(
        title="reward-service",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    app.state.service = service
    errors.install(app)
    app.add_middleware(Gate, service=service)
    for module in (score, compare, ppo_reward, ops):
        app.router.routes += module.router.routes  # an included router costs every request a second routing
    app.include_router(compat_router)
    return app
