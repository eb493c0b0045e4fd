"""What faults do to the sequence of ticks: drop, duplicate, reorder, corrupt, seconds, jump, reset. Pure.

Ticks go in and come out in lists. A dropped tick comes out too, withheld, so that the ledger can tell of it. What is changed
is a copy without its recorded frame: the protocols write it anew.
"""

from dataclasses import dataclass

from msgspec.structs import replace

from services.simulator.faults import Fault
from services.simulator.tick import Tick
from services.vendors.dialect import Dialect
from tickbus.protocol.messages import Quote, Trade
from tickbus.units import SECOND

CORRUPTED = "abc"
"""What stands for a price in a corrupted tick."""


@dataclass
class _Running:
    fault: Fault
    left: int


class TickFaults:
    def __init__(self) -> None:
        self._running: list[_Running] = []
        self._shifts: list[Fault] = []
        self._shifted: dict[str, tuple[int, int]] = {}
        """Stream -> what is added to its ids, and how many of the shifts that counts in."""
        self._held: dict[str, Tick] = {}
        """Stream -> the tick that its neighbour has to overtake."""

    @property
    def active(self) -> bool:
        """Whether ticks must go through `apply`."""
        return bool(self._running or self._shifts or self._held)

    def add(self, fault: Fault) -> None:
        if fault.action in ("jump", "reset"):
            self._shifts.append(fault)
        else:
            self._running.append(_Running(fault, fault.amount))

    def apply(self, ticks: list[Tick]) -> list[Tick]:
        return [changed for tick in ticks for changed in self._changed(self._renumbered(tick))]

    def flush(self) -> list[Tick]:
        """The ticks that still wait for a neighbour, once the market has ended."""
        held, self._held = list(self._held.values()), {}
        return held

    def _changed(self, tick: Tick) -> list[Tick]:
        if (overtaken := self._held.pop(tick.key, None)) is not None:
            return [replace(tick, fault="reorder"), replace(overtaken, fault="reorder")]
        running = next((running for running in self._running if _meant(running.fault, tick)), None)
        if running is None:
            return [tick]
        running.left -= 1
        if running.left == 0:
            self._running.remove(running)
        action = running.fault.action
        if action == "reorder":
            self._held[tick.key] = tick
            return []
        if action == "duplicate":
            return [tick, replace(tick, fault=action)]
        if action == "drop":
            return [replace(tick, fault=action, withheld=True)]
        # corrupt, seconds: the ledger keeps what the market had, so only what is sent is broken
        return [replace(tick, fault=action, recorded=None)]

    def _renumbered(self, tick: Tick) -> Tick:
        """Jumps and resets come into force at a stream's next tick, one after the other."""
        if not self._shifts:
            return tick
        shift, counted = self._shifted.get(tick.key, (0, 0))
        for fault in self._shifts[counted:]:
            if _meant(fault, tick, "trade"):
                shift = shift + fault.amount if fault.action == "jump" else fault.amount - tick.id
        self._shifted[tick.key] = (shift, len(self._shifts))
        return replace(tick, id=tick.id + shift, recorded=None) if shift else tick


def rendered(tick: Tick, message: Trade | Quote, dialect: Dialect) -> bytes:
    """What is sent of a tick, its fault included."""
    if tick.fault == "corrupt":
        message = (
            replace(message, price_text=CORRUPTED)
            if isinstance(message, Trade)
            else replace(message, bid_text=CORRUPTED)
        )
    item = dialect.render(message, tick.symbol, tick.id)
    if tick.fault == "seconds":
        item = item.replace(
            dialect.time_text(message.ts_event).encode(), b"%d" % (message.ts_event // SECOND)
        )
    return item


def _meant(fault: Fault, tick: Tick, kind: str | None = None) -> bool:
    """Whether the fault is for this tick; `kind` is what it is for where it names none."""
    wanted = fault.kind or kind
    return tick.message is not None and wanted in (None, tick.kind) and fault.symbol in (None, tick.symbol)
