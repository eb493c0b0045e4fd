"""What each signal is told: a TOML file with defaults for all symbols, and overrides by pattern. Pure.

[signals."sigma.price"]
start = 4.5

[[symbols]]
match = ["BTC-*", "alltick:*"]
[symbols.signals.trade_rate]
indicator = true
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, TypeVar

from tickbus.errors import ConfigError
from tickbus.units import SECOND, parse_duration

WINDOW = 1_000
"""Most trades of a window that counts trades."""
_MAX_PATTERN, _MAX_STARS = 64, 2
_MAX_NUMBER = 10**6


@dataclass(frozen=True)
class Sigma:
    """start, end: sample deviations. n: trades of the window."""

    enabled: bool = True
    n: int = WINDOW
    start: Fraction = Fraction(4)
    end: Fraction = Fraction(2)
    cooldown: int = 30 * SECOND


@dataclass(frozen=True)
class Surge:
    """start, end: ratios to the mean; z: sample deviations that a start needs too."""

    enabled: bool = True
    start: Fraction = Fraction(3)
    z: Fraction = Fraction(4)
    end: Fraction = Fraction(3, 2)
    cooldown: int = 30 * SECOND
    indicator: bool = False
    every: int = SECOND


@dataclass(frozen=True)
class Large:
    """A trade of at least this percentile and this multiple of the median."""

    enabled: bool = True
    n: int = WINDOW
    percentile: Fraction = Fraction(99)
    multiple: Fraction = Fraction(10)


@dataclass(frozen=True)
class Aggressor:
    """start, end: of the share (B - S) / (B + S); trades: at least so many in the window."""

    enabled: bool = True
    start: Fraction = Fraction(3, 5)
    end: Fraction = Fraction(3, 10)
    trades: int = 30
    cooldown: int = 30 * SECOND
    indicator: bool = False
    every: int = SECOND


@dataclass(frozen=True)
class Profile:
    """The volume by price of a session; an indicator."""

    indicator: bool = False
    every: int = 60 * SECOND


@dataclass(frozen=True)
class Quiet:
    """quiet: at least so long; multiple: of the 99th percentile of the newest inter-arrivals. always_open:
    the market never closes, so that silence means something; None: a pair, which has no market's suffix.
    """

    enabled: bool = True
    quiet: int = 10 * SECOND
    multiple: Fraction = Fraction(20)
    always_open: bool | None = None


@dataclass(frozen=True)
class Parameters:
    """Of all signals of one symbol."""

    sigma_price: Sigma = Sigma()
    sigma_return: Sigma = Sigma(start=Fraction(6), end=Fraction(3))
    volume_surge: Surge = Surge()
    trade_rate: Surge = Surge()
    large_trade: Large = Large()
    aggressor: Aggressor = Aggressor()
    spread: Surge = Surge(start=Fraction(2), end=Fraction(6, 5))
    volume_profile: Profile = Profile()
    gap_watch: Quiet = Quiet()


NAMES = {each.name.replace("sigma_", "sigma."): each.name for each in fields(Parameters)}
"""Name of a signal -> field of `Parameters`."""


@dataclass(frozen=True)
class _Override:
    match: tuple[str, ...]
    signals: Mapping[str, Mapping[str, Any]]

    def applies(self, feed: str, symbol: str) -> bool:
        return any(
            fnmatchcase(f"{feed}:{symbol}" if ":" in pattern else symbol, pattern) for pattern in self.match
        )


@dataclass(frozen=True)
class ParameterSet:
    """A file's parameters. number: under which this bus knows the set; 0: the built-in one."""

    number: int = 0
    default: Parameters = Parameters()
    overrides: tuple[_Override, ...] = ()
    text: str = field(default="", compare=False)
    """The file."""

    def of(self, feed: str, symbol: str) -> Parameters:
        """Return the parameters of a symbol: the later override wins."""
        found = self.default
        for override in self.overrides:
            if override.applies(feed, symbol):
                found = _changed(found, override.signals, "")
        return found


