"""Reader processes: the tickbus library, and the minimum that any Python reader must do.

    python -m benchmarks.readers library|raw REDIS_URL SYMBOLS COUNT
        read COUNT trades from the start and time it
    python -m benchmarks.readers stamp REDIS_URL COUNT FILE
        write ts_event, ts_recv and the monotonic time of receipt of each trade to FILE

Events: {"ready"} before `stamp` reads; at the end {"ns", "ticks", "sum"}: duration, and the sum of all
ts_recv, which proves that every tick was decoded.
"""

import asyncio
import json
import socket
import sys
import time
from array import array
from pathlib import Path
from urllib.parse import urlsplit

import hiredis
import msgspec

import tickbus
from benchmarks.frames import symbols
from tickbus.protocol.messages import Trade
from tickbus.protocol.names import Keys, Stream
from tickbus.redis.resp import pack

_RECEIVE_BYTES = 1 << 16


def report(**event: object) -> None:
    """Print an event for `benchmarks.processes.Process.wait_event`."""
    print(json.dumps(event), flush=True)


async def library(url: str, count: int) -> tuple[int, int]:
    ticks = total = 0
    async with tickbus.connect(url) as bus:
        async for tick in bus.read("trade", start="start", gaps=False):
            ticks += 1
            total += tick.ts_recv
            if ticks == count:
                break
    return ticks, total


def raw(url: str, names: list[str]) -> tuple[int, int]:
    """Read with a blocking socket, hiredis, XREAD COUNT 1000 over all streams, and msgspec: nothing else."""
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port))
    reader = hiredis.Reader()
    decode = msgspec.msgpack.Decoder(Trade).decode
    positions: dict[bytes, bytes] = {
        Keys().stream(Stream("trade", "binance", name)).encode(): b"0-0" for name in names
    }
    ticks = total = 0
    while True:
        sock.sendall(pack(("XREAD", "COUNT", "1000", "STREAMS", *positions, *positions.values())))
        while (reply := reader.gets()) is False:
            reader.feed(sock.recv(_RECEIVE_BYTES))
        if reply is None:
            sock.close()
            return ticks, total
        for key, entries in reply:
            for _, fields in entries:
                total += decode(fields[1]).ts_recv
            ticks += len(entries)
            positions[key] = entries[-1][0]


async def stamp(url: str, count: int) -> "array[int]":
    """Return receipts as triples (ts_event ns, ts_recv ns, monotonic ns), in the order of receipt."""
    receipts = array("q")
    now, append = time.monotonic_ns, receipts.append
    async with tickbus.connect(url) as bus:
        report(ready=1)
        async for tick in bus.read("trade", start="start", gaps=False):
            append(tick.ts_event)
            append(tick.ts_recv)
            append(now())
            if len(receipts) == 3 * count:
                break
    report(received=count)
    return receipts


def main() -> None:
    mode, url, *rest = sys.argv[1:]
    started = time.monotonic_ns()
    if mode == "stamp":
        receipts = asyncio.run(stamp(url, int(rest[0])))
        Path(rest[1]).write_bytes(receipts.tobytes())
        report(ns=time.monotonic_ns() - started, ticks=int(rest[0]))
        return
    if mode == "library":
        ticks, total = asyncio.run(library(url, int(rest[1])))
    else:
        ticks, total = raw(url, symbols(int(rest[0])))
    report(ns=time.monotonic_ns() - started, ticks=ticks, sum=total)


if __name__ == "__main__":
    main()
