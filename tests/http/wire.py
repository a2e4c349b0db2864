"""A connection of the server without a socket: packets in, bytes out."""

import asyncio
from typing import Any

from uvicorn.server import ServerState

from app.http.connection import Connection, RequestPacer
from app.http.server import config_of
from app.http.write_buffer import WriteBuffer


class Idle(asyncio.Transport):
    """The transport of a connection that nobody has asked anything yet."""

    closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002 - asyncio's signature
        return default

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass


class Wire(Idle):
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the method and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await answer(send, scope["method"].encode() + b" " + body)


async def refuse(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - ASGI's signature
    """Answers without reading the body."""
    await answer(send, b"refused")


async def answer(send: Any, content: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(content))]})
    await send({"type": "http.response.body", "body": content})


async def answers_to(*packets: bytes, app: Any = echo) -> bytes:
    """What a connection to `app` writes when it gets these packets, a tick of the loop or more apart."""
    config = config_of(app)
    config.load()
    connection = Connection(config, ServerState(), {}, pacer=RequestPacer(), write_buffer=WriteBuffer())
    wire = Wire()
    connection.connection_made(wire)
    for packet in packets:
        if not wire.closed:
            connection.data_received(packet)
        for _ in range(5):
            await asyncio.sleep(0)
    connection._unset_keepalive_if_required()
    connection.connection_lost(None)
    await asyncio.gather(*connection.tasks)
    return wire.written
