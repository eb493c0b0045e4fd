"""What an earlier gateway of this feed spilled and could no longer write: the next one writes it, if nobody
wrote in between.

The fences show whether somebody did: they must still name the gateway that spilled, or one that had begun
to write this spill and nothing else. Each such gateway records its token in the folder before it raises the
fences, together with the token that it found there. What a fenced gateway had spilled stays on disk and is
reported, never merged.
"""

import asyncio
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from services.gateway.spill.dir_lock import LOCK
from services.gateway.spill.segment import Bus, SpillError
from services.gateway.spill.spill import Budget, Spill
from services.gateway.spill.spill_folder import SpillFolder, find
from tickbus.protocol.codec import decode
from tickbus.protocol.names import Keys, Stream
from tickbus.redis.link import Connection
from tickbus.redis.registry import read_heads
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.fences import Fence
from tickbus.writer.heads import EMPTY_HEAD, HeadBuilder, stored_event
from tickbus.writer.publisher import Publisher
from tickbus.writer.replay_buffer import streams_of
from tickbus.writer.transaction import Transaction

log = logging.getLogger("tickbus.gateway")

_BATCH = 5_000
_PROGRESS_SECONDS = 5.0
_OF_ANOTHER_BUS = (
    "%s: spilled for the bus at %s, which is another one; it stays on disk and is not merged; "
    "fix: give the gateways of each bus their own --spill-dir"
)
_NOT_MERGED = "%s: another gateway wrote after this spill; it stays on disk and is not merged"


