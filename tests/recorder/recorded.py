"""Messages to record, and the rows in the files afterwards, read with pyarrow only."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.recorder.buffer import Rows
from services.recorder.row_ids import RowIds
from services.recorder.shard_store import ShardStore
from tickbus.protocol.codec import encode
from tickbus.protocol.messages import (
    Bar,
    Gap,
    GapKind,
    Message,
    Quote,
    Side,
    Signal,
    SignalState,
    StreamKind,
    Trade,
)
from tickbus.protocol.names import START, Stream, StreamId
from tickbus.units import MILLISECOND, iso_ns

NOON = iso_ns("2024-08-08T12:00:00Z")
MIDNIGHT = iso_ns("2024-08-09T00:00:00Z")
BTC = Stream("trade", "binance", "BTC-USDT")
ETH = Stream("trade", "binance", "ETH-USDT")
QUOTES = Stream("quote", "binance", "BTC-USDT")
BARS = Stream("bar", "binance", "BTC-USDT", "time:1m")
SIGNALS = Stream("signal", "signals", "BTC-USDT")
UNREPRESENTABLE_PRICE = "0.1234567890123456789"
"""One decimal place too many for its column."""


def id_of(seq: int, time: int = NOON) -> StreamId:
    return StreamId(time // MILLISECOND + seq, seq)


def trade(
    seq: int, symbol: str = "BTC-USDT", time: int = NOON, price: str = "60000.10", size: str = "0.5"
) -> Trade:
    return Trade(
        symbol,
        price,
        size,
        Side(seq % 3),
        str(1000 + seq),
        time + seq,
        time + seq + 5,
        "60000.00",
        None,
        flags=seq % 2,
    )


def quote(seq: int, time: int = NOON) -> Quote:
    return Quote("BTC-USDT", "59999.90", "1.25", None, None, time + seq, time + seq + 7)


def bar(start: int = NOON) -> Bar:
    return Bar(
        "time:1m",
        start,
        start + 60_000_000_000,
        "1.5",
        "2",
        "1",
        "1.75",
        "10",
        "15",
        "1.5",
        3,
        "4",
        "6",
        1,
        ("has_gap", "repaired"),
        "BTC-USDT",
    )


def signal(seq: int, time: int = NOON, **fields: Any) -> Signal:
    """An episode's start, its end, or an indicator. `fields`: others than these."""
    state = SignalState(seq % 3)
    alert = state is not SignalState.INDICATOR
    values: dict[str, Any] = {
        "name": "sigma.price",
        "value_text": f"-4.{seq:06d}1",
        "threshold_text": "4" if alert else "0",
        "window": "1000 trades",
        "message": f"BTC-USDT is {seq} sd below\nits mean — ü",
        "symbol": "BTC-USDT",
        "ts_event": time + seq,
        "state": state,
        "direction": seq % 3 - 1,
        "unit": "sd",
        "quality": (("has_gap", "partial"), (), ("partial",))[seq % 3],
        "episode": time + 1 if alert else 0,
        "cause": str(id_of(seq, time)),
        "params": seq,
        "details": (("mean", "60000.25"), ("small", "-0.000000000000000001"), ("mean", "0"))[: seq % 4],
    }
    return Signal(**values | fields)


def gap(stream: StreamKind = StreamKind.TRADE, time: int = NOON) -> Gap:
    return Gap(
        stream,
        "gateway",
        GapKind.SEQUENCE,
        time,
        time + 1000,
        "7",
        "9",
        3,
        repairable=True,
        symbol="BTC-USDT",
    )


def add(
    store: ShardStore, stream: Stream, seq: int, message: Message, *, epoch: int = 4, time: int = NOON
) -> None:
    """Buffer only: the test calls `store.spool()` itself."""
    store.add_many(rows(stream, [(id_of(seq, time), message)], epoch))


def rows(stream: Stream, entries: Sequence[tuple[StreamId, Message]], epoch: int = 4) -> Rows:
    ids, messages = zip(*entries, strict=True)
    ms, seqs = zip(*ids, strict=True)
    gaps = bytes(isinstance(message, Gap) for message in messages)
    return Rows(stream, RowIds(ms, seqs, [epoch] * len(ids)), gaps, [encode(message) for message in messages])


def open_store(data_dir: Path, **options: Any) -> ShardStore:
    return open_store_at(data_dir, **options)[0]


def open_store_at(data_dir: Path, **options: Any) -> tuple[ShardStore, int]:
    """Return the store, and the counter up to which BTC's trades are in its files."""
    store = ShardStore(data_dir, "07", **options)
    return store, store.recover().get(BTC.name, START).seq


def files_of(data_dir: Path, kind: str) -> list[Path]:
    return sorted((data_dir / kind).rglob("*.parquet"))


def rows_of(data_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Return the rows of all files, in file order; times as integers."""
    return [row for path in files_of(data_dir, kind) for row in plain_rows(pq.ParquetFile(path).read())]


def plain_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for number, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(number, field.name, table.column(number).cast(pa.int64()))
    yield from table.to_pylist()


def seqs(data_dir: Path, kind: str = "trade", symbol: str = "BTC-USDT") -> list[int]:
    return [row["seq"] for row in rows_of(data_dir, kind) if row["symbol"] == symbol]


def plain_files(data_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(data_dir)) for path in data_dir.rglob("*") if path.is_file())


D = Decimal
