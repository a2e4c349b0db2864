"""The retry logic of one request, without I/O: what to send, when to wait, when to give up.

A driver steps the generator: it carries out each `Send` or `Pause` and sends back an `Attempt`, or None after a pause. No
endpoint has side effects, so a request may always be repeated, even if the server handled the first one.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx

from reward_client.errors import (
    UNAVAILABLE,
    BadReplyError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineError,
    RewardClientError,
    error_of,
)
from reward_client.session import HEADER

RETRIED = UNAVAILABLE | {HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT}
"""The server is busy, loading or shutting down, or a proxy reports that it is slow or gone."""
MAX_DOUBLINGS = 60


@dataclass(frozen=True)
class Retry:
    """Pauses double from `first_seconds` to `max_seconds`, each shortened by a random part of up to a half. A longer
    Retry-After is waited in full. After `max_attempts`, the error of the last attempt is raised.
    """

    max_attempts: int = 8
    first_seconds: float = 0.5
    max_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigurationError(f"max_attempts is {self.max_attempts}; pass at least 1")
        for name, seconds in (("first_seconds", self.first_seconds), ("max_seconds", self.max_seconds)):
            if not 0 <= seconds < float("inf"):
                raise ConfigurationError(f"{name} is {seconds}; pass a finite number of seconds, 0 or more")

    def pause_seconds(self, num_failed: int, retry_after: float | None) -> float:
        backoff = min(self.max_seconds, self.first_seconds * 2.0 ** min(num_failed - 1, MAX_DOUBLINGS))
        return max(backoff * (0.5 + random.random() / 2), retry_after or 0.0)  # noqa: S311 - jitter, no secret


@dataclass(frozen=True)
class Call:
    """A request. `first_item` is the index of its first item in the caller's list, for errors that name an item;
    `session` identifies its first prompt, for a router in front of several replicas.
    """

    path: str
    content: bytes = b""
    method: str = "POST"
    first_item: int = 0
    session: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {HEADER: self.session} if self.session else {}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Send:
    """Send the request once; the response may take `timeout_seconds`."""

    timeout_seconds: float


@dataclass(frozen=True)
class Pause:
    """Wait before the next attempt. `error` is the last one's, and `left_seconds` remain after the pause."""

    seconds: float
    error: RewardClientError
    left_seconds: float


@dataclass(frozen=True)
class Attempt:
    """The result of a `Send`: a response or httpx's error, and the seconds since it was sent. They do not include waiting for
    a free connection of the client.
    """

    outcome: Reply | httpx.RequestError
    seconds: float = 0.0


Steps = Generator[Send | Pause, Attempt | None, Any]


def exchange(call: Call, retry: Retry, deadline_seconds: float, address: str) -> Steps:
    """Returns the response's JSON; raises a RewardClientError. Attempts and pauses together take at most `deadline_seconds`."""
    left = deadline_seconds
    error: RewardClientError | None = None
    for num_failed in range(1, retry.max_attempts + 1):
        if left <= 0:
            break
        attempt = yield Send(left)
        assert attempt is not None
        left -= attempt.seconds
        outcome = attempt.outcome
        if isinstance(outcome, Reply) and not is_retried(outcome):
            return read_json(call, outcome)
        error = failure_of(call, outcome, address)
        if num_failed == retry.max_attempts or not (isinstance(outcome, Reply) or may_pass(outcome)):
            raise error
        after = retry_after_seconds(outcome.headers) if isinstance(outcome, Reply) else None
        pause = retry.pause_seconds(num_failed, after)
        left -= pause
        if left <= 0:
            break
        yield Pause(pause, error, left)
    why = error or "no attempt was made, since none was left of the deadline"
    raise DeadlineError(f"{address} gave no answer to {call.path} within {deadline_seconds:g} s: {why}") from error


def is_retried(reply: Reply) -> bool:
    """Whether another attempt may succeed. A 500 with JSON is the service's own, and the request would fail again; any other
    500 comes from a router whose replica died during the request.
    """
    if reply.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return not reply.headers.get("content-type", "").startswith("application/json")
    return reply.status in RETRIED


def may_pass(error: httpx.RequestError) -> bool:
    """Whether another attempt may succeed: not if the response cannot be decoded or the certificate is not trusted."""
    if not isinstance(error, httpx.TransportError):
        return False
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


def failure_of(call: Call, outcome: Reply | httpx.RequestError, address: str) -> RewardClientError:
    if isinstance(outcome, Reply):
        return error_of(outcome.status, outcome.content, call.first_item)
    reason = f"{type(outcome).__name__}: {outcome}".removesuffix(": ")
    error: RewardClientError
    if isinstance(outcome, httpx.DecodingError):
        error = BadReplyError(f"{address} answered {call.path} with a body that cannot be decoded: {reason}")
    else:
        error = ConnectionFailedError(f"{address} did not answer {call.path}: {reason}")
    error.__cause__ = outcome
    return error


def read_json(call: Call, reply: Reply) -> Any:
    if reply.status >= HTTPStatus.BAD_REQUEST:
        raise error_of(reply.status, reply.content, call.first_item)
    if reply.status != HTTPStatus.OK:
        target = reply.headers.get("location")
        where = (
            f" to {target!r:.200}; use that address as base_url" if target else ", which no route of the service does"
        )
        raise BadReplyError(f"{call.path} was answered with status {reply.status}{where}")
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError) as error:
        raise BadReplyError(
            f"{call.path} was answered with {reply.content[:80]!r}, which is not JSON: {error}"
        ) from error


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds or an HTTP date; None if it is missing or invalid."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, OSError):
        return None
