"""What stands on disks: damaged recordings, spools, manifests, spills, captures, and foreign files beside.

An input is the damage: pieces of MessagePack, each [what to do, which file, where, bytes].
"""

import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pyarrow as pa
from gateway.spill.spilled import entries, stream_of
from recorder.recorded import (
    BARS,
    BTC,
    QUOTES,
    SIGNALS,
    add,
    bar,
    gap,
    id_of,
    open_store,
    quote,
    signal,
    trade,
)
from vendors.examples import EXAMPLES

from fuzz.engine import Pieces, Run, Target
from fuzz.hostile import damaged_bytes, damaged_msgpack
from services.archive.reader import read_recorded, recorded_feeds
from services.gateway.spill.recovery import SpillRecovery
from services.gateway.spill.segment import Bus, Owner, SpillError
from services.gateway.spill.spill import Budget, Spill
from services.gateway.spill.spill_folder import find
from services.recorder.shard_store import ShardStore
from services.simulator.capture import Capture
from services.simulator.tape import TapeTicks
from tickbus.errors import ConfigError, TickbusError
from tickbus.protocol.names import Keys
from tickbus.writer.fences import Fence

_FOREIGN = (
    "x",
    ".hidden",
    "00000001",
    "99999999.json",
    "00000099.json",
    "x.json",
    "s07-00000009.parquet",
    "x.parquet",
    "00000001-00000009.spool",
    "00000009.segment",
    "\udcff.segment",
    "part-0.parquet",
    "lock",
)


def make_damage(chance: Random) -> Pieces:
    pieces = []
    for _ in range(chance.choice((1, 1, 2, 4))):
        what = chance.choice(
            ("damage", "damage", "damage", "sealed", "text", "remove", "empty", "swap", "file", "folder")
        )
        seed = chance.randrange(1 << 30)
        name = chance.choice(_FOREIGN).encode("utf-8", "surrogateescape")
        pieces.append(msgpack.packb([what, chance.randrange(1 << 16), seed, name]))
    return pieces


def apply(damage: Pieces, folder: Path) -> list[Path]:
    """Do the damage. Return the files that are not as they were written."""
    touched = []
    for piece in damage:
        try:
            what, which, seed, name = msgpack.unpackb(piece)
        except ValueError:
            continue
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        folders = sorted(path for path in folder.rglob("*") if path.is_dir())
        if not paths:
            continue
        path, chance = paths[which % len(paths)], Random(seed)
        other = folders[which % len(folders)] / name.decode("utf-8", "surrogateescape")
        with suppress(OSError):
            _damage(what, path, chance, other, paths)
        touched += [path, other]
    return touched


def _damage(what: str, path: Path, chance: Random, other: Path, paths: list[Path]) -> None:
    data = path.read_bytes()
    if what == "damage":
        path.write_bytes(damaged_bytes(chance, data))
    elif what == "sealed":
        path.write_bytes(_resealed(chance, data))
    elif what == "text" and path.suffix == ".json":
        path.write_bytes(data.replace(*chance.choice(_TEXTS)))
    elif what == "remove":
        path.unlink()
    elif what == "empty":
        path.write_bytes(bytes(chance.choice((0, 1, 8, 1000))))
    elif what == "swap":
        path.write_bytes(chance.choice(paths).read_bytes())
    elif what == "file" and not other.exists():
        other.write_bytes(chance.choice((b"", b"foreign", data, damaged_bytes(chance, data))))
    elif what == "folder" and not other.exists():
        other.mkdir()


_TEXTS = (
    (b'"format":1', b'"format":2'),
    (b'"positions":{', b'"positions":{"x":"1-1",'),
    (b"-", b""),
    (b'"rows":', b'"rows":9'),
    (b"trade/", b"../"),
    (b'"number":', b'"number":9'),
    (b"1", b"\xff"),
    (b":binance:", b":"),
    (b'"7', b'"x'),
)


def _resealed(chance: Random, data: bytes) -> bytes:
    """Damage the first record of a spool, and give it the checksum of what it says now: a foreign writer."""
    if data[:8] != b"tbspool1" or len(data) < 17:
        return damaged_bytes(chance, data, 1)
    length = int.from_bytes(data[8:12], "little")
    body = damaged_msgpack(chance, data[16 : 16 + length])
    head = len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little")
    return data[:8] + head + body + data[16 + length :]


class _Copies:
    """A folder that is made once, and copied for each input."""

    def __init__(self, folder: Path) -> None:
        self._original = folder / "original"
        self._copy = folder / "copy"

    @property
    def original(self) -> Path:
        return self._original

    def fresh(self) -> Path:
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._original, self._copy)
        return self._copy


