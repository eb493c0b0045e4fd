"""Positions as consumer groups, for tools that know only these: `XINFO GROUPS` shows each service's lag, KEDA
and exporters scale by it.

Only a mirror: nobody reads through these groups, and what they show is up to a second old.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from tickbus.errors import RedisError, RedisMisconfigured
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.resp import Command, pairs

log = logging.getLogger("tickbus.groups")

_INTERVAL = 1.0
_CHUNK = 250
_OF_ONE = (ReplyError, RedisMisconfigured)
"""Errors that concern one stream; it may even be none any more, because some other program wrote it."""


class GroupMirror:
    def __init__(self, connect: Callable[[], Awaitable[Connection]], keys: Keys, service: str) -> None:
        self._connect = connect
        self._keys = keys
        self._service = service
        self._moved: dict[Stream, StreamId] = {}
        self._count_offset: dict[Stream, int] = {}
        """Redis's count of entries added to a stream, minus the counter of its last one: 0 unless the
        stream was ever lost."""

    def move(self, positions: Mapping[Stream, StreamId]) -> None:
        self._moved |= positions

    def forget(self, gone: Callable[[Stream], bool]) -> None:
        """Another process owns these streams now and mirrors them."""
        for stream in [stream for stream in self._moved if gone(stream)]:
            del self._moved[stream]

    async def run(self) -> None:
        """Mirror forever: once a second, less often with thousands of streams. Redis may be unavailable."""
        link: Connection | None = None
        try:
            while True:
                await asyncio.sleep(max(_INTERVAL, len(self._moved) / 2_000))
                try:
                    if link is None or link.closed:
                        link = await self._connect()
                    await self.show(link)
                except (RedisError, ReplyError) as error:
                    log.debug("%s: consumer groups not updated: %s", self._service, error)
        finally:
            if link is not None:
                link.close()

    async def flush(self, timeout: float) -> None:
        """Mirror what has moved once more, before this process ends or leaves streams to another."""
        if not self._moved:
            return
        try:
            async with asyncio.timeout(timeout):
                link = await self._connect()
                try:
                    await self.show(link)
                finally:
                    link.close()
        except (RedisError, ReplyError, TimeoutError) as error:
            log.info("%s: the last positions are not in its consumer groups: %s", self._service, error)

    async def show(self, link: Connection) -> None:
        """Mirror the positions that moved since the last call; what fails is kept for the next."""
        moved, self._moved = self._moved, {}
        waiting = list(moved.items())
        try:
            while waiting:
                chunk = waiting[:_CHUNK]
                try:
                    await self._load_offsets(
                        link, [stream for stream, _ in chunk if stream not in self._count_offset]
                    )
                    await link.ask_all([self._group("SETID", stream, id) for stream, id in chunk])
                except _OF_ONE:  # some have no such group yet, or their stream was deleted since
                    for stream, id in chunk:
                        await self._show_one(link, stream, id)
                del waiting[:_CHUNK]
        finally:
            self._moved = dict(waiting) | self._moved

    async def _show_one(self, link: Connection, stream: Stream, id: StreamId) -> None:
        try:
            await link.ask(*self._group("SETID", stream, id))
        except _OF_ONE:
            try:
                await self._load_offsets(link, [stream])
                await link.ask(*self._group("CREATE", stream, id))
            except _OF_ONE as error:
                log.debug("%s: %s: cannot create its consumer group: %s", self._service, stream.name, error)

    def _group(self, subcommand: str, stream: Stream, id: StreamId) -> Command:
        return (
            "XGROUP",
            subcommand,
            self._keys.stream(stream),
            self._service,
            str(id),
            "ENTRIESREAD",
            max(0, id.seq + self._count_offset.get(stream, 0)),
        )

    async def _load_offsets(self, link: Connection, streams: list[Stream]) -> None:
        replies = await link.ask_all([("XINFO", "STREAM", self._keys.stream(stream)) for stream in streams])
        for stream, reply in zip(streams, replies, strict=True):
            info = dict(pairs(reply))
            self._count_offset[stream] = (
                int(info[b"entries-added"]) - StreamId.parse(info[b"last-generated-id"]).seq
            )
