"""The messages between the ingress and a replica, which Ray pickles: a whole HTTP request and its whole response."""

from dataclasses import dataclass, field

from starlette.types import Scope


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A request: an ASGI scope that holds only picklable values, and the body."""

    scope: Scope
    body: bytes = b""


@dataclass(slots=True)
class ForwardedResponse:
    """The app's response. `healthy` is False if a model thread of the replica has died, so another replica should answer."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    healthy: bool = True
    replica: str = ""
