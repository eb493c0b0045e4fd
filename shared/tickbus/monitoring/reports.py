"""What a replica says of its own state that nothing else in Redis shows, for `tickbus status`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from tickbus.errors import RedisError
from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.registry import write_report

log = logging.getLogger("tickbus.reports")

SECONDS = 1.0
TTL_MS = 5_000


class Reporter:
    """Stores the lines every second, with an expiry. It has no connection while there is nothing to say."""

    def __init__(
        self, keys: Keys, service: str, member: str, connect: Callable[[], Awaitable[Connection]],
        lines: Callable[[], Sequence[str]],
    ) -> None:  # fmt: skip
        """`member`: the token of this replica. `lines`: one state each; none if all is well."""
        self._keys, self._service, self._member = keys, service, member
        self._connect = connect
        self._lines = lines

    async def run(self) -> None:
        link: Connection | None = None
        told = False
        try:
            while True:
                lines = self._lines()
                try:
                    if lines or told:
                        if link is None or link.closed:
                            link = await self._connect()
                        await write_report(link, self._keys, self._service, self._member, lines, TTL_MS)
                        told = bool(lines)
                except (RedisError, ReplyError) as error:  # what was said expires by itself
                    log.debug("%s: no report: %s", self._service, error)
                if not told and link is not None:
                    link.close()
                    link = None
                await asyncio.sleep(SECONDS)
        finally:
            if link is not None:
                link.close()
