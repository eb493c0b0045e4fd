"""The bus through a relay, for programs that reach no Redis. Needs the extra `tickbus[remote]` (websockets).

    async with tickbus.remote.connect("ws://relay:9400", token="...") as bus:
        async for tick in bus.read("trade", symbols=["BTC-USDT"], gaps=False):
            print(tick.symbol, tick.price, tick.size)

Everything is read as from `tickbus.connect`: the same messages, cursors and gaps, with `async for` and `for`.
A lost connection is opened again, to the next relay if there are several, and reading goes on exactly where
it was.
"""

from collections.abc import Collection, Mapping
from typing import Any

from tickbus.errors import ConfigError
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Gap
from tickbus.protocol.names import Stream, StreamId
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.readable import Readable
from tickbus.remote.reader import RemoteReader, check_url

__all__ = ["RemoteBus", "connect"]


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
        self, kind: str, streams: StreamFilter, start: str | StreamId, positions: Mapping[str, StreamId]
    ) -> RemoteReader:
        return RemoteReader(self._urls, self._token, kind, streams, start, positions)

    async def _snapshot(self, kind: str, streams: StreamFilter) -> dict[Stream, tuple[StreamId, Any]]:
        reader = RemoteReader(self._urls, self._token, kind, streams, "last:1", {})
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
