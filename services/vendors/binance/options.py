"""Binance's own options."""

from typing import Annotated

from services.vendors.options import VendorOptions
from tickbus.service.options import Option
from tickbus.units import HOUR, SECOND, Duration


class BinanceServerOptions(VendorOptions, frozen=True, kw_only=True):
    ping_interval: Annotated[
        Duration, Option("interval of WebSocket pings; three without a pong close the connection")
    ] = Duration(20 * SECOND)
    lifetime: Annotated[Duration, Option("maximum lifetime of a connection")] = Duration(24 * HOUR)
