"""The HTTP API: symbols, snapshots, history, bars, status. Read only, JSON, paged by cursor."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from services.archive.page import Page
from services.relay.bus_access import BusAccess
from services.relay.recorded import Recorded, Unavailable
from services.relay.selection import Selection, Symbols
from services.relay.styles import JSON, News
from services.relay.tokens import Account
from tickbus.errors import ConfigError, RedisError, WireError
from tickbus.protocol.bar_specs import parse_all
from tickbus.protocol.codec import decode, head_tick
from tickbus.protocol.json_form import json_object
from tickbus.protocol.messages import Bar
from tickbus.protocol.names import KINDS, START, Stream, StreamId, check_name, is_stream
from tickbus.reader.reads import FROM_START, parse_start
from tickbus.redis.registry import decode_subscriptions, subscription_commands
from tickbus.units import MILLISECOND, parse_time

log = logging.getLogger("tickbus.relay")

MAX_ROWS = 1_000
MAX_BYTES = 256 << 10
"""Of one page of history or bars."""
_CLOCK_AHEAD_MS = 60_000
"""A bar may have an ID before its start by as much as the vendor's clock is ahead."""

Query = Mapping[str, Sequence[str]]
Answer = tuple[int, str, bytes]
"""Status, content type, body."""
_JSON = "application/json"
_encode = msgspec.json.Encoder().encode


