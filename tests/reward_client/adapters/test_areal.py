"""The AReaL adapter, called as AReaL's workflows call it."""

import asyncio
import multiprocessing
import pickle
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from http.server import BaseHTTPRequestHandler

import httpx
import pytest

from reward_client import RewardClientError
from reward_client.adapters import areal
from tests.api.compat.support import LONG, llama2, native
from tests.reward_client import echo

PROMPT, RESPONSE = "How long should green tea steep?", "Two minutes."


def test_areal_gets_a_float_of_rendered_texts_and_of_messages(client: httpx.Client) -> None:
    reward = areal.reward_fn(f"<s>{PROMPT}", RESPONSE, [1, 2], [3], answer="42", index=0)
    assert reward == llama2(native(client, {"text": f"<s>{PROMPT}{RESPONSE}"}))
    turns = [{"role": "user", "content": PROMPT}]
    assert areal.reward_fn(turns, RESPONSE, [1], [2]) == llama2(
        native(client, {"prompt": PROMPT, "response": RESPONSE})
    )
    assert isinstance(areal.reward_fn(PROMPT, LONG, [1], [2], is_safety=True), float)


def test_areal_may_call_it_in_a_pool_of_processes(client: httpx.Client) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        reward = pool.submit(areal.reward_fn, PROMPT, RESPONSE, [1], [2], answer="42").result(timeout=60)
    assert reward == llama2(native(client, {"text": PROMPT + RESPONSE}))


class Unavailable(BaseHTTPRequestHandler):
    status = 503

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.send_header("retry-after", "1")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Invalid(Unavailable):
    status = 422


class Silent(Unavailable):
    def do_POST(self) -> None:
        time.sleep(1)


@pytest.mark.parametrize("handler", [Unavailable, Invalid, Silent])
def test_areal_gets_no_timeout_error_which_it_would_take_for_a_zero(
    handler: type[BaseHTTPRequestHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    with echo.serve(handler) as url:
        check_error(url, monkeypatch)


def test_areal_gets_no_timeout_error_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    check_error("http://127.0.0.1:9", monkeypatch)


def check_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes out of AReaL's pool of processes, so it is pickled."""
    monkeypatch.setenv("REWARD_CLIENT_URL", url)
    monkeypatch.setenv("REWARD_CLIENT_DEADLINE_SECONDS", "0.3")
    assert areal.DEADLINE_SECONDS < 15
    with pytest.raises(RewardClientError) as caught:
        areal.reward_fn(PROMPT, RESPONSE, [1], [2])
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):  # noqa: S301 - our own
        assert not isinstance(error, TimeoutError | asyncio.TimeoutError | FutureTimeoutError | httpx.TimeoutException)
        assert str(error) == str(caught.value)
