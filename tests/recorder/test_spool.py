"""Rows that were read survive the loss of process and bus together, and are never recorded twice."""

import logging
import os
import threading
from pathlib import Path

import pytest
from recorder.recorded import (
    BTC,
    ETH,
    MIDNIGHT,
    QUOTES,
    add,
    id_of,
    open_store,
    plain_files,
    quote,
    rows,
    seqs,
    trade,
)

from services.recorder.shard_store import ShardStore
from tickbus.errors import Fenced
from tickbus.protocol.names import Stream


def read(store: ShardStore, *counters: int, stream: Stream = BTC) -> None:
    """One round with one read of one stream, like the recorder's."""
    store.add_many(rows(stream, [(id_of(seq), trade(seq, stream.symbol)) for seq in counters]))
    store.spool()


def spools(data_dir: Path) -> list[str]:
    return [name for name in plain_files(data_dir) if name.startswith("_spool/")]


def quarantined(data_dir: Path) -> list[str]:
    return [name for name in plain_files(data_dir) if name.startswith("_aside/")]


def test_next_commit_includes_rows_of_dead_writer(tmp_path: Path) -> None:
    dead = open_store(tmp_path, epoch=3)
    read(dead, 1, 2)
    dead.commit()
    read(dead, 3)
    read(dead, 4, 5)
    read(dead, 1, stream=ETH)
    store = ShardStore(tmp_path, "07")
    assert store.recover() == {BTC.name: id_of(5), ETH.name: id_of(1)}
    assert (store.committed, store.rows) == ({BTC.name: id_of(2)}, 4)
    committed = store.commit()
    assert committed is not None and committed.positions == {BTC.name: id_of(5), ETH.name: id_of(1)}
    assert (seqs(tmp_path), seqs(tmp_path, symbol="ETH-USDT")) == ([1, 2, 3, 4, 5], [1])
    assert spools(tmp_path) == []


