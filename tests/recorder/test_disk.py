"""No space or no access: reported, nothing lost, nothing half-visible; it continues once that is fixed."""

import ctypes
import errno
import os
import random
import subprocess
from pathlib import Path

import pytest
from recorder.recorded import BTC, add, files_of, open_store, open_store_at, plain_files, seqs, trade
from support.small_disk import fill

from services.recorder.files import check_writable
from services.recorder.shard_store import ShardStore
from tickbus.errors import ConfigError


def add_incompressible(store: ShardStore, start: int, end: int) -> None:
    """Add trades that do not compress: some 20 bytes each."""
    rng = random.Random(start)
    for seq in range(start, end):
        add(
            store,
            BTC,
            seq,
            trade(seq, price=str(rng.randrange(10**15)), size=str(rng.randrange(10**15))),
        )


def test_no_space_for_file_loses_nothing(small_disk: Path) -> None:
    store = open_store(small_disk)
    add_incompressible(store, 1, 100)
    store.commit()
    ballast = fill(small_disk, 8192)
    add_incompressible(store, 100, 2000)
    before = plain_files(small_disk)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left") as caught:
            store.commit()
        assert caught.value.errno == errno.ENOSPC
        assert plain_files(small_disk) == before
        assert store.rows == 1900
    add_incompressible(store, 2000, 2100)
    ballast.unlink()
    committed = store.commit()
    assert committed is not None and committed.rows == {"trade": 2000}
    assert seqs(small_disk) == list(range(1, 2100))
    assert open_store_at(small_disk)[1] == 2099


def test_no_space_for_manifest_loses_nothing(small_disk: Path) -> None:
    ballasts: list[Path] = []
    store = open_store(
        small_disk,
        step=lambda name: (
            ballasts.append(fill(small_disk, 0)) if name == "fsynced" and not ballasts else None
        ),
    )
    add_incompressible(store, 1, 100)
    with pytest.raises(OSError, match="No space left"):
        store.commit()
    assert plain_files(small_disk) == ["_manifests/07/00000001.json", "ballast"]
    ballasts[0].unlink()
    committed = store.commit()
    assert committed is not None and committed.number == 2
    assert seqs(small_disk) == list(range(1, 100))


def test_no_space_for_spool_loses_nothing(small_disk: Path) -> None:
    """Nothing counts as read until there is space, and nothing is lost, whether that is fixed or not."""
    store = open_store(small_disk)
    add_incompressible(store, 1, 100)
    store.spool()
    ballast = fill(small_disk, 4096)
    add_incompressible(store, 100, 300)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            store.spool()
    ballast.unlink()
    store.spool()
    add_incompressible(store, 300, 400)
    store.spool()
    store.close()
    again, position = open_store_at(small_disk)
    assert (position, again.rows) == (399, 399)
    again.commit()
    assert seqs(small_disk) == list(range(1, 400))


def test_store_continues_after_spool_filled_disk(small_disk: Path) -> None:
    store = open_store(small_disk)
    ballast = fill(small_disk, 100_000)
    written = 1
    with pytest.raises(OSError, match="No space left"):
        while True:
            add_incompressible(store, written, written + 50)
            written += 50
            store.spool()
    with pytest.raises(OSError, match="No space left"):
        store.commit()
    ballast.unlink()
    store.commit()
    store.spool()
    add_incompressible(store, written, written + 50)
    store.spool()
    store.commit()
    assert seqs(small_disk) == list(range(1, written + 50))
    store.close()
    assert [name for name in plain_files(small_disk) if name.startswith(("_spool", "_aside"))] == []


def test_disk_failure_after_manifest_delays_only_renaming(tmp_path: Path) -> None:
    """The commit has happened; the next call renames the files, and nothing is written twice."""
    failures: list[OSError] = []

    def fail(name: str) -> None:
        if name == "durable" and failures:
            raise failures.pop()

    store = open_store(tmp_path, step=fail)
    add(store, BTC, 1, trade(1))
    failures.append(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        store.commit()
    assert (files_of(tmp_path, "trade"), store.rows) == ([], 1)
    add(store, BTC, 2, trade(2))
    assert store.rows == 2
    first = store.commit()
    assert first is not None and (first.number, first.rows, store.rows) == (2, {"trade": 1}, 1)
    assert seqs(tmp_path) == [1]
    store.commit()
    assert (seqs(tmp_path), store.rows) == ([1, 2], 0)


def test_writability_check_creates_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "new/data")
    assert list((tmp_path / "new/data").iterdir()) == []


def test_file_in_place_of_folder_is_config_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(
        ConfigError, match=r"--data-dir .*/data: (Not a directory|File exists); use a writable folder"
    ) as caught:
        check_writable(tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_read_only_disk_is_config_error(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(
        ConfigError, match=f"--data-dir {small_disk}: Read-only file system; use a writable folder"
    ):
        check_writable(small_disk)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop its permissions")
def test_missing_permission_is_config_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    # file access of this thread only, not of the whole test session
    setfsuid = ctypes.CDLL(None).setfsuid
    setfsuid(65534)
    try:
        with pytest.raises(ConfigError, match="Permission denied"):
            check_writable(tmp_path)
    finally:
        setfsuid(0)
