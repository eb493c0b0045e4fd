"""Recorded files are read back as messages, in the order in which they arrived."""

import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from recorder.recorded import (
    BARS,
    BTC,
    ETH,
    MIDNIGHT,
    NOON,
    QUOTES,
    SIGNALS,
    add,
    bar,
    files_of,
    gap,
    id_of,
    open_store,
    quote,
    rows,
    signal,
    trade,
)

from services.archive.reader import read_recorded
from services.archive.waiting_gaps import RecordedMessage
from services.recorder.shard_store import ShardStore
from tickbus.protocol.messages import Gap, Quote, Signal, StreamKind, Trade
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import DAY, MILLISECOND, SECOND


def normalized(message: Trade) -> Trade:
    """Return the message as read back: without trailing zeros."""
    texts = [
        None if text is None else text.rstrip("0").rstrip(".")
        for text in (message.price_text, message.bid_text)
    ]
    return Trade(
        message.symbol,
        texts[0] or "",
        message.size_text,
        message.side,
        message.trade_id,
        message.ts_event,
        message.ts_recv,
        texts[1],
        None,
        message.flags,
    )


def streams_and_counters(data_dir: Path, *kinds: str, **selection: Any) -> list[tuple[str, int]]:
    return [
        (stream.name, id.seq)
        for stream, id, _ in read_recorded(data_dir, kinds or ("trade", "quote"), **selection)
    ]


def test_shards_commits_and_days_are_merged_by_ts_recv(tmp_path: Path) -> None:
    stores = {BTC: open_store(tmp_path), ETH: ShardStore(tmp_path, "31")}
    stores[ETH].recover()
    expected: list[RecordedMessage] = []
    for seq in range(1, 301):
        stream = BTC if seq % 3 else ETH
        message = trade(seq, stream.symbol, time=MIDNIGHT - 150 + seq)
        add(stores[stream], stream, seq, message, time=MIDNIGHT)
        expected.append((stream, id_of(seq, MIDNIGHT), normalized(message)))
        if seq % 37 == 0:
            stores[stream].commit()
    for store in stores.values():
        store.commit()
    assert list(read_recorded(tmp_path)) == expected


