"""One connection to the vendor: how it begins and ends."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from gateway.upstream.servers import accepted, raw, text
from support.waiting import until_async
from vendors.examples import TOLERANCE, feed

from services.gateway.delivery.backlog import Backlog
from services.gateway.sequencing.sequencer import Sequencer
from services.gateway.sequencing.stream_state import StreamState
from services.gateway.upstream import session
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.session import Connection
from services.gateway.upstream.upstream import Upstream
from tickbus.clock import BusClock
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Gap, GapKind, Message, Quote
from tickbus.protocol.names import Keys, Stream
from tickbus.units import SECOND, Duration

QUOTE = '{"quotes":[{"symbol":"AAPL","bid":"1","bid_size":"1","ask":"2","ask_size":"1","time":1}]}'
MAX_FRAME = 1 << 20


class Harness:
    """A connection of the json feed to a port, and what it received."""

    def __init__(self, port: int) -> None:
        self.backlog, clock = Backlog(MAX_FRAME), BusClock()
        self.intake = Intake(
            clock,
            Sequencer([StreamState(Keys(), Stream("quote", "json", "AAPL"), False)], self.backlog.put),
            self.backlog,
        )
        self.feed = feed("json", ("quote",), url=f"ws://127.0.0.1:{port}")
        self.upstream = Upstream(
            lambda: self.feed,
            self.intake,
            clock,
            tolerance=TOLERANCE,
            max_frame=MAX_FRAME,
            silence=Duration(3 * SECOND),
            session=None,
            max_age=None,
        )
        self.connection = Connection(self.feed, self.intake, TOLERANCE, MAX_FRAME, buffering=False)

    @property
    def messages(self) -> list[Message]:
        return [decode(entry.field, entry.payload) for entry in self.backlog.oldest(100)]


def vendor(
    at_once: bytes, later: bytes, when: asyncio.Event
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(accepted(request) + at_once)
        await when.wait()
        with suppress(ConnectionError):
            writer.write(later)
            await reader.read()

    return talk


async def test_frames_sent_with_handshake_response_are_received() -> None:
    now = asyncio.Event()
    async with raw(vendor(text(b'{"welcome":1}') + text(QUOTE.encode()), text(QUOTE.encode()), now)) as port:
        harness = Harness(port)
        await harness.connection.open()
        now.set()
        await until_async(lambda: len(harness.messages) == 2)
        assert harness.intake.ignored == 1
        await harness.connection.close("left")


async def test_oversized_frame_is_reported_in_order() -> None:
    now = asyncio.Event()
    long = text(b"x" * (MAX_FRAME + 1))
    async with raw(vendor(text(QUOTE.encode()) + long + text(QUOTE.encode()) + long, long, now)) as port:
        harness = Harness(port)
        await harness.connection.open()
        await until_async(lambda: harness.intake.rejected["oversize"] == 2)
        assert [type(message) for message in harness.messages] == [Quote, Gap, Quote]
        now.set()
        await until_async(
            lambda: harness.intake.rejected["oversize"] == 3, what="also where no other message follows"
        )
        await harness.connection.close("left")


async def test_refusal_sent_with_handshake_response_closes_connection() -> None:
    now = asyncio.Event()
    now.set()
    async with raw(vendor(text(b'{"error":"no such token"}'), b"", now)) as port:
        harness = Harness(port)
        await harness.connection.open()
        assert harness.connection.refused is not None and "no such token" in harness.connection.refused.text
        assert await harness.connection.socket.closed == harness.connection.refused.text
        await harness.connection.close("left")


async def test_frames_after_declared_outage_do_not_end_it() -> None:
    """A stalled loop judges the silence before it has read its socket.

    Ticks that it then found there ended the outage: its Gap ended with them, and nobody reported what was
    missing until the next connection.
    """
    now = asyncio.Event()
    async with raw(vendor(text(QUOTE.encode()), text(QUOTE.encode()), now)) as port:
        harness = Harness(port)
        await harness.connection.open()
        await until_async(lambda: len(harness.messages) == 1)
        received = harness.connection.socket.bytes_received
        harness.upstream._lost(harness.connection, "silence", "no tick")
        now.set()
        await until_async(lambda: harness.connection.socket.bytes_received > received)
        assert len(harness.messages) == 1
        await harness.connection.close("left")
        harness.intake.resumed()
        harness.intake.finish()
        first, gap = harness.messages
        assert isinstance(first, Quote) and isinstance(gap, Gap)
        assert gap.kind is GapKind.STALE


async def test_disconnect_before_ack_leaves_gap_if_ticks_came() -> None:
    now = asyncio.Event()
    async with raw(vendor(text(QUOTE.encode()), b"", now)) as port:
        harness = Harness(port)
        harness.feed.acks_subscribe = True  # waits for an ack that does not come
        await harness.connection.open()
        await until_async(lambda: len(harness.messages) == 1)
        assert not harness.connection.subscribed.is_set()
        harness.upstream._lost(harness.connection, "closed", "by the server")
        now.set()
        await harness.connection.close("left")
        harness.intake.resumed()
        harness.intake.finish()
        assert isinstance(harness.messages[1], Gap)


async def test_connection_with_nothing_but_unknown_frames_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = asyncio.Event()
    frames = b"".join(text(b'{"what":%d}' % n) for n in range(30))
    async with raw(vendor(frames, text(QUOTE.encode()), now)) as port:
        harness = Harness(port)
        await harness.connection.open()
        await until_async(lambda: harness.connection.unknown == 30)
        said = [
            record for record in caplog.records if "not one tick on this connection" in record.getMessage()
        ]
        assert len(said) == 1
        assert said[0].getMessage().startswith("upstream: 20 unknown frames")
        now.set()
        await until_async(lambda: len(harness.messages) == 1)
        await harness.connection.close("left")


async def test_few_unknown_frames_are_said_after_a_while_without_ticks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_UNKNOWN_SECONDS", 0.01)
    now = asyncio.Event()
    async with raw(vendor(text(b'{"what":1}'), b"", now)) as port:
        harness = Harness(port)
        await harness.connection.open()
        await until_async(lambda: any("1 unknown frames and not one" in line for line in caplog.messages))
        now.set()
        await harness.connection.close("left")
    caplog.clear()
    now.clear()
    async with raw(vendor(text(QUOTE.encode()) + text(b'{"what":1}'), b"", now)) as port:
        harness = Harness(port)
        await harness.connection.open()
        await until_async(lambda: harness.connection.unknown == 1)
        check = harness.connection._check
        assert check is not None
        await until_async(lambda: asyncio.get_running_loop().time() > check.when())
        assert not [line for line in caplog.messages if "not one tick" in line]
        now.set()
        await harness.connection.close("left")
