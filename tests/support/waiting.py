"""Waiting for a condition, never for a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_STEP = 0.02


def until(condition: Callable[[], T], seconds: float = 20.0, what: str = "") -> T:
    """Poll until `condition()` is true; -> its value. AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, (
            f"not within {seconds} s: {what or condition}; last seen {value!r}"
        )
        time.sleep(_STEP)
    return value


async def until_async(
    condition: Callable[[], "T | Awaitable[T]"], seconds: float = 20.0, what: str = ""
) -> T:
    """The same in a coroutine; the condition may be one too."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, (
            f"not within {seconds} s: {what or condition}; last seen {value!r}"
        )
        await asyncio.sleep(_STEP)
