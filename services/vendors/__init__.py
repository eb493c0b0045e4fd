"""The registry of vendors: what is known about each, from both ends of its protocol.

Nothing else names a vendor. The gateway uses `client` (a Feed and its Mapper: frames -> ticks), the simulator
uses `server` (a Dialect: ticks -> frames). A new vendor is one folder and one line here:
docs/adding-a-feed.md.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl

from services.vendors.alltick.client import AllTick
from services.vendors.alltick.options import AllTickOptions, AllTickServerOptions
from services.vendors.alltick.server import open_alltick
from services.vendors.binance.client import Binance
from services.vendors.binance.options import BinanceServerOptions
from services.vendors.binance.server import answer_get, channel_of, open_binance
from services.vendors.dialect import Dialect, HttpRefusal, VendorLimits, path_without_query
from services.vendors.feed import Feed
from services.vendors.json.client import Json
from services.vendors.json.options import JsonOptions, JsonServerOptions
from services.vendors.json.server import open_json
from services.vendors.options import VendorOptions
from tickbus.errors import ConfigError
from tickbus.units import DAY, Duration


class OpenDialect(Protocol):
    def __call__(
        self, path: str, query: Mapping[str, str], limits: VendorLimits, options: Any, now: int
    ) -> Dialect | HttpRefusal | None:
        """Return the dialect for a client that requests this path; None if the vendor does not serve it."""
        ...


class ChannelOf(Protocol):
    def __call__(self, frame: bytes) -> tuple[str, str] | None:
        """Return the channel of a recorded frame and the symbol in its name; None if it has no channel."""
        ...


class AnswerGet(Protocol):
    def __call__(self, path: str, symbols: Collection[str], time_ns: int) -> bytes | None:
        """Return the JSON body for a GET; None if the vendor has no such path. symbols: canonical."""
        ...


@dataclass(frozen=True)
class Vendor:
    feed: type[Feed]
    open_dialect: OpenDialect | None = None
    """None if the server end of the protocol is not implemented here."""
    paths: tuple[str, ...] = ()
    """The paths on which the vendor listens, for the help text."""
    options: type[VendorOptions] = VendorOptions
    """The options of the feed."""
    server_options: type[VendorOptions] = VendorOptions
    """The options of the dialect."""
    listener_paths: tuple[str, ...] = ()
    """The paths on which a relay serves the dialect; empty: all that `open_dialect` accepts."""
    relay_options: VendorOptions | None = None
    """The options of the dialect in a relay, where they differ."""
    refuses_unknown_symbols: bool = False
    """Whether the vendor answers a symbol that it does not have with an error, instead of silence."""
    answer_get: AnswerGet | None = None
    """What the vendor's clients ask by HTTP before they connect."""
    channel_of: ChannelOf | None = None
    """Set for vendors whose recorded frames can be replayed."""


VENDORS: dict[str, Vendor] = {
    "alltick": Vendor(
        AllTick,
        open_alltick,
        ("/quote-b-ws-api", "/quote-stock-b-ws-api"),
        AllTickOptions,
        AllTickServerOptions,
        refuses_unknown_symbols=True,
    ),
    "binance": Vendor(
        Binance,
        open_binance,
        ("/ws", "/ws/STREAM", "/stream"),
        server_options=BinanceServerOptions,
        relay_options=BinanceServerOptions(lifetime=Duration(100 * 365 * DAY)),
        answer_get=answer_get,
        channel_of=channel_of,
    ),
    # last: it accepts every path
    "json": Vendor(
        Json,
        open_json,
        ("any other path",),
        JsonOptions,
        JsonServerOptions,
        listener_paths=("/", "/stock/ws"),
        relay_options=JsonServerOptions(json_batch=100),
    ),
}


def get_vendor(feed: str) -> Vendor:
    """Return the vendor that `--feed` names. ConfigError lists the known ones."""
    try:
        return VENDORS[feed]
    except KeyError:
        raise ConfigError(f"unknown feed {feed!r}: expected one of {', '.join(VENDORS)} (--feed)") from None


def open_dialect(
    target: str, limits: VendorLimits, options: Mapping[str, VendorOptions], now: int
) -> Dialect | HttpRefusal:
    """Return the dialect for a request target such as `/stream?streams=btcusdt@trade`.

    options: the server options by vendor; a vendor that is missing gets its defaults.
    """
    path = path_without_query(target)
    query = dict(parse_qsl(target.partition("?")[2], keep_blank_values=True))
    for name, vendor in VENDORS.items():
        if vendor.open_dialect is None:
            continue
        server_options = options.get(name) or vendor.server_options()
        if (opened := vendor.open_dialect(path, query, limits, server_options, now)) is not None:
            return opened
    return HttpRefusal(404, b"no vendor serves this path\n")
