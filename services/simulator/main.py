"""`tickbus simulate`: a stand-in for a vendor. Options and wiring; docs/simulator.md has them with examples."""

from pathlib import Path
from typing import Annotated, Literal

from services.simulator.console import listen_on_stdin, say
from services.simulator.faults import ACTIONS, parse_faults
from services.simulator.ledger import Ledger
from services.simulator.market import Market, parse_speed
from services.simulator.protocols.session import TimeUnit, VendorLimits
from services.simulator.simulator import Pace, Simulator
from services.simulator.sources import open_source
from services.simulator.tick import is_symbol
from services.simulator.trading_hours import parse_hours
from tickbus.errors import ConfigError
from tickbus.service.options import Option, ServiceOptions
from tickbus.service.runner import Service, run
from tickbus.units import HOUR, SECOND, Duration

_FAULTS = "\n".join(f"  {name + ('=' + action.value if action.value else ''):26} {action.about}" for name, action in ACTIONS.items())

ABOUT = f"""Stand in for a vendor: one port, three protocols, chosen by the path a client asks for:
  /ws, /ws/STREAM, /stream              binance
  /quote-b-ws-api, /quote-stock-b-ws-api  alltick
  any other path                        json
Prints `listening on ws://HOST:PORT`. Standard input takes faults, one line each, and `status`.

Faults, in --faults parted by `;`, each with after=N ticks, at=DURATION or every=N ticks before it as you like:
{_FAULTS}
Faults of ticks take kind=trade|quote and symbol=S too; close takes reason=TEXT at its end."""

POSITIONALS: tuple[tuple[str, str, str], ...] = ()


class Options(ServiceOptions, frozen=True, kw_only=True):
    host: Annotated[str, Option("address to listen on")] = "127.0.0.1"
    port: Annotated[int, Option("port to listen on; 0 picks a free one", least=0, most=65535)] = 0
    source: Annotated[str, Option("synthetic, capture:FILE[,FILE], ticks:FILE[,FILE] or parquet:DIR")] = "synthetic"
    speed: Annotated[str, Option("1, 10, 0.5, ... times the recorded (or synthetic) pace, or max: as fast as clients take it")] = "1"
    seed: Annotated[int, Option("of the synthetic market and of junk")] = 1
    rate: Annotated[int, Option("synthetic ticks per second, all symbols together", least=1, most=10_000_000)] = 100
    symbols: Annotated[tuple[str, ...], Option("the synthetic market's symbols, as the vendor spells them; without: whatever is asked for")] = ()
    symbols_count: Annotated[int, Option("so many synthetic symbols S00001, S00002, ... instead", least=0, most=1_000_000)] = 0
    quotes_per_trade: Annotated[int, Option("synthetic quotes for each trade; 0 = none", least=0, most=1000)] = 1
    session: Annotated[str, Option("when the market is open, UTC, like 13:30-20:00; without: always")] = ""
    symbol: Annotated[str, Option("the symbol that the files of ticks: stand for, like BAC.US")] = ""
    date: Annotated[str | None, Option("the day of the files of ticks:, if their names have none")] = None
    merge_sides: Annotated[bool, Option("fill the side that a row of recorded quotes leaves out with the one before")] = False
    restamp: Annotated[bool, Option("give recorded ticks the present time")] = False
    loop: Annotated[bool, Option("begin a recording again at its end; ids begin again too")] = False
    limit: Annotated[int, Option("stop after so many ticks, connections stay open; 0 = no limit", least=0)] = 0
    preload: Annotated[int, Option("read so many ticks into memory before listening: faster at --speed max", least=0, most=100_000_000)] = 0
    start: Annotated[Literal["first-subscribe", "now"], Option("when the market begins")] = "first-subscribe"
    settle: Annotated[Duration, Option("begin, and at --speed max go on, only when no subscription has changed for so long")] = Duration(0)
    ledger: Annotated[Path | None, Option("write what was sent, and what happened, to this file as JSON lines")] = None
    faults: Annotated[str, Option("faults, counted from the market's start: after=1000 mute=5s; every=500 drop=2")] = ""
    token: Annotated[str | None, Option("the only token that alltick takes; without: any", secret=True)] = None
    max_connections: Annotated[int, Option("connections per path; 0 = no cap", least=0)] = 0
    symbol_cap: Annotated[int, Option("symbols per connection (binance: streams); 0 = the vendor's own cap", least=0)] = 0
    ping_interval: Annotated[Duration, Option("between WebSocket pings of binance; three without a pong end the connection")] = Duration(20 * SECOND)
    lifetime: Annotated[Duration, Option("longest life of a binance connection")] = Duration(24 * HOUR)
    heartbeat_timeout: Annotated[Duration, Option("alltick closes a connection without heartbeats for so long")] = Duration(30 * SECOND)
    alltick_numbers: Annotated[bool, Option("alltick: seq and tick_time as JSON numbers")] = False
    alltick_join: Annotated[int, Option("alltick: at most so many objects in a frame, joined by newlines", least=1, most=10_000)] = 1
    json_numbers: Annotated[bool, Option("json: prices and sizes as JSON numbers")] = False
    json_time: Annotated[TimeUnit, Option("json: unit of the times")] = "ms"
    json_quotes: Annotated[bool, Option("json: quotes to every client, not only to those that ask")] = False
    json_batch: Annotated[int, Option("json: at most so many ticks in a message", least=1, most=10_000)] = 1


