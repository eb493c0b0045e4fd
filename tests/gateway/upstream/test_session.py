"""One connection to the vendor, at its beginning and its end."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gateway.upstream.servers import accepted, raw, text
from support.waiting import until_async
from vendors.examples import TOLERANCE, feed

from services.gateway.delivery.backlog import Backlog
from services.gateway.sequencing.sequencer import Sequencer, StreamState
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.session import Connection
from services.gateway.upstream.upstream import Upstream
from tickbus.clock import BusClock
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Gap, GapKind, Message, Quote
from tickbus.protocol.names import Keys, Stream
from tickbus.units import SECOND, Duration

QUOTE = '{"quotes":[{"symbol":"AAPL","bid":"1","bid_size":"1","ask":"2","ask_size":"1","time":1}]}'
MOST = 1 << 20


class Line:
    """A connection of the json feed to a port, and what it brought."""

    def __init__(self, port: int) -> None:
        self.backlog, clock = Backlog(MOST), BusClock()
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
            most=MOST,
            silence=Duration(3 * SECOND),
            session=None,
            max_age=None,
        )
        self.connection = Connection(self.feed, self.intake, TOLERANCE, MOST, holding=False)

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


async def test_a_vendor_that_speaks_with_the_answer_to_the_handshake() -> None:
    now = asyncio.Event()
    async with raw(vendor(text(b'{"welcome":1}') + text(QUOTE.encode()), text(QUOTE.encode()), now)) as port:
        line = Line(port)
        await line.connection.open()
        now.set()
        await until_async(lambda: len(line.messages) == 2)
        assert line.intake.ignored == 1
        await line.connection.close("left")


async def test_a_frame_that_is_too_long_is_told_where_it_stood() -> None:
    now = asyncio.Event()
    long = text(b"x" * (MOST + 1))
    async with raw(vendor(text(QUOTE.encode()) + long + text(QUOTE.encode()) + long, long, now)) as port:
        line = Line(port)
        await line.connection.open()
        await until_async(lambda: line.intake.rejected["oversize"] == 2)
        assert [type(message) for message in line.messages] == [Quote, Gap, Quote]
        now.set()
        await until_async(
            lambda: line.intake.rejected["oversize"] == 3, what="also where no other message follows"
        )
        await line.connection.close("left")


async def test_one_that_refuses_with_the_answer_to_the_handshake() -> None:
    now = asyncio.Event()
    now.set()
    async with raw(vendor(text(b'{"error":"no such token"}'), b"", now)) as port:
        line = Line(port)
        await line.connection.open()
        assert line.connection.refused is not None and "no such token" in line.connection.refused.text
        assert await line.connection.socket.closed == line.connection.refused.text
        await line.connection.close("left")


async def test_what_comes_after_the_outage_was_declared_is_part_of_it() -> None:
    """A loop that stood still judges the silence before it has read its socket. Ticks that it found there afterwards ended the outage:
    its Gap ended with them, and what was missing until the next connection was told by nobody."""
    now = asyncio.Event()
    async with raw(vendor(text(QUOTE.encode()), text(QUOTE.encode()), now)) as port:
        line = Line(port)
        await line.connection.open()
        await until_async(lambda: len(line.messages) == 1)
        received = line.connection.socket.bytes_received
        line.upstream._lost(line.connection, "silence", "no tick")
        now.set()
        await until_async(lambda: line.connection.socket.bytes_received > received)
        assert len(line.messages) == 1
        await line.connection.close("left")
        line.intake.resumed()
        first, gap = line.messages
        assert isinstance(first, Quote) and isinstance(gap, Gap)
        assert gap.kind is GapKind.STALE


async def test_ticks_before_the_subscription_is_acknowledged_may_be_followed_by_a_hole() -> None:
    now = asyncio.Event()
    async with raw(vendor(text(QUOTE.encode()), b"", now)) as port:
        line = Line(port)
        line.feed.acknowledged = True  # type: ignore[misc]  # waits for an answer that does not come
        await line.connection.open()
        await until_async(lambda: len(line.messages) == 1)
        assert not line.connection.subscribed.is_set()
        line.upstream._lost(line.connection, "closed", "by the server")
        now.set()
        await line.connection.close("left")
        line.intake.resumed()
        assert isinstance(line.messages[1], Gap)
