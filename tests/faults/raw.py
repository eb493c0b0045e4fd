"""A client of the relay that uses nothing of the library: `websockets`, `/v1` in MessagePack, and the rules
of docs/relay.md.

It keeps the same ledger as the app, and is lossless in the same way: it resumes at the next relay from the
cursors that it has received, each with the history that `subscribed` named.
"""

import argparse
import asyncio
import zlib
from itertools import cycle
from pathlib import Path
from typing import BinaryIO

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from faults import app

_RETRY_SECONDS = 0.3
_PING_SECONDS, _PONG_SECONDS = 2.0, 5.0
"""A half-open connection says nothing: it is found out by a ping."""
_decode_data = msgspec.msgpack.Decoder(tuple[int, list[tuple[str, str, str, msgspec.Raw]]]).decode
_decode_payload = msgspec.msgpack.Decoder().decode


class Reader:
    def __init__(self, cursors: dict[str, str], output: BinaryIO) -> None:
        self._cursors = cursors
        """Of the newest entry received, by stream."""
        self._histories: dict[str, str] = {}
        self._output = output

    async def run(self, urls: list[str]) -> None:
        for url in cycle(urls):
            try:
                async with connect(
                    f"{url}/v1", subprotocols=[Subprotocol("tickbus.msgpack")], compression=None,
                    max_size=None, open_timeout=5, ping_interval=_PING_SECONDS,
                    ping_timeout=_PONG_SECONDS, close_timeout=1,
                ) as socket:  # fmt: skip
                    for kind in app.KINDS:
                        request = {"op": "subscribe", "id": app.KINDS.index(kind), "kind": kind}
                        await socket.send(msgspec.msgpack.encode(request | {"from": self._begin(kind)}))
                    async for message in socket:
                        assert isinstance(message, bytes)
                        self._take(message)
            except (OSError, TimeoutError, WebSocketException):
                pass
            await asyncio.sleep(_RETRY_SECONDS)

    def _begin(self, kind: str) -> object:
        """Return where to go on; streams that are not named begin with their oldest entry."""
        return {
            name: f"{cursor}@{history}" if (history := self._histories.get(name)) else cursor
            for name, cursor in self._cursors.items()
            if name.startswith(f"{kind}:")
        } or "start"

    def _take(self, message: bytes) -> None:
        if message[0] & 0xF0 == 0x80:  # a map: no data
            answer = _decode_payload(message)
            assert answer["op"] != "error", answer
            for row in answer.get("streams", [answer] if answer["op"] == "stream" else []):
                self._histories[row["stream"]] = row["history"]
            return
        for stream, cursor, field, payload in _decode_data(message)[1]:
            found: list[object] = [stream, cursor, field, zlib.crc32(payload)]
            if field == "g" and (gap := _decode_payload(payload))[1] == "relay":
                found = [stream, cursor, "lost", gap[7]]
            else:
                self._cursors[stream] = cursor
            self._output.write(msgspec.json.encode(found) + b"\n")
        self._output.flush()


def command() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--relays", required=True)
    parser.add_argument("--ledger", required=True, type=Path)
    options = parser.parse_args()
    cursors = app.repair(options.ledger)
    with options.ledger.open("ab") as output:
        asyncio.run(Reader(cursors, output).run(options.relays.split(",")))


if __name__ == "__main__":
    command()