class TakeoverRecord(msgspec.Struct, array_like=True, frozen=True):
    holder: str
    """Token of a gateway that meant to write this spill before anything else."""
    after: str
    """Token that it found in the fences."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(TakeoverRecord).decode


def succession(folder: SpillFolder, records: Iterable[TakeoverRecord]) -> set[str]:
    """Return the tokens of the gateways after which nothing was written but this spill."""
    assert folder.owner is not None
    holders = {folder.owner.holder}
    for record in records:
        if record.after in holders:
            holders.add(record.holder)
    return holders


def is_ours(
    folder: SpillFolder, records: Iterable[TakeoverRecord], fences: Mapping[int, Fence], bus: Bus
) -> bool:
    """Whether nobody else wrote since: no fence is newer than the spill, except those its records raised.

    Older fences mean that Redis lost its history, or that this is another bus.
    """
    assert folder.owner is not None
    holders = succession(folder, records)
    may_be_same = folder.owner.bus.may_be(bus)
    return all(
        (fence.epoch < folder.owner.epoch and may_be_same) or fence.holder in holders
        for fence in fences.values()
    )


@dataclass
class SpillRecovery:
    """Spills found at startup, which are ours if the fences say so."""

    spills: list[tuple[SpillFolder, Spill]]
    bus: Bus

    @classmethod
    def find(
        cls, spill_dir: Path, feed: str, keys: Keys, holder: str, fences: Mapping[int, Fence], bus: Bus
    ) -> "SpillRecovery":
        """Survey the folders before the fences are raised. Blocking.

        Records `holder`, our token, in those after which nobody else wrote.
        """
        writers: dict[str, StreamWriter] = {}

        def resolve(name: str) -> StreamWriter:
            if name not in writers:
                writers[name] = StreamWriter(keys, Stream.parse(name))
            return writers[name]

        spills = []
        for folder in find(spill_dir, feed):
            log.info("spill: %s", folder)
            if folder.locked or folder.owner is None:
                continue
            records = _read_records(folder.path)
            if not is_ours(folder, records, _fences_of(folder, fences), bus):
                _report(folder, bus)
                continue
            after = next(
                (
                    fence.holder
                    for fence in _fences_of(folder, fences).values()
                    if fence.epoch >= folder.owner.epoch
                ),
                folder.owner.holder,
            )
            try:
                spill = Spill.reopen(folder, Budget(0), resolve)
            except SpillError as error:
                log.error("spill not recovered: %s; it stays on disk", error)
                continue
            _write_records(folder.path, [*records, TakeoverRecord(holder, after)])
            spills.append((folder, spill))
        return cls(spills, bus)

    async def write(
        self, publisher: Publisher, keys: Keys, link: Connection, before: Mapping[int, Fence]
    ) -> int:
        """Once the fences are raised, write what was spilled and is not stored. Return the number of entries.

        `before`: the fences as they were.
        """
        written = 0
        for folder, spill in self.spills:
            if not is_ours(folder, _read_records(folder.path), _fences_of(folder, before), self.bus):
                _report(folder, self.bus)
                await asyncio.to_thread(_write_records, folder.path, _read_records(folder.path)[:-1])
                spill.close()
                continue
            written += await _drain(spill, publisher, keys, link)
        return written


def _report(folder: SpillFolder, bus: Bus) -> None:
    assert folder.owner is not None
    if folder.owner.bus.may_be(bus):
        log.error(_NOT_MERGED, folder.path)
    else:
        log.error(_OF_ANOTHER_BUS, folder.path, folder.owner.bus.address)


async def _drain(spill: Spill, publisher: Publisher, keys: Keys, link: Connection) -> int:
    total, written, reported_at = len(spill), 0, time.monotonic()
    heads: dict[StreamWriter, HeadBuilder] = {}
    while len(spill):
        entries = await asyncio.to_thread(spill.peek, _BATCH)
        await _load_heads(heads, entries, publisher, keys, link)
        fresh = [
            entry
            for entry in entries
            if (entry.ms, entry.seq) > (heads[entry.stream].ms, heads[entry.stream].seq)
        ]
        for entry in fresh:
            heads[entry.stream].add(entry, decode(entry.field, entry.payload))
        if fresh:
            transaction = Transaction(fresh[-1].ms)
            transaction.entries, transaction.heads = (
                fresh,
                {stream: heads[stream].pack() for stream in streams_of(fresh)},
            )
            await publisher.commit(transaction)
            written += len(fresh)
        await asyncio.to_thread(spill.release, len(entries))
        if time.monotonic() - reported_at > _PROGRESS_SECONDS:
            reported_at = time.monotonic()
            log.info("writing spilled entries: %d of %d left", len(spill), total)
    spill.close()
    return written


async def _load_heads(
    heads: dict[StreamWriter, HeadBuilder],
    entries: list[Entry],
    publisher: Publisher,
    keys: Keys,
    link: Connection,
) -> None:
    """Load the heads of streams not seen before."""
    new = [stream for stream in streams_of(entries) if stream not in heads]
    if not new:
        return
    found = await read_heads(link, keys, sorted({stream.shard for stream in new}))
    for stream in new:
        head, epoch = found.get(stream.name, EMPTY_HEAD), publisher.fences.held[stream.shard]
        heads[stream] = builder = HeadBuilder(head)
        if not head.epochs or head.epochs[-1][0] != epoch:
            builder.ts_event = stored_event(head, stream.stream.kind)
        builder.begin(epoch)


def _read_records(folder: Path) -> list[TakeoverRecord]:
    """Read the records from the lock file, a line each; a line not written whole was never acted upon."""
    records: list[TakeoverRecord] = []
    lock = folder / LOCK
    if not lock.exists():
        return records
    for line in lock.read_bytes().splitlines():
        try:
            records.append(_decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            break
    return records


def _write_records(folder: Path, records: Iterable[TakeoverRecord]) -> None:
    """Write the records; durable on return.

    Those already there are overwritten by themselves, so a kill half-way loses none of them.
    """
    with (folder / LOCK).open("r+b") as file:
        file.writelines(_encode(record) + b"\n" for record in records)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _fences_of(folder: SpillFolder, fences: Mapping[int, Fence]) -> Mapping[int, Fence]:
    """Return the fences that concern a spill: on a cluster, that of its shard."""
    lane = folder.owner.lane if folder.owner is not None else ""
    return {shard: fence for shard, fence in fences.items() if not lane or shard == int(lane)}
