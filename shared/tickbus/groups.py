"""Positions as consumer groups, for tools that know no others: `XINFO GROUPS` shows each service's lag, KEDA and exporters scale by it.

Only a mirror: nobody reads by these groups, and what they say is up to a second old.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from tickbus.errors import RedisError
from tickbus.link import Command, Link, ReplyError, pack
from tickbus.names import Keys, Stream, StreamId

log = logging.getLogger("tickbus.groups")

_INTERVAL = 1.0
_PIECE = 250


class GroupMirror:
    def __init__(self, connect: Callable[[], Awaitable[Link]], keys: Keys, service: str) -> None:
        self._connect = connect
        self._keys = keys
        self._service = service
        self._moved: dict[Stream, StreamId] = {}
        self._added: dict[Stream, int] = {}
        """Entries that Redis has counted of a stream, less the counter of its last one: 0 unless the stream was ever lost."""

    def move(self, positions: Mapping[Stream, StreamId]) -> None:
        self._moved |= positions

    def forget(self, gone: Callable[[Stream], bool]) -> None:
        """These are another process's to show."""
        for stream in [stream for stream in self._moved if gone(stream)]:
            del self._moved[stream]

    async def run(self) -> None:
        """For ever, once a second; slower for thousands of streams. Redis away is no error."""
        link: Link | None = None
        try:
            while True:
                await asyncio.sleep(max(_INTERVAL, len(self._moved) / 2_000))
                try:
                    if link is None or link.closed:
                        link = await self._connect()
                    await self.show(link)
                except (RedisError, ReplyError) as error:
                    log.debug("%s: consumer groups not brought up: %s", self._service, error)
        finally:
            if link is not None:
                link.close()

    async def show(self, link: Link) -> None:
        moved, self._moved = list(self._moved.items()), {}
        for start in range(0, len(moved), _PIECE):
            piece = moved[start : start + _PIECE]
            await self._count(link, [stream for stream, _ in piece if stream not in self._added])
            left = await self._set(link, "SETID", piece)
            if left:  # no such group, or the stream was deleted since: both are found out again
                await self._count(link, [stream for stream, _ in left])
                await self._set(link, "CREATE", left)

    async def _set(self, link: Link, how: str, positions: list[tuple[Stream, StreamId]]) -> list[tuple[Stream, StreamId]]:
        """-> those that were refused."""
        commands: list[Command] = [
            ("XGROUP", how, self._keys.stream(stream), self._service, str(id), "ENTRIESREAD", max(0, id.seq + self._added.get(stream, 0)))
            for stream, id in positions
        ]
        replies = await link.send(b"".join(map(pack, commands)), len(commands)) if commands else []
        return [one for one, reply in zip(positions, replies, strict=True) if isinstance(reply, ReplyError)]

    async def _count(self, link: Link, streams: list[Stream]) -> None:
        commands: list[Command] = [("XINFO", "STREAM", self._keys.stream(stream)) for stream in streams]
        replies = await link.send(b"".join(map(pack, commands)), len(commands)) if commands else []
        for stream, reply in zip(streams, replies, strict=True):
            if not isinstance(reply, ReplyError):
                info = dict(zip(reply[::2], reply[1::2], strict=True))
                self._added[stream] = int(info[b"entries-added"]) - StreamId.parse(info[b"last-generated-id"]).seq
