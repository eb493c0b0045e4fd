"""The options of the generic JSON feed."""

from typing import Annotated, Literal

from services.vendors.options import VendorOptions
from tickbus.service.options import Option

TimeUnit = Literal["seconds", "ms", "us", "ns", "iso"]


Ids = Literal["none", "unique", "sequential"]


class JsonOptions(VendorOptions, frozen=True, kw_only=True):
    json_fields: Annotated[
        tuple[str, ...],
        Option(
            "the vendor's field names where they differ, or the paths to them, e.g. price=p,volume=v or "
            "trades=data.items,price=px.value; trades=. if the list is the whole frame"
        ),
    ] = ()
    json_ids: Annotated[
        Ids,
        Option(
            "what the vendor promises of trade ids: unique (repeats are recognised), sequential (+1 per "
            "symbol: holes are recognised too) or nothing"
        ),
    ] = "none"
    json_unsubscribe: Annotated[
        str | None,
        Option(
            "the action with which a symbol is dropped, e.g. unsubscribe; "
            "default: none, the remaining symbols are subscribed to again"
        ),
    ] = None


class JsonServerOptions(VendorOptions, frozen=True, kw_only=True):
    json_numbers: Annotated[bool, Option("send prices and sizes as JSON numbers")] = False
    json_time: Annotated[TimeUnit, Option("unit of the times")] = "ms"
    json_quotes: Annotated[
        bool, Option("send quotes to every client, not only to those that request them")
    ] = False
    json_batch: Annotated[int, Option("maximum number of ticks per message", minimum=1, maximum=10_000)] = 1
