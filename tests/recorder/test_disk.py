"""No room, no access: told, nothing lost, nothing half-visible; and it goes on when that is mended."""

import ctypes
import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorder.recorded import BTC, add, files_of, opened, opened_at, plain_files, seqs, trade

from services.recorder.files import check_writable
from services.recorder.shard_store import ShardStore
from tickbus.errors import ConfigError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    yield tmp_path
    # lazily: a test that failed may hold a file open
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all room but so many bytes."""
    space = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - leave)))
    return ballast


def wide(store: ShardStore, start: int, end: int) -> None:
    """Trades that do not compress: some 20 bytes each."""
    chance = random.Random(start)
    for seq in range(start, end):
        add(
            store,
            BTC,
            seq,
            trade(seq, price=str(chance.randrange(10**15)), size=str(chance.randrange(10**15))),
        )


def test_no_room_for_a_file(small_disk: Path) -> None:
    store = opened(small_disk)
    wide(store, 1, 100)
    store.commit()
    ballast = fill(small_disk, 8192)
    wide(store, 100, 2000)
    before = plain_files(small_disk)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left") as caught:
            store.commit()
        assert caught.value.errno == errno.ENOSPC
        assert plain_files(small_disk) == before
        assert store.rows == 1900
    wide(store, 2000, 2100)
    ballast.unlink()
    committed = store.commit()
    assert committed is not None and committed.rows == {"trade": 2000}
    assert seqs(small_disk) == list(range(1, 2100))
    assert opened_at(small_disk)[1] == 2099


def test_no_room_for_the_manifest(small_disk: Path) -> None:
    ballasts: list[Path] = []
    store = opened(
        small_disk,
        step=lambda name: (
            ballasts.append(fill(small_disk, 0)) if name == "fsynced" and not ballasts else None
        ),
    )
    wide(store, 1, 100)
    with pytest.raises(OSError, match="No space left"):
        store.commit()
    assert plain_files(small_disk) == ["_manifests/07/00000001.json", "ballast"]
    ballasts[0].unlink()
    committed = store.commit()
    assert committed is not None and committed.number == 2
    assert seqs(small_disk) == list(range(1, 100))


def test_no_room_for_the_spool(small_disk: Path) -> None:
    """Nothing counts as read until there is room, and nothing is lost: neither when it is mended nor when it is not."""
    store = opened(small_disk)
    wide(store, 1, 100)
    store.spool()
    ballast = fill(small_disk, 4096)
    wide(store, 100, 300)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            store.spool()
    ballast.unlink()
    store.spool()
    wide(store, 300, 400)
    store.spool()
    store.close()
    again, position = opened_at(small_disk)
    assert (position, again.rows) == (399, 399)
    again.commit()
    assert seqs(small_disk) == list(range(1, 400))


def test_a_disk_full_of_spool_goes_on_when_there_is_room(small_disk: Path) -> None:
    store = opened(small_disk)
    ballast = fill(small_disk, 100_000)
    written = 1
    with pytest.raises(OSError, match="No space left"):
        while True:
            wide(store, written, written + 50)
            written += 50
            store.spool()
    with pytest.raises(OSError, match="No space left"):
        store.commit()
    ballast.unlink()
    store.commit()
    store.spool()
    wide(store, written, written + 50)
    store.spool()
    store.commit()
    assert seqs(small_disk) == list(range(1, written + 50))
    store.close()
    assert [name for name in plain_files(small_disk) if name.startswith(("_spool", "_aside"))] == []


def test_a_disk_that_fails_between_manifest_and_names(tmp_path: Path) -> None:
    """The commit has happened; the next call gives the files their names, and nothing is written twice."""
    troubles: list[OSError] = []

    def trouble(name: str) -> None:
        if name == "durable" and troubles:
            raise troubles.pop()

    store = opened(tmp_path, step=trouble)
    add(store, BTC, 1, trade(1))
    troubles.append(OSError(errno.ENOSPC, "No space left on device"))
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


def test_a_writable_folder_is_made_and_left_clean(tmp_path: Path) -> None:
    check_writable(tmp_path / "new/data")
    assert list((tmp_path / "new/data").iterdir()) == []


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(
        ConfigError, match=r"--data-dir .*/data: (Not a directory|File exists); name a folder"
    ) as caught:
        check_writable(tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_a_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ConfigError, match=f"--data-dir {small_disk}: Read-only file system; name a folder"):
        check_writable(small_disk)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without rights")
def test_no_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    # what this thread may do with files, and nothing else of the test session
    setfsuid = ctypes.CDLL(None).setfsuid
    setfsuid(65534)
    try:
        with pytest.raises(ConfigError, match="Permission denied"):
            check_writable(tmp_path)
    finally:
        setfsuid(0)
