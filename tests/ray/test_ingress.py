"""The ingress by itself, in front of replicas that answer, die or stay silent as a test wants."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Generator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.datastructures import Headers
from starlette.types import Message

from app.ray_serve import ingress
from app.ray_serve.ingress import Forward, read_body, session_in
from app.ray_serve.messages import ForwardedRequest, ForwardedResponse
from app.settings import Settings
from reward_client.session import session_of
from tests.api.asking import TEA, assert_error

BODY = {"items": [TEA]}
FINE = ForwardedResponse(200, [(b"content-type", b"application/json"), (b"x-request-id", b"1")], b'{"results": []}')
DEAD = ForwardedResponse(500, [], b"", healthy=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = ["items", "pairs", "query", "prompts", "input", "inputs", "text", "prompt", "messages"]


class Response(Awaitable[ForwardedResponse]):
    """What a handle returns: an answer or an error when it is awaited, or neither ever."""

    def __init__(self, outcome: ForwardedResponse | Exception | None) -> None:
        self.outcome = outcome
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, ForwardedResponse]:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is None:
            yield from asyncio.Event().wait().__await__()
        assert isinstance(self.outcome, ForwardedResponse)
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class FakeEngine:
    """A handle whose calls end as scripted; keeps the sessions that it was asked for, and what it was asked."""

    def __init__(self, *outcomes: ForwardedResponse | Exception | None) -> None:
        self.responses = [Response(outcome) for outcome in outcomes]
        self.left = list(self.responses)
        self.sessions: list[str] = []
        self.asked: list[ForwardedRequest] = []

    def options(self, *, method_name: str, session_id: str = "") -> "FakeEngine":
        assert method_name == "answer"
        self.sessions.append(session_id)
        return self

    def remote(self, asked: ForwardedRequest) -> Response:
        self.asked.append(asked)
        return self.left.pop(0)

    def broadcast(self, method_name: str, asked: ForwardedRequest) -> "FakeEngine":
        assert method_name == "answer"
        self.asked.append(asked)
        return self

    async def results_async(self) -> list[ForwardedResponse]:
        return [await response for response in self.responses]


def ask(engine: FakeEngine, method: str = "POST", path: str = "/score", **request: Any) -> httpx.Response:
    settings = Settings(_env_file=None, max_body_mb=0.001, deadline_seconds=request.pop("deadline_seconds", 60))

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(Forward(engine, settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(run())


def test_a_request_goes_to_the_engine_as_it_came_and_its_answer_comes_back() -> None:
    engine = FakeEngine(FINE)
    answer = ask(engine, path="/score?a=1", json=BODY, headers={"x-request-id": "7"})
    assert (answer.status_code, answer.content) == (200, FINE.body)
    (asked,) = engine.asked
    assert (asked.scope["path"], asked.scope["query_string"], asked.scope["method"]) == ("/score", b"a=1", "POST")
    assert (b"x-request-id", b"7") in asked.scope["headers"]
    assert "x-request-id" not in answer.headers, "Ray's proxy adds it"


@pytest.mark.parametrize(
    "failures", [[RayActorError()], [DeploymentUnavailableError("no")], [DEAD] * 7, [DEAD, RayActorError(), DEAD]]
)
def test_a_request_whose_replica_died_is_asked_again_elsewhere(failures: list[ForwardedResponse | Exception]) -> None:
    engine = FakeEngine(*failures, FINE)
    assert ask(engine, json=BODY).status_code == 200
    assert engine.sessions[0] == session_of(TEA)
    assert len(set(engine.sessions)) == len(failures) + 1, "another name is another place on the ring"


@pytest.mark.parametrize(
    ("outcomes", "status", "code"),
    [
        ([RayActorError(), DEAD, RayActorError()], 503, "not_ready"),
        ([DEAD] * 8, 503, "not_ready"),
        ([BackPressureError(num_queued_requests=9, max_queued_requests=9)], 503, "overloaded"),
    ],
)
def test_what_no_engine_can_answer_is_to_be_asked_later(outcomes: list[Any], status: int, code: str) -> None:
    answer = ask(FakeEngine(*outcomes), json=BODY)
    assert_error(answer, status, code)
    assert answer.headers["retry-after"] == "1"


def test_a_request_that_no_engine_takes_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "TRANSFER_SECONDS", 0.0)
    engine = FakeEngine(None)
    assert_error(ask(engine, json=BODY, deadline_seconds=0.01), 504, "deadline_exceeded")
    assert engine.responses[0].cancelled


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_a_probe_is_answered_soon_where_no_engine_does(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "PROBE_SECONDS", 0.01)
    assert_error(ask(FakeEngine(None), "GET", path), 503, "not_ready")


def test_a_reload_is_every_engines_and_succeeds_when_all_do() -> None:
    assert ask(FakeEngine(FINE, ForwardedResponse(422, [], b"bad"), FINE), path="/admin/reload").status_code == 422
    assert ask(FakeEngine(FINE, FINE), path="/admin/reload").status_code == 200


def read(sent: list[bytes], declared: int | None, max_bytes: int = 10) -> tuple[bytes | None, int]:
    """What is read of a body, and how many of its parts were fetched for it."""
    fetched = 0

    async def receive() -> Message:
        nonlocal fetched
        fetched += 1
        if fetched > len(sent):
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": sent[fetched - 1], "more_body": fetched < len(sent) or b"" in sent}

    headers = {"content-length": str(declared)} if declared is not None else {}
    return asyncio.run(read_body(Headers(headers), receive, max_bytes)), fetched


def test_a_body_is_read_as_far_as_the_limit_and_not_at_all_where_it_says_that_it_is_over() -> None:
    assert read([b"123", b"456"], 6) == (b"123456", 2)
    assert read([b"1234567", b"1234567", b"1234567"], None) == (b"12345671234567", 2)
    assert read([b"1234567", b"1234567"], 14) == (b"", 0)


def test_a_client_that_leaves_before_its_body_has_no_answer() -> None:
    assert read([b"12", b""], 10) == (None, 3)


SAID = [
    ({"items": [{"prompt": "P", "response": "R"}]}, {"prompt": "P"}),
    ({"pairs": [{"prompt": "P", "chosen": "a", "rejected": "b"}]}, {"prompt": "P"}),
    ({"query": ["P R"], "prompts": ["P"]}, {"prompt": "P"}),
    ({"prompt": "P", "response": "R"}, {"prompt": "P"}),
    ({"inputs": [["P", "R"]]}, {"prompt": "P"}),
    ({"inputs": ["P", "R"]}, {"prompt": "P"}),
    ({"input": "[INST] P [/INST] R"}, {"text": "[INST] P [/INST]"}),
    ({"input": ["[INST] P [/INST] R", "x", "y"]}, {"text": "[INST] P [/INST]"}),
]


@pytest.mark.parametrize(("body", "item"), SAID)
def test_every_dialect_says_its_prompt(body: dict[str, Any], item: dict[str, Any]) -> None:
    assert session_in(body) == session_of(item) is not None


@given(st.dictionaries(st.sampled_from(NAMES), JSON) | JSON)
def test_any_json_has_a_session_or_none(body: Any) -> None:
    session = session_in(body)
    assert session is None or len(session) == 32


def test_a_body_that_is_no_json_is_the_apps_matter() -> None:
    engine = FakeEngine(FINE)
    ask(engine, content=b"{")
    assert (engine.sessions, engine.asked[0].body) == ([""], b"{")


def test_the_ingress_process_does_without_torch() -> None:
    code = "import sys, app.ray_serve.ingress; print('torch' in sys.modules, 'app.ray_serve' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout  # noqa: S603
    assert said.split() == ["False", "True"]
