"""What `RewardClient` and `AsyncRewardClient` share: settings, pickling, and the warning about an address that does not answer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from reward_client.encoding import Limits
from reward_client.errors import ClientClosedError, ConnectionFailedError
from reward_client.exchange import Retry
from reward_client.settings import Settings

if TYPE_CHECKING:
    from reward_client.exchange import Pause

logger = logging.getLogger("reward_client")


class ClientBase:
    """Holds the settings. Connections belong to the process (and event loop) that opened them and are never inherited."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        deadline_seconds: float = 180.0,
        connect_seconds: float = 5.0,
        max_concurrency: int = 16,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        limits: Limits = Limits(),  # noqa: B008 - frozen
        transport: Any = None,
    ) -> None:
        """Opens no connection yet. Raises ConfigurationError for an invalid setting.

        base_url: http(s)://[user:password@]host[:port][/path]; user and password are sent as HTTP Basic.
        api_key: sent as bearer token; printable ASCII.
        deadline_seconds: for one request, from first sending it to its response, including all attempts and pauses. Waiting
            for a free connection of the client does not count. A long list is several requests, each with its own deadline.
        connect_seconds: for opening one connection.
        max_concurrency: maximum connections, and so maximum concurrent requests. Set it to the number of calls that the
            trainer starts at once.
        retry: how often and after which pauses to repeat a request that got 408, 429, 502, 503, 504, or no response.
        limits: maximum items and bytes of one request.
        transport: an httpx transport, sync or async as the client is; proxies from the environment are then ignored.
        """
        self.settings = Settings(
            base_url=base_url,
            api_key=api_key,
            deadline_seconds=deadline_seconds,
            connect_seconds=connect_seconds,
            max_concurrency=max_concurrency,
            retry=retry,
            limits=limits,
            transport=transport,
        )
        self.reset()

    def reset(self) -> None:
        """Sets the state that is not pickled: no connection yet."""
        self.is_closed = False
        self.is_silent = False

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.settings = state["settings"]
        self.reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings.address!r})"

    def check_open(self) -> None:
        if self.is_closed:
            raise ClientClosedError(f"this {type(self).__name__} is closed; make another one")

    def note_pause(self, pause: Pause) -> None:
        """Logs the first failed connection immediately, so a wrong address is visible before the last attempt."""
        if isinstance(pause.error, ConnectionFailedError) and not self.is_silent:
            self.is_silent = True
            logger.warning("%s; trying again for up to %.3g s", pause.error, pause.seconds + pause.left_seconds)

    def note_reply(self) -> None:
        self.is_silent = False
