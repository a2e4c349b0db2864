"""Where a request ends: the same wherever its packets are split, and never open to two readings."""

import asyncio
from typing import Any

import pytest

from app.http.framing import origin_form
from tests.http.wire import answer, answers_to, refuse

JSON = b'{"text": "tea"}'
LENGTH = b"Content-Length: %d\r\n" % len(JSON)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"5\r\n%b\r\na\r\n%b\r\n0\r\n" % (JSON[:5], JSON[5:])
NEXT = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
FRAMED = {
    "a length": (LENGTH, JSON),
    "chunks": (CHUNKED, CHUNKS + b"\r\n"),
}
OFFERS = {
    "no offer": b"",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "a websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
}


def request(headers: bytes, body: bytes, *, target: bytes = b"/score") -> bytes:
    return b"POST " + target + b" HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n" + body


EXTENSIONS = b'f;a=b;c="d e";f\r\n' + JSON + b"\r\n0;x=y\r\n\r\n"
TAKEN = {
    "Expect: 100-continue": request(b"Expect: 100-continue\r\n" + LENGTH, JSON),
    "Expect: 100-continue, chunks": request(b"Expect: 100-Continue\r\n" + CHUNKED, CHUNKS + b"\r\n"),
    "an unknown expectation": request(b"Expect: tea\r\n" + LENGTH, JSON),
    "trailers": request(CHUNKED + b"Trailer: X-A\r\n", CHUNKS + b"X-A: 1\r\nHost: b\r\nX-Request-Id: b\r\n\r\n"),
    "an absolute target": request(LENGTH, JSON, target=b"http://a/score"),
    "an absolute target without a path": request(LENGTH, JSON, target=b"http://a:8000"),
    "chunk extensions": request(CHUNKED, EXTENSIONS),
    "a coding in capitals": request(b"TRANSFER-ENCODING:\tCHUNKED\r\n", CHUNKS + b"\r\n"),
    "empty lines before it": b"\r\n\r\n" + request(LENGTH, JSON),
    "an underscore in place of a hyphen": request(b"Transfer_Encoding: chunked\r\n" + LENGTH, JSON),
}
REFUSED = {
    "obs-fold": request(LENGTH + b"X-A: 1\r\n 2\r\n", JSON),
    "obs-fold before the length": request(b"Content-Length:\r\n 15\r\n", JSON),
    "a length and chunks": request(b"Content-Length: 4\r\n" + CHUNKED, b"0\r\n\r\n" + NEXT),
    "chunks and a length": request(CHUNKED + b"Content-Length: 4\r\n", b"0\r\n\r\n" + NEXT),
    "two lengths": request(b"Content-Length: 4\r\nContent-Length: 5\r\n", b"teas"),
    "a list of lengths": request(b"Content-Length: 15, 15\r\n", JSON),
    "the length twice": request(LENGTH + LENGTH, JSON),
    "a signed length": request(b"Content-Length: +15\r\n", JSON),
    "a length in hexadecimal": request(b"Content-Length: 0xf\r\n", JSON),
    "a length over 64 bits": request(b"Content-Length: 18446744073709551631\r\n", JSON),
    "an empty length": request(b"Content-Length:\r\n", JSON),
    "bare line feeds": request(LENGTH, JSON).replace(b"\r\n", b"\n"),
    "one bare line feed": request(LENGTH + b"X-A: b\nX-C: d\r\n", JSON),
    "a bare line feed at the end of the head": request(LENGTH, JSON).replace(b"\r\n\r\n", b"\r\n\n"),
    "a bare carriage return": request(LENGTH + b"X-A: b\rX-C: d\r\n", JSON),
    "a space before the colon": request(b"Transfer-Encoding : chunked\r\n", CHUNKS + b"\r\n"),
    "a space before the length's colon": request(b"Content-Length : 15\r\n", JSON),
    "an unknown coding": request(b"Transfer-Encoding: xchunked\r\n", CHUNKS + b"\r\n"),
    "a coding before chunked": request(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS + b"\r\n"),
    "a coding after chunked": request(b"Transfer-Encoding: chunked, identity\r\n", CHUNKS + b"\r\n"),
    "chunked twice": request(CHUNKED + CHUNKED, CHUNKS + b"\r\n"),
    "a vertical tab before the coding": request(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS + b"\r\n"),
    "a line break in an extension": request(CHUNKED, b'f;a="\r\n"\r\n' + JSON + b"\r\n0\r\n\r\n"),
    "a bare line feed after an extension": request(CHUNKED, b"f;a\n" + JSON + b"\r\n0\r\n\r\n"),
    "bare line feeds between chunks": request(CHUNKED, b"f\n" + JSON + b"\n0\n\n"),
    "a chunk longer than it says": request(CHUNKED, b"f\r\n" + JSON + b"XX0\r\n\r\n"),
    "a signed chunk": request(CHUNKED, b"-f\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "a chunk's length over 64 bits": request(CHUNKED, b"1000000000000000f\r\n" + JSON + b"\r\n0\r\n\r\n"),
    "two hosts": request(b"Host: b\r\n" + LENGTH, JSON),
    "another version": request(LENGTH, JSON).replace(b"HTTP/1.1", b"HTTP/2.0"),
}


def final(written: bytes) -> bytes:
    """What was written but for the interim response to an expectation."""
    return written.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("framing", FRAMED)
def test_a_request_in_two_packets_has_one_answer_wherever_it_is_split(framing: str, offer: str) -> None:
    """And the request that follows on the same connection has its own."""
    header, body = FRAMED[framing]
    both = request(OFFERS[offer] + header, body) + NEXT

    async def split_everywhere() -> None:
        for cut in range(1, len(both)):
            written = await answers_to(both[:cut], both[cut:])
            assert written.count(b"HTTP/1.1 200 OK") == 2, (cut, written)
            assert written.endswith(b"GET "), (cut, written)
            assert written.count(b"POST " + JSON) == 1, (cut, written)

    asyncio.run(split_everywhere())


@pytest.mark.parametrize("kind", TAKEN)
def test_a_legal_request_of_an_odd_kind_has_one_answer_wherever_it_is_split(kind: str) -> None:
    async def split_everywhere() -> None:
        both = TAKEN[kind] + NEXT
        for cut in range(1, len(both)):
            written = final(await answers_to(both[:cut], both[cut:]))
            assert written.count(b"HTTP/1.1 200 OK") == written.count(b"HTTP/1.1") == 2, (cut, written)
            assert written.count(b"POST " + JSON) == 1, (cut, written)
            assert written.endswith(b"GET "), (cut, written)

    asyncio.run(split_everywhere())


@pytest.mark.parametrize("kind", REFUSED)
def test_a_request_that_two_readers_may_read_differently_is_refused_wherever_it_is_split(kind: str) -> None:
    """By one JSON error, and nothing behind it on its connection is read."""

    async def split_everywhere() -> None:
        both = REFUSED[kind] + NEXT
        for cut in range(1, len(both)):
            written = await answers_to(both[:cut], both[cut:])
            assert b" 200 OK" not in written, (cut, written)
            assert written.count(b"HTTP/1.1 ") == 1, (cut, written)
            assert b'"code": "invalid_http", "message": "' in written, (cut, written)
            assert b"connection: close" in written, (cut, written)

    asyncio.run(split_everywhere())


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("offer", ["h2c", "a websocket"])
def test_an_offer_of_another_protocol_makes_it_no_less_refused(offer: str, kind: str) -> None:
    head, _, rest = REFUSED[kind].partition(b"\n")
    written = asyncio.run(answers_to(head + b"\n" + OFFERS[offer] + rest))
    assert b" 200 OK" not in written
    assert written.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("broken", [b"no request\r\n\r\n", REFUSED["two lengths"], REFUSED["a signed chunk"]])
def test_requests_before_a_broken_one_get_their_own_answers(broken: bytes) -> None:
    written = asyncio.run(answers_to(request(LENGTH, JSON) + NEXT + broken + NEXT))
    assert written.count(b"HTTP/1.1 ") == written.count(b"HTTP/1.1 200 OK") == 2
    assert written.endswith(b"GET ")
    assert b"connection: close" in written.rpartition(b"HTTP/1.1 ")[2]


def test_a_request_that_breaks_in_its_body_is_told_so_once_and_its_route_learns_that_the_client_is_gone() -> None:
    seen: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - ASGI's signature
        while (message := await receive())["type"] == "http.request":
            pass
        seen.append(message["type"])
        await answer(send, b"late")

    written = asyncio.run(answers_to(request(CHUNKED, b"5\r\nteate\r\n"), b"oops", app=note))
    assert written.count(b"HTTP/1.1 ") == 1
    assert b'"invalid_http"' in written
    assert seen == ["http.disconnect"]


def test_fields_behind_the_body_are_no_headers() -> None:
    """They would pass for a key, a host or a request id that a proxy has not seen."""

    async def headers(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await answer(send, b" ".join(name for name, _ in scope["headers"]))

    written = asyncio.run(answers_to(request(CHUNKED, CHUNKS + b"Authorization: Bearer x\r\n\r\n"), app=headers))
    assert written.endswith(b"\r\n\r\nhost transfer-encoding")


def test_a_client_that_was_refused_before_it_sent_its_body_cannot_have_its_next_request_read_as_that_body() -> None:
    """A client that expects 100 Continue may leave the body out once it has another answer."""
    head = request(b"Expect: 100-continue\r\n" + LENGTH, b"")
    written = asyncio.run(answers_to(head, NEXT, app=refuse))
    assert b"100 Continue" not in written
    assert b"connection: close" in written
    assert written.count(b"HTTP/1.1 ") == 1
    sent_at_once = asyncio.run(answers_to(head + JSON, NEXT, app=refuse))
    assert sent_at_once.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/score?x=1", b"/score?x=1"),
        (b"//a/b", b"//a/b"),
        (b"*", b"*"),
        (b"http://a/score?x=1", b"/score?x=1"),
        (b"https://[::1]:8000", b"/"),
        (b"http://a?x=1", b"/?x=1"),
        (b"/redirect?to=http://a/b", b"/redirect?to=http://a/b"),
    ],
)
def test_an_absolute_target_is_its_path_and_query(target: bytes, expected: bytes) -> None:
    assert origin_form(target) == expected


def test_what_follows_connect_is_no_request() -> None:
    head_of_connect = b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n"
    written = asyncio.run(answers_to(head_of_connect + NEXT))
    assert written.startswith(b"HTTP/1.1 405 ")
    assert written.count(b"HTTP/1.1") == 1
