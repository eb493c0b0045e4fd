"""Entries and spills for the tests."""

from pathlib import Path

from services.gateway.spill.segment import Owner
from services.gateway.spill.spill import Budget, Spill
from tickbus.protocol.names import Keys, Stream
from tickbus.writer.entry import Entry, StreamWriter

KEYS = Keys()
OWNER = Owner("vendor", 7, "host:1234:ab12")
STREAMS = {
    stream.name: StreamWriter(KEYS, stream)
    for stream in (Stream(kind, "vendor", symbol) for kind in ("trade", "quote") for symbol in "AB")
}
A = STREAMS["trade:vendor:A"]
NAMES = list(STREAMS)


def stream_of(name: str) -> StreamWriter:
    return STREAMS[name]


def entries(first: int, last: int, size: int = 20) -> list[Entry]:
    """Return entries with the counters first .. last, of all streams in turn, no two alike."""
    return [
        Entry(
            STREAMS[NAMES[seq % len(NAMES)]], 1_800_000_000_000 + seq, seq, b"g" if seq % 7 == 0 else b"t",
            b"%d." % seq * (size // 4), seq % 5 - 1, seq * 10,
        )
        for seq in range(first, last + 1)
    ]  # fmt: skip


def seqs(found: list[Entry]) -> list[int]:
    return [entry.seq for entry in found]


def opened(
    tmp_path: Path, max_bytes: int = 1 << 30, segment_bytes: int = 2_000, owner: Owner = OWNER
) -> Spill:
    return Spill(tmp_path, owner, Budget(max_bytes), stream_of, segment_bytes)


def drained(spill: Spill, limit: int = 100) -> list[Entry]:
    found: list[Entry] = []
    while some := spill.peek(limit):
        found += some
        spill.release(len(some))
    return found


def files(tmp_path: Path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
