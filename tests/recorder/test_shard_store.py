"""Commits of one shard: what is in the files, what is not, and who may write."""

import json
import threading
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from recorder.recorded import (
    BARS,
    BTC,
    ETH,
    MIDNIGHT,
    NOON,
    QUOTES,
    D,
    add,
    bar,
    files_of,
    gap,
    id_of,
    opened,
    opened_at,
    plain_files,
    quote,
    rows,
    rows_of,
    seqs,
    trade,
)  # fmt: skip

from services.recorder.shard_store import ShardStore
from tickbus.errors import Fenced, TickbusError
from tickbus.protocol.codec import DECODE
from tickbus.protocol.messages import StreamKind, Trade
from tickbus.protocol.names import Stream
from tickbus.version import VERSION


def manifest_of(data_dir: Path, number: int) -> dict[str, object]:
    document: dict[str, object] = json.loads(
        (data_dir / "_manifests" / "07" / f"{number:08d}.json").read_text()
    )
    return document


def test_a_trade_is_one_row(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, BTC, 1, trade(1))
    committed = store.commit()
    assert committed is not None and committed.number == 2
    assert (committed.rows, committed.files, committed.aside, committed.positions) == (
        {"trade": 1},
        {"trade": 1},
        {},
        {BTC.name: id_of(1)},
    )
    assert rows_of(tmp_path, "trade") == [
        {
            "feed": "binance", "symbol": "BTC-USDT", "id_ms": id_of(1).ms, "seq": 1, "epoch": 4, "flags": 1,
            "price": D("60000.1"), "size": D("0.5"), "bid": D("60000"), "ask": None, "side": "buy", "trade_id": "1001",
            "ts_event": NOON + 1, "ts_recv": NOON + 6,
        }
    ]  # fmt: skip
    assert files_of(tmp_path, "trade") == [tmp_path / "trade/date=2024-08-08/s07-00000002.parquet"]
    assert (store.rows, store.bytes) == (0, 0)
    assert store.commit() is None


def test_quotes_bars_and_gaps_have_their_own_files(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, QUOTES, 1, quote(1))
    add(store, QUOTES, 2, gap(StreamKind.QUOTE))
    add(store, BARS, 1, bar())
    add(store, BARS, 2, gap(StreamKind.BAR))
    committed = store.commit()
    assert committed is not None and committed.rows == {"quote": 1, "bar": 1, "gap": 2}
    (row,) = rows_of(tmp_path, "quote")
    assert (row["bid"], row["bid_size"], row["ask"], row["ask_size"], row["ts_recv"]) == (
        D("59999.9"),
        D("1.25"),
        None,
        None,
        NOON + 8,
    )
    (row,) = rows_of(tmp_path, "bar")
    assert (row["spec"], row["start"], row["vwap"], row["trades"], row["quality"]) == (
        "time:1m",
        NOON,
        D("1.5"),
        3,
        ["has_gap", "repaired"],
    )
    gaps = rows_of(tmp_path, "gap")
    assert [
        (row["stream"], row["spec"], row["kind"], row["from_id"], row["count"], row["repairable"], row["seq"])
        for row in gaps
    ] == [
        ("bar", "time:1m", "sequence", "7", 3, True, 2),
        ("quote", None, "sequence", "7", 3, True, 2),
    ]


