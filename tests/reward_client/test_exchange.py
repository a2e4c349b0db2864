"""When to try again, without a network and without waiting."""

import asyncio
import itertools
import threading
import time
from email.utils import formatdate
from typing import Any

import httpx
import pytest

from reward_client import (
    AsyncRewardClient,
    BadReplyError,
    ConnectionFailedError,
    DeadlineError,
    InvalidRequestError,
    Limits,
    Retry,
    RewardClient,
    ServerFailedError,
    UnavailableError,
)
from reward_client.exchange import Attempt, Call, Pause, Reply, Send, exchange
from tests.reward_client.conftest import Ask

CALL = Call("/score", b"{}")
OK = Reply(200, {}, b'{"results": []}')
BUSY = Reply(503, {"retry-after": "2"}, b'{"error": {"code": "overloaded", "message": "full"}}')
JSON = {"content-type": "application/json"}
BROKEN = httpx.RemoteProtocolError("peer closed connection")


Outcome = Reply | httpx.RequestError


class Play:
    """Feeds outcomes to an exchange on a clock that only pauses and slow attempts move; keeps what it did."""

    def __init__(
        self, *outcomes: Outcome, retry: Retry | None = None, deadline: float = 60, seconds: float = 0
    ) -> None:
        self.time = 0.0
        self.seconds = seconds
        self.steps: list[Send | Pause] = []
        self.outcomes = iter(outcomes)
        self.exchange = exchange(CALL, retry or Retry(), deadline, "http://rewards")

    def run(self) -> Any:
        attempt: Attempt | None = None
        while True:
            try:
                step = self.exchange.send(attempt)
            except StopIteration as stop:
                return stop.value
            self.steps.append(step)
            attempt = Attempt(next(self.outcomes), self.seconds) if isinstance(step, Send) else None
            self.time += step.seconds if isinstance(step, Pause) else self.seconds

    @property
    def pauses(self) -> list[float]:
        return [step.seconds for step in self.steps if isinstance(step, Pause)]


ROUTERS_OWN = Reply(500, {"content-type": "text/plain; charset=utf-8"}, b"Internal Server Error")


@pytest.mark.parametrize(
    "failure", [BUSY, Reply(504, {}, b""), ROUTERS_OWN, BROKEN, httpx.ReadTimeout(""), httpx.ConnectError("")]
)
def test_what_may_pass_is_tried_again(failure: Outcome) -> None:
    assert Play(failure, failure, OK).run() == {"results": []}


@pytest.mark.parametrize(
    ("status", "error"), [(400, InvalidRequestError), (422, InvalidRequestError), (500, ServerFailedError)]
)
def test_what_would_fail_again_is_not(status: int, error: type[Exception]) -> None:
    play = Play(Reply(status, JSON, b'{"error": {"message": "no"}}'), OK)
    with pytest.raises(error, match="no"):
        play.run()
    assert len(play.steps) == 1


def test_pauses_double_with_jitter_and_are_bounded() -> None:
    play = Play(*[BROKEN] * 6, OK, retry=Retry(first_seconds=1, max_seconds=5))
    play.run()
    for pause, most in zip(play.pauses, (1, 2, 4, 5, 5, 5), strict=True):
        assert most / 2 <= pause <= most


def test_retry_after_is_waited_in_full_as_seconds_or_as_a_date() -> None:
    quick = Retry(first_seconds=0.01, max_seconds=0.01)
    play = Play(BUSY, OK, retry=quick)
    play.run()
    assert play.pauses == [2.0]
    play = Play(Reply(503, {"retry-after": formatdate(time.time() + 5, usegmt=True)}, b""), OK, retry=quick)
    play.run()
    assert 3 < play.pauses[0] <= 5
    play = Play(Reply(503, {"retry-after": "soon"}, b""), OK, retry=quick)
    play.run()
    assert play.pauses[0] <= 0.01


def test_the_last_attempts_error_is_raised() -> None:
    with pytest.raises(UnavailableError, match="full") as caught:
        Play(BROKEN, BUSY, retry=Retry(max_attempts=2)).run()
    assert caught.value.code == "overloaded"
    with pytest.raises(ConnectionFailedError, match="RemoteProtocolError") as broken:
        Play(BUSY, BROKEN, retry=Retry(max_attempts=2)).run()
    assert broken.value.__cause__ is BROKEN


def test_a_pause_that_would_pass_the_deadline_ends_at_once_with_the_last_error_as_cause() -> None:
    play = Play(BUSY, BUSY, OK, retry=Retry(first_seconds=0.01), deadline=3)
    with pytest.raises(DeadlineError, match="full") as caught:
        play.run()
    assert isinstance(caught.value.__cause__, UnavailableError)
    assert play.time == 2


