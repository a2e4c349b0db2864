"""uvicorn with a graceful shutdown: drain, then exit 0. A failed start prints one line and exits 1."""

import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from app.engine.process import exit_now, raise_file_limit
from app.errors import StartError
from app.http.application import Application
from app.http.connection import Connection, RequestPacer, sweep
from app.http.write_buffer import WriteBuffer
from app.service import Service
from app.settings import PAGE_PATH, Settings

logger = logging.getLogger(__name__)
CLOSE_SECONDS = 2.0
"""The end of the grace period, reserved for rejecting the remaining requests and closing connections."""
KEEP_ALIVE_SECONDS = 75
"""Longer than clients and proxies keep an idle connection (aiohttp 15 s, AWS's load balancer 60 s): if the server closed it
first, a request already sent would be lost."""
BACKLOG = 8192
"""Connections that wait to be accepted; the kernel has a limit of its own (net.core.somaxconn, 4096 by default)."""
TICKS_PER_SWEEP = 10
INTERRUPTED = 130
"""Exit code after Ctrl+C, by the shells' convention: 128 + SIGINT."""
SECOND_INTERRUPT_SECONDS = 0.3
LAST_LINES_SECONDS = 0.2
"""Time for the log's writer to write the last lines."""


class Server(uvicorn.Server):
    """Keeps the listener open while it drains: new requests get 503, accepted ones their answers.

    Plain uvicorn closes the listener first, waits without limit, and re-raises the signal.
    """

    def __init__(
        self, config: uvicorn.Config, service: Service, exit_after: Callable[[float, int], None] | None = None
    ) -> None:
        """`exit_after(seconds, code)` must end the process after that time; without it, nothing ends it by force."""
        super().__init__(config)
        self.service = service
        self._exit_after = exit_after or (lambda *_: None)
        self.was_interrupted = False
        """Whether a second Ctrl+C stopped it with requests unanswered."""
        self._drain_until: float | None = None
        self._is_announced = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        if self._drain_until is not None:
            if sig == signal.SIGINT:  # the second Ctrl+C
                self.should_exit = self.force_exit = self.was_interrupted = True
                self._exit_after(SECOND_INTERRUPT_SECONDS, INTERRUPTED)
            return
        grace_seconds = self.service.settings.grace_seconds
        self.service.draining = True
        self._drain_until = time.monotonic() + max(grace_seconds - CLOSE_SECONDS, 0)
        self._exit_after(max(grace_seconds, 2 * CLOSE_SECONDS), 0)

    async def on_tick(self, counter: int) -> bool:
        if self.service.start_error is not None:
            return True
        if self.service.engine is not None and not self._is_announced:
            self._is_announced = True
            logger.info(ready_line(address(self), has_page=self.service.settings.ui))
        if counter % TICKS_PER_SWEEP == 0:
            sweep(self.server_state.connections, self.service.settings.deadline_seconds)
        if self._drain_until is not None:
            self.service.abandon_loading()
            if time.monotonic() >= self._drain_until:
                await self.service.close()
                self.should_exit = True
            elif not self.service.num_in_flight:
                self.should_exit = True
        return await super().on_tick(counter)


class ExitTimer:
    """Ends the process at a deadline, even during a forward pass, a download or with a stuck event loop.

    Its thread starts with the process, because a signal may come when there is no memory left for a new thread.
    """

    def __init__(self) -> None:
        self._deadlines: SimpleQueue[tuple[float, int] | None] = SimpleQueue()  # its `put` is reentrant
        threading.Thread(target=self._wait, name="exit-timer", daemon=True).start()

    def exit_after(self, seconds: float, code: int) -> None:
        """May be called from a signal handler. The earliest of several deadlines applies."""
        self._deadlines.put((time.monotonic() + seconds, code))

    def cancel(self) -> None:
        self._deadlines.put(None)

    def _wait(self) -> None:
        nearest: tuple[float, int] | None = None
        while True:
            try:
                seconds = None if nearest is None else max(nearest[0] - time.monotonic(), 0)
                deadline = self._deadlines.get(timeout=seconds)
            except Empty:
                assert nearest is not None
                logger.warning("exiting with requests unanswered: the grace period is over")
                time.sleep(LAST_LINES_SECONDS)
                exit_now(nearest[1])
                return
            if deadline is None:
                return
            nearest = deadline if nearest is None else min(nearest, deadline)


def address(server: uvicorn.Server) -> str:
    """The URL that it listens on, with the chosen port if the setting is 0."""
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def ready_line(url: str, *, has_page: bool) -> str:
    page = f"{url}{PAGE_PATH}" if has_page else "off (--ui true)"
    return f"ready on {url}, docs: {url}/docs, playground: {page}"


def listener(settings: Settings, backlog: int) -> socket.socket:
    """The listening socket; `::` also accepts IPv4 connections. Raises StartError, before any model is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    both = settings.host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=backlog, dualstack_ipv6=both)
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); "
            "set REWARD_HOST and REWARD_PORT to an address of this machine and a free port"
        ) from error


def config_of(app: ASGIApp, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration for this service; `options` override it."""
    defaults: dict[str, Any] = {
        "http": partial(Connection, pacer=RequestPacer(), write_buffer=WriteBuffer()),
        "ws": "none",  # there are no WebSocket routes
        "log_config": None,  # its lines go through our handlers
        "log_level": "warning",  # we log our own lines at start
        "access_log": False,
        "proxy_headers": False,  # the client's address is not used
        "timeout_graceful_shutdown": int(CLOSE_SECONDS),
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "server_header": False,
        "backlog": BACKLOG,
    }
    return uvicorn.Config(app, **defaults | options)


def run(app: Application) -> int:
    """Serves until SIGTERM or Ctrl+C. Returns the process's exit code."""
    service: Service = app.state.service
    settings = service.settings
    config = config_of(app, host=settings.host, port=settings.port)
    logger.debug("at most %d open files; each connection is one", raise_file_limit())
    timer = ExitTimer()
    server = Server(config, service, timer.exit_after)
    try:
        server.run(sockets=[listener(settings, config.backlog)])
    finally:
        timer.cancel()
    if service.start_error is not None:
        sys.stderr.write(f"reward-service: {service.start_error}\n")
        return 1
    return INTERRUPTED if server.was_interrupted else 0
