"""What connections write in one turn of the event loop goes out in one piece."""

import asyncio
from collections.abc import Iterable
from typing import Any

from app.outbox import MAX_GATHERED_BYTES, GatheringTransport, Outbox


class Wire(asyncio.Transport):
    """A transport that keeps what it is given to send, a piece a call."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        assert not self.closed
        self.sent.append(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def test_what_is_written_in_one_turn_is_sent_in_one_piece_when_it_ends() -> None:
    async def write() -> list[list[bytes]]:
        outbox, wires = Outbox(), [Wire(), Wire()]
        transports = [GatheringTransport(wire, outbox) for wire in wires]
        for transport in transports:
            transport.write(b"head")
            transport.write(b"body")
        assert [wire.sent for wire in wires] == [[], []]
        await asyncio.sleep(0)
        transports[0].write(b"next")
        await asyncio.sleep(0)
        return [wire.sent for wire in wires]

    assert asyncio.run(write()) == [[b"headbody", b"next"], [b"headbody"]]


def test_closing_sends_what_was_written_first() -> None:
    async def write() -> Wire:
        wire = Wire()
        transport = GatheringTransport(wire, Outbox())
        transport.write(b"last words")
        transport.close()
        await asyncio.sleep(0)
        return wire

    wire = asyncio.run(write())
    assert (wire.sent, wire.closed) == ([b"last words"], True)


def test_what_was_written_to_a_client_that_is_gone_is_dropped() -> None:
    async def write() -> Wire:
        wire = Wire()
        GatheringTransport(wire, Outbox()).write(b"nobody reads this")
        wire.close()
        await asyncio.sleep(0)
        return wire

    assert asyncio.run(write()).sent == []


def test_a_large_answer_does_not_wait_for_the_end_of_the_turn() -> None:
    async def write() -> tuple[int, int]:
        wire = Wire()
        transport = GatheringTransport(wire, Outbox())
        for _ in range(3):
            transport.write(bytes(MAX_GATHERED_BYTES))
        in_turn = len(wire.sent)
        await asyncio.sleep(0)
        return in_turn, sum(map(len, wire.sent))

    assert asyncio.run(write()) == (1, 3 * MAX_GATHERED_BYTES)
