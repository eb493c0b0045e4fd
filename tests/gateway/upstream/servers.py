"""A raw WebSocket server, for what a well-behaved one never does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from websockets.frames import Frame, Opcode
from websockets.utils import accept_key


@asynccontextmanager
async def raw(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]],
) -> AsyncIterator[int]:
    """A TCP server that reads the request and leaves the response to `talk`. Yields its port."""
    writers: list[asyncio.StreamWriter] = []
    talks: set[asyncio.Task[None] | None] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        talks.add(asyncio.current_task())
        try:
            await talk(reader, writer, await reader.readuntil(b"\r\n\r\n"))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()

    running = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield running.sockets[0].getsockname()[1]
    finally:
        running.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.wait_for(asyncio.gather(*(talk for talk in talks if talk is not None)), 5)


def accepted(request: bytes) -> bytes:
    """Return the response that accepts a handshake."""
    key = next(
        line.split(b": ")[1]
        for line in request.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key")
    )
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode() + b"\r\n\r\n"
    )


def text(payload: bytes) -> bytes:
    """Return a text frame."""
    return Frame(Opcode.TEXT, payload).serialize(mask=False)
