"""Pages of recorded files hold what all of them hold, in order, each row once."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorder.recorded import BARS, BTC, MIDNIGHT, NOON, add, bar, files_of, gap, id_of, open_store, trade

import services.archive.pages as pages
from services.archive.pages import RecordedPages
from services.archive.reader import read_recorded
from tickbus.protocol.messages import Bar
from tickbus.protocol.names import START, Stream, StreamId
from tickbus.units import SECOND

MINUTE = 60 * SECOND
END = (1 << 63) - 1


def all_entries(recorded: RecordedPages, stream: Stream, limit: int, after: StreamId = START) -> list[Any]:
    found: list[Any] = []
    while True:
        page = recorded.entries(stream, after, None, limit)
        assert len(page.rows) <= limit
        found += [json.loads(row.json) for row in page.rows]
        if page.next is None:
            return found
        assert StreamId.parse(page.next) > after
        after = StreamId.parse(page.next)


def all_bars(recorded: RecordedPages, begin: int, end: int, limit: int) -> list[Any]:
    found: list[Any] = []
    while True:
        page = recorded.bars(BARS, begin, end, limit)
        found += [json.loads(row.json) for row in page.rows]
        if page.next is None:
            return found
        assert begin < int(page.next) < end
        begin = int(page.next)


def record_trades(data_dir: Path, count: int, commit_every: int) -> None:
    """Record trades of two days and two symbols, with a Gap now and then."""
    store = open_store(data_dir)
    other = Stream("trade", "other", "BTC-USDT")
    for seq in range(1, count + 1):
        if seq % 50 == 0:
            add(store, BTC, seq, gap(time=MIDNIGHT + seq), time=MIDNIGHT)
        else:
            add(store, BTC, seq, trade(seq, time=MIDNIGHT - count // 2 + seq), time=MIDNIGHT)
        add(store, other, seq, trade(seq, time=MIDNIGHT + seq), time=MIDNIGHT)
        if seq % commit_every == 0:
            store.commit()
    store.commit()


@pytest.mark.parametrize("limit", [1, 7, 1_000])
@pytest.mark.parametrize("seconds", [2.0, -1.0])
def test_entries_are_those_of_the_stream(
    tmp_path: Path, limit: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAGE_SECONDS", seconds)  # -1: every page ends as early as it may
    record_trades(tmp_path, 120, 17)
    found = all_entries(RecordedPages(tmp_path), BTC, limit)
    assert [row["cursor"] for row in found] == [str(id_of(seq, MIDNIGHT)) for seq in range(1, 121)]
    assert [row["type"] for row in found[48:51]] == ["trade", "gap", "trade"]
    assert found[6]["trade_id"] == "1007"


def test_entries_between_two_ids(tmp_path: Path) -> None:
    record_trades(tmp_path, 60, 9)
    recorded = RecordedPages(tmp_path)
    page = recorded.entries(BTC, id_of(10, MIDNIGHT), id_of(14, MIDNIGHT), 10)
    assert [row.id for row in page.rows] == [str(id_of(seq, MIDNIGHT)) for seq in (11, 12, 13)]
    assert page.next is None
    assert recorded.entries(Stream("trade", "binance", "ETH-USDT"), START, None, 10).rows == []


def test_new_and_moved_files_are_found(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    recorded = RecordedPages(tmp_path)
    for seq in range(1, 31):
        add(store, BTC, seq, trade(seq))
        if seq % 10 == 0:
            store.commit()
            assert len(all_entries(recorded, BTC, 7)) == seq
    # somebody keeps the files elsewhere below the folder, and a copy of one
    moved = tmp_path / "old"
    moved.mkdir()
    first, second, _ = files_of(tmp_path, "trade")
    (moved / "copy.parquet").write_bytes(second.read_bytes())
    first.rename(moved / "first.parquet")
    ids = [row["cursor"] for row in all_entries(recorded, BTC, 7)]
    assert ids == [str(id_of(seq)) for seq in range(1, 31)]
    (moved / "first.parquet").unlink()
    assert len(all_entries(recorded, BTC, 7)) == 20


def test_file_that_cannot_be_read_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(tmp_path)
    for seq in range(1, 21):
        add(store, BTC, seq, trade(seq))
        if seq % 10 == 0:
            store.commit()
    broken, _ = files_of(tmp_path, "trade")
    content = broken.read_bytes()
    broken.write_bytes(content[:20] + b"\0" * 400 + content[420:])
    recorded = RecordedPages(tmp_path)
    for _ in range(3):
        assert len(all_entries(recorded, BTC, 7)) == 10
    assert caplog.text.count("left out") == 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    starts=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    commit_every=st.integers(1, 15),
    limit=st.integers(1, 8),
    begin=st.integers(0, 12),
    length=st.integers(1, 14),
    hasty=st.booleans(),
)
def test_bars_are_the_newest_revision_of_each_start(
    tmp_path_factory: pytest.TempPathFactory,
    starts: list[int],
    commit_every: int,
    limit: int,
    begin: int,
    length: int,
    hasty: bool,
) -> None:
    data_dir = tmp_path_factory.mktemp("data")
    store = open_store(data_dir)
    for seq, start in enumerate(starts, 1):
        # ten minutes before midnight: two folders
        add(store, BARS, seq, bar(MIDNIGHT + (start - 6) * MINUTE), time=MIDNIGHT)
        if seq % commit_every == 0:
            store.commit()
    store.commit()
    low, high = MIDNIGHT + (begin - 6) * MINUTE, MIDNIGHT + (begin - 6 + length) * MINUTE
    newest: dict[int, StreamId] = {}
    for _, id, message in read_recorded(data_dir, ("bar",)):
        assert isinstance(message, Bar)
        if low <= message.start < high:
            newest[message.start] = max(id, newest.get(message.start, START))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "_PAGE_SECONDS", -1.0 if hasty else 60.0)
        found = all_bars(RecordedPages(data_dir), low, high, limit)
    assert [(row["start"], row["cursor"]) for row in found] == [
        (start, str(id)) for start, id in sorted(newest.items())
    ]


def test_bars_of_other_streams_are_others(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    add(store, BARS, 1, bar(NOON))
    add(store, BARS._replace(feed="other"), 1, bar(NOON + MINUTE))
    add(store, BARS._replace(spec="time:5m"), 1, bar(NOON + 2 * MINUTE))
    store.commit()
    assert [row["start"] for row in all_bars(RecordedPages(tmp_path), 0, END, 10)] == [NOON]