def start(options: Options) -> int:
    return run(lambda service: serve(service, options), options, part="simulate")


async def serve(service: Service, options: Options) -> None:
    simulator = build(options)
    async with simulator.listening(options.host, options.port) as port:
        say(f"listening on ws://{options.host}:{port}")
        listen_on_stdin(simulator.command)
        service.ready = True
        await service.until_stopping(simulator.run())


def build(options: Options) -> Simulator:
    """The simulator that the options describe; it does nothing yet. Needs a running loop. ConfigError as it says."""
    symbols = _symbols(options)
    faults = parse_faults(options.faults)
    source = open_source(
        options.source, seed=options.seed, rate=options.rate, quotes_per_trade=options.quotes_per_trade, symbols=symbols,
        symbol=options.symbol, date=options.date, merge_sides=options.merge_sides,
    )  # fmt: skip
    speed = parse_speed(options.speed)
    if options.preload and source.idle:
        raise ConfigError("--preload needs to know the synthetic market's symbols; give --symbols or --symbols-count")
    market = Market(source, speed, limit=options.limit, loop=options.loop, restamp=options.restamp, preload=options.preload)
    pace = Pace(speed is None, options.start == "first-subscribe", options.settle)
    if options.session:
        pace.open_now = parse_hours(options.session)
    terms = VendorLimits(
        token=options.token, symbol_cap=options.symbol_cap, max_connections=options.max_connections, knows=source.knows,
        ping_interval=options.ping_interval, lifetime=options.lifetime, heartbeat_timeout=options.heartbeat_timeout,
        alltick_numbers=options.alltick_numbers, alltick_join=options.alltick_join, json_numbers=options.json_numbers,
        json_time=options.json_time, json_quotes=options.json_quotes, json_batch=options.json_batch,
    )  # fmt: skip
    simulator = Simulator(source, market, pace, terms, Ledger(options.ledger) if options.ledger else None, options.seed)
    simulator.plan(faults)
    return simulator


def _symbols(options: Options) -> tuple[str, ...]:
    if options.symbols and options.symbols_count:
        raise ConfigError("--symbols and --symbols-count: give one of them")
    for symbol in options.symbols:
        if not is_symbol(symbol):
            raise ConfigError(f"--symbols: {symbol!r} is no symbol; use letters, digits, . _ - (at most 64)")
    return options.symbols or tuple(f"S{number:05d}" for number in range(1, options.symbols_count + 1))