def test_every_kind_round_trips(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    add(store, QUOTES, 1, quote(1))
    add(store, BARS, 1, bar())
    add(store, BARS, 2, gap(StreamKind.BAR))
    store.commit()
    found = {stream.name: message for stream, _, message in read_recorded(tmp_path, ("quote", "bar"))}
    assert found[BARS.name] == bar()
    back = found[QUOTES.name]
    assert isinstance(back, Quote)
    assert (back.bid_text, back.bid_size_text, back.ask_text, back.ts_recv) == (
        "59999.9",
        "1.25",
        None,
        NOON + 8,
    )
    assert [(stream, message) for stream, _, message in read_recorded(tmp_path, ("gap",))] == [
        (BARS, gap(StreamKind.BAR))
    ]


def test_signals_are_read_back_as_they_were_said(tmp_path: Path) -> None:
    """Across midnight, with a Gap, and one without a ts_event: it belongs to the time of its ID."""
    store = open_store(tmp_path)
    start = MIDNIGHT - 10 * SECOND
    said: dict[int, Signal | Gap] = {seq: signal(seq, start + seq * SECOND) for seq in range(1, 21)}
    said[4] = signal(4, start, ts_event=0)
    said[15] = signal(15, start, ts_event=0)
    said[16] = gap(StreamKind.SIGNAL, start + 16 * SECOND)
    for seq, message in said.items():
        add(store, SIGNALS, seq, message, time=start + seq * SECOND)
        add(store, BTC, seq, trade(seq, time=start + seq * SECOND), time=start + seq * SECOND)
        if seq % 8 == 0:
            store.commit()
    store.commit()
    entries = [(SIGNALS, id_of(seq, start + seq * SECOND), message) for seq, message in said.items()]
    assert list(read_recorded(tmp_path, ("signal", "gap"))) == entries
    signals = [entry for entry in entries if isinstance(entry[2], Signal)]
    assert list(read_recorded(tmp_path, ("signal",), ["BTC-USDT"], ["signals"])) == signals
    assert list(read_recorded(tmp_path, ("signal",), ["ETH-USDT"])) == []
    since = start + 14 * SECOND
    assert list(read_recorded(tmp_path, ("signal",), start=since)) == signals[13:]
    assert list(read_recorded(tmp_path, ("signal",), end=since)) == signals[:13]
    days = {path.parent.name for path in files_of(tmp_path, "signal")}
    assert days == {"date=2024-08-08", "date=2024-08-09"}


def test_gap_comes_right_before_next_tick(tmp_path: Path) -> None:
    """Its ID is later than that tick's ts_recv: the tick was received before the Gap was stored."""
    store = open_store(tmp_path)
    late = 3 * MILLISECOND
    for seq in range(1, 9):
        time = NOON + seq * MILLISECOND // 4
        message: Trade | Gap = gap(time=time) if seq in (3, 6) else trade(seq, time=time)
        store.add_many(rows(BTC, [(StreamId((time + late) // MILLISECOND, seq), message)]))
        add(store, ETH, seq, trade(seq, "ETH-USDT", time=time + 3))
    store.commit()
    merged = streams_and_counters(tmp_path, "trade", "gap")
    assert [seq for name, seq in merged if name == BTC.name] == list(range(1, 9))
    assert [seq for name, seq in merged if name == ETH.name] == list(range(1, 9))
    assert merged.index((BTC.name, 3)) == merged.index((BTC.name, 4)) - 1


@pytest.fixture
def two_days(tmp_path: Path) -> Path:
    store = open_store(tmp_path)
    other = Stream("trade", "alltick", "BTC-USDT")
    for seq, time in enumerate((NOON, MIDNIGHT - 10, MIDNIGHT, MIDNIGHT + DAY), start=1):
        add(store, BTC, seq, trade(0, time=time), time=time)
        add(store, ETH, seq, trade(0, "ETH-USDT", time=time), time=time)
        add(store, other, seq, trade(0, time=time + 1), time=time)
        store.commit()
    return tmp_path


def test_symbols_feeds_and_times_are_selected(two_days: Path) -> None:
    assert [seq for _, seq in streams_and_counters(two_days, symbols=["BTC-USDT"], feeds=["binance"])] == [
        1,
        2,
        3,
        4,
    ]
    assert set(streams_and_counters(two_days, symbols=["ETH-USDT"])) == {
        (ETH.name, seq) for seq in (1, 2, 3, 4)
    }
    assert streams_and_counters(two_days, feeds=["alltick"], start=MIDNIGHT - 9, end=MIDNIGHT + 2) == [
        ("trade:alltick:BTC-USDT", 2),
        ("trade:alltick:BTC-USDT", 3),
    ]
    assert streams_and_counters(
        two_days, feeds=["binance"], symbols=["BTC-USDT"], start=MIDNIGHT, end=MIDNIGHT + DAY
    ) == [(BTC.name, 3)]
    assert streams_and_counters(two_days, symbols=["DOGE-USDT"]) == []
    assert streams_and_counters(two_days, symbols=[]) == []


def test_unknown_kind_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="unknown kind 'trades': expected one of trade, quote, bar, signal, gap"
    ):
        read_recorded(tmp_path, ("trades",))
    assert list(read_recorded(tmp_path)) == []


def test_memory_is_bounded_by_commits_not_recording(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    def peak(until: int) -> int:
        tracemalloc.start()
        assert sum(1 for _ in read_recorded(tmp_path, end=until)) > 0
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak_bytes

    for seq in range(1, 10_001):
        add(store, BTC, seq, trade(seq))
        if seq % 500 == 0:
            store.commit()
    one_commit = peak(NOON + 500)
    assert peak(NOON + 20_000) < 2 * one_commit


def test_digits_are_exact(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    texts = ["0.000000000000000001", "99999999999999999999.999999999999999999", "100", "-0.50", "201.187000"]
    for seq, text in enumerate(texts, start=1):
        add(store, BTC, seq, trade(seq, price=text))
    store.commit()
    back = [message for _, _, message in read_recorded(tmp_path) if isinstance(message, Trade)]
    assert [message.price for message in back] == [Decimal(text) for text in texts]
    assert [message.price_text for message in back] == [
        "0.000000000000000001",
        "99999999999999999999.999999999999999999",
        "100",
        "-0.5",
        "201.187",
    ]
