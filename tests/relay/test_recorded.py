"""History and bars that the bus no longer has, from the files of a real recorder: neither hole nor double."""

import json
import os
import select
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from recorder.recorded import gap
from recorder.recorded import signal as said_signal
from relay.test_server import TOKEN, get, token_row
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.relay import start_relay
from support.waiting import until
from support.writing import Writer

from tickbus.protocol.messages import Bar, StreamKind
from tickbus.protocol.names import Stream
from tickbus.units import SECOND

Start = Callable[..., Process]
HISTORY = "/api/history?stream=trade:test:A"
BARS = Stream("bar", "test", "A", "time:1m")
MINUTE = 60 * SECOND
NOON = 1_795_867_200 * SECOND


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    opened = await Writer(redis_server.url).open()
    yield opened
    opened.close()


def bar(start: int, revision: int = 0) -> Bar:
    return Bar(
        "time:1m", start, start + MINUTE, "1", "2", "1", "2", "3", "4", None, 2, "1", "2", revision, (), "A"
    )  # fmt: skip


async def write_bars(writer: Writer, *bars: Bar) -> None:
    for one in bars:
        await writer.publisher.commit(writer.transaction([writer.entry(BARS, one)]))


def record(start: Start, redis: RedisServer, data_dir: Path, *more: str) -> None:
    """Record all that the bus has, with a recorder of our own."""
    options = ("--redis", redis.url, "--shards", "8", "--flush-interval", "200ms")
    recorder = start("recorder", *options, "--data-dir", str(data_dir), *more).wait_ready()
    until(recorder.caught_up, what="everything is recorded")
    assert recorder.stop() == 0


def trim(redis: RedisServer, writer: Writer, stream: Stream, keep: int) -> None:
    redis.client.execute_command("XTRIM", writer.keys.stream(stream), "MAXLEN", keep)


def pages(url: str, path: str, parameter: str, begin: str = "") -> list[Any]:
    """Return all rows from here on, page by page."""
    rows: list[Any] = []
    following = f"&{parameter}={begin}" if begin else ""
    while True:
        status, body = get(url, path + following)
        assert status == 200, body
        page = json.loads(body)
        rows += page["data"]
        if page["next"] is None:
            return rows
        following = f"&{parameter}={page['next']}"


@pytest.mark.parametrize("limit", [1_000, 70])
async def test_history_goes_from_files_to_the_bus(
    redis_server: RedisServer, start: Start, writer: Writer, tmp_path: Path, limit: int
) -> None:
    data_dir = tmp_path / "data"
    await writer.write(*range(1, 701))
    await writer.write(1, 2, symbol="B")
    record(start, redis_server, data_dir)
    await writer.write(*range(701, 1_001))
    _, url = start_relay(start, redis_server.url, "--data-dir", str(data_dir))
    for keep in (1_000, 450, 301, 300):  # the bus has all; overlaps with the files; follows them exactly
        trim(redis_server, writer, writer.stream(), keep)
        rows = pages(url, f"{HISTORY}&limit={limit}", "after")
        assert [int(row["price"]) for row in rows] == list(range(1, 1_001))
        assert [int(row["cursor"].partition("-")[2]) for row in rows] == list(range(1, 1_001))
    all_rows = rows
    # resumed within the files, at their end, within the bus, at its end
    for at in (1, 333, 699, 700, 701, 999, 1_000):
        cursor = all_rows[at - 1]["cursor"]
        rows = pages(url, f"{HISTORY}&limit={limit}", "after", cursor)
        assert [int(row["price"]) for row in rows] == list(range(at + 1, 1_001))
    # what the bus has no longer at all, not even its name
    redis_server.client.flushall()
    assert len(pages(url, f"{HISTORY}&limit={limit}", "after")) == 700


@pytest.mark.parametrize("limit", [1_000, 3])
async def test_bars_go_from_files_to_the_bus(
    redis_server: RedisServer, start: Start, writer: Writer, tmp_path: Path, limit: int
) -> None:
    data_dir = tmp_path / "data"
    starts = [NOON + number * MINUTE for number in range(20)]
    await write_bars(writer, *map(bar, starts[:12]))
    await write_bars(writer, bar(starts[3], 1), bar(starts[11], 1))
    record(start, redis_server, data_dir)
    await write_bars(writer, bar(starts[5], 1), *map(bar, starts[12:]), bar(starts[3], 2))
    _, url = start_relay(start, redis_server.url, "--data-dir", str(data_dir))
    revised = {starts[3]: 2, starts[5]: 1, starts[11]: 1}
    path = f"/api/bars?symbol=A&limit={limit}"
    for keep in (24, 15, 12, 10):
        trim(redis_server, writer, BARS, keep)
        rows = pages(url, path, "from")
        assert [(row["start"], row["revision"]) for row in rows] == [
            (begin, revised.get(begin, 0)) for begin in starts
        ]
        bounded = pages(url, f"{path}&to={starts[14]}", "from")
        assert bounded == rows[:14]
    redis_server.client.flushall()
    assert pages(url, path, "from") == []
    found = pages(url, f"{path}&feed=test", "from")
    assert [row["start"] for row in found] == starts[:12]


