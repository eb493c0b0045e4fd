"""`tickbus simulate`: a stand-in for a vendor. Options and wiring; docs/simulator.md has examples."""

from pathlib import Path
from typing import Annotated, Literal

from services.output import pipe_may_close
from services.simulator.console import print_line, serve_stdin
from services.simulator.faults import ACTIONS, parse_faults
from services.simulator.ledger import Ledger
from services.simulator.market import Market, parse_speed
from services.simulator.simulator import Pace, Simulator
from services.simulator.source import Source
from services.simulator.sources import open_source, recorded_symbols
from services.simulator.tick import is_symbol
from services.trading_hours import TradingHours
from services.vendors import VENDORS
from services.vendors.dialect import VendorLimits
from services.vendors.options import select_vendor_options, with_vendor_options
from tickbus.errors import ConfigError
from tickbus.service.options import Option, ServiceOptions
from tickbus.service.runner import Service, run
from tickbus.units import Duration

_FAULTS = "\n".join(
    f"  {name + ('=' + action.value if action.value else ''):26} {action.help}"
    for name, action in ACTIONS.items()
)

_PATHS = "\n".join(f"  {name:26} {', '.join(vendor.paths)}" for name, vendor in VENDORS.items())

ABOUT = f"""Stand in for a vendor: all protocols on one port, chosen by the path that a client requests:
{_PATHS}
Prints `listening on ws://HOST:PORT`. Standard input accepts faults, one per line, and `status`.

Faults, in --faults separated by `;`, each optionally preceded by after=N ticks, at=DURATION or every=N ticks:
{_FAULTS}
Faults of ticks also accept kind=trade|quote and symbol=S; close accepts reason=TEXT as its last word."""

POSITIONALS: tuple[tuple[str, str, str], ...] = ()


class SimulatorOptions(ServiceOptions, frozen=True, kw_only=True):
    host: Annotated[str, Option("address to listen on")] = "127.0.0.1"
    port: Annotated[int, Option("port to listen on; 0 picks a free one", minimum=0, maximum=65535)] = 0
    source: Annotated[str, Option("synthetic, capture:FILE[,FILE], ticks:FILE[,FILE] or parquet:DIR")] = (
        "synthetic"
    )
    speed: Annotated[
        str,
        Option("1, 10, 0.5, ... times the recorded (or synthetic) pace, or max: as fast as clients read"),
    ] = "1"
    seed: Annotated[int, Option("seed of the synthetic market and of junk")] = 1
    rate: Annotated[
        int, Option("synthetic ticks per second for all symbols together", minimum=1, maximum=10_000_000)
    ] = 100
    symbols: Annotated[
        tuple[str, ...],
        Option(
            "symbols of the synthetic market, as the vendor spells them; default: whatever clients request"
        ),
    ] = ()
    symbols_count: Annotated[
        int, Option("this many synthetic symbols S00001, S00002, ... instead", minimum=0, maximum=1_000_000)
    ] = 0
    quotes_per_trade: Annotated[
        int, Option("synthetic quotes per trade; 0 = none", minimum=0, maximum=1000)
    ] = 1
    session: Annotated[
        str,
        Option(
            "when the market is open, e.g. 13:30-20:00 or 'mon-fri 09:30-16:00 America/New_York'; "
            "default: always"
        ),
    ] = ""
    symbol: Annotated[str, Option("symbol of the files of ticks:, e.g. BAC.US")] = ""
    date: Annotated[str | None, Option("day of the files of ticks:, if their names do not contain it")] = None
    merge_sides: Annotated[
        bool, Option("fill the side missing from a row of recorded quotes with its previous value")
    ] = False
    restamp: Annotated[bool, Option("stamp recorded ticks with the current time")] = False
    loop: Annotated[bool, Option("restart a recording at its end; ids restart too")] = False
    limit: Annotated[
        int, Option("stop after this many ticks, connections stay open; 0 = no limit", minimum=0)
    ] = 0
    preload: Annotated[
        int,
        Option(
            "read this many ticks into memory before listening: faster at --speed max",
            minimum=0,
            maximum=100_000_000,
        ),
    ] = 0
    start: Annotated[Literal["first-subscribe", "now"], Option("when the market starts")] = "first-subscribe"
    settle: Annotated[
        Duration,
        Option("start, and at --speed max resume, only after this long without a subscription change"),
    ] = Duration(0)
    list_symbols: Annotated[
        bool, Option("print the symbols of a recording (of its first 200,000 ticks), one a line, and end")
    ] = False
    ledger: Annotated[
        Path | None, Option("write everything sent, and all events, to this file as JSON lines")
    ] = None
    faults: Annotated[
        str, Option("faults, counted from the market's start: after=1000 mute=5s; every=500 drop=2")
    ] = ""
    token: Annotated[
        str | None,
        Option("the only token accepted by vendors that require one; default: any", secret=True),
    ] = None
    max_connections: Annotated[int, Option("connections per path; 0 = no cap", minimum=0)] = 0
    symbol_cap: Annotated[
        int,
        Option(
            "symbols per connection (streams, if the vendor counts those); 0 = the vendor's own cap",
            minimum=0,
        ),
    ] = 0
    refuse_symbols: Annotated[
        tuple[str, ...],
        Option("refuse each subscription that names one of these symbols, as the vendor spells them"),
    ] = ()


