"""A TCP proxy that breaks on request: between a service and Redis, between the vendor and a gateway.

As a program it takes one command per line on standard input and answers each with one line, `ok ...` or
`error: ...`:

    open NAME HOST:PORT     listen on a free port and forward to HOST:PORT; answers `ok PORT`
    cut NAME                close every connection of the link cleanly
    reset NAME              close them with a TCP reset: data in transit is lost
    half-open NAME          current connections are dead for good and not closed; new ones hang until `heal`
    stall NAME              nothing goes through until `heal`; then all of it does
    slow NAME MS            delay each chunk by MS milliseconds, in both directions
    slice NAME BYTES        split the data into chunks of BYTES, each in a packet of its own
    refuse NAME             reset new connections at once
    heal NAME               remove all conditions
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from support.commanded import CommandedProcess, serve

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)


class Link:
    """One listening port and its current conditions."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.port = 0
        self._connections: set[_Connection] = set()
        self._flowing = asyncio.Event()
        self.heal()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def heal(self) -> None:
        self.delay = 0.0
        self.slice = _CHUNK
        self.refusing = self.hanging = False
        self._flowing.set()

    def stall(self) -> None:
        self._flowing.clear()

    async def flows(self) -> None:
        await self._flowing.wait()

    def cut(self, reset: bool = False) -> None:
        for connection in list(self._connections):
            connection.end(reset)

    def half_open(self) -> None:
        self.hanging = True
        for connection in self._connections:
            connection.die()

    async def close(self) -> None:
        self._server.close()
        self.cut(reset=True)
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            _end(writer, reset=True)
            return
        connection = _Connection(self, writer)
        self._connections.add(connection)
        try:
            if self.hanging:
                connection.die()
            await connection.run(reader)
        finally:
            self._connections.discard(connection)


class _Connection:
    def __init__(self, link: Link, client: asyncio.StreamWriter) -> None:
        self._link = link
        self._writers = [client]
        self._dead = False
        self._task = asyncio.current_task()
        self._pumps: list[asyncio.Task[None]] = []

    async def run(self, reader: asyncio.StreamReader) -> None:
        client = self._writers[0]
        try:
            if not self._dead:
                upstream, server = await asyncio.open_connection(*self._link.target)
                self._writers.append(server)
                self._pumps = [
                    asyncio.create_task(self._pump(reader, server)),
                    asyncio.create_task(self._pump(upstream, client)),
                ]
                # end of stream in one direction ends both: neither Redis nor WebSocket works half-closed
                await asyncio.wait(self._pumps, return_when=asyncio.FIRST_COMPLETED)
            if self._dead:
                await asyncio.get_running_loop().create_future()
        except (OSError, asyncio.CancelledError):
            pass  # the target is down and the client sees its connection end; or the link was cut
        finally:
            for pump in self._pumps:
                pump.cancel()
            self.end(reset=False)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                for start in range(0, len(data), self._link.slice):
                    if self._link.delay:
                        await asyncio.sleep(self._link.delay)
                    await self._link.flows()
                    writer.write(data[start : start + self._link.slice])
                    await writer.drain()

    def die(self) -> None:
        """Read nothing, write nothing, close nothing, forever."""
        self._dead = True
        for pump in self._pumps:
            pump.cancel()
        for writer in self._writers:
            transport = writer.transport
            if isinstance(transport, asyncio.ReadTransport) and not transport.is_closing():
                transport.pause_reading()

    def end(self, reset: bool) -> None:
        for writer in self._writers:
            _end(writer, reset)
        self._dead = False
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()


def _end(writer: asyncio.StreamWriter, reset: bool) -> None:
    if reset and (sock := writer.get_extra_info("socket")) is not None and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
    elif not writer.transport.is_closing():
        writer.close()


class Proxy:
    """All links by name, and the commands."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}

    async def command(self, line: str) -> str:
        """Run one command and return its answer."""
        try:
            word, name, *values = line.split()
            if word == "open":
                host, _, port = values[0].rpartition(":")
                link = self.links[name] = Link(host, int(port))
                await link.open()
                return f"ok {link.port}"
            link, number = self.links[name], int(values[0]) if values else 0
            actions: dict[str, Callable[[], None]] = {
                "cut": link.cut,
                "reset": lambda: link.cut(reset=True),
                "half-open": link.half_open,
                "stall": link.stall,
                "heal": link.heal,
                "slow": lambda: setattr(link, "delay", number / 1000),
                "slice": lambda: setattr(link, "slice", number),
                "refuse": lambda: setattr(link, "refusing", True),
            }
            actions[word]()
        except (ValueError, KeyError, IndexError) as error:
            return f"error: {line!r}: {type(error).__name__} {error}"
        return f"ok {word}"

    async def close(self) -> None:
        for link in self.links.values():
            await link.close()


class ProxyProcess(CommandedProcess):
    """The proxy as a separate process."""

    def __init__(self, log: Path) -> None:
        super().__init__("support.proxy", log)

    def open(self, name: str, host: str, port: int) -> int:
        """Open a link and return the port to connect to instead."""
        return int(self.command(f"open {name} {host}:{port}"))


async def _serve() -> None:
    proxy = Proxy()
    await serve(proxy.command)
    await proxy.close()


if __name__ == "__main__":
    asyncio.run(_serve())