def test_each_attempt_gets_what_is_left_of_the_deadline() -> None:
    play = Play(BUSY, BUSY, OK, retry=Retry(first_seconds=0.01), deadline=10)
    play.run()
    assert [step.timeout_seconds for step in play.steps if isinstance(step, Send)] == [10, 8, 6]


def test_a_deadline_that_has_passed_sends_nothing() -> None:
    play = Play(deadline=0)
    with pytest.raises(DeadlineError, match="no attempt"):
        play.run()
    assert not play.steps


def test_a_reply_that_is_no_json_is_an_error() -> None:
    with pytest.raises(BadReplyError, match="not JSON"):
        Play(Reply(200, {}, b"<html>")).run()


SIX = [{"text": "a"}] * 6
THREE_AT_ONCE: dict[str, Any] = {"base_url": "http://rewards", "limits": Limits(max_items=1), "max_concurrency": 3}


def test_threads_send_as_many_requests_at_once_as_they_may_and_no_more() -> None:
    meeting = threading.Barrier(3, timeout=10)  # breaks unless three are under way together
    under_way: list[int] = []

    def answer(_: httpx.Request) -> httpx.Response:
        under_way.append(meeting.wait())
        return httpx.Response(200, json=REPLY | USAGE)

    with RewardClient(**THREE_AT_ONCE, transport=httpx.MockTransport(answer)) as client:
        assert len(client.score(SIX).results) == 6
    assert sorted(under_way) == [0, 0, 1, 1, 2, 2]


def test_coroutines_send_as_many_requests_at_once_as_they_may_and_no_more() -> None:
    async def run() -> int:
        meeting, most, num_under_way = asyncio.Barrier(3), 0, 0

        async def answer(_: httpx.Request) -> httpx.Response:
            nonlocal most, num_under_way
            num_under_way += 1
            most = max(most, num_under_way)
            await meeting.wait()
            num_under_way -= 1
            return httpx.Response(200, json=REPLY | USAGE)

        async with AsyncRewardClient(**THREE_AT_ONCE, transport=httpx.MockTransport(answer)) as client:
            assert len((await client.score(SIX)).results) == 6
        return most

    assert asyncio.run(run()) == 3


def test_a_failed_request_ends_the_others_of_its_call(ask: Ask) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(422 if b"bad" in request.content else 503, json={"detail": "no"})

    settings = THREE_AT_ONCE | {"transport": httpx.MockTransport(answer), "retry": Retry(first_seconds=0.05)}
    with pytest.raises(InvalidRequestError, match="no"):
        ask("score", [{"text": "bad"}, *SIX], settings=settings, deadline_seconds=1)


REPLY = {"results": [{"scores": {"safety": {"score": 1.5, "probability": 0.8, "num_tokens": 3, "truncated": False}}}]}
USAGE = {"usage": {"num_tokens": 3, "num_computed_tokens": 3}}


def test_a_flaky_transport_is_survived_by_both_clients(ask: Ask) -> None:
    numbers = itertools.count()

    def answer(request: httpx.Request) -> httpx.Response:
        match next(numbers):
            case 0:
                raise httpx.ConnectError("refused", request=request)
            case 1:
                return httpx.Response(503, json={"error": {"code": "not_ready", "message": "loading"}})
            case 2:
                raise httpx.ReadTimeout("slow", request=request)
        return httpx.Response(200, json=REPLY | USAGE)

    settings = {"base_url": "http://rewards", "transport": httpx.MockTransport(answer)}
    assert ask("score", [{"text": "a"}], settings=settings).of("safety") == [1.5]
    assert next(numbers) == 4


@pytest.mark.parametrize(
    "reply",
    [
        {"results": []} | USAGE,
        REPLY,
        {"results": [{"scores": {"safety": {"score": None, "probability": 0.5, "num_tokens": 3, "truncated": False}}}]},
        {"results": [{"scores": {"safety": {"probability": 0.5, "num_tokens": 3, "truncated": False}}}]} | USAGE,
        {"results": [{"scores": {}}]} | USAGE,
        {"results": [{"scores": 0}]} | USAGE,
        {"results": [0]} | USAGE,
        {},
    ],
)
def test_a_reply_without_its_score_is_an_error_and_never_a_zero(ask: Ask, reply: dict[str, Any]) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=reply))
    with pytest.raises(BadReplyError):
        ask("score", [{"text": "a"}], settings={"base_url": "http://rewards", "transport": transport})
