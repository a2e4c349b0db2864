"""The application: `create_app(settings)`, whose lifespan owns the models and their threads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from app import __version__
from app.api import admin, compare, errors, ops, ppo_reward, score
from app.api.compat import dialects
from app.api.gate import Gate
from app.api.inputs import new_watches
from app.api.observation import Observation
from app.api.route import Direct
from app.logs import log_loop_fault
from app.service import Service
from app.settings import Settings

DESCRIPTION = """Llama 2 style rewards for RL trainers: `/score`, `/compare` (margin ranking loss) and `/ppo-reward`
(select by safety, whiten, subtract the KL penalty). Every error has the body `{"error": {"code", "message", "item"}}`."""


class App(FastAPI):
    """FastAPI within the service's own layers: what has a JSON body does not come as far as FastAPI's."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.middleware_stack is None:
            await super().__call__(scope, receive, send)
        else:  # FastAPI would read the environment for each request, for telemetry that is ours (`app.tracing`)
            scope["app"] = self
            await self.middleware_stack(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        direct = Direct(super().build_middleware_stack(), self.routes)
        return Observation(Gate(direct, self.service), self.service)  # what the gate refuses is seen too


def create_app(settings: Settings) -> FastAPI:
    """The app of one service. It listens while its models load and answers 503 `not_ready` until they have."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(log_loop_fault)
        loading = asyncio.create_task(service.load())
        try:
            yield
        finally:
            await loading
            await service.close()
            await asyncio.to_thread(service.tracing.close)

    app = App(
        title="reward-service",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    app.service = app.state.service = service
    app.state.watches = new_watches()
    errors.install(app)
    # Before the docs' own, and not included as routers: a request is matched against every route before its own.
    modules = (score, compare, ppo_reward, *dialects, ops, admin)
    app.router.routes[:0] = [route for module in modules for route in module.router.routes]
    if settings.ui:
        from app import ui

        ui.mount(app, service)
    return app
