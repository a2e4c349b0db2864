"""Load on one endpoint: a closed loop at a concurrency, or an open loop at a rate.

Requests and responses are bytes here; their meaning is in `servers`. All times are seconds of one monotonic clock.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.client import Connection, Endpoint, ProtocolError, Response

MAX_IDLE_SECONDS = 2.0
"""Seconds; well under the 5 s after which uvicorn closes an idle connection."""


class LoadError(Exception):
    """A server answered a benchmark request with an error, so the run is invalid."""


@dataclass(frozen=True, slots=True)
class Run:
    """The result of one pass over the requests; `latencies` (seconds) and `bodies` are in the requests' order."""

    seconds: float
    latencies: tuple[float, ...]
    bodies: tuple[bytes, ...]

    @property
    def requests_per_second(self) -> float:
        return len(self.latencies) / self.seconds


async def closed_loop(endpoint: Endpoint, bodies: Sequence[bytes], concurrency: int) -> Run:
    """Send `bodies` over `concurrency` connections, each sending its next request when its last was answered."""
    requests = [endpoint.request_bytes(body) for body in bodies]
    answers: list[Response | None] = [None] * len(requests)
    latencies = [0.0] * len(requests)
    pending = iter(range(len(requests)))
    connections = [await Connection.connect(endpoint) for _ in range(min(concurrency, len(requests)))]

    async def worker(connection: Connection) -> None:
        for index in pending:
            sent = time.perf_counter()
            answers[index] = await connection.send(requests[index])
            latencies[index] = time.perf_counter() - sent

    try:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(worker(connection))
        seconds = time.perf_counter() - started
    except* (ConnectionError, ProtocolError) as errors:
        raise LoadError(f"a request failed: {errors.exceptions[0]}") from errors
    finally:
        for connection in connections:
            connection.close()
    return Run(seconds, tuple(latencies), _checked_bodies(answers))


async def open_loop(endpoint: Endpoint, bodies: Sequence[bytes], rate: float, seed: int) -> Run:
    """Send `bodies` at Poisson arrivals of `rate` requests/s, whatever the server does.

    A latency counts from the time at which the request was due, so a stalled client or server cannot hide its queue
    (no coordinated omission).
    """
    requests = [endpoint.request_bytes(body) for body in bodies]
    answers: list[Response | None] = [None] * len(requests)
    latencies = [0.0] * len(requests)
    pool = ConnectionPool(endpoint)

    async def one(index: int, due: float) -> None:
        connection = await pool.take()
        answers[index] = await connection.send(requests[index])
        latencies[index] = time.perf_counter() - due
        pool.give_back(connection)

    try:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index, offset in enumerate(arrival_offsets(len(requests), rate, seed)):
                due = started + offset
                delay = due - time.perf_counter()
                if delay > 0:
                    await asyncio.sleep(delay)
                group.create_task(one(index, due))
        seconds = time.perf_counter() - started
    except* (ConnectionError, ProtocolError) as errors:
        raise LoadError(f"a request failed: {errors.exceptions[0]}") from errors
    finally:
        pool.close()
    return Run(seconds, tuple(latencies), _checked_bodies(answers))


class ConnectionPool:
    """A pool of connections for an open loop: the one used last is reused first; connections idle for long are dropped, because the server may have closed them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._idle: list[tuple[Connection, float]] = []

    async def take(self) -> Connection:
        while self._idle:
            connection, idle_since = self._idle.pop()
            if connection.is_open and time.perf_counter() - idle_since < MAX_IDLE_SECONDS:
                return connection
            connection.close()
        return await Connection.connect(self.endpoint)

    def give_back(self, connection: Connection) -> None:
        self._idle.append((connection, time.perf_counter()))

    def close(self) -> None:
        for connection, _ in self._idle:
            connection.close()


def arrival_offsets(num_requests: int, rate: float, seed: int) -> list[float]:
    """Seconds from the start at which a Poisson process of `rate` per second brings each request; sorted."""
    if rate <= 0:
        raise ValueError(f"the rate must be positive, got {rate}")
    source = random.Random(seed)  # noqa: S311 (arrival times, not secrets)
    offsets: list[float] = []
    elapsed = 0.0
    for _ in range(num_requests):
        elapsed += source.expovariate(rate)
        offsets.append(elapsed)
    return offsets


def _checked_bodies(answers: Sequence[Response | None]) -> tuple[bytes, ...]:
    bodies: list[bytes] = []
    for index, answer in enumerate(answers):
        if answer is None or answer.status != 200:
            told = "nothing" if answer is None else f"{answer.status}: {answer.body[:300]!r}"
            raise LoadError(f"request {index} was answered with {told}")
        bodies.append(answer.body)
    return tuple(bodies)
