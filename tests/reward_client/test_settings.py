"""A setting that cannot work is one error when the client is made; proxies are chosen for the one host."""

import importlib.util
import inspect
from typing import Any

import httpx
import pytest

from reward_client import (
    AsyncRewardClient,
    ClientClosedError,
    ConfigurationError,
    InvalidItemError,
    Limits,
    Retry,
    RewardClient,
    RewardClientError,
)
from reward_client.proxies import proxy_of
from tests.reward_client import echo
from tests.reward_client.conftest import Ask

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
DEAD_PROXY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "127.0.0.1:8000"}, "http://"),
        ({"base_url": "localhost:8000/score"}, "does not begin with http:// or https://"),
        ({"base_url": "ftp://host"}, "does not begin with http:// or https://"),
        ({"base_url": "http://"}, "has no host"),
        ({"base_url": "http://host:99999"}, "not a URL"),
        ({"base_url": "http://host/?a=1"}, "leave out what follows the path"),
        ({"base_url": "http://" + "a" * 70 + ".com"}, "not a URL"),
        ({"base_url": "http://ho st"}, "not a URL"),
        ({"base_url": None}, "not a URL"),
        ({"base_url": ""}, "does not begin with http"),
        ({"api_key": "secret\n"}, r"U\+000A at index 6 of 7"),
        ({"api_key": "schlüssel"}, r"U\+00FC at index 4"),
        ({"api_key": "two words"}, r"U\+0020 at index 3"),
        ({"api_key": b"bytes"}, "is a bytes"),
        ({"deadline_seconds": float("inf")}, "finite number of seconds"),
        ({"deadline_seconds": float("nan")}, "finite number of seconds"),
        ({"deadline_seconds": 0}, "above 0"),
        ({"deadline_seconds": "10"}, "finite number of seconds"),
        ({"connect_seconds": -1}, "above 0"),
        ({"max_concurrency": 0}, "at least 1"),
        ({"max_concurrency": 2.5}, "whole number"),
    ],
)
@pytest.mark.parametrize("kind", [RewardClient, AsyncRewardClient])
def test_a_setting_that_cannot_work_is_an_error_at_once(
    kind: type[Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        kind(**settings)
    assert "secret" not in str(caught.value)


def test_a_password_in_a_wrong_url_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RewardClient("ftp://trainer:secret@host")
    assert "secret" not in str(caught.value)


def test_retries_and_limits_that_cannot_work_are_errors() -> None:
    with pytest.raises(ConfigurationError, match="max_attempts is 0"):
        Retry(max_attempts=0)
    with pytest.raises(ConfigurationError, match="max_seconds is inf"):
        Retry(max_seconds=float("inf"))
    with pytest.raises(ConfigurationError, match="max_items is 0"):
        Limits(max_items=0)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), "1", None.__class__])
