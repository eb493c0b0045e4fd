"""The gateway's options."""

from pathlib import Path
from typing import Annotated

from services.vendors import VENDORS
from services.vendors.options import with_vendor_options
from tickbus.durable import DEFAULT_UMASK
from tickbus.service.options import Option, Umask, WriterOptions
from tickbus.units import SECOND, Duration, Size


class GatewayOptions(WriterOptions, frozen=True, kw_only=True):
    feed: Annotated[str, Option(f"the vendor's protocol: {', '.join(VENDORS)}", selects_group=True)]
    name: Annotated[
        str | None, Option("name of this feed in keys, labels and files; default: that of --feed")
    ] = None
    url: Annotated[
        str | None, Option("ws://host:port or wss://host of the vendor; default: the vendor's own")
    ] = None
    proxy: Annotated[
        str | None,
        Option(
            "http://[user:password@]host:port of a proxy to the vendor, or none; default: HTTPS_PROXY, "
            "HTTP_PROXY (for ws://), ALL_PROXY and NO_PROXY of the environment",
            secret=True,
        ),
    ] = None
    token: Annotated[str | None, Option("the vendor's token", secret=True)] = None
    symbols: Annotated[
        tuple[str, ...],
        Option(
            "symbols to subscribe to always, e.g. BTC-USDT,AAPL.US or @file; apps may want others at run time"
        ),
    ] = ()
    wants: Annotated[
        str,
        Option(
            "who may want symbols at run time: any, none, or a TOML file of rules, read again when it changes"
        ),
    ] = "any"
    linger: Annotated[
        Duration, Option("how long a symbol stays subscribed to after the last want for it ended")
    ] = Duration(60 * SECOND)
    max_symbols: Annotated[
        int | None,
        Option(
            "most symbols of each kind to subscribe to; default: the vendor's limit if it is known", minimum=1
        ),
    ] = None
    symbol_map: Annotated[
        Path | None,
        Option("file of lines `canonical = vendor` for symbols that the vendor spells differently"),
    ] = None
    kinds: Annotated[tuple[str, ...], Option("trade, quote or both: of --symbols")] = ("trade",)
    silence: Annotated[
        Duration, Option("reconnect when the whole feed is silent for this long in session; 0s: never")
    ] = Duration(60 * SECOND)
    session: Annotated[
        str | None,
        Option("when ticks are expected, e.g. 'mon-fri 09:30-16:00 America/New_York'; default: always"),
    ] = None
    future_tolerance: Annotated[
        Duration, Option("flag ticks whose ts_event is further ahead of the clock than this")
    ] = Duration(5 * SECOND)
    oldest: Annotated[
        str,
        Option(
            "a ts_event before this date or time counts as absent, like one more than 2 days ahead: "
            "it becomes the time of receipt, flagged bad_time"
        ),
    ] = "2000-01-01"
    max_frame: Annotated[Size, Option("reject longer frames", minimum=1024)] = Size(4 << 20)
    backlog_bytes: Annotated[
        Size,
        Option(
            "memory for ticks that Redis has not accepted yet; past half of it the oldest go to disk",
            minimum=1 << 16,
        ),
    ] = Size(256 << 20)
    spill_dir: Annotated[
        Path, Option("folder for ticks that Redis has not accepted and memory has no room for")
    ] = Path("spill")
    umask: Umask = DEFAULT_UMASK
    spill_bytes: Annotated[
        Size, Option("disk space for them; past it ticks become a Gap; 0: never spill")
    ] = Size(4 << 30)
    takeover_delay: Annotated[
        Duration | None,
        Option(
            "wait this long before connecting in place of a gateway that died; "
            "default: the time its vendor takes to drop the connection"
        ),
    ] = None
    max_connection_age: Annotated[
        Duration | None, Option("replace the upstream connection at this age; default: the vendor's rule")
    ] = None


VENDOR_OPTIONS = {name: vendor.options for name, vendor in VENDORS.items()}
Options = with_vendor_options(GatewayOptions, VENDOR_OPTIONS)
