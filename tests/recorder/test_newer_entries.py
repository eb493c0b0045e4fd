"""Entries of a newer writer, and damaged ones, are quarantined with their bytes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from recorder.recorded import rows_of
from support.processes import Process
from support.redis_server import RedisServer
from support.waiting import until
from support.writing import Writer, trade

from tickbus.protocol.codec import encode
from tickbus.protocol.messages import Quote
from tickbus.writer.entry import Entry


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
async def test_unknown_types_are_set_aside(
    redis_server: RedisServer, start: Callable[..., Process], tmp_path: Path, killed: bool
) -> None:
    """Whether they were read from Redis or, after a kill and a flush, come from the spool."""
    data_dir = tmp_path / "data"
    command = (
        "recorder",
        "--redis",
        redis_server.url,
        "--data-dir",
        str(data_dir),
        "--flush-interval",
        "1h",
        "--shards",
        "8",
    )
    writer = await Writer(redis_server.url).open()
    stream = writer.stream()
    a_trade, a_quote = encode(trade(2)), encode(Quote("A", "1", "1", "2", "1", 1, 1))
    entries = [writer.entry(stream, trade(1))]
    # a depth message with the shape of a trade, a quote in a trade stream, a trade that is none
    for field, payload in ((b"d", a_trade), (b"q", a_quote), (b"t", b"\xc1")):
        entry = writer.entry(stream, trade(0))
        entries.append(Entry(entry.stream, entry.ms, entry.seq, field, payload))
    entries.append(writer.entry(stream, trade(3)))
    transaction = writer.transaction(entries)
    await writer.publisher.commit(transaction)
    recorder = start(*command)
    until(lambda: recorder.metric("tickbus_consumer_read_total") == 5, what="the recorder has read them")
    if killed:
        recorder.kill()
        redis_server.client.flushall()
        recorder = start(*command)
        recorder.wait_for("metrics on")
        writer.close()
        writer = await Writer(redis_server.url).open()  # whose history is another one
        until(lambda: recorder.get("/readyz")[0] == 200)
    assert recorder.stop() == 0

    assert [(row["seq"], int(row["price"])) for row in rows_of(data_dir, "trade")] == [(1, 1), (5, 3)]
    assert not list((data_dir / "quote").rglob("*.parquet"))
    aside = [
        json.loads(line)
        for path in (data_dir / "_aside").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert all(line["message"] is None for line in aside)
    assert [(line["id"].partition("-")[2], line["field"], line["payload"]) for line in aside] == [
        ("2", "d", a_trade.hex()), ("3", "q", a_quote.hex()), ("4", "t", "c1"),
    ]  # fmt: skip
    writer.close()
