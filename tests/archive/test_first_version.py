"""Files that version 0.1.0 recorded, of a simulated market, are read by this version: every row, every value.

`first_version/` was written once, by the recorder of 0.1.0, and must never be written again: a gateway that
was restarted, three trades dropped, bars by time and by count.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from services.archive.reader import read_recorded, recorded_feeds
from tickbus.protocol.messages import Bar, Gap, GapKind, Message, Quote, StreamKind, Trade
from tickbus.protocol.names import Stream, StreamId

FIRST_VERSION = Path(__file__).parent / "first_version"
ROWS = {"trade": 185, "quote": 189, "bar": 27, "gap": 3}


def plain_rows(kind: str) -> list[dict[str, Any]]:
    """Return the rows as pyarrow alone reads them, times as ns."""
    rows: list[dict[str, Any]] = []
    for path in (FIRST_VERSION / kind).rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        for index, field in enumerate(table.schema):
            if str(field.type).startswith("timestamp"):
                table = table.set_column(index, field.name, table[field.name].cast("int64"))
        rows += table.to_pylist()
    return rows


def row(stream: Stream, id: StreamId, message: Message) -> dict[str, Any]:
    """Return the row that a message was recorded as, without the writer's epoch."""
    values: dict[str, Any] = {
        "feed": stream.feed,
        "symbol": stream.symbol,
        "id_ms": id.ms,
        "seq": id.seq,
        "flags": getattr(message, "flags", 0),
    }
    match message:
        case Trade():
            names = ["price", "size", "bid", "ask", "trade_id", "ts_event", "ts_recv"]
            values["side"] = message.side.name.lower()
        case Quote():
            names = ["bid", "bid_size", "ask", "ask_size", "ts_event", "ts_recv"]
        case Bar():
            names = [
                "spec", "start", "end", "open", "high", "low", "close", "volume", "value", "vwap", "trades",
                "buy_volume", "sell_volume", "revision",
            ]  # fmt: skip
            values["quality"] = list(message.quality)
        case Gap():
            names = ["source", "from_ts", "to_ts", "from_id", "to_id", "count", "repairable", "repaired"]
            values |= {
                "stream": message.stream.name.lower(),
                "kind": message.kind.name.lower(),
                "spec": stream.spec or None,
            }
        case _:
            raise AssertionError(f"nothing records {message}")
    return values | {name: getattr(message, name) for name in names}


@pytest.mark.parametrize("kind", ROWS)
def test_every_row_is_read_with_its_values(kind: str) -> None:
    recorded = [row(*entry) for entry in read_recorded(FIRST_VERSION, [kind])]
    expected = [
        {name: value for name, value in found.items() if name != "epoch"} for found in plain_rows(kind)
    ]

    def in_stream_order(found: dict[str, Any]) -> tuple[str, str, int]:
        return (found.get("stream", ""), found.get("spec") or "", found["seq"])

    assert len(recorded) == ROWS[kind]
    assert sorted(recorded, key=in_stream_order) == sorted(expected, key=in_stream_order)


def test_streams_are_whole_and_in_order() -> None:
    entries = list(read_recorded(FIRST_VERSION, list(ROWS)))
    assert recorded_feeds(FIRST_VERSION) == {"binance"}
    ids: dict[Stream, list[StreamId]] = {}
    for stream, id, _ in entries:
        ids.setdefault(stream, []).append(id)
    assert {stream.name for stream in ids} == {
        "trade:binance:BTC-USDT", "quote:binance:BTC-USDT",
        "bar:time:1s:binance:BTC-USDT", "bar:tick:10:binance:BTC-USDT",
    }  # fmt: skip
    for stream, found in ids.items():
        assert [id.seq for id in found] == list(range(1, len(found) + 1)), stream
        assert all(earlier <= later for earlier, later in pairwise(found)), stream


def test_gaps_precede_the_tick_that_follows_them() -> None:
    trades = [
        message
        for stream, _, message in read_recorded(FIRST_VERSION, ["trade", "gap"])
        if stream.kind == "trade"
    ]
    gaps = [(index, message) for index, message in enumerate(trades) if isinstance(message, Gap)]
    assert [(gap.stream, gap.kind, gap.from_id, gap.to_id, gap.count) for _, gap in gaps] == [
        (StreamKind.TRADE, GapKind.DISCONNECT, "135055923", "135055958", 36),
        (StreamKind.TRADE, GapKind.SEQUENCE, "135055961", "135055963", 3),
    ]
    for index, gap in gaps:
        before, after = trades[index - 1], trades[index + 1]
        assert isinstance(before, Trade)
        assert isinstance(after, Trade)
        assert (before.trade_id, after.trade_id) == (
            str(int(gap.from_id or 0) - 1),
            str(int(gap.to_id or 0) + 1),
        )
