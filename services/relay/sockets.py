"""One WebSocket of the relay: the library's connection, with bounds on what it may buffer.

Data frames are written straight to the transport, already framed; everything else is the library's.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from websockets.asyncio.server import ServerConnection
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.protocol import Event, State

from services.relay.delivery import SEND_BUFFER_BYTES
from services.relay.tokens import Account
from services.vendors.dialect import Dialect

_CLOSE_SECONDS = 5.0
"""How long a connection that we closed may stay open."""
_DEAD_MS = 60_000
"""A peer that has acknowledged nothing, or taken nothing, for this long is gone."""
_MAX_FRAGMENTS = 256
"""Of one message: empty ones count for nothing against its size."""
_TOO_BIG = 1009
_MAX_REASON = 123
"""Bytes of a close reason."""


class Gate:
    """Counts open sockets, also those that have said nothing yet, and turns those away that are too many."""

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self.open = 0
        self._by_address: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        """By reason: `address`, `total`, `handshake` (none came)."""

    def enter(self, address: str) -> bool:
        """Count a socket. Return whether it may stay; `leave` follows in any case."""
        self.open += 1
        self._by_address[address] += 1
        if self._by_address[address] > self._per_address:
            self.refused["address"] += 1
            return False
        if self.open > self._total:
            self.refused["total"] += 1
            return False
        return True

    def count(self, address: str) -> int:
        """Return the number of open sockets from an address."""
        return self._by_address[address]

    def leave(self, address: str, *, said_nothing: bool) -> None:
        """A socket ended. said_nothing: without a request."""
        self.open -= 1
        self.refused["handshake"] += said_nothing
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class RelayConnection(ServerConnection):
    """Has the interface of a Sink."""

    account: Account | None = None
    """Whose token came with the handshake."""
    dialect: Dialect | None = None
    """The vendor's end, on a path of a vendor; None on `/v1`."""
    refusal: tuple[int, str] | None = None
    """With what to close it right after the handshake."""
    address = ""

    def __init__(self, *args: Any, gate: Gate, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gate = gate
        self._fragments = 0
        self._ending = False
        """Whether we have closed it: what the client still sends is not looked at."""
        self._room = asyncio.Event()
        self._room.set()
        self.on_resume: Callable[[], None] = lambda: None
        self.on_control: Callable[[Frame], None] = lambda frame: None
        """Called with each ping and pong of the client; the library answers the pings."""

    @property
    def buffered(self) -> int:
        return self.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if self.state is State.OPEN and not self.transport.is_closing():
            self.transport.write(data)

    def ping_now(self, payload: bytes) -> None:
        """Send a ping without waiting for its pong."""
        if self.state is State.OPEN and not self.transport.is_closing():
            self.protocol.send_ping(payload)
            self.send_data()

    async def writable(self) -> None:
        await self._room.wait()
        if self.state is not State.OPEN:
            raise ConnectionResetError("the client has gone")

    def close_now(self, code: int, reason: str) -> None:
        """Send a close frame; the connection ends within seconds, whatever the client does."""
        self._ending = True
        if self.state is State.OPEN:
            short = reason.encode()[:_MAX_REASON].decode(errors="ignore")
            self.protocol.send_close(code, short)
            self.send_data()
        self.loop.call_later(_CLOSE_SECONDS, self.transport.abort)

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame):
            if event.opcode in (Opcode.PING, Opcode.PONG):
                self.on_control(event)
            elif event.opcode in DATA_OPCODES:
                self._fragments = 0 if event.fin else self._fragments + 1
                if self._fragments > _MAX_FRAGMENTS and not self._ending:
                    self.close_now(_TOO_BIG, f"a message of more than {_MAX_FRAGMENTS} fragments")
                if self._ending:
                    return
        super().process_event(event)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock = cast(socket.socket, transport.get_extra_info("socket"))
        with suppress(OSError, AttributeError):  # a Unix socket has none of these
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SEND_BUFFER_BYTES)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_MS)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else "local"
        super().connection_made(transport)
        if not self._gate.enter(self.address):
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._room.clear()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._room.set()
        self.on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._gate.leave(self.address, said_nothing=self.request is None)
        self._room.set()


class SocketSink:
    """The Sink of a connection."""

    def __init__(self, connection: RelayConnection) -> None:
        self._connection = connection
        self.write = connection.write
        self.ping = connection.ping_now
        self.writable = connection.writable
        self.close = connection.close_now

    @property
    def buffered(self) -> int:
        return self._connection.buffered
