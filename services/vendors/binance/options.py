"""Binance's own options."""

from typing import Annotated

from services.vendors.options import VendorOptions
from tickbus.service.options import Option
from tickbus.units import HOUR, SECOND, Duration


class BinanceServerOptions(VendorOptions, frozen=True, kw_only=True):
    ping_interval: Annotated[
        Duration, Option("between WebSocket pings; three without a pong end the connection")
    ] = Duration(20 * SECOND)
    lifetime: Annotated[Duration, Option("longest life of a connection")] = Duration(24 * HOUR)
