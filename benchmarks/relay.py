"""What one message to one client costs the relay, beside `websockets.broadcast` of the same payloads.

Both serve the same sockets in one process, in turns; another process reads and discards. The relay's share
includes decoding the entries and encoding them, once a round. CPU time, so that a busy machine says nothing.
"""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from websockets.asyncio.server import broadcast, serve

from benchmarks.figures import Part
from benchmarks.floor import stored_trade
from benchmarks.frames import market, symbols
from services.relay.delivery import SEND_BUFFER_BYTES, Channel, Client, Group, Subscription
from services.relay.followed import FollowedStream
from services.relay.selection import Scope, Selection, Symbols
from services.relay.sockets import RelayConnection, SocketSink
from services.relay.styles import JSON, MSGPACK, NativeStyle, News
from tickbus.protocol.codec import encode
from tickbus.protocol.names import Stream

CLIENTS = 200
_TRADES = 5
"""In one message."""
_MESSAGES = 200
"""Per client and turn."""
_TURNS = 5
_BOUND = 64 << 20


def measure(rounds: int, clients: int = CLIENTS) -> Part:
    return asyncio.run(_measure(rounds, clients))


async def _measure(rounds: int, clients: int) -> Part:
    part = Part("relay", f"{clients} clients, messages of {_TRADES} trades, CPU of the serving process")
    connections: list[RelayConnection] = []
    complete = asyncio.Event()

    async def hold(connection: RelayConnection) -> None:
        connections.append(connection)
        if len(connections) == clients:
            complete.set()
        await connection.wait_closed()

    async with serve(
        hold,  # type: ignore[arg-type]  # our kind of connection
        "127.0.0.1", 0, create_connection=RelayConnection, compression=None, ping_interval=None,
        write_limit=(SEND_BUFFER_BYTES, 0),
    ) as server:  # fmt: skip
        port = next(iter(server.sockets)).getsockname()[1]
        reader = subprocess.Popen([sys.executable, __file__, str(port), str(clients)])  # noqa: ASYNC220
        try:
            await asyncio.wait_for(complete.wait(), 60)
            await _compare(part, connections, rounds)
        finally:
            reader.kill()
            reader.wait()
    return part


async def _compare(part: Part, connections: list[RelayConnection], rounds: int) -> None:
    stream = Stream("trade", "bench", symbols(1)[0])
    trades = [stored_trade(trade) for trade in market(symbols(1), _TRADES)]
    entries = [
        [b"1700000000000-%d" % number, [b"t", encode(trade)]] for number, trade in enumerate(trades, 1)
    ]
    samples: dict[str, list[float]] = {
        "json": [],
        "msgpack": [],
        "json broadcast": [],
        "msgpack broadcast": [],
    }
    for _ in range(rounds):
        for name, style in (("json", JSON), ("msgpack", MSGPACK)):
            send, payload = _channel(connections, stream, style)
            plain: str | bytes = payload.decode() if style is JSON else payload
            ours, theirs = 0.0, 0.0
            for _ in range(_TURNS):
                ours += await _turn(partial(send, entries), connections)
                theirs += await _turn(partial(broadcast, connections, plain), connections)
            messages = _TURNS * _MESSAGES * len(connections)
            samples[name].append(ours / messages * 1e6)
            samples[f"{name} broadcast"].append(theirs / messages * 1e6)
    for name, values in samples.items():
        part.figure(name, "us/message", values)
    for name in ("json", "msgpack"):
        part.ratio(f"{name} / broadcast", samples[name], samples[f"{name} broadcast"], 1.5, at_most=True)
    part.ratio("msgpack / json", samples["msgpack"], samples["json"], 1.05, at_most=True)


def _channel(
    connections: list[RelayConnection], stream: Stream, style: NativeStyle
) -> tuple[Callable[[Sequence[object]], None], bytes]:
    """Return what sends entries to all connections, and the payload that each then gets."""
    group = Group(Selection("trade", Symbols(), frozenset(), frozenset(), Scope()))
    group.streams[stream.name] = FollowedStream(stream)
    for connection in connections:
        group.join(Subscription(Client(SocketSink(connection), style, _BOUND), 1, group), round=0)
    (channel,) = group.channels.values()
    assert isinstance(channel, Channel)

    def send(entries: Sequence[object]) -> None:
        channel.pending.append(News(stream, entries))
        for client in channel.flush():
            client.flush()

    trades = [stored_trade(trade) for trade in market(symbols(1), _TRADES)]
    news = News(
        stream,
        [[b"1700000000000-%d" % number, [b"t", encode(trade)]] for number, trade in enumerate(trades, 1)],
    )
    frame = style.data(style.head(1), news.chunk(style))
    return send, frame[4:]  # its header has 4 bytes at this size


async def _turn(send: Callable[[], None], connections: list[RelayConnection]) -> float:
    """Send the messages of one turn; return the CPU seconds, those of the kernel's copies included."""
    began = time.process_time()
    for _ in range(_MESSAGES):
        send()
        while any(connection.buffered > SEND_BUFFER_BYTES for connection in connections):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    while any(connection.buffered for connection in connections):
        await asyncio.sleep(0.001)
    return time.process_time() - began


def _read(port: int, clients: int) -> None:
    """Open the connections, then read and discard until killed."""
    import selectors

    selector = selectors.DefaultSelector()
    request = (
        f"GET /v1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    for _ in range(clients):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(request.encode())
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            with suppress(BlockingIOError):
                key.fileobj.recv(1 << 20)  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    _read(int(sys.argv[1]), int(sys.argv[2]))
