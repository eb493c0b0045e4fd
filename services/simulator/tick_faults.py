"""What faults do to the sequence of ticks: drop, duplicate, reorder, corrupt, seconds, jump, reset. Pure.

Ticks go in and come out in lists. A dropped tick comes out too, marked, so that the ledger can record it. A
changed tick is a copy without its recorded frame: the protocols render it again.
"""

from dataclasses import dataclass

from msgspec.structs import replace

from services.simulator.faults import Fault
from services.simulator.tick import Tick
from services.vendors.dialect import Dialect
from tickbus.protocol.messages import Quote, Trade
from tickbus.units import SECOND

CORRUPTED = "abc"
"""The price of a corrupted tick."""


@dataclass
class _ActiveFault:
    fault: Fault
    remaining: int


class TickFaults:
    def __init__(self) -> None:
        self._active: list[_ActiveFault] = []
        self._shifts: list[Fault] = []
        self._applied_shifts: dict[str, tuple[int, int]] = {}
        """Stream -> the offset of its ids, and the number of shifts that it includes."""
        self._delayed: dict[str, Tick] = {}
        """Stream -> the tick that is sent after the next one."""

    @property
    def active(self) -> bool:
        """Whether ticks must go through `apply`."""
        return bool(self._active or self._shifts or self._delayed)

    def add(self, fault: Fault) -> None:
        """Start a fault of ticks."""
        if fault.action in ("jump", "reset"):
            self._shifts.append(fault)
        else:
            self._active.append(_ActiveFault(fault, fault.amount))

    def apply(self, ticks: list[Tick]) -> list[Tick]:
        """Return what becomes of the ticks, in the order of sending."""
        return [changed for tick in ticks for changed in self._change(self._renumber(tick))]

    def flush(self) -> list[Tick]:
        """Return the delayed ticks, once the market has ended."""
        delayed, self._delayed = list(self._delayed.values()), {}
        return delayed

    def _change(self, tick: Tick) -> list[Tick]:
        if (delayed := self._delayed.pop(tick.key, None)) is not None:
            return [replace(tick, fault="reorder"), replace(delayed, fault="reorder")]
        active = next((active for active in self._active if _applies(active.fault, tick)), None)
        if active is None:
            return [tick]
        active.remaining -= 1
        if active.remaining == 0:
            self._active.remove(active)
        action = active.fault.action
        if action == "reorder":
            self._delayed[tick.key] = tick
            return []
        if action == "duplicate":
            return [tick, replace(tick, fault=action)]
        if action == "drop":
            return [replace(tick, fault=action, dropped=True)]
        # corrupt, seconds: the ledger keeps what the market had, so only what is sent is broken
        return [replace(tick, fault=action, recorded_frame=None)]

    def _renumber(self, tick: Tick) -> Tick:
        """Apply jumps and resets, which take effect at a stream's next tick, one after the other."""
        if not self._shifts:
            return tick
        offset, included = self._applied_shifts.get(tick.key, (0, 0))
        for fault in self._shifts[included:]:
            if _applies(fault, tick, "trade"):
                offset = offset + fault.amount if fault.action == "jump" else fault.amount - tick.id
        self._applied_shifts[tick.key] = (offset, len(self._shifts))
        return replace(tick, id=tick.id + offset, recorded_frame=None) if offset else tick


def render_with_fault(tick: Tick, message: Trade | Quote, dialect: Dialect) -> bytes:
    """Return a tick as it is sent, with its fault."""
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


def _applies(fault: Fault, tick: Tick, kind: str | None = None) -> bool:
    """Return whether the fault applies to this tick. kind: the kind it applies to if it names none."""
    wanted = fault.kind or kind
    return tick.message is not None and wanted in (None, tick.kind) and fault.symbol in (None, tick.symbol)
