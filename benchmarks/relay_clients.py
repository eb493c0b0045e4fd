"""Clients of a relay by the hundred, in a process of their own: sockets without a library, which cost little.

    python -m benchmarks.relay_clients URL FILE

Standard input: a line of JSON for each client, its subscription with one field more, "decode"; then `go`, and
`end`. Clients that decode write what they receive to FILE, the others count bytes, which go to another file
beside it. Reports {"ready"} when all are subscribed, and {"ended"} when all is written.
"""

import json
import os
import selectors
import socket
import sys
import time
from array import array
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.upstream import report


class Element(msgspec.Struct):
    """What is looked at of an element; a summary has no id, and counts trades."""

    type: str
    symbol: str
    cursor: str
    ts_event: int | None = None
    count: int | None = None


class Message(msgspec.Struct):
    data: list[Element] = []
    op: str = ""


_decode = msgspec.json.Decoder(Message).decode
RECORD = 4
"""Integers per element in FILE: client, symbol by its place in the subscription, when it was received
(monotonic ns), and the time of a trade, or 0 for a summary."""


class Client:
    """One connection; `take` is called when there is something to read."""

    def __init__(self, number: int, url: str, request: dict[str, Any], records: "array[int]") -> None:
        self.number = number
        self.decodes = request.pop("decode")
        self.bytes = 0
        self.subscribed = False
        self.last: dict[str, int] = {}
        """The counter of the newest trade, by symbol: there must be no hole."""
        self._places = {symbol: place for place, symbol in enumerate(request["symbols"])}
        self._records = records
        self._buffer = b""
        self.socket = open_socket(url)
        self.socket.sendall(text_frame(json.dumps(request).encode()))
        self.socket.setblocking(False)

    def take(self) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        if not data:
            raise SystemExit(f"client {self.number} was closed: {self._buffer[-200:]!r}")
        self.bytes += len(data)
        if not self.decodes:
            self.subscribed = True
            return
        now = time.monotonic_ns()
        data = self._buffer + data if self._buffer else data
        at = 0
        while (found := _frame(data, at)) is not None:
            first, start, at = found
            if first == 0x81:
                self._read(data[start:at], now)
        self._buffer = data[at:]

    def _read(self, payload: bytes, now: int) -> None:
        message = _decode(payload)
        self.subscribed = self.subscribed or message.op == "subscribed"
        if message.op in ("error", "closing"):
            raise SystemExit(f"client {self.number}: {payload!r}")
        for element in message.data:
            is_trade = element.type == "trade"
            if is_trade:
                seq = int(element.cursor.partition("-")[2])
                if self.last.get(element.symbol, seq - 1) != seq - 1:
                    raise SystemExit(f"client {self.number}: {element.symbol} jumps to {seq}")
                self.last[element.symbol] = seq
            place = self._places[element.symbol]
            self._records.extend((self.number, place, now, (element.ts_event or 0) if is_trade else 0))


def open_socket(url: str, receive_buffer: int = 0) -> socket.socket:
    """Return a socket after its WebSocket handshake on /v1."""
    host, port = url.removeprefix("ws://").split(":")
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect((host, int(port)))
    sock.sendall(
        f"GET /v1 HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += sock.recv(1)
    return sock


def text_frame(payload: bytes) -> bytes:
    """Return a frame of a client, under the mask of zeros."""
    return b"\x81\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload


def _frame(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Return first byte, start and end of the payload of the frame that begins at `at`, if it is whole."""
    if len(data) < at + 2:
        return None
    length, start = data[at + 1], at + 2
    if length == 126:
        length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
    elif length == 127:
        length, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
    return (data[at], start, start + length) if start <= len(data) and start + length <= len(data) else None


def main() -> None:
    url, path = sys.argv[1], Path(sys.argv[2])
    records: array[int] = array("q")
    selector = selectors.DefaultSelector()
    os.set_blocking(0, False)
    selector.register(0, selectors.EVENT_READ)
    clients: list[Client] = []
    lines: deque[bytes] = deque()
    buffer, ready, complete = b"", False, False
    while True:
        for key, _ in selector.select(0 if lines else None):
            if key.data is not None:
                key.data.take()
                continue
            buffer += os.read(0, 1 << 20)
            *found, buffer = buffer.split(b"\n")
            lines.extend(found)
        if lines:  # one at a time: those that are open must not wait
            line = lines.popleft()
            if line == b"end":
                path.write_bytes(records.tobytes())
                path.with_suffix(".bytes").write_text(json.dumps([client.bytes for client in clients]))
                report(ended=1)
                return
            if line == b"go":
                complete = True
            else:
                client = Client(len(clients), url, json.loads(line), records)
                clients.append(client)
                selector.register(client.socket, selectors.EVENT_READ, client)
        if complete and not ready and all(client.subscribed for client in clients):
            ready = True
            report(ready=len(clients))


if __name__ == "__main__":
    main()