_SERVER_OPTIONS = {name: vendor.server_options for name, vendor in VENDORS.items()}
Options = with_vendor_options(SimulatorOptions, _SERVER_OPTIONS)


def start(options: SimulatorOptions) -> int:
    if options.list_symbols:
        parse_speed(options.speed)
        with pipe_may_close():
            print_line("\n".join(recorded_symbols(_source(options))))
        return 0
    return run(lambda service: serve(service, options), options, name="simulate")


async def serve(service: Service, options: SimulatorOptions) -> None:
    simulator = build(options)
    async with simulator.listening(options.host, options.port) as port:
        print_line(f"listening on ws://{options.host}:{port}")
        serve_stdin(simulator.command)
        service.ready = True
        await service.until_stopping(simulator.run())


def build(options: SimulatorOptions) -> Simulator:
    """Return the simulator that the options describe, not yet running. Needs a running loop.

    Raises ConfigError for invalid options or files.
    """
    faults = parse_faults(options.faults)
    source = _source(options)
    speed = parse_speed(options.speed)
    if options.preload and source.idle:
        raise ConfigError(
            "--preload requires the symbols of the synthetic market: give --symbols or --symbols-count"
        )
    market = Market(
        source,
        speed,
        limit=options.limit,
        loop=options.loop,
        restamp=options.restamp,
        preload=options.preload,
    )
    pace = Pace(speed is None, options.start == "first-subscribe", options.settle)
    if options.session:
        pace.is_open = TradingHours.parse(options.session).contains
    limits = VendorLimits(
        options.token, options.symbol_cap, options.max_connections, source.knows,
        frozenset(options.refuse_symbols),
    )  # fmt: skip
    server_options = {name: select_vendor_options(options, own) for name, own in _SERVER_OPTIONS.items()}
    simulator = Simulator(
        source,
        market,
        pace,
        limits,
        server_options,
        Ledger(options.ledger) if options.ledger else None,
        options.seed,
    )
    simulator.schedule(faults)
    return simulator


def _source(options: SimulatorOptions) -> Source:
    return open_source(
        options.source,
        seed=options.seed,
        rate=options.rate,
        quotes_per_trade=options.quotes_per_trade,
        symbols=_symbols(options),
        symbol=options.symbol,
        date=options.date,
        merge_sides=options.merge_sides,
    )


def _symbols(options: SimulatorOptions) -> tuple[str, ...]:
    if options.symbols and options.symbols_count:
        raise ConfigError("--symbols and --symbols-count exclude each other: give one of them")
    for symbol in options.symbols:
        if not is_symbol(symbol):
            raise ConfigError(
                f"--symbols: invalid symbol {symbol!r}: expected letters, digits, . _ - (at most 64)"
            )
    return options.symbols or tuple(f"S{number:05d}" for number in range(1, options.symbols_count + 1))
