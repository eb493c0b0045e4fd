"""A full or failing disk: half-written data does not count, existing data stays, appends resume with room."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
from gateway.spill.spilled import drained, entries, files, opened, stream_of
from support.small_disk import fill

from services.gateway.spill.dir_lock import check_spill_dir
from services.gateway.spill.spill import Budget, Spill
from services.gateway.spill.spill_folder import find
from tickbus.errors import ConfigError


def contents(disk: Path) -> dict[str, bytes]:
    return {name: (disk / name).read_bytes() for name in files(disk) if name != "ballast"}


@pytest.mark.parametrize("segment_bytes", [1 << 20, 100], ids=["in a segment", "at a new segment"])
def test_full_disk_refuses_whole_appends(small_disk: Path, segment_bytes: int) -> None:
    spill = opened(small_disk, segment_bytes=segment_bytes)
    assert spill.append(entries(1, 100))
    ballast = fill(small_disk, 8192)
    before, state = contents(small_disk), (len(spill), spill.bytes)
    for _ in range(3):
        assert not spill.append(entries(101, 1000))
        assert spill.last_error == f"{spill.folder}: No space left on device"
        assert (contents(small_disk), (len(spill), spill.bytes)) == (before, state)
    assert spill.append(entries(101, 110))
    assert not spill.append(entries(111, 1000))
    [folder] = find(small_disk, "vendor")
    assert (folder.entries, folder.torn, folder.damage) == (110, 0, None)
    ballast.unlink()
    assert spill.append(entries(111, 1000))
    assert spill.last_error == ""
    assert drained(spill) == entries(1, 1000)
    assert files(small_disk) == []


def test_disk_without_any_room_leaves_no_folder(small_disk: Path) -> None:
    budget = Budget(1 << 30)
    spill = Spill(small_disk, opened(small_disk).owner, budget, stream_of)
    ballast = fill(small_disk, 0)
    assert not spill.append(entries(1, 10))
    assert (len(spill), spill.bytes, budget.used, files(small_disk), spill.folder.exists()) == (
        0,
        0,
        0,
        ["ballast"],
        False,
    )
    ballast.unlink()
    assert spill.append(entries(1, 10))
    assert drained(spill) == entries(1, 10)


def test_full_disk_still_drains(small_disk: Path) -> None:
    spill = opened(small_disk)
    spill.append(entries(1, 500))
    fill(small_disk, 0)
    spill.close()
    assert drained(Spill.reopen(find(small_disk, "vendor")[0], Budget(1 << 30), stream_of)) == entries(1, 500)
    assert files(small_disk) == ["ballast"]


def test_read_only_disk_refuses_appends_and_keeps_entries(small_disk: Path) -> None:
    spill = opened(small_disk)
    spill.append(entries(1, 10))
    spill.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(
        ConfigError, match=f"^--spill-dir {small_disk}: Read-only file system; name a folder on a local disk"
    ):
        check_spill_dir(small_disk)
    other = opened(small_disk / "other")
    assert not other.append(entries(1, 10))
    assert other.last_error == f"{other.folder}: Read-only file system"
    assert [folder.entries for folder in find(small_disk, "vendor")] == [10]


def test_check_spill_dir_reports_unusable_folder(tmp_path: Path) -> None:
    check_spill_dir(tmp_path / "new/spill")
    assert list((tmp_path / "new/spill").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"--spill-dir .*/file: (Not a directory|File exists); name a folder"
    ):
        check_spill_dir(tmp_path / "file")


@pytest.mark.parametrize("fails", ["fsync", "fsync and ftruncate"])
def test_write_that_is_not_durable_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The bytes may all be in the file; after a restart they are not taken for entries."""
    spill = opened(tmp_path, segment_bytes=1 << 20)
    assert spill.append(entries(1, 10))

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        for name in fails.split(" and "):
            patched.setattr(os, name, fail)
        assert not spill.append(entries(11, 20))
        assert spill.last_error == f"{spill.folder}: Input/output error"
    # another batch in its place, as the gateway may have dropped the first one
    assert spill.append(entries(21, 25))
    spill.close()
    [folder] = find(tmp_path, "vendor")
    assert (folder.entries, folder.torn, folder.damage) == (15, 0, None)
    assert drained(Spill.reopen(folder, Budget(1 << 30), stream_of)) == [*entries(1, 10), *entries(21, 25)]
    assert files(tmp_path) == []
