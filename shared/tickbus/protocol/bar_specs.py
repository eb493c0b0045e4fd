"""Bar specs: what closes a bar, as `time:1m`, `tick:100`, `volume:0.5`, `value:1000000`. Pure.

The text is canonical, because it is part of stream names: durations in the longest unit that divides them
(`time:1m`, never `time:60s`; `time:24h` is `time:1d`), numbers without insignificant zeros.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from tickbus.errors import ConfigError
from tickbus.units import DAY, SECOND, format_duration, parse_duration, plain

Measure = Literal["time", "tick", "volume", "value"]

_EXPECTED = "expected time:<n>s|m|h|d, tick:<n>, volume:<n> or value:<n>, e.g. time:1m"
_LONGEST = 366 * DAY
_COUNTS: dict[str, Measure] = {"tick": "tick", "volume": "volume", "value": "value"}
_NUMBER = re.compile(r"\d{1,30}(?:\.\d{1,18})?", re.ASCII)


@dataclass(frozen=True)
class Spec:
    """What fills a bar: a time, or a number of trades, a volume, a value."""

    text: str
    """Canonical; two specs are the same bars if and only if their texts are equal."""
    measure: Measure
    size: Decimal
    """ns for a time bar; otherwise the number of trades, the volume or the value that fills a bar."""

    @property
    def days(self) -> int:
        """Length in whole days of a bar that ends at local midnight; 0 for every other bar."""
        days, rest = divmod(int(self.size), DAY)
        return days if self.measure == "time" and not rest else 0


def parse(text: str) -> Spec:
    """Parse one spec. ConfigError says what is expected."""
    measure, _, size = text.strip().partition(":")
    if measure == "time":
        return _time(text, size)
    if counted := _COUNTS.get(measure):
        return _count(text, counted, size)
    raise _invalid(text, _EXPECTED)


def parse_all(texts: Iterable[str]) -> tuple[Spec, ...]:
    """Parse several specs; return each once, in order of first appearance."""
    return tuple({spec.text: spec for spec in map(parse, texts)}.values())


def _time(text: str, size: str) -> Spec:
    if not re.fullmatch(r"\d{1,8}[smhd]", size, re.ASCII):
        raise _invalid(text, "expected a whole number of s, m, h or d, e.g. time:1s, time:5m or time:1d")
    length = parse_duration(size)
    if not SECOND <= length <= _LONGEST:
        raise _invalid(text, "expected 1s to 366d")
    return Spec(f"time:{format_duration(length)}", "time", Decimal(length))


def _count(text: str, measure: Measure, size: str) -> Spec:
    number = Decimal(size) if _NUMBER.fullmatch(size) else Decimal(0)
    if not number:
        raise _invalid(text, f"expected a number above zero, e.g. {measure}:100")
    whole, _, fraction = plain(number).partition(".")
    fraction = fraction.rstrip("0")
    if measure == "tick" and fraction:
        raise _invalid(text, "expected a whole number of trades, e.g. tick:100")
    shortest = f"{whole}.{fraction}" if fraction else whole
    return Spec(f"{measure}:{shortest}", measure, Decimal(shortest))


def _invalid(text: str, expected: str) -> ConfigError:
    return ConfigError(f"invalid bar spec {text[:80]!r}: {expected}")
