"""The grammar of faults, and when they are due. Pure.

    after=1000 mute=5s; at=3s close=1011 reason=going down; every=500 drop=2 kind=trade symbol=BTCUSDT

Faults are parted by `;`, a fault is words `key=value`: one that says what, and as you like when (`after` so many ticks, `at`
so long, `every` so many ticks; all counted from the moment the fault is given; without one: at once), and, for faults of
ticks, which ticks (`kind`, `symbol`). `reason` is the last word and takes the rest.
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
    """Ticks, frames, ns, bytes, an id or a close code, as the action has it."""
    trigger: Trigger | None = None
    moment: int = 0
    """Of the trigger: ticks, or ns for `at`."""
    kind: str | None = None
    symbol: str | None = None
    reason: str = ""

    def __str__(self) -> str:
        words = []
        if self.trigger:
            words.append(
                f"{self.trigger}={format_duration(self.moment) if self.trigger == 'at' else self.moment}"
            )
        shape = ACTIONS[self.action]
        words.append(
            self.action if shape.bare_value == self.amount else f"{self.action}={shape.write(self.amount)}"
        )
        words += [
            f"{key}={value}"
            for key, value in (("kind", self.kind), ("symbol", self.symbol), ("reason", self.reason))
            if value
        ]
        return " ".join(words)


@dataclass(frozen=True)
class Action:
    """What an action's value is, and what the fault does."""

    value: str
    parse: Callable[[str], int]
    about: str
    of_ticks: bool = False
    """It changes ticks on their way, so `kind` and `symbol` may choose them."""
    bare_value: int | None = None
    """What it is without a value; None: it needs one."""
    write: Callable[[int], str] = str


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= len(text) <= 15 or int(text) < 1:
        raise ValueError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _whole(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _close_code(text: str) -> int:
    code = int(text) if text.isascii() and text.isdecimal() and len(text) == 4 else 0
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise ValueError(
            f"{text!r} is no close code that may be sent; use 1000 to 1003, 1007 to 1014 or 3000 to 4999"
        )
    return code


def _huge_size(text: str) -> int:
    size = parse_size(text)
    if not 1 <= size <= 1 << 30:
        raise ValueError(f"{text!r}: use 1B to 1GB")
    return size


ACTIONS: dict[str, Action] = {
    "mute": Action(
        "DURATION",
        parse_duration,
        "nobody gets data for so long; answers, pings and heartbeats go on",
        write=format_duration,
    ),
    "mute-connection": Action(
        "DURATION",
        parse_duration,
        "the same for those connected now; who connects again gets data",
        write=format_duration,
    ),
    "drop": Action("N", _count, "the next N ticks are not sent", of_ticks=True),
    "duplicate": Action("N", _count, "the next N ticks are sent twice", of_ticks=True),
    "reorder": Action("N", _count, "the next N pairs of neighbours in a stream are swapped", of_ticks=True),
    "corrupt": Action("N", _count, "the next N ticks have `abc` for a price", of_ticks=True),
    "seconds": Action("N", _count, "the next N ticks have their time in seconds", of_ticks=True),
    "jump": Action("N", _count, "ids are N higher from here on", of_ticks=True),
    "reset": Action("N", _count, "ids begin again at N", of_ticks=True),
    "garbage": Action("N", _count, "N text frames that are no JSON"),
    "binary": Action("N", _count, "N binary frames of junk"),
    "huge": Action("SIZE", _huge_size, "one text frame of that size", write=format_size),
    "close": Action("CODE", _close_code, "close every connection with the code and `reason`"),
    "refuse": Action(
        "DURATION", parse_duration, "new connections get HTTP 503 for so long", write=format_duration
    ),
    "max-connections": Action("N", _whole, "from now on at most N connections per path; 0 = no cap"),
    "symbol-cap": Action(
        "N", _whole, "from now on at most N symbols per connection; 0 = the vendor's own cap"
    ),
    "slow-down": Action("", _whole, "say `too many requests` as the vendor does, and close", bare_value=0),
    "shutdown": Action(
        "[DURATION]",
        parse_duration,
        "announce serverShutdown (binance), close with 1001 after that time",
        bare_value=0,
        write=format_duration,
    ),
    "cut": Action("", _whole, "reset every connection, without a close frame", bare_value=0),
    "half-open": Action(
        "", _whole, "stop reading and writing on every connection, and leave it open", bare_value=0
    ),
}

_TRIGGERS: dict[str, Callable[[str], int]] = {"after": _count, "every": _count, "at": parse_duration}


def parse_faults(text: str) -> list[Fault]:
    """Faults parted by `;`. ConfigError says what is wrong and what there is."""
    return [_parse(clause) for clause in text.split(";") if clause.strip()]


def _parse(clause: str) -> Fault:
    head, _, reason = f" {' '.join(clause.split())}".partition(" reason=")
    found: dict[str, str] = {}
    for word in head.split():
        key, _, value = word.partition("=")
        if key in found:
            raise ConfigError(f"fault {clause.strip()!r}: {key} stands there twice")
        found[key] = value
    try:
        return _fault(found, reason)
    except ValueError as error:
        raise ConfigError(f"fault {clause.strip()!r}: {error}") from None


def _fault(found: dict[str, str], reason: str) -> Fault:
    unknown = [
        key for key in found if key not in ACTIONS and key not in _TRIGGERS and key not in ("kind", "symbol")
    ]
    if unknown:
        raise ValueError(
            f"unknown word {unknown[0]!r}; there are {', '.join(ACTIONS)} and after, at, every, kind, symbol, reason"
        )
    actions, triggers = [key for key in found if key in ACTIONS], [key for key in found if key in _TRIGGERS]
    if len(actions) != 1 or len(triggers) > 1:
        raise ValueError("a fault has one action and at most one of after, at, every; part faults by `;`")
    name = actions[0]
    action = ACTIONS[name]
    if found[name] == "" and action.bare_value is None:
        raise ValueError(f"write {name}={action.value}")
    if found[name] and not action.value:
        raise ValueError(f"{name} takes no value")
    if not action.of_ticks and ("kind" in found or "symbol" in found):
        raise ValueError(f"{name} is for whole connections; kind and symbol choose ticks")
    if reason and name != "close":
        raise ValueError("reason belongs to close")
    if len(reason.encode()) > 123:
        raise ValueError("a close frame has room for 123 bytes of reason")
    trigger: Trigger | None = triggers[0] if triggers else None  # type: ignore[assignment]  # a key of _TRIGGERS
    return Fault(
        name, action.parse(found[name]) if found[name] else 0, trigger, _TRIGGERS[trigger](found[trigger]) if trigger else 0,
        _kind(found.get("kind")), _symbol(found.get("symbol")), reason,
    )  # fmt: skip


def _kind(text: str | None) -> str | None:
    if text not in (None, "trade", "quote"):
        raise ValueError(f"kind={text}: use trade or quote")
    return text


def _symbol(text: str | None) -> str | None:
    if text is not None and not is_symbol(text):
        raise ValueError(f"symbol={text}: write it as the vendor spells it, like BTCUSDT or AAPL.US")
    return text


class Plan:
    """The faults that wait for their moment. Counts ticks; time is an argument (monotonic, ns)."""

    def __init__(self) -> None:
        self._at_tick: list[tuple[int, Fault]] = []
        self._at_time: list[tuple[int, Fault]] = []
        self._now: list[Fault] = []
        self.offered = 0
        """Ticks so far."""

    def add(self, fault: Fault, now: int) -> None:
        if fault.trigger is None:
            self._now.append(fault)
        elif fault.trigger == "at":
            self._at_time.append((now + fault.moment, fault))
        else:
            self._at_tick.append((self.offered + fault.moment, fault))

    def room(self) -> int | None:
        """Ticks until a fault is due by count; None if none is."""
        return min((tick - self.offered for tick, _ in self._at_tick), default=None)

    def wait(self, now: int) -> int | None:
        """ns until a fault is due by time."""
        return max(0, min(moment for moment, _ in self._at_time) - now) if self._at_time else None

    def due(self, now: int) -> list[Fault]:
        """What is due now, in the order given; `every` is planned again."""
        if not (self._now or self._at_time or self._at_tick):
            return []
        due, self._now = self._now, []
        due += [fault for tick, fault in self._at_tick if tick <= self.offered]
        due += [fault for moment, fault in self._at_time if moment <= now]
        self._at_time = [entry for entry in self._at_time if entry[0] > now]
        again = [
            (tick + fault.moment, fault)
            for tick, fault in self._at_tick
            if tick <= self.offered and fault.trigger == "every"
        ]
        self._at_tick = [entry for entry in self._at_tick if entry[0] > self.offered] + again
        return due
