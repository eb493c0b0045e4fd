"""AllTick's own options. The plans' limits: api-evangelist/alltick-api and the vendor's manual, 2026-08."""

from typing import Annotated, Literal

from services.vendors.options import VendorOptions
from tickbus.service.options import Option
from tickbus.units import SECOND, Duration

Plan = Literal["free", "basic", "premium", "pro"]


class AllTickOptions(VendorOptions, frozen=True, kw_only=True):
    alltick_plan: Annotated[
        Plan | None,
        Option("the token's plan: its limits on codes and pace are respected; default: a paid plan's"),
    ] = None


class AllTickServerOptions(VendorOptions, frozen=True, kw_only=True):
    heartbeat_timeout: Annotated[
        Duration, Option("close a connection after this long without a heartbeat")
    ] = Duration(30 * SECOND)
    alltick_numbers: Annotated[
        bool, Option("send seq and tick_time as JSON numbers, the form documented since June 2026")
    ] = False
    alltick_join: Annotated[
        int, Option("maximum number of objects per frame, joined by newlines", minimum=1, maximum=10_000)
    ] = 1
