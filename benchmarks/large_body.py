"""Measures large `/ppo-reward` bodies, and how long other requests wait meanwhile.

The items contain their scores, so no model runs: only parsing, arithmetic and writing remain. Meanwhile one connection requests
`/health` and another scores a short text, repeatedly.
"""

import asyncio
import http.client
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import Connection, Endpoint
from benchmarks.servers.process import free_port, running
from benchmarks.table import format_table

SHORT = {"items": [{"prompt": "How long should green tea steep?", "response": "Two to three minutes."}]}
PAUSE_SECONDS = 0.002
QUIET_SECONDS = 0.5


def known_items(num_items: int, num_tokens: int, digits: int = 17) -> list[dict[str, Any]]:
    """A body of items with scores and with logprobs of this many tokens and digits."""
    source = random.Random(0)  # noqa: S311 - figures, not secrets
    items: list[dict[str, Any]] = []
    for _ in range(num_items):
        item: dict[str, Any] = {"safety_score": source.gauss(0, 2), "helpfulness_score": source.gauss(0, 2)}
        if num_tokens:
            policy = [-source.expovariate(1) for _ in range(num_tokens)]
            item["policy_logprobs"] = [round(value, digits) for value in policy]
            item["reference_logprobs"] = [round(value - abs(source.gauss(0, 0.1)), digits) for value in policy]
        items.append(item)
    return items


def request(items: list[dict[str, Any]]) -> bytes:
    return json.dumps({"items": items, "token_rewards": True}, separators=(",", ":")).encode()


BODIES: dict[str, tuple[Callable[[], bytes], int]] = {
    "1,024 items, no logprobs": (lambda: request(known_items(1024, 0)), 200),
    "1,024 items, 50 tokens": (lambda: request(known_items(1024, 50, digits=4)), 200),
    "2 items, 60,000 tokens": (lambda: request(known_items(2, 60_000, digits=4)), 200),
    "330,000 empty items": (lambda: b'{"items":[' + b",".join([b"{}"] * 330_000) + b"]}", 422),
    "512 items, 1,024 tokens": (lambda: request(known_items(512, 1024)), 200),
    "1,024 items, 1,400 tokens": (lambda: request(known_items(1024, 1400)), 200),
}
"""(body, expected status) by label. The first four are below 1 MB, the last is near the default limit."""


@dataclass(frozen=True, slots=True)
class LargeBody:
    """One large request: its duration in seconds, and the longest waits of other requests during it."""

    num_bytes: int
    seconds: float
    health_seconds: float
    score_seconds: float


def measure_large_bodies(command: tuple[str, ...], repeats: int, log_dir: Path) -> dict[str, LargeBody]:
    """Results by label: the waits without a large request, for comparison, then each body `repeats` times."""
    port = free_port()
    environment = {"REWARD_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    with running("large-body", command, port=port, ready_path="/ready", environment=environment, log_dir=log_dir):
        return asyncio.run(_measure(port, repeats))


def format_large_bodies(measured: Mapping[str, LargeBody]) -> str:
    headers = ("/ppo-reward", "bytes", "answer s", "longest /health s", "longest /score s")
    rows = [
        (label, f"{each.num_bytes:,}", *(f"{x:.3f}" for x in (each.seconds, each.health_seconds, each.score_seconds)))
        for label, each in measured.items()
    ]
    longest = max(each.health_seconds for each in measured.values())
    return f"{format_table(headers, rows)}\n\nlongest /health: {longest * 1000:.0f} ms"


async def _measure(port: int, repeats: int) -> dict[str, LargeBody]:
    measured = {"none": await beside_probes(port, asyncio.sleep(QUIET_SECONDS), 0)}
    for label, (make, status) in BODIES.items():
        body = make()
        for repeat in range(repeats):  # the first one starts the process that reads large bodies
            work = asyncio.to_thread(post, port, "/ppo-reward", body, status)
            measured[f"{label}, {repeat + 1}"] = await beside_probes(port, work, len(body))
    return measured


def post(port: int, path: str, body: bytes, status: int) -> None:
    """Raises RuntimeError if the status is not `status`. Run it in a separate thread, so that the probes do not
    wait for this client.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != status:
        raise RuntimeError(f"{response.status}: {answer[:300]!r}")
    connection.close()


async def beside_probes(port: int, work: Awaitable[object], num_bytes: int) -> LargeBody:
    """Awaits `work` while two connections send requests repeatedly."""
    done = asyncio.Event()
    health = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    score = Endpoint(port, "/score").request_bytes(json.dumps(SHORT).encode())
    probes = [asyncio.create_task(_longest_wait(port, each, done)) for each in (health, score)]
    await asyncio.sleep(0.1)
    started = time.perf_counter()
    await work
    seconds = time.perf_counter() - started
    done.set()
    return LargeBody(num_bytes, seconds, *await asyncio.gather(*probes))


async def _longest_wait(port: int, probe: bytes, done: asyncio.Event) -> float:
    connection = await Connection.connect(Endpoint(port, "/"))
    longest = 0.0
    while not done.is_set():
        started = time.perf_counter()
        response = await connection.send(probe)
        longest = max(longest, time.perf_counter() - started)
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.body[:300]!r}")
        await asyncio.sleep(PAUSE_SECONDS)
    connection.close()
    return longest
