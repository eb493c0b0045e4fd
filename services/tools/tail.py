"""`tickbus tail`: prints the messages of some streams, one per line."""

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
from tickbus.protocol.names import KINDS, Keys, Stream, check_name, check_symbol
from tickbus.reader.reader import NOW, parse_start
from tickbus.redis.link import Connection
from tickbus.redis.registry import read_heads, read_meta
from tickbus.redis.topology import locate
from tickbus.service.options import CommonOptions, Option
from tickbus.service.runner import Service, run

ABOUT = """Print messages of streams, one per line, oldest first, then new ones, until Ctrl-C or --count.

A line of --json is one object: `type` (trade, quote, bar, signal, gap), `stream` (the stream's name, e.g.
trade:binance:BTC-USDT), `feed`, `id` (the stream ID), then the fields of the message by their names in the
contract: decimals as text, times in ns since the epoch, absent values null. The kind of stream of a gap is
the first word of `stream`."""
POSITIONALS = (("symbols", "*", "SYMBOL"),)


class Options(CommonOptions, frozen=True, kw_only=True):
    symbols: Annotated[tuple[str, ...], Option("symbols to print, e.g. BTC-USDT AAPL.US; default: all")] = ()
    kind: Annotated[
        Literal["trade", "quote", "bar", "signal", "gap"],
        Option("gap: those of all streams; other kinds include their own gaps"),
    ] = "trade"
    feed: Annotated[tuple[str, ...], Option("only these feeds")] = ()
    spec: Annotated[tuple[str, ...], Option("only bars of these specs, e.g. time:1s")] = ()
    from_: Annotated[
        str, Option("where to begin: now, start (the oldest entry), or a time, e.g. 2024-08-09T13:30:00Z")
    ] = NOW
    json: Annotated[bool, Option("print one JSON object per line")] = False
    count: Annotated[int | None, Option("stop after this many lines", minimum=1)] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("lowest level that is logged to standard error")
    ] = "warning"


def start(options: Options) -> int:
    for symbol in options.symbols:
        check_symbol(symbol)
    for feed in options.feed:
        check_name(feed)
    if options.spec and options.kind not in ("bar", "gap"):
        raise ConfigError(f"--spec does not apply to --kind {options.kind}; use it with --kind bar or gap")
    parse_start(options.from_, "--from")
    canonical = msgspec.structs.replace(options, spec=tuple(spec.text for spec in parse_all(options.spec)))
    return run(partial(_tail, canonical), options, "tail")


async def _tail(options: Options, service: Service) -> None:
    with pipe_may_close():
        stop_with_pipe(service.stopping)
        await service.until_stopping(_print(options))


async def _print(options: Options) -> None:
    kinds = KINDS if options.kind == "gap" else (options.kind,)
    link = await locate(options.redis).connect()
    await _report_absent(link, options, kinds)
    link.close()
    printer = _Printer(options)
    async with tickbus.connect(options.redis, prefix=options.prefix) as bus:
        try:
            async with asyncio.TaskGroup() as group:
                for kind in kinds:
                    group.create_task(printer.follow(_subscribe(bus, options, kind)))
        except* _LimitReached:
            pass


def _subscribe(bus: tickbus.Bus, options: Options, kind: str) -> tickbus.Subscription[tickbus.Message]:
    specs = options.spec if kind == "bar" else ()
    return bus.read(
        kind,
        symbols=options.symbols or None,
        feeds=options.feed or None,
        specs=specs or None,
        start=options.from_,
    )


class _LimitReached(Exception):
    """--count lines have been printed."""


class _Printer:
    """Prints for the subscriptions of all kinds: lines are never mixed, and in order per stream."""

    def __init__(self, options: Options) -> None:
        self._line = (
            json_line
            if options.json
            else partial(human_line, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
        )
        self._only_gaps = options.kind == "gap"
        self._left = options.count

    async def follow(self, subscription: tickbus.Subscription[tickbus.Message]) -> None:
        async for stream, id, message in subscription.entries():
            if self._only_gaps and not isinstance(message, Gap):
                continue
            # flushed at once: the reader of a pipe wants to see it now
            print(self._line(stream, id, message), flush=True)
            if self._left is not None:
                self._left -= 1
                if not self._left:
                    raise _LimitReached


async def _report_absent(link: Connection, options: Options, kinds: Iterable[str]) -> None:
    """Report requested streams that do not exist yet: a misspelled name must not look like a quiet market."""
    shards = await read_meta(link, options.prefix)
    if shards is None:
        print(f"tickbus: nothing has been written to bus {options.prefix!r} yet; waiting", file=sys.stderr)
        return
    keys = Keys(options.prefix, shards)
    relevant = (
        sorted({keys.shard(symbol) for symbol in options.symbols}) if options.symbols else range(shards)
    )
    streams = [
        stream for stream in map(Stream.parse, await read_heads(link, keys, relevant)) if stream.kind in kinds
    ]
    for what, requested, known in (
        ("symbol", options.symbols, {stream.symbol for stream in streams}),
        ("feed", options.feed, {stream.feed for stream in streams}),
        ("spec", options.spec, {stream.spec for stream in streams}),
    ):
        for name in requested:
            if name not in known:
                print(
                    f"tickbus: no {'/'.join(kinds)} stream of {what} {name} on this bus yet; waiting for it",
                    file=sys.stderr,
                )
