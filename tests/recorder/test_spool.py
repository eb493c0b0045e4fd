"""What was read is not lost with the process and the bus together; nothing comes twice from the spool and the bus."""

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
    opened,
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
    """As the recorder does: one round, with one read of one stream."""
    store.add_many(rows(stream, [(id_of(seq), trade(seq, stream.symbol)) for seq in counters]))
    store.spool()


def spools(data_dir: Path) -> list[str]:
    return [name for name in plain_files(data_dir) if name.startswith("_spool/")]


def aside(data_dir: Path) -> list[str]:
    return [name for name in plain_files(data_dir) if name.startswith("_aside/")]


def test_rows_of_a_dead_writer_come_with_the_next_commit(tmp_path: Path) -> None:
    dead = opened(tmp_path, epoch=3)
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


def test_files_live_from_one_commit_to_the_next(tmp_path: Path) -> None:
    store = opened(tmp_path)
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
    assert aside(tmp_path) == []


def test_a_spool_stays_until_a_commit_of_the_successor_holds_it(tmp_path: Path) -> None:
    read(opened(tmp_path), 1, 2)
    for _ in range(3):
        # killed before it commits
        assert ShardStore(tmp_path, "07").recover() == {BTC.name: id_of(2)}
    chain = opened(tmp_path)
    read(chain, 3)
    last = opened(tmp_path)
    assert len(spools(tmp_path)) == 2
    last.commit()
    assert (seqs(tmp_path), spools(tmp_path)) == ([1, 2, 3], [])


def test_killed_after_the_manifest_and_before_the_spool_is_removed(tmp_path: Path) -> None:
    class Dead(BaseException):
        pass

    def die(name: str) -> None:
        if name == "done" and armed.is_set():
            raise Dead

    armed = threading.Event()
    store = opened(tmp_path, step=die)
    read(store, 1, 2)
    armed.set()
    with pytest.raises(Dead):
        store.commit()
    assert len(spools(tmp_path)) == 1
    again = opened(tmp_path)
    assert (again.rows, again.repeated, spools(tmp_path)) == (0, 2, [])
    assert seqs(tmp_path) == [1, 2]


def test_what_is_spooled_and_read_again_comes_once(tmp_path: Path) -> None:
    read(opened(tmp_path), 1, 2, 3)
    store = opened(tmp_path)
    read(store, 1, 2)
    read(store, 2, 3, 4)
    assert (store.rows, store.repeated) == (4, 4)
    # killed again: now the same rows lie in two spools
    store = opened(tmp_path)
    read(store, 3, 4, 5)
    store.commit()
    assert seqs(tmp_path) == [1, 2, 3, 4, 5]


def test_a_bus_that_was_emptied_meanwhile(tmp_path: Path) -> None:
    """Its counters begin again at 1, with later times."""
    read(opened(tmp_path), 1, 2, 3)
    store = opened(tmp_path)
    add(store, BTC, 1, trade(1, time=MIDNIGHT), time=MIDNIGHT)
    add(store, BTC, 2, trade(2, time=MIDNIGHT), time=MIDNIGHT)
    store.spool()
    store = ShardStore(tmp_path, "07")
    assert store.recover() == {BTC.name: id_of(2, MIDNIGHT)}
    store.commit()
    assert sorted(seqs(tmp_path)) == [1, 1, 2, 2, 3]
    assert spools(tmp_path) == []


def test_a_torn_tail_is_told_and_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(tmp_path)
    read(store, 1)
    read(store, 2)
    path = tmp_path / spools(tmp_path)[0]
    os.truncate(path, path.stat().st_size - 1)
    store = ShardStore(tmp_path, "07")
    assert store.recover() == {BTC.name: id_of(1)}
    assert f"{path}: torn off at byte" in caplog.text
    assert aside(tmp_path) == []
    read(store, 2, 3)
    store.commit()
    (kept,) = aside(tmp_path)
    assert kept.startswith("_aside/07.00000001-00000001.spool.") and kept.endswith(".aside")
    assert (seqs(tmp_path), spools(tmp_path)) == ([1, 2, 3], [])


