"""The signal service's counters and gauges as metrics."""

from services.signals.parameters import NAMES
from services.signals.service import SignalService
from services.signals.trades import ASIDE
from tickbus.monitoring import metrics as m
from tickbus.monitoring.meters import Meters
from tickbus.protocol.messages import SignalState

_REASONS = (*ASIDE.values(), "zero", "one_sided", "locked", "crossed", "unreadable")


def expose(meters: Meters, signals: SignalService) -> None:
    """Show what the service counts."""
    for name in NAMES:
        for state in SignalState:
            key = name, state.name.lower()
            meters.follow(m.SIGNALS_EMITTED, lambda key=key: signals.emitted[key], *key)  # type: ignore[misc]
    meters.follow_each(m.SIGNALS_IGNORED, lambda: signals.ignored, _REASONS)
    meters.follow_each(m.SIGNALS_UNDECIDED, lambda: signals.undecided, ("flat", "suppressed"))
    meters.follow(m.SIGNALS_EPISODES, lambda: signals.episodes)
    meters.follow(m.SIGNALS_PARAMETERS, lambda: signals.parameters)
    meters.follow(m.SIGNALS_STATE_BYTES, lambda: signals.state_bytes)
