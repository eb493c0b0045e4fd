"""Wait for a condition, never for a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

_STEP = 0.02
_SHARE = 2
"""What is slow to look at, a page of metrics or a ledger, is looked at less often: others need the CPU."""


def until(condition: Callable[[], T | None], seconds: float = 20.0, what: str = "") -> T:
    """Poll until `condition()` is true and return its value; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        assert now < deadline, _late(seconds, what or condition, value)
        time.sleep(max(_STEP, _SHARE * (now - began)))


@overload
async def until_async(
    condition: Callable[[], Awaitable[T | None]], seconds: float = 20.0, what: str = ""
) -> T: ...
@overload
async def until_async(condition: Callable[[], T | None], seconds: float = 20.0, what: str = "") -> T: ...
async def until_async(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """Do the same in a coroutine; the condition may be one too."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, _late(seconds, what or condition, value)
        await asyncio.sleep(_STEP)


def _late(seconds: float, what: object, value: object) -> str:
    return f"not within {seconds} s: {what}; last value {value!r}"