class _Bad(Exception):
    """A request that cannot be answered, with its status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Api:
    def __init__(
        self,
        access: BusAccess,
        status: Callable[[Account], Awaitable[Mapping[str, object]]],
        documents: Mapping[str, Answer] | None = None,
        recorded: Recorded | None = None,
    ) -> None:
        """status: the answer of /api/status. documents: fixed answers by path, which need no token. recorded:
        older bars and history.
        """
        self._access = access
        self._status = status
        self._recorded = recorded
        self._documents = dict(documents or {})
        self._routes: dict[str, Callable[[Query, Account], Awaitable[bytes]]] = {
            "/api/symbols": self._symbols,
            "/api/snapshot": self._snapshot,
            "/api/history": self._history,
            "/api/bars": self._bars,
            "/api/subscriptions": self._subscriptions,
            "/api/status": self._get_status,
        }

    def is_public(self, path: str) -> bool:
        return path in self._documents

    async def get(self, path: str, query: Query, account: Account) -> Answer:
        """Answer a GET. Never raises for what was asked."""
        if (document := self._documents.get(path)) is not None:
            return document
        route = self._routes.get(path)
        if route is None:
            return _error(404, f"nothing is served here: expected one of {', '.join(self._routes)}, or /v1")
        try:
            return 200, _JSON, await route(query, account)
        except _Bad as error:
            return _error(error.status, str(error))
        except RedisError:
            return _error(503, "the bus cannot be read now")
        except Unavailable as error:
            return _error(503, str(error))

    async def _subscriptions(self, query: Query, account: Account) -> bytes:
        """What became of the subscriptions of a feed at its vendor."""
        _check_names(query, ("feed",))
        feed = _one(query, "feed") or ""
        try:
            check_name(feed)
        except ConfigError as error:
            raise _Bad(400, str(error)) from None
        commands = subscription_commands(self._access.keys, feed)
        states = decode_subscriptions(self._access.keys, await self._access.ask_all(commands))
        rows = [
            {"stream": Stream(topic.kind, feed, topic.symbol).name, **msgspec.structs.asdict(state)}
            for topic, state in sorted(states.items())
            if account.scope(Stream(topic.kind, feed, topic.symbol))
        ]
        return _encode({"subscriptions": rows})

    async def _symbols(self, query: Query, account: Account) -> bytes:
        """Which streams there are."""
        found = await self._find(query, account, ("kind", "symbols", "feeds", "specs"), kind_needed=False)
        rows = [
            {
                "stream": one.stream.name,
                "kind": one.stream.kind,
                "feed": one.stream.feed,
                "symbol": one.stream.symbol,
                "spec": one.stream.spec or None,
                "cursor": one.head.id,
                "entries": one.position.seq,
            }
            for one in sorted(found, key=lambda one: one.stream)
        ]
        return _encode({"data": rows})

    async def _snapshot(self, query: Query, account: Account) -> bytes:
        """The newest message of each stream."""
        found = await self._find(query, account, ("kind", "symbols", "feeds", "specs"))
        elements = []
        for one in sorted(found, key=lambda one: one.stream):
            try:
                tick = head_tick(one.head, one.stream.kind)
            except WireError:
                continue
            if tick is not None:
                elements.append(json_object(one.stream, one.head.id, tick, "cursor"))
        return b'{"data":[%b]}' % b",".join(elements)

    async def _find(
        self, query: Query, account: Account, names: Sequence[str], kind_needed: bool = True
    ) -> list[Any]:
        _check_names(query, names)
        kind = _one(query, "kind") or ("trade" if kind_needed else None)
        if kind is not None and kind not in KINDS:
            raise _Bad(400, f"invalid kind {kind[:40]!r}: expected one of {', '.join(KINDS)}")
        try:
            symbols = Symbols.parse(_many(query, "symbols"))
        except ValueError as error:
            raise _Bad(400, str(error)) from None
        feeds, specs = frozenset(_many(query, "feeds")), frozenset(_many(query, "specs"))
        selections = [
            Selection(each, symbols, feeds, specs if each == "bar" else frozenset(), account.scope)
            for each in ((kind,) if kind else KINDS)
        ]
        return await self._access.find(
            lambda stream: any(selection(stream) for selection in selections),
            () if symbols.globs else symbols.names,
        )

    async def _history(self, query: Query, account: Account) -> bytes:
        """Entries of one stream, oldest first: a page."""
        _check_names(query, ("stream", "from", "after", "limit"))
        stream = self._stream(query, account)
        if not account.history:
            raise _Bad(403, "this token may not read history")
        limit = _limit(query)
        after = _position(query)
        entries = await self._access.page(stream, after, limit, patient=False)
        rows, more = await self._recorded_entries(stream, after, entries, limit)
        if more is None:
            for id, fields in entries:
                news = News(stream, [(id, fields)])
                rows.append((id.decode(), b",".join(JSON.element(stream, each) for each in news.entries)))
            if len(entries) == limit:
                more = rows[-1][0]
        data, ended_at = _page(rows, limit)
        next_cursor = msgspec.json.encode(ended_at or more)
        return b'{"data":[%b],"next":%b}' % (data, next_cursor)

    async def _recorded_entries(
        self, stream: Stream, after: StreamId, entries: Sequence[Any], limit: int
    ) -> tuple[list[tuple[str, bytes]], str | None]:
        """Return what only recorded files still have between `after` and the entries of the bus that follow
        it, as ID and JSON, and where their next page begins; None: with the entries of the bus.
        """
        if self._recorded is None or not self._recorded.has(stream.kind):
            return [], None
        first = StreamId.parse(entries[0][0]) if entries else None
        if first is not None and after.seq and first.seq == after.seq + 1:
            return [], None
        oldest = await self._access.oldest(stream)
        if oldest is not None and (first is None or oldest < first):
            return [], None  # the bus has all that follows
        page = await self._recorded.entries(stream, after, first, limit)
        return [(row.id, row.json) for row in page.rows], page.next

    async def _bars(self, query: Query, account: Account) -> bytes:
        """Bars of one stream by their start, the newest revision of each: a page."""
        _check_names(query, ("symbol", "spec", "feed", "from", "to", "limit"))
        if not account.history:
            raise _Bad(403, "this token may not read history")
        symbol, feed = _one(query, "symbol"), _one(query, "feed")
        try:
            spec = next(iter(parse_all((_one(query, "spec") or "time:1m",)))).text
            begin = parse_time(_one(query, "from") or "0")
            end = parse_time(_one(query, "to")) if _one(query, "to") else None
        except (ConfigError, ValueError) as error:
            raise _Bad(400, str(error)[:200]) from None
        if not symbol:
            raise _Bad(400, "symbol is missing: e.g. /api/bars?symbol=BTC-USDT&spec=time:1m")
        limit = _limit(query)
        selection = Selection(
            "bar", Symbols(frozenset((symbol,))), frozenset((feed,) if feed else ()), frozenset((spec,)),
            account.scope,
        )  # fmt: skip
        found = await self._access.find(selection, (symbol,))
        if len(found) > 1:
            names = ", ".join(one.stream.feed for one in found)
            raise _Bad(400, f"several feeds have bars of {symbol}: add feed=, one of {names}")
        stream = found[0].stream if found else Stream("bar", feed, symbol, spec)
        if not found and (self._recorded is None or not is_stream(stream.name) or not account.scope(stream)):
            return b'{"data":[],"next":null}'
        on_bus = await self._bars_of_bus(stream, begin, end, limit) if found else {}
        recorded = await self._recorded_bars(stream, begin, end, limit)
        bars = {start: (StreamId.parse(id), row) for start, id, row in recorded.rows}
        for start, (id, bar) in on_bus.items():
            if start not in bars or bars[start][0] <= id:
                bars[start] = id, json_object(stream, str(id), bar, "cursor")
        certain = None if recorded.next is None else int(recorded.next)
        starts = sorted(start for start in bars if certain is None or start < certain)
        data, ended_at = _page([(str(start), bars[start][1]) for start in starts], limit)
        following = certain if ended_at is None else starts[starts.index(int(ended_at)) + 1]
        return b'{"data":[%b],"next":%b}' % (data, _encode(following))

    async def _bars_of_bus(
        self, stream: Stream, begin: int, end: int | None, limit: int
    ) -> dict[int, tuple[StreamId, Bar]]:
        """Return the bars that the bus has from `begin` on, by start, with the ID of their newest revision:
        `limit` and some more."""
        bars: dict[int, tuple[StreamId, Bar]] = {}
        later = 0
        position = StreamId(max(0, begin // MILLISECOND - _CLOCK_AHEAD_MS), 0)
        while entries := await self._access.page(stream, position, patient=False):
            for id, fields in entries:
                position = StreamId.parse(id)
                try:
                    field, payload = fields
                    bar = decode(field, payload)
                except (WireError, ValueError):
                    continue
                if not isinstance(bar, Bar) or bar.start < begin:
                    continue
                if end is not None and bar.start >= end:
                    later += 1
                else:
                    bars[bar.start] = position, bar
            # a revision of the last bar of the page may come later: one page more than asked for
            if len(bars) > limit + MAX_ROWS or later > MAX_ROWS:
                break
        return bars

    async def _recorded_bars(self, stream: Stream, begin: int, end: int | None, limit: int) -> Page:
        """Return the bars of recorded files, unless the bus has all of this time."""
        if self._recorded is None:
            return Page([], None)
        oldest = await self._access.oldest(stream)
        if oldest is not None and begin >= oldest.ms * MILLISECOND:
            return Page([], None)
        return await self._recorded.bars(stream, begin, end, limit)

    async def _get_status(self, query: Query, account: Account) -> bytes:
        _check_names(query, ())
        return _encode(await self._status(account))

    @staticmethod
    def _stream(query: Query, account: Account) -> Stream:
        name = _one(query, "stream") or ""
        if not is_stream(name):
            raise _Bad(400, f"invalid stream {name[:80]!r}: expected e.g. stream=trade:binance:BTC-USDT")
        stream = Stream.parse(name)
        if not account.scope(stream):
            raise _Bad(403, "this token may not read this stream")
        return stream


def _position(query: Query) -> StreamId:
    """Return the ID after which a page begins."""
    if after := _one(query, "after"):
        try:
            position = StreamId.parse(after)
        except ValueError:
            raise _Bad(
                400, f"invalid after {after[:60]!r}: expected a cursor, e.g. 1700000000123-42"
            ) from None
        if min(position) < 0 or max(position) >= 1 << 64:
            raise _Bad(400, f"invalid after {after[:60]!r}: expected a cursor, e.g. 1700000000123-42")
        return position
    begin = _one(query, "from") or FROM_START
    try:
        position_or_word = parse_start(begin, "from")
    except (ConfigError, OverflowError) as error:
        raise _Bad(400, str(error)[:200]) from None
    if isinstance(position_or_word, StreamId):
        return max(position_or_word, START)
    if position_or_word != FROM_START:
        raise _Bad(400, f"invalid from {begin[:40]!r}: expected start or a time")
    return START


def _page(rows: Sequence[tuple[str, bytes]], limit: int) -> tuple[bytes, str | None]:
    """Return the JSON of as many rows, each with a key, as one page may hold; and the key of the last one, if
    that is not all."""
    elements: list[bytes] = []
    size, last = 0, None
    for number, (key, element) in enumerate(rows):
        size += len(element)
        if number == limit or (size > MAX_BYTES and elements):
            return b",".join(elements), last
        if element:
            elements.append(element)
        last = key
    return b",".join(elements), None


def _limit(query: Query) -> int:
    text = _one(query, "limit") or str(MAX_ROWS)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= MAX_ROWS):
        raise _Bad(400, f"invalid limit {text[:20]!r}: expected 1 to {MAX_ROWS}")
    return int(text)


def _check_names(query: Query, names: Sequence[str]) -> None:
    for name in query:
        if name not in (*names, "token"):
            raise _Bad(400, f"unknown parameter {name[:40]!r}: expected {', '.join(names) or 'none'}")


def _one(query: Query, name: str) -> str:
    values = query.get(name, ())
    if len(values) > 1:
        raise _Bad(400, f"{name} is there {len(values)} times: expected once")
    return values[0] if values else ""


def _many(query: Query, name: str) -> list[str]:
    return [text for value in query.get(name, ()) for text in value.split(",") if text]


def _error(status: int, text: str) -> Answer:
    return status, _JSON, _encode({"error": text})
