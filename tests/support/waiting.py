"""Wait for a condition, never for a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

_STEP = 0.02


def until(condition: Callable[[], T | None], seconds: float = 20.0, what: str = "") -> T:
    """Poll until `condition()` is true and return its value; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, _late(seconds, what or condition, value)
        time.sleep(_STEP)
    return value


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
