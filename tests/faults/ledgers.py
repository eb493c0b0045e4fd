"""The ledgers of a run: what was sent, published, delivered and recorded, as plain rows for the checker."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from support.client import Client
from support.recording import Recording

from faults import app
from services.archive.reader import read_recorded as read_archive
from tickbus.protocol.codec import Head, decode, decode_head
from tickbus.protocol.messages import Gap, Message
from tickbus.protocol.names import Keys, Stream, StreamId

FEED = "binance"
RECORDER = "recorder"


@dataclass(frozen=True)
class Sent:
    """One line of the simulator's ledger."""

    n: int
    kind: str
    symbol: str
    id: int
    values: tuple[str | None, ...]
    """Trade: price, size, side. Quote: bid, bid size, ask, ask size."""
    ts_event: int
    at: int
    sent: bool
    fault: str | None


@dataclass(frozen=True)
class Entry:
    """One entry of a stream in Redis."""

    id: StreamId
    message: Message
    crc: int | None
    """CRC of the bytes in Redis; None for an entry that only the files still have."""


@dataclass
class Planted:
    """What an attacker made of the trades of a stream."""

    foreign: dict[tuple[int, int], tuple[str | None, ...]] = field(default_factory=dict)
    """(id, ms) -> price, size, side of trades that the vendor never sent: they may be stored."""
    behind: dict[tuple[int, int], int] = field(default_factory=dict)
    """Of those whose id is that of another trade, or far below: the id of the trade that each came behind."""
    timeless: set[int] = field(default_factory=set)
    """Ids of trades that were passed on without their time."""


@dataclass
class Ledgers:
    sent: list[Sent] = field(default_factory=list)
    published: dict[str, list[Entry]] = field(default_factory=dict)
    """Stream name -> its entries, in the order of Redis."""
    heads: dict[str, Head] = field(default_factory=dict)
    planted: dict[str, Planted] = field(default_factory=dict)
    """Stream name -> what an attacker did to it."""
    delivered: list[list[Any]] = field(default_factory=list)
    """The app's ledger."""
    relayed: dict[str, list[list[Any]]] = field(default_factory=dict)
    """Those of the clients of the relays: `remote`, which uses the library, and `raw`."""
    recorded: list[tuple[Any, ...]] | None = None
    """(stream name, ms, seq, epoch, values as from `facts`) of every row in the files; None: no recorder."""
    flushed: bool = False
    """Redis was flushed: consumers may report rolled-back streams, though the gateway resent everything."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """The writing gateway's gap metrics: name -> kind (or empty) -> value."""


def read_sent(path: Path, canonical: Callable[[str], str]) -> list[Sent]:
    """Return the ticks only, in the order they were sent."""
    decoder = msgspec.json.Decoder()
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or b'"n":' not in line[:8]:
            continue
        row = decoder.decode(line)
        names = (
            ("price", "size", "side") if row["kind"] == "trade" else ("bid", "bid_size", "ask", "ask_size")
        )
        values = tuple(row[name] for name in names)
        rows.append(
            Sent(
                row["n"],
                row["kind"],
                canonical(row["symbol"]),
                int(row["id"]),
                values,
                row["ts_event"],
                row["at"],
                row["sent"],
                row["fault"],
            )
        )
    return rows


def read_planted(path: Path, canonical: Callable[[str], str]) -> dict[str, Planted]:
    """Return the ledger of the attacker, by stream; empty if there was none."""
    planted: dict[str, Planted] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        row = msgspec.json.decode(line)
        stream = planted.setdefault(Stream("trade", FEED, canonical(row["symbol"])).name, Planted())
        if row["how"] == "timeless":
            stream.timeless.add(row["id"])
        else:
            stream.foreign[row["id"], row["ms"]] = (row["price"], row["size"], row["side"])
            if row["how"] != "jump":
                stream.behind[row["id"], row["ms"]] = row["behind"]
    return planted


def read_published(client: Client, keys: Keys) -> tuple[dict[str, list[Entry]], dict[str, Head]]:
    """Return every stream that has a head in `last`, and its head."""
    heads = {
        name.decode(): decode_head(head)
        for shard in range(keys.shards)
        for name, head in client.hgetall(keys.last(shard)).items()
    }
    return {name: read_stream(client, keys, name) for name in heads}, heads


def read_stream(client: Client, keys: Keys, name: str) -> list[Entry]:
    rows = client.xrange(keys.stream(Stream.parse(name)))
    return [
        Entry(StreamId.parse(id), decode(field, payload), zlib.crc32(payload))
        for id, fields in rows
        for field, payload in fields.items()
    ]


def with_files(published: dict[str, list[Entry]], folder: Path) -> dict[str, list[Entry]]:
    """After a flush: put entries that only the files have (without trailing zeros) before those in Redis."""
    first = {name: entries[0].id for name, entries in published.items() if entries}
    before: dict[str, list[Entry]] = {}
    for stream, id, message in read_archive(folder, ("trade", "quote", "bar", "gap")):
        if isinstance(message, Gap) and message.source == RECORDER:
            continue  # its own: it reports entries as gone that it had read
        if stream.name not in first or id < first[stream.name]:
            before.setdefault(stream.name, []).append(Entry(id, message, None))
    for entries in before.values():
        entries.sort(key=lambda entry: entry.id)
    return {name: [*before.get(name, []), *published.get(name, [])] for name in published | before}


def read_delivered(path: Path) -> list[list[Any]]:
    return app.read(path)


_ID = "id_ms, seq, epoch"
_SQL = {
    "trade": f"feed, symbol, '', {_ID}, [trade_id, price::text, size::text, side] from FILES",
    "quote": f"feed, symbol, '', {_ID}, [bid::text, bid_size::text, ask::text, ask_size::text] from FILES",
    "bar": (
        f"feed, symbol, spec, {_ID}, [epoch_ns(start)::text, revision::text, close::text, trades::text] "
        "from FILES"
    ),
    "gap": (
        f"feed, symbol, coalesce(spec, ''), {_ID}, "
        "[kind, from_id, to_id, count::text, repaired::text, source], stream from FILES"
    ),
}


def read_recorded(folder: Path) -> list[tuple[Any, ...]]:
    """Read by DuckDB: no code of our own stands between the files and the check."""
    rows = []
    for kind, columns in _SQL.items():
        for feed, symbol, spec, ms, seq, epoch, values, *stream in Recording(folder).query(
            f"select {columns}", kind
        ):
            name = Stream(stream[0] if stream else kind, feed, symbol, spec).name
            rows.append((name, ms, seq, epoch, (kind, *values)))
    return rows


def parse_metrics(text: str, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return the samples of these metrics: name -> the label `kind` (or empty) -> value."""
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for line in text.splitlines():
        sample, _, value = line.rpartition(" ")
        name, _, labels = sample.partition("{")
        if name in found:
            kind = labels.partition('kind="')[2].partition('"')[0]
            found[name][kind] = found[name].get(kind, 0.0) + float(value)
    return found