def test_a_buffer_over_midnight_is_a_file_per_day(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for seq, time in enumerate((MIDNIGHT - 5, MIDNIGHT - 3, MIDNIGHT - 3, NOON), start=1):
        add(store, BTC, seq, trade(seq, time=time))
    store.commit()
    days = {
        path.parent.name: pq.ParquetFile(path).read()["seq"].to_pylist()
        for path in files_of(tmp_path, "trade")
    }
    assert days == {"date=2024-08-08": [1, 2, 4], "date=2024-08-09": [3]}


def test_rows_lie_by_symbol_then_in_stream_order(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for seq in range(1, 4):
        add(store, ETH, seq, trade(seq, "ETH-USDT"))
        add(store, BTC, seq, trade(seq))
    store.commit()
    assert [(row["symbol"], row["seq"]) for row in rows_of(tmp_path, "trade")] == [
        ("BTC-USDT", 1), ("BTC-USDT", 2), ("BTC-USDT", 3), ("ETH-USDT", 1), ("ETH-USDT", 2), ("ETH-USDT", 3),
    ]  # fmt: skip


def test_a_large_commit_keeps_every_row_in_order(tmp_path: Path) -> None:
    """More than a batch and more than a row group, with a Gap in the middle."""
    store = opened(tmp_path)
    count = 150_000
    for start in range(1, count + 1, 1000):
        store.add_many(
            rows(
                BTC,
                [(id_of(seq), gap() if seq == 100_000 else trade(seq)) for seq in range(start, start + 1000)],
            )
        )
    store.commit()
    (path,) = files_of(tmp_path, "trade")
    assert pq.ParquetFile(path).metadata.num_row_groups == 2
    assert pq.ParquetFile(path).read(["seq"])["seq"].to_pylist() == [
        *range(1, 100_000),
        *range(100_001, count + 1),
    ]
    assert seqs(tmp_path, "gap") == [100_000]


def test_what_was_added_before_is_dropped(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for seq in (1, 2, 2, 1):
        add(store, BTC, seq, trade(seq))
    assert (store.rows, store.repeated) == (2, 2)
    store.commit()
    add(store, BTC, 2, trade(2))
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {BTC.name: id_of(2)}
    add(again, BTC, 2, trade(2))
    add(again, BTC, 3, trade(3))
    assert (store.rows, again.rows, again.repeated) == (0, 1, 1)
    again.commit()
    assert seqs(tmp_path) == [1, 2, 3]


def test_signals_are_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="signal:f:A: streams of kind signal are not recorded"):
        add(opened(tmp_path), Stream("signal", "f", "A"), 1, trade(1))


def test_the_last_manifest_alone_is_the_position(tmp_path: Path) -> None:
    store = opened(tmp_path, epoch=12)
    add(store, BTC, 1, trade(1))
    store.commit()
    add(store, ETH, 1, trade(1, "ETH-USDT"))
    add(store, ETH, 2, trade(2, "ETH-USDT"))
    store.commit()
    (path,) = (path for path in files_of(tmp_path, "trade") if "00000003" in path.name)
    manifest = manifest_of(tmp_path, 3)
    assert manifest["positions"] == {BTC.name: str(id_of(1)), ETH.name: str(id_of(2))}
    assert (manifest["number"], manifest["shard"], manifest["epoch"]) == (3, "07", 12)
    (file,) = manifest["files"]  # type: ignore[misc]
    assert (file["name"], file["kind"], file["rows"]) == (
        "trade/date=2024-08-08/s07-00000003.parquet",
        "trade",
        2,
    )
    assert file["streams"] == {ETH.name: [str(id_of(1)), str(id_of(2))]}
    assert (file["bytes"], file["crc32"]) == (path.stat().st_size, zlib.crc32(path.read_bytes()))
    metadata = pq.ParquetFile(path).metadata.metadata
    assert {key: metadata[key] for key in (b"tickbus.version", b"tickbus.shard", b"tickbus.number")} == {
        b"tickbus.version": VERSION.encode(), b"tickbus.shard": b"07", b"tickbus.number": b"3",
    }  # fmt: skip


def test_numbers_are_dense(tmp_path: Path) -> None:
    for _ in range(3):
        store, position = opened_at(tmp_path)
        add(store, BTC, position + 1, trade(1))
        store.commit()
    names = sorted(path.name for path in (tmp_path / "_manifests/07").iterdir())
    assert names == [f"{number:08d}.json" for number in range(1, 7)]


def test_what_fits_no_row_is_kept_aside_exactly_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    odd = trade(2, price="0.1234567890123456789")
    add(store, BTC, 1, trade(1))
    add(store, BTC, 2, odd)
    committed = store.commit()
    assert committed is not None and (committed.rows, committed.aside) == ({"trade": 1}, {"decimal": 1})
    assert "0.1234567890123456789 does not fit decimal128(38, 18)" in caplog.text
    add(store, BTC, 2, odd)
    assert store.rows == 0
    (line,) = (tmp_path / "_aside/s07-00000002.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert (kept["stream"], kept["id"], kept["epoch"], kept["message"]["price"]) == (
        BTC.name,
        str(id_of(2)),
        4,
        "0.1234567890123456789",
    )
    assert DECODE[kept["field"].encode()](bytes.fromhex(kept["payload"])) == odd
    assert [file["name"] for file in manifest_of(tmp_path, 2)["files"]][-1] == "_aside/s07-00000002.jsonl"  # type: ignore[attr-defined]


def test_only_unfit_messages_make_a_commit_without_a_table(tmp_path: Path) -> None:
    store = opened(tmp_path)
    message = Trade("BTC-USDT", "1", "1", trade(1).side, None, 1 << 63, 5)
    add(store, BTC, 1, message)
    committed = store.commit()
    assert committed is not None and (committed.rows, committed.aside) == ({}, {"integer": 1})
    assert not (tmp_path / "trade").exists()
    assert ShardStore(tmp_path, "07").recover() == {BTC.name: id_of(1)}


def test_a_woken_writer_commits_nothing_more(tmp_path: Path) -> None:
    paused = opened(tmp_path)
    add(paused, BTC, 1, trade(1))
    successor = opened(tmp_path)
    with pytest.raises(Fenced, match=r"shard 07 of .*: another recorder has written commit 2"):
        paused.commit()
    with pytest.raises(Fenced):
        paused.commit()
    assert (paused.rows, files_of(tmp_path, "trade")) == (1, [])
    add(successor, BTC, 1, trade(1))
    successor.commit()
    assert seqs(tmp_path) == [1]
    # of the paused one, the file that it had written is kept out of the readers' way
    assert not [name for name in plain_files(tmp_path) if name.endswith(".tmp")]


def test_a_writer_paused_inside_a_commit_is_fenced_too(tmp_path: Path) -> None:
    """It has written its files when the successor takes over; then it wakes and goes on."""
    paused = opened(tmp_path, step=lambda name: opened(tmp_path) and None if name == "fsynced" else None)
    add(paused, BTC, 1, trade(1))
    with pytest.raises(Fenced):
        paused.commit()
    assert files_of(tmp_path, "trade") == []
    assert [
        name
        for name in plain_files(tmp_path)
        if "parquet" in name and name.startswith("_aside/") and name.endswith(".aside")
    ]
    successor = opened(tmp_path)
    add(successor, BTC, 1, trade(1))
    successor.commit()
    assert seqs(tmp_path) == [1]


@pytest.mark.parametrize("step", ["committed", "durable", "named"])
def test_a_successor_finishes_a_commit_that_is_under_way(tmp_path: Path, step: str) -> None:
    successors: list[ShardStore] = []
    armed = threading.Event()
    paused = opened(
        tmp_path,
        step=lambda name: (
            successors.append(opened(tmp_path))
            if name == step and armed.is_set() and not successors
            else None
        ),
    )
    armed.set()
    add(paused, BTC, 1, trade(1))
    paused.commit()
    (successor,) = successors
    assert seqs(tmp_path) == [1]
    add(successor, BTC, 1, trade(1))
    add(successor, BTC, 2, trade(2))
    successor.commit()
    assert seqs(tmp_path) == [1, 2]
    add(paused, BTC, 2, trade(2))
    with pytest.raises(Fenced):
        paused.commit()
    assert seqs(tmp_path) == [1, 2]


def test_of_writers_that_race_one_wins_each_number(tmp_path: Path) -> None:
    fenced = []

    def replica() -> None:
        for _ in range(10):
            store, position = opened_at(tmp_path)
            for seq in range(position + 1, position + 4):
                add(store, BTC, seq, trade(seq))
            try:
                store.commit()
            except Fenced as error:
                fenced.append(error)

    threads = [threading.Thread(target=replica) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    _, last = opened_at(tmp_path)
    assert sorted(seqs(tmp_path)) == list(range(1, last + 1))
    assert last == 3 * (40 - len(fenced))


def test_adding_while_committing_loses_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    count = 20_000
    adding = threading.Thread(
        target=lambda: [add(store, BTC, seq, trade(seq)) for seq in range(1, count + 1)]
    )
    adding.start()
    while adding.is_alive():
        store.commit()
    adding.join(30)
    store.commit()
    assert seqs(tmp_path) == list(range(1, count + 1))
    assert (store.rows, store.bytes) == (0, 0)


def test_files_that_no_manifest_names_are_set_aside(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for seq in (1, 2):
        add(store, BTC, seq, trade(seq))
        store.commit()
    (tmp_path / "_manifests/07/00000003.json").unlink()
    other = tmp_path / "trade/date=2024-08-08/s08-00000009.parquet"
    other.write_bytes(b"of another shard")
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {BTC.name: id_of(1)}
    assert files_of(tmp_path, "trade") == [tmp_path / "trade/date=2024-08-08/s07-00000002.parquet", other]
    (aside,) = (tmp_path / "_aside").iterdir()
    assert aside.name.startswith("date=2024-08-08.s07-00000003.parquet.") and aside.suffix == ".aside"
    other.unlink()
    add(again, BTC, 2, trade(2))
    again.commit()
    assert seqs(tmp_path) == [1, 2]


def test_an_unreadable_last_manifest_is_set_aside_with_its_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    for seq in (1, 2):
        add(store, BTC, seq, trade(seq))
        store.commit()
    (tmp_path / "_manifests/07/00000003.json").write_text('{"number": 3, "sha')
    assert ShardStore(tmp_path, "07").recover() == {BTC.name: id_of(1)}
    assert "00000003.json is unreadable" in caplog.text
    assert seqs(tmp_path) == [1]


def test_a_missing_file_of_the_last_commit_is_told_by_name(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, BTC, 1, trade(1))
    store.commit()
    (path,) = files_of(tmp_path, "trade")
    path.unlink()
    with pytest.raises(
        TickbusError,
        match=r"s07-00000002\.parquet is missing, with 1 rows that .*00000002\.json names; bring it back",
    ):
        ShardStore(tmp_path, "07").recover()


def test_a_store_recovers_first_and_once(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, "07")
    with pytest.raises(RuntimeError, match=r"recover\(\) comes first"):
        store.commit()
    store.recover()
    with pytest.raises(RuntimeError, match="recovers once"):
        store.recover()
