"""The options of the generic JSON feed."""

from typing import Annotated, Literal

from services.vendors.options import VendorOptions
from tickbus.service.options import Option

TimeUnit = Literal["seconds", "ms", "us", "ns", "iso"]


class JsonOptions(VendorOptions, frozen=True, kw_only=True):
    json_fields: Annotated[
        tuple[str, ...], Option("the vendor's field names where they differ, e.g. price=p,volume=v")
    ] = ()


class JsonServerOptions(VendorOptions, frozen=True, kw_only=True):
    json_numbers: Annotated[bool, Option("send prices and sizes as JSON numbers")] = False
    json_time: Annotated[TimeUnit, Option("unit of the times")] = "ms"
    json_quotes: Annotated[
        bool, Option("send quotes to every client, not only to those that request them")
    ] = False
    json_batch: Annotated[int, Option("maximum number of ticks per message", minimum=1, maximum=10_000)] = 1
