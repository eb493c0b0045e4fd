"""An application as users write it: reads the bus with the public library, from Redis or through relays, and
logs every entry to a ledger.

The ledger is its only memory. After a restart it continues behind the newest entry there, so an entry that
is in the ledger twice, or missing, is the library's fault. One JSON array a line: [stream, ID, field,
CRC-32 of the message], or [stream, ID before the loss, "lost", count] for entries that the library reports
as gone before they could be read.
"""

import argparse
import asyncio
import json
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import tickbus
import tickbus.remote
from tickbus.errors import TickbusError
from tickbus.protocol.codec import FIELDS, encode
from tickbus.protocol.messages import Gap
from tickbus.protocol.names import StreamId

KINDS = ("trade", "quote", "bar")
_FLUSH_SECONDS = 0.1


parse = json.loads
"""Decode one line of the ledger."""


def read(ledger: Path) -> list[list[object]]:
    """Return the complete lines of a ledger; a line torn by a kill is left out."""
    return [parse(line) for line in ledger.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def positions(rows: list[list[object]]) -> dict[str, str]:
    """Return the ID to continue after, by stream."""
    newest: dict[str, StreamId] = {}
    for stream, id, field, *_ in rows:
        if field != "lost":
            newest[str(stream)] = StreamId.parse(str(id))
    return {stream: str(id) for stream, id in newest.items()}


async def log_entries(
    bus: "tickbus.Bus | tickbus.remote.RemoteBus", kind: str, cursor: dict[str, str], output: BinaryIO
) -> None:
    own = {stream: id for stream, id in cursor.items() if stream.startswith(f"{kind}:")}
    async for stream, id, message in bus.read(kind, start="start", cursor=own).entries():
        if isinstance(message, Gap) and message.source in ("reader", "relay"):
            row: list[object] = [stream.name, str(id), "lost", message.count]
        else:
            row = [stream.name, str(id), FIELDS[type(message)].decode(), zlib.crc32(encode(message))]
        output.write(json.dumps(row).encode() + b"\n")


async def flush(output: BinaryIO) -> None:
    while True:
        await asyncio.sleep(_FLUSH_SECONDS)
        output.flush()


async def main(redis: str, relays: str, cursor: dict[str, str], output: BinaryIO) -> None:
    connecting = tickbus.remote.connect(relays.split(",")) if relays else tickbus.connect(redis)
    async with connecting as bus, asyncio.TaskGroup() as tasks:
        for kind in KINDS:
            tasks.create_task(log_entries(bus, kind, cursor, output))
        tasks.create_task(flush(output))


def repair(ledger: Path) -> dict[str, str]:
    """Cut off a line torn by a kill. Return where to continue."""
    if not ledger.exists():
        return {}
    os.truncate(ledger, ledger.read_bytes().rfind(b"\n") + 1)
    return positions(read(ledger))


def command() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", default="")
    parser.add_argument(
        "--relays", default="", help="URLs of relays, separated by commas: instead of --redis"
    )
    parser.add_argument("--ledger", required=True, type=Path)
    options = parser.parse_args()
    cursor = repair(options.ledger)
    try:
        with options.ledger.open("ab") as output:
            asyncio.run(main(options.redis, options.relays, cursor, output))
    except* TickbusError as group:
        print(group.exceptions)
        raise SystemExit(3) from None


if __name__ == "__main__":
    command()
