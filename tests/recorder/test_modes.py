"""Everything that the recorder and the gateway's spill write has the stated modes."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway.spill.spilled import entries, opened
from support.processes import Process
from support.redis_server import RedisServer
from support.waiting import until
from support.writing import KEYS, Writer

from tickbus.durable import set_umask
from tickbus.protocol.codec import encode
from tickbus.writer.entry import Entry


def modes(folder: Path) -> set[tuple[bool, str]]:
    """Return (is it a folder, its mode) of everything in there, and of the folder."""
    return {(path.is_dir(), f"{path.stat().st_mode & 0o777:o}") for path in (folder, *folder.rglob("*"))}


async def write(url: str) -> None:
    """A trade, and an entry that is set aside."""
    writer = await Writer(url).open()
    _, second = await writer.write(1, 2)
    entry = writer.entry(writer.stream(), second)
    strange = Entry(entry.stream, entry.ms, entry.seq, b"x", encode(second))
    await writer.publisher.commit(writer.transaction([strange]))
    writer.close()


@pytest.mark.parametrize(
    ("options", "file", "folder"), [((), "640", "750"), (("--umask", "007"), "660", "770")]
)
def test_recorded_files_spools_and_folders(
    redis_server: RedisServer,
    start: Callable[..., Process],
    tmp_path: Path,
    options: tuple[str, ...],
    file: str,
    folder: str,
) -> None:
    data_dir = tmp_path / "data"
    asyncio.run(write(redis_server.url))
    before = os.umask(0o077 if options else 0)
    try:
        recorder = start(
            "recorder", "--redis", redis_server.url, "--data-dir", str(data_dir), "--shards",
            str(KEYS.shards), "--flush-interval", "1h", *options,
        )  # fmt: skip
    finally:
        os.umask(before)
    until(lambda: recorder.metric("tickbus_consumer_read_total") == 3)
    until(lambda: any(data_dir.glob("_spool/*/*.spool")))
    assert modes(data_dir) == {(False, file), (True, folder)}
    assert recorder.stop() == 0
    assert any(data_dir.rglob("*.parquet")) and any(data_dir.rglob("*.jsonl"))
    assert modes(data_dir) == {(False, file), (True, folder)}


def test_spill_segments_locks_and_folders(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        set_umask("027")
        spill = opened(tmp_path / "spill")
        assert spill.append(entries(1, 100))
    finally:
        os.umask(before)
    assert len(list((tmp_path / "spill").rglob("*.segment"))) == 1
    assert modes(tmp_path / "spill") == {(False, "640"), (True, "750")}
    spill.close()


def test_gateway_makes_its_folder_with_the_stated_mode(
    redis_server: RedisServer, start: Callable[..., Process], tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        gateway = start(
            "gateway", "--redis", redis_server.url, "--feed", "binance", "--url", "ws://127.0.0.1:1",
            "--symbols", "BTC-USDT", "--spill-dir", str(tmp_path / "spill"), "--umask", "077",
        )  # fmt: skip
    finally:
        os.umask(before)
    until((tmp_path / "spill").is_dir)
    gateway.wait_for("epoch 1")  # the folder was tried before, with a file that comes and goes
    assert modes(tmp_path / "spill") <= {(False, "600"), (True, "700")}
    assert gateway.stop() == 0