def record(folder: Path) -> None:
    """Two commits of every kind, and rows in the spool of a writer that died."""
    store = open_store(folder)
    for first in (1, 11):
        for seq in range(first, first + 10):
            add(store, BTC, seq, gap() if seq == 5 else trade(seq))
            add(store, QUOTES, seq, quote(seq))
            add(store, SIGNALS, seq, signal(seq))
        add(store, BARS, first, bar())
        store.spool()
        store.commit()
    for seq in range(21, 26):
        add(store, BTC, seq, trade(seq))
        store.spool()
    store.close()


def messages(folder: Path) -> list[Any]:
    return list(read_recorded(folder, ("trade", "quote", "bar", "signal", "gap")))


@contextmanager
def open_recording(folder: Path) -> Iterator[Run]:
    """A recorder that takes the folder over, writes on, and leaves nothing double; a reader of the folder."""
    copies = _Copies(folder)
    record(copies.original)

    def run(damage: Pieces) -> None:
        data_dir = copies.fresh()
        touched = apply(damage, data_dir)
        with suppress(OSError, TickbusError):  # documented: the message names the file
            store = ShardStore(data_dir, "07")
            store.recover()
            add(store, BTC, 30, trade(30))
            store.spool()
            store.commit()
            store.close()
        if not any(path.suffix in (".parquet", ".json") for path in touched):
            ids = [(stream.name, id) for stream, id, _ in messages(data_dir)]
            assert len(ids) == len(set(ids)), f"doubled: {sorted(ids)}"
            assert (BTC.name, id_of(20)) in ids, f"lost what a manifest names: {ids}"

    yield run


@contextmanager
def open_archive(folder: Path) -> Iterator[Run]:
    """Readers of a damaged recording: what fits the schema is returned, or a documented error raised."""
    copies = _Copies(folder)
    record(copies.original)

    def run(damage: Pieces) -> None:
        data_dir = copies.fresh()
        apply(damage, data_dir)
        for read in (messages, recorded_feeds):
            with suppress(OSError, pa.ArrowException, TickbusError):
                read(data_dir)

    yield run


@contextmanager
def open_spill(folder: Path) -> Iterator[Run]:
    """A gateway that starts beside what an earlier one spilled."""
    copies = _Copies(folder)
    owner = Owner("vendor", 3, "host:1:ab")
    spill = Spill(copies.original, owner, Budget(1 << 30), stream_of, 2_000)
    for first in range(1, 100, 20):
        assert spill.append(entries(first, first + 19))
    spill.close()
    fences = {shard: Fence(3, owner.holder) for shard in range(Keys().shards)}
    # a successor that was killed before it raised the fences has left its record
    for _, begun in SpillRecovery.find(copies.original, "vendor", Keys(), "host:2:cd", fences, Bus()).spills:
        begun.close()

    def run(damage: Pieces) -> None:
        spill_dir = copies.fresh()
        apply(damage, spill_dir)
        with suppress(OSError):
            for found in find(spill_dir, "vendor"):
                assert str(found)
                with suppress(SpillError):
                    _drain(Spill.reopen(found, Budget(0), stream_of))
        spill_dir = copies.fresh()
        apply(damage, spill_dir)
        with suppress(OSError):
            recovery = SpillRecovery.find(spill_dir, "vendor", Keys(), "host:3:ef", fences, Bus())
            for _, reopened in recovery.spills:
                reopened.close()

    yield run


def _drain(spill: Spill) -> None:
    last = 0
    try:
        while len(spill):
            some = spill.peek(7)
            assert some, "entries that cannot be read"
            assert some[0].seq > last, f"order: {some[0]} after {last}"
            last = some[-1].seq
            spill.release(len(some))
    finally:
        spill.close()


def make_capture(chance: Random) -> Pieces:
    frames = [frame.encode() for frame, *_ in EXAMPLES["binance"].golden]
    lines = [b"%d %b" % (1_800_000_000_000_000_000 + number, chance.choice(frames)) for number in range(6)]
    tape = [b"%d,%d,%d,P,0,0" % (34_200_000 + number, 140_000 + number, 100) for number in range(4)]
    return [damaged_bytes(chance, b"\n".join(lines), 3), damaged_bytes(chance, b"\n".join(tape), 3)]


@contextmanager
def open_capture(folder: Path) -> Iterator[Run]:
    """The simulator's sources: a line that is none is a ConfigError."""

    def run(pieces: Pieces) -> None:
        if len(pieces) < 2:
            return
        capture, tape = folder / "c.txt", folder / "x_20131009_trade.csv"
        capture.write_bytes(pieces[0])
        tape.write_bytes(pieces[1])
        for source in (Capture([capture]), TapeTicks([tape], "BAC.US")):
            with suppress(ConfigError):
                list(source)

    yield run


TARGETS = [
    Target("recording", make_damage, open_recording, short=30),
    Target("archive", make_damage, open_archive, short=30),
    Target("spill", make_damage, open_spill, short=60),
    Target("capture", make_capture, open_capture, short=150),
]
