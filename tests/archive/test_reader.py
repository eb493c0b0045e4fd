"""Recorded files come back as messages, in the order in which they came."""

import tracemalloc
from decimal import Decimal
from pathlib import Path

import pytest
from recorder.recorded import (
    BARS,
    BTC,
    ETH,
    MIDNIGHT,
    NOON,
    QUOTES,
    add,
    bar,
    gap,
    id_of,
    opened,
    quote,
    rows,
    trade,
)

from services.archive.reader import Recorded, read_recorded
from services.recorder.shard_store import ShardStore
from tickbus.protocol.messages import Gap, StreamKind, Trade
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import DAY, MILLISECOND


def normal(message: Trade) -> Trade:
    """As it comes back: without the zeros behind the last digit."""
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


def listed(data_dir: Path, *kinds: str, **choice: object) -> list[tuple[str, int]]:
    return [
        (stream.name, id.seq)
        for stream, id, _ in read_recorded(data_dir, kinds or ("trade", "quote"), **choice)
    ]  # type: ignore[arg-type]


def test_shards_commits_and_days_are_merged_by_ts_recv(tmp_path: Path) -> None:
    stores = {BTC: opened(tmp_path), ETH: ShardStore(tmp_path, "31")}
    stores[ETH].recover()
    expected: list[Recorded] = []
    for seq in range(1, 301):
        stream = BTC if seq % 3 else ETH
        message = trade(seq, stream.symbol, time=MIDNIGHT - 150 + seq)
        add(stores[stream], stream, seq, message, time=MIDNIGHT)
        expected.append((stream, id_of(seq, MIDNIGHT), normal(message)))
        if seq % 37 == 0:
            stores[stream].commit()
    for store in stores.values():
        store.commit()
    assert list(read_recorded(tmp_path)) == expected


def test_every_kind_comes_back(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, QUOTES, 1, quote(1))
    add(store, BARS, 1, bar())
    add(store, BARS, 2, gap(StreamKind.BAR))
    store.commit()
    found = {stream.name: message for stream, _, message in read_recorded(tmp_path, ("quote", "bar"))}
    assert found[BARS.name] == bar()
    back = found[QUOTES.name]
    assert (back.bid_text, back.bid_size_text, back.ask_text, back.ts_recv) == (
        "59999.9",
        "1.25",
        None,
        NOON + 8,
    )  # type: ignore[union-attr]
    assert [(stream, message) for stream, _, message in read_recorded(tmp_path, ("gap",))] == [
        (BARS, gap(StreamKind.BAR))
    ]


def test_a_gap_comes_before_the_tick_that_follows_it(tmp_path: Path) -> None:
    """Its ID is younger than that tick's ts_recv: it was stored after it had been received."""
    store = opened(tmp_path)
    late = 3 * MILLISECOND
    for seq in range(1, 9):
        time = NOON + seq * MILLISECOND // 4
        message: Trade | Gap = gap(time=time) if seq in (3, 6) else trade(seq, time=time)
        store.add_many(rows(BTC, [(StreamId((time + late) // MILLISECOND, seq), message)]))
        add(store, ETH, seq, trade(seq, "ETH-USDT", time=time + 3))
    store.commit()
    merged = listed(tmp_path, "trade", "gap")
    assert [seq for name, seq in merged if name == BTC.name] == list(range(1, 9))
    assert [seq for name, seq in merged if name == ETH.name] == list(range(1, 9))
    assert merged.index((BTC.name, 3)) == merged.index((BTC.name, 4)) - 1


@pytest.fixture
def two_days(tmp_path: Path) -> Path:
    store = opened(tmp_path)
    other = Stream("trade", "alltick", "BTC-USDT")
    for seq, time in enumerate((NOON, MIDNIGHT - 10, MIDNIGHT, MIDNIGHT + DAY), start=1):
        add(store, BTC, seq, trade(0, time=time), time=time)
        add(store, ETH, seq, trade(0, "ETH-USDT", time=time), time=time)
        add(store, other, seq, trade(0, time=time + 1), time=time)
        store.commit()
    return tmp_path


def test_symbols_feeds_and_times_are_chosen(two_days: Path) -> None:
    assert [seq for _, seq in listed(two_days, symbols=["BTC-USDT"], feeds=["binance"])] == [1, 2, 3, 4]
    assert set(listed(two_days, symbols=["ETH-USDT"])) == {(ETH.name, seq) for seq in (1, 2, 3, 4)}
    assert listed(two_days, feeds=["alltick"], start=MIDNIGHT - 9, end=MIDNIGHT + 2) == [
        ("trade:alltick:BTC-USDT", 2),
        ("trade:alltick:BTC-USDT", 3),
    ]
    assert listed(two_days, feeds=["binance"], symbols=["BTC-USDT"], start=MIDNIGHT, end=MIDNIGHT + DAY) == [
        (BTC.name, 3)
    ]
    assert listed(two_days, symbols=["DOGE-USDT"]) == []
    assert listed(two_days, symbols=[]) == []


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown kind 'trades'; there are trade, quote, bar, gap"):
        read_recorded(tmp_path, ("trades",))
    assert list(read_recorded(tmp_path)) == []


def test_memory_is_bounded_by_commits_not_by_the_recording(tmp_path: Path) -> None:
    store = opened(tmp_path)

    def peak(until: int) -> int:
        tracemalloc.start()
        assert sum(1 for _ in read_recorded(tmp_path, end=until)) > 0
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    for seq in range(1, 10_001):
        add(store, BTC, seq, trade(seq))
        if seq % 500 == 0:
            store.commit()
    one = peak(NOON + 500)
    assert peak(NOON + 20_000) < 2 * one


def test_digits_are_exact(tmp_path: Path) -> None:
    store = opened(tmp_path)
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
