"""The trouble of one shard is that shard's alone: told and shown, while the others are recorded."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from recorder.recorded import MIDNIGHT, NOON, rows_of, seqs, trade
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.waiting import until
from support.writing import KEYS, Writer

from services.recorder.blocked import BlockedShards
from tickbus.protocol.names import Stream

HEALTHY, TROUBLED = "A", "B"
TAG = KEYS.tag(KEYS.shard(TROUBLED))
assert KEYS.shard(HEALTHY) != KEYS.shard(TROUBLED)

Start = Callable[..., Process]


async def write(writer: Writer, symbol: str, count: int, time: int = NOON) -> None:
    stream = Stream("trade", "binance", symbol)
    entries = [writer.entry(stream, trade(number, symbol, time=time)) for number in range(count)]
    await writer.publisher.commit(writer.transaction(entries))


def record(start: Start, redis: RedisServer, data_dir: Path) -> Process:
    return start(
        "recorder", "--redis", redis.url, "--data-dir", str(data_dir), "--shards", str(KEYS.shards),
        "--flush-interval", "100ms", "--lease-ttl", "500ms",
    )  # fmt: skip


def recorded(data_dir: Path) -> tuple[list[int], list[int]]:
    return seqs(data_dir, symbol=HEALTHY), seqs(data_dir, symbol=TROUBLED)


def folder_in_place_of_manifest(data_dir: Path) -> Callable[[], None]:
    path = data_dir / "_manifests" / TAG / "00000099.json"
    path.mkdir()
    return path.rmdir


def manifest_of_a_newer_version(data_dir: Path) -> Callable[[], None]:
    path = data_dir / "_manifests" / TAG / "00000099.json"
    path.write_text(
        f'{{"number":99,"shard":"{TAG}","epoch":0,"writer":"w","files":[],"positions":{{}},"format":9}}'
    )
    return path.unlink


def only_manifest_is_unreadable(data_dir: Path) -> Callable[[], object]:
    *others, newest = sorted((data_dir / "_manifests" / TAG).iterdir())
    for path in others:
        path.unlink()
    copy = Path(shutil.copy(newest, data_dir / "copy"))
    newest.write_text("{}")
    return lambda: shutil.move(copy, newest)


def folder_in_place_of_spool(data_dir: Path) -> Callable[[], None]:
    path = data_dir / "_spool" / TAG / "00000001-00000001.spool"
    path.mkdir()
    return path.rmdir


@pytest.mark.parametrize(
    "trouble",
    [
        folder_in_place_of_manifest,
        manifest_of_a_newer_version,
        only_manifest_is_unreadable,
        folder_in_place_of_spool,
    ],
)
async def test_shard_that_cannot_be_recovered_waits_and_others_are_recorded(
    redis_server: RedisServer, start: Start, tmp_path: Path, trouble: Callable[[Path], Callable[[], object]]
) -> None:
    data_dir = tmp_path / "data"
    writer = await Writer(redis_server.url).open()
    for symbol in (HEALTHY, TROUBLED):
        await write(writer, symbol, 3)
    first = record(start, redis_server, data_dir).wait_ready()
    until(lambda: first.metric("tickbus_recorder_rows_total") == 6)
    assert first.stop() == 0
    mend = trouble(data_dir)
    recorder = record(start, redis_server, data_dir)
    for symbol in (HEALTHY, TROUBLED):
        await write(writer, symbol, 4)
    until(lambda: recorder.metric("tickbus_recorder_rows_total") == 4)
    status, text = recorder.get("/readyz")
    assert (status, text.startswith(f"cannot record shard {TAG}: ")) == (503, True)
    assert recorder.metric("tickbus_recorder_blocked_shards") == 1
    assert recorder.output.count(f"shard {TAG}: cannot record it") == 1
    until(lambda: f"cannot record shard {TAG}: " in tickbus("status", "--redis", redis_server.url).stdout)
    assert recorded(data_dir) == (list(range(1, 8)), [1, 2, 3])
    mend()
    until(lambda: recorder.metric("tickbus_recorder_rows_total") == 8)
    recorder.wait_ready()
    assert recorder.metric("tickbus_recorder_blocked") == 0
    assert recorder.stop() == 0
    assert recorded(data_dir) == (list(range(1, 8)), list(range(1, 8)))
    assert list(data_dir.glob("_spool/*/*")) == []
    writer.close()


async def test_shard_that_cannot_be_written_waits_and_others_are_recorded(
    redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """Its rows are of a day whose folder cannot be made."""
    data_dir = tmp_path / "data"
    writer = await Writer(redis_server.url).open()
    recorder = record(start, redis_server, data_dir).wait_ready()
    (data_dir / "trade").mkdir()
    obstacle = data_dir / "trade/date=2024-08-09"
    obstacle.write_text("not a folder")
    await write(writer, TROUBLED, 3, MIDNIGHT)
    until(lambda: recorder.metric("tickbus_recorder_blocked_shards") == 1)
    for _ in range(3):
        await write(writer, HEALTHY, 3)
        await write(writer, TROUBLED, 3, MIDNIGHT)
    until(lambda: recorder.metric("tickbus_recorder_rows_total") == 9)
    until(lambda: recorder.get("/readyz")[0] == 503)
    obstacle.unlink()
    until(lambda: recorder.metric("tickbus_recorder_rows_total") == 21)
    recorder.wait_ready()
    assert recorder.stop() == 0
    assert recorded(data_dir) == (list(range(1, 10)), list(range(1, 13)))
    writer.close()


async def test_pruned_file_of_a_quiet_shard_ends_nothing(
    redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    writer = await Writer(redis_server.url).open()
    for symbol in (HEALTHY, TROUBLED):
        await write(writer, symbol, 3)
    first = record(start, redis_server, data_dir).wait_ready()
    until(lambda: first.metric("tickbus_recorder_rows_total") == 6)
    first.kill()
    for path in (data_dir / "trade").rglob(f"s{TAG}-*.parquet"):
        path.unlink()
    recorder = record(start, redis_server, data_dir).wait_ready()
    until(lambda: recorder.metric("tickbus_recorder_missing_files_total") == 1)
    for symbol in (HEALTHY, TROUBLED):
        await write(writer, symbol, 2)
    until(lambda: recorder.metric("tickbus_recorder_rows_total") == 4)
    assert recorder.stop() == 0
    assert recorded(data_dir) == ([1, 2, 3, 4, 5], [4, 5])
    writer.close()


async def test_foreign_entries_are_skipped_and_counted(
    redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """With several fields, or none that we know, or an ID that no column holds: they are not ours."""
    data_dir = tmp_path / "data"
    writer = await Writer(redis_server.url).open()
    await write(writer, HEALTHY, 2)
    key = KEYS.stream(Stream("trade", "binance", HEALTHY))
    redis_server.client.xadd(key, {"note": "x", "t": "y"})
    redis_server.client.xadd(key, {"t": "x"}, id="18446744073709551615-7")
    recorder = record(start, redis_server, data_dir).wait_ready()
    until(lambda: recorder.metric("tickbus_consumer_foreign_total", what="entry") == 2)
    await write(writer, TROUBLED, 2)
    until(lambda: recorder.metric("tickbus_recorder_rows_total") == 4)
    assert recorder.stop() == 0
    assert len(rows_of(data_dir, "trade")) == 4
    writer.close()


def test_few_shards_are_told_one_by_one_and_many_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    blocked = BlockedShards(str)
    for shard in range(10):
        for _ in range(3):
            blocked.block(shard, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert len(caplog.messages) == 5
    assert caplog.messages[0].endswith("fix: free disk space, or mend the disk or the folder")
    assert str(blocked).startswith("cannot record shard 0 (and 9 more shards): [Errno 28] No space left")
    for shard in range(10):
        blocked.unblock(shard)
    assert (len(blocked), str(blocked)) == (0, "")
