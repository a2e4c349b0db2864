"""The settings of both clients, checked when a client is made: a setting that cannot work is an error before anything is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx

from reward_client.errors import ConfigurationError
from reward_client.proxies import check_host, proxy_of

if TYPE_CHECKING:
    from reward_client.encoding import Limits
    from reward_client.exchange import Retry

JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Settings:
    """What `ClientBase.__init__` documents. It can be pickled wherever `transport` can."""

    base_url: str
    api_key: str | None = field(repr=False)
    deadline_seconds: float
    connect_seconds: float
    max_concurrency: int
    retry: Retry
    limits: Limits
    transport: Any

    def __post_init__(self) -> None:
        url = parse_url(self.base_url)
        check_api_key(self.api_key)
        check_seconds("deadline_seconds", self.deadline_seconds)
        check_seconds("connect_seconds", self.connect_seconds)
        check_count("max_concurrency", self.max_concurrency)
        if self.transport is None:
            proxy_of(url)

    @cached_property
    def address(self) -> str:
        """The URL without a user and password, for messages."""
        return str(httpx.URL(self.base_url).copy_with(username=None, password=None)).rstrip("/")

    def http_options(self) -> dict[str, Any]:
        """Keyword arguments for httpx's client of either kind. The proxy is chosen here, see `proxies`."""
        url = httpx.URL(self.base_url)
        key = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        proxy = proxy_of(url) if self.transport is None else None
        # loading a TLS context takes milliseconds; a plain connection has no use for one
        needs_tls = url.scheme == "https" or proxy is not None
        return {
            "base_url": self.base_url,
            "headers": JSON | key,
            "limits": httpx.Limits(
                max_connections=self.max_concurrency, max_keepalive_connections=self.max_concurrency
            ),
            "trust_env": False,
            "verify": httpx.create_ssl_context() if needs_tls else False,
            "proxy": proxy,
            "transport": self.transport,
        }

    def timeout(self, seconds: float) -> httpx.Timeout:
        return httpx.Timeout(seconds, connect=min(seconds, self.connect_seconds))

    def deadline(self, seconds: float | None) -> float:
        """The deadline of one call's requests; 0 or less means that it has passed already."""
        if seconds is None:
            return self.deadline_seconds
        check_finite("deadline_seconds", seconds)
        return seconds


def parse_url(base_url: str) -> httpx.URL:
    """Raises ConfigurationError for anything but http(s)://host[:port][/path]."""
    example = "pass one such as http://127.0.0.1:8000"
    try:
        url = httpx.URL(base_url)
        check_host(url)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise ConfigurationError(f"base_url is {base_url!r:.200}, not a URL ({error}); {example}") from error
    shown = str(url.copy_with(username=None, password=None))
    if url.scheme not in {"http", "https"}:
        raise ConfigurationError(
            f"base_url is {shown!r:.200}, which does not begin with http:// or https://; {example}"
        )
    if not url.host:
        raise ConfigurationError(f"base_url is {shown!r:.200}, which has no host; {example}")
    if url.query or url.fragment:
        raise ConfigurationError(f"base_url is {shown!r:.200}; leave out what follows the path")
    return url


def check_api_key(api_key: str | None) -> None:
    """Raises ConfigurationError for a key that no header can carry. The message does not show the key."""
    if api_key is None:
        return
    if not isinstance(api_key, str):
        raise ConfigurationError(f"api_key is a {type(api_key).__name__}, not a string")
    for index, character in enumerate(api_key):
        if not "!" <= character <= "~":
            raise ConfigurationError(
                f"api_key has the character U+{ord(character):04X} at index {index} of {len(api_key)}; "
                "a key is printable ASCII without spaces (a key read from a file may end with a line break: strip it)"
            )


def check_finite(name: str, seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise ConfigurationError(f"{name} is {seconds!r:.80}; pass a finite number of seconds")


def check_seconds(name: str, seconds: float) -> None:
    check_finite(name, seconds)
    if seconds <= 0:
        raise ConfigurationError(f"{name} is {seconds!r:.80}; pass a number of seconds above 0")


def check_count(name: str, count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigurationError(f"{name} is {count!r:.80}; pass a whole number of at least 1")
