"""What an earlier gateway of this feed spilled and could not write any more: written by the next, if nobody wrote in between.

Whether somebody did, the fences say: they must still name the gateway that spilled, or one that had begun to write its spill and
nothing else. Each such taker puts its name into the folder before it raises the fences: its own, and the one that it found there.
What a fenced gateway held stays on the disk and is reported, never merged.
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
from services.gateway.spill.segment import SpillError
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
_TELL_SECONDS = 5.0


class TakeoverRecord(msgspec.Struct, array_like=True, frozen=True):
    holder: str
    """Token of a gateway that meant to write this spill first of all."""
    after: str
    """Token that it found in the fences."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(TakeoverRecord).decode


def succession(held: SpillFolder, records: Iterable[TakeoverRecord]) -> set[str]:
    """Tokens of those after whom nobody has written but what is in this spill."""
    assert held.owner is not None
    line = {held.owner.holder}
    for taker in records:
        if taker.after in line:
            line.add(taker.holder)
    return line


def is_ours(held: SpillFolder, records: Iterable[TakeoverRecord], fences: Mapping[int, Fence]) -> bool:
    """Whether nobody else wrote since: no fence is newer than the spill, but for those that its records raised."""
    assert held.owner is not None
    line = succession(held, records)
    return all(fence.epoch < held.owner.epoch or fence.holder in line for fence in fences.values())


@dataclass
class Inheritance:
    """Spills that were found at the start and belong to us if the fences say so."""

    spills: list[tuple[SpillFolder, Spill]]

    @classmethod
    def find(
        cls, spill_dir: Path, feed: str, keys: Keys, taker: str, fences: Mapping[int, Fence]
    ) -> "Inheritance":
        """Look through the folders before the fences are raised, and put `taker`, our token, into those that nobody else wrote after. Blocking."""
        writers: dict[str, StreamWriter] = {}

        def resolve(name: str) -> StreamWriter:
            if name not in writers:
                writers[name] = StreamWriter(keys, Stream.parse(name))
            return writers[name]

        spills = []
        for held in find(spill_dir, feed):
            log.info("spill: %s", held)
            if held.locked or held.owner is None:
                continue
            records = _read_records(held.folder)
            if not is_ours(held, records, _of_lane(held, fences)):
                log.error(
                    "%s: another gateway wrote after it; what it holds stays there and is not merged",
                    held.folder,
                )
                continue
            after = next(
                (
                    fence.holder
                    for fence in _of_lane(held, fences).values()
                    if fence.epoch >= held.owner.epoch
                ),
                held.owner.holder,
            )
            try:
                spill = Spill.reopen(held, Budget(0), resolve)
            except SpillError as error:
                log.error("%s; it stays there", error)
                continue
            _write_records(held.folder, [*records, TakeoverRecord(taker, after)])
            spills.append((held, spill))
        return cls(spills)

    async def write(
        self, publisher: Publisher, keys: Keys, link: Connection, before: Mapping[int, Fence]
    ) -> int:
        """With the fences raised: write what was spilled and is not stored; -> the number of entries. `before`: the fences as they were."""
        written = 0
        for held, spill in self.spills:
            if not is_ours(held, _read_records(held.folder), _of_lane(held, before)):
                log.error(
                    "%s: another gateway wrote after it; what it holds stays there and is not merged",
                    held.folder,
                )
                await asyncio.to_thread(_write_records, held.folder, _read_records(held.folder)[:-1])
                spill.close()
                continue
            written += await _drain(spill, publisher, keys, link)
        return written


async def _drain(spill: Spill, publisher: Publisher, keys: Keys, link: Connection) -> int:
    total, written, told = len(spill), 0, time.monotonic()
    heads: dict[StreamWriter, HeadBuilder] = {}
    while len(spill):
        entries = await asyncio.to_thread(spill.peek, _BATCH)
        await _look_up(heads, entries, publisher, keys, link)
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
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            log.info("writing what was spilled: %d of %d entries are left", len(spill), total)
    spill.close()
    return written


async def _look_up(
    heads: dict[StreamWriter, HeadBuilder],
    entries: list[Entry],
    publisher: Publisher,
    keys: Keys,
    link: Connection,
) -> None:
    """The heads of streams that were not seen before."""
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
    """They stand in the lock, a line each; a line that was not written whole was never acted upon."""
    records: list[TakeoverRecord] = []
    lock = folder / LOCK
    if not lock.exists():
        return records
    for line in lock.read_bytes().splitlines():
        try:
            records.append(_decode(line))
        except msgspec.MsgspecError:
            break
    return records


def _write_records(folder: Path, records: Iterable[TakeoverRecord]) -> None:
    """Durable on return. Those that stand there already are written over by themselves, so a kill half-way loses none of them."""
    with (folder / LOCK).open("r+b") as file:
        file.writelines(_encode(taker) + b"\n" for taker in records)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _of_lane(held: SpillFolder, fences: Mapping[int, Fence]) -> Mapping[int, Fence]:
    """The fences that concern a spill: on a cluster that of its shard."""
    lane = held.owner.lane if held.owner is not None else ""
    return {shard: fence for shard, fence in fences.items() if not lane or shard == int(lane)}
