"""uvicorn with this service's way to end: drain first, then exit 0; a start that fails is one line and exit 1."""

import signal
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.service import Service

CLOSE_SECONDS = 2.0
"""Kept from the grace period: for refusing what is left and closing connections."""


class Server(uvicorn.Server):
    """Keeps the listener open while it drains: new requests get 503, accepted ones their answers.

    uvicorn alone closes the listener first, waits without limit, and re-raises the signal.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._drain_until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        if self._drain_until is not None:
            if sig == signal.SIGINT:  # the second Ctrl+C
                self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        self._drain_until = time.monotonic() + max(self.service.settings.grace_seconds - CLOSE_SECONDS, 0)

    async def on_tick(self, counter: int) -> bool:
        if self.service.start_error is not None:
            return True
        if self._drain_until is not None:
            if time.monotonic() >= self._drain_until:
                await self.service.close()
                self.should_exit = True
            elif not self.service.num_in_flight:
                self.should_exit = True
        return await super().on_tick(counter)


def run(app: FastAPI) -> int:
    """Serves until SIGTERM or Ctrl+C; the process's exit code."""
    service: Service = app.state.service
    settings = service.settings
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=int(CLOSE_SECONDS),
        server_header=False,
    )
    Server(config, service).run()
    if service.start_error is not None:
        sys.stderr.write(f"reward-service: {service.start_error}\n")
        return 1
    return 0
