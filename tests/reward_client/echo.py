"""A server whose score for a text is the number that the text spells, and clients that check they get their own numbers.

Imports nothing heavy, since spawned processes import it.
"""

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from reward_client import AsyncRewardClient, RewardClient

Client = RewardClient | AsyncRewardClient


def replies(numbers: list[float]) -> dict[str, Any]:
    entries = [{"score": number, "probability": 0.5, "num_tokens": 1, "truncated": False} for number in numbers]
    results = [{"scores": {"safety": entry}} for entry in entries]
    return {"results": results, "usage": {"num_tokens": 1, "num_computed_tokens": 1}}


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True  # else each answer's body would wait 40 ms for the acknowledgement of its head
    wait_seconds = 0.0
    random_seconds = 0.002  # so that answers overlap

    def do_POST(self) -> None:
        items = json.loads(self.rfile.read(int(self.headers["content-length"])))["items"]
        time.sleep(self.wait_seconds + random.random() * self.random_seconds)  # noqa: S311 - no secret
        content = json.dumps(replies([float(item["text"]) for item in items])).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no error here."""


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler] = Echo) -> Iterator[str]:
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def score(client: Client, number: int) -> float:
    """The score of the number by a client of either kind."""
    item = {"text": str(number)}
    if isinstance(client, RewardClient):
        return client.score([item]).of("safety")[0]
    return asyncio.run(score_in_loop(client, number))


async def score_in_loop(client: AsyncRewardClient, number: int) -> float:
    return (await client.score([{"text": str(number)}])).of("safety")[0]


def count_wrong(client: Client, first: int, count: int = 40) -> int:
    """How many of `count` numbers came back as other ones, asked one after the other over one client."""
    numbers = range(first, first + count)
    if isinstance(client, RewardClient):
        return sum(score(client, number) != number for number in numbers)

    async def run() -> int:
        return sum([await score_in_loop(client, number) != number for number in numbers])

    return asyncio.run(run())


def report_wrong(pipe: Any, client: Client, first: int) -> None:
    """What a process of its own sends."""
    pipe.send(count_wrong(client, first))


def count_wrong_in_threads(client: RewardClient, first: int, count: int = 40) -> int:
    """As `count_wrong`, with all the numbers at once as several requests."""
    numbers = range(first, first + count)
    scores = client.score([{"text": str(number)} for number in numbers]).of("safety")
    return sum(score != number for score, number in zip(scores, numbers, strict=True))
