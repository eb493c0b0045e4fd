"""Text of others reaches no log, page and terminal as it is: a planted token is searched on every path."""

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from gateway.upstream.servers import accepted, raw, text
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.writing import Writer
from websockets.frames import Frame, Opcode

from tickbus.protocol.messages import Side, Trade
from tickbus.protocol.names import Keys
from tickbus.protocol.stream_filter import StreamFilter, encode_filter
from tickbus.units import SECOND

TOKEN = "S3CR3T/T0K3N+42"
ESCAPES = "\x1b[2J\r\n2026-01-01 00:00:00,000 INFO    forged: line\u202e\x9b31m"

Start = Callable[..., Process]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


@contextmanager
def vendor(talk: Talk) -> Iterator[int]:
    """A raw server in a thread of its own. Yields its port."""
    port: list[int] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with raw(talk) as number:
            port.append(number)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield port[0]
    finally:
        done.set()
        thread.join()


def path_of(request: bytes) -> bytes:
    return request.split()[1]


def http(answer: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(answer.replace(b"PATH", path_of(request)))

    return talk


def frames(*made: Callable[[bytes], bytes]) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(accepted(request))
        await reader.read(1)
        writer.write(b"".join(make(path_of(request)) for make in made))
        await writer.drain()

    return talk


def close(code: int, reason: bytes) -> bytes:
    return Frame(Opcode.CLOSE, code.to_bytes(2, "big") + reason).serialize(mask=False)


def error(message: str) -> Callable[[bytes], bytes]:
    return lambda path: text(
        json.dumps({"ret": 600, "msg": message + path.decode(), "cmd_id": 22005}).encode()
    )


PATHS = {
    "404": http(b"HTTP/1.1 404 x\r\n\r\nCannot GET PATH" + ESCAPES.encode()),
    "redirect": http(b"HTTP/1.1 301 x\r\nLocation: https://other.examplePATH\r\nContent-Length: 0\r\n\r\n"),
    "503": http(b"HTTP/1.1 503 x\r\n\r\n" + b"-" * 180 + b"no backend for PATH" + ESCAPES.encode()),
    "not HTTP": http(b"SSH-2.0 PATH" + ESCAPES.encode() + b"\r\n\r\n"),
    "bad handshake": http(b"HTTP/1.1 101 x\r\nUpgrade: PATH\r\nConnection: Upgrade\r\n\r\n"),
    "close reason": frames(lambda path: close(4001, b"bye " + path + b"\x1b[2J\n")),
    "error frame": frames(error("no such token " + TOKEN + ESCAPES)),
    "escaped in JSON": frames(error("no such token " + TOKEN.replace("/", "\\/") + ESCAPES)),
    "garbage": frames(lambda path: text(b"\xff{" + path + ESCAPES.encode()), lambda _: close(1000, b"")),
}


@pytest.mark.parametrize("path", PATHS)
def test_token_and_escapes_of_the_vendor_reach_no_log(
    path: str, start: Start, redis_server: RedisServer
) -> None:
    with vendor(PATHS[path]) as port:
        gateway = start(
            "gateway", "--feed", "alltick", "--url", f"ws://127.0.0.1:{port}", "--symbols", "AAPL.US",
            "--redis", redis_server.url, TICKBUS_TOKEN=TOKEN,
        )  # fmt: skip
        gateway.wait_for(r"tickbus: the vendor|WARNING tickbus.gateway: upstream")
    gateway.process.terminate()
    gateway.wait()
    assert_clean(gateway.output)


def assert_clean(output: str) -> None:
    for form in (
        TOKEN,
        quote(TOKEN),
        quote(TOKEN, safe=""),
        TOKEN.replace("/", "\\/"),
        TOKEN[:8],
        TOKEN[-8:],
    ):
        assert form not in output
    assert all(line.isprintable() for line in output.splitlines())
    assert "\n2026-01-01" not in output
    assert all(len(line) < 1000 for line in output.splitlines())


BUG = """
import asyncio, os
from typing import Annotated
from tickbus.service import Option, ServiceOptions, load, run

class Options(ServiceOptions, frozen=True, kw_only=True):
    token: Annotated[str, Option("a secret", secret=True)]

async def main(service):
    import logging
    secret = os.environ["TICKBUS_TOKEN"]
    try:
        raise ValueError("in a traceback " + secret + "\\x1b[2J\\n2026-01-01 forged")
    except ValueError:
        logging.getLogger("other").exception("a library's line %s\\n2026-01-01 forged", secret)
    async def lost():
        raise ValueError("in a task " + secret)
    task = asyncio.create_task(lost())
    await asyncio.sleep(0)
    del task
    raise ValueError("uncaught " + secret + "\\x1b[2J\\n2026-01-01 forged")

raise SystemExit(run(main, load(Options, "bug", []), "bug"))
"""


def test_token_reaches_no_traceback(tmp_path: "pytest.TempPathFactory", start: Start) -> None:
    class Bug(Process):
        command = (sys.executable, "-c", BUG)

    bug = Bug(tmp_path / "bug.log", TICKBUS_TOKEN=TOKEN)  # type: ignore[operator]
    assert bug.wait() == 1
    assert "a library's line ***" in bug.output
    assert "ValueError: uncaught ***" in bug.output
    assert_clean(bug.output)


def test_token_is_in_no_help_and_no_error() -> None:
    for arguments in (["--help"], ["--metrics-port", "x"], ["--symbols", "a b"], []):
        result = tickbus("gateway", "--feed", "alltick", *arguments, TICKBUS_TOKEN=TOKEN)
        assert_clean(result.stdout + result.stderr)


async def test_status_and_tail_show_nothing_invisible(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url, "json", Keys()).open()
    stream = writer.stream("X")
    trade = Trade("X", "1", "1", Side.BUY, f"id{ESCAPES}", SECOND, SECOND)
    await writer.publisher.commit(writer.transaction([writer.entry(stream, trade)]))
    writer.close()
    reads = encode_filter(StreamFilter(kinds=frozenset({"trade"})))
    redis_server.client.hset(Keys().meta, f"service:evil{ESCAPES}", reads)
    for arguments in (["tail", "X", "--from", "start"], ["tail", "X", "--from", "start", "--json"]):
        result = await asyncio.to_thread(tickbus, *arguments, "--count", "1", "--redis", redis_server.url)
        assert_clean(result.stdout + result.stderr)
        assert "forged" in result.stdout
    for arguments in (["status"], ["status", "--json"]):
        result = await asyncio.to_thread(tickbus, *arguments, "--redis", redis_server.url)
        assert_clean(result.stdout + result.stderr)
        assert result.returncode == 0
        assert "evil" in result.stdout
