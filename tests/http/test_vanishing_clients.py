"""Clients that vanish while the model is busy: their requests leave every count at once, on every route and however they go."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.api.asking import TEA
from tests.conftest import Serve
from tests.http.test_connection import answer_of

if TYPE_CHECKING:
    from app.service import Service

TEXT = "a cup of tea"
CHAT = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "yes"}]
BODIES: dict[str, dict[str, Any]] = {
    "/score": {"items": [TEA]},
    "/compare": {"pairs": [{"prompt": "tea?", "chosen": "yes", "rejected": "no"}]},
    "/ppo-reward": {"items": [TEA, TEA]},
    "/get_reward": {"query": [TEXT], "prompts": ["a cup"]},
    "/classify": {"model": "safety", "input": TEXT},
    "/pooling": {"model": "safety", "input": TEXT},
    "/v1/embeddings": {"model": "safety", "input": TEXT},
    "/predict": {"inputs": TEXT},
    "/slime": {"prompt": "tea?", "response": "yes"},
}
"""A request by path, one of each dialect."""
MANY_COMMAS = {"items": [{"input_ids": [7] * 500} for _ in range(12)]}
"""A body that the worker process reads."""


def request(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    return f"{head}\r\n\r\n".encode() + content


def close(connection: socket.socket) -> None:
    connection.close()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half_close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


WAYS: list[Callable[[socket.socket], None]] = [close, reset, half_close]


class BusyServer:
    """A server whose model thread is inside the forward of a first request until `go` is set."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.service: Service = client.app.state.service  # type: ignore[attr-defined]
        self.go, self.entered = threading.Event(), threading.Event()

    def hold(self, *_: Any) -> None:
        self.entered.set()
        assert self.go.wait(timeout=120)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.client.base_url.host, self.client.base_url.port or 0), timeout=60)

    def counts(self) -> dict[str, float]:
        """As /metrics shows them: requests in flight, sequences and tokens in the queue (and if any), cancelled requests."""
        lines = [line for line in self.client.get("/metrics").text.splitlines() if not line.startswith("#")]
        samples = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
        names = {
            "in_flight": "reward_requests_in_flight",
            "items": 'reward_queue_items{device="cpu"}',
            "tokens": 'reward_queue_tokens{device="cpu"}',
            "cancelled": "reward_cancelled_requests_total",
        }
        counts = {short: samples[name] for short, name in names.items()}
        return counts | {"waiting": counts["items"] > 0}

    def wait_for(self, **wanted: float) -> None:
        until = time.monotonic() + 20
        while (seen := self.counts()) | wanted != seen:
            assert time.monotonic() < until, (seen, wanted)


@contextmanager
def busy(client: httpx.Client) -> Iterator[BusyServer]:
    server = BusyServer(client)
    engine = server.service.ready_engine()
    with ExitStack() as after, server.connect() as first:
        for model in engine.models.values():
            after.callback(model.trunk.register_forward_pre_hook(server.hold).remove)
        after.callback(server.go.set)
        first.sendall(request("/score", {"items": [TEA]}))
        assert server.entered.wait(timeout=60)
        yield server
        server.go.set()
        assert answer_of(first)[0] == 200


SETTINGS: dict[str, Any] = {"deadline_seconds": 600, "prefix_cache_mb": 0}


@pytest.fixture(scope="module")
def uncached(serve: Serve) -> Iterator[httpx.Client]:
    with serve(**SETTINGS) as client:
        yield client


def test_a_client_that_vanishes_leaves_nothing_behind_on_any_route(uncached: httpx.Client) -> None:
    with busy(uncached) as server:
        for num_gone, (path, body) in enumerate(BODIES.items()):
            for way in WAYS if path == "/score" else WAYS[num_gone % 3 :][:1]:
                before = server.counts()
                connection = server.connect()
                connection.sendall(request(path, body))
                server.wait_for(in_flight=2, waiting=True)
                way(connection)
                server.wait_for(in_flight=1, items=0, tokens=0, cancelled=before["cancelled"] + 1)
                connection.close()


def test_a_client_that_vanishes_while_its_large_body_is_read_leaves_nothing_behind(uncached: httpx.Client) -> None:
    with busy(uncached) as server:
        connection = server.connect()
        connection.sendall(request("/score", MANY_COMMAS))
        server.wait_for(in_flight=2)
        close(connection)
        server.wait_for(in_flight=1, items=0, tokens=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_packets", [1, 2, 3])
def test_a_client_that_has_sent_requests_ahead_takes_them_all_with_it(
    uncached: httpx.Client, way: Callable[[socket.socket], None], num_packets: int
) -> None:
    with busy(uncached) as server:
        before = server.counts()
        connection = server.connect()
        one = request("/score", {"items": [TEA]})
        connection.sendall(one * 2 if num_packets == 1 else one)
        server.wait_for(in_flight=2, items=1)
        for _ in range(num_packets - 1):
            connection.sendall(one)
        server.counts()  # answered after what was sent before it was read
        way(connection)
        server.wait_for(in_flight=1, items=0, tokens=0, cancelled=before["cancelled"] + 1)
        connection.close()


def test_requests_that_are_sent_ahead_are_answered_in_order(uncached: httpx.Client) -> None:
    with busy(uncached) as server, server.connect() as connection:
        bodies = [{"items": [{"text": "tea " * n}]} for n in range(1, 6)]
        connection.sendall(request("/score", bodies[0]) + request("/score", bodies[1])[:90])
        server.wait_for(in_flight=2)
        connection.sendall(request("/score", bodies[1])[90:])
        for body in bodies[2:]:
            connection.sendall(request("/score", body))
        server.go.set()
        answers: list[Any] = []
        received = b""
        while len(answers) < 5:
            received += connection.recv(65536)
            start, end, rest = received.partition(b"\r\n\r\n")
            while end:
                length = int(start.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                if len(rest) < length:
                    break
                answers.append(json.loads(rest[:length]))
                received = rest[length:]
                start, end, rest = received.partition(b"\r\n\r\n")
        num_tokens = [answer["results"][0]["scores"]["safety"]["num_tokens"] for answer in answers]
        assert num_tokens == sorted(set(num_tokens))


def test_a_gateway_that_retries_on_new_connections_does_not_fill_the_queue(serve: Serve) -> None:
    with serve(**SETTINGS, max_queue_tokens=64, max_waiting_requests=2) as client, busy(client) as server:
        items = {"items": [{"input_ids": [7 + i] * 40} for i in range(2)]}
        for retry in range(8):
            connection = server.connect()
            connection.sendall(request("/score", items))
            server.wait_for(in_flight=2, items=2)
            connection.close()
            server.wait_for(in_flight=1, items=0, cancelled=retry + 1)
        with server.connect() as connection:
            connection.sendall(request("/score", items))
            server.wait_for(in_flight=2, items=2)
            server.go.set()
            assert answer_of(connection)[0] == 200
