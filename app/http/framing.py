"""Further checks of a request's head, so that proxies and this service agree on its host and on where it ends.

If they disagree, a part of one client's body can become another client's request (request smuggling).
"""

from collections.abc import Sequence

import httptools

Headers = Sequence[tuple[bytes, bytes]]
VERSIONS = frozenset({"1.0", "1.1"})


class BadHeadError(Exception):
    """The head is invalid; the request gets an error, and the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def check_head(version: str, headers: Headers) -> None:
    """Raises BadHeadError for an unknown HTTP version, an ambiguous transfer-encoding or several host headers."""
    if version not in VERSIONS:
        raise BadHeadError(505, f"HTTP/{version} is not supported; send HTTP/1.1")
    names = [name for name, _ in headers]
    if b"transfer-encoding" in names:
        codings = values_of(b"transfer-encoding", headers)
        if len(codings) > 1 or codings[0].strip().lower() != b"chunked":
            given = b", ".join(codings).decode("latin-1")[:100]
            raise BadHeadError(501, f"transfer-encoding is {given!r}; send chunked, or a content-length")
    if names.count(b"host") > 1:
        hosts = values_of(b"host", headers)
        given = b", ".join(hosts).decode("latin-1")[:100]
        raise BadHeadError(400, f"the request has {len(hosts)} host headers ({given}); send one")


def values_of(wanted: bytes, headers: Headers) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def origin_form(target: bytes) -> bytes:
    """The path and query of a request target, also of an absolute one such as `http://host/score?x=1` (RFC 9112, 3.2.2)."""
    if target.startswith(b"/") or b"://" not in target:
        return target
    parts = httptools.parse_url(target)
    path, query = parts.path or b"/", parts.query
    return path if query is None else path + b"?" + query
