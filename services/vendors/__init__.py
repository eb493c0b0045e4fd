"""The registry of vendors: what is known of each, from both ends of its protocol. Nothing else names a vendor.

`client` (a Feed and its Mapper: frames -> ticks) is what the gateway uses, `server` (a Dialect: ticks -> frames) what the
simulator uses. A new vendor is one folder and one line here: docs/adding-a-feed.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl

from services.vendors.alltick.client import AllTick
from services.vendors.alltick.options import AllTickOptions, AllTickServerOptions
from services.vendors.alltick.server import open_alltick
from services.vendors.binance.client import Binance
from services.vendors.binance.options import BinanceServerOptions
from services.vendors.binance.server import channel_of, open_binance
from services.vendors.dialect import Dialect, HttpRefusal, VendorLimits, bare_path
from services.vendors.feed import Feed
from services.vendors.json.client import Json
from services.vendors.json.options import JsonOptions, JsonServerOptions
from services.vendors.json.server import open_json
from services.vendors.options import VendorOptions
from tickbus.errors import ConfigError


class OpenDialect(Protocol):
    def __call__(
        self, path: str, query: Mapping[str, str], limits: VendorLimits, options: Any, now: int
    ) -> Dialect | HttpRefusal | None:
        """The dialect of a client that asks for this path; None if the path is not one of this vendor's."""
        ...


class ChannelOf(Protocol):
    def __call__(self, frame: bytes) -> tuple[str, str] | None:
        """The channel of a recorded frame and the symbol in its name; None for a frame of no channel."""
        ...


@dataclass(frozen=True)
class Vendor:
    feed: type[Feed]
    open_dialect: OpenDialect | None = None
    """None: this end of the protocol is not known here."""
    paths: tuple[str, ...] = ()
    """On which the vendor listens, for people."""
    options: type[VendorOptions] = VendorOptions
    """Of the feed."""
    server_options: type[VendorOptions] = VendorOptions
    """Of the dialect."""
    channel_of: ChannelOf | None = None
    """Of vendors whose recorded frames can be played."""


VENDORS: dict[str, Vendor] = {
    "alltick": Vendor(
        AllTick,
        open_alltick,
        ("/quote-b-ws-api", "/quote-stock-b-ws-api"),
        AllTickOptions,
        AllTickServerOptions,
    ),
    "binance": Vendor(
        Binance,
        open_binance,
        ("/ws", "/ws/STREAM", "/stream"),
        server_options=BinanceServerOptions,
        channel_of=channel_of,
    ),
    "json": Vendor(
        Json, open_json, ("any other path",), JsonOptions, JsonServerOptions
    ),  # the last: it takes every path
}


def vendor_of(feed: str) -> Vendor:
    """Return the vendor of `--feed`. ConfigError names those that there are."""
    try:
        return VENDORS[feed]
    except KeyError:
        raise ConfigError(f"unknown feed {feed!r}: expected one of {', '.join(VENDORS)} (--feed)") from None


def open_dialect(
    target: str, limits: VendorLimits, options: Mapping[str, VendorOptions], now: int
) -> Dialect | HttpRefusal:
    """Return the dialect for a request's target, `/stream?streams=btcusdt@trade`. options: of the servers, by vendor."""
    path = bare_path(target)
    query = dict(parse_qsl(target.partition("?")[2], keep_blank_values=True))
    for name, vendor in VENDORS.items():
        if vendor.open_dialect is None:
            continue
        own = options.get(name) or vendor.server_options()
        if (opened := vendor.open_dialect(path, query, limits, own, now)) is not None:
            return opened
    return HttpRefusal(404, b"no vendor speaks on this path\n")
