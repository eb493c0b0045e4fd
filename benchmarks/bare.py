"""The lower bound of latency: one XADD per tick and one blocked XREAD on one stream, in two processes.

    python -m benchmarks.bare produce REDIS_URL RATE COUNT
    python -m benchmarks.bare consume REDIS_URL COUNT FILE

The entry has the size of ours; its ts_event is the monotonic clock at the moment of sending. The consumer
writes the same file as `benchmarks.readers stamp`.
"""

import json
import socket
import sys
import time
from array import array
from pathlib import Path
from urllib.parse import urlsplit

import hiredis
import msgspec

from benchmarks.floor import stored_trade
from benchmarks.frames import market, symbols
from benchmarks.pacing import due
from tickbus.protocol.codec import encode
from tickbus.protocol.messages import Trade
from tickbus.redis.resp import pack

_KEY = "bare"


def report(**event: object) -> None:
    """Print an event for `benchmarks.processes.Process.wait_event`."""
    print(json.dumps(event), flush=True)


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def produce(url: str, rate: float, count: int) -> None:
    sock, reader = _connect(url), hiredis.Reader()
    trades = [stored_trade(trade) for trade in market(symbols(10), 1000)]
    replies = sent = 0

    def packed(number: int) -> bytes:
        trade = msgspec.structs.replace(trades[number % len(trades)], ts_event=time.monotonic_ns())
        return pack(("XADD", _KEY, "*", "t", encode(trade)))

    report(first_sent=time.monotonic_ns())
    for number in due(rate, count):
        sock.sendall(b"".join([packed(sent + i) for i in range(number)]))
        sent += number
        try:
            reader.feed(sock.recv(65536, socket.MSG_DONTWAIT))
        except BlockingIOError:
            continue
        while reader.gets() is not False:
            replies += 1
    while replies < count:
        if reader.gets() is False:
            reader.feed(sock.recv(65536))
        else:
            replies += 1


def consume(url: str, count: int, path: Path) -> None:
    sock, reader = _connect(url), hiredis.Reader()
    decode = msgspec.msgpack.Decoder(Trade).decode
    receipts = array("q")
    last: bytes = b"0-0"
    report(ready=1)
    while len(receipts) < 3 * count:
        sock.sendall(pack(("XREAD", "BLOCK", "0", "STREAMS", _KEY, last)))
        while (reply := reader.gets()) is False:
            reader.feed(sock.recv(65536))
        for last, fields in reply[0][1]:  # noqa: B007  # the next read begins at the last one
            sent = decode(fields[1]).ts_event
            receipts.extend((sent, sent, time.monotonic_ns()))
    path.write_bytes(receipts.tobytes())


def main() -> None:
    mode, url, *rest = sys.argv[1:]
    started = time.monotonic_ns()
    if mode == "produce":
        produce(url, float(rest[0]), int(rest[1]))
    else:
        consume(url, int(rest[0]), Path(rest[1]))
    report(ns=time.monotonic_ns() - started)


if __name__ == "__main__":
    main()
