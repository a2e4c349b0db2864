"""uvicorn with this service's way to end: drain first, then exit 0; a start that fails is one line and exit 1."""

import logging
import signal
import socket
import sys
import time
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.connection import Connection, Turns, sweep
from app.engine.process import raise_file_limit
from app.errors import StartError
from app.outbox import Outbox
from app.service import Service
from app.settings import Settings

logger = logging.getLogger(__name__)
CLOSE_SECONDS = 2.0
"""Kept from the grace period: for refusing what is left and closing connections."""
KEEP_ALIVE_SECONDS = 75
"""More than clients and proxies keep an idle connection (aiohttp 15 s, AWS's load balancer 60 s): whoever closes first
must not be the server, or a request that is on its way is lost."""
BACKLOG = 8192
"""Connections that wait to be accepted; the kernel has a limit of its own (net.core.somaxconn, 4096 by default)."""
TICKS_A_SWEEP = 10


class Server(uvicorn.Server):
    """Keeps the listener open while it drains: new requests get 503, accepted ones their answers.

    uvicorn alone closes the listener first, waits without limit, and re-raises the signal.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._drain_until: float | None = None
        self._is_announced = False

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
        if self.service.engine is not None and not self._is_announced:
            self._is_announced = True
            logger.info("ready on %s, docs on %s/docs", *[address(self)] * 2)
        if counter % TICKS_A_SWEEP == 0:
            sweep(self.server_state.connections, self.service.settings.deadline_seconds)
        if self._drain_until is not None:
            if time.monotonic() >= self._drain_until:
                await self.service.close()
                self.should_exit = True
            elif not self.service.num_in_flight:
                self.should_exit = True
        return await super().on_tick(counter)


def address(server: uvicorn.Server) -> str:
    """Where it really listens: port 0 has become a free one."""
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listener(settings: Settings, backlog: int) -> socket.socket:
    """Bound before any model is loaded, so that a port that is taken says so at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=backlog)
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); "
            "set REWARD_HOST and REWARD_PORT to an address of this machine and a free port"
        ) from error


def config_of(app: FastAPI, **options: Any) -> uvicorn.Config:
    """uvicorn as this service wants it."""
    defaults: dict[str, Any] = {
        "http": partial(Connection, turns=Turns(), outbox=Outbox()),
        "ws": "none",  # nothing here speaks it
        "log_config": None,  # its lines go the way of ours
        "log_level": "warning",  # a start that fails is one line, and one that succeeds says so itself
        "access_log": False,
        "proxy_headers": False,  # nothing here asks who the client is
        "timeout_graceful_shutdown": int(CLOSE_SECONDS),
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "server_header": False,
        "backlog": BACKLOG,
    }
    return uvicorn.Config(app, **defaults | options)


def run(app: FastAPI) -> int:
    """Serves until SIGTERM or Ctrl+C; the process's exit code."""
    service: Service = app.state.service
    settings = service.settings
    config = config_of(app, host=settings.host, port=settings.port)
    logger.debug("up to %d open files, of which each connection is one", raise_file_limit())
    Server(config, service).run(sockets=[listener(settings, config.backlog)])
    if service.start_error is not None:
        sys.stderr.write(f"reward-service: {service.start_error}\n")
        return 1
    return 0
