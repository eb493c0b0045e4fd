"""Rows of many days, values of any kind: a commit opens a bounded number of files, and none is an error."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder.recorded import (
    BARS,
    BTC,
    ETH,
    NOON,
    SIGNALS,
    add,
    bar,
    files_of,
    gap,
    id_of,
    open_store,
    rows,
    rows_of,
    seqs,
    signal,
    trade,
)
from support.processes import Process
from support.redis_server import RedisServer
from support.waiting import until
from support.writing import KEYS, Writer

from services.archive.reader import read_recorded
from services.recorder.partition import MAX_DAYS
from services.recorder.shard_store import ShardStore
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Message, Trade
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import DAY


def commit_all(store: ShardStore) -> list[int]:
    """Return the number of trade files of each commit."""
    files = []
    while (summary := store.commit()) is not None:
        files.append(summary.files.get("trade", 0))
        assert summary.is_cut == bool(store.rows)
    return files


def test_commit_writes_a_bounded_number_of_days(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(tmp_path)
    for seq in range(1, 41):
        add(
            store, BTC, seq, gap(time=NOON + seq * DAY) if seq % 8 == 0 else trade(seq, time=NOON + seq * DAY)
        )
        add(store, ETH, seq, trade(seq, "ETH-USDT"))
    assert max(commit_all(store)) == MAX_DAYS
    assert seqs(tmp_path) == [seq for seq in range(1, 41) if seq % 8]
    assert seqs(tmp_path, "gap") == [seq for seq in range(1, 41) if seq % 8 == 0]
    assert sorted(seqs(tmp_path, symbol="ETH-USDT")) == list(range(1, 41))
    assert [
        message for message in caplog.messages if "rows of more than 16 days wait at once" in message
    ] == (caplog.messages)
    assert len(caplog.messages) == 1


def test_rows_that_a_commit_leaves_stay_spooled(tmp_path: Path) -> None:
    """The recorder is killed between the two commits, and Redis is empty."""
    store = open_store(tmp_path)
    for seq in range(1, 41):
        add(store, BTC, seq, trade(seq, time=NOON + seq * DAY))
    store.spool()
    first = store.commit()
    assert first is not None and first.is_cut
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {BTC.name: id_of(40)}
    assert again.rows == 40 - MAX_DAYS
    second = again.commit()
    assert second is not None and second.is_cut
    third = ShardStore(tmp_path, "07")
    third.recover()
    commit_all(third)
    assert seqs(tmp_path) == list(range(1, 41))
    third.close()
    assert list(tmp_path.glob("_spool/*/*")) == []


def test_large_reads_are_cut_within_a_batch(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    entries = [(id_of(seq), trade(seq, time=NOON + seq // 1000 * DAY)) for seq in range(1, 30_000)]
    store.add_many(rows(BTC, entries))
    assert commit_all(store) == [16, 14]
    assert seqs(tmp_path) == list(range(1, 30_000))


def test_times_beyond_the_calendar_open_no_day(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for seq in range(1, 41):
        add(store, BTC, seq, trade(seq, time=(1 << 63) + seq * DAY))
        add(store, ETH, seq, trade(seq, "ETH-USDT"))
    summary = store.commit()
    assert summary is not None
    assert (summary.is_cut, summary.rows, summary.quarantined) == (False, {"trade": 40}, {"integer": 40})
    assert len(files_of(tmp_path, "trade")) == 1


async def test_shard_with_garbage_times_does_not_delay_the_others(
    redis_server: RedisServer, start: Callable[..., Process], tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    writer = await Writer(redis_server.url).open()
    garbage, healthy = (Stream("trade", "binance", symbol) for symbol in "BA")
    entries = [writer.entry(garbage, trade(number, "B", time=number * DAY)) for number in range(3000)]
    entries += [writer.entry(healthy, trade(number, "A")) for number in range(100)]
    await writer.publisher.commit(writer.transaction(entries))
    recorder = start(
        "recorder", "--redis", redis_server.url, "--data-dir", str(data_dir), "--shards", str(KEYS.shards),
        "--flush-interval", "50ms",
    )  # fmt: skip
    until(lambda: seqs(data_dir, symbol="A") == list(range(1, 101)))
    assert len(seqs(data_dir, symbol="B")) < 3000
    until(lambda: recorder.metric("tickbus_recorder_split_commits_total") > 0)
    assert recorder.stop() == 0
    assert seqs(data_dir, symbol="B") == list(range(1, 1 + len(seqs(data_dir, symbol="B"))))
    writer.close()


@pytest.mark.parametrize(
    "values",
    [
        {"volume_text": "100000000000000000000"},
        {"value_text": "9" * 21 + ".5", "vwap_text": "1" + "0" * 64},
        {"buy_volume_text": "0." + "0" * 18 + "1"},
        {"trades": 1 << 63},
        {"revision": 1 << 31},
        {"start": 1 << 63},
    ],
)
def test_bar_beyond_its_columns_is_set_aside_once(
    tmp_path: Path, values: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    beyond = msgspec.structs.replace(bar(), **values)
    add(store, BARS, 1, bar())
    add(store, BARS, 2, beyond)
    add(store, BARS, 3, bar(NOON + DAY))
    (summary,) = [summary for summary in (store.commit(), store.commit()) if summary is not None]
    assert (summary.rows, sum(summary.quarantined.values())) == ({"bar": 2}, 1)
    again = ShardStore(tmp_path, "07")
    assert again.recover()[BARS.name] == id_of(3)
    add(again, BARS, 2, beyond)
    assert again.commit() is None
    assert [row["seq"] for row in rows_of(tmp_path, "bar")] == [1, 3]
    (path,) = (tmp_path / "_aside").glob("*.jsonl")
    (line,) = path.read_text().splitlines()
    assert (json.loads(line)["stream"], json.loads(line)["id"]) == (BARS.name, str(id_of(2)))
    assert sum("quarantined 1 messages" in message for message in caplog.messages) == 1


@pytest.mark.parametrize(
    ("values", "reason", "text"),
    [
        ({"value_text": "NaN"}, "decimal", "invalid decimal 'NaN': expected plain digits"),
        ({"value_text": ""}, "decimal", "invalid decimal '': expected plain digits"),
        ({"value_text": "1E-7"}, "decimal", "invalid decimal '1E-7': expected plain digits"),
        ({"threshold_text": "-Infinity"}, "decimal", "invalid decimal '-Infinity'"),
        ({"threshold_text": "1" + "0" * 20}, "decimal", "does not fit decimal128(38, 18)"),
        (
            {"details": (("a", "1"), ("b", "0." + "0" * 18 + "1"))},
            "decimal",
            "does not fit decimal128(38, 18)",
        ),
        ({"details": (("a", ""),)}, "decimal", "invalid decimal ''"),
        ({"direction": 2}, "integer", "invalid direction 2: expected 1, -1 or 0"),
        ({"direction": -(1 << 63)}, "integer", "invalid direction -9223372036854775808"),
        ({"direction": (1 << 64) - 1}, "integer", "invalid direction 18446744073709551615"),
        (
            {"quality": ("has_gap", "Has gap!\n")},
            "text",
            "invalid quality 'Has gap!\\n': expected words like",
        ),
        ({"quality": ("",)}, "text", "invalid quality ''"),
        ({"quality": ("x" * 33,)}, "text", "invalid quality 'xxx"),
        ({"ts_event": 1 << 63}, "integer", "ts_event 9223372036854775808 does not fit its 64-bit column"),
        ({"episode": 1 << 63}, "integer", "episode 9223372036854775808 does not fit"),
        ({"params": 1 << 63}, "integer", "params 9223372036854775808 does not fit"),
    ],
)
def test_signal_beyond_its_columns_is_set_aside_once(
    tmp_path: Path, values: dict[str, Any], reason: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    beyond = signal(2, **values)
    said = {seq: beyond if seq == 2 else signal(seq) for seq in range(1, 6)}
    store.add_many(rows(SIGNALS, [(id_of(seq), message) for seq, message in said.items()]))
    add(store, BTC, 1, trade(1))
    summary = store.commit()
    assert summary is not None
    assert (summary.rows, summary.quarantined) == ({"signal": 4, "trade": 1}, {reason: 1})
    assert [message for _, _, message in read_recorded(tmp_path, ("signal",))] == [
        said[seq] for seq in (1, 3, 4, 5)
    ]
    (path,) = (tmp_path / "_aside").glob("*.jsonl")
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["stream"], line["id"], line["field"]) == (SIGNALS.name, str(id_of(2)), "s")
    assert decode(b"s", bytes.fromhex(line["payload"])) == beyond
    (logged,) = caplog.messages
    assert text in line["reason"] and text in logged and "\n" not in logged


def test_quality_of_a_newer_version_is_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    add(store, SIGNALS, 1, signal(1, quality=("partial", "clock_ahead2")))
    store.commit()
    assert [row["quality"] for row in rows_of(tmp_path, "signal")] == [["partial", "clock_ahead2"]]


def test_signal_without_a_time_at_an_id_beyond_the_calendar(tmp_path: Path) -> None:
    """Its folder is that of the last day there is."""
    store = open_store(tmp_path)
    id = StreamId((1 << 63) - 1, 1)
    store.add_many(rows(SIGNALS, [(id, signal(1, ts_event=0))]))
    store.commit()
    assert [path.parent.name for path in files_of(tmp_path, "signal")] == ["date=2262-04-11"]
    assert [entry[1] for entry in read_recorded(tmp_path, ("signal",))] == [id]


NUMBERS = st.one_of(
    st.sampled_from(
        ["0", "-0", "1", "1e64", "-1", "0.000000000000000001", "99999999999999999999", "nan", "", "."]
    ),
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda number: format(number, "f")),
    st.text(max_size=5),
)
INTEGERS = st.one_of(st.integers(-(1 << 63), (1 << 64) - 1), st.integers(NOON, NOON + 40 * DAY))
TEXTS = st.one_of(st.none(), st.text(max_size=5))
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        lambda price, size, id, event, recv, bid, flags: Trade(
            "BTC-USDT", price, size, trade(1).side, id, event, recv, bid, None, flags
        ),
        NUMBERS, NUMBERS, TEXTS, INTEGERS, INTEGERS, st.one_of(st.none(), NUMBERS), INTEGERS,
    ),
    st.builds(
        lambda begin, end, text, count: msgspec.structs.replace(
            gap(), from_ts=begin, to_ts=end, from_id=text, count=count
        ),
        INTEGERS, INTEGERS, TEXTS, st.one_of(st.none(), INTEGERS),
    ),
)  # fmt: skip


SAID: st.SearchStrategy[Message] = st.builds(
    lambda value, event, direction, words, episode, params, details: signal(
        1, value_text=value, ts_event=event, direction=direction, quality=words, episode=episode,
        params=params, details=details,
    ),
    NUMBERS, st.one_of(st.just(0), INTEGERS), st.one_of(st.integers(-1, 1), INTEGERS),
    st.lists(st.one_of(st.sampled_from(["has_gap", "partial"]), st.text(max_size=3)), max_size=2).map(tuple),
    INTEGERS, INTEGERS, st.lists(st.tuples(st.text(max_size=3), NUMBERS), max_size=2).map(tuple),
)  # fmt: skip


@pytest.mark.parametrize(("stream", "some"), [(BTC, MESSAGES), (SIGNALS, SAID)], ids=["trades", "signals"])
@settings(max_examples=60)
@given(data=st.data())
def test_any_message_is_recorded_or_set_aside_once(
    tmp_path_factory: pytest.TempPathFactory,
    stream: Stream,
    some: st.SearchStrategy[Message],
    data: st.DataObject,
) -> None:
    messages = data.draw(st.lists(some, min_size=1, max_size=40))
    data_dir = tmp_path_factory.mktemp("any")
    store = open_store(data_dir)
    store.add_many(rows(stream, [(id_of(seq), message) for seq, message in enumerate(messages, 1)]))
    commit_all(store)
    aside = [
        int(json.loads(line)["id"].split("-")[1])
        for path in (data_dir / "_aside").glob("*.jsonl")
        for line in path.read_bytes().splitlines()
    ]
    found = Counter([*seqs(data_dir, stream.kind), *seqs(data_dir, "gap"), *aside])
    assert found == Counter(range(1, len(messages) + 1))