@pytest.mark.parametrize("limit", [1_000, 3])
async def test_signals_go_from_files_to_the_bus(
    redis_server: RedisServer, start: Start, writer: Writer, tmp_path: Path, limit: int
) -> None:
    """Every field as the bus had it, Gaps included."""
    data_dir = tmp_path / "data"
    stream = Stream("signal", "app", "BTC-USDT")
    said = [gap(StreamKind.SIGNAL) if seq == 5 else said_signal(seq) for seq in range(1, 13)]
    await writer.publisher.commit(writer.transaction([writer.entry(stream, each) for each in said[:8]]))
    record(start, redis_server, data_dir, "--kinds", "trade,signal")
    await writer.publisher.commit(writer.transaction([writer.entry(stream, each) for each in said[8:]]))
    _, url = start_relay(start, redis_server.url, "--data-dir", str(data_dir))
    path = f"/api/history?stream={stream.name}&limit={limit}"
    on_bus = pages(url, path, "after")
    assert [row["type"] for row in on_bus] == ["signal"] * 4 + ["gap"] + ["signal"] * 7
    assert on_bus[2]["details"] == [
        ["mean", "60000.25"], ["small", "-0.000000000000000001"], ["mean", "0"],
    ]  # fmt: skip
    for keep in (8, 4):
        trim(redis_server, writer, stream, keep)
        assert pages(url, path, "after") == on_bus


def reader_of(relay: Process) -> int:
    """Return the process that reads files for this relay."""
    pid = relay.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


async def test_reader_of_files_is_bounded_and_starts_again(
    redis_server: RedisServer, start: Start, writer: Writer, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    await writer.write(*range(1, 11))
    record(start, redis_server, data_dir)
    trim(redis_server, writer, writer.stream(), 2)
    relay, url = start_relay(start, redis_server.url, "--data-dir", str(data_dir))
    assert len(pages(url, HISTORY, "after")) == 10

    first = reader_of(relay)
    os.kill(first, signal.SIGKILL)
    until(lambda: get(url, HISTORY)[0] == 200, what="another reader")
    assert reader_of(relay) != first
    assert len(pages(url, HISTORY, "after")) == 10
    assert "Traceback" not in relay.output
    child = reader_of(relay)
    relay.kill()
    until(lambda: not Path(f"/proc/{child}").exists(), what="the reader ends with its relay")


async def test_full_queue_is_told_when_to_come_again(
    redis_server: RedisServer, start: Start, writer: Writer, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    await writer.write(*range(1, 11))
    record(start, redis_server, data_dir)
    trim(redis_server, writer, writer.stream(), 2)
    relay, url = start_relay(start, redis_server.url, "--data-dir", str(data_dir))
    assert get(url, HISTORY)[0] == 200
    pid = reader_of(relay)
    os.kill(pid, signal.SIGSTOP)
    host, port = url.removeprefix("ws://").split(":")
    waiting = []
    try:
        for _ in range(17):
            sock = socket.create_connection((host, int(port)))
            sock.sendall(f"GET {HISTORY} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            waiting.append(sock)
        readable, _, _ = select.select(waiting, [], [], 20)
        (refused,) = readable
        answer = refused.recv(65_536).decode()
        assert answer.startswith("HTTP/1.1 503")
        assert "Retry-After: 1" in answer
        assert "too many requests for recorded files" in answer
    finally:
        os.kill(pid, signal.SIGCONT)
    for sock in waiting:
        if sock is not refused:
            assert sock.recv(65_536).startswith(b"HTTP/1.1 200")
        sock.close()


def test_folder_must_exist(redis_server: RedisServer, tmp_path: Path) -> None:
    done = tickbus("relay", "--redis", redis_server.url, "--port", "0", "--data-dir", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "no such folder" in done.stderr


async def test_token_without_history_gets_neither(
    redis_server: RedisServer, start: Start, writer: Writer, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_row("kiosk", TOKEN, "history = false"))
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens), "--data-dir", str(tmp_path))
    for path in (HISTORY, "/api/bars?symbol=A"):
        status, body = get(url, path, Authorization=f"Bearer {TOKEN}")
        assert status == 403
        assert "may not read history" in body
