"""A hostile vendor: a proxy in front of an honest one, which does on the wire what no vendor should.

It speaks WebSocket well enough to put frames between those of the vendor, to change them, or to stop being a
server at all. As a program it takes one command per line on standard input and answers each with one line,
`ok ...` or `error: ...`:

    open HOST:PORT LEDGER   listen on a free port and forward to HOST:PORT; answers `ok PORT`
    pings                   until `stop`: pings without end, whose pongs are never read
    fragments               until `stop`: a message of empty fragments without end
    handshake               until `stop`: end all connections; answer new ones by a header without end
    body                    the same, by the body of a refusal without end
    garbage N               put N frames that are nothing of the protocol between the next ones
    damaged N               put N damaged copies of ticks behind their originals
    errors N                put N errors in other dresses than the vendor's between the next frames
    arrays N                send the next frames N times five at a time, as one array
    jump N                  put N copies of trades with the id 2^53 - 1 between the next ones
    repeats N               put N copies of trades with the same id and other values behind their originals
    fallen N                put N copies of trades with ids far below and other values behind their originals
    timeless N              take the time of the next N trades: 0, null, or not there
    stop                    end what lasts

Ticks that the vendor never sent, or sent with another time, go to the ledger, a JSON object a line.
"""

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from support.commanded import CommandedProcess, serve

LAST_ID = (1 << 53) - 1
OTHER_PRICE, OTHER_MS = "1.23456789", 7
"""What a repeat has instead of its own: this price, and a time so much later."""
FALL = 500_000
"""How far the id of a trade falls: less than where the simulator's ids begin again."""
_CHUNK = 1 << 16
_TEXT = 0x81
_PER_ARRAY = 5
_PINGS = b"\x89\x7d" + b"p" * 125
_GARBAGE: list[bytes] = [
    b"garbage",
    b"",
    b"\xff\xfe\x00",
    b"null",
    b"[]",
    b"0",
    b'"\xff"',
    b'{"error":1e999}',
    b'{"error":"\xff"}',
    b'{"e":"trade"',
    b"[" * 5_000,
    b'{"a":' * 5_000,
    b"x" * 100_000,
    b'{"e":"trade","s":1,"t":{},"p":[],"q":null}',
    b'{"stream":"x@trade","data":null}',
    b'{"data":1e999}',
    b'{"e":[],"s":{}}',
    b'{"e":"kline","k":{}}',
    b"\x1b[31mred",
]
_ERRORS: list[bytes] = [
    b'{"type":"error","message":"no such symbol"}',
    b'{"event":"error","msg":"\\u001b[31mslow\\ndown","code":"60012"}',
    b'{"status":"error","reason":"internal"}',
    b'{"code":1,"msg":"unknown"}',
    b'{"error":{"code":3,"msg":"x"},"id":null}',
    b'{"success":false,"ret_msg":"denied"}',
    b'{"errors":["a","b"]}',
]


def text_frame(payload: bytes, first: int = _TEXT) -> bytes:
    """Return a frame of a server: not masked."""
    length = len(payload)
    if length < 126:
        return bytes((first, length)) + payload
    if length < 1 << 16:
        return bytes((first, 126)) + length.to_bytes(2, "big") + payload
    return bytes((first, 127)) + length.to_bytes(8, "big") + payload


class Attacker:
    """The listening port, what is to be done next, and the ledger."""

    def __init__(self, host: str, port: int, ledger: TextIO) -> None:
        self.target = (host, port)
        self.port = 0
        self.lasting = ""
        """What is done until `stop`."""
        self.planned: Counter[str] = Counter()
        """What is done with the next frames, and how often."""
        self._ledger = ledger
        self._connections: set[_Connection] = set()
        self._chance = random.Random(1)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def begin(self, what: str) -> None:
        self.lasting = what
        if what in ("handshake", "body"):
            for connection in list(self._connections):
                connection.end()
        else:
            for connection in self._connections:
                connection.flood()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            writer.close()

    # frames

    def around(self, payload: bytes) -> list[bytes]:
        """Return what is sent in place of a text message of the vendor."""
        sent = [payload]
        if not self.planned:
            return sent
        what = self._chance.choice(list(self.planned))
        event = _event(payload)
        if what == "garbage":
            sent = [self._chance.choice(_GARBAGE), payload]
        elif what == "errors":
            sent = [payload, self._chance.choice(_ERRORS)]
        elif event is None or (what != "damaged" and event[1].get("e") != "trade"):
            return sent
        elif what == "damaged":
            sent = [payload, self._damaged(payload)]
        else:
            sent = self._planted(what, payload, *event)
        self.planned[what] -= 1
        self.planned = +self.planned
        return sent

    def _damaged(self, payload: bytes) -> bytes:
        """Return a copy that can be no tick, whoever reads it."""
        how = self._chance.randrange(4)
        if how == 0:
            return payload[: self._chance.randrange(1, len(payload))]
        frame, data = _event(payload) or ({}, {})
        for name in ("p", "b") if how == 1 else ("q", "B") if how == 2 else ("s",):
            if name in data:
                # not null: that is an empty side of the book
                data[name] = self._chance.choice(("x", "NaN", {}, [], True, "1e999"))
        return json.dumps(frame).encode()

    def _planted(self, what: str, payload: bytes, frame: dict[str, Any], data: dict[str, Any]) -> list[bytes]:
        original = data["t"]
        if what == "timeless":
            self._note(what, data, original)
            del data["T"]
            if (time := self._chance.choice((0, None, ""))) != "":
                data["T"] = time
            return [json.dumps(frame).encode()]
        if what == "jump":
            data["t"] = LAST_ID
        else:
            data["t"] -= FALL if what == "fallen" else 0
            data["p"], data["T"] = OTHER_PRICE, data["T"] + OTHER_MS
        self._note(what, data, original)
        return [payload, json.dumps(frame).encode()]

    def _note(self, what: str, data: dict[str, Any], original: int) -> None:
        row = {
            "how": what,
            "behind": original,
            "symbol": data["s"],
            "id": data["t"],
            "price": data["p"],
            "size": data["q"],
            "side": "sell" if data["m"] else "buy",
            "ms": data["T"],
        }
        self._ledger.write(json.dumps(row) + "\n")
        self._ledger.flush()


