"""AllTick's own options. The plans' limits: api-evangelist/alltick-api and the vendor's manual, 2026-08."""

from typing import Annotated, Literal

from services.vendors.options import VendorOptions
from tickbus.service.options import Option
from tickbus.units import SECOND, Duration

Plan = Literal["free", "basic", "premium", "pro"]


class AllTickOptions(VendorOptions, frozen=True, kw_only=True):
    alltick_plan: Annotated[
        Plan | None,
        Option("the plan of the token: its number of codes and its pace are kept to; default a paid one's"),
    ] = None


class AllTickServerOptions(VendorOptions, frozen=True, kw_only=True):
    heartbeat_timeout: Annotated[
        Duration, Option("a connection without heartbeats for this long is closed")
    ] = Duration(30 * SECOND)
    alltick_numbers: Annotated[
        bool, Option("seq and tick_time as JSON numbers, the form documented since June 2026")
    ] = False
    alltick_join: Annotated[
        int, Option("objects per frame at most, joined by newlines", minimum=1, maximum=10_000)
    ] = 1
