"""What vendors send: frames to every mapper of the registry, and through the core of a gateway; bytes of a
server to the WebSocket."""

import asyncio
import json
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from random import Random

from gateway.upstream.servers import accepted
from support.captures import frames_of_all
from support.paths import DATA
from vendors.examples import EXAMPLES, RECV, TOLERANCE, feed, mapper
from websockets.exceptions import InvalidHandshake

from fuzz.engine import Pieces, Run, Target, pure
from fuzz.hostile import damaged_bytes, damaged_json, some_of, text_of_json, to_bytes
from services.archive.schema import KINDS, representation_error
from services.gateway.delivery.backlog import Backlog
from services.gateway.sequencing.sequencer import Sequencer
from services.gateway.sequencing.stream_state import StreamState
from services.gateway.upstream.frames import FrameSplitter
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.websocket import HandshakeRefused, WebSocket
from services.vendors import VENDORS
from services.vendors.feed import NO_ID, Notice, Rejected
from tickbus.clock import BusClock
from tickbus.protocol.codec import FIELDS, decode, encode, read_head
from tickbus.protocol.messages import Gap, Quote, Trade
from tickbus.protocol.names import Keys, Stream
from tickbus.units import iso_ns
from tickbus.writer.heads import HeadBuilder

OLDEST = iso_ns("2000-01-01")
"""No tick is older: what claims to be has no time (--oldest)."""
_CAPTURED = 300
"""Frames of each capture that are damaged."""
_MAX_FRAME = 1 << 16


@cache
def _captured() -> list[bytes]:
    return frames_of_all(DATA, _CAPTURED) if DATA.is_dir() else []


def make_frames(vendor: str, chance: Random) -> Pieces:
    return [_frame(vendor, chance) for _ in range(chance.choice((1, 1, 2, 3, 6)))]


def _frame(vendor: str, chance: Random) -> bytes:
    examples = EXAMPLES[vendor]
    kind = chance.randrange(10)
    if kind == 0:
        return to_bytes(text_of_json(chance, 4))
    if kind == 1:
        names = {
            name: text_of_json(chance, 0) for name in ("price", "size", "bid", "bid_size", "ask", "ask_size")
        }
        return to_bytes(chance.choice((examples.trade, examples.quote)) % names)
    if kind == 2 and _captured():
        frame = chance.choice(_captured())
        return damaged_bytes(chance, frame) if chance.random() < 0.5 else _damaged(chance, frame)
    valid = chance.choice(examples.mutable)
    if kind == 3:  # several ticks where there is one
        return json.dumps(some_of(chance, examples.mutable, 4)).encode()
    if kind == 4:
        return json.dumps(
            {chance.choice(("data", "items", "result")): some_of(chance, examples.mutable, 3)}
        ).encode()
    if kind == 5:
        return damaged_bytes(chance, json.dumps(valid).encode())
    if kind == 6:
        return json.dumps(valid).encode()
    return damaged_json(chance, valid)


def _damaged(chance: Random, frame: bytes) -> bytes:
    try:
        return damaged_json(chance, json.loads(frame))
    except ValueError:
        return damaged_bytes(chance, frame)


def run_mapper(vendor: str, frames: Pieces) -> None:
    """Nothing is raised; ticks are valid and fit every consumer; afterwards the mapper works as before."""
    one = mapper(vendor)
    symbols = set(one.symbols.values())
    for frame in frames:
        ticks = one.map(frame, RECV)
        for number, (tick, vendor_id) in enumerate(ticks):
            assert tick.symbol in symbols, f"a tick of a symbol that is not subscribed: {tick}"
            assert tick.ts_recv == RECV + number, f"wrong receive time: {tick}"
            assert tick.ts_event >= OLDEST, f"an impossible time is taken for one: {tick}"
            assert vendor_id == NO_ID or 0 <= vendor_id < 1 << 63, f"impossible id: {vendor_id}"
            assert decode(FIELDS[type(tick)], encode(tick)) == tick, f"not what was encoded: {tick}"
            assert not isinstance(tick, Trade) or tick.size >= 0, f"negative size: {tick}"
            kind = KINDS["trade" if isinstance(tick, Trade) else "quote"]
            assert (error := representation_error(kind, tick)) is None, f"does not fit the files: {error}"
        for notice in one.notices:
            assert isinstance(notice, typing.get_args(Notice)), f"not a notice: {notice}"
            if isinstance(notice, Rejected):
                assert 0 <= notice.ticks_before <= len(ticks), f"ticks before: {notice}"
                assert len(notice.detail) <= 200, f"unbounded detail: {notice.detail[:300]}"
                assert notice.symbol is None or notice.symbol in symbols, f"unknown symbol: {notice}"
        one.notices.clear()
    golden, expected, _ = EXAMPLES[vendor].golden[0]
    found = [tick for tick, _ in one.map(golden.encode(), RECV)]
    assert [_plain(tick) for tick in found] == [_plain(tick) for tick in expected], f"spoiled: {found}"


def _plain(tick: Trade | Quote) -> tuple[object, ...]:
    """Return a tick without the best quote, which hostile frames may have set."""
    if isinstance(tick, Trade):
        return tick.symbol, tick.price, tick.size, tick.side, tick.trade_id, tick.ts_event, tick.flags
    return tick.symbol, tick.bid, tick.ask, tick.ts_event, tick.flags


class _Clock(BusClock):
    def now_ns(self) -> int:
        return RECV


