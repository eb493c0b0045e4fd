"""Wants through a relay: what `tickbus.wants` is for a bus in Redis."""

import asyncio
import itertools
from collections.abc import Collection, Mapping

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tickbus.errors import RelayError, RelayRefused
from tickbus.protocol.wants import WANT_TTL_MS, Topic
from tickbus.remote.socket import Dialer, decode_answer, encode
from tickbus.wants import Lease

_SYMBOLS = 200
"""Symbols in one request: a relay takes 16 KB."""


class RemoteLease(Lease):
    """A lease that a relay keeps for this program, for as long as the connection lasts."""

    errors = (RelayError, ConnectionClosed, OSError)

    def __init__(self, dialer: Dialer, feed: str, holder: str, ttl_ms: int = WANT_TTL_MS) -> None:
        super().__init__(feed, holder, ttl_ms)
        self._dialer = dialer
        self._socket: ClientConnection | None = None
        self._ids = itertools.count(1)
        self._asked: dict[int, frozenset[Topic]] = {}
        """What each request that stands asked for."""

    async def _tell(
        self, wants: Mapping[Topic, int], new: Collection[Topic], taken: Collection[Topic]
    ) -> None:
        if self._socket is None or self._socket.close_code is not None:
            self._socket, self._asked = await self._dialer.open(), {}
        asked: frozenset[Topic] = frozenset().union(*self._asked.values())
        # what shares a request with something that is wanted no more is asked for anew, before that ends
        ending = [id for id, topics in self._asked.items() if not topics <= wants.keys()]
        staying: frozenset[Topic] = frozenset().union(
            *(topics for id, topics in self._asked.items() if id not in ending)
        )
        for kind in ("trade", "quote"):
            missing = [topic for topic in wants if topic.kind == kind and topic not in staying]
            for first in range(0, len(missing), _SYMBOLS):
                await self._ask(kind, missing[first : first + _SYMBOLS])
        for id in ending:
            await self._say({"op": "unsubscribe", "id": id}, id)
            del self._asked[id]
        if asked == frozenset().union(*self._asked.values()):
            await self._say({"op": "ping", "id": 0}, 0)  # nothing changed: only to see whether it still lives

    async def _ask(self, kind: str, topics: Collection[Topic]) -> None:
        id = next(self._ids)
        symbols = [topic.symbol for topic in topics]
        request = {"op": "want", "id": id, "kind": kind, "symbols": symbols, "feeds": [self.feed]}
        await self._say(request, id)
        self._asked[id] = frozenset(topics)

    async def _say(self, request: Mapping[str, object], id: int) -> None:
        """Send a request, and wait for its answer. RelayRefused if it is an error."""
        assert self._socket is not None
        await self._socket.send(encode(request))
        async with asyncio.timeout(10):
            while True:
                message = await self._socket.recv(False)
                answer = decode_answer(message)
                if answer.get("id") != id or answer["op"] == "want":
                    continue
                if answer["op"] == "error":
                    raise RelayRefused(f"the relay refused a want: {answer['reason']}")
                return

    async def _end(self) -> None:
        if self._socket is not None:
            await self._socket.close()
