"""What could not be delivered: a stream beside each stream of alerts, under `{NN}:dead:<service>:<stream>`.

A dead letter has the ID of its alert, so that storing it again changes nothing. It is stored before the
position moves on. It is outside the fenced transactions: at worst a replica that was replaced stores one for
an alert that its successor delivers.
"""

import asyncio
import logging
from collections.abc import Mapping

from tickbus.consumer.consumer import ShardConsumer
from tickbus.errors import RedisError
from tickbus.protocol.names import Stream, StreamId
from tickbus.redis.link import Connection, ReplyError
from tickbus.units import DAY, MILLISECOND, Duration

log = logging.getLogger("tickbus.notify")

MOST = 10_000
"""Dead letters that are kept of a stream, about."""
KEPT: Duration = Duration(7 * DAY)
"""After the last one of a stream."""
_RETRY_SECONDS = 0.5


class DeadLetters:
    def __init__(self, consumer: ShardConsumer) -> None:
        self._consumer = consumer
        self._link: Connection | None = None
        self.fault = ""
        """Why none can be stored now; empty if they can."""

    async def store(self, stream: Stream, id: StreamId, fields: Mapping[str, "str | bytes"]) -> None:
        """Store one. Returns when it is stored, however long that takes: the stream's alerts wait."""
        key = self._consumer.keys.dead_letters(stream, self._consumer.service)
        while True:
            try:
                if self._link is None or self._link.closed:
                    self._link = await self._consumer.connect()
                await _store(self._link, key, id, [part for pair in fields.items() for part in pair])
            except (RedisError, ReplyError) as error:
                if not self.fault:
                    self.fault = f"cannot store a dead letter at {key}: {error}"
                    log.error("%s: %s; retrying", self._consumer.service, self.fault)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self.fault = ""
                return

    def close(self) -> None:
        if self._link is not None:
            self._link.close()


async def _store(link: Connection, key: str, id: StreamId, fields: list["str | bytes"]) -> None:
    added, expires = await link.ask_each(
        [("XADD", key, "MAXLEN", "~", MOST, str(id), *fields), ("PEXPIRE", key, KEPT // MILLISECOND)]
    )
    if isinstance(added, ReplyError) and "equal or smaller" in str(added):
        # stored before a crash; or what is newer there is of another history
        if not await link.ask("XRANGE", key, str(id), str(id)):
            await link.ask("XADD", key, "MAXLEN", "~", MOST, "*", *fields)
        return
    for reply in (added, expires):
        if isinstance(reply, ReplyError):
            raise reply
