"""What stands in Redis: entries, heads, states and names as bytes; then hostile ones in a real server,
beside a stream that must be read all the same."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import msgspec
from recorder.recorded import BARS, BTC, QUOTES, bar, gap, quote, trade
from support.client import Client
from support.redis_server import RedisServer

from fuzz.engine import Pieces, Run, Target, pure
from fuzz.hostile import TEXTS, damaged_bytes, damaged_msgpack, some_of, to_bytes, value_of_msgpack
from fuzz.hostile import pack as pack_hostile
from services.bars.builder import StreamBars
from services.gateway.subscriptions.policy import WantsPolicy
from services.gateway.subscriptions.table import SubscriptionTable
from services.gateway.subscriptions.wants import WantBook
from services.vendors.feed import Cap
from tickbus.consumer.handover import read_handover
from tickbus.consumer.membership import read_heartbeats
from tickbus.consumer.tick_entries import canonical_tick
from tickbus.errors import ConfigError, RedisError, WireError
from tickbus.monitoring.status import read_status
from tickbus.protocol.bar_specs import parse as parse_spec
from tickbus.protocol.codec import (
    FIELDS,
    Bell,
    Head,
    Hole,
    decode,
    encode,
    head_tick,
    read_head,
)
from tickbus.protocol.messages import Gap, Signal, Trade
from tickbus.protocol.names import Keys, Stream, StreamId, is_stream
from tickbus.protocol.stream_filter import StreamFilter, encode_filter
from tickbus.protocol.wants import Topic, decode_states
from tickbus.reader.reader import Reader
from tickbus.redis.link import Link
from tickbus.redis.registry import check_meta, check_replicas, read_heads, read_subscriptions
from tickbus.redis.wants import MARK, WantsReader, put_wants
from tickbus.subscription import parse_cursor
from tickbus.units import SECOND, parse_time
from tickbus.writer.fences import Fences
from tickbus.writer.heads import HeadBuilder, newest_tick, stored_event

KEYS = Keys(shards=2)
HEALTHY = Stream("trade", "good", "BTC-USDT")
SHARD = KEYS.shard(HEALTHY.symbol)
_TICKS = 5
"""Entries of the healthy stream before the hostile ones, and again after them."""
_READ_SECONDS = 20.0
_SPECS = [parse_spec(text) for text in ("time:1s", "time:1m", "tick:3", "volume:1", "value:100000")]

MESSAGES = [
    trade(1),
    trade(2),
    quote(1),
    bar(),
    gap(),
    Signal("spread", "0.02", "0.01", "1m", "x", "BTC-USDT", 5),
]
HEAD = encode(
    Head(
        "1700000000000-7",
        7,
        5,
        msgspec.Raw(encode(trade(7))),
        5,
        [Hole(1, 2), Hole(4, 4)],
        {"sequence": 2},
        1,
        3,
        [(1, 1), (2, 5)],
        1,
        100,
        0,
    )
)
BELL = encode(Bell("good#1", 1, 1_700_000_000_000, True, [HEALTHY.name, "trade:other:BTC-USDT"]))

# as bytes


def make_message(chance: Random) -> Pieces:
    message = chance.choice(MESSAGES)
    field = FIELDS[type(message)] if chance.random() < 0.9 else chance.choice((b"", b"x", b"g", b"\xff"))
    return [field, damaged_msgpack(chance, encode(message))]


def run_message(pieces: Pieces) -> None:
    """An entry is a message or a WireError; the bars take any trade or Gap, or raise WireError."""
    if len(pieces) < 2:
        return
    try:
        message = decode(pieces[0], pieces[1])
    except WireError:
        return
    assert _same(decode(pieces[0], encode(message)), message), f"not what was encoded: {message}"
    if isinstance(message, Trade | Gap):
        try:
            message = canonical_tick(message)
        except ValueError:
            return  # refused: the service makes a Gap of it
        bars = StreamBars("BTC-USDT", _SPECS, SECOND, SECOND)
        with suppress(WireError):
            for seq in (1, 2):
                bars.apply(StreamId(1_700_000_000_000, seq), message)
            bars.clock(1_800_000_000_000)
            bars.state()


def _same(one: object, other: object) -> bool:
    return encode(one) == encode(other)


def make_head(chance: Random) -> Pieces:
    return [damaged_msgpack(chance, HEAD)]


def run_head(pieces: Pieces) -> None:
    """A head is a WireError, or can be continued, measured and shown."""
    for piece in pieces:
        try:
            head = read_head("trade:good:BTC-USDT", piece)
            for kind in ("trade", "quote"):
                with suppress(WireError):
                    head_tick(head, kind)
                    newest_tick(head, kind)
                    stored_event(head, kind)
            builder = HeadBuilder(head)
        except WireError:
            continue
        builder.begin(9)
        builder.add_gap(gap())
        read_head("trade:good:BTC-USDT", builder.pack())


def make_state(chance: Random) -> Pieces:
    bars = StreamBars("BTC-USDT", _SPECS, SECOND, 60 * SECOND)
    for seq in range(1, chance.randint(2, 9)):
        bars.apply(StreamId(1_700_000_000_000, seq), gap() if seq == 4 else trade(seq))
    return [damaged_msgpack(chance, bars.state())]


def run_state(pieces: Pieces) -> None:
    """Bars continue from a state or raise WireError."""
    for piece in pieces:
        with suppress(WireError):
            bars = StreamBars("BTC-USDT", _SPECS, SECOND, 60 * SECOND, piece)
            for seq in range(10, 20):
                bars.apply(StreamId(1_700_000_000_000 + seq, seq), trade(seq))
            bars.clock(1_800_000_000_000)
            bars.state()


def make_names(chance: Random) -> Pieces:
    valid = (
        BTC.name,
        QUOTES.name,
        BARS.name,
        "1700000000000-42",
        "time:1m",
        "tick:100",
        "2024-08-09T13:30:00Z",
    )
    return [damaged_bytes(chance, to_bytes(text), 2) for text in some_of(chance, [*valid, *TEXTS], 4)]


def run_names(pieces: Pieces) -> None:
    """Names, IDs, specs, times and cursors are parsed or raise what their docstrings say."""
    for piece in pieces:
        text = piece.decode(errors="replace")
        for parse in (StreamId.parse, Stream.parse, parse_time):
            with suppress(ValueError):
                parse(text)
        with suppress(ValueError):
            StreamId.parse(piece)
        if is_stream(text):
            Stream.parse(text)
        for check in (parse_spec, lambda text: parse_cursor("trade", {text: "1-1", BTC.name: text})):
            with suppress(ConfigError):
                check(text)


# in a server

_FOREIGN = [
    "trade:other:BTC-USDT",
    "quote:good:BTC-USDT",
    "bar:time:1m:good:BTC-USDT",
    "trade:good:",
    "x",
    "",
    "a:b:c",
]
_META = [
    "service:bars",
    "writes:bars",
    "retention:good",
    "feed:good",
    "delay:good",
    "x",
    "service:",
    "\udcff",
]


def make_commands(chance: Random) -> Pieces:
    """Return commands to Redis, each a MessagePack array: what a foreign program might write."""
    return [pack_hostile(_command(chance)) for _ in range(chance.randint(1, 5))]


def _command(chance: Random) -> list[bytes]:
    shard = chance.choice((SHARD, SHARD, 1 - SHARD))
    kind = chance.randrange(12)
    service = chance.choice(("bars", "good", "\x1b[1m"))
    if kind < 4:
        fields = [to_bytes(chance.choice(("d", "d", "d", "e", ""))), _value(chance, BELL)]
        if chance.random() < 0.15:
            fields += [b"e", b"more"]
        ahead = chance.choice((b"*", b"*", b"*", b"*", b"9999999999999-1"))
        return [b"XADD", KEYS.bell(shard).encode(), ahead, *fields]
    if kind < 7:
        return [b"HSET", KEYS.last(shard).encode(), _name(chance), _value(chance, HEAD)]
    if kind == 7:
        field, message = chance.choice((b"t", b"q", b"g", b"x")), encode(chance.choice(MESSAGES))
        key = KEYS.stream(Stream("trade", "other", "BTC-USDT")).encode()
        return [
            b"XADD",
            key,
            chance.choice((b"*", b"9999999999999-1", b"18446744073709551615-5")),
            field,
            _value(chance, message),
        ]
    if kind == 8:
        position = KEYS.position(shard, service)
        return [b"HSET", position.encode(), _name(chance), _text(chance, "1700000000000-5")]
    if kind == 9:
        return [b"HSET", KEYS.state(shard, service).encode(), _name(chance), _value(chance, b"\x90")]
    if kind == 10:
        reads = encode_filter(StreamFilter.of(("trade",)))
        name = to_bytes(chance.choice(_META))
        return [
            b"HSET",
            KEYS.meta.encode(),
            name,
            chance.choice((_text(chance, "86400000,10"), damaged_bytes(chance, reads))),
        ]
    owned = chance.choice(
        (KEYS.fence(shard, service), KEYS.holder(shard, service), KEYS.era(shard), KEYS.lease("good"))
    )
    if chance.random() < 0.3:
        return [
            b"HSET",
            KEYS.members(service).encode(),
            _text(chance, "host:1:ab"),
            _text(chance, "1700000000000"),
        ]
    return [b"SET", to_bytes(owned), _text(chance, "7")]


def _name(chance: Random) -> bytes:
    name = to_bytes(chance.choice(_FOREIGN))
    return damaged_bytes(chance, name, 1) if chance.random() < 0.3 else name


def _text(chance: Random, valid: str) -> bytes:
    kind = chance.randrange(3)
    if kind == 0:
        return damaged_bytes(chance, valid.encode(), 2)
    return valid.encode() if kind == 1 else to_bytes(chance.choice(TEXTS))


def _value(chance: Random, valid: bytes) -> bytes:
    kind = chance.randrange(6)
    if kind == 0:
        return to_bytes(chance.choice(TEXTS))
    return pack_hostile(value_of_msgpack(chance)) if kind == 1 else damaged_msgpack(chance, valid)


class _Bus:
    """A server with a healthy stream, written by hand, and hostile entries beside it."""

    def __init__(self, server: RedisServer) -> None:
        self.client: Client = server.client
        self._url = server.url

    async def connect(self) -> Link:
        return await Link.open(self._url)

    def write(self, first: int) -> None:
        """Write the healthy entries from this counter on, with head and bell, as a gateway does."""
        key, bell = KEYS.stream(HEALTHY), KEYS.bell(SHARD)
        seconds, micros = self.client.time()
        ms = seconds * 1000 + micros // 1000
        last = first + _TICKS - 1
        for seq in range(first, last + 1):
            self.client.xadd(key, {"t": encode(trade(seq))}, id=f"{ms}-{seq}")
        tick = msgspec.Raw(encode(trade(last)))
        self.client.hset(
            KEYS.last(SHARD), HEALTHY.name, encode(Head(f"{ms}-{last}", None, 1, tick, epochs=[(1, 1)]))
        )
        rung = encode(Bell("good#1", first, ms, True, [HEALTHY.name]))
        # behind a bell of the future there is no `*`
        top = self.client.xrevrange(bell, count=1)
        newest = max(ms, int(top[0][0].partition(b"-")[0]) if top else 0)
        self.client.execute_command("XADD", bell, f"{newest + 1}-0", "d", rung)

    def begin(self) -> None:
        self.client.flushall()
        self.client.hset(KEYS.meta, mapping={"shards": KEYS.shards, "schema": "1"})
        for shard in range(KEYS.shards):
            self.client.set(KEYS.era(shard), "era")
        self.write(1)

    def attack(self, commands: Pieces) -> None:
        for command in commands:
            with suppress(Exception):  # what Redis refuses, or reduction has damaged, harms nobody
                self.client.execute_command(*msgpack.unpackb(command, raw=True))


@contextmanager
def open_bus(act: Any, folder: Path) -> Iterator[Run]:
    server = RedisServer(folder / "redis")
    server.start()
    try:
        bus = _Bus(server)
        with asyncio.Runner() as runner:
            runner.get_loop().set_debug(False)

            def run(commands: Pieces) -> None:
                bus.begin()
                runner.run(_within(act(bus, commands)))

            yield run
    finally:
        server.close()


async def _within(work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(_READ_SECONDS):
        await work


async def read_beside(bus: _Bus, commands: Pieces) -> None:
    """A reader gets every entry of the healthy stream, whatever stands beside it and arrives meanwhile."""
    half = len(commands) // 2
    bus.attack(commands[:half])
    reader = Reader(bus.connect, KEYS, lambda stream: True, "start")
    seqs: list[int] = []
    try:
        await reader.prepare()
        bus.attack(commands[half:])
        bus.write(_TICKS + 1)
        async for poll in reader.polls():
            for read in poll.reads:
                if read.stream == HEALTHY:
                    seqs += [StreamId.parse(id).seq for id, _ in read.entries]
            if seqs and seqs[-1] == 2 * _TICKS:
                break
    finally:
        reader.close()
    assert seqs == list(range(1, 2 * _TICKS + 1)), f"entries beside hostile ones: {seqs}"


async def look_at(bus: _Bus, commands: Pieces) -> None:
    """Status and the start of services show or refuse what stands there, by RedisError or ConfigError."""
    bus.attack(commands)
    with closing(await bus.connect()) as link:
        status = None
        with suppress(RedisError, ConfigError):
            status = await read_status(link, KEYS.prefix)
        if status is not None:
            assert HEALTHY in [one.stream for one in status.streams], "the healthy stream is not shown"
        with suppress(RedisError, ConfigError):
            heads = await read_heads(link, KEYS, range(KEYS.shards))
            assert HEALTHY.name in heads, "the healthy head is not read"
        with suppress(RedisError, ConfigError):
            await check_meta(link, KEYS)
            await check_replicas(link, KEYS, "bars", StreamFilter.of(("trade",)), None)


async def take_over(bus: _Bus, commands: Pieces) -> None:
    """A service that takes shards over gets what is usable of what its predecessor stored."""
    bus.client.hset(KEYS.position(SHARD, "bars"), HEALTHY.name, "1700000000000-3")
    bus.attack(commands)
    with closing(await bus.connect()) as link:
        with suppress(RedisError, ConfigError):
            read_heartbeats(await link.ask("HGETALL", KEYS.members("bars")))
        fences = Fences(KEYS, "bars", "me")
        with suppress(RedisError, ConfigError):
            _, values = await link.send(fences.arm(range(KEYS.shards)), 2)
            fences.parse(range(KEYS.shards), values)
        for writes in (None, StreamFilter.of(("bar",))):
            found = await read_handover(
                link, KEYS, "bars", range(KEYS.shards), writes, 10_000, 1_700_000_000_000, 1 << 20
            )
            assert found.positions.get(HEALTHY.name) == StreamId(1_700_000_000_000, 3), "the position is lost"


def make_wants(chance: Random) -> Pieces:
    """Return commands to Redis, each a MessagePack array: wants and states that a foreign program writes."""
    return [pack_hostile(_want(chance)) for _ in range(chance.randint(1, 6))]


def _want(chance: Random) -> list[bytes]:
    holders = KEYS.holders("good").encode()
    holder = to_bytes(chance.choice(("app-1", "other", MARK, "", "x" * 200, *TEXTS)))
    kind = chance.randrange(6)
    if kind < 2:
        score = chance.choice((b"1", b"-inf", b"1e308", b"1700000000001"))
        return [b"ZADD", holders, score, holder]
    if kind == 2:
        return [b"HSET", holders + b":" + holder, _topic(chance), _text(chance, "1700000000000")]
    if kind == 3:
        shard = chance.choice((SHARD, 1 - SHARD))
        key = KEYS.subscriptions(shard, "good").encode()
        return [b"HSET", key, _topic(chance), _text(chance, '{"state":"active","since":1}')]
    key = chance.choice((holders, holders + b":app-1", holders + b":" + holder))
    return chance.choice(
        ([b"SET", key, b"x"], [b"DEL", key], [b"LPUSH", key, b"x"], [b"ZREM", holders, holder])
    )


def _topic(chance: Random) -> bytes:
    field = chance.choice(
        (b"trade ETH-USDT", b"quote A", b"trade  B", b"bar X", b"trade", b" ", b"trade a b")
    )
    return damaged_bytes(chance, field, 1) if chance.random() < 0.4 else field


async def keep_wants(bus: _Bus, commands: Pieces) -> None:
    """What a holder wants is read, whatever stands beside it, once it has renewed it; every state is one."""
    healthy = Topic("trade", "BTC-USDT")
    policy = WantsPolicy()
    book, table = WantBook(policy, ("trade", "quote")), SubscriptionTable((), Cap(3, "symbols"), 1_000)
    reader = WantsReader(KEYS, "good")
    now = 1_700_000_000_000
    with closing(await bus.connect()) as link:
        for number, half in enumerate((commands[::2], commands[1::2]), 1):
            bus.attack(half)
            for found in (await reader.read(link), await reader.read(link)):
                for holder, wants in found.changed.items():
                    book.put(holder, wants, now)
                for holder in found.ended:
                    book.forget(holder)
            states = await read_subscriptions(link, KEYS, "good")
            table.restore(states, now) if number == 1 else None
            book.read(now)
            wanted = book.wanted()
            table.update(wanted.topics, wanted.rejected, True, now + 20_000 * number)
            table.open(table.to_open())
            table.take_ended()
            for state in table.take_changes().values():
                assert state is None or decode_states({b"trade A": state.encode()})
        bus.client.delete(KEYS.holders("good"), KEYS.wants("good", "healthy-1"))
        await link.ask_all(put_wants(KEYS, "good", "healthy-1", {healthy: now}, now, 15_000))
        found = await reader.read(link)
        assert found.changed["healthy-1"] == {healthy: now}, "a healthy want is not read"


TARGETS = [
    Target("message", make_message, partial(pure, run_message)),
    Target("head", make_head, partial(pure, run_head)),
    Target("bar-state", make_state, partial(pure, run_state), short=100),
    Target("names", make_names, partial(pure, run_names)),
    Target("reader", make_commands, partial(open_bus, read_beside), short=60),
    Target("status", make_commands, partial(open_bus, look_at), short=60),
    Target("takeover", make_commands, partial(open_bus, take_over), short=60),
    Target("wants", make_wants, partial(open_bus, keep_wants), short=60),
]