def _event(payload: bytes) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return a frame and the tick in it; None if there is none."""
    frame = json.loads(payload)
    data = frame.get("data", frame) if isinstance(frame, dict) else None
    return (frame, data) if isinstance(data, dict) and ("p" in data or "b" in data) else None


class _Connection:
    def __init__(
        self, attacker: Attacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._attacker = attacker
        self._reader = reader
        self._writer = writer
        self._task = asyncio.current_task()
        self._reading = asyncio.Event()
        self._reading.set()
        self._flooding: asyncio.Task[None] | None = None
        self._in_message = False
        """A message of fragments is open: no other may begin."""
        self._held: list[bytes] = []
        self._array: list[bytes] = []

    async def run(self) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            request = await self._reader.readuntil(b"\r\n\r\n")
            if self._attacker.lasting in ("handshake", "body"):
                await self._answer_without_end()
                return
            upstream, server = await asyncio.open_connection(*self._attacker.target)
            server.write(request)
            pumps = [asyncio.create_task(self._upward(server)), asyncio.create_task(self._downward(upstream))]
            self.flood()
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in [*pumps, *([self._flooding] if self._flooding else [])]:
                    pump.cancel()
                server.close()

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _answer_without_end(self) -> None:
        what = self._attacker.lasting
        self._writer.write(b"HTTP/1.1 101 x\r\n" if what == "handshake" else b"HTTP/1.1 503 x\r\n\r\n")
        line = b"X: " + b"y" * 60_000 + b"\r\n"
        while self._attacker.lasting == what:
            self._writer.write(line)
            await self._writer.drain()

    def flood(self) -> None:
        """Begin what the attacker does to connections until `stop`."""
        if self._attacker.lasting in ("pings", "fragments"):
            self._flooding = asyncio.create_task(self._flood(self._attacker.lasting))

    async def _flood(self, what: str) -> None:
        with suppress(OSError):
            if what == "pings":
                self._reading.clear()
                while self._attacker.lasting == what:
                    self._writer.write(_PINGS * 100)
                    await self._writer.drain()
                    await asyncio.sleep(0.002)
                self._reading.set()
                return
            self._in_message = True
            self._writer.write(text_frame(b"x", 0x01))
            while self._attacker.lasting == what:
                self._writer.write(b"\0\0" * 8_192)
                await self._writer.drain()
                await asyncio.sleep(0.002)
            self._writer.write(b"\x80\x00")
            self._in_message = False
            self._writer.write(b"".join(self._held))
            self._held.clear()

    async def _upward(self, server: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await self._reader.read(_CHUNK):
                server.write(data)
                await server.drain()
                await self._reading.wait()

    async def _downward(self, upstream: asyncio.StreamReader) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            self._writer.write(await upstream.readuntil(b"\r\n\r\n"))
            while True:
                first, length = await upstream.readexactly(2)
                if length >= 126:
                    length = int.from_bytes(await upstream.readexactly(2 if length == 126 else 8), "big")
                payload = await upstream.readexactly(length)
                await self._pass(first, payload)

    async def _pass(self, first: int, payload: bytes) -> None:
        frames = [text_frame(payload, first)]
        if first == _TEXT:
            frames = [text_frame(one) for one in self._texts(payload)]
        if self._in_message and first & 0x08 == 0:
            self._held += frames
            return
        for frame in frames:
            self._writer.write(frame)
        await self._writer.drain()

    def _texts(self, payload: bytes) -> list[bytes]:
        planned = self._attacker.planned
        if planned["arrays"] <= 0 and not self._array:
            del planned["arrays"]
            return self._attacker.around(payload)
        if _event(payload) is None:
            return [payload]
        self._array.append(payload)
        if len(self._array) < _PER_ARRAY:
            return []
        packed, self._array = b"[" + b",".join(self._array) + b"]", []
        planned["arrays"] -= 1
        return [packed]


LASTING = ("pings", "fragments", "handshake", "body")
PLANNED = ("garbage", "damaged", "errors", "arrays", "jump", "repeats", "fallen", "timeless")


class AttackerProcess(CommandedProcess):
    """The attacker as a separate process."""

    def __init__(self, log: Path) -> None:
        super().__init__("support.attacker", log)

    def open(self, host: str, port: int, ledger: Path) -> int:
        """Stand in front of a vendor and return the port to connect to instead."""
        return int(self.command(f"open {host}:{port} {ledger}"))


async def _serve() -> None:
    attacker: Attacker | None = None

    async def answer(line: str) -> str:
        nonlocal attacker
        match line.split():
            case ["open", address, ledger]:
                host, _, port = address.rpartition(":")
                attacker = Attacker(host, int(port), open(ledger, "a"))  # noqa: SIM115, ASYNC230, PTH123
                await attacker.open()
                return f"ok {attacker.port}"
            case [what] if attacker is not None and what in LASTING:
                attacker.begin(what)
                return f"ok {what}"
            case [what, count] if attacker is not None and what in PLANNED:
                attacker.planned[what] += int(count)
                return f"ok {what}"
            case ["stop"] if attacker is not None:
                attacker.lasting = ""
                return "ok stop"
        return f"error: {line.strip()}: unknown command"

    await serve(answer)


if __name__ == "__main__":
    asyncio.run(_serve())
