"""Commits of one shard: what is in the files, what is not, and who may write."""

import json
import threading
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from recorder.recorded import (
    BARS,
    BTC,
    ETH,
    MIDNIGHT,
    NOON,
    QUOTES,
    UNREPRESENTABLE_PRICE,
    D,
    add,
    bar,
    files_of,
    gap,
    id_of,
    open_store,
    open_store_at,
    plain_files,
    quote,
    rows,
    rows_of,
    seqs,
    trade,
)  # fmt: skip

from services.recorder.shard_store import ShardStore
from tickbus.errors import ConfigError, Fenced
from tickbus.protocol.codec import DECODE
from tickbus.protocol.messages import StreamKind, Trade
from tickbus.protocol.names import Stream
from tickbus.version import VERSION


def manifest_of(data_dir: Path, number: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((data_dir / "_manifests" / "07" / f"{number:08d}.json").read_text())
    return document


def test_trade_is_one_row(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    add(store, BTC, 1, trade(1))
    committed = store.commit()
    assert committed is not None and committed.number == 2
    assert (committed.rows, committed.files, committed.quarantined, committed.positions) == (
        {"trade": 1},
        {"trade": 1},
        {},
        {BTC.name: id_of(1)},
    )
    assert rows_of(tmp_path, "trade") == [
        {
            "feed": "binance", "symbol": "BTC-USDT", "id_ms": id_of(1).ms, "seq": 1, "epoch": 4, "flags": 1,
            "price": D("60000.1"), "size": D("0.5"), "bid": D("60000"), "ask": None, "side": "buy",
            "trade_id": "1001", "ts_event": NOON + 1, "ts_recv": NOON + 6,
        }
    ]  # fmt: skip
    assert files_of(tmp_path, "trade") == [tmp_path / "trade/date=2024-08-08/s07-00000002.parquet"]
    assert (store.rows, store.bytes) == (0, 0)
    assert store.commit() is None


def test_quotes_bars_and_gaps_have_their_own_files(tmp_path: Path) -> None:
    store = open_store(tmp_path)
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


def test_rows_across_midnight_are_one_file_per_day(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for seq, time in enumerate((MIDNIGHT - 5, MIDNIGHT - 3, MIDNIGHT - 3, NOON), start=1):
        add(store, BTC, seq, trade(seq, time=time))
    store.commit()
    days = {
        path.parent.name: pq.ParquetFile(path).read()["seq"].to_pylist()
        for path in files_of(tmp_path, "trade")
    }
    assert days == {"date=2024-08-08": [1, 2, 4], "date=2024-08-09": [3]}


def test_rows_are_sorted_by_symbol_then_stream_order(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for seq in range(1, 4):
        add(store, ETH, seq, trade(seq, "ETH-USDT"))
        add(store, BTC, seq, trade(seq))
    store.commit()
    assert [(row["symbol"], row["seq"]) for row in rows_of(tmp_path, "trade")] == [
        ("BTC-USDT", 1), ("BTC-USDT", 2), ("BTC-USDT", 3),
        ("ETH-USDT", 1), ("ETH-USDT", 2), ("ETH-USDT", 3),
    ]  # fmt: skip


def test_large_commit_keeps_every_row_in_order(tmp_path: Path) -> None:
    """More than a batch and more than a row group, with a Gap in the middle."""
    store = open_store(tmp_path)
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


def test_duplicate_rows_are_dropped(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for seq in (1, 2, 2, 1):
        add(store, BTC, seq, trade(seq))
    assert (store.rows, store.duplicates) == (2, 2)
    store.commit()
    add(store, BTC, 2, trade(2))
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {BTC.name: id_of(2)}
    add(again, BTC, 2, trade(2))
    add(again, BTC, 3, trade(3))
    assert (store.rows, again.rows, again.duplicates) == (0, 1, 1)
    again.commit()
    assert seqs(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("kind", ["depth", "gap"])
def test_streams_of_other_kinds_are_not_recorded(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind}:f:A: streams of kind {kind} are not recorded"):
        add(open_store(tmp_path), Stream(kind, "f", "A"), 1, trade(1))


def test_last_manifest_alone_is_position(tmp_path: Path) -> None:
    store = open_store(tmp_path, epoch=12)
    add(store, BTC, 1, trade(1))
    store.commit()
    add(store, ETH, 1, trade(1, "ETH-USDT"))
    add(store, ETH, 2, trade(2, "ETH-USDT"))
    store.commit()
    (path,) = (path for path in files_of(tmp_path, "trade") if "00000003" in path.name)
    manifest = manifest_of(tmp_path, 3)
    assert manifest["positions"] == {BTC.name: str(id_of(1)), ETH.name: str(id_of(2))}
    assert (manifest["number"], manifest["shard"], manifest["epoch"]) == (3, "07", 12)
    (file,) = manifest["files"]
    assert (file["name"], file["kind"], file["rows"]) == (
        "trade/date=2024-08-08/s07-00000003.parquet",
        "trade",
        2,
    )
    assert file["streams"] == {ETH.name: [str(id_of(1)), str(id_of(2))]}
    assert (file["bytes"], file["crc32"]) == (path.stat().st_size, zlib.crc32(path.read_bytes()))
    metadata = pq.ParquetFile(path).metadata.metadata
    assert metadata is not None
    assert {key: metadata[key] for key in (b"tickbus.version", b"tickbus.shard", b"tickbus.number")} == {
        b"tickbus.version": VERSION.encode(), b"tickbus.shard": b"07", b"tickbus.number": b"3",
    }  # fmt: skip


def test_manifest_numbers_are_dense(tmp_path: Path) -> None:
    for _ in range(3):
        store, position = open_store_at(tmp_path)
        add(store, BTC, position + 1, trade(1))
        store.commit()
    names = sorted(path.name for path in (tmp_path / "_manifests/07").iterdir())
    assert names == [f"{number:08d}.json" for number in range(1, 7)]


def test_unrepresentable_message_is_quarantined_exactly_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    unrepresentable = trade(2, price=UNREPRESENTABLE_PRICE)
    add(store, BTC, 1, trade(1))
    add(store, BTC, 2, unrepresentable)
    committed = store.commit()
    assert committed is not None
    assert (committed.rows, committed.quarantined) == ({"trade": 1}, {"decimal": 1})
    assert f"{UNREPRESENTABLE_PRICE} does not fit decimal128(38, 18)" in caplog.text
    add(store, BTC, 2, unrepresentable)
    assert store.rows == 0
    (line,) = (tmp_path / "_aside/s07-00000002.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["stream"], entry["id"], entry["epoch"], entry["message"]["price"]) == (
        BTC.name,
        str(id_of(2)),
        4,
        UNREPRESENTABLE_PRICE,
    )
    assert DECODE[entry["field"].encode()](bytes.fromhex(entry["payload"])) == unrepresentable
    assert [file["name"] for file in manifest_of(tmp_path, 2)["files"]][-1] == "_aside/s07-00000002.jsonl"


def test_commit_of_only_unrepresentable_messages_has_no_table(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    message = Trade("BTC-USDT", "1", "1", trade(1).side, None, 1 << 63, 5)
    add(store, BTC, 1, message)
    committed = store.commit()
    assert committed is not None and (committed.rows, committed.quarantined) == ({}, {"integer": 1})
    assert not (tmp_path / "trade").exists()
    assert ShardStore(tmp_path, "07").recover() == {BTC.name: id_of(1)}


def test_resumed_writer_is_fenced(tmp_path: Path) -> None:
    paused = open_store(tmp_path)
    add(paused, BTC, 1, trade(1))
    successor = open_store(tmp_path)
    with pytest.raises(Fenced, match=r"shard 07 of .*: another recorder wrote commit 2"):
        paused.commit()
    with pytest.raises(Fenced):
        paused.commit()
    assert (paused.rows, files_of(tmp_path, "trade")) == (1, [])
    add(successor, BTC, 1, trade(1))
    successor.commit()
    assert seqs(tmp_path) == [1]
    # the file that the paused one had written is out of the readers' way
    assert not [name for name in plain_files(tmp_path) if name.endswith(".tmp")]


def test_writer_paused_inside_commit_is_fenced(tmp_path: Path) -> None:
    """It has written its files when the successor takes over; then it resumes."""
    paused = open_store(
        tmp_path, step=lambda name: open_store(tmp_path) and None if name == "fsynced" else None
    )
    add(paused, BTC, 1, trade(1))
    with pytest.raises(Fenced):
        paused.commit()
    assert files_of(tmp_path, "trade") == []
    assert [
        name
        for name in plain_files(tmp_path)
        if "parquet" in name and name.startswith("_aside/") and name.endswith(".aside")
    ]
    successor = open_store(tmp_path)
    add(successor, BTC, 1, trade(1))
    successor.commit()
    assert seqs(tmp_path) == [1]


@pytest.mark.parametrize("step", ["committed", "durable", "named"])
def test_successor_finishes_running_commit(tmp_path: Path, step: str) -> None:
    successors: list[ShardStore] = []
    armed = threading.Event()
    paused = open_store(
        tmp_path,
        step=lambda name: (
            successors.append(open_store(tmp_path))
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


def test_one_of_racing_writers_wins_each_number(tmp_path: Path) -> None:
    fenced: list[Fenced] = []

    def replica() -> None:
        for _ in range(10):
            store, position = open_store_at(tmp_path)
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
    _, last = open_store_at(tmp_path)
    assert sorted(seqs(tmp_path)) == list(range(1, last + 1))
    assert last == 3 * (40 - len(fenced))


def test_adding_while_committing_loses_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    count = 20_000

    def add_all() -> None:
        for seq in range(1, count + 1):
            add(store, BTC, seq, trade(seq))

    adding = threading.Thread(target=add_all)
    adding.start()
    while adding.is_alive():
        store.commit()
    adding.join(30)
    store.commit()
    assert seqs(tmp_path) == list(range(1, count + 1))
    assert (store.rows, store.bytes) == (0, 0)


def test_orphaned_files_are_quarantined(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for seq in (1, 2):
        add(store, BTC, seq, trade(seq))
        store.commit()
    (tmp_path / "_manifests/07/00000003.json").unlink()
    other = tmp_path / "trade/date=2024-08-08/s08-00000009.parquet"
    other.write_bytes(b"of another shard")
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {BTC.name: id_of(1)}
    assert files_of(tmp_path, "trade") == [tmp_path / "trade/date=2024-08-08/s07-00000002.parquet", other]
    (orphan,) = (tmp_path / "_aside").iterdir()
    assert orphan.name.startswith("date=2024-08-08.s07-00000003.parquet.") and orphan.suffix == ".aside"
    other.unlink()
    add(again, BTC, 2, trade(2))
    again.commit()
    assert seqs(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"number": 3, "sha', id="torn"),
        pytest.param(b'{"number": 3, "shard": "\xff"}', id="not UTF-8"),
        pytest.param(None, id="a copy of an earlier one"),
    ],
)
def test_unreadable_last_manifest_is_quarantined_with_its_files(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    for seq in (1, 2):
        add(store, BTC, seq, trade(seq))
        store.commit()
    manifests = tmp_path / "_manifests/07"
    (manifests / "00000003.json").write_bytes(content or (manifests / "00000002.json").read_bytes())
    assert ShardStore(tmp_path, "07").recover() == {BTC.name: id_of(1)}
    assert "00000003.json is unreadable" in caplog.text
    assert seqs(tmp_path) == [1]


def test_foreign_files_beside_those_of_writers_are_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    add(store, BTC, 1, trade(1))
    store.commit()
    foreign = [tmp_path / "_tmp/07" / name for name in ("notes.txt", ".DS_Store", "00000001.bak")]
    for path in foreign:
        path.write_text("foreign")
    assert ShardStore(tmp_path, "07").recover() == {BTC.name: id_of(1)}
    assert [path.read_text() for path in foreign] == ["foreign"] * 3


@pytest.mark.parametrize("removed", ["file", "folder"])
def test_recording_goes_on_after_files_that_were_pruned(
    tmp_path: Path, removed: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    add(store, BTC, 1, trade(1))
    store.commit()
    (path,) = files_of(tmp_path, "trade")
    path.unlink()
    if removed == "folder":
        path.parent.rmdir()
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {BTC.name: id_of(1)}
    (line,) = caplog.messages
    assert (line.count("s07-00000002.parquet with 1 rows"), again.missing_files) == (1, 1)
    add(again, BTC, 1, trade(1))
    add(again, BTC, 2, trade(2))
    again.commit()
    assert seqs(tmp_path) == [2]
    caplog.clear()
    third = open_store(tmp_path)
    assert (caplog.messages, third.missing_files) == ([], 0)


def test_file_whose_day_was_pruned_before_it_was_renamed_is_renamed(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(name: str) -> None:
        if name == "durable" and armed:
            raise Killed

    armed: list[bool] = []
    store = open_store(tmp_path, step=kill)
    add(store, BTC, 1, trade(1))
    armed.append(True)
    with pytest.raises(Killed):
        store.commit()
    (tmp_path / "trade/date=2024-08-08").rmdir()
    again = open_store(tmp_path)
    assert (seqs(tmp_path), again.missing_files) == ([1], 0)


MANIFEST = (
    '{"number": 3, "shard": "07", "epoch": 0, "writer": "w", "files": [%s], "positions": {%s}, "format": 1}'
)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"number": 3, "sha',
        b"\xff\xfe",
        (MANIFEST % ("", '"trade:binance:BTC-USDT": "now"')).encode(),
        (MANIFEST % ("", '"BTC": "1-1"')).encode(),
        (MANIFEST % ("", "")).replace("3,", "4,", 1).encode(),
        (
            MANIFEST
            % (
                '{"kind": "trade", "name": "../x", "temporary": "y", "rows": 1, "bytes": 1, "crc32": 1, '
                '"streams": {}}',
                "",
            )
        ).encode(),
    ],
)
def test_manifest_that_is_none_is_quarantined_with_its_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    store = open_store(tmp_path)
    for seq in (1, 2):
        add(store, BTC, seq, trade(seq))
        store.commit()
    (tmp_path / "_manifests/07/00000003.json").write_bytes(text)
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {BTC.name: id_of(1)}
    assert "00000003.json is unreadable" in caplog.text
    add(again, BTC, 2, trade(2))
    again.commit()
    assert seqs(tmp_path) == [1, 2]


def test_unreadable_manifest_without_the_one_before_it_changes_nothing(tmp_path: Path) -> None:
    """Old manifests were deleted, as permitted: then no file may be taken for an orphan."""
    store = open_store(tmp_path)
    for seq in (1, 2):
        add(store, BTC, seq, trade(seq))
        store.commit()
    for number in (1, 2):
        (tmp_path / f"_manifests/07/0000000{number}.json").unlink()
    (tmp_path / "_manifests/07/00000003.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"00000003\.json is unreadable.*restore this file, or delete it"):
        ShardStore(tmp_path, "07").recover()
    assert seqs(tmp_path) == [1, 2]


def test_foreign_names_in_our_folders_are_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    add(store, BTC, 1, trade(1))
    store.commit()
    foreign = [
        tmp_path / name
        for name in ("_tmp/07/.DS_Store", "_tmp/07/5", "_spool/07/x.spool", "_manifests/07/x.json", "trade/x")
    ]
    for path in foreign:
        path.write_text("not ours")
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {BTC.name: id_of(1)}
    assert [path.read_text() for path in foreign] == ["not ours"] * len(foreign)


def test_store_must_recover_first_and_once(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, "07")
    with pytest.raises(RuntimeError, match=r"call recover\(\) first"):
        store.commit()
    store.recover()
    with pytest.raises(RuntimeError, match="already called"):
        store.recover()
