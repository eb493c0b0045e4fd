"""The proxy forwards every byte, except for the faults requested."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from support.proxy import Proxy
from support.waiting import until_async

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Setup = tuple["Echo", Proxy, Callable[[], Awaitable[Client]]]


class Echo:
    """A server that returns what it receives and counts its connections."""

    def __init__(self) -> None:
        self.open = 0
        self.received: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while data := await reader.read(1 << 16):
                self.received.append(data)
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Setup]:
    server = Echo()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    proxy = Proxy()
    answer = await proxy.command(f"open link 127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    port = int(answer.removeprefix("ok "))
    clients: list[asyncio.StreamWriter] = []

    async def connect() -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        clients.append(writer)
        return reader, writer

    yield server, proxy, connect
    for writer in clients:
        writer.close()
    await proxy.close()
    listening.close()
    await until_async(lambda: server.open == 0, 5)


async def echoed(client: Client, text: bytes) -> bytes:
    client[1].write(text)
    return await asyncio.wait_for(client[0].readexactly(len(text)), 5)


async def ended(client: Client) -> bool:
    try:
        return await asyncio.wait_for(client[0].read(), 5) == b""
    except ConnectionResetError:
        return True


async def silent(client: Client) -> bool:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client[0].read(1), 0.1)
    return True


async def test_all_bytes_are_forwarded(echo: Setup) -> None:
    _, _, connect = echo
    assert await echoed(await connect(), bytes(range(256)) * 4000) == bytes(range(256)) * 4000


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_connections_end_and_new_ones_work(how: str, echo: Setup) -> None:
    server, proxy, connect = echo
    client = await connect()
    assert await echoed(client, b"before") == b"before"
    await proxy.command(f"{how} link")
    assert await ended(client)
    await until_async(lambda: server.open == 0, 5, "the other side sees it too")
    assert await echoed(await connect(), b"after") == b"after"


async def test_connections_are_refused_until_healed(echo: Setup) -> None:
    _, proxy, connect = echo
    await proxy.command("refuse link")
    assert await ended(await connect())
    await proxy.command("heal link")
    assert await echoed(await connect(), b"again") == b"again"


async def test_half_open_connections_stay_dead_and_new_ones_hang_until_healed(echo: Setup) -> None:
    server, proxy, connect = echo
    old = await connect()
    assert await echoed(old, b"before") == b"before"
    await proxy.command("half-open link")
    new = await connect()
    for client in (old, new):
        client[1].write(b"lost")
        assert await silent(client)
    await proxy.command("heal link")
    assert await silent(old)
    assert await echoed(await connect(), b"after") == b"after"
    assert b"lost" not in server.received


async def test_stall_loses_nothing(echo: Setup) -> None:
    _, proxy, connect = echo
    client = await connect()
    assert await echoed(client, b"before") == b"before"
    await proxy.command("stall link")
    client[1].write(b"meanwhile")
    assert await silent(client)
    await proxy.command("heal link")
    assert await asyncio.wait_for(client[0].readexactly(9), 5) == b"meanwhile"


async def test_slices_and_delays_keep_every_byte(echo: Setup) -> None:
    server, proxy, connect = echo
    client = await connect()
    await proxy.command("slice link 3")
    await proxy.command("slow link 1")
    assert await echoed(client, b"0123456789") == b"0123456789"
    assert len(server.received) > 1


async def test_unreachable_target_ends_the_connection(echo: Setup) -> None:
    _, proxy, _ = echo
    port = int((await proxy.command("open nowhere 127.0.0.1:1")).removeprefix("ok "))
    client = await asyncio.open_connection("127.0.0.1", port)
    assert await ended(client)
    client[1].close()


@pytest.mark.parametrize(
    "line", ["", "open", "open link", "open link nowhere", "cut other", "slow link x", "explode link"]
)
async def test_invalid_command_gets_an_error(line: str, echo: Setup) -> None:
    _, proxy, _ = echo
    assert (await proxy.command(line)).startswith("error")
