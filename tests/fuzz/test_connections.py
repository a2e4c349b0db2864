"""Requests in packets of any size, whole and damaged: the same requests are answered as when they come in one packet."""

import asyncio
import os

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.test_framing import NEXT, REFUSED, TAKEN
from tests.http.wire import answers_to

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "5")) * 20,
    deadline=None,
)
REQUESTS = [NEXT, *TAKEN.values(), *REFUSED.values()]
OK = b"HTTP/1.1 200 OK"


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A few requests one behind the other, and now and then a part of them replaced."""
    stream = b"".join(draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(stream)))
        end = start + draw(st.integers(0, 4))
        odd = st.sampled_from(
            [b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"0", b"chunked", b"\x00", b"\xff", b"HTTP/1.1"]
        )
        stream = stream[:start] + draw(odd | st.binary(max_size=4)) + stream[end:]
    return stream


def answers_in(written: bytes) -> list[tuple[bytes, bytes]]:
    """The status line and the body of each final answer, in order."""
    answers = []
    while written:
        head, _, rest = written.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if not head.startswith(b"HTTP/1.1 100 "):
            answers.append((head.partition(b"\r\n")[0], rest[:length]))
        written = rest[length:]
    return answers


@fuzzed
@given(stream=streams(), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_the_same_requests_are_answered_however_the_stream_is_cut(stream: bytes, cuts: list[int]) -> None:
    ends = sorted({cut for cut in cuts if 0 < cut < len(stream)})
    packets = [stream[start:end] for start, end in zip([0, *ends], [*ends, len(stream)], strict=True)]

    async def send_both() -> tuple[bytes, bytes]:
        return await answers_to(stream), await answers_to(*packets)

    at_once, in_packets = map(answers_in, asyncio.run(send_both()))
    good_at_once, good_in_packets = ([each for each in many if each[0] == OK] for many in (at_once, in_packets))
    assert good_in_packets == good_at_once
    for many in (at_once, in_packets):  # what cannot be read has one answer at most, the last
        assert all(status == OK for status, _ in many[:-1]), many
