"""What an earlier gateway of this feed spilled and could not write any more: written by the next, if nobody wrote in between.

Whether somebody did, the fences say: they must still name the gateway that spilled, or one that had begun to write its spill and
nothing else. Each such heir puts its name into the folder before it raises the fences: its own, and the one that it found there.
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

from services.gateway.catching_up import advance
from services.gateway.folders import LOCK
from services.gateway.held import Held, find
from services.gateway.segment import SpillError
from services.gateway.spill import Budget, Spill
from tickbus.fences import Fence
from tickbus.link import Connection
from tickbus.names import Keys, Stream, StreamId
from tickbus.publisher import Publisher
from tickbus.registry import read_heads
from tickbus.streams import Entry, StreamWriter
from tickbus.transaction import Transaction
from tickbus.wire import NIL, Head, encode

log = logging.getLogger("tickbus.gateway")

_BATCH = 5_000
_TELL_SECONDS = 5.0


class Heir(msgspec.Struct, array_like=True, frozen=True):
    holder: str
    """Token of a gateway that meant to write this spill first of all."""
    after: str
    """Token that it found in the fences."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Heir).decode


def line_of(held: Held, heirs: Iterable[Heir]) -> set[str]:
    """Tokens of those after whom nobody has written but what is in this spill."""
    assert held.owner is not None
    line = {held.owner.holder}
    for heir in heirs:
        if heir.after in line:
            line.add(heir.holder)
    return line


def is_ours(held: Held, heirs: Iterable[Heir], fences: Mapping[int, Fence]) -> bool:
    """Whether nobody else wrote since: no fence is newer than the spill, but for those that its heirs raised."""
    assert held.owner is not None
    line = line_of(held, heirs)
    return all(fence.epoch < held.owner.epoch or fence.holder in line for fence in fences.values())


@dataclass
class Inheritance:
    """Spills that were found at the start and belong to us if the fences say so."""

    spills: list[tuple[Held, Spill]]

    @classmethod
    def find(cls, spill_dir: Path, feed: str, keys: Keys, heir: str, fences: Mapping[int, Fence]) -> "Inheritance":
        """Look through the folders before the fences are raised, and put `heir`, our token, into those that nobody else wrote after. Blocking."""
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
            heirs = _read_heirs(held.folder)
            if not is_ours(held, heirs, _of_lane(held, fences)):
                log.error("%s: another gateway wrote after it; what it holds stays there and is not merged", held.folder)
                continue
            after = next((fence.holder for fence in _of_lane(held, fences).values() if fence.epoch >= held.owner.epoch), held.owner.holder)
            try:
                spill = Spill.reopen(held, Budget(0), resolve)
            except SpillError as error:
                log.error("%s; it stays there", error)
                continue
            _write_heirs(held.folder, [*heirs, Heir(heir, after)])
            spills.append((held, spill))
        return cls(spills)

    async def write(self, publisher: Publisher, keys: Keys, link: Connection, before: Mapping[int, Fence]) -> int:
        """With the fences raised: write what was spilled and is not stored; -> the number of entries. `before`: the fences as they were."""
        written = 0
        for held, spill in self.spills:
            if not is_ours(held, _read_heirs(held.folder), _of_lane(held, before)):
                log.error("%s: another gateway wrote after it; what it holds stays there and is not merged", held.folder)
                await asyncio.to_thread(_write_heirs, held.folder, _read_heirs(held.folder)[:-1])
                spill.close()
                continue
            written += await _drain(spill, publisher, keys, link)
        return written


async def _drain(spill: Spill, publisher: Publisher, keys: Keys, link: Connection) -> int:
    total, written, told = len(spill), 0, time.monotonic()
    heads: dict[StreamWriter, Head] = {}
    while len(spill):
        entries = await asyncio.to_thread(spill.peek, _BATCH)
        await _look_up(heads, entries, keys, link)
        stored = {stream: StreamId.parse(head.id) for stream, head in heads.items()}
        fresh = [entry for entry in entries if entry.id > stored[entry.stream]]
        by_stream: dict[StreamWriter, list[Entry]] = {}
        for entry in fresh:
            by_stream.setdefault(entry.stream, []).append(entry)
        moved = {stream: advance(heads[stream], added, publisher.fences.held[stream.shard]) for stream, added in by_stream.items()}
        heads |= moved
        if fresh:
            transaction = Transaction(fresh[-1].ms)
            transaction.entries, transaction.heads = fresh, {stream: encode(head) for stream, head in moved.items()}
            await publisher.commit(transaction)
            written += len(fresh)
        await asyncio.to_thread(spill.release, len(entries))
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            log.info("writing what was spilled: %d of %d entries are left", len(spill), total)
    spill.close()
    return written


async def _look_up(heads: dict[StreamWriter, Head], entries: list[Entry], keys: Keys, link: Connection) -> None:
    """The heads of streams that were not seen before; where a stream is ahead of its head, its own end counts."""
    new = list({entry.stream: None for entry in entries if entry.stream not in heads})
    if not new:
        return
    found = await read_heads(link, keys, sorted({stream.shard for stream in new}))
    for stream in new:
        heads[stream] = found.get(stream.name, Head("0-0", None, 0, NIL))


def _read_heirs(folder: Path) -> list[Heir]:
    """They stand in the lock, a line each; a line that was not written whole was never acted upon."""
    heirs: list[Heir] = []
    lock = folder / LOCK
    if not lock.exists():
        return heirs
    for line in lock.read_bytes().splitlines():
        try:
            heirs.append(_decode(line))
        except msgspec.MsgspecError:
            break
    return heirs


def _write_heirs(folder: Path, heirs: Iterable[Heir]) -> None:
    """Durable on return. Those that stand there already are written over by themselves, so a kill half-way loses none of them."""
    with (folder / LOCK).open("r+b") as file:
        file.writelines(_encode(heir) + b"\n" for heir in heirs)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _of_lane(held: Held, fences: Mapping[int, Fence]) -> Mapping[int, Fence]:
    """The fences that concern a spill: on a cluster that of its shard."""
    lane = held.owner.lane if held.owner is not None else ""
    return {shard: fence for shard, fence in fences.items() if not lane or shard == int(lane)}