def test_nothing_is_taken_from_behind_a_hole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Else the position would jump over rows that the bus may still have."""
    store = opened(tmp_path)
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
    assert "wrong checksum" in caplog.text
    assert f"rows of {BTC.name} before {id_of(3)} are missing" in caplog.text
    read(store, 2, 3, 4)
    store.commit()
    assert (seqs(tmp_path), seqs(tmp_path, symbol="ETH-USDT"), len(aside(tmp_path))) == ([1, 2, 3, 4], [1], 1)


def test_a_manifest_that_is_lost_leaves_no_hole(tmp_path: Path) -> None:
    store = opened(tmp_path)
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


def test_a_paused_writer_that_wakes_does_no_harm(tmp_path: Path) -> None:
    paused = opened(tmp_path)
    read(paused, 1)
    successor = opened(tmp_path)
    read(successor, 2, 3)
    # awake: it reads and spools on, it does not know yet
    read(paused, 2)
    successor.commit()
    read(paused, 3, 4)
    with pytest.raises(Fenced):
        paused.commit()
    read(paused, 5)
    paused.close()
    read(successor, 4)
    assert (successor.rows, seqs(tmp_path)) == (1, [1, 2, 3])
    # what both had read lies in two spools now, what only the paused one had read in its own
    last = ShardStore(tmp_path, "07")
    assert last.recover() == {BTC.name: id_of(5)}
    read(last, 5, 6)
    last.commit()
    assert (seqs(tmp_path), spools(tmp_path), aside(tmp_path)) == ([1, 2, 3, 4, 5, 6], [], [])


def test_what_a_woken_writer_alone_had_read_stays_on_the_disk(tmp_path: Path) -> None:
    """It wrote that to a file which its successor had looked through before."""
    paused = opened(tmp_path)
    read(paused, 1)
    successor = opened(tmp_path)
    read(paused, 2)
    successor.commit()
    assert seqs(tmp_path) == [1]
    last = opened(tmp_path)
    last.commit()
    assert (seqs(tmp_path), spools(tmp_path)) == ([1, 2], [])


def test_a_woken_writer_whose_bus_lost_what_only_the_successor_had_read(tmp_path: Path) -> None:
    paused = opened(tmp_path)
    read(paused, 1)
    successor = opened(tmp_path)
    read(successor, 2, 3)
    # by now the bus has no 2 and 3 any more
    read(paused, 4)
    last = ShardStore(tmp_path, "07")
    assert last.recover() == {BTC.name: id_of(4)}
    last.commit()
    assert (seqs(tmp_path), aside(tmp_path)) == ([1, 2, 3, 4], [])


def test_what_was_spooled_while_commits_ran_is_all_there(tmp_path: Path) -> None:
    """Killed at the end, with whatever the commits had not got yet."""
    count = 6000
    store = opened(tmp_path)
    reading = threading.Thread(target=lambda: [read(store, seq, seq + 1) for seq in range(1, count, 2)])
    reading.start()
    while reading.is_alive():
        store.commit()
        store.sync()
    reading.join(30)
    store.close()
    opened(tmp_path).commit()
    assert (seqs(tmp_path), spools(tmp_path)) == (list(range(1, count + 1)), [])


def test_a_spool_that_cannot_be_written_is_made_good_by_a_commit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    (tmp_path / "_spool/07").rmdir()
    for seq in (1, 2):
        with pytest.raises(FileNotFoundError):
            read(store, seq)
    store.commit()
    assert seqs(tmp_path) == [1, 2]
    # held by the files: nothing is left to spool
    store.spool()
    (tmp_path / "_spool/07").mkdir()
    read(store, 3)
    with caplog.at_level(logging.INFO):
        assert ShardStore(tmp_path, "07").recover() == {BTC.name: id_of(3)}
    assert "1 rows that an earlier writer had read are committed with the next ones" in caplog.text


def test_several_streams_in_one_round(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, QUOTES, 1, quote(1))
    store.add_many(rows(BTC, [(id_of(1), trade(1)), (id_of(2), trade(2))]))
    store.spool()
    store.spool()
    again = ShardStore(tmp_path, "07")
    assert again.recover() == {QUOTES.name: id_of(1), BTC.name: id_of(2)}
    assert again.rows == 3


def test_a_spool_needs_a_shard(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"recover\(\) comes first"):
        ShardStore(tmp_path, "07").spool()
