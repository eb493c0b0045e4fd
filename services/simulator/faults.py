"""The grammar of faults, and their schedule. Pure.

    after=1000 mute=5s; at=3s close=1011 reason=going down; every=500 drop=2 kind=trade symbol=BTCUSDT

Faults are separated by `;`. A fault consists of words `key=value`: an action, optionally a trigger (`after`
n ticks, `at` a duration, `every` n ticks; all counted from the moment the fault is given; without a
trigger: at once), and, for faults of ticks, a choice of ticks (`kind`, `symbol`). `reason` is the last word
and takes the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from services.simulator.tick import is_symbol
from tickbus.errors import ConfigError
from tickbus.units import format_duration, format_size, parse_duration, parse_size

Trigger = Literal["after", "at", "every"]


@dataclass(frozen=True)
class Fault:
    action: str
    amount: int = 0
    """Ticks, frames, ns, bytes, an id or a close code, depending on the action."""
    trigger: Trigger | None = None
    trigger_value: int = 0
    """Ticks, or ns for `at`."""
    kind: str | None = None
    symbol: str | None = None
    reason: str = ""

    def __str__(self) -> str:
        words = []
        if self.trigger:
            value = self.trigger_value
            words.append(f"{self.trigger}={format_duration(value) if self.trigger == 'at' else value}")
        action = ACTIONS[self.action]
        words.append(
            self.action if action.default == self.amount else f"{self.action}={action.format(self.amount)}"
        )
        words += [
            f"{key}={value}"
            for key, value in (("kind", self.kind), ("symbol", self.symbol), ("reason", self.reason))
            if value
        ]
        return " ".join(words)


@dataclass(frozen=True)
class Action:
    """The value that an action takes, and what the fault does."""

    value: str
    """What to write for the value, for help and errors; empty if it takes none."""
    parse: Callable[[str], int]
    help: str
    affects_ticks: bool = False
    """It changes ticks in transit, so `kind` and `symbol` can choose them."""
    default: int | None = None
    """The amount if no value is given; None: a value is required."""
    format: Callable[[int], str] = str
    """The inverse of `parse`."""


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= len(text) <= 15 or int(text) < 1:
        raise ValueError(f"invalid number {text!r}: expected a whole number, at least 1")
    return int(text)


def _zero_or_positive(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _close_code(text: str) -> int:
    code = int(text) if text.isascii() and text.isdecimal() and len(text) == 4 else 0
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise ValueError(f"invalid close code {text!r}: expected 1000 to 1003, 1007 to 1014 or 3000 to 4999")
    return code


def _huge_size(text: str) -> int:
    size = parse_size(text)
    if not 1 <= size <= 1 << 30:
        raise ValueError(f"invalid size {text!r}: expected 1B to 1GB")
    return size


ACTIONS: dict[str, Action] = {
    "mute": Action(
        "DURATION",
        parse_duration,
        "send nobody data for this long; answers, pings and heartbeats continue",
        format=format_duration,
    ),
    "mute-connection": Action(
        "DURATION",
        parse_duration,
        "the same for current connections only; new ones get data",
        format=format_duration,
    ),
    "drop": Action("N", _positive, "do not send the next N ticks", affects_ticks=True),
    "duplicate": Action("N", _positive, "send the next N ticks twice", affects_ticks=True),
    "reorder": Action(
        "N", _positive, "swap the next N pairs of adjacent ticks of a stream", affects_ticks=True
    ),
    "corrupt": Action("N", _positive, "send the next N ticks with `abc` as the price", affects_ticks=True),
    "seconds": Action("N", _positive, "send the next N ticks with their time in seconds", affects_ticks=True),
    "jump": Action("N", _positive, "raise all ids from now on by N", affects_ticks=True),
    "reset": Action("N", _positive, "restart ids at N", affects_ticks=True),
    "garbage": Action("N", _positive, "send N text frames that are not JSON"),
    "binary": Action("N", _positive, "send N binary frames of junk"),
    "huge": Action("SIZE", _huge_size, "send one text frame of this size", format=format_size),
    "close": Action("CODE", _close_code, "close every connection with this code and `reason`"),
    "refuse": Action(
        "DURATION",
        parse_duration,
        "answer new connections with HTTP 503 for this long",
        format=format_duration,
    ),
    "max-connections": Action(
        "N", _zero_or_positive, "from now on allow at most N connections per path; 0 = no cap"
    ),
    "symbol-cap": Action(
        "N",
        _zero_or_positive,
        "from now on allow at most N symbols per connection; 0 = the vendor's own cap",
    ),
    "slow-down": Action(
        "", _zero_or_positive, "answer `too many requests` as the vendor does, and close", default=0
    ),
    "shutdown": Action(
        "[DURATION]",
        parse_duration,
        "announce a shutdown as the vendor does, close with 1001 after this time",
        default=0,
        format=format_duration,
    ),
    "cut": Action("", _zero_or_positive, "reset every connection, without a close frame", default=0),
    "half-open": Action(
        "", _zero_or_positive, "stop reading and writing on every connection, but leave it open", default=0
    ),
}

_TRIGGERS: dict[str, Callable[[str], int]] = {"after": _positive, "every": _positive, "at": parse_duration}


def parse_faults(text: str) -> list[Fault]:
    """Return faults that are separated by `;`. ConfigError says what is wrong and what is expected."""
    return [_parse(clause) for clause in text.split(";") if clause.strip()]


def _parse(clause: str) -> Fault:
    head, _, reason = f" {' '.join(clause.split())}".partition(" reason=")
    words: dict[str, str] = {}
    for word in head.split():
        key, _, value = word.partition("=")
        if key in words:
            raise ConfigError(f"fault {clause.strip()!r}: duplicate word {key}: give it once")
        words[key] = value
    try:
        return _fault(words, reason)
    except ValueError as error:
        raise ConfigError(f"fault {clause.strip()!r}: {error}") from None


def _fault(words: dict[str, str], reason: str) -> Fault:
    unknown = [
        key for key in words if key not in ACTIONS and key not in _TRIGGERS and key not in ("kind", "symbol")
    ]
    if unknown:
        raise ValueError(
            f"unknown word {unknown[0]!r}: expected one of {', '.join(ACTIONS)}, "
            "after, at, every, kind, symbol, reason"
        )
    actions, triggers = [key for key in words if key in ACTIONS], [key for key in words if key in _TRIGGERS]
    if len(actions) != 1 or len(triggers) > 1:
        raise ValueError("expected one action and at most one of after, at, every; separate faults by `;`")
    name = actions[0]
    action = ACTIONS[name]
    if words[name] == "" and action.default is None:
        raise ValueError(f"{name} needs a value: expected {name}={action.value}")
    if words[name] and not action.value:
        raise ValueError(f"{name} takes no value")
    if not action.affects_ticks and ("kind" in words or "symbol" in words):
        raise ValueError(f"{name} affects whole connections: it takes no kind and no symbol")
    if reason and name != "close":
        raise ValueError(f"{name} takes no reason: only close does")
    if len(reason.encode()) > 123:
        raise ValueError("reason too long: a close frame has room for 123 bytes")
    trigger: Trigger | None = triggers[0] if triggers else None  # type: ignore[assignment]  # key of _TRIGGERS
    return Fault(
        name,
        action.parse(words[name]) if words[name] else 0,
        trigger,
        _TRIGGERS[trigger](words[trigger]) if trigger else 0,
        _kind(words.get("kind")),
        _symbol(words.get("symbol")),
        reason,
    )


def _kind(text: str | None) -> str | None:
    if text not in (None, "trade", "quote"):
        raise ValueError(f"invalid kind {text!r}: expected trade or quote")
    return text


def _symbol(text: str | None) -> str | None:
    if text is not None and not is_symbol(text):
        raise ValueError(
            f"invalid symbol {text!r}: expected it as the vendor spells it, e.g. BTCUSDT or AAPL.US"
        )
    return text


class FaultSchedule:
    """The faults that are not yet due. Counts ticks; time is an argument (monotonic, ns)."""

    def __init__(self) -> None:
        self._by_tick: list[tuple[int, Fault]] = []
        self._by_time: list[tuple[int, Fault]] = []
        self._immediate: list[Fault] = []
        self.ticks = 0
        """Ticks so far."""

    def add(self, fault: Fault, now: int) -> None:
        """Schedule a fault, counted from now."""
        if fault.trigger is None:
            self._immediate.append(fault)
        elif fault.trigger == "at":
            self._by_time.append((now + fault.trigger_value, fault))
        else:
            self._by_tick.append((self.ticks + fault.trigger_value, fault))

    def ticks_until_due(self) -> int | None:
        """Return the number of ticks until a fault is due by count; None if none is scheduled."""
        return min((tick - self.ticks for tick, _ in self._by_tick), default=None)

    def ns_until_due(self, now: int) -> int | None:
        """Return the ns until a fault is due by time; None if none is scheduled."""
        return max(0, min(time for time, _ in self._by_time) - now) if self._by_time else None

    def take_due(self, now: int) -> list[Fault]:
        """Remove and return the faults that are due, in the order given; `every` is scheduled again."""
        if not (self._immediate or self._by_time or self._by_tick):
            return []
        due, self._immediate = self._immediate, []
        due += [fault for tick, fault in self._by_tick if tick <= self.ticks]
        due += [fault for time, fault in self._by_time if time <= now]
        self._by_time = [entry for entry in self._by_time if entry[0] > now]
        again = [
            (tick + fault.trigger_value, fault)
            for tick, fault in self._by_tick
            if tick <= self.ticks and fault.trigger == "every"
        ]
        self._by_tick = [entry for entry in self._by_tick if entry[0] > self.ticks] + again
        return due