def test_a_deadline_of_one_call_is_checked_too(ask: Ask, seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="finite number of seconds"):
        ask("score", [{"text": "1"}], deadline_seconds=seconds)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.8.8.8",
        "localhost",
        "a.localhost",
        "LOCALHOST.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",  # noqa: S104 - a URL's host, which nothing listens on
        "[::]",
    ],
)
def test_a_proxy_never_applies_to_this_machine(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    for name in VARIABLES[:3]:
        monkeypatch.setenv(name, DEAD_PROXY)
    assert proxy_of(httpx.URL(f"http://{host}:8000")) is None
    assert proxy_of(httpx.URL("http://rewards:8000")) == DEAD_PROXY


def test_both_clients_reach_a_server_on_loopback_past_a_dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", DEAD_PROXY)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with echo.serve() as url:
        with RewardClient(url, deadline_seconds=10) as client:
            assert echo.score(client, 5) == 5
        assert echo.score(AsyncRewardClient(url, deadline_seconds=10), 6) == 6


def test_a_request_for_another_host_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with echo.serve() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with RewardClient("http://rewards.example", deadline_seconds=10) as client:
            assert echo.score(client, 5) == 5


@pytest.mark.parametrize(
    "proxy", ["http://[::1", "http://", "http://proxy:99999", "http:// a", "x" * 300, "http://trainer:secret@[::1"]
)
def test_a_proxy_that_is_no_url_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigurationError, match=r"the proxy variables name .* not a URL .*; set another") as raised:
        RewardClient("http://rewards:8000")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("host", "no_proxy", "is_direct"),
    [
        ("rewards.lan", "lan", True),
        ("rewards.lan", ".lan, other", True),
        ("rewards.lan", "*.lan", True),
        ("rewards.lan", "rewards.lan:8000", True),
        ("rewards.lan", "wards.lan", False),
        ("rewards.lan", "*", True),
        ("rewards.lan", "", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "fd00::/8,10.1.2.3", True),
        ("11.1.2.3", "10.0.0.0/8,fe80::/10", False),
        ("[fd00::1]", "fd00::/8", True),
        ("[fd00::1]", "[fd00::1]:8000", True),
        ("[fe00::1]", "fd00::/8", False),
        ("rewards.lan", "fd00::/8,::1", False),
    ],
)
def test_no_proxy_names_hosts_domains_and_networks_of_both_families(
    monkeypatch: pytest.MonkeyPatch, host: str, no_proxy: str, is_direct: bool
) -> None:
    monkeypatch.setenv("http_proxy", DEAD_PROXY)
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (proxy_of(httpx.URL(f"http://{host}:8000")) is None) is is_direct
    RewardClient(f"http://{host}:8000").close()


def test_a_socks_proxy_without_its_package_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("ALL_PROXY", "socks5h://proxy:1080")
    for kind in (RewardClient, AsyncRewardClient):
        with pytest.raises(ConfigurationError, match=r"pip install httpx\[socks\]"):
            kind("http://rewards.lan")
    monkeypatch.setenv("ALL_PROXY", "gopher://proxy")
    with pytest.raises(ConfigurationError, match="gopher"):
        RewardClient("http://rewards.lan")


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    for name in ("__init__", "score", "compare", "ppo_reward", "info", "post"):
        sync, coroutine = (inspect.signature(getattr(kind, name)) for kind in (RewardClient, AsyncRewardClient))
        assert sync.parameters == coroutine.parameters
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in sync.parameters.values())


@pytest.mark.parametrize(
    "items",
    ["hello", b"hello", {"prompt": "a", "response": "b"}, None, 3, ["hello"], [["a", "b"]], [{"text": "a"}, None]],
)
def test_what_is_no_list_of_items_is_told_what_score_takes(ask: Ask, items: Any) -> None:
    with pytest.raises(InvalidItemError, match=r'pass a list of items, each \{"prompt": \.\.\., "response": \.\.\.\}'):
        ask("score", items)
    with pytest.raises(InvalidItemError, match=r'pass a list of pairs, each \{"prompt": \.\.\., "chosen": \.\.\.'):
        ask("compare", items)


@pytest.mark.parametrize("mask", [[1, 0.9], [0.5, 1], [2, 1], [1, None], [1, "1"], [float("nan"), 1]])
def test_a_mask_of_anything_but_0_and_1_is_refused(ask: Ask, mask: list[Any]) -> None:
    item = {"text": "a", "policy_logprobs": [-1.0, -1.0], "reference_logprobs": [-1.0, -1.0], "mask": mask}
    with pytest.raises(InvalidItemError, match=r"items\[0\] cannot be sent: mask\[\d\] is .*; a mask holds 1"):
        ask("ppo_reward", [item])


def test_a_path_that_is_a_whole_url_is_refused(ask: Ask) -> None:
    for path in ("http://other/score", "score", "/a\nb"):
        with pytest.raises(InvalidItemError, match="such as /score"):
            ask("post", path, {})


def test_a_closed_client_says_so() -> None:
    client = RewardClient()
    client.close()
    with pytest.raises(ClientClosedError, match="RewardClient is closed"):
        client.score([{"text": "a"}])
    assert issubclass(ClientClosedError, RewardClientError)
