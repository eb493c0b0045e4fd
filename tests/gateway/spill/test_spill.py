"""The spill as a queue: against a list, across restarts, within its budget, with one owner; and damaged."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from gateway.spill.spilled import OWNER, drained, entries, files, opened, seqs, stream_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.paths import ROOT

from services.gateway.spill.segment import Header, Owner, SpillError, encode_header
from services.gateway.spill.spill import Budget, Spill
from services.gateway.spill.spill_folder import find, spill_folder_path
from tickbus.writer.entry import Entry

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where fsync costs nothing, for tests that run hundreds of times."""


class Queue(RuleBasedStateMachine):
    """Two lanes in one budget. A restart offers again all segments that were not released entirely."""

    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp(dir=FAST))
        self.budget = Budget(6_000)
        self.epoch = 0
        self.seq = 0
        self.begin()

    def begin(self) -> None:
        """Start a new process: its own spills behind those that it found."""
        self.epoch += 1
        found = find(self.dir, "vendor")
        self.budget = Budget(6_000)
        self.old = [Spill.reopen(folder, self.budget, stream_of) for folder in found]
        self.lanes = [
            Spill(self.dir, Owner("vendor", self.epoch, "h:1", lane), self.budget, stream_of, 700)
            for lane in ("", "b")
        ]
        self.model: dict[Spill, list[Entry]] = {spill: [] for spill in self.lanes}
        for spill in self.old:
            self.model[spill] = spill.peek(1 << 30)

    def spill(self, which: int) -> Spill:
        spills = list(self.model)
        return spills[which % len(spills)]

    @rule(lane=st.integers(0, 1), count=st.integers(0, 30), size=st.integers(4, 60))
    def append(self, lane: int, count: int, size: int) -> None:
        spill = self.lanes[lane]
        batch = entries(self.seq + 1, self.seq + count, size)
        before = (len(spill), spill.bytes, self.budget.used)
        if spill.append(batch):
            self.seq += count
            self.model[spill] += batch
            assert count == 0 or spill.last_error == ""
        else:
            assert (len(spill), spill.bytes, self.budget.used) == before
            assert spill.last_error == "--spill-bytes 6000 used up"
            assert before[2] + count * (size // 4) > 6_000 - 3_000

    @rule(which=st.integers(0, 9), limit=st.integers(1, 40), part=st.integers(0, 40))
    def take(self, which: int, limit: int, part: int) -> None:
        spill = self.spill(which)
        found = spill.peek(limit)
        assert found == self.model[spill][:limit]
        released = min(part, len(found))
        spill.release(released)
        del self.model[spill][:released]

    @rule()
    def restart(self) -> None:
        expected = {spill.folder: rest for spill, rest in self.model.items() if rest}
        for spill in self.model:
            spill.close()
        assert self.budget.used == 0
        self.begin()
        # all that was not released, preceded by what is in the same segment and is offered again
        assert {spill.folder for spill in self.old} == set(expected)
        for spill in self.old:
            rest = expected[spill.folder]
            assert self.model[spill][-len(rest) :] == rest
            assert seqs(self.model[spill]) == sorted(seqs(self.model[spill]))

    @invariant()
    def counts(self) -> None:
        for spill, rest in self.model.items():
            assert len(spill) == len(rest)
            on_disk = sum(path.stat().st_size for path in spill.folder.glob("*"))
            assert spill.bytes == on_disk
            assert spill.folder.exists() == bool(rest)
        assert self.budget.used == sum(spill.bytes for spill in self.model) <= 6_000

    def teardown(self) -> None:
        for spill, rest in self.model.items():
            assert drained(spill) == rest
        assert files(self.dir) == []
        shutil.rmtree(self.dir)


Queue.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestQueue = Queue.TestCase


def test_nothing_is_on_disk_before_first_entry_and_after_last(tmp_path: Path) -> None:
    spill = opened(tmp_path / "spill")
    assert not (tmp_path / "spill").exists()
    assert spill.append([])
    for _ in range(2):
        assert spill.append(entries(1, 10))
        assert (spill.folder / "lock").exists()
        assert drained(spill) == entries(1, 10)
        assert not spill.folder.exists()


def test_segments_are_rolled_and_removed_one_by_one(tmp_path: Path) -> None:
    spill = opened(tmp_path)
    for first in range(1, 400, 20):
        assert spill.append(entries(first, first + 19))
    names = [path.name for path in sorted(spill.folder.glob("*.segment"))]
    assert names == [f"{number:08}.segment" for number in range(1, len(names) + 1)] and len(names) > 4
    assert all(path.stat().st_size < 4_000 for path in spill.folder.glob("*.segment"))
    assert spill.peek(100) == entries(1, 100)
    spill.release(100)
    left = [path.name for path in sorted(spill.folder.glob("*.segment"))]
    assert left == names[-len(left) :] and len(left) < len(names)
    with pytest.raises(ValueError, match=r"cannot release 300 entries: only \d+ were read"):
        spill.peek(100)
        spill.release(300)


def test_two_lanes_share_a_budget(tmp_path: Path) -> None:
    budget = Budget(2_500)
    lanes = [Spill(tmp_path, Owner("vendor", 7, "host:1:ab", lane), budget, stream_of) for lane in ("a", "b")]
    assert [lane.folder.name for lane in lanes] == ["7-host_1_ab-a", "7-host_1_ab-b"]
    assert lanes[0].append(entries(1, 40))
    assert not lanes[1].append(entries(1, 40))
    assert lanes[1].append(entries(1, 5))
    drained(lanes[0])
    assert lanes[1].append(entries(6, 40))
    assert drained(lanes[1]) == entries(1, 40)
    assert budget.used == 0


def test_spill_of_live_process_is_found_but_not_opened(tmp_path: Path) -> None:
    spill = opened(tmp_path)
    spill.append(entries(1, 10))
    code = """
import sys
from pathlib import Path
from gateway.spill.spilled import opened, stream_of
from services.gateway.spill.spill_folder import find
from services.gateway.spill.segment import SpillError
from services.gateway.spill.spill import Budget, Spill
[folder] = find(Path(sys.argv[1]), "vendor")
print(folder.entries, folder.locked, folder.owner.epoch, folder.owner.holder)
try:
    Spill.reopen(folder, Budget(1 << 30), stream_of)
except SpillError as error:
    print(error)
spill = opened(Path(sys.argv[1]))
print(spill.append([]), spill.last_error)
from gateway.spill.spilled import entries
print(spill.append(entries(1, 1)), spill.last_error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.splitlines() == [
        "10 True 7 host:1234:ab12",
        f"{spill.folder} is locked by a live process",
        "True ",
        f"False {spill.folder}: locked by a live process",
    ]
    assert drained(spill) == entries(1, 10)


def test_earlier_spill_of_same_owner_is_not_mixed_with_new_one(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.append(entries(1, 3))
    first.close()
    second = opened(tmp_path)
    assert not second.append(entries(4, 5))
    assert second.last_error == f"{first.folder}: an earlier spill of this owner is here; reopen it"
    again = Spill.reopen(find(tmp_path, "vendor")[0], Budget(10), stream_of)
    with pytest.raises(ValueError, match="belong to another epoch"):
        again.append(entries(4, 5))
    assert drained(again) == entries(1, 3)
    assert second.append(entries(4, 5))
    second.close()


def test_folders_are_found_by_epoch_with_their_owner(tmp_path: Path) -> None:
    assert find(tmp_path, "vendor") == []
    for epoch, lane in ((11, ""), (9, "b"), (9, "a")):
        spill = opened(tmp_path, owner=Owner("vendor", epoch, "host:1:ab", lane))
        spill.append(entries(1, epoch))
        spill.close()
    (tmp_path / "vendor" / "8-empty").mkdir()
    (tmp_path / "vendor" / "8-begun").mkdir()
    (tmp_path / "vendor" / "8-begun" / "00000001.segment").write_bytes(encode_header(Header(OWNER, 0))[:40])
    (tmp_path / "vendor" / "a-file").write_text("")
    found = find(tmp_path, "vendor")
    assert [(item.owner, item.entries, item.locked, item.torn, item.damage) for item in found] == [
        (Owner("vendor", 9, "host:1:ab", "a"), 9, False, 0, None),
        (Owner("vendor", 9, "host:1:ab", "b"), 9, False, 0, None),
        (Owner("vendor", 11, "host:1:ab"), 11, False, 0, None),
    ]
    assert (
        str(found[2])
        == f"{tmp_path}/vendor/11-host_1_ab: 11 entries in {found[2].bytes} bytes, epoch 11 of host:1:ab"
    )
    assert sorted(path.name for path in (tmp_path / "vendor").iterdir()) == [
        "11-host_1_ab",
        "9-host_1_ab-a",
        "9-host_1_ab-b",
        "a-file",
    ]
    assert find(tmp_path, "other") == []


# damage


def write_spill(tmp_path: Path) -> tuple[Path, list[Path], list[int]]:
    """Write a spill of some segments. Return its folder, segments, and the last counter in each."""
    spill = opened(tmp_path)
    segments: list[Path] = []
    ends: list[int] = []
    for first in range(1, 200, 10):
        spill.append(entries(first, first + 9))
        segments = sorted(spill.folder.glob("*.segment"))
        ends[len(segments) - 1 :] = [first + 9]
    spill.close()
    return spill.folder, segments, ends


def reopened(tmp_path: Path) -> Spill:
    [found] = find(tmp_path, "vendor")
    return Spill.reopen(found, Budget(1 << 30), stream_of)


def test_torn_end_is_reported_and_ignored(tmp_path: Path) -> None:
    _, segments, _ = write_spill(tmp_path)
    with segments[-1].open("ab") as file:
        file.write(segments[0].read_bytes()[-50:-20])
    [found] = find(tmp_path, "vendor")
    assert (found.entries, found.torn, found.damage) == (200, 30, None)
    assert str(found).endswith("; 30 bytes at the end are a torn write")
    spill = reopened(tmp_path)
    assert drained(spill) == entries(1, 200)
    assert files(tmp_path) == []


def test_damage_in_the_middle_ends_spill_and_is_set_aside(tmp_path: Path) -> None:
    folder, segments, ends = write_spill(tmp_path)
    bad = segments[1]
    data = bytearray(bad.read_bytes())
    data[-1] ^= 1  # the last record of a segment that is not the last
    bad.write_bytes(data)
    [found] = find(tmp_path, "vendor")
    last = ends[1] - 10
    assert found.entries == last
    assert found.damage is not None
    assert (found.damage.path, found.damage.offset + found.damage.bytes) == (bad, len(data))
    assert (found.damage.behind, found.damage.bytes_behind) == (
        tuple(segments[2:]),
        sum(path.stat().st_size for path in segments[2:]),
    )
    text = f"00000002.segment is unreadable from byte {found.damage.offset} on ({found.damage.bytes} bytes), "
    assert f"{text}and {len(segments) - 2} segments" in str(found)
    spill = reopened(tmp_path)
    assert spill.peek(1 << 20) == entries(1, last)
    spill.release(last - 1)
    assert bad.exists()
    spill.release(1)
    names = [f"{path.name}.corrupt" for path in segments[1:]]
    assert files(folder) == names
    [found] = find(tmp_path, "vendor")
    assert (found.entries, found.damage, found.aside) == (
        0,
        None,
        sum((folder / name).stat().st_size for name in names),
    )
    assert str(found).endswith(f"owner unknown; {found.aside} bytes set aside")
    with pytest.raises(SpillError, match="no readable segment names its owner"):
        Spill.reopen(found, Budget(1), stream_of)


@pytest.mark.parametrize("number", [0, 2, -1])
def test_lost_segment_is_damage_unless_first_or_last(tmp_path: Path, number: int) -> None:
    _, segments, ends = write_spill(tmp_path)
    segments[number].unlink()
    [found] = find(tmp_path, "vendor")
    delivered = drained(reopened(tmp_path))
    assert (
        delivered == {0: entries(ends[0] + 1, 200), 2: entries(1, ends[1]), -1: entries(1, ends[-2])}[number]
    )
    assert (found.damage is not None) is (number == 2)
    assert (files(tmp_path) == []) is (number != 2)


def test_segment_of_another_owner_is_damage(tmp_path: Path) -> None:
    _, segments, ends = write_spill(tmp_path)
    other = opened(tmp_path / "other", owner=Owner("vendor", 8, "host:2:cd"))
    other.append(entries(1, 10))
    other.close()
    shutil.copy(next(other.folder.glob("*.segment")), segments[-1])
    found = drained(reopened(tmp_path))
    assert found == entries(1, ends[-2])[: len(found)]
    assert f"{segments[-1].name}.corrupt" in files(segments[-1].parent)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(0, 7), st.integers(0, 9))
def test_flipped_bit_never_yields_a_wrong_entry(at: int, bit: int, number: int) -> None:
    with tempfile.TemporaryDirectory(dir=FAST) as name:
        folder, segments, _ = write_spill(Path(name))
        path = segments[number % len(segments)]
        data = bytearray(path.read_bytes())
        data[at % len(data)] ^= 1 << bit
        path.write_bytes(data)
        [found] = find(Path(name), "vendor")
        if found.owner is None:
            assert path == segments[0] and found.damage is not None and found.damage.bytes == len(data)
            return
        delivered = drained(Spill.reopen(found, Budget(1 << 30), stream_of))
        assert delivered == entries(1, len(delivered))
        assert len(delivered) == found.entries < 200
        assert found.damage is not None or found.torn > 0
        assert bool(files(folder.parent)) is (found.damage is not None)


def test_corruption_on_disk_is_reported(tmp_path: Path) -> None:
    spill = opened(tmp_path)
    spill.append(entries(1, 10))
    spill.append(entries(11, 20))
    [path] = spill.folder.glob("*.segment")
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    assert spill.peek(20) == entries(1, 10)
    spill.release(10)
    with pytest.raises(SpillError, match=r"00000001.segment, byte \d+: spill record is damaged"):
        spill.peek(20)
    spill.close()


def test_folder_names_are_sanitized() -> None:
    assert spill_folder_path(Path("spill"), Owner("vendor", 3, "ho/st:1:../x", "10.0.0.1:7000")) == Path(
        "spill/vendor/3-ho_st_1_.._x-10.0.0.1_7000"
    )
