"""An application as users write it: reads the bus by the public library, and keeps a ledger of every entry it was given.

The ledger is its only memory: started again it goes on after the newest entry in there, so an entry that stands there twice, or
not at all, is the library's fault. One JSON array a line: [stream, ID, field, CRC-32 of the message], or
[stream, ID after which, "lost", count] for what the library says was gone before it could be read.
"""

import argparse
import asyncio
import json
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import tickbus
from tickbus.errors import TickbusError
from tickbus.protocol.codec import FIELDS, encode
from tickbus.protocol.messages import Gap
from tickbus.protocol.names import StreamId

KINDS = ("trade", "quote", "bar")
_FLUSH_SECONDS = 0.1


parse = json.loads
"""A line -> its row."""


def read(ledger: Path) -> list[list[object]]:
    """The whole lines of a ledger; a line that a kill tore is not one."""
    return [parse(line) for line in ledger.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def positions(rows: list[list[object]]) -> dict[str, str]:
    """Stream -> the ID after which to go on."""
    newest: dict[str, StreamId] = {}
    for stream, id, field, *_ in rows:
        if field != "lost":
            newest[str(stream)] = StreamId.parse(str(id))
    return {stream: str(id) for stream, id in newest.items()}


async def keep(bus: tickbus.Bus, kind: str, cursor: dict[str, str], output: BinaryIO) -> None:
    mine = {stream: id for stream, id in cursor.items() if stream.startswith(f"{kind}:")}
    async for stream, id, message in bus.read(kind, start="start", cursor=mine).entries():
        if isinstance(message, Gap) and message.source == "reader":
            row: list[object] = [stream.name, str(id), "lost", message.count]
        else:
            row = [stream.name, str(id), FIELDS[type(message)].decode(), zlib.crc32(encode(message))]
        output.write(json.dumps(row).encode() + b"\n")


async def flush(output: BinaryIO) -> None:
    while True:
        await asyncio.sleep(_FLUSH_SECONDS)
        output.flush()


async def main(redis: str, cursor: dict[str, str], output: BinaryIO) -> None:
    async with tickbus.connect(redis) as bus, asyncio.TaskGroup() as tasks:
        for kind in KINDS:
            tasks.create_task(keep(bus, kind, cursor, output))
        tasks.create_task(flush(output))


def mend(ledger: Path) -> dict[str, str]:
    """Cut off what a kill tore; -> where to go on."""
    if not ledger.exists():
        return {}
    os.truncate(ledger, ledger.read_bytes().rfind(b"\n") + 1)
    return positions(read(ledger))


def command() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", required=True)
    parser.add_argument("--ledger", required=True, type=Path)
    options = parser.parse_args()
    cursor = mend(options.ledger)
    try:
        with options.ledger.open("ab") as output:
            asyncio.run(main(options.redis, cursor, output))
    except* TickbusError as group:
        print(group.exceptions)
        raise SystemExit(3) from None


if __name__ == "__main__":
    command()
