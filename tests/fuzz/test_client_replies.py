"""`reward_client` against a server that answers garbage: an error of its own hierarchy, soon, and never a wrong result."""

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reward_client import Retry, RewardClient, RewardClientError
from tests.fuzz.test_bodies import anything, encode

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "5")) * 10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
RESULT = {"score": 1.0, "probability": 0.7, "num_tokens": 3, "truncated": False}
RIGHT = {
    "results": [{"scores": {"safety": RESULT, "helpfulness": RESULT}}],
    "usage": {"num_tokens": 6, "num_computed_tokens": 6},
}
QUICK = Retry(max_attempts=2, first_seconds=0.001, max_seconds=0.002)
DEADLINE_SECONDS = 30.0


class Garbage:
    """A server that answers every connection with the same bytes, and closes it."""

    def __init__(self) -> None:
        self.reply = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if not connection.recv(1 << 16):  # nobody sends nothing but `close`
                    return
                connection.sendall(self.reply)

    def close(self) -> None:
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()


@pytest.fixture(scope="module")
def garbage() -> Iterator[Garbage]:
    server = Garbage()
    yield server
    server.close()


def reply(status: int, headers: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status} Odd", *(f"{name}: {value}" for name, value in headers), f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


headers = st.lists(
    st.sampled_from(
        [
            ("Content-Type", "application/json"),
            ("Content-Type", "text/html; charset=nowhere"),
            ("Content-Encoding", "gzip"),
            ("Content-Encoding", "br"),
            ("Retry-After", "-1"),
            ("Retry-After", "soon"),
            ("Retry-After", "inf"),
            ("Location", "/elsewhere"),
            ("X-Request-Id", "\xe9"),
        ]
    ),
    max_size=3,
)
damaged = st.builds(
    lambda field, value: encode(RIGHT | {field: value}), st.sampled_from(["results", "usage", "error"]), anything
)
bodies = st.one_of(
    anything.map(encode),
    damaged,
    anything.map(lambda value: encode({"results": [value]})),
    anything.map(lambda value: encode({"error": value})),
    st.binary(max_size=60),
    st.sampled_from([b"", b"[" * 100_000, b"\x1f\x8b\x08", b"\xef\xbb\xbf{}", b"NaN", b'{"results": []}']),
)
replies = st.one_of(
    st.builds(
        reply,
        st.sampled_from([200, 200, 200, 204, 206, 301, 400, 401, 408, 422, 429, 500, 502, 503, 599]),
        headers,
        bodies,
    ),
    st.binary(max_size=80),
    st.builds(lambda whole, end: whole[:end], st.builds(reply, st.just(200), headers, bodies), st.integers(0, 200)),
)


@fuzzed
@given(sent=replies)
def test_garbage_is_an_error_of_the_client(garbage: Garbage, sent: bytes) -> None:
    garbage.reply = sent
    with RewardClient(garbage.url, retry=QUICK, deadline_seconds=DEADLINE_SECONDS) as client:
        outcome = outcome_of(client)
    if isinstance(outcome, RewardClientError):
        assert 0 < len(str(outcome)) < 2000
    else:
        assert len(outcome.results) == 1


def outcome_of(client: RewardClient) -> Any:
    try:
        return client.score([{"text": "tea"}])
    except RewardClientError as error:
        return error


def test_the_right_answer_is_read(garbage: Garbage) -> None:
    garbage.reply = reply(200, [("Content-Type", "application/json")], encode(RIGHT))
    with RewardClient(garbage.url, retry=QUICK, deadline_seconds=DEADLINE_SECONDS) as client:
        assert client.score([{"text": "tea"}]).results[0].scores["safety"].score == 1.0