def make_core(vendor: str, chance: Random) -> Pieces:
    """Return frames of a WebSocket, some of them damaged or in fragments."""
    pieces = []
    for frame in make_frames(vendor, chance):
        opcode = chance.choice((0x81, 0x81, 0x81, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8A, 0x88, 0xF1))
        packed = _header(len(frame), opcode) + frame
        pieces.append(damaged_bytes(chance, packed, 1) if chance.random() < 0.1 else packed)
    return pieces


def _header(length: int, first: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    return (
        bytes((first, 126)) + length.to_bytes(2, "big")
        if length < 1 << 16
        else b"%c\x7f%b"
        % (
            first,
            length.to_bytes(8, "big"),
        )
    )


def run_core(vendor: str, pieces: Pieces) -> None:
    """From the bytes of the socket to entries and heads: counters dense, all readable, holes consistent."""
    one = feed(vendor)
    backlog = Backlog(1 << 20)
    streams = [
        StreamState(Keys(), Stream(kind, vendor, symbol), one.sequenced and kind == "trade")
        for symbol in EXAMPLES[vendor].symbols
        for kind in ("trade", "quote")
    ]
    intake = Intake(_Clock(), Sequencer(streams, backlog.put, one.repairable), backlog)
    splitter, mapping = FrameSplitter(_MAX_FRAME), one.mapper(TOLERANCE)
    for piece in pieces:
        messages, _ = splitter.feed(piece)
        intake.take(mapping, messages)
        for _ in splitter.skipped:
            intake.reject(Rejected("oversize", "too long"))
    heads: dict[str, HeadBuilder] = {}
    entries = backlog.take(1 << 30)
    received: dict[str, int] = {}
    for entry in entries:
        head = heads.setdefault(entry.stream.name, HeadBuilder())
        assert entry.seq == head.seq + 1, f"the counters have a hole: {entry}"
        message = decode(entry.field, entry.payload)
        head.add(entry, message)
        if not isinstance(message, Gap):
            assert isinstance(message, Trade | Quote)
            # per stream: a trade with a suspect id may wait while other streams go on
            before = received.get(entry.stream.name, 0)
            assert message.ts_recv > before, f"receive times do not increase: {message}"
            received[entry.stream.name] = message.ts_recv
        stored = read_head(entry.stream.name, head.pack())
        assert stored.missing >= 0, f"negative number of missing ticks: {stored}"
        assert HeadBuilder(stored).pack() == head.pack(), f"another head after a restart: {stored}"


def make_server(chance: Random) -> Pieces:
    """Return the answer to a handshake (empty: a correct one), and what follows it."""
    answer = b""
    if chance.random() < 0.5:
        lines = [
            chance.choice(
                (
                    b"HTTP/1.1 101 x",
                    b"HTTP/1.1 200 OK",
                    b"HTTP/1.1 301 x",
                    b"HTTP/1.0 999",
                    b"HTTP/1.1 1e9 x",
                    b"HTTP/1.1 403 \xff",
                    b"SSH-2.0-x",
                    b"",
                )
            ),
            *some_of(
                chance,
                (
                    b"Upgrade: websocket",
                    b"Connection: Upgrade",
                    b"Location: \xff\x1b[31m",
                    b"Location:",
                    b"Content-Length: 5",
                    b"Content-Length: -1",
                    b"Content-Length: 99999999999999999999",
                    b"Transfer-Encoding: chunked",
                    b"Retry-After: 1e9",
                    b"Retry-After: \xb2",
                    b"X: " + b"y" * 500,
                    b": :",
                    b"Sec-WebSocket-Accept: x",
                    b"Sec-WebSocket-Extensions: permessage-deflate",
                    b"Sec-WebSocket-Protocol: x",
                ),
                5,
            ),
        ]
        answer = b"\r\n".join(lines) + b"\r\n\r\n"
        if chance.random() < 0.5:
            answer = damaged_bytes(chance, answer)
    return [
        answer,
        *make_core("json", chance),
        chance.choice((b"", b"\x88\x02\x03\xe8", b"\x88\x01\x03", b"\x88\x7d" + b"\xff" * 125)),
    ]


@contextmanager
def open_server(folder: Path) -> Iterator[Run]:
    """A WebSocket to a real server that answers with the pieces and closes."""
    with asyncio.Runner() as runner:
        runner.get_loop().set_debug(False)
        yield lambda pieces: runner.run(_talk(pieces))


async def _talk(pieces: Pieces) -> None:
    answer = pieces[0] if pieces else b""
    unexpected: list[Exception] = []

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        found = context.get("exception")
        unexpected.append(found if isinstance(found, Exception) else AssertionError(str(context)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            writer.write((answer or accepted(request)) + b"".join(pieces[1:]))
            await writer.drain()
            writer.write_eof()
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    asyncio.get_running_loop().set_exception_handler(handle)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    socket = WebSocket(f"ws://127.0.0.1:{port}", lambda messages: None, _MAX_FRAME)
    try:
        await socket.open()
        await asyncio.wait_for(socket.closed, 5)
    except (OSError, HandshakeRefused, InvalidHandshake):
        pass  # as documented
    finally:
        socket.abort("done")
        server.close()
        await server.wait_closed()
    if unexpected:
        raise unexpected[0]


TARGETS = [
    *(
        Target(f"mapper-{name}", partial(make_frames, name), partial(pure, partial(run_mapper, name)))
        for name in VENDORS
    ),
    *(
        Target(f"core-{name}", partial(make_core, name), partial(pure, partial(run_core, name)))
        for name in VENDORS
    ),
    Target("websocket", make_server, open_server, short=150),
]
