"""`tickbus tail`: the messages of some streams, one a line."""

import asyncio
import os
import sys
from collections.abc import Iterable
from functools import partial
from typing import Annotated, Literal

import msgspec

import tickbus
from services.output import pipe_may_close, stop_with_pipe
from services.tools.lines import human_line, json_line
from tickbus.errors import ConfigError
from tickbus.protocol.bar_specs import parse_all
from tickbus.protocol.messages import Gap
from tickbus.protocol.names import Keys, Stream, check_name, check_symbol
from tickbus.reader.reader import NOW, parse_start
from tickbus.redis.link import Connection
from tickbus.redis.registry import read_heads, read_meta
from tickbus.redis.topology import locate
from tickbus.service.options import CommonOptions, Option
from tickbus.service.runner import Service, run

ABOUT = """Print the messages of some streams, one a line, oldest first, then new ones as they come, until Ctrl-C or --count.

A line of --json is one object: `type` (trade, quote, bar, signal, gap), `stream` (the stream's name, like
trade:binance:BTC-USDT), `feed`, `id` (the stream ID), then the message's fields by their contract names: decimals as text,
times in ns since the epoch, absent values null. A gap's kind of stream is the first word of `stream`."""
POSITIONALS = (("symbols", "*", "SYMBOL"),)


class Options(CommonOptions, frozen=True, kw_only=True):
    symbols: Annotated[
        tuple[str, ...], Option("what to print, like BTC-USDT AAPL.US; default everything")
    ] = ()
    kind: Annotated[
        Literal["trade", "quote", "bar", "signal", "gap"],
        Option("gap: those of the trade, quote and bar streams; other kinds show their own too"),
    ] = "trade"
    feed: Annotated[tuple[str, ...], Option("only of these feeds, by name")] = ()
    spec: Annotated[tuple[str, ...], Option("only bars of these specs, like time:1s")] = ()
    from_: Annotated[
        str, Option("where to begin: now, start (the oldest kept), or a time like 2024-08-09T13:30:00Z")
    ] = NOW
    json: Annotated[bool, Option("one JSON object a line")] = False
    count: Annotated[int | None, Option("end after so many lines", minimum=1)] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("how much is logged to standard error")
    ] = "warning"


def start(options: Options) -> int:
    for symbol in options.symbols:
        check_symbol(symbol)
    for feed in options.feed:
        check_name(feed)
    if options.spec and options.kind not in ("bar", "gap"):
        raise ConfigError(f"--spec is for bars: use it with --kind bar or gap, not with {options.kind}")
    parse_start(options.from_, "--from")
    canonical = msgspec.structs.replace(options, spec=tuple(spec.text for spec in parse_all(options.spec)))
    return run(partial(_tail, canonical), options, "tail")


async def _tail(options: Options, service: Service) -> None:
    with pipe_may_close():
        stop_with_pipe(service.stopping)
        await service.until_stopping(_print(options))


async def _print(options: Options) -> None:
    kinds = ("trade", "quote", "bar") if options.kind == "gap" else (options.kind,)
    link = await locate(options.redis).connect()
    await _tell_absent(link, options, kinds)
    link.close()
    printer = _Printer(options)
    async with tickbus.connect(options.redis, prefix=options.prefix) as bus:
        try:
            async with asyncio.TaskGroup() as group:
                for kind in kinds:
                    group.create_task(printer.follow(_reading(bus, options, kind)))
        except* _Enough:
            pass


def _reading(bus: tickbus.Bus, options: Options, kind: str) -> tickbus.Subscription[tickbus.Message]:
    specs = options.spec if kind == "bar" else ()
    return bus.read(
        kind,
        symbols=options.symbols or None,
        feeds=options.feed or None,
        specs=specs or None,
        start=options.from_,
    )


class _Enough(Exception):
    """--count lines are printed."""


class _Printer:
    """Readings of several kinds share one: lines come out whole, in order per stream."""

    def __init__(self, options: Options) -> None:
        self._line = (
            json_line
            if options.json
            else partial(human_line, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
        )
        self._only_gaps = options.kind == "gap"
        self._left = options.count

    async def follow(self, reading: tickbus.Subscription[tickbus.Message]) -> None:
        async for stream, id, message in reading.entries():
            if self._only_gaps and not isinstance(message, Gap):
                continue
            # flushed at once: whoever reads a pipe wants to see it now
            print(self._line(stream, id, message), flush=True)
            if self._left is not None:
                self._left -= 1
                if not self._left:
                    raise _Enough


async def _tell_absent(link: Connection, options: Options, kinds: Iterable[str]) -> None:
    """What is asked for and is not there is waited for; a misspelt name must not look like a quiet market."""
    shards = await read_meta(link, options.prefix)
    if shards is None:
        print(f"tickbus: nobody has written to the bus {options.prefix!r} yet; waiting", file=sys.stderr)
        return
    keys = Keys(options.prefix, shards)
    asked = sorted({keys.shard(symbol) for symbol in options.symbols}) if options.symbols else range(shards)
    there = [
        stream for stream in map(Stream.parse, await read_heads(link, keys, asked)) if stream.kind in kinds
    ]
    for what, given, known in (
        ("symbol", options.symbols, {stream.symbol for stream in there}),
        ("feed", options.feed, {stream.feed for stream in there}),
        ("spec", options.spec, {stream.spec for stream in there}),
    ):
        for name in given:
            if name not in known:
                print(
                    f"tickbus: no {'/'.join(kinds)} stream of {what} {name} on this bus yet; waiting for it",
                    file=sys.stderr,
                )