def test_spool_files_live_until_next_commit(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert spools(tmp_path) == []
    read(store, 1)
    read(store, 2)
    assert spools(tmp_path) == ["_spool/07/00000001-00000001.spool"]
    store.commit()
    assert spools(tmp_path) == []
    read(store, 3)
    assert spools(tmp_path) == ["_spool/07/00000001-00000002.spool"]
    store.sync()
    store.commit()
    store.close()
    assert spools(tmp_path) == []
    assert quarantined(tmp_path) == []


def test_spool_stays_until_successor_commits_it(tmp_path: Path) -> None:
    read(open_store(tmp_path), 1, 2)
    for _ in range(3):
        # killed before it commits
        assert ShardStore(tmp_path, "07").recover() == {BTC.name: id_of(2)}
    second = open_store(tmp_path)
    read(second, 3)
    last = open_store(tmp_path)
    assert len(spools(tmp_path)) == 2
    last.commit()
    assert (seqs(tmp_path), spools(tmp_path)) == ([1, 2, 3], [])


def test_writer_killed_before_spool_removal_causes_no_duplicates(tmp_path: Path) -> None:
    class Dead(BaseException):
        pass

    def die(name: str) -> None:
        if name == "done" and armed.is_set():
            raise Dead

    armed = threading.Event()
    store = open_store(tmp_path, step=die)
    read(store, 1, 2)
    armed.set()
    with pytest.raises(Dead):
        store.commit()
    assert len(spools(tmp_path)) == 1
    again = open_store(tmp_path)
    assert (again.rows, again.duplicates, spools(tmp_path)) == (0, 2, [])
    assert seqs(tmp_path) == [1, 2]


def test_rows_spooled_and_read_again_are_recorded_once(tmp_path: Path) -> None:
    read(open_store(tmp_path), 1, 2, 3)
    store = open_store(tmp_path)
    read(store, 1, 2)
    read(store, 2, 3, 4)
    assert (store.rows, store.duplicates) == (4, 4)
    # killed again: now the same rows are in two spools
    store = open_store(tmp_path)
    read(store, 3, 4, 5)
    store.commit()
    assert seqs(tmp_path) == [1, 2, 3, 4, 5]


def test_rows_before_and_after_bus_reset_are_recorded(tmp_path: Path) -> None:
    """Counters restart at 1, with later times."""
    read(open_store(tmp_path), 1, 2, 3)
    store = open_store(tmp_path)
    add(store, BTC, 1, trade(1, time=MIDNIGHT), time=MIDNIGHT)
    add(store, BTC, 2, trade(2, time=MIDNIGHT), time=MIDNIGHT)
    store.spool()
    store = ShardStore(tmp_path, "07")
    assert store.recover() == {BTC.name: id_of(2, MIDNIGHT)}
    store.commit()
    assert sorted(seqs(tmp_path)) == [1, 1, 2, 2, 3]
    assert spools(tmp_path) == []


def test_truncated_tail_is_logged_and_quarantined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(tmp_path)
    read(store, 1)
    read(store, 2)
    path = tmp_path / spools(tmp_path)[0]
    os.truncate(path, path.stat().st_size - 1)
    store = ShardStore(tmp_path, "07")
    assert store.recover() == {BTC.name: id_of(1)}
    assert f"{path}: truncated at byte" in caplog.text
    assert quarantined(tmp_path) == []
    read(store, 2, 3)
    store.commit()
    (name,) = quarantined(tmp_path)
    assert name.startswith("_aside/07.00000001-00000001.spool.") and name.endswith(".aside")
    assert (seqs(tmp_path), spools(tmp_path)) == ([1, 2, 3], [])


def test_rows_after_hole_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise the position would jump over rows that the bus may still have."""
    store = open_store(tmp_path)
    read(store, 1)
    path = tmp_path / spools(tmp_path)[0]
    damaged = path.stat().st_size + 20
    read(store, 2)
    read(store, 3)
    read(store, 1, stream=ETH)
    data = bytearray(path.read_bytes())
    data[damaged] ^= 1
    path.write_bytes(data)
    store = ShardStore(tmp_path, "07")
    assert store.recover() == {BTC.name: id_of(1), ETH.name: id_of(1)}
    assert "checksum mismatch" in caplog.text
    assert f"rows of {BTC.name} before {id_of(3)} are missing" in caplog.text
    read(store, 2, 3, 4)
    store.commit()
    assert (seqs(tmp_path), seqs(tmp_path, symbol="ETH-USDT")) == ([1, 2, 3, 4], [1])
    assert len(quarantined(tmp_path)) == 1


def test_lost_manifest_leaves_no_hole(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for seq in (1, 2):
        read(store, seq)
        store.commit()
    read(store, 3)
    (tmp_path / "_manifests/07/00000003.json").unlink()
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {BTC.name: id_of(1)}
    read(again, 2, 3)
    again.commit()
    assert seqs(tmp_path) == [1, 2, 3]


def test_resumed_writer_does_no_harm(tmp_path: Path) -> None:
    paused = open_store(tmp_path)
    read(paused, 1)
    successor = open_store(tmp_path)
    read(successor, 2, 3)
    # resumed: it keeps reading and spooling, unaware of its successor
    read(paused, 2)
    successor.commit()
    read(paused, 3, 4)
    with pytest.raises(Fenced):
        paused.commit()
    read(paused, 5)
    paused.close()
    read(successor, 4)
    assert (successor.rows, seqs(tmp_path)) == (1, [1, 2, 3])
    # rows that both had read are in two spools now; rows that only the paused one had read, in its own
    last = ShardStore(tmp_path, "07")
    assert last.recover() == {BTC.name: id_of(5)}
    read(last, 5, 6)
    last.commit()
    assert (seqs(tmp_path), spools(tmp_path), quarantined(tmp_path)) == ([1, 2, 3, 4, 5, 6], [], [])


def test_rows_read_only_by_resumed_writer_stay_on_disk(tmp_path: Path) -> None:
    """It wrote them to a file that its successor had already read."""
    paused = open_store(tmp_path)
    read(paused, 1)
    successor = open_store(tmp_path)
    read(paused, 2)
    successor.commit()
    assert seqs(tmp_path) == [1]
    last = open_store(tmp_path)
    last.commit()
    assert (seqs(tmp_path), spools(tmp_path)) == ([1, 2], [])


def test_rows_of_resumed_writer_and_successor_interleave(tmp_path: Path) -> None:
    paused = open_store(tmp_path)
    read(paused, 1)
    successor = open_store(tmp_path)
    read(successor, 2, 3)
    # by now the bus has lost 2 and 3, which only the successor had read
    read(paused, 4)
    last = ShardStore(tmp_path, "07")
    assert last.recover() == {BTC.name: id_of(4)}
    last.commit()
    assert (seqs(tmp_path), quarantined(tmp_path)) == ([1, 2, 3, 4], [])


def test_rows_spooled_during_commits_are_complete(tmp_path: Path) -> None:
    """Killed at the end, with some rows not committed yet."""
    count = 6000
    store = open_store(tmp_path)

    def read_all() -> None:
        for seq in range(1, count, 2):
            read(store, seq, seq + 1)

    reading = threading.Thread(target=read_all)
    reading.start()
    while reading.is_alive():
        store.commit()
        store.sync()
    reading.join(30)
    store.close()
    open_store(tmp_path).commit()
    assert (seqs(tmp_path), spools(tmp_path)) == (list(range(1, count + 1)), [])


def test_commit_covers_rows_that_could_not_be_spooled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    (tmp_path / "_spool/07").rmdir()
    for seq in (1, 2):
        with pytest.raises(FileNotFoundError):
            read(store, seq)
    store.commit()
    assert seqs(tmp_path) == [1, 2]
    # all in the files: nothing is left to spool
    store.spool()
    (tmp_path / "_spool/07").mkdir()
    read(store, 3)
    with caplog.at_level(logging.INFO):
        assert ShardStore(tmp_path, "07").recover() == {BTC.name: id_of(3)}
    assert "recovered 1 uncommitted rows of an earlier writer" in caplog.text


def test_round_may_have_several_streams(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    add(store, QUOTES, 1, quote(1))
    store.add_many(rows(BTC, [(id_of(1), trade(1)), (id_of(2), trade(2))]))
    store.spool()
    store.spool()
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {QUOTES.name: id_of(1), BTC.name: id_of(2)}
    assert again.rows == 3


def test_spool_requires_recover(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"call recover\(\) first"):
        ShardStore(tmp_path, "07").spool()
