"""The bus through a relay, for programs that reach no Redis. Needs the extra `tickbus[remote]` (websockets).

    async with tickbus.remote.connect("ws://relay:9400", token="...") as bus:
        async for tick in bus.read("trade", symbols=["BTC-USDT"], gaps=False):
            print(tick.symbol, tick.price, tick.size)

Everything is read as from `tickbus.connect`: the same messages, cursors and gaps, with `async for` and `for`.
A lost connection is opened again, to the next relay if there are several, and reading goes on exactly where
it was.
"""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import msgspec

from tickbus.errors import ConfigError, RelayRefused, RelayUnavailable
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Gap
from tickbus.protocol.names import Stream, StreamId
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.protocol.wants import State, SubscriptionState
from tickbus.readable import Readable
from tickbus.remote.reader import RemoteReader
from tickbus.remote.socket import Dialer, check_url
from tickbus.remote.want import RemoteLease
from tickbus.wants import make_holder

__all__ = ["RemoteBus", "connect"]

_HTTP_SECONDS = 10


class _Row(msgspec.Struct):
    stream: str
    state: State
    since: int
    reason: str = ""
    fixed: bool = False


class _Subscriptions(msgspec.Struct):
    subscriptions: list[_Row]


def connect(url: str | Collection[str], *, token: str | None = None) -> "RemoteBus":
    """Return a bus behind a relay; `async with` or `with` opens and closes it.

    url: `ws://host:port` or `wss://host:port` of a relay, or of several, which are tried in turn.
    token: what `tickbus relay --tokens` knows the hash of.

    Errors: ConfigError for an invalid URL. Iterating raises RelayUnavailable if no relay answers at first,
    and RelayRefused if it refuses the token or the request.
    """
    urls = (url,) if isinstance(url, str) else tuple(url)
    if not urls:
        raise ConfigError("no url of a relay: expected e.g. ws://127.0.0.1:9400")
    return RemoteBus(tuple(check_url(one) for one in urls), token)


class RemoteBus(Readable):
    """A bus behind a relay, from `connect`. Leaving it ends all its subscriptions."""

    def __init__(self, urls: tuple[str, ...], token: str | None) -> None:
        super().__init__()
        self._urls = urls
        self._token = token

    async def _open_reader(
        self,
        kind: str,
        streams: StreamFilter,
        want: bool,
        start: str | StreamId,
        positions: Mapping[str, StreamId],
    ) -> RemoteReader:
        return RemoteReader(self._dialer(), kind, streams, start, positions, want)

    def _dialer(self) -> Dialer:
        return Dialer(self._urls, self._token)

    def _lease(self, feed: str, name: str, ttl_ms: int) -> RemoteLease:
        # the relay wants for its clients, in its own name, while the connection lasts
        return RemoteLease(self._dialer(), feed, make_holder(name), ttl_ms)

    async def _read_subscriptions(self, feed: str) -> dict[Stream, SubscriptionState]:
        rows = await asyncio.to_thread(self._get, f"/api/subscriptions?feed={feed}")
        found = msgspec.json.decode(rows, type=_Subscriptions).subscriptions
        return {
            Stream.parse(row.stream): SubscriptionState(row.state, row.since, row.reason, row.fixed)
            for row in found
        }

    def _get(self, target: str) -> bytes:
        """Ask a relay by HTTP. RelayUnavailable if none answers, RelayRefused if it refuses."""
        for url in self._urls:
            parts = urlsplit(url)
            scheme = "https" if parts.scheme == "wss" else "http"
            path = parts.path.removesuffix("/v1") + target
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            request = Request(f"{scheme}://{parts.netloc}{path}", headers=headers)
            try:
                with urlopen(request, timeout=_HTTP_SECONDS) as response:
                    return bytes(response.read())
            except HTTPError as error:
                if error.code < 500:
                    raise RelayRefused(f"the relay refused: HTTP {error.code}; check the token") from None
            except OSError:
                continue
        raise RelayUnavailable("no relay answers")

    async def _snapshot(self, kind: str, streams: StreamFilter) -> dict[Stream, tuple[StreamId, Any]]:
        reader = RemoteReader(self._dialer(), kind, streams, "last:1", {})
        found: dict[Stream, tuple[StreamId, Any]] = {}
        try:
            await reader.prepare()
            async for poll in reader.polls():
                for read in poll.reads:
                    for id, (field, payload) in read.entries:
                        message = decode(field, payload)
                        newest = found.get(read.stream, (None, None))[1]
                        position = StreamId.parse(id)
                        found[read.stream] = position, newest if isinstance(message, Gap) else message
                if reader.live:
                    break
        finally:
            reader.close()
        return {stream: (id, message) for stream, (id, message) in found.items() if message is not None}