def parse(text: str, number: int = 0) -> ParameterSet:
    """Return the parameters of a file. ConfigError if it has anything that is not understood."""
    try:
        file = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"no TOML: {error}") from None
    if unknown := sorted(file.keys() - {"signals", "symbols"}):
        raise ConfigError(f"unknown {unknown[0]!r}: expected [signals.NAME] and [[symbols]]")
    default = _changed(Parameters(), _tables(file.get("signals", {}), "signals"), "")
    listed = file.get("symbols", [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ConfigError("symbols: expected [[symbols]] tables")
    overrides = tuple(_override(number, one) for number, one in enumerate(listed, 1))
    for number_of, override in enumerate(overrides, 1):
        _changed(default, override.signals, f"[[symbols]] number {number_of}: ")
    return ParameterSet(number, default, overrides, text)


def _override(number: int, table: Mapping[str, Any]) -> _Override:
    where = f"[[symbols]] number {number}: "
    if unknown := sorted(table.keys() - {"match", "signals"}):
        raise ConfigError(f"{where}unknown {unknown[0]!r}: expected match and signals")
    patterns = table.get("match")
    if isinstance(patterns, str):
        patterns = [patterns]
    if not patterns or not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
        raise ConfigError(f'{where}match is missing: expected e.g. match = ["BTC-*", "alltick:*"]')
    for pattern in patterns:
        if len(pattern) > _MAX_PATTERN or pattern.count("*") > _MAX_STARS:
            raise ConfigError(
                f"{where}pattern {pattern[:80]!r}: at most {_MAX_PATTERN} characters and {_MAX_STARS} *"
            )
    return _Override(tuple(patterns), _tables(table.get("signals", {}), f"{where}signals"))


def _tables(value: object, where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(one, dict) for one in value.values()):
        raise ConfigError(f'{where}: expected tables like [signals."sigma.price"]')
    tables = dict(value)
    sigma = tables.get("sigma")
    if sigma is not None and all(isinstance(one, dict) for one in sigma.values()):
        # [signals.sigma.price] without quotes means the same
        del tables["sigma"]
        tables |= {f"sigma.{name}": one for name, one in sigma.items()}
    return tables


T = TypeVar("T")


def _changed(parameters: Parameters, signals: Mapping[str, Mapping[str, Any]], where: str) -> Parameters:
    changes: dict[str, Any] = {}
    for name, values in signals.items():
        if name not in NAMES:
            raise ConfigError(f"{where}unknown signal {name!r}: expected one of {', '.join(NAMES)}")
        changes[NAMES[name]] = _updated(getattr(parameters, NAMES[name]), values, f"{where}{name}")
    return replace(parameters, **changes)


def _updated(one: T, values: Mapping[str, Any], where: str) -> T:
    known = {each.name: getattr(one, each.name) for each in fields(one)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown {key!r}: expected one of {', '.join(known)}")
        changes[key] = _value(key, value, known[key], f"{where}: {key}")
    updated = replace(one, **changes)  # type: ignore[type-var]
    start, end = getattr(updated, "start", None), getattr(updated, "end", None)
    if start is not None and end is not None and not end < start:
        raise ConfigError(f"{where}: end {_text(end)} must be below start {_text(start)}")
    return updated


_DURATIONS = ("cooldown", "every", "quiet")


def _value(key: str, value: object, default: object, where: str) -> object:
    if key in ("enabled", "indicator", "always_open"):
        if not isinstance(value, bool):
            raise ConfigError(f"{where} = {value!r}: expected true or false")
        return value
    if key in _DURATIONS:
        if not isinstance(value, str):
            raise ConfigError(f'{where} = {value!r}: expected a duration like "30s"')
        try:
            duration = parse_duration(value)
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from None
        if key != "cooldown" and (duration < SECOND or duration % SECOND):
            raise ConfigError(f"{where} = {value!r}: expected whole seconds, at least 1s")
        return int(duration)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ConfigError(f"{where} = {value!r}: expected a number")
    if isinstance(default, int):
        low, high = (2, WINDOW) if key == "n" else (1, _MAX_NUMBER)
        if not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{where} = {value}: expected a whole number from {low} to {high}")
        return value
    number = Decimal(value)
    most = 100 if key == "percentile" else _MAX_NUMBER
    if not number.is_finite() or not 0 < number <= most or number.as_tuple().exponent < -9:  # type: ignore[operator]
        raise ConfigError(f"{where} = {value}: expected a number above 0, at most {most}, with 9 places")
    return Fraction(number)


def _text(value: Fraction) -> str:
    return f"{float(value):g}"


def decimal_text(value: Fraction) -> str:
    """Return a parameter as digits: `4`, `1.5`."""
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    return f"{exact.normalize():f}"
