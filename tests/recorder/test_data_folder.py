"""A data folder belongs to one bus, and a service to one folder: rows of two are never mixed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from recorder.recorded import rows_of
from support.processes import Process
from support.redis_server import RedisServer
from support.waiting import until
from support.writing import KEYS, Writer

from tickbus.protocol.names import Keys

Start = Callable[..., Process]


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "other")
    server.start()
    yield server
    server.close()


def record(start: Start, redis: RedisServer, data_dir: Path, *more: str) -> Process:
    return start(
        "recorder", "--redis", redis.url, "--data-dir", str(data_dir), "--shards", str(KEYS.shards),
        "--flush-interval", "100ms", "--lease-ttl", "300ms", *more,
    )  # fmt: skip


async def write(redis: RedisServer, *numbers: int, keys: Keys = KEYS) -> None:
    writer = await Writer(redis.url, keys=keys).open()
    await writer.write(*numbers)
    writer.close()


def recorded(data_dir: Path) -> list[int]:
    return sorted(int(row["trade_id"]) for row in rows_of(data_dir, "trade"))


def stop_after(recorder: Process, rows: int) -> None:
    until(lambda: recorder.metric("tickbus_recorder_rows_total", kind="trade") == rows)
    assert recorder.stop() == 0


def refused(recorder: Process) -> str:
    """Return the line of a recorder that does not start."""
    assert recorder.wait() == 2, recorder.output
    (line,) = [line for line in recorder.output.splitlines() if line.startswith("tickbus: ")]
    return line


def bus_file(data_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data_dir / "_bus").read_text())
    return found


async def test_folder_of_another_bus_is_refused(
    redis_server: RedisServer, other_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """Whether that bus has an id already or not, and whether the first recorder runs or not."""
    data_dir = tmp_path / "data"
    await write(redis_server, 1, 2)
    await write(other_server, 7, 8)
    first = record(start, redis_server, data_dir)
    until(lambda: first.metric("tickbus_recorder_rows_total", kind="trade") == 2)
    line = refused(record(start, other_server, data_dir))
    assert "belongs to the bus with the id" in line and "is new: rows of two buses would mix" in line
    assert f"use another --data-dir, or delete {data_dir / '_bus'}" in line
    assert first.stop() == 0
    stop_after(record(start, other_server, tmp_path / "own"), 2)
    assert "has the id" in refused(record(start, other_server, data_dir))
    await write(redis_server, 3)
    stop_after(record(start, redis_server, data_dir), 1)
    assert (recorded(data_dir), recorded(tmp_path / "own")) == ([1, 2, 3], [7, 8])


async def test_another_prefix_is_another_bus(redis_server: RedisServer, start: Start, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    await write(redis_server, 1)
    await write(redis_server, 2, keys=Keys("x", KEYS.shards))
    stop_after(record(start, redis_server, data_dir), 1)
    refused(record(start, redis_server, data_dir, "--prefix", "x"))
    assert recorded(data_dir) == [1]


async def test_bus_that_was_emptied_is_still_the_same(
    redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """While the recorder runs, and while it does not."""
    data_dir = tmp_path / "data"
    await write(redis_server, 1)
    recorder = record(start, redis_server, data_dir)
    until(lambda: recorder.metric("tickbus_recorder_rows_total", kind="trade") == 1)
    redis_server.client.flushall()
    await write(redis_server, 2)
    until(lambda: recorder.metric("tickbus_recorder_rows_total", kind="trade") == 2)
    until(lambda: redis_server.client.hget(KEYS.meta, "bus") == bus_file(data_dir)["bus"].encode())
    assert recorder.stop() == 0
    redis_server.client.flushall()
    await write(redis_server, 3)
    stop_after(record(start, redis_server, data_dir), 1)
    assert redis_server.client.hget(KEYS.meta, "bus") == bus_file(data_dir)["bus"].encode()
    assert recorded(data_dir) == [1, 2, 3]


async def test_deleted_file_lets_a_replacing_bus_in(
    redis_server: RedisServer, other_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    await write(redis_server, 1)
    stop_after(record(start, redis_server, data_dir), 1)
    await write(other_server, 2)
    refused(record(start, other_server, data_dir))
    (data_dir / "_bus").unlink()
    stop_after(record(start, other_server, data_dir), 1)
    assert recorded(data_dir) == [1, 2]


async def test_folder_of_an_older_version_is_adopted_only_by_its_bus(
    redis_server: RedisServer, other_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    await write(redis_server, 1, 2)
    stop_after(record(start, redis_server, data_dir), 2)
    await write(other_server, 7, 8, 9)
    stop_after(record(start, other_server, tmp_path / "own"), 3)
    for folder, server in ((data_dir, redis_server), (tmp_path / "own", other_server)):
        (folder / "_bus").unlink()
        server.client.hdel(KEYS.meta, "bus", "folder:recorder")
    line = refused(record(start, other_server, data_dir))
    assert "this folder up to" in line and "it belongs to another bus, or is an old copy" in line
    await write(redis_server, 3)
    stop_after(record(start, redis_server, data_dir), 1)
    assert recorded(data_dir) == [1, 2, 3]
    assert redis_server.client.hget(KEYS.meta, "bus") == bus_file(data_dir)["bus"].encode()


async def test_replicas_must_share_their_folder(
    redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    await write(redis_server, 1)
    first = record(start, redis_server, data_dir).wait_ready()
    line = refused(record(start, redis_server, tmp_path / "local"))
    assert "service 'recorder' is running with another --data-dir, which replicas must share" in line
    replica = record(start, redis_server, data_dir)
    until(lambda: replica.metric("tickbus_members") == 2)
    other_name = record(start, redis_server, tmp_path / "local", "--name", "copy").wait_ready()
    until(lambda: other_name.metric("tickbus_recorder_rows_total", kind="trade") == 1)
    assert [process.stop() for process in (first, replica, other_name)] == [0, 0, 0]
    # nobody is left: the service may move
    moved = record(start, redis_server, tmp_path / "new")
    stop_after(moved, 1)
    assert "recorded into another folder until now" in moved.output
    assert [recorded(tmp_path / name) for name in ("data", "local", "new")] == [[1], [1], [1]]


def test_unreadable_bus_file_is_one_line(redis_server: RedisServer, start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/_bus").write_bytes(b"\xff{")
    assert "_bus is unreadable" in refused(record(start, redis_server, tmp_path / "data"))


async def test_moved_bus_is_followed(
    redis_server: RedisServer, other_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """It has its id wherever it is, and its folder learns the address, for when it is emptied there."""
    data_dir = tmp_path / "data"
    await write(redis_server, 1)
    stop_after(record(start, redis_server, data_dir), 1)
    await write(other_server, 2)
    other_server.client.hset(KEYS.meta, "bus", bus_file(data_dir)["bus"])
    stop_after(record(start, other_server, data_dir), 1)
    assert bus_file(data_dir)["server"] == f"127.0.0.1:{other_server.port}/0"
    assert [path.name for path in data_dir.glob("_bus*")] == ["_bus"]
